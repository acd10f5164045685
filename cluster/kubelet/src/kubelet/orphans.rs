//! Pods that are here and that nobody wants: of a kubelet before this one, or of a call that nobody waited for any more.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::Kubelet;
use crate::{Desired, keys, pod::is_path_component, store, worker::Order};

/// Between two looks for pods that nobody wants, as upstream's housekeeping. There is one only after a pod has gone, or the runtime has told of one that has no worker.
const ORPHANS: Duration = Duration::from_secs(2);

impl Kubelet {
    /// Ends what was made for this directory and nobody wants, or has ended already as far as its worker saw. Whether all could be looked at.
    pub(super) async fn end_orphans(&mut self, wanted: &[Arc<Desired>]) -> bool {
        let sandboxes = match self.node.runtime.sandboxes(None).await {
            Ok(sandboxes) => sandboxes,
            Err(error) => {
                tracing::warn!(%error, "what is left of before can't be looked at yet");
                return false;
            }
        };
        let own = self.node.kubelet_dir().display().to_string();
        let mut orphans: HashMap<String, Option<Desired>> = HashMap::new();
        for uid in store::kept_uids(&self.node) {
            orphans.insert(uid, None);
        }
        for sandbox in sandboxes {
            let metadata = sandbox.metadata.unwrap_or_default();
            if sandbox.annotations.get(keys::KUBELET_DIR) == Some(&own) {
                let pod = nameless(
                    &metadata.namespace,
                    &metadata.name,
                    &metadata.uid,
                    self.node.config.source,
                );
                orphans.insert(metadata.uid, pod);
            }
        }
        for (uid, found) in orphans {
            let is_wanted = wanted.iter().any(|pod| pod.uid == uid);
            if (is_wanted && !self.ended.contains(&uid))
                || self.workers.contains_key(&uid)
                || !is_path_component(&uid)
            {
                continue;
            }
            let kept = store::kept_pod(&self.node, &uid)
                .and_then(|kept| Desired::new(kept.pod, self.node.config.source).ok());
            if let Some(pod) = kept.filter(|pod| pod.uid == uid).or(found) {
                tracing::info!(pod = %pod.full_name(), uid, "nobody wants this pod any more: it is ended");
                let pod = Arc::new(pod);
                let order = Order::End {
                    grace: None,
                    pod: pod.clone(),
                };
                self.spawn(pod, order);
            }
        }
        true
    }
}

/// When orphans are looked for; not later than before.
pub(super) fn soon(orphans: Option<Instant>) -> Option<Instant> {
    orphans.or_else(|| Some(Instant::now() + ORPHANS))
}

/// A pod of which nothing is known but its identity.
fn nameless(namespace: &str, name: &str, uid: &str, source: &'static str) -> Option<Desired> {
    let mut pod = Pod {
        spec: Some(PodSpec::default()),
        ..Pod::default()
    };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.namespace = Some(namespace.to_owned());
    pod.metadata.uid = Some(uid.to_owned());
    Desired::new(pod, source).ok()
}
