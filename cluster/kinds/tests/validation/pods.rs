use berth_kinds::{ephemeral_containers_update, resize_update};
use serde_json::{Value, json};

use super::{create, said, updated, with};

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
