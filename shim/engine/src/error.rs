//! What can go wrong, a variant a step.

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container {0} is not known to this engine")]
    UnknownContainer(String),
    #[error("container {0} exists already")]
    ContainerExists(String),
    /// `step` is what was tried, on what.
    #[error("{step}: {source}")]
    Io {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("spec of container {id}: {reason}")]
    Spec { id: String, reason: String },
    /// The command of a container or an exec could not be run: the container's own failure, with the exit code a shell gives
    /// it (127: not found, 126: found and not executable, 128: anything else).
    #[error("{message}")]
    Command { exit_code: i32, message: String },
    #[error("create container {id}: {reason}")]
    Create { id: String, reason: String },
    /// A program that the spec names, and that runs on the node.
    #[error("container {id}: {reason}")]
    Hook { id: String, reason: String },
    /// What is asked for does not fit the image, a volume or this node's kernel: no fault of ours, and none that trying again mends.
    #[error("{step}: {reason}")]
    Unfit { step: String, reason: String },
    #[error(
        "create container {0}: its first process was killed for want of memory: the container's limit, or one above it, is less than making it takes"
    )]
    NoMemory(String),
    /// A pod's sysctl that the kernel does not take there: none of that name, or not with that value.
    #[error("sysctl {name}: {reason}")]
    Sysctl { name: String, reason: String },
    #[error("seccomp profile: {0}")]
    Seccomp(String),
    /// The node lacks what a checkpoint needs.
    #[error("CRIU at {}: {reason}", path.display())]
    Criu { path: PathBuf, reason: String },
    #[error("checkpoint container {id}: {reason}")]
    Checkpoint { id: String, reason: String },
    /// Another shim, which makes the containers of this pod.
    #[error("shim {shim}: {step}: {reason}")]
    Shim {
        shim: String,
        step: String,
        reason: String,
        /// What a caller can make of it.
        kind: io::ErrorKind,
    },
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    /// The process that made something died of it: 128 and its signal, or its exit code.
    #[error("container launcher: worker ended with {exit_code} before it answered")]
    Worker { exit_code: i32 },
    /// The engine's launcher died or answered nonsense.
    #[error("container launcher: {0}")]
    Zygote(String),
}

impl Error {
    pub(crate) fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let step = step.into();
        move |source| Error::Io { step, source }
    }
    pub(crate) fn errno(step: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Error {
        let step = step.into();
        move |source| Error::Io {
            step,
            source: source.into(),
        }
    }
}
