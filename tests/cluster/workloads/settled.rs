//! What is as it should be stays so, and bad input harms nobody.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, condition, controllers, names, node, workload};

/// CP-12: what is as it should be is not written again, neither by those who made it so nor by the next ones.
#[test]
fn what_is_settled_stays_as_it_is() -> Result<()> {
    let mut cluster = Cluster::start()?;
    node(&cluster, "n1")?;
    cluster.apply(&workload("Deployment", "web", &json!({"replicas": 2})))?;
    cluster.apply(&workload("DaemonSet", "agent", &json!({})))?;
    cluster.apply(&workload(
        "StatefulSet",
        "db",
        &json!({"replicas": 2, "serviceName": "db"}),
    ))?;
    for what in ["deployment/web", "daemonset/agent", "statefulset/db"] {
        cluster.rolled(what)?;
    }
    cluster.until("it is done", &["deployments"], |all| {
        condition(&all[0], "Progressing")
            .is_some_and(|said| said["reason"] == "NewReplicaSetAvailable")
    })?;
    let kinds = "deployments,replicasets,daemonsets,statefulsets,controllerrevisions,pods";
    let versions = |cluster: &Cluster| -> Result<Vec<String>> {
        let items = cluster.items(&[kinds])?;
        let shown = |item: &Value| {
            format!(
                "{} {} {}",
                item["kind"], item["metadata"]["name"], item["metadata"]["resourceVersion"]
            )
        };
        let ours = items.iter().filter(|item| {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            !name.starts_with("marker")
        });
        Ok(ours.map(shown).collect())
    };
    let before = versions(&cluster)?;
    ensure!(before.len() == 11, "{before:?}");
    for marker in ["marker1", "marker2"] {
        // what there was is looked at before what is made later
        cluster.controllers = None;
        cluster.controllers = Some(controllers(&cluster.server)?);
        cluster.apply(&workload("Deployment", marker, &json!({"replicas": 1})))?;
        cluster.apply(&workload("DaemonSet", marker, &json!({})))?;
        cluster.apply(&workload(
            "StatefulSet",
            marker,
            &json!({"replicas": 1, "serviceName": "db"}),
        ))?;
        for kind in ["deployment", "daemonset", "statefulset"] {
            cluster.rolled(&format!("{kind}/{marker}"))?;
        }
        let after = versions(&cluster)?;
        ensure!(after == before, "{before:#?}\n{after:#?}");
    }
    Ok(())
}

/// What fits badly together harms nobody, and nobody spins on it.
#[test]
fn bad_input_harms_nobody() -> Result<()> {
    let cluster = Cluster::start()?;
    // DP-14
    let neither =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
    let stuck = workload("Deployment", "stuck", &json!({"strategy": neither}));
    let refused = cluster
        .server
        .refused(&["apply", "-f", "-"], &stuck.to_string())?;
    ensure!(
        refused.contains("may not be 0 when `maxSurge` is 0"),
        "{refused}"
    );

    // two that select the same: each has its own
    let same = json!({"replicas": 2, "selector": {"matchLabels": {"app": "same"}}, "template": {
        "metadata": {"labels": {"app": "same"}}, "spec": {"containers": [{"name": "nginx", "image": "nginx:1.7.9"}]},
    }});
    for name in ["a", "b"] {
        cluster.apply(&workload("Deployment", name, &same))?;
        cluster.rolled(&format!("deployment/{name}"))?;
    }
    let pods = cluster.until("each has two", &["pods"], |pods| pods.len() == 4)?;
    let of = |name: &str| {
        let begins = |pod: &&str| pod.starts_with(&format!("{name}-"));
        names(&pods).into_iter().filter(begins).count()
    };
    ensure!((of("a"), of("b")) == (2, 2), "{:?}", names(&pods));

    // its ReplicaSet is deleted under it
    let before = cluster.sets()?[0]["metadata"]["uid"].clone();
    let name = cluster.sets()?[0]["metadata"]["name"].clone();
    cluster.kubectl(&["delete", "rs", name.as_str().context("a name")?])?;
    cluster.until("it is remade", &["rs"], |sets| {
        sets.len() == 2
            && sets
                .iter()
                .all(|set| set["metadata"]["uid"] != before && set["status"]["readyReplicas"] == 2)
    })?;

    // the name that it would give its ReplicaSet is another's
    cluster.kubectl(&["delete", "deployment", "a", "b"])?;
    cluster.until("all are gone", &["rs,pods"], |all| all.is_empty())?;
    let mut other = workload("ReplicaSet", "other", &json!({"replicas": 0}));
    other["metadata"]["name"] = name.clone();
    cluster.apply(&other)?;
    cluster.apply(&workload("Deployment", "a", &same))?;
    cluster.rolled("deployment/a")?;
    let deployment = cluster.server.json(&["get", "deployment", "a"])?;
    ensure!(deployment["status"]["collisionCount"] == 1, "{deployment}");
    let sets = cluster.sets()?;
    let other = sets.iter().find(|set| set["metadata"]["name"] == name);
    ensure!(
        sets.len() == 2 && other.context("the other")?["metadata"]["ownerReferences"].is_null(),
        "{sets:?}"
    );

    // an owner and what it owns, each the other's
    cluster.apply(&workload("ReplicaSet", "loop", &json!({"replicas": 1})))?;
    let looped = ["pods", "-l", "app=loop"];
    let pods = cluster.until("it has one", &looped, |pods| pods.len() == 1)?;
    let owner = json!({
        "apiVersion": "v1", "kind": "Pod", "controller": true,
        "name": pods[0]["metadata"]["name"], "uid": pods[0]["metadata"]["uid"],
    });
    cluster.patch(
        "rs/loop",
        &json!({"metadata": {"ownerReferences": [owner]}}),
    )?;
    cluster.kubectl(&["delete", "pods", "-l", "app=loop"])?;
    cluster.until("both go", &["rs,pods", "-l", "app=loop"], |all| {
        all.is_empty()
    })?;
    cluster.until("it goes with its owner", &["rs"], |sets| {
        !names(sets).contains(&"loop")
    })?;

    // a namespace goes with all that is in it
    cluster.kubectl(&["create", "namespace", "going"])?;
    for kind in ["Deployment", "StatefulSet"] {
        let mut one = workload(kind, "web", &json!({"replicas": 3, "serviceName": "web"}));
        one["metadata"]["namespace"] = "going".into();
        if kind == "Deployment" {
            one["spec"]
                .as_object_mut()
                .context("spec")?
                .remove("serviceName");
        }
        cluster.apply(&one)?;
    }
    cluster.kubectl(&["delete", "namespace", "going", "--timeout=50s"])?;
    Ok(())
}
