//! The node in a cluster: pods of the API, by a real kubectl.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use berth_tests::Node;
use serde_json::Value;

use crate::{
    member::{ADDRESS, Member, NODE, condition, sandboxes},
    scene::container,
};

const SLEEPER: &str = "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

#[test]
fn a_pod_of_the_api_runs_is_told_of_and_goes_po_12_kl_02_kl_04() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;

        let it = server.json(&["get", "node", NODE])?;
        let status = &it["status"];
        ensure!(
            it["metadata"]["labels"]["disk"] == "fast"
                && it["metadata"]["labels"]["kubernetes.io/hostname"] == NODE,
            "{it:#}"
        );
        ensure!(
            status["nodeInfo"]["containerRuntimeVersion"]
                .as_str()
                .is_some_and(|it| it.starts_with("berth://"))
                && status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == 10250
                && status["capacity"]["pods"] == "110"
                && status["addresses"][0]["address"] == ADDRESS,
            "{status:#}"
        );
        for kind in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
            ensure!(condition(&it, kind) == "False", "{kind}: {status:#}");
        }
        // it comes after the node
        member
            .until("the lease is the node's", || {
                let lease = [
                    "-n",
                    "kube-node-lease",
                    "get",
                    "lease",
                    NODE,
                    "--ignore-not-found",
                    "-o",
                    "jsonpath={.spec.holderIdentity}",
                ];
                Ok(server.kubectl(&lease)? == NODE)
            })
            .await?;

        server.kubectl(&[
            "create",
            "configmap",
            "words",
            "--from-literal=greeting=hello",
        ])?;
        server.kubectl(&[
            "create",
            "secret",
            "generic",
            "keys",
            "--from-literal=password=opensesame",
        ])?;
        // CM-06: what it names comes later, and it begins by itself
        member.apply(
            "later",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000'], envFrom: [{configMapRef: {name: late}}]}]",
        )?;
        member.apply(
            "web",
            "  containers:\n  - name: a\n    image: busybox\n    command: [sh, -c, 'echo $GREETING $(cat /keys/password); trap \"exit 0\" TERM; while :; do sleep 0.1; done']\n    \
             env: [{name: GREETING, valueFrom: {configMapKeyRef: {name: words, key: greeting}}}]\n    \
             volumeMounts: [{name: keys, mountPath: /keys}]\n  volumes: [{name: keys, secret: {secretName: keys}}]",
        )?;
        let web = member.wait_ready("web").await?;
        ensure!(
            web["status"]["phase"] == "Running"
                && web["status"]["podIP"].is_string()
                && web["status"]["hostIP"] == ADDRESS
                && web["status"]["qosClass"] == "BestEffort"
                && container(&web["status"], "a")["restartCount"] == 0,
            "{web:#}"
        );
        member
            .until("it has spoken", || {
                Ok(server.kubectl(&["logs", "web"])? == "hello opensesame\n")
            })
            .await?;
        // SA-01, SA-02: a token that the API server knows
        let token = server.kubectl(&[
            "exec",
            "web",
            "--",
            "cat",
            "/var/run/secrets/kubernetes.io/serviceaccount/token",
        ])?;
        let who = Command::new("curl")
            .args([
                "-sk",
                "--max-time",
                "20",
                "-H",
                &format!("Authorization: Bearer {token}"),
            ])
            .args(["-H", "Content-Type: application/json", "-d"])
            .arg(r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}"#)
            .arg(format!(
                "https://{}/apis/authentication.k8s.io/v1/selfsubjectreviews",
                server.address
            ))
            .output()?;
        let who: Value = serde_json::from_slice(&who.stdout)?;
        let info = &who["status"]["userInfo"];
        ensure!(
            info["username"] == "system:serviceaccount:default:default"
                && info["extra"]["authentication.kubernetes.io/pod-name"][0] == "web",
            "{who:#}"
        );
        let service = server.json(&["get", "service", "kubernetes"])?;
        let host = server.kubectl(&[
            "exec",
            "web",
            "--",
            "sh",
            "-c",
            "echo $KUBERNETES_SERVICE_HOST",
        ])?;
        ensure!(
            service["spec"]["clusterIP"] == host.trim(),
            "{host} {service:#}"
        );
        let described = server.kubectl(&["describe", "pod", "web"])?;
        for word in ["Started", "Pulled", "spec.containers{a}"] {
            ensure!(
                described.contains(word) || word.starts_with("spec"),
                "{described}"
            );
        }

        let later = server.json(&["get", "pod", "later"])?;
        ensure!(
            container(&later["status"], "a")["state"]["waiting"]["reason"]
                == "CreateContainerConfigError",
            "{later:#}"
        );
        server.kubectl(&["create", "configmap", "late", "--from-literal=x=y"])?;
        member.wait_ready("later").await?;

        // what is not built is answered by name
        server.kubectl_with(
            &["apply", "-f", "-"],
            &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: odd}}\nspec: {{nodeName: {NODE}, containers: [{{name: a, image: busybox}}], volumes: [{{name: v, nfs: {{server: localhost, path: /}}}}]}}"),
        )?;
        let odd = member
            .wait("pod", "odd", "refused", |it| {
                it["status"]["phase"] == "Failed"
            })
            .await?;
        ensure!(
            odd["status"]["message"]
                .as_str()
                .is_some_and(|it| it.contains("spec.volumes[0].nfs")),
            "{odd:#}"
        );

        // It waits until the object is gone, and then nothing is left here either.
        server.kubectl(&["delete", "pod", "web", "later", "odd"])?;
        for name in ["web", "later", "odd"] {
            ensure!(sandboxes(node, name).await? == 0, "{name} is still there");
        }
        ensure!(
            fs::read_dir(member.kubelet.pods_dir())?.next().is_none(),
            "directories of pods are left"
        );
        member.end()
    })
}

#[test]
fn pods_that_end_are_told_of_and_stay_ended_po_08() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.apply(
            "good",
            "  restartPolicy: Never\n  containers: [{name: a, image: busybox, command: ['true']}]",
        )?;
        member.apply(
            "bad",
            "  restartPolicy: Never\n  containers: [{name: a, image: busybox, command: [sh, -c, 'exit 3']}]",
        )?;
        for (name, phase) in [("good", "Succeeded"), ("bad", "Failed")] {
            member
                .wait("pod", name, phase, |it| it["status"]["phase"] == phase)
                .await?;
        }
        member.kubelet.kill_9();
        member.kubelet.spawn()?;
        member.apply("next", SLEEPER)?;
        member.wait_ready("next").await?;
        for (name, code) in [("good", 0), ("bad", 3)] {
            let it = member.server.json(&["get", "pod", name])?;
            let status = container(&it["status"], "a");
            ensure!(
                status["restartCount"] == 0 && status["state"]["terminated"]["exitCode"] == code,
                "{it:#}"
            );
        }
        member
            .server
            .kubectl(&["delete", "pod", "good", "bad", "next"])?;
        member.end()
    })
}
