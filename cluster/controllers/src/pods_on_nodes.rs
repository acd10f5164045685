//! Which pods are bound to a node: what happens to a node is of few of all pods.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Pod;

use crate::{Cache, Key, pod};

#[derive(Debug, Clone, Default)]
pub(crate) struct PodsOnNodes(Arc<Mutex<HashMap<String, BTreeSet<Key>>>>);

impl PodsOnNodes {
    /// From now on, as the cache hears of them.
    pub(crate) fn of(pods: &Cache<Pod>) -> Self {
        let all = Self::default();
        let shared = all.clone();
        pods.on_change(move |old, new| {
            shared.change(old.map(|pod| &**pod), new.map(|pod| &**pod));
        });
        all
    }

    fn change(&self, old: Option<&Pod>, new: Option<&Pod>) {
        let (before, after) = (old.and_then(pod::node_of), new.and_then(pod::node_of));
        let Some(key) = new.or(old).map(Key::of) else {
            return;
        };
        if before == after {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = before
            && let Some(pods) = all.get_mut(node)
        {
            pods.remove(&key);
            if pods.is_empty() {
                all.remove(node);
            }
        }
        if let Some(node) = after {
            all.entry(node.to_owned()).or_default().insert(key);
        }
    }

    pub(crate) fn on(&self, node: &str) -> Vec<Key> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(node).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_where_they_were_bound_to_until_they_are_gone() {
        let pod = |name: &str, node: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "spec": {"nodeName": node, "containers": []}}))
                .expect("a pod")
        };
        let all = PodsOnNodes::default();
        let (waits, bound) = (pod("a", None), pod("a", Some("n")));
        all.change(None, Some(&waits));
        assert!(all.on("n").is_empty());
        all.change(Some(&waits), Some(&bound));
        all.change(Some(&bound), Some(&bound));
        all.change(None, Some(&pod("b", Some("n"))));
        assert_eq!(all.on("n"), [Key::new("d", "a"), Key::new("d", "b")]);
        all.change(Some(&bound), None);
        all.change(Some(&pod("b", Some("n"))), None);
        assert!(all.0.lock().expect("nobody has panicked").is_empty());
    }
}
