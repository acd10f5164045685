//! What can be wrong with a configuration, and whose fault it is.

use std::{fmt, path::PathBuf};

/// The longest piece of a caller's value that an error repeats, in characters: enough to recognise it.
const QUOTED_LIMIT: usize = 80;

/// Which gRPC code an error stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request can never succeed on any machine: `INVALID_ARGUMENT`.
    Invalid,
    /// The request makes sense, but not with this machine or image as it is: `FAILED_PRECONDITION`.
    Precondition,
    /// Asked for by its name, and not built: `UNIMPLEMENTED`.
    Unimplemented,
    /// Ours: `INTERNAL`.
    Internal,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
    #[error("{0} is not implemented in this version of Berth")]
    Unimplemented(String),
    #[error(
        "no command: the container names none and its image has neither an entrypoint nor a command"
    )]
    NoCommand,
    #[error("user {user}: {why}")]
    User { user: String, why: String },
    #[error("{file} of the container's root filesystem: {why}")]
    Accounts { file: &'static str, why: String },
    #[error("mount of {} at {}: {why}", host_path.display(), container_path.display())]
    MountSource {
        host_path: PathBuf,
        container_path: PathBuf,
        why: String,
    },
    #[error("device {}: {why}", path.display())]
    Device { path: PathBuf, why: String },
    #[error("seccomp profile {profile}: {why}")]
    Seccomp { profile: String, why: String },
    #[error(
        "{module} profile {profile}: {why}; the container is refused, because it would run without the protection it asks for"
    )]
    SecurityModule {
        module: &'static str,
        profile: String,
        why: String,
    },
    #[error("resources.{resource}: {why}")]
    Resource { resource: String, why: String },
    #[error("read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("assemble the OCI spec: {0}")]
    Oci(#[from] oci_spec::OciSpecError),
}

impl Error {
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid { .. } => Kind::Invalid,
            Self::Unimplemented(_) => Kind::Unimplemented,
            Self::NoCommand
            | Self::User { .. }
            | Self::Accounts { .. }
            | Self::MountSource { .. }
            | Self::Device { .. }
            | Self::Seccomp { .. }
            | Self::SecurityModule { .. }
            | Self::Resource { .. } => Kind::Precondition,
            Self::Read { .. } | Self::Oci(_) => Kind::Internal,
        }
    }

    pub(crate) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }
}

/// A caller's value inside a message: escaped, and cut where it is long. (A precision does not cut a string that is shown by Debug.)
pub fn quoted(value: impl AsRef<str>) -> String {
    let value = value.as_ref();
    match value.char_indices().nth(QUOTED_LIMIT) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &value[..end], value.len()),
    }
}

/// The errno's own words behind what was tried.
pub(crate) fn because(tried: impl fmt::Display, errno: impl fmt::Display) -> String {
    format!("{tried}: {errno}")
}
