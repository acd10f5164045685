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

    const LENGTH: usize = 1 << 20;
    static CONSTANT: [u64; LENGTH / 8] = [0x5a5a; LENGTH / 8];

    /// Of the pages that lie wholly in `CONSTANT`, those in this process's reach (proc_pid_pagemap(5): bit 63 of a page's eight bytes),
    /// without a quarter of them at either end: a fault there, on a neighbour's behalf, brings pages around it.
    fn in_reach() -> (usize, usize) {
        let page = rustix::param::page_size();
        let start = CONSTANT.as_ptr().addr();
        let pages = (start + LENGTH / 4).div_ceil(page)..(start + LENGTH / 4 * 3) / page;
        let mut entries = vec![0; pages.len() * 8];
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&map, &mut entries, pages.start as u64 * 8)
            .unwrap();
        let present = entries
            .as_chunks::<8>()
            .0
            .iter()
            .filter(|entry| u64::from_ne_bytes(**entry) >> 63 == 1);
        (present.count(), pages.len())
    }

    #[test]
    fn code_goes_and_comes_back_as_it_was() {
        let touched = || {
            let constant = std::hint::black_box(&CONSTANT);
            constant.iter().sum::<u64>()
        };
        let sum = touched();
        let (before, all) = in_reach();
        assert_eq!(before, all);
        give_back();
        assert_eq!(in_reach(), (0, all));
        assert_eq!(touched(), sum);
        assert_eq!(in_reach(), (all, all));
    }
}
