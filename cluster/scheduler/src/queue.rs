//! Pods that wait for a node.
//!
//! ```text
//! added ──▶ active ──▶ (decided) ──▶ bound
//!             ▲  ▲         │ no node
//!             │  │         ▼
//!             │  └──── unschedulable ──▶ something that may cure it happens, or five minutes
//!             │            │
//!             └── backing off: 1 s, 2 s, … 10 s since the last try
//! gated: until its gates are gone
//! ```

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{pod::PodFacts, unfit::Cures};

const BACKOFF: Duration = Duration::from_secs(1);
const MOST_BACKOFF: Duration = Duration::from_secs(10);
/// After which a pod is tried again though nothing is known to have happened.
const TRY_AGAIN: Duration = Duration::from_secs(300);

/// The more important first, then who has waited longer.
type Order = (Reverse<i32>, u64);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Active(Order),
    BackingOff(Instant, u64),
    Unschedulable {
        cures: Cures,
        until: Instant,
    },
    Gated,
    /// It is being decided or bound.
    Taken,
}

#[derive(Debug)]
struct Waiting {
    pod: PodFacts,
    place: Place,
    order: Order,
    tries: u32,
    tried: Option<Instant>,
    /// What happened since it was taken.
    since: Cures,
}

#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BTreeMap<Order, Arc<str>>,
    backing_off: BTreeSet<(Instant, u64, Arc<str>)>,
    unschedulable: BTreeSet<(Instant, Arc<str>)>,
    /// And nobody was looked at since.
    happened: Cures,
    added: u64,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Waiting to be decided now, as far as was looked.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// A pod comes or says something else. What it is called, or when it was made, changes nothing for who waits.
    pub fn set(&mut self, pod: PodFacts) {
        let uid = pod.uid.clone();
        let gated = !pod.gates.is_empty();
        if let Some(waiting) = self.pods.get_mut(&uid) {
            let same = waiting.pod.class == pod.class
                && waiting.pod.priority == pod.priority
                && waiting.pod.gates == pod.gates
                && waiting.pod.may_preempt == pod.may_preempt;
            waiting.pod = pod;
            if same || waiting.place == Place::Taken {
                return;
            }
            let order = (Reverse(waiting.pod.priority), waiting.order.1);
            waiting.order = order;
        } else {
            self.added += 1;
            let waiting = Waiting {
                order: (Reverse(pod.priority), self.added),
                pod,
                place: Place::Taken,
                tries: 0,
                tried: None,
                since: Cures::default(),
            };
            self.pods.insert(uid.clone(), waiting);
        }
        if gated {
            self.put(&uid, Place::Gated);
        } else {
            self.activate(&uid);
        }
    }

    pub fn remove(&mut self, uid: &str) -> Option<PodFacts> {
        let (uid, _) = self.pods.get_key_value(uid)?;
        let uid = uid.clone();
        self.put(&uid, Place::Taken);
        self.pods.remove(&uid).map(|waiting| waiting.pod)
    }

    fn put(&mut self, uid: &Arc<str>, place: Place) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        match waiting.place {
            Place::Active(order) => drop(self.active.remove(&order)),
            Place::BackingOff(until, order) => {
                self.backing_off.remove(&(until, order, uid.clone()));
            }
            Place::Unschedulable { until, .. } => {
                self.unschedulable.remove(&(until, uid.clone()));
            }
            Place::Gated | Place::Taken => {}
        }
        match place {
            Place::Active(order) => drop(self.active.insert(order, uid.clone())),
            Place::BackingOff(until, order) => {
                self.backing_off.insert((until, order, uid.clone()));
            }
            Place::Unschedulable { until, .. } => {
                self.unschedulable.insert((until, uid.clone()));
            }
            Place::Gated | Place::Taken => {}
        }
        waiting.place = place;
    }

    /// To be tried as soon as its back-off is over.
    fn activate(&mut self, uid: &Arc<str>) {
        let Some(waiting) = self.pods.get(uid) else {
            return;
        };
        let backoff = BACKOFF.saturating_mul(1 << waiting.tries.saturating_sub(1).min(8));
        let place = match waiting.tried {
            None => Place::Active(waiting.order),
            Some(tried) => Place::BackingOff(tried + backoff.min(MOST_BACKOFF), waiting.order.1),
        };
        self.put(uid, place);
    }

    /// The next one; it has to be given back, or removed once it is bound.
    pub fn take(&mut self, now: Instant) -> Option<PodFacts> {
        self.cure();
        self.wake(now);
        let (_, uid) = self.active.first_key_value()?;
        let uid = uid.clone();
        self.put(&uid, Place::Taken);
        let waiting = self.pods.get_mut(&uid)?;
        waiting.since = Cures::default();
        waiting.tries += 1;
        waiting.tried = Some(now);
        Some(waiting.pod.clone())
    }

    /// No node took it; it is tried again when something happens that may be a cure, or has happened meanwhile.
    pub fn unfit(&mut self, uid: &Arc<str>, cures: Cures, now: Instant) {
        self.cure();
        let Some(waiting) = self.pods.get(uid) else {
            return;
        };
        if cures.meets(waiting.since) {
            self.activate(uid);
        } else {
            let until = now + TRY_AGAIN;
            self.put(uid, Place::Unschedulable { cures, until });
        }
    }

    /// It was not its fault.
    pub fn again(&mut self, uid: &Arc<str>) {
        self.activate(uid);
    }

    /// Whom it may cure is looked for when the next one is taken: much happens at once.
    pub fn happened(&mut self, what: Cures) {
        self.happened = self.happened | what;
    }

    fn cure(&mut self) {
        let what = std::mem::take(&mut self.happened);
        if what == Cures::default() {
            return;
        }
        let mut cured = Vec::new();
        for (uid, waiting) in &mut self.pods {
            match waiting.place {
                Place::Unschedulable { cures, .. } if cures.meets(what) => cured.push(uid.clone()),
                Place::Taken => waiting.since = waiting.since | what,
                _ => {}
            }
        }
        for uid in cured {
            self.activate(&uid);
        }
    }

    /// Whose time has come.
    fn wake(&mut self, now: Instant) {
        while let Some((until, uid)) = self.unschedulable.first().cloned()
            && until <= now
        {
            self.activate(&uid);
        }
        while let Some((until, _, uid)) = self.backing_off.first().cloned()
            && until <= now
            && let Some(waiting) = self.pods.get(&uid)
        {
            let order = waiting.order;
            self.put(&uid, Place::Active(order));
        }
    }

    /// When somebody's time comes next.
    pub fn next(&self) -> Option<Instant> {
        let backing_off = self.backing_off.first().map(|(until, ..)| *until);
        let unschedulable = self.unschedulable.first().map(|(until, _)| *until);
        backing_off.into_iter().chain(unschedulable).min()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn pod(name: &str, priority: i32, gates: serde_json::Value) -> PodFacts {
        let pod = from_value(json!({
            "metadata": {"name": name, "uid": name, "namespace": "a"},
            "spec": {"priority": priority, "schedulingGates": gates, "containers": [{"name": "c"}]},
        }));
        PodFacts::of(&pod.expect("a pod")).expect("names")
    }

    fn names(queue: &mut Queue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.take(now).map(|pod| pod.name.to_string())).collect()
    }

    #[test]
    fn the_more_important_go_first_and_gated_ones_wait() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(pod("low", 0, json!([])));
        queue.set(pod("high", 10, json!([])));
        queue.set(pod("later", 0, json!([])));
        queue.set(pod("gated", 99, json!([{"name": "x"}])));
        assert_eq!(names(&mut queue, now), ["high", "low", "later"]);
        queue.set(pod("gated", 99, json!([])));
        assert_eq!(names(&mut queue, now), ["gated"]);
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn who_fits_nowhere_waits_for_a_cure_and_backs_off() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.set(pod("one", 0, json!([])));
        let uid: Arc<str> = "one".into();
        assert_eq!(names(&mut queue, now), ["one"]);
        queue.unfit(&uid, Cures::POD_GONE, now);
        queue.happened(Cures::POD_THERE);
        assert!(names(&mut queue, now).is_empty());
        assert_eq!(queue.next(), Some(now + TRY_AGAIN));
        queue.happened(Cures::POD_GONE);
        assert!(names(&mut queue, now).is_empty());
        assert_eq!(queue.next(), Some(now + BACKOFF));
        now += BACKOFF;
        assert_eq!(names(&mut queue, now), ["one"]);
        // what happens while it is decided counts, too
        queue.happened(Cures::NODE);
        queue.unfit(&uid, Cures::NODE, now);
        assert_eq!(queue.next(), Some(now + 2 * BACKOFF));
        now += 2 * BACKOFF;
        assert_eq!(names(&mut queue, now), ["one"]);
        queue.unfit(&uid, Cures::NODE, now);
        assert!(names(&mut queue, now + TRY_AGAIN / 2).is_empty());
        assert_eq!(names(&mut queue, now + TRY_AGAIN), ["one"]);
        assert!(queue.remove("one").is_some() && queue.len() == 0 && queue.next().is_none());
    }

    #[test]
    fn back_off_is_bounded() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.set(pod("one", 0, json!([])));
        let uid: Arc<str> = "one".into();
        for _ in 0..40 {
            assert!(queue.take(now).is_some());
            queue.again(&uid);
            let next = queue.next().expect("it backs off");
            assert!(next > now && next <= now + MOST_BACKOFF);
            now = next;
        }
    }
}
