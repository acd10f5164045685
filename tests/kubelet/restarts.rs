//! Containers that end, and kubelets and runtimes that do.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use berth_tests::Node;
use serde_json::Value;

use crate::scene::{Kubelet, container, pod};

#[test]
fn one_that_fails_is_started_again_later_and_later_and_one_that_is_done_is_not_po_08() -> Result<()>
{
    Node::test(async |node| {
        let times = node.volume("times")?;
        let kubelet = Kubelet::start(node)?;
        let text = pod(
            "job",
            &format!(
                "  restartPolicy: OnFailure\n  volumes: [{{name: t, hostPath: {{path: {}}}}}]\n  containers:\n  \
                 - {{name: done, image: busybox, command: [sh, -c, 'echo all > /dev/termination-log']}}\n  \
                 - {{name: fails, image: busybox, command: [sh, -c, 'date +%s >> /t/file; echo why; exit 3'], terminationMessagePolicy: FallbackToLogsOnError, volumeMounts: [{{name: t, mountPath: /t}}]}}",
                times.display()
            ),
        );
        kubelet.put("job.yaml", &text)?;
        let waits = |status: &Value| {
            let fails = container(status, "fails");
            fails["state"]["waiting"]["reason"] == "CrashLoopBackOff" && fails["restartCount"] == 1
        };
        let status = kubelet
            .wait("job", "waiting for the second restart", waits)
            .await?;
        ensure!(status["phase"] == "Running", "{status:#}");
        let fails = container(&status, "fails");
        let last = &fails["lastState"]["terminated"];
        ensure!(
            last["exitCode"] == 3 && last["reason"] == "Error" && last["message"] == "why\n",
            "{fails:#}"
        );
        let message = fails["state"]["waiting"]["message"]
            .as_str()
            .unwrap_or_default();
        ensure!(
            message
                .starts_with("back-off 10s restarting failed container=fails pod=job-n1_default("),
            "{message}"
        );
        kubelet
            .wait("job", "started a third time", |status| {
                container(status, "fails")["restartCount"] == 2
            })
            .await?;
        let status = kubelet
            .wait("job", "waiting again", |status| {
                container(status, "fails")["state"]["waiting"].is_object()
            })
            .await?;
        let done = container(&status, "done");
        ensure!(
            done["restartCount"] == 0
                && done["state"]["terminated"]["message"] == "all\n"
                && done["state"]["terminated"]["exitCode"] == 0,
            "{done:#}"
        );
        let starts = fs::read_to_string(times.join("file"))?;
        let starts: Vec<i64> = starts.lines().map(str::parse).collect::<Result<_, _>>()?;
        // at once, then after ten seconds; whole seconds may hide one
        ensure!(
            starts.len() == 3 && starts[1] - starts[0] < 9 && starts[2] - starts[1] >= 9,
            "{starts:?}"
        );
        kubelet.take("job.yaml")?;
        kubelet.wait_gone(node, "job").await
    })
}

#[test]
fn kill_9_of_the_kubelet_and_of_the_runtime_restarts_nothing_bo_15_rel_23() -> Result<()> {
    Node::test(async |node| {
        let mut kubelet = Kubelet::start(node)?;
        let sleeper = |name: &str| {
            pod(
                name,
                "  terminationGracePeriodSeconds: 0\n  initContainers: [{name: s, image: busybox, restartPolicy: Always, command: [sleep, '1000']}]\n  \
                 containers: [{name: a, image: busybox, command: [sleep, '1000'], readinessProbe: {exec: {command: ['true']}, periodSeconds: 60}}]",
            )
        };
        for name in ["stays", "goes", "dies"] {
            kubelet.put(&format!("{name}.yaml"), &sleeper(name))?;
        }
        for name in ["stays", "goes", "dies"] {
            kubelet.wait_ready(name).await?;
        }
        // Two of them in one directory would start everything twice.
        let second = kubelet.another()?.output()?;
        let said = String::from_utf8_lossy(&second.stderr).into_owned();
        ensure!(
            !second.status.success() && said.contains("another kubelet has"),
            "{said}"
        );

        let before = ids(node).await?;
        ensure!(before.len() == 6, "{before:?}");
        kubelet.kill_9();
        kubelet.take("goes.yaml")?;
        kubelet.put("comes.yaml", &sleeper("comes"))?;
        let dead = before.get("dies-n1/a").context("no container of dies")?;
        node.cri.stop(dead, 0).await?;
        kubelet.spawn()?;
        kubelet.wait_ready("comes").await?;
        kubelet.wait_gone(node, "goes").await?;
        kubelet
            .wait("dies", "up again", |status| {
                container(status, "a")["restartCount"] == 1
                    && container(status, "a")["ready"] == true
            })
            .await?;
        let stays = kubelet.wait_ready("stays").await?;
        ensure!(
            container(&stays, "a")["restartCount"] == 0
                && container(&stays, "s")["restartCount"] == 0,
            "{stays:#}"
        );
        let after = ids(node).await?;
        for name in ["stays-n1/a", "stays-n1/s", "dies-n1/s"] {
            ensure!(
                before.get(name) == after.get(name),
                "{name}: {before:?} {after:?}"
            );
        }

        // The runtime goes away for a while and comes back; what ended meanwhile is seen then.
        node.restart().await?;
        let dead = after.get("stays-n1/a").context("no container of stays")?;
        node.cri.stop(dead, 0).await?;
        kubelet
            .wait("stays", "up again", |status| {
                container(status, "a")["restartCount"] == 1
                    && container(status, "a")["ready"] == true
            })
            .await?;
        let last = ids(node).await?;
        for name in ["comes-n1/a", "dies-n1/a", "stays-n1/s"] {
            ensure!(
                after.get(name) == last.get(name) && last.contains_key(name),
                "{name}: {after:?} {last:?}"
            );
        }
        // Of a pod whose sandbox is killed there is a new one.
        let pods = node.cri.pods(None).await?;
        let sandbox = pods
            .iter()
            .find(|pod| {
                pod.metadata
                    .as_ref()
                    .is_some_and(|it| it.name == "comes-n1")
            })
            .context("no sandbox")?;
        node.cri.stop_pod(&sandbox.id).await?;
        kubelet
            .wait("comes", "up in a new sandbox", |status| {
                container(status, "a")["restartCount"] == 1
                    && container(status, "a")["ready"] == true
            })
            .await?;

        for name in ["stays", "dies", "comes"] {
            kubelet.take(&format!("{name}.yaml"))?;
        }
        for name in ["stays", "dies", "comes"] {
            kubelet.wait_gone(node, name).await?;
        }
        ensure!(fs::read_dir(kubelet.pods_dir())?.next().is_none());
        Ok(())
    })
}

#[test]
fn a_sandbox_that_the_runtime_makes_after_its_pod_has_ended_is_ended_too_rel_23() -> Result<()> {
    Node::test(async |node| {
        let kubelet = Kubelet::start(node)?;
        let sleeper = pod(
            "stays",
            "  terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: busybox, command: [sleep, '1000']}]",
        );
        kubelet.put("stays.yaml", &sleeper)?;
        kubelet.wait_ready("stays").await?;
        // Whoever else uses the runtime is no concern of the kubelet's.
        let other = node.cri.run_pod(&node.pod("other")).await?;
        // Asked for by a kubelet that has died meanwhile, or has waited for it long enough.
        let mut late = node.pod("late-n1");
        let dir = node.dir.join("kubelet").display().to_string();
        late.annotations.insert("berth/kubelet-dir".into(), dir);
        let uid = late.metadata.clone().context("no metadata")?.uid;
        late.labels.insert("io.kubernetes.pod.uid".into(), uid);
        for _ in 0..2 {
            node.cri.run_pod(&late).await?;
            kubelet.wait_gone(node, "late").await?;
        }
        ensure!(node.cri.pod_status(&other).await?.state == 0);
        node.cri.stop_pod(&other).await?;
        node.cri.remove_pod(&other).await?;
        kubelet.wait_ready("stays").await?;
        kubelet.take("stays.yaml")?;
        kubelet.wait_gone(node, "stays").await
    })
}

/// The containers that run, by pod and name.
async fn ids(node: &Node) -> Result<BTreeMap<String, String>> {
    let mut ids = BTreeMap::new();
    for container in node.cri.containers(None).await? {
        let status = node.cri.status(&container.id).await?;
        if status.finished_at == 0 {
            let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            let name = format!(
                "{}/{}",
                label("io.kubernetes.pod.name"),
                label("io.kubernetes.container.name")
            );
            ids.insert(name, container.id);
        }
    }
    Ok(ids)
}
