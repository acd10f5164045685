//! Static pods, mirrored in the API for people and the scheduler to see. The mirror follows the file: who deletes it gets another, and what is written
//! to it changes nothing here.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, Toleration},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::api::{DeleteParams, PostParams, Preconditions};
use tokio::sync::watch;

use super::{Cluster, Failed, Known, MIRROR, Statuses, source::Mirror, within};
use crate::{Desired, keys};

/// Between two tries at what the server would not take.
const AGAIN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Mirrors {
    pub cluster: Cluster,
    pub statuses: Arc<Statuses>,
    /// All static pods; `None`: not known yet.
    pub pods: watch::Receiver<Option<Vec<Arc<Desired>>>>,
    pub known: watch::Receiver<Option<Known>>,
    /// The uid of this node's object, which owns them.
    pub node_uid: watch::Receiver<Option<String>>,
}

/// What is to be done about one.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Create(String),
    Delete { full_name: String, uid: String },
}

impl Mirrors {
    /// Keeps mirrors in line until the sources end.
    pub async fn run(mut self) {
        loop {
            let settled = self.round().await;
            tokio::select! {
                changed = self.pods.changed() => if changed.is_err() { return; },
                changed = self.known.changed() => if changed.is_err() { return; },
                changed = self.node_uid.changed() => if changed.is_err() { return; },
                () = tokio::time::sleep(AGAIN), if !settled => {}
            }
        }
    }

    /// Whether all is as it should be, or soon will be by what is told next.
    async fn round(&mut self) -> bool {
        let pods = self.pods.borrow_and_update().clone();
        let known = self.known.borrow_and_update().clone();
        let node_uid = self.node_uid.borrow_and_update().clone();
        let (Some(pods), Some(known)) = (pods, known.filter(|known| known.by_server)) else {
            return true;
        };
        let by_name: BTreeMap<String, &Arc<Desired>> =
            pods.iter().map(|pod| (pod.full_name(), pod)).collect();
        let good = known
            .mirrors
            .iter()
            .filter(|(name, mirror)| by_name.get(*name).is_some_and(|pod| pod.uid == mirror.hash));
        self.statuses.mirrored(
            good.map(|(name, mirror)| (name.clone(), mirror.uid.clone()))
                .collect(),
        );
        let wanted: BTreeMap<String, String> = by_name
            .iter()
            .map(|(name, pod)| (name.clone(), pod.uid.clone()))
            .collect();
        let mut settled = true;
        for act in acts(&wanted, &known.mirrors) {
            let done = match &act {
                Act::Delete { full_name, uid } => self.delete(full_name, uid).await,
                Act::Create(full_name) => match (&node_uid, by_name.get(full_name)) {
                    (Some(node_uid), Some(pod)) => self.create(pod, node_uid).await,
                    // the node is registered first
                    _ => Ok(()),
                },
            };
            if let Err(failed) = done {
                tracing::warn!(?act, %failed, "the mirror of a static pod is not as it should be");
                settled = false;
            }
        }
        settled
    }

    async fn create(&self, pod: &Desired, node_uid: &str) -> Result<(), Failed> {
        let mirror = mirror(pod, &self.cluster.node, node_uid);
        let api = self.cluster.pods(&pod.namespace);
        match within(api.create(&PostParams::default(), &mirror)).await {
            // it is there, and will be told of
            Ok(_) | Err(Failed::Conflict) => Ok(()),
            Err(failed) => Err(failed),
        }
    }

    async fn delete(&self, full_name: &str, uid: &str) -> Result<(), Failed> {
        let Some((namespace, name)) = full_name.split_once('/') else {
            return Ok(());
        };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match within(self.cluster.pods(namespace).delete(name, &params)).await {
            Ok(_) | Err(Failed::NotFound | Failed::Conflict) => Ok(()),
            Err(failed) => Err(failed),
        }
    }
}

/// `wanted`: static pods' hashes by full name. A mirror of another hash goes; the next round makes the new one.
fn acts(wanted: &BTreeMap<String, String>, there: &BTreeMap<String, Mirror>) -> Vec<Act> {
    let stale = there
        .iter()
        .filter(|(name, mirror)| wanted.get(*name) != Some(&mirror.hash))
        .map(|(name, mirror)| Act::Delete {
            full_name: name.clone(),
            uid: mirror.uid.clone(),
        });
    let missing = wanted
        .keys()
        .filter(|name| !there.contains_key(*name))
        .map(|name| Act::Create(name.clone()));
    stale.chain(missing).collect()
}

fn mirror(pod: &Desired, node: &str, node_uid: &str) -> Pod {
    let mut annotations = pod.annotations();
    for (key, value) in [
        (MIRROR, pod.uid.clone()),
        (keys::CONFIG_HASH, pod.uid.clone()),
        (keys::CONFIG_SOURCE, pod.source.to_owned()),
        (keys::CONFIG_SEEN, Timestamp::now().to_string()),
    ] {
        annotations.insert(key.to_owned(), value);
    }
    let mut spec = pod.spec.clone();
    spec.node_name = Some(node.to_owned());
    // A taint does not end what the node's own disk asks for.
    spec.tolerations.get_or_insert_default().push(Toleration {
        effect: Some("NoExecute".into()),
        operator: Some("Exists".into()),
        ..Toleration::default()
    });
    Pod {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            labels: pod.pod.metadata.labels.clone(),
            annotations: Some(annotations),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: node.to_owned(),
                uid: node_uid.to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_follow_the_files_kl_02() {
        let texts = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            list.iter()
                .map(|(name, hash)| ((*name).to_owned(), (*hash).to_owned()))
                .collect()
        };
        let there: BTreeMap<String, Mirror> = [("d/same", "1"), ("d/other", "2"), ("d/gone", "3")]
            .into_iter()
            .map(|(name, hash)| {
                let mirror = Mirror {
                    uid: format!("u{hash}"),
                    hash: hash.into(),
                };
                (name.to_owned(), mirror)
            })
            .collect();
        let wanted = texts(&[("d/same", "1"), ("d/other", "9"), ("d/new", "4")]);
        let delete = |name: &str, uid: &str| Act::Delete {
            full_name: name.into(),
            uid: uid.into(),
        };
        assert_eq!(
            acts(&wanted, &there),
            [
                delete("d/gone", "u3"),
                delete("d/other", "u2"),
                Act::Create("d/new".into())
            ]
        );
    }
}
