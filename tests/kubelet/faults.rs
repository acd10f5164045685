//! What goes wrong around a kubelet: its runtime, its API server, its disk, its clock, and what it is given to read.

use std::{collections::BTreeMap, fs, net::UdpSocket, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::PodSandbox;
use berth_tests::{
    Node,
    c_program::compile,
    identity::run,
    machine::patient,
    process::{self, eventually},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    line::{Is, Line},
    member::{Member, NODE},
    scene::{Kubelet, container, pod},
};

const SLEEPER: &str = "  terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

/// A request to a server, and the question for its name, are given up after twice as long.
const SOON: Duration = Duration::from_secs(5);

/// How often each pod and each container was made, by name.
async fn made(node: &Node) -> Result<BTreeMap<String, usize>> {
    let mut made = BTreeMap::new();
    for pod in node.cri.pods(None).await? {
        let name = pod.metadata.unwrap_or_default().name;
        *made.entry(name).or_default() += 1;
    }
    for container in node.cri.containers(None).await? {
        let pod = container.labels.get("io.kubernetes.pod.name");
        let name = format!("{}/a", pod.cloned().unwrap_or_default());
        *made.entry(name).or_default() += 1;
    }
    Ok(made)
}

#[test]
fn a_runtime_behind_a_bad_line_loses_nothing_and_starts_nothing_twice_rel_23() -> Result<()> {
    Node::test(async |node| {
        let at = node.dir.join("line.sock");
        let line = Line::lay(&at, &node.daemon.socket())?;
        let kubelet = Kubelet::start_at(node, &at, &[])?;
        let mut names = vec!["before"];
        kubelet.put("before.yaml", &pod("before", SLEEPER))?;
        let before = kubelet.wait_ready("before").await?;
        for (name, is) in [
            ("slow", Is::Slow(Duration::from_millis(150))),
            ("silent", Is::Silent),
            ("cut", Is::Cut),
        ] {
            line.make(is);
            kubelet.put(&format!("{name}.yaml"), &pod(name, SLEEPER))?;
            // in the midst of what it asks for; how far it comes is not the test's
            tokio::time::sleep(Duration::from_secs(3)).await;
            line.make(Is::Good);
            kubelet.wait_ready(name).await?;
            names.push(name);
        }
        // each answer of one pod's start is cut off by turns
        kubelet.put("torn.yaml", &pod("torn", SLEEPER))?;
        for _ in 0..10 {
            line.make(Is::Good);
            tokio::time::sleep(Duration::from_millis(60)).await;
            line.make(Is::Cut);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        line.make(Is::Good);
        kubelet.wait_ready("torn").await?;
        names.push("torn");

        let made = made(node).await?;
        for name in &names {
            for key in [format!("{name}-{NODE}"), format!("{name}-{NODE}/a")] {
                ensure!(made.get(&key) == Some(&1), "{key}: {made:?}");
            }
        }
        let after = kubelet.status("before").context("no status")?;
        ensure!(
            container(&after, "a")["containerID"] == container(&before, "a")["containerID"],
            "{after:#}"
        );
        line.make(Is::Cut);
        for name in &names {
            kubelet.take(&format!("{name}.yaml"))?;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        line.make(Is::Good);
        for name in &names {
            kubelet.wait_gone(node, name).await?;
        }
        Ok(())
    })
}

#[test]
fn an_api_server_that_comes_and_goes_restarts_nothing_and_is_told_all_in_the_end() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.apply("first", SLEEPER_OF_API)?;
        let first = member.wait_ready("first").await?;
        for round in 0..4 {
            member.apply(&format!("at-{round}"), SLEEPER_OF_API)?;
            // whatever it is told in this moment is cut off
            member.server.kill_9()?;
            tokio::time::sleep(Duration::from_millis(300 * round)).await;
            member.server.start_again_there()?;
        }
        for round in 0..4 {
            let it = member.wait_ready(&format!("at-{round}")).await?;
            let status = container(&it["status"], "a");
            ensure!(status["restartCount"] == 0, "{it:#}");
        }
        let again = member.server.json(&["get", "pod", "first"])?;
        ensure!(
            container(&again["status"], "a")["containerID"]
                == container(&first["status"], "a")["containerID"],
            "{again:#}"
        );
        let made = made(node).await?;
        ensure!(made.values().all(|count| *count == 1), "{made:?}");
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}

/// What is to be told is told by the next one: there is nothing to wait for.
#[test]
fn asked_to_end_it_ends_whether_or_not_its_server_answers() -> Result<()> {
    Node::test(async |node| {
        let mut member = Member::start(node).await?;
        member.apply("stays", SLEEPER_OF_API)?;
        let before = member.wait_ready("stays").await?;
        let pid = member.server.pid().context("no server")?;
        let pid = Pid::from_raw(pid).context("no process")?;
        // one that takes connections and says nothing; then one that is not there
        for silent in [true, false] {
            match silent {
                true => kill_process(pid, Signal::STOP)?,
                false => {
                    kill_process(pid, Signal::CONT)?;
                    member.server.kill_9()?;
                }
            }
            // a new pod, and one's end, are to be told of, while requests are under way
            member.kubelet.put("new.yaml", &pod("new", SLEEPER))?;
            member.kubelet.wait_ready("new").await?;
            member.kubelet.take("new.yaml")?;
            member.kubelet.wait_gone(node, "new").await?;
            let took = member.kubelet.end()?;
            ensure!(
                took < patient(SOON),
                "silent {silent}: {took:?}\n{}",
                member.kubelet.log()
            );
            member.kubelet.spawn()?;
        }
        member.server.start_again_there()?;
        let after = member.wait_ready("stays").await?;
        ensure!(
            container(&after["status"], "a")["containerID"]
                == container(&before["status"], "a")["containerID"],
            "{after:#}"
        );
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}

#[test]
fn asked_to_end_it_waits_for_no_name_server() -> Result<()> {
    Node::test(async |node| {
        let silent = UdpSocket::bind("127.0.0.1:53")?;
        silent.set_read_timeout(Some(patient(Duration::from_secs(30))))?;
        let resolver = node.dir.join("resolv.conf");
        fs::write(&resolver, "nameserver 127.0.0.1\n")?;
        let resolver = resolver.display().to_string();
        run("mount", &["--bind", &resolver, "/etc/resolv.conf"])?;
        let kubeconfig = node.dir.join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://api.example.test:6443", "insecure-skip-tls-verify": true}}],
            "users": [{"name": "c", "user": {"token": "x"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        fs::write(&kubeconfig, config.to_string())?;
        let kubeconfig = kubeconfig.display().to_string();
        let flags = ["--kubeconfig", &kubeconfig, "--listen", "127.0.0.1:0"];
        let mut kubelet = Kubelet::start_with(node, &flags)?;
        // the name is looked up at this moment, and will be for ten seconds
        silent.recv(&mut [0; 512]).context("nobody asks")?;
        let took = kubelet.end()?;
        ensure!(took < patient(SOON), "{took:?}\n{}", kubelet.log());
        run("umount", &["/etc/resolv.conf"])
    })
}

const SLEEPER_OF_API: &str = "  containers: [{name: a, image: busybox, command: [sh, -c, \"trap 'exit 0' TERM; while :; do sleep 0.1; done\"]}]";

#[test]
fn a_hundred_pods_deleted_at_once_are_all_gone_and_leave_nothing() -> Result<()> {
    const PODS: usize = 100;
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let one = |index: usize| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: many-{index}}}\nspec:\n  nodeName: {NODE}\n  terminationGracePeriodSeconds: 1\n  containers: [{{name: a, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}}]\n"
            )
        };
        let all: String = (0..PODS).map(one).collect();
        member.server.kubectl_with(&["apply", "-f", "-"], &all)?;
        // half of them are up, the others about to be
        member
            .until("half of them run", || {
                let said = member.server.kubectl(&["get", "pods", "--no-headers"])?;
                Ok(said.matches("Running").count() >= PODS / 2)
            })
            .await?;
        // by one request
        let all = "/api/v1/namespaces/default/pods";
        member.server.kubectl(&["delete", "--raw", all])?;
        member
            .until("no pod is left", || {
                let said = member.server.kubectl(&["get", "pods", "--no-headers"])?;
                Ok(said.is_empty())
            })
            .await?;
        member.kubelet.wait_empty()?;
        ensure!(
            node.cri.pods(None).await?.is_empty() && node.cri.containers(None).await?.is_empty(),
            "sandboxes or containers are left"
        );
        for dir in [member.kubelet.pods_dir(), node.dir.join("logs")] {
            let left: Vec<_> = fs::read_dir(&dir)?.flatten().map(|it| it.path()).collect();
            ensure!(left.is_empty(), "left: {left:?}");
        }
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        let pods = member.kubelet.pods_dir().display().to_string();
        ensure!(!mounts.contains(&pods), "still mounted: {mounts}");
        member.end()
    })
}

/// Its containers can't be stopped one by one any more, once their time is over their sandbox ends them; others mind nothing.
#[test]
fn a_pod_whose_shim_never_answers_again_goes_when_it_is_taken_away_rel_03() -> Result<()> {
    Node::test(async |node| {
        let kubelet = Kubelet::start(node)?;
        for name in ["deaf", "other"] {
            kubelet.put(&format!("{name}.yaml"), &pod(name, SLEEPER))?;
        }
        for name in ["deaf", "other"] {
            kubelet.wait_ready(name).await?;
        }
        let mut pods = node.cri.pods(None).await?.into_iter();
        let is_deaf = |it: &PodSandbox| {
            it.metadata
                .as_ref()
                .is_some_and(|it| it.name.starts_with("deaf"))
        };
        let id = pods.find(is_deaf).context("no sandbox")?.id;
        let mut shims = process::shims().into_iter();
        let shim = shims.find(|shim| shim.cmdline().contains(&id));
        let shim = Pid::from_raw(shim.context("no shim")?.pid).context("no pid")?;
        kill_process(shim, Signal::STOP)?;
        kubelet.take("deaf.yaml")?;
        kubelet.wait_gone(node, "deaf").await?;
        let status = kubelet.wait_ready("other").await?;
        ensure!(container(&status, "a")["restartCount"] == 0, "{status:#}");
        kubelet.take("other.yaml")?;
        kubelet.wait_empty()
    })
}

#[test]
fn on_a_full_disk_pods_go_on_and_can_end_and_new_ones_wait_for_room() -> Result<()> {
    Node::test(async |node| {
        let dir = node.dir.join("kubelet");
        fs::create_dir_all(&dir)?;
        let target = dir.display().to_string();
        run(
            "mount",
            &["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", &target],
        )?;
        let mut kubelet = Kubelet::start(node)?;
        let outcome = async {
            kubelet.put("stays.yaml", &pod("stays", SLEEPER))?;
            kubelet.put("ends.yaml", &pod("ends", SLEEPER))?;
            let stays = kubelet.wait_ready("stays").await?;
            kubelet.wait_ready("ends").await?;
            let filler = dir.join("filler");
            let filled = fs::write(&filler, vec![0; 2 << 20]);
            ensure!(filled.is_err(), "there was room for all of it");
            kubelet.put("comes.yaml", &pod("comes", SLEEPER))?;
            kubelet.take("ends.yaml")?;
            kubelet.wait_gone(node, "ends").await?;
            // what the end has given back is taken, too
            let _ = fs::File::options()
                .append(true)
                .open(&filler)
                .and_then(|mut file| std::io::Write::write_all(&mut file, &vec![0; 1 << 20]));
            ensure!(
                eventually(Duration::from_secs(20), || {
                    kubelet.log().contains("No space left on device")
                }),
                "nobody says that the disk is full: {}",
                kubelet.log()
            );
            fs::remove_file(&filler)?;
            kubelet.wait_ready("comes").await?;
            let after = kubelet.status("stays").context("no status")?;
            ensure!(
                container(&after, "a")["containerID"] == container(&stays, "a")["containerID"],
                "{after:#}"
            );
            for name in ["stays", "comes"] {
                kubelet.take(&format!("{name}.yaml"))?;
                kubelet.wait_gone(node, name).await?;
            }
            anyhow::Ok(())
        }
        .await;
        kubelet.kill_9();
        run("umount", &[&target])?;
        outcome
    })
}

/// Adds the seconds in a file to what programs are told of the time of day.
pub const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    long done = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("CLOCK_SHIFT");
    if (done || clock != CLOCK_REALTIME || !path) return done;
    char text[32] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    if (read(fd, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
    close(fd);
    return 0;
}
"#;

#[test]
fn a_clock_that_jumps_restarts_nothing_and_holds_nothing_up() -> Result<()> {
    Node::test(async |node| {
        let (library, shift) = (node.dir.join("clock.so"), node.dir.join("shift"));
        compile(CLOCK, &library, &["-shared", "-fPIC"])?;
        let set = |seconds: i64| fs::write(&shift, seconds.to_string());
        set(0)?;
        let environment = [
            ("LD_PRELOAD", library.display().to_string()),
            ("CLOCK_SHIFT", shift.display().to_string()),
        ];
        let kubelet = Kubelet::start_in(node, &node.daemon.socket(), &[], &environment)?;
        kubelet.put("stays.yaml", &pod("stays", SLEEPER))?;
        // its first end is at once, the second after the back-off
        kubelet.put(
            "fails.yaml",
            &pod("fails", "  terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: busybox, command: [sh, -c, 'sleep 1; exit 1']}]"),
        )?;
        let stays = kubelet.wait_ready("stays").await?;
        let restarts = |status: &Value| container(status, "a")["restartCount"].as_i64();
        let mut last = 0;
        for days in [1, -2] {
            set(days * 24 * 3600)?;
            let name = if days > 0 { "ahead" } else { "behind" };
            kubelet.put(&format!("{name}.yaml"), &pod(name, SLEEPER))?;
            kubelet.wait_ready(name).await?;
            let status = kubelet
                .wait("fails", "started again", |status| {
                    restarts(status) > Some(last)
                })
                .await?;
            last = restarts(&status).unwrap_or(0);
        }
        let after = kubelet.status("stays").context("no status")?;
        ensure!(
            container(&after, "a")["containerID"] == container(&stays, "a")["containerID"]
                && container(&after, "a")["restartCount"] == 0,
            "{after:#}"
        );
        for name in ["stays", "fails", "ahead", "behind"] {
            kubelet.take(&format!("{name}.yaml"))?;
            kubelet.wait_gone(node, name).await?;
        }
        Ok(())
    })
}

#[test]
fn each_mistake_in_a_manifest_is_named_with_its_file_its_field_and_its_reason() -> Result<()> {
    Node::test(async |node| {
        let kubelet = Kubelet::start(node)?;
        let container = "  containers: [{name: a, image: busybox}]";
        let with = |more: &str| pod("x", &format!("{container}\n{more}"));
        let mistakes = [
            ("no-yaml", "kind: [Pod".to_owned(), vec![]),
            ("empty", "# nothing\n".into(), vec!["no document"]),
            (
                "two",
                format!("{0}---\n{0}", pod("x", container)),
                vec!["more than one document"],
            ),
            ("no-kind", "a: 1".into(), vec!["apiVersion: v1"]),
            (
                "deployment",
                "apiVersion: apps/v1\nkind: Deployment".into(),
                vec!["Deployment of apps/v1"],
            ),
            (
                "twice",
                format!("{}kind: Pod\n", pod("x", container)),
                vec!["kind"],
            ),
            (
                "no-name",
                format!("apiVersion: v1\nkind: Pod\nspec:\n{container}"),
                vec!["metadata.name"],
            ),
            (
                "bad-name",
                pod("Not_Good", container),
                vec!["metadata.name"],
            ),
            (
                "typo",
                with("  hostNetwrk: true"),
                vec!["spec.hostNetwrk", "no such field"],
            ),
            (
                "type",
                with("  hostNetwork: maybe"),
                vec!["spec.hostNetwork"],
            ),
            (
                "no-containers",
                pod("x", "  containers: []"),
                vec!["spec.containers"],
            ),
            (
                "no-image",
                pod("x", "  containers: [{name: a}]"),
                vec!["spec.containers[0].image"],
            ),
            (
                "same-name",
                pod(
                    "x",
                    "  containers: [{name: a, image: b}, {name: a, image: b}]",
                ),
                vec!["spec.containers[1].name", "Duplicate"],
            ),
            (
                "policy",
                with("  restartPolicy: Sometimes"),
                vec!["spec.restartPolicy", "Sometimes"],
            ),
            (
                "port",
                pod(
                    "x",
                    "  containers: [{name: a, image: b, ports: [{containerPort: 70000}]}]",
                ),
                vec!["spec.containers[0].ports[0].containerPort"],
            ),
            (
                "quantity",
                pod(
                    "x",
                    "  containers: [{name: a, image: b, resources: {limits: {memory: lots}}}]",
                ),
                vec!["spec.containers[0].resources.limits"],
            ),
            (
                "request",
                pod(
                    "x",
                    "  containers: [{name: a, image: b, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]",
                ),
                vec!["spec.containers[0].resources.requests"],
            ),
            (
                "volume",
                pod(
                    "x",
                    "  containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /v}]}]",
                ),
                vec!["spec.containers[0].volumeMounts[0].name", "v"],
            ),
            (
                "probe",
                pod(
                    "x",
                    "  containers: [{name: a, image: b, livenessProbe: {periodSeconds: 1}}]",
                ),
                vec!["spec.containers[0].livenessProbe"],
            ),
            (
                "config-map",
                with("  volumes: [{name: v, configMap: {name: c}}]"),
                vec!["spec.volumes[0].configMap", "static pod"],
            ),
            (
                "git-repo",
                with("  volumes: [{name: v, gitRepo: {repository: r}}]"),
                vec!["spec.volumes[0].gitRepo"],
            ),
            (
                "account",
                with("  serviceAccountName: me"),
                vec!["spec.serviceAccountName", "static pod"],
            ),
            (
                "devices",
                pod(
                    "x",
                    "  containers: [{name: a, image: b, resources: {limits: {example.com/gpu: 1}}}]",
                ),
                vec!["example.com/gpu", "device plugins"],
            ),
        ];
        for (name, text, _) in &mistakes {
            kubelet.put(&format!("{name}.yaml"), text)?;
        }
        fs::create_dir(node.dir.join("manifests/directory.yaml"))?;
        fs::write(node.dir.join("manifests/binary.yaml"), [0xff, 0xfe, 0])?;
        let long = fs::File::create(node.dir.join("manifests/long.yaml"))?;
        long.set_len(4 << 20)?;
        run(
            "mkfifo",
            &[&node.dir.join("manifests/fifo.yaml").display().to_string()],
        )?;
        kubelet.put("good.yaml", &pod("good", SLEEPER))?;
        kubelet.wait_ready("good").await?;

        let log = kubelet.log();
        // an error is what follows its file's name, until the next line of the log
        let said = |name: &str| {
            let file = format!("manifests/{name}.yaml");
            let from = log.find(&file).map(|at| &log[at..]);
            let lines = from.into_iter().flat_map(str::lines).enumerate();
            let own = lines.take_while(|(at, line)| *at == 0 || line.starts_with("  "));
            own.map(|(_, line)| format!("{line}\n")).collect::<String>()
        };
        for (name, _, words) in &mistakes {
            let said = said(name);
            ensure!(!said.is_empty(), "{name}.yaml is not named in {log}");
            for word in words {
                ensure!(said.contains(word), "no {word:?} for {name}.yaml in {said}");
            }
        }
        for (name, word) in [("binary", "UTF-8"), ("long", "bytes"), ("fifo", "no file")] {
            let line = log
                .lines()
                .find(|line| line.contains(&format!("{name}.yaml")));
            ensure!(
                line.is_some_and(|line| line.contains(word)),
                "{name}: {line:?}"
            );
        }
        ensure!(
            made(node).await?.len() == 2,
            "a pod of a bad manifest was made"
        );
        kubelet.take("good.yaml")?;
        kubelet.wait_gone(node, "good").await
    })
}
