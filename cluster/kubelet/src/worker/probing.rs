//! The probes of a pod's containers: begun when one runs, ended with it.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::api::core::v1::PodStatus;
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

use crate::{
    Level,
    execute::is_probed,
    node::Inner,
    observed::{Observed, Seen, State},
    pod::{ContainerSpec, Desired},
    probe::{Check, Health, Kind, Report, Watch, spawn},
};

/// What the probes hang on.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub node: &'a Inner,
    pub pod: &'a Desired,
    pub observed: &'a Observed,
    /// What was told by the kubelet that was here before this one.
    pub before: Option<&'a PodStatus>,
    pub now: i64,
    pub reports: &'a mpsc::Sender<Report>,
}

/// By the container's id.
#[derive(Debug, Default)]
pub(super) struct Probing(HashMap<String, Vec<AbortHandle>>);

impl Probing {
    /// Brings the tasks in line with what runs.
    pub fn keep(&mut self, scene: &Scene<'_>, health: &mut Health) {
        let observed = scene.observed;
        let runs = |id: &str| {
            let mut all = observed.containers.iter();
            all.any(|seen| seen.id == id && seen.state == State::Running)
        };
        self.0.retain(|id, handles| {
            let keeps = runs(id);
            if !keeps {
                handles.iter().for_each(AbortHandle::abort);
            }
            keeps
        });
        health.retain(runs);
        for spec in scene.pod.containers.iter().filter(|spec| is_probed(spec)) {
            if let Some(seen) = observed.newest(spec.name())
                && seen.state == State::Running
                && !health.knows(&seen.id)
            {
                self.begin(scene, spec, seen, health);
            }
        }
    }

    fn begin(&mut self, scene: &Scene<'_>, spec: &ContainerSpec, seen: &Seen, health: &mut Health) {
        let Scene { node, pod, .. } = scene;
        let container = &spec.container;
        // What was so stays so until a probe says otherwise: a kubelet that comes back makes nobody unready (BO-15).
        let (was_started, was_ready) = told(scene.before, seen);
        let has_started = container.startup_probe.is_none() || was_started;
        let is_ready = container.readiness_probe.is_none() || was_ready;
        health.begin(&seen.id, has_started, is_ready);
        let ip = match pod.host_network() {
            true => "127.0.0.1".to_owned(),
            false => {
                let sandbox = scene.observed.newest_sandbox();
                sandbox
                    .and_then(|it| it.ips.first().cloned())
                    .unwrap_or_default()
            }
        };
        let (started, _) = watch::channel(has_started);
        let startup = container.startup_probe.clone().filter(|_| !has_started);
        let mut handles = Vec::new();
        for (kind, probe) in [
            (Kind::Startup, startup),
            (Kind::Liveness, container.liveness_probe.clone()),
            (Kind::Readiness, container.readiness_probe.clone()),
        ] {
            let Some(probe) = probe else {
                continue;
            };
            let check = match Check::of(&probe, container, &ip) {
                Ok(check) => check,
                Err(why) => {
                    let message = format!("{} probe errored: {why}", kind.as_str());
                    node.tell(Level::Warning, pod, spec.name(), "Unhealthy", message);
                    continue;
                }
            };
            let watch = Watch {
                container: seen.id.clone(),
                name: seen.name.clone(),
                kind,
                probe,
                check,
                age: Duration::from_nanos((scene.now - seen.started).max(0).unsigned_abs()),
            };
            let (runtime, reports) = (node.runtime.clone(), scene.reports.clone());
            handles.push(spawn(watch, runtime, started.clone(), reports));
        }
        self.0.insert(seen.id.clone(), handles);
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.values().flatten().for_each(AbortHandle::abort);
    }
}

/// Whether the same container was told to have started, and to be ready.
fn told(before: Option<&PodStatus>, seen: &Seen) -> (bool, bool) {
    let lists = before.map(|before| [&before.init_container_statuses, &before.container_statuses]);
    let all = lists
        .into_iter()
        .flatten()
        .flat_map(|list| list.iter().flatten());
    let same = |id: &Option<String>| {
        id.as_deref().and_then(|id| id.rsplit('/').next()) == Some(seen.id.as_str())
    };
    all.into_iter()
        .find(|status| same(&status.container_id))
        .map_or((false, false), |status| {
            (status.started == Some(true), status.ready)
        })
}
