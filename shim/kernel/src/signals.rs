//! Signal dispositions: execve keeps what is ignored and what is blocked, and a container must get neither from us.

use std::io;

/// The highest signal number of Linux.
const LAST_SIGNAL: i32 = 64;

/// Gives every signal its default action and blocks none. Rust's runtime ignores SIGPIPE in every program; a shell pipeline in
/// a container would never end by it. For a single-threaded process just before execve.
pub fn restore_defaults() -> io::Result<()> {
    // The kernel's own struct sigaction, of four words at most; all zeros is the default action. Not by glibc, which hides its
    // signals 32 and 33: a parent may have ignored those too.
    let default = [0u64; 4];
    let mask_bytes = 8;
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: `default` is as long as the kernel reads and lives over the call; the old action is not asked for.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null::<u64>(),
                mask_bytes,
            )
        };
    }
    unblock_all()
}

/// Ignores a signal; execve keeps that. For a single-threaded process just before it runs another.
pub fn ignore(signal: i32) -> io::Result<()> {
    set(signal, libc::SIG_IGN, 0)
}

/// Installs an action. Async-signal-safe.
pub(crate) fn set(signal: i32, handler: libc::sighandler_t, flags: i32) -> io::Result<()> {
    // SAFETY: sigaction is a plain C struct for which all zeros is valid (default action, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is initialised and lives over the call; the old action is not asked for. A handler given here is a
    // function of this crate that only calls _exit.
    if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Empties the signal mask. Async-signal-safe.
pub(crate) fn unblock_all() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigset_t; sigemptyset then makes it the empty set, and it lives over the call.
    let answer = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if answer == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
