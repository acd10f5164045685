//! The cluster itself: its nodes, how it ends and comes again.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{daemon::bin_dir, nodes::Nodes};
use serde_json::Value;

fn running(pods: &Value) -> usize {
    let pods = pods["items"].as_array().into_iter().flatten();
    pods.filter(|pod| pod["status"]["phase"] == "Running")
        .count()
}

/// One pod on each node, by name.
const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: reach}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "echo from NAME >/tmp/index.html; trap 'exit 0' TERM; httpd -p 8080 -h /tmp; echo serves; sleep 100000 & wait"]
"#;

#[test]
fn pods_of_three_nodes_reach_each_other_and_kubectl_reaches_them() -> Result<()> {
    Nodes::test(3, |nodes| {
        let ready = nodes.kubectl.json(&["get", "nodes"])?;
        let names: Vec<&str> = ready["items"]
            .as_array()
            .context("no nodes")?
            .iter()
            .filter_map(|node| node["metadata"]["name"].as_str())
            .collect();
        ensure!(names.len() == 3, "{names:?}");
        for number in 1..=3 {
            let pod = PODS.replace("NAME", &format!("pod-{number}"));
            nodes.apply(&pod.replace("NODE", &nodes.node(number)))?;
        }
        let pods = nodes.until(&["pods"], "all run", |pods| running(pods) == 3)?;
        let address = |number: usize| pods["items"][number - 1]["status"]["podIP"].as_str();
        for from in 1..=3 {
            for to in (1..=3).filter(|to| *to != from) {
                let address = address(to).context("no address")?;
                // Debian's static wget crashes where it has nothing to resolve names with
                let asks = format!(
                    "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 8080 | tail -n 1"
                );
                let said = nodes.eventually("an answer", || {
                    let pod = format!("pod-{from}");
                    let said = nodes
                        .kubectl
                        .kubectl(&["exec", &pod, "--", "sh", "-c", &asks]);
                    Ok(Some(said?))
                })?;
                ensure!(said.trim() == format!("from pod-{to}"), "{said}");
            }
            let said = nodes.eventually("its log", || {
                let said = nodes.kubectl.kubectl(&["logs", &format!("pod-{from}")])?;
                Ok((!said.is_empty()).then_some(said))
            })?;
            ensure!(said.trim() == "serves", "{said}");
        }
        Ok(())
    })
}

/// Its nodes would have the first one's names, addresses and runtimes, and its end would be theirs.
#[test]
fn a_second_cluster_of_nodes_is_refused_and_its_end_takes_nothing_of_the_first() -> Result<()> {
    Nodes::test(1, |nodes| {
        nodes.apply(
            &PODS
                .replace("NAME", "stays")
                .replace("NODE", &nodes.node(1)),
        )?;
        let is_running = |pod: &Value| pod["status"]["phase"] == "Running";
        nodes.until(&["pod/stays"], "it runs", is_running)?;
        let prefix = nodes.node(1);
        let prefix = prefix.trim_end_matches("-1");
        let other = nodes.dir.join("other").display().to_string();
        let berth = bin_dir()?.join("berth");
        let log = nodes.dir.join("other.log");
        let mut second = Command::new(&berth)
            .args(["up", "--nodes", "1", "--listen", "10.240.0.1:0"])
            .args(["--node-name", prefix, "--data", &other])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let status = nodes.eventually("it is refused", || Ok(second.try_wait()?));
        let _ = second.kill();
        let _ = second.wait();
        let said = fs::read_to_string(&log)?;
        ensure!(!status?.success(), "{said}");
        let hint = format!("berth down --data {}", nodes.dir.join("data").display());
        ensure!(said.contains(&hint), "{said}");
        let down = Command::new(&berth)
            .args(["down", "--data", &other])
            .output()?;
        ensure!(down.status.success(), "{down:?}");
        let said = nodes.eventually("it is reached", || {
            let said = nodes
                .kubectl
                .kubectl(&["exec", "stays", "--", "cat", "/tmp/index.html"])?;
            Ok(Some(said))
        })?;
        ensure!(said.trim() == "from stays", "{said}");
        Ok(())
    })
}

#[test]
fn whatever_is_killed_the_pods_run_on_and_are_taken_over_bo_15() -> Result<()> {
    Nodes::test(1, |nodes| {
        nodes.apply(
            &PODS
                .replace("NAME", "stays")
                .replace("NODE", &nodes.node(1)),
        )?;
        let begun = nodes.until(&["pod/stays"], "it runs", |pod| {
            pod["status"]["phase"] == "Running"
        })?;
        let container = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
        let same = |now: &Value| {
            let (now, before) = (container(now), container(&begun));
            now["containerID"] == before["containerID"]
                && now["restartCount"] == 0
                && now["state"] == before["state"]
        };
        for program in ["kubelet", "berthd"] {
            nodes.kill_9(1, program)?;
            // it answers again, and of the same container
            nodes.eventually("it is reached", || {
                let said =
                    nodes
                        .kubectl
                        .kubectl(&["exec", "stays", "--", "cat", "/tmp/index.html"])?;
                Ok((said.trim() == "from stays").then_some(()))
            })?;
            nodes.until(&["pod/stays"], "it is the same", same)?;
        }
        nodes.kill_up()?;
        nodes.up()?;
        nodes.until(&["pod/stays"], "it is the same", same)?;
        nodes.eventually("it is reached", || {
            let said = nodes
                .kubectl
                .kubectl(&["exec", "stays", "--", "cat", "/tmp/index.html"])?;
            Ok((said.trim() == "from stays").then_some(()))
        })?;
        // the cluster goes on with its work
        nodes.kubectl.kubectl(&["delete", "pod", "stays"])?;
        nodes.apply(&PODS.replace("NAME", "next").replace("NODE", &nodes.node(1)))?;
        nodes.until(&["pod/next"], "it runs", |pod| {
            pod["status"]["phase"] == "Running"
        })?;
        Ok(())
    })
}
