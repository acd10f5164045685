//! Lists page by page, and watches from where they end.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{Answer, Component, Server};
use serde_json::Value;

const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";

fn events(answer: &Answer) -> Result<Vec<(String, Value)>> {
    answer
        .body
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            Ok((kind, event["object"].clone()))
        })
        .collect()
}

#[test]
fn a_list_in_pages_is_of_one_moment() -> Result<()> {
    let server = Server::start("memory")?;
    for n in 0..7 {
        server.kubectl(&[
            "create",
            "configmap",
            &format!("m{n}"),
            "--from-literal=a=1",
        ])?;
    }
    let proxy = server.proxy()?;
    let first = proxy.get(&format!("{CONFIGMAPS}?limit=3"))?.json()?;
    ensure!(
        first["items"].as_array().map(Vec::len) == Some(3),
        "{first}"
    );
    let remaining = first["metadata"]["remainingItemCount"].as_u64();
    // what was there, and the CA's
    ensure!(remaining == Some(5), "{first}");
    server.kubectl(&["delete", "configmap", "m6"])?;
    server.kubectl(&["create", "configmap", "m55"])?;
    let token = first["metadata"]["continue"].as_str().unwrap_or_default();
    let rest = proxy
        .get(&format!("{CONFIGMAPS}?limit=500&continue={token}"))?
        .json()?;
    let names: Vec<&str> = rest["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["metadata"]["name"].as_str())
        .collect();
    ensure!(names == ["m2", "m3", "m4", "m5", "m6"], "{names:?}");
    ensure!(
        rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"],
        "{rest}"
    );
    Ok(())
}

#[test]
fn a_watch_tells_what_came_after_its_list() -> Result<()> {
    let server = Server::start("memory")?;
    let proxy = server.proxy()?;
    let list = proxy.get(CONFIGMAPS)?.json()?;
    let version = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default();
    server.kubectl(&["create", "configmap", "a", "--from-literal=k=1"])?;
    server.kubectl(&["label", "configmap", "a", "watched=yes"])?;
    server.kubectl(&["label", "configmap", "a", "watched-"])?;
    server.kubectl(&["delete", "configmap", "a"])?;
    let watch = |more: &str| -> Result<Vec<(String, Value)>> {
        let path =
            format!("{CONFIGMAPS}?watch=true&resourceVersion={version}&timeoutSeconds=1{more}");
        events(&proxy.request_within("GET", &path, "", b"", Duration::from_secs(5))?)
    };
    let kinds = |events: &[(String, Value)]| -> Vec<String> {
        events.iter().map(|(kind, _)| kind.clone()).collect()
    };
    let all = watch("")?;
    ensure!(
        kinds(&all) == ["ADDED", "MODIFIED", "MODIFIED", "DELETED"],
        "{all:?}"
    );
    let versions: Vec<u64> = all
        .iter()
        .filter_map(|(_, object)| object["metadata"]["resourceVersion"].as_str()?.parse().ok())
        .collect();
    ensure!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    // a selector makes of changes comings and goings
    let selected = watch("&labelSelector=watched%3Dyes")?;
    ensure!(kinds(&selected) == ["ADDED", "DELETED"], "{selected:?}");
    let other = watch("&fieldSelector=metadata.name%3Db")?;
    ensure!(other.is_empty(), "{other:?}");
    Ok(())
}

#[test]
fn a_watch_list_ends_what_was_there_with_a_bookmark() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl(&["create", "configmap", "a"])?;
    let proxy = server.proxy()?;
    let path = format!(
        "{CONFIGMAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let answer = proxy.request_within("GET", &path, "", b"", Duration::from_secs(5))?;
    let events = events(&answer)?;
    let (last, before) = events.split_last().context("no events")?;
    ensure!(before.iter().all(|(kind, _)| kind == "ADDED"), "{events:?}");
    ensure!(last.0 == "BOOKMARK", "{events:?}");
    ensure!(
        last.1["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true",
        "{events:?}"
    );
    Ok(())
}

#[test]
fn a_watch_from_before_the_store_began_is_expired() -> Result<()> {
    let server = Server::start("memory")?;
    let proxy = server.proxy()?;
    let path = "/api/v1/pods?watch=true&resourceVersion=1&timeoutSeconds=1";
    let answer = proxy.request_within("GET", path, "", b"", Duration::from_secs(5))?;
    let events = events(&answer)?;
    // nothing has happened to pods since, or the window does not go back so far
    ensure!(
        events.is_empty() || (events[0].0 == "ERROR" && events[0].1["code"] == 410),
        "{events:?}"
    );
    Ok(())
}

/// However many controllers want to know of a kind, it is watched once.
#[test]
fn all_controllers_share_one_watch_a_kind_cp_05() -> Result<()> {
    let server = Server::start("memory")?;
    let manager = server.component_kubeconfig("kube-controller-manager")?;
    let arguments = ["--leader-elect=false", "--use-service-account-credentials"];
    let _controllers = Component::start_at(&server, &manager, "controllers", &arguments)?;
    let proxy = server.proxy()?;
    // several want each of these
    let shared = ["pods", "nodes", "services", "replicasets", "jobs"];
    let mut kinds = BTreeSet::new();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let log = fs::read_to_string(server.dir().join("controllers.log"))?;
        let audit = fs::read_to_string(server.data().join("audit.log"))?;
        for line in audit.lines() {
            // the last one may not be whole yet
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            let by = &event["user"]["username"];
            if by == "system:kube-controller-manager" && event["verb"] == "watch" {
                kinds.insert(event["objectRef"]["resource"].to_string());
            }
        }
        let metrics = proxy.get("/metrics")?.body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("apiserver_longrunning_requests{verb=\"watch\"} "));
        let open = line.unwrap_or_default();
        let has = |kind: &&str| kinds.contains(&format!("\"{kind}\""));
        if log.contains("the cluster is kept as its objects say")
            && shared.iter().all(has)
            && open == kinds.len().to_string()
        {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "{open} watches are open, of {kinds:?}: {log}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
