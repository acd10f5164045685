//! Tokens by which a node joins: `ID.SECRET`, kept as the Secret `bootstrap-token-ID` in kube-system.

use serde_json::Value;

use crate::{Error, User};

/// Of the Secrets that hold them.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
pub const NAMESPACE: &str = "kube-system";

/// The name of the Secret that `token` belongs to, where it has the form of a bootstrap token (6 and 16 of `[a-z0-9]`).
pub fn secret_name(token: &str) -> Option<String> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, len| {
        text.len() == len
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then(|| format!("bootstrap-token-{id}"))
}

/// Who `token` is, by the Secret of [`secret_name`] as the API has it (`data` in base64). `now` in seconds since 1970.
pub fn authenticate(token: &str, secret: Option<&Value>, now: u64) -> Result<User, Error> {
    let _ = (token, secret, now);
    Err(Error::Token("bootstrap tokens are not built yet"))
}
