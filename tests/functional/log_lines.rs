//! The daemon's own log: ids on its lines, and no secrets.

use std::fs;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, AuthConfig};
use berth_tests::{BUSYBOX, Node, Setup, container, request::ContainerRequest, sh};
use serde_json::Value;

fn json() -> Setup {
    Setup {
        arguments: vec!["--log-format=json".into()],
        ..Setup::default()
    }
}

#[test]
fn lines_of_json_carry_rpc_pod_and_container() -> Result<()> {
    Node::test_with(json(), async |node| {
        let pod = node.run(node.pod("lines")).await?;
        let bad = container("bad", BUSYBOX, &["/not/there"]);
        let id = node.create(&pod, &bad).await?;
        ensure!(node.cri.start(&id).await.is_err());
        let _ = node.cri.exec_raw(&id, &["true"]).await;
        let log = fs::read_to_string(&node.daemon.log)?;
        let mut lines = Vec::new();
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            for key in ["timestamp", "level", "target", "message"] {
                ensure!(line[key].is_string(), "no {key}: {line}");
            }
            lines.push(line);
        }
        let find = |message: &str, rpc: &str| {
            lines
                .iter()
                .find(|line| {
                    line["message"]
                        .as_str()
                        .is_some_and(|m| m.contains(message))
                        && line["rpc"] == rpc
                })
                .with_context(|| format!("no {message:?} of {rpc} in {log}"))
        };
        // One of the driver, one of the handler.
        let metadata = pod.config.metadata.clone().unwrap_or_default();
        for line in [
            find("start: ", "StartContainer")?,
            find("exec in", "ExecSync")?,
        ] {
            ensure!(
                line["pod_id"] == pod.id && line["container_id"] == id,
                "{line}"
            );
            ensure!(
                line["namespace"] == metadata.namespace && line["name"] == metadata.name,
                "{line}"
            );
        }
        Ok(())
    })
}

#[test]
fn lines_of_text_carry_rpc_pod_and_container() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("lines")).await?;
        let id = node
            .create(&pod, &container("bad", BUSYBOX, &["/not/there"]))
            .await?;
        ensure!(node.cri.start(&id).await.is_err());
        let log = fs::read_to_string(&node.daemon.log)?;
        let line = log
            .lines()
            .find(|line| line.contains(" start: "))
            .context("no line")?;
        for part in [
            " WARN berthd::",
            "rpc=StartContainer",
            &format!("pod_id={}", pod.id),
            &format!("container_id={id}"),
        ] {
            ensure!(line.contains(part), "{part:?} is not in {line}");
        }
        Ok(())
    })
}

#[test]
fn secrets_are_in_no_line_of_the_log() -> Result<()> {
    Node::test_with(json(), async |node| {
        const SECRET: &str = "hunter2-is-no-good-password";
        let auth = AuthConfig {
            username: "somebody".into(),
            password: SECRET.into(),
            auth: SECRET.into(),
            server_address: String::new(),
            identity_token: SECRET.into(),
            registry_token: SECRET.into(),
        };
        for image in [BUSYBOX, "registry.k8s.io/not-there:1", "Bad Image"] {
            let _ = node.cri.pull_as(image, Some(auth.clone())).await;
        }
        let pod = node.run(node.pod("secrets")).await?;
        let config = container("c", BUSYBOX, &sh("sleep 1000")).env("PASSWORD", SECRET.as_bytes());
        let id = node.start_container(&pod, config.clone()).await?;
        // Asked for again with another value: what differs is told, not how.
        let other = config
            .clone()
            .env("PASSWORD", b"hunter2-is-no-good-password-either");
        let _ = node.create(&pod, &other).await;
        node.cri.exec(&id, &["echo", SECRET]).await?;
        let timed_out = node
            .cri
            .exec_within(&id, &["sh", "-c", &format!("sleep 100 # {SECRET}")], 1)
            .await;
        ensure!(timed_out.is_err());
        let _ = node.cri.exec_raw(&id, &["/not/there", SECRET]).await;
        let request = cri::ExecRequest {
            container_id: id.clone(),
            cmd: vec!["echo".into(), SECRET.into()],
            stdout: true,
            ..Default::default()
        };
        let url = node.cri.runtime().exec(request).await?.into_inner().url;
        let token = url.rsplit('/').next().context("no token")?;
        node.cri.stop_pod(&pod.id).await?;
        let log = fs::read_to_string(&node.daemon.log)?;
        ensure!(
            log.contains(&pod.id) && log.contains("\"DEBUG\""),
            "not at debug level: {log}"
        );
        for secret in ["hunter2", token] {
            let told: Vec<_> = log.lines().filter(|line| line.contains(secret)).collect();
            ensure!(token.len() > 20 && told.is_empty(), "{told:?}");
        }
        Ok(())
    })
}
