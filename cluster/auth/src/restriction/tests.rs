use serde_json::json;

use super::*;

fn n1() -> User {
    User {
        username: "system:node:n1".to_owned(),
        groups: vec![crate::NODES.to_owned()],
        ..User::default()
    }
}

fn asked(verb: &str, what: &str, namespace: &str, name: &str) -> Attributes {
    let mut what = what.split('/').map(str::to_owned);
    Attributes {
        verb: verb.to_owned(),
        group: what
            .next()
            .filter(|group| group != "core")
            .unwrap_or_default(),
        resource: what.next().unwrap(),
        subresource: what.next().unwrap_or_default(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

fn mirror() -> Value {
    json!({
        "metadata": {
            "name": "p", "namespace": "ns",
            "annotations": { "kubernetes.io/config.mirror": "hash" },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": true }],
        },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    object.pointer_mut(parent).unwrap()[field] = value;
    object
}

#[test]
fn sec_api_07_a_node_creates_mirrors_of_its_own_that_refer_to_nothing() {
    let create = asked("create", "core/pods", "ns", "p");
    assert_eq!(check(&n1(), &create, None, Some(&mirror())), Ok(()));
    let container = |field: &str, value: Value| {
        let mut container = json!({ "name": "c", "image": "i" });
        container[field] = value;
        with(mirror(), "/spec/containers", json!([container]))
    };
    let volume = |value: Value| with(mirror(), "/spec/volumes", json!([value]));
    for bad in [
        with(mirror(), "/metadata/annotations", json!({})),
        with(mirror(), "/spec/nodeName", json!("n2")),
        with(mirror(), "/metadata/ownerReferences", json!([])),
        with(mirror(), "/metadata/ownerReferences/0/name", json!("n2")),
        with(mirror(), "/metadata/ownerReferences/0/kind", json!("Pod")),
        with(
            mirror(),
            "/metadata/ownerReferences/0/controller",
            json!(false),
        ),
        with(
            mirror(),
            "/metadata/ownerReferences/0/blockOwnerDeletion",
            json!(true),
        ),
        with(mirror(), "/spec/serviceAccountName", json!("default")),
        with(
            mirror(),
            "/spec/resourceClaims",
            json!([{ "name": "c", "resourceClaimName": "theirs" }]),
        ),
        with(mirror(), "/spec/imagePullSecrets", json!([{ "name": "s" }])),
        with(
            mirror(),
            "/status",
            json!({ "resourceClaimStatuses": [{ "resourceClaimName": "theirs" }] }),
        ),
        container(
            "env",
            json!([{ "valueFrom": { "secretKeyRef": { "name": "s" } } }]),
        ),
        container(
            "env",
            json!([{ "valueFrom": { "configMapKeyRef": { "name": "s" } } }]),
        ),
        container("envFrom", json!([{ "secretRef": { "name": "s" } }])),
        container("envFrom", json!([{ "configMapRef": { "name": "s" } }])),
        with(
            mirror(),
            "/spec/initContainers",
            json!([{ "envFrom": [{ "secretRef": { "name": "s" } }] }]),
        ),
        with(
            mirror(),
            "/spec/ephemeralContainers",
            json!([{ "envFrom": [{ "secretRef": { "name": "s" } }] }]),
        ),
        volume(json!({ "secret": { "secretName": "s" } })),
        volume(json!({ "configMap": { "name": "s" } })),
        volume(json!({ "persistentVolumeClaim": { "claimName": "s" } })),
        volume(json!({ "ephemeral": { "volumeClaimTemplate": {} } })),
        volume(json!({ "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } })),
        volume(json!({ "csi": { "nodePublishSecretRef": { "name": "s" } } })),
        volume(json!({ "azureFile": { "secretName": "s" } })),
    ] {
        assert!(check(&n1(), &create, None, Some(&bad)).is_err(), "{bad}");
        // Others are not restricted by this.
        assert_eq!(check(&User::anonymous(), &create, None, Some(&bad)), Ok(()));
    }
}

#[test]
fn sec_api_07_a_node_touches_its_own_pods_only() {
    let own = json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "nodeName": "n1" }, "status": { "phase": "Pending" } });
    let other = with(own.clone(), "/spec/nodeName", json!("n2"));
    let status = asked("patch", "core/pods/status", "ns", "p");
    let running = with(own.clone(), "/status/phase", json!("Running"));
    assert_eq!(check(&n1(), &status, Some(&own), Some(&running)), Ok(()));
    assert!(check(&n1(), &status, Some(&other), Some(&running)).is_err());
    let relabelled = with(running.clone(), "/metadata/labels/app", json!("db"));
    assert!(check(&n1(), &status, Some(&own), Some(&relabelled)).is_err());
    let claims = with(
        running,
        "/status/resourceClaimStatuses",
        json!([{ "resourceClaimName": "x" }]),
    );
    assert!(check(&n1(), &status, Some(&own), Some(&claims)).is_err());
    for (verb, what) in [("delete", "core/pods"), ("create", "core/pods/eviction")] {
        let asked = asked(verb, what, "ns", "p");
        assert_eq!(check(&n1(), &asked, Some(&own), None), Ok(()));
        assert!(check(&n1(), &asked, Some(&other), None).is_err());
    }
    assert!(
        check(
            &n1(),
            &asked("update", "core/pods", "ns", "p"),
            Some(&own),
            Some(&own)
        )
        .is_err()
    );
    assert!(
        check(
            &n1(),
            &asked("update", "core/pods/ephemeralcontainers", "ns", "p"),
            Some(&own),
            Some(&own)
        )
        .is_err()
    );
}

#[test]
fn sec_api_07_a_node_says_of_itself_what_it_may_and_of_others_nothing() {
    let node = json!({
        "metadata": { "name": "n1", "labels": { "kubernetes.io/hostname": "n1", "mine": "1" } },
        "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] },
    });
    let create = asked("create", "core/nodes", "", "");
    let update = asked("update", "core/nodes", "", "n1");
    assert_eq!(check(&n1(), &create, None, Some(&node)), Ok(()));
    assert_eq!(check(&n1(), &update, Some(&node), Some(&node)), Ok(()));
    let label = |label: &str| {
        let mut node = node.clone();
        node["metadata"]["labels"][label] = json!("x");
        node
    };
    for allowed in [
        "mine",
        "example.com/x",
        "notkubernetes.io/x",
        "kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "a.node.kubernetes.io/b",
        "kubelet.kubernetes.io/x",
    ] {
        assert_eq!(
            check(&n1(), &update, Some(&node), Some(&label(allowed))),
            Ok(()),
            "{allowed}"
        );
    }
    for refused in [
        "node-restriction.kubernetes.io/x",
        "a.node-restriction.kubernetes.io/x",
        "node-role.kubernetes.io/control-plane",
        "kubernetes.io/other",
        "k8s.io/x",
        "a.b.k8s.io/x",
    ] {
        assert!(
            check(&n1(), &update, Some(&node), Some(&label(refused))).is_err(),
            "{refused}"
        );
        assert!(
            check(&n1(), &create, None, Some(&label(refused))).is_err(),
            "{refused}"
        );
        assert!(
            check(&n1(), &update, Some(&label(refused)), Some(&node)).is_err(),
            "{refused} taken away"
        );
    }
    let owned = with(
        node.clone(),
        "/metadata/ownerReferences",
        json!([{ "kind": "ConfigMap", "name": "gone" }]),
    );
    assert!(check(&n1(), &update, Some(&node), Some(&owned)).is_err());
    assert!(check(&n1(), &create, None, Some(&owned)).is_err());
    assert!(
        check(
            &n1(),
            &update,
            Some(&node),
            Some(&with(node.clone(), "/spec/taints", json!([])))
        )
        .is_err()
    );
    assert!(
        check(
            &n1(),
            &asked("update", "core/nodes/status", "", "n2"),
            Some(&node),
            Some(&node)
        )
        .is_err()
    );
    assert!(
        check(
            &n1(),
            &asked("create", "core/nodes", "", ""),
            None,
            Some(&with(node.clone(), "/metadata/name", json!("n2")))
        )
        .is_err()
    );
    let lease = json!({ "metadata": { "name": "n1" } });
    let of = |namespace| asked("create", "coordination.k8s.io/leases", namespace, "");
    assert_eq!(
        check(&n1(), &of("kube-node-lease"), None, Some(&lease)),
        Ok(())
    );
    assert!(check(&n1(), &of("kube-system"), None, Some(&lease)).is_err());
    assert!(
        check(
            &n1(),
            &of("kube-node-lease"),
            None,
            Some(&with(lease, "/metadata/name", json!("n2")))
        )
        .is_err()
    );
}

#[test]
fn sec_api_07_a_node_gets_tokens_for_its_own_pods_only() {
    let pod = json!({
        "metadata": { "name": "p", "namespace": "ns", "uid": "u" },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "sa",
            "volumes": [{ "projected": { "sources": [{ "serviceAccountToken": { "audience": "vault" } }] } }],
        },
    });
    let request = json!({ "spec": { "audiences": ["vault"], "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u" } } });
    let of = |name| asked("create", "core/serviceaccounts/token", "ns", name);
    assert_eq!(check(&n1(), &of("sa"), Some(&pod), Some(&request)), Ok(()));
    assert!(check(&n1(), &of("other"), Some(&pod), Some(&request)).is_err());
    assert!(check(&n1(), &of("sa"), None, Some(&request)).is_err());
    for (pointer, value) in [
        ("/spec/boundObjectRef", json!(null)),
        ("/spec/boundObjectRef/kind", json!("Secret")),
        ("/spec/boundObjectRef/uid", json!("")),
        ("/spec/boundObjectRef/uid", json!("older")),
        ("/spec/boundObjectRef/name", json!("q")),
        ("/spec/audiences", json!(["elsewhere"])),
    ] {
        let request = with(request.clone(), pointer, value);
        assert!(
            check(&n1(), &of("sa"), Some(&pod), Some(&request)).is_err(),
            "{request}"
        );
    }
    let elsewhere = with(pod, "/spec/nodeName", json!("n2"));
    assert!(check(&n1(), &of("sa"), Some(&elsewhere), Some(&request)).is_err());
}

#[test]
fn sec_api_07_a_node_resizes_a_claim_and_changes_nothing_else() {
    let claim = json!({ "metadata": { "name": "c" }, "spec": { "volumeName": "v" }, "status": { "phase": "Bound", "capacity": { "storage": "1Gi" } } });
    let status = asked("update", "core/persistentvolumeclaims/status", "ns", "c");
    let grown = with(
        claim.clone(),
        "/status/capacity",
        json!({ "storage": "2Gi" }),
    );
    assert_eq!(check(&n1(), &status, Some(&claim), Some(&grown)), Ok(()));
    for bad in [
        with(claim.clone(), "/status/phase", json!("Lost")),
        with(claim.clone(), "/spec/volumeName", json!("w")),
    ] {
        assert!(
            check(&n1(), &status, Some(&claim), Some(&bad)).is_err(),
            "{bad}"
        );
    }
    let whole = asked("update", "core/persistentvolumeclaims", "ns", "c");
    assert!(check(&n1(), &whole, Some(&claim), Some(&grown)).is_err());
}
