//! Nodes that `berth up` and `berth join` keep on this machine: for each a runtime and a kubelet, as processes of their own.
//!
//! ```text
//! DIR/nodes/NAME/   node.json            what was made, written before it is: `berth down` takes it back
//!                   berthd.{toml,log,pid}, kubelet.{log,pid}
//!                   bootstrap.kubeconfig, kubelet.kubeconfig, kubelet/, logs/
//! ```
//!
//! Invariant: ending or killing what keeps them ends no pod: the next one takes them over.

pub mod approve;
pub mod network;
pub mod node;
pub mod pin;
pub mod program;
pub mod token;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::error::Error;

/// How a path could not be used, as an error of a command.
pub fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

/// A directory of root's alone, with those above it.
pub fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(file("make the directory", path))
}

/// Whole or not at all, 0600.
pub fn write(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)
        .and_then(|mut file| {
            file.write_all(contents)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(file("write", path))
}

/// What was tried on this machine, and why it failed.
pub fn failed(what: impl Into<String>, why: impl ToString) -> Error {
    Error::Invalid {
        what: what.into(),
        why: why.to_string(),
    }
}
