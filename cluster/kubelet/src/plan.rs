//! What a pod needs next: a pure function of what was asked for, what is there, and the time.
//!
//! ```text
//! no sandbox ─▶ make one ─▶ init containers, one after the other ─▶ all others ─▶ (all ended for good) ─▶ end the pod
//!      ▲                    sidecars stay, and are kept up                │
//!      └───────────────── the sandbox has died ───────────────────────────┘
//! ```

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::PodStatus;

use crate::{
    backoff::Backoffs,
    observed::{Observed, Sandbox, Seen, State},
    pod::{ContainerSpec, Desired, RUN, RestartPolicy, Role},
    probe::Health,
    resize::{self, Change},
    status::DISRUPTION,
};

/// What the plan is made with beside the pod itself. Times are nanoseconds since the epoch.
#[derive(Debug)]
pub(crate) struct Around<'a> {
    pub now: i64,
    pub backoffs: &'a Backoffs,
    pub health: &'a Health,
    /// What failed before a container was there, by its name.
    pub failures: &'a BTreeMap<String, Failure>,
    /// When the pod began, where it has.
    pub began: Option<i64>,
    /// What was told before: a pod that is over stays so.
    pub over: Option<Over>,
    /// It was told of a container of the pod before.
    pub had_containers: bool,
}

/// A start that did not come about, and when it is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// `ErrImagePull`, `CreateContainerConfigError`, …
    pub reason: &'static str,
    pub message: String,
    pub retry_at: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// End what runs, in order, and stop the sandbox; nothing is removed.
    End,
    MakeSandbox {
        attempt: u32,
    },
    Kill {
        id: String,
        name: String,
        why: String,
        /// A probe of liveness may have a grace period of its own.
        grace_seconds: Option<i64>,
    },
    /// End it, to be started with other resources.
    Restart {
        id: String,
        name: String,
    },
    /// Give containers that run what they were allotted.
    Resize {
        ids: Vec<String>,
    },
    Start {
        name: String,
        attempt: u32,
    },
}

/// Why nothing more will run in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// By its own doing.
    Ended,
    /// `activeDeadlineSeconds` have passed.
    Deadline,
    /// The node could not bear it any more, and why.
    Evicted(Why),
    /// The machine shuts down.
    Shutdown,
}

/// Why the node ends a pod that might have gone on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Why {
    /// `Evicted`, `Preempting`.
    pub reason: &'static str,
    pub message: String,
    /// What whoever has made the pod is told of the disruption; none: it was the pod's own doing.
    pub disrupts: Option<String>,
    /// How long it has to end, at most; none: as long as it asks for.
    pub grace: Option<Duration>,
}

/// Whether a container of the pod was there when this was told.
pub(crate) fn had_containers(status: &PodStatus) -> bool {
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    all.any(|container| container.container_id.is_some())
}

impl Over {
    /// By what was told of the pod.
    pub fn told(status: &PodStatus) -> Option<Self> {
        match (status.phase.as_deref(), status.reason.as_deref()) {
            (Some("Failed"), Some("DeadlineExceeded")) => Some(Self::Deadline),
            (Some("Failed"), Some(reason @ ("Evicted" | "Preempting"))) => {
                let conditions = status.conditions.iter().flatten();
                let mut disruption = conditions.filter(|one| one.type_ == DISRUPTION);
                Some(Self::Evicted(Why {
                    reason: if reason == "Evicted" {
                        "Evicted"
                    } else {
                        "Preempting"
                    },
                    message: status.message.clone().unwrap_or_default(),
                    disrupts: disruption
                        .next()
                        .map(|it| it.message.clone().unwrap_or_default()),
                    grace: Some(Duration::ZERO),
                }))
            }
            (Some("Failed"), Some("Terminated")) => Some(Self::Shutdown),
            (Some("Failed" | "Succeeded"), _) => Some(Self::Ended),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub steps: Vec<Step>,
    /// When to look again, where nothing happens until then.
    pub wait_until: Option<i64>,
    /// Why a container is not there, by its name: reason and message.
    pub waiting: BTreeMap<String, (String, String)>,
    pub over: Option<Over>,
}

impl Plan {
    fn wait(&mut self, until: i64) {
        self.wait_until = Some(self.wait_until.map_or(until, |other| other.min(until)));
    }
}

/// `RESIZE` stands for changes of resources in [`Around::failures`]: no container is called so.
pub(crate) const RESIZE: &str = "/resize";
/// `SANDBOX` stands for the sandbox in [`Around::failures`].
pub(crate) const SANDBOX: &str = "";

pub(crate) fn plan(pod: &Desired, observed: &Observed, around: &Around<'_>) -> Plan {
    let mut plan = Plan::default();
    if let Some(over) = &around.over {
        return ended(observed, over.clone());
    }
    let is_removed = pod.source == RUN && around.had_containers && observed.sandboxes.is_empty();
    if is_removed || is_over(pod, observed) {
        return ended(observed, Over::Ended);
    }
    if let Some(deadline) = deadline(pod, around.began) {
        if deadline <= around.now {
            return ended(observed, Over::Deadline);
        }
        plan.wait(deadline);
    }
    let Some(sandbox) = observed.ready_sandbox() else {
        sandbox(pod, observed, around, &mut plan);
        return plan;
    };
    // An older one that is still there has nothing to do with the pod any more; its containers neither.
    if observed.sandboxes.iter().skip(1).any(|old| old.ready) {
        plan.steps.push(Step::End);
        plan.steps.push(Step::MakeSandbox {
            attempt: sandbox.attempt + 1,
        });
        return plan;
    }
    let mut walk = Walk {
        pod,
        observed,
        around,
        sandbox,
        plan,
        resized: Vec::new(),
    };
    for spec in pod.of_role(Role::Ephemeral) {
        if observed.newest(spec.name()).is_none() {
            walk.start(spec, None);
        }
    }
    if walk.is_initialized() || walk.initialize() {
        for spec in pod.of_role(Role::Main) {
            walk.keep(spec);
        }
    } else {
        for spec in pod.of_role(Role::Main) {
            walk.waits(spec, "PodInitializing", "");
        }
    }
    walk.resize();
    walk.plan
}

/// When the pod may no longer be active.
fn deadline(pod: &Desired, began: Option<i64>) -> Option<i64> {
    let seconds = pod.spec.active_deadline_seconds?;
    Some(began?.saturating_add(seconds.saturating_mul(1_000_000_000)))
}

fn ended(observed: &Observed, over: Over) -> Plan {
    let something_is_up = observed.runs() || observed.sandboxes.iter().any(|sandbox| sandbox.ready);
    Plan {
        steps: Vec::from_iter(something_is_up.then_some(Step::End)),
        over: Some(over),
        ..Plan::default()
    }
}

/// Whether all containers that count have ended, never to be started again.
fn is_over(pod: &Desired, observed: &Observed) -> bool {
    let policy = pod.restart_policy();
    let mut mains = pod.of_role(Role::Main).peekable();
    let all_ended = mains.peek().is_some()
        && mains.all(|spec| {
            observed.newest(spec.name()).is_some_and(|seen| {
                seen.state == State::Exited
                    && same(spec, seen)
                    && !seen.restarting
                    && !spec.restarts(policy, seen.exit_code)
            })
        });
    let init_failed = policy == RestartPolicy::Never
        && pod.of_role(Role::Init).any(|spec| {
            observed
                .newest(spec.name())
                .is_some_and(|seen| seen.state == State::Exited && seen.exit_code != 0)
        });
    let lost = !pod.outlives_its_sandbox()
        && observed
            .newest_sandbox()
            .is_some_and(|sandbox| !sandbox.ready)
        && !observed.containers.is_empty();
    all_ended || init_failed || lost
}

fn sandbox(pod: &Desired, observed: &Observed, around: &Around<'_>, plan: &mut Plan) {
    let reason = |spec: &ContainerSpec| match (spec.role, pod.of_role(Role::Init).next()) {
        (Role::Main, Some(_)) => "PodInitializing",
        _ => "ContainerCreating",
    };
    for spec in &pod.containers {
        plan.waiting
            .insert(spec.name().to_owned(), (reason(spec).into(), String::new()));
    }
    if let Some(failure) = around.failures.get(SANDBOX)
        && failure.retry_at > around.now
    {
        plan.wait(failure.retry_at);
        for (_, message) in plan.waiting.values_mut() {
            message.clone_from(&failure.message);
        }
        return;
    }
    let attempt = match observed.newest_sandbox() {
        Some(old) => {
            plan.steps.push(Step::End);
            old.attempt + 1
        }
        None => 0,
    };
    plan.steps.push(Step::MakeSandbox { attempt });
}

/// Made of what the pod says now.
fn same(spec: &ContainerSpec, seen: &Seen) -> bool {
    seen.hash.is_empty() || seen.hash == spec.hash
}

struct Walk<'a> {
    pod: &'a Desired,
    observed: &'a Observed,
    around: &'a Around<'a>,
    sandbox: &'a Sandbox,
    plan: Plan,
    /// Containers that have not what they were allotted.
    resized: Vec<String>,
}

impl Walk<'_> {
    /// The newest of this name in the sandbox that the pod has now.
    fn here(&self, spec: &ContainerSpec) -> Option<&Seen> {
        self.observed
            .newest(spec.name())
            .filter(|seen| seen.sandbox == self.sandbox.id)
    }

    /// Once a container of the pod proper was there, init containers are done in this sandbox, whether or not they can still be seen.
    fn is_initialized(&mut self) -> bool {
        let done = self
            .pod
            .of_role(Role::Main)
            .any(|spec| self.here(spec).is_some());
        if done {
            for spec in self.pod.of_role(Role::Sidecar) {
                self.keep(spec);
            }
        }
        done
    }

    /// Goes through the init containers up to the first that is not done; whether all are.
    fn initialize(&mut self) -> bool {
        let pod = self.pod;
        let inits = pod
            .containers
            .iter()
            .filter(|spec| matches!(spec.role, Role::Init | Role::Sidecar));
        let mut blocked = false;
        for spec in inits {
            let seen = self.here(spec).cloned();
            if blocked {
                // what comes later was there before the kubelet was killed, say, and is kept up
                match (spec.role, &seen) {
                    (Role::Sidecar, Some(_)) => self.keep(spec),
                    _ => self.waits(spec, "PodInitializing", ""),
                }
                continue;
            }
            blocked = match (spec.role, seen) {
                (Role::Sidecar, seen) => {
                    self.keep(spec);
                    let up = seen.is_some_and(|seen| {
                        seen.state == State::Running && self.around.health.has_started(&seen.id)
                    });
                    !up
                }
                (_, Some(seen)) if seen.state == State::Exited && seen.exit_code == 0 => false,
                _ => {
                    self.keep(spec);
                    true
                }
            };
        }
        !blocked
    }

    /// Starts it where it should run, kills it where it should not as it is.
    fn keep(&mut self, spec: &ContainerSpec) {
        // What happened in an earlier sandbox counts for the containers proper alone: init containers run once in each.
        let seen = match spec.role {
            Role::Main => self.observed.newest(spec.name()).cloned(),
            _ => self.here(spec).cloned(),
        };
        let Some(seen) = seen else {
            return self.start(spec, None);
        };
        match seen.state {
            State::Running if !same(spec, &seen) => {
                self.kill(&seen, "definition changed, will be restarted".into(), None);
            }
            State::Running => {
                if let Some((why, grace_seconds)) = self.around.health.to_be_killed(&seen.id) {
                    return self.kill(&seen, why, grace_seconds);
                }
                match resize::change(spec, seen.resources.as_ref()) {
                    Change::None => {}
                    Change::Update => self.resized.push(seen.id),
                    Change::Restart => self.plan.steps.push(Step::Restart {
                        id: seen.id,
                        name: seen.name,
                    }),
                }
            }
            State::Created => self.start(spec, Some(&seen)),
            State::Unknown => self.kill(
                &seen,
                "is in an unknown state, will be restarted".into(),
                None,
            ),
            State::Exited => {
                let restarts = spec.restarts(self.pod.restart_policy(), seen.exit_code);
                if restarts || seen.restarting || !same(spec, &seen) {
                    self.start(spec, Some(&seen));
                }
            }
        }
    }

    fn kill(&mut self, seen: &Seen, why: String, grace_seconds: Option<i64>) {
        self.plan.steps.push(Step::Kill {
            id: seen.id.clone(),
            name: seen.name.clone(),
            why,
            grace_seconds,
        });
    }

    /// All at once, since the pod's own limits are changed around them.
    fn resize(&mut self) {
        if self.resized.is_empty() {
            return;
        }
        match self.around.failures.get(RESIZE) {
            Some(failure) if failure.retry_at > self.around.now => {
                self.plan.wait(failure.retry_at);
            }
            _ => {
                let ids = std::mem::take(&mut self.resized);
                self.plan.steps.push(Step::Resize { ids });
            }
        }
    }

    fn start(&mut self, spec: &ContainerSpec, last: Option<&Seen>) {
        let name = spec.name();
        if let Some(failure) = self.around.failures.get(name)
            && failure.retry_at > self.around.now
        {
            self.plan.wait(failure.retry_at);
            let reason = match failure.reason {
                "ErrImagePull" => "ImagePullBackOff",
                other => other,
            };
            return self.waits(spec, reason, &failure.message);
        }
        if let Some(last) = last
            && last.state == State::Exited
            && let Some(until) = self
                .around
                .backoffs
                .until(name, last.finished, self.around.now)
        {
            let message = format!(
                "back-off {}s restarting failed container={name} pod={}_{}({})",
                self.around.backoffs.delay_seconds(name),
                self.pod.name,
                self.pod.namespace,
                self.pod.uid
            );
            self.plan.wait(until);
            return self.waits(spec, "CrashLoopBackOff", &message);
        }
        if self.observed.newest(name).is_none() {
            self.waits(spec, "ContainerCreating", "");
        }
        let attempt = match self.observed.newest(name) {
            // It was never started: the next one takes its place.
            Some(seen) if seen.state == State::Created => seen.attempt,
            Some(seen) => seen.attempt + 1,
            None => 0,
        };
        self.plan.steps.push(Step::Start {
            name: name.to_owned(),
            attempt,
        });
    }

    fn waits(&mut self, spec: &ContainerSpec, reason: &str, message: &str) {
        self.plan.waiting.insert(
            spec.name().to_owned(),
            (reason.to_owned(), message.to_owned()),
        );
    }
}

#[cfg(test)]
mod tests;
