//! StatefulSets.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, condition, images, kept, names, set_image, workload};

/// PO-05: names, order, claims, partitions.
#[test]
fn a_stateful_set_has_names_an_order_and_claims() -> Result<()> {
    let cluster = Cluster::start()?;
    let what = "statefulset/web";
    let claims = json!([{
        "metadata": {"name": "www"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }]);
    cluster.apply(&workload(
        "StatefulSet",
        "web",
        &json!({
            "replicas": 3, "serviceName": "nginx", "volumeClaimTemplates": claims,
        }),
    ))?;
    cluster.rolled(what)?;
    let pods = cluster.items(&["pods"])?;
    ensure!(names(&pods) == ["web-0", "web-1", "web-2"]);
    let made = |at: usize| {
        pods[at]["metadata"]["creationTimestamp"]
            .as_str()
            .map(str::to_owned)
    };
    ensure!(made(0) <= made(1) && made(1) <= made(2));
    ensure!(pods[1]["spec"]["hostname"] == "web-1" && pods[1]["spec"]["subdomain"] == "nginx");
    ensure!(pods[1]["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == "1");
    let volume = json!({"name": "www", "persistentVolumeClaim": {"claimName": "www-web-1"}});
    ensure!(
        pods[1]["spec"]["volumes"]
            .as_array()
            .is_some_and(|all| all.contains(&volume)),
        "{}",
        pods[1]
    );
    ensure!(names(&cluster.items(&["pvc"])?) == ["www-web-0", "www-web-1", "www-web-2"]);

    // its name comes back, with its claim
    let before = pods[1]["metadata"]["uid"].clone();
    cluster.kubectl(&["delete", "pod", "web-1"])?;
    cluster.until("it is remade", &["pods"], |pods| {
        pods.len() == 3 && pods[1]["metadata"]["uid"] != before
    })?;
    cluster.rolled(what)?;

    // one that isn't ready holds up those after it
    cluster.patch(
        what,
        &json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}}),
    )?;
    cluster.hollow.begin();
    set_image(&cluster, what, "nginx:1.9.1")?;
    ensure!(
        cluster
            .rolled(what)?
            .contains("partitioned roll out complete")
    );
    ensure!(images(&cluster.items(&["pods"])?) == ["nginx:1.7.9", "nginx:1.7.9", "nginx:1.9.1"]);
    // what is remade below the partition is as it was
    cluster.kubectl(&["delete", "pod", "web-0"])?;
    cluster.until("it is as it was", &["pods"], |pods| {
        images(pods) == ["nginx:1.7.9", "nginx:1.7.9", "nginx:1.9.1"]
            && pods.iter().all(|pod| condition(pod, "Ready").is_some())
    })?;
    cluster.patch(
        what,
        &json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}),
    )?;
    cluster.rolled(what)?;
    cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 3]
    })?;
    let sets = cluster.until("the roll is over", &["sts"], |sets| {
        sets[0]["status"]["currentRevision"] == sets[0]["status"]["updateRevision"]
    })?;
    ensure!(sets[0]["status"]["currentReplicas"] == 3, "{}", sets[0]);
    let counts = cluster.hollow.counts();
    ensure!(counts.most == 3 && counts.least_ready == 2, "{counts:?}");
    cluster.kubectl(&["rollout", "undo", what])?;
    cluster.rolled(what)?;
    cluster.until("it is undone", &["pods"], |pods| {
        images(pods) == ["nginx:1.7.9"; 3]
    })?;

    // scaled away: the claims stay, until the policy says otherwise
    cluster.kubectl(&["scale", what, "--replicas=2"])?;
    cluster.until("the highest goes", &["pods"], |pods| {
        names(pods) == ["web-0", "web-1"]
    })?;
    ensure!(cluster.items(&["pvc"])?.len() == 3);
    let policy = json!({"whenScaled": "Delete", "whenDeleted": "Delete"});
    cluster.patch(
        what,
        &json!({"spec": {"persistentVolumeClaimRetentionPolicy": policy}}),
    )?;
    cluster.until(
        "the claims of those that are there are the set's",
        &["pvc"],
        |claims| {
            let of_set =
                |claim: &&Value| claim["metadata"]["ownerReferences"][0]["kind"] == "StatefulSet";
            claims.iter().filter(of_set).count() == 2
        },
    )?;
    cluster.kubectl(&["scale", what, "--replicas=1"])?;
    cluster.until("its claim goes with it", &["pvc"], |claims| {
        kept(claims) == ["www-web-0", "www-web-2"]
    })?;
    cluster.kubectl(&["delete", what])?;
    cluster.until("all that is its goes", &["pvc"], |claims| {
        kept(claims) == ["www-web-2"]
    })?;
    cluster.until("the pods, too", &["pods"], |pods| pods.is_empty())?;

    // all at once
    cluster.apply(&workload("StatefulSet", "many", &json!({
        "replicas": 4, "serviceName": "many", "podManagementPolicy": "Parallel", "ordinals": {"start": 3},
        "template": {
            "metadata": {"labels": {"app": "many"}},
            "spec": {"containers": [{"name": "nginx", "image": "nginx:bad"}]},
        },
    })))?;
    cluster.until("none waits for another", &["pods"], |pods| {
        names(pods) == ["many-3", "many-4", "many-5", "many-6"]
    })?;
    Ok(())
}

/// As many as may be missed, and no more: neither those that are not ready nor those that are not for long enough; and which ordinals there are moves with their start.
#[test]
fn a_stateful_set_misses_no_more_than_it_may_and_its_ordinals_move() -> Result<()> {
    let cluster = Cluster::start()?;
    let what = "statefulset/web";
    cluster.apply(&workload(
        "StatefulSet",
        "web",
        &json!({
            "replicas": 5, "serviceName": "web", "podManagementPolicy": "Parallel",
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": 2}},
        }),
    ))?;
    cluster.rolled(what)?;
    cluster.hollow.begin();
    let settled = |what: &str, is: &dyn Fn(&Value) -> bool| {
        cluster.until(what, &["sts"], |sets| {
            let (status, meta) = (&sets[0]["status"], &sets[0]["metadata"]);
            status["observedGeneration"] == meta["generation"] && is(status)
        })
    };

    // those that never become ready hold up the others
    set_image(&cluster, what, "nginx:bad")?;
    settled("two are new", &|status| {
        status["updatedReplicas"] == 2 && status["readyReplicas"] == 3 && status["replicas"] == 5
    })?;
    let pods = cluster.items(&["pods"])?;
    let bad = pods
        .iter()
        .filter(|pod| pod["spec"]["containers"][0]["image"] == "nginx:bad");
    let bad: Vec<Value> = bad.cloned().collect();
    ensure!(names(&bad) == ["web-3", "web-4"], "{:?}", names(&bad));
    set_image(&cluster, what, "nginx:1.9.1")?;
    cluster.kubectl(&["delete", "pods", "web-3", "web-4"])?;
    cluster.rolled(what)?;
    cluster.until("all are new", &["pods"], |pods| {
        images(pods) == ["nginx:1.9.1"; 5]
    })?;

    // those that have been ready for a moment only are missed still
    cluster.patch(what, &json!({"spec": {"minReadySeconds": 3600}}))?;
    settled("none counts", &|status| {
        status["readyReplicas"] == 5 && status["availableReplicas"] == 0
    })?;
    set_image(&cluster, what, "nginx:1.16.1")?;
    settled("it is seen, and nothing is done", &|status| {
        status["updatedReplicas"].is_null() && status["currentReplicas"] == 5
    })?;
    cluster.patch(what, &json!({"spec": {"minReadySeconds": 1}}))?;
    cluster.rolled(what)?;
    cluster.until("all are newer", &["pods"], |pods| {
        images(pods) == ["nginx:1.16.1"; 5]
    })?;
    let counts = cluster.hollow.counts();
    ensure!(counts.most <= 5 && counts.least_ready >= 3, "{counts:?}");

    cluster.patch(what, &json!({"spec": {"ordinals": {"start": 3}}}))?;
    cluster.until("they have moved", &["pods"], |pods| {
        names(pods) == ["web-3", "web-4", "web-5", "web-6", "web-7"]
    })?;
    Ok(())
}
