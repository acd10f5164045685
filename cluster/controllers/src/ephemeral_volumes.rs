//! Ephemeral volumes of pods: a claim for each, made of its template, owned by the pod and gone with it.

use std::sync::Arc;

use berth_recorder::Level;
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod, Volume},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
    owner,
};

const COMPONENT: &str = "ephemeral_volume";

pub(crate) struct EphemeralVolumes {
    context: Arc<Context>,
    pods: Cache<Pod>,
    claims: Cache<PersistentVolumeClaim>,
}

fn ephemeral(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let spec = pod.spec.as_ref();
    let volumes = spec.and_then(|spec| spec.volumes.as_ref());
    volumes
        .into_iter()
        .flatten()
        .filter(|volume| volume.ephemeral.is_some())
}

fn claim(pod: &Pod, volume: &Volume) -> Option<PersistentVolumeClaim> {
    let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", pod.name_any(), volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![owner::reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    })
}

fn is_for(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    claim.metadata.namespace == pod.metadata.namespace
        && owner::controller_of(&claim.metadata).map(|owner| &owner.uid)
            == pod.metadata.uid.as_ref()
}

impl Controller for EphemeralVolumes {
    const NAME: &'static str = "ephemeral-volume-controller";
    const ACCOUNT: &'static str = "ephemeral-volume-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let pods = context.cache::<Pod>();
        let claims = context.cache::<PersistentVolumeClaim>();
        let keys = queue.clone();
        pods.on_change(move |old, new| {
            if let (None, Some(pod)) = (old, new)
                && ephemeral(pod).next().is_some()
            {
                keys.add(Key::of(&**pod));
            }
        });
        claims.on_change(move |old, new| {
            // One that somebody has removed is made again, if its pod is there.
            if let (Some(claim), None) = (old, new)
                && let Some(owner) = owner::controller_of(&claim.metadata)
                && owner.kind == "Pod"
            {
                queue.add(Key::new(
                    &claim.namespace().unwrap_or_default(),
                    &owner.name,
                ));
            }
        });
        Self {
            context,
            pods,
            claims,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let pod = self.pods.get(key);
        let Some(pod) = pod.filter(|pod| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(Next::Settled);
        };
        for volume in ephemeral(&pod) {
            let Some(wanted) = claim(&pod, volume) else {
                continue;
            };
            let known = self.claims.get(&Key::of(&wanted));
            let failed = match known {
                Some(known) if is_for(&known, &pod) => continue,
                Some(known) => Error::Other(format!(
                    "PVC {} was not created for pod {key} (pod is not owner)",
                    Key::of(&*known)
                )),
                None => match self.context.create(&wanted).await {
                    Ok(_) => continue,
                    Err(error) => error,
                },
            };
            let message = format!("ephemeral volume {}: {failed}", volume.name);
            self.context
                .event(&*pod, COMPONENT, Level::Warning, "FailedBinding", message);
            return Err(failed);
        }
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_its_template_and_the_pods() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "1"},
            "spec": {"containers": [], "volumes": [
                {"name": "plain", "emptyDir": {}},
                {"name": "data", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}},
            ]},
        }))
        .expect("a pod");
        let made: Vec<_> = ephemeral(&pod)
            .filter_map(|volume| claim(&pod, volume))
            .collect();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].name_any(), "p-data");
        assert_eq!(made[0].labels().get("a").map(String::as_str), Some("b"));
        assert!(is_for(&made[0], &pod));
        let mut other = pod.clone();
        other.metadata.uid = Some("2".into());
        assert!(!is_for(&made[0], &other));
    }
}
