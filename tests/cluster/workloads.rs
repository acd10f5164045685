//! Deployments, ReplicaSets, DaemonSets and StatefulSets, by real kubectl. Their pods have no containers: hollow kubelets make them ready.

pub mod hollow;
mod sets;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::cluster::{Component, Server};
use serde_json::{Value, json};

use self::hollow::Hollow;

const WITHIN: Duration = Duration::from_secs(60);
/// Those that are asked for here, and what follows from them.
const NAMES: &str =
    "deployment-controller,replicaset-controller,daemonset-controller,statefulset-controller";

fn controllers(server: &Server) -> Result<Component> {
    Component::start(
        server,
        "controllers",
        &["--leader-elect=false", "--controllers", NAMES],
    )
}

/// Hollow kubelets, controllers and a server: in the order in which they end.
struct Cluster {
    hollow: Hollow,
    controllers: Option<Component>,
    server: Server,
}

impl Cluster {
    fn start() -> Result<Self> {
        let server = Server::start("memory")?;
        Ok(Self {
            controllers: Some(controllers(&server)?),
            hollow: Hollow::start(&server)?,
            server,
        })
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.server.kubectl(arguments)
    }

    fn apply(&self, object: &Value) -> Result<()> {
        self.server
            .kubectl_with(&["apply", "-f", "-"], &object.to_string())
            .map(drop)
    }

    fn patch(&self, what: &str, patch: &Value) -> Result<()> {
        let patch = patch.to_string();
        self.kubectl(&["patch", what, "--type=merge", "-p", &patch])
            .map(drop)
    }

    fn items(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let mut all = vec!["get"];
        all.extend(arguments);
        let list = self.server.json(&all)?;
        Ok(list["items"].as_array().context("items")?.clone())
    }

    /// Waits for what the objects that kubectl gets are to be.
    fn until(&self, what: &str, get: &[&str], is: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let until = Instant::now() + WITHIN;
        loop {
            let items = self.items(get)?;
            if is(&items) {
                return Ok(items);
            }
            if Instant::now() > until {
                let log = std::fs::read_to_string(self.server.dir().join("controllers.log"));
                bail!(
                    "not within {} s: {what}: {items:#?}\ncontrollers: {log:?}",
                    WITHIN.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn rolled(&self, what: &str) -> Result<String> {
        let limit = format!("--timeout={}s", WITHIN.as_secs() - 5);
        self.kubectl(&["rollout", "status", what, &limit])
            .with_context(|| {
                std::fs::read_to_string(self.server.dir().join("controllers.log"))
                    .unwrap_or_default()
            })
    }

    fn sets(&self) -> Result<Vec<Value>> {
        self.items(&["rs"])
    }
}

fn images(pods: &[Value]) -> Vec<&str> {
    let mut images: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str())
        .collect();
    images.sort_unstable();
    images
}

/// Those that are not asked to go.
fn kept(objects: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = objects
        .iter()
        .filter(|object| object["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    names
}

fn names(objects: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = objects
        .iter()
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect();
    names.sort_unstable();
    names
}

fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    let mut conditions = object["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == type_)
}

fn workload(kind: &str, name: &str, more: &Value) -> Value {
    let mut spec = json!({
        "selector": {"matchLabels": {"app": name}},
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "nginx", "image": "nginx:1.7.9"}]},
        },
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn set_image(cluster: &Cluster, what: &str, image: &str) -> Result<()> {
    let image = format!("nginx={image}");
    cluster.kubectl(&["set", "image", what, &image]).map(drop)
}

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

fn node(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}}))
}

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
