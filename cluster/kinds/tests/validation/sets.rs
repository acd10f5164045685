use serde_json::{Value, json};

use super::{create, refused, updated, with};

const OF: (&str, &str, &str) = ("apps", "v1", "StatefulSet");

fn set() -> Value {
    json!({"metadata": {"name": "s"}, "spec": {
        "serviceName": "s",
        "selector": {"matchLabels": {"app": "a"}},
        "template": {
            "metadata": {"labels": {"app": "a"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        },
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }}],
    }})
}

#[test]
fn a_stateful_set_is_refused_as_upstream_refuses_it() {
    let claim = "/spec/volumeClaimTemplates/0/spec";
    refused(
        OF,
        &set(),
        &[
            (&[("/spec/serviceName", json!(null))], &[]),
            (
                &[("/spec/serviceName", json!("a.b"))],
                &[
                    "spec.serviceName: Invalid value: \"a.b\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', \
                     and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                &[("/spec/podManagementPolicy", json!("Chaotic"))],
                &[
                    "spec.podManagementPolicy: Invalid value: \"Chaotic\": must be 'OrderedReady' or 'Parallel'",
                ],
            ),
            (
                &[("/spec/updateStrategy", json!({"type": "Sudden"}))],
                &[
                    "spec.updateStrategy: Invalid value: {\"type\":\"Sudden\"}: must be 'RollingUpdate' or 'OnDelete'",
                ],
            ),
            (
                &[(
                    "/spec/updateStrategy",
                    json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}}),
                )],
                &[
                    "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
                ],
            ),
            (
                &[(
                    "/spec/updateStrategy",
                    json!({"rollingUpdate": {"partition": -1, "maxUnavailable": 0}}),
                )],
                &[
                    "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0",
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0",
                ],
            ),
            (
                &[(
                    "/spec/updateStrategy",
                    json!({"rollingUpdate": {"maxUnavailable": "101%"}}),
                )],
                &[
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
                ],
            ),
            (
                &[(
                    "/spec/persistentVolumeClaimRetentionPolicy",
                    json!({"whenDeleted": "Keep", "whenScaled": "Recycle"}),
                )],
                &[
                    "spec.persistentVolumeClaimRetentionPolicy.whenDeleted: Unsupported value: \"Keep\": supported values: \"Retain\", \"Delete\"",
                    "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"Recycle\": supported values: \"Retain\", \"Delete\"",
                ],
            ),
            (
                &[("/spec/ordinals", json!({"start": -1}))],
                &["spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                &[
                    ("/spec/replicas", json!(-1)),
                    ("/spec/minReadySeconds", json!(-1)),
                ],
                &[
                    "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                    "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
            (
                &[(claim, json!({}))],
                &[
                    "spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required",
                    "spec.volumeClaimTemplates[0].spec.resources[storage]: Required value",
                ],
            ),
            (
                &[(
                    claim,
                    json!({"accessModes": ["Anyhow"], "volumeMode": "Tape", "resources": {"requests": {"storage": "0"}}}),
                )],
                &[
                    "spec.volumeClaimTemplates[0].spec.accessModes: Unsupported value: \"Anyhow\": supported values: \"ReadOnlyMany\", \
                     \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                    "spec.volumeClaimTemplates[0].spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
                    "spec.volumeClaimTemplates[0].spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\"",
                ],
            ),
        ],
    );
}

#[test]
fn an_unknown_strategy_is_refused_as_a_whole() {
    let mut set = set();
    if let Some(spec) = set["spec"].as_object_mut() {
        spec.remove("volumeClaimTemplates");
        spec.remove("serviceName");
    }
    refused(
        ("apps", "v1", "Deployment"),
        &set,
        &[(
            &[("/spec/strategy", json!({"type": "Sudden"}))],
            &[
                "spec.strategy: Unsupported value: {\"type\":\"Sudden\"}: supported values: \"Recreate\", \"RollingUpdate\"",
            ],
        )],
    );
    refused(
        ("apps", "v1", "DaemonSet"),
        &set,
        &[
            (
                &[("/spec/updateStrategy", json!({"type": "Sudden"}))],
                &[
                    "spec.updateStrategy: Unsupported value: {\"type\":\"Sudden\"}: supported values: \"RollingUpdate\", \"OnDelete\"",
                ],
            ),
            (
                &[(
                    "/spec/updateStrategy",
                    json!({"rollingUpdate": {"maxUnavailable": 0}}),
                )],
                &[
                    "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
                ],
            ),
        ],
    );
}

#[test]
fn what_a_stateful_set_may_change_is_replicas_and_how_it_is_updated() {
    let update = |changes: &[(&str, Value)]| updated("apps", "StatefulSet", set(), changes);
    let may: [(&str, Value); 6] = [
        ("/spec/replicas", json!(5)),
        ("/spec/ordinals", json!({"start": 3})),
        ("/spec/minReadySeconds", json!(3)),
        ("/spec/revisionHistoryLimit", json!(3)),
        (
            "/spec/updateStrategy/rollingUpdate/maxUnavailable",
            json!(2),
        ),
        (
            "/spec/persistentVolumeClaimRetentionPolicy",
            json!({"whenDeleted": "Delete", "whenScaled": "Delete"}),
        ),
    ];
    assert_eq!(update(&may), Vec::<String>::new());
    for change in [
        ("/spec/serviceName", json!("other")),
        ("/spec/podManagementPolicy", json!("Parallel")),
        (
            "/spec/volumeClaimTemplates/0/spec/accessModes",
            json!(["ReadWriteMany"]),
        ),
    ] {
        let said = update(std::slice::from_ref(&change));
        assert!(
            said.len() == 1 && said[0].starts_with("spec: Forbidden: updates to statefulset spec"),
            "{change:?}: {said:?}"
        );
    }
}

/// Of what can't change later only new objects are asked: one that is there may have it as it was allowed before.
#[test]
fn what_cannot_change_is_judged_when_it_is_new() {
    let odd = with(&set(), &[("/spec/serviceName", json!("a.b"))]);
    assert_eq!(create(OF.0, OF.1, OF.2, odd.clone()).len(), 1);
    let said = updated("apps", "StatefulSet", odd, &[("/spec/replicas", json!(2))]);
    assert_eq!(said, Vec::<String>::new());
}

/// Defaults are as good as those of a spec that is there and empty.
#[test]
fn what_has_no_spec_lacks_what_has_no_default() {
    for object in [
        json!({"metadata": {"name": "s"}}),
        json!({"metadata": {"name": "s"}, "spec": {}}),
        json!({"metadata": {"name": "s"}, "spec": null}),
    ] {
        let said = create("", "v1", "Service", object);
        assert_eq!(said, ["spec.ports: Required value"]);
    }
}
