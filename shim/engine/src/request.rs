//! The operations of the launcher and their answers, as they travel.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Maker, cgroup::Error as CgroupError, pause::UserNamespace};

/// First byte of a control datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    Create = b'c',
    Exec = b'e',
    Pause = b'p',
    Checkpoint = b'k',
    Hooks = b'h',
}

impl Operation {
    pub(crate) fn decode(byte: u8) -> Option<Operation> {
        [
            Operation::Create,
            Operation::Exec,
            Operation::Pause,
            Operation::Checkpoint,
            Operation::Hooks,
        ]
        .into_iter()
        .find(|operation| *operation as u8 == byte)
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CreateRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// The container's own directory below the engine's state.
    pub directory: PathBuf,
    pub seccomp_cache_dir: Option<PathBuf>,
    pub maker: Maker,
    pub tty: bool,
    pub systemd_cgroup: bool,
    pub restore: Option<RestoreRequest>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RestoreRequest {
    pub criu: PathBuf,
    pub images: PathBuf,
    pub work: PathBuf,
    pub timeout_ms: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecRequest {
    pub id: String,
    pub directory: PathBuf,
    /// Of the container's init, as the node sees it; its pidfd travels beside.
    pub pid: i32,
    pub process: oci_spec::runtime::Process,
    pub tty: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct CheckpointRequest {
    pub id: String,
    pub directory: PathBuf,
    /// Of the container's init, as the node sees it; its pidfd travels beside.
    pub pid: i32,
    pub criu: PathBuf,
    pub images: PathBuf,
    pub work: PathBuf,
    pub timeout_ms: u64,
    pub leave_running: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PauseRequest {
    pub hostname: Option<String>,
    pub new_ipc: bool,
    pub new_uts: bool,
    pub new_pid: bool,
    pub sysctls: Vec<(String, String)>,
    pub oom_score_adj: Option<i32>,
    pub user: Option<UserNamespace>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Descriptors: the pidfd; the end of the report pipe or of a native init's socket (create); the console's master (tty).
    Made {
        pid: i32,
        maker: Maker,
        notes: Vec<String>,
    },
    Failed(Failure),
}

/// From the zygote: the worker is gone, its children are the shim's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub exit_code: i32,
}

/// An [`Error`] as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Command {
        exit_code: i32,
        message: String,
    },
    Io {
        step: String,
        errno: i32,
    },
    Spec {
        id: String,
        reason: String,
    },
    Create {
        id: String,
        reason: String,
    },
    Hook {
        id: String,
        reason: String,
    },
    Unfit {
        step: String,
        reason: String,
    },
    NoMemory(String),
    Limit {
        path: String,
        file: String,
        value: String,
        errno: i32,
    },
    Sysctl {
        name: String,
        reason: String,
    },
    Seccomp(String),
    Criu {
        path: PathBuf,
        reason: String,
    },
    Checkpoint {
        id: String,
        reason: String,
    },
    Other(String),
}

/// The longest text of an error that is passed on; libcontainer quotes what it is given.
const MAX_ERROR_BYTES: usize = 4096;

/// Cuts a text at a character boundary.
pub(crate) fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        let end = (0..=MAX_ERROR_BYTES)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Command { exit_code, message } => Failure::Command {
                exit_code,
                message: cut(message),
            },
            Error::Io { step, source } => match source.raw_os_error() {
                Some(errno) => Failure::Io {
                    step: cut(step),
                    errno,
                },
                None => Failure::Other(cut(format!("{step}: {source}"))),
            },
            Error::Spec { id, reason } => Failure::Spec {
                id,
                reason: cut(reason),
            },
            Error::Create { id, reason } => Failure::Create {
                id,
                reason: cut(reason),
            },
            Error::Hook { id, reason } => Failure::Hook {
                id,
                reason: cut(reason),
            },
            Error::Unfit { step, reason } => Failure::Unfit {
                step: cut(step),
                reason: cut(reason),
            },
            Error::NoMemory(id) => Failure::NoMemory(id),
            Error::Cgroup(CgroupError::Limit {
                path,
                file,
                value,
                source,
            }) => match source.raw_os_error() {
                Some(errno) => Failure::Limit {
                    path: cut(path),
                    file,
                    value: cut(value),
                    errno,
                },
                // What this machine has not got, in words: the kernel was not asked.
                None => Failure::Unfit {
                    step: cut(format!("set {file} of cgroup {path} to {value:?}")),
                    reason: cut(source.to_string()),
                },
            },
            // A machine without what the driver needs: none of the request's doing.
            Error::Cgroup(CgroupError::Systemd { path, reason }) => Failure::Unfit {
                step: cut(format!("make cgroup {path}")),
                reason: cut(reason),
            },
            Error::Sysctl { name, reason } => Failure::Sysctl {
                name: cut(name),
                reason: cut(reason),
            },
            Error::Seccomp(reason) => Failure::Seccomp(cut(reason)),
            Error::Criu { path, reason } => Failure::Criu {
                path,
                reason: cut(reason),
            },
            Error::Checkpoint { id, reason } => Failure::Checkpoint {
                id,
                reason: cut(reason),
            },
            other => Failure::Other(cut(other.to_string())),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Command { exit_code, message } => Error::Command { exit_code, message },
            Failure::Io { step, errno } => Error::Io {
                step,
                source: std::io::Error::from_raw_os_error(errno),
            },
            Failure::Spec { id, reason } => Error::Spec { id, reason },
            Failure::Create { id, reason } => Error::Create { id, reason },
            Failure::Hook { id, reason } => Error::Hook { id, reason },
            Failure::Unfit { step, reason } => Error::Unfit { step, reason },
            Failure::NoMemory(id) => Error::NoMemory(id),
            Failure::Limit {
                path,
                file,
                value,
                errno,
            } => Error::Cgroup(CgroupError::Limit {
                path,
                file,
                value,
                source: std::io::Error::from_raw_os_error(errno),
            }),
            Failure::Sysctl { name, reason } => Error::Sysctl { name, reason },
            Failure::Seccomp(reason) => Error::Seccomp(reason),
            Failure::Criu { path, reason } => Error::Criu { path, reason },
            Failure::Checkpoint { id, reason } => Error::Checkpoint { id, reason },
            Failure::Other(reason) => Error::Zygote(reason),
        }
    }
}
