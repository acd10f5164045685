//! Disruption budgets: how many pods an eviction may take now (BO-10). The API server lets an eviction pass or not by the status that is kept here.

mod budget;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use berth_recorder::Level;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        autoscaling::v1::Scale,
        core::v1::{Pod, ReplicationController},
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{APIResourceList, OwnerReference},
};
use kube::{
    Resource, ResourceExt,
    core::{Selector, SelectorExt},
};
use serde_json::json;

use self::budget::Disrupted;
use crate::{
    Cache, Context, Error, Key, Merge, Queue,
    cache::Kind,
    condition, context,
    controller::{Controller, Next},
    owner, pod,
};

/// Its events are told by the whole, as upstream's are.
const COMPONENT: &str = "controllermanager";
/// A pod that says that it will be disrupted and is not, for so long, won't be.
const STALE: Duration = Duration::from_secs(120);
/// What a pod's key begins with; names of budgets have no `/`.
const POD: &str = "pod/";

pub(crate) struct Disruption {
    context: Arc<Context>,
    budgets: Cache<PodDisruptionBudget>,
    pods: Cache<Pod>,
    replica_sets: Cache<ReplicaSet>,
    deployments: Cache<Deployment>,
    stateful_sets: Cache<StatefulSet>,
    controllers: Cache<ReplicationController>,
    disrupted: Mutex<HashMap<Key, Disrupted>>,
    /// Pods that say that they will be disrupted: since when this process knows of it.
    stale: Mutex<HashMap<Key, (String, Instant)>>,
}

fn selector(budget: &PodDisruptionBudget) -> Result<Option<Selector>, String> {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
    let selector = selector.map(Selector::try_from).transpose();
    selector.map_err(|error| format!("its selector can't be read: {error}"))
}

fn covers(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    selector(budget)
        .is_ok_and(|selector| selector.is_some_and(|selector| selector.matches(pod.labels())))
}

/// What of a pod a budget counts.
fn told(pod: &Pod) -> impl PartialEq + use<'_> {
    (
        pod::is_ready(pod),
        pod.metadata.deletion_timestamp.is_some(),
        pod.metadata.labels.as_ref(),
        pod.metadata.uid.as_deref(),
        owner::controller_of(&pod.metadata).map(|owner| &owner.uid),
    )
}

/// The condition that it will be disrupted, which nobody has kept.
fn is_stale(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && !pod::is_terminal(pod)
        && condition::of_pod(pod, "DisruptionTarget").is_some_and(|target| {
            target.status == "True" && target.reason.as_deref() != Some("TerminationByKubelet")
        })
}

/// Budgets of the namespace are counted again when the number of pods that there should be is another.
fn follow<K: Kind>(
    context: &Context,
    budgets: &Cache<PodDisruptionBudget>,
    queue: &Queue,
    replicas: fn(&K) -> Option<i32>,
) -> Cache<K> {
    let cache = context.cache::<K>();
    let (budgets, queue) = (budgets.clone(), queue.clone());
    cache.on_change(move |old, new| {
        let before = old.and_then(|old| replicas(old));
        if let Some(new) = new
            && before != replicas(new)
            && let Some(namespace) = new.meta().namespace.as_deref()
        {
            for budget in budgets.in_namespace(namespace) {
                queue.add(Key::of(&*budget));
            }
        }
    });
    cache
}

impl Controller for Disruption {
    const NAME: &'static str = "disruption-controller";
    const ACCOUNT: &'static str = "disruption-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let budgets = context.cache::<PodDisruptionBudget>();
        let pods = context.cache::<Pod>();
        queue.follow(&budgets);
        let (keys, all) = (queue.clone(), budgets.clone());
        pods.on_change(move |old, new| {
            let Some(pod) = new.or(old) else {
                return;
            };
            let namespace = pod.namespace().unwrap_or_default();
            if new.is_some_and(|pod| is_stale(pod)) != old.is_some_and(|pod| is_stale(pod)) {
                let name = format!("{POD}{}", pod.name_any());
                keys.add(Key::new(&namespace, &name));
            }
            if old.map(|pod| told(pod)) == new.map(|pod| told(pod)) {
                return;
            }
            for budget in all.in_namespace(&namespace) {
                if [old, new]
                    .into_iter()
                    .flatten()
                    .any(|pod| covers(&budget, pod))
                {
                    keys.add(Key::of(&*budget));
                }
            }
        });
        let replica_sets = follow::<ReplicaSet>(&context, &budgets, &queue, |set| {
            set.spec.as_ref().and_then(|spec| spec.replicas)
        });
        let deployments = follow::<Deployment>(&context, &budgets, &queue, |deployment| {
            deployment.spec.as_ref().and_then(|spec| spec.replicas)
        });
        let stateful_sets = follow::<StatefulSet>(&context, &budgets, &queue, |set| {
            set.spec.as_ref().and_then(|spec| spec.replicas)
        });
        let controllers =
            follow::<ReplicationController>(&context, &budgets, &queue, |controller| {
                controller.spec.as_ref().and_then(|spec| spec.replicas)
            });
        Self {
            context,
            budgets,
            pods,
            replica_sets,
            deployments,
            stateful_sets,
            controllers,
            disrupted: Mutex::default(),
            stale: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        if let Some(name) = key.name.strip_prefix(POD) {
            return self.stale(&Key::new(&key.namespace, name)).await;
        }
        let Some(budget) = self.budgets.get(key) else {
            self.disrupted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(key);
            return Ok(Next::Settled);
        };
        let now = self.context.now();
        let (wanted, next) = match self.count(key, &budget).await {
            Ok(counted) => counted,
            // The server is asked again before anything is said.
            Err(Failed::Passing(error)) => return Err(error),
            Err(Failed::For(why)) => {
                let reason = "CalculateExpectedPodCountFailed";
                let message = format!("Failed to calculate the number of expected pods: {why}");
                self.context
                    .event(&*budget, COMPONENT, Level::Warning, reason, message);
                (budget::failed(&budget, &why, now), Next::After(STALE))
            }
        };
        if let Some(status) = wanted {
            let mut written = PodDisruptionBudget::clone(&budget);
            written.status = Some(status);
            match self.context.update_status(&written).await {
                Err(error) if error.is_not_found() => {}
                written => drop(written?),
            }
        }
        Ok(next)
    }
}

enum Failed {
    Passing(Error),
    /// As long as the objects are as they are.
    For(String),
}

impl Disruption {
    async fn count(
        &self,
        key: &Key,
        budget: &PodDisruptionBudget,
    ) -> Result<
        (
            Option<k8s_openapi::api::policy::v1::PodDisruptionBudgetStatus>,
            Next,
        ),
        Failed,
    > {
        let selector = selector(budget).map_err(Failed::For)?;
        let mut pods = self.pods.in_namespace(&key.namespace);
        pods.retain(|pod| {
            selector
                .as_ref()
                .is_some_and(|selector| selector.matches(pod.labels()))
        });
        if pods.is_empty() {
            let message = "No matching pods found".to_owned();
            self.context
                .event(budget, COMPONENT, Level::Normal, "NoPods", message);
        }
        let spec = budget.spec.clone().unwrap_or_default();
        let expected = if budget::needs_scale(&spec) {
            self.expected(budget, &pods).await?
        } else {
            i32::try_from(pods.len()).unwrap_or(i32::MAX)
        };
        let desired = budget::desired(&spec, expected).map_err(Failed::For)?;
        let told = budget
            .status
            .as_ref()
            .and_then(|status| status.disrupted_pods.as_ref());
        let now = Instant::now();
        let counted = {
            let mut all = self
                .disrupted
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let known = all.entry(key.clone()).or_default();
            let counted = known.count(told, &pods, now);
            if known.is_empty() {
                all.remove(key);
            }
            counted
        };
        for pod in pods
            .iter()
            .filter(|pod| counted.stayed.contains(&pod.name_any()))
        {
            let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
            self.context
                .event(&**pod, COMPONENT, Level::Warning, "NotDeleted", message);
        }
        let next = counted.recheck.map_or(Next::Settled, |end| {
            Next::After(end.saturating_duration_since(now))
        });
        let status = budget::status(budget, &counted, expected, desired, self.context.now());
        Ok((status, next))
    }

    /// How many pods there should be: the sum of what those that control them want.
    async fn expected(
        &self,
        budget: &PodDisruptionBudget,
        pods: &[Arc<Pod>],
    ) -> Result<i32, Failed> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut known: BTreeMap<String, ()> = BTreeMap::new();
        let mut alone = 0;
        for pod in pods {
            let Some(controller) = owner::controller_of(&pod.metadata) else {
                alone += 1;
                continue;
            };
            if known.insert(controller.uid.clone(), ()).is_some() {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            let (uid, scale) = self.scale(controller, &namespace).await?.ok_or_else(|| {
                Failed::For(format!("found no controllers for pod {:?}", pod.name_any()))
            })?;
            scales.insert(uid, scale);
        }
        if alone > 0 {
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the PDB cannot be calculated \
                 correctly, which may result in undefined behavior. To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
                json!(selector)
            );
            self.context
                .event(budget, COMPONENT, Level::Warning, "UnmanagedPods", message);
        }
        Ok(scales
            .values()
            .fold(0_i32, |sum, scale| sum.saturating_add(*scale)))
    }

    /// The uid of what says how many there should be, and how many.
    async fn scale(
        &self,
        controller: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<(String, i32)>, Failed> {
        let key = Key::new(namespace, &controller.name);
        let group = controller
            .api_version
            .split_once('/')
            .map_or("", |(group, _)| group);
        match (group, controller.kind.as_str()) {
            ("apps", "ReplicaSet") => {
                let set = self
                    .replica_sets
                    .get(&key)
                    .filter(|set| is(&**set, controller));
                let Some(set) = set else {
                    return Ok(None);
                };
                let above = owner::controller_of(&set.metadata).filter(|above| {
                    above.kind == "Deployment" && above.api_version.starts_with("apps/")
                });
                let Some(above) = above else {
                    return Ok(Some(of(
                        &*set,
                        set.spec.as_ref().and_then(|spec| spec.replicas),
                    )));
                };
                let deployment = self.deployments.get(&Key::new(namespace, &above.name));
                let deployment = deployment.filter(|deployment| is(&**deployment, above));
                Ok(deployment
                    .map(|found| of(&*found, found.spec.as_ref().and_then(|spec| spec.replicas))))
            }
            ("apps", "StatefulSet") => {
                let set = self
                    .stateful_sets
                    .get(&key)
                    .filter(|set| is(&**set, controller));
                Ok(set.map(|set| of(&*set, set.spec.as_ref().and_then(|spec| spec.replicas))))
            }
            ("", "ReplicationController") => {
                let found = self
                    .controllers
                    .get(&key)
                    .filter(|found| is(&**found, controller));
                Ok(found
                    .map(|found| of(&*found, found.spec.as_ref().and_then(|spec| spec.replicas))))
            }
            _ => self.foreign(controller, namespace).await,
        }
    }

    /// Of any kind that has the subresource `scale`.
    async fn foreign(
        &self,
        controller: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<(String, i32)>, Failed> {
        let client = self.context.client();
        let passing = |why: String| Failed::Passing(Error::Other(why));
        let version = &controller.api_version;
        let base = if version.contains('/') {
            format!("/apis/{version}")
        } else {
            format!("/api/{version}")
        };
        let served: APIResourceList = context::get(client, &base).await.map_err(passing)?;
        let kind = &controller.kind;
        let found = served
            .resources
            .iter()
            .find(|one| one.kind == *kind && !one.name.contains('/'));
        let Some(resource) = found else {
            return Err(Failed::For(format!(
                "the server has no kind {kind} in {version}"
            )));
        };
        let scale = format!("{}/scale", resource.name);
        if !served.resources.iter().any(|one| one.name == scale) {
            let why = format!(
                "{}.{version} does not implement the scale subresource",
                resource.name
            );
            return Err(Failed::For(why));
        }
        let path = format!(
            "{base}/namespaces/{namespace}/{}/{}/scale",
            resource.name, controller.name
        );
        let scale: Scale = context::get(client, &path).await.map_err(passing)?;
        if scale.metadata.uid.as_deref() != Some(&controller.uid) {
            return Ok(None);
        }
        let replicas = scale.spec.and_then(|spec| spec.replicas);
        Ok(Some((controller.uid.clone(), replicas.unwrap_or(0))))
    }

    /// What it was said would be done to a pod, and was not, is taken back.
    async fn stale(&self, key: &Key) -> Result<Next, Error> {
        let pod = self.pods.get(key).filter(|pod| is_stale(pod));
        let now = Instant::now();
        let left = {
            let mut all = self.stale.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(pod) = &pod else {
                all.remove(key);
                return Ok(Next::Settled);
            };
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let known = all.entry(key.clone()).or_insert_with(|| (uid.clone(), now));
            if known.0 != uid {
                *known = (uid, now);
            }
            STALE.saturating_sub(now.saturating_duration_since(known.1))
        };
        let Some(pod) = pod else {
            return Ok(Next::Settled);
        };
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "False",
                "lastTransitionTime": self.context.now().to_string(),
                "observedGeneration": pod.metadata.generation,
            }]},
        });
        match self
            .context
            .patch_status::<Pod>(key, &patch, Merge::Strategic)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(Next::Settled),
        }
    }
}

fn is<K: Resource>(object: &K, reference: &OwnerReference) -> bool {
    object.meta().uid.as_deref() == Some(&reference.uid)
}

fn of<K: Resource>(object: &K, replicas: Option<i32>) -> (String, i32) {
    (
        object.meta().uid.clone().unwrap_or_default(),
        replicas.unwrap_or(1),
    )
}
