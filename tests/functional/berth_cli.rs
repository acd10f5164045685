//! The `berth` command against a real daemon: a pod from a manifest and all that a person does with it, and what it answers to
//! mistakes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, daemon::bin_dir, process};
use serde_json::Value;

/// What a command ended with and wrote.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn berth_at(endpoint: &str, args: &[&str]) -> Result<Answer> {
    let output = Command::new(bin_dir()?.join("berth"))
        .args(["--endpoint", endpoint])
        .args(args)
        .output()
        .context("run berth")?;
    Ok(Answer {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

pub fn endpoint(node: &Node) -> String {
    format!("unix://{}", node.daemon.socket().display())
}

pub fn berth(node: &Node, args: &[&str]) -> Result<Answer> {
    berth_at(&endpoint(node), args)
}

/// The standard output of a command that must succeed.
pub fn succeeds(node: &Node, args: &[&str]) -> Result<String> {
    let answer = berth(node, args)?;
    ensure!(answer.code == Some(0), "berth {args:?}: {answer:?}");
    Ok(answer.out)
}

/// The command must fail with this code, print nothing, and name each of `words`.
pub fn fails(answer: &Answer, code: i32, words: &[&str]) -> Result<()> {
    ensure!(answer.code == Some(code), "not {code}: {answer:?}");
    ensure!(answer.out.is_empty(), "output beside an error: {answer:?}");
    for word in words {
        ensure!(answer.err.contains(word), "no {word:?}: {answer:?}");
    }
    Ok(())
}

/// A name that no other test of this machine has: logs lie in a directory that all share.
pub fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

pub fn write(node: &Node, name: &str, text: &str) -> Result<String> {
    let path = node.dir.join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

pub fn logs_of(pod: &str) -> Vec<PathBuf> {
    let mine = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().contains(&format!("_{pod}_")))
    };
    let entries = fs::read_dir("/var/log/pods").into_iter().flatten();
    entries
        .flatten()
        .map(|entry| entry.path())
        .filter(mine)
        .collect()
}

pub fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_pod_goes_from_its_manifest_to_its_removal_by_the_berth_command() -> Result<()> {
    Node::test(async |node| {
        let name = unique("cli");
        let manifest = write(
            node,
            "pod.yaml",
            &format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: cli}}}}
spec:
  terminationGracePeriodSeconds: 1
  initContainers:
  - {{name: first, image: busybox, command: [sh, -c, 'echo prepared > /shared/file'], volumeMounts: [{{name: v, mountPath: /shared}}]}}
  containers:
  - name: web
    image: busybox
    command: [sh, -c, 'echo \"$GREETING\"; echo oops >&2; exec httpd -f -p 8080 -h /shared']
    env: [{{name: GREETING, value: hello}}]
    volumeMounts: [{{name: v, mountPath: /shared}}]
  - name: client
    image: busybox
    command: [sh, -c, 'until wget -q -O - http://127.0.0.1:8080/file; do sleep 0.1; done; exec sleep 1000']
  volumes: [{{name: v, emptyDir: {{}}}}]
"
            ),
        )?;
        let volumes = node.dir.join("run-volumes");
        let volumes_arg = volumes.display().to_string();
        let run = [
            "run",
            manifest.as_str(),
            "--detach",
            "--volumes-dir",
            &volumes_arg,
        ];
        let shown = succeeds(node, &run)?;
        for word in [
            name.as_str(),
            "Ready",
            "web",
            "client",
            "Running",
            "busybox",
        ] {
            ensure!(shown.contains(word), "no {word:?} in {shown}");
        }
        // What a second one is answered, and that it takes nothing from the first.
        fails(
            &berth(node, &run)?,
            1,
            &[&name, "is there already", "berth pod remove"],
        )?;

        let listed: Value = serde_json::from_str(&succeeds(node, &["-o", "json", "pod", "list"])?)?;
        ensure!(
            listed.as_array().is_some_and(|pods| pods.len() == 1)
                && listed[0]["name"] == name.as_str()
                && listed[0]["state"] == "Ready",
            "{listed}"
        );
        let table = succeeds(node, &["pod", "list"])?;
        ensure!(
            table.lines().count() == 2 && table.starts_with("NAMESPACE") && table.contains(&name),
            "{table}"
        );
        let id = listed[0]["id"].as_str().context("no id")?.to_owned();
        // By name, by namespace and name, by the beginning of the id.
        for way in [name.clone(), format!("default/{name}"), id[..12].to_owned()] {
            let status: Value =
                serde_json::from_str(&succeeds(node, &["-o", "json", "pod", "status", &way])?)?;
            ensure!(status["id"] == id.as_str(), "{way}: {status}");
            ensure!(
                status["containers"]
                    .as_array()
                    .is_some_and(|all| all.len() == 3)
                    && status["ips"].as_array().is_some_and(|ips| ips.len() == 1),
                "{status}"
            );
        }

        let answered = process::eventually(std::time::Duration::from_secs(10), || {
            succeeds(node, &["logs", &name, "-c", "client"]).is_ok_and(|out| out == "prepared\n")
        });
        ensure!(
            answered,
            "the client has no answer: {:?}",
            berth(node, &["logs", &name, "-c", "client"])
        );
        let web = berth(node, &["logs", &name, "-c", "web"])?;
        ensure!(
            (web.code, web.out.as_str(), web.err.as_str()) == (Some(0), "hello\n", "oops\n"),
            "{web:?}"
        );
        let stamped = succeeds(
            node,
            &["logs", &name, "-c", "web", "--timestamps", "--tail", "2"],
        )?;
        ensure!(
            stamped.contains('T') && stamped.ends_with(" hello\n"),
            "{stamped}"
        );

        let entered = succeeds(
            node,
            &["exec", &name, "-c", "web", "--", "cat", "/shared/file"],
        )?;
        ensure!(entered == "prepared\n", "{entered}");
        let failed = berth(
            node,
            &[
                "exec",
                &name,
                "-c",
                "web",
                "--",
                "sh",
                "-c",
                "echo out; echo err >&2; exit 7",
            ],
        )?;
        ensure!(
            (failed.code, failed.out.as_str(), failed.err.as_str()) == (Some(7), "out\n", "err\n"),
            "{failed:?}"
        );

        succeeds(node, &["pod", "stop", &name])?;
        let status: Value =
            serde_json::from_str(&succeeds(node, &["-o", "json", "pod", "status", &name])?)?;
        ensure!(
            status["state"] == "NotReady"
                && status["containers"]
                    .as_array()
                    .is_some_and(|all| all.iter().all(|one| one["state"] == "Exited")),
            "{status}"
        );
        // Twice is as good as once; and what it wrote can still be read.
        succeeds(node, &["pod", "stop", &name])?;
        ensure!(succeeds(node, &["logs", &name, "-c", "client"])? == "prepared\n");
        ensure!(!is_empty(&volumes) && logs_of(&name).len() == 1);

        succeeds(
            node,
            &["pod", "remove", &name, "--volumes-dir", &volumes_arg],
        )?;
        ensure!(succeeds(node, &["-o", "json", "pod", "list"])?.trim() == "[]");
        ensure!(
            is_empty(&volumes) && logs_of(&name).is_empty(),
            "left: {:?} {:?}",
            fs::read_dir(&volumes),
            logs_of(&name)
        );
        fails(
            &berth(node, &["pod", "status", &name])?,
            1,
            &[&name, "berth pod list"],
        )
    })
}

#[test]
fn a_pod_that_is_waited_for_gives_its_exit_code_and_goes() -> Result<()> {
    Node::test(async |node| {
        for (kind, scripts, code) in [
            ("good", ["true", "sleep 0.2"], 0),
            ("bad", ["true", "exit 3"], 3),
            ("killed", ["exit 137", "exit 4"], 137),
        ] {
            let name = unique(kind);
            let containers: String = scripts
                .iter()
                .enumerate()
                .map(|(at, script)| {
                    format!("  - {{name: c{at}, image: busybox, command: [sh, -c, '{script}']}}\n")
                })
                .collect();
            let manifest = write(
                node,
                "pod.yaml",
                &format!(
                    "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n{containers}"
                ),
            )?;
            let volumes = node.dir.join("run-volumes").display().to_string();
            let answer = berth(
                node,
                &[
                    "run",
                    &manifest,
                    "--wait",
                    "--rm",
                    "--volumes-dir",
                    &volumes,
                ],
            )?;
            ensure!(
                answer.code == Some(code) && answer.out.contains(&format!("Exited ({code}")),
                "{kind}: {answer:?}"
            );
            ensure!(
                node.cri.pods(None).await?.is_empty() && logs_of(&name).is_empty(),
                "{kind}: something is left"
            );
        }
        Ok(())
    })
}

/// A manifest with one container that has these lines.
pub fn pod(name: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: a\n{}",
        container
            .lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    )
}

#[test]
fn a_bad_manifest_is_refused_by_the_name_of_its_mistake_and_makes_nothing() -> Result<()> {
    Node::test(async |node| {
        let good = "image: busybox";
        let cases: Vec<(&str, String, &[&str])> = vec![
            (
                "not-yaml",
                "kind: [Pod\n".into(),
                &["error converting YAML to JSON"],
            ),
            (
                "tabs",
                "kind:\n\t- Pod\n".into(),
                &["error converting YAML to JSON"],
            ),
            ("empty", String::new(), &["no Pod in it"]),
            ("text", "hello\n".into(), &["apiVersion: v1", "kind: Pod"]),
            (
                "no-kind",
                "metadata: {name: x}\n".into(),
                &["apiVersion: v1", "kind: Pod"],
            ),
            (
                "deployment",
                "apiVersion: apps/v1\nkind: Deployment\n".into(),
                &["a Deployment of apps/v1", "takes a Pod of v1"],
            ),
            (
                "two",
                format!("{}---\n{}", pod("x", good), pod("z", good)),
                &["2 Pods in it", "takes one"],
            ),
            (
                "unknown-field",
                pod("x", "image: busybox\nimagePolicy: Always"),
                &["spec.containers[0].imagePolicy"],
            ),
            (
                "wrong-type",
                pod("x", "image: busybox\nports: [{containerPort: eighty}]"),
                &["spec.containers[0].ports[0].containerPort"],
            ),
            (
                "bad-name",
                pod("Not_A_Name", good),
                &["metadata.name", "Not_A_Name", "RFC 1123"],
            ),
            (
                "climbing-namespace",
                pod("x\n  namespace: ../../etc", good),
                &["metadata.namespace", "../../etc"],
            ),
            (
                "no-name",
                pod("''", good),
                &["metadata.name", "Required value"],
            ),
            (
                "no-containers",
                "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: []}\n".into(),
                &["spec.containers", "Required value"],
            ),
            (
                "no-volume",
                pod(
                    "x",
                    "image: busybox\nvolumeMounts: [{name: nowhere, mountPath: /v}]",
                ),
                &["spec.containers[0].volumeMounts[0]", "nowhere"],
            ),
            (
                "bad-quantity",
                pod("x", "image: busybox\nresources: {limits: {memory: much}}"),
                &["spec.containers[0].resources.limits.memory", "quantities"],
            ),
            (
                "several",
                pod("Not_A_Name", "image: busybox\ncolour: red"),
                &["metadata.name", "spec.containers[0].colour"],
            ),
        ];
        let volumes = node.dir.join("run-volumes");
        for (kind, text, words) in cases {
            let file = write(node, &format!("{kind}.yaml"), &text)?;
            let answer = berth(
                node,
                &[
                    "run",
                    &file,
                    "--volumes-dir",
                    &volumes.display().to_string(),
                ],
            )?;
            fails(&answer, 1, words)
                .and_then(|()| fails(&answer, 1, &[&format!("{kind}.yaml")]))
                .with_context(|| kind.to_owned())?;
        }
        ensure!(node.cri.pods(None).await?.is_empty() && is_empty(&volumes));
        Ok(())
    })
}

#[test]
fn a_pod_that_can_not_be_made_is_taken_back_and_the_reason_told() -> Result<()> {
    Node::test(async |node| {
        let volumes = node.dir.join("run-volumes");
        let volumes_arg = volumes.display().to_string();
        let cases: [(&str, &str, &[&str]); 4] = [
            (
                "never-pulled",
                "image: localhost:5000/no/such:1\nimagePullPolicy: Never",
                &["localhost:5000/no/such:1", "pull policy of Never"],
            ),
            (
                "no-image",
                "image: localhost:5000/no/such:1",
                &["localhost:5000/no/such:1", "NotFound"],
            ),
            (
                "no-command",
                "image: busybox\ncommand: [/no/such/command]",
                &["/no/such/command", "container a"],
            ),
            (
                "no-user",
                "image: busybox\nsecurityContext: {runAsNonRoot: true}",
                &["a", "runAsNonRoot"],
            ),
        ];
        for (kind, container, words) in cases {
            let name = unique(kind);
            let file = write(node, "pod.yaml", &pod(&name, container))?;
            let answer = berth(node, &["run", &file, "-d", "--volumes-dir", &volumes_arg])?;
            fails(&answer, 1, words).with_context(|| kind.to_owned())?;
            ensure!(
                node.cri.pods(None).await?.is_empty()
                    && is_empty(&volumes)
                    && logs_of(&name).is_empty(),
                "{kind}: something is left"
            );
        }
        // An init container that fails: its last lines are told, since its log goes with it.
        let name = unique("init");
        let file = write(
            node,
            "pod.yaml",
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  initContainers:\n  - {{name: first, image: busybox, command: [sh, -c, 'echo the reason; exit 9']}}\n  containers:\n  - {{name: a, image: busybox}}\n"
            ),
        )?;
        let answer = berth(node, &["run", &file, "-d", "--volumes-dir", &volumes_arg])?;
        fails(
            &answer,
            1,
            &["init container first", "exit code 9", "the reason"],
        )?;
        ensure!(node.cri.pods(None).await?.is_empty() && logs_of(&name).is_empty());
        Ok(())
    })
}

#[test]
fn mistakes_on_the_command_line_are_told_from_failures_of_the_node() -> Result<()> {
    Node::test(async |node| {
        // 2: it was called wrongly; 1: it was tried and failed.
        for (args, code, words) in [
            (&["run"][..], 2, &["pod.yaml"][..]),
            (&["no-such-command"], 2, &["no-such-command"]),
            (&["run", "a.yaml", "--rm", "--detach"], 2, &["--detach"]),
            (
                &["run", "/no/such/file.yaml"],
                1,
                &[
                    "cannot read the manifest /no/such/file.yaml",
                    "No such file",
                ],
            ),
            (&["logs", "nobody"], 1, &["\"nobody\"", "berth pod list"]),
            (&["pod", "stop", "nobody"], 1, &["\"nobody\""]),
            (&["exec", "nobody", "--", "true"], 1, &["\"nobody\""]),
        ] {
            fails(&berth(node, args)?, code, words).with_context(|| format!("{args:?}"))?;
        }
        let nowhere = format!("unix://{}/nobody.sock", node.dir.display());
        fails(
            &berth_at(&nowhere, &["pod", "list"])?,
            1,
            &["cannot connect", "nobody.sock", "Is berthd running?"],
        )?;
        // A container that the pod does not have.
        let name = unique("names");
        let file = write(
            node,
            "pod.yaml",
            &pod(&name, "image: busybox\ncommand: [sleep, '1000']"),
        )?;
        let volumes = node.dir.join("run-volumes").display().to_string();
        succeeds(node, &["run", &file, "-d", "--volumes-dir", &volumes])?;
        fails(
            &berth(node, &["logs", &name, "-c", "b"])?,
            1,
            &["no container \"b\"", "it has a"],
        )?;
        let missing = berth(node, &["exec", &name, "--", "/no/such/command"])?;
        ensure!(
            missing.code != Some(0) && missing.err.contains("/no/such/command"),
            "{missing:?}"
        );
        succeeds(node, &["pod", "remove", &name, "--volumes-dir", &volumes])?;
        Ok(())
    })
}
