//! Decisions of random clusters, held against the rules written down plainly: every question asked anew, of every pod.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, from_value, json};

use crate::{
    cluster::Cluster,
    decide::{Decider, Reserve, Settings},
    node::NodeFacts,
    pod::{Matcher, PodFacts, PodTerm, Spread},
    preempt::make_room,
    selector::Labels,
};

const NODES: usize = 6;

fn node(name: usize, zone: u8, cpu: u8, taint: u8) -> NodeFacts {
    let mut labels = json!({"kubernetes.io/hostname": format!("n{name}")});
    if zone < 3 {
        labels["zone"] = json!(format!("z{zone}"));
    }
    let taints = match taint {
        0 => json!([{"key": "t", "value": "x", "effect": "NoSchedule"}]),
        1 => json!([{"key": "t", "value": "x", "effect": "PreferNoSchedule"}]),
        _ => json!([]),
    };
    let node: ApiNode = from_value(json!({
        "metadata": {"name": format!("n{name}"), "labels": labels},
        "spec": {"taints": taints, "unschedulable": taint == 2},
        "status": {"allocatable": {"cpu": cpu.to_string(), "memory": "8Gi", "pods": "5"}},
    }))
    .expect("a node");
    NodeFacts::of(&node).expect("a name")
}

#[derive(Debug, Clone)]
struct Wish {
    app: u8,
    cpu: u8,
    priority: i32,
    zone: Option<u8>,
    tolerates: bool,
    port: bool,
    affinity: Option<(u8, bool)>,
    anti: Option<(u8, bool)>,
    preferred: Option<(u8, i32)>,
    spread: Option<(u8, bool, bool)>,
}

fn rare<S: Strategy>(some: S) -> impl Strategy<Value = Option<S::Value>> {
    proptest::option::weighted(0.25, some)
}

fn wish() -> impl Strategy<Value = Wish> {
    (
        (0..3u8, 0..3u8, 0..3i32, rare(0..3u8)),
        (any::<bool>(), prop::bool::weighted(0.1)),
        rare((0..3u8, any::<bool>())),
        rare((0..3u8, any::<bool>())),
        rare((0..3u8, -50..50i32)),
        rare((1..3u8, any::<bool>(), any::<bool>())),
    )
        .prop_map(
            |(plain, (tolerates, port), affinity, anti, preferred, spread)| {
                let (app, cpu, priority, zone) = plain;
                Wish {
                    app,
                    cpu,
                    priority,
                    zone,
                    tolerates,
                    port,
                    affinity,
                    anti,
                    preferred,
                    spread,
                }
            },
        )
}

fn pod(number: usize, wish: &Wish) -> PodFacts {
    let app = |app: u8| json!({"matchLabels": {"app": format!("a{app}")}});
    let key = |by_zone: bool| {
        if by_zone {
            "zone"
        } else {
            "kubernetes.io/hostname"
        }
    };
    let term =
        |of: u8, by_zone: bool| json!({"labelSelector": app(of), "topologyKey": key(by_zone)});
    let mut affinity = json!({});
    if let Some((of, by_zone)) = wish.affinity {
        affinity["podAffinity"] =
            json!({"requiredDuringSchedulingIgnoredDuringExecution": [term(of, by_zone)]});
    }
    let mut against = json!({});
    if let Some((of, by_zone)) = wish.anti {
        against["requiredDuringSchedulingIgnoredDuringExecution"] = json!([term(of, by_zone)]);
    }
    if let Some((of, weight)) = wish.preferred {
        against["preferredDuringSchedulingIgnoredDuringExecution"] =
            json!([{"weight": weight.abs() + 1, "podAffinityTerm": term(of, true)}]);
    }
    affinity["podAntiAffinity"] = against;
    let mut spec = json!({
        "priority": wish.priority,
        "affinity": affinity,
        "containers": [{"name": "c", "resources": {"requests": {"cpu": wish.cpu.to_string()}}}],
    });
    if let Some(zone) = wish.zone {
        spec["nodeSelector"] = json!({"zone": format!("z{zone}")});
    }
    if wish.tolerates {
        spec["tolerations"] = json!([{"key": "t", "operator": "Exists"}]);
    }
    if wish.port {
        spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
    }
    if let Some((max_skew, by_zone, hard)) = wish.spread {
        spec["topologySpreadConstraints"] = json!([{
            "maxSkew": max_skew, "topologyKey": key(by_zone), "labelSelector": app(wish.app),
            "whenUnsatisfiable": if hard { "DoNotSchedule" } else { "ScheduleAnyway" },
        }]);
    }
    let name = format!("p{number}");
    let pod: Value = json!({"metadata": {"name": name, "uid": name, "namespace": "d", "labels": {"app": format!("a{}", wish.app)}}, "spec": spec});
    PodFacts::of(&from_value::<Pod>(pod).expect("a pod")).expect("names")
}

/// Nodes by number, pods with the number of theirs.
#[derive(Debug, Default, Clone)]
struct Plain {
    nodes: Vec<Option<NodeFacts>>,
    pods: Vec<(PodFacts, usize)>,
}

fn meant(term: &Matcher, pod: &PodFacts) -> bool {
    term.takes(pod.wants(), |_| None::<Labels>)
}

impl Plain {
    fn label(&self, node: usize, key: &str) -> Option<&String> {
        self.nodes[node].as_ref()?.labels.get(key)
    }

    /// Pods in the node's part.
    fn in_part<'a>(&'a self, node: usize, key: &'a str) -> impl Iterator<Item = &'a PodFacts> {
        let own = self.label(node, key);
        let there = self.pods.iter();
        let there = there.filter(move |(_, at)| own.is_some() && self.label(*at, key) == own);
        there.map(|(pod, _)| pod)
    }

    fn fits(&self, pod: &PodFacts, at: usize) -> bool {
        let Some(node) = &self.nodes[at] else {
            return false;
        };
        let wants = pod.wants();
        let taken = |taint: &&crate::node::Taint| {
            taint.effect == "NoSchedule"
                && !wants.tolerates(&taint.key, &taint.value, &taint.effect)
        };
        if node.unschedulable
            || node.taints.iter().any(|taint| taken(&taint))
            || !wants.takes_node(&node.name, &node.labels)
        {
            return false;
        }
        let there: Vec<&PodFacts> = self
            .pods
            .iter()
            .filter(|(_, on)| *on == at)
            .map(|(pod, _)| pod)
            .collect();
        let cpu: i64 = there.iter().map(|one| one.wants().requests.cpu_milli).sum();
        let asked = wants.requests.cpu_milli;
        let port = |one: &PodFacts| !one.wants().ports.is_empty();
        if there.len() >= 5
            || asked > 0 && cpu + asked > node.allocatable.cpu_milli
            || port(pod) && there.iter().any(|one| port(one))
        {
            return false;
        }
        self.likes(pod, at)
            && wants
                .spread
                .iter()
                .filter(|one| one.hard)
                .all(|one| self.spreads(pod, at, one))
    }

    fn likes(&self, pod: &PodFacts, at: usize) -> bool {
        let wants = pod.wants();
        let all_meant = |other: &PodFacts| {
            wants
                .affinity
                .iter()
                .all(|term| meant(&term.matcher, other))
        };
        let is_first = all_meant(pod)
            && !self.pods.iter().any(|(other, on)| {
                all_meant(other)
                    && wants
                        .affinity
                        .iter()
                        .any(|term| self.label(*on, &term.topology_key).is_some())
            });
        let with = wants.affinity.iter().all(|term| {
            self.label(at, &term.topology_key).is_some()
                && (is_first || self.in_part(at, &term.topology_key).any(&all_meant))
        });
        let without = |term: &PodTerm| {
            !self
                .in_part(at, &term.topology_key)
                .any(|other| meant(&term.matcher, other))
        };
        let nobody_minds = self.pods.iter().all(|(other, on)| {
            other.wants().anti_affinity.iter().all(|term| {
                let own = self.label(at, &term.topology_key);
                !(meant(&term.matcher, pod)
                    && own.is_some()
                    && self.label(*on, &term.topology_key) == own)
            })
        });
        with && wants.anti_affinity.iter().all(without) && nobody_minds
    }

    fn spreads(&self, pod: &PodFacts, at: usize, spread: &Spread) -> bool {
        let key = &spread.topology_key;
        if self.label(at, key).is_none() {
            return false;
        }
        let count = |node: usize| {
            let eligible: Vec<usize> = (0..self.nodes.len())
                .filter(|one| self.label(*one, key) == self.label(node, key))
                .filter(|one| self.counts(pod, *one, spread))
                .collect();
            let there = self
                .pods
                .iter()
                .filter(|(other, on)| eligible.contains(on) && meant(&spread.matcher, other));
            there.count()
        };
        let least = (0..self.nodes.len())
            .filter(|one| self.counts(pod, *one, spread))
            .map(count)
            .min()
            .unwrap_or(0);
        let itself = usize::from(meant(&spread.matcher, pod));
        (count(at) + itself) as i64 - least as i64 <= i64::from(spread.max_skew)
    }

    fn counts(&self, pod: &PodFacts, node: usize, spread: &Spread) -> bool {
        self.nodes[node].as_ref().is_some_and(|facts| {
            facts.labels.contains_key(&spread.topology_key)
                && pod.wants().takes_node(&facts.name, &facts.labels)
        })
    }
}

#[derive(Debug, Clone)]
enum Step {
    Pod(Wish),
    /// As one before it: of a class that was asked already.
    Same(usize),
    Ends(usize),
    Node(usize, u8, u8, u8),
    NodeGoes(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => wish().prop_map(Step::Pod),
        5 => any::<usize>().prop_map(Step::Same),
        2 => any::<usize>().prop_map(Step::Ends),
        2 => (0..NODES, 0..4u8, 1..5u8, 0..8u8).prop_map(|(name, zone, cpu, taint)| Step::Node(name, zone, cpu, taint)),
        1 => (0..NODES).prop_map(Step::NodeGoes),
    ];
    vec(step, 1..60)
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("a number")
}

fn is_same(
    plain: &Plain,
    cluster: &mut Cluster,
    decider: &mut Decider,
    pod: &PodFacts,
) -> Result<(), TestCaseError> {
    let fits: Vec<usize> = (0..NODES).filter(|at| plain.fits(pod, *at)).collect();
    match decider.decide(cluster, pod, &Reserve::default()) {
        Ok(at) => {
            let name = cluster.name(at);
            prop_assert!(
                fits.contains(&number(&name)),
                "{name} was chosen of {fits:?} for {pod:?} in {plain:?}"
            );
            Ok(())
        }
        Err(unfit) => {
            prop_assert!(
                fits.is_empty(),
                "{}, but {fits:?} would do for {pod:?} in {plain:?}",
                unfit.message()
            );
            let known = plain.nodes.iter().flatten().count();
            let told: usize = unfit.refusals.iter().map(|(_, count)| count).sum();
            prop_assert_eq!((unfit.nodes, told), (known, known));
            let room = make_room(
                cluster,
                Settings::default(),
                pod,
                &unfit,
                &Reserve::default(),
                &[],
            );
            if let Ok(room) = room {
                let at = number(&cluster.name(room.node));
                let is_victim = |one: &PodFacts| room.victims.contains(&one.uid);
                let mut after = plain.clone();
                after.pods.retain(|(one, _)| !is_victim(one));
                prop_assert!(
                    !room.victims.is_empty() && after.fits(pod, at),
                    "no room on n{at}: {room:?}"
                );
                for (one, on) in plain.pods.iter().filter(|(one, _)| is_victim(one)) {
                    prop_assert!(one.priority < pod.priority && *on == at);
                    let mut spared = after.clone();
                    spared.pods.push((one.clone(), *on));
                    prop_assert!(!spared.fits(pod, at), "{} need not go", one.name);
                }
            } else {
                // nor by ending all that are less important, on any node; whom it wants to be with are not ended to be the first
                for at in (0..NODES).filter(|_| pod.wants().affinity.is_empty()) {
                    let mut after = plain.clone();
                    after
                        .pods
                        .retain(|(one, on)| *on != at || one.priority >= pod.priority);
                    let ended = after.pods.len() < plain.pods.len();
                    prop_assert!(
                        !(ended && after.fits(pod, at)),
                        "room could be made on n{at}"
                    );
                }
            }
            Ok(())
        }
    }
}

proptest! {
    #[test]
    fn decisions_are_what_the_rules_say(begin in vec((0..4u8, 1..5u8, 3..8u8), NODES), steps in steps(), seed: u64) {
        let mut plain = Plain { nodes: vec![None; NODES], pods: Vec::new() };
        let mut cluster = Cluster::default();
        let mut decider = Decider::new(Settings::default(), seed);
        for (name, (zone, cpu, taint)) in begin.into_iter().enumerate() {
            let facts = node(name, zone, cpu, taint);
            plain.nodes[name] = Some(facts.clone());
            cluster.set_node(facts);
        }
        let mut wishes: Vec<Wish> = Vec::new();
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                Step::Pod(_) | Step::Same(_) => {
                    let wish = match step {
                        Step::Pod(wish) => wish,
                        Step::Same(which) if !wishes.is_empty() => wishes[which % wishes.len()].clone(),
                        _ => continue,
                    };
                    let facts = pod(at, &wish);
                    wishes.push(wish);
                    is_same(&plain, &mut cluster, &mut decider, &facts)?;
                    if let Ok(to) = decider.decide(&mut cluster, &facts, &Reserve::default()) {
                        let name: Arc<str> = cluster.name(to);
                        cluster.set_pod(facts.clone(), &name);
                        plain.pods.push((facts, number(&name)));
                    }
                }
                Step::Ends(which) => {
                    if !plain.pods.is_empty() {
                        let (gone, _) = plain.pods.swap_remove(which % plain.pods.len());
                        prop_assert!(cluster.remove_pod(&gone.uid));
                    }
                }
                Step::Node(name, zone, cpu, taint) => {
                    let facts = node(name, zone, cpu, taint);
                    plain.nodes[name] = Some(facts.clone());
                    cluster.set_node(facts);
                }
                // its pods stay: it may come back
                Step::NodeGoes(name) => {
                    plain.nodes[name] = None;
                    cluster.remove_node(&format!("n{name}"));
                }
            }
        }
    }
}
