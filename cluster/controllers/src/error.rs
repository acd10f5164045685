use std::{fmt, fmt::Display, time::Duration};

use kube::Resource;

use crate::Key;

/// What was asked of the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub verb: &'static str,
    pub kind: String,
    pub key: Key,
}

impl Call {
    pub(crate) fn new<K: Resource<DynamicType = ()>>(verb: &'static str, key: Key) -> Self {
        Self {
            verb,
            kind: K::kind(&()).into_owned(),
            key,
        }
    }
}

impl Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.verb, self.kind, self.key)
    }
}

/// Why a key is worked again later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}: it has changed since it was read")]
    Conflict(Call),
    #[error("{0}: there is none")]
    NotFound(Call),
    #[error("{0}: there is one already")]
    AlreadyExists(Call),
    #[error("{call}: no answer within {} s", .wait.as_secs())]
    Late { call: Call, wait: Duration },
    #[error("{call}: {source}")]
    Api {
        call: Call,
        source: Box<kube::Error>,
    },
    /// It is not the server's fault: an object that can't be worked with, and why.
    #[error("{0}")]
    Other(String),
}

impl Error {
    pub(crate) fn new(call: Call, source: kube::Error) -> Self {
        let status = match &source {
            kube::Error::Api(status) => Some(status),
            _ => None,
        };
        match status.map(|status| (status.code, status.reason.as_str())) {
            Some((404, _)) => Self::NotFound(call),
            Some((409, "AlreadyExists")) => Self::AlreadyExists(call),
            Some((409, _)) => Self::Conflict(call),
            _ => Self::Api {
                call,
                source: Box::new(source),
            },
        }
    }

    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict(_))
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::AlreadyExists(_))
    }

    /// The server's status code, if it has answered with one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Conflict(_) | Self::AlreadyExists(_) => Some(409),
            Self::NotFound(_) => Some(404),
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Late { .. } | Self::Other(_) => None,
        }
    }

    /// The server's reason and message, if it has answered with them: `("Forbidden", "exceeded quota: …")`.
    pub fn status(&self) -> Option<(&str, &str)> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some((&status.reason, &status.message)),
                _ => None,
            },
            _ => None,
        }
    }
}
