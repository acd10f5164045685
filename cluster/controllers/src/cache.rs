//! The shared cache: one list and watch a kind, however many controllers ask.
//!
//! ```text
//! API server ── list, watch ──▶ Cache ──▶ handlers: keys into work queues
//!            ◀── writes ─ Context ──┘ what was written is there before its watch event is
//! ```
//!
//! What this process wrote is in the cache at once, so that nobody does again what was done; the watch, which is ordered by revisions, then has nothing new to say of
//! it. A write's answer that is older than what the watch has told already is let go: the object may have gone meanwhile.
//!
//! Invariant: handlers see each object's states in order, one after another, and none twice.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::{self, Debug},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use kube::{Api, Client, Resource, ResourceExt, runtime::watcher};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Key, owner};

/// For so long it is believed that something exists which a list has not shown and this process has written while that was made.
const UNSEEN: Duration = Duration::from_secs(60);

/// Before a watch that has broken is begun again; twice as long each time. A server that comes back is heard of soon.
const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);

/// What can be cached.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Kind for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// All objects of a kind, as they were last told of. Clones are of one cache.
pub struct Cache<K>(Arc<Inner<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kind> Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cache<{}>({})", K::kind(&()), self.len())
    }
}

struct Inner<K> {
    /// What field selector chooses its objects; empty: it has all.
    fields: &'static str,
    state: Mutex<State<K>>,
    /// Held while handlers are told, so that they are told in order.
    handlers: Mutex<Vec<Handler<K>>>,
    listed: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Entry<K>>,
    by_controller: HashMap<String, BTreeSet<Key>>,
    /// The newest revision that the watch has told of.
    told: u64,
    /// Removed by this process, and the watch has not told of it yet: uids.
    removed: HashMap<String, Instant>,
    /// While a list is read: what it had, and since when.
    list: Option<(HashSet<Key>, Instant)>,
}

struct Entry<K> {
    object: Arc<K>,
    revision: u64,
    /// Written by this process and not told of by the watch yet.
    unseen: Option<Instant>,
}

/// What handlers are told.
type Step<K> = (Option<Arc<K>>, Option<Arc<K>>);

fn revision<K: Resource>(object: &K) -> u64 {
    let revision = object.meta().resource_version.as_deref();
    revision
        .and_then(|revision| revision.parse().ok())
        .unwrap_or_default()
}

fn uid<K: Resource>(object: &K) -> &str {
    object.meta().uid.as_deref().unwrap_or_default()
}

fn controller<K: Resource>(object: &K) -> Option<&str> {
    owner::controller_of(object.meta()).map(|owner| owner.uid.as_str())
}

impl<K: Kind> State<K> {
    fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            by_controller: HashMap::new(),
            told: 0,
            removed: HashMap::new(),
            list: None,
        }
    }

    fn put(&mut self, key: Key, object: K, unseen: Option<Instant>) -> Step<K> {
        let object = Arc::new(object);
        let entry = Entry {
            revision: revision(&*object),
            object: object.clone(),
            unseen,
        };
        let before = self.objects.insert(key.clone(), entry);
        let before = before.map(|entry| entry.object);
        let old = before.as_deref().and_then(controller);
        let new = controller(&*object);
        if old != new {
            if let Some(old) = old {
                self.disown(old, &key);
            }
            if let Some(new) = new {
                self.by_controller
                    .entry(new.to_owned())
                    .or_default()
                    .insert(key);
            }
        }
        (before, Some(object))
    }

    fn disown(&mut self, controller: &str, key: &Key) {
        if let Some(keys) = self.by_controller.get_mut(controller) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_controller.remove(controller);
            }
        }
    }

    fn take(&mut self, key: &Key) -> Option<Step<K>> {
        let entry = self.objects.remove(key)?;
        if let Some(controller) = controller(&*entry.object) {
            self.disown(controller, key);
        }
        Some((Some(entry.object), None))
    }

    /// By the watch or the list.
    fn is(&mut self, object: K) -> Option<Step<K>> {
        let (key, revision) = (Key::of(&object), revision(&object));
        self.told = self.told.max(revision);
        if let Some((listed, _)) = &mut self.list {
            listed.insert(key.clone());
        }
        if self.removed.contains_key(uid(&object)) {
            return None;
        }
        if let Some(entry) = self.objects.get_mut(&key) {
            if entry.revision == revision {
                entry.unseen = None;
                return None;
            }
            // the newer one is this process's own, and comes yet
            if entry.revision > revision && entry.unseen.is_some() {
                return None;
            }
        }
        Some(self.put(key, object, None))
    }

    /// By the watch.
    fn is_gone(&mut self, object: &K) -> Option<Step<K>> {
        let key = Key::of(object);
        self.told = self.told.max(revision(object));
        self.removed.remove(uid(object));
        // another of the name may be there
        let entry = self.objects.get(&key)?;
        if uid(&*entry.object) != uid(object) {
            return None;
        }
        self.take(&key)
    }

    fn listed(&mut self) -> Vec<Step<K>> {
        let Some((listed, since)) = self.list.take() else {
            return Vec::new();
        };
        self.removed.retain(|_, removed| *removed >= since);
        let gone: Vec<Key> = self
            .objects
            .iter()
            .filter(|(key, entry)| {
                !listed.contains(key) && entry.unseen.is_none_or(|written| written < since)
            })
            .map(|(key, _)| key.clone())
            .collect();
        gone.iter().filter_map(|key| self.take(key)).collect()
    }

    /// Written by this process.
    fn wrote(&mut self, object: K, now: Instant) -> Option<Step<K>> {
        let (key, revision) = (Key::of(&object), revision(&object));
        let known = self.objects.get(&key).map(|entry| entry.revision);
        if revision <= self.told || known.is_some_and(|known| known >= revision) {
            return None;
        }
        Some(self.put(key, object, Some(now)))
    }

    /// Removed by this process, at once.
    fn removed(&mut self, object: &K, now: Instant) -> Option<Step<K>> {
        let key = Key::of(object);
        let entry = self.objects.get(&key)?;
        if uid(&*entry.object) != uid(object) {
            return None;
        }
        self.removed.insert(uid(object).to_owned(), now);
        self.take(&key)
    }

    /// What was written while a list was made, and was in neither that nor in what came since.
    fn doubtful(&mut self, now: Instant) -> Vec<Step<K>> {
        let gone: Vec<Key> = self
            .objects
            .iter()
            .filter(|(_, entry)| {
                entry.unseen.is_some_and(|written| {
                    now.duration_since(written) > UNSEEN && self.told > entry.revision
                })
            })
            .map(|(key, _)| key.clone())
            .collect();
        gone.iter().filter_map(|key| self.take(key)).collect()
    }
}

impl<K: Kind> Cache<K> {
    pub(crate) fn new(fields: &'static str) -> Self {
        Self(Arc::new(Inner {
            fields,
            state: Mutex::new(State::new()),
            handlers: Mutex::new(Vec::new()),
            listed: watch::Sender::new(false),
        }))
    }

    pub(crate) fn fields(&self) -> &'static str {
        self.0.fields
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        let state = self.state();
        state.objects.get(key).map(|entry| entry.object.clone())
    }

    /// In the order of their keys.
    pub fn all(&self) -> Vec<Arc<K>> {
        let state = self.state();
        let objects = state.objects.values();
        objects.map(|entry| entry.object.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.state().objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In the order of their names.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        let state = self.state();
        state
            .objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, entry)| entry.object.clone())
            .collect()
    }

    /// Whose owner reference with `controller: true` has this uid.
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        let state = self.state();
        let keys = state.by_controller.get(uid).into_iter().flatten();
        keys.filter_map(|key| state.objects.get(key))
            .map(|entry| entry.object.clone())
            .collect()
    }

    /// Calls `handler(old, new)` for each change, in order: an object that is there already or is made has no old one, one that goes no new one. It must not wait,
    /// nor change this cache.
    pub fn on_change(
        &self,
        handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static,
    ) {
        let mut handlers = self.handlers();
        for object in self.all() {
            handler(None, Some(&object));
        }
        handlers.push(Box::new(handler));
    }

    /// Waits until everything that there was is here.
    pub async fn listed(&self) {
        let mut listed = self.0.listed.subscribe();
        // the sender lives as long as the cache
        let _ = listed.wait_for(|listed| *listed).await;
    }

    fn handlers(&self) -> MutexGuard<'_, Vec<Handler<K>>> {
        let handlers = self.0.handlers.lock();
        handlers.unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, change: impl FnOnce(&mut State<K>) -> Vec<Step<K>>) {
        let handlers = self.handlers();
        let steps = change(&mut self.state());
        for (old, new) in &steps {
            for handler in handlers.iter() {
                handler(old.as_ref(), new.as_ref());
            }
        }
    }

    pub(crate) fn wrote(&self, mut object: K) {
        slim(&mut object);
        self.step(|state| state.wrote(object, Instant::now()).into_iter().collect());
    }

    pub(crate) fn removed(&self, object: &K) {
        self.step(|state| state.removed(object, Instant::now()).into_iter().collect());
    }

    fn hear(&self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => {
                self.state().list = Some((HashSet::new(), Instant::now()));
            }
            watcher::Event::InitApply(mut object) | watcher::Event::Apply(mut object) => {
                slim(&mut object);
                self.step(|state| state.is(object).into_iter().collect());
            }
            watcher::Event::Delete(object) => {
                self.step(|state| state.is_gone(&object).into_iter().collect());
            }
            watcher::Event::InitDone => {
                self.step(State::listed);
                self.0.listed.send_replace(true);
            }
        }
    }

    /// Lists and watches until `ends`; a watch that breaks, or is too far behind (410), is begun again (CP-02).
    pub(crate) async fn follow(self, client: Client, ends: CancellationToken) {
        let mut config = watcher::Config::default();
        if !self.fields().is_empty() {
            config = config.fields(self.fields());
        }
        let mut events = watcher(Api::<K>::all(client), config).boxed();
        let mut ticks = tokio::time::interval(UNSEEN);
        let mut failing = false;
        let mut wait = AGAIN;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = ticks.tick() => {
                    self.step(|state| state.doubtful(Instant::now()));
                    continue;
                }
                () = ends.cancelled() => return,
            };
            match event {
                Some(Ok(event)) => {
                    // that it begins anew is no sign of the server's
                    if !matches!(event, watcher::Event::Init) {
                        (failing, wait) = (false, AGAIN);
                    }
                    self.hear(event);
                }
                Some(Err(error)) => {
                    if !failing {
                        tracing::warn!(kind = %K::kind(&()), %error, "a watch is begun again until it holds");
                    }
                    failing = true;
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = ends.cancelled() => return,
                    }
                    wait = (wait * 2).min(AGAIN_MOST);
                }
                None => return,
            }
        }
    }
}

/// Nobody here reads who wrote which field, and it is often most of an object.
fn slim<K: Resource>(object: &mut K) {
    object.managed_fields_mut().clear();
}

#[cfg(test)]
mod tests;
