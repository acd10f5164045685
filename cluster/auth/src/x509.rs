//! Who a client certificate is.

use std::{collections::BTreeMap, net::IpAddr};

use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::ParsedExtension,
    prelude::{FromDer, GeneralName, X509Certificate},
};

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

/// Subject alternative names of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    None,
    /// DNS names and addresses.
    OfServer,
    Others,
}

/// What a certificate is asked for (PKCS#10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requested {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub names: Names,
    /// Of [`Names::OfServer`].
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

impl Requested {
    /// # Errors
    /// It is no request (PEM), or its names are no text.
    pub fn read(pem: &str) -> Result<Self, Error> {
        let refused = |why: &str| Error::Certificate {
            act: "read a request",
            why: why.to_owned(),
        };
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes())
            .map_err(|error| refused(&error.to_string()))?;
        let (_, request) = X509CertificationRequest::from_der(&pem.contents)
            .map_err(|error| refused(&error.to_string()))?;
        let subject = &request.certification_request_info.subject;
        let mut common_names = subject.iter_common_name();
        let common_name = match (common_names.next(), common_names.next()) {
            (Some(name), None) => name.as_str().map_err(|_| refused("its CN is no text"))?,
            _ => return Err(refused("it must have one CN")),
        };
        let organizations = subject
            .iter_organization()
            .map(|name| name.as_str().map(str::to_owned))
            .collect::<Result<_, _>>()
            .map_err(|_| refused("an O is no text"))?;
        let mut names = Names::None;
        let (mut dns, mut addresses) = (Vec::new(), Vec::new());
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(found) = extension else {
                continue;
            };
            for name in &found.general_names {
                match name {
                    GeneralName::DNSName(name) => dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
                    _ => {}
                }
                names = match (name, names) {
                    (GeneralName::DNSName(_) | GeneralName::IPAddress(_), Names::None) => {
                        Names::OfServer
                    }
                    (GeneralName::DNSName(_) | GeneralName::IPAddress(_), before) => before,
                    _ => Names::Others,
                };
            }
        }
        Ok(Self {
            common_name: common_name.to_owned(),
            organizations,
            names,
            dns,
            addresses,
        })
    }
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
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    })
    .collect()
}

/// RFC 5280, 4.2.1.6: four bytes or sixteen.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_who_it_is_for_and_by_which_names() {
        let request = |names: &[&str], email: bool| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut params = rcgen::CertificateParams::new(names).expect("names");
            if email {
                let name = "a@b.test".try_into().expect("a name");
                params
                    .subject_alt_names
                    .push(rcgen::SanType::Rfc822Name(name));
            }
            params.distinguished_name = rcgen::DistinguishedName::new();
            for (part, value) in [
                (rcgen::DnType::OrganizationName, "system:nodes"),
                (rcgen::DnType::CommonName, "system:node:n1"),
            ] {
                params.distinguished_name.push(part, value);
            }
            let key = rcgen::KeyPair::generate().expect("a key");
            let request = params.serialize_request(&key).expect("a request");
            Requested::read(&request.pem().expect("PEM")).expect("read")
        };
        let none = request(&[], false);
        assert_eq!(none.common_name, "system:node:n1");
        assert_eq!(none.organizations, ["system:nodes"]);
        assert_eq!(none.names, Names::None);
        assert_eq!(request(&["n1", "10.0.0.1"], false).names, Names::OfServer);
        assert_eq!(request(&["n1"], true).names, Names::Others);
        assert!(Requested::read("nonsense").is_err());
    }

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
