//! The pages of a program's and its libraries' files that a process has in reach, given back to the kernel.

use std::{ffi::c_int, ffi::c_void, ptr};

/// Lets go of every page of code and constants that this process has mapped. What it still needs comes back as it is touched, from the
/// page cache and without a read: some hundred faults, a tenth of a millisecond, for whoever wakes the process. Until then the pages are
/// nobody's but the cache's.
///
/// Only segments that are not writable: what the loader has relocated (RELRO) lies in a writable one. A debugger's breakpoints go, too.
pub fn give_back() {
    // SAFETY: the callback reads what the loader hands it, during the call, and calls nothing that loads or unloads an object.
    unsafe {
        libc::dl_iterate_phdr(Some(give_back_object), ptr::null_mut());
    }
}

unsafe extern "C" fn give_back_object(
    info: *mut libc::dl_phdr_info,
    _size: usize,
    _data: *mut c_void,
) -> c_int {
    let page = rustix::param::page_size();
    // SAFETY: dl_iterate_phdr(3) hands out a filled-in structure, and keeps its object loaded until the callback has returned.
    let (base, headers) = unsafe {
        let info = &*info;
        // A file of the kernel's own (vdso(7)) has no pages to give.
        if !info.dlpi_name.is_null()
            && std::ffi::CStr::from_ptr(info.dlpi_name)
                .to_bytes()
                .starts_with(b"linux-")
        {
            return 0;
        }
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr as usize, headers)
    };
    let constant = headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0);
    for header in constant {
        let start = base + header.p_vaddr as usize;
        let end = (start + header.p_memsz as usize).next_multiple_of(page);
        let start = start / page * page;
        // SAFETY: a private mapping of a file that this process has never written to (the linker refuses relocations in such segments):
        // what is read there next is what was there before. An error (EINVAL: locked by mlockall) changes nothing.
        unsafe {
            libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of file pages, KiB.
    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssFile:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    }

    #[test]
    fn code_goes_and_comes_back_as_it_was() {
        static CONSTANT: [u64; 1024] = [0x5a5a; 1024];
        let touched = |at: &[u64]| at.iter().fold(0u64, |all, word| all.wrapping_add(*word));
        let sum = touched(std::hint::black_box(&CONSTANT));
        let before = resident_kib();
        let after = (0..5)
            .map(|_| {
                give_back();
                resident_kib()
            })
            .min()
            .unwrap();
        assert!(after * 2 < before, "{before} KiB before, {after} KiB after");
        assert_eq!(touched(std::hint::black_box(&CONSTANT)), sum);
    }
}
