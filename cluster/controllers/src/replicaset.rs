//! ReplicaSets: so many pods of a template (DP-01).
//!
//! A pod that ends or is deleted counts no more from that moment, and another is made.

mod status;

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{ReplicaSet, ReplicaSetSpec},
    core::v1::Pod,
};
use kube::core::Selector;

use self::status::{Counted, status};
use crate::{
    Cache, Context, Error, Key, Queue,
    claim::{self, Keeper, Orphans},
    controller::{Controller, Next},
    crew, owner, pod, slow_start, template,
};

pub(crate) struct ReplicaSets {
    context: Arc<Context>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    orphans: Orphans<Pod>,
}

impl Controller for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";
    const ACCOUNT: &'static str = "replicaset-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let (sets, pods) = (context.cache::<ReplicaSet>(), context.cache::<Pod>());
        let orphans = Orphans::of(&pods);
        claim::wake(&pods, &sets, &queue);
        queue.follow(&sets);
        Self {
            context,
            sets,
            pods,
            orphans,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else {
            return Ok(Next::Settled);
        };
        let (Some(spec), Some(selector)) = (&set.spec, set.selector()) else {
            return Ok(Next::Settled);
        };
        let candidates = self.orphans.and_those_of(&*set);
        let active = candidates
            .into_iter()
            .filter(|pod| pod::is_active(pod))
            .collect();
        let takes = |pod: &Pod| claim::selects(&selector, &pod.metadata);
        let active = claim::settle(&self.context, &*set, active, takes).await?;
        let kept = if set.metadata.deletion_timestamp.is_none() {
            self.keep(&set, spec, active).await
        } else {
            Ok(())
        };
        let next = self
            .tell(&set, spec, &selector, kept.as_ref().err())
            .await?;
        kept.map(|()| next)
    }
}

impl ReplicaSets {
    async fn keep(
        &self,
        set: &ReplicaSet,
        spec: &ReplicaSetSpec,
        mut active: Vec<Arc<Pod>>,
    ) -> Result<(), Error> {
        let wanted = usize::try_from(replicas(spec)).unwrap_or(0);
        if active.len() < wanted {
            let Some(template) = &spec.template else {
                return Ok(());
            };
            let pod = template::pod_of(template, set);
            let more = wanted - active.len();
            return slow_start::slow_start(more, |_| {
                crew::hire(&self.context, set, Self::NAME, &pod)
            })
            .await;
        }
        let fewer = active.len() - wanted;
        if fewer == 0 {
            return Ok(());
        }
        if fewer < active.len() {
            let beside = self.related(set);
            let beside = |pod: &Pod| {
                beside
                    .get(pod::node_of(pod).unwrap_or_default())
                    .copied()
                    .unwrap_or(0)
            };
            pod::first_to_go(&mut active, beside, self.context.now());
        }
        active.truncate(fewer);
        slow_start::each(active, |pod| {
            crew::dismiss(&self.context, set, Self::NAME, pod)
        })
        .await
    }

    /// How many pods each node has of those ReplicaSets that have the same controller.
    fn related(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let sets = match owner::controller_of(&set.metadata) {
            Some(owner) => self.sets.controlled_by(&owner.uid),
            None => Vec::new(),
        };
        let mut uids: Vec<&str> = sets
            .iter()
            .filter_map(|set| set.metadata.uid.as_deref())
            .collect();
        uids.extend(set.metadata.uid.as_deref());
        uids.sort_unstable();
        uids.dedup();
        let mut count = HashMap::new();
        for uid in uids {
            for pod in self.pods.controlled_by(uid) {
                if pod::is_active(&pod) {
                    *count
                        .entry(pod::node_of(&pod).unwrap_or_default().to_owned())
                        .or_default() += 1;
                }
            }
        }
        count
    }

    /// Writes the status, if it has changed, of what is there by now.
    async fn tell(
        &self,
        set: &ReplicaSet,
        spec: &ReplicaSetSpec,
        selector: &Selector,
        failed: Option<&Error>,
    ) -> Result<Next, Error> {
        let now = self.context.now();
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut ours = self.pods.controlled_by(uid);
        ours.retain(|pod| claim::selects(selector, &pod.metadata));
        let counted = Counted::of(spec, &ours, now);
        let new = status(set, spec, &counted, failed, now);
        if set.status.as_ref() != Some(&new) {
            let mut told = set.clone();
            told.status = Some(new);
            match self.context.update_status(&told).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(again(spec, &ours, now))
    }
}

fn again(spec: &ReplicaSetSpec, pods: &[Arc<Pod>], now: Timestamp) -> Next {
    let seconds = spec.min_ready_seconds.unwrap_or(0);
    let pods = pods.iter().map(|pod| &**pod);
    pod::next_available(pods, seconds, now).map_or(Next::Settled, Next::After)
}

/// One, where it says nothing.
pub(crate) fn replicas(spec: &ReplicaSetSpec) -> i32 {
    spec.replicas.unwrap_or(1)
}
