//! Manifests as people write them, applied twice: the second time changes nothing (AS-04).

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use berth_tests::{cluster::Server, process};
use serde_json::Value;

/// Of the crate that has the rules of the kinds, and tries them with these.
const MANIFESTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../cluster/kinds/tests/manifests"
);

const WITHIN: Duration = Duration::from_secs(30);

/// Every object that is there, by what it is called.
fn objects(server: &Server, directory: &str) -> Result<Vec<(String, Value)>> {
    let list = server.json(&["get", "-f", directory, "--show-managed-fields"])?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items
        .into_iter()
        .map(|item| {
            let name = format!("{} {}", item["kind"], item["metadata"]["name"]);
            (name, item)
        })
        .collect())
}

fn twice(server: &Server, apply: &[&str]) -> Result<()> {
    let mut arguments = vec!["apply", "-f", MANIFESTS];
    arguments.extend(apply);
    // What is of a kind that comes with it needs its definition first, and what is in a namespace that: kubectl is run again by hand, too.
    let first = server.ask(&arguments, "")?;
    if !first.ok {
        let said = server.kubectl(&arguments)?;
        ensure!(!said.is_empty());
    }
    // What a controller writes once, a quota's figures, is there first.
    let mut before = objects(server, MANIFESTS)?;
    let settled = process::eventually(WITHIN, || {
        let read = objects(server, MANIFESTS);
        before = read.unwrap_or_default();
        let mut quotas = before.iter().filter(|(name, _)| name.contains("Quota"));
        !before.is_empty() && quotas.all(|(_, quota)| quota["status"]["used"].is_object())
    });
    ensure!(settled, "a quota has no figures: {before:#?}");
    ensure!(before.len() >= 50, "{} objects", before.len());
    server.kubectl(&arguments)?;
    let after = objects(server, MANIFESTS)?;
    for ((name, before), (_, after)) in before.iter().zip(&after) {
        ensure!(
            before == after,
            "{name} has been written again:\n{before:#}\n{after:#}"
        );
    }
    Ok(())
}

#[test]
fn twenty_manifests_applied_twice_change_nothing_the_second_time() -> Result<()> {
    ensure!(Path::new(MANIFESTS).read_dir()?.count() >= 20);
    twice(&Server::start("memory")?, &[])
}

#[test]
fn twenty_manifests_applied_twice_by_the_server_change_nothing_the_second_time() -> Result<()> {
    twice(&Server::start("memory")?, &["--server-side"])
}

/// From one way of applying to the other: what admission and the rules have added is not taken away again.
#[test]
fn twenty_manifests_go_over_to_server_side_apply() -> Result<()> {
    let server = Server::start("memory")?;
    twice(&server, &[])?;
    // Atomic lists that got defaults are the client-side apply's: upstream wants them forced, too.
    twice(&server, &["--server-side", "--force-conflicts"])
}
