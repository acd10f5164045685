use serde_json::{Value, json};

use super::{create, refused, updated};

fn scaler() -> Value {
    json!({"metadata": {"name": "h"}, "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
        "maxReplicas": 3,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
    }})
}

#[test]
fn an_autoscaler_is_refused_as_upstream_refuses_it() {
    let first = "/spec/metrics/0";
    let external = |target: Value| json!({"type": "External", "external": {"metric": {"name": "m"}, "target": target}});
    refused(
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        &scaler(),
        &[
            (
                &[("/spec/maxReplicas", json!(null))],
                &[
                    "spec.maxReplicas: Required value: must be set and greater than 0",
                    "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                &[
                    ("/spec/maxReplicas", json!(-1)),
                    ("/spec/minReplicas", json!(0)),
                ],
                &[
                    "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                    "spec.maxReplicas: Invalid value: -1: must be greater than or equal to 1",
                    "spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                &[(
                    "/spec/scaleTargetRef",
                    json!({"apiVersion": "apps/v1", "kind": "..", "name": ""}),
                )],
                &[
                    "spec.scaleTargetRef.kind: Invalid value: \"..\": may not be '..'",
                    "spec.scaleTargetRef.name: Required value",
                ],
            ),
            (
                &[("/spec/scaleTargetRef/apiVersion", json!(null))],
                &[
                    "spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group",
                ],
            ),
            (
                &[("/spec/scaleTargetRef/apiVersion", json!("a/b/c"))],
                &[
                    "spec.scaleTargetRef.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                ],
            ),
            (
                &[(
                    "/spec/scaleTargetRef",
                    json!({"kind": "ReplicationController", "name": "r"}),
                )],
                &[],
            ),
            (
                &[(first, json!({}))],
                &[
                    "spec.metrics[0].type: Required value: must specify a metric source type",
                    "spec.metrics[0].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
                    "spec.metrics[0].type: Unsupported value: \"\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\"",
                ],
            ),
            (
                &[(first, json!({"type": "Pods"}))],
                &[
                    "spec.metrics[0].pods: Required value: must populate information for the given metric source",
                ],
            ),
            (
                &[(
                    "/spec/metrics/0/external",
                    json!({"metric": {"name": "m"}, "target": {"type": "Value", "value": "1"}}),
                )],
                &[
                    "spec.metrics[0].external: Forbidden: must populate the given metric source only",
                ],
            ),
            (
                &[(
                    first,
                    json!({"type": "Resource", "resource": {"target": {"type": "Much", "averageUtilization": 0}}}),
                )],
                &[
                    "spec.metrics[0].resource.name: Required value: must specify a resource name",
                    "spec.metrics[0].resource.target.type: Invalid value: \"Much\": must be either Utilization, Value, or AverageValue",
                    "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
                ],
            ),
            (
                &[("/spec/metrics/0/resource/target/averageValue", json!("1"))],
                &[
                    "spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
                ],
            ),
            (
                &[(
                    first,
                    json!({"type": "ContainerResource", "containerResource": {"name": "pods", "container": "A", "target": {"type": "Utilization"}}}),
                )],
                &[
                    "spec.metrics[0].containerResource.name: Invalid value: \"pods\": must be a standard resource for containers",
                    "spec.metrics[0].containerResource.container: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric \
                     characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation \
                     is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                    "spec.metrics[0].containerResource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
                ],
            ),
            (
                &[(
                    first,
                    external(json!({"type": "Value", "value": "-1", "averageValue": "1"})),
                )],
                &[
                    "spec.metrics[0].external.target.value: Invalid value: \"-1\": must be positive",
                    "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
                ],
            ),
            (
                &[(first, external(json!({"type": "Value"})))],
                &[
                    "spec.metrics[0].external.target.averageValue: Required value: must set either a target value for metric or a per-pod target",
                ],
            ),
            (
                &[(
                    first,
                    json!({"type": "Object", "object": {"describedObject": {"kind": "Service", "name": "s"}, "metric": {}, "target": {"type": "Value"}}}),
                )],
                &[
                    "spec.metrics[0].object.metric.name: Required value: must specify a metric name",
                    "spec.metrics[0].object.target.averageValue: Required value: must set either a target value or averageValue",
                ],
            ),
            (
                &[(
                    "/spec/behavior",
                    json!({"scaleDown": {
                        "stabilizationWindowSeconds": -1, "selectPolicy": "Both", "tolerance": "-1",
                        "policies": [{"type": "Nodes", "value": 0, "periodSeconds": 1801}],
                    }}),
                )],
                &[
                    "spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero",
                    "spec.behavior.scaleDown.selectPolicy: Unsupported value: \"Both\": supported values: \"Disabled\", \"Max\", \"Min\"",
                    "spec.behavior.scaleDown.policies[0].type: Unsupported value: \"Nodes\": supported values: \"Percent\", \"Pods\"",
                    "spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
                    "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                    "spec.behavior.scaleDown.tolerance: Invalid value: \"-1\": must be greater than or equal to 0",
                ],
            ),
        ],
    );
}

/// The first version is judged by what the second makes of it; and one that was let in before may be scaled still.
#[test]
fn what_is_scaled_is_of_a_group_where_it_is_named_anew() {
    let mut old = scaler();
    old["spec"]["scaleTargetRef"] = json!({"kind": "Deployment", "name": "d"});
    let update = |changes: &[(&str, Value)]| {
        updated(
            "autoscaling",
            "HorizontalPodAutoscaler",
            old.clone(),
            changes,
        )
    };
    assert_eq!(
        update(&[("/spec/maxReplicas", json!(9))]),
        Vec::<String>::new()
    );
    let refusal =
        ["spec.scaleTargetRef.apiVersion: Invalid value: \"\": apiVersion must specify API group"];
    assert_eq!(
        update(&[("/spec/scaleTargetRef/kind", json!("StatefulSet"))]),
        refusal
    );
    let v1 = json!({"metadata": {"name": "h"}, "spec": {
        "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3,
    }});
    let said = create("autoscaling", "v1", "HorizontalPodAutoscaler", v1);
    assert_eq!(said, refusal);
}
