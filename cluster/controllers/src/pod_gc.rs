//! Pods that nobody will ever end: of nodes that are gone, of nodes that are out of service, deleted before they had a node; and those that have ended, when there are
//! too many of them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, Preconditions},
};
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{
    Cache, Context, Error, Key, Merge, Queue,
    controller::{Controller, Next},
    pod::{is_deleted, is_terminal, node_of, phase},
};

/// So many that have ended are kept (as upstream, and the next two).
const ENDED: usize = 12_500;
const EVERY: Duration = Duration::from_secs(20);
/// A node must have been missing for so long: it may only have been made anew.
const MISSING: Duration = Duration::from_secs(40);
/// One request.
const CALL: Duration = Duration::from_secs(30);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

pub(crate) struct PodGarbageCollector {
    context: Arc<Context>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    /// Nodes that pods name and that are not there, since when.
    missing: Mutex<HashMap<String, Instant>>,
}

/// There is one thing to look after: all pods.
fn all() -> Key {
    Key::new("", "pods")
}

/// Deleted before it had a node.
fn is_nowhere(pod: &Pod) -> bool {
    is_deleted(pod) && node_of(pod).is_none()
}

/// Of those that have ended, all but so many: evicted ones first, then the oldest.
fn beyond(pods: &[Arc<Pod>], kept: usize) -> Vec<Arc<Pod>> {
    let mut ended: Vec<_> = pods
        .iter()
        .filter(|pod| is_terminal(pod))
        .cloned()
        .collect();
    let many = ended.len().saturating_sub(kept);
    if many == 0 {
        return Vec::new();
    }
    ended.sort_by_cached_key(|pod| {
        let status = pod.status.as_ref();
        let reason = status.and_then(|status| status.reason.as_deref());
        let evicted = phase(pod) == "Failed" && reason == Some("Evicted");
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (!evicted, created, pod.metadata.name.clone())
    });
    ended.truncate(many);
    ended
}

/// It is not ready, and somebody has said that it will not be again.
fn is_out_of_service(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| &status.conditions);
    let ready = conditions
        .flatten()
        .any(|one| one.type_ == "Ready" && one.status == "True");
    let taints = node.spec.iter().flat_map(|spec| &spec.taints);
    !ready && taints.flatten().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// Notes which nodes are missing. Those that have been for long.
fn long_missing(
    missing: &mut HashMap<String, Instant>,
    pods: &[Arc<Pod>],
    there: &HashSet<String>,
    now: Instant,
) -> Vec<String> {
    let named: HashSet<&str> = pods.iter().filter_map(|pod| node_of(pod)).collect();
    missing.retain(|node, _| named.contains(node.as_str()) && !there.contains(node));
    for node in named.into_iter().filter(|node| !there.contains(*node)) {
        missing.entry(node.to_owned()).or_insert(now);
    }
    let long = missing
        .iter()
        .filter(|(_, since)| now.duration_since(**since) >= MISSING);
    long.map(|(node, _)| node.clone()).collect()
}

impl Controller for PodGarbageCollector {
    const NAME: &'static str = "pod-garbage-collector-controller";
    const ACCOUNT: &'static str = "pod-garbage-collector";
    const WORKERS: usize = 1;

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let (pods, nodes) = (context.cache::<Pod>(), context.cache::<Node>());
        let wants = queue.clone();
        pods.on_change(move |_, new| {
            if new.is_some_and(|pod| is_nowhere(pod)) {
                wants.add(all());
            }
        });
        let wants = queue.clone();
        nodes.on_change(move |_, new| {
            if new.is_none_or(|node| is_out_of_service(node)) {
                wants.add(all());
            }
        });
        queue.add(all());
        Self {
            context,
            pods,
            nodes,
            missing: Mutex::default(),
        }
    }

    async fn reconcile(&self, _: &Key) -> Result<Next, Error> {
        let (pods, nodes) = (self.pods.all(), self.nodes.all());
        let mut failed = None;
        let mut end = async |pod: &Arc<Pod>, why: Option<&str>| {
            if let Err(error) = self.end(pod, why).await {
                failed = Some(error);
            }
        };
        for pod in beyond(&pods, ENDED) {
            end(&pod, None).await;
        }
        let lost: HashSet<String> = nodes
            .iter()
            .filter(|node| is_out_of_service(node))
            .map(|node| Key::of(&**node).name)
            .collect();
        for pod in &pods {
            if is_nowhere(pod)
                || is_deleted(pod) && node_of(pod).is_some_and(|node| lost.contains(node))
            {
                end(pod, None).await;
            }
        }
        let there = nodes.iter().map(|node| Key::of(&**node).name).collect();
        let long = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            long_missing(&mut missing, &pods, &there, Instant::now())
        };
        for gone in long {
            // the cache may be behind
            match self.context.read::<Node>(&Key::new("", &gone)).await {
                Err(Error::NotFound(_)) => {}
                Ok(_) => continue,
                Err(error) => return Err(error),
            }
            for pod in pods.iter().filter(|pod| node_of(pod) == Some(&gone)) {
                end(pod, Some("PodGC: node no longer exists")).await;
            }
        }
        failed.map_or(Ok(Next::After(EVERY)), Err)
    }
}

impl PodGarbageCollector {
    /// By force: no kubelet will say that it has ended.
    async fn end(&self, pod: &Pod, why: Option<&str>) -> Result<(), Error> {
        let key = Key::of(pod);
        tracing::info!(pod = %key, why, "a pod that nobody will end is deleted");
        let uid = pod.metadata.uid.as_deref();
        if !is_terminal(pod) {
            let generation = pod.metadata.generation;
            let mut status = json!({"phase": "Failed", "observedGeneration": generation});
            if let Some(why) = why {
                status["conditions"] = json!([{
                    "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": why,
                    "lastTransitionTime": self.context.now(), "observedGeneration": generation,
                }]);
            }
            let patch = json!({"metadata": {"uid": uid}, "status": status});
            let patched = self
                .context
                .patch_status::<Pod>(&key, &patch, Merge::Strategic)
                .await;
            match patched {
                Err(Error::NotFound(_)) => return Ok(()),
                patched => patched?,
            };
        }
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: uid.map(str::to_owned),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let api = Api::<Pod>::namespaced(self.context.client().clone(), &key.namespace);
        match timeout(CALL, api.delete(&key.name, &params)).await {
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Error::Other(format!("delete Pod {key}: {error}"))),
            Err(_) => Err(Error::Other(format!(
                "delete Pod {key}: no answer within {} s",
                CALL.as_secs()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value};

    use super::*;

    fn pod(name: &str, node: &str, status: Value) -> Arc<Pod> {
        let created = format!("2026-01-01T00:00:0{}Z", name.len());
        Arc::new(
            from_value(json!({
                "metadata": {"name": name, "creationTimestamp": created},
                "spec": {"containers": [], "nodeName": node}, "status": status,
            }))
            .expect("a pod"),
        )
    }

    #[test]
    fn evicted_pods_go_first_then_the_oldest() {
        let pods = [
            pod("aaa", "n", json!({"phase": "Succeeded"})),
            pod("bb", "n", json!({"phase": "Failed"})),
            pod("cccc", "n", json!({"phase": "Failed", "reason": "Evicted"})),
            pod("d", "n", json!({"phase": "Running"})),
        ];
        let names = |kept| -> Vec<String> {
            let gone = beyond(&pods, kept);
            gone.iter().map(|pod| Key::of(&**pod).name).collect()
        };
        assert_eq!(names(1), ["cccc", "bb"]);
        assert_eq!(names(0), ["cccc", "bb", "aaa"]);
        assert!(names(3).is_empty());
    }

    #[test]
    fn a_node_is_missing_when_it_has_been_for_long() {
        let pods = [
            pod("a", "n1", json!({})),
            pod("b", "n2", json!({})),
            pod("c", "", json!({})),
        ];
        let there = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut missing = HashMap::new();
        let start = Instant::now();
        let mut look = |nodes: &[&str], seconds| {
            long_missing(
                &mut missing,
                &pods,
                &there(nodes),
                start + Duration::from_secs(seconds),
            )
        };
        assert!(look(&["n1"], 0).is_empty());
        assert!(look(&["n1"], 39).is_empty());
        assert_eq!(look(&["n1"], 40), ["n2"]);
        // it was there again: its time begins anew
        assert!(look(&["n1", "n2"], 50).is_empty());
        assert!(look(&["n1"], 60).is_empty());
        assert_eq!(look(&["n1"], 100), ["n2"]);
    }

    #[test]
    fn a_node_is_out_of_service_only_if_it_is_not_ready() {
        let node = |ready: &str, key: &str| -> Node {
            from_value(json!({
                "spec": {"taints": [{"key": key, "effect": "NoExecute"}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .expect("a node")
        };
        assert!(is_out_of_service(&node("Unknown", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("True", OUT_OF_SERVICE)));
        assert!(!is_out_of_service(&node("False", "other")));
    }
}
