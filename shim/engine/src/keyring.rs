//! A container's session keyring: its own, shared by its init and its execs, and out of reach of every other container and of the
//! node (SEC-ENG-18). Keys of a *user* (`@u`) are the kernel's matter: all containers without a user namespace share those.
//!
//! Keyrings count towards the quota of the user that they belong to (200 keys for a user other than root), and keys into a keyring
//! towards its owner's. So each belongs to a user of its own, which nobody runs as: a container that has used up the quota of root
//! or of uid 1000 stops no other from being made. Its name is the container's id, which nobody else can guess.

use std::{ffi::CString, io};

use berth_kernel::keyring;
use rustix::process::Uid;
use sha2::{Digest, Sha256};

use crate::Error;

/// The users that keyrings belong to: 2^28 numbers, far from those that people and images use.
const FIRST_OWNER: u32 = 0x7000_0000;
const OWNERS_MASK: u32 = 0x0fff_ffff;

/// Joins the keyring of this container; for a worker, whose children inherit it.
pub(crate) fn join(id: &str) -> Result<(), Error> {
    let step = || Error::io(format!("join the session keyring of container {id}"));
    let name = CString::new(id).map_err(|e| step()(e.into()))?;
    let hash = Sha256::digest(id.as_bytes());
    let number = u32::from_le_bytes([hash[0], hash[1], hash[2], hash[3]]);
    let owner = Uid::from_raw(FIRST_OWNER | number & OWNERS_MASK);
    // The saved uid stays root's, and with it the way back.
    rustix::thread::set_thread_res_uid(owner, owner, Uid::ROOT).map_err(|e| step()(e.into()))?;
    let joined =
        keyring::join_session(&name).and_then(|new| new.map_or(Ok(()), keyring::let_owner_join));
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(|e| step()(e.into()))?;
    match joined {
        // A kernel without keys has none to share.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOSYS as i32) => Ok(()),
        joined => joined.map_err(step()),
    }
}
