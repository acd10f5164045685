use std::{io, path::PathBuf};

use berth_kubelet::Problem;
use berth_shim_client::Failure;
use tonic::{Code, Status};

/// Why a command failed: what was tried, on what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kubelet(#[from] berth_kubelet::Error),
    #[error(
        "cannot connect to {endpoint}: {source}. Is berthd running? It listens at --endpoint, and only root may connect"
    )]
    Connect { endpoint: String, source: io::Error },
    #[error("{endpoint} does not speak gRPC: {source}")]
    Channel {
        endpoint: String,
        source: tonic::transport::Error,
    },
    #[error("cannot {what} on {endpoint}: {}{}", status.message(), code_and_hint(status))]
    Rpc {
        what: String,
        endpoint: String,
        status: Box<Status>,
    },
    #[error("the runtime at {endpoint} answered {rpc} without {lacks}")]
    Answer {
        endpoint: String,
        rpc: &'static str,
        lacks: &'static str,
    },
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write the answer: {0}")]
    Print(io::Error),
    #[error("cannot write the answer as {format}: {message}")]
    Format {
        format: &'static str,
        message: String,
    },
    #[error("{}:{}", file, list(problems))]
    Manifest {
        file: String,
        problems: Vec<Problem>,
    },
    #[error("no pod {name:?}: `berth pod list` shows the pods that there are")]
    NoPod { name: String },
    #[error("{name:?} could be any of {}: say more of the ID", candidates.join(", "))]
    AmbiguousPod {
        name: String,
        candidates: Vec<String>,
    },
    #[error("pod {pod} has no container {name:?}; it has {}", has.join(", "))]
    NoContainer {
        pod: String,
        name: String,
        has: Vec<String>,
    },
    #[error("pod {pod} has no containers")]
    EmptyPod { pod: String },
    #[error(
        "pod {pod} is there already, with ID {id}: `berth pod remove {pod}` first, or name this one otherwise"
    )]
    PodExists { pod: String, id: String },
    #[error("init container {name} ended with exit code {code}{}", detail(reason))]
    InitFailed {
        name: String,
        code: i32,
        reason: String,
        /// Below the pod's log directory.
        log: PathBuf,
    },
    #[error("{file}: {what}: {why}")]
    NotUp {
        file: String,
        what: String,
        why: String,
    },
    #[error("container {name} has no log: its pod was made without a log directory")]
    NoLog { name: String },
    #[error("audit of {} and {}: {source}", root.display(), state.display())]
    Audit {
        root: PathBuf,
        state: PathBuf,
        source: io::Error,
    },
    #[error("{place}: credentials are one line USER:PASSWORD")]
    Credentials { place: String },
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
    #[error(
        "no container {id:?} in namespace {namespace}: `berth shim ps` shows those that there are"
    )]
    NoTask { id: String, namespace: String },
    #[error(
        "container {id} is there already in namespace {namespace}: `berth shim delete --force {id}` first, or name this one otherwise"
    )]
    TaskExists { id: String, namespace: String },
    #[error("shim {shim}: {step}: {failure}")]
    Shim {
        shim: String,
        step: String,
        failure: Failure,
    },
    #[error("stopped by a signal; what had been made is removed")]
    Interrupted,
    #[error("{error}\n  and then, tidying up: {}", failures.join("; "))]
    Untidy {
        error: Box<Error>,
        failures: Vec<String>,
    },
    #[error("a second signal: pod {pod} is left as it is; `berth pod remove {pod}` removes it")]
    Left { pod: String },
    #[error("{0} of the pods or images could not be dealt with")]
    Some(usize),
}

impl Error {
    fn failure(&self) -> Option<&Failure> {
        match self {
            Error::Shim { failure, .. } => Some(failure.bare()),
            _ => None,
        }
    }

    /// Whether a shim that lives has said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self.failure(), Some(Failure::Refused { .. }))
    }

    /// Whether a shim does not answer, or what makes no sense: it may be there all the same.
    pub fn is_odd(&self) -> bool {
        matches!(
            self.failure(),
            Some(Failure::Hangs(_) | Failure::Garbage(_))
        )
    }

    /// Whether a shim is gone.
    pub fn has_died(&self) -> bool {
        matches!(self.failure(), Some(Failure::Died(_)))
    }

    /// Whether the reader of our output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, Error::Print(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

fn code_and_hint(status: &Status) -> String {
    // A status with a source was not sent by the runtime: the connection made it.
    let cut_off = std::error::Error::source(status).is_some();
    let hint = match status.code() {
        _ if cut_off => "; is berthd still running?",
        Code::Unauthenticated => "; `berth image pull --creds` takes credentials",
        Code::Unimplemented => "; this runtime does not offer it",
        _ => "",
    };
    format!(" ({:?}{hint})", status.code())
}

fn detail(reason: &str) -> String {
    if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => format!(" {one}"),
        many => many
            .iter()
            .map(|problem| format!("\n  {problem}"))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rpc(status: Status) -> String {
        let endpoint = "unix:///run/berth/berth.sock".into();
        Error::Rpc {
            what: "list pods".into(),
            endpoint,
            status: Box::new(status),
        }
        .to_string()
    }

    #[test]
    fn a_failed_call_is_told_with_what_was_tried_where_and_the_code() {
        assert_eq!(
            rpc(Status::not_found("no pod x")),
            "cannot list pods on unix:///run/berth/berth.sock: no pod x (NotFound)"
        );
        assert_eq!(
            rpc(Status::unimplemented("unknown service")),
            "cannot list pods on unix:///run/berth/berth.sock: unknown service (Unimplemented; this runtime does not offer it)"
        );
        // what a registry is, berthd is not
        assert!(!rpc(Status::unavailable("registry down")).contains("berthd still running"));
        let cut = Status::from_error(Box::new(io::Error::from(io::ErrorKind::BrokenPipe)));
        assert!(rpc(cut).ends_with("is berthd still running?)"));
    }

    #[test]
    fn one_problem_stands_on_the_line_and_several_below_it() {
        let error = |problems| {
            Error::Manifest {
                file: "pod.yaml".into(),
                problems,
            }
            .to_string()
        };
        let problem = |path: &str| Problem::new(path, "no such field");
        assert_eq!(error(vec![problem("a")]), "pod.yaml: a: no such field");
        assert_eq!(
            error(vec![problem("a"), problem("b")]),
            "pod.yaml:\n  a: no such field\n  b: no such field"
        );
    }
}
