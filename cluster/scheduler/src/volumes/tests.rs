use proptest::prelude::*;
use serde_json::{Value, from_value, json};

use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::{
    decide::Settings,
    scheduler::{Decision, Scheduler},
};

fn class(name: &str, provisioner: &str, topologies: Value) -> StorageClass {
    from_value(json!({
        "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": "WaitForFirstConsumer",
        "allowedTopologies": topologies,
    }))
    .expect("a class")
}

/// `at`: a host, or everywhere.
fn volume(name: &str, gibibytes: u64, at: Option<&str>, more: Value) -> PersistentVolume {
    let mut spec = json!({"capacity": {"storage": format!("{gibibytes}Gi")}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local"});
    if let Some(host) = at {
        spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]},
        ]}});
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    from_value(json!({
        "metadata": {"name": name, "uid": name, "resourceVersion": "1"}, "spec": spec, "status": {"phase": "Available"},
    }))
    .expect("a volume")
}

fn claim(name: &str, class: &str, gibibytes: u64, more: Value) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": {"name": name, "namespace": "d", "uid": name, "resourceVersion": "1"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": format!("{gibibytes}Gi")}}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        claim[key] = value.clone();
    }
    from_value(claim).expect("a claim")
}

fn labels(host: &str) -> Labels {
    [(HOSTNAME.to_owned(), host.to_owned())].into()
}

fn of(volumes: &Volumes, claims: &[&str]) -> Claims {
    let claims: Vec<String> = claims.iter().map(|&name| name.to_owned()).collect();
    volumes.of("d", &claims)
}

/// Which volume each claim is given.
fn given(steps: &[Step]) -> Vec<(&str, &str)> {
    let mut given: Vec<_> = steps
        .iter()
        .map(|step| match step {
            Step::Keep { volume, claim } => (claim.name.as_str(), volume.name.as_str()),
            Step::Make { claim } => (claim.name.as_str(), "made"),
        })
        .collect();
    given.sort_unstable();
    given
}

/// Of one claim.
fn pod(name: &str, priority: i32, claim: &str, node: Option<&str>) -> Pod {
    from_value(json!({
        "metadata": {"name": name, "namespace": "d", "uid": name},
        "spec": {
            "schedulerName": "default-scheduler", "nodeName": node, "priority": priority, "containers": [{"name": "c"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }))
    .expect("a pod")
}

#[test]
fn what_one_pod_of_the_cluster_may_have_no_second_is_bound_for() {
    let mut scheduler = Scheduler::new("default-scheduler", Settings::default(), 1);
    for name in ["a", "b"] {
        let node = json!({"metadata": {"name": name, "labels": {HOSTNAME: name}}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
        scheduler.set_node(&from_value(node).expect("a node"));
    }
    for (name, mode) in [("once", "ReadWriteOncePod"), ("many", "ReadWriteOnce")] {
        scheduler.set_volume(&volume(name, 1, None, json!({"accessModes": [mode]})));
        let spec = json!({"accessModes": [mode], "volumeName": name, "storageClassName": "local"});
        let bound = json!({"spec": spec, "status": {"phase": "Bound"}});
        scheduler.set_claim(&claim(name, "local", 1, bound));
    }
    let decided = |scheduler: &mut Scheduler, pod: &Pod| {
        scheduler.set_pod(pod);
        match scheduler.step().expect("one waits") {
            Decision::Bind { pod, node } => {
                scheduler.bound(&pod.uid);
                format!("on {node}")
            }
            Decision::Wait { unfit, room, .. } => {
                let victims = room.map(|(node, victims)| {
                    let names: Vec<_> = victims.iter().map(|pod| &*pod.name).collect();
                    format!(" for {names:?} of {node}")
                });
                unfit.message() + &victims.unwrap_or_default()
            }
            Decision::Claim { .. } => "delayed".to_owned(),
        }
    };
    scheduler.set_pod(&pod("first", 0, "once", Some("a")));
    let told = decided(&mut scheduler, &pod("second", 0, "once", None));
    assert!(
        told.starts_with("0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode. preemption: "),
        "{told}"
    );
    // what many may have, of another namespace or not, is none of it
    scheduler.set_pod(&pod("reader", 0, "many", Some("a")));
    let told = decided(&mut scheduler, &pod("other", 0, "many", None));
    assert!(told.starts_with("on "), "{told}");
    // who matters more has it, where it is had
    let told = decided(&mut scheduler, &pod("third", 9, "once", None));
    assert!(told.ends_with(r#" for ["first"] of a"#), "{told}");
    scheduler.remove_pod("first");
    let told = decided(&mut scheduler, &pod("fourth", 99, "once", None));
    assert!(told.starts_with("on "), "{told}");
    let told = decided(&mut scheduler, &pod("fifth", 9, "once", None));
    assert!(told.starts_with("0/2 nodes"), "two have it: {told}");
}

#[test]
fn claims_that_wait_find_the_smallest_volumes_that_reach_the_node() {
    let mut all = Volumes::default();
    all.set_class(&class("local", NO_PROVISIONER, Value::Null));
    for (name, size, at) in [
        ("a1", 1, Some("a")),
        ("a5", 5, Some("a")),
        ("b9", 9, Some("b")),
        ("any7", 7, None),
    ] {
        all.set_volume(&volume(name, size, at, json!({})));
    }
    all.set_claim(&claim("small", "local", 1, json!({})));
    all.set_claim(&claim("large", "local", 4, json!({})));
    let both = of(&all, &["large", "small"]);
    assert!(both.are_delayed() && both.refused.is_none());
    let at = |claims: &Claims, host: &str| {
        let steps = claims.steps(host, &labels(host))?;
        Some(format!("{:?}", given(&steps)))
    };
    assert_eq!(
        at(&both, "a").as_deref(),
        Some(r#"[("large", "a5"), ("small", "a1")]"#)
    );
    assert_eq!(
        at(&both, "b").as_deref(),
        Some(r#"[("large", "b9"), ("small", "any7")]"#)
    );
    assert_eq!(
        both.refusal("c", &labels("c")),
        Some(Refusal::NoVolume),
        "one volume is not for both"
    );
    // what is being given to others is no longer there
    let steps = of(&all, &["small"]).steps("a", &labels("a")).expect("a1");
    assert_eq!(given(&steps), [("small", "a1")]);
    all.assume(&steps);
    all.set_claim(&claim("other", "local", 1, json!({})));
    assert_eq!(
        at(&of(&all, &["other"]), "a").as_deref(),
        Some(r#"[("other", "a5")]"#)
    );
    assert_eq!(
        at(&of(&all, &["small"]), "a").as_deref(),
        Some(r#"[("small", "a1")]"#)
    );
    // it is kept for it: nothing is to be written, and no other node will do
    let kept = json!({"claimRef": {"namespace": "d", "name": "small", "uid": "small"}});
    all.set_volume(&volume("a1", 1, Some("a"), kept));
    let small = of(&all, &["small"]);
    assert_eq!(at(&small, "a").as_deref(), Some("[]"));
    assert_eq!(small.refusal("b", &labels("b")), Some(Refusal::NoVolume));
    // bound: it is the volume that says where
    let bound = json!({"spec": {"volumeName": "a1", "storageClassName": "local"}, "status": {"phase": "Bound"}});
    all.set_claim(&claim("small", "local", 1, bound));
    let small = of(&all, &["small"]);
    assert!(!small.are_delayed());
    assert_eq!(small.refusal("a", &labels("a")), None);
    assert_eq!(small.refusal("b", &labels("b")), Some(Refusal::Volume));
    // a write that failed
    all.assume(&[]);
    let steps = of(&all, &["other"]).steps("a", &labels("a")).expect("a5");
    all.assume(&steps);
    all.forget(&steps);
    assert_eq!(
        at(&of(&all, &["large"]), "a").as_deref(),
        Some(r#"[("large", "a5")]"#)
    );
}

#[test]
fn a_provisioner_is_told_the_node() {
    let mut all = Volumes::default();
    let topology = json!([{"matchLabelExpressions": [{"key": HOSTNAME, "values": ["a", "b"]}]}]);
    all.set_class(&class("made", "example.com/p", topology));
    all.set_claim(&claim("x", "made", 1, json!({})));
    let steps = of(&all, &["x"])
        .steps("a", &labels("a"))
        .expect("it is made");
    assert_eq!(given(&steps), [("x", "made")]);
    assert_eq!(of(&all, &["x"]).steps("c", &labels("c")), None);
    let selected = json!({"metadata": {"name": "x", "namespace": "d", "uid": "x", "annotations": {SELECTED_NODE: "b"}}});
    all.set_claim(&claim("x", "made", 1, selected));
    assert_eq!(of(&all, &["x"]).steps("b", &labels("b")), Some(Vec::new()));
    assert_eq!(of(&all, &["x"]).steps("a", &labels("a")), None);
}

#[test]
fn what_is_bound_at_once_or_not_there_holds_the_pod_back() {
    let mut all = Volumes::default();
    all.set_class(&class("local", NO_PROVISIONER, Value::Null));
    all.set_claim(&claim("at-once", "other", 1, json!({})));
    let going = json!({"metadata": {"name": "going", "namespace": "d", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    all.set_claim(&claim("going", "local", 1, going));
    let lost = json!({"spec": {"volumeName": "gone"}, "status": {"phase": "Bound"}});
    all.set_claim(&claim("lost", "local", 1, lost));
    for (name, why) in [
        ("none", "persistentvolumeclaim \"none\" not found"),
        ("going", "persistentvolumeclaim \"going\" is being deleted"),
        ("lost", "persistentvolume \"gone\" not found"),
        (
            "at-once",
            "pod has unbound immediate PersistentVolumeClaims",
        ),
    ] {
        assert_eq!(of(&all, &[name]).refused.as_deref(), Some(why));
    }
}

#[derive(Debug, Clone)]
enum Act {
    /// A pod with these claims is decided for a node.
    Decide(Vec<usize>, usize),
    /// What was written for a claim is seen; or it was not written.
    Seen(usize, bool),
}

const HOSTS: [&str; 3] = ["a", "b", "c"];

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let decide = (proptest::collection::vec(0..6usize, 1..4), 0..HOSTS.len())
        .prop_map(|(claims, host)| Act::Decide(claims, host));
    let seen = (0..6usize, any::<bool>()).prop_map(|(claim, well)| Act::Seen(claim, well));
    proptest::collection::vec(prop_oneof![decide, seen], 0..40)
}

proptest! {
    /// Whatever is decided, written, seen and lost: no volume is for two claims, none is too small, or out of the node's reach.
    #[test]
    fn no_volume_is_given_twice(
        sizes in proptest::collection::vec((1..6u64, proptest::option::of(0..HOSTS.len())), 1..8),
        wants in proptest::collection::vec(1..6u64, 6),
        acts in acts(),
    ) {
        let mut all = Volumes::default();
        all.set_class(&class("local", NO_PROVISIONER, Value::Null));
        for (at, (size, host)) in sizes.iter().enumerate() {
            let host = host.map(|host| HOSTS[host]);
            all.set_volume(&volume(&format!("v{at}"), *size, host, json!({})));
        }
        for (at, want) in wants.iter().enumerate() {
            all.set_claim(&claim(&format!("c{at}"), "local", *want, json!({})));
        }
        // by claim: the volume that is on its way, and the one that it has
        let mut going: HashMap<usize, Step> = HashMap::new();
        let mut has: HashMap<usize, usize> = HashMap::new();
        for act in acts {
            match act {
                Act::Decide(mut claims, host) => {
                    claims.sort_unstable();
                    claims.dedup();
                    let names: Vec<String> = claims.iter().map(|at| format!("c{at}")).collect();
                    let of = all.of("d", &names);
                    let host = HOSTS[host];
                    let Some(steps) = of.steps(host, &labels(host)) else { continue };
                    for step in &steps {
                        let Step::Keep { volume, claim } = step else { panic!("none is made") };
                        let number = |name: &str| name[1..].parse::<usize>().expect("a number");
                        let (volume, claim) = (number(&volume.name), number(&claim.name));
                        prop_assert!(sizes[volume].0 >= wants[claim]);
                        prop_assert!(sizes[volume].1.is_none_or(|at| HOSTS[at] == host));
                        prop_assert!(!has.values().any(|of| *of == volume));
                        going.insert(claim, step.clone());
                    }
                    all.assume(&steps);
                    let mut on_their_way: Vec<&str> = going
                        .iter()
                        .filter(|(claim, _)| !has.contains_key(claim))
                        .map(|(_, step)| match step {
                            Step::Keep { volume, .. } => volume.name.as_str(),
                            Step::Make { .. } => "",
                        })
                        .collect();
                    on_their_way.sort_unstable();
                    let count = on_their_way.len();
                    on_their_way.dedup();
                    prop_assert_eq!(count, on_their_way.len());
                }
                Act::Seen(claim, well) => {
                    let Some(step) = going.remove(&claim) else { continue };
                    let Step::Keep { volume: seen, claim: of } = &step else { continue };
                    let at: usize = seen.name[1..].parse().expect("a number");
                    if well {
                        let host = sizes[at].1.map(|host| HOSTS[host]);
                        let kept = json!({"claimRef": {"namespace": "d", "name": of.name, "uid": of.uid}});
                        all.set_volume(&volume(&seen.name, sizes[at].0, host, kept));
                        has.insert(claim, at);
                    } else {
                        all.forget(std::slice::from_ref(&step));
                    }
                }
            }
        }
    }
}
