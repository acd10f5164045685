//! Certificates of this node, asked of the cluster (certificates.k8s.io): for its server, and for itself as a client.

use std::time::Duration;

use k8s_openapi::{
    ByteString,
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

use super::{Failed, within};

/// Between two looks whether a request was approved and signed: soon at first, since most are at once.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_secs(2);
/// A request that nobody has decided on for so long is made anew; the server forgets it within a day.
const ASK_AGAIN: Duration = Duration::from_secs(15 * 60);

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be this node to the API server.
    Client,
    /// To serve by.
    Serving,
}

impl Purpose {
    fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::Client => "client auth",
            Self::Serving => "server auth",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Client => "node-csr-",
            Self::Serving => "csr-",
        }
    }
}

/// A new certificate of the node with its key (PEM, in one). None: nobody has decided about it in time.
///
/// # Errors
/// Why it is not given, or not asked for.
pub(crate) async fn ask(
    client: &Client,
    node: &str,
    purpose: Purpose,
    names: Vec<SanType>,
) -> Result<Option<Vec<u8>>, String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    for (part, value) in [
        (DnType::OrganizationName, berth_auth::NODES.to_owned()),
        (
            DnType::CommonName,
            format!("{}{node}", berth_auth::NODE_PREFIX),
        ),
    ] {
        params.distinguished_name.push(part, value);
    }
    params.subject_alt_names = names;
    let request = params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(|error| error.to_string())?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(purpose.prefix().into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request.into_bytes()),
            signer_name: purpose.signer().into(),
            usages: Some(vec!["digital signature".into(), purpose.usage().into()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api = Api::<CertificateSigningRequest>::all(client.clone());
    let made = within(api.create(&PostParams::default(), &object))
        .await
        .map_err(|failed| failed.to_string())?;
    let name = made.metadata.name.unwrap_or_default();
    tracing::info!(
        name,
        signer = purpose.signer(),
        "a certificate is asked for"
    );
    let until = tokio::time::Instant::now() + ASK_AGAIN;
    let mut wait = LOOK_FIRST;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_MOST);
        let status = match within(api.get(&name)).await {
            Ok(found) => found.status.unwrap_or_default(),
            Err(Failed::NotFound) => return Ok(None),
            // it may be away for a while
            Err(_) => continue,
        };
        let ended = status.conditions.iter().flatten();
        if let Some(no) = ended
            .filter(|one| one.type_ == "Denied" || one.type_ == "Failed")
            .find(|one| one.status == "True")
        {
            let why = no.message.clone().unwrap_or_default();
            return Err(format!("{name} is {}: {why}", no.type_));
        }
        if let Some(signed) = status.certificate.filter(|it| !it.0.is_empty()) {
            let key = key.serialize_pem().into_bytes();
            return Ok(Some([signed.0, b"\n".to_vec(), key].concat()));
        }
    }
    Ok(None)
}
