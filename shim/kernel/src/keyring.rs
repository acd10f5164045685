//! Session keyrings (keyctl(2)): where a process keeps keys and looks for them. A child shares its parent's.

use std::{ffi::CStr, io};

/// A key's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serial(i32);

/// What the holder of a keyring may do with it (`KEY_POS_ALL`), and its owner (`KEY_USR_SEARCH`): to join it by its name.
const HELD_OR_JOINED: libc::c_ulong = 0x3f00_0000 | 0x0008_0000;

/// Makes the keyring of this name the calling thread's session keyring, or a new one where its user has none that it may search.
/// A new one belongs to the real user, whose quota it takes from. `None`: it is the session keyring already. ENOSYS: the kernel has
/// no keys.
pub fn join_session(name: &CStr) -> io::Result<Option<Serial>> {
    // SAFETY: the name is a C string that the kernel copies.
    let serial = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING as libc::c_ulong,
            name.as_ptr(),
        )
    };
    match serial {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        serial => Ok(Some(Serial(serial as i32))),
    }
}

/// Lets other processes of the keyring's owner join it; the kernel makes it without that right.
pub fn let_owner_join(keyring: Serial) -> io::Result<()> {
    // SAFETY: three numbers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SETPERM as libc::c_ulong,
            libc::c_ulong::from(keyring.0 as u32),
            HELD_OR_JOINED,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_is_joined_again_by_its_name() {
        let name = std::ffi::CString::new(format!("berth-test-{}", std::process::id())).unwrap();
        // A thread has credentials of its own, and a new one those of the thread that starts it.
        std::thread::scope(|scope| {
            let (joined, wait) = std::sync::mpsc::channel();
            let (done, end) = std::sync::mpsc::channel();
            let held = name.clone();
            scope.spawn(move || {
                let serial = join_session(&held).unwrap().unwrap();
                let_owner_join(serial).unwrap();
                assert_eq!(join_session(&held).unwrap(), None);
                joined.send(serial).unwrap();
                let _: () = end.recv().unwrap();
            });
            let first = wait.recv().unwrap();
            let again = scope.spawn(|| join_session(&name).unwrap());
            assert_eq!(again.join().unwrap(), Some(first));
            let other = scope.spawn(|| join_session(c"berth-test-other").unwrap());
            assert_ne!(other.join().unwrap(), Some(first));
            done.send(()).unwrap();
        });
    }
}
