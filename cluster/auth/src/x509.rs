//! Who a client certificate is.

use crate::{Error, User};

/// CN is the user, each O a group. That the certificate is good is TLS's to check.
pub fn user(certificate_der: &[u8]) -> Result<User, Error> {
    let _ = certificate_der;
    Err(Error::Certificate {
        act: "read a client certificate",
        why: "not built yet".to_owned(),
    })
}
