//! DaemonSets: a pod on each node that suits (DS-01 to DS-07).
//!
//! Pods that are bound to a node that is gone are the pod collector's.

mod backoff;
mod place;
mod plan;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_recorder::Level;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus},
    core::v1::{Node, Pod},
};

use self::{
    backoff::Backoff,
    place::{Place, Places},
    plan::{Plan, Seen, Way},
};
use crate::{
    Cache, Context, Error, Key, Queue,
    claim::{self, Keeper, Orphans},
    controller::{Controller, Next},
    crew, pod,
    revision::{self, Found, History},
    slow_start, template,
};

pub(crate) struct DaemonSets {
    context: Arc<Context>,
    sets: Cache<DaemonSet>,
    nodes: Cache<Node>,
    orphans: Orphans<Pod>,
    revisions: Orphans<ControllerRevision>,
    backoff: Backoff,
}

impl Controller for DaemonSets {
    const NAME: &'static str = "daemonset-controller";
    const ACCOUNT: &'static str = "daemon-set-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let (sets, nodes) = (context.cache::<DaemonSet>(), context.cache::<Node>());
        let pods = context.cache::<Pod>();
        let revisions = context.cache::<ControllerRevision>();
        let orphans = Orphans::of(&pods);
        let orphan_revisions = Orphans::of(&revisions);
        claim::wake(&pods, &sets, &queue);
        claim::wake(&revisions, &sets, &queue);
        let (all, woken) = (sets.clone(), queue.clone());
        nodes.on_change(move |old, new| {
            let matters = |node: &Arc<Node>| {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone());
                (node.metadata.labels.clone(), taints)
            };
            // heartbeats change nothing (DS-02, DS-03)
            if old.map(matters) != new.map(matters) {
                for set in all.all() {
                    woken.add(Key::of(&*set));
                }
            }
        });
        queue.follow(&sets);
        Self {
            context,
            sets,
            nodes,
            orphans,
            revisions: orphan_revisions,
            backoff: Backoff::default(),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(set) = self.sets.get(key) else {
            return Ok(Next::Settled);
        };
        let Some(spec) = &set.spec else {
            return Ok(Next::Settled);
        };
        if claim::takes_all(&spec.selector) {
            let message =
                "This daemon set is selecting all pods. A non-empty selector is required.";
            let level = Level::Warning;
            self.context
                .event(&*set, Self::NAME, level, "SelectingAll", message.into());
            return Ok(Next::Settled);
        }
        // its revisions may have gone before its pods: nothing is known of it any more
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        let collisions = set
            .status
            .as_ref()
            .and_then(|status| status.collision_count);
        let (context, revisions) = (&self.context, &self.revisions);
        let found = revision::history(
            context,
            revisions,
            &*set,
            &spec.template,
            collisions,
            revision::LABEL,
        );
        let history = match found.await {
            Ok(Found::History(history)) => history,
            Ok(Found::Collided(collisions)) => return self.collided(&set, collisions).await,
            Err(error) if crew::is_end_of_namespace(&error) => return Ok(Next::Settled),
            Err(error) => return Err(error),
        };
        let way = Way::of(spec, mark(&history.newest), self.context.now());
        let mut again = None;
        let acted = self.act(&set, spec, &way, &history, &mut again).await;
        let next = self.tell(&set, spec, &way).await?;
        acted?;
        Ok(match (next, again) {
            (Next::After(one), Some(other)) => Next::After(one.min(other)),
            (Next::Settled, Some(wait)) => Next::After(wait),
            (next, None) => next,
        })
    }
}

/// The hash of a revision, as its pods have it.
fn mark(revision: &ControllerRevision) -> &str {
    let labels = revision.metadata.labels.as_ref();
    let hash = labels.and_then(|labels| labels.get(revision::LABEL));
    hash.map_or_else(|| revision::name(revision), String::as_str)
}

impl DaemonSets {
    async fn collided(&self, set: &DaemonSet, collisions: i32) -> Result<Next, Error> {
        let mut told = set.clone();
        told.status.get_or_insert_default().collision_count = Some(collisions);
        self.context.update_status(&told).await?;
        // what it tells wakes it
        Ok(Next::Settled)
    }

    async fn act(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        way: &Way,
        history: &History,
        again: &mut Option<Duration>,
    ) -> Result<(), Error> {
        let seen = self.see(set, spec).await?;
        let kept = plan::keep(way, &seen);
        if !self.execute(set, spec, way, kept, again).await? {
            let rolled = plan::roll(way, &seen);
            self.execute(set, spec, way, rolled, again).await?;
        }
        let pods = self.orphans.and_those_of(set);
        let used: HashSet<String> = pods
            .iter()
            .filter_map(|pod| pod.metadata.labels.as_ref()?.get(revision::LABEL).cloned())
            .collect();
        revision::clean_up(
            &self.context,
            history,
            spec.revision_history_limit,
            &used,
            mark,
        )
        .await
    }

    async fn see(&self, set: &DaemonSet, spec: &DaemonSetSpec) -> Result<Seen, Error> {
        let selector = set.selector();
        let takes = |pod: &Pod| {
            selector
                .as_ref()
                .is_some_and(|selector| claim::selects(selector, &pod.metadata))
        };
        let candidates = self.orphans.and_those_of(set);
        let ours = claim::settle(&self.context, set, candidates, takes).await?;
        let mut pods: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in ours {
            // one that has ended and is deleted only waits for others
            if pod::is_terminal(&pod) && pod::is_deleted(&pod) {
                continue;
            }
            if let Some(node) = place::node_of(&pod) {
                pods.entry(node.to_owned()).or_default().push(pod);
            }
        }
        let places = Places::of(spec);
        let nodes = self.nodes.all();
        let place = |node: &Arc<Node>| Some((node.metadata.name.clone()?, places.place(node)));
        Ok(Seen {
            places: nodes.iter().filter_map(place).collect(),
            pods,
        })
    }

    /// Whether it did anything.
    async fn execute(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        way: &Way,
        plan: Plan,
        again: &mut Option<Duration>,
    ) -> Result<bool, Error> {
        let Plan {
            make,
            mut delete,
            failed,
            succeeded,
        } = plan;
        let event = |level, reason: &str, message| {
            self.context.event(set, Self::NAME, level, reason, message);
        };
        let key = Key::of(set);
        for (node, pod) in failed {
            match self.backoff.may_delete(&key, &node, Instant::now()) {
                Ok(()) => {
                    let message = format!(
                        "Found failed daemon pod {} on node {node}, will try to kill it",
                        Key::of(&*pod)
                    );
                    event(Level::Warning, "FailedDaemonPod", message);
                    delete.push(pod);
                }
                Err(wait) => *again = Some(again.map_or(wait, |again| again.min(wait))),
            }
        }
        for pod in succeeded {
            let message = format!(
                "Found succeeded daemon pod {} on node {}, will try to delete it",
                Key::of(&*pod),
                pod::node_of(&pod).unwrap_or_default()
            );
            event(Level::Normal, "SucceededDaemonPod", message);
            delete.push(pod);
        }
        if make.is_empty() && delete.is_empty() {
            return Ok(false);
        }
        let made = self.make(set, spec, way, &make).await;
        let deleted = slow_start::each(delete, |pod| {
            crew::dismiss(&self.context, set, Self::NAME, pod)
        });
        let deleted = deleted.await;
        made.and(deleted)?;
        Ok(true)
    }

    async fn make(
        &self,
        set: &DaemonSet,
        spec: &DaemonSetSpec,
        way: &Way,
        nodes: &[String],
    ) -> Result<(), Error> {
        let mut one = template::pod_of(&spec.template, set);
        let labels = one.metadata.labels.get_or_insert_default();
        labels.insert(revision::LABEL.into(), way.hash.clone());
        place::tolerate(one.spec.get_or_insert_default());
        slow_start::slow_start(nodes.len(), |at| {
            let mut pod = one.clone();
            place::bind(pod.spec.get_or_insert_default(), &nodes[at]);
            async move { crew::hire(&self.context, set, Self::NAME, &pod).await }
        })
        .await
    }

    /// Writes the status, if it has changed, of what is there by now.
    async fn tell(&self, set: &DaemonSet, spec: &DaemonSetSpec, way: &Way) -> Result<Next, Error> {
        let seen = self.see(set, spec).await?;
        let new = status(set, way, &seen);
        if set.status.as_ref() != Some(&new) {
            let mut told = set.clone();
            told.status = Some(new);
            match self.context.update_status(&told).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let pods = seen.pods.values().flatten().map(|pod| &**pod);
        let next = pod::next_available(pods, way.min_ready_seconds, way.now);
        Ok(next.map_or(Next::Settled, Next::After))
    }
}

fn status(set: &DaemonSet, way: &Way, seen: &Seen) -> DaemonSetStatus {
    let before = set.status.as_ref();
    let mut status = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: before.and_then(|before| before.collision_count),
        conditions: before.and_then(|before| before.conditions.clone()),
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for (node, place) in &seen.places {
        let mut pods = seen.pods.get(node).cloned().unwrap_or_default();
        if *place != Place::Wanted {
            status.number_misscheduled += i32::from(!pods.is_empty());
            continue;
        }
        status.desired_number_scheduled += 1;
        plan::by_age(&mut pods);
        let Some(pod) = pods.first() else { continue };
        status.current_number_scheduled += 1;
        status.number_ready += i32::from(pod::is_ready(pod));
        available += i32::from(way.is_available(pod));
        updated += i32::from(way.is_new(pod));
    }
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    status.number_available = some(available);
    status.number_unavailable = some(status.desired_number_scheduled - available);
    status.updated_number_scheduled = some(updated);
    status
}
