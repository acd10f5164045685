//! What is told of a pod while it comes and goes: a line a change, on standard error.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal, Write},
};

use berth_kubelet::{Happening, Level};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, PodStatus};

use super::super::progress::wrote_beside;

/// What keeps a pod from coming up: a kubelet tries again, who runs a pod by hand is told.
const FAILURES: &[&str] = &[
    "ErrImageNeverPull",
    "Failed",
    "FailedCreatePodSandBox",
    "FailedMount",
    "InspectFailed",
];

/// Why a pod is not up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `container a`, or the pod.
    pub what: String,
    pub why: String,
}

#[derive(Debug, Default)]
pub struct Teller {
    is_terminal: bool,
    has_run: bool,
    /// What was last told of why a container waits.
    waits: BTreeMap<String, String>,
    /// The containers, by their ids, that had ended at the last look.
    ended: BTreeSet<String>,
}

impl Teller {
    pub fn on_stderr() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            ..Self::default()
        }
    }

    /// Tells of it, or returns it where it is the reason why the pod is not up.
    pub fn happened(&mut self, it: &Happening) -> Option<Failure> {
        if !self.has_run && FAILURES.contains(&it.reason) {
            let what = match it.container.as_str() {
                "" => "the pod".to_owned(),
                name => format!("container {name}"),
            };
            let why = it.message.clone();
            return Some(Failure { what, why });
        }
        if let Some(line) = in_words(it) {
            self.put(&line);
        }
        None
    }

    pub fn status(&mut self, status: &PodStatus) {
        for line in self.changes(status) {
            self.put(&line);
        }
    }

    /// What is new in this status.
    fn changes(&mut self, status: &PodStatus) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.has_run && !matches!(status.phase.as_deref(), None | Some("Pending")) {
            self.has_run = true;
            if status.phase.as_deref() == Some("Running") {
                lines.push("The pod is up".to_owned());
            }
        }
        let mut ended = BTreeSet::new();
        let lists = [&status.init_container_statuses, &status.container_statuses];
        for one in lists.into_iter().flatten().flatten() {
            let state = one.state.clone().unwrap_or_default();
            let last = one.last_state.clone().unwrap_or_default();
            // one that was started again at once is told of all the same
            for terminated in [&last.terminated, &state.terminated].into_iter().flatten() {
                let id = terminated.container_id.clone().unwrap_or_default();
                if !self.ended.contains(&id) && !ended.contains(&id) {
                    lines.push(format!("{}: {}", one.name, end(terminated)));
                }
                ended.insert(id);
            }
            let waits = wait(&state);
            if !waits.is_empty() && self.waits.get(&one.name) != Some(&waits) {
                lines.push(format!("{}: {waits}", one.name));
            }
            self.waits.insert(one.name.clone(), waits);
        }
        self.ended = ended;
        lines
    }

    /// Failures to write are of no consequence: the pod goes on.
    fn put(&self, line: &str) {
        let text = match self.is_terminal {
            // faint, since containers write there, too
            true => format!("\x1b[2mberth: {line}\x1b[0m\n"),
            false => format!("berth: {line}\n"),
        };
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
        wrote_beside();
    }
}

/// Nothing of what is no news.
fn in_words(it: &Happening) -> Option<String> {
    let text = match (it.level, it.reason) {
        (Level::Normal, "Started") => "Started".to_owned(),
        // its status says so, and until when it waits
        (Level::Normal, "Created") | (_, "BackOff") => return None,
        (Level::Normal, "Pulled") if it.message.ends_with("already present on machine") => {
            return None;
        }
        (Level::Warning, reason) if !it.message.starts_with(reason) => {
            format!("{reason}: {}", it.message)
        }
        _ => it.message.clone(),
    };
    Some(match it.container.as_str() {
        "" => text,
        name => format!("{name}: {text}"),
    })
}

fn wait(state: &ContainerState) -> String {
    let Some(waiting) = &state.waiting else {
        return String::new();
    };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    match (reason, waiting.message.as_deref()) {
        ("ContainerCreating", _) => "Creating".into(),
        (reason, Some(message)) => format!("Waiting: {reason}: {message}"),
        (reason, None) => format!("Waiting: {reason}"),
    }
}

fn end(terminated: &ContainerStateTerminated) -> String {
    let code = terminated.exit_code;
    match terminated.reason.as_deref() {
        // what they say is in the code
        None | Some("Completed" | "Error") => format!("Ended ({code})"),
        Some(reason) => format!("Ended ({code}, {reason})"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(phase: &str, state: Value, last: Value) -> PodStatus {
        let container = json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last});
        serde_json::from_value(json!({"phase": phase, "containerStatuses": [container]})).unwrap()
    }

    fn ended(id: &str, code: i32, reason: &str) -> Value {
        json!({"terminated": {"containerID": id, "exitCode": code, "reason": reason}})
    }

    #[test]
    fn each_change_is_told_once() {
        let mut teller = Teller::default();
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        let running = json!({"running": {}});
        for (phase, state, last, told) in [
            (
                "Pending",
                waiting("PodInitializing"),
                json!({}),
                &["a: Waiting: PodInitializing"][..],
            ),
            (
                "Pending",
                waiting("ContainerCreating"),
                json!({}),
                &["a: Creating"],
            ),
            ("Pending", waiting("ContainerCreating"), json!({}), &[]),
            ("Running", running.clone(), json!({}), &["The pod is up"]),
            // started again before anybody looked
            (
                "Running",
                running.clone(),
                ended("1", 1, "Error"),
                &["a: Ended (1)"],
            ),
            (
                "Running",
                waiting("CrashLoopBackOff"),
                ended("2", 137, "OOMKilled"),
                &["a: Ended (137, OOMKilled)", "a: Waiting: CrashLoopBackOff"],
            ),
            ("Running", running, ended("2", 137, "OOMKilled"), &[]),
            (
                "Succeeded",
                ended("3", 0, "Completed"),
                ended("2", 137, "OOMKilled"),
                &["a: Ended (0)"],
            ),
        ] {
            assert_eq!(teller.changes(&status(phase, state, last)), told);
        }
    }

    #[test]
    fn what_keeps_a_pod_from_coming_up_is_told_by_who_waits_for_it() {
        let failed = |level, reason, message: &str| Happening {
            level,
            reason,
            pod: "default/w".into(),
            uid: "1".into(),
            field: "spec.containers{a}".into(),
            container: "a".into(),
            message: message.into(),
        };
        let it = failed(Level::Warning, "Failed", "ErrImagePull: no");
        let mut teller = Teller::default();
        assert_eq!(
            teller.happened(&it),
            Some(Failure {
                what: "container a".into(),
                why: "ErrImagePull: no".into()
            })
        );
        teller.changes(&status("Running", json!({}), json!({})));
        assert_eq!(teller.happened(&it), None, "later it is tried again");

        for (it, told) in [
            (it, Some("a: Failed: ErrImagePull: no")),
            (
                failed(Level::Normal, "Started", "Container started"),
                Some("a: Started"),
            ),
            (failed(Level::Normal, "Created", "Container created"), None),
            (
                failed(
                    Level::Normal,
                    "Pulled",
                    "Container image \"x\" already present on machine",
                ),
                None,
            ),
            (
                failed(Level::Warning, "Unhealthy", "Liveness probe failed: no"),
                Some("a: Unhealthy: Liveness probe failed: no"),
            ),
        ] {
            assert_eq!(in_words(&it).as_deref(), told);
        }
    }
}
