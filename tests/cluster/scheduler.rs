//! `berth scheduler` at our API server, by real kubectl: pods are bound, told why they are not, and make room. Its nodes are objects only: nobody runs the pods.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::{Component, Server};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(30);
/// It need not wait for one that was killed.
pub const ALONE: &[&str] = &["--leader-elect=false"];

pub fn apply(server: &Server, object: Value) -> Result<()> {
    server
        .kubectl_with(&["apply", "-f", "-"], &object.to_string())
        .map(drop)
}

pub fn node(server: &Server, name: &str, cpu: &str) -> Result<()> {
    apply(
        server,
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        }),
    )?;
    let status = json!({"status": {
        "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "10"}, "capacity": {"cpu": cpu, "memory": "4Gi", "pods": "10"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
    }});
    server
        .kubectl(&[
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ])
        .map(drop)
}

pub fn pod(name: &str, more: &Value) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "1"}}}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

pub fn eventually<T>(what: &str, mut try_it: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let until = Instant::now() + WITHIN;
    loop {
        if let Some(found) = try_it()? {
            return Ok(found);
        }
        if Instant::now() > until {
            bail!("not within {} s: {what}", WITHIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub fn node_of(server: &Server, name: &str) -> Result<String> {
    eventually(&format!("{name} has a node"), || {
        let pod = server.json(&["get", "pod", name])?;
        Ok(pod["spec"]["nodeName"].as_str().map(str::to_owned))
    })
}

/// What its condition PodScheduled says.
pub fn why(server: &Server, name: &str) -> Result<String> {
    eventually(&format!("{name} is told why it waits"), || {
        let pod = server.json(&["get", "pod", name])?;
        let conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let mut waits = conditions
            .iter()
            .filter(|one| one["type"] == "PodScheduled" && one["status"] == "False");
        Ok(waits
            .next()
            .and_then(|one| Some(one["message"].as_str()?.to_owned())))
    })
}

fn server() -> Result<Server> {
    Server::start("memory")
}

/// BO-14, SH-02, SH-04: bound where they fit; what fits nowhere is told why, node by node.
#[test]
fn pods_get_nodes_that_suit_them_and_the_others_are_told_why_not() -> Result<()> {
    let server = server()?;
    node(&server, "n1", "2")?;
    node(&server, "n2", "2")?;
    server.kubectl(&["label", "node", "n2", "env_role=prod"])?;
    let _scheduler = Component::start(&server, "scheduler", ALONE)?;

    // PO-15, PO-16: selectors and affinity
    apply(
        &server,
        pod("selects", &json!({"nodeSelector": {"env_role": "prod"}})),
    )?;
    ensure!(node_of(&server, "selects")? == "n2");
    let events = eventually("it is told", || {
        let events = server.kubectl(&["describe", "pod", "selects"])?;
        Ok(events
            .contains("Successfully assigned default/selects to n2")
            .then_some(events))
    })?;
    ensure!(
        events.contains("default-scheduler") && events.contains("Scheduled"),
        "{events}"
    );
    let term = json!({"matchExpressions": [{"key": "env_role", "operator": "DoesNotExist"}]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
    apply(&server, pod("avoids", &json!({"affinity": affinity})))?;
    ensure!(node_of(&server, "avoids")? == "n1");

    // a taint, and a pod that tolerates it
    server.kubectl(&["taint", "node", "n1", "env_role=yes:NoSchedule"])?;
    apply(&server, pod("last", &json!({})))?;
    ensure!(node_of(&server, "last")? == "n2");
    apply(&server, pod("waits", &json!({})))?;
    let told = why(&server, "waits")?;
    ensure!(
        told.starts_with("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {env_role: yes}. preemption: 0/2 nodes are available: ")
            && told.contains("By node: n1: node(s) had untolerated taint {env_role: yes}; n2: Insufficient cpu."),
        "{told}"
    );
    eventually("an event says it, too", || {
        let events = server.kubectl(&[
            "get",
            "events",
            "--field-selector",
            "reason=FailedScheduling,involvedObject.name=waits",
        ])?;
        Ok(events.contains("1 Insufficient cpu").then_some(()))
    })?;
    // TT-05: what stood in its way goes, and it is not forgotten
    server.kubectl(&["taint", "node", "n1", "env_role:NoSchedule-"])?;
    ensure!(node_of(&server, "waits")? == "n1");

    // room that a pod leaves
    apply(&server, pod("next", &json!({})))?;
    ensure!(why(&server, "next")?.contains("2 Insufficient cpu"));
    server.kubectl(&["delete", "pod", "selects", "--grace-period=0", "--force"])?;
    ensure!(node_of(&server, "next")? == "n2");

    // others' pods, and those with gates, are let alone until they are gone
    server.kubectl(&["delete", "pod", "--all", "--grace-period=0", "--force"])?;
    apply(&server, pod("other", &json!({"schedulerName": "other"})))?;
    apply(
        &server,
        pod(
            "gated",
            &json!({"schedulingGates": [{"name": "example.com/wait"}]}),
        ),
    )?;
    apply(&server, pod("after", &json!({})))?;
    node_of(&server, "after")?;
    for name in ["other", "gated"] {
        let pod = server.json(&["get", "pod", name])?;
        ensure!(pod["spec"]["nodeName"].is_null(), "{name}: {pod}");
    }
    server.kubectl(&[
        "patch",
        "pod",
        "gated",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/schedulingGates/0"}]"#,
    ])?;
    node_of(&server, "gated").map(drop)
}

/// PO-16, PO-17, SH-02, SH-03: each operator of what is required; and what is preferred leans, and binds nobody.
#[test]
fn each_operator_of_affinity_finds_its_node_and_a_preference_leans() -> Result<()> {
    let server = server()?;
    for (name, label) in [("n1", None), ("n2", Some("prod")), ("n3", Some("dev"))] {
        node(&server, name, "8")?;
        let size = name.replace('n', "size=");
        server.kubectl(&["label", "node", name, &size])?;
        if let Some(role) = label {
            server.kubectl(&["label", "node", name, &format!("env_role={role}")])?;
        }
    }
    let _scheduler = Component::start(&server, "scheduler", ALONE)?;
    let is = |key: &str, operator: &str, values: &[&str]| {
        let mut one = json!({"key": key, "operator": operator});
        if !values.is_empty() {
            one["values"] = json!(values);
        }
        one
    };
    for (name, all, expected) in [
        ("in", vec![is("env_role", "In", &["prod", "test"])], "n2"),
        (
            "not-in-exists",
            vec![
                is("env_role", "NotIn", &["prod"]),
                is("env_role", "Exists", &[]),
            ],
            "n3",
        ),
        (
            "does-not-exist",
            vec![is("env_role", "DoesNotExist", &[])],
            "n1",
        ),
        ("gt", vec![is("size", "Gt", &["2"])], "n3"),
        ("lt", vec![is("size", "Lt", &["2"])], "n1"),
    ] {
        let required = json!({"nodeSelectorTerms": [{"matchExpressions": all}]});
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}});
        apply(&server, pod(name, &json!({"affinity": affinity})))?;
        let found = node_of(&server, name)?;
        ensure!(found == expected, "{name}: {found}");
    }
    // n2 has one pod, as little room as any; one that is preferred and not there harms nobody
    for (name, role, expected) in [
        ("leans", "prod", Some("n2")),
        ("leans-again", "prod", Some("n2")),
        ("leans-nowhere", "none", None),
    ] {
        let preference = json!({"matchExpressions": [is("env_role", "In", &[role])]});
        let preferred = json!([{"weight": 100, "preference": preference}]);
        let affinity =
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}});
        apply(&server, pod(name, &json!({"affinity": affinity})))?;
        let found = node_of(&server, name)?;
        ensure!(
            expected.is_none_or(|expected| expected == found),
            "{name}: {found}"
        );
    }
    let none = json!({"nodeSelectorTerms": [{"matchExpressions": [is("size", "Gt", &["9"])]}]});
    let affinity =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": none}});
    apply(&server, pod("nowhere", &json!({"affinity": affinity})))?;
    let told = why(&server, "nowhere")?;
    ensure!(
        told.starts_with(
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
        ),
        "{told}"
    );
    Ok(())
}

/// BO-13: where a pod was not taken, the next one of its controller does not go, though there is more room.
#[test]
fn a_node_that_did_not_take_one_is_avoided_by_the_next() -> Result<()> {
    let server = server()?;
    for name in ["n1", "n2"] {
        node(&server, name, "8")?;
    }
    for name in ["a", "b", "c"] {
        apply(&server, pod(name, &json!({"nodeName": "n2"})))?;
    }
    let labels = json!({"app": "flaky"});
    apply(
        &server,
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "flaky"}, "spec": {
            "replicas": 0, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "example/c:1"}]}},
        }}),
    )?;
    let set = server.json(&["get", "rs", "flaky"])?;
    let of_set = |name: &str| {
        let mut one = pod(name, &json!({}));
        one["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "flaky", "uid": set["metadata"]["uid"], "controller": true,
        }]);
        one
    };
    let _scheduler = Component::start(&server, "scheduler", ALONE)?;
    apply(&server, of_set("first"))?;
    ensure!(node_of(&server, "first")? == "n1");
    let failed = json!({"status": {"phase": "Failed", "reason": "OutOfcpu"}}).to_string();
    #[rustfmt::skip]
    server.kubectl(&["patch", "pod", "first", "--subresource=status", "--type=merge", "-p", &failed])?;
    // the scheduler has seen it when it counts it no more: then eight fit there
    let full = json!({"nodeSelector": {"kubernetes.io/hostname": "n1"}, "containers": [
        {"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "8"}}},
    ]});
    apply(&server, pod("full", &full))?;
    ensure!(node_of(&server, "full")? == "n1");
    server.kubectl(&["delete", "pod", "full", "--grace-period=0", "--force"])?;
    apply(&server, pod("another", &json!({})))?;
    ensure!(node_of(&server, "another")? == "n1", "others don't mind");
    apply(&server, of_set("second"))?;
    ensure!(node_of(&server, "second")? == "n2");
    Ok(())
}

#[test]
fn the_more_important_pod_has_room_made_for_it_within_budgets() -> Result<()> {
    let server = server()?;
    node(&server, "n1", "1")?;
    node(&server, "n2", "1")?;
    let scheduler = Component::start(&server, "scheduler", ALONE)?;
    for (name, value) in [("low", 1), ("high", 1000)] {
        apply(
            &server,
            json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value}),
        )?;
    }
    apply(&server, pod("kept", &json!({"priorityClassName": "low"})))?;
    apply(&server, pod("ended", &json!({"priorityClassName": "low"})))?;
    let (kept, ended) = (node_of(&server, "kept")?, node_of(&server, "ended")?);
    ensure!(kept != ended);
    for name in ["kept", "ended"] {
        let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        server.kubectl(&[
            "patch",
            "pod",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ])?;
    }
    apply(
        &server,
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "keep"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}},
        }),
    )?;
    // no less important one is there to be ended for it
    apply(&server, pod("equal", &json!({"priorityClassName": "low"})))?;
    ensure!(why(&server, "equal")?.contains("No preemption victims found for incoming pod"));
    apply(
        &server,
        pod(
            "polite",
            &json!({"priorityClassName": "high", "preemptionPolicy": "Never"}),
        ),
    )?;
    ensure!(why(&server, "polite")?.contains("not eligible due to preemptionPolicy=Never."));
    server.kubectl(&["delete", "pod", "polite", "equal", "--now"])?;

    apply(
        &server,
        pod("important", &json!({"priorityClassName": "high"})),
    )?;
    ensure!(node_of(&server, "important")? == ended);
    ensure!(server.json(&["get", "pod", "kept"])?["metadata"]["deletionTimestamp"].is_null());
    ensure!(
        server
            .refused(&["get", "pod", "ended"], "")?
            .contains("not found")
    );
    let events = server.kubectl(&["get", "events", "--field-selector", "reason=Preempted"])?;
    ensure!(
        events.contains("pod/ended") && events.contains("Preempted by pod"),
        "{events}"
    );

    // another scheduler knows all that the one before it did
    drop(scheduler);
    apply(&server, pod("later", &json!({"priorityClassName": "high"})))?;
    let _scheduler = Component::start(&server, "scheduler", ALONE)?;
    ensure!(node_of(&server, "later")? == kept);
    Ok(())
}

/// BO-09, PO-18, and as many at once as a Deployment would have.
#[test]
fn replicas_are_spread_and_nodes_are_never_overdrawn() -> Result<()> {
    let server = server()?;
    for at in 0..5 {
        node(&server, &format!("n{at}"), "8")?;
    }
    let mut scheduler = Component::start(&server, "scheduler", ALONE)?;
    let mut list = Vec::new();
    for at in 0..45 {
        let mut one = pod(&format!("p{at}"), &json!({}));
        one["metadata"]["labels"] = json!({"app": "many"});
        list.push(one);
    }
    server.kubectl_with(
        &["create", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "List", "items": list}).to_string(),
    )?;
    // killed in the middle of it, and begun again
    std::thread::sleep(Duration::from_millis(300));
    scheduler.kill_9()?;
    let _scheduler = Component::start(&server, "scheduler", ALONE)?;
    let counts = eventually("forty have a node", || {
        let pods = server.json(&["get", "pods"])?;
        let pods = pods["items"].as_array().context("items")?.clone();
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for node in pods
            .iter()
            .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        {
            *counts.entry(node.to_owned()).or_default() += 1;
        }
        Ok((counts.values().sum::<usize>() >= 40).then_some(counts))
    })?;
    ensure!(
        counts.len() == 5 && counts.values().all(|count| *count == 8),
        "{counts:?}"
    );
    let alone = json!({
        "containers": [{"name": "c", "image": "example/c:1"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"alone": "yes"}}, "topologyKey": "kubernetes.io/hostname"},
        ]}},
    });
    for at in 0..6 {
        let mut one = pod(&format!("alone{at}"), &alone);
        one["metadata"]["labels"] = json!({"alone": "yes"});
        apply(&server, one)?;
    }
    let waits = eventually("five are apart, and one waits", || {
        let pods = server.json(&["get", "pods", "-l", "alone=yes"])?;
        let pods = pods["items"].as_array().context("items")?.clone();
        let nodes: std::collections::BTreeSet<&str> = pods
            .iter()
            .filter_map(|pod| pod["spec"]["nodeName"].as_str())
            .collect();
        let mut waits = pods.iter().filter(|pod| pod["spec"]["nodeName"].is_null());
        let first = waits
            .next()
            .and_then(|pod| pod["metadata"]["name"].as_str())
            .map(str::to_owned);
        Ok(first.filter(|_| nodes.len() == 5 && waits.next().is_none()))
    })?;
    ensure!(why(&server, &waits)?.contains("5 node(s) didn't match pod anti-affinity rules"));
    Ok(())
}

/// CP-02's kind of trouble: two are started, one leads; when it ends the other goes on at once, and what is killed is waited for no longer than its lease says.
#[test]
fn one_of_two_schedulers_leads_and_the_other_stands_by() -> Result<()> {
    let server = server()?;
    node(&server, "n1", "8")?;
    let mut first = Component::start(&server, "scheduler", &[])?;
    let holder = |not: &str| {
        eventually("somebody leads", || {
            let lease = server.json(&[
                "get",
                "lease",
                "kube-scheduler",
                "-n",
                "kube-system",
                "--ignore-not-found",
            ]);
            let holder = lease
                .ok()
                .and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned));
            Ok(holder.filter(|holder| !holder.is_empty() && holder != not))
        })
    };
    let leads = holder("")?;
    let mut second = Component::start(&server, "scheduler", &[])?;
    apply(&server, pod("one", &json!({})))?;
    node_of(&server, "one")?;
    ensure!(holder("")? == leads);
    // asked to end, it gives the lease back
    first.stop()?;
    let next = holder(&leads)?;
    apply(&server, pod("two", &json!({})))?;
    node_of(&server, "two")?;
    // killed, it does not: the third takes it when it is late
    second.kill_9()?;
    let _third = Component::start(&server, "scheduler", &[])?;
    apply(&server, pod("three", &json!({})))?;
    node_of(&server, "three")?;
    ensure!(holder(&next)? != leads);
    Ok(())
}

/// Two profiles of one process: each pod goes by the one that it names, and pods of others are let alone.
#[test]
fn a_pod_is_scheduled_by_the_profile_that_it_names() -> Result<()> {
    let server = server()?;
    for name in ["n1", "n2"] {
        node(&server, name, "8")?;
    }
    apply(&server, pod("first", &json!({"nodeName": "n1"})))?;
    let config = server.dir().join("profiles.yaml");
    std::fs::write(
        &config,
        "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles:
- schedulerName: default-scheduler
- schedulerName: packs
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated}}
  plugins:
    score:
      disabled: [{name: \"*\"}]
      enabled: [{name: NodeResourcesFit}]
",
    )?;
    let config = config.to_str().context("a path")?;
    let _scheduler = Component::start(
        &server,
        "scheduler",
        &[ALONE, &["--config", config]].concat(),
    )?;
    for name in ["packed1", "packed2"] {
        apply(&server, pod(name, &json!({"schedulerName": "packs"})))?;
        ensure!(node_of(&server, name)? == "n1");
    }
    apply(
        &server,
        pod("others", &json!({"schedulerName": "somebody-else"})),
    )?;
    apply(&server, pod("spread", &json!({})))?;
    ensure!(node_of(&server, "spread")? == "n2");
    eventually("it is told by whom", || {
        let events = server.kubectl(&["describe", "pod", "packed2"])?;
        let told = |line: &str| line.contains("Scheduled") && line.contains("packs");
        Ok(events.lines().any(told).then_some(()))
    })?;
    let others = server.json(&["get", "pod", "others"])?;
    ensure!(others["spec"]["nodeName"].is_null(), "{others}");
    Ok(())
}
