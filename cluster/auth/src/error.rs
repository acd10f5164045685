use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{act} {path}: {source}")]
    File {
        act: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A certificate, its key or a request for one.
    #[error("{act}: {why}")]
    Certificate { act: &'static str, why: String },
    /// Says who offered it no more than that it is no good: the reason is for the log.
    #[error("the token is refused: {0}")]
    Token(&'static str),
    #[error("{0}")]
    Invalid(String),
}
