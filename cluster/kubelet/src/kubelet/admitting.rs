//! Whether a pod may begin here: by what is there already; and who goes for one that the node can't be without.

use std::sync::Arc;

use super::Kubelet;
use crate::{
    Desired, Level,
    admission::{self, Around, Load, Refused},
    api::Seen,
    eviction::Evicted,
    resize,
    worker::Why,
};

pub(super) enum Admitted {
    Now,
    /// Once others have gone.
    Later,
    No(Refused),
}

impl Kubelet {
    /// What the pods that are here ask for: all that are not over, also those that end.
    pub(super) fn load(&self) -> Load {
        let here = self.node.view.all();
        let here = here.iter().filter(|shown| {
            let uid = &shown.pod.uid;
            self.workers.contains_key(uid) && !self.node.view.is_over(uid)
        });
        // what a pod wants more than it has been given is nobody's yet
        let given: Vec<_> = here.map(resize::as_told).collect();
        Load::of(given.iter().map(|pod| pod.as_ref()))
    }

    pub(super) async fn admit(&mut self, pod: &Arc<Desired>, load: &Load) -> Admitted {
        let pressure = self.node.pressed.now();
        let allocatable = self.node.allocatable();
        let ask = |seen: &Seen| {
            admission::admit(
                pod,
                &Around {
                    node: &self.node.config.node.name,
                    labels: &seen.labels,
                    taints: &seen.taints,
                    allocatable: &allocatable,
                    load,
                    pressure,
                },
            )
        };
        let refused = match ask(&self.own.seen()) {
            Ok(()) => return Admitted::Now,
            Err(refused) if refused.reason == admission::NODE_AFFINITY => {
                match ask(&self.own.look().await) {
                    Ok(()) => return Admitted::Now,
                    Err(refused) => refused,
                }
            }
            Err(refused) => refused,
        };
        if refused.lacks.is_empty() || !admission::is_critical(pod) {
            return Admitted::No(refused);
        }
        self.make_room(pod, refused)
    }

    /// For what the node can't be without others go.
    fn make_room(&mut self, pod: &Desired, refused: Refused) -> Admitted {
        let handles = || {
            let handles = self.workers.values();
            handles.filter(|handle| !self.node.view.is_over(&handle.pod.uid))
        };
        // who goes already has not gone yet
        if handles().any(|handle| handle.is_preempted) {
            return Admitted::Later;
        }
        let others: Vec<&Desired> = handles()
            .filter(|handle| !handle.is_ending)
            .map(|handle| handle.pod.as_ref())
            .collect();
        let Some(gone) = admission::preempted(pod, &others, &refused.lacks) else {
            let message = format!(
                "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of \
                 running pods found to reclaim resources: {}",
                refused.message
            );
            return Admitted::No(Refused {
                reason: "UnexpectedAdmissionError".into(),
                message,
                lacks: Vec::new(),
            });
        };
        let gone: Vec<String> = gone.iter().map(|pod| pod.uid.clone()).collect();
        for uid in gone {
            if let Some(handle) = self.workers.get_mut(&uid) {
                handle.is_preempted = true;
            }
            let why = Why {
                reason: "Preempting",
                message: "Preempted in order to admit critical pod".into(),
                disrupts: Some(
                    "Pod was preempted by Kubelet to accommodate a critical pod.".into(),
                ),
                grace: None,
            };
            self.evict(Evicted { uid, why });
        }
        Admitted::Later
    }

    /// It won't begin here; that is told once.
    pub(super) fn refuse(&mut self, pod: &Arc<Desired>, refused: &Refused) {
        self.refused.insert(pod.uid.clone(), pod.clone());
        self.node.tell(
            Level::Warning,
            pod,
            "",
            admission::event(&refused.reason),
            &refused.message,
        );
        if let Some(cluster) = &self.cluster {
            let message = format!("Pod was rejected: {}", refused.message);
            cluster.statuses.refused(pod, &refused.reason, message);
        }
    }
}
