//! Keys and certificates in files (PEM, 0600).

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rcgen::KeyPair;

use super::certificate;
use crate::Error;

/// The private key in `path` (PEM), by which tokens are signed: as [`crate::Tokens::new`] takes it.
///
/// # Errors
/// There is none, or it can't be read.
pub fn read_token_key(path: &Path) -> Result<Vec<u8>, Error> {
    let none = || certificate("read a key", &format!("{}: there is none", path.display()));
    let pem = read(path)?.ok_or_else(none)?;
    let key = KeyPair::from_pem(&pem)
        .map_err(|e| certificate("read a key", &format!("{}: {e}", path.display())))?;
    Ok(key.serialize_der())
}

/// The key (ECDSA P-256) in `path`, made where there is none. One that can't be read is an error: what it signed would be lost with it.
pub(super) fn key(path: &Path) -> Result<KeyPair, Error> {
    if let Some(pem) = read(path)? {
        return KeyPair::from_pem(&pem)
            .map_err(|e| certificate("read a key", &format!("{}: {e}", path.display())));
    }
    let key = KeyPair::generate().map_err(|e| certificate("make a key", &e))?;
    write(path, key.serialize_pem().as_bytes())?;
    Ok(key)
}

pub(super) fn read(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path, e)),
    }
}

/// Whole or not at all, 0600.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let new = path.with_extension("new");
    let written = (|| {
        // One that a crash left behind.
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        match path.parent() {
            Some(directory) => fs::File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    })();
    written.map_err(|e| failed("write", path, e))
}

pub(super) fn failed(act: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File {
        act,
        path: path.to_owned(),
        source,
    }
}
