//! A machine becomes a node, by a token.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{daemon::bin_dir, nodes::Nodes};

use crate::{by_node, condition, daemons, items};

/// `berth join …` as `berth token create` has printed it.
struct Joining(Option<Child>);

impl Joining {
    fn start(line: &str, more: &[&str], log: &Path) -> Result<Self> {
        let words = line.split_whitespace().skip(1);
        let child = Command::new(bin_dir()?.join("berth"))
            .args(words)
            .args(more)
            .stdin(Stdio::null())
            .stderr(fs::File::create(log)?)
            .spawn()?;
        Ok(Self(Some(child)))
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_machine_joins_by_a_token_and_only_the_cluster_of_the_hash_ds_02_ds_03() -> Result<()> {
    Nodes::test(1, |nodes| {
        daemons::apply(nodes, "RollingUpdate", "1")?;
        let berth = bin_dir()?.join("berth");
        let output = Command::new(&berth)
            .args(["token", "create", "--ttl", "10m", "--kubeconfig"])
            .arg(&nodes.kubectl.kubeconfig)
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        let line = String::from_utf8(output.stdout)?;
        let name = format!("{}-joined", nodes.node(1));
        let (data, state) = (nodes.dir.join("joined"), nodes.dir.join("run"));
        let socket = format!("unix://{}/berth.sock", state.display());
        let cgroup = format!("/berth-{name}");
        let data = data.display().to_string();
        let mirrors = nodes.dir.join("certs.d").display().to_string();
        #[rustfmt::skip]
        let more = [
            "--endpoint", &socket, "--data", &data, "--node-name", &name, "--cgroup-root", &cgroup, "--hosts-dir", &mirrors,
            "--kubelet-arg=--node-ip=10.240.0.1", "--kubelet-arg=--eviction-hard=nodefs.available<0%,imagefs.available<0%",
        ];

        // another cluster's, or somebody in between
        let (start, hash) = line.trim().rsplit_once(':').context("no hash")?;
        let wrong = format!("{start}:{}", hash.chars().rev().collect::<String>());
        let log = nodes.dir.join("join.log");
        let mut refused = Joining::start(&wrong, &more, &log)?;
        let status = refused.0.take().context("not started")?.wait()?;
        let said = fs::read_to_string(&log)?;
        ensure!(
            !status.success() && said.contains("shows no certificate"),
            "{said}"
        );
        ensure!(
            nodes.kubectl.json(&["get", "nodes"])?["items"]
                .as_array()
                .map(Vec::len)
                == Some(1)
        );

        let mut joins = Joining::start(&line, &more, &log)?;
        nodes.until(&[&format!("node/{name}")], "it is ready", |node| {
            condition(node, "Ready").is_some_and(|it| it["status"] == "True")
        })?;
        // what every node has it gets, too
        let pods = ["pods", "-l", "app=agent"];
        nodes.until(&pods, "one on each", |pods| {
            by_node(pods) == [(nodes.node(1), 1), (name.clone(), 1)].into()
        })?;
        // the token is not what it is known by from now on
        let kubeconfig = format!("{data}/nodes/{name}/kubelet.kubeconfig");
        ensure!(!fs::read_to_string(&kubeconfig)?.contains("token"));
        let down = Command::new(&berth)
            .args(["down", "--data", &data])
            .output()?;
        ensure!(
            down.status.success(),
            "{down:?}: {}",
            fs::read_to_string(&log)?
        );
        let status = joins.0.take().context("not started")?.wait()?;
        ensure!(status.success(), "{status}: {}", fs::read_to_string(&log)?);
        nodes.kubectl.kubectl(&["delete", "node", &name])?;
        nodes.until(&pods, "one on the node that stays", |pods| {
            by_node(pods) == [(nodes.node(1), 1)].into() && items(pods).count() == 1
        })?;
        Ok(())
    })
}
