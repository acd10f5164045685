//! For how long kubelets may keep what they have read of Secrets and ConfigMaps: the longer, the more nodes there are.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use serde_json::json;

use crate::{
    Cache, Context, Error, Key, Merge, Queue,
    controller::{Controller, Next},
};

const ANNOTATION: &str = "node.alpha.kubernetes.io/ttl";

/// From so many nodes on, down to so many, and the seconds: upstream's steps. They overlap, so that one node more or less changes nothing.
const STEPS: &[(usize, usize, u32)] = &[
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, usize::MAX, 300),
];

pub(crate) struct Ttl {
    context: Arc<Context>,
    nodes: Cache<Node>,
    /// Of [`STEPS`].
    step: AtomicUsize,
}

impl Controller for Ttl {
    const NAME: &'static str = "ttl-controller";
    const ACCOUNT: &'static str = "ttl-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let nodes = context.cache::<Node>();
        queue.follow(&nodes);
        Self {
            context,
            nodes,
            step: AtomicUsize::new(0),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let step = step(self.step.load(Ordering::Relaxed), self.nodes.len());
        self.step.store(step, Ordering::Relaxed);
        let Some(node) = self.nodes.get(key) else {
            return Ok(Next::Settled);
        };
        let seconds = STEPS[step].2.to_string();
        if node.annotations().get(ANNOTATION) != Some(&seconds) {
            let patch = json!({"metadata": {"annotations": {ANNOTATION: seconds}}});
            let patched = self.context.patch::<Node>(key, &patch, Merge::Json).await;
            // it has just gone
            if let Err(error) = patched
                && !error.is_not_found()
            {
                return Err(error);
            }
        }
        Ok(Next::Settled)
    }
}

fn step(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_left_at_its_ends_only() {
        for (before, nodes, after) in [
            (0, 0, 0),
            (0, 100, 0),
            (0, 101, 1),
            (1, 90, 1),
            (1, 89, 0),
            (0, 5000, 4),
            (4, 1800, 4),
            (4, 1799, 3),
            (4, 1, 0),
        ] {
            assert_eq!(step(before, nodes), after, "{before} {nodes}");
        }
    }
}
