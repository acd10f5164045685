use serde_json::json;

use super::*;

fn node(name: &str) -> User {
    User {
        username: format!("system:node:{name}"),
        groups: vec![NODES.to_owned()],
        ..User::default()
    }
}

/// `VERB GROUP/RESOURCE[/SUBRESOURCE] NAMESPACE NAME [SELECTOR]`, `-` for none.
fn asked(text: &str) -> Attributes {
    let words: Vec<_> = text.split(' ').collect();
    let word = |n: usize| {
        let word = words.get(n).copied().unwrap_or("-");
        if word == "-" {
            String::new()
        } else {
            word.to_owned()
        }
    };
    let mut what = words[1].split('/').map(str::to_owned);
    Attributes {
        verb: word(0),
        group: what
            .next()
            .filter(|group| group != "core")
            .unwrap_or_default(),
        version: "v1".to_owned(),
        resource: what.next().unwrap(),
        subresource: what.next().unwrap_or_default(),
        namespace: word(2),
        name: word(3),
        field_selector: word(4),
        ..Attributes::default()
    }
}

fn may(authorizer: &NodeAuthorizer, user: &User, text: &str) -> bool {
    matches!(
        authorizer.authorize(user, &asked(text)),
        Decision::Allow { .. }
    )
}

fn pod(node: &str) -> Value {
    json!({
        "metadata": { "name": "p", "namespace": "ns" },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "sa",
            "imagePullSecrets": [{ "name": "pull" }],
            "containers": [{
                "env": [
                    { "name": "A", "valueFrom": { "secretKeyRef": { "name": "env-secret", "key": "k" } } },
                    { "name": "B", "valueFrom": { "configMapKeyRef": { "name": "env-config", "key": "k" } } },
                ],
                "envFrom": [{ "secretRef": { "name": "from-secret" } }, { "configMapRef": { "name": "from-config" } }],
            }],
            "initContainers": [{ "envFrom": [{ "secretRef": { "name": "init-secret" } }] }],
            "volumes": [
                { "name": "v1", "secret": { "secretName": "volume-secret" } },
                { "name": "v2", "configMap": { "name": "volume-config" } },
                { "name": "v3", "projected": { "sources": [{ "secret": { "name": "projected-secret" } }] } },
                { "name": "v4", "persistentVolumeClaim": { "claimName": "claim" } },
                { "name": "v5", "ephemeral": {} },
                { "name": "v6", "csi": { "driver": "d", "nodePublishSecretRef": { "name": "csi-secret" } } },
            ],
            "resourceClaims": [{ "name": "c", "resourceClaimName": "device" }],
        },
    })
}

fn volume() -> Value {
    json!({ "spec": {
        "claimRef": { "namespace": "ns", "name": "claim" },
        "csi": { "nodeStageSecretRef": { "namespace": "storage", "name": "stage" } },
    } })
}

#[test]
fn sec_api_07_a_node_reads_what_its_pods_refer_to_and_nothing_else() {
    let authorizer = NodeAuthorizer::new();
    authorizer.set("pods", "ns", "p", Some(&pod("n1")));
    authorizer.set("persistentvolumes", "", "pv", Some(&volume()));
    authorizer.set(
        "volumeattachments",
        "",
        "va",
        Some(&json!({ "spec": { "nodeName": "n1" } })),
    );
    let theirs = [
        "get core/secrets ns pull",
        "get core/secrets ns env-secret",
        "get core/secrets ns from-secret",
        "get core/secrets ns init-secret",
        "list core/secrets ns volume-secret",
        "watch core/secrets ns projected-secret",
        "get core/secrets ns csi-secret",
        "get core/secrets storage stage",
        "get core/configmaps ns env-config",
        "get core/configmaps ns from-config",
        "watch core/configmaps ns volume-config",
        "get core/persistentvolumeclaims ns claim",
        "get core/persistentvolumeclaims ns p-v5",
        "patch core/persistentvolumeclaims/status ns claim",
        "get core/persistentvolumes - pv",
        "get storage.k8s.io/volumeattachments - va",
        "get resource.k8s.io/resourceclaims ns device",
        "create core/serviceaccounts/token ns sa",
        "get core/pods ns p",
    ];
    for what in theirs {
        assert!(may(&authorizer, &node("n1"), what), "{what}");
        assert!(!may(&authorizer, &node("n2"), what), "n2: {what}");
        assert!(!may(
            &authorizer,
            &User {
                groups: vec![],
                ..node("n1")
            },
            what
        ));
    }
    for what in [
        "get core/secrets ns other",
        "get core/secrets other pull",
        "list core/secrets ns -",
        "list core/secrets - -",
        "update core/secrets ns pull",
        "delete core/secrets ns pull",
        "get core/secrets storage other",
        "get core/configmaps ns pull",
        "get core/secrets ns env-config",
        "list core/persistentvolumes - pv",
        "update core/persistentvolumeclaims ns claim",
        "create core/serviceaccounts/token ns other",
        "create core/serviceaccounts/token other sa",
        "get core/serviceaccounts ns sa",
        "get core/pods ns other",
        "list core/pods - -",
        "list core/pods - - spec.nodeName=n2",
        "list core/pods - - metadata.name=n1",
        "update core/pods ns p",
        "patch core/pods ns p",
        "deletecollection core/pods ns -",
        "create core/pods/exec ns p",
        "create core/pods/binding ns p",
    ] {
        assert!(!may(&authorizer, &node("n1"), what), "{what}");
    }
    assert!(may(
        &authorizer,
        &node("n1"),
        "list core/pods - - status.phase!=Failed,spec.nodeName=n1"
    ));
    // With the pod what it gave is gone.
    authorizer.set("pods", "ns", "p", Some(&pod("n2")));
    for what in theirs
        .iter()
        .filter(|what| !what.contains("volumeattachments"))
    {
        assert!(!may(&authorizer, &node("n1"), what), "{what}");
        assert!(may(&authorizer, &node("n2"), what), "n2: {what}");
    }
    authorizer.set("pods", "ns", "p", None);
    assert!(!may(&authorizer, &node("n2"), theirs[0]));
    assert!(authorizer.read().nodes.is_empty());
    // A mirror pod gives nothing, whatever it names.
    let mut mirror = pod("n1");
    mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" });
    authorizer.set("pods", "ns", "p", Some(&mirror));
    assert!(!may(&authorizer, &node("n1"), "get core/secrets ns pull"));
    assert!(!may(
        &authorizer,
        &node("n1"),
        "create core/serviceaccounts/token ns sa"
    ));
}

#[test]
fn sec_api_07_a_node_has_its_own_node_lease_and_csinode() {
    let authorizer = NodeAuthorizer::new();
    let table = [
        ("create core/nodes - n1", true),
        ("create core/nodes - -", true),
        ("create core/nodes - n2", false),
        ("get core/nodes - n1", true),
        ("get core/nodes - n2", false),
        ("list core/nodes - -", false),
        ("list core/nodes - - metadata.name=n1", true),
        ("list core/nodes - - metadata.name=n2", false),
        ("list core/nodes - - metadata.name=n11", false),
        ("watch core/nodes - n1", true),
        ("patch core/nodes/status - n1", true),
        ("patch core/nodes/status - n2", false),
        ("delete core/nodes - n1", false),
        ("create core/nodes/proxy - n1", false),
        ("update coordination.k8s.io/leases kube-node-lease n1", true),
        (
            "update coordination.k8s.io/leases kube-node-lease n2",
            false,
        ),
        ("update coordination.k8s.io/leases kube-system n1", false),
        ("create coordination.k8s.io/leases kube-node-lease -", true),
        ("list coordination.k8s.io/leases kube-node-lease -", false),
        ("patch storage.k8s.io/csinodes - n1", true),
        ("patch storage.k8s.io/csinodes - n2", false),
        ("list core/services - -", true),
        ("update core/services ns s", false),
        ("create core/events ns -", true),
        ("delete core/events ns e", false),
        (
            "create certificates.k8s.io/certificatesigningrequests - -",
            true,
        ),
        (
            "update certificates.k8s.io/certificatesigningrequests/approval - c",
            false,
        ),
        ("get node.k8s.io/runtimeclasses - r", true),
        ("create authorization.k8s.io/subjectaccessreviews - -", true),
        ("get core/namespaces - default", false),
        ("create core/pods ns -", true),
        ("create core/pods/eviction ns p", true),
        ("list apps/deployments ns -", false),
        (
            "create rbac.authorization.k8s.io/clusterrolebindings - -",
            false,
        ),
    ];
    for (what, allowed) in table {
        assert_eq!(may(&authorizer, &node("n1"), what), allowed, "{what}");
    }
    let unnamed = User {
        username: "system:node:".to_owned(),
        ..node("")
    };
    assert!(!may(&authorizer, &unnamed, "list core/services - -"));
    let other = User {
        username: "admin".to_owned(),
        ..node("n1")
    };
    assert!(!may(&authorizer, &other, "list core/services - -"));
}
