//! Who a pod is to the API server.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_tests::{cluster::kubectl_path, nodes::Nodes};
use serde_json::Value;

/// With a kubectl in it, which finds server and token as any client in a cluster does. The server is told by its own address.
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: asks}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, "100000"]
    env:
    - {name: HOME, value: /tmp}
    - {name: KUBERNETES_SERVICE_HOST, value: "@host"}
    - {name: KUBERNETES_SERVICE_PORT, value: "@port"}
    volumeMounts: [{name: kubectl, mountPath: /kubectl, readOnly: true}]
  volumes:
  - name: kubectl
    hostPath: {path: "@kubectl", type: File}
"#;

#[test]
fn a_pod_asks_the_api_server_as_its_service_account_sa_01_sa_02_sa_03() -> Result<()> {
    Nodes::test(1, |nodes| {
        let kubeconfig = fs::read_to_string(&nodes.kubectl.kubeconfig)?;
        let server = kubeconfig
            .split("https://")
            .nth(1)
            .and_then(|rest| rest.split(['"', '\n', ',']).next())
            .context("the kubeconfig names no server")?;
        let (host, port) = server.trim().rsplit_once(':').context("no port")?;
        let path = kubectl_path()?;
        let pod = POD
            .replace("@host", host)
            .replace("@port", port)
            .replace("@kubectl", path.to_str().context("its path is not UTF-8")?);
        nodes.apply(&pod)?;
        nodes.until(&["pod/asks"], "it runs", |pod| {
            pod["status"]["phase"] == "Running"
        })?;
        let asks = |arguments: &[&str]| {
            let mut all = vec!["exec", "asks", "--", "/kubectl"];
            all.extend(arguments);
            nodes.ask(&all)
        };
        let user = nodes.eventually("it is answered", || {
            let said = asks(&["auth", "whoami", "--output", "json"])?;
            ensure!(said.ok, "{said:?}");
            let said: Value = serde_json::from_str(&said.stdout)?;
            Ok(Some(said["status"]["userInfo"].clone()))
        })?;
        ensure!(
            user["username"] == "system:serviceaccount:default:default"
                && user["extra"]["authentication.kubernetes.io/pod-name"][0] == "asks",
            "{user:#}"
        );
        let groups = user["groups"].as_array().context("no groups")?;
        ensure!(
            groups
                .iter()
                .any(|group| group == "system:serviceaccounts:default"),
            "{groups:?}"
        );

        // what it may is what its roles say
        let refused = |resource: &str| {
            let said = asks(&["get", resource, "--output", "name"])?;
            let why = format!(
                "User \"system:serviceaccount:default:default\" cannot list resource \"{resource}\""
            );
            ensure!(!said.ok && said.stderr.contains(&why), "{said:?}");
            Ok(())
        };
        refused("pods")?;
        let reader = ["reader", "--verb=list", "--resource=pods"];
        nodes
            .kubectl
            .kubectl(&[&["create", "role"][..], &reader].concat())?;
        let bound = [
            "reader",
            "--role=reader",
            "--serviceaccount=default:default",
        ];
        nodes
            .kubectl
            .kubectl(&[&["create", "rolebinding"][..], &bound].concat())?;
        nodes.eventually("it may list pods", || {
            let said = asks(&["get", "pods", "--output", "name"])?;
            Ok((said.ok && said.stdout.trim() == "pod/asks").then_some(()))
        })?;
        refused("secrets")
    })
}
