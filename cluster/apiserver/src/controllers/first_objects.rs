//! What a cluster starts with.

use std::net::SocketAddr;

use berth_auth::Rbac;
use berth_auth::pki::FRONT_PROXY;
use futures_util::{TryStreamExt, stream};
use serde_json::{Value, json};

use crate::{
    api::{Actor, Api},
    clock,
    failure::Failure,
    object, write,
    write::Part,
};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Made at once: they wait for one write of the store together.
const AT_ONCE: usize = 64;

/// What this server may do at kubelets, which ask it about itself (kubeadm's has a binding for it, too).
fn kubelet_client() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "berth:apiserver-kubelet-client"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:kubelet-api-admin",
        },
        "subjects": [{
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "User",
            "name": berth_auth::pki::KUBELET_CLIENT,
        }],
    })
}

/// Nodes come to a certificate of their own as in clusters that kubeadm makes: by a bootstrap token of this group, and by themselves from then on.
fn node_certificates() -> [Value; 3] {
    const TOKENS: &str = "system:bootstrappers:kubeadm:default-node-token";
    [
        ("kubeadm:kubelet-bootstrap", "system:node-bootstrapper", TOKENS),
        (
            "kubeadm:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            TOKENS,
        ),
        (
            "kubeadm:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            berth_auth::NODES,
        ),
    ]
    .map(|(name, role, group)| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group}],
        })
    })
}

/// Makes what is missing: namespaces, default roles, priority classes, the CA of clients, the Service `kubernetes` and its endpoints.
pub async fn make(api: &Api, address: SocketAddr) -> Result<(), Failure> {
    let actor = Actor::internal("kube-apiserver");
    let namespaces = NAMESPACES
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    all(api, &actor, namespaces.into()).await?;
    // What is in a namespace needs to find it.
    api.cache.fresh().await?;
    let mut objects = Rbac::defaults();
    for (name, value) in [
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ] {
        objects.push(json!({
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": name},
            "value": value,
            "description": "For pods without which the cluster does not work.",
        }));
    }
    objects.push(kubelet_client());
    objects.extend(node_certificates());
    // Since when tokens of Secrets would be noticed: kube-controller-manager waits for it. None is taken here.
    let today = clock::time(clock::now());
    objects.push(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "kube-apiserver-legacy-service-account-token-tracking",
            "namespace": "kube-system",
        },
        "data": {"since": today.split('T').next()},
    }));
    all(api, &actor, objects).await?;
    client_ca(api, &actor).await?;
    service(api, &actor, address).await
}

/// Whose client certificates hold: kube-scheduler, kube-controller-manager and servers beside this one ask their own clients by it.
async fn client_ca(api: &Api, actor: &Actor) -> Result<(), Failure> {
    const NAMESPACE: &str = "kube-system";
    const NAME: &str = "extension-apiserver-authentication";
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "data": {},
    });
    let texts = |all: &[&str]| json!(all).to_string();
    let data = [
        ("client-ca-file", api.pki.ca_pem().to_owned()),
        // how API servers beside this one know it, and who asks through it
        (
            "requestheader-client-ca-file",
            api.pki.front_proxy_ca_pem().to_owned(),
        ),
        ("requestheader-allowed-names", texts(&[FRONT_PROXY])),
        ("requestheader-username-headers", texts(&["X-Remote-User"])),
        ("requestheader-uid-headers", texts(&["X-Remote-Uid"])),
        ("requestheader-group-headers", texts(&["X-Remote-Group"])),
        (
            "requestheader-extra-headers-prefix",
            texts(&["X-Remote-Extra-"]),
        ),
    ];
    ensure(api, actor, NAMESPACE, map.clone()).await?;
    let catalog = api.served.now();
    let Some(resource) = catalog.by_storage("configmaps") else {
        return Ok(());
    };
    // The CA may be another than the last time; what others have put beside it stays.
    write::modify(api, actor, resource, NAMESPACE, NAME, Part::Main, |old| {
        let mut new = old.clone();
        let kept = object::part(&mut new, "data");
        for (name, text) in &data {
            kept.insert((*name).into(), text.as_str().into());
        }
        Ok(new)
    })
    .await
    .map(drop)
}

async fn all(api: &Api, actor: &Actor, objects: Vec<Value>) -> Result<(), Failure> {
    stream::iter(objects.into_iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, |object| async move {
            let namespace = object::namespace(&object).to_owned();
            ensure(api, actor, &namespace, object).await
        })
        .await
}

async fn ensure(api: &Api, actor: &Actor, namespace: &str, object: Value) -> Result<(), Failure> {
    let catalog = api.served.now();
    let (group, version) = crate::catalog::split_api_version(object::text(&object, "/apiVersion"));
    let kind = object::text(&object, "/kind");
    let resource = catalog
        .by_kind(group, version, kind)
        .ok_or_else(|| Failure::internal(format!("no kind {kind} is served")))?;
    let path = crate::read::path(resource, namespace, object::name(&object));
    if api.cache.shard(&resource.storage).get(&path).is_some() {
        return Ok(());
    }
    match write::create(api, actor, resource, namespace, object).await {
        Err(failure) if failure.reason != "AlreadyExists" => Err(failure),
        _ => Ok(()),
    }
}

/// The way to this server, within the cluster.
async fn service(api: &Api, actor: &Actor, address: SocketAddr) -> Result<(), Failure> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": api.service_ips.first().to_string(),
            "ports": [{
                "name": "https",
                "port": 443,
                "protocol": "TCP",
                "targetPort": address.port(),
            }],
        },
    });
    ensure(api, actor, "default", service).await?;
    // Endpoints can't be loopback: who listens there is reached from this machine alone.
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        return Ok(());
    }
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{
            "addresses": [address.ip().to_string()],
            "conditions": {"ready": true},
        }],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
    });
    ensure(api, actor, "default", slice.clone()).await?;
    let catalog = api.served.now();
    let Some(resource) = catalog.by_storage("endpointslices") else {
        return Ok(());
    };
    // It may listen elsewhere than the last time.
    write::modify(
        api,
        actor,
        resource,
        "default",
        "kubernetes",
        Part::Main,
        |old| {
            let mut new = old.clone();
            for part in ["endpoints", "ports"] {
                new[part] = slice[part].clone();
            }
            Ok(new)
        },
    )
    .await
    .map(drop)
}
