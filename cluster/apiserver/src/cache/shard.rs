//! The objects of one kind, its last changes, and who watches them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_store::Revision;
use tokio::sync::{mpsc, watch};

use super::change::{Change, Entry};
use crate::failure::Failure;

/// Changes that a new watch can begin at; upstream's window grows to 102,400. A client that was away for longer lists again.
const WINDOW: usize = 4096;
/// Bytes of objects that the window keeps alive, at most (beside those that are there anyway).
const WINDOW_BYTES: usize = 16 << 20;
/// The last changes that stay encoded: a watcher that lags further behind encodes for itself.
const ENCODED: usize = 256;
/// Changes that wait for one watcher. One that has not read for so long is cut, and lists again.
const QUEUE: usize = 2048;

/// Scopes that somebody has watched, before those are looked for whom nobody watches any more.
const SCOPES: usize = 64;

/// Whom a change concerns at all. A watcher of one node's pods, or of one object, is not even woken for others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WatchScope {
    All,
    Namespace(String),
    /// `spec.nodeName` of pods.
    Node(String),
    /// The one with this path: a kubelet watches each Secret and ConfigMap of its pods so.
    Object(String),
}

#[derive(Debug)]
pub struct Shard {
    pub storage: String,
    feed: Arc<watch::Sender<Revision>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<Box<str>, Arc<Entry>>,
    window: VecDeque<Arc<Change>>,
    window_bytes: usize,
    /// All changes after it are in the window.
    since: Revision,
    /// Of the last change.
    revision: Revision,
    watchers: HashMap<WatchScope, Vec<mpsc::Sender<Arc<Change>>>>,
    /// So many scopes, and those that nobody watches are taken away.
    sweep_at: usize,
}

/// What a new watcher starts with.
#[derive(Debug)]
pub struct Subscription {
    /// Everything up to it is in `objects`, or was in those of `from`.
    pub revision: Revision,
    /// Where asked for: what was there.
    pub objects: Vec<Arc<Entry>>,
    /// What changed since `from`.
    pub changes: Vec<Arc<Change>>,
    /// What comes next. It ends when the watcher was too slow, or the cache had to be loaded anew.
    pub queue: mpsc::Receiver<Arc<Change>>,
}

impl Shard {
    pub(super) fn new(storage: &str, feed: Arc<watch::Sender<Revision>>) -> Self {
        let loaded = *feed.borrow();
        Self {
            storage: storage.to_owned(),
            feed,
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                window: VecDeque::new(),
                window_bytes: 0,
                since: loaded,
                revision: loaded,
                watchers: HashMap::new(),
                sweep_at: SCOPES,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self, state: &State) -> Revision {
        state.revision.max(*self.feed.borrow())
    }

    /// Those whose path begins so, after `after` where it is not empty, and the revision that they are of.
    pub fn list(&self, prefix: &str, after: &str) -> (Vec<Arc<Entry>>, Revision) {
        let state = self.state();
        let objects = state.range(prefix, after).cloned().collect();
        (objects, self.seen(&state))
    }

    /// The same as of `revision`; none where something has changed since.
    pub fn list_as_of(
        &self,
        revision: Revision,
        prefix: &str,
        after: &str,
    ) -> Option<Vec<Arc<Entry>>> {
        let state = self.state();
        (state.revision <= revision).then(|| state.range(prefix, after).cloned().collect())
    }

    pub fn get(&self, path: &str) -> Option<Arc<Entry>> {
        self.state().objects.get(path).cloned()
    }

    pub fn is_empty(&self, prefix: &str) -> bool {
        self.state().range(prefix, "").next().is_none()
    }

    pub fn len(&self) -> usize {
        self.state().objects.len()
    }

    /// When it changed last.
    pub fn revision(&self) -> Revision {
        self.state().revision
    }

    /// From now on, with what is there.
    pub fn subscribe(&self, scope: WatchScope, prefix: &str) -> Subscription {
        let mut state = self.state();
        let objects = state.range(prefix, "").cloned().collect();
        let revision = self.seen(&state);
        Subscription {
            revision,
            objects,
            changes: Vec::new(),
            queue: state.add(scope),
        }
    }

    /// From what came after `from` on.
    ///
    /// # Errors
    /// 410 where that is not known any more.
    pub fn subscribe_from(
        &self,
        scope: WatchScope,
        from: Revision,
    ) -> Result<Subscription, Failure> {
        let mut state = self.state();
        if from < state.since {
            return Err(Failure::too_old(from, state.since));
        }
        let start = state
            .window
            .partition_point(|change| change.revision <= from);
        let changes = state.window.range(start..).cloned().collect();
        let revision = self.seen(&state);
        Ok(Subscription {
            revision,
            objects: Vec::new(),
            changes,
            queue: state.add(scope),
        })
    }

    /// The feed's: `new` is (path, entry or its end), in their order.
    pub(super) fn apply(
        &self,
        changes: Vec<(String, Revision, Option<Entry>)>,
    ) -> Vec<Arc<Change>> {
        let mut state = self.state();
        let mut applied = Vec::with_capacity(changes.len());
        for (path, revision, new) in changes {
            let new = new.map(Arc::new);
            let old = match &new {
                Some(entry) => state.objects.insert(entry.path.clone(), entry.clone()),
                None => state.objects.remove(path.as_str()),
            };
            state.revision = revision;
            if old.is_none() && new.is_none() {
                continue;
            }
            let change = Arc::new(Change::new(revision, old, new));
            state.remember(change.clone());
            state.tell(&change);
            applied.push(change);
        }
        applied
    }

    /// The feed's: everything anew, as of `revision`. Watchers end; those who were known come back by what is changed.
    pub(super) fn reload(&self, revision: Revision, entries: Vec<Entry>) -> Vec<Arc<Change>> {
        let mut state = self.state();
        let mut old = std::mem::take(&mut state.objects);
        state.window.clear();
        state.window_bytes = 0;
        state.watchers.clear();
        state.since = revision;
        state.revision = revision;
        let mut changes = Vec::new();
        for entry in entries {
            let entry = Arc::new(entry);
            let old = old.remove(&entry.path);
            if old.as_ref().map(|old| old.revision) != Some(entry.revision) {
                changes.push(Arc::new(Change::new(revision, old, Some(entry.clone()))));
            }
            state.objects.insert(entry.path.clone(), entry);
        }
        changes.extend(
            old.into_values()
                .map(|gone| Arc::new(Change::new(revision, Some(gone), None))),
        );
        changes
    }
}

impl State {
    fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Entry>> {
        let from = if after.is_empty() {
            Bound::Included(prefix)
        } else {
            Bound::Excluded(after)
        };
        self.objects
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(move |entry| entry.path.starts_with(prefix))
    }

    fn add(&mut self, scope: WatchScope) -> mpsc::Receiver<Arc<Change>> {
        if self.watchers.len() >= self.sweep_at {
            self.watchers.retain(|_, watchers| {
                watchers.retain(|watcher| !watcher.is_closed());
                !watchers.is_empty()
            });
            self.sweep_at = SCOPES.max(2 * self.watchers.len());
        }
        let (sender, queue) = mpsc::channel(QUEUE);
        let watchers = self.watchers.entry(scope).or_default();
        watchers.retain(|watcher| !watcher.is_closed());
        watchers.push(sender);
        queue
    }

    fn remember(&mut self, change: Arc<Change>) {
        self.window_bytes += held(&change);
        self.window.push_back(change);
        if let Some(older) = self.window.len().checked_sub(ENCODED + 1) {
            self.window[older].forget_encoded();
        }
        while self.window.len() > WINDOW || self.window_bytes > WINDOW_BYTES {
            let Some(first) = self.window.pop_front() else {
                break;
            };
            self.window_bytes -= held(&first);
            self.since = first.revision;
        }
        // a revision is in the window whole or not at all
        while self
            .window
            .front()
            .is_some_and(|first| first.revision <= self.since)
        {
            if let Some(first) = self.window.pop_front() {
                self.window_bytes -= held(&first);
            }
        }
    }

    fn tell(&mut self, change: &Arc<Change>) {
        let sides = [change.old.as_deref(), change.new.as_deref()];
        let mut scopes = vec![WatchScope::All];
        for entry in sides.into_iter().flatten() {
            let namespace = entry.namespace();
            let node = entry.field("spec.nodeName");
            for scope in [
                (!namespace.is_empty()).then(|| WatchScope::Namespace(namespace.to_owned())),
                (!node.is_empty()).then(|| WatchScope::Node(node.to_owned())),
                Some(WatchScope::Object(entry.path.to_string())),
            ]
            .into_iter()
            .flatten()
            {
                if !scopes.contains(&scope) {
                    scopes.push(scope);
                }
            }
        }
        for scope in scopes {
            let Some(watchers) = self.watchers.get_mut(&scope) else {
                continue;
            };
            // One whose queue is full is cut: its queue ends, and it is told so.
            watchers.retain(|watcher| watcher.try_send(change.clone()).is_ok());
            if watchers.is_empty() {
                self.watchers.remove(&scope);
            }
        }
    }
}

/// Bytes that are there only for the window's sake.
fn held(change: &Change) -> usize {
    change.old.as_ref().map_or(0, |old| old.bytes.len()) + 256
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shard() -> Shard {
        Shard::new("configmaps", Arc::new(watch::Sender::new(1)))
    }

    fn put(shard: &Shard, path: &str, revision: Revision) {
        let entry = Entry::new(None, path, revision, &mut json!({"metadata": {}}));
        shard.apply(vec![(path.to_owned(), revision, Some(entry))]);
    }

    #[test]
    fn a_watcher_of_one_object_is_not_woken_for_others() {
        let shard = shard();
        let mut of_one = shard.subscribe(WatchScope::Object("n/a".into()), "n/");
        let mut of_all = shard.subscribe(WatchScope::Namespace("n".into()), "n/");
        for (path, revision) in [("n/a", 2), ("n/b", 3), ("n/a", 4), ("m/a", 5)] {
            put(&shard, path, revision);
        }
        shard.apply(vec![("n/a".to_owned(), 6, None)]);
        let told = |watcher: &mut Subscription| {
            let mut revisions = Vec::new();
            while let Ok(change) = watcher.queue.try_recv() {
                revisions.push(change.revision);
            }
            revisions
        };
        assert_eq!(told(&mut of_one), [2, 4, 6]);
        assert_eq!(told(&mut of_all), [2, 3, 4, 6]);
    }

    #[test]
    fn what_nobody_watches_any_more_is_forgotten() {
        let shard = shard();
        let kept = shard.subscribe(WatchScope::Object("n/kept".into()), "n/");
        for n in 0..100 * SCOPES {
            drop(shard.subscribe(WatchScope::Object(format!("n/{n}")), "n/"));
        }
        let scopes = shard.state().watchers.len();
        assert!(scopes <= SCOPES + 1, "{scopes}");
        put(&shard, "n/kept", 2);
        let mut queue = kept.queue;
        assert!(queue.try_recv().is_ok());
    }
}
