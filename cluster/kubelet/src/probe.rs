//! Probes: what is asked of a container, how often, and what follows.

mod check;
mod counter;
mod grpc;
mod health;
mod http;
mod task;

pub(crate) use check::{Check, Outcome};
pub(crate) use health::Health;
pub(crate) use http::get;
pub(crate) use task::{Report, Watch, spawn};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}
