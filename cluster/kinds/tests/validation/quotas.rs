use serde_json::{Value, json};

use super::{refused, updated};

#[test]
fn a_quota_is_refused_as_upstream_refuses_it() {
    let quota =
        json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "4", "requests.cpu": "1"}}});
    let expression = |scope: &str, operator: &str, values: Value| {
        let one = json!({"scopeName": scope, "operator": operator, "values": values});
        ("/spec/scopeSelector", json!({"matchExpressions": [one]}))
    };
    refused(
        ("", "v1", "ResourceQuota"),
        &quota,
        &[
            (
                &[(
                    "/spec/hard",
                    json!({"count/jobs.batch": "2", "example.com/gpu": "1", "requests.example.com/gpu": "1", "requests.hugepages-2Mi": "1Gi",
                        "gold.storageclass.storage.k8s.io/requests.storage": "1Gi"}),
                )],
                &[],
            ),
            (
                &[("/spec/hard", json!({"apples": "1"}))],
                &[
                    "spec.hard[apples]: Invalid value: \"apples\": must be a standard resource type or fully qualified",
                    "spec.hard[apples]: Invalid value: \"apples\": must be a standard resource for quota",
                ],
            ),
            (
                &[("/spec/hard", json!({"storage": "1Gi"}))],
                &[
                    "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota",
                ],
            ),
            (
                &[("/spec/hard", json!({"pods": "1500m"}))],
                &["spec.hard[pods]: Invalid value: \"1500m\": must be an integer"],
            ),
            (
                &[("/spec/hard", json!({"cpu": "-1"}))],
                &["spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"],
            ),
            (
                &[("/spec/scopes", json!(["Sometimes"]))],
                &["spec.scopes: Invalid value: [\"Sometimes\"]: unsupported scope"],
            ),
            (
                &[("/spec/scopes", json!(["BestEffort"]))],
                &[
                    "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
                ],
            ),
            (
                &[("/spec/scopes", json!(["Terminating", "NotTerminating"]))],
                &[
                    "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes",
                ],
            ),
            (&[expression("PriorityClass", "In", json!(["prod"]))], &[]),
            (
                &[expression("PriorityClass", "In", json!(null))],
                &[
                    "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' \
                     for scope selector",
                ],
            ),
            (
                &[expression("PriorityClass", "Exists", json!(["prod"]))],
                &[
                    "spec.scopeSelector.matchExpressions.values: Invalid value: [\"prod\"]: must be no value when `operator` is 'Exist' or \
                     'DoesNotExist' for scope selector",
                ],
            ),
            (
                &[expression("Terminating", "DoesNotExist", json!(null))],
                &[
                    "spec.scopeSelector.matchExpressions.operator: Invalid value: \"DoesNotExist\": must be 'Exists' when scope is any of \
                     ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, \
                     ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity",
                ],
            ),
            (
                &[expression("PriorityClass", "Like", json!(null))],
                &[
                    "spec.scopeSelector.matchExpressions.operator: Invalid value: \"Like\": not a valid selector operator",
                ],
            ),
        ],
    );
    let scopes =
        json!({"metadata": {"name": "q"}, "spec": {"scopes": ["NotBestEffort", "Terminating"]}});
    let turned = [("/spec/scopes", json!(["Terminating", "NotBestEffort"]))];
    assert_eq!(
        updated("", "ResourceQuota", scopes.clone(), &turned),
        Vec::<String>::new()
    );
    let fewer = [("/spec/scopes", json!(["Terminating"]))];
    assert_eq!(
        updated("", "ResourceQuota", scopes, &fewer),
        ["spec.scopes: Invalid value: [\"Terminating\"]: field is immutable"]
    );
}

#[test]
fn a_limit_range_is_refused_as_upstream_refuses_it() {
    let range = json!({"metadata": {"name": "l"}, "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}},
    ]}});
    let limit = "/spec/limits/0";
    refused(
        ("", "v1", "LimitRange"),
        &range,
        &[
            (
                &[(limit, json!({"type": "Volume"}))],
                &[
                    "spec.limits[0].type: Invalid value: \"Volume\": must be a standard limit type or fully qualified",
                ],
            ),
            (
                &[(limit, json!({"type": "PersistentVolumeClaim"}))],
                &[
                    "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
                ],
            ),
            (
                &[(
                    limit,
                    json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}}),
                )],
                &[],
            ),
            (
                &[(limit, json!({"type": "Pod", "default": {"cpu": "1"}}))],
                &["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
            ),
            (
                &[(limit, json!({"type": "Container", "max": {"pods": "1"}}))],
                &[
                    "spec.limits[0].max[pods]: Invalid value: \"pods\": must be a standard resource for containers",
                    "spec.limits[0].default[pods]: Invalid value: \"pods\": must be a standard resource for containers",
                    "spec.limits[0].defaultRequest[pods]: Invalid value: \"pods\": must be a standard resource for containers",
                ],
            ),
            (
                &[(
                    "/spec/limits/0/maxLimitRequestRatio",
                    json!({"cpu": "500m"}),
                )],
                &[
                    "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
                ],
            ),
            (
                &[("/spec/limits/0/maxLimitRequestRatio", json!({"cpu": "3"}))],
                &[
                    "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
                ],
            ),
            (
                &[(
                    limit,
                    json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}, "min": {"cpu": "3"}}),
                )],
                &[
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": min value 3 is greater than default request value 2",
                    "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
                    "spec.limits[0].default[cpu]: Invalid value: \"3\": min value 3 is greater than default value 1",
                ],
            ),
            (
                &[(
                    limit,
                    json!({"type": "Container", "default": {"hugepages-2Mi": "4Mi"}, "defaultRequest": {"hugepages-2Mi": "2Mi"}}),
                )],
                &[
                    "spec.limits[0].defaultRequest[hugepages-2Mi]: Invalid value: \"2Mi\": default value 4Mi must equal to defaultRequest value \
                     2Mi in hugepages-2Mi",
                ],
            ),
        ],
    );
}
