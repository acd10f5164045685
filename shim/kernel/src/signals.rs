//! Signal dispositions: execve keeps what is ignored and what is blocked, and a container must get neither from us. And signals told by a
//! pipe, to a loop that waits for descriptors.

use std::{
    io,
    os::fd::{IntoRawFd, OwnedFd},
    sync::atomic::{AtomicI32, Ordering},
};

use rustix::pipe::{PipeFlags, pipe_with};

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

/// The writing end of [`pipe`]; -1: there is none.
static TOLD: AtomicI32 = AtomicI32::new(-1);

/// From now on each of these signals writes its number, a byte, into the pipe whose reading end this answers. Both ends are non-blocking and
/// close with execve, which gives the signals their default action again, too. In a pipe that is full further ones are lost: who reads
/// 65,536 numbers has enough to do. Once a process (EALREADY).
///
/// Handlers and no signalfd: what is blocked for that would stay blocked in every program that is run.
pub fn pipe(signals: &[i32]) -> io::Result<OwnedFd> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let write = write.into_raw_fd();
    if TOLD
        .compare_exchange(-1, write, Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        return Err(io::Error::from_raw_os_error(libc::EALREADY));
    }
    for signal in signals {
        set(
            *signal,
            tell as *const () as libc::sighandler_t,
            libc::SA_RESTART,
        )?;
    }
    Ok(read)
}

extern "C" fn tell(signal: i32) {
    let byte = signal as u8;
    // SAFETY: errno is this thread's own, and whoever was interrupted finds it as it was; write(2) is async-signal-safe and reads one
    // byte that lives. The descriptor is never closed.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(TOLD.load(Ordering::Acquire), (&raw const byte).cast(), 1);
        *errno = before;
    }
}

/// Installs an action. Async-signal-safe.
pub(crate) fn set(signal: i32, handler: libc::sighandler_t, flags: i32) -> io::Result<()> {
    // SAFETY: sigaction is a plain C struct for which all zeros is valid (default action, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: `action` is initialised and lives over the call; the old action is not asked for. A handler given here is a
    // function of this crate that does nothing but what is async-signal-safe.
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

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    #[test]
    fn signals_are_told_by_the_pipe_in_their_order() {
        let mut told = File::from(pipe(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap());
        let mut bytes = [0; 8];
        assert_eq!(
            told.read(&mut bytes).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        for signal in [libc::SIGUSR2, libc::SIGUSR1] {
            // SAFETY: both have a handler.
            unsafe { libc::raise(signal) };
        }
        assert_eq!(told.read(&mut bytes).unwrap(), 2);
        assert_eq!(bytes[..2], [libc::SIGUSR2 as u8, libc::SIGUSR1 as u8]);
        assert_eq!(pipe(&[]).unwrap_err().raw_os_error(), Some(libc::EALREADY));
    }
}
