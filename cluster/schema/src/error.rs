/// Why a body is no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("json parse error: {0}")]
    Json(String),
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    /// What was being read, and what is wrong with it.
    #[error("protobuf of {at}: {what}")]
    Protobuf { at: String, what: String },
    #[error("no kind \"{kind}\" is registered for version \"{api_version}\"")]
    UnknownKind { api_version: String, kind: String },
    /// A field has a value of another type; upstream's words for it.
    #[error("{0}")]
    WrongType(String),
}
