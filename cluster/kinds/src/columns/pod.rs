//! Pods, and what has a pod's template.

use serde_json::Value;

use super::{AGE, NAME, column, since, wide};
use crate::{
    kind::{Cell, Column},
    read::{condition, flag, items, map, number, some, text},
    selector::labels_shown,
    time::seconds,
};

pub(crate) const POD: &[Column] = &[
    NAME,
    column("Ready", "string", Cell::Of(ready)),
    column(
        "Status",
        "string",
        Cell::Of(|pod, _| state(pod).reason.into()),
    ),
    column("Restarts", "string", Cell::Of(restarts)),
    AGE,
    wide("IP", "string", Cell::Of(ip)),
    wide(
        "Node",
        "string",
        Cell::Of(|pod, _| or_none(text(pod, "/spec/nodeName"))),
    ),
    wide(
        "Nominated Node",
        "string",
        Cell::Of(|pod, _| or_none(text(pod, "/status/nominatedNodeName"))),
    ),
    wide("Readiness Gates", "string", Cell::Of(readiness_gates)),
];

pub(crate) const POD_TEMPLATE: &[Column] = &[
    NAME,
    column(
        "Containers",
        "string",
        Cell::Of(|o, _| names(o, "/template/spec/containers", "/name")),
    ),
    column(
        "Images",
        "string",
        Cell::Of(|o, _| names(o, "/template/spec/containers", "/image")),
    ),
    column(
        "Pod Labels",
        "string",
        Cell::Of(|o, _| labels_shown(map(o, "/template/metadata/labels")).into()),
    ),
];

pub(super) fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>" } else { text }.into()
}

/// One field of each, joined.
pub(super) fn names(object: &Value, list: &str, field: &str) -> Value {
    let all: Vec<_> = items(object, list)
        .iter()
        .map(|one| text(one, field))
        .collect();
    all.join(",").into()
}

struct State {
    reason: String,
    ready: usize,
    restarts: i64,
    last_restart: Option<i64>,
}

/// What a container's end is called, where the runtime gave it no reason.
fn end(terminated: &Value) -> String {
    match (text(terminated, "/reason"), number(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// An init container that keeps running beside the others: a sidecar.
fn sidecar(container: &Value) -> bool {
    text(container, "/restartPolicy") == "Always"
}

fn state(pod: &Value) -> State {
    let phase = text(pod, "/status/phase");
    let conditions = items(pod, "/status/conditions");
    let mut state = State {
        reason: match text(pod, "/status/reason") {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        },
        ready: 0,
        restarts: 0,
        last_restart: None,
    };
    if conditions.iter().any(|condition| {
        text(condition, "/type") == "PodScheduled"
            && text(condition, "/reason") == "SchedulingGated"
    }) {
        "SchedulingGated".clone_into(&mut state.reason);
    }

    let finished = |status: &Value| seconds(text(status, "/lastState/terminated/finishedAt"));
    let init = items(pod, "/spec/initContainers");
    let is_sidecar = |status: &Value| {
        init.iter().any(|container| {
            text(container, "/name") == text(status, "/name") && sidecar(container)
        })
    };
    let (mut sidecar_restarts, mut sidecar_restart) = (0i64, None);
    let mut initializing = false;
    for (at, status) in items(pod, "/status/initContainerStatuses")
        .iter()
        .enumerate()
    {
        let count = number(status, "/restartCount");
        state.restarts = state.restarts.saturating_add(count);
        state.last_restart = state.last_restart.max(finished(status));
        if is_sidecar(status) {
            sidecar_restarts = count.saturating_add(sidecar_restarts);
            sidecar_restart = finished(status).max(sidecar_restart);
        }
        let terminated = some(status, "/state/terminated");
        if terminated.is_some_and(|end| number(end, "/exitCode") == 0) {
            continue;
        }
        if is_sidecar(status) && flag(status, "/started") {
            state.ready += usize::from(flag(status, "/ready"));
            continue;
        }
        initializing = true;
        state.reason = match (terminated, text(status, "/state/waiting/reason")) {
            (Some(terminated), _) => format!("Init:{}", end(terminated)),
            (None, "" | "PodInitializing") => format!("Init:{at}/{}", init.len()),
            (None, reason) => format!("Init:{reason}"),
        };
        break;
    }

    if !initializing || condition(conditions, "Initialized") {
        state.restarts = sidecar_restarts;
        state.last_restart = sidecar_restart;
        let mut running = false;
        // The first container's reason is the one that stays.
        for status in items(pod, "/status/containerStatuses").iter().rev() {
            state.restarts = state
                .restarts
                .saturating_add(number(status, "/restartCount"));
            state.last_restart = state.last_restart.max(finished(status));
            let waiting = text(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                waiting.clone_into(&mut state.reason);
            } else if let Some(terminated) = some(status, "/state/terminated") {
                state.reason = end(terminated);
            } else if flag(status, "/ready") && some(status, "/state/running").is_some() {
                running = true;
                state.ready += 1;
            }
        }
        if state.reason == "Completed" && running {
            let ready = condition(conditions, "Ready");
            state.reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }

    if some(pod, "/metadata/deletionTimestamp").is_some() {
        if text(pod, "/status/reason") == "NodeLost" {
            "Unknown".clone_into(&mut state.reason);
        } else if !["Succeeded", "Failed"].contains(&phase) {
            "Terminating".clone_into(&mut state.reason);
        }
    }
    state
}

fn ready(pod: &Value, _: i64) -> Value {
    let sidecars = items(pod, "/spec/initContainers")
        .iter()
        .filter(|c| sidecar(c))
        .count();
    let all = items(pod, "/spec/containers").len() + sidecars;
    format!("{}/{all}", state(pod).ready).into()
}

fn restarts(pod: &Value, now: i64) -> Value {
    let state = state(pod);
    match state.last_restart {
        Some(last) if state.restarts != 0 => {
            let ago = super::human_duration(now.saturating_sub(last));
            format!("{} ({ago} ago)", state.restarts).into()
        }
        _ => state.restarts.to_string().into(),
    }
}

fn ip(pod: &Value, _: i64) -> Value {
    or_none(text(pod, "/status/podIPs/0/ip"))
}

fn readiness_gates(pod: &Value, _: i64) -> Value {
    let gates = items(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let conditions = items(pod, "/status/conditions");
    let open = gates
        .iter()
        .filter(|gate| condition(conditions, text(gate, "/conditionType")))
        .count();
    format!("{open}/{}", gates.len()).into()
}

pub(crate) const EVENT: &[Column] = &[
    column("Last Seen", "string", Cell::Of(last_seen)),
    column("Type", "string", Cell::Of(|e, _| text(e, "/type").into())),
    column(
        "Reason",
        "string",
        Cell::Of(|e, _| text(e, "/reason").into()),
    ),
    column("Object", "string", Cell::Of(event_object)),
    wide(
        "Subobject",
        "string",
        Cell::Of(|e, _| either(e, "/involvedObject/fieldPath", "/regarding/fieldPath").into()),
    ),
    wide("Source", "string", Cell::Of(event_source)),
    column(
        "Message",
        "string",
        Cell::Of(|e, _| either(e, "/message", "/note").trim().into()),
    ),
    wide(
        "First Seen",
        "string",
        Cell::Of(|e, now| first_seen(e, now).into()),
    ),
    wide("Count", "string", Cell::Of(event_count)),
    Column {
        priority: 1,
        ..NAME
    },
];

/// The first of two that isn't empty: events of core/v1 and of events.k8s.io/v1 call the same by two names.
fn either<'a>(event: &'a Value, first: &str, second: &str) -> &'a str {
    match text(event, first) {
        "" => text(event, second),
        found => found,
    }
}

fn first_seen(event: &Value, now: i64) -> String {
    match either(event, "/firstTimestamp", "/deprecatedFirstTimestamp") {
        "" => since(event.pointer("/eventTime"), now),
        time => since(Some(&time.into()), now),
    }
}

fn last_seen(event: &Value, now: i64) -> Value {
    if some(event, "/series").is_some() {
        return since(event.pointer("/series/lastObservedTime"), now).into();
    }
    match either(event, "/lastTimestamp", "/deprecatedLastTimestamp") {
        "" => first_seen(event, now),
        time => since(Some(&time.into()), now),
    }
    .into()
}

fn event_object(event: &Value, _: i64) -> Value {
    let kind = either(event, "/involvedObject/kind", "/regarding/kind").to_lowercase();
    match either(event, "/involvedObject/name", "/regarding/name") {
        "" => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

fn event_source(event: &Value, _: i64) -> Value {
    let component = match either(event, "/source/component", "/deprecatedSource/component") {
        "" => either(event, "/reportingComponent", "/reportingController"),
        component => component,
    };
    let host = match either(event, "/source/host", "/deprecatedSource/host") {
        "" => text(event, "/reportingInstance"),
        host => host,
    };
    if host.is_empty() {
        component.into()
    } else {
        format!("{component}, {host}").into()
    }
}

fn event_count(event: &Value, _: i64) -> Value {
    if some(event, "/series").is_some() {
        return number(event, "/series/count").into();
    }
    let count = number(event, "/count").max(number(event, "/deprecatedCount"));
    if count == 0 { 1 } else { count }.into()
}
