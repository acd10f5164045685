//! DaemonSets.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, images, names, node, set_image, workload};

fn nodes(pods: &[Value]) -> Vec<&str> {
    let mut nodes: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    nodes.sort_unstable();
    nodes
}

/// DS-01 to DS-07.
#[test]
fn a_daemon_set_has_a_pod_on_each_node_that_suits() -> Result<()> {
    let cluster = Cluster::start()?;
    node(&cluster, "n1")?;
    node(&cluster, "n2")?;
    let what = "daemonset/agent";
    cluster.apply(&workload("DaemonSet", "agent", &json!({})))?;
    cluster.rolled(what)?;
    let pods = cluster.until("each has one", &["pods"], |pods| {
        nodes(pods) == ["n1", "n2"]
    })?;
    let tolerations = pods[0]["spec"]["tolerations"]
        .as_array()
        .context("tolerations")?;
    let tolerates = |key: &str, effect: &str| {
        tolerations.iter().any(|one| {
            one["key"] == format!("node.kubernetes.io/{key}")
                && one["effect"] == effect
                && one["operator"] == "Exists"
        })
    };
    ensure!(
        tolerates("not-ready", "NoExecute") && tolerates("unschedulable", "NoSchedule"),
        "{tolerations:?}"
    );

    // a node joins, one has a taint, one leaves
    node(&cluster, "n3")?;
    cluster.until("it has one, too", &["pods"], |pods| {
        nodes(pods) == ["n1", "n2", "n3"]
    })?;
    cluster.kubectl(&["taint", "node", "n3", "own=yes:NoExecute"])?;
    cluster.until("it is gone there", &["pods"], |pods| {
        nodes(pods) == ["n1", "n2"]
    })?;
    cluster.kubectl(&["delete", "node", "n3"])?;
    cluster.until("it counts no more", &["ds"], |sets| {
        let status = &sets[0]["status"];
        status["desiredNumberScheduled"] == 2
            && status["numberReady"] == 2
            && status["numberMisscheduled"] == 0
    })?;

    // a dead pod, and one that is deleted
    let pods = cluster.items(&["pods"])?;
    let (dead, gone) = (names(&pods)[0].to_owned(), names(&pods)[1].to_owned());
    let failed = json!({"status": {"phase": "Failed", "conditions": []}}).to_string();
    cluster.kubectl(&[
        "patch",
        "pod",
        &dead,
        "--subresource=status",
        "--type=merge",
        "-p",
        &failed,
    ])?;
    cluster.kubectl(&["delete", "pod", &gone])?;
    cluster.until("both are remade", &["pods"], |pods| {
        let names = names(pods);
        nodes(pods) == ["n1", "n2"]
            && !names.contains(&dead.as_str())
            && !names.contains(&gone.as_str())
    })?;
    cluster.rolled(what)?;
    let events = cluster.kubectl(&["describe", what])?;
    ensure!(
        events.contains("FailedDaemonPod") && events.contains("daemonset-controller"),
        "{events}"
    );

    // DS-05: one node after another, the old one first
    cluster.hollow.begin();
    set_image(&cluster, what, "nginx:1.9.1")?;
    cluster.rolled(what)?;
    cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 2]
    })?;
    let counts = cluster.hollow.counts();
    ensure!(counts.most == 2 && counts.least_ready == 1, "{counts:?}");
    // with surge, the new one first
    let surge =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    cluster.patch(what, &json!({"spec": {"updateStrategy": surge}}))?;
    cluster.hollow.begin();
    set_image(&cluster, what, "nginx:1.16.1")?;
    cluster.rolled(what)?;
    cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.16.1"; 2]
    })?;
    let counts = cluster.hollow.counts();
    ensure!(counts.most == 3 && counts.least_ready == 2, "{counts:?}");

    let history = cluster.kubectl(&["rollout", "history", what])?;
    ensure!(
        history
            .lines()
            .filter(|line| line.starts_with(['1', '2', '3']))
            .count()
            == 3,
        "{history}"
    );
    cluster.kubectl(&["rollout", "undo", what, "--to-revision=1"])?;
    cluster.rolled(what)?;
    cluster.until("it is the first again", &["pods"], |pods| {
        images(pods) == ["nginx:1.7.9"; 2]
    })?;

    // DS-06
    cluster.patch(
        what,
        &json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}),
    )?;
    set_image(&cluster, what, "nginx:1.9.1")?;
    let sets = cluster.until("it has looked", &["ds"], |sets| {
        sets[0]["status"]["observedGeneration"] == sets[0]["metadata"]["generation"]
    })?;
    ensure!(
        sets[0]["status"]["updatedNumberScheduled"].is_null(),
        "{}",
        sets[0]
    );
    let pods = cluster.items(&["pods"])?;
    ensure!(images(&pods) == ["nginx:1.7.9"; 2]);
    cluster.kubectl(&["delete", "pod", names(&pods)[0]])?;
    cluster.until("that one is new", &["pods"], |pods| {
        images(pods) == ["nginx:1.7.9", "nginx:1.9.1"]
    })?;
    cluster.kubectl(&["delete", what])?;
    cluster.until("they go with it", &["pods"], |pods| pods.is_empty())?;
    Ok(())
}
