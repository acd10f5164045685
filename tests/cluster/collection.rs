//! What goes with what: owners and dependents, namespaces and what is in them.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::{cluster::Server, process::eventually};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(10);

fn owned(name: &str, owner: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "ownerReferences": [{
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                "blockOwnerDeletion": true,
                "controller": true,
            }],
        },
    })
    .to_string()
}

fn is_there(server: &Server, name: &str) -> bool {
    server
        .ask(&["get", "configmap", name], "")
        .is_ok_and(|said| said.ok)
}

/// An owner with a dependent that has a dependent.
fn family(server: &Server, name: &str) -> Result<[String; 3]> {
    let names = [
        name.to_owned(),
        format!("{name}-child"),
        format!("{name}-grandchild"),
    ];
    server.kubectl(&["create", "configmap", &names[0]])?;
    for pair in names.windows(2) {
        let owner = server.json(&["get", "configmap", &pair[0]])?;
        server.kubectl_with(&["create", "-f", "-"], &owned(&pair[1], &owner))?;
    }
    Ok(names)
}

#[test]
fn what_is_owned_goes_with_its_owner_as_the_client_wants_it() -> Result<()> {
    let server = Server::start("memory")?;
    let [owner, child, grandchild] = family(&server, "background")?;
    server.kubectl(&["delete", "configmap", &owner])?;
    ensure!(
        eventually(LIMIT, || !is_there(&server, &child)
            && !is_there(&server, &grandchild)),
        "background: {}",
        server.log()
    );

    let [owner, child, grandchild] = family(&server, "foreground")?;
    // it waits until the owner is gone, and the owner until its dependents are
    server.kubectl(&["delete", "configmap", &owner, "--cascade=foreground"])?;
    ensure!(!is_there(&server, &child), "foreground");
    ensure!(
        eventually(LIMIT, || !is_there(&server, &grandchild)),
        "foreground"
    );

    let [owner, child, grandchild] = family(&server, "orphan")?;
    server.kubectl(&["delete", "configmap", &owner, "--cascade=orphan"])?;
    let orphan = server.json(&["get", "configmap", &child])?;
    ensure!(
        orphan["metadata"].get("ownerReferences").is_none(),
        "{orphan}"
    );
    ensure!(is_there(&server, &grandchild), "orphan");
    Ok(())
}

#[test]
fn one_whose_owner_never_was_goes() -> Result<()> {
    let server = Server::start("memory")?;
    let nobody =
        json!({"metadata": {"name": "nobody", "uid": "00000000-0000-4000-8000-000000000000"}});
    server.kubectl_with(&["create", "-f", "-"], &owned("lonely", &nobody))?;
    ensure!(
        eventually(LIMIT, || !is_there(&server, "lonely")),
        "{}",
        server.log()
    );
    Ok(())
}

#[test]
fn a_namespace_goes_with_what_is_in_it() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl(&["create", "namespace", "a"])?;
    // SA-01, and the CA
    ensure!(
        eventually(LIMIT, || server
            .kubectl(&["get", "serviceaccount", "default", "-n", "a"])
            .is_ok()
            && server
                .kubectl(&["get", "configmap", "kube-root-ca.crt", "-n", "a"])
                .is_ok()),
        "{}",
        server.log()
    );
    for kind in ["configmap", "serviceaccount"] {
        server.kubectl(&["create", kind, "x", "-n", "a"])?;
    }
    server.kubectl(&["create", "secret", "generic", "x", "-n", "a"])?;
    // kubectl waits until it is gone
    server.kubectl(&["delete", "namespace", "a", "--timeout=20s"])?;
    let said = server.refused(&["create", "configmap", "y", "-n", "a"], "")?;
    ensure!(said.contains("namespaces \"a\" not found"), "{said}");
    server.kubectl(&["create", "namespace", "a"])?;
    let left = server.kubectl(&["get", "secrets,serviceaccounts", "-n", "a", "-o", "name"])?;
    ensure!(!left.contains("/x"), "{left}");
    Ok(())
}

#[test]
fn a_namespace_on_its_way_out_takes_nothing_new() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl(&["create", "namespace", "a"])?;
    let held = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": "a", "finalizers": ["example.com/held"]},
    });
    server.kubectl_with(&["create", "-f", "-"], &held.to_string())?;
    server.kubectl(&["delete", "namespace", "a", "--wait=false"])?;
    let said = server.refused(&["create", "configmap", "y", "-n", "a"], "")?;
    ensure!(
        said.contains("unable to create new content in namespace a because it is being terminated"),
        "{said}"
    );
    let namespace = server.json(&["get", "namespace", "a"])?;
    ensure!(namespace["status"]["phase"] == "Terminating", "{namespace}");
    server.kubectl(&[
        "patch",
        "configmap",
        "held",
        "-n",
        "a",
        "--type=merge",
        "-p",
        "{\"metadata\":{\"finalizers\":null}}",
    ])?;
    ensure!(
        eventually(LIMIT, || server
            .ask(&["get", "namespace", "a"], "")
            .is_ok_and(|said| !said.ok)),
        "{}",
        server.log()
    );
    Ok(())
}

#[test]
fn those_that_own_each_other_live_and_go_together() -> Result<()> {
    let server = Server::start("memory")?;
    for cascade in ["background", "foreground"] {
        let ring = family(&server, cascade)?;
        // the eldest is owned by the youngest
        let youngest = server.json(&["get", "configmap", &ring[2]])?;
        let of_youngest: serde_json::Value = serde_json::from_str(&owned(&ring[0], &youngest))?;
        let patch =
            json!({"metadata": {"ownerReferences": of_youngest["metadata"]["ownerReferences"]}});
        server.kubectl(&[
            "patch",
            "configmap",
            &ring[0],
            "--type=merge",
            "-p",
            &patch.to_string(),
        ])?;
        // something that is collected afterwards: the ring has been looked at by then
        let [other, child, _] = family(&server, &format!("{cascade}-other"))?;
        server.kubectl(&["delete", "configmap", &other])?;
        ensure!(
            eventually(LIMIT, || !is_there(&server, &child)),
            "{cascade}"
        );
        ensure!(
            ring.iter().all(|name| is_there(&server, name)),
            "{cascade}: {}",
            server.log()
        );
        let how = format!("--cascade={cascade}");
        server.kubectl(&["delete", "configmap", &ring[1], &how, "--wait=false"])?;
        ensure!(
            eventually(LIMIT, || !ring.iter().any(|name| is_there(&server, name))),
            "{cascade}: {}\n{}",
            server.kubectl(&["get", "configmaps", "--output=yaml"])?,
            server.log()
        );
    }
    Ok(())
}
