//! Who a Service leads to.

use anyhow::Result;
use berth_tests::nodes::Nodes;
use serde_json::{Value, json};

use crate::{
    items, ready,
    workload::{busybox, deployment},
};

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"#;

/// Of all slices of a service: addresses, and whether each is ready.
fn endpoints(slices: &Value) -> Vec<(String, bool)> {
    let mut all: Vec<(String, bool)> = items(slices)
        .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
        .map(|endpoint| {
            let address = endpoint["addresses"][0].as_str().unwrap_or_default();
            (address.to_owned(), endpoint["conditions"]["ready"] == true)
        })
        .collect();
    all.sort();
    all
}

#[test]
fn a_pod_that_is_not_ready_leaves_the_endpoints_of_its_service_po_10() -> Result<()> {
    Nodes::test(2, |nodes| {
        let mut pod = busybox(&["sh", "-c", "touch /tmp/ready; sleep 100000"]);
        pod["containers"][0]["readinessProbe"] = json!({
            "exec": {"command": ["cat", "/tmp/ready"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        });
        nodes.apply(&deployment("web", 3, &pod))?;
        nodes.apply(SERVICE)?;
        let pods = nodes.until(&["pods", "-l", "app=web"], "three are ready", |pods| {
            ready(pods) == 3
        })?;
        let mut addresses: Vec<String> = items(&pods)
            .filter_map(|pod| Some(pod["status"]["podIP"].as_str()?.to_owned()))
            .collect();
        addresses.sort();
        let slices = ["endpointslices", "-l", "kubernetes.io/service-name=web"];
        let whole: Vec<(String, bool)> = addresses.iter().map(|it| (it.clone(), true)).collect();
        nodes.until(&slices, "all three are endpoints", |slices| {
            endpoints(slices) == whole
        })?;

        let pod = items(&pods).next().cloned().unwrap_or_default();
        let name = pod["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        nodes
            .kubectl
            .kubectl(&["exec", &name, "--", "rm", "/tmp/ready"])?;
        nodes.until(&slices, "one is not ready", |slices| {
            endpoints(slices)
                .iter()
                .all(|(address, ready)| *ready == (pod["status"]["podIP"] != address.as_str()))
        })?;
        nodes
            .kubectl
            .kubectl(&["exec", &name, "--", "touch", "/tmp/ready"])?;
        nodes.until(&slices, "all are ready again", |slices| {
            endpoints(slices) == whole
        })?;
        nodes.kubectl.kubectl(&["delete", "service", "web"])?;
        nodes.until(&slices, "none is left", |slices| {
            items(slices).next().is_none()
        })?;
        Ok(())
    })
}
