//! What is filled in is what a stock server of 1.36 fills in.

use berth_kinds::by_kind;
use serde_json::{Value, json};

fn defaulted(group: &str, version: &str, kind: &str, mut object: Value) -> Value {
    (by_kind(group, version, kind).unwrap().default)(&mut object);
    object
}

#[test]
fn a_pod_gets_all_of_its_defaults() {
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "serviceAccount": "builder",
            "containers": [{
                "name": "a",
                "image": "nginx",
                "ports": [{"containerPort": 80}],
                "env": [
                    {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}},
                ],
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "readinessProbe": {"grpc": {"port": 1}, "timeoutSeconds": 0, "periodSeconds": 3},
                "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
            }],
            "volumes": [
                {"name": "none"},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "h", "hostPath": {"path": "/"}},
                {"name": "p", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "t"}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                ]}},
                {"name": "i", "image": {"reference": "a:1"}},
            ],
        },
    });
    assert_eq!(
        defaulted("", "v1", "Pod", pod),
        json!({
            "metadata": {"name": "p"},
            "spec": {
                "dnsPolicy": "ClusterFirst",
                "enableServiceLinks": true,
                "restartPolicy": "Always",
                "schedulerName": "default-scheduler",
                "securityContext": {},
                "serviceAccount": "builder",
                "serviceAccountName": "builder",
                "terminationGracePeriodSeconds": 30,
                "containers": [{
                    "name": "a",
                    "image": "nginx",
                    "imagePullPolicy": "Always",
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "env": [
                        {"name": "N", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                        {"name": "M", "valueFrom": {"resourceFieldRef": {"divisor": "0", "resource": "limits.memory"}}},
                    ],
                    "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "100m", "memory": "1Gi"}},
                    "livenessProbe": {
                        "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "readinessProbe": {
                        "grpc": {"port": 1, "service": ""},
                        "timeoutSeconds": 1, "periodSeconds": 3, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 80, "scheme": "HTTP"}}},
                }],
                "volumes": [
                    {"name": "none", "emptyDir": {}},
                    {"name": "s", "secret": {"secretName": "s", "defaultMode": 420}},
                    {"name": "h", "hostPath": {"path": "/", "type": ""}},
                    {"name": "p", "projected": {"defaultMode": 420, "sources": [
                        {"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}},
                        {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}]}},
                    ]}},
                    {"name": "i", "image": {"reference": "a:1", "pullPolicy": "IfNotPresent"}},
                ],
            },
        })
    );
}

#[test]
fn a_template_is_no_pod_yet() {
    let spec = json!({"containers": [{"name": "a", "image": "a:1", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]}], "hostNetwork": true});
    let deployment = defaulted(
        "apps",
        "v1",
        "Deployment",
        json!({"spec": {"template": {"spec": spec}}}),
    );
    let template = &deployment["spec"]["template"]["spec"];
    assert_eq!(
        template["containers"][0]["resources"],
        json!({"limits": {"cpu": "1"}})
    );
    assert_eq!(
        template["containers"][0]["ports"][0],
        json!({"containerPort": 80, "protocol": "TCP"})
    );
    assert_eq!(template.get("enableServiceLinks"), None);
    let pod = defaulted("", "v1", "Pod", json!({"spec": spec}));
    assert_eq!(
        pod["spec"]["containers"][0]["ports"][0],
        json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"})
    );
}

#[test]
fn the_other_kinds_get_theirs() {
    let cases: Vec<(&str, &str, &str, Value, Value)> = vec![
        (
            "apps",
            "v1",
            "Deployment",
            json!({"spec": {"template": {}}}),
            json!({"spec": {"template": {}, "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}}}),
        ),
        (
            "apps",
            "v1",
            "Deployment",
            json!({"spec": {"replicas": 0, "strategy": {"type": "Recreate"}}}),
            json!({"spec": {"replicas": 0, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, "strategy": {"type": "Recreate"}}}),
        ),
        (
            "apps",
            "v1",
            "DaemonSet",
            json!({"spec": {}}),
            json!({"spec": {"revisionHistoryLimit": 10, "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}}}),
        ),
        (
            "apps",
            "v1",
            "StatefulSet",
            json!({"spec": {"volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"resources": {"requests": {"storage": "1024Mi"}}}}]}}),
            json!({"spec": {"replicas": 1, "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
                "volumeClaimTemplates": [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "d"},
                    "spec": {"resources": {"requests": {"storage": "1Gi"}}, "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}]}}),
        ),
        (
            "",
            "v1",
            "ReplicationController",
            json!({"metadata": {}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1, "selector": {"a": "b"}, "template": {"metadata": {"labels": {"a": "b"}}}}}),
        ),
        (
            "batch",
            "v1",
            "Job",
            json!({"spec": {}}),
            json!({"spec": {"backoffLimit": 6, "completionMode": "NonIndexed", "completions": 1, "parallelism": 1, "suspend": false,
                "manualSelector": false, "podReplacementPolicy": "TerminatingOrFailed"}}),
        ),
        (
            "batch",
            "v1",
            "Job",
            json!({"spec": {"parallelism": 3, "backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": [{"onPodConditions": [{"type": "x"}]}]}}}),
            json!({"spec": {"parallelism": 3, "backoffLimitPerIndex": 1, "backoffLimit": 2147483647, "completionMode": "NonIndexed", "suspend": false,
                "manualSelector": false, "podReplacementPolicy": "Failed",
                "podFailurePolicy": {"rules": [{"onPodConditions": [{"type": "x", "status": "True"}]}]}}}),
        ),
        (
            "batch",
            "v1",
            "CronJob",
            json!({"spec": {}}),
            json!({"spec": {"concurrencyPolicy": "Allow", "suspend": false, "successfulJobsHistoryLimit": 3, "failedJobsHistoryLimit": 1}}),
        ),
        (
            "",
            "v1",
            "Service",
            json!({"spec": {"ports": [{"port": 80}]}}),
            json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}}),
        ),
        (
            "",
            "v1",
            "Service",
            json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "clusterIP": "fd00::1"}}),
            json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": true,
                "clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}}),
        ),
        (
            "",
            "v1",
            "Service",
            json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
            json!({"spec": {"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"}}),
        ),
        (
            "",
            "v1",
            "Secret",
            json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"a": "hello"}}),
            json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eQ=="}}),
        ),
        (
            "",
            "v1",
            "Namespace",
            json!({"metadata": {"name": "n", "labels": {"a": "b"}}}),
            json!({"metadata": {"name": "n", "labels": {"a": "b", "kubernetes.io/metadata.name": "n"}}, "status": {"phase": "Active"}}),
        ),
        (
            "",
            "v1",
            "Node",
            json!({"status": {"capacity": {"cpu": 2, "memory": "2048Mi"}}}),
            json!({"status": {"capacity": {"cpu": "2", "memory": "2Gi"}, "allocatable": {"cpu": "2", "memory": "2Gi"}}}),
        ),
        (
            "",
            "v1",
            "PersistentVolume",
            json!({"spec": {"hostPath": {"path": "/a"}}}),
            json!({"spec": {"hostPath": {"path": "/a", "type": ""}, "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}),
        ),
        (
            "",
            "v1",
            "LimitRange",
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}}),
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}, "default": {"cpu": "2"},
                "defaultRequest": {"cpu": "2", "memory": "1Mi"}}]}}),
        ),
        (
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"maxReplicas": 3}}),
            json!({"spec": {"maxReplicas": 3, "minReplicas": 1, "metrics": [{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}]}}),
        ),
        (
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}}),
            json!({"spec": {"egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}], "policyTypes": ["Ingress", "Egress"]}}),
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s"}]}),
        ),
        (
            "storage.k8s.io",
            "v1",
            "StorageClass",
            json!({}),
            json!({"reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
        ),
        (
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            json!({}),
            json!({"preemptionPolicy": "PreemptLowerPriority"}),
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            json!({"spec": {"names": {"kind": "CronTab", "plural": "crontabs"}}}),
            json!({"spec": {"names": {"kind": "CronTab", "plural": "crontabs", "singular": "crontab", "listKind": "CronTabList"}, "conversion": {"strategy": "None"}}}),
        ),
    ];
    for (group, version, kind, object, expected) in cases {
        assert_eq!(defaulted(group, version, kind, object), expected, "{kind}");
    }
}
