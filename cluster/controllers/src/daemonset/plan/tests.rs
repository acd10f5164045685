use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NEW: &str = "new";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn way(strategy: Value) -> Way {
    let spec = json!({"selector": {}, "template": {}, "updateStrategy": strategy});
    Way::of(&serde_json::from_value(spec).unwrap(), NEW, now())
}

fn rolling(surge: Value, unavailable: Value) -> Way {
    way(
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}),
    )
}

/// `name` begins with `new` for one of the new template; `state`: ready, unready, failed, succeeded, going.
fn pod(name: &str, node: &str, state: &str) -> Arc<Pod> {
    let hash = if name.starts_with(NEW) { NEW } else { "old" };
    let phase = match state {
        "failed" => "Failed",
        "succeeded" => "Succeeded",
        _ => "Running",
    };
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {revision::LABEL: hash}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase},
    }))
    .unwrap();
    if state == "ready" {
        pod.status.as_mut().unwrap().conditions =
            serde_json::from_value(json!([{"type": "Ready", "status": "True"}])).unwrap();
    }
    if state == "going" {
        pod.metadata.deletion_timestamp = Some(Time(now()));
    }
    Arc::new(pod)
}

/// `(name, place, pods)`.
type SeenNode<'a> = (&'a str, Option<Place>, &'a [(&'a str, &'a str)]);

fn seen(nodes: &[SeenNode<'_>]) -> Seen {
    let mut seen = Seen {
        places: BTreeMap::new(),
        pods: BTreeMap::new(),
    };
    for (node, place, pods) in nodes {
        if let Some(place) = place {
            seen.places.insert((*node).to_owned(), *place);
        }
        let pods: Vec<_> = pods
            .iter()
            .map(|(name, state)| pod(name, node, state))
            .collect();
        if !pods.is_empty() {
            seen.pods.insert((*node).to_owned(), pods);
        }
    }
    seen
}

/// What is made and deleted, by names.
fn acts(plan: &Plan) -> (Vec<String>, Vec<String>) {
    let failed = plan.failed.iter().map(|(_, pod)| pod);
    let deleted = plan.delete.iter().chain(&plan.succeeded).chain(failed);
    let mut deleted: Vec<_> = deleted
        .filter_map(|pod| pod.metadata.name.clone())
        .collect();
    deleted.sort_unstable();
    (plan.make.clone(), deleted)
}

fn named(made: &[&str], deleted: &[&str]) -> (Vec<String>, Vec<String>) {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    (owned(made), owned(deleted))
}

use Place::{Left, Unwanted, Wanted};

/// DS-01 to DS-04.
#[test]
fn each_node_has_one_pod() {
    let way = rolling(json!(0), json!(1));
    let seen = seen(&[
        ("bare", Some(Wanted), &[]),
        ("done", Some(Wanted), &[("old1", "ready")]),
        (
            "twice",
            Some(Wanted),
            &[("old2", "ready"), ("old3", "unready"), ("old4", "going")],
        ),
        ("going", Some(Wanted), &[("old5", "going")]),
        ("failed", Some(Wanted), &[("old6", "failed")]),
        ("ended", Some(Wanted), &[("old7", "succeeded")]),
        ("tainted", Some(Left), &[("old8", "ready")]),
        ("tainted-bare", Some(Left), &[]),
        ("other", Some(Unwanted), &[("old9", "ready")]),
        ("gone", None, &[("oldx", "ready")]),
    ]);
    assert_eq!(
        acts(&keep(&way, &seen)),
        named(&["bare"], &["old3", "old6", "old7", "old9"])
    );
}

#[test]
fn one_that_never_got_to_a_node_that_is_gone_is_deleted() {
    let mut seen = seen(&[]);
    let mut unbound = Pod::clone(&pod("old1", "n", "unready"));
    unbound.spec.as_mut().unwrap().node_name = None;
    seen.pods.insert("gone".into(), vec![Arc::new(unbound)]);
    assert_eq!(acts(&keep(&rolling(json!(0), json!(1)), &seen)).1, ["old1"]);
}

/// DS-05.
#[test]
fn a_roll_deletes_old_ones_first() {
    let three = [
        ("a", Some(Wanted), &[("olda", "ready")][..]),
        ("b", Some(Wanted), &[("oldb", "ready")]),
        ("c", Some(Wanted), &[("oldc", "ready")]),
    ];
    for (unavailable, deleted) in [
        (json!(1), &["olda"][..]),
        (json!(2), &["olda", "oldb"]),
        (json!("50%"), &["olda", "oldb"]),
        (json!("100%"), &["olda", "oldb", "oldc"]),
    ] {
        let plan = roll(&rolling(json!(0), unavailable.clone()), &seen(&three));
        assert_eq!(acts(&plan), named(&[], deleted), "{unavailable}");
    }
    let way = rolling(json!(0), json!(1));
    for (nodes, deleted) in [
        // it waits for what is on its way
        (
            [
                ("a", &[("newa", "unready")][..]),
                ("b", &[("oldb", "ready")]),
            ],
            &[][..],
        ),
        (
            [("a", &[("olda", "going")]), ("b", &[("oldb", "ready")])],
            &[],
        ),
        ([("a", &[]), ("b", &[("oldb", "ready")])], &[]),
        // what is ill is missed by nobody
        (
            [("a", &[("olda", "unready")]), ("b", &[("oldb", "ready")])],
            &["olda"],
        ),
        (
            [("a", &[("newa", "ready")]), ("b", &[("oldb", "ready")])],
            &["oldb"],
        ),
        (
            [("a", &[("newa", "ready")]), ("b", &[("newb", "ready")])],
            &[],
        ),
    ] {
        let nodes = nodes.map(|(node, pods)| (node, Some(Wanted), pods));
        assert_eq!(
            acts(&roll(&way, &seen(&nodes))),
            named(&[], deleted),
            "{nodes:?}"
        );
    }
    // DS-06
    let on_delete = way_on_delete();
    assert_eq!(roll(&on_delete, &seen(&three)), Plan::default());
}

fn way_on_delete() -> Way {
    way(json!({"type": "OnDelete"}))
}

#[test]
fn a_surging_roll_makes_new_ones_first() {
    let way = rolling(json!(1), json!(0));
    for (nodes, made, deleted) in [
        (
            vec![("a", &[("olda", "ready")][..]), ("b", &[("oldb", "ready")])],
            &["a"][..],
            &[][..],
        ),
        (
            vec![
                ("a", &[("olda", "ready"), ("newa", "unready")]),
                ("b", &[("oldb", "ready")]),
            ],
            &[],
            &[],
        ),
        (
            vec![
                ("a", &[("olda", "ready"), ("newa", "ready")]),
                ("b", &[("oldb", "ready")]),
            ],
            &["b"],
            &["olda"],
        ),
        (
            vec![("a", &[("olda", "unready")]), ("b", &[("oldb", "ready")])],
            &["a", "b"],
            &[],
        ),
        (
            vec![("a", &[("newa", "ready")]), ("b", &[("newb", "ready")])],
            &[],
            &[],
        ),
    ] {
        let all: Vec<_> = nodes
            .iter()
            .map(|(node, pods)| (*node, Some(Wanted), *pods))
            .collect();
        assert_eq!(
            acts(&roll(&way, &seen(&all))),
            named(made, deleted),
            "{nodes:?}"
        );
    }
    // the old one that is not ready goes as soon as there is a new one
    let two = seen(&[(
        "a",
        Some(Wanted),
        &[("olda", "unready"), ("newa", "unready")],
    )]);
    assert_eq!(acts(&keep(&way, &two)), named(&[], &["olda"]));
    // nothing is waited for
    let going = seen(&[("a", Some(Wanted), &[("olda", "going")])]);
    assert_eq!(acts(&keep(&way, &going)), named(&["a"], &[]));
    // on nodes that are not wanted any more it stays until as many are elsewhere
    let moved = seen(&[
        ("a", Some(Left), &[("olda", "ready")]),
        ("b", Some(Wanted), &[("newb", "unready")]),
    ]);
    assert_eq!(acts(&roll(&way, &moved)), named(&[], &[]));
    let moved = seen(&[
        ("a", Some(Left), &[("olda", "ready")]),
        ("b", Some(Wanted), &[("newb", "ready")]),
    ]);
    assert_eq!(acts(&roll(&way, &moved)), named(&[], &["olda"]));
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Keep,
    Roll,
    BecomesReady(usize),
    Fails(usize),
    Ends(usize),
    /// What was asked to end is gone.
    Goes(usize),
    Template,
    Place(usize, Place),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Keep),
        4 => Just(Event::Roll),
        4 => (0..12usize).prop_map(Event::BecomesReady),
        1 => (0..12usize).prop_map(Event::Fails),
        1 => (0..12usize).prop_map(Event::Ends),
        4 => (0..12usize).prop_map(Event::Goes),
        1 => Just(Event::Template),
        1 => (0..5usize, prop_oneof![3 => Just(Wanted), 1 => Just(Left), 1 => Just(Unwanted)])
            .prop_map(|(node, place)| Event::Place(node, place)),
    ]
}

struct World {
    way: Way,
    seen: Seen,
    made: usize,
    template: usize,
}

impl World {
    fn pods(&mut self) -> Vec<&mut Arc<Pod>> {
        self.seen.pods.values_mut().flatten().collect()
    }

    fn pod(&mut self, at: usize) -> Option<&mut Pod> {
        let mut pods = self.pods();
        let count = pods.len();
        if count == 0 {
            return None;
        }
        Some(Arc::make_mut(pods.swap_remove(at % count)))
    }

    fn execute(&mut self, plan: &Plan) -> bool {
        let failed = plan.failed.iter().map(|(_, pod)| pod);
        let deleted: Vec<_> = plan
            .delete
            .iter()
            .chain(&plan.succeeded)
            .chain(failed)
            .cloned()
            .collect();
        for pod in self.pods() {
            if deleted
                .iter()
                .any(|one| one.metadata.name == pod.metadata.name)
            {
                Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(now()));
            }
        }
        for node in &plan.make {
            self.made += 1;
            let mut one = Pod::clone(&pod(&format!("p{}", self.made), node, "unready"));
            let labels = one.metadata.labels.get_or_insert_default();
            labels.insert(revision::LABEL.into(), self.way.hash.clone());
            let second = Timestamp::from_second(1_700_000_000 + i64::try_from(self.made).unwrap());
            one.metadata.creation_timestamp = Some(Time(second.unwrap()));
            self.seen
                .pods
                .entry(node.clone())
                .or_default()
                .push(Arc::new(one));
        }
        !plan.make.is_empty() || !deleted.is_empty()
    }

    fn available(&self) -> usize {
        let nodes = self
            .seen
            .places
            .iter()
            .filter(|(_, place)| **place == Wanted);
        nodes
            .filter(|(node, _)| {
                let pods = self.seen.pods.get(*node);
                let mut alive = pods
                    .into_iter()
                    .flatten()
                    .filter(|pod| !pod::is_deleted(pod));
                alive.any(|pod| self.way.is_available(pod))
            })
            .count()
    }

    fn step(&mut self) -> bool {
        let kept = keep(&self.way, &self.seen);
        if self.execute(&kept) {
            return true;
        }
        let rolled = roll(&self.way, &self.seen);
        self.execute(&rolled)
    }

    fn gone(&mut self) {
        for pods in self.seen.pods.values_mut() {
            pods.retain(|pod| !pod::is_deleted(pod));
        }
        self.seen.pods.retain(|_, pods| !pods.is_empty());
    }
}

fn become_ready(pod: &mut Pod) {
    if pod::is_active(pod) {
        pod.status.as_mut().unwrap().conditions =
            serde_json::from_value(json!([{"type": "Ready", "status": "True"}])).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_each_node_has_its_pod_in_the_end(
        surge in 0..3i32, unavailable in 0..3i32, events in prop::collection::vec(event(), 0..80),
    ) {
        let way = rolling(surge.into(), unavailable.into());
        let places = (0..5).map(|at| (format!("n{at}"), Wanted)).collect();
        let mut world = World { way, seen: Seen { places, pods: BTreeMap::new() }, made: 0, template: 0 };
        for event in events {
            match event {
                Event::Keep => {
                    let plan = keep(&world.way, &world.seen);
                    world.execute(&plan);
                }
                Event::Roll if keep(&world.way, &world.seen) == Plan::default() => {
                    let before = world.available();
                    let plan = roll(&world.way, &world.seen);
                    let alone = plan.delete.iter().filter(|pod| {
                        let node = world.seen.pods.get(pod::node_of(pod).unwrap_or_default());
                        let wanted = world.seen.places.get(pod::node_of(pod).unwrap_or_default()) == Some(&Wanted);
                        let others = node.into_iter().flatten();
                        let mut others = others.filter(|one| one.metadata.name != pod.metadata.name);
                        wanted && !others.any(|one| world.way.is_available(one))
                    });
                    let taken = alone.filter(|pod| world.way.is_available(pod)).count();
                    world.execute(&plan);
                    let wanted = world.seen.places.values().filter(|place| **place == Wanted).count();
                    let may = usize::try_from(world.way.bounds(5).1).unwrap();
                    // a roll's own: never fewer available than that, unless it was so before
                    if taken > 0 {
                        prop_assert!(world.available() + may >= wanted.min(before + may), "{surge} {unavailable}");
                        prop_assert!(wanted - world.available() <= may);
                    }
                }
                Event::Roll => {}
                Event::BecomesReady(at) => world.pod(at).into_iter().for_each(become_ready),
                Event::Fails(at) => {
                    if let Some(pod) = world.pod(at) {
                        pod.status.as_mut().unwrap().conditions = None;
                    }
                }
                Event::Ends(at) => {
                    if let Some(pod) = world.pod(at) {
                        let status = pod.status.as_mut().unwrap();
                        status.conditions = None;
                        status.phase = Some(if at % 2 == 0 { "Failed" } else { "Succeeded" }.into());
                    }
                }
                Event::Goes(at) => {
                    let name = world.pod(at).filter(|pod| pod::is_deleted(pod)).map(|pod| pod.metadata.name.clone());
                    for pods in world.seen.pods.values_mut() {
                        pods.retain(|pod| Some(&pod.metadata.name) != name.as_ref());
                    }
                    world.seen.pods.retain(|_, pods| !pods.is_empty());
                }
                Event::Template => {
                    world.template += 1;
                    world.way.hash = format!("t{}", world.template);
                }
                Event::Place(node, place) => _ = world.seen.places.insert(format!("n{node}"), place),
            }
            let most = if world.way.may_surge() { 2 } else { 1 };
            for pods in world.seen.pods.values() {
                let alive = pods.iter().filter(|pod| pod::is_active(pod)).count();
                prop_assert!(alive <= most, "{alive} on one node");
            }
        }
        let mut steps = 0;
        loop {
            world.gone();
            for pod in world.pods() {
                become_ready(Arc::make_mut(pod));
            }
            if !world.step() {
                break;
            }
            steps += 1;
            prop_assert!(steps < 100, "it does not end");
        }
        for (node, place) in &world.seen.places {
            let pods = world.seen.pods.get(node).map_or(&[][..], Vec::as_slice);
            match place {
                Wanted => prop_assert!(pods.len() == 1 && world.way.is_new(&pods[0]), "{node}: {pods:?}"),
                Left => prop_assert!(pods.len() <= 1),
                Unwanted => prop_assert!(pods.is_empty()),
            }
        }
    }
}
