//! `berth run` against a real daemon, while somebody is there: what is told, followed, restarted, and what is left at Ctrl-C.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{Node, daemon::bin_dir, process::eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    berth_cli::{Answer, berth, endpoint, fails, is_empty, logs_of, pod, succeeds, unique, write},
    kernel_floor::version,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A `berth run` that goes on; killed when it is dropped.
struct Attached {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Attached {
    fn start(node: &Node, manifest: &str, flags: &[&str]) -> Result<Self> {
        let file = write(node, "attached.yaml", manifest)?;
        let (out, err) = (node.dir.join("run.out"), node.dir.join("run.err"));
        let child = Command::new(bin_dir()?.join("berth"))
            .args(["--endpoint", &endpoint(node), "run", &file])
            .args(["--volumes-dir", &volumes(node)])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?)
            .spawn()
            .context("start berth run")?;
        Ok(Self { child, out, err })
    }

    fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// Waits until it has written all of these, wherever.
    fn wait_for(&self, words: &[&str]) -> Result<()> {
        let has_all = || {
            let all = self.out() + &self.err();
            words.iter().all(|word| all.contains(word))
        };
        ensure!(
            eventually(LIMIT, has_all),
            "not all of {words:?}:\n{}\n{}",
            self.out(),
            self.err()
        );
        Ok(())
    }

    fn interrupt(&self) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT)?)
    }

    fn end(mut self) -> Result<Answer> {
        let mut code = None;
        let ended = eventually(LIMIT, || {
            code = self.child.try_wait().ok().flatten();
            code.is_some()
        });
        let (out, err) = (self.out(), self.err());
        if !ended {
            bail!("berth run does not end:\n{out}\n{err}");
        }
        let code = code.and_then(|status| status.code());
        Ok(Answer { code, out, err })
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn volumes(node: &Node) -> String {
    node.dir.join("run-volumes").display().to_string()
}

async fn nothing_is_left(node: &Node, name: &str) -> Result<()> {
    let pods = node.cri.pods(None).await?;
    let volumes = node.dir.join("run-volumes");
    ensure!(
        pods.is_empty() && logs_of(name).is_empty() && is_empty(&volumes),
        "left: {pods:?} {:?} {:?}",
        logs_of(name),
        fs::read_dir(volumes)
    );
    Ok(())
}

fn status(node: &Node, name: &str) -> Result<Value> {
    let text = succeeds(node, &["-o", "json", "pod", "status", name])?;
    Ok(serde_json::from_str(&text)?)
}

#[test]
fn who_is_there_sees_what_happens_and_what_is_written_and_leaves_the_pod_at_ctrl_c() -> Result<()> {
    Node::test(async |node| {
        let name = unique("attached");
        let manifest = format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  tolerations: [{{operator: Exists}}]
  initContainers:
  - {{name: first, image: busybox, command: [sh, -c, 'echo prepared']}}
  - {{name: side, image: busybox, restartPolicy: Always, command: [sh, -c, 'echo beside; exec sleep 1000']}}
  containers:
  - name: web
    image: busybox
    command: [sh, -c, 'test -e /v/second || {{ touch /v/second; echo once; exit 3; }}; echo again; exec sleep 1000']
    volumeMounts: [{{name: v, mountPath: /v}}]
  volumes: [{{name: v, emptyDir: {{}}}}]
"
        );
        let run = Attached::start(node, &manifest, &[])?;
        // The restart policy is acted on; init containers come before the others, and their output with their names.
        run.wait_for(&[
            "spec.tolerations: ignored",
            "berth: first: Pulling image \"busybox\"",
            "first | prepared\n",
            "berth: first: Ended (0)",
            "side  | beside\n",
            "web   | once\n",
            "berth: web: Ended (3)",
            "web   | again\n",
            "The pod is up",
        ])?;
        let (out, err) = (run.out(), run.err());
        ensure!(!out.contains("berth: "), "only the containers' own: {out}");
        let order = ["first: Started", "side: Started", "web: Started"].map(|it| err.find(it));
        ensure!(order.is_sorted() && order[0].is_some(), "{err}");
        // Progress of the layers, without a terminal a line a stage.
        ensure!(err.contains("busybox: ") && err.contains(" done"), "{err}");
        run.interrupt()?;
        let answer = run.end()?;
        for word in [
            "goes on",
            "berth pod status",
            "berth logs -f",
            "berth pod remove",
        ] {
            ensure!(answer.err.contains(word), "no {word:?}: {answer:?}");
        }
        ensure!(answer.code == Some(0), "{answer:?}");
        let status = status(node, &name)?;
        let running = |name: &str| {
            let all = status["containers"].as_array().into_iter().flatten();
            all.filter(|one| one["name"] == name && one["state"] == "Running")
                .count()
        };
        ensure!(
            status["state"] == "Ready" && running("web") == 1 && running("side") == 1,
            "{status}"
        );
        succeeds(
            node,
            &["pod", "remove", &name, "--volumes-dir", &volumes(node)],
        )?;
        nothing_is_left(node, &name).await
    })
}

#[test]
fn at_ctrl_c_a_pod_that_is_to_be_removed_ends_within_its_grace_and_says_its_last_words()
-> Result<()> {
    Node::test(async |node| {
        let name = unique("graceful");
        let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
        let manifest = pod(
            &name,
            &format!(
                "image: busybox\ncommand: [sh, -c, \"{script}\"]\nlifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo stopping >/proc/1/fd/1']}}}}}}"
            ),
        );
        let run = Attached::start(node, &manifest, &["--rm"])?;
        run.wait_for(&["up\n", "The pod is up"])?;
        run.interrupt()?;
        let answer = run.end()?;
        // one container alone has no name in front
        ensure!(
            answer.code == Some(0) && answer.out == "up\nstopping\nbye\n",
            "{answer:?}"
        );
        nothing_is_left(node, &name).await
    })
}

#[test]
fn a_pod_that_is_interrupted_before_it_is_up_is_taken_back() -> Result<()> {
    Node::test(async |node| {
        let name = unique("early");
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  initContainers:\n  \
             - {{name: first, image: busybox, command: [sh, -c, 'echo waiting; sleep 1000']}}\n  containers: [{{name: a, image: busybox}}]\n"
        );
        for flags in [&[][..], &["--detach"]] {
            let run = Attached::start(node, &manifest, flags)?;
            run.wait_for(&["first: Started"])?;
            run.interrupt()?;
            let answer = run.end()?;
            ensure!(
                answer.code == Some(1) && answer.err.contains("stopped by a signal"),
                "{answer:?}"
            );
            nothing_is_left(node, &name).await?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_somebody_else_stops_or_removes_stays_so() -> Result<()> {
    Node::test(async |node| {
        for verb in ["stop", "remove"] {
            let name = unique(verb);
            let manifest = pod(
                &name,
                "image: busybox\ncommand: [sh, -c, 'echo up; exec sleep 1000']",
            );
            let run = Attached::start(node, &manifest, &[])?;
            run.wait_for(&["up\n"])?;
            let volumes = volumes(node);
            let mut other = vec!["pod", verb, &name];
            if verb == "remove" {
                other.extend(["--volumes-dir", &volumes]);
            }
            succeeds(node, &other)?;
            let answer = run.end()?;
            ensure!(answer.code.is_some_and(|code| code != 0), "{answer:?}");
            if verb == "stop" {
                ensure!(status(node, &name)?["state"] == "NotReady");
                succeeds(node, &["pod", "remove", &name, "--volumes-dir", &volumes])?;
            }
            nothing_is_left(node, &name).await?;
        }
        Ok(())
    })
}

#[test]
fn a_file_may_have_what_its_pod_refers_to_and_the_answer_is_one_document() -> Result<()> {
    Node::test(async |node| {
        let name = unique("whole");
        // What the kernel lacks is refused to a pod with users of its own; the rest holds anyway.
        let release = nix::sys::utsname::uname()?;
        let release = release.release().to_string_lossy();
        let (host_users, least, map) = match version(&release) >= Some((6, 3)) {
            true => (false, 65_536, "0 65536"),
            false => {
                eprintln!("skipped: this kernel can't map the ids of a tmpfs (Linux 6.3)");
                (true, 0, "0 4294967295")
            }
        };
        let manifest = format!(
            "apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: green}}
---
apiVersion: v1
kind: Secret
metadata: {{name: key}}
stringData: {{word: sesame}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  restartPolicy: Never
  hostUsers: {host_users}
  securityContext: {{fsGroup: 1234}}
  volumes:
  - {{name: m, emptyDir: {{medium: Memory, sizeLimit: 1Mi}}}}
  - {{name: d, emptyDir: {{}}}}
  - {{name: s, secret: {{secretName: key}}}}
  containers:
  - name: a
    image: busybox
    env: [{{name: COLOUR, valueFrom: {{configMapKeyRef: {{name: settings, key: colour}}}}}}]
    command: [sh, -c, 'echo $COLOUR $(cat /s/word); read inside outside count < /proc/self/uid_map; echo $inside $count; test $outside -ge {least} && touch /m/x /d/x && stat -c %u:%g /d/x && echo why > /dev/termination-log; exit 5']
    volumeMounts: [{{name: m, mountPath: /m}}, {{name: d, mountPath: /d}}, {{name: s, mountPath: /s}}]
"
        );
        // Where it all lies may be behind a link: what is mounted there is found all the same.
        fs::create_dir(node.dir.join("elsewhere"))?;
        std::os::unix::fs::symlink(node.dir.join("elsewhere"), volumes(node))?;
        for flags in [&["-o", "json"][..], &["-o", "json", "--wait", "--rm"]] {
            let answer = Attached::start(node, &manifest, flags)?.end()?;
            ensure!(answer.code == Some(5), "{answer:?}");
            let document: Value = serde_json::from_str(&answer.out)
                .with_context(|| format!("not one document: {answer:?}"))?;
            ensure!(
                document["name"] == name.as_str()
                    && document["state"] == "NotReady"
                    && document["containers"][0]["exit_code"] == 5,
                "{document}"
            );
            if !flags.contains(&"--rm") {
                // What it wrote is beside the document, and what is told of the pod may stand between its lines.
                let written: String = answer
                    .err
                    .split_inclusive('\n')
                    .filter(|line| !line.starts_with("berth: "))
                    .collect();
                ensure!(
                    written.ends_with(&format!("green sesame\n{map}\n0:1234\n")),
                    "{answer:?}"
                );
                succeeds(
                    node,
                    &["pod", "remove", &name, "--volumes-dir", &volumes(node)],
                )?;
            }
            nothing_is_left(node, &name).await?;
        }
        Ok(())
    })
}

#[test]
fn what_has_no_end_is_not_waited_for_and_a_policy_of_the_command_line_counts() -> Result<()> {
    Node::test(async |node| {
        let name = unique("policy");
        let manifest = pod(&name, "image: busybox\nimagePullPolicy: Always");
        let answer = Attached::start(node, &manifest, &["--wait"])?.end()?;
        fails(&answer, 1, &["spec.restartPolicy", "Never or OnFailure"])?;
        let answer = Attached::start(node, &manifest, &["--pull", "never"])?.end()?;
        fails(&answer, 1, &["busybox", "pull policy of Never"])?;
        nothing_is_left(node, &name).await?;

        // By its log, who has left is nobody: the pod goes on as after Ctrl-C.
        let manifest = pod(
            &name,
            "image: busybox\ncommand: [sh, -c, 'while :; do echo line; sleep 0.05; done']",
        );
        let file = write(node, "pod.yaml", &manifest)?;
        let berth_run = bin_dir()?.join("berth").display().to_string();
        let piped = format!(
            "{berth_run} --endpoint {} run {file} --volumes-dir {} | head -n 3",
            endpoint(node),
            volumes(node)
        );
        let output = Command::new("sh").args(["-c", &piped]).output()?;
        ensure!(output.stdout == b"line\nline\nline\n", "{output:?}");
        ensure!(status(node, &name)?["state"] == "Ready");
        let removed = berth(
            node,
            &["pod", "remove", &name, "--volumes-dir", &volumes(node)],
        )?;
        ensure!(removed.code == Some(0), "{removed:?}");
        nothing_is_left(node, &name).await
    })
}
