use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn bounds(replicas: i32, strategy: Value) -> Bounds {
    let spec = json!({
        "replicas": replicas, "strategy": strategy, "selector": {}, "template": {},
    });
    Bounds::of(&serde_json::from_value(spec).unwrap())
}

fn rolling(replicas: i32, surge: Value, unavailable: Value) -> Bounds {
    bounds(
        replicas,
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}),
    )
}

/// `(replicas, available)`, oldest first.
fn sizes(sizes: &[(i32, i32)]) -> Vec<Size> {
    let size = |&(replicas, available): &(i32, i32)| Size {
        replicas,
        pods: Some(replicas),
        available,
        desired: None,
        most: None,
    };
    sizes.iter().map(size).collect()
}

/// DP-13.
#[test]
fn surge_is_rounded_up_and_unavailable_down() {
    for (replicas, surge, unavailable, most, least) in [
        (10, json!("25%"), json!("25%"), 13, 8),
        (4, json!("25%"), json!("25%"), 5, 3),
        (1, json!("25%"), json!("25%"), 2, 1),
        (2, json!(0), json!("1%"), 2, 1),
        (3, json!(2), json!(0), 5, 3),
        (3, json!(0), json!(5), 3, 0),
        (0, json!("25%"), json!("25%"), 0, 0),
    ] {
        let bounds = rolling(replicas, surge, unavailable);
        assert_eq!(
            (bounds.most(), bounds.least_available()),
            (most, least),
            "{bounds:?}"
        );
    }
    let recreate = bounds(5, json!({"type": "Recreate"}));
    assert_eq!((recreate.most(), recreate.is_rolling), (5, false));
}

#[test]
fn a_roll_goes_step_by_step() {
    let ten = rolling(10, json!(3), json!(2));
    for (before, new, after, what) in [
        (&[(10, 10), (0, 0)][..], 1, &[10, 3][..], "room for three"),
        (&[(10, 10), (3, 0)], 1, &[8, 3], "two may be missing"),
        (&[(8, 8), (3, 0)], 1, &[8, 5], "room again"),
        (&[(8, 8), (5, 0)], 1, &[8, 5], "none of the new is there"),
        (&[(8, 8), (5, 2)], 1, &[6, 5], "two of the new are"),
        (
            &[(8, 7), (5, 0)],
            1,
            &[8, 5],
            "one of the old fails: none is taken",
        ),
        (&[(8, 5), (5, 1)], 1, &[7, 5], "what is ill goes first"),
        (
            &[(4, 4), (8, 8), (1, 0)],
            2,
            &[0, 8, 1],
            "the oldest goes first",
        ),
        (
            &[(8, 8), (5, 0)],
            0,
            &[8, 0],
            "undone: what never was ready goes",
        ),
        (&[(8, 8), (0, 0)], 0, &[10, 0], "and the old one grows"),
        (
            &[(9, 10), (4, 2)],
            1,
            &[6, 4],
            "those that end already don't count",
        ),
        (
            &[(0, 0), (12, 3)],
            1,
            &[0, 10],
            "no more than there are to be",
        ),
        (&[(0, 0), (10, 10)], 1, &[0, 10], "done"),
    ] {
        assert_eq!(roll(&ten, &sizes(before), new), after, "{what}");
    }
}

/// DP-15: of pods, not of sizes alone.
#[test]
fn nothing_grows_while_pods_may_yet_be_ended() {
    let ten = rolling(10, json!(3), json!(2));
    let mut both = sizes(&[(8, 8), (3, 0)]);
    both[0].pods = None;
    assert_eq!(
        roll(&ten, &both, 1),
        [8, 3],
        "nobody knows how many there are"
    );
    assert_eq!(ten.first_size(&both[..1]), 0);
    both[0].pods = Some(10);
    assert_eq!(roll(&ten, &both, 1), [8, 3], "two are to end");
    both[0].pods = Some(9);
    assert_eq!(roll(&ten, &both, 1), [8, 4]);
    assert_eq!(ten.first_size(&both[..1]), 4);
    let fifteen = rolling(15, json!(3), json!(2));
    assert!(scale(&fifteen, &both, Some(1), 13).is_some());
    both[0].pods = None;
    assert_eq!(scale(&fifteen, &both, Some(1), 13), None);
    let one = rolling(1, json!(3), json!(2));
    assert!(
        scale(&one, &both, Some(1), 13).is_some(),
        "fewer may be at any time"
    );
}

#[test]
fn what_is_scaled_keeps_its_proportions() {
    let with = |sizes: &[(i32, i32, i32)]| -> Vec<Size> {
        let size = |&(replicas, desired, most): &(i32, i32, i32)| Size {
            replicas,
            pods: Some(replicas),
            available: replicas,
            desired: Some(desired),
            most: Some(most),
        };
        sizes.iter().map(size).collect()
    };
    let fifteen = rolling(15, json!(3), json!(2));
    // the example of Kubernetes' documents: 10 to 15 while 8 and 5 are there
    let mid_roll = with(&[(8, 10, 13), (5, 10, 13)]);
    assert!(is_scaled(&fifteen, &mid_roll));
    assert_eq!(shares(&fifteen, &mid_roll, Some(1), 13), [11, 7]);
    let five = rolling(5, json!(3), json!(2));
    assert_eq!(shares(&five, &mid_roll, Some(1), 13), [5, 3]);
    let none = rolling(0, json!(3), json!(2));
    assert_eq!(shares(&none, &mid_roll, Some(1), 13), [0, 0]);
    // one alone has all of it
    assert_eq!(
        shares(&fifteen, &with(&[(0, 10, 13), (10, 10, 13)]), Some(1), 10),
        [0, 15]
    );
    assert_eq!(
        shares(&fifteen, &with(&[(10, 10, 13), (0, 10, 13)]), None, 10),
        [15, 0]
    );
    // none has any: the new one, or the newest
    assert_eq!(
        shares(&fifteen, &with(&[(0, 0, 0), (0, 0, 0)]), None, 0),
        [0, 15]
    );
    assert_eq!(
        shares(&fifteen, &with(&[(0, 0, 0), (0, 0, 0)]), Some(0), 0),
        [15, 0]
    );
    assert!(shares(&fifteen, &[], None, 0).is_empty());
    // a new one that has all needs no others
    let ten = rolling(10, json!(3), json!(2));
    assert_eq!(
        shares(&ten, &with(&[(3, 10, 13), (10, 10, 13)]), Some(1), 13),
        [0, 10]
    );
    // annotations that somebody took away
    let bare = sizes(&[(8, 8), (5, 5)]);
    assert!(!is_scaled(&fifteen, &bare));
    assert_eq!(shares(&fifteen, &bare, Some(1), 13), [11, 7]);
}

/// A cluster in which nothing is instant: ReplicaSets follow their sizes, and tell what they have, when they get to it.
#[derive(Debug, Clone)]
struct World {
    surge: i32,
    unavailable: i32,
    bounds: Bounds,
    sets: Vec<Set>,
    new: usize,
}

#[derive(Debug, Clone, Default)]
struct Set {
    size: Size,
    ready: i32,
    unready: i32,
    /// How often its size was changed, how often that was when it followed last, and when it told last.
    changed: u32,
    followed: u32,
    told: u32,
    told_pods: i32,
}

#[derive(Debug, Clone)]
enum Event {
    Deployment,
    /// Makes or ends pods as its size says: first what isn't ready.
    ReplicaSet(usize),
    BecomesReady(usize),
    Fails(usize),
    Tells(usize),
    /// Another template, or an old one again.
    Template(usize),
    Replicas(i32),
}

impl Set {
    fn follow(&mut self) {
        let more = self.size.replicas - self.ready - self.unready;
        if more >= 0 {
            self.unready += more;
        } else {
            let unready = self.unready.min(-more);
            self.unready -= unready;
            self.ready -= -more - unready;
        }
        self.followed = self.changed;
    }

    fn tell(&mut self) {
        self.size.available = self.ready;
        self.told = self.followed;
        self.told_pods = self.ready + self.unready;
        self.know();
    }

    fn resize(&mut self, replicas: i32) {
        if self.size.replicas != replicas {
            self.changed += 1;
        }
        self.size.replicas = replicas;
        self.know();
    }

    fn know(&mut self) {
        let is_told = self.told == self.changed;
        self.size.pods = is_told.then_some(self.told_pods.max(self.size.replicas));
    }
}

impl World {
    fn sizes(&self) -> Vec<Size> {
        self.sets.iter().map(|set| set.size).collect()
    }

    fn pods(&self) -> i32 {
        self.sets.iter().map(|set| set.ready + set.unready).sum()
    }

    fn deployment(&mut self) -> bool {
        let sizes = self.sizes();
        let is_scaled = is_scaled(&self.bounds, &sizes);
        let next = if is_scaled {
            scale(&self.bounds, &sizes, Some(self.new), self.pods())
        } else {
            Some(roll(&self.bounds, &sizes, self.new))
        };
        let mut changed = false;
        for (set, next) in self.sets.iter_mut().zip(next.into_iter().flatten()) {
            let (desired, most) = (Some(self.bounds.replicas), Some(self.bounds.most()));
            let annotated = is_scaled && next > 0 && set.size.desired != desired;
            let resized = set.size.replicas != next;
            if annotated || resized {
                (set.size.desired, set.size.most) = (desired, most);
            }
            set.resize(next);
            changed |= annotated || resized;
        }
        changed
    }

    fn happen(&mut self, event: &Event) {
        let count = self.sets.len();
        match *event {
            Event::Deployment => _ = self.deployment(),
            Event::ReplicaSet(at) => self.sets[at % count].follow(),
            Event::BecomesReady(at) => {
                let set = &mut self.sets[at % count];
                if set.unready > 0 {
                    set.unready -= 1;
                    set.ready += 1;
                }
            }
            Event::Fails(at) => {
                let set = &mut self.sets[at % count];
                if set.ready > 0 {
                    set.ready -= 1;
                    set.unready += 1;
                }
            }
            Event::Tells(at) => self.sets[at % count].tell(),
            Event::Template(at) if at < count => self.new = at,
            Event::Template(_) if count < 6 => {
                self.sets.push(Set {
                    size: Size {
                        replicas: self.bounds.first_size(&self.sizes()),
                        desired: Some(self.bounds.replicas),
                        most: Some(self.bounds.most()),
                        ..Size::default()
                    },
                    changed: 1,
                    ..Set::default()
                });
                self.new = count;
            }
            Event::Template(_) => {}
            Event::Replicas(replicas) => {
                self.bounds = rolling(replicas, self.surge.into(), self.unavailable.into());
            }
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Deployment),
        4 => (0..6usize).prop_map(Event::ReplicaSet),
        4 => (0..6usize).prop_map(Event::BecomesReady),
        1 => (0..6usize).prop_map(Event::Fails),
        4 => (0..6usize).prop_map(Event::Tells),
        1 => (0..7usize).prop_map(Event::Template),
        1 => (0..12i32).prop_map(Event::Replicas),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_a_roll_stays_within_its_bounds_and_ends(
        replicas in 0..12i32, surge in 0..5i32, unavailable in 0..5i32,
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World {
            surge,
            unavailable,
            bounds: rolling(replicas, surge.into(), unavailable.into()),
            sets: vec![Set::default()],
            new: 0,
        };
        world.sets[0].tell();
        let mut most = world.bounds.most();
        for event in &events {
            let before = world.clone();
            world.happen(event);
            most = most.max(world.bounds.most());
            // DP-15, of pods that are there, however late anybody hears of them
            prop_assert!(world.pods() <= most, "{event:?} {before:?}");
            let sum = |world: &World| total(&world.sizes());
            if matches!(event, Event::Deployment | Event::Template(_)) {
                prop_assert!(sum(&world) <= world.bounds.most().max(sum(&before)), "{event:?} {before:?}");
            }
            // what a roll takes, of those that are told of
            if matches!(event, Event::Deployment) && !is_scaled(&before.bounds, &before.sizes()) {
                let left: i32 = world.sets.iter().map(|set| set.size.available.min(set.size.replicas)).sum();
                let there: i32 = before.sets.iter().map(|set| set.size.available.min(set.size.replicas)).sum();
                prop_assert!(left >= there.min(world.bounds.least_available()), "{before:?} {world:?}");
            }
        }
        // it is let alone, and everything works
        let mut steps = 0;
        loop {
            for at in 0..world.sets.len() {
                world.sets[at].follow();
                world.sets[at].ready += std::mem::take(&mut world.sets[at].unready);
                world.sets[at].tell();
            }
            if !world.deployment() {
                break;
            }
            steps += 1;
            prop_assert!(steps < 200, "it does not end: {world:?}");
        }
        for (at, set) in world.sets.iter().enumerate() {
            let expected = if at == world.new { world.bounds.replicas } else { 0 };
            prop_assert_eq!(set.size.replicas, expected, "{:?}", &world);
            prop_assert_eq!(set.ready, expected);
        }
        // and what is settled stays so
        let settled = world.sizes();
        prop_assert!(!world.deployment());
        prop_assert_eq!(world.sizes(), settled);
    }
}
