//! What happened to pods and containers, for those who want to hear of it (GetContainerEvents).
//!
//! An event is the difference between two views of a pod, published one after the other; so a subscriber hears of each step that a
//! reader of the lists could have seen, in its order, and nothing twice. A container that was seen created and is seen exited has
//! been started in between: that is said too.
//!
//! # Synchronization
//! Drivers tell under one lock and never wait: who does not read is let go with the number of events that it fell behind, rather
//! than hear of some and not of others.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use berth_proto::cri::{ContainerEventType as Type, ContainerState};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{record::now_ns, view::PodView};

/// A kubelet reads as they come; this is a churn of some hundred pods that it did not get to.
pub const MAX_BEHIND: usize = 4096;
/// One kubelet and a few tools; each costs up to [`MAX_BEHIND`] small entries.
pub const MAX_SUBSCRIBERS: usize = 64;

/// One event.
#[derive(Debug, Clone)]
pub struct Happening<P = Arc<PodView>> {
    /// Of the container, or of the pod itself.
    pub id: String,
    pub what: Type,
    /// ns since the epoch
    pub at: i64,
    /// The pod right after it.
    pub pod: P,
}

/// The subscribers.
#[derive(Debug)]
pub struct Happenings<P = Arc<PodView>> {
    subscribers: Mutex<Vec<mpsc::Sender<Happening<P>>>>,
    /// How many were let go because they did not read.
    lagged: AtomicU64,
}

impl<P> Default for Happenings<P> {
    fn default() -> Self {
        Self {
            subscribers: Mutex::default(),
            lagged: AtomicU64::new(0),
        }
    }
}

impl<P: Clone> Happenings<P> {
    /// From now on. `None`: there are [`MAX_SUBSCRIBERS`] already. The channel ends when its reader falls behind.
    pub fn subscribe(&self) -> Option<mpsc::Receiver<Happening<P>>> {
        let mut subscribers = self.lock();
        subscribers.retain(|subscriber| !subscriber.is_closed());
        if subscribers.len() >= MAX_SUBSCRIBERS {
            return None;
        }
        let (sender, receiver) = mpsc::channel(MAX_BEHIND);
        subscribers.push(sender);
        Some(receiver)
    }

    /// How many listen.
    pub fn subscribers(&self) -> usize {
        let subscribers = self.lock();
        subscribers.iter().filter(|s| !s.is_closed()).count()
    }

    /// How many were let go because they did not keep up.
    pub fn lagged(&self) -> u64 {
        self.lagged.load(Ordering::Relaxed)
    }

    /// Ends every subscription.
    pub fn close(&self) {
        self.lock().clear();
    }

    /// Tells what lies between two sights of one pod. `after` is `None` once the pod is gone.
    pub(super) fn tell(&self, before: impl Into<Sight>, after: Option<impl Into<Sight>>, pod: &P) {
        let mut subscribers = self.lock();
        if subscribers.is_empty() {
            return;
        }
        let at = now_ns();
        for (id, what) in differences(&before.into(), after.map(Into::into).as_ref()) {
            let happening = Happening {
                id,
                what,
                at,
                pod: pod.clone(),
            };
            subscribers.retain(|subscriber| {
                let sent = subscriber.try_send(happening.clone());
                if matches!(sent, Err(TrySendError::Full(_))) {
                    self.lagged.fetch_add(1, Ordering::Relaxed);
                }
                sent.is_ok()
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<mpsc::Sender<Happening<P>>>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a view, what events are made of.
#[derive(Debug, Clone, Default)]
pub struct Sight {
    pod_id: String,
    listed: bool,
    ready: bool,
    containers: BTreeMap<String, (Stage, Ran)>,
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Absent,
    Created,
    Running,
    Exited,
}

/// Whether it was ever started.
type Ran = bool;

impl From<&Arc<PodView>> for Sight {
    fn from(view: &Arc<PodView>) -> Self {
        Self {
            pod_id: view.pod.id.clone(),
            listed: view.listed,
            ready: view.ready,
            containers: view
                .containers
                .iter()
                .map(|container| {
                    let stage = match container.state {
                        ContainerState::ContainerCreated | ContainerState::ContainerUnknown => {
                            Stage::Created
                        }
                        ContainerState::ContainerRunning => Stage::Running,
                        // Being removed, and never started.
                        ContainerState::ContainerExited if container.exit.is_none() => {
                            Stage::Created
                        }
                        ContainerState::ContainerExited => Stage::Exited,
                    };
                    let ran = container.started_at != 0;
                    (container.record.id.clone(), (stage, ran))
                })
                .collect(),
        }
    }
}

/// A pod begins before its containers and ends after them.
fn differences(before: &Sight, after: Option<&Sight>) -> Vec<(String, Type)> {
    let mut happened = Vec::new();
    let of_pod = |happened: &mut Vec<_>, what| happened.push((before.pod_id.clone(), what));
    let gone = Sight::default();
    let now = after.unwrap_or(&gone);
    if !before.listed && now.listed {
        of_pod(&mut happened, Type::ContainerCreatedEvent);
        if now.ready {
            of_pod(&mut happened, Type::ContainerStartedEvent);
        }
    }
    let ids: BTreeSet<&String> = before
        .containers
        .keys()
        .chain(now.containers.keys())
        .collect();
    for id in ids {
        let at = |sight: &Sight| *sight.containers.get(id).unwrap_or(&(Stage::Absent, false));
        let told = steps(at(before).0, at(now));
        happened.extend(told.into_iter().map(|what| (id.clone(), what)));
    }
    if before.ready && !now.ready {
        of_pod(&mut happened, Type::ContainerStoppedEvent);
    }
    if before.listed && !now.listed {
        of_pod(&mut happened, Type::ContainerDeletedEvent);
    }
    happened
}

fn steps(was: Stage, (is, ran): (Stage, Ran)) -> Vec<Type> {
    let mut told = Vec::new();
    if was == Stage::Absent && is > Stage::Absent {
        told.push(Type::ContainerCreatedEvent);
    }
    if was < Stage::Running && is >= Stage::Running && ran {
        told.push(Type::ContainerStartedEvent);
    }
    // Removed before it was ever started: there was nothing to stop.
    let ended = was < Stage::Exited && is == Stage::Exited;
    if ended || (was == Stage::Running && is == Stage::Absent) {
        told.push(Type::ContainerStoppedEvent);
    }
    if was > Stage::Absent && is == Stage::Absent {
        told.push(Type::ContainerDeletedEvent);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    use Type::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted,
        ContainerStartedEvent as Started, ContainerStoppedEvent as Stopped,
    };

    #[test]
    fn each_step_between_two_sights_of_a_container_is_told_once_and_in_order() {
        use Stage::{Absent, Created as Made, Exited, Running};
        for (was, is, told) in [
            (Absent, (Made, false), &[Created][..]),
            (Absent, (Exited, true), &[Created, Started, Stopped]),
            (Made, (Made, false), &[]),
            (Made, (Running, true), &[Started]),
            (Made, (Exited, true), &[Started, Stopped]),
            (Made, (Exited, false), &[Stopped]),
            (Running, (Exited, true), &[Stopped]),
            (Running, (Absent, false), &[Stopped, Deleted]),
            (Exited, (Absent, false), &[Deleted]),
            (Made, (Absent, false), &[Deleted]),
            (Absent, (Absent, false), &[]),
        ] {
            assert_eq!(steps(was, is), told, "{was:?} to {is:?}");
        }
    }

    fn sight(ready: bool, containers: &[(&str, Stage)]) -> Sight {
        Sight {
            pod_id: "p".into(),
            listed: ready,
            ready,
            containers: containers
                .iter()
                .map(|(id, stage)| (id.to_string(), (*stage, true)))
                .collect(),
        }
    }

    #[test]
    fn a_pod_begins_before_its_containers_and_ends_after_them() {
        let unborn = sight(false, &[]);
        let whole = sight(true, &[("c", Stage::Running)]);
        let names = |told: Vec<(String, Type)>| -> Vec<String> {
            told.iter()
                .map(|(id, what)| format!("{id} {what:?}"))
                .collect()
        };
        assert_eq!(
            names(differences(&unborn, Some(&whole))),
            [
                "p ContainerCreatedEvent",
                "p ContainerStartedEvent",
                "c ContainerCreatedEvent",
                "c ContainerStartedEvent"
            ]
        );
        assert_eq!(
            names(differences(&whole, None)),
            [
                "c ContainerStoppedEvent",
                "c ContainerDeletedEvent",
                "p ContainerStoppedEvent",
                "p ContainerDeletedEvent"
            ]
        );
    }

    #[tokio::test]
    async fn who_does_not_read_is_let_go_and_nobody_waits_for_it() {
        let happenings = Happenings::default();
        let mut lazy = happenings.subscribe().unwrap();
        let (before, after) = (sight(false, &[]), sight(true, &[]));
        // Each round trip is four events.
        for _ in 0..MAX_BEHIND / 4 + 1 {
            happenings.tell(before.clone(), Some(after.clone()), &());
            happenings.tell(after.clone(), None::<Sight>, &());
        }
        let mut heard = 0;
        while let Some(happening) = lazy.recv().await {
            let order = [Created, Started, Stopped, Deleted];
            assert_eq!(happening.what, order[heard % 4]);
            heard += 1;
        }
        assert_eq!(heard, MAX_BEHIND);
        assert_eq!((happenings.lagged(), happenings.subscribers()), (1, 0));
    }

    #[test]
    fn subscribers_are_bounded_and_those_that_left_don_t_count() {
        let happenings = Happenings::<()>::default();
        let all: Vec<_> = (0..MAX_SUBSCRIBERS)
            .map(|_| happenings.subscribe().unwrap())
            .collect();
        assert!(happenings.subscribe().is_none());
        drop(all);
        assert!(happenings.subscribe().is_some());
    }
}
