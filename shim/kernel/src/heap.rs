//! The allocator's memory, given back to the kernel.

/// Gives back every whole page of the heap that nothing is in, also between what is in use: glibc by itself gives back only what is free at
/// the heap's end (mallopt(3), M_TRIM_THRESHOLD), and a small allocation that lives keeps all that was freed below it.
///
/// It walks the heap with the allocator locked: tens of microseconds for a heap of some hundred KiB.
#[cfg(target_env = "gnu")]
pub fn give_back() {
    // SAFETY: it takes the allocator's own locks, and touches no memory that is allocated (malloc_trim(3), glibc 2.8).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators than glibc's have no such call.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }

    #[test]
    fn what_was_freed_between_what_is_in_use_goes_back() {
        const BLOCK: usize = 4096;
        let mut blocks: Vec<Option<Vec<u8>>> = (0..8192).map(|_| Some(vec![1; BLOCK])).collect();
        let full = resident_kib();
        for (at, block) in blocks.iter_mut().enumerate() {
            // One in 32 lives, the last one too.
            if at % 32 != 31 {
                *block = None;
            }
        }
        give_back();
        let after = resident_kib();
        assert!(
            after + (16 << 10) < full,
            "{full} KiB before, {after} KiB after"
        );
        assert!(
            blocks
                .iter()
                .flatten()
                .all(|block| block.iter().all(|byte| *byte == 1))
        );
    }
}
