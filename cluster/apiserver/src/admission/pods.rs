//! What every pod gets: its ServiceAccount with a token, and how long it stays on a node that is gone.

use serde_json::{Value, json};

use super::Act;
use crate::{
    api::Api,
    failure::Failure,
    object::{self, GENERATED_LETTERS},
};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Seconds that a token lives: an hour, and what a kubelet needs to renew it (upstream's).
const TOKEN_SECONDS: i64 = 3607;
/// Seconds that a pod stays on a node that is not ready or can't be reached.
const TOLERATION_SECONDS: i64 = 300;

/// ServiceAccount: its name, its token as a volume, its pull secrets.
pub async fn service_account(api: &Api, act: &Act<'_>, pod: &mut Value) -> Result<(), Failure> {
    let is_mirror = pod
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(MIRROR))
        .is_some();
    if is_mirror {
        if !object::text(pod, "/spec/serviceAccountName").is_empty() {
            return Err(Failure::forbidden(
                act.resource,
                &act.name,
                "a mirror pod may not reference service accounts",
            ));
        }
        return Ok(());
    }
    let mut name = object::text(pod, "/spec/serviceAccountName").to_owned();
    if name.is_empty() {
        name = object::text(pod, "/spec/serviceAccount").to_owned();
    }
    if name.is_empty() {
        name = "default".into();
    }
    let spec = object::part(pod, "spec");
    spec.insert("serviceAccountName".into(), name.as_str().into());
    spec.insert("serviceAccount".into(), name.as_str().into());
    let accounts = api.cache.shard("serviceaccounts");
    let path = format!("{}/{name}", act.namespace);
    let account = match accounts.get(&path) {
        Some(entry) => entry,
        None => {
            api.cache.fresh().await?;
            accounts.get(&path).ok_or_else(|| {
                Failure::forbidden(
                    act.resource,
                    &act.name,
                    format!(
                        "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                        act.namespace
                    ),
                )
            })?
        }
    };
    let account = account.value();
    let mounts = |value: &Value| value.get("automountServiceAccountToken")?.as_bool();
    let wants_token = pod
        .get("spec")
        .and_then(mounts)
        .or_else(|| mounts(&account))
        .unwrap_or(true);
    if wants_token {
        mount_token(pod);
    }
    let spec = object::part(pod, "spec");
    let has_secrets = spec
        .get("imagePullSecrets")
        .and_then(Value::as_array)
        .is_some_and(|secrets| !secrets.is_empty());
    if !has_secrets
        && let Some(secrets) = account
            .get("imagePullSecrets")
            .filter(|secrets| secrets.as_array().is_some_and(|all| !all.is_empty()))
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let spec = object::part(pod, "spec");
    let lacks = |container: &Value| {
        !container
            .get("volumeMounts")
            .and_then(Value::as_array)
            .is_some_and(|mounts| mounts.iter().any(|mount| mount["mountPath"] == MOUNT_PATH))
    };
    let mut name = None;
    for list in ["initContainers", "containers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            if !lacks(container) {
                continue;
            }
            let name = name.get_or_insert_with(volume_name);
            let Some(fields) = container.as_object_mut() else {
                continue;
            };
            let mounts = fields.entry("volumeMounts").or_insert_with(|| json!([]));
            if let Some(mounts) = mounts.as_array_mut() {
                mounts.push(json!({
                    "name": name,
                    "readOnly": true,
                    "mountPath": MOUNT_PATH,
                }));
            }
        }
    }
    let Some(name) = name else {
        return;
    };
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({
            "name": name,
            "projected": {
                "defaultMode": 0o644,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                    {"configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }},
                    {"downwardAPI": {"items": [{
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }]}},
                ],
            },
        }));
    }
}

fn volume_name() -> String {
    let letters: String = (0..5)
        .map(|_| char::from(GENERATED_LETTERS[rand::random_range(0..GENERATED_LETTERS.len())]))
        .collect();
    format!("kube-api-access-{letters}")
}

/// DefaultTolerationSeconds.
pub fn tolerations(pod: &mut Value) {
    let spec = object::part(pod, "spec");
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else {
        return;
    };
    for key in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|toleration| {
            let text = |name: &str| {
                toleration
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            (text("key") == key || text("key").is_empty())
                && matches!(text("effect"), "" | "NoExecute")
        });
        if !tolerated {
            tolerations.push(json!({
                "key": key,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
}
