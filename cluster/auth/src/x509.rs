//! Who a client certificate is.

use std::collections::BTreeMap;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{AUTHENTICATED, CREDENTIAL_ID, Error, User};

/// CN is the user, each O a group. That the certificate is good is TLS's to check.
pub fn user(certificate_der: &[u8]) -> Result<User, Error> {
    let refused = |why: &str| Error::Certificate {
        act: "read a client certificate",
        why: why.to_owned(),
    };
    let (_, certificate) =
        X509Certificate::from_der(certificate_der).map_err(|e| refused(&e.to_string()))?;
    let subject = certificate.subject();
    let username = subject
        .iter_common_name()
        .last()
        .and_then(|name| name.as_str().ok())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| refused("it names nobody (no CN)"))?
        .to_owned();
    let mut groups = subject
        .iter_organization()
        .map(|group| group.as_str().map(str::to_owned))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| refused("an O is no text"))?;
    groups.push(AUTHENTICATED.to_owned());
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate_der);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    Ok(User {
        username,
        groups,
        extra: BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")])]),
        ..User::default()
    })
}
