use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, DistinguishedName};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};

use super::{issue::CA_VALID, *};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn names() -> ServerNames {
    ServerNames {
        dns: vec!["localhost".to_owned(), "kubernetes.default.svc".to_owned()],
        addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
    }
}

fn leaf(pki: &Pki) -> CertificateDer<'static> {
    pki.leaf.get().cert[0].clone()
}

/// A handshake in memory: the certificate that the server sees, or why there is none.
fn shake(
    server: Arc<ServerConfig>,
    ca: &str,
    client: Option<&Identity>,
) -> Result<Option<Vec<u8>>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(der(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap();
            config
                .with_client_auth_cert(vec![der(&identity.certificate_pem).unwrap()], key)
                .unwrap()
        }
    };
    let mut client =
        rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let mut server = rustls::ServerConnection::new(server).unwrap();
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets().map_err(|e| e.to_string())?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets().map_err(|e| e.to_string())?;
        }
    }
    assert!(!server.is_handshaking());
    Ok(server.peer_certificates().map(|chain| chain[0].to_vec()))
}

#[test]
fn a_client_is_who_its_certificate_says_and_others_are_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(&directory.path().join("pki"), &names()).unwrap();
    let admin = pki
        .issue_client("kubernetes-admin", &["system:masters"], DAY)
        .unwrap();
    let seen = shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&admin))
        .unwrap()
        .unwrap();
    let user = crate::x509::user(&seen).unwrap();
    assert_eq!(user.username, "kubernetes-admin");
    assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    let id = &user.extra[crate::CREDENTIAL_ID][0];
    assert_eq!(id.strip_prefix("X509SHA256=").map(str::len), Some(64));
    assert_eq!(
        shake(pki.server_config().unwrap(), pki.ca_pem(), None).unwrap(),
        None
    );
    // Another cluster's admin.
    let other = Pki::open(&directory.path().join("other"), &names()).unwrap();
    let stranger = other
        .issue_client("kubernetes-admin", &["system:masters"], DAY)
        .unwrap();
    assert!(shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&stranger)).is_err());
    assert!(shake(other.server_config().unwrap(), pki.ca_pem(), None).is_err());
    // The server's own certificate is none of a client.
    let server = Identity {
        certificate_pem: fs::read_to_string(directory.path().join("pki/server.crt")).unwrap(),
        key_pem: fs::read_to_string(directory.path().join("pki/server.key")).unwrap(),
    };
    assert!(shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&server)).is_err());
    let expired = pki.issue_client("late", &[], Duration::ZERO).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert!(shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&expired)).is_err());
    assert!(pki.issue_client("u", &["a", "b"], DAY).is_err());
    assert!(crate::x509::user(b"nonsense").is_err());
}

#[test]
fn a_second_start_finds_what_the_first_made_and_nobody_else_can_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pki");
    let first = Pki::open(&path, &names()).unwrap();
    let second = Pki::open(&path, &names()).unwrap();
    assert_eq!(first.ca_pem(), second.ca_pem());
    assert_eq!(leaf(&first), leaf(&second));
    assert_eq!(first.token_key(), second.token_key());
    assert!(!second.renew().unwrap());
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.path());
    }
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    crate::Tokens::new(first.token_key(), "i".to_owned(), vec![]).unwrap();
}

#[test]
fn a_leaf_is_reissued_in_time_while_it_runs_and_at_a_start() {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let pki = Pki::open_at(directory.path(), &names(), now - 250 * DAY).unwrap();
    let old = leaf(&pki);
    let config = pki.server_config().unwrap();
    assert!(!pki.renew_at(now - 200 * DAY).unwrap());
    assert!(pki.renew_at(now).unwrap());
    assert_ne!(leaf(&pki), old);
    assert_eq!(
        shake(config, pki.ca_pem(), None),
        Ok(None),
        "the same configuration serves the new one"
    );
    let later = now + 400 * DAY;
    let again = Pki::open_at(directory.path(), &names(), later).unwrap();
    assert_ne!(
        leaf(&again),
        leaf(&pki),
        "it has expired: that is no reason to stay down"
    );
    assert_eq!(again.ca_pem(), pki.ca_pem());
    // The CA too, with its key: what it signed stays good.
    let client = pki.issue_client("u", &[], 20 * CA_VALID / 10).unwrap();
    let much_later = Pki::open_at(directory.path(), &names(), now + CA_VALID).unwrap();
    assert_ne!(much_later.ca_pem(), pki.ca_pem());
    let (_, ca) = x509_parser::pem::parse_x509_pem(much_later.ca_pem().as_bytes()).unwrap();
    let (_, ca) = X509Certificate::from_der(&ca.contents).unwrap();
    let client = der(&client.certificate_pem).unwrap();
    let (_, client) = X509Certificate::from_der(&client).unwrap();
    client.verify_signature(Some(ca.public_key())).unwrap();
}

#[test]
fn another_name_gets_another_leaf_and_damage_is_repaired_where_it_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let first = Pki::open(path, &names()).unwrap();
    let mut more = names();
    more.addresses.push("192.0.2.7".parse().unwrap());
    let second = Pki::open(path, &more).unwrap();
    assert_ne!(leaf(&first), leaf(&second));
    for (file, text) in [
        ("server.crt", Some("nonsense")),
        ("server.crt", None),
        ("server.key", None),
        ("ca.crt", Some("half -----BEGIN")),
    ] {
        match text {
            Some(text) => fs::write(path.join(file), text).unwrap(),
            None => fs::remove_file(path.join(file)).unwrap(),
        }
        let pki = Pki::open(path, &more).unwrap();
        assert_eq!(
            shake(pki.server_config().unwrap(), pki.ca_pem(), None),
            Ok(None),
            "{file}"
        );
    }
    // What others trust isn't replaced behind their backs.
    fs::rename(path.join("ca.key"), path.join("aside")).unwrap();
    let refused = Pki::open(path, &more).unwrap_err().to_string();
    assert!(refused.contains("ca.key is missing"), "{refused}");
    fs::write(path.join("ca.key"), "nonsense").unwrap();
    assert!(Pki::open(path, &more).is_err());
}

#[test]
fn a_request_is_signed_as_it_stands_and_never_as_a_ca() {
    let directory = tempfile::tempdir().unwrap();
    let pki = Pki::open(directory.path(), &names()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut asked = CertificateParams::new(vec!["node.example".to_owned()]).unwrap();
    asked.distinguished_name = DistinguishedName::new();
    asked
        .distinguished_name
        .push(DnType::CommonName, "system:node:n1");
    asked
        .distinguished_name
        .push(DnType::OrganizationName, "system:nodes");
    let pem = asked.serialize_request(&key).unwrap().pem().unwrap();
    let signed = pki.sign(&pem, &[Usage::Client], DAY).unwrap();
    let signed = Identity {
        certificate_pem: signed,
        key_pem: key.serialize_pem(),
    };
    let seen = shake(pki.server_config().unwrap(), pki.ca_pem(), Some(&signed))
        .unwrap()
        .unwrap();
    let user = crate::x509::user(&seen).unwrap();
    assert_eq!(crate::node::name(&user), Some("n1"));
    let (_, seen) = X509Certificate::from_der(&seen).unwrap();
    assert!(!seen.is_ca());
    assert!(pki.sign("nonsense", &[], DAY).is_err());
    assert!(pki.sign(&pem.replace("MII", "MIJ"), &[], DAY).is_err());
    let mut nobody = asked.clone();
    nobody.distinguished_name = DistinguishedName::new();
    let pem = nobody.serialize_request(&key).unwrap().pem().unwrap();
    assert!(pki.sign(&pem, &[], DAY).is_err());
}
