//! A pod's claims, and the volumes to which they are bound, asked for as the node: which may read what its pods name, one by one.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use kube::Api;

use super::{Cluster, within};
use crate::{
    Desired, Objects,
    volume::claim::{self, Ask, Bound, Lack},
};

impl Objects {
    /// What the pod's claims come to.
    ///
    /// # Errors
    /// What is not there, or not as it should be, in upstream's words.
    pub(crate) async fn claims(&self, pod: &Desired) -> Result<Vec<Bound>, String> {
        let asks = claim::asks(pod);
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let Some(fetch) = self.1.as_deref() else {
            return Err("a claim needs an API server as the pod's source".into());
        };
        let (mut all, mut lacks) = (Vec::new(), Vec::new());
        for ask in asks {
            match one(&fetch.cluster, pod, &ask).await {
                Ok(bound) => all.push(bound),
                Err(lack) => lacks.push((ask.volume, lack)),
            }
        }
        match lacks.is_empty() {
            true => Ok(all),
            false => Err(claim::message(&lacks)),
        }
    }
}

async fn one(cluster: &Cluster, pod: &Desired, ask: &Ask) -> Result<Bound, Lack> {
    let failed = |why: String| {
        Lack::Claim(format!(
            "error processing PVC {}/{}: {why}",
            pod.namespace, ask.claim
        ))
    };
    let client = || cluster.client.clone();
    let claims = Api::<PersistentVolumeClaim>::namespaced(client(), &pod.namespace);
    let claim = within(claims.get(&ask.claim))
        .await
        .map_err(|error| failed(format!("failed to fetch PVC from API server: {error}")))?;
    let name = claim::volume_of(pod, ask, &claim)?;
    let volumes = Api::<PersistentVolume>::all(client());
    let volume = within(volumes.get(name)).await.map_err(|error| {
        failed(format!(
            "failed to fetch PV {name} from API server: {error}"
        ))
    })?;
    let labels = match claim::asks_for_node(&volume) {
        true => {
            let nodes = Api::<Node>::all(client());
            let node = within(nodes.get(&cluster.node)).await.map_err(|error| {
                let name = &cluster.node;
                failed(format!(
                    "failed to fetch Node {name} from API server: {error}"
                ))
            })?;
            node.metadata.labels.unwrap_or_default()
        }
        false => BTreeMap::new(),
    };
    claim::bound(pod, ask, &claim, &volume, &cluster.node, &labels)
}
