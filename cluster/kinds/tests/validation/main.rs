//! What is refused, and how it is said: the field and the words that kubectl prints.

mod autoscalers;
mod networks;
mod quotas;
mod sets;
mod storage;

use berth_kinds::{by_kind, ephemeral_containers_update, resize_update};
use serde_json::{Value, json};

fn said(errors: Vec<berth_kinds::Invalid>) -> Vec<String> {
    errors
        .into_iter()
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect()
}

fn create(group: &str, version: &str, kind: &str, object: Value) -> Vec<String> {
    let kind = by_kind(group, version, kind).unwrap();
    let mut object = object;
    object["metadata"]["uid"] = "u".into();
    if kind.namespaced && object["metadata"].get("namespace").is_none() {
        object["metadata"]["namespace"] = "default".into();
    }
    (kind.default)(&mut object);
    (kind.prepare_create)(&mut object);
    let mut errors = (kind.validate)(&object);
    errors.extend((kind.validate_create)(&object));
    said(errors)
}

/// `base` with other values at some places; null takes one away.
fn with(base: &Value, changes: &[(&str, Value)]) -> Value {
    let mut object = base.clone();
    for (pointer, value) in changes {
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        let parent = object
            .pointer_mut(parent)
            .unwrap_or_else(|| panic!("{pointer}"));
        match parent {
            Value::Object(map) if value.is_null() => {
                map.remove(last);
            }
            Value::Object(map) => {
                map.insert(last.replace("~1", "/"), value.clone());
            }
            Value::Array(list) => list[last.parse::<usize>().unwrap()] = value.clone(),
            other => panic!("{pointer}: {other}"),
        }
    }
    object
}

/// What is changed of an object, and what is said of it then.
type Case<'a> = (&'a [(&'a str, Value)], &'a [&'a str]);

/// Each of `cases` changes `base`, and is refused so.
fn refused(of: (&str, &str, &str), base: &Value, cases: &[Case]) {
    let (group, version, kind) = of;
    assert_eq!(
        create(group, version, kind, base.clone()),
        Vec::<String>::new()
    );
    for (changes, expected) in cases {
        assert_eq!(
            create(group, version, kind, with(base, changes)),
            *expected,
            "{changes:?}"
        );
    }
}

fn pod() -> Value {
    json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i"}]}})
}

#[test]
fn names_labels_and_annotations_are_bounded_and_well_formed() {
    let long = "x".repeat(256 << 10);
    for (changes, expected) in [
        (vec![("/metadata/name", json!("a"))], vec![]),
        (
            vec![("/metadata/name", json!(null))],
            vec!["metadata.name: Required value: name or generateName is required"],
        ),
        (
            vec![
                ("/metadata/name", json!(null)),
                ("/metadata/generateName", json!("a-")),
            ],
            vec![],
        ),
        (
            vec![("/metadata/name", json!("A_b"))],
            vec![
                "metadata.name: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
                 '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        (
            vec![("/metadata/labels", json!({"a": "b c"}))],
            vec![
                "metadata.labels: Invalid value: \"b c\": a valid label must be an empty string or consist of alphanumeric characters, '-', \
                 '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
                 used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ],
        ),
        (
            vec![("/metadata/annotations", json!({"a": long}))],
            vec!["metadata.annotations: Too long: may not be more than 262144 bytes"],
        ),
        (
            vec![("/metadata/finalizers", json!(["mine"]))],
            vec![
                "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified",
            ],
        ),
        (
            vec![(
                "/metadata/ownerReferences",
                json!([{"apiVersion": "v1", "kind": "Pod", "name": "x"}]),
            )],
            vec!["metadata.ownerReferences[0].uid: Invalid value: \"\": must not be empty"],
        ),
    ] {
        assert_eq!(create("", "v1", "Pod", with(&pod(), &changes)), expected);
    }
    let namespaced = json!({"metadata": {"name": "a", "namespace": "b"}});
    assert_eq!(
        create("", "v1", "Node", namespaced),
        ["metadata.namespace: Forbidden: not allowed on this type"]
    );
}

#[test]
fn a_pod_says_what_it_misses() {
    let c = "/spec/containers/0";
    let at = |name: &str| format!("{c}/{name}");
    for (place, value, expected) in [
        (
            "/spec/containers".to_owned(),
            json!([]),
            vec!["spec.containers: Required value"],
        ),
        (
            at("image"),
            json!(null),
            vec!["spec.containers[0].image: Required value"],
        ),
        (
            at("image"),
            json!(" i"),
            vec![
                "spec.containers[0].image: Invalid value: \" i\": must not have leading or trailing whitespace",
            ],
        ),
        (
            at("name"),
            json!(null),
            vec!["spec.containers[0].name: Required value"],
        ),
        (
            at("imagePullPolicy"),
            json!("Sometimes"),
            vec![
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        ),
        (
            "/spec/containers".into(),
            json!([{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]),
            vec!["spec.containers[1].name: Duplicate value: \"a\""],
        ),
        (
            at("ports"),
            json!([{"containerPort": 70000}, {"name": "UP", "containerPort": 1}]),
            vec![
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                "spec.containers[0].ports[1].name: Invalid value: \"UP\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
                "spec.containers[0].ports[1].name: Invalid value: \"UP\": must contain at least one letter (a-z)",
            ],
        ),
        (
            at("volumeMounts"),
            json!([{"name": "v", "mountPath": "/v"}]),
            vec!["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
        ),
        (
            at("resources"),
            json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}),
            vec![
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ],
        ),
        (
            at("resources"),
            json!({"limits": {"memory": "-1Gi"}}),
            vec![
                "spec.containers[0].resources.limits[memory]: Invalid value: \"-1Gi\": must be greater than or equal to 0",
                "spec.containers[0].resources.requests[memory]: Invalid value: \"-1Gi\": must be greater than or equal to 0",
            ],
        ),
        (
            at("resources"),
            json!({"limits": {"gpu": "1"}, "requests": {"gpu": "1"}}),
            vec![
                "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
                "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
                "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified",
                "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers",
            ],
        ),
        (
            at("livenessProbe"),
            json!({}),
            vec!["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
        ),
        (
            at("livenessProbe"),
            json!({"exec": {"command": ["x"]}, "successThreshold": 2}),
            vec!["spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"],
        ),
        (
            at("env"),
            json!([{"name": "A=B"}]),
            vec![
                "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII \
             characters other than '=' (regex used for validation is '^[ -<>-~]+$')",
            ],
        ),
        (
            at("env"),
            json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]),
            vec![
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.x\": supported values: \"metadata.name\", \
                 \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \
                 \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
            ],
        ),
        (
            "/spec/volumes".into(),
            json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]),
            vec!["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
        ),
        (
            "/spec/volumes".into(),
            json!([{"name": "v", "hostPath": {"path": "/a/../b"}}]),
            vec![
                "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
            ],
        ),
        (
            "/spec/volumes".into(),
            json!([{"name": "v", "secret": {}}]),
            vec!["spec.volumes[0].secret.secretName: Required value"],
        ),
        (
            "/spec/restartPolicy".into(),
            json!("Maybe"),
            vec![
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ],
        ),
        (
            "/spec/activeDeadlineSeconds".into(),
            json!(0),
            vec![
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
            ],
        ),
        (
            "/spec/tolerations".into(),
            json!([{"key": "a", "operator": "Exists", "effect": "Never"}]),
            vec![
                "spec.tolerations[0].effect: Unsupported value: \"Never\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"",
            ],
        ),
        (
            "/spec/topologySpreadConstraints".into(),
            json!([{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "DoNotSchedule"}]),
            vec![
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
            ],
        ),
        (
            at("securityContext"),
            json!({"runAsUser": -1}),
            vec![
                "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            ],
        ),
        (
            "/spec/initContainers".into(),
            json!([{"name": "i", "image": "i", "readinessProbe": {"exec": {"command": ["x"]}}}]),
            vec![
                "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
            ],
        ),
    ] {
        assert_eq!(
            create("", "v1", "Pod", with(&pod(), &[(&place, value)])),
            expected,
            "{place}"
        );
    }
}

/// (new, old) after an update as the server does it.
fn updated(group: &str, kind: &str, base: Value, changes: &[(&str, Value)]) -> Vec<String> {
    let kind = by_kind(
        group,
        if group == "autoscaling" { "v2" } else { "v1" },
        kind,
    )
    .unwrap();
    let mut old = base;
    old["metadata"]["uid"] = "u".into();
    if kind.namespaced {
        old["metadata"]["namespace"] = "default".into();
    }
    (kind.default)(&mut old);
    (kind.prepare_create)(&mut old);
    assert_eq!(said((kind.validate)(&old)), Vec::<String>::new());
    let mut new = with(&old, changes);
    (kind.default)(&mut new);
    (kind.prepare_update)(&mut new, &old);
    said((kind.validate_update)(&new, &old))
}

#[test]
fn a_pod_changes_little_once_it_is_there() {
    let full = with(
        &pod(),
        &[
            (
                "/spec/tolerations",
                json!([{"key": "a", "operator": "Exists"}]),
            ),
            ("/spec/schedulingGates", json!([{"name": "g"}])),
        ],
    );
    let forbidden = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
                     `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
                     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    for (changes, expected) in [
        (vec![("/spec/containers/0/image", json!("j"))], vec![]),
        (vec![("/spec/activeDeadlineSeconds", json!(5))], vec![]),
        (vec![("/metadata/labels", json!({"x": "y"}))], vec![]),
        (vec![("/spec/schedulingGates", json!(null))], vec![]),
        (vec![("/spec/nodeSelector", json!({"x": "y"}))], vec![]),
        (
            vec![("/spec/schedulingGates", json!([{"name": "h"}]))],
            vec![
                "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate",
                forbidden,
            ],
        ),
        (
            vec![(
                "/spec/tolerations",
                json!([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]),
            )],
            vec![],
        ),
        (
            vec![("/spec/tolerations", json!([]))],
            vec![
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
            ],
        ),
        (
            vec![("/spec/containers/0/command", json!(["x"]))],
            vec![forbidden],
        ),
        (
            vec![("/spec/restartPolicy", json!("Never"))],
            vec![forbidden],
        ),
        (
            vec![(
                "/spec/containers",
                json!([{"name": "a", "image": "i"}, {"name": "b", "image": "i"}]),
            )],
            vec!["spec.containers: Forbidden: pod updates may not add or remove containers"],
        ),
        (
            vec![("/metadata/name", json!("q"))],
            vec!["metadata.name: Invalid value: \"q\": field is immutable"],
        ),
        (
            vec![("/metadata/uid", json!("v"))],
            vec!["metadata.uid: Invalid value: \"v\": field is immutable"],
        ),
    ] {
        assert_eq!(
            updated("", "Pod", full.clone(), &changes),
            expected,
            "{changes:?}"
        );
    }
}

#[test]
fn a_pods_subresources_change_their_part_alone() {
    let old = with(
        &pod(),
        &[(
            "/spec/ephemeralContainers",
            json!([{"name": "d", "image": "x"}]),
        )],
    );
    let more = with(
        &old,
        &[(
            "/spec/ephemeralContainers",
            json!([{"name": "d", "image": "x"}, {"name": "e", "image": "x"}]),
        )],
    );
    assert_eq!(
        said(ephemeral_containers_update(&more, &old)),
        Vec::<String>::new()
    );
    assert_eq!(
        said(ephemeral_containers_update(&pod(), &old)).len(),
        1,
        "none is taken away"
    );
    let other = with(
        &old,
        &[(
            "/spec/ephemeralContainers",
            json!([{"name": "d", "image": "y"}]),
        )],
    );
    assert_eq!(
        said(ephemeral_containers_update(&other, &old)).len(),
        1,
        "none is changed"
    );

    let old = with(
        &pod(),
        &[(
            "/spec/containers/0/resources",
            json!({"requests": {"cpu": "1"}}),
        )],
    );
    let resized = with(
        &old,
        &[(
            "/spec/containers/0/resources",
            json!({"requests": {"cpu": "2", "memory": "1Gi"}}),
        )],
    );
    assert_eq!(said(resize_update(&resized, &old)), Vec::<String>::new());
    let image = with(&resized, &[("/spec/containers/0/image", json!("j"))]);
    assert_eq!(
        said(resize_update(&image, &old)),
        ["spec: Forbidden: only cpu and memory resources are mutable"]
    );
    let gone = with(&old, &[("/spec/containers/0/resources", json!({}))]);
    assert_eq!(
        said(resize_update(&gone, &old)),
        [
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing",
            "spec.containers[0].resources.requests: Forbidden: requests cannot be removed"
        ]
    );
    let guaranteed = with(
        &resized,
        &[(
            "/spec/containers/0/resources/limits",
            json!({"cpu": "2", "memory": "1Gi"}),
        )],
    );
    assert_eq!(
        said(resize_update(&guaranteed, &old)),
        [
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"
        ]
    );
    let mirror = json!({"kubernetes.io/config.mirror": "h"});
    let mirror = with(&old, &[("/metadata/annotations", mirror)]);
    assert_eq!(
        said(resize_update(&resized, &mirror)),
        [": Forbidden: static pods cannot be resized"]
    );
}

fn deployment() -> Value {
    json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

#[test]
fn workloads_select_the_pods_that_they_make() {
    for (place, value, expected) in [
        (
            "/spec/replicas",
            json!(-1),
            vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            "/spec/selector",
            json!(null),
            vec!["spec.selector: Required value"],
        ),
        (
            "/spec/selector",
            json!({}),
            vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        ),
        (
            "/spec/template/metadata/labels",
            json!({"a": "c"}),
            vec![
                "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
            ],
        ),
        (
            "/spec/template/spec/restartPolicy",
            json!("Never"),
            vec![
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ],
        ),
        (
            "/spec/strategy",
            json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
            vec![
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        ),
        (
            "/spec/strategy",
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
            vec![
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when `maxSurge` is 0",
            ],
        ),
        (
            "/spec/progressDeadlineSeconds",
            json!(0),
            vec![
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than minReadySeconds",
            ],
        ),
        (
            "/spec/template/spec/containers",
            json!([]),
            vec!["spec.template.spec.containers: Required value"],
        ),
    ] {
        assert_eq!(
            create(
                "apps",
                "v1",
                "Deployment",
                with(&deployment(), &[(place, value)])
            ),
            expected,
            "{place}"
        );
    }
    for kind in ["Deployment", "ReplicaSet", "DaemonSet"] {
        let changes = [
            ("/spec/selector", json!({"matchLabels": {"a": "c"}})),
            ("/spec/template/metadata/labels", json!({"a": "c"})),
        ];
        assert_eq!(
            updated("apps", kind, deployment(), &changes),
            ["spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable"],
            "{kind}"
        );
    }
    assert_eq!(
        updated(
            "apps",
            "StatefulSet",
            deployment(),
            &[("/spec/replicas", json!(7))]
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        updated(
            "apps",
            "StatefulSet",
            deployment(),
            &[("/spec/serviceName", json!("other"))]
        ),
        [
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
        ]
    );
}

#[test]
fn claims_of_a_stateful_set_are_volumes_of_its_pods() {
    let mount = |name: &str| json!([{"name": name, "mountPath": "/d"}]);
    let mut set = deployment();
    set["spec"]["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }}]);
    let mounts = "/spec/template/spec/containers/0/volumeMounts";
    let volumes = "/spec/template/spec/volumes";
    for (changes, expected) in [
        (vec![(mounts, mount("data"))], vec![]),
        (
            vec![(mounts, mount("other"))],
            vec!["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"other\""],
        ),
        (
            vec![
                (mounts, mount("other")),
                (volumes, json!([{"name": "other", "emptyDir": {}}])),
            ],
            vec![],
        ),
        // the claim takes the place of a volume of its name, whatever that was
        (
            vec![
                (mounts, mount("data")),
                (volumes, json!([{"name": "data", "secret": {}}])),
            ],
            vec![],
        ),
        // … and the controller gives these
        (
            vec![
                ("/spec/template/spec/hostname", json!("Not_a_name")),
                ("/spec/template/spec/subdomain", json!("Not_a_name")),
            ],
            vec![],
        ),
    ] {
        let set = with(&set, &changes);
        assert_eq!(
            create("apps", "v1", "StatefulSet", set),
            expected,
            "{changes:?}"
        );
    }
}

#[test]
fn jobs_end_and_their_schedules_are_ones() {
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    for (changes, expected) in [
        (vec![], vec![]),
        (
            vec![("/spec/template/spec/restartPolicy", json!(null))],
            vec![
                "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
            ],
        ),
        (
            vec![("/spec/completions", json!(-1))],
            vec!["spec.completions: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            vec![
                ("/spec/completionMode", json!("Indexed")),
                ("/spec/parallelism", json!(1)),
            ],
            vec!["spec.completions: Required value: when completion mode is Indexed"],
        ),
    ] {
        assert_eq!(
            create("batch", "v1", "Job", with(&job, &changes)),
            expected,
            "{changes:?}"
        );
    }
    assert_eq!(
        updated(
            "batch",
            "Job",
            job.clone(),
            &[("/spec/parallelism", json!(5))]
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        updated(
            "batch",
            "Job",
            job.clone(),
            &[("/spec/completions", json!(5))]
        ),
        ["spec.completions: Invalid value: 5: field is immutable"]
    );
    let image = [("/spec/template/spec/containers/0/image", json!("j"))];
    assert!(
        updated("batch", "Job", job.clone(), &image)[0]
            .starts_with("spec.template: Invalid value: {")
    );
    let suspended = with(&job, &[("/spec/suspend", json!(true))]);
    let place = [("/spec/template/spec/nodeSelector", json!({"a": "b"}))];
    assert_eq!(
        updated("batch", "Job", suspended, &place),
        Vec::<String>::new()
    );

    let cron = json!({"metadata": {"name": "c"}, "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job["spec"]}}});
    for (place, value, expected) in [
        ("/spec/schedule", json!("@hourly"), vec![]),
        (
            "/spec/schedule",
            json!(null),
            vec!["spec.schedule: Required value"],
        ),
        (
            "/spec/schedule",
            json!("* * * *"),
            vec![
                "spec.schedule: Invalid value: \"* * * *\": expected exactly 5 fields, found 4: [* * * *]",
            ],
        ),
        (
            "/spec/concurrencyPolicy",
            json!("Queue"),
            vec![
                "spec.concurrencyPolicy: Unsupported value: \"Queue\": supported values: \"Allow\", \"Forbid\", \"Replace\"",
            ],
        ),
        (
            "/spec/timeZone",
            json!("../etc/passwd"),
            vec![
                "spec.timeZone: Invalid value: \"../etc/passwd\": unknown time zone ../etc/passwd",
            ],
        ),
    ] {
        assert_eq!(
            create("batch", "v1", "CronJob", with(&cron, &[(place, value)])),
            expected,
            "{place}"
        );
    }
}

#[test]
fn services_and_their_like_are_checked() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    for (changes, expected) in [
        (vec![], vec![]),
        (
            vec![("/spec/ports", json!(null))],
            vec!["spec.ports: Required value"],
        ),
        (
            vec![("/spec/ports/0/port", json!(0))],
            vec![
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ],
        ),
        (
            vec![(
                "/spec/ports",
                json!([{"port": 80}, {"port": 81, "name": "b"}]),
            )],
            vec!["spec.ports[0].name: Required value"],
        ),
        (
            vec![("/spec/ports/0/nodePort", json!(30000))],
            vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        ),
        (
            vec![("/spec/type", json!("Public"))],
            vec![
                "spec.type: Unsupported value: \"Public\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ],
        ),
        (
            vec![
                ("/spec/type", json!("ExternalName")),
                ("/spec/ports", json!(null)),
            ],
            vec!["spec.externalName: Required value"],
        ),
        (
            vec![("/spec/clusterIP", json!("nonsense"))],
            vec![
                "spec.clusterIPs[0]: Invalid value: \"nonsense\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        ),
        (
            vec![("/spec/externalIPs", json!(["127.0.0.1"]))],
            vec![
                "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        ),
        (vec![("/metadata/name", json!("1s"))], vec![]),
        (
            vec![("/metadata/name", json!("s.t"))],
            vec![
                "metadata.name: Invalid value: \"s.t\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                 and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
            ],
        ),
    ] {
        assert_eq!(
            create("", "v1", "Service", with(&service, &changes)),
            expected,
            "{changes:?}"
        );
    }
    let known = with(&service, &[("/spec/clusterIP", json!("10.0.0.1"))]);
    assert_eq!(
        updated(
            "",
            "Service",
            known,
            &[
                ("/spec/clusterIP", json!("10.0.0.2")),
                ("/spec/clusterIPs", json!(["10.0.0.2"]))
            ]
        ),
        ["spec.clusterIPs[0]: Invalid value: \"10.0.0.2\": may not change once set"]
    );
}

#[test]
fn data_is_bounded_and_what_is_immutable_stays() {
    // CM-04, SC-04
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "b"}});
    let most = "x".repeat(1 << 20);
    assert_eq!(
        create(
            "",
            "v1",
            "ConfigMap",
            with(&map, &[("/data/a", json!(most))])
        ),
        Vec::<String>::new()
    );
    assert_eq!(
        create(
            "",
            "v1",
            "ConfigMap",
            with(&map, &[("/data/a", json!(format!("{most}x")))])
        ),
        ["[]: Too long: may not be more than 1048576 bytes"]
    );
    assert_eq!(
        create(
            "",
            "v1",
            "ConfigMap",
            with(&map, &[("/data/a~1b", json!("c"))])
        )
        .len(),
        1
    );
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"a": format!("{most}x")}});
    assert_eq!(
        create("", "v1", "Secret", secret),
        ["data: Too long: may not be more than 1048576 bytes"]
    );
    let broken = json!({"metadata": {"name": "s"}, "data": {"a": "no base64!"}});
    assert_eq!(create("", "v1", "Secret", broken).len(), 1);
    let tls =
        json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}});
    assert_eq!(
        create("", "v1", "Secret", tls),
        ["data[tls.key]: Required value"]
    );
    let docker = json!({"metadata": {"name": "s"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "hunter2"}});
    let said = create("", "v1", "Secret", docker);
    assert_eq!(said.len(), 1);
    assert!(
        !said[0].contains("hunter2") && !said[0].contains("aHVudGVyMg"),
        "{said:?}"
    );

    let frozen = with(&map, &[("/immutable", json!(true))]);
    assert_eq!(
        updated("", "ConfigMap", frozen.clone(), &[("/data/a", json!("c"))]),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        updated("", "ConfigMap", frozen, &[("/immutable", json!(null))]),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
    let secret = json!({"metadata": {"name": "s"}, "data": {}});
    assert_eq!(
        updated("", "Secret", secret, &[("/type", json!("other"))]),
        ["type: Invalid value: \"other\": field is immutable"]
    );
}

#[test]
fn other_kinds_have_their_rules() {
    let cases: Vec<(&str, &str, &str, Value, Vec<&str>)> = vec![
        (
            "rbac.authorization.k8s.io",
            "v1",
            "Role",
            json!({"metadata": {"name": "r:x"}, "rules": [{"apiGroups": [""], "resources": ["pods"]}]}),
            vec!["rules[0].verbs: Required value: verbs must contain at least one value"],
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "ClusterRoleBinding",
            json!({"metadata": {"name": "r"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s"}]}),
            vec![
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
                "subjects[0].namespace: Required value",
            ],
        ),
        (
            "",
            "v1",
            "PersistentVolumeClaim",
            json!({"metadata": {"name": "c"}, "spec": {}}),
            vec![
                "spec.accessModes: Required value: at least 1 access mode is required",
                "spec.resources[storage]: Required value",
            ],
        ),
        (
            "",
            "v1",
            "PersistentVolume",
            json!({"metadata": {"name": "v"}, "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}}}),
            vec!["spec: Required value: must specify a volume type"],
        ),
        (
            "networking.k8s.io",
            "v1",
            "Ingress",
            json!({"metadata": {"name": "i"}, "spec": {"rules": [{"host": "1.2.3.4", "http": {"paths": [{"path": "a", "pathType": "Prefix", "backend": {}}]}}]}}),
            vec![
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ],
        ),
        (
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            json!({"metadata": {"name": "n"}, "spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}}),
            vec!["spec.ingress[0].from[0]: Required value: must specify a peer"],
        ),
        (
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            json!({"metadata": {"name": "n"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}}),
            vec![
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            ],
        ),
        (
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            json!({"metadata": {"name": "h"}, "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "minReplicas": 3, "maxReplicas": 2}}),
            vec![
                "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`",
            ],
        ),
        (
            "policy",
            "v1",
            "PodDisruptionBudget",
            json!({"metadata": {"name": "p"}, "spec": {"minAvailable": "120%"}}),
            vec!["spec.minAvailable: Invalid value: \"120%\": must not be greater than 100%"],
        ),
        (
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            json!({"metadata": {"name": "p"}, "value": 1_000_000_001}),
            vec![
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
            ],
        ),
        (
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000}),
            vec![],
        ),
        (
            "storage.k8s.io",
            "v1",
            "StorageClass",
            json!({"metadata": {"name": "s"}}),
            vec!["provisioner: Required value"],
        ),
        (
            "coordination.k8s.io",
            "v1",
            "Lease",
            json!({"metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0}}),
            vec!["spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"],
        ),
        (
            "",
            "v1",
            "Node",
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoSchedule"}]}}),
            vec![
                "spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\",\"value\":\"b\"}",
            ],
        ),
        (
            "",
            "v1",
            "LimitRange",
            json!({"metadata": {"name": "l"}, "spec": {"limits": [{"type": "Container", "min": {"cpu": "2"}, "max": {"cpu": "1"}, "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2"}}]}}),
            vec![
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max value 1",
                "spec.limits[0].default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
            ],
        ),
        (
            "",
            "v1",
            "Event",
            json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            vec!["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"],
        ),
        (
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            json!({"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["::1"]}]}),
            vec![
                "endpoints[0].addresses: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[0].addresses[0]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            json!({"metadata": {"name": "a.b.c"}, "spec": {"group": "b.d", "scope": "Namespaced", "names": {"plural": "a", "kind": "A"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
            vec![
                "metadata.name: Invalid value: \"a.b.c\": must be spec.names.plural+\".\"+spec.group",
            ],
        ),
        (
            "authorization.k8s.io",
            "v1",
            "SelfSubjectAccessReview",
            json!({"kind": "SelfSubjectAccessReview", "metadata": {}, "spec": {}}),
            vec![
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ],
        ),
    ];
    for (group, version, kind, object, expected) in cases {
        assert_eq!(create(group, version, kind, object), expected, "{kind}");
    }
}

#[test]
fn what_binds_cannot_be_turned() {
    let binding =
        json!({"metadata": {"name": "r"}, "roleRef": {"kind": "ClusterRole", "name": "view"}});
    let said = updated(
        "rbac.authorization.k8s.io",
        "RoleBinding",
        binding,
        &[("/roleRef/name", json!("admin"))],
    );
    assert_eq!(said.len(), 1);
    assert!(
        said[0].starts_with("roleRef: Invalid value: {")
            && said[0].ends_with(": cannot change roleRef"),
        "{said:?}"
    );

    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    assert_eq!(
        updated(
            "",
            "PersistentVolumeClaim",
            claim.clone(),
            &[("/spec/volumeName", json!("v"))]
        ),
        Vec::<String>::new(),
        "what binds it"
    );
    assert_eq!(
        updated(
            "",
            "PersistentVolumeClaim",
            claim.clone(),
            &[("/spec/accessModes", json!(["ReadWriteMany"]))]
        )
        .len(),
        1
    );
    assert_eq!(
        updated(
            "",
            "PersistentVolumeClaim",
            claim,
            &[("/spec/resources/requests/storage", json!("1Mi"))]
        ),
        [
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        ]
    );

    let class = json!({"metadata": {"name": "s"}, "provisioner": "p", "parameters": {"a": "b"}});
    assert_eq!(
        updated(
            "storage.k8s.io",
            "StorageClass",
            class,
            &[("/parameters/a", json!("c"))]
        ),
        ["parameters: Invalid value: {\"a\":\"c\"}: field is immutable"]
    );
}
