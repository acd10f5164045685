use berth_kinds::by_kind;
use serde_json::json;

use super::{refused, said};

#[test]
fn a_claim_is_refused_as_upstream_refuses_it() {
    let claim = json!({"metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
    }});
    refused(
        ("", "v1", "PersistentVolumeClaim"),
        &claim,
        &[
            (
                &[(
                    "/spec/accessModes",
                    json!(["ReadWriteOncePod", "ReadWriteOnce"]),
                )],
                &[
                    "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
                ],
            ),
            (
                &[("/spec/resources/requests/storage", json!("-1"))],
                &["spec.resources[storage]: Invalid value: \"-1\": must be greater than zero"],
            ),
            (
                &[("/spec/dataSource", json!({"kind": "VolumeSnapshot"}))],
                &[
                    "spec.dataSource.name: Required value",
                    "spec.dataSource: Invalid value: \"VolumeSnapshot\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
                ],
            ),
            (
                &[
                    (
                        "/spec/dataSource",
                        json!({"kind": "PersistentVolumeClaim", "name": "a"}),
                    ),
                    (
                        "/spec/dataSourceRef",
                        json!({"kind": "PersistentVolumeClaim", "name": "b"}),
                    ),
                ],
                &["spec: Invalid value: {}: must match dataSourceRef"],
            ),
            (
                &[
                    (
                        "/spec/dataSource",
                        json!({"kind": "PersistentVolumeClaim", "name": "a"}),
                    ),
                    (
                        "/spec/dataSourceRef",
                        json!({"kind": "PersistentVolumeClaim", "name": "a", "namespace": "n"}),
                    ),
                ],
                &[
                    "spec: Invalid value: {}: may not be specified when dataSourceRef.namespace is specified",
                ],
            ),
        ],
    );
}

#[test]
fn a_volume_is_refused_as_upstream_refuses_it() {
    let volume = json!({"metadata": {"name": "v"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/d"},
    }});
    refused(
        ("", "v1", "PersistentVolume"),
        &volume,
        &[
            (
                &[("/spec/accessModes", json!(null))],
                &["spec.accessModes: Required value"],
            ),
            (
                &[("/spec/capacity", json!(null))],
                &[
                    "spec.capacity: Required value",
                    "spec.capacity: Unsupported value: null: supported values: \"storage\"",
                ],
            ),
            (
                &[("/spec/capacity", json!({"storage": "0"}))],
                &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"],
            ),
            (
                &[("/spec/volumeAttributesClassName", json!("gold"))],
                &[
                    "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
                ],
            ),
        ],
    );
}

#[test]
fn a_storage_class_is_refused_as_upstream_refuses_it() {
    let class = json!({"metadata": {"name": "s"}, "provisioner": "example.com/p"});
    let term = |key: &str, values: &[&str]| json!({"matchLabelExpressions": [{"key": key, "values": values}]});
    refused(
        ("storage.k8s.io", "v1", "StorageClass"),
        &class,
        &[
            (
                &[(
                    "/allowedTopologies",
                    json!([term("zone", &["a"]), term("zone", &["b"])]),
                )],
                &[],
            ),
            (
                &[("/allowedTopologies", json!([term("zone", &[])]))],
                &["allowedTopologies[0].matchLabelExpressions[0].values: Required value"],
            ),
            (
                &[("/allowedTopologies", json!([term("zone", &["a", "a"])]))],
                &[
                    "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\"",
                ],
            ),
            (
                &[(
                    "/allowedTopologies",
                    json!([term("zone", &["a", "b"]), term("zone", &["b", "a"])]),
                )],
                &["allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\""],
            ),
            (
                &[("/parameters", json!({"": "a"}))],
                &["parameters: Invalid value: \"\": field can not be empty."],
            ),
        ],
    );
}

/// A claim that got 2Gi of the 3Gi that it asks for.
#[test]
fn a_bound_claim_gives_back_nothing_that_it_has() {
    let kind = by_kind("", "v1", "PersistentVolumeClaim").unwrap();
    let claim = |size: &str| {
        json!({"metadata": {"name": "c", "namespace": "default"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}},
        }, "status": {"phase": "Bound", "capacity": {"storage": "2Gi"}}})
    };
    let less =
        ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"];
    for (size, expected) in [
        ("4Gi", &[][..]),
        ("2500Mi", &[]),
        ("2Gi", &less),
        ("1Gi", &less),
    ] {
        let errors = (kind.validate_update)(&claim(size), &claim("3Gi"));
        assert_eq!(said(errors), *expected, "{size}");
    }
}

#[test]
fn names_of_the_systems_own_priorities_are_its_own() {
    let class = json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000});
    let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: ";
    let of = |error: &str| format!("{reserved}{error}");
    refused(
        ("scheduling.k8s.io", "v1", "PriorityClass"),
        &class,
        &[
            (
                &[("/metadata/name", json!("system-mine"))],
                &[&of("system-mine is not a known system priority class")],
            ),
            (
                &[("/value", json!(1))],
                &[&of(
                    "value of system-node-critical PriorityClass must be 2000001000",
                )],
            ),
            (
                &[("/globalDefault", json!(true))],
                &[&of(
                    "globalDefault of system-node-critical PriorityClass must be false",
                )],
            ),
        ],
    );
}
