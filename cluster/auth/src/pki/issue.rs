//! The certificates that the cluster makes for itself: what stands in them, and when they are made anew.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{
    ServerNames, Usage, certificate,
    file::{key, read, write},
};
use crate::Error;

pub(super) const CA_VALID: Duration = Duration::from_secs(3650 * 24 * 3600);
const LEAF_VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// Others' clocks may be behind by so much.
const SKEW: Duration = Duration::from_secs(300);

/// The CA's key and certificate. Its certificate is made anew in time, with the same key and name: what it signed stays good.
pub(super) fn ca(
    directory: &Path,
    file: &str,
    name: &str,
    now: SystemTime,
) -> Result<(Issuer<'static, KeyPair>, String), Error> {
    let path_of = |end: &str| directory.join(format!("{file}.{end}"));
    let (key_path, path) = (path_of("key"), path_of("crt"));
    let stored = read(&path)?;
    if stored.is_some() && !key_path.exists() {
        return Err(certificate(
            "open the CA",
            &format!(
                "{} is missing: nothing can be issued; put it back, or remove {} too for a new CA",
                key_path.display(),
                path.display()
            ),
        ));
    }
    let key = key(&key_path)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + CA_VALID).into());
    let good = stored.filter(|pem| {
        der(pem).is_ok_and(|der| {
            X509Certificate::from_der(&der).is_ok_and(|(_, ca)| {
                ca.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
                    && fresh(&ca, now)
            })
        })
    });
    let pem = match good {
        Some(pem) => pem,
        None => {
            let made = params
                .self_signed(&key)
                .map_err(|e| certificate("make the CA", &e))?;
            write(&path, made.pem().as_bytes())?;
            made.pem()
        }
    };
    Ok((Issuer::new(params, key), pem))
}

pub(super) fn issue_leaf(
    directory: &Path,
    names: &ServerNames,
    (ca, ca_der): (&Issuer<'static, KeyPair>, &CertificateDer<'_>),
    now: SystemTime,
) -> Result<CertifiedKey, Error> {
    const ACT: &str = "issue the server's certificate";
    let key = key(&directory.join("server.key"))?;
    let mut params = params(now, LEAF_VALID, &[Usage::Server]);
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    for name in &names.dns {
        let name = Ia5String::try_from(name.as_str()).map_err(|e| certificate(ACT, &e))?;
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    for address in &names.addresses {
        params.subject_alt_names.push(SanType::IpAddress(*address));
    }
    let issued = params
        .signed_by(&key, ca)
        .map_err(|e| certificate(ACT, &e))?;
    write(&directory.join("server.crt"), issued.pem().as_bytes())?;
    certified(issued.der(), ca_der, &key)
}

pub(super) fn params(now: SystemTime, valid: Duration, usages: &[Usage]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + valid).into());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = usages
        .iter()
        .map(|usage| match usage {
            Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
        })
        .collect();
    params
}

/// It holds now, and more than a third of its time is left.
pub(super) fn fresh(certificate: &X509Certificate<'_>, now: SystemTime) -> bool {
    let validity = certificate.validity();
    let (begin, end) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    let now = now.as_secs() as i64;
    begin <= now && now < end - (end - begin) / 3
}

pub(super) fn named(leaf: &X509Certificate<'_>, names: &ServerNames) -> bool {
    let Ok(Some(found)) = leaf.subject_alternative_name() else {
        return names.dns.is_empty() && names.addresses.is_empty();
    };
    let found = &found.value.general_names;
    names
        .dns
        .iter()
        .all(|name| found.contains(&GeneralName::DNSName(name)))
        && names.addresses.iter().all(|address| {
            let bytes = match address {
                IpAddr::V4(address) => address.octets().to_vec(),
                IpAddr::V6(address) => address.octets().to_vec(),
            };
            found
                .iter()
                .any(|name| matches!(name, GeneralName::IPAddress(ip) if *ip == bytes))
        })
}

/// The CA stands in the chain for those who know it by its hash alone (`berth join`).
pub(super) fn certified(
    leaf: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    key: &KeyPair,
) -> Result<CertifiedKey, Error> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|e| certificate("use the server's key", &e))?;
    let chain = [leaf, ca].map(|one| one.clone().into_owned());
    Ok(CertifiedKey::new(chain.to_vec(), key))
}

pub(super) fn der(pem: &str) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| certificate("read a certificate", &e))
}
