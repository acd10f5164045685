//! What can go wrong, a variant a step, and the one place where it becomes a ttrpc status.

use std::io;

use berth_engine::{Error as EngineError, cgroup::Error as CgroupError};
use ttrpc::{Code, get_status};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{step}: {source}")]
    Io {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("{what} is not valid: {reason}")]
    Invalid { what: String, reason: String },
    #[error("no {what} {id} in this shim")]
    Unknown { what: &'static str, id: String },
    #[error("{what} {id} exists already")]
    Exists { what: &'static str, id: String },
    /// The request is right, but not now.
    #[error("{action} {id}: it is {state}")]
    State {
        action: &'static str,
        id: String,
        state: String,
    },
    #[error("{0} is not built in this shim")]
    Unbuilt(&'static str),
    #[error("{most} {what}: no more are taken")]
    TooMany { what: &'static str, most: usize },
    #[error("{what} was still alive {waited_ms} ms after SIGKILL")]
    StillAlive { what: String, waited_ms: u64 },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("serve ttrpc: {0}")]
    Serve(ttrpc::Error),
    /// A task of the shim itself was lost; always a bug.
    #[error("{0} ended without an answer")]
    Lost(&'static str),
}

impl Error {
    /// For `map_err`: what was tried, on what.
    pub fn io<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Error {
        let step = step.into();
        move |source| Error::Io {
            step,
            source: source.into(),
        }
    }

    pub fn invalid(what: impl Into<String>, reason: impl ToString) -> Error {
        Error::Invalid {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    fn code(&self) -> Code {
        match self {
            Error::Io { source, .. } => io_code(source),
            Error::Invalid { .. } => Code::INVALID_ARGUMENT,
            Error::Unknown { .. } => Code::NOT_FOUND,
            Error::Exists { .. } => Code::ALREADY_EXISTS,
            Error::State { .. } => Code::FAILED_PRECONDITION,
            Error::Unbuilt(_) => Code::UNIMPLEMENTED,
            Error::TooMany { .. } => Code::RESOURCE_EXHAUSTED,
            Error::StillAlive { .. } => Code::DEADLINE_EXCEEDED,
            Error::Engine(error) => match error {
                EngineError::UnknownContainer(_) => Code::NOT_FOUND,
                EngineError::ContainerExists(_) => Code::ALREADY_EXISTS,
                EngineError::Io { source, .. } => io_code(source),
                EngineError::Spec { .. }
                | EngineError::Command { .. }
                | EngineError::Sysctl { .. } => Code::INVALID_ARGUMENT,
                // The kernel's own word on a limit: less memory than is in use, CPUs that the cgroup above does not have.
                EngineError::Cgroup(CgroupError::Limit { .. }) => Code::FAILED_PRECONDITION,
                EngineError::Cgroup(CgroupError::Systemd { .. }) => Code::FAILED_PRECONDITION,
                EngineError::Cgroup(CgroupError::Path { .. }) => Code::INVALID_ARGUMENT,
                EngineError::Unfit { .. } | EngineError::NoMemory(_) => Code::FAILED_PRECONDITION,
                EngineError::Criu { .. } => Code::FAILED_PRECONDITION,
                EngineError::Shim { kind, .. } => match kind {
                    io::ErrorKind::TimedOut => Code::DEADLINE_EXCEEDED,
                    io::ErrorKind::Unsupported => Code::UNIMPLEMENTED,
                    io::ErrorKind::InvalidInput => Code::INVALID_ARGUMENT,
                    io::ErrorKind::NotConnected => Code::FAILED_PRECONDITION,
                    _ => Code::INTERNAL,
                },
                _ => Code::INTERNAL,
            },
            Error::Serve(_) | Error::Lost(_) => Code::INTERNAL,
        }
    }
}

fn io_code(error: &io::Error) -> Code {
    use nix::libc;
    match error.raw_os_error() {
        // The process that the call is about has ended meanwhile: no fault of ours.
        Some(libc::ESRCH) => return Code::FAILED_PRECONDITION,
        // A path of the request or the image that is something else than it would have to be; none of ours can be that.
        Some(libc::ENOTDIR | libc::EISDIR | libc::ENAMETOOLONG | libc::ELOOP | libc::EROFS) => {
            return Code::FAILED_PRECONDITION;
        }
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::TimedOut => Code::DEADLINE_EXCEEDED,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::RESOURCE_EXHAUSTED,
        _ => Code::INTERNAL,
    }
}

impl From<berth_engine::cgroup::Error> for Error {
    fn from(error: berth_engine::cgroup::Error) -> Self {
        Error::Engine(error.into())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(get_status(error.code(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_the_code_that_a_caller_decides_by() {
        let io = |kind| Error::io("write x")(io::Error::from(kind));
        for (error, code) in [
            (io(io::ErrorKind::StorageFull), Code::RESOURCE_EXHAUSTED),
            (io(io::ErrorKind::NotFound), Code::INTERNAL),
            (
                Error::io("enter x")(io::Error::from_raw_os_error(nix::libc::ESRCH)),
                Code::FAILED_PRECONDITION,
            ),
            (
                Error::io("open log file x")(io::Error::from_raw_os_error(nix::libc::EISDIR)),
                Code::FAILED_PRECONDITION,
            ),
            (
                EngineError::Unfit {
                    step: "map the ids of mount /x".into(),
                    reason: "it lies on proc".into(),
                }
                .into(),
                Code::FAILED_PRECONDITION,
            ),
            (Error::Unbuilt("Task.Pause"), Code::UNIMPLEMENTED),
            (Error::invalid("id", "empty"), Code::INVALID_ARGUMENT),
            (
                EngineError::Sysctl {
                    name: "net.x".into(),
                    reason: "none of that name".into(),
                }
                .into(),
                Code::INVALID_ARGUMENT,
            ),
            (
                EngineError::UnknownContainer("a".into()).into(),
                Code::NOT_FOUND,
            ),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
