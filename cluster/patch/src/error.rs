use crate::{apply::Conflicts, managed::ManagedFieldsError, typed::TypeErrors};

/// Why an object can't be changed as a client asks.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The body is no patch.
    #[error("error decoding patch: {0}")]
    Decode(serde_json::Error),
    #[error("{0}")]
    Malformed(String),
    /// It is one, but does not fit the object.
    #[error("the server rejected our request due to an error in our request: {0}")]
    NotApplicable(String),
    #[error("{0}")]
    TooLarge(String),
    /// Of a kind that has no such patches.
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Conflicts(#[from] Conflicts),
    #[error("failed to create typed patch object ({object}): {errors}")]
    TypedPatch { object: String, errors: TypeErrors },
    #[error("failed to create typed live object ({object}): {errors}")]
    TypedLive { object: String, errors: TypeErrors },
    #[error("{0}")]
    Typed(TypeErrors),
    #[error("failed to decode managed fields: {0}")]
    ManagedFields(#[from] ManagedFieldsError),
    #[error("the object can't be converted to {0}")]
    NoVersion(String),
}

impl PatchError {
    /// The code of the Status, and its reason.
    pub fn status(&self) -> (u16, &'static str) {
        match self {
            Self::Decode(_)
            | Self::Malformed(_)
            | Self::TypedPatch { .. }
            | Self::TypedLive { .. }
            | Self::Typed(_)
            | Self::ManagedFields(_)
            | Self::NoVersion(_) => (400, "BadRequest"),
            Self::Conflicts(_) => (409, "Conflict"),
            Self::TooLarge(_) => (413, "RequestEntityTooLarge"),
            Self::Unsupported(_) => (415, "UnsupportedMediaType"),
            Self::NotApplicable(_) => (422, "Invalid"),
        }
    }
}
