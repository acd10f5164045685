use std::{io, path::PathBuf};

use tonic::{Code, Status, TimeoutExpired};

use crate::problem::{Problem, list};

/// What the kubelet could not do: what was tried, on what, and why not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot connect to the runtime at {endpoint}: {why}. Is it running? Only root may connect"
    )]
    Connect { endpoint: String, why: String },
    #[error("the runtime can't {what}: {message} ({code:?})")]
    Rpc {
        what: String,
        code: Code,
        message: String,
    },
    /// Whether it was done, nobody knows.
    #[error("the runtime was asked to {what}, and its answer never came: {message}")]
    Unanswered { what: String, message: String },
    /// In upstream's words, where it has some.
    #[error("{0}")]
    Images(String),
    /// In the words of whoever pulls.
    #[error("{0}")]
    Puller(String),
    #[error("the runtime answered {rpc} without {lacks}")]
    Answer {
        rpc: &'static str,
        lacks: &'static str,
    },
    #[error("{file}:{}", list(problems))]
    Manifest {
        file: String,
        problems: Vec<Problem>,
    },
    #[error("{0}")]
    Config(Problem),
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {what} cgroup {path}: {why}")]
    Cgroup {
        what: &'static str,
        path: String,
        why: String,
    },
    #[error("volume {name:?}: {why}")]
    Volume { name: String, why: String },
    #[error(
        "container {container:?} must have image {image:?}, which is not here, and imagePullPolicy is Never"
    )]
    ImageNeverPull { container: String, image: String },
    #[error("cannot look at image {image:?} for container {container:?}: {why}")]
    ImageStatus {
        container: String,
        image: String,
        why: String,
    },
    #[error("cannot pull {image:?} for container {container:?}: {why}")]
    Pull {
        container: String,
        image: String,
        why: String,
    },
    #[error("{hook} of container {container:?}: {why}")]
    Hook {
        hook: &'static str,
        container: String,
        why: String,
    },
    #[error("cannot use the kubeconfig {}: {why}", path.display())]
    Kubeconfig { path: PathBuf, why: String },
    #[error("cannot take manifests from {url:?}: {why}")]
    ManifestUrl { url: String, why: String },
    #[error("cannot serve on {address}: {why}")]
    Serve { address: String, why: String },
    #[error("another kubelet has {}: end it first, or give this one another --kubelet-dir", .0.display())]
    Locked(PathBuf),
}

impl Error {
    /// For `map_err` of a call: `what` completes "can't …".
    pub(crate) fn rpc(what: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let what = what.into();
        move |status| {
            let message = status.message().to_owned();
            match is_lost(&status) {
                true => Self::Unanswered { what, message },
                false => Self::Rpc {
                    what,
                    code: status.code(),
                    message,
                },
            }
        }
    }

    /// The line to the runtime broke: that is nothing that a pod has failed at.
    pub(crate) fn is_unanswered(&self) -> bool {
        matches!(self, Self::Unanswered { .. })
    }

    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Rpc {
                code: Code::NotFound,
                ..
            }
        )
    }
}

/// Whether it was the line that broke, and not the runtime that said so, nor the time that was up.
pub(crate) fn is_lost(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    let is_there = cause.is_some();
    while let Some(error) = cause {
        if error.is::<TimeoutExpired>() {
            return false;
        }
        cause = error.source();
    }
    is_there
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Config(problem)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_broke_is_told_from_what_the_runtime_says_and_from_time_that_is_up() {
        let broken = io::Error::from(io::ErrorKind::ConnectionReset);
        for (status, is_unanswered) in [
            (Status::from_error(Box::new(broken)), true),
            (Status::unavailable("the daemon ends"), false),
            (Status::not_found("no such pod"), false),
            (Status::from_error(Box::new(TimeoutExpired(()))), false),
        ] {
            let told = format!("{status:?}");
            assert_eq!(
                Error::rpc("x")(status).is_unanswered(),
                is_unanswered,
                "{told}"
            );
        }
    }
}
