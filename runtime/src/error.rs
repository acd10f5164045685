//! What can go wrong in the daemon, and the one place where that becomes a gRPC code.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tonic::{Code, Status};

/// An error that several callers of one operation may be told.
pub type Failure = Arc<Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {what} {id:?} is known here")]
    NotFound { what: &'static str, id: String },
    #[error("{what} id {id:?} is ambiguous: give more of its digits")]
    Ambiguous { what: &'static str, id: String },
    #[error("{0}")]
    InvalidArgument(String),
    #[error("{0}")]
    FailedPrecondition(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    ResourceExhausted(String),
    #[error("configuration of {what}: {source}")]
    Spec {
        what: String,
        #[source]
        source: berth_spec::Error,
    },
    #[error(transparent)]
    Image(#[from] berth_image::Error),
    #[error("network of pod {pod_id}: {source}")]
    Network {
        pod_id: String,
        #[source]
        source: berth_network::Error,
    },
    #[error(transparent)]
    Nri(#[from] berth_nri::Error),
    /// What NRI plugins want of a container, and can't have.
    #[error("NRI plugin {plugins} wants {what}: {why}")]
    Adjustment {
        plugins: String,
        what: String,
        why: String,
        code: Code,
    },
    /// A key of the configuration that this machine can't keep.
    #[error("configuration: {0}")]
    Config(String),
    #[error(transparent)]
    Stream(#[from] berth_stream::Error),
    #[error(transparent)]
    Record(#[from] berth_state::record::RecordError),
    #[error("{act} {}: {source}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("listen for {what} on {address}: {source}")]
    Listen {
        what: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("start shim {}: {why}", path.display())]
    ShimStart { path: PathBuf, why: String },
    #[error("shim of pod {pod_id}, {call}: {message}")]
    Shim {
        pod_id: String,
        call: &'static str,
        code: Code,
        message: String,
    },
    #[error("{what}: stuck at stage {stage} since {:.1} s", since.as_secs_f64())]
    Stuck {
        what: String,
        stage: &'static str,
        since: Duration,
    },
    /// A shim that lives, as far as anybody knows.
    #[error("shim of pod {pod_id}: no answer to {call} for {:.1} s: is it stopped, or the machine short of memory?", since.as_secs_f64())]
    Silent {
        pod_id: String,
        call: &'static str,
        since: Duration,
    },
    #[error("command timed out: {cmd} did not end within {} s", timeout.as_secs())]
    CommandTimedOut { cmd: String, timeout: Duration },
    /// The driver that would have answered has ended: its pod is gone.
    #[error("pod {0} was removed meanwhile")]
    PodGone(String),
    #[error("berthd is stopping")]
    Stopping,
    #[error("{what}, and undoing it left something behind: {rest}")]
    Undo { what: Failure, rest: Failure },
    #[error(transparent)]
    Shared(Failure),
    #[error("internal error in {0}: see berthd's log")]
    Panicked(&'static str),
}

impl Error {
    /// For `map_err` of a file operation.
    pub fn io(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { act, path, source }
    }

    pub fn code(&self) -> Code {
        use berth_image::ErrorKind as Image;
        use berth_spec::Kind as Spec;
        match self {
            Self::NotFound { .. } | Self::PodGone(_) => Code::NotFound,
            Self::Ambiguous { .. } | Self::InvalidArgument(_) => Code::InvalidArgument,
            Self::Spec { source, .. } => match source.kind() {
                Spec::Invalid => Code::InvalidArgument,
                Spec::Precondition => Code::FailedPrecondition,
                Spec::Unimplemented => Code::Unimplemented,
                Spec::Internal => Code::Internal,
            },
            Self::FailedPrecondition(_) | Self::Config(_) => Code::FailedPrecondition,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::ResourceExhausted(_) => Code::ResourceExhausted,
            Self::Image(e) => match e.kind() {
                Image::NotFound => Code::NotFound,
                Image::InvalidArgument => Code::InvalidArgument,
                Image::Unauthenticated => Code::Unauthenticated,
                Image::FailedPrecondition => Code::FailedPrecondition,
                Image::ResourceExhausted => Code::ResourceExhausted,
                Image::Unavailable => Code::Unavailable,
                Image::DataLoss => Code::DataLoss,
                Image::Internal => Code::Internal,
            },
            Self::Shim { code, .. } => *code,
            Self::Nri(berth_nri::Error::Io { .. } | berth_nri::Error::Lost { .. }) => {
                Code::Internal
            }
            Self::Nri(_) => Code::FailedPrecondition,
            Self::Adjustment { code, .. } => *code,
            Self::Stream(berth_stream::Error::Invalid(_)) => Code::InvalidArgument,
            Self::Stream(_) => Code::Internal,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Code::ResourceExhausted
                }
                _ => Code::Internal,
            },
            Self::Record(e) => match e.raw_os_error() {
                Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => Code::ResourceExhausted,
                _ => Code::Internal,
            },
            Self::Stuck { .. } | Self::Silent { .. } | Self::CommandTimedOut { .. } => {
                Code::DeadlineExceeded
            }
            Self::Stopping => Code::Unavailable,
            Self::Undo { what, .. } | Self::Shared(what) => what.code(),
            Self::Network { source, .. } => of_network(source),
            Self::Listen { .. } | Self::ShimStart { .. } | Self::Panicked(_) => Code::Internal,
        }
    }
}

fn of_network(error: &berth_network::Error) -> Code {
    use berth_network::{CniError as Cni, Error as Network};
    match error {
        Network::HostPort { .. } => Code::InvalidArgument,
        Network::HostPortTaken { .. } | Network::HostPortListening { .. } => {
            Code::FailedPrecondition
        }
        Network::Exhausted { .. } => Code::ResourceExhausted,
        Network::Cni(error) => match **error {
            Cni::Argument { .. } => Code::InvalidArgument,
            Cni::None { .. } | Cni::Broken { .. } => Code::FailedPrecondition,
            _ => Code::Internal,
        },
        _ => Code::Internal,
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Shared(failure)
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_code() {
        let full = || io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let stuck = || Error::Stuck {
            what: "stop container a".into(),
            stage: "kill",
            since: Duration::from_secs(9),
        };
        for (error, code) in [
            (
                Error::NotFound {
                    what: "container",
                    id: "a".into(),
                },
                Code::NotFound,
            ),
            (Error::io("write", "/x")(full()), Code::ResourceExhausted),
            (
                Error::io("write", "/x")(io::Error::other("x")),
                Code::Internal,
            ),
            (stuck(), Code::DeadlineExceeded),
            (Error::Shared(Arc::new(stuck())), Code::DeadlineExceeded),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
        assert_eq!(
            stuck().to_string(),
            "stop container a: stuck at stage kill since 9.0 s"
        );
    }
}
