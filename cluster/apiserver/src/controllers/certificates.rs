//! Signs the CertificateSigningRequests that are approved, for the signers that Kubernetes has built in; and approves those of nodes for themselves
//! as clients, where who asks may (upstream's csrapproving: a SubjectAccessReview for `nodeclient`, or `selfnodeclient`).

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_auth::{
    Attributes, Decision, NODE_PREFIX, NODES, User,
    pki::Usage,
    x509::{Names, Requested},
};
use serde_json::{Value, json};

use crate::{
    api::{Actor, Api},
    cache::{Change, Observer},
    clock,
    failure::Failure,
    object,
    queue::Queue,
    write::{self, Part},
};

const STORAGE: &str = "certificatesigningrequests";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";
/// Of what is signed where the request says nothing, and at most (upstream's --cluster-signing-duration).
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// The shortest that a request may ask for.
const SHORTEST: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub struct Certificates {
    changed: Queue<String>,
}

impl Observer for Certificates {
    fn changed(&self, storage: &str, change: &Arc<Change>) {
        if storage == STORAGE
            && let Some(new) = &change.new
        {
            self.changed.add(new.name().into());
        }
    }
}

impl Certificates {
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        loop {
            let name = self.changed.next().await;
            let done = match approve(&api, &name).await {
                Ok(()) => sign(&api, &name).await,
                failed => failed,
            };
            if let Err(failure) = done
                && !super::is_passing(&failure)
            {
                tracing::warn!(name, %failure, "a certificate can't be signed");
            }
        }
    }
}

/// The request itself, where it is one that a node's kubelet makes.
fn of_node(request: &Value, signer: &str) -> Result<Requested, String> {
    let pem = BASE64_STANDARD
        .decode(object::text(request, "/spec/request"))
        .map_err(|error| error.to_string())?;
    let pem = String::from_utf8(pem).map_err(|error| error.to_string())?;
    let asked = Requested::read(&pem).map_err(|error| error.to_string())?;
    if asked.organizations != [NODES] {
        return Err(format!("its one organization must be {NODES}"));
    }
    if !asked.common_name.starts_with(NODE_PREFIX) {
        return Err(format!("its common name must begin with {NODE_PREFIX}"));
    }
    match (signer, asked.names) {
        (CLIENT, Names::None) | (SERVING, Names::OfServer) => Ok(asked),
        (CLIENT, _) => Err("it must have no subject alternative names".into()),
        _ => Err("it must have DNS names or addresses, and no others".into()),
    }
}

/// Approves a node's request for its own certificate as a client, where the user that asks may have that.
async fn approve(api: &Api, name: &str) -> Result<(), Failure> {
    let Some(entry) = api.cache.shard(STORAGE).get(name) else {
        return Ok(());
    };
    let request = entry.value();
    let is_done = ["Approved", "Denied", "Failed"]
        .iter()
        .any(|kind| has(&request, kind))
        || !object::text(&request, "/status/certificate").is_empty();
    if is_done || object::text(&request, "/spec/signerName") != CLIENT {
        return Ok(());
    }
    let (Ok(asked), Some(Ok(_))) = (of_node(&request, CLIENT), usages(&request)) else {
        return Ok(());
    };
    let spec = request.get("spec").cloned().unwrap_or_default();
    let user: User = serde_json::from_value(spec).unwrap_or_default();
    let may = |subresource: &str| {
        let asked = Attributes {
            verb: "create".into(),
            group: "certificates.k8s.io".into(),
            version: "*".into(),
            resource: STORAGE.into(),
            subresource: subresource.into(),
            ..Attributes::default()
        };
        matches!(
            api.authorizer.authorize(&user, &asked),
            Decision::Allow { .. }
        )
    };
    let what = match asked.common_name == user.username {
        true if may("selfnodeclient") => "self kubelet client",
        _ if may("nodeclient") => "kubelet client",
        _ => return Ok(()),
    };
    let catalog = api.served.now();
    let resource = catalog
        .by_storage(STORAGE)
        .ok_or_else(Failure::no_such_path)?;
    let actor = Actor::internal("csrapproving");
    let now = clock::time(clock::now());
    let condition = json!({
        "type": "Approved",
        "status": "True",
        "reason": "AutoApproved",
        "message": format!("Auto approving {what} certificate after SubjectAccessReview."),
        "lastUpdateTime": now,
        "lastTransitionTime": now,
    });
    write::modify(api, &actor, resource, "", name, Part::Whole, |request| {
        let mut new = request.clone();
        let conditions = object::part(&mut new, "status")
            .entry("conditions")
            .or_insert_with(|| json!([]));
        // somebody may have decided meanwhile
        let is_decided = ["Approved", "Denied"].iter().any(|kind| has(request, kind));
        if let Some(conditions) = conditions.as_array_mut().filter(|_| !is_decided) {
            conditions.push(condition.clone());
        }
        Ok(new)
    })
    .await
    .map(drop)
}

fn has(request: &Value, kind: &str) -> bool {
    request
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == kind)
}

/// Who may ask the signer for what: (usages, the subject that it must have).
fn usages(request: &Value) -> Option<Result<Vec<Usage>, String>> {
    let asked: Vec<&str> = request
        .pointer("/spec/usages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let only = |allowed: &[&str], needed: &str, usage: Usage| match asked
        .iter()
        .find(|usage| !allowed.contains(usage))
    {
        Some(other) => Err(format!("usage {other:?} is not allowed for this signer")),
        None if !asked.contains(&needed) => Err(format!("usage {needed:?} is missing")),
        None => Ok(vec![usage]),
    };
    let client = ["digital signature", "key encipherment", "client auth"];
    let server = ["digital signature", "key encipherment", "server auth"];
    match object::text(request, "/spec/signerName") {
        "kubernetes.io/kube-apiserver-client" | "kubernetes.io/kube-apiserver-client-kubelet" => {
            Some(only(&client, "client auth", Usage::Client))
        }
        "kubernetes.io/kubelet-serving" => Some(only(&server, "server auth", Usage::Server)),
        _ => None,
    }
}

async fn sign(api: &Api, name: &str) -> Result<(), Failure> {
    let Some(entry) = api.cache.shard(STORAGE).get(name) else {
        return Ok(());
    };
    let request = entry.value();
    let done = !object::text(&request, "/status/certificate").is_empty();
    if done || !has(&request, "Approved") || has(&request, "Denied") || has(&request, "Failed") {
        return Ok(());
    }
    let Some(usages) = usages(&request) else {
        return Ok(());
    };
    let valid = object::number(&request, "/spec/expirationSeconds")
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(VALID, Duration::from_secs)
        .clamp(SHORTEST, VALID);
    let signer = object::text(&request, "/spec/signerName");
    let is_of_node = match signer {
        CLIENT | SERVING => of_node(&request, signer).map(drop),
        _ => Ok(()),
    };
    let signed = usages
        .and_then(|usages| is_of_node.map(|()| usages))
        .and_then(|usages| {
            let pem = BASE64_STANDARD
                .decode(object::text(&request, "/spec/request"))
                .map_err(|error| error.to_string())?;
            let pem = String::from_utf8(pem).map_err(|error| error.to_string())?;
            api.pki
                .sign(&pem, &usages, valid)
                .map_err(|error| error.to_string())
        });
    let catalog = api.served.now();
    let resource = catalog
        .by_storage(STORAGE)
        .ok_or_else(Failure::no_such_path)?;
    let actor = Actor::internal("csrsigning");
    write::modify(api, &actor, resource, "", name, Part::Whole, |request| {
        let mut new = request.clone();
        let status = object::part(&mut new, "status");
        match &signed {
            Ok(certificate) => {
                let text = BASE64_STANDARD.encode(certificate);
                status.insert("certificate".into(), text.into());
            }
            Err(why) => {
                let now = clock::time(clock::now());
                let conditions = status.entry("conditions").or_insert_with(|| json!([]));
                if let Some(conditions) = conditions.as_array_mut() {
                    conditions.push(json!({
                        "type": "Failed",
                        "status": "True",
                        "reason": "SignerValidationFailure",
                        "message": why,
                        "lastUpdateTime": now,
                        "lastTransitionTime": now,
                    }));
                }
            }
        }
        Ok(new)
    })
    .await
    .map(drop)
}
