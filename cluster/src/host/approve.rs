//! What the kubelets of our own nodes serve by: they ask the cluster for a certificate, and somebody has to approve it. Of a node that `berth up` has made it is known
//! which name and address it has; of others an admin has to know (`kubectl certificate approve`), since whoever is given a certificate for an address can be
//! taken for what serves there.

use std::{net::IpAddr, pin::pin};

use berth_auth::{
    NODE_PREFIX, NODES,
    x509::{Names, Requested},
};
use futures_util::StreamExt;
use k8s_openapi::{
    api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::Error;

const SIGNER: &str = "kubernetes.io/kubelet-serving";

/// A node that was made here.
#[derive(Debug, Clone)]
pub struct Own {
    pub name: String,
    /// None: any of this machine's.
    pub address: Option<IpAddr>,
}

/// Whether it is this machine's: who can't listen at an address hasn't got it.
fn is_here(address: IpAddr) -> bool {
    std::net::UdpSocket::bind((address, 0)).is_ok()
}

/// What a request asks for is `own`'s and no more.
fn is_of(own: &Own, username: &str, asked: &Requested) -> bool {
    let user = format!("{NODE_PREFIX}{}", own.name);
    username == user
        && asked.common_name == user
        && asked.organizations == [NODES]
        && asked.names == Names::OfServer
        && asked.dns.iter().all(|name| *name == own.name)
        && asked.addresses.iter().all(|asked| match own.address {
            Some(address) => *asked == address,
            None => is_here(*asked),
        })
}

/// Approves what the kubelets of `own` ask for to serve by, until `ends`.
pub async fn serving(client: Client, own: Vec<Own>, ends: CancellationToken) -> Result<(), Error> {
    let api = Api::<CertificateSigningRequest>::all(client);
    let requests = watcher(api.clone(), watcher::Config::default())
        .default_backoff()
        .applied_objects();
    let mut requests = pin!(requests);
    loop {
        let request = tokio::select! {
            request = requests.next() => request,
            () = ends.cancelled() => return Ok(()),
        };
        let request = match request {
            Some(Ok(request)) => request,
            Some(Err(error)) => {
                tracing::debug!(%error, "a watch is begun again");
                continue;
            }
            None => return Ok(()),
        };
        let is_decided = request
            .status
            .as_ref()
            .is_some_and(|status| status.conditions.iter().flatten().next().is_some());
        if is_decided || request.spec.signer_name != SIGNER {
            continue;
        }
        let text = String::from_utf8_lossy(&request.spec.request.0);
        let Ok(asked) = Requested::read(&text) else {
            continue;
        };
        let username = request.spec.username.as_deref().unwrap_or_default();
        if !own.iter().any(|own| is_of(own, username, &asked)) {
            continue;
        }
        let now = Some(Time(
            Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
        ));
        let condition = CertificateSigningRequestCondition {
            type_: "Approved".into(),
            status: "True".into(),
            reason: Some("NodeOfThisMachine".into()),
            message: Some(
                "berth up has made this node, and the certificate is for it alone.".into(),
            ),
            last_update_time: now.clone(),
            last_transition_time: now,
        };
        let patch = Patch::Merge(json!({"status": {"conditions": [condition]}}));
        let name = request.name_any();
        match api
            .patch_approval(&name, &PatchParams::default(), &patch)
            .await
        {
            Ok(_) => tracing::info!(
                name,
                node = username,
                "what a kubelet serves by is approved"
            ),
            Err(error) => tracing::warn!(name, %error, "not approved: the kubelet asks again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(user: &str, dns: &[&str], addresses: &[&str]) -> Requested {
        Requested {
            common_name: user.into(),
            organizations: vec![NODES.into()],
            names: Names::OfServer,
            dns: dns.iter().map(|&name| name.to_owned()).collect(),
            addresses: addresses.iter().map(|it| it.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn a_node_gets_its_own_name_and_address_and_no_others() {
        let own = Own {
            name: "n1".into(),
            address: Some([10, 240, 0, 11].into()),
        };
        let user = "system:node:n1";
        assert!(is_of(&own, user, &asked(user, &["n1"], &["10.240.0.11"])));
        for wrong in [
            asked(user, &["n1"], &["10.240.0.1"]),
            asked(user, &["n1"], &["10.240.0.11", "10.240.0.1"]),
            asked(user, &["n1", "kubernetes"], &["10.240.0.11"]),
            asked("system:node:n2", &["n1"], &["10.240.0.11"]),
            Requested {
                organizations: vec![NODES.into(), "system:masters".into()],
                ..asked(user, &["n1"], &["10.240.0.11"])
            },
            Requested {
                names: Names::Others,
                ..asked(user, &["n1"], &["10.240.0.11"])
            },
        ] {
            assert!(!is_of(&own, user, &wrong), "{wrong:?}");
        }
        assert!(!is_of(
            &own,
            "admin",
            &asked(user, &["n1"], &["10.240.0.11"])
        ));
        let here = Own {
            name: "n1".into(),
            address: None,
        };
        assert!(is_of(&here, user, &asked(user, &[], &["127.0.0.1"])));
        assert!(!is_of(&here, user, &asked(user, &[], &["192.0.2.1"])));
    }
}
