//! The pods that the API server wants on this node: listed, then watched; listed again when the watch has lost its place (410). Until the server has
//! said anything, those that were known last.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api,
    runtime::watcher::{self, Event, watcher},
};
use tokio::{sync::watch, time::Instant};

use super::{
    API, Cluster, MIRROR, Statuses,
    services::{self, Variables},
};
use crate::{Desired, Objects, objects::Key, store, unbuilt};

/// A server that has said nothing for so long since the start is taken to be away: the pods that were known last are begun.
const KNOWN_AFTER: Duration = Duration::from_secs(5);
/// Between two tries at a server that does not answer: the first, and at most.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(10);
/// A watch is begun anew so often: who is gone without a word is noticed then.
const WATCH_SECONDS: u32 = 120;

/// All pods of the source, and whether a server has said so: what was only remembered is no reason to end anything.
#[derive(Debug, Clone, Default)]
pub struct Known {
    pub pods: Vec<Arc<Desired>>,
    pub by_server: bool,
    /// Mirrors of static pods, by full name.
    pub mirrors: BTreeMap<String, Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub uid: String,
    pub hash: String,
}

#[derive(Debug)]
pub struct Source {
    cluster: Cluster,
    statuses: Arc<Statuses>,
    objects: Objects,
    kubelet_dir: std::path::PathBuf,
}

/// What a pod of the API is to the node.
enum Place {
    Mirror(Mirror),
    Here(Arc<Desired>),
    /// It can't be run here, and that was told.
    Refused,
}

impl Source {
    pub fn new(
        cluster: Cluster,
        statuses: Arc<Statuses>,
        objects: Objects,
        kubelet_dir: std::path::PathBuf,
    ) -> Self {
        Self {
            cluster,
            statuses,
            objects,
            kubelet_dir,
        }
    }

    /// Tells all pods at each change, for as long as somebody listens; the first time once the services are known, too, of which pods are told.
    pub async fn run(self, told: watch::Sender<Option<Known>>) {
        let (listed, services) = watch::channel(false);
        tokio::join!(self.services(listed), self.pods(told, services));
    }

    async fn services(&self, listed: watch::Sender<bool>) {
        let api: Api<Service> = Api::all(self.cluster.client.clone());
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let mut events = pin!(watcher(api, config));
        let mut all: BTreeMap<Key, Variables> = BTreeMap::new();
        let mut wait = AGAIN;
        while !listed.is_closed() {
            let event = tokio::select! {
                event = events.next() => event,
                () = listed.closed() => return,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::warn!(%error, "services can't be watched: new pods are told of those that were known");
                    tokio::time::sleep(spread(wait)).await;
                    wait = (wait * 2).min(AGAIN_MOST);
                    continue;
                }
                Some(Ok(Event::Init)) => {
                    all.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(service))) => {
                    all.insert(services::key(&service), services::variables(&service));
                    continue;
                }
                Some(Ok(Event::Apply(service))) => {
                    all.insert(services::key(&service), services::variables(&service));
                }
                Some(Ok(Event::Delete(service))) => {
                    all.remove(&services::key(&service));
                }
                Some(Ok(Event::InitDone)) => {}
            }
            wait = AGAIN;
            self.objects.put_services(all.clone());
            listed.send_replace(true);
        }
    }

    async fn pods(&self, told: watch::Sender<Option<Known>>, mut services: watch::Receiver<bool>) {
        let api: Api<Pod> = Api::all(self.cluster.client.clone());
        let config = watcher::Config::default()
            .fields(&format!("spec.nodeName={}", self.cluster.node))
            .timeout(WATCH_SECONDS);
        let mut events = pin!(watcher(api, config));
        let mut pods: BTreeMap<String, (String, Place)> = BTreeMap::new();
        let mut listed = None;
        let mut is_listed = false;
        let mut wait = AGAIN;
        let remember = Instant::now() + KNOWN_AFTER;
        loop {
            let is_known = told.borrow().is_some();
            let has_services = *services.borrow();
            let event = tokio::select! {
                event = events.next() => event,
                // the list may have been there first
                changed = services.changed(), if !has_services => {
                    if changed.is_err() {
                        return;
                    }
                    if is_listed {
                        told.send_replace(Some(known(&pods)));
                    }
                    continue;
                }
                () = tokio::time::sleep_until(remember), if !is_known => {
                    let known = match is_listed {
                        // what services there are is not worth waiting for any longer
                        true => known(&pods),
                        false => {
                            let known = self.remembered();
                            tracing::warn!(pods = known.pods.len(), "the API server has not answered yet: the pods that were known last are kept");
                            known
                        }
                    };
                    told.send_replace(Some(known));
                    continue;
                }
                () = told.closed() => return,
            };
            match event {
                None => return,
                Some(Err(error)) => {
                    tracing::warn!(%error, "the pods of this node can't be watched: they go on as they are");
                    let next = tokio::time::sleep(spread(wait));
                    tokio::select! {
                        () = next => {}
                        () = told.closed() => return,
                    }
                    wait = (wait * 2).min(AGAIN_MOST);
                    continue;
                }
                Some(Ok(event)) => match event {
                    // begun is not done: a server that is away is asked later and later
                    Event::Init => {
                        listed = Some(BTreeMap::new());
                        continue;
                    }
                    Event::InitApply(pod) => {
                        if let (Some(listed), Some((uid, place))) = (&mut listed, self.place(pod)) {
                            listed.insert(uid, place);
                        }
                        continue;
                    }
                    Event::InitDone => {
                        pods = listed.take().unwrap_or_default();
                        is_listed = true;
                    }
                    Event::Apply(pod) => {
                        if let Some((uid, place)) = self.place(pod) {
                            pods.insert(uid, place);
                        }
                    }
                    Event::Delete(pod) => {
                        pods.remove(&pod.metadata.uid.unwrap_or_default());
                    }
                },
            }
            wait = AGAIN;
            let is_late = Instant::now() >= remember;
            if listed.is_none() && (is_late || *services.borrow()) {
                told.send_replace(Some(known(&pods)));
            }
        }
    }

    /// The pod by its uid, with its full name.
    fn place(&self, pod: Pod) -> Option<(String, (String, Place))> {
        let metadata = &pod.metadata;
        let uid = metadata.uid.clone()?;
        let full_name = format!(
            "{}/{}",
            metadata.namespace.clone().unwrap_or_default(),
            metadata.name.clone().unwrap_or_default()
        );
        let annotations = metadata.annotations.as_ref();
        if let Some(hash) = annotations.and_then(|all| all.get(MIRROR)) {
            let mirror = Mirror {
                uid: uid.clone(),
                hash: hash.clone(),
            };
            return Some((uid, (full_name, Place::Mirror(mirror))));
        }
        let problems = unbuilt::of_server(&pod);
        let is_over = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| phase == "Failed" || phase == "Succeeded");
        let desired = match Desired::new(pod, API) {
            Ok(desired) => desired,
            Err(problem) => {
                tracing::error!(pod = full_name, %problem, "a pod of the API is left alone");
                return None;
            }
        };
        let place = match (problems.is_empty(), desired.deletion()) {
            (true, _) => Place::Here(Arc::new(desired)),
            (false, Some(_)) => {
                self.statuses.gone(&desired);
                Place::Refused
            }
            (false, None) => {
                if !is_over {
                    let why: Vec<_> = problems.iter().map(ToString::to_string).collect();
                    self.statuses.refused(&desired, "NotBuilt", why.join("; "));
                }
                Place::Refused
            }
        };
        Some((uid, (full_name, place)))
    }

    /// Pods of the API that a kubelet has kept on disk, and that nobody had deleted.
    fn remembered(&self) -> Known {
        let all = store::kept_pods(&self.kubelet_dir);
        let pods = all
            .into_iter()
            .filter(|kept| kept.source == API)
            .filter_map(|kept| Desired::new(kept.pod, API).ok())
            .map(Arc::new)
            .collect();
        Known {
            pods,
            by_server: false,
            mirrors: BTreeMap::new(),
        }
    }
}

/// A bit more: not all nodes at once.
fn spread(wait: Duration) -> Duration {
    let random = u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs());
    wait + Duration::from_millis(random % 100)
}

fn known(pods: &BTreeMap<String, (String, Place)>) -> Known {
    let mut known = Known {
        by_server: true,
        ..Known::default()
    };
    for (full_name, place) in pods.values() {
        match place {
            Place::Here(pod) => known.pods.push(pod.clone()),
            Place::Mirror(mirror) => {
                known.mirrors.insert(full_name.clone(), mirror.clone());
            }
            Place::Refused => {}
        }
    }
    known
}
