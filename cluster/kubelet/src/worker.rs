//! A pod's worker: one task, which looks, plans, does, tells, and waits.
//!
//! # Synchronization
//! The kubelet gives orders by a `watch`; only the last one counts. Whatever is being done is dropped when a new order comes: each call to
//! the runtime is one that can be given up, and what it has brought about is seen at the next look.

mod backing_off;
mod ending;
mod message;
mod preparing;
mod probing;
mod resizing;
mod telling;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::sync::{Notify, mpsc, watch};

use crate::{
    API, Error, Level,
    backoff::Backoffs,
    execute::{self, Grace},
    node::Node,
    observed::{Observed, State},
    plan::{Around, Failure, Over, Plan, SANDBOX, Step, had_containers, plan},
    pod::Desired,
    probe::{Health, Kind, Report},
    status::OWN_CONDITIONS,
    store,
    volume::Turn,
};
use backing_off::BackingOff;
use probing::{Probing, Scene};
use resizing::Resizing;
use telling::told_before;

pub(crate) use crate::plan::Why;

const SECOND: i64 = 1_000_000_000;
/// Between two looks where nothing is heard, should a change ever be missed.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between two tries at a runtime that does not answer, and at taking away what does not go.
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks for something that the pod refers to and that is not there (CM-06).
const CONFIG_RETRY: i64 = 5 * SECOND;
/// … and for a token, where no server could be asked.
const TOKEN_RETRY: Duration = Duration::from_secs(5);
/// Steps in a row without a pause: more would be a plan that goes round in circles.
const ROUNDS: usize = 100;
const NO_NETWORK: &str = "NetworkNotReady";
/// Reports of probes that wait for the worker.
const REPORTS: usize = 64;

/// What the kubelet wants of a worker.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Keep(Arc<Desired>),
    /// End it within this time; it stays, as one that has failed for this reason.
    Fail {
        pod: Arc<Desired>,
        over: Over,
        /// At most; none: as long as it asks for.
        most: Option<Duration>,
    },
    /// End it and take it away; within its own grace period, where no other is named.
    End {
        grace: Option<Duration>,
        pod: Arc<Desired>,
    },
}

pub(crate) struct Worker {
    node: Node,
    /// With the resources that it was given.
    pod: Arc<Desired>,
    resizing: Resizing,
    wake: Arc<Notify>,
    reports: mpsc::Sender<Report>,
    health: Health,
    probing: Probing,
    backoffs: Backoffs,
    failures: BTreeMap<String, Failure>,
    backing_off: BackingOff,
    /// Of containers whose clock was ahead of ours: when we first saw that they had ended.
    ended: HashMap<String, i64>,
    messages: message::Messages,
    before: Option<PodStatus>,
    /// What this kubelet has told, a server may not have heard of the last one.
    is_told: bool,
    /// Why it may not go on, and how long its end may take at most.
    failed: Option<(Over, Option<Duration>)>,
    /// It was evicted, and nothing is left of it but what is told.
    is_empty: bool,
    volumes_made: Option<Instant>,
    turn: Turn,
    /// Nothing will run any more, and its claims are others'.
    has_let_go: bool,
}

/// Runs until the pod is gone, or the task is aborted, which leaves the pod as it is.
pub(crate) async fn run(
    node: Node,
    pod: Arc<Desired>,
    mut orders: watch::Receiver<Order>,
    wake: Arc<Notify>,
) {
    let (reports, mut reported) = mpsc::channel(REPORTS);
    let resizing = Resizing::of(&node, &pod);
    let mut worker = Worker {
        before: store::kept_status(&node, &pod.uid).or_else(|| told_before(&pod)),
        is_told: false,
        failed: None,
        is_empty: false,
        pod: resizing.given(),
        resizing,
        node,
        wake,
        reports,
        health: Health::default(),
        probing: Probing::default(),
        backoffs: Backoffs::default(),
        failures: BTreeMap::new(),
        backing_off: BackingOff::default(),
        ended: HashMap::new(),
        messages: message::Messages::default(),
        volumes_made: None,
        turn: Turn::default(),
        has_let_go: false,
    };
    let mut ending: Option<Instant> = None;
    loop {
        let order = orders.borrow_and_update().clone();
        match order {
            Order::Keep(pod) => worker.keep(pod),
            Order::Fail { pod, over, most } => {
                worker.keep(pod);
                worker.failed.get_or_insert((over, most));
            }
            Order::End { grace, pod } => {
                worker.keep(pod);
                let began = *ending.get_or_insert_with(Instant::now);
                let grace = Grace {
                    whole: grace.unwrap_or_else(|| worker.pod.grace()),
                    began,
                };
                tokio::select! {
                    () = Box::pin(worker.end(grace)) => return,
                    // the sender's end is the kubelet's: it is to stay as it is
                    changed = orders.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                }
            }
        }
        let wait = tokio::select! {
            // on the heap while it goes on: a pod that rests needs no room for what it might do
            wait = Box::pin(worker.sync()) => wait,
            changed = orders.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        tokio::select! {
            changed = orders.changed() => if changed.is_err() {
                return;
            },
            () = worker.wake.notified() => {}
            Some(report) = reported.recv() => worker.take(report),
            () = tokio::time::sleep(wait) => {}
        }
        // all that has come meanwhile is one reason to look
        while let Ok(report) = reported.try_recv() {
            worker.take(report);
        }
    }
}

impl Worker {
    /// The pod as it should be from now on.
    fn keep(&mut self, pod: Arc<Desired>) {
        if Arc::ptr_eq(self.resizing.wanted(), &pod) {
            return;
        }
        // What others have told of it is not ours to forget: readiness gates wait for it.
        let others = pod.pod.status.as_ref().and_then(|it| it.conditions.clone());
        if let (Some(others), Some(before)) =
            (others.filter(|_| pod.source == API), &mut self.before)
        {
            let is_own = |kind: &str| OWN_CONDITIONS.contains(&kind);
            let conditions = before.conditions.get_or_insert_default();
            conditions.retain(|one| is_own(&one.type_));
            conditions.extend(others.into_iter().filter(|one| !is_own(&one.type_)));
        }
        if self.volumes_made.is_some() || pod.deletion().is_some() {
            let dir = self.node.pod_dir(&pod.uid);
            if dir.exists()
                && let Err(error) = store::keep_pod(&self.node, &pod)
            {
                tracing::warn!(pod = %pod.full_name(), %error, "the pod is not kept as it is now");
            }
        }
        self.pod = self.resizing.want(pod);
    }

    /// Goes on until there is nothing to do; how long that may last.
    async fn sync(&mut self) -> Duration {
        if self.is_empty {
            return LOOK_AGAIN;
        }
        for _ in 0..ROUNDS {
            let done = self.round().await;
            match done {
                Ok(Some(wait)) => return wait,
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(pod = %self.pod.full_name(), %error, "the pod is looked at again in a second");
                    return AGAIN;
                }
            }
        }
        tracing::error!(pod = %self.pod.full_name(), "the plan goes round in circles");
        LOOK_AGAIN
    }

    /// One look, and what follows from it; `None`: there is more to do.
    async fn round(&mut self) -> Result<Option<Duration>, Error> {
        self.prepare().await?;
        self.allocate();
        let observed = self.observe().await?;
        let now = now();
        let began = self
            .before
            .as_ref()
            .and_then(|before| before.start_time.as_ref());
        let around = Around {
            now,
            backoffs: &self.backoffs,
            health: &self.health,
            failures: &self.failures,
            began: began.map(|time| nanoseconds(time.0)),
            over: self
                .before
                .as_ref()
                .and_then(Over::told)
                .or_else(|| self.failed.as_ref().map(|failed| failed.0.clone())),
            had_containers: self.before.as_ref().is_some_and(had_containers),
        };
        let plan = plan(&self.pod, &observed, &around);
        self.publish(&observed, &plan.waiting, plan.over.as_ref());
        let waits = backing_off::waits(&plan, &observed, &self.failures);
        self.backing_off.tell(&self.node, &self.pod, &waits);
        if plan.steps.is_empty() && matches!(self.failed, Some((Over::Evicted(_), _))) {
            // What it wrote is what the node was short of, perhaps.
            execute::remove(&self.node, &self.pod, &observed, &self.turn).await?;
            self.is_empty = true;
            return Ok(Some(LOOK_AGAIN));
        }
        if plan.steps.is_empty() && plan.over.is_some() && !self.has_let_go {
            execute::let_claims_go(&self.node, &self.pod, &self.turn).await?;
            self.has_let_go = true;
        }
        self.keep_cgroup(&observed, &plan).await;
        if plan.steps.is_empty() {
            execute::tidy(&self.node, &self.pod, &observed).await?;
            return Ok(Some(self.wait(&plan, now)));
        }
        for step in &plan.steps {
            if !self.step(step, &observed).await? {
                break;
            }
        }
        Ok(None)
    }

    async fn observe(&mut self) -> Result<Observed, Error> {
        let mut observed = self.node.runtime.observe(&self.pod.uid).await?;
        let now = now();
        for seen in &mut observed.containers {
            // A clock that was set back would have us wait for the time when they ended.
            if seen.state == State::Exited && seen.finished > now {
                seen.finished = *self.ended.entry(seen.id.clone()).or_insert(now);
            }
        }
        self.ended
            .retain(|id, _| observed.containers.iter().any(|seen| seen.id == *id));
        self.messages.fill(&self.node, &self.pod, &mut observed);
        self.resizing.fill(&self.node, &mut observed);
        let scene = Scene {
            node: &self.node,
            pod: &self.pod,
            observed: &observed,
            before: self.before.as_ref(),
            now,
            reports: &self.reports,
        };
        self.probing.keep(&scene, &mut self.health);
        Ok(observed)
    }

    /// Of a pod that goes on, its limits as they are now; of one that is over, gone. What can't be done now is done later, by who looks after all.
    async fn keep_cgroup(&self, observed: &Observed, plan: &Plan) {
        let done = match (&plan.over, observed.ready_sandbox()) {
            (None, Some(_)) => self.node.ensure_cgroup(&self.pod, false).await,
            (Some(_), None) if plan.steps.is_empty() => self.node.remove_cgroup(&self.pod).await,
            _ => Ok(()),
        };
        if let Err(error) = done {
            tracing::warn!(pod = %self.pod.full_name(), %error, "the pod's cgroup is not as it should be");
        }
    }

    fn wait(&self, plan: &Plan, now: i64) -> Duration {
        let mut wait = LOOK_AGAIN;
        if self.node.objects.lacks_token(&self.pod.uid) {
            wait = TOKEN_RETRY;
        }
        if self.resizing.is_deferred() {
            wait = wait.min(resizing::AGAIN);
        }
        if let Some(until) = plan.wait_until {
            wait = wait.min(Duration::from_nanos((until - now).max(0).unsigned_abs()));
        }
        // at least this: a clock that jumps must not make a busy loop
        wait.max(Duration::from_millis(10))
    }

    /// Whether to go on with the plan's next step.
    async fn step(&mut self, step: &Step, observed: &Observed) -> Result<bool, Error> {
        match step {
            Step::End => {
                let most = self.failed.as_ref().and_then(|failed| failed.1);
                let grace = most.map_or(self.pod.grace(), |most| most.min(self.pod.grace()));
                let ends = execute::end(&self.node, &self.pod, observed, Grace::now(grace));
                match &self.failed {
                    Some((Over::Evicted(_), _)) => self.in_time(grace, ends).await?,
                    _ => ends.await?,
                }
            }
            Step::MakeSandbox { attempt } => {
                if self.volumes_made.is_none() {
                    return Ok(false);
                }
                if *attempt > 0 && !self.failures.contains_key(SANDBOX) {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.node
                        .tell(Level::Normal, &self.pod, "", "SandboxChanged", message);
                }
                if let Some(why) = self.why_no_network().await? {
                    let (message, again) = (format!("network is not ready: {why}"), CONFIG_RETRY);
                    let node = &self.node;
                    node.tell(Level::Warning, &self.pod, "", NO_NETWORK, &message);
                    self.failed(SANDBOX, NO_NETWORK, message, Some(again));
                    return Ok(false);
                }
                match execute::make_sandbox(&self.node, &self.pod, *attempt).await {
                    Ok(id) => {
                        tracing::debug!(pod = %self.pod.full_name(), id, attempt, "sandbox made");
                        self.failures.remove(SANDBOX);
                        self.backoffs.forget(SANDBOX);
                    }
                    // what was made of it is seen at the next look
                    Err(error) if error.is_unanswered() => return Err(error),
                    Err(error) => {
                        let (reason, message) = match error {
                            Error::Cgroup { .. } => (
                                "FailedCreatePodContainer",
                                format!("unable to ensure pod container exists: {error}"),
                            ),
                            _ => (
                                "FailedCreatePodSandBox",
                                format!("Failed to create pod sandbox: {error}"),
                            ),
                        };
                        self.node
                            .tell(Level::Warning, &self.pod, "", reason, &message);
                        self.failed(SANDBOX, reason, message, None);
                    }
                }
                // its containers are another look's
                return Ok(false);
            }
            Step::Kill {
                id,
                name,
                why,
                grace_seconds,
            } => {
                let message = format!("Container {name} {why}");
                self.node
                    .tell(Level::Normal, &self.pod, name, "Killing", message);
                let grace = match grace_seconds {
                    Some(seconds) => Duration::from_secs(seconds.max(&0).unsigned_abs()),
                    None => self.pod.grace(),
                };
                if let Some(seen) = observed.containers.iter().find(|seen| seen.id == *id) {
                    let ips = observed
                        .newest_sandbox()
                        .map(|it| it.ips.clone())
                        .unwrap_or_default();
                    execute::stop_one(&self.node, &self.pod, seen, &ips, Grace::now(grace)).await?;
                }
            }
            Step::Restart { id, name } => self.restart(id, name, observed).await?,
            Step::Resize { ids } => self.resize(ids, observed).await,
            Step::Start { name, attempt } => self.start(name, *attempt, observed).await?,
        }
        Ok(true)
    }

    /// Whoever lives in the node's network needs no other.
    async fn why_no_network(&self) -> Result<Option<String>, Error> {
        match self.pod.host_network() {
            true => Ok(None),
            false => self.node.network.why_not(&self.node.runtime).await,
        }
    }

    /// # Errors
    /// Nobody answered: that is no failure of the container.
    async fn start(&mut self, name: &str, attempt: u32, observed: &Observed) -> Result<(), Error> {
        let pod = self.pod.clone();
        let Some(spec) = pod.container(name) else {
            return Ok(());
        };
        if let Some(last) = observed.newest(name)
            && last.state == State::Exited
            && !self.failures.contains_key(name)
        {
            self.backoffs.tried(name, last.finished, now());
        }
        // What its environment names may have changed since.
        if let Err(why) = self.node.objects.fetch(&pod).await {
            tracing::warn!(pod = %pod.full_name(), why, "what the pod names is taken as it was");
        }
        match execute::start(&self.node, &pod, observed, spec, attempt).await {
            Ok(()) => {
                self.failures.remove(name);
            }
            Err(failed) if failed.error.is_unanswered() => return Err(failed.error),
            Err(failed) => {
                let node = &self.node;
                node.tell(Level::Warning, &pod, name, "Failed", failed.in_words());
                let reason = failed.reason;
                let retry = (reason == "CreateContainerConfigError").then_some(CONFIG_RETRY);
                self.failed(name, reason, failed.error.to_string(), retry);
            }
        }
        Ok(())
    }

    /// Notes a failure; without a time of its own it is tried again later and later.
    fn failed(&mut self, name: &str, reason: &'static str, message: String, retry: Option<i64>) {
        let now = now();
        let retry_at = match retry {
            Some(retry) => now + retry,
            None => {
                let key = format!("{name}/{reason}");
                self.backoffs.tried(&key, now, now);
                now + self.backoffs.delay_seconds(&key) * SECOND
            }
        };
        let failure = Failure {
            reason,
            message,
            retry_at,
        };
        self.failures.insert(name.to_owned(), failure);
    }

    /// A probe has something to say.
    fn take(&mut self, report: Report) {
        let Report {
            container,
            name,
            kind,
            good,
            counts,
            message,
            grace_seconds,
        } = report;
        if !good {
            let told = format!("{} probe failed: {message}", kind.as_str());
            self.node
                .tell(Level::Warning, &self.pod, &name, "Unhealthy", &told);
            if counts && kind != Kind::Readiness && self.health.knows(&container) {
                let kind = kind.as_str().to_lowercase();
                let why = format!("failed {kind} probe, will be restarted");
                self.health.condemn(&container, &why, grace_seconds);
            }
        }
        if counts && self.health.knows(&container) {
            self.health.found(&container, kind, good);
        }
    }
}

fn now() -> i64 {
    nanoseconds(Timestamp::now())
}

fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}
