//! Signs the CertificateSigningRequests that are approved, for the signers that Kubernetes has built in.

use std::{sync::Arc, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_auth::pki::Usage;
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
            if let Err(failure) = sign(&api, &name).await
                && !super::is_passing(&failure)
            {
                tracing::warn!(name, %failure, "a certificate can't be signed");
            }
        }
    }
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
    let signed = usages.and_then(|usages| {
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
