//! The scheduler among others: watches tell it what is, and it binds, ends and tells.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::{
    api::{
        core::v1::{
            Binding, Event, EventSource, Namespace, Node, ObjectReference, PersistentVolume,
            PersistentVolumeClaim, Pod,
        },
        policy::v1::PodDisruptionBudget,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status, Time},
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    pod::PodFacts,
    scheduler::{Decision, Scheduler},
};

/// One request.
const CALL: Duration = Duration::from_secs(10);
/// Bindings under way.
const BINDINGS: usize = 256;
/// Other requests under way: conditions, events, victims. More wait; events beyond are let go.
const TELLING: usize = 1024;
/// Of what the watches say, taken before the next pod is decided.
const AT_ONCE: usize = 512;
/// Pods that are decided before the watches are looked at again.
const DECIDED_AT_ONCE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a watch of {0} ended")]
    Watch(&'static str),
}

/// What a watch says.
enum Says {
    Pod(Change<Pod>),
    Node(Change<Node>),
    Namespace(Change<Namespace>),
    Volume(Change<PersistentVolume>),
    Claim(Change<PersistentVolumeClaim>),
    Budget(Change<PodDisruptionBudget>),
    /// All that there was is told, of one kind.
    Listed,
}

enum Change<K> {
    Is(Box<K>),
    Gone(Box<K>),
    Listed,
}

/// Keeps who is there, so that a list tells who has gone unseen.
struct Watched<K> {
    /// By uid: what is needed to say that it is gone.
    there: HashMap<String, K>,
    listed: Option<HashSet<String>>,
}

impl<K: Resource<DynamicType = ()> + Clone> Watched<K> {
    fn new() -> Self {
        Self {
            there: HashMap::new(),
            listed: None,
        }
    }

    /// Only its name, namespace and uid are kept.
    fn note(&mut self, object: &K, bare: impl Fn(&ObjectMeta) -> K) {
        let uid = object.uid().unwrap_or_default();
        if let Some(listed) = &mut self.listed {
            listed.insert(uid.clone());
        }
        self.there.entry(uid).or_insert_with(|| {
            let meta = object.meta();
            bare(&ObjectMeta {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
                ..ObjectMeta::default()
            })
        });
    }

    fn changes(
        &mut self,
        event: watcher::Event<K>,
        bare: impl Fn(&ObjectMeta) -> K,
    ) -> Vec<Change<K>> {
        match event {
            watcher::Event::Init => {
                self.listed = Some(HashSet::new());
                Vec::new()
            }
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                self.note(&object, bare);
                vec![Change::Is(Box::new(object))]
            }
            watcher::Event::Delete(object) => {
                self.there.remove(&object.uid().unwrap_or_default());
                vec![Change::Gone(Box::new(object))]
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let there = std::mem::take(&mut self.there);
                let (there, gone) = there.into_iter().partition(|(uid, _)| listed.contains(uid));
                self.there = there;
                let gone: HashMap<String, K> = gone;
                gone.into_values()
                    .map(|object| Change::Gone(Box::new(object)))
                    .chain([Change::Listed])
                    .collect()
            }
        }
    }
}

fn watched<K>(
    api: Api<K>,
    says: fn(Change<K>) -> Says,
    bare: fn(&ObjectMeta) -> K,
) -> impl Stream<Item = Says>
where
    K: Resource<DynamicType = ()> + Clone + Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut watched = Watched::new();
    watcher(api, watcher::Config::default())
        .default_backoff()
        .flat_map(move |event| {
            let changes = match event {
                Ok(event) => watched.changes(event, bare),
                Err(error) => {
                    tracing::debug!(kind = %K::kind(&()), %error, "a watch is begun again");
                    Vec::new()
                }
            };
            stream::iter(changes).map(move |change| match change {
                Change::Listed => Says::Listed,
                change => says(change),
            })
        })
}

macro_rules! bare {
    ($kind:ident) => {
        |meta| $kind {
            metadata: meta.clone(),
            ..$kind::default()
        }
    };
}

/// Schedules until `ends`. What is under way is waited for, at most ten seconds.
///
/// # Errors
/// A watch ends, which none does by itself.
pub async fn run(
    client: Client,
    mut scheduler: Scheduler,
    name: &str,
    ends: CancellationToken,
) -> Result<(), Error> {
    const KINDS: usize = 6;
    let watches = stream::select_all([
        watched(Api::all(client.clone()), Says::Pod, bare!(Pod)).boxed(),
        watched(Api::all(client.clone()), Says::Node, bare!(Node)).boxed(),
        watched(Api::all(client.clone()), Says::Namespace, bare!(Namespace)).boxed(),
        watched(
            Api::all(client.clone()),
            Says::Volume,
            bare!(PersistentVolume),
        )
        .boxed(),
        watched(
            Api::all(client.clone()),
            Says::Claim,
            bare!(PersistentVolumeClaim),
        )
        .boxed(),
        watched(
            Api::all(client.clone()),
            Says::Budget,
            bare!(PodDisruptionBudget),
        )
        .boxed(),
    ]);
    let mut watches = pin!(watches);
    let (done, mut results) = mpsc::channel(BINDINGS);
    let mut hands = Hands {
        name: name.to_owned(),
        client,
        bindings: 0,
        done,
        tasks: JoinSet::new(),
        told: HashMap::new(),
    };
    let mut listed = 0;
    while listed < KINDS {
        tokio::select! {
            says = watches.next() => match says.ok_or(Error::Watch("the API server"))? {
                Says::Listed => listed += 1,
                says => hear(&mut scheduler, &mut hands, says),
            },
            () = ends.cancelled() => return Ok(()),
        }
    }
    tracing::info!(
        nodes = scheduler.nodes(),
        waiting = scheduler.waiting(),
        "pods are scheduled"
    );
    loop {
        let next = scheduler.next();
        let idle = scheduler.active() == 0 || hands.bindings >= BINDINGS;
        tokio::select! {
            biased;
            () = ends.cancelled() => break,
            Some(result) = results.recv() => hands.bound(&mut scheduler, result),
            says = watches.next() => {
                hear(&mut scheduler, &mut hands, says.ok_or(Error::Watch("the API server"))?);
                for _ in 0..AT_ONCE {
                    match watches.next().now_or_never() {
                        Some(Some(says)) => hear(&mut scheduler, &mut hands, says),
                        _ => break,
                    }
                }
            }
            Some(_) = hands.tasks.join_next() => {}
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()), if idle && next.is_some() => {}
            () = std::future::ready(()), if !idle => {}
        }
        for _ in 0..DECIDED_AT_ONCE {
            if hands.bindings >= BINDINGS {
                break;
            }
            let Some(decision) = scheduler.step() else {
                break;
            };
            hands.act(decision);
        }
    }
    let under_way = async { while hands.tasks.join_next().await.is_some() {} };
    let _ = timeout(CALL, under_way).await;
    Ok(())
}

fn hear(scheduler: &mut Scheduler, hands: &mut Hands, says: Says) {
    match says {
        Says::Pod(Change::Is(pod)) => {
            let assigned = pod
                .spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some());
            if assigned {
                hands
                    .told
                    .remove(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            scheduler.set_pod(&pod);
        }
        Says::Pod(Change::Gone(pod)) => {
            let uid = pod.metadata.uid.unwrap_or_default();
            hands.told.remove(uid.as_str());
            scheduler.remove_pod(&uid);
        }
        Says::Node(Change::Is(node)) => scheduler.set_node(&node),
        Says::Node(Change::Gone(node)) => scheduler.remove_node(&node.name_any()),
        Says::Namespace(Change::Is(namespace)) => {
            let name = namespace.name_any();
            scheduler.set_namespace(&name, Some(namespace.metadata.labels.unwrap_or_default()));
        }
        Says::Namespace(Change::Gone(namespace)) => {
            scheduler.set_namespace(&namespace.name_any(), None)
        }
        Says::Volume(Change::Is(volume)) => scheduler.set_volume(&volume),
        Says::Volume(Change::Gone(volume)) => scheduler.remove_volume(&volume.name_any()),
        Says::Claim(Change::Is(claim)) => scheduler.set_claim(&claim),
        Says::Claim(Change::Gone(claim)) => scheduler.remove_claim(&claim),
        Says::Budget(Change::Is(budget)) => scheduler.set_budget(&budget),
        Says::Budget(Change::Gone(budget)) => scheduler.remove_budget(&budget),
        Says::Listed
        | Says::Pod(Change::Listed)
        | Says::Node(Change::Listed)
        | Says::Namespace(Change::Listed)
        | Says::Volume(Change::Listed)
        | Says::Claim(Change::Listed)
        | Says::Budget(Change::Listed) => {}
    }
}

struct Bound {
    pod: PodFacts,
    node: Arc<str>,
    failed: Option<String>,
}

/// What is done by requests.
struct Hands {
    client: Client,
    /// The scheduler's own.
    name: String,
    bindings: usize,
    done: mpsc::Sender<Bound>,
    tasks: JoinSet<()>,
    /// What each pod that waits was last told, and where room is made for it.
    told: HashMap<Arc<str>, (String, Option<Arc<str>>)>,
}

impl Hands {
    fn act(&mut self, decision: Decision) {
        match decision {
            Decision::Bind { pod, node } => {
                self.bindings += 1;
                let (client, done) = (self.client.clone(), self.done.clone());
                self.tasks.spawn(async move {
                    let failed = bind(client, &pod, &node).await.err();
                    let _ = done.send(Bound { pod, node, failed }).await;
                });
            }
            Decision::Wait { pod, unfit, room } => {
                let message = unfit.message();
                let at = room
                    .as_ref()
                    .map(|(node, _)| node.clone())
                    .or_else(|| pod.nominated.clone());
                let now = (message.clone(), at.clone());
                let is_new = self.told.get(&pod.uid) != Some(&now);
                self.told.insert(pod.uid.clone(), now);
                if is_new {
                    self.tell(&pod, "Warning", "FailedScheduling", message.clone());
                    let (client, pod) = (self.client.clone(), pod.clone());
                    self.spawn(async move { waits(client, &pod, &message, at).await });
                }
                if let Some((node, victims)) = room {
                    for victim in victims {
                        self.end(victim, &pod, &node);
                    }
                }
            }
        }
    }

    fn bound(&mut self, scheduler: &mut Scheduler, bound: Bound) {
        self.bindings -= 1;
        match bound.failed {
            None => {
                scheduler.bound(&bound.pod.uid);
                self.told.remove(&bound.pod.uid);
                let note = format!(
                    "Successfully assigned {} to {}",
                    bound.pod.shown(),
                    bound.node
                );
                self.tell(&bound.pod, "Normal", "Scheduled", note);
            }
            Some(why) => {
                tracing::warn!(pod = bound.pod.shown(), node = %bound.node, why, "a pod is not bound");
                scheduler.not_bound(&bound.pod.uid, bound.node);
            }
        }
    }

    fn end(&mut self, victim: PodFacts, pod: &PodFacts, node: &str) {
        // it is on its way already
        if victim.deleted {
            return;
        }
        let note = format!("Preempted by pod {} on node {node}", pod.uid);
        self.tell(&victim, "Normal", "Preempted", note);
        let client = self.client.clone();
        self.spawn(async move {
            if let Err(why) = preempt(client, &victim).await {
                tracing::warn!(pod = victim.shown(), why, "a pod is not preempted");
            }
        });
    }

    /// An event, if there is room for it.
    fn tell(&mut self, pod: &PodFacts, type_: &str, reason: &str, message: String) {
        if self.tasks.len() >= TELLING {
            return;
        }
        let now = Time(now());
        let namespace = pod.wants().namespace.clone();
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}.", pod.name)),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(pod.name.to_string()),
                namespace: Some(namespace.clone()),
                uid: Some(pod.uid.to_string()),
                ..ObjectReference::default()
            },
            type_: Some(type_.into()),
            reason: Some(reason.into()),
            message: Some(message),
            source: Some(EventSource {
                component: Some(self.name.clone()),
                host: None,
            }),
            reporting_component: Some(self.name.clone()),
            reporting_instance: Some(self.name.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        let api = Api::<Event>::namespaced(self.client.clone(), &namespace);
        self.tasks.spawn(async move {
            if let Err(why) = within(api.create(&PostParams::default(), &event)).await {
                tracing::debug!(why, "an event is not written");
            }
        });
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}

/// In whole seconds, as the API keeps it.
fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default()
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match timeout(CALL, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", CALL.as_secs())),
    }
}

fn pods(client: Client, pod: &PodFacts) -> Api<Pod> {
    Api::namespaced(client, &pod.wants().namespace)
}

async fn bind(client: Client, pod: &PodFacts, node: &str) -> Result<(), String> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.to_string()),
            namespace: Some(pod.wants().namespace.clone()),
            uid: Some(pod.uid.to_string()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = pods(client, pod);
    let params = PostParams::default();
    let call = api.create_subresource::<_, Status>("binding", &pod.name, &params, &binding);
    within(call).await.map(drop)
}

/// Tells the pod why it waits, and where room is made for it.
async fn waits(client: Client, pod: &PodFacts, message: &str, nominated: Option<Arc<str>>) {
    let mut status = json!({"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message, "lastTransitionTime": now().to_string(),
    }]});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = json!(*node);
    }
    let patch = Patch::Strategic(json!({"metadata": {"uid": *pod.uid}, "status": status}));
    let api = pods(client, pod);
    let params = PatchParams::default();
    if let Err(why) = within(api.patch_status(&pod.name, &params, &patch)).await {
        tracing::debug!(pod = pod.shown(), why, "a pod is not told why it waits");
    }
}

async fn preempt(client: Client, victim: &PodFacts) -> Result<(), String> {
    let api = pods(client, victim);
    let condition = json!({"metadata": {"uid": *victim.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
        "message": "default-scheduler: preempting to accommodate a higher priority pod", "lastTransitionTime": now().to_string(),
    }]}});
    let patch = Patch::Strategic(condition);
    within(api.patch_status(&victim.name, &PatchParams::default(), &patch)).await?;
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(victim.uid.to_string()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    within(api.delete(&victim.name, &params)).await.map(drop)
}
