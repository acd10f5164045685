//! Each call to the runtime is done, and its answer is lost once.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use berth_tests::{Node, process::eventually};
use serde_json::Value;

use crate::{
    losses::{Loss, Losses},
    scene::{Kubelet, condition, container, pod},
};

/// What a start, a life and an end ask of a runtime. Versions and the like are asked for more often than pods are.
const CALLS: [&str; 17] = [
    "Version",
    "RuntimeConfig",
    "GetContainerEvents",
    "ListPodSandbox",
    "ListContainers",
    "PodSandboxStatus",
    "ContainerStatus",
    "RunPodSandbox",
    "ImageStatus",
    "PullImage",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
];

/// Each container says once in the file `starts` that it has begun.
fn pods(dir: &Path) -> Vec<(&'static str, String)> {
    let starts = dir.display();
    let says = |name: &str, then: &str| {
        format!(
            "command: [sh, -c, 'echo {name} >> /s/starts; {then}'], volumeMounts: [{{name: s, mountPath: /s}}]"
        )
    };
    let rests = |name: &str| says(name, "exec sleep 1000");
    let with = |policy: &str, inits: &str, containers: &str| {
        format!(
            "  terminationGracePeriodSeconds: 1\n  restartPolicy: {policy}\n  \
             volumes: [{{name: s, hostPath: {{path: {starts}}}}}, {{name: e, emptyDir: {{}}}}, {{name: d, downwardAPI: {{items: [{{path: name, fieldRef: {{fieldPath: metadata.name}}}}]}}}}]\n  \
             initContainers: [{inits}]\n  containers: [{containers}]"
        )
    };
    let image = "image: busybox, imagePullPolicy: IfNotPresent";
    let all = [
        (
            "inits",
            with(
                "Always",
                &format!(
                    "{{name: one, {image}, {}}}, {{name: two, {image}, {}}}",
                    says("inits-one", "true"),
                    says("inits-two", "true")
                ),
                &format!("{{name: a, {image}, {}}}", rests("inits-a")),
            ),
        ),
        (
            "sidecar",
            with(
                "Always",
                &format!(
                    "{{name: side, {image}, restartPolicy: Always, startupProbe: {{exec: {{command: ['true']}}, timeoutSeconds: 60, periodSeconds: 1}}, {}}}",
                    rests("sidecar-side")
                ),
                &format!("{{name: a, {image}, {}}}", rests("sidecar-a")),
            ),
        ),
        (
            "probed",
            with(
                "Always",
                "",
                &format!(
                    "{{name: a, {image}, readinessProbe: {{exec: {{command: ['true']}}, timeoutSeconds: 60, periodSeconds: 1}}, livenessProbe: {{exec: {{command: ['true']}}, timeoutSeconds: 60, periodSeconds: 1, failureThreshold: 1}}, {}}}",
                    rests("probed-a")
                ),
            ),
        ),
        (
            "hooked",
            with(
                "Always",
                "",
                &format!(
                    "{{name: a, {image}, lifecycle: {{postStart: {{exec: {{command: [sh, -c, 'echo started >> /s/hooks']}}}}, preStop: {{exec: {{command: [sh, -c, 'echo stops >> /s/hooks']}}}}}}, {}}}",
                    rests("hooked-a")
                ),
            ),
        ),
        (
            "volumes",
            with(
                "Always",
                "",
                "{name: a, image: busybox, imagePullPolicy: Always, command: [sh, -c, 'echo volumes-a >> /s/starts; cat /d/name > /e/name; exec sleep 1000'], volumeMounts: [{name: s, mountPath: /s}, {name: e, mountPath: /e}, {name: d, mountPath: /d}]}",
            ),
        ),
        (
            "job",
            with(
                "OnFailure",
                "",
                &format!("{{name: a, {image}, {}}}", says("job-a", "true")),
            ),
        ),
        (
            "once",
            with(
                "Never",
                "",
                &format!("{{name: a, {image}, {}}}", says("once-a", "exit 3")),
            ),
        ),
    ];
    all.into_iter()
        .map(|(name, spec)| (name, pod(name, &spec)))
        .collect()
}

/// How often each has begun.
fn starts(dir: &Path) -> BTreeMap<String, usize> {
    let mut starts = BTreeMap::new();
    let said = fs::read_to_string(dir.join("starts")).unwrap_or_default();
    for name in said.lines() {
        *starts.entry(name.to_owned()).or_default() += 1;
    }
    starts
}

fn is_as_wanted(name: &str, status: &Value) -> bool {
    match name {
        "job" => status["phase"] == "Succeeded",
        "once" => status["phase"] == "Failed",
        _ => condition(status, "Ready") == "True",
    }
}

fn pods_come_once_and_go(loss: Loss) -> Result<()> {
    Node::test(async |node| {
        let dir = node.volume("said")?;
        let at = node.dir.join("losses.sock");
        let line = Losses::lay(&at, &node.daemon.socket(), Some(loss))?;
        let kubelet = Kubelet::start_at(node, &at, &[])?;
        let pods = pods(&dir);
        for (name, text) in &pods {
            kubelet.put(&format!("{name}.yaml"), text)?;
        }
        for (name, _) in &pods {
            let is = |status: &Value| is_as_wanted(name, status);
            kubelet.wait(name, "as it should be", is).await?;
        }
        let began = starts(&dir);
        let wanted = [
            "hooked-a",
            "inits-a",
            "inits-one",
            "inits-two",
            "job-a",
            "once-a",
            "probed-a",
            "sidecar-a",
            "sidecar-side",
            "volumes-a",
        ];
        ensure!(
            began.keys().eq(wanted) && began.values().all(|count| *count == 1),
            "{began:?}\n{}",
            kubelet.log()
        );
        for (name, _) in &pods {
            let status = kubelet.status(name).unwrap_or_default();
            for one in ["a", "one", "two", "side"] {
                let restarts = &container(&status, one)["restartCount"];
                ensure!(restarts.is_null() || *restarts == 0, "{name}: {status:#}");
            }
        }
        let mut made = node.cri.containers(None).await?;
        made.retain(|one| one.metadata.as_ref().is_none_or(|it| it.attempt != 0));
        ensure!(made.is_empty(), "{made:#?}");
        let sandboxes = node.cri.pods(None).await?;
        ensure!(sandboxes.len() == pods.len(), "{sandboxes:#?}");
        // at least once
        let hooks = || fs::read_to_string(dir.join("hooks")).unwrap_or_default();
        ensure!(hooks().contains("started"), "{}", kubelet.log());

        for (name, _) in &pods {
            kubelet.take(&format!("{name}.yaml"))?;
        }
        for (name, _) in &pods {
            kubelet.wait_gone(node, name).await?;
        }
        ensure!(hooks().contains("stops"), "{}", hooks());
        ensure!(starts(&dir) == began, "{:?}", starts(&dir));
        ensure!(
            node.cri.containers(None).await?.is_empty() && node.cri.pods(None).await?.is_empty(),
            "something is left in the runtime"
        );
        ensure!(fs::read_dir(kubelet.pods_dir())?.next().is_none());
        let all_lost = eventually(Duration::from_secs(20), || {
            let lost = line.lost();
            CALLS.iter().all(|call| lost.contains(*call))
        });
        ensure!(all_lost, "only these were lost: {:?}", line.lost());
        kubelet.wait_empty()
    })
}

#[test]
fn of_each_call_an_answer_is_lost_and_pods_come_once_and_go_rel_23() -> Result<()> {
    pods_come_once_and_go(Loss::Unavailable)
}

#[test]
fn of_each_call_an_answer_is_lost_with_its_line_and_pods_come_once_and_go_rel_23() -> Result<()> {
    pods_come_once_and_go(Loss::Cut)
}
