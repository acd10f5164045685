//! Pods that don't tolerate a NoExecute taint of their node leave it, at once or when their time is over (TT-03, TT-07).
//!
//! Invariant: nothing is evicted for what a cache says alone: the node is read afresh before a pod goes.

mod plan;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use berth_recorder::Level;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use serde_json::json;

use self::plan::{Leaves, Tainted};
use crate::{
    Cache, Context, Error, Key, Merge, Queue, condition,
    controller::{Controller, Next},
    pod,
};

pub(crate) struct TaintEviction {
    context: Arc<Context>,
    pods: Cache<Pod>,
    state: Arc<Mutex<State>>,
}

/// When taints and pods came, by this process's clock.
#[derive(Default)]
struct State {
    /// Nodes that have NoExecute taints.
    tainted: HashMap<String, Tainted>,
    on: HashMap<String, BTreeSet<Key>>,
    pods: HashMap<Key, Arrived>,
}

struct Arrived {
    uid: String,
    node: String,
    at: Instant,
    /// It has been told when it leaves.
    is_due: bool,
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default()
}

impl State {
    /// The pods that have to be looked at again.
    fn node(&mut self, name: &str, new: Option<&Node>, now: Instant) -> Vec<Key> {
        let tainted = self.tainted.entry(name.to_owned()).or_default();
        let changed = tainted.look(new.unwrap_or(&Node::default()), now);
        if tainted.is_empty() {
            self.tainted.remove(name);
        }
        let pods = self.on.get(name).filter(|_| changed);
        pods.into_iter().flatten().cloned().collect()
    }

    /// Whether the pod has to be looked at.
    fn pod(&mut self, old: Option<&Pod>, new: Option<&Pod>, now: Instant) -> bool {
        let Some(key) = new.or(old).map(Key::of) else {
            return false;
        };
        let known = self.pods.get(&key);
        let here = new.and_then(|pod| Some((uid(pod), pod::node_of(pod)?)));
        if known.map(|known| (known.uid.as_str(), known.node.as_str())) == here {
            return here.is_some() && old.map(tolerations) != new.map(tolerations);
        }
        if let Some(gone) = self.pods.remove(&key)
            && let Some(pods) = self.on.get_mut(&gone.node)
        {
            pods.remove(&key);
            if pods.is_empty() {
                self.on.remove(&gone.node);
            }
        }
        let Some((uid, node)) = here else {
            return false;
        };
        self.on
            .entry(node.to_owned())
            .or_default()
            .insert(key.clone());
        let arrived = Arrived {
            uid: uid.to_owned(),
            node: node.to_owned(),
            at: now,
            is_due: false,
        };
        self.pods.insert(key, arrived);
        true
    }
}

impl Controller for TaintEviction {
    const NAME: &'static str = "taint-eviction-controller";
    const ACCOUNT: &'static str = "node-controller";
    const WORKERS: usize = 8;

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let nodes = context.cache::<Node>();
        let pods = context.cache::<Pod>();
        let state = Arc::new(Mutex::new(State::default()));
        let (keys, shared) = (queue.clone(), state.clone());
        nodes.on_change(move |old, new| {
            let name = new.or(old).and_then(|node| node.metadata.name.as_deref());
            let new = new.map(|node| &**node);
            let again = locked(&shared).node(name.unwrap_or_default(), new, Instant::now());
            again.into_iter().for_each(|key| keys.add(key));
        });
        let shared = state.clone();
        pods.on_change(move |old, new| {
            let (old, new) = (old.map(|pod| &**pod), new.map(|pod| &**pod));
            if locked(&shared).pod(old, new, Instant::now())
                && let Some(pod) = new
            {
                queue.add(Key::of(pod));
            }
        });
        Self {
            context,
            pods,
            state,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key) else {
            return Ok(Next::Settled);
        };
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        let now = Instant::now();
        let (leaves, was_due, node, tainted, at) = {
            let mut state = locked(&self.state);
            let State { tainted, pods, .. } = &mut *state;
            let Some(arrived) = pods.get_mut(key).filter(|known| known.uid == uid(&pod)) else {
                return Ok(Next::Settled);
            };
            let tainted = tainted.get(&arrived.node);
            let leaves = tainted.map_or(Leaves::Never, |tainted| {
                tainted.leaves(tolerations(&pod), arrived.at)
            });
            let was_due = std::mem::replace(&mut arrived.is_due, leaves != Leaves::Never);
            let tainted = tainted.cloned().unwrap_or_default();
            (leaves, was_due, arrived.node.clone(), tainted, arrived.at)
        };
        match leaves {
            Leaves::Never => {
                if was_due {
                    self.tell(&pod, format!("Cancelling deletion of Pod {key}"));
                }
                Ok(Next::Settled)
            }
            Leaves::At(end) if end > now => Ok(Next::After(end - now)),
            Leaves::Now | Leaves::At(_) => {
                if self.must_leave(&pod, &node, tainted, at).await? {
                    self.evict(key, &pod).await?;
                }
                Ok(Next::Settled)
            }
        }
    }
}

impl TaintEviction {
    fn tell(&self, pod: &Pod, message: String) {
        let (level, reason) = (Level::Normal, "TaintManagerEviction");
        self.context.event(pod, Self::NAME, level, reason, message);
    }

    /// By what the server has now. Where that is something else, the watch will tell of it.
    async fn must_leave(
        &self,
        pod: &Pod,
        node: &str,
        mut tainted: Tainted,
        arrived: Instant,
    ) -> Result<bool, Error> {
        let node = match self.context.read::<Node>(&Key::new("", node)).await {
            Ok(node) => node,
            // Whose node is gone is collected.
            Err(error) if error.is_not_found() => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        tainted.look(&node, now);
        Ok(match tainted.leaves(tolerations(pod), arrived) {
            Leaves::Now => true,
            Leaves::At(end) => end <= now,
            Leaves::Never => false,
        })
    }

    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        const REASON: &str = "DeletionByTaintManager";
        let is_told = condition::of_pod(pod, "DisruptionTarget")
            .is_some_and(|told| told.status == "True" && told.reason.as_deref() == Some(REASON));
        if !is_told {
            let patch = json!({
                "metadata": {"uid": uid(pod)},
                "status": {"conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": REASON,
                    "message": "Taint manager: deleting due to NoExecute taint",
                    "lastTransitionTime": self.context.now().to_string(),
                    "observedGeneration": pod.metadata.generation,
                }]},
            });
            match self
                .context
                .patch_status::<Pod>(key, &patch, Merge::Strategic)
                .await
            {
                Err(error) if error.is_not_found() => return Ok(()),
                written => written?,
            };
        }
        self.tell(pod, format!("Marking for deletion Pod {key}"));
        self.context.delete(pod, None).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pod(node: Option<&str>, uid: &str, seconds: Option<u64>) -> Pod {
        let tolerations = seconds.map(|seconds| {
            json!([{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}])
        });
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": uid},
            "spec": {"nodeName": node, "containers": [], "tolerations": tolerations},
        }))
        .expect("a pod")
    }

    fn tainted(name: &str, key: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"taints": [{"key": key, "effect": "NoExecute"}]}}))
            .expect("a node")
    }

    #[test]
    fn what_comes_and_goes_is_known_once() {
        let mut state = State::default();
        let now = Instant::now();
        let key = Key::new("default", "p");
        let leaves = |state: &State, pod: &Pod| {
            let arrived = &state.pods[&key];
            state
                .tainted
                .get(&arrived.node)
                .map_or(Leaves::Never, |tainted| {
                    tainted.leaves(tolerations(pod), arrived.at)
                })
        };
        assert!(state.node("n", Some(&tainted("n", "k")), now).is_empty());
        let waits = pod(None, "1", Some(5));
        assert!(!state.pod(None, Some(&waits), now), "it has no node yet");
        let bound = pod(Some("n"), "1", Some(5));
        let later = now + Duration::from_secs(7);
        assert!(state.pod(Some(&waits), Some(&bound), later));
        assert!(
            !state.pod(Some(&bound), Some(&bound), later),
            "nothing that matters has changed"
        );
        assert_eq!(
            leaves(&state, &bound),
            Leaves::At(now + Duration::from_secs(12)),
            "counted from when it came"
        );
        let stays = pod(Some("n"), "1", Some(50));
        assert!(state.pod(Some(&bound), Some(&stays), later));
        // Other taints: it is looked at; none: too.
        assert_eq!(
            state.node("n", Some(&tainted("n", "j")), later),
            std::slice::from_ref(&key)
        );
        assert_eq!(leaves(&state, &stays), Leaves::Now);
        assert_eq!(state.node("n", None, later), std::slice::from_ref(&key));
        assert!(state.tainted.is_empty());
        // Another of the name is another one.
        let other = pod(Some("m"), "2", None);
        assert!(state.pod(Some(&stays), Some(&other), later));
        assert!(!state.on.contains_key("n"));
        assert!(!state.pod(Some(&other), None, later));
        assert!(state.pods.is_empty() && state.on.is_empty());
    }
}
