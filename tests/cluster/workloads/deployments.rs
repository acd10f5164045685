//! Deployments and ReplicaSets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, condition, controllers, images, names, set_image, workload};

/// CP-01, DP-01, DP-02, DP-03, DP-04, DP-05, DP-06, DP-07, DP-08, DP-12, DP-15: rolled, undone, stalled; and what is deleted is gone with all that it made.
#[test]
fn a_deployment_is_rolled_and_undone_and_told_when_it_stalls() -> Result<()> {
    let cluster = Cluster::start()?;
    let name = "nginx-deployment";
    let what = "deployment/nginx-deployment";
    let typed = "deployment.v1.apps/nginx-deployment";
    cluster.apply(&workload("Deployment", name, &json!({"replicas": 3})))?;
    ensure!(cluster.rolled(what)?.contains("successfully rolled out"));
    let sets = cluster.sets()?;
    let hash = sets[0]["metadata"]["labels"]["pod-template-hash"].clone();
    let hash = hash.as_str().context("a hash")?;
    ensure!(names(&sets) == [format!("{name}-{hash}")], "{sets:?}");
    ensure!(sets[0]["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1");
    ensure!(sets[0]["spec"]["selector"]["matchLabels"]["pod-template-hash"] == hash);
    let pods = cluster.items(&["pods", "-l", &format!("pod-template-hash={hash}")])?;
    ensure!(pods.len() == 3);

    // 25 %: one more, and none missing
    cluster.hollow.begin();
    set_image(&cluster, typed, "nginx:1.9.1")?;
    cluster.rolled(what)?;
    let pods = cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 3]
    })?;
    ensure!(pods.len() == 3);
    let counts = cluster.hollow.counts();
    ensure!(counts.most <= 4 && counts.least_ready >= 3, "{counts:?}");

    set_image(&cluster, typed, "nginx:1.16.1")?;
    cluster.rolled(what)?;
    cluster.kubectl(&["rollout", "undo", typed, "--to-revision=2"])?;
    cluster.rolled(what)?;
    cluster.until("it is the second again", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 3]
    })?;

    // a bad image stalls, takes nothing away, and is told
    cluster.patch(what, &json!({"spec": {"progressDeadlineSeconds": 2}}))?;
    cluster.hollow.begin();
    set_image(&cluster, typed, "nginx:bad")?;
    let stalled = cluster
        .server
        .refused(&["rollout", "status", what, "--timeout=55s"], "")?;
    ensure!(
        stalled.contains("exceeded its progress deadline"),
        "{stalled}"
    );
    let deployment = cluster.server.json(&["get", what])?;
    let progressing = condition(&deployment, "Progressing").context("Progressing")?;
    ensure!(
        progressing["reason"] == "ProgressDeadlineExceeded" && progressing["status"] == "False"
    );
    ensure!(condition(&deployment, "Available").context("Available")?["status"] == "True");
    let counts = cluster.hollow.counts();
    ensure!(counts.most <= 4 && counts.least_ready >= 3, "{counts:?}");
    cluster.kubectl(&["rollout", "undo", what])?;
    cluster.rolled(what)?;
    cluster.until("it is undone", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 3]
    })?;

    cluster.kubectl(&["annotate", what, "kubernetes.io/change-cause=because"])?;
    cluster.until("its ReplicaSet has the cause", &["rs"], |sets| {
        let of =
            |set: &Value| set["metadata"]["annotations"]["kubernetes.io/change-cause"] == "because";
        sets.iter().filter(|set| of(set)).count() == 1
    })?;
    let history = cluster.kubectl(&["rollout", "history", typed])?;
    let revisions: Vec<_> = history
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    ensure!(revisions[2..] == ["1", "3", "5", "6"], "{history}");
    ensure!(
        history
            .lines()
            .any(|line| line.starts_with('6') && line.ends_with("because")),
        "{history}"
    );
    let one = cluster.kubectl(&["rollout", "history", typed, "--revision=3"])?;
    ensure!(one.contains("nginx:1.16.1"), "{one}");
    let events = cluster.kubectl(&["describe", what])?;
    ensure!(
        events.contains("ScalingReplicaSet")
            && events.contains("deployment-controller")
            && events.contains("Scaled down replica set"),
        "{events}"
    );
    cluster.kubectl(&["delete", what])?;
    cluster.until("its ReplicaSets go", &["rs"], |sets| sets.is_empty())?;
    cluster.until("and their pods", &["pods"], |pods| pods.is_empty())?;
    Ok(())
}

/// DP-09, DP-10, DP-11, DP-13: paused, restarted, with a history, with minReadySeconds, and recreated.
#[test]
fn a_deployment_can_be_paused_restarted_and_recreated() -> Result<()> {
    let cluster = Cluster::start()?;
    let what = "deployment/web";
    cluster.apply(&workload("Deployment", "web", &json!({"replicas": 2})))?;
    cluster.rolled(what)?;
    set_image(&cluster, what, "nginx:1.8")?;
    cluster.rolled(what)?;
    cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.8"; 2]
    })?;
    cluster.kubectl(&["rollout", "pause", what])?;
    set_image(&cluster, what, "nginx:1.9.1")?;
    cluster.kubectl(&["scale", what, "--replicas=5"])?;
    cluster.until("it is scaled", &["pods"], |pods| pods.len() == 5)?;
    cluster.until("it says that it is paused", &["deployments"], |all| {
        condition(&all[0], "Progressing").is_some_and(|said| said["reason"] == "DeploymentPaused")
            && all[0]["status"]["observedGeneration"] == all[0]["metadata"]["generation"]
    })?;
    ensure!(images(&cluster.items(&["pods"])?) == ["nginx:1.8"; 5] && cluster.sets()?.len() == 2);
    let refused = cluster.server.refused(&["rollout", "undo", what], "")?;
    ensure!(refused.contains("paused"), "{refused}");
    cluster.kubectl(&["rollout", "resume", what])?;
    cluster.rolled(what)?;
    cluster.until("it goes on", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 5]
    })?;

    // DP-11
    cluster.patch(what, &json!({"spec": {"revisionHistoryLimit": 1}}))?;
    for restart in [true, false] {
        let before = names(&cluster.items(&["pods"])?).join(" ");
        if restart {
            cluster.kubectl(&["rollout", "restart", what])?;
        } else {
            set_image(&cluster, what, "nginx:1.10")?;
        }
        cluster.rolled(what)?;
        cluster.until("all are others", &["pods"], |pods| {
            pods.len() == 5 && names(pods).iter().all(|name| !before.contains(name))
        })?;
        cluster.until("one old one is kept", &["rs"], |sets| sets.len() == 2)?;
    }

    // DP-10: ready is not enough
    cluster.patch(
        what,
        &json!({"spec": {"minReadySeconds": 3600, "replicas": 4, "progressDeadlineSeconds": 7200}}),
    )?;
    cluster.until("none counts as available", &["deployments"], |all| {
        let status = &all[0]["status"];
        status["readyReplicas"] == 4
            && status["availableReplicas"].is_null()
            && status["replicas"] == 4
    })?;
    cluster.patch(what, &json!({"spec": {"minReadySeconds": 1}}))?;
    cluster.until("all count a second later", &["deployments"], |all| {
        all[0]["status"]["availableReplicas"] == 4
    })?;

    // the old ones are gone before the new ones come
    cluster.patch(what, &json!({"spec": {"minReadySeconds": 0, "strategy": {"type": "Recreate", "rollingUpdate": null}}}))?;
    cluster.rolled(what)?;
    cluster.hollow.begin();
    set_image(&cluster, what, "nginx:1.16.1")?;
    cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.16.1"; 4]
    })?;
    cluster.rolled(what)?;
    let counts = cluster.hollow.counts();
    ensure!(counts.most <= 4 && counts.least_ready == 0, "{counts:?}");
    Ok(())
}

/// CP-12: killed in the middle of rolls, again and again, they make nothing twice, and end what they began.
#[test]
fn killed_controllers_make_nothing_twice() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let strategy =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}});
    cluster.apply(&workload(
        "Deployment",
        "web",
        &json!({"replicas": 10, "strategy": strategy}),
    ))?;
    for kill in 0..4 {
        std::thread::sleep(Duration::from_millis(150 * kill));
        if let Some(mut controllers) = cluster.controllers.take() {
            controllers.kill_9()?;
        }
        set_image(&cluster, "deployment/web", &format!("nginx:{kill}"))?;
        cluster.controllers = Some(controllers(&cluster.server)?);
    }
    cluster.rolled("deployment/web")?;
    cluster.until("all are of the last", &["pods"], |pods| {
        images(pods) == ["nginx:3"; 10]
    })?;
    let counts = cluster.hollow.counts();
    ensure!(counts.most <= 12, "{counts:?}");
    Ok(())
}

/// What is nobody's is taken, what is another's is not, what no longer fits is let go; and a quota is told of, and tried again.
#[test]
fn a_replica_set_takes_only_what_is_nobodys() -> Result<()> {
    let cluster = Cluster::start()?;
    let pod = |name: &str, owners: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}, "ownerReferences": owners},
            "spec": {"containers": [{"name": "c", "image": "example/c:1"}]},
        })
    };
    cluster
        .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "other"}}))?;
    let other = cluster.server.json(&["get", "configmap", "other"])?;
    let other = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": other["metadata"]["uid"], "controller": true,
    }]);
    cluster.apply(&pod("free", json!([])))?;
    cluster.apply(&pod("others", other))?;
    cluster.apply(&workload("ReplicaSet", "web", &json!({"replicas": 2})))?;
    let is_of = |kind: &'static str| {
        move |pod: &&Value| pod["metadata"]["ownerReferences"][0]["kind"] == kind
    };
    let pods = cluster.until("it has two", &["pods"], |pods| {
        pods.iter().filter(is_of("ReplicaSet")).count() == 2
    })?;
    ensure!(pods.len() == 3, "{:?}", names(&pods));
    let free = pods
        .iter()
        .find(|pod| pod["metadata"]["name"] == "free")
        .context("free")?;
    ensure!(is_of("ReplicaSet")(&free));
    ensure!(pods.iter().filter(is_of("ConfigMap")).count() == 1);
    // it is let go, and another is made
    cluster.kubectl(&["label", "pod", "free", "app=else", "--overwrite"])?;
    let pods = cluster.until("another is made", &["pods"], |pods| pods.len() == 4)?;
    let free = pods
        .iter()
        .find(|pod| pod["metadata"]["name"] == "free")
        .context("free")?;
    ensure!(free["metadata"]["ownerReferences"].is_null(), "{free}");
    // deleted under it
    let one = pods.iter().find(is_of("ReplicaSet")).context("one")?;
    let one = one["metadata"]["name"]
        .as_str()
        .context("a name")?
        .to_owned();
    cluster.kubectl(&["delete", "pod", &one])?;
    cluster.until("it is remade", &["rs"], |sets| {
        sets[0]["status"]["readyReplicas"] == 2
    })?;
    // its pods outlive it, and the next one takes them
    let before = cluster.items(&["pods", "-l", "app=web"])?;
    cluster.kubectl(&["delete", "rs", "web", "--cascade=orphan"])?;
    cluster.until("they are nobody's", &["pods"], |pods| {
        !pods.iter().any(|pod| is_of("ReplicaSet")(&pod))
    })?;
    cluster.apply(&workload("ReplicaSet", "next", &json!({
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "example/c:1"}]}},
    })))?;
    cluster.until("it has both", &["rs"], |sets| {
        sets[0]["status"]["readyReplicas"] == 2
    })?;
    let after = cluster.items(&["pods", "-l", "app=web"])?;
    ensure!(
        names(&after) == names(&before),
        "{:?} {:?}",
        names(&before),
        names(&after)
    );

    cluster.kubectl(&["create", "quota", "few", "--hard=pods=5"])?;
    cluster.until("the quota is counted", &["quota"], |quotas| {
        quotas[0]["status"]["used"]["pods"] == "4"
    })?;
    cluster.kubectl(&["scale", "rs/next", "--replicas=5"])?;
    let sets = cluster.until("it is told", &["rs"], |sets| {
        condition(&sets[0], "ReplicaFailure").is_some()
    })?;
    let failure = condition(&sets[0], "ReplicaFailure").context("ReplicaFailure")?;
    ensure!(failure["reason"] == "FailedCreate");
    ensure!(
        failure["message"]
            .as_str()
            .is_some_and(|why| why.contains("exceeded quota: few")),
        "{failure}"
    );
    let events = cluster.kubectl(&["describe", "rs/next"])?;
    ensure!(
        events.contains("FailedCreate") && events.contains("replicaset-controller"),
        "{events}"
    );
    cluster.kubectl(&["delete", "quota", "few"])?;
    cluster.until("it has all, and nothing is wrong", &["rs"], |sets| {
        sets[0]["status"]["readyReplicas"] == 5 && condition(&sets[0], "ReplicaFailure").is_none()
    })?;
    Ok(())
}
