//! The watches that have caught up: each commit hands its events to all of them.
//!
//! A watch of the past first reads the log (see [`crate::core`]), then enters here. A reader that leaves more waiting than
//! [`MAX_WAITING_EVENTS`] or [`MAX_WAITING_BYTES`] is told [`Error::Slow`] and what waited is dropped at once.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::{Error, Event, Keys, MAX_WAITING_BYTES, MAX_WAITING_EVENTS, Revision, WatchBatch};

/// How often those are told of the revision whom no event tells of it: what a bookmark says needn't be newer.
pub(crate) const PROGRESS: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Watchers {
    all: Mutex<Vec<Arc<Watcher>>>,
    progress: Mutex<Option<(Instant, Revision)>>,
}

/// One watch's queue, between the commit and its reader.
#[derive(Debug)]
pub(crate) struct Watcher {
    keys: Keys,
    previous: bool,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    batches: VecDeque<WatchBatch>,
    events: usize,
    bytes: usize,
    /// Everything before it is told or waits.
    next: Revision,
    ended: Option<Error>,
    /// Its reader is gone, or knows that it ended.
    closed: bool,
    waker: Option<Waker>,
}

impl Watchers {
    /// `published` is asked for under the lock: what is published later is told. None where the reader isn't at `next` yet.
    pub fn enter(
        &self,
        keys: &Keys,
        previous: bool,
        next: Revision,
        published: impl FnOnce() -> Revision,
    ) -> Option<Reader> {
        let mut all = lock(&self.all);
        if published() >= next {
            return None;
        }
        let watcher = Arc::new(Watcher {
            keys: keys.clone(),
            previous,
            waiting: Mutex::new(Waiting {
                batches: VecDeque::new(),
                events: 0,
                bytes: 0,
                next,
                ended: None,
                closed: false,
                waker: None,
            }),
        });
        all.push(watcher.clone());
        Some(Reader(watcher))
    }

    /// Whether any wants to know what was there before.
    pub fn want_previous(&self) -> bool {
        lock(&self.all).iter().any(|watcher| watcher.previous)
    }

    /// The events of one revision, in its order.
    pub fn feed(&self, revision: Revision, events: &[Event]) {
        lock(&self.all).retain(|watcher| watcher.push(revision, events));
    }

    /// Tells all that they know everything up to `revision`, not more often than each [`PROGRESS`].
    pub fn progress(&self, revision: Revision) {
        let now = Instant::now();
        {
            let mut last = lock(&self.progress);
            if last.is_some_and(|(at, told)| told == revision || now - at < PROGRESS) {
                return;
            }
            *last = Some((now, revision));
        }
        lock(&self.all).retain(|watcher| watcher.push(revision, &[]));
    }

    /// Nothing will come any more.
    pub fn end(&self, why: &str) {
        for watcher in lock(&self.all).drain(..) {
            lock(&watcher.waiting).end(Error::Broken {
                act: "watch",
                why: why.to_owned(),
            });
        }
    }
}

impl Watcher {
    /// False: it needs no more.
    fn push(&self, revision: Revision, events: &[Event]) -> bool {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return false;
        }
        if revision < waiting.next {
            return true;
        }
        let events: Vec<Event> = events
            .iter()
            .filter(|event| self.keys.has(&event.kv.key))
            .map(|event| Event {
                previous: event.previous.clone().filter(|_| self.previous),
                ..event.clone()
            })
            .collect();
        waiting.add(WatchBatch { revision, events })
    }
}

impl Waiting {
    fn add(&mut self, batch: WatchBatch) -> bool {
        self.next = batch.revision + 1;
        if batch.events.is_empty() {
            // Where something waits its reader is told the newest revision with it, at no cost.
            match self.batches.back_mut() {
                Some(last) => {
                    last.revision = batch.revision;
                    return true;
                }
                None if self.closed => return false,
                None => {}
            }
        }
        self.events += batch.events.len();
        self.bytes += size(&batch);
        self.batches.push_back(batch);
        if self.events > MAX_WAITING_EVENTS || self.bytes > MAX_WAITING_BYTES {
            let waiting = self.events;
            self.end(Error::Slow { waiting });
            return false;
        }
        self.wake();
        true
    }

    fn end(&mut self, error: Error) {
        self.batches = VecDeque::new();
        (self.events, self.bytes) = (0, 0);
        self.ended = Some(error);
        self.closed = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Where the reader takes its batches; dropped, the watch ends.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Watcher>);

impl Reader {
    /// For stores that are fed from elsewhere.
    pub fn pipe() -> (Feeder, Self) {
        let watcher = Arc::new(Watcher {
            keys: Keys::prefix(""),
            previous: true,
            waiting: Mutex::new(Waiting {
                batches: VecDeque::new(),
                events: 0,
                bytes: 0,
                next: 0,
                ended: None,
                closed: false,
                waker: None,
            }),
        });
        (Feeder(watcher.clone()), Self(watcher))
    }

    /// None after an error.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Result<WatchBatch, Error>>> {
        let mut waiting = lock(&self.0.waiting);
        if let Some(batch) = waiting.batches.pop_front() {
            waiting.events -= batch.events.len();
            waiting.bytes -= size(&batch);
            return Poll::Ready(Some(Ok(batch)));
        }
        if waiting.closed {
            return Poll::Ready(waiting.ended.take().map(Err));
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0.waiting);
        waiting.closed = true;
        waiting.batches = VecDeque::new();
    }
}

#[derive(Debug)]
pub(crate) struct Feeder(Arc<Watcher>);

impl Feeder {
    /// False: nobody reads it any more.
    pub fn push(&self, batch: WatchBatch) -> bool {
        let mut waiting = lock(&self.0.waiting);
        !waiting.closed && waiting.add(batch)
    }

    pub fn end(&self, error: Error) {
        let mut waiting = lock(&self.0.waiting);
        if !waiting.closed {
            waiting.end(error);
        }
    }

    pub fn closed(&self) -> bool {
        lock(&self.0.waiting).closed
    }
}

fn size(batch: &WatchBatch) -> usize {
    batch
        .events
        .iter()
        .map(|event| {
            let previous = event.previous.as_ref().map_or(0, |kv| kv.value.len());
            event.kv.key.len() + event.kv.value.len() + previous
        })
        .sum()
}

/// What a panic left behind is still whole: each lock is held for one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
