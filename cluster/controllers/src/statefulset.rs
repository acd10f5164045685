//! StatefulSets: pods with names that last, and claims of their own (PO-05).

mod identity;
mod plan;
mod retention;

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use berth_recorder::Level;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::ResourceExt;

use self::{
    plan::{Act, Way},
    retention::{Owners, Policy},
};
use crate::{
    Cache, Context, Error, Key, Queue,
    claim::{self, Keeper, Orphans},
    controller::{Controller, Next},
    crew, pod,
    revision::{self, Found, History},
    slow_start,
};

/// Upstream's label of a set's revisions.
const REVISION_HASH: &str = "controller.kubernetes.io/hash";

pub(crate) struct StatefulSets {
    context: Arc<Context>,
    sets: Cache<StatefulSet>,
    claims: Cache<PersistentVolumeClaim>,
    orphans: Orphans<Pod>,
    revisions: Orphans<ControllerRevision>,
}

impl Controller for StatefulSets {
    const NAME: &'static str = "statefulset-controller";
    const ACCOUNT: &'static str = "statefulset-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let (sets, pods) = (context.cache::<StatefulSet>(), context.cache::<Pod>());
        let claims = context.cache::<PersistentVolumeClaim>();
        let revisions = context.cache::<ControllerRevision>();
        let orphans = Orphans::of(&pods);
        let orphan_revisions = Orphans::of(&revisions);
        claim::wake(&pods, &sets, &queue);
        claim::wake(&revisions, &sets, &queue);
        wake_of_claims(&claims, &queue);
        queue.follow(&sets);
        Self {
            context,
            sets,
            claims,
            orphans,
            revisions: orphan_revisions,
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
            REVISION_HASH,
        );
        let history = match found.await {
            Ok(Found::History(history)) => history,
            Ok(Found::Collided(collisions)) => {
                let mut told = StatefulSet::clone(&set);
                told.status.get_or_insert_default().collision_count = Some(collisions);
                self.context.update_status(&told).await?;
                return Ok(Next::Settled);
            }
            Err(error) if crew::is_end_of_namespace(&error) => return Ok(Next::Settled),
            Err(error) => return Err(error),
        };
        let current = set
            .status
            .as_ref()
            .and_then(|status| status.current_revision.as_deref());
        let current = current.and_then(|name| history.named(name));
        let work = Work {
            of: self,
            set: &set,
            spec,
            way: Way::of(spec, revision::name(&history.newest), self.context.now()),
            current: current.unwrap_or(&history.newest),
            history: &history,
        };
        let acted = if set.metadata.deletion_timestamp.is_none() {
            work.act().await
        } else {
            Ok(())
        };
        let next = work.tell().await?;
        acted.map(|()| next)
    }
}

/// A claim that goes holds up the pod that is to have the next of its name.
fn wake_of_claims(claims: &Cache<PersistentVolumeClaim>, queue: &Queue) {
    let queue = queue.clone();
    claims.on_change(move |old, new| {
        for claim in [old, new].into_iter().flatten() {
            let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
            for owner in claim.owner_references() {
                let set = match owner.kind.as_str() {
                    "StatefulSet" => Some(owner.name.as_str()),
                    "Pod" => owner.name.rsplit_once('-').map(|(set, _)| set),
                    _ => None,
                };
                if let Some(set) = set {
                    queue.add(Key::new(namespace, set));
                }
            }
        }
    });
}

/// One look at one set.
struct Work<'a> {
    of: &'a StatefulSets,
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    way: Way,
    /// Of pods that a partition holds back.
    current: &'a Arc<ControllerRevision>,
    history: &'a History,
}

impl Work<'_> {
    async fn pods(&self) -> Result<Vec<Arc<Pod>>, Error> {
        let selector = self.set.selector();
        // others' pods are not taken for having its labels: names say whose they are
        let takes = |pod: &Pod| {
            identity::ordinal_of(self.set, pod).is_some()
                && selector
                    .as_ref()
                    .is_some_and(|selector| claim::selects(selector, &pod.metadata))
        };
        let candidates = self.of.orphans.and_those_of(self.set);
        claim::settle(&self.of.context, self.set, candidates, takes).await
    }

    fn by_ordinal(&self, pods: &[Arc<Pod>]) -> BTreeMap<i32, Arc<Pod>> {
        let of = |pod: &Arc<Pod>| Some((identity::ordinal_of(self.set, pod)?, pod.clone()));
        pods.iter().filter_map(of).collect()
    }

    async fn act(&self) -> Result<(), Error> {
        let pods = self.pods().await?;
        let by_ordinal = self.by_ordinal(&pods);
        let (mut make, mut delete) = (Vec::new(), Vec::new());
        for act in plan::plan(&self.way, &by_ordinal) {
            match act {
                Act::Make(ordinal) => make.push(ordinal),
                Act::Delete(pod) => delete.push(pod),
                Act::Claims(pod) => {
                    if let Some(ordinal) = identity::ordinal_of(self.set, &pod) {
                        self.make_claims(ordinal, &pod).await?;
                        self.settle_owners(&pod, self.way.has(ordinal)).await?;
                    }
                }
                Act::Settle(pod, kept) => self.settle(&pod, kept).await?,
            }
        }
        slow_start::slow_start(make.len(), |at| self.make(make[at])).await?;
        slow_start::each(delete, |pod| self.delete(pod)).await?;
        let mut used: HashSet<String> = pods
            .iter()
            .filter_map(|pod| plan::revision_of(pod).cloned())
            .collect();
        used.insert(revision::name(self.current).to_owned());
        let limit = self.spec.revision_history_limit;
        revision::clean_up(&self.of.context, self.history, limit, &used, revision::name).await
    }

    fn event(&self, level: Level, reason: &str, message: String) {
        let context = &self.of.context;
        context.event(self.set, StatefulSets::NAME, level, reason, message);
    }

    /// `how`: `Create`, `Update`, `Delete`, as events have it.
    fn told(&self, how: &str, pod: &str, done: Result<(), Error>) -> Result<(), Error> {
        let set = self.set.name_any();
        match done {
            Ok(()) => {
                let message = format!("{how} Pod {pod} in StatefulSet {set} successful");
                self.event(Level::Normal, &format!("Successful{how}"), message);
                Ok(())
            }
            Err(error) => {
                let why = crew::told(&error);
                let message = format!("{how} Pod {pod} in StatefulSet {set} failed error: {why}");
                self.event(Level::Warning, &format!("Failed{how}"), message);
                Err(error)
            }
        }
    }

    async fn make(&self, ordinal: i32) -> Result<(), Error> {
        let held_back = revision::template_of(self.current);
        let (template, revision) = match held_back.filter(|_| self.way.is_held_back(ordinal)) {
            Some(template) => (template, revision::name(self.current)),
            None => (self.spec.template.clone(), self.way.newest.as_str()),
        };
        let pod = identity::pod(self.set, self.spec, &template, revision, ordinal);
        if Policy::of(self.spec).delete_when_scaled {
            let known = identity::claims(self.set, self.spec, ordinal);
            let mut known = known
                .iter()
                .filter_map(|claim| self.of.claims.get(&Key::of(claim)));
            if known.any(|claim| retention::goes_with_an_earlier(&claim, &pod)) {
                // its going wakes the set
                return Ok(());
            }
        }
        let name = pod.name_any();
        if let Err(error) = self.make_claims(ordinal, &pod).await {
            return self.told("Create", &name, Err(error));
        }
        match self.of.context.create(&pod).await {
            Ok(made) => {
                self.told("Create", &name, Ok(()))?;
                self.settle_owners(&made, true).await
            }
            Err(error) if crew::is_end_of_namespace(&error) => Ok(()),
            // somebody else's, who may go: it is tried again
            Err(error) if error.is_already_exists() => Err(error),
            Err(error) => self.told("Create", &name, Err(error)),
        }
    }

    async fn delete(&self, pod: Arc<Pod>) -> Result<(), Error> {
        match self.of.context.delete(&*pod, None).await {
            Err(error) if error.is_conflict() => Ok(()),
            done => self.told("Delete", &pod.name_any(), done),
        }
    }

    /// Those that are missing. One that is being deleted holds up its pod.
    async fn make_claims(&self, ordinal: i32, pod: &Pod) -> Result<(), Error> {
        let (set, pod) = (self.set.name_any(), pod.name_any());
        for claim in identity::claims(self.set, self.spec, ordinal) {
            let name = claim.name_any();
            if let Some(known) = self.of.claims.get(&Key::of(&claim)) {
                if known.metadata.deletion_timestamp.is_some() {
                    return Err(Error::Other(format!("pvc {name} is being deleted")));
                }
                continue;
            }
            let what = format!("Create Claim {name} Pod {pod} in StatefulSet {set}");
            match self.of.context.create(&claim).await {
                Ok(_) => self.event(Level::Normal, "SuccessfulCreate", format!("{what} success")),
                Err(error) => {
                    if !error.is_already_exists() && !crew::is_end_of_namespace(&error) {
                        let message = format!("{what} failed error: {}", crew::told(&error));
                        self.event(Level::Warning, "FailedCreate", message);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whom the claims of a pod go with. `kept`: the set is to have the pod.
    async fn settle_owners(&self, pod: &Pod, kept: bool) -> Result<(), Error> {
        let Some(ordinal) = identity::ordinal_of(self.set, pod) else {
            return Ok(());
        };
        let policy = Policy::of(self.spec);
        for described in identity::claims(self.set, self.spec, ordinal) {
            let Some(known) = self.of.claims.get(&Key::of(&described)) else {
                continue;
            };
            let owners = match retention::owners(&known, self.set, pod, policy, kept) {
                Owners::Right => continue,
                Owners::Wrong(owners) => owners,
                Owners::Conflict(owners) => {
                    let Some(owners) = owners else { continue };
                    let name = known.name_any();
                    let message = format!(
                        "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim"
                    );
                    self.event(Level::Warning, "ConflictingController", message);
                    owners
                }
            };
            let mut claim = PersistentVolumeClaim::clone(&known);
            claim.metadata.owner_references = Some(owners);
            self.of.context.update(&claim).await?;
        }
        Ok(())
    }

    /// Puts right what is not as it should be of a pod that is there.
    async fn settle(&self, pod: &Arc<Pod>, kept: bool) -> Result<(), Error> {
        let Some(ordinal) = identity::ordinal_of(self.set, pod) else {
            return Ok(());
        };
        if kept {
            let is_identified = identity::is_identified(pod);
            let has_storage = identity::has_storage(self.set, self.spec, pod, ordinal);
            if !is_identified || !has_storage {
                let mut right = Pod::clone(pod);
                identity::identify(&mut right, ordinal);
                if !has_storage {
                    identity::give_storage(self.set, self.spec, &mut right, ordinal);
                    self.make_claims(ordinal, pod).await?;
                }
                let updated = self.of.context.update(&right).await.map(drop);
                self.told("Update", &pod.name_any(), updated)?;
            }
        }
        self.settle_owners(pod, kept).await
    }

    /// Writes the status, if it has changed, of what is there by now.
    async fn tell(&self) -> Result<Next, Error> {
        let pods = self.pods().await?;
        let current = revision::name(self.current);
        let new = status(self.set, &self.way, current, &pods);
        if self.set.status.as_ref() != Some(&new) {
            let mut told = self.set.clone();
            told.status = Some(new);
            match self.of.context.update_status(&told).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let pods = pods.iter().map(|pod| &**pod);
        let next = pod::next_available(pods, self.way.min_ready_seconds, self.way.now);
        Ok(next.map_or(Next::Settled, Next::After))
    }
}

fn status(set: &StatefulSet, way: &Way, current: &str, pods: &[Arc<Pod>]) -> StatefulSetStatus {
    let before = set.status.as_ref();
    let count = |counts: &dyn Fn(&Pod) -> bool| {
        let counted = pods.iter().filter(|pod| counts(pod)).count();
        i32::try_from(counted).unwrap_or(i32::MAX)
    };
    let is_created = |pod: &Pod| !pod::phase(pod).is_empty();
    let is_ready = |pod: &Pod| pod::phase(pod) == "Running" && pod::is_ready(pod);
    let is_of = |pod: &Pod, name: &str| {
        is_created(pod)
            && !pod::is_deleted(pod)
            && plan::revision_of(pod).is_some_and(|revision| revision == name)
    };
    let replicas = count(&is_created);
    let ready = count(&is_ready);
    let updated = count(&|pod| is_of(pod, &way.newest));
    let mut current_replicas = count(&|pod| is_of(pod, current));
    let mut current = current.to_owned();
    // the roll is done
    if way.rolling.is_some() && [updated, ready, replicas] == [way.replicas; 3] {
        current_replicas = updated;
        current.clone_from(&way.newest);
    }
    let some = |number: i32| Some(number).filter(|number| *number != 0);
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas,
        ready_replicas: some(ready),
        available_replicas: Some(count(&|pod| is_ready(pod) && way.is_available(pod))),
        current_replicas: some(current_replicas),
        updated_replicas: some(updated),
        current_revision: Some(current),
        update_revision: Some(way.newest.clone()),
        collision_count: Some(
            before
                .and_then(|before| before.collision_count)
                .unwrap_or(0),
        ),
        conditions: before.and_then(|before| before.conditions.clone()),
    }
}
