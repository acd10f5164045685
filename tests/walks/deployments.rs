//! Deployments that are rolled out, stall, and are undone.

use anyhow::{Result, ensure};
use berth_tests::nodes::Nodes;
use serde_json::{Value, json};

use crate::{
    by_node, condition, items, ready,
    workload::{busybox, deployment},
};

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx-deployment}
spec:
  replicas: 4
  progressDeadlineSeconds: 15
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: nginx
        image: nginx:latest
        imagePullPolicy: IfNotPresent
        ports: [{containerPort: 80}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
"#;

/// Of all ready pods.
fn images(pods: &Value) -> Vec<String> {
    let mut images: Vec<String> = items(pods)
        .filter(|pod| crate::is_ready(pod))
        .filter_map(|pod| Some(pod["spec"]["containers"][0]["image"].as_str()?.to_owned()))
        .collect();
    images.sort();
    images
}

#[test]
fn a_deployment_is_rolled_out_stalls_and_is_undone_dp_04_dp_05_dp_06_dp_07_dp_12() -> Result<()> {
    Nodes::test(3, |nodes| {
        let kubectl = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            nodes.kubectl.kubectl(&words)
        };
        let pods = ["pods", "-l", "app=nginx"];
        let all =
            |image: &'static str| nodes.until(&pods, image, move |pods| images(pods) == [image; 4]);
        nodes.apply(DEPLOYMENT)?;
        kubectl("rollout status deployment/nginx-deployment --timeout=60s")?;
        all("nginx:latest")?;

        kubectl("set image deployment.v1.apps/nginx-deployment nginx=nginx:1")?;
        kubectl("rollout status deployment/nginx-deployment --timeout=60s")?;
        all("nginx:1")?;
        let history = kubectl("rollout history deployment.v1.apps/nginx-deployment")?;
        let revisions: Vec<&str> = history
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        ensure!(revisions.ends_with(&["1", "2"]), "{history}");

        // an image that there is not: what runs goes on
        kubectl("set image deployment.v1.apps/nginx-deployment nginx=nginx:none")?;
        nodes.until(
            &["deployment/nginx-deployment"],
            "it stalls",
            |deployment| {
                condition(deployment, "Progressing").is_some_and(|it| {
                    it["status"] == "False" && it["reason"] == "ProgressDeadlineExceeded"
                })
            },
        )?;
        let now = nodes.kubectl.json(&["get", "pods", "-l", "app=nginx"])?;
        ensure!(images(&now) == ["nginx:1"; 3], "{:?}", images(&now));
        let said = nodes.ask(&[
            "rollout",
            "status",
            "deployment/nginx-deployment",
            "--timeout=5s",
        ])?;
        ensure!(
            !said.ok && said.stderr.contains("exceeded its progress deadline"),
            "{said:?}"
        );

        kubectl("rollout undo deployment/nginx-deployment")?;
        kubectl("rollout status deployment/nginx-deployment --timeout=60s")?;
        all("nginx:1")?;
        kubectl("rollout undo deployment.v1.apps/nginx-deployment --to-revision=1")?;
        kubectl("rollout status deployment/nginx-deployment --timeout=60s")?;
        all("nginx:latest")?;

        kubectl("delete deployment nginx-deployment")?;
        nodes.until(&["pods,replicasets"], "all are gone", |all| {
            items(all).next().is_none()
        })?;
        Ok(())
    })
}

#[test]
fn a_deployment_goes_on_whatever_of_the_cluster_is_killed_cp_11_cp_12_ar_02() -> Result<()> {
    Nodes::test(2, |nodes| {
        nodes.apply(DEPLOYMENT)?;
        nodes.kill_up()?;
        nodes.up()?;
        let pods = ["pods", "-l", "app=nginx"];
        nodes.until(&pods, "four run", |pods| ready(pods) == 4)?;
        nodes.kubectl.kubectl(&[
            "set",
            "image",
            "deployment/nginx-deployment",
            "nginx=nginx:1",
        ])?;
        for number in [1, 2] {
            nodes.kill_9(number, "kubelet")?;
            nodes.kill_9(number, "berthd")?;
        }
        nodes.kill_up()?;
        nodes.up()?;
        nodes.until(&pods, "four new ones", |pods| {
            images(pods) == ["nginx:1"; 4] && items(pods).count() == 4
        })?;
        Ok(())
    })
}

#[test]
fn a_secret_that_comes_later_than_its_pod_starts_it_cm_06() -> Result<()> {
    Nodes::test(1, |nodes| {
        let mut pod = busybox(&["sh", "-c", "echo $WORD; sleep 100000"]);
        let word = json!({"secretKeyRef": {"name": "later", "key": "word"}});
        pod["containers"][0]["env"] = json!([{"name": "WORD", "valueFrom": word}]);
        nodes.apply(&deployment("waits", 1, &pod))?;
        nodes.until(&["pods", "-l", "app=waits"], "it waits", |pods| {
            items(pods).any(|pod| {
                let state = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                state["reason"] == "CreateContainerConfigError"
            })
        })?;
        nodes.kubectl.kubectl(&[
            "create",
            "secret",
            "generic",
            "later",
            "--from-literal=word=anchor",
        ])?;
        nodes.until(&["pods", "-l", "app=waits"], "it runs", |pods| {
            by_node(pods).len() == 1
        })?;
        let said = nodes.kubectl.kubectl(&["logs", "deployment/waits"])?;
        ensure!(said.trim() == "anchor", "{said}");
        Ok(())
    })
}
