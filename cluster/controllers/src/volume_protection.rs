//! Claims and volumes that are in use outlive their deletion (the finalizers `kubernetes.io/pvc-protection` and `pv-protection`, which admission gives them).
//!
//! Invariant: what holds an object is taken away only after the server itself, not a cache, has said that nobody uses it.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde::Serialize;

use crate::{
    Cache, Context, Error, Key, Kind, Queue,
    controller::{Controller, Next},
    pod,
};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

fn is_held(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|one| one == finalizer)
}

/// With the finalizer as long as it lives, without it when it may go.
async fn protect<K: Kind + Serialize>(
    context: &Context,
    object: &K,
    finalizer: &str,
    holds: bool,
) -> Result<(), Error> {
    if is_held(object.meta(), finalizer) == holds {
        return Ok(());
    }
    let mut object = object.clone();
    let finalizers = object.meta_mut().finalizers.get_or_insert_default();
    finalizers.retain(|one| one != finalizer);
    if holds {
        finalizers.push(finalizer.into());
    }
    match context.update(&object).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// The claims of its volumes; those of ephemeral ones have names made of the pod's.
fn claims(pod: &Pod) -> impl Iterator<Item = String> + use<'_> {
    let spec = pod.spec.as_ref();
    let volumes = spec.and_then(|spec| spec.volumes.as_ref());
    volumes.into_iter().flatten().filter_map(|volume| {
        let claim = volume.persistent_volume_claim.as_ref();
        claim.map(|claim| claim.claim_name.clone()).or_else(|| {
            let ephemeral = volume.ephemeral.is_some();
            ephemeral.then(|| format!("{}-{}", pod.name_any(), volume.name))
        })
    })
}

/// It is on a node, and hasn't ended there.
fn uses(pod: &Pod, claim: &str) -> bool {
    pod::node_of(pod).is_some() && !pod::is_terminal(pod) && claims(pod).any(|name| name == claim)
}

pub(crate) struct ClaimProtection {
    context: Arc<Context>,
    claims: Cache<PersistentVolumeClaim>,
    pods: Cache<Pod>,
}

impl Controller for ClaimProtection {
    const NAME: &'static str = "persistentvolumeclaim-protection-controller";
    const ACCOUNT: &'static str = "pvc-protection-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let all = context.cache::<PersistentVolumeClaim>();
        let pods = context.cache::<Pod>();
        queue.follow(&all);
        pods.on_change(move |old, new| {
            let ends = |pod: &Arc<Pod>| pod::is_terminal(pod);
            let Some(pod) = old.or(new) else {
                return;
            };
            if new.is_none_or(ends) {
                let namespace = pod.namespace().unwrap_or_default();
                claims(pod).for_each(|claim| queue.add(Key::new(&namespace, &claim)));
            }
        });
        Self {
            context,
            claims: all,
            pods,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else {
            return Ok(Next::Settled);
        };
        if claim.metadata.deletion_timestamp.is_none() {
            protect(&self.context, &*claim, CLAIM, true).await?;
            return Ok(Next::Settled);
        }
        if !is_held(&claim.metadata, CLAIM) {
            return Ok(Next::Settled);
        }
        let pods = self.pods.in_namespace(&key.namespace);
        if pods.iter().any(|pod| uses(pod, &key.name)) {
            return Ok(Next::Settled);
        }
        let api = Api::<Pod>::namespaced(self.context.client().clone(), &key.namespace);
        let pods = api.list(&ListParams::default()).await.map_err(|error| {
            Error::Other(format!(
                "list the pods of {}, which may use the claim: {error}",
                key.namespace
            ))
        })?;
        if !pods.items.iter().any(|pod| uses(pod, &key.name)) {
            protect(&self.context, &*claim, CLAIM, false).await?;
        }
        Ok(Next::Settled)
    }
}

pub(crate) struct VolumeProtection {
    context: Arc<Context>,
    volumes: Cache<PersistentVolume>,
}

impl Controller for VolumeProtection {
    const NAME: &'static str = "persistentvolume-protection-controller";
    const ACCOUNT: &'static str = "pv-protection-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let volumes = context.cache::<PersistentVolume>();
        queue.follow(&volumes);
        Self { context, volumes }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(Next::Settled);
        };
        let is_going = volume.metadata.deletion_timestamp.is_some();
        let status = volume.status.as_ref();
        let is_bound = status.and_then(|status| status.phase.as_deref()) == Some("Bound");
        // One that is going gets no finalizer any more.
        if !is_going || !is_bound {
            protect(&self.context, &*volume, VOLUME, !is_going).await?;
        }
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_used_by_pods_that_are_somewhere_and_go_on() {
        let pod = |node: Option<&str>, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "p"},
                "spec": {"nodeName": node, "containers": [], "volumes": [
                    {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                    {"name": "b", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                    {"name": "c", "emptyDir": {}},
                ]},
                "status": {"phase": phase},
            }))
            .expect("a pod")
        };
        for (node, phase, used) in [
            (Some("n"), "Running", true),
            (Some("n"), "Pending", true),
            (Some("n"), "Failed", false),
            (None, "Pending", false),
        ] {
            let pod = pod(node, phase);
            assert_eq!(
                (uses(&pod, "data"), uses(&pod, "p-b")),
                (used, used),
                "{node:?} {phase}"
            );
            assert!(!uses(&pod, "p-c"));
        }
    }
}
