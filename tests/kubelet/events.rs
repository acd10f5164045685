//! What happens to pods and to the node, as people see it: events of upstream's reasons, in its words.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, Setup, cgroup, cni, identity::run, process::eventually};
use serde_json::Value;

use crate::{
    limits,
    losses::Losses,
    member::{Member, NODE},
    scene::{Kubelet, container, pod},
};

/// All events about `name`: type, reason, message.
pub fn events(member: &Member, name: &str) -> Result<Vec<String>> {
    let about = format!("involvedObject.name={name}");
    let all = member
        .server
        .json(&["get", "events", "-A", "--field-selector", &about])?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let lines = all.iter().map(|event| {
        let field = text(&event["involvedObject"], "fieldPath");
        let (kind, reason, message) = (
            text(event, "type"),
            text(event, "reason"),
            text(event, "message"),
        );
        format!("{kind} {reason} [{field}] {message}")
    });
    Ok(lines.collect())
}

/// Waits until all of these have been told; each is how an event begins.
pub async fn told(member: &Member, name: &str, wanted: &[&str]) -> Result<()> {
    let mut last = (Vec::new(), Vec::new());
    let waited = member
        .until(&format!("of {name} all is told"), || {
            let all = events(member, name)?;
            let is_told = |one: &&&str| all.iter().any(|event| event.starts_with(**one));
            let lacks: Vec<_> = wanted.iter().filter(|one| !is_told(one)).collect();
            let done = lacks.is_empty();
            last = (lacks.into_iter().map(|it| (*it).to_owned()).collect(), all);
            Ok(done)
        })
        .await;
    waited.with_context(|| format!("of {name} it lacks {:#?} in {:#?}", last.0, last.1))
}

#[test]
fn what_happens_to_pods_and_to_the_node_is_told_in_upstreams_words() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let ready =
            |reason: &str| format!("Normal {reason} [] Node {NODE} status is now: {reason}");
        #[rustfmt::skip]
        told(&member, NODE, &[
            "Normal Starting [] Starting kubelet.", "Normal NodeAllocatableEnforced [] Updated Node Allocatable limit across pods",
            &ready("NodeHasSufficientMemory"), &ready("NodeHasNoDiskPressure"), &ready("NodeHasSufficientPID"), &ready("NodeReady"),
        ]).await?;
        member.server.kubectl(&["cordon", NODE])?;
        told(&member, NODE, &[&ready("NodeNotSchedulable")]).await?;
        member.server.kubectl(&["uncordon", NODE])?;
        told(&member, NODE, &[&ready("NodeSchedulable")]).await?;

        let sleeper = "image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']";
        let pods = [
            ("fails", "  containers: [{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'exit 1']}]".to_owned()),
            ("nowhere", "  imagePullSecrets: [{name: lost}]\n  containers: [{name: a, image: 'localhost:1/none:1'}]".to_owned()),
            ("never", "  containers: [{name: a, image: 'localhost:1/none:1', imagePullPolicy: Never}]".to_owned()),
            ("sick", format!("  containers: [{{name: a, {sleeper}, livenessProbe: {{exec: {{command: ['false']}}, periodSeconds: 1, failureThreshold: 1}}}}]")),
            ("hooked", format!("  containers: [{{name: a, {sleeper}, lifecycle: {{postStart: {{exec: {{command: [sh, -c, 'exit 3']}}}}}}}}]")),
            ("unhooked", format!("  terminationGracePeriodSeconds: 1\n  containers: [{{name: a, {sleeper}, lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'exit 4']}}}}}}}}]")),
            ("unmade", format!("  volumes: [{{name: v, hostPath: {{path: /nonexistent/here, type: Directory}}}}]\n  containers: [{{name: a, {sleeper}}}]")),
            ("plain", format!("  initContainers: [{{name: i, image: busybox, imagePullPolicy: IfNotPresent, command: ['true']}}]\n  containers: [{{name: a, {sleeper}}}]")),
        ];
        for (name, spec) in &pods {
            member.apply(name, spec)?;
        }
        member.wait_ready("plain").await?;
        member.wait_ready("unhooked").await?;
        let uid = member.server.json(&["get", "pod", "fails"])?;
        let uid = uid["metadata"]["uid"]
            .as_str()
            .context("no uid")?
            .to_owned();
        let back_off = format!(
            "Warning BackOff [spec.containers{{a}}] Back-off restarting failed container a in pod fails_default({uid})"
        );
        #[rustfmt::skip]
        let wanted = [
            ("plain", vec![
                "Normal Pulled [spec.initContainers{i}] Container image \"busybox\" already present on machine",
                "Normal Created [spec.initContainers{i}] Container created", "Normal Started [spec.initContainers{i}] Container started",
                "Normal Created [spec.containers{a}] Container created", "Normal Started [spec.containers{a}] Container started",
            ]),
            ("fails", vec!["Normal Created [spec.containers{a}] Container created", back_off.as_str()]),
            ("nowhere", vec![
                "Warning FailedToRetrieveImagePullSecret [] Unable to retrieve some image pull secrets (lost); attempting to pull the image may not succeed.",
                "Normal Pulling [spec.containers{a}] Pulling image \"localhost:1/none:1\"",
                "Warning Failed [spec.containers{a}] Failed to pull image \"localhost:1/none:1\": ", "Warning Failed [spec.containers{a}] Error: ErrImagePull",
                "Normal BackOff [spec.containers{a}] Back-off pulling image \"localhost:1/none:1\"", "Warning Failed [spec.containers{a}] Error: ImagePullBackOff",
            ]),
            ("never", vec![
                "Warning ErrImageNeverPull [spec.containers{a}] Container image \"localhost:1/none:1\" is not present with pull policy of Never",
                "Warning Failed [spec.containers{a}] Error: ErrImageNeverPull",
            ]),
            ("sick", vec![
                "Warning Unhealthy [spec.containers{a}] Liveness probe failed: ", "Normal Killing [spec.containers{a}] Container a failed liveness probe, will be restarted",
            ]),
            ("hooked", vec![
                "Warning FailedPostStartHook [spec.containers{a}] PostStartHook failed: ", "Normal Killing [spec.containers{a}] FailedPostStartHook",
            ]),
            ("unmade", vec!["Warning FailedMount [] MountVolume.SetUp failed for volume \"v\""]),
        ];
        for (name, wanted) in &wanted {
            told(&member, name, wanted).await?;
        }

        // its sandbox dies
        let sandboxes = node.cri.pods(None).await?;
        let of_plain = |it: &&berth_proto::cri::PodSandbox| {
            it.metadata.as_ref().is_some_and(|it| it.name == "plain")
        };
        let sandbox = sandboxes.iter().find(of_plain).context("no sandbox")?;
        node.cri.stop_pod(&sandbox.id).await?;
        let changed =
            "Normal SandboxChanged [] Pod sandbox changed, it will be killed and re-created.";
        told(&member, "plain", &[changed]).await?;
        // what is not up again is not stopped either
        let again = |it: &Value| {
            let one = container(&it["status"], "a");
            one["restartCount"] == 1 && one["ready"] == true
        };
        member.wait("pod", "plain", "up again", again).await?;
        member.server.kubectl(&["delete", "pods", "--all"])?;
        told(
            &member,
            "plain",
            &["Normal Killing [spec.containers{a}] Stopping container a"],
        )
        .await?;
        let late = "Warning FailedPreStopHook [spec.containers{a}] PreStopHook failed: ";
        told(&member, "unhooked", &[late]).await?;
        let all = events(&member, "plain")?;
        ensure!(!all.iter().any(|it| it.contains(" Removed ")), "{all:#?}");
        member.end()
    })
}

const SLEEPER: &str = "  terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

#[test]
fn without_a_network_pods_wait_and_say_why_and_those_of_the_nodes_own_run() -> Result<()> {
    let setup = Setup {
        network: "builtin = false\ncni_bin_dirs = [\"$DIR/plugins\"]".into(),
        ..Setup::default()
    };
    Node::test_with(setup, async |node| {
        let kubelet = Kubelet::start(node)?;
        kubelet.put("needs.yaml", &pod("needs", SLEEPER))?;
        let own = format!("  hostNetwork: true\n{SLEEPER}");
        kubelet.put("own.yaml", &pod("own", &own))?;
        kubelet.wait_ready("own").await?;
        let why = "network is not ready: container runtime network not ready: NetworkReady=false reason:NetworkNotReady message:";
        let waits = |status: &Value| {
            let waiting = &container(status, "a")["state"]["waiting"];
            let said = waiting["message"].as_str().unwrap_or_default();
            waiting["reason"] == "ContainerCreating" && said.starts_with(why)
        };
        kubelet
            .wait("needs", "waiting for a network", waits)
            .await?;
        let log = kubelet.log();
        ensure!(
            log.lines()
                .any(|line| line.contains("NetworkNotReady") && line.contains(why)),
            "{log}"
        );
        let sandboxes = node.cri.pods(None).await?;
        ensure!(sandboxes.len() == 1, "it was tried: {sandboxes:#?}");
        // an installer has come
        cni::fake(&node.dir)?;
        kubelet.wait_ready("needs").await?;
        for name in ["needs", "own"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        kubelet.wait_empty()
    })
}

#[test]
fn more_servers_and_domains_than_a_resolver_takes_are_left_out_and_told() -> Result<()> {
    Node::test(async |node| {
        let resolver = node.dir.join("resolv.conf");
        fs::write(
            &resolver,
            "nameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch node.test\n",
        )?;
        let resolver = resolver.display().to_string();
        run("mount", &["--bind", &resolver, "/etc/resolv.conf"])?;
        let member = Member::start(node).await?;
        let domains: Vec<String> = (0..32).map(|at| format!("d{at}.test")).collect();
        let spec = format!(
            "  dnsPolicy: Default\n  dnsConfig: {{nameservers: [192.0.2.3, 192.0.2.4], searches: [{}]}}\n{SLEEPER}",
            domains.join(", ")
        );
        member.apply(
            "many",
            &spec.replace("  terminationGracePeriodSeconds: 0\n", ""),
        )?;
        member.wait_ready("many").await?;
        let line = format!("node.test {}", domains[..31].join(" "));
        told(
            &member,
            "many",
            &[
                "Warning DNSConfigForming [] Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 192.0.2.1 192.0.2.2 192.0.2.3",
                &format!("Warning DNSConfigForming [] Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"),
            ],
        )
        .await?;
        let has = member
            .server
            .kubectl(&["exec", "many", "--", "cat", "/etc/resolv.conf"])?;
        ensure!(
            has.matches("nameserver ").count() == 3 && has.contains(&format!("search {line}\n")),
            "{has}"
        );
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()?;
        run("umount", &["/etc/resolv.conf"])
    })
}

#[test]
fn a_process_of_no_pod_that_the_kernel_kills_for_memory_is_told_of() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        // beside the pods, within its own limit: whoever else runs here has nothing to fear
        let limit = limits::path(
            node,
            "memory",
            "greedy",
            "memory.limit_in_bytes",
            "memory.max",
        );
        let procs = limit.with_file_name("cgroup.procs");
        let dir = limit.parent().context("no directory")?;
        fs::create_dir(dir)?;
        fs::write(&limit, (16 << 20).to_string())?;
        for swap in ["memory.swap.max", "memory.swappiness"] {
            let swap = dir.join(swap);
            if swap.exists() {
                fs::write(swap, "0")?;
            }
        }
        let enter = format!("echo $$ > {}; exec tail /dev/zero", procs.display());
        let outcome = member
            .until("it is told of", || {
                // the kernel tells so many in a while and no more: each is another chance
                let ended = Command::new("sh")
                    .args(["-c", &enter])
                    .stderr(Stdio::null())
                    .status()?;
                ensure!(!ended.success(), "it had all that it wanted");
                let words =
                    "Warning SystemOOM [] System OOM encountered, victim process: tail, pid: ";
                Ok(eventually(Duration::from_secs(5), || {
                    let all = events(&member, NODE).unwrap_or_default();
                    all.iter().any(|event| event.starts_with(words))
                }))
            })
            .await;
        cgroup::remove(&node.own_cgroup_parent("greedy"))?;
        outcome?;
        member.end()
    })
}

#[test]
fn what_the_runtime_refuses_is_told_and_tried_again() -> Result<()> {
    Node::test(async |node| {
        let at = node.dir.join("line.sock");
        let line = Losses::lay(&at, &node.daemon.socket(), None)?;
        let kubelet = Kubelet::start_at(node, &at, &[])?;
        let is_logged = |reason: &str, words: &str| {
            eventually(Duration::from_secs(20), || {
                let log = kubelet.log();
                let quoted = format!("reason={reason:?}");
                log.lines()
                    .any(|line| line.contains(&quoted) && line.contains(words))
            })
        };
        line.refuse("ImageStatus", true);
        kubelet.put("a.yaml", &pod("a", SLEEPER))?;
        let waits = |status: &Value| {
            container(status, "a")["state"]["waiting"]["reason"] == "ImageInspectError"
        };
        kubelet.wait("a", "without its image", waits).await?;
        ensure!(
            is_logged("InspectFailed", "Failed to inspect image \"busybox\": "),
            "{}",
            kubelet.log()
        );
        line.refuse("ImageStatus", false);
        kubelet.wait_ready("a").await?;
        line.refuse("StopPodSandbox", true);
        kubelet.take("a.yaml")?;
        ensure!(
            is_logged("FailedKillPod", "error killing pod: "),
            "{}",
            kubelet.log()
        );
        line.refuse("StopPodSandbox", false);
        kubelet.wait_gone(node, "a").await?;
        let told = kubelet.log().matches("reason=\"FailedKillPod\"").count();
        ensure!(told == 1, "it was told {told} times\n{}", kubelet.log());
        kubelet.wait_empty()
    })
}

#[test]
fn a_node_that_was_rebooted_since_it_was_told_of_last_is_told_of() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.kubelet.end()?;
        let patch = "{\"status\":{\"nodeInfo\":{\"bootID\":\"another\"}}}";
        member.server.kubectl(&[
            "patch",
            "node",
            NODE,
            "--subresource=status",
            "--type=merge",
            "-p",
            patch,
        ])?;
        member.kubelet.spawn()?;
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let words = format!(
            "Warning Rebooted [] Node {NODE} has been rebooted, boot id: {}",
            boot.trim()
        );
        told(&member, NODE, &[&words]).await?;
        member.end()
    })
}
