//! The pages of a stack that nothing lies on any more, given back to the kernel.

use std::ffi::c_void;

/// Left alone below this call's own frame: what it calls needs some, and the ABI lets code use a little below the stack pointer.
const KEPT_BYTES: usize = 8 << 10;
/// Deepest use that is looked for: less than the gap that the kernel keeps free below a stack that grows (1 MiB, Linux 4.12).
const SPAN_BYTES: usize = 512 << 10;

/// Gives back what the stack of the process's first thread has held below the caller: it grows to its deepest use and by itself never
/// shrinks. On another thread, nothing. Not for a child that another thread has forked: that one's stack is what it runs on.
#[inline(never)]
pub fn give_back() {
    if rustix::thread::gettid() != rustix::process::getpid() {
        return;
    }
    let page = rustix::param::page_size();
    let here = 0u8;
    let end = ((&raw const here).addr() - KEPT_BYTES) / page * page;
    // SAFETY: the range is below all frames of this stack that live, this one's with KEPT_BYTES to spare; no signal's handler runs there,
    // since this code does. Where the stack does not reach, nothing is mapped in the kernel's gap below it, which is ENOMEM.
    unsafe {
        libc::madvise(
            (end - SPAN_BYTES) as *mut c_void,
            SPAN_BYTES,
            libc::MADV_DONTNEED,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clone::Clone, pidfd};

    #[inline(never)]
    fn deep() -> usize {
        let room = std::hint::black_box([1u8; 256 << 10]);
        room.iter().map(|byte| usize::from(*byte)).sum()
    }

    /// Of the range, pages that are there.
    fn resident(end: usize) -> usize {
        let page = rustix::param::page_size();
        let pages = (256 << 10) / page;
        let mut there = [0u8; 256];
        // SAFETY: mincore(2) writes a byte a page, which there is room for, of a range that is mapped.
        let answer = unsafe {
            libc::mincore(
                (end / page * page - pages * page) as *mut c_void,
                pages * page,
                there.as_mut_ptr(),
            )
        };
        if answer == -1 {
            usize::MAX
        } else {
            there.iter().filter(|byte| **byte & 1 == 1).count()
        }
    }

    /// The tests' own threads are none of a process's first: in a child, which has one.
    #[test]
    fn what_was_deep_goes_back_and_what_is_in_use_stays() {
        let work = || {
            let own = [7u8; 4096];
            let own = std::hint::black_box(&own);
            let below = own.as_ptr().addr() - KEPT_BYTES - 8192;
            let sum = deep();
            let full = resident(below);
            give_back();
            let after = resident(below);
            let kept = own.iter().all(|byte| *byte == 7);
            i32::from(!(sum == 256 << 10 && full > 40 && after < 10 && kept && deep() == sum))
        };
        // SAFETY: the closure makes system calls and counts; it allocates nothing and takes no lock.
        let child = unsafe { Clone::default().spawn_unchecked(work) }.unwrap();
        assert_eq!(pidfd::wait(&child.pidfd).unwrap().code(), 0);
    }

    #[test]
    fn another_threads_stack_is_left_alone() {
        let thread = || {
            deep();
            give_back();
            deep()
        };
        assert_eq!(std::thread::spawn(thread).join().unwrap(), 256 << 10);
    }
}
