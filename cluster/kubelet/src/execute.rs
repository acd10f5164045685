//! The steps of a plan, done.

use std::{
    collections::BTreeMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::ResourceRequirements;
use tokio::sync::SemaphorePermit;

use crate::{
    Error, Level, hook, image,
    node::{Inner, Node},
    observed::{Observed, Seen, State},
    pod::{ContainerSpec, Desired, Role},
    problem::Problem,
    qos::units,
    resize::{self, asked},
    store, terminate,
    translate::{self, Fields, Making, environment::variables},
    user_namespace,
    volume::{self, Inside, Turn},
};

/// The longest that a postStart may take; upstream waits for ever, and with it the pod.
const POST_START: Duration = Duration::from_secs(600);

/// For what was killed by this kubelet: its grace period begins once, however many containers share it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grace {
    pub whole: Duration,
    pub began: Instant,
}

impl Grace {
    pub fn now(whole: Duration) -> Self {
        Self {
            whole,
            began: Instant::now(),
        }
    }

    fn left(self) -> Duration {
        terminate::left(self.whole, self.began.elapsed())
    }
}

/// Makes the sandbox, with its directories.
pub(crate) async fn make_sandbox(
    node: &Inner,
    pod: &Arc<Desired>,
    attempt: u32,
) -> Result<String, Error> {
    node.ensure_cgroup(pod, true).await?;
    // held until the sandbox has them, or has come to nothing
    let reserved = user_namespace::reserve(&node.runtime, pod).await?;
    let ids = reserved.as_ref().map(|it| it.0);
    let config = translate::sandbox(pod, node, attempt, ids)?;
    for omitted in translate::dns::now(pod, &node.config).1 {
        node.tell(Level::Warning, pod, "", "DNSConfigForming", omitted);
    }
    let logs = node.log_dir(pod);
    fs::create_dir_all(&logs).map_err(Error::file("make the log directory", &logs))?;
    node.runtime
        .run_sandbox(config, pod.runtime_handler())
        .await
}

/// What went wrong with a start, and how it is called.
#[derive(Debug)]
pub(crate) struct NotStarted {
    pub reason: &'static str,
    pub error: Error,
}

impl NotStarted {
    fn because(reason: &'static str) -> impl FnOnce(Error) -> Self {
        move |error| Self { reason, error }
    }

    /// What is told of it beside what was told where it happened, as upstream: of images the reason alone.
    pub fn in_words(&self) -> String {
        match self.error {
            Error::ImageNeverPull { .. } | Error::ImageStatus { .. } | Error::Pull { .. } => {
                format!("Error: {}", self.reason)
            }
            _ => format!("Error: {}: {}", self.reason, self.error),
        }
    }
}

/// Makes and starts a container of a pod whose sandbox is up; runs its postStart.
pub(crate) async fn start(
    node: &Inner,
    pod: &Desired,
    observed: &Observed,
    spec: &ContainerSpec,
    attempt: u32,
) -> Result<(), NotStarted> {
    const CONFIG: &str = "CreateContainerConfigError";
    let name = spec.name();
    let Some(sandbox) = observed.ready_sandbox() else {
        return Ok(());
    };
    if user_namespace::is_wanted(pod) && sandbox.ids.is_none() {
        let what = "the runtime does not tell which ids the pod's sandbox has";
        let problem = Problem::new("spec.hostUsers", what);
        return Err(NotStarted::because(CONFIG)(problem.into()));
    }
    let sandbox_config = translate::sandbox(pod, node, sandbox.attempt, sandbox.ids)
        .map_err(Error::from)
        .map_err(NotStarted::because(CONFIG))?;
    let image = image::ensure(
        node,
        pod,
        name,
        spec.image(),
        spec.pull_policy(),
        &sandbox_config,
    )
    .await
    .map_err(not_pulled)?;
    let mut images = BTreeMap::new();
    for (volume, reference, policy) in volume::images(node, pod, spec) {
        let facts = image::ensure(node, pod, name, &reference, policy, &sandbox_config)
            .await
            .map_err(not_pulled)?;
        images.insert(volume, facts.id);
    }
    let fields = Fields {
        pod,
        ips: &sandbox.ips,
        node: &node.config.node,
    };
    let features = match volume::asks_for_features(spec) {
        true => node.runtime.features(&pod.runtime_handler()).await,
        false => Ok(Default::default()),
    }
    .map_err(NotStarted::because("CreateContainerError"))?;
    let config = || -> Result<_, Error> {
        let (_, values) = variables(spec, fields, &node.objects)?;
        let inside = Inside {
            attempt,
            ips: &sandbox.ips,
            ids: sandbox.ids,
            values: &values,
            images: &images,
            features: &features,
        };
        let mounts = volume::mounts(node, pod, spec, &inside)?;
        let devices = volume::devices(node, pod, spec)?;
        let logs = node.log_dir(pod).join(name);
        fs::create_dir_all(&logs).map_err(Error::file("make the log directory", &logs))?;
        let target = spec
            .target
            .as_deref()
            .and_then(|target| observed.newest(target));
        let making = Making {
            attempt,
            image: &image,
            fields,
            objects: &node.objects,
            mounts,
            devices,
            ids: sandbox.ids,
            target: target.map(|seen| seen.id.as_str()),
        };
        Ok(translate::container(pod, spec, making)?)
    };
    let config = config().map_err(NotStarted::because(CONFIG))?;
    // One that was made and never started is in the way of its like.
    if let Some(seen) = observed.newest(name)
        && seen.state == State::Created
    {
        node.runtime
            .remove_container(&seen.id)
            .await
            .map_err(NotStarted::because("CreateContainerError"))?;
    }
    let id = node
        .runtime
        .create_container(&sandbox.id, config, sandbox_config)
        .await
        .map_err(NotStarted::because("CreateContainerError"))?;
    let told = |reason, message| node.tell(Level::Normal, pod, name, reason, message);
    told("Created", "Container created");
    node.runtime
        .start_container(&id)
        .await
        .map_err(NotStarted::because("RunContainerError"))?;
    told("Started", "Container started");
    let hook = spec
        .container
        .lifecycle
        .as_ref()
        .and_then(|it| it.post_start.as_ref());
    if let Some(handler) = hook {
        let ip = sandbox.ips.first().map(String::as_str).unwrap_or_default();
        if let Err(error) = hook::run(node, spec, "postStart", handler, &id, ip, POST_START).await {
            node.tell(
                Level::Warning,
                pod,
                name,
                "FailedPostStartHook",
                format!("PostStartHook failed: {error}"),
            );
            told("Killing", "FailedPostStartHook");
            let seen = Seen {
                id,
                name: name.to_owned(),
                ..Seen::default()
            };
            if let Err(error) =
                stop_one(node, pod, &seen, &sandbox.ips, Grace::now(pod.grace())).await
            {
                tracing::warn!(pod = %pod.full_name(), container = name, %error, "a container could not be stopped");
            }
        }
    }
    Ok(())
}

fn not_pulled(error: Error) -> NotStarted {
    let reason = match error {
        Error::ImageNeverPull { .. } => "ErrImageNeverPull",
        Error::ImageStatus { .. } => "ImageInspectError",
        _ => "ErrImagePull",
    };
    NotStarted { reason, error }
}

/// Gives containers that run what the pod says now, each as (id, spec); those that are done are told to `done`. The pod's own limits are raised before
/// theirs and lowered after them, and those of containers that have less to give first: at no time do they want more than the pod has.
pub(crate) async fn resize(
    node: &Inner,
    pod: &Desired,
    observed: &Observed,
    ids: &[String],
    mut done: impl FnMut(&str, ResourceRequirements),
) -> Result<(), Error> {
    let Some(sandbox) = observed.ready_sandbox() else {
        return Ok(());
    };
    let mut changes = Vec::new();
    for id in ids {
        let seen = observed.containers.iter().find(|seen| seen.id == *id);
        let Some((seen, spec)) = seen.and_then(|seen| Some((seen, pod.container(&seen.name)?)))
        else {
            continue;
        };
        let (has, given) = (seen.resources.clone().unwrap_or_default(), asked(spec));
        let directions = ["cpu", "memory"].map(|name| resize::direction(&has, &given, name));
        changes.push((seen, spec, given, directions));
    }
    for (seen, spec, given, [_, (_, is_lowered)]) in &changes {
        let limit = units(&given.limits, "memory").and_then(|it| u64::try_from(it).ok());
        let Some(limit) = limit.filter(|_| *is_lowered) else {
            continue;
        };
        // the kernel would kill what is above it
        let used = node.runtime.memory_usage(&seen.id).await?.unwrap_or(0);
        if used > limit {
            return Err(Problem::new(
                format!("{}.resources.limits.memory", spec.path),
                format!("attempting to set memory limit ({limit}) below current usage ({used})"),
            )
            .into());
        }
    }
    let is_raised = |(_, _, _, all): &(_, _, _, [(bool, bool); 2])| all.iter().any(|it| it.0);
    let is_lowered = |(_, _, _, all): &(_, _, _, [(bool, bool); 2])| all.iter().any(|it| it.1);
    let (raises, lowers) = (
        changes.iter().any(is_raised),
        changes.iter().any(is_lowered),
    );
    let of_pod = translate::pod_resources(pod);
    let overhead = translate::overhead(pod);
    if raises {
        let mut first = of_pod.clone();
        if lowers {
            // of the two limits the one that is lowered waits
            let memory = changes.iter().any(|change| change.3[1].1);
            let cpu = changes.iter().any(|change| change.3[0].1);
            if memory {
                first.memory_limit_in_bytes = 0;
            }
            if cpu {
                (first.cpu_quota, first.cpu_period) = (0, 0);
            }
        }
        node.runtime
            .update_sandbox(&sandbox.id, first, overhead.clone())
            .await?;
    }
    changes.sort_by_key(is_raised);
    for (seen, spec, given, _) in changes {
        let mut resources = translate::container_resources(pod, spec, &node.config.node)?;
        // these are as they were
        resources.oom_score_adj = 0;
        resources.hugepage_limits.clear();
        node.runtime.update_container(&seen.id, resources).await?;
        done(&seen.id, given);
    }
    // shares, too, where no limit changes
    node.runtime
        .update_sandbox(&sandbox.id, of_pod, overhead)
        .await
}

/// Runs a container's preStop, and stops it.
pub(crate) async fn stop_one(
    node: &Inner,
    pod: &Desired,
    seen: &Seen,
    ips: &[String],
    grace: Grace,
) -> Result<(), Error> {
    let spec = pod.container(&seen.name);
    let hook =
        spec.and_then(|spec| Some((spec, spec.container.lifecycle.as_ref()?.pre_stop.as_ref()?)));
    if let Some((spec, handler)) = hook
        && !grace.whole.is_zero()
        && seen.state != State::Unknown
    {
        let ip = ips.first().map(String::as_str).unwrap_or_default();
        if let Err(error) =
            hook::run(node, spec, "preStop", handler, &seen.id, ip, grace.left()).await
        {
            node.tell(
                Level::Warning,
                pod,
                &seen.name,
                "FailedPreStopHook",
                format!("PreStopHook failed: {error}"),
            );
        }
    }
    node.runtime.stop_container(&seen.id, grace.left()).await
}

/// Ends all containers, the sidecars last, then the sandboxes. Nothing is removed.
pub(crate) async fn end(
    node: &Inner,
    pod: &Desired,
    observed: &Observed,
    grace: Grace,
) -> Result<(), Error> {
    let ips = observed
        .newest_sandbox()
        .map(|sandbox| sandbox.ips.clone())
        .unwrap_or_default();
    for group in terminate::order(pod, observed) {
        let stops = group.into_iter().map(|seen| async {
            let message = format!("Stopping container {}", seen.name);
            node.tell(Level::Normal, pod, &seen.name, "Killing", message);
            stop_one(node, pod, seen, &ips, grace).await
        });
        // one that can't be stopped is no reason to leave the others; and once its time is over, its sandbox ends it
        for answer in join_all(stops).await {
            match answer {
                Err(error) if !error.is_unanswered() && grace.left().is_zero() => {
                    tracing::warn!(pod = %pod.full_name(), %error, "a container ends with its sandbox");
                }
                answer => answer?,
            }
        }
    }
    let _turn = takedown(node).await;
    for sandbox in &observed.sandboxes {
        node.runtime.stop_sandbox(&sandbox.id).await?;
    }
    Ok(())
}

/// Who waits for one, waits with nothing running.
async fn takedown(node: &Inner) -> Option<SemaphorePermit<'_>> {
    // nobody closes it
    node.takedowns.acquire().await.ok()
}

/// Removes all that there is of a pod that has ended: containers, sandboxes, volumes, logs.
pub(crate) async fn remove(
    node: &Node,
    pod: &Arc<Desired>,
    observed: &Observed,
    turn: &Turn,
) -> Result<(), Error> {
    let _turn = takedown(node).await;
    for seen in &observed.containers {
        node.runtime.remove_container(&seen.id).await?;
    }
    for sandbox in &observed.sandboxes {
        node.runtime.remove_sandbox(&sandbox.id).await?;
    }
    node.remove_cgroup(pod).await?;
    store::remove_tree(&node.log_dir(pod))?;
    // The last, since the pod is kept in it: a kubelet that is killed before finds what there is still to do.
    take_away(node, pod, turn, volume::tear_down).await
}

/// Lets go the claims of a pod of which nothing will run any more.
pub(crate) async fn let_claims_go(
    node: &Node,
    pod: &Arc<Desired>,
    turn: &Turn,
) -> Result<(), Error> {
    take_away(node, pod, turn, volume::let_claims_go).await
}

/// Beside: whoever makes the volumes still is waited for, and so are file systems.
async fn take_away(
    node: &Node,
    pod: &Desired,
    turn: &Turn,
    work: fn(&Inner, &str) -> Result<(), Error>,
) -> Result<(), Error> {
    let (node, uid, turn) = (node.clone(), pod.uid.clone(), turn.clone());
    let work = tokio::task::spawn_blocking(move || turn.take_away(|| work(&node, &uid)));
    work.await.unwrap_or_else(|error| {
        Err(Error::Volume {
            name: "*".into(),
            why: format!("taking away all of {} broke: {error}", pod.full_name()),
        })
    })
}

/// Removes what is only history: of each name all but the newest two, and sandboxes of which nothing is left.
pub(crate) async fn tidy(node: &Inner, pod: &Desired, observed: &Observed) -> Result<(), Error> {
    let (old, kept) = history(observed);
    for seen in old {
        node.runtime.remove_container(&seen.id).await?;
        let log = node
            .log_dir(pod)
            .join(&seen.name)
            .join(format!("{}.log", seen.attempt));
        let _ = fs::remove_file(log);
    }
    for sandbox in observed.sandboxes.iter().skip(1) {
        if !sandbox.ready && !kept.iter().any(|seen| seen.sandbox == sandbox.id) {
            node.runtime.remove_sandbox(&sandbox.id).await?;
        }
    }
    Ok(())
}

/// What may go, and what stays.
fn history(observed: &Observed) -> (Vec<&Seen>, Vec<&Seen>) {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    observed.containers.iter().partition(|seen| {
        let count = counts.entry(&seen.name).or_default();
        *count += 1;
        *count > 2 && seen.state == State::Exited
    })
}

/// Roles whose probes count.
pub(crate) fn is_probed(spec: &ContainerSpec) -> bool {
    matches!(spec.role, Role::Main | Role::Sidecar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_two_of_a_name_are_kept_and_what_runs() {
        let seen = |name: &str, attempt, state| Seen {
            id: format!("{name}{attempt}"),
            name: name.into(),
            attempt,
            state,
            ..Seen::default()
        };
        let mut observed = Observed {
            containers: vec![
                seen("a", 0, State::Exited),
                seen("a", 1, State::Running),
                seen("a", 2, State::Exited),
                seen("a", 3, State::Running),
                seen("b", 0, State::Exited),
            ],
            ..Observed::default()
        };
        observed.sort();
        let (old, kept) = history(&observed);
        assert_eq!(
            old.iter().map(|seen| seen.id.as_str()).collect::<Vec<_>>(),
            ["a0"]
        );
        assert_eq!(kept.len(), 4);
    }
}
