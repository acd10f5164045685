//! Who a client certificate is.

use std::{collections::BTreeMap, net::IpAddr};

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

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

/// From when to when it holds: seconds since the epoch.
pub fn validity(certificate_der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).ok()?;
    let validity = certificate.validity();
    Some((
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    ))
}

/// The addresses that it is for.
pub fn addresses(certificate_der: &[u8]) -> Vec<IpAddr> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate_der) else {
        return Vec::new();
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return Vec::new();
    };
    let all = names.value.general_names.iter();
    all.filter_map(|name| match name {
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_for_which_addresses_and_how_long_it_holds() {
        let mut params = rcgen::CertificateParams::new(vec![
            "n1".to_owned(),
            "10.0.0.1".to_owned(),
            "fd00::1".to_owned(),
        ])
        .expect("names");
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 2);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let expected: Vec<IpAddr> = ["10.0.0.1", "fd00::1"]
            .iter()
            .map(|ip| ip.parse().expect("an address"))
            .collect();
        assert_eq!(addresses(certificate.der()), expected);
        let (from, until) = validity(certificate.der()).expect("its time");
        assert_eq!(until - from, 24 * 3600);
        assert_eq!((addresses(b"no"), validity(b"no")), (Vec::new(), None));
    }
}
