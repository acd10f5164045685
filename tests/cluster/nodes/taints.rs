//! Taints, and the pods that they drive away.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::Server;
use serde_json::json;

use super::{Hollow, QUICK, controllers, event, eventually, has_taints, is_ending, tolerates};

/// TT-02, TT-03, TT-04, TT-05, TT-07, and what else nodes get.
#[test]
fn taints_by_hand_evict_who_does_not_tolerate_them() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    let arguments = [
        QUICK,
        &[
            "--allocate-node-cidrs",
            "--cluster-cidr=10.244.0.0/16,fd00:10::/48",
        ],
    ]
    .concat();
    let _controllers = controllers(&server, &arguments)?;
    for name in ["n1", "n2"] {
        hollow.join(name, "a")?;
    }
    server.kubectl(&["cordon", "n1"])?;
    has_taints(&server, "n1", &["unschedulable:NoSchedule"])?;
    ensure!(
        server
            .kubectl(&["describe", "node", "n1"])?
            .contains("node.kubernetes.io/unschedulable:NoSchedule")
    );
    server.kubectl(&["uncordon", "n1"])?;
    has_taints(&server, "n1", &[])?;

    hollow.pod("plain", "n1", "10.0.0.1", &json!({}))?;
    hollow.pod(
        "long",
        "n1",
        "10.0.0.2",
        &tolerates(&["env_role"], Some(3600)),
    )?;
    hollow.pod("always", "n1", "10.0.0.3", &tolerates(&["env_role"], None))?;
    server.kubectl(&["taint", "node", "n1", "env_role=yes:NoSchedule"])?;
    server.kubectl(&["taint", "node", "n1", "env_role=yes:NoExecute"])?;
    eventually("who does not tolerate it ends", || {
        Ok(is_ending(&server, "plain")?.then_some(()))
    })?;
    ensure!(!is_ending(&server, "long")? && !is_ending(&server, "always")?);
    server.kubectl(&["taint", "node", "n1", "env_role:NoExecute-"])?;
    event(
        &server,
        "TaintManagerEviction",
        "Cancelling deletion of Pod default/long",
    )?;
    has_taints(&server, "n1", &["env_role:NoSchedule"])?;
    // One that comes to a node that is tainted already.
    server.kubectl(&["taint", "node", "n2", "env_role=yes:NoExecute"])?;
    hollow.pod("late", "n2", "10.0.0.4", &tolerates(&["env_role"], Some(1)))?;
    eventually("who came late ends, too", || {
        Ok(is_ending(&server, "late")?.then_some(()))
    })?;

    let mut parts = BTreeSet::new();
    for name in ["n1", "n2"] {
        let node = eventually("it has its part of the pods' networks", || {
            let node = server.json(&["get", "node", name])?;
            Ok((!node["spec"]["podCIDR"].is_null()).then_some(node))
        })?;
        let both = node["spec"]["podCIDRs"]
            .as_array()
            .context("podCIDRs")?
            .clone();
        ensure!(
            both.len() == 2 && both[0] == node["spec"]["podCIDR"],
            "{both:?}"
        );
        parts.extend(
            both.iter()
                .filter_map(|part| part.as_str().map(String::from)),
        );
    }
    let of = |network: &str| {
        parts
            .iter()
            .filter(|part| part.starts_with(network))
            .count()
    };
    ensure!(
        of("10.244.") == 2 && of("fd00:10:") == 2,
        "four different ones: {parts:?}"
    );
    Ok(())
}
