use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn way(spec: Value) -> Way {
    let mut whole = json!({"selector": {}, "template": {}});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    Way::of(&serde_json::from_value(whole).unwrap(), "new", now())
}

/// `state`: ready, unready, pending, failed, going.
fn pod(ordinal: i32, revision: &str, state: &str) -> Arc<Pod> {
    let phase = match state {
        "failed" => "Failed",
        "pending" => "Pending",
        _ => "Running",
    };
    let ready = if state == "ready" { "True" } else { "False" };
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": format!("web-{ordinal}"), "labels": {revision::LABEL: revision}},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
    }))
    .unwrap();
    if state == "going" {
        pod.metadata.deletion_timestamp = Some(Time(now()));
    }
    Arc::new(pod)
}

/// Of as many as `0 old ready, 1 new unready` has.
fn pods(pods: &str) -> BTreeMap<i32, Arc<Pod>> {
    let one = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        let [ordinal, revision, state] = words[..] else {
            panic!("{words:?}");
        };
        let ordinal = ordinal.parse().unwrap();
        (ordinal, pod(ordinal, revision, state))
    };
    pods.split_terminator(", ").map(one).collect()
}

/// What is made and deleted.
fn acts(acts: &[Act]) -> Vec<String> {
    let shown = |act: &Act| match act {
        Act::Make(ordinal) => Some(format!("+{ordinal}")),
        Act::Delete(pod) => pod
            .metadata
            .name
            .as_deref()
            .map(|name| name.replace("web", "")),
        Act::Claims(_) | Act::Settle(..) => None,
    };
    acts.iter().filter_map(shown).collect()
}

#[test]
fn one_comes_after_another_and_goes_before_another() {
    let three = way(json!({"replicas": 3}));
    for (there, expected) in [
        ("", &["+0"][..]),
        ("0 new pending", &[]),
        ("0 new unready", &[]),
        ("0 new ready", &["+1"]),
        ("0 new going, 1 new ready", &[]),
        ("0 new ready, 2 new ready", &["+1"]),
        ("0 new ready, 1 new failed, 2 new ready", &["-1"]),
        ("0 new ready, 1 new ready, 2 new ready", &[]),
        // beyond its size
        (
            "0 new ready, 1 new ready, 2 new ready, 3 new ready, 4 new ready",
            &["-4"],
        ),
        ("0 new ready, 1 new unready, 2 new ready, 3 new ready", &[]),
        (
            "0 new ready, 1 new ready, 2 new ready, 3 new ready, 4 new going",
            &[],
        ),
        (
            "0 new ready, 1 new ready, 2 new ready, 3 new ready, 4 new unready",
            &["-4"],
        ),
        (
            "0 new ready, 1 new ready, 2 new ready, 3 new unready, 4 new unready",
            &[],
        ),
        // rolled from the highest
        ("0 old ready, 1 old ready, 2 old ready", &["-2"]),
        ("0 old ready, 1 old ready, 2 old going", &[]),
        ("0 old ready, 1 old ready, 2 new ready", &["-1"]),
    ] {
        assert_eq!(acts(&plan(&three, &pods(there))), expected, "{there:?}");
    }
}

#[test]
fn in_parallel_nothing_waits() {
    let three = way(json!({"replicas": 3, "podManagementPolicy": "Parallel"}));
    for (there, expected) in [
        ("", &["+0", "+1", "+2"][..]),
        (
            "1 new unready, 3 new ready, 4 new going",
            &["+0", "+2", "-3"],
        ),
        ("0 new ready, 1 new failed, 2 new going", &["-1"]),
        // but for a roll
        ("0 old ready, 1 old ready, 2 old ready", &["-2"]),
        ("0 old ready, 1 old ready, 2 new unready", &[]),
        ("0 old ready, 1 old unready, 2 new ready", &["-1"]),
    ] {
        assert_eq!(acts(&plan(&three, &pods(there))), expected, "{there:?}");
    }
    let huge = way(json!({"replicas": i32::MAX, "podManagementPolicy": "Parallel"}));
    assert_eq!(plan(&huge, &BTreeMap::new()).len(), slow_start::MOST);
}

#[test]
fn a_roll_stops_at_its_partition() {
    let old = "0 old ready, 1 old ready, 2 new ready";
    let with = |strategy: Value| way(json!({"replicas": 3, "updateStrategy": strategy}));
    let rolling = |more: Value| with(json!({"type": "RollingUpdate", "rollingUpdate": more}));
    for (way, expected) in [
        (rolling(json!({"partition": 0})), &["-1"][..]),
        (rolling(json!({"partition": 1})), &["-1"]),
        (rolling(json!({"partition": 2})), &[]),
        (rolling(json!({"partition": 9})), &[]),
        (rolling(json!({"maxUnavailable": 2})), &["-1", "-0"]),
        (rolling(json!({"maxUnavailable": "1%"})), &["-1"]),
        (with(json!({"type": "OnDelete"})), &[]),
    ] {
        assert_eq!(acts(&plan(&way, &pods(old))), expected, "{way:?}");
    }
    let held = rolling(json!({"partition": 2}));
    assert!(held.is_held_back(1) && !held.is_held_back(2));
}

#[test]
fn ordinals_may_begin_elsewhere() {
    let way = way(json!({"replicas": 2, "ordinals": {"start": 5}}));
    assert_eq!(acts(&plan(&way, &BTreeMap::new())), ["+5"]);
    let there = "4 new ready, 5 new ready, 6 new ready";
    assert_eq!(acts(&plan(&way, &pods(there))), ["-4"]);
}

#[derive(Debug, Clone)]
enum Event {
    Look,
    BecomesReady(usize),
    Fails(usize),
    Ends(usize),
    /// What was asked to end is gone.
    Goes(usize),
    Template(u8),
    Replicas(i32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => Just(Event::Look),
        6 => (0..12usize).prop_map(Event::BecomesReady),
        1 => (0..12usize).prop_map(Event::Fails),
        1 => (0..12usize).prop_map(Event::Ends),
        4 => (0..12usize).prop_map(Event::Goes),
        1 => (0..3u8).prop_map(Event::Template),
        1 => (0..6i32).prop_map(Event::Replicas),
    ]
}

#[derive(Debug)]
struct World {
    way: Way,
    pods: BTreeMap<i32, Arc<Pod>>,
}

impl World {
    fn pod(&mut self, at: usize) -> Option<&mut Pod> {
        let count = self.pods.len();
        let pod = self.pods.values_mut().nth(at.checked_rem(count)?)?;
        Some(Arc::make_mut(pod))
    }

    /// Whether it did anything.
    fn look(&mut self) -> bool {
        let mut acted = false;
        for act in plan(&self.way, &self.pods) {
            match act {
                Act::Make(ordinal) => {
                    let revision = if self.way.is_held_back(ordinal) {
                        "held"
                    } else {
                        &self.way.newest
                    };
                    let before = self.pods.insert(ordinal, pod(ordinal, revision, "pending"));
                    assert_eq!(before, None, "{ordinal} is there");
                }
                Act::Delete(gone) => {
                    let mut pods = self.pods.values_mut();
                    let pod = pods
                        .find(|pod| pod.metadata.name == gone.metadata.name)
                        .unwrap();
                    Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(now()));
                }
                Act::Claims(_) | Act::Settle(..) => continue,
            }
            acted = true;
        }
        acted
    }
}

fn set(pod: &mut Pod, phase: &str, ready: &str) {
    let status = pod.status.as_mut().unwrap();
    status.phase = Some(phase.into());
    status.conditions =
        serde_json::from_value(json!([{"type": "Ready", "status": ready}])).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_happens_it_keeps_its_order_and_ends_as_it_says(
        replicas in 0..6i32, parallel: bool, partition in 0..4i32, start in 0..3i32,
        events in prop::collection::vec(event(), 0..100),
    ) {
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        let way = way(json!({
            "replicas": replicas, "podManagementPolicy": policy, "ordinals": {"start": start},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}},
        }));
        let mut world = World { way, pods: BTreeMap::new() };
        for event in events {
            match event {
                Event::Look => {
                    let done = plan(&world.way, &world.pods);
                    let deletes: Vec<_> = done.iter().filter(|act| matches!(act, Act::Delete(_))).collect();
                    if !parallel {
                        prop_assert!(acts(&done).len() <= 1, "{done:?}");
                        for act in &done {
                            let Act::Make(ordinal) = act else { continue };
                            let lower = world.pods.range(world.way.start..*ordinal);
                            prop_assert!(lower.clone().count() == usize::try_from(ordinal - world.way.start).unwrap());
                            prop_assert!(lower.map(|(_, pod)| pod).all(|pod| world.way.is_well(pod)));
                        }
                        if !deletes.is_empty() {
                            let ending = world.pods.iter().any(|(ordinal, pod)| world.way.has(*ordinal) && pod::is_deleted(pod) && !pod::is_terminal(pod) && deletes.iter().any(|act| matches!(act, Act::Delete(one) if !pod::is_terminal(one))));
                            prop_assert!(!ending, "{:?} {:?}", &done, &world);
                        }
                    }
                    for act in deletes {
                        let Act::Delete(pod) = act else { continue };
                        prop_assert!(!pod::is_deleted(pod));
                        let ordinal: i32 = pod.metadata.name.as_ref().unwrap()[4..].parse().unwrap();
                        let for_a_roll = world.way.has(ordinal) && !pod::is_terminal(pod);
                        prop_assert!(!(for_a_roll && world.way.is_held_back(ordinal)), "{ordinal} is held back");
                    }
                    world.look();
                }
                Event::BecomesReady(at) => {
                    if let Some(pod) = world.pod(at).filter(|pod| pod::is_active(pod)) {
                        set(pod, "Running", "True");
                    }
                }
                Event::Fails(at) => world.pod(at).into_iter().for_each(|pod| set(pod, "Running", "False")),
                Event::Ends(at) => world.pod(at).into_iter().for_each(|pod| set(pod, "Failed", "False")),
                Event::Goes(at) => {
                    let name = world.pod(at).filter(|pod| pod::is_deleted(pod)).map(|pod| pod.metadata.name.clone());
                    world.pods.retain(|_, pod| Some(&pod.metadata.name) != name.as_ref());
                }
                Event::Template(at) => world.way.newest = format!("t{at}"),
                Event::Replicas(replicas) => world.way.replicas = replicas,
            }
        }
        let mut steps = 0;
        loop {
            world.pods.retain(|_, pod| !pod::is_deleted(pod));
            for pod in world.pods.values_mut().filter(|pod| pod::is_active(pod)) {
                set(Arc::make_mut(pod), "Running", "True");
            }
            if !world.look() {
                break;
            }
            steps += 1;
            prop_assert!(steps < 200, "it does not end: {:?}", &world);
        }
        let ordinals: Vec<i32> = world.pods.keys().copied().collect();
        let expected: Vec<i32> = (world.way.start..world.way.end()).collect();
        prop_assert_eq!(ordinals, expected);
        for (ordinal, pod) in &world.pods {
            prop_assert!(world.way.is_held_back(*ordinal) || world.way.is_new(pod), "{:?}", &world);
        }
    }
}
