//! Who is here: pods by id and key, containers by id. It finds the driver to ask, and decides nothing itself.
//!
//! # Synchronization
//! One lock, held for lookups only, never across an await. A driver leaves the registry before it answers those who asked for
//! its end, so whoever was told "gone" finds nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use berth_proto::cri;
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::{
    Pod, PodKey,
    driver::Driver,
    event::{Event, Ran, Reply, Request},
    happenings::Happenings,
    record::{PodPhase, PodRecord, Timeline, now_ns},
    view::{ContainerView, PodView},
};
use crate::{error::Error, id, node::Node};

/// Events that wait for a pod's driver, which never waits itself: a burst of calls, no more.
const QUEUE: usize = 128;
/// A Run that finds a pod making way asks again. More than a few times means that others keep making it.
const MAX_RUN_ROUNDS: usize = 8;

/// A pod's driver, seen from outside.
#[derive(Debug)]
pub struct Handle {
    pub pod: Arc<Pod>,
    events: mpsc::Sender<Event>,
    view: RwLock<Arc<PodView>>,
}

impl Handle {
    pub fn view(&self) -> Arc<PodView> {
        self.view
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Answers the view that was there before.
    pub(super) fn publish(&self, view: Arc<PodView>) -> Arc<PodView> {
        let mut place = self.view.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, view)
    }

    /// The RPC that this is called in is about this pod: its log lines and its span say so.
    fn name_in_span(&self) {
        let span = Span::current();
        span.record("pod_id", &self.pod.id);
        if let Some(metadata) = &self.pod.config.metadata {
            span.record("namespace", &metadata.namespace);
            span.record("name", &metadata.name);
        }
    }

    /// Enqueues an event. Fails when the pod is gone.
    pub(super) async fn tell(&self, event: Event) -> Result<(), Error> {
        let gone = |_| Error::PodGone(self.pod.id.clone());
        self.events.send(event).await.map_err(gone)
    }

    /// Enqueues a request and waits for its answer.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(Event::Asked(request(reply), Span::current()))
            .await?;
        match answer.await {
            Ok(result) => result.map_err(Error::from),
            Err(_) => Err(Error::PodGone(self.pod.id.clone())),
        }
    }
}

#[derive(Debug)]
pub struct Registry {
    pub node: Arc<Node>,
    pub happenings: Happenings,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pods: BTreeMap<String, Arc<Handle>>,
    keys: HashMap<PodKey, String>,
    /// Container id → pod id.
    containers: BTreeMap<String, String>,
}

impl Registry {
    pub fn new(node: Arc<Node>) -> Arc<Self> {
        Arc::new(Self {
            node,
            happenings: Happenings::default(),
            inner: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pod with this configuration: the one that is here, the one under way, or a new one.
    pub async fn run(
        self: &Arc<Self>,
        config: cri::PodSandboxConfig,
        handler: &str,
    ) -> Result<String, Error> {
        let key = PodKey::of(&config);
        for _ in 0..MAX_RUN_ROUNDS {
            let handle = self.find_or_make(&key, &config, handler)?;
            handle.name_in_span();
            let request = |reply| Request::Run {
                config: Box::new(config.clone()),
                handler: handler.to_owned(),
                replacing: false,
                reply,
            };
            match handle.ask(request).await {
                Ok(Ran::Ready(id)) => return Ok(id),
                Ok(Ran::Again) | Err(Error::PodGone(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Error::FailedPrecondition(format!(
            "pod {key}: made and removed {MAX_RUN_ROUNDS} times by other callers while this one waited"
        )))
    }

    fn find_or_make(
        self: &Arc<Self>,
        key: &PodKey,
        config: &cri::PodSandboxConfig,
        handler: &str,
    ) -> Result<Arc<Handle>, Error> {
        let mut inner = self.lock();
        if let Some(handle) = inner.keys.get(key).and_then(|id| inner.pods.get(id)) {
            return Ok(handle.clone());
        }
        let max = self.node.config.limits.pods;
        if inner.pods.len() >= max {
            return Err(Error::ResourceExhausted(format!(
                "this node has {max} pods, the most that key `limits.pods` allows"
            )));
        }
        let mut id = id::generate();
        // Sockets are named by the first 16 digits.
        while inner
            .pods
            .range(id[..16].to_owned()..)
            .next()
            .is_some_and(|(other, _)| other.starts_with(&id[..16]))
        {
            id = id::generate();
        }
        let record = PodRecord {
            id: id.clone(),
            config: config.clone(),
            runtime_handler: handler.to_owned(),
            created_at: now_ns(),
            phase: PodPhase::Creating,
            attachment: None,
            address: String::new(),
            timeline: Timeline::default(),
            why: String::new(),
            limits: None,
            cgroup_parent: Default::default(),
        };
        let (handle, driver) = self.enter(&mut inner, record);
        tokio::spawn(driver.create());
        Ok(handle)
    }

    /// A driver for a pod that the daemon's predecessor made. Not running yet.
    pub(super) fn adopt(self: &Arc<Self>, record: PodRecord) -> Driver {
        self.enter(&mut self.lock(), record).1
    }

    fn enter(self: &Arc<Self>, inner: &mut Inner, mut record: PodRecord) -> (Arc<Handle>, Driver) {
        if record.cgroup_parent.as_os_str().is_empty() {
            let linux = record.config.linux.as_ref();
            let named = linux.map_or("", |linux| linux.cgroup_parent.as_str());
            record.cgroup_parent = self.node.cgroup.of_pod(named, &record.id);
        }
        let pod = Arc::new(Pod {
            node: self.node.clone(),
            id: record.id.clone(),
            config: record.config.clone(),
            handler: record.runtime_handler.clone(),
            created_at: record.created_at,
            cgroup_parent: record.cgroup_parent.clone(),
        });
        let (events, queue) = mpsc::channel(QUEUE);
        let view = RwLock::new(Arc::new(PodView::unborn(pod.clone())));
        let handle = Arc::new(Handle { pod, events, view });
        inner
            .keys
            .insert(PodKey::of(&record.config), record.id.clone());
        inner.pods.insert(record.id.clone(), handle.clone());
        let driver = Driver::new(self.clone(), handle.clone(), queue, record);
        (handle, driver)
    }

    pub(super) fn forget(&self, pod: &Pod) {
        let mut inner = self.lock();
        inner.pods.remove(&pod.id);
        let key = PodKey::of(&pod.config);
        if inner.keys.get(&key) == Some(&pod.id) {
            inner.keys.remove(&key);
        }
        inner.containers.retain(|_, pod_id| *pod_id != pod.id);
    }

    pub(super) fn add_container(&self, id: &str, pod_id: &str) {
        self.lock()
            .containers
            .insert(id.to_owned(), pod_id.to_owned());
    }

    pub(super) fn remove_container(&self, id: &str) {
        self.lock().containers.remove(id);
    }

    /// The pod with this id or unambiguous beginning of one.
    pub fn pod(&self, id: &str) -> Result<Arc<Handle>, Error> {
        let inner = self.lock();
        let whole = resolve("pod sandbox", &inner.pods, id)?;
        let handle = &inner.pods[&whole];
        handle.name_in_span();
        Ok(handle.clone())
    }

    /// The container's full id and its pod.
    pub fn container(&self, id: &str) -> Result<(String, Arc<Handle>), Error> {
        let inner = self.lock();
        let whole = resolve("container", &inner.containers, id)?;
        match inner.pods.get(&inner.containers[&whole]) {
            Some(handle) => {
                handle.name_in_span();
                Span::current().record("container_id", &whole);
                Ok((whole, handle.clone()))
            }
            None => Err(not_found("container", id)),
        }
    }

    /// A container as it was published last.
    pub fn container_view(&self, id: &str) -> Result<(Arc<PodView>, ContainerView), Error> {
        let (id, handle) = self.container(id)?;
        let pod = handle.view();
        match pod.container(&id) {
            Some(container) => {
                let container = container.clone();
                Ok((pod, container))
            }
            None => Err(not_found("container", &id)),
        }
    }

    /// All that may be seen, by id.
    pub fn views(&self) -> Vec<Arc<PodView>> {
        let mut views = self.every_view();
        views.retain(|view| view.listed);
        views
    }

    /// Those that are being made, too.
    pub fn every_view(&self) -> Vec<Arc<PodView>> {
        let handles: Vec<Arc<Handle>> = self.lock().pods.values().cloned().collect();
        handles.iter().map(|handle| handle.view()).collect()
    }
}

fn not_found(what: &'static str, id: &str) -> Error {
    Error::NotFound {
        what,
        id: id.chars().take(64).collect(),
    }
}

/// Exact, or the only one that begins so.
fn resolve<T>(what: &'static str, all: &BTreeMap<String, T>, id: &str) -> Result<String, Error> {
    if id.is_empty() {
        return Err(Error::InvalidArgument(format!("{what} id is empty")));
    }
    if all.contains_key(id) {
        return Ok(id.to_owned());
    }
    if !id::is_prefix(id) {
        return Err(not_found(what, id));
    }
    let mut begins = all
        .range(id.to_owned()..)
        .map(|(whole, _)| whole)
        .take_while(|whole| whole.starts_with(id));
    match (begins.next(), begins.next()) {
        (Some(whole), None) => Ok(whole.clone()),
        (Some(_), Some(_)) => Err(Error::Ambiguous {
            what,
            id: id.to_owned(),
        }),
        _ => Err(not_found(what, id)),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn an_id_is_found_by_its_whole_or_by_an_unambiguous_beginning() {
        let all: BTreeMap<String, ()> = ["abc1".to_owned(), "abc2".to_owned(), "def0".to_owned()]
            .map(|id| (id, ()))
            .into();
        for (id, found) in [
            ("abc1", Ok("abc1")),
            ("d", Ok("def0")),
            ("abc", Err(Code::InvalidArgument)),
            ("abd", Err(Code::NotFound)),
            ("abc11", Err(Code::NotFound)),
            ("", Err(Code::InvalidArgument)),
            ("../abc1", Err(Code::NotFound)),
            (&"a".repeat(1 << 20), Err(Code::NotFound)),
        ] {
            let got = resolve("container", &all, id).map_err(|e| e.code());
            assert_eq!(got, found.map(str::to_owned), "{id:.20}");
        }
    }
}
