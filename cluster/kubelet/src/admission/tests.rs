use super::*;
use crate::pod::tests::pod;

const ONE: &str = "  containers: [{name: a, image: x}]";

fn allocatable() -> Amounts {
    Amounts {
        cpu_milli: 2000,
        memory: 4 << 30,
        storage: 10 << 30,
        pids: 1000,
        pods: 3,
        huge_pages: BTreeMap::from([(2 << 20, 8 << 20)]),
    }
}

fn of_api(spec: &str) -> Desired {
    let mut pod = pod(spec);
    pod.source = API;
    pod
}

fn asks(resources: &str) -> String {
    format!("  containers: [{{name: a, image: x, resources: {{requests: {resources}}}}}]")
}

struct Scene {
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    others: Vec<Desired>,
    pressure: Pressure,
}

impl Scene {
    fn new() -> Self {
        let labels = [
            ("kubernetes.io/os", "linux"),
            ("disk", "fast"),
            ("size", "5"),
        ];
        Self {
            labels: labels.map(|(key, value)| (key.into(), value.into())).into(),
            taints: Vec::new(),
            others: Vec::new(),
            pressure: Pressure::default(),
        }
    }

    fn ask(&self, pod: &Desired) -> Result<(), Refused> {
        admit(
            pod,
            &Around {
                node: "n1",
                labels: &self.labels,
                taints: &self.taints,
                allocatable: &allocatable(),
                load: &Load::of(&self.others),
                pressure: self.pressure,
            },
        )
    }

    /// Its reason, or nothing.
    fn reason(&self, spec: &str) -> String {
        self.ask(&of_api(spec))
            .err()
            .map_or_else(String::new, |it| it.reason)
    }
}

#[test]
fn a_pod_that_asks_for_more_than_is_left_is_refused_with_upstreams_words() {
    let mut scene = Scene::new();
    scene.others = vec![of_api(&asks("{cpu: 1500m, memory: 1Gi}"))];
    for (resources, reason) in [
        ("{cpu: 500m, memory: 3Gi}", ""),
        ("{cpu: 501m}", "OutOfcpu"),
        ("{memory: 3073Mi}", "OutOfmemory"),
        ("{cpu: 1, memory: 10Gi}", "OutOfcpu"),
        ("{ephemeral-storage: 11Gi}", "OutOfephemeral-storage"),
        ("{cpu: 1m, memory: 1, hugepages-2Mi: 8Mi}", ""),
        (
            "{cpu: 1m, memory: 1, hugepages-2Mi: 10Mi}",
            "OutOfhugepages-2Mi",
        ),
        (
            "{cpu: 1m, memory: 1, hugepages-1Gi: 1Gi}",
            "OutOfhugepages-1Gi",
        ),
        ("{}", ""),
    ] {
        let limits = if resources.contains("huge") {
            format!(", limits: {resources}")
        } else {
            String::new()
        };
        let spec = format!(
            "  containers: [{{name: a, image: x, resources: {{requests: {resources}{limits}}}}}]"
        );
        assert_eq!(scene.reason(&spec), reason, "{resources}");
    }
    let refused = scene.ask(&of_api(&asks("{cpu: 4}"))).unwrap_err();
    assert_eq!(
        refused.message,
        "Node didn't have enough resource: cpu, requested: 4000, used: 1500, capacity: 2000"
    );
    let lack = Lack {
        name: "cpu".into(),
        amount: 3500,
    };
    assert_eq!(refused.lacks, [lack]);
    scene.others = vec![of_api(ONE), of_api(ONE), of_api(ONE)];
    assert_eq!(scene.reason(ONE), "OutOfpods");
}

#[test]
fn labels_names_ports_taints_and_systems_are_looked_at() {
    let mut scene = Scene::new();
    let port = |more: &str| {
        format!("  containers: [{{name: a, image: x, ports: [{{containerPort: 80, {more}}}]}}]")
    };
    scene.others = vec![of_api(&port("hostPort: 8080, hostIP: 10.0.0.1"))];
    let taint = |key: &str, effect: &str| Taint {
        key: key.into(),
        value: Some("v".into()),
        effect: effect.into(),
        time_added: None,
    };
    scene.taints = vec![taint("soft", "NoSchedule"), taint("gone", "NoExecute")];
    let term = |term: &str| {
        format!(
            "{ONE}\n  tolerations: [{{operator: Exists}}]\n  affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{term}]}}}}}}"
        )
    };
    let tolerant = |more: &str| format!("{more}\n  tolerations: [{{operator: Exists}}]");
    for (spec, reason) in [
        (tolerant(ONE), ""),
        (
            tolerant(&format!("{ONE}\n  nodeSelector: {{disk: fast}}")),
            "",
        ),
        (
            tolerant(&format!("{ONE}\n  nodeSelector: {{disk: slow}}")),
            "NodeAffinity",
        ),
        (
            term("{matchExpressions: [{key: disk, operator: In, values: [slow, fast]}]}"),
            "",
        ),
        (
            term("{matchExpressions: [{key: disk, operator: NotIn, values: [fast]}]}"),
            "NodeAffinity",
        ),
        (
            term(
                "{matchExpressions: [{key: none, operator: Exists}]}, {matchExpressions: [{key: none, operator: DoesNotExist}]}",
            ),
            "",
        ),
        (
            term(
                "{matchExpressions: [{key: size, operator: Gt, values: ['4']}, {key: size, operator: Lt, values: ['6']}]}",
            ),
            "",
        ),
        (
            term("{matchExpressions: [{key: size, operator: Gt, values: ['5']}]}"),
            "NodeAffinity",
        ),
        (
            term("{matchFields: [{key: metadata.name, operator: In, values: [n1]}]}"),
            "",
        ),
        (
            term("{matchFields: [{key: metadata.name, operator: In, values: [n2]}]}"),
            "NodeAffinity",
        ),
        (tolerant(&format!("{ONE}\n  nodeName: n2")), "NodeName"),
        (tolerant(&format!("{ONE}\n  nodeName: n1")), ""),
        (tolerant(&port("hostPort: 8080")), "NodePorts"),
        (tolerant(&port("hostPort: 8080, hostIP: 10.0.0.2")), ""),
        (tolerant(&port("hostPort: 8080, protocol: UDP")), ""),
        (tolerant(&port("name: p")), ""),
        (ONE.into(), "TaintToleration"),
        (
            format!("{ONE}\n  tolerations: [{{key: gone, value: v}}]"),
            "",
        ),
        (
            format!("{ONE}\n  tolerations: [{{key: gone, operator: Exists, effect: NoExecute}}]"),
            "",
        ),
        (
            format!("{ONE}\n  tolerations: [{{key: gone, value: w}}]"),
            "TaintToleration",
        ),
        (
            format!("{ONE}\n  tolerations: [{{key: gone, operator: Exists, effect: NoSchedule}}]"),
            "TaintToleration",
        ),
        (
            format!("{ONE}\n  os: {{name: windows}}"),
            "PodOSNotSupported",
        ),
    ] {
        assert_eq!(scene.reason(&spec), reason, "{spec}");
    }
    let mut foreign = of_api(ONE);
    let labels = foreign.pod.metadata.labels.get_or_insert_default();
    labels.insert("kubernetes.io/os".into(), "windows".into());
    let refused = scene.ask(&foreign).unwrap_err();
    assert_eq!(refused.reason, "PodOSSelectorNodeLabelDoesNotMatch");
    // a static pod is the node's own
    assert_eq!(scene.ask(&pod(ONE)), Ok(()));
    let refused = scene.ask(&of_api(ONE)).unwrap_err();
    assert_eq!(
        refused.message,
        "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
    );
    // the node's network has all of its ports
    scene.others = vec![of_api(&format!("{}\n  hostNetwork: true", port("name: p")))];
    assert_eq!(scene.reason(&tolerant(&port("hostPort: 80"))), "NodePorts");
}

#[test]
fn under_pressure_only_those_come_that_the_node_can_bear() {
    let mut scene = Scene::new();
    let memory = Pressure {
        memory: true,
        ..Pressure::default()
    };
    let disk = Pressure {
        disk: true,
        ..memory
    };
    let burstable = asks("{memory: 1Mi}");
    let tolerant = format!("{ONE}\n  tolerations: [{{key: {MEMORY_PRESSURE}, operator: Exists}}]");
    let critical = format!("{ONE}\n  priority: 2000000000");
    for (pressure, spec, reason) in [
        (memory, ONE, "Evicted"),
        (memory, burstable.as_str(), ""),
        (memory, tolerant.as_str(), ""),
        (memory, critical.as_str(), ""),
        (disk, burstable.as_str(), "Evicted"),
        (disk, tolerant.as_str(), "Evicted"),
        (disk, critical.as_str(), ""),
    ] {
        scene.pressure = pressure;
        assert_eq!(scene.reason(spec), reason, "{pressure:?} {spec}");
    }
    let refused = scene.ask(&of_api(ONE)).unwrap_err();
    assert_eq!(
        refused.message,
        "The node had condition: [MemoryPressure DiskPressure]. "
    );
}

#[test]
fn a_critical_pod_takes_the_place_of_the_fewest_and_least_important() {
    let named = |name: &str, spec: &str| {
        let mut pod = of_api(spec);
        pod.uid = name.into();
        pod
    };
    let guaranteed =
        "  containers: [{name: a, image: x, resources: {limits: {cpu: 2, memory: 1Gi}}}]";
    let others = [
        named("best-effort", ONE),
        named("small", &asks("{cpu: 100m}")),
        named("large", &asks("{cpu: 900m}")),
        named("larger", &asks("{cpu: 950m}")),
        named("guaranteed", guaranteed),
        named(
            "critical",
            &format!("{}\n  priority: 2000000000", asks("{cpu: 1}")),
        ),
    ];
    let others: Vec<&Desired> = others.iter().collect();
    let mut own = pod(ONE);
    own.uid = "static".into();
    let go = |amount, name: &str| {
        let lack = Lack {
            name: name.into(),
            amount,
        };
        let gone = preempted(&own, &others, &[lack])?;
        Some(gone.iter().map(|it| it.uid.clone()).collect::<Vec<_>>())
    };
    let all = |names: &[&str]| Some(names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
    assert_eq!(go(50, "cpu"), all(&["small"]));
    assert_eq!(go(900, "cpu"), all(&["large"]));
    assert_eq!(go(1850, "cpu"), all(&["larger", "large"]));
    assert_eq!(go(1951, "cpu"), all(&["guaranteed"]));
    assert_eq!(go(1, "pods"), all(&["best-effort"]));
    assert_eq!(go(5000, "cpu"), None);
    // one that is not critical is in nobody's place
    let usual = of_api(ONE);
    let lack = Lack {
        name: "cpu".into(),
        amount: 1,
    };
    assert!(preempted(&usual, &others, &[lack]).is_none());
}
