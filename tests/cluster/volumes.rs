//! Claims and volumes: `berth controllers` binds them, `berth scheduler` chooses for those that wait for a node. By real kubectl; nobody mounts anything.

use anyhow::{Result, ensure};
use berth_tests::cluster::{Component, Server};
use serde_json::{Value, json};

use crate::scheduler::{ALONE, apply, eventually, node, node_of, pod, why};

fn volume(
    server: &Server,
    name: &str,
    class: &str,
    storage: &str,
    host: Option<&str>,
) -> Result<()> {
    let mut spec = json!({
        "capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/mnt/none"},
    });
    if let Some(host) = host {
        spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]},
        ]}});
    }
    apply(
        server,
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}),
    )
}

fn claim(server: &Server, name: &str, class: &str, storage: &str) -> Result<()> {
    apply(
        server,
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
            "accessModes": ["ReadWriteOnce"], "storageClassName": class, "resources": {"requests": {"storage": storage}},
        }}),
    )
}

fn consumer(server: &Server, name: &str, claim: &str) -> Result<()> {
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    apply(server, pod(name, &json!({"volumes": volumes})))
}

fn phase(server: &Server, what: &str, name: &str, phase: &str) -> Result<Value> {
    eventually(&format!("{what} {name} is {phase}"), || {
        let object = server.json(&["get", what, name])?;
        Ok((object["status"]["phase"] == phase).then_some(object))
    })
}

#[test]
fn claims_find_volumes_at_once_or_once_their_pod_has_a_node() -> Result<()> {
    let server = Server::start("memory")?;
    for name in ["n1", "n2"] {
        node(&server, name, "8")?;
    }
    let controllers = ["--controllers=persistentvolume-binder-controller"];
    let _controllers = Component::start(&server, "controllers", &[ALONE, &controllers].concat())?;
    let _scheduler = Component::start(&server, "scheduler", ALONE)?;
    apply(
        &server,
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local"},
            "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
        }),
    )?;

    // at once: the smallest that is enough
    for (name, storage) in [("small", "1Gi"), ("middle", "2Gi"), ("large", "9Gi")] {
        volume(&server, name, "", storage, None)?;
        phase(&server, "pv", name, "Available")?;
    }
    claim(&server, "now", "", "2Gi")?;
    let bound = phase(&server, "pvc", "now", "Bound")?;
    ensure!(
        bound["spec"]["volumeName"] == "middle" && bound["status"]["capacity"]["storage"] == "2Gi",
        "{bound}"
    );
    let middle = phase(&server, "pv", "middle", "Bound")?;
    ensure!(
        middle["spec"]["claimRef"]["uid"] == bound["metadata"]["uid"],
        "{middle}"
    );
    phase(&server, "pv", "large", "Available")?;
    consumer(&server, "uses-it", "now")?;
    node_of(&server, "uses-it")?;

    // once its pod has a node: where the volume is
    volume(&server, "n1-small", "local", "1Gi", Some("n1"))?;
    volume(&server, "n2-large", "local", "5Gi", Some("n2"))?;
    claim(&server, "later", "local", "2Gi")?;
    phase(&server, "pvc", "later", "Pending")?;
    eventually("it is told that it waits", || {
        let told = server.kubectl(&["describe", "pvc", "later"])?;
        let words = "waiting for first consumer to be created before binding";
        Ok(told.contains(words).then_some(()))
    })?;
    consumer(&server, "first", "later")?;
    ensure!(node_of(&server, "first")? == "n2");
    let later = phase(&server, "pvc", "later", "Bound")?;
    ensure!(later["spec"]["volumeName"] == "n2-large", "{later}");

    // there is none yet that is enough
    claim(&server, "missing", "local", "2Gi")?;
    consumer(&server, "second", "missing")?;
    let told = why(&server, "second")?;
    ensure!(
        told.contains("2 node(s) didn't find available persistent volumes to bind"),
        "{told}"
    );
    volume(&server, "n1-large", "local", "3Gi", Some("n1"))?;
    ensure!(node_of(&server, "second")? == "n1");
    phase(&server, "pv", "n1-large", "Bound")?;
    phase(&server, "pv", "n1-small", "Available")?;

    // what a claim leaves is kept, and nobody's
    server.kubectl(&[
        "delete",
        "pod",
        "first",
        "--wait=true",
        "--grace-period=0",
        "--force",
    ])?;
    let finalizers = json!({"metadata": {"finalizers": null}}).to_string();
    server.kubectl(&["delete", "pvc", "later", "--wait=false"])?;
    server.kubectl(&["patch", "pvc", "later", "--type=merge", "-p", &finalizers])?;
    phase(&server, "pv", "n2-large", "Released")?;
    claim(&server, "another", "local", "2Gi")?;
    consumer(&server, "third", "another")?;
    why(&server, "third")?;
    Ok(())
}
