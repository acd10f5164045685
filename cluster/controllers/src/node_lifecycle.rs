//! Nodes that fall silent are told of, and their pods go elsewhere, a few nodes at a time (BO-10, BO-12, SH-01).
//!
//! ```text
//!  the pass, every few seconds, over all nodes        each node, when something of it changes or the pass says so
//!  ── are we heard ourselves?                          ── silent? its lease read afresh ──▶ conditions Unknown ──▶ its pods not Ready
//!  ── pulse: has its lease or status changed?          ── taints as its conditions have them: NoSchedule at once,
//!  ── zones: whose turn is it to lose its pods?  ──▶      NoExecute when it is its turn; taint eviction does the rest
//! ```
//!
//! Invariant: a node is called silent only after its lease was read from the server at that moment, not from a cache that may be behind.
//! Invariant: time in which the server did not answer us, or we did not look, is nobody's silence.
//! Invariant: while no node of the cluster is ready, nobody is evicted.

mod pulse;
mod verdict;
mod zones;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_recorder::Level;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;

use self::{
    pulse::{Grace, Pulse, Sign},
    verdict::{Evict, Ready},
    zones::{Outcome, Rates, Seen, State as ZoneState, Zones},
};
use crate::{
    Cache, Context, Error, Key, Merge, Queue,
    controller::{Controller, Next},
    pod,
    pods_on_nodes::PodsOnNodes,
};

/// How its events name it, as upstream's do.
const COMPONENT: &str = "node-controller";
const LEASES: &str = "kube-node-lease";
/// The server has to answer within this, or nothing is known of nodes.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// Upstream's flags of these names, and their defaults.
#[derive(Debug, Clone)]
pub struct NodeMonitor {
    /// How often all nodes are looked at.
    pub period: Duration,
    /// A node that shows no sign for longer is silent.
    pub grace_period: Duration,
    /// … that has never said how it does.
    pub startup_grace_period: Duration,
    /// Nodes a second and zone that lose their pods.
    pub eviction_rate: f64,
    /// … where most of the zone is gone.
    pub secondary_eviction_rate: f64,
    /// A zone of no more nodes loses none while most of it is gone.
    pub large_cluster_size_threshold: usize,
    /// The share of nodes that aren't ready from which on most of a zone is gone.
    pub unhealthy_zone_threshold: f64,
}

impl Default for NodeMonitor {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(5),
            grace_period: Duration::from_secs(50),
            startup_grace_period: Duration::from_secs(60),
            eviction_rate: 0.1,
            secondary_eviction_rate: 0.01,
            large_cluster_size_threshold: 50,
            unhealthy_zone_threshold: 0.55,
        }
    }
}

pub(crate) struct NodeLifecycle {
    context: Arc<Context>,
    queue: Queue,
    nodes: Cache<Node>,
    leases: Cache<Lease>,
    pods: Cache<Pod>,
    on_nodes: PodsOnNodes,
    monitor: NodeMonitor,
    state: Mutex<State>,
}

struct State {
    zones: Zones,
    known: HashMap<String, Known>,
    /// When the last pass was, if the server answered then.
    passed: Option<Instant>,
}

/// What is remembered of a node. It is gone with this process: then each has its whole time again.
struct Known {
    node: Arc<Node>,
    pulse: Pulse,
    /// Its pods may be told to go.
    granted: bool,
    /// Its pods have not been marked yet.
    marks_pods: bool,
}

/// All nodes are looked at.
fn pass() -> Key {
    Key::new("", "")
}

fn uid(node: &Node) -> &str {
    node.metadata.uid.as_deref().unwrap_or_default()
}

impl Controller for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle-controller";
    const ACCOUNT: &'static str = "node-controller";
    const WORKERS: usize = 8;

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let nodes = context.cache::<Node>();
        let leases = context.cache::<Lease>();
        let pods = context.cache::<Pod>();
        let keys = queue.clone();
        nodes.on_change(move |_, new| {
            if let Some(node) = new {
                keys.add(Key::of(&**node));
            }
        });
        let keys = queue.clone();
        pods.on_change(move |old, new| {
            let bound = |pod: &Arc<Pod>| pod::node_of(pod).is_some();
            if let Some(pod) = new
                && bound(pod)
                && !old.is_some_and(bound)
            {
                keys.add(Key::of(&**pod));
            }
        });
        let on_nodes = PodsOnNodes::of(&pods);
        queue.add(pass());
        let monitor = context.options().node_monitor.clone();
        let rates = Rates {
            eviction: monitor.eviction_rate,
            secondary: monitor.secondary_eviction_rate,
            large_cluster: monitor.large_cluster_size_threshold,
            unhealthy_share: monitor.unhealthy_zone_threshold,
            // Leases are renewed that often, at the least: 10 s of 50.
            settle: monitor.grace_period / 5,
        };
        Self {
            context,
            queue,
            nodes,
            leases,
            pods,
            on_nodes,
            monitor,
            state: Mutex::new(State {
                zones: Zones::new(rates),
                known: HashMap::new(),
                passed: None,
            }),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        if *key == pass() {
            return Ok(Next::After(self.pass().await));
        }
        if !key.namespace.is_empty() {
            return self.bound(key).await;
        }
        let Some(node) = self.nodes.get(key) else {
            return Ok(Next::Settled);
        };
        let node = self.silence(node).await?;
        let node = self.labels(node).await?;
        self.taints(&node).await?;
        self.mark_pods(&node).await?;
        Ok(Next::Settled)
    }
}

impl NodeLifecycle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grace(&self) -> Grace {
        Grace {
            running: self.monitor.grace_period,
            startup: self.monitor.startup_grace_period,
        }
    }

    fn lease(&self, node: &str) -> Option<Arc<Lease>> {
        self.leases.get(&Key::new(LEASES, node))
    }

    /// Whether the server answers: when it doesn't, nodes can't be heard either.
    async fn is_heard(&self) -> bool {
        let namespaces = Api::<Namespace>::all(self.context.manager().clone());
        let asked = tokio::time::timeout(HEARD_WITHIN, namespaces.get_opt(LEASES)).await;
        asked.is_ok_and(|asked| asked.is_ok())
    }

    /// Its Lease as the server has it now.
    async fn fresh_lease(&self, node: &str) -> Result<Option<Lease>, Error> {
        let leases = Api::<Lease>::namespaced(self.context.manager().clone(), LEASES);
        // listed, since the manager's role may not get it
        let wanted = ListParams::default().fields(&format!("metadata.name={node}"));
        match tokio::time::timeout(HEARD_WITHIN, leases.list(&wanted)).await {
            Ok(Ok(found)) => Ok(found.items.into_iter().next()),
            Ok(Err(error)) => Err(Error::Other(format!("read the lease of {node}: {error}"))),
            Err(_) => {
                let seconds = HEARD_WITHIN.as_secs();
                Err(Error::Other(format!(
                    "read the lease of {node}: no answer within {seconds} s"
                )))
            }
        }
    }

    /// Looks at all nodes; until it does so again.
    async fn pass(&self) -> Duration {
        let period = self.monitor.period;
        if !self.is_heard().await {
            if self.state().passed.take().is_some() {
                tracing::warn!(
                    "the API server does not answer: until it does, no node is called silent and no pod evicted"
                );
            }
            return period;
        }
        let now = Instant::now();
        let nodes = self.nodes.all();
        let mut state = self.state();
        // A process that was stopped has not looked.
        let late = (2 * period).max(self.monitor.grace_period / 2);
        let before = state.passed.replace(now);
        if before.is_none_or(|before| now.saturating_duration_since(before) > late) {
            for known in state.known.values_mut() {
                known.pulse.restart(now);
            }
        }
        let mut wanted: BTreeSet<Key> = BTreeSet::new();
        let mut seen = Vec::with_capacity(nodes.len());
        for node in &nodes {
            let known = self.look(&mut state, node, now);
            let ready = Ready::of(node);
            if !matches!(ready, Ready::No | Ready::Unknown) {
                known.granted = false;
            }
            let silent = known.pulse.is_silent(now, self.grace());
            if silent && ready != Ready::Unknown || known.marks_pods {
                wanted.insert(Key::of(&**node));
            }
            seen.push(Seen {
                uid: uid(node).to_owned(),
                zone: zone(node),
                counts: !node
                    .labels()
                    .contains_key("node.kubernetes.io/exclude-disruption"),
                // Who has fallen silent isn't ready, even where nobody has written that yet.
                is_ready: ready == Ready::Yes && !silent,
                waits: !known.granted && verdict::waits_for_eviction(node),
            });
        }
        self.forget(&mut state, &nodes);
        let nobody = state.zones.nobody_is_ready();
        let outcome = state.zones.pass(&seen, now);
        let next = outcome.next.map_or(period, |next| next.min(period));
        self.apply(&mut state, &outcome, now, &nodes, &mut wanted);
        if state.zones.nobody_is_ready() && !nobody {
            tracing::warn!(
                nodes = nodes.len(),
                "no node is ready any more: nobody is evicted"
            );
            for known in state.known.values_mut() {
                known.granted = false;
            }
            wanted.extend(nodes.iter().map(|node| Key::of(&**node)));
        }
        drop(state);
        for key in wanted {
            self.queue.add(key);
        }
        // A turn that is due in no time is due with the next pass.
        next.max(Duration::from_millis(100).min(period))
    }

    fn look<'a>(&self, state: &'a mut State, node: &Arc<Node>, now: Instant) -> &'a mut Known {
        let name = node.name_any();
        let sign = Sign::of(node, self.lease(&name).as_deref());
        if state
            .known
            .get(&name)
            .is_none_or(|known| uid(&known.node) != uid(node))
        {
            self.tell(
                node,
                "RegisteredNode",
                &format!("Registered Node {name} in Controller"),
            );
            let new = Known {
                node: node.clone(),
                pulse: Pulse::new(sign.clone(), now),
                granted: false,
                // Whoever was here before may have ended between the two.
                marks_pods: Ready::of(node) == Ready::Unknown,
            };
            state.known.insert(name.clone(), new);
        }
        let known = state.known.entry(name).or_insert_with(|| Known {
            node: node.clone(),
            pulse: Pulse::new(sign.clone(), now),
            granted: false,
            marks_pods: false,
        });
        known.node = node.clone();
        known.pulse.look(sign, now);
        known
    }

    fn forget(&self, state: &mut State, nodes: &[Arc<Node>]) {
        let there: BTreeSet<&str> = nodes
            .iter()
            .filter_map(|node| node.metadata.name.as_deref())
            .collect();
        state.known.retain(|name, known| {
            let stays = there.contains(name.as_str());
            if !stays {
                let said = format!("Removing Node {name} from Controller");
                self.tell(&known.node, "RemovingNode", &said);
            }
            stays
        });
    }

    fn apply(
        &self,
        state: &mut State,
        outcome: &Outcome,
        now: Instant,
        nodes: &[Arc<Node>],
        wanted: &mut BTreeSet<Key>,
    ) {
        for (zone, turned, not_ready) in &outcome.turned {
            let zone = zone.replace('\0', "");
            match turned {
                ZoneState::Normal => tracing::info!(zone, not_ready, "a zone is as it should be"),
                worse => tracing::warn!(zone, state = ?worse, not_ready, "a zone is in trouble"),
            }
        }
        if outcome.reached_again {
            tracing::info!("a node is ready again: all others have their whole time anew");
            for known in state.known.values_mut() {
                known.pulse.restart(now);
            }
        }
        let granted: BTreeSet<&str> = outcome.granted.iter().map(String::as_str).collect();
        for node in nodes.iter().filter(|node| granted.contains(uid(node))) {
            if let Some(known) = state.known.get_mut(&node.name_any()) {
                known.granted = true;
                wanted.insert(Key::of(&**node));
            }
        }
    }

    fn tell(&self, node: &Node, reason: &str, what: &str) {
        let message = format!("Node {} event: {what}", node.name_any());
        self.context
            .event(node, COMPONENT, Level::Normal, reason, message);
    }

    /// A node that shows no sign any more gets conditions that say so.
    async fn silence(&self, node: Arc<Node>) -> Result<Arc<Node>, Error> {
        let name = node.name_any();
        let now = Instant::now();
        let is_silent = {
            let state = self.state();
            let known = state
                .known
                .get(&name)
                .filter(|known| uid(&known.node) == uid(&node));
            state.passed.is_some()
                && known.is_some_and(|known| known.pulse.is_silent(now, self.grace()))
        };
        if !is_silent {
            return Ok(node);
        }
        let conditions = verdict::silent_conditions(&node, self.context.now());
        if conditions.is_empty() {
            return Ok(node);
        }
        // Our watches may be behind.
        let key = Key::of(&*node);
        let lease = self.fresh_lease(&name).await?;
        let fresh = match self.context.read::<Node>(&key).await {
            Ok(fresh) => fresh,
            Err(error) if error.is_not_found() => return Ok(node),
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let still = {
            let mut state = self.state();
            let Some(known) = state.known.get_mut(&name) else {
                return Ok(node);
            };
            known.pulse.look(Sign::of(&fresh, lease.as_ref()), now);
            known.pulse.is_silent(now, self.grace())
        };
        if !still || uid(&fresh) != uid(&node) {
            return Ok(node);
        }
        let was_ready = Ready::of(&fresh) == Ready::Yes;
        let conditions = verdict::silent_conditions(&fresh, self.context.now());
        if conditions.is_empty() {
            return Ok(node);
        }
        let patch = json!({
            "metadata": {"uid": uid(&fresh), "resourceVersion": fresh.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let node = self
            .context
            .patch_status::<Node>(&key, &patch, Merge::Strategic)
            .await?;
        tracing::warn!(node = name, "a node is silent");
        if was_ready {
            let message = format!("Node {name} status is now: NodeNotReady");
            self.context
                .event(&*node, COMPONENT, Level::Normal, "NodeNotReady", message);
        }
        if let Some(known) = self.state().known.get_mut(&name) {
            known.marks_pods = true;
        }
        Ok(node)
    }

    async fn labels(&self, node: Arc<Node>) -> Result<Arc<Node>, Error> {
        let labels = verdict::labels_wanted(&node);
        if labels.is_empty() {
            return Ok(node);
        }
        let patch = json!({"metadata": {"uid": uid(&node), "labels": labels}});
        self.context
            .patch(&Key::of(&*node), &patch, Merge::Json)
            .await
    }

    async fn taints(&self, node: &Node) -> Result<(), Error> {
        let evict = {
            let state = self.state();
            let known = state.known.get(&node.name_any());
            if state.zones.nobody_is_ready() {
                Evict::Nobody
            } else if known.is_some_and(|known| known.granted && uid(&known.node) == uid(node)) {
                Evict::Now
            } else {
                Evict::NotYet
            }
        };
        let Some(taints) = verdict::taints_wanted(node, evict, self.context.now()) else {
            return Ok(());
        };
        let patch = json!({
            "metadata": {"uid": uid(node), "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let patched = self
            .context
            .patch::<Node>(&Key::of(node), &patch, Merge::Json)
            .await;
        match patched {
            Err(error) if error.is_not_found() => Ok(()),
            other => other.map(drop),
        }
    }

    /// Pods of a node that has fallen silent aren't ready: nobody can say that they are.
    async fn mark_pods(&self, node: &Node) -> Result<(), Error> {
        let name = node.name_any();
        let marks = |state: &State| state.known.get(&name).is_some_and(|known| known.marks_pods);
        if !marks(&self.state()) {
            return Ok(());
        }
        let mut failed = None;
        if Ready::of(node) == Ready::Unknown {
            for key in self.on_nodes.on(&name) {
                if let Some(pod) = self.pods.get(&key)
                    && let Err(error) = self.mark_pod(&pod).await
                {
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => {
                if let Some(known) = self.state().known.get_mut(&name) {
                    known.marks_pods = false;
                }
                Ok(())
            }
        }
    }

    async fn mark_pod(&self, pod: &Pod) -> Result<(), Error> {
        if !pod::is_ready(pod) {
            return Ok(());
        }
        let mut marked = pod.clone();
        let conditions = marked
            .status
            .as_mut()
            .and_then(|status| status.conditions.as_mut());
        for ready in conditions
            .into_iter()
            .flatten()
            .filter(|one| one.type_ == "Ready")
        {
            ready.status = "False".into();
            ready.last_transition_time = Some(Time(self.context.now()));
        }
        match self.context.update_status(&marked).await {
            Ok(_) => {
                let message = "Node is not ready".to_owned();
                self.context
                    .event(pod, COMPONENT, Level::Warning, "NodeNotReady", message);
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A pod has come to its node: perhaps after that had fallen silent.
    async fn bound(&self, key: &Key) -> Result<Next, Error> {
        let Some(pod) = self.pods.get(key) else {
            return Ok(Next::Settled);
        };
        let node = pod::node_of(&pod).and_then(|name| self.nodes.get(&Key::new("", name)));
        if node.is_some_and(|node| Ready::of(&node) == Ready::Unknown) {
            self.mark_pod(&pod).await?;
        }
        Ok(Next::Settled)
    }
}

/// What fails together: region and zone, of the labels of today or of yesterday.
fn zone(node: &Node) -> String {
    let labels = node.labels();
    let of = |names: [&str; 2]| {
        let mut found = names.into_iter().filter_map(|name| labels.get(name));
        found.next().map(String::as_str).unwrap_or_default()
    };
    let region = of([
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/region",
    ]);
    let zone = of([
        "topology.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/zone",
    ]);
    match (region, zone) {
        ("", "") => String::new(),
        (region, zone) => format!("{region}:\0:{zone}"),
    }
}
