//! How many pods a second are decided: hollow nodes, no API server. `schedule_bench [NODES] [PODS]`, a line of JSON for each kind of pod.

use std::time::Instant;

use berth_scheduler::{Decision, Scheduler, Settings};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, from_value, json};

fn pod(kind: &str, number: usize) -> Value {
    // forty Deployments
    let app = format!("a{}", number % 40);
    let mut spec = json!({"containers": [{"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]});
    let term =
        |key: &str| json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key});
    let required = |term: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]});
    match kind {
        "affinity" => {
            spec["affinity"] = json!({"podAffinity": required(term("topology.kubernetes.io/zone"))})
        }
        "anti-affinity" => {
            spec["affinity"] = json!({"podAntiAffinity": required(term("kubernetes.io/hostname"))})
        }
        "spread" => {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": app}},
            }]);
        }
        _ => {}
    }
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app, "uid": app, "controller": true}]);
    let owner = if kind == "bare" { json!([]) } else { owner };
    json!({
        "metadata": {"name": format!("p{number}"), "namespace": "d", "uid": format!("p{number}"), "labels": {"app": app}, "ownerReferences": owner},
        "spec": spec,
    })
}

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .map(|arg| arg.parse().expect("a number"));
    let (nodes, pods) = (args.next().unwrap_or(5_000), args.next().unwrap_or(10_000));
    for kind in ["bare", "basic", "affinity", "anti-affinity", "spread"] {
        let mut scheduler = Scheduler::new("default-scheduler", Settings::default(), 1);
        for number in 0..nodes {
            let name = format!("n{number}");
            let node: Value = json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", number % 3)}},
                "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}},
            });
            scheduler.set_node(&from_value::<Node>(node).expect("a node"));
        }
        let all: Vec<Pod> = (0..pods)
            .map(|number| from_value(pod(kind, number)).expect("a pod"))
            .collect();
        let begun = Instant::now();
        for pod in &all {
            scheduler.set_pod(pod);
        }
        let taken = begun.elapsed();
        let (begun, mut bound, mut waits) = (Instant::now(), 0, 0);
        let mut longest = std::time::Duration::ZERO;
        loop {
            let one = Instant::now();
            match scheduler.step() {
                Some(Decision::Bind { pod, .. }) => {
                    scheduler.bound(&pod.uid);
                    bound += 1;
                }
                Some(Decision::Wait { .. } | Decision::Claim { .. }) => waits += 1,
                None => break,
            }
            longest = longest.max(one.elapsed());
        }
        let seconds = begun.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({
                "pods": kind, "nodes": nodes, "bound": bound, "waiting": waits, "taken_in_s": taken.as_secs_f64(),
                "decided_a_second": (f64::from(bound + waits) / seconds).round(), "longest_ms": longest.as_secs_f64() * 1e3,
            })
        );
    }
}
