//! What fjall believes without looking: of each tree which tables it has. It keeps a checksum of that file (`current`: number, XXH3-128 of `v<number>`, 0; little
//! endian) and does not compare it, and of what is damaged in it some is met by an assertion and some is served (lsm-tree 3.1).

use std::{fs, io, path::Path};

use xxhash_rust::xxh3::xxh3_128;

use super::{broken, is_of_contents};
use crate::Error;

const CURRENT_BYTES: usize = 8 + 16 + 1;

/// Compares them, of every tree of the database at `path`.
///
/// # Errors
/// [`Error::Corrupt`]: they differ, or one is not there. [`Error::Broken`]: they can't be read at this time.
pub(super) fn check(path: &Path) -> Result<(), Error> {
    let trees = match fs::read_dir(path.join("keyspaces")) {
        // It is about to be made.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        trees => trees.map_err(|error| unread(path, &error))?,
    };
    for tree in trees {
        let tree = tree.map_err(|error| unread(path, &error))?;
        check_tree(&tree.path())?;
    }
    Ok(())
}

fn check_tree(tree: &Path) -> Result<(), Error> {
    let at = tree.join("current");
    let current = match fs::read(&at) {
        // Of a tree whose making was cut off: fjall makes it anew.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        current => current.map_err(|error| unread(&at, &error))?,
    };
    let Ok(current) = <[u8; CURRENT_BYTES]>::try_from(current) else {
        return Err(corrupt(&at, "it has another length"));
    };
    let (number, rest) = current.split_at(8);
    let (checksum, kind) = rest.split_at(16);
    if kind != [0] {
        return Err(corrupt(&at, "it names a checksum that is not known"));
    }
    let number = number
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte));
    let file = tree.join(format!("v{number}"));
    let bytes = fs::read(&file).map_err(|error| unread(&file, &error))?;
    match xxh3_128(&bytes).to_le_bytes() == checksum {
        true => Ok(()),
        false => Err(corrupt(&file, "it does not have its checksum")),
    }
}

fn unread(path: &Path, error: &io::Error) -> Error {
    match is_of_contents(error) {
        true => corrupt(path, &error.to_string()),
        false => broken("open the store", format!("{}: {error}", path.display())),
    }
}

fn corrupt(path: &Path, why: &str) -> Error {
    Error::Corrupt {
        what: path.display().to_string(),
        why: why.to_owned(),
    }
}
