//! Probes, and what follows from their answers.

use anyhow::{Result, ensure};
use berth_tests::Node;
use serde_json::Value;

use crate::scene::{Kubelet, condition, container, pod};

/// KL-05, too: a pod's health.
#[test]
fn probes_hold_back_tell_and_restart_po_09_po_10_po_11() -> Result<()> {
    Node::test(async |node| {
        let kubelet = Kubelet::start(node)?;
        let text = pod(
            "probed",
            "  terminationGracePeriodSeconds: 0\n  containers:\n  \
             - name: web\n    image: busybox\n    command: [sh, -c, 'mkdir /www; httpd -p 8080 -h /www; touch /alive; while :; do sleep 0.1; done']\n    \
             ports: [{name: http, containerPort: 8080}]\n    \
             startupProbe: {exec: {command: [test, -e, /started]}, periodSeconds: 1, failureThreshold: 60}\n    \
             readinessProbe: {httpGet: {path: /ok, port: http}, periodSeconds: 1, failureThreshold: 1}\n    \
             livenessProbe: {exec: {command: [test, -e, /alive]}, timeoutSeconds: 30, periodSeconds: 1, failureThreshold: 1}\n  \
             - name: port\n    image: busybox\n    command: [sh, -c, 'httpd -f -p 8081']\n    \
             readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1}\n  \
             - name: nothing\n    image: busybox\n    command: [sleep, '1000']\n    \
             readinessProbe: {grpc: {port: 8082}, periodSeconds: 1}",
        );
        kubelet.put("probed.yaml", &text)?;
        let is = |name: &'static str, field: &'static str, value: bool| {
            move |status: &Value| {
                container(status, name)[field] == value
                    && container(status, name)["state"]["running"].is_object()
            }
        };
        kubelet
            .wait("probed", "open", is("port", "ready", true))
            .await?;
        let status = kubelet
            .wait("probed", "held back", is("web", "started", false))
            .await?;
        ensure!(
            container(&status, "nothing")["ready"] == false
                && condition(&status, "Ready") == "False",
            "{status:#}"
        );
        // Nobody asks after its life before it has started, though that would be answered well; nor after its readiness.
        let web = id(&status, "web");
        node.cri
            .shell(&web, "rm /alive; touch /www/ok; sleep 1.5")
            .await?;
        ensure!(
            kubelet
                .status("probed")
                .is_some_and(|status| container(&status, "web")["restartCount"] == 0)
        );
        node.cri.shell(&web, "touch /alive; touch /started").await?;
        kubelet
            .wait("probed", "ready", is("web", "ready", true))
            .await?;
        node.cri.shell(&web, "rm /www/ok").await?;
        kubelet
            .wait("probed", "unready", is("web", "ready", false))
            .await?;
        node.cri.shell(&web, "rm /alive").await?;
        let again = kubelet
            .wait("probed", "killed and started again", |status| {
                container(status, "web")["restartCount"] == 1
            })
            .await?;
        ensure!(container(&again, "port")["restartCount"] == 0, "{again:#}");
        let log = kubelet.log();
        for words in [
            "Startup probe failed: ",
            "Readiness probe failed: HTTP probe failed with statuscode: 404",
            "Liveness probe failed: ",
            "Readiness probe failed: failed to connect to ",
        ] {
            ensure!(log.contains(words), "no {words:?}:\n{log}");
        }
        kubelet.take("probed.yaml")?;
        kubelet.wait_gone(node, "probed").await
    })
}

fn id(status: &Value, name: &str) -> String {
    let id = container(status, name)["containerID"]
        .as_str()
        .unwrap_or_default();
    id.rsplit('/').next().unwrap_or_default().to_owned()
}
