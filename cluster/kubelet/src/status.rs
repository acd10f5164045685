//! What is told of a pod: its phase, its conditions, its containers. Pure functions of what was asked for and what is there.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    node::NodeFacts,
    observed::{Observed, Seen, State},
    plan::{Over, Why},
    pod::{ContainerSpec, Desired, RestartPolicy, Role},
    probe::Health,
    qos::Class,
    resize::{Change, Progress, change},
};

/// Conditions that are the kubelet's to tell; all others are whoever's who set them.
pub(crate) const OWN_CONDITIONS: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    RESIZE_CONDITIONS[0],
    RESIZE_CONDITIONS[1],
];
/// … and not there at most times.
pub(crate) const RESIZE_CONDITIONS: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// That a pod was ended for others' sake. The kubelet tells its own, and so do others.
pub(crate) const DISRUPTION: &str = "DisruptionTarget";

/// What a status is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub pod: &'a Desired,
    pub observed: &'a Observed,
    /// Why a container is not there: reason and message.
    pub waiting: &'a BTreeMap<String, (String, String)>,
    pub health: &'a Health,
    pub over: Option<&'a Over>,
    pub before: Option<&'a PodStatus>,
    pub node: &'a NodeFacts,
    pub resize: &'a Progress,
    /// In front of ids: `berth`.
    pub runtime: &'a str,
    pub now: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

pub(crate) fn status(parts: &Parts<'_>) -> PodStatus {
    let Parts {
        pod,
        observed,
        before,
        ..
    } = parts;
    let phase = phase(parts);
    let of_role = |roles: &[Role]| {
        let all: Vec<_> = pod
            .containers
            .iter()
            .filter(|spec| roles.contains(&spec.role))
            .map(|spec| container(parts, spec))
            .collect();
        (!all.is_empty()).then_some(all)
    };
    let ips = match pod.host_network() {
        true => parts.node.ips.clone(),
        false => observed
            .newest_sandbox()
            .map_or(Vec::new(), |sandbox| sandbox.ips.clone()),
    };
    let began = before
        .and_then(|before| before.start_time.clone())
        .or_else(|| {
            // the pod began with its first sandbox, where this kubelet has not seen it come
            let first = observed
                .sandboxes
                .iter()
                .map(|sandbox| sandbox.created)
                .min()?;
            time(first)
        });
    let (reason, message) = match parts.over {
        Some(Over::Deadline) => (
            Some("DeadlineExceeded".to_owned()),
            Some("Pod was active on the node longer than the specified deadline".to_owned()),
        ),
        Some(Over::Evicted(why)) => (Some(why.reason.to_owned()), Some(why.message.clone())),
        Some(Over::Shutdown) => (
            Some("Terminated".to_owned()),
            Some("Pod was terminated in response to imminent node shutdown.".to_owned()),
        ),
        Some(Over::Ended) | None => (None, None),
    };
    PodStatus {
        phase: Some(phase.as_str().into()),
        reason,
        message,
        conditions: Some(conditions(parts, phase)),
        init_container_statuses: of_role(&[Role::Init, Role::Sidecar]),
        container_statuses: of_role(&[Role::Main]),
        ephemeral_container_statuses: of_role(&[Role::Ephemeral]),
        host_ip: parts.node.ips.first().cloned(),
        host_ips: Some(
            parts
                .node
                .ips
                .iter()
                .map(|ip| HostIP { ip: ip.clone() })
                .collect(),
        ),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        qos_class: Some(Class::of(pod).as_str().into()),
        start_time: began.or(Some(Time(parts.now))),
        ..PodStatus::default()
    }
}

/// As upstream's: what has not come about counts first, then what runs, then how all ended.
pub(crate) fn phase(parts: &Parts<'_>) -> Phase {
    let Parts { pod, observed, .. } = parts;
    if matches!(
        parts.over,
        Some(Over::Deadline | Over::Evicted(_) | Over::Shutdown)
    ) {
        return Phase::Failed;
    }
    let policy = pod.restart_policy();
    let state = |spec: &ContainerSpec| {
        observed
            .newest(spec.name())
            .map(|seen| (seen.state, seen.exit_code))
    };
    let init_failed = policy == RestartPolicy::Never
        && pod
            .of_role(Role::Init)
            .any(|spec| matches!(state(spec), Some((State::Exited, code)) if code != 0));
    if init_failed {
        return Phase::Failed;
    }
    let mains: Vec<_> = pod.of_role(Role::Main).map(state).collect();
    let exited = |main: &Option<(State, i32)>| matches!(main, Some((State::Exited, _)));
    let succeeded = |main: &Option<(State, i32)>| matches!(main, Some((State::Exited, 0)));
    if parts.over.is_some() {
        return match mains.iter().all(succeeded) {
            true => Phase::Succeeded,
            false => Phase::Failed,
        };
    }
    // Created, or of an unknown state: one that was there before has been running
    let has_run = |spec: &ContainerSpec| {
        observed
            .all(spec.name())
            .any(|seen| matches!(seen.state, State::Running | State::Exited))
    };
    if !pod.of_role(Role::Main).all(has_run) {
        return Phase::Pending;
    }
    if mains.iter().all(exited) && policy != RestartPolicy::Always {
        if mains.iter().all(succeeded) {
            return Phase::Succeeded;
        }
        if policy == RestartPolicy::Never {
            return Phase::Failed;
        }
    }
    Phase::Running
}

fn container(parts: &Parts<'_>, spec: &ContainerSpec) -> ContainerStatus {
    let name = spec.name();
    let mut all = parts.observed.all(name);
    let newest = all.next();
    let last_ended = all.find(|seen| seen.state == State::Exited);
    let waiting = parts.waiting.get(name);
    let ended = |seen: &Seen| ContainerState {
        terminated: Some(terminated(parts, seen)),
        ..ContainerState::default()
    };
    let waits = |reason: &str, message: &str| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: (!message.is_empty()).then(|| message.to_owned()),
        }),
        ..ContainerState::default()
    };
    let (state, last) = match (newest, waiting) {
        (Some(seen), _) if seen.state == State::Running => {
            let running = ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: time(seen.started),
                }),
                ..ContainerState::default()
            };
            (running, last_ended)
        }
        // it has ended and will be back
        (Some(seen), Some((reason, message))) if seen.state == State::Exited => {
            (waits(reason, message), Some(seen))
        }
        (Some(seen), None) if seen.state == State::Exited => (ended(seen), last_ended),
        (_, Some((reason, message))) => (waits(reason, message), last_ended),
        (_, None) => {
            let reason = match (spec.role, parts.pod.of_role(Role::Init).next()) {
                (Role::Main, Some(_)) => "PodInitializing",
                _ => "ContainerCreating",
            };
            (waits(reason, ""), last_ended)
        }
    };
    let running = newest.filter(|seen| seen.state == State::Running);
    let has_started = running.is_some_and(|seen| parts.health.has_started(&seen.id));
    let ready = match (spec.role, newest) {
        (Role::Init, Some(seen)) => seen.state == State::Exited && seen.exit_code == 0,
        _ => running.is_some_and(|seen| parts.health.is_ready(&seen.id)),
    };
    ContainerStatus {
        name: name.to_owned(),
        image: newest.map_or_else(|| spec.image().to_owned(), |seen| seen.image.clone()),
        image_id: newest.map_or_else(String::new, |seen| seen.image_id.clone()),
        container_id: newest.map(|seen| format!("{}://{}", parts.runtime, seen.id)),
        restart_count: newest.map_or(0, |seen| i32::try_from(seen.attempt).unwrap_or(i32::MAX)),
        ready: ready && spec.role != Role::Ephemeral,
        started: (spec.role != Role::Ephemeral).then_some(has_started),
        last_state: Some(last.map(ended).unwrap_or_default()),
        state: Some(state),
        // what it has, where that is another thing than what it was given
        resources: running
            .and_then(|seen| seen.resources.clone())
            .or_else(|| spec.container.resources.clone()),
        allocated_resources: spec
            .container
            .resources
            .as_ref()
            .and_then(|given| given.requests.clone()),
        ..ContainerStatus::default()
    }
}

fn terminated(parts: &Parts<'_>, seen: &Seen) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: seen.exit_code,
        reason: Some(match (seen.reason.as_str(), seen.exit_code) {
            ("", 0) => "Completed".into(),
            ("", _) => "Error".into(),
            (reason, _) => reason.to_owned(),
        }),
        message: (!seen.message.is_empty()).then(|| seen.message.clone()),
        started_at: time(seen.started),
        finished_at: time(seen.finished),
        container_id: Some(format!("{}://{}", parts.runtime, seen.id)),
        ..ContainerStateTerminated::default()
    }
}

fn conditions(parts: &Parts<'_>, phase: Phase) -> Vec<PodCondition> {
    let Parts { pod, observed, .. } = parts;
    let ended = matches!(phase, Phase::Succeeded | Phase::Failed);
    let is_ready = |spec: &ContainerSpec| container(parts, spec).ready;
    let names = |specs: Vec<&ContainerSpec>| {
        specs
            .iter()
            .map(|spec| spec.name())
            .collect::<Vec<_>>()
            .join(" ")
    };

    let uninitialized: Vec<_> = pod
        .containers
        .iter()
        .filter(|spec| match spec.role {
            Role::Init => !is_ready(spec),
            Role::Sidecar => !container(parts, spec).started.unwrap_or(false),
            _ => false,
        })
        .collect();
    // Once a container proper was there, it is, also where the traces of init containers are gone.
    let was_initialized = pod
        .of_role(Role::Main)
        .any(|spec| observed.newest(spec.name()).is_some());
    let initialized = match (uninitialized.is_empty() || was_initialized, phase) {
        (_, Phase::Succeeded) => (true, "PodCompleted", String::new()),
        (true, _) => (true, "", String::new()),
        (false, _) => (
            false,
            "ContainersNotInitialized",
            format!(
                "containers with incomplete status: [{}]",
                names(uninitialized)
            ),
        ),
    };
    let unready: Vec<_> = pod
        .containers
        .iter()
        .filter(|spec| matches!(spec.role, Role::Main | Role::Sidecar) && !is_ready(spec))
        .collect();
    let containers_ready = match (ended, phase, unready.is_empty()) {
        (true, Phase::Succeeded, _) => (false, "PodCompleted", String::new()),
        (true, ..) => (false, "PodFailed", String::new()),
        (_, _, true) => (true, "", String::new()),
        _ => (
            false,
            "ContainersNotReady",
            format!("containers with unready status: [{}]", names(unready)),
        ),
    };
    let gates = gates(parts);
    let ready = match (&containers_ready, gates) {
        ((true, ..), Some(message)) => (false, "ReadinessGatesNotReady", message),
        (containers, _) => containers.clone(),
    };
    let sandbox = observed
        .ready_sandbox()
        .is_some_and(|sandbox| pod.host_network() || !sandbox.ips.is_empty());
    let mut all = vec![
        condition(
            parts,
            "PodReadyToStartContainers",
            (sandbox, "", String::new()),
        ),
        condition(parts, "Initialized", initialized),
        condition(parts, "Ready", ready),
        condition(parts, "ContainersReady", containers_ready),
        condition(parts, "PodScheduled", (true, "", String::new())),
    ];
    if let Some(Over::Evicted(Why {
        disrupts: Some(message),
        ..
    })) = parts.over
    {
        let told = (true, "TerminationByKubelet", message.clone());
        all.push(condition(parts, DISRUPTION, told));
    }
    if !ended {
        all.extend(resize_conditions(parts));
    }
    // Those of others (gates, the scheduler) are kept as they were.
    let before = parts
        .before
        .and_then(|before| before.conditions.clone())
        .unwrap_or_default();
    let told: Vec<_> = all.iter().map(|one| one.type_.clone()).collect();
    let is_own = |one: &PodCondition| {
        OWN_CONDITIONS.contains(&one.type_.as_str()) || told.contains(&one.type_)
    };
    all.extend(before.into_iter().filter(|one| !is_own(one)));
    all
}

/// What of its resources the pod waits for, and what is being done about them.
fn resize_conditions(parts: &Parts<'_>) -> Vec<PodCondition> {
    let mut all = Vec::new();
    let progress = parts.resize;
    if let Some(pending) = &progress.pending {
        let told = (true, pending.reason(), pending.message().to_owned());
        all.push(condition(parts, RESIZE_CONDITIONS[0], told));
    }
    let is_changed = |spec: &ContainerSpec| {
        let seen = parts.observed.newest(spec.name());
        let running = seen.filter(|seen| seen.state == State::Running);
        running.is_some_and(|seen| change(spec, seen.resources.as_ref()) != Change::None)
    };
    if parts.pod.containers.iter().any(is_changed) {
        let told = match &progress.error {
            Some(why) => (true, "Error", why.clone()),
            None => (true, "", String::new()),
        };
        all.push(condition(parts, RESIZE_CONDITIONS[1], told));
    }
    all
}

/// What is missing of the pod's readiness gates.
fn gates(parts: &Parts<'_>) -> Option<String> {
    let before = parts
        .before
        .and_then(|before| before.conditions.as_deref())
        .unwrap_or_default();
    let missing = parts
        .pod
        .spec
        .readiness_gates
        .iter()
        .flatten()
        .find(|gate| {
            let given = before.iter().find(|one| one.type_ == gate.condition_type);
            given.is_none_or(|one| one.status != "True")
        })?;
    Some(format!(
        "the status of pod readiness gate {:?} is not \"True\"",
        missing.condition_type
    ))
}

fn condition(
    parts: &Parts<'_>,
    kind: &str,
    (is, reason, message): (bool, &str, String),
) -> PodCondition {
    let status = if is { "True" } else { "False" };
    let before = parts
        .before
        .and_then(|before| before.conditions.as_ref())
        .and_then(|all| {
            all.iter()
                .find(|one| one.type_ == kind && one.status == status)
        });
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: (!reason.is_empty()).then(|| reason.to_owned()),
        message: (!message.is_empty()).then_some(message),
        last_transition_time: before
            .and_then(|one| one.last_transition_time.clone())
            .or(Some(Time(parts.now))),
        ..PodCondition::default()
    }
}

/// Nanoseconds since the epoch, where something has happened at all.
fn time(nanoseconds: i64) -> Option<Time> {
    let time = (nanoseconds > 0).then(|| Timestamp::from_nanosecond(nanoseconds.into()).ok())?;
    // whole seconds, as the API has them
    time.and_then(|time| Timestamp::from_second(time.as_second()).ok())
        .map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{observed::Sandbox, pod::tests::pod};

    /// `a:run`, `a:0`: see the plan's tests. All in one ready sandbox.
    fn observed(words: &str) -> Observed {
        let mut observed = Observed {
            sandboxes: vec![Sandbox {
                id: "s".into(),
                ready: true,
                ips: vec!["10.0.0.2".into()],
                created: 5_000_000_000,
                ..Sandbox::default()
            }],
            ..Observed::default()
        };
        for word in words.split_whitespace() {
            let (name, state) = word.split_once(':').unwrap();
            let attempt = observed
                .containers
                .iter()
                .filter(|it| it.name == name)
                .count();
            observed.containers.push(Seen {
                id: format!("{name}{attempt}"),
                name: name.into(),
                attempt: attempt as u32,
                state: if state == "run" {
                    State::Running
                } else {
                    State::Exited
                },
                exit_code: state.parse().unwrap_or(0),
                ..Seen::default()
            });
        }
        observed.sort();
        observed
    }

    fn of(
        spec: &str,
        is: &str,
        over: Option<Over>,
        health: &Health,
        before: Option<&PodStatus>,
    ) -> PodStatus {
        let waiting = BTreeMap::from([(
            "w".to_owned(),
            ("CrashLoopBackOff".to_owned(), "back-off".to_owned()),
        )]);
        status(&Parts {
            resize: &Progress::default(),
            pod: &pod(spec),
            observed: &observed(is),
            waiting: &waiting,
            health,
            over: over.as_ref(),
            before,
            node: &NodeFacts::default(),
            runtime: "berth",
            now: Timestamp::from_second(100).unwrap(),
        })
    }

    fn is(status: &PodStatus, kind: &str) -> String {
        let all = status.conditions.as_ref().unwrap();
        let one = all.iter().find(|one| one.type_ == kind).unwrap();
        match &one.reason {
            Some(reason) => format!("{} {reason}", one.status),
            None => one.status.clone(),
        }
    }

    #[test]
    fn phases_follow_what_has_come_about_and_how_it_ended() {
        let two = |policy: &str| {
            format!(
                "  restartPolicy: {policy}\n  containers: [{{name: a, image: x}}, {{name: b, image: x}}]"
            )
        };
        let init = |policy: &str| {
            format!(
                "  restartPolicy: {policy}\n  initContainers: [{{name: i, image: x}}]\n  containers: [{{name: a, image: x}}]"
            )
        };
        let ended = Some(Over::Ended);
        for (spec, is, over, phase) in [
            (two("Always"), "", None, "Pending"),
            (two("Always"), "a:run", None, "Pending"),
            (two("Always"), "a:run b:run", None, "Running"),
            (two("Always"), "a:0 b:1", None, "Running"),
            (two("Always"), "a:run b:1", None, "Running"),
            (two("OnFailure"), "a:0 b:1", None, "Running"),
            (two("OnFailure"), "a:0 b:0", ended.clone(), "Succeeded"),
            (two("Never"), "a:0 b:0", ended.clone(), "Succeeded"),
            (two("Never"), "a:0 b:1", ended.clone(), "Failed"),
            (two("Never"), "a:0 b:run", None, "Running"),
            (two("Never"), "a:run b:run", Some(Over::Deadline), "Failed"),
            (init("Always"), "i:run", None, "Pending"),
            (init("Always"), "i:1", None, "Pending"),
            (init("Never"), "i:1", ended, "Failed"),
            (init("Always"), "i:0 a:run", None, "Running"),
        ] {
            let status = of(&spec, is, over, &Health::default(), None);
            assert_eq!(status.phase.as_deref(), Some(phase), "{spec} {is}");
        }
    }

    #[test]
    fn a_container_is_told_of_with_its_state_and_the_one_before() {
        let spec = "  containers: [{name: a, image: x}, {name: w, image: x}, {name: q, image: x}]";
        let status = of(spec, "a:3 a:run w:1 w:2", None, &Health::default(), None);
        let all = status.container_statuses.unwrap();
        let a = &all[0];
        assert!(a.ready && a.started == Some(true) && a.restart_count == 1);
        assert_eq!(a.container_id.as_deref(), Some("berth://a1"));
        let last = a.last_state.clone().unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
        let w = &all[1];
        assert_eq!(
            w.state.clone().unwrap().waiting.unwrap().reason.as_deref(),
            Some("CrashLoopBackOff")
        );
        assert_eq!(
            w.last_state.clone().unwrap().terminated.unwrap().exit_code,
            2
        );
        let n = &all[2];
        assert_eq!(
            n.state.clone().unwrap().waiting.unwrap().reason.as_deref(),
            Some("ContainerCreating")
        );
        assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.2"));
    }

    #[test]
    fn a_pod_is_ready_when_its_containers_and_its_gates_are() {
        let spec = "  initContainers: [{name: i, image: x}, {name: s, image: x, restartPolicy: Always}]\n  containers: [{name: a, image: x}]";
        let mut health = Health::default();
        let before = of(spec, "i:run", None, &health, None);
        assert_eq!(is(&before, "Initialized"), "False ContainersNotInitialized");
        assert_eq!(is(&before, "Ready"), "False ContainersNotReady");
        let up = of(spec, "i:0 s:run a:run", None, &health, Some(&before));
        assert_eq!(
            (is(&up, "Initialized"), is(&up, "Ready")),
            ("True".into(), "True".into())
        );
        health.begin("a0", true, false);
        assert_eq!(
            is(
                &of(spec, "i:0 s:run a:run", None, &health, None),
                "ContainersReady"
            ),
            "False ContainersNotReady"
        );
        health.begin("a0", true, true);
        health.begin("s0", false, false);
        assert_eq!(
            is(&of(spec, "i:0 s:run a:run", None, &health, None), "Ready"),
            "False ContainersNotReady"
        );

        let gated = format!("{spec}\n  readinessGates: [{{conditionType: example.com/ok}}]");
        let mut before = of(&gated, "i:0 s:run a:run", None, &Health::default(), None);
        assert_eq!(is(&before, "Ready"), "False ReadinessGatesNotReady");
        assert_eq!(is(&before, "ContainersReady"), "True");
        before.conditions.as_mut().unwrap().push(PodCondition {
            type_: "example.com/ok".into(),
            status: "True".into(),
            ..PodCondition::default()
        });
        let after = of(
            &gated,
            "i:0 s:run a:run",
            None,
            &Health::default(),
            Some(&before),
        );
        assert_eq!(
            (is(&after, "Ready"), is(&after, "example.com/ok")),
            ("True".into(), "True".into())
        );
        let completed = of(
            "  restartPolicy: Never\n  containers: [{name: a, image: x}]",
            "a:0",
            Some(Over::Ended),
            &health,
            None,
        );
        assert_eq!(is(&completed, "Ready"), "False PodCompleted");
    }
}
