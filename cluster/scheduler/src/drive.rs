//! The scheduler among others: watches tell it what is, and it binds, ends and tells.

mod requests;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt::Debug,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, Stream, StreamExt, stream};
use k8s_openapi::{
    api::{
        core::v1::{
            Event, EventSource, Namespace, Node, ObjectReference, PersistentVolume,
            PersistentVolumeClaim, Pod,
        },
        policy::v1::PodDisruptionBudget,
        storage::v1::StorageClass,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Api, Client, Resource, ResourceExt, runtime::watcher};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    pod::PodFacts,
    scheduler::{Decision, Scheduler},
    volumes::Step,
};
use requests::{CALL, Failed, Note, bind, keep, now, preempt};

/// Before a watch that has broken is begun again; twice as long each time.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// Bindings under way.
const BINDINGS: usize = 256;
/// Events and conditions that wait to be written. Events beyond are let go, and conditions told again when the pod is tried again.
const NOTES: usize = 8192;
/// … that are under way: few while pods are bound, since that is what everybody waits for.
const TELLING_BESIDE: usize = 4;
const TELLING: usize = 64;
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
    Class(Change<StorageClass>),
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
    let events = watcher(api, watcher::Config::default()).boxed();
    // a server that comes back is heard of soon
    stream::unfold((events, AGAIN), async |(mut events, wait)| {
        let event = events.next().await?;
        let next = match &event {
            Ok(watcher::Event::Init) => wait,
            Ok(_) => AGAIN,
            Err(_) => {
                sleep(wait).await;
                (wait * 2).min(AGAIN_MOST)
            }
        };
        Some((event, (events, next)))
    })
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
    ends: CancellationToken,
) -> Result<(), Error> {
    const KINDS: usize = 7;
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
        watched(Api::all(client.clone()), Says::Class, bare!(StorageClass)).boxed(),
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
        client,
        bindings: 0,
        notes: VecDeque::new(),
        telling: 0,
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
            Some(result) = results.recv() => {
                hands.done(&mut scheduler, result);
                while let Ok(result) = results.try_recv() {
                    hands.done(&mut scheduler, result);
                }
            }
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
        hands.tell_next(scheduler.active());
    }
    let under_way = async {
        while !hands.tasks.is_empty() || !hands.notes.is_empty() {
            hands.tell_next(0);
            tokio::select! {
                Some(result) = results.recv() => hands.done(&mut scheduler, result),
                Some(_) = hands.tasks.join_next() => {}
            }
        }
    };
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
        Says::Class(Change::Is(class)) => scheduler.set_class(&class),
        Says::Class(Change::Gone(class)) => scheduler.remove_class(&class.name_any()),
        Says::Budget(Change::Is(budget)) => scheduler.set_budget(&budget),
        Says::Budget(Change::Gone(budget)) => scheduler.remove_budget(&budget),
        Says::Listed
        | Says::Pod(Change::Listed)
        | Says::Node(Change::Listed)
        | Says::Namespace(Change::Listed)
        | Says::Volume(Change::Listed)
        | Says::Claim(Change::Listed)
        | Says::Class(Change::Listed)
        | Says::Budget(Change::Listed) => {}
    }
}

/// What has come of a request.
enum Done {
    Bound {
        pod: PodFacts,
        node: Arc<str>,
        failed: Option<Failed>,
    },
    /// Not all of it could be written.
    NotKept(Vec<Step>),
    /// A note is written, or let go; of the pod that still does not know why it waits.
    Told(Option<Arc<str>>),
}

/// What is done by requests.
struct Hands {
    client: Client,
    bindings: usize,
    notes: VecDeque<Note>,
    telling: usize,
    done: mpsc::Sender<Done>,
    tasks: JoinSet<()>,
    /// What each pod that waits was last told, and where room is made for it.
    told: HashMap<Arc<str>, (String, Option<Arc<str>>)>,
}

impl Hands {
    fn act(&mut self, decision: Decision) {
        match decision {
            Decision::Bind { pod, node } => {
                self.told.remove(&pod.uid);
                self.bindings += 1;
                let (client, done) = (self.client.clone(), self.done.clone());
                self.tasks.spawn(async move {
                    let failed = bind(client, &pod, &node).await.err();
                    let _ = done.send(Done::Bound { pod, node, failed }).await;
                });
            }
            // the volume binder is at it
            Decision::Claim { steps, .. } if steps.is_empty() => {}
            Decision::Claim { pod, node, steps } => {
                let (client, done) = (self.client.clone(), self.done.clone());
                self.spawn(async move {
                    if let Err(why) = keep(client, &steps, &node).await {
                        tracing::warn!(pod = pod.shown(), %node, why, "its claims find no volumes");
                        let _ = done.send(Done::NotKept(steps)).await;
                    }
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
                    self.tell(
                        &pod.scheduler,
                        &pod,
                        "Warning",
                        "FailedScheduling",
                        message.clone(),
                    );
                    if self.notes.len() < NOTES {
                        self.notes
                            .push_back(Note::Waits(Box::new(pod.clone()), message, at));
                    } else {
                        self.told.remove(&pod.uid);
                    }
                }
                if let Some((node, victims)) = room {
                    for victim in victims {
                        self.end(victim, &pod, &node);
                    }
                }
            }
        }
    }

    fn done(&mut self, scheduler: &mut Scheduler, done: Done) {
        match done {
            Done::Told(untold) => {
                self.telling -= 1;
                if let Some(uid) = untold {
                    self.told.remove(&uid);
                    scheduler.try_again(&uid);
                }
            }
            Done::NotKept(steps) => scheduler.not_kept(&steps),
            Done::Bound { pod, node, failed } => {
                self.bindings -= 1;
                self.bound(scheduler, pod, node, failed);
            }
        }
    }

    fn bound(
        &mut self,
        scheduler: &mut Scheduler,
        pod: PodFacts,
        node: Arc<str>,
        failed: Option<Failed>,
    ) {
        match failed {
            None => {
                scheduler.bound(&pod.uid);
                self.told.remove(&pod.uid);
                let note = format!("Successfully assigned {} to {node}", pod.shown());
                self.tell(&pod.scheduler, &pod, "Normal", "Scheduled", note);
            }
            Some(Failed { why, of_node }) => {
                tracing::warn!(pod = pod.shown(), %node, why, "a pod is not bound");
                scheduler.not_bound(&pod.uid, of_node.then_some(node));
            }
        }
    }

    fn end(&mut self, victim: PodFacts, pod: &PodFacts, node: &str) {
        // it is on its way already
        if victim.deleted {
            return;
        }
        let note = format!("Preempted by pod {} on node {node}", pod.uid);
        self.tell(&pod.scheduler, &victim, "Normal", "Preempted", note);
        let client = self.client.clone();
        self.spawn(async move {
            if let Err(why) = preempt(client, &victim).await {
                tracing::warn!(pod = victim.shown(), why, "a pod is not preempted");
            }
        });
    }

    /// An event, if there is room for it; `by` is the scheduler's name.
    fn tell(&mut self, by: &str, pod: &PodFacts, type_: &str, reason: &str, message: String) {
        if self.notes.len() >= NOTES {
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
                component: Some(by.to_owned()),
                host: None,
            }),
            reporting_component: Some(by.to_owned()),
            reporting_instance: Some(by.to_owned()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        self.notes.push_back(Note::Event(Box::new(event)));
    }

    /// Writes what waits, as much at once as is right just now.
    fn tell_next(&mut self, active: usize) {
        let most = match self.bindings + active {
            0 => TELLING,
            _ => TELLING_BESIDE,
        };
        while self.telling < most
            && let Some(note) = self.notes.pop_front()
        {
            // it has been decided meanwhile
            if let Note::Waits(pod, message, at) = &note
                && self.told.get(&pod.uid) != Some(&(message.clone(), at.clone()))
            {
                continue;
            }
            self.telling += 1;
            let (client, done) = (self.client.clone(), self.done.clone());
            self.tasks.spawn(async move {
                let untold = note.write(client).await;
                let _ = done.send(Done::Told(untold)).await;
            });
        }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }
}
