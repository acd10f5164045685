//! What is refused, and how it is said: the field and the words that kubectl prints.

mod autoscalers;
mod data;
mod networks;
mod pods;
mod quotas;
mod sets;
mod storage;
mod workloads;

use berth_kinds::by_kind;
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
