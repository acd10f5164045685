//! Deployments: a ReplicaSet for each template that there was, rolled from the others to the one that is wanted (DP-01 to DP-15).
//!
//! ```text
//! paused, or given another size ─▶ scale: each ReplicaSet its share
//! RollingUpdate ─▶ more of the new one while there is room, or else fewer of the others
//! Recreate ─▶ none of the others; once their pods are gone, the new one
//! ```
//!
//! One step at a time: what follows hangs on what the ReplicaSets tell then.

mod annotate;
mod sizes;
mod status;

use std::sync::Arc;

use berth_recorder::Level;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec},
        core::v1::Pod,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use self::{
    sizes::{Bounds, Size},
    status::{PROGRESSING, Said, Sets},
};
use crate::{
    Cache, Context, Error, Key, Queue,
    claim::{self, Keeper, Orphans},
    controller::{Controller, Next},
    crew, owner, pod,
    replicaset::replicas,
    template,
};

/// Of a name, in bytes.
const NAME_BYTES: usize = 253;

pub(crate) struct Deployments {
    context: Arc<Context>,
    deployments: Cache<Deployment>,
    pods: Cache<Pod>,
    orphans: Orphans<ReplicaSet>,
}

impl Controller for Deployments {
    const NAME: &'static str = "deployment-controller";
    const ACCOUNT: &'static str = "deployment-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let deployments = context.cache::<Deployment>();
        let sets = context.cache::<ReplicaSet>();
        let pods = context.cache::<Pod>();
        let orphans = Orphans::of(&sets);
        claim::wake(&sets, &deployments, &queue);
        wake_recreated(&pods, &sets, &deployments, &queue);
        queue.follow(&deployments);
        Self {
            context,
            deployments,
            pods,
            orphans,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(known) = self.deployments.get(key) else {
            return Ok(Next::Settled);
        };
        let (Some(spec), Some(selector)) = (&known.spec, known.selector()) else {
            return Ok(Next::Settled);
        };
        if claim::takes_all(&spec.selector) {
            return self.refuse(&known).await;
        }
        let candidates = self.orphans.and_those_of(&*known);
        let takes = |set: &ReplicaSet| claim::selects(&selector, &set.metadata);
        let mut sets = claim::settle(&self.context, &*known, candidates, takes).await?;
        sets.sort_by_cached_key(|set| age(&set.metadata));
        let newest = newest(spec, &sets);
        let mut roll = Roll {
            of: self,
            known: &known,
            deployment: Deployment::clone(&known),
            spec,
            bounds: Bounds::of(spec),
            sets,
            newest,
        };
        let done = roll.step().await;
        // what it came to know stands in the status even if it failed then
        let told = roll.tell().await;
        done?;
        told
    }
}

/// The oldest first.
fn age(meta: &ObjectMeta) -> impl Ord + use<> {
    let created = meta.creation_timestamp.as_ref().map(|time| time.0);
    // one without a time is about to be made
    (created.is_none(), created, meta.name.clone())
}

/// The one of the template that is wanted. Of several, which an older release may have made, the oldest.
fn newest(spec: &DeploymentSpec, sets: &[Arc<ReplicaSet>]) -> Option<usize> {
    let wanted = template::normal(&spec.template);
    sets.iter().position(|set| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.is_some_and(|template| template::normal(template) == wanted)
    })
}

/// A Deployment that waits until pods of others are gone is to know when they are.
fn wake_recreated(
    pods: &Cache<Pod>,
    sets: &Cache<ReplicaSet>,
    deployments: &Cache<Deployment>,
    queue: &Queue,
) {
    let (sets, deployments, queue) = (sets.clone(), deployments.clone(), queue.clone());
    pods.on_change(move |old, new| {
        let Some(pod) = old.or(new) else { return };
        if new.is_some_and(|new| !pod::is_terminal(new)) {
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let owner =
            owner::controller_of(&pod.metadata).filter(|owner| claim::is_of::<ReplicaSet>(owner));
        let set = owner.and_then(|owner| sets.get(&Key::new(namespace, &owner.name)));
        let owner = set
            .as_ref()
            .and_then(|set| owner::controller_of(&set.metadata));
        let Some(owner) = owner.filter(|owner| claim::is_of::<Deployment>(owner)) else {
            return;
        };
        let key = Key::new(namespace, &owner.name);
        let deployment = deployments.get(&key);
        let spec = deployment
            .as_ref()
            .and_then(|deployment| deployment.spec.as_ref());
        if spec.is_some_and(|spec| !Bounds::of(spec).is_rolling) {
            queue.add(key);
        }
    });
}

impl Deployments {
    /// A selector that takes all would take others' ReplicaSets, too.
    async fn refuse(&self, known: &Deployment) -> Result<Next, Error> {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        self.context.event(
            known,
            Self::NAME,
            Level::Warning,
            "SelectingAll",
            message.into(),
        );
        let mut deployment = known.clone();
        let generation = deployment.metadata.generation;
        deployment
            .status
            .get_or_insert_default()
            .observed_generation = generation;
        if deployment.status != known.status {
            self.context.update_status(&deployment).await?;
        }
        Ok(Next::Settled)
    }
}

/// One step of one Deployment.
struct Roll<'a> {
    of: &'a Deployments,
    /// As it was read.
    known: &'a Deployment,
    /// With what is to be told of it.
    deployment: Deployment,
    spec: &'a DeploymentSpec,
    bounds: Bounds,
    /// The oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    newest: Option<usize>,
}

impl Roll<'_> {
    async fn step(&mut self) -> Result<(), Error> {
        if self.known.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (now, spec) = (self.of.context.now(), self.spec);
        status::pause(self.status(), spec, now);
        self.annotate_newest().await?;
        if self.spec.paused == Some(true) {
            self.scale().await?;
            return self.clean_up().await;
        }
        if sizes::is_scaled(&self.bounds, &self.sizes()) {
            return self.scale().await;
        }
        let acted = if self.bounds.is_rolling {
            self.roll().await?
        } else {
            self.recreate().await?
        };
        let counted = status::counted(&self.deployment, &self.bounds, self.told_by(), now);
        if !acted && status::is_complete(&self.deployment, &self.bounds, &counted) {
            self.clean_up().await?;
        }
        Ok(())
    }

    fn status(&mut self) -> &mut DeploymentStatus {
        self.deployment.status.get_or_insert_default()
    }

    fn sizes(&self) -> Vec<Size> {
        self.sets.iter().map(|set| annotate::size(set)).collect()
    }

    fn told_by(&self) -> Sets<'_> {
        Sets {
            all: &self.sets,
            new: self.newest.map(|at| &*self.sets[at]),
        }
    }

    /// One more than all others have.
    fn next_revision(&self, newest: Option<usize>) -> i64 {
        let others = self
            .sets
            .iter()
            .enumerate()
            .filter(|(at, _)| Some(*at) != newest);
        let revisions = others.map(|(_, set)| annotate::revision(set));
        revisions.max().unwrap_or(0).saturating_add(1)
    }

    /// The newest one has the Deployment's annotations and the highest revision, which the Deployment tells, too.
    async fn annotate_newest(&mut self) -> Result<(), Error> {
        let Some(at) = self.newest else {
            return Ok(());
        };
        let mut set = ReplicaSet::clone(&self.sets[at]);
        let annotations = self.known.metadata.annotations.as_ref();
        let next = self.next_revision(Some(at));
        let mut changed = annotate::newest(&mut set, annotations, next);
        if let Some(spec) = &mut set.spec {
            let seconds = |seconds: Option<i32>| seconds.unwrap_or(0);
            if seconds(spec.min_ready_seconds) != seconds(self.spec.min_ready_seconds) {
                spec.min_ready_seconds = self.spec.min_ready_seconds;
                changed = true;
            }
        }
        if changed {
            self.sets[at] = self.of.context.update(&set).await?;
        }
        self.tell_revision(annotate::revision(&self.sets[at]));
        let is_told = status::condition(self.status(), PROGRESSING).is_some();
        if !is_told && status::deadline(self.spec).is_some() {
            let name = set.metadata.name.unwrap_or_default();
            let message = format!("Found new replica set \"{name}\"");
            self.say("True", "FoundNewReplicaSet", message);
        }
        Ok(())
    }

    fn tell_revision(&mut self, revision: i64) {
        let annotations = self.deployment.metadata.annotations.get_or_insert_default();
        annotations.insert(annotate::REVISION.into(), revision.to_string());
    }

    fn say(&mut self, is: &str, reason: &str, message: String) {
        let said = Said {
            type_: PROGRESSING,
            status: is,
            reason,
            message,
        };
        let now = self.of.context.now();
        status::say(self.status(), said, now);
    }

    /// Makes the ReplicaSet of a new template.
    async fn make(&mut self) -> Result<(), Error> {
        let collisions = self.status().collision_count;
        let set = self.described(collisions);
        let name = set.metadata.name.clone().unwrap_or_default();
        let size = set.spec.as_ref().map_or(0, replicas);
        match self.of.context.create(&set).await {
            Ok(made) => {
                self.tell_revision(annotate::revision(&made));
                self.newest = Some(self.sets.len());
                self.sets.push(made);
                if size > 0 {
                    self.event(
                        "ScalingReplicaSet",
                        format!("Scaled up replica set {name} from 0 to {size}"),
                    );
                }
                if status::deadline(self.spec).is_some() {
                    let message = format!("Created new replica set \"{name}\"");
                    self.say("True", "NewReplicaSetCreated", message);
                }
                Ok(())
            }
            // ours would have been among those that we have: the hash names another template, or another's
            Err(error) if error.is_already_exists() => {
                let fresh = self.of.context.read::<ReplicaSet>(&Key::of(&set)).await?;
                if self.is_ours(&fresh) {
                    return Err(error);
                }
                let collisions = collisions.unwrap_or(0).saturating_add(1);
                self.status().collision_count = Some(collisions);
                Err(Error::Other(format!(
                    "{error}, and it is of something else: the next name is tried (collision {collisions})"
                )))
            }
            Err(error) if crew::is_end_of_namespace(&error) => Ok(()),
            Err(error) => {
                let message = format!(
                    "Failed to create new replica set \"{name}\": {}",
                    crew::told(&error)
                );
                if status::deadline(self.spec).is_some() {
                    self.say("False", "ReplicaSetCreateError", message.clone());
                }
                let context = &self.of.context;
                let reason = "ReplicaSetCreateError";
                context.event(
                    self.known,
                    Deployments::NAME,
                    Level::Warning,
                    reason,
                    message,
                );
                Err(error)
            }
        }
    }

    /// The cache was behind: it comes by itself.
    fn is_ours(&self, set: &ReplicaSet) -> bool {
        let owner = owner::controller_of(&set.metadata).map(|owner| &owner.uid);
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        owner == self.known.metadata.uid.as_ref()
            && template.is_some_and(|template| template::is_same(template, &self.spec.template))
    }

    fn described(&self, collisions: Option<i32>) -> ReplicaSet {
        let hash = template::hash(&self.spec.template, collisions);
        let mut template = self.spec.template.clone();
        let labels = &mut template.metadata.get_or_insert_default().labels;
        labels
            .get_or_insert_default()
            .insert(template::HASH_LABEL.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.spec.selector.clone();
        let selected = selector.match_labels.get_or_insert_default();
        selected.insert(template::HASH_LABEL.into(), hash.clone());
        let name = self.known.metadata.name.as_deref().unwrap_or_default();
        let room = NAME_BYTES - hash.len() - 1;
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", &name[..name.len().min(room)])),
                namespace: self.known.metadata.namespace.clone(),
                owner_references: Some(vec![owner::reference(self.known)]),
                labels,
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(self.bounds.first_size(&self.sizes())),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let annotations = self.known.metadata.annotations.as_ref();
        annotate::newest(&mut set, annotations, self.next_revision(None));
        annotate::scaled(&mut set, &self.bounds);
        set
    }

    fn event(&self, reason: &str, message: String) {
        let context = &self.of.context;
        context.event(
            self.known,
            Deployments::NAME,
            Level::Normal,
            reason,
            message,
        );
    }

    /// Whether it did anything.
    async fn roll(&mut self) -> Result<bool, Error> {
        let is_made = self.newest.is_some();
        if !is_made {
            self.make().await?;
        }
        let Some(newest) = self.newest else {
            return Ok(false);
        };
        let next = sizes::roll(&self.bounds, &self.sizes(), newest);
        Ok(self.resize(&next, false).await? || !is_made)
    }

    /// Whether it did anything.
    async fn recreate(&mut self) -> Result<bool, Error> {
        let newest = self.newest;
        let mut next: Vec<i32> = self.sizes().iter().map(|size| size.replicas).collect();
        for (at, size) in next.iter_mut().enumerate() {
            if Some(at) != newest {
                *size = 0;
            }
        }
        if self.resize(&next, false).await? || self.do_others_run(newest) {
            return Ok(true);
        }
        let Some(newest) = newest else {
            self.make().await?;
            return Ok(true);
        };
        next[newest] = self.bounds.replicas;
        self.resize(&next, false).await
    }

    /// Whether a pod of another template is there, also one that ends.
    fn do_others_run(&self, newest: Option<usize>) -> bool {
        let others = self
            .sets
            .iter()
            .enumerate()
            .filter(|(at, _)| Some(*at) != newest);
        others.map(|(_, set)| set).any(|set| {
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            let told = set.status.as_ref().map_or(0, |status| status.replicas);
            let pods = self.of.pods.controlled_by(uid);
            told > 0 || pods.iter().any(|pod| !pod::is_terminal(pod))
        })
    }

    async fn scale(&mut self) -> Result<(), Error> {
        let known = self.status().replicas.unwrap_or(0);
        match sizes::scale(&self.bounds, &self.sizes(), self.newest, known) {
            Some(next) => self.resize(&next, true).await.map(drop),
            // what the ReplicaSets tell next wakes it
            None => Ok(()),
        }
    }

    /// Gives each its size. `all`: also who keeps its size is told what it is a share of. Whether any has another size now.
    async fn resize(&mut self, next: &[i32], all: bool) -> Result<bool, Error> {
        let mut acted = false;
        for (at, next) in next.iter().copied().enumerate() {
            let before = self.sets[at].spec.as_ref().map_or(0, replicas);
            if next == before && !(all && next > 0) {
                continue;
            }
            let mut set = ReplicaSet::clone(&self.sets[at]);
            let annotated = annotate::scaled(&mut set, &self.bounds);
            if next == before && !annotated {
                continue;
            }
            if let Some(spec) = &mut set.spec {
                spec.replicas = Some(next);
            }
            self.sets[at] = self.of.context.update(&set).await?;
            if next != before {
                acted = true;
                let how = if next > before { "up" } else { "down" };
                let name = set.metadata.name.unwrap_or_default();
                let message = format!("Scaled {how} replica set {name} from {before} to {next}");
                self.event("ScalingReplicaSet", message);
            }
        }
        Ok(acted)
    }

    /// Old ones that have no pods are kept to be gone back to, so many of them (DP-11).
    async fn clean_up(&mut self) -> Result<(), Error> {
        let limit = self.spec.revision_history_limit.unwrap_or(i32::MAX);
        let newest = self.newest;
        let mut old: Vec<_> = self.sets.iter().enumerate().collect();
        old.retain(|(at, set)| Some(*at) != newest && set.metadata.deletion_timestamp.is_none());
        let limit = usize::try_from(limit).unwrap_or(0);
        let Some(more) = old.len().checked_sub(limit) else {
            return Ok(());
        };
        old.sort_by_cached_key(|(at, set)| (annotate::revision(set), *at));
        for (_, set) in old.into_iter().take(more) {
            let told = set.status.as_ref();
            let has_pods = told.is_some_and(|status| status.replicas != 0)
                || set.spec.as_ref().map_or(0, replicas) != 0;
            let observed = told.and_then(|status| status.observed_generation);
            if !has_pods && observed >= set.metadata.generation {
                self.of.context.delete(&**set, None).await?;
            }
        }
        Ok(())
    }

    /// Writes the status, and the revision, if they have changed.
    async fn tell(&mut self) -> Result<Next, Error> {
        let now = self.of.context.now();
        let deployment = &self.deployment;
        let mut new = status::counted(deployment, &self.bounds, self.told_by(), now);
        let is_rolled =
            self.spec.paused != Some(true) && deployment.metadata.deletion_timestamp.is_none();
        if is_rolled {
            let sets = self.told_by();
            status::progress(deployment, self.spec, &self.bounds, sets, &mut new, now);
        }
        let again = status::looked_at_again(deployment, self.spec, &self.bounds, &new, now);
        self.deployment.status = Some(new);
        let annotations = |deployment: &Deployment| {
            let annotations = deployment.metadata.annotations.as_ref();
            annotations
                .and_then(|annotations| annotations.get(annotate::REVISION))
                .cloned()
        };
        if self.deployment.status != self.known.status
            || annotations(&self.deployment) != annotations(self.known)
        {
            match self.of.context.update_status(&self.deployment).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(again.map_or(Next::Settled, Next::After))
    }
}
