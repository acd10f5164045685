//! What can go wrong between a pod and the plugins.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("NRI plugin {plugin} refuses {call}: {why}")]
    Refused {
        plugin: String,
        call: &'static str,
        why: String,
    },
    #[error("NRI plugins {first} and {second} both want to set {what} of container {container_id}")]
    Conflict {
        first: String,
        second: String,
        what: String,
        container_id: String,
    },
    #[error("NRI validator {validator} rejects what plugins want of the container: {why}")]
    Rejected { validator: String, why: String },
    #[error("NRI plugin {plugin}: {why}")]
    Senseless { plugin: String, why: String },
    /// The plugin is gone, and with it the call.
    #[error("NRI plugin {plugin}: {why}")]
    Lost { plugin: String, why: String },
    #[error("{act} {}: {source}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(
        act: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { act, path, source }
    }
}
