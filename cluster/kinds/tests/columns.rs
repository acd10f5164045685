//! Tables show what stock servers show.

use berth_kinds::{SCALE_COLUMNS, by_kind};
use serde_json::{Value, json};

/// 2026-11-22T15:05:00Z.
const NOW: i64 = 1_795_359_900;

fn row(group: &str, version: &str, kind: &str, object: &Value) -> Vec<String> {
    by_kind(group, version, kind)
        .unwrap()
        .columns
        .iter()
        .map(|column| match column.cell(object, NOW) {
            Value::String(text) => text,
            other => other.to_string(),
        })
        .collect()
}

fn pod(spec: Value, status: Value) -> Value {
    json!({"metadata": {"name": "p", "creationTimestamp": "2026-11-22T15:00:00Z"}, "spec": spec, "status": status})
}

#[test]
fn a_pods_state_is_told_as_kubectl_users_know_it() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let running = |name: &str| json!({"name": name, "ready": true, "restartCount": 0, "state": {"running": {}}});
    let with_init =
        json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let sidecar = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
    for (name, object, ready, status, restarts) in [
        (
            "new",
            pod(two.clone(), json!({"phase": "Pending"})),
            "0/2",
            "Pending",
            "0",
        ),
        (
            "creating",
            pod(
                two.clone(),
                json!({"phase": "Pending", "containerStatuses": [
                    {"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}},
                    {"name": "b", "state": {"waiting": {"reason": "ContainerCreating"}}},
                ]}),
            ),
            "0/2",
            "ContainerCreating",
            "0",
        ),
        (
            "running",
            pod(
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [running("a"), running("b")]}),
            ),
            "2/2",
            "Running",
            "0",
        ),
        (
            "crashing",
            pod(
                two.clone(),
                json!({"phase": "Running", "containerStatuses": [
                    {"name": "a", "restartCount": 5, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                     "lastState": {"terminated": {"finishedAt": "2026-11-22T15:02:00Z"}}},
                    running("b"),
                ]}),
            ),
            "1/2",
            "CrashLoopBackOff",
            "5 (3m ago)",
        ),
        (
            "one of two is done",
            pod(
                two.clone(),
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": [
                    {"name": "a", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}}, running("b"),
                ]}),
            ),
            "1/2",
            "NotReady",
            "0",
        ),
        (
            "done",
            pod(
                two.clone(),
                json!({"phase": "Succeeded", "containerStatuses": [
                    {"name": "a", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
                    {"name": "b", "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
                ]}),
            ),
            "0/2",
            "Completed",
            "0",
        ),
        (
            "killed, and nobody said why",
            pod(
                two.clone(),
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"signal": 9, "exitCode": 137}}}]}),
            ),
            "0/2",
            "Signal:9",
            "0",
        ),
        (
            "ended badly, and nobody said why",
            pod(
                two.clone(),
                json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 3}}}]}),
            ),
            "0/2",
            "ExitCode:3",
            "0",
        ),
        (
            "evicted",
            pod(two.clone(), json!({"phase": "Failed", "reason": "Evicted"})),
            "0/2",
            "Evicted",
            "0",
        ),
        (
            "gated",
            pod(
                two.clone(),
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            ),
            "0/2",
            "SchedulingGated",
            "0",
        ),
        (
            "first of two init containers",
            pod(
                with_init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"running": {}}}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}},
                ]}),
            ),
            "0/1",
            "Init:0/2",
            "0",
        ),
        (
            "second of two init containers",
            pod(
                with_init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}},
                ]}),
            ),
            "0/1",
            "Init:1/2",
            "0",
        ),
        (
            "an init container fails",
            pod(
                with_init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}},
                     "lastState": {"terminated": {"finishedAt": "2026-11-22T15:04:50Z"}}},
                ]}),
            ),
            "0/1",
            "Init:Error",
            "2 (10s ago)",
        ),
        (
            "an init container is sought in vain",
            pod(
                with_init,
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
            ),
            "0/1",
            "Init:ImagePullBackOff",
            "0",
        ),
        (
            "a sidecar counts",
            pod(
                sidecar,
                json!({"phase": "Running", "initContainerStatuses": [
                {"name": "s", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}},
            ], "containerStatuses": [running("a")]}),
            ),
            "2/2",
            "Running",
            "1",
        ),
    ] {
        let row = row("", "v1", "Pod", &object);
        assert_eq!(row[..5], ["p", ready, status, restarts, "5m"], "{name}");
    }
    for (reason, phase, shown) in [
        ("", "Running", "Terminating"),
        ("NodeLost", "Running", "Unknown"),
        ("", "Succeeded", "Succeeded"),
    ] {
        let mut object = pod(two.clone(), json!({"phase": phase, "reason": reason}));
        object["metadata"]["deletionTimestamp"] = "2026-11-22T15:04:00Z".into();
        assert_eq!(row("", "v1", "Pod", &object)[2], shown);
    }
    let mut object = pod(
        json!({"nodeName": "n", "containers": [], "readinessGates": [{"conditionType": "x"}, {"conditionType": "y"}]}),
        json!({"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "x", "status": "True"}]}),
    );
    assert_eq!(
        row("", "v1", "Pod", &object)[5..],
        ["10.0.0.1", "n", "<none>", "1/2"]
    );
    object["spec"] = json!({});
    object["status"] = json!({});
    assert_eq!(
        row("", "v1", "Pod", &object)[5..],
        ["<none>", "<none>", "<none>", "<none>"]
    );
}

#[test]
fn rows_are_as_stock_servers_print_them() {
    let meta = json!({"name": "x", "namespace": "d", "creationTimestamp": "2026-11-20T15:05:00Z"});
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "j"}]}});
    for (group, version, kind, rest, expected) in [
        (
            "apps",
            "v1",
            "Deployment",
            json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": template}, "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}}),
            vec!["x", "1/3", "2", "1", "2d", "c,d", "i:1,j", "a=b"],
        ),
        (
            "apps",
            "v1",
            "ReplicaSet",
            json!({"spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": template}, "status": {"replicas": 2}}),
            vec!["x", "3", "2", "0", "2d", "c,d", "i:1,j", "a=b"],
        ),
        (
            "apps",
            "v1",
            "StatefulSet",
            json!({"spec": {"replicas": 2, "template": template}, "status": {"readyReplicas": 2}}),
            vec!["x", "2/2", "2d", "c,d", "i:1,j"],
        ),
        (
            "apps",
            "v1",
            "DaemonSet",
            json!({"spec": {"template": template, "selector": {}}, "status": {"desiredNumberScheduled": 4, "numberReady": 3}}),
            vec![
                "x", "4", "0", "3", "0", "0", "<none>", "2d", "c,d", "i:1,j", "<none>",
            ],
        ),
        (
            "batch",
            "v1",
            "Job",
            json!({"spec": {"completions": 5, "parallelism": 2, "template": template}, "status": {"succeeded": 2, "startTime": "2026-11-22T15:00:00Z"}}),
            vec!["x", "Running", "2/5", "5m", "2d", "c,d", "i:1,j", "<none>"],
        ),
        (
            "batch",
            "v1",
            "Job",
            json!({"spec": {"parallelism": 2}, "status": {"succeeded": 1, "startTime": "2026-11-22T15:00:00Z", "completionTime": "2026-11-22T15:00:09Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
            vec!["x", "Complete", "1/1 of 2", "9s", "2d", "", "", "<none>"],
        ),
        (
            "batch",
            "v1",
            "CronJob",
            json!({"spec": {"schedule": "@hourly", "suspend": false}, "status": {"lastScheduleTime": "2026-11-22T15:00:00Z", "active": [{}]}}),
            vec![
                "x", "@hourly", "<none>", "False", "1", "5m", "2d", "", "", "<none>",
            ],
        ),
        (
            "",
            "v1",
            "Service",
            json!({"spec": {"type": "NodePort", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}], "selector": {"a": "b"}}}),
            vec![
                "x",
                "NodePort",
                "10.96.0.9",
                "<none>",
                "80:30080/TCP,53/UDP",
                "2d",
                "a=b",
            ],
        ),
        (
            "",
            "v1",
            "Service",
            json!({"spec": {"type": "LoadBalancer", "clusterIPs": ["10.96.0.9"], "ports": []}}),
            vec![
                "x",
                "LoadBalancer",
                "10.96.0.9",
                "<pending>",
                "<none>",
                "2d",
                "<none>",
            ],
        ),
        (
            "",
            "v1",
            "Service",
            json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
            vec![
                "x",
                "ExternalName",
                "<none>",
                "a.b",
                "<none>",
                "2d",
                "<none>",
            ],
        ),
        (
            "",
            "v1",
            "Node",
            json!({"spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.0"}, "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
            vec![
                "x",
                "Ready,SchedulingDisabled",
                "<none>",
                "2d",
                "v1.36.0",
                "192.0.2.1",
                "<none>",
                "<unknown>",
                "<unknown>",
                "<unknown>",
            ],
        ),
        (
            "",
            "v1",
            "PersistentVolumeClaim",
            json!({"spec": {"volumeName": "v", "storageClassName": "fast"}, "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "capacity": {"storage": "1024Mi"}}}),
            vec![
                "x", "Bound", "v", "1Gi", "RWO,RWX", "fast", "<unset>", "2d", "<unset>",
            ],
        ),
        (
            "",
            "v1",
            "PersistentVolume",
            json!({"spec": {"capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteOncePod"], "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": "d", "name": "c"}, "volumeMode": "Block"}, "status": {"phase": "Bound"}}),
            vec![
                "x", "5Gi", "RWOP", "Retain", "Bound", "d/c", "", "<unset>", "", "2d", "Block",
            ],
        ),
        (
            "",
            "v1",
            "ConfigMap",
            json!({"data": {"a": "b"}, "binaryData": {"c": ""}}),
            vec!["x", "2", "2d"],
        ),
        (
            "",
            "v1",
            "Secret",
            json!({"type": "Opaque", "data": {"a": "b"}}),
            vec!["x", "Opaque", "1", "2d"],
        ),
        (
            "",
            "v1",
            "Namespace",
            json!({"status": {"phase": "Active"}}),
            vec!["x", "Active", "2d"],
        ),
        (
            "",
            "v1",
            "LimitRange",
            json!({}),
            vec!["x", "2026-11-20T15:05:00Z"],
        ),
        (
            "",
            "v1",
            "ResourceQuota",
            json!({"status": {"hard": {"pods": "10", "limits.cpu": "4"}, "used": {"pods": "3"}}}),
            vec!["x", "pods: 3/10", "limits.cpu: 0/4", "2d"],
        ),
        (
            "",
            "v1",
            "Endpoints",
            json!({"subsets": [{"addresses": [{"ip": "1.1.1.1"}, {"ip": "::1"}, {"ip": "1.1.1.3"}, {"ip": "1.1.1.4"}], "ports": [{"port": 80}]}]}),
            vec!["x", "1.1.1.1:80,[::1]:80,1.1.1.3:80 + 1 more...", "2d"],
        ),
        (
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            json!({"addressType": "IPv4", "ports": [], "endpoints": [{"addresses": ["1.1.1.1"]}]}),
            vec!["x", "IPv4", "<unset>", "1.1.1.1", "2d"],
        ),
        (
            "networking.k8s.io",
            "v1",
            "Ingress",
            json!({"spec": {"rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}, {}], "tls": [{}]}, "status": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "h"}]}}}),
            vec![
                "x",
                "<none>",
                "a,b,c + 2 more...",
                "2.2.2.2,h",
                "80, 443",
                "2d",
            ],
        ),
        (
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 5, "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}, "status": {"currentReplicas": 2}}),
            vec![
                "x",
                "Deployment/web",
                "cpu: <unknown>/80%",
                "1",
                "5",
                "2",
                "2d",
            ],
        ),
        (
            "rbac.authorization.k8s.io",
            "v1",
            "RoleBinding",
            json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
            vec!["x", "Role/r", "2d", "u, v", "", "n/s"],
        ),
        (
            "storage.k8s.io",
            "v1",
            "StorageClass",
            json!({"metadata": {"name": "x", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"}),
            vec![
                "x (default)",
                "p",
                "Delete",
                "Immediate",
                "false",
                "<unknown>",
            ],
        ),
        (
            "policy",
            "v1",
            "PodDisruptionBudget",
            json!({"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}}),
            vec!["x", "50%", "N/A", "1", "2d"],
        ),
        (
            "certificates.k8s.io",
            "v1",
            "CertificateSigningRequest",
            json!({"spec": {"username": "u", "signerName": "a/b", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}], "certificate": "x"}}),
            vec!["x", "2d", "a/b", "u", "60m", "Approved,Issued"],
        ),
        (
            "",
            "v1",
            "Event",
            json!({"type": "Normal", "reason": "Pulled", "involvedObject": {"kind": "Pod", "name": "p"}, "message": " done\n", "firstTimestamp": "2026-11-22T15:00:00Z", "lastTimestamp": "2026-11-22T15:04:00Z", "source": {"component": "kubelet", "host": "n"}}),
            vec![
                "60s",
                "Normal",
                "Pulled",
                "pod/p",
                "",
                "kubelet, n",
                "done",
                "5m",
                "1",
                "x",
            ],
        ),
        (
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            json!({}),
            vec!["x", "2026-11-20T15:05:00Z"],
        ),
        (
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            json!({"value": 7}),
            vec!["x", "7", "false", "2d", "PreemptLowerPriority"],
        ),
        (
            "coordination.k8s.io",
            "v1",
            "Lease",
            json!({"spec": {"holderIdentity": "h"}}),
            vec!["x", "h", "2d"],
        ),
    ] {
        let mut object = json!({"metadata": meta});
        object
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        assert_eq!(row(group, version, kind, &object), expected, "{kind}");
    }
}

#[test]
fn headings_are_those_of_stock_servers() {
    for (group, version, kind, expected) in [
        (
            "",
            "v1",
            "Pod",
            "Name Ready Status Restarts Age IP* Node* Nominated Node* Readiness Gates*",
        ),
        (
            "",
            "v1",
            "Node",
            "Name Status Roles Age Version Internal-IP* External-IP* OS-Image* Kernel-Version* Container-Runtime*",
        ),
        (
            "",
            "v1",
            "Service",
            "Name Type Cluster-IP External-IP Port(s) Age Selector*",
        ),
        (
            "batch",
            "v1",
            "Job",
            "Name Status Completions Duration Age Containers* Images* Selector*",
        ),
        (
            "batch",
            "v1",
            "CronJob",
            "Name Schedule Timezone Suspend Active Last Schedule Age Containers* Images* Selector*",
        ),
        (
            "apps",
            "v1",
            "Deployment",
            "Name Ready Up-to-date Available Age Containers* Images* Selector*",
        ),
        (
            "",
            "v1",
            "Event",
            "Last Seen Type Reason Object Subobject* Source* Message First Seen* Count* Name*",
        ),
        (
            "",
            "v1",
            "PersistentVolumeClaim",
            "Name Status Volume Capacity Access Modes StorageClass VolumeAttributesClass Age VolumeMode*",
        ),
        ("rbac.authorization.k8s.io", "v1", "Role", "Name Created At"),
    ] {
        let headings: Vec<_> = by_kind(group, version, kind)
            .unwrap()
            .columns
            .iter()
            .map(|column| {
                format!(
                    "{}{}",
                    column.name,
                    if column.priority == 1 { "*" } else { "" }
                )
            })
            .collect();
        assert_eq!(headings.join(" "), expected);
    }
    assert_eq!(SCALE_COLUMNS.len(), 4);
}
