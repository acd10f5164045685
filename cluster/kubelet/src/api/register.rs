//! The node in the cluster: made where it is missing, its status told when it changes and now and then, its lease renewed.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Node, NodeCondition, NodeSpec, NodeStatus, Taint as NodeTaint},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

use super::{Cluster, Failed, node_object, within};
use crate::{
    Config, Level, OwnNode, Pressed, Runtime, Thresholds, Told as Tells,
    machine::{Identity, Machine},
};

/// Upstream's: between two looks, and how long a status may be told of no more where nothing changes.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const TELL_EVERY: Duration = Duration::from_secs(300);
/// Upstream's: a runtime that has not said by then how it does, is down.
const RUNTIME_WITHIN: Duration = Duration::from_secs(30);
/// Upstream's: a lease, and how often it is renewed.
const LEASE_SECONDS: i32 = 40;
const RENEW_EVERY: Duration = Duration::from_secs(10);
const LEASES: &str = "kube-node-lease";
/// Between two tries at a server that is not there.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_MOST: Duration = Duration::from_secs(7);

#[derive(Debug)]
pub struct Register {
    pub cluster: Cluster,
    pub runtime: Runtime,
    pub config: Config,
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    pub thresholds: Thresholds,
    /// What the kubelet found that the node runs short of.
    pub pressed: Pressed,
    /// Where the kubelet's server is; 0: nowhere.
    pub port: u16,
    /// Whether the machine shuts down.
    pub shuts_down: watch::Receiver<bool>,
    /// Is told the uid of the node's object.
    pub uid: watch::Sender<Option<String>>,
    /// Whether the node may be given pods.
    pub own: OwnNode,
    /// Is told what happens to the node.
    pub told: Tells,
}

/// `key=value:Effect`, as on a command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Taint(NodeTaint);

impl FromStr for Taint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no KEY[=VALUE]:EFFECT");
        let (pair, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return Err(format!(
                "{effect:?} is none of NoSchedule, PreferNoSchedule, NoExecute"
            ));
        }
        let (key, value) = match pair.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (pair, None),
        };
        if key.is_empty() {
            return Err(wrong());
        }
        Ok(Self(NodeTaint {
            effect: effect.to_owned(),
            key: key.to_owned(),
            value,
            time_added: None,
        }))
    }
}

/// What was told last.
#[derive(Debug, Default)]
struct Told {
    status: Option<(NodeStatus, Instant)>,
    /// The server's, where a kubelet before this one has told them.
    conditions: Vec<NodeCondition>,
}

impl Register {
    /// Keeps the node registered until it is dropped.
    pub async fn run(self) {
        tokio::join!(
            self.keep_status(),
            self.keep_lease(),
            self.keep_schedulable()
        );
    }

    async fn keep_status(&self) {
        let identity = Identity::of_this_machine();
        let mut told = Told::default();
        let mut wait = AGAIN;
        let mut shuts_down = self.shuts_down.clone();
        self.told
            .of_node(Level::Normal, "Starting", "Starting kubelet.");
        loop {
            shuts_down.mark_unchanged();
            let next = match self.once(&identity, &mut told).await {
                Ok(()) => {
                    wait = AGAIN;
                    LOOK_EVERY
                }
                Err(failed) => {
                    tracing::warn!(node = self.cluster.node, %failed, "the node's status is not told");
                    wait = (wait * 2).min(AGAIN_MOST);
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                Ok(()) = shuts_down.changed() => {}
            }
        }
    }

    async fn once(&self, identity: &Identity, told: &mut Told) -> Result<(), Failed> {
        let is_known = self.uid.borrow().is_some();
        if !is_known {
            let node = self.ensure().await?;
            let before = node.status.unwrap_or_default();
            self.look_for_a_reboot(&before, identity);
            told.status = None;
            told.conditions = before.conditions.unwrap_or_default();
            self.uid.send_replace(node.metadata.uid);
        }
        let is_contradicted = self.is_contradicted(told).await;
        let status = self.look(identity, told).await;
        let is_due = match &told.status {
            _ if is_contradicted => true,
            None => true,
            Some((before, at)) => {
                at.elapsed() >= TELL_EVERY
                    || node_object::without_heartbeat(before)
                        != node_object::without_heartbeat(&status)
            }
        };
        if !is_due {
            return Ok(());
        }
        let api = Api::<Node>::all(self.cluster.client.clone());
        let patch = Patch::Strategic(patch(&status));
        let params = PatchParams::default();
        match within(api.patch_status(&self.cluster.node, &params, &patch)).await {
            Ok(_) => {
                let now = status.conditions.clone().unwrap_or_default();
                for reason in node_object::news(&told.conditions, &now) {
                    self.tell_status(reason);
                }
                told.conditions = now;
                told.status = Some((status, Instant::now()));
                Ok(())
            }
            Err(failed) => {
                // somebody has deleted it
                if failed == Failed::NotFound {
                    self.uid.send_replace(None);
                }
                Err(failed)
            }
        }
    }

    /// Whether the server has not what it was told. It is asked itself: the watch may be behind what was told last.
    async fn is_contradicted(&self, told: &mut Told) -> bool {
        let seen = self.own.seen().conditions;
        if told.status.is_none() || !node_object::contradicts(&seen, &told.conditions) {
            return false;
        }
        let now = self.own.look().await.conditions;
        let is_contradicted = node_object::contradicts(&now, &told.conditions);
        if is_contradicted {
            told.conditions = now;
        }
        is_contradicted
    }

    async fn look(&self, identity: &Identity, told: &Told) -> NodeStatus {
        // one that hangs keeps nobody from saying so
        let (version, runtime, images) = tokio::join!(
            timeout(RUNTIME_WITHIN, self.runtime.version()),
            timeout(RUNTIME_WITHIN, self.runtime.status()),
            timeout(RUNTIME_WITHIN, self.runtime.all_images())
        );
        let runtime = match runtime {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "it has not answered for {}s",
                RUNTIME_WITHIN.as_secs()
            )),
        };
        let dir = self.config.kubelet_dir.clone();
        let machine = tokio::task::spawn_blocking(move || Machine::now(&dir)).await;
        let before = told.status.as_ref().map(|(status, _)| status);
        let version = version.ok().and_then(Result::ok).unwrap_or_else(|| {
            before
                .and_then(|it| it.node_info.as_ref())
                .map_or_else(String::new, |it| it.container_runtime_version.clone())
        });
        let looked = node_object::Looked {
            facts: &self.config.node,
            machine: &machine.unwrap_or_default(),
            identity,
            max_pods: self.config.max_pods,
            division: &self.config.division,
            thresholds: &self.thresholds,
            pressure: self.pressed.now(),
            port: self.port,
            runtime_version: &version,
            runtime: runtime.as_ref().map_err(String::as_str),
            images: &images.ok().and_then(Result::ok).unwrap_or_default(),
            shuts_down: *self.shuts_down.borrow(),
            now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
        };
        node_object::status(&looked, &told.conditions)
    }

    /// Upstream's words for whatever changes.
    fn tell_status(&self, reason: &'static str) {
        let message = format!("Node {} status is now: {reason}", self.cluster.node);
        self.told.of_node(Level::Normal, reason, message);
    }

    fn look_for_a_reboot(&self, before: &NodeStatus, identity: &Identity) {
        let before = before.node_info.as_ref().map(|it| it.boot_id.as_str());
        let now = &identity.boot_id;
        if before.is_some_and(|before| !before.is_empty() && before != now) {
            let message = format!(
                "Node {} has been rebooted, boot id: {now}",
                self.cluster.node
            );
            self.told.of_node(Level::Warning, "Rebooted", message);
        }
    }

    /// Somebody may forbid that it is given pods, and allow it again.
    async fn keep_schedulable(&self) {
        let mut own = self.own.clone();
        let mut was = None;
        loop {
            let is = own.next_schedulable(was).await;
            // how it was when this kubelet began is no news
            if was.is_some() {
                self.tell_status(match is {
                    true => "NodeSchedulable",
                    false => "NodeNotSchedulable",
                });
            }
            was = Some(is);
        }
    }

    /// The node's object, as it is or newly made. Its labels are brought up to date, its taints are set once.
    async fn ensure(&self) -> Result<Node, Failed> {
        let api = Api::<Node>::all(self.cluster.client.clone());
        let name = &self.cluster.node;
        let mut labels = node_object::labels(name);
        labels.extend(self.labels.clone());
        let found = match within(api.get_opt(name)).await? {
            Some(_) => {
                let patch = json!({"metadata": {"labels": labels}});
                let params = PatchParams::default();
                within(api.patch(name, &params, &Patch::Merge(&patch))).await?
            }
            None => {
                let node = Node {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        labels: Some(labels),
                        ..ObjectMeta::default()
                    },
                    spec: Some(NodeSpec {
                        taints: (!self.taints.is_empty())
                            .then(|| self.taints.iter().map(|taint| taint.0.clone()).collect()),
                        ..NodeSpec::default()
                    }),
                    status: None,
                };
                within(api.create(&PostParams::default(), &node)).await?
            }
        };
        tracing::info!(node = name, "the node is registered");
        Ok(found)
    }

    async fn keep_lease(&self) {
        let api = Api::<Lease>::namespaced(self.cluster.client.clone(), LEASES);
        loop {
            if let Err(failed) = self.renew(&api).await {
                tracing::warn!(node = self.cluster.node, %failed, "the node's lease is not renewed");
            }
            let is_registered = self.uid.borrow().is_some();
            tokio::time::sleep(if is_registered { RENEW_EVERY } else { AGAIN }).await;
        }
    }

    async fn renew(&self, api: &Api<Lease>) -> Result<(), Failed> {
        let Some(uid) = self.uid.borrow().clone() else {
            return Ok(());
        };
        let name = &self.cluster.node;
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let patch = json!({"spec": spec});
        let params = PatchParams::default();
        match within(api.patch(name, &params, &Patch::Merge(&patch))).await {
            Err(Failed::NotFound) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(name.clone()),
                        namespace: Some(LEASES.into()),
                        owner_references: Some(vec![OwnerReference {
                            api_version: "v1".into(),
                            kind: "Node".into(),
                            name: name.clone(),
                            uid,
                            ..OwnerReference::default()
                        }]),
                        ..ObjectMeta::default()
                    },
                    spec: Some(spec),
                };
                within(api.create(&PostParams::default(), &lease))
                    .await
                    .map(drop)
            }
            other => other.map(drop),
        }
    }
}

fn patch(status: &NodeStatus) -> Value {
    let mut value = serde_json::to_value(status).unwrap_or_default();
    // else the server would merge old addresses with new ones
    if let Some(Value::Array(list)) = value.get_mut("addresses") {
        list.push(json!({"$patch": "replace"}));
    }
    json!({"status": value})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_written_as_on_every_command_line() {
        for (text, parsed) in [
            ("a=b:NoSchedule", Some(("a", Some("b"), "NoSchedule"))),
            ("a:NoExecute", Some(("a", None, "NoExecute"))),
            (
                "x/y=:PreferNoSchedule",
                Some(("x/y", Some(""), "PreferNoSchedule")),
            ),
            ("a=b", None),
            ("=b:NoSchedule", None),
            ("a=b:Never", None),
        ] {
            let taint = text.parse::<Taint>().ok();
            let taint = taint.as_ref().map(|it| {
                (
                    it.0.key.as_str(),
                    it.0.value.as_deref(),
                    it.0.effect.as_str(),
                )
            });
            assert_eq!(taint, parsed, "{text}");
        }
    }
}
