//! `berth run`: one pod of a manifest, kept by the kubelet's code for as long as somebody is there.
//!
//! ```text
//! file ── read ──▶ Asked ──▶ Keeper ── comes up ──▶ followed, waited for, or let go ──▶ let go, or removed
//!                              └─ fails, or a signal ──▶ removed
//! ```

mod follow;
mod keeper;
mod tell;

use std::{
    future::pending,
    io::Read,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use berth_kubelet::{
    CgroupDriver, Config, Desired, Division, ImagePolicy, NodeFacts, Objects, Problem, Puller, RUN,
    RestartPolicy, Runtime,
    manifest::{self, MAX_BYTES, Origin},
};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{follow::Follower, keeper::Keeper};
use super::{
    image::{self, Credentials},
    logs,
    pod::{self, LOGS_DIR, VOLUMES_DIR, log_directory},
};
use crate::{
    error::Error,
    node::{Address, Node},
    output::Format,
};

/// Between two looks whether the sandbox of a pod that has ended is stopped.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Of the log of an init container that failed.
const LAST_LINES: u64 = 20;

/// Run a pod from a Kubernetes manifest, without a cluster
///
/// Takes a file with one Pod of the API v1 (YAML or JSON) and, where it refers to some, ConfigMaps and Secrets. The
/// kubelet's own code keeps the pod for as long as this command runs: init containers, sidecars, hooks, probes,
/// restartPolicy, volumes. What happens is told on standard error; what the containers write is printed as they write
/// it, with the container's name where there are several.
///
/// Ctrl-C leaves the pod running, with nobody to restart or probe its containers. A pod that ends by itself gives the
/// exit code of the first of its containers that failed. A pod that doesn't come up is taken away again, whatever the
/// reason. `berth pod stop` and `berth pod remove` end it also while this command runs.
///
/// Fields that have no meaning here are warned of, and fields that can't be honoured are errors; both are named.
#[derive(Debug, Args)]
pub struct Run {
    /// The manifest, or - for standard input
    #[arg(value_name = "pod.yaml")]
    manifest: PathBuf,
    /// Return once all containers have started, and leave the pod to itself
    #[arg(long, short, conflicts_with = "wait")]
    detach: bool,
    /// Print no logs, but the pod's status when it has ended
    #[arg(long)]
    wait: bool,
    /// Remove the pod when it has ended, or at Ctrl-C, within its grace period; logs and volumes, too
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// When to pull images, whatever the manifest's imagePullPolicy says
    #[arg(long, value_enum)]
    pull: Option<Pull>,
    /// Where volumes are made and what is known of pods is kept
    #[arg(long, default_value = VOLUMES_DIR)]
    volumes_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Pull {
    Always,
    Missing,
    Never,
}

/// What is in the file.
struct Asked {
    pod: Desired,
    objects: Objects,
}

/// How the time with a pod that had come up went by.
enum Parted {
    Ended(Box<PodStatus>),
    Signal,
    /// Nobody reads what the containers write.
    Unread(Error),
}

impl Run {
    pub async fn run(self, address: &Address, format: Format) -> Result<ExitCode, Error> {
        super::log_from("warn");
        let asked = self.read()?;
        let node = Node::connect(address).await?;
        refuse_second(&node, &asked.pod).await?;
        let mut signals = Signals::watch();
        let pod = Arc::new(asked.pod);
        let volumes = std::path::absolute(&self.volumes_dir).map_err(|source| Error::File {
            what: "find",
            path: self.volumes_dir.clone(),
            source,
        })?;
        let runtime = Runtime::new(&address.to_string())?.with_puller(puller(&node));
        let mut keeper = Keeper::start(
            pod.clone(),
            config(volumes.join(&pod.uid)),
            runtime,
            asked.objects,
            self.manifest.display().to_string(),
        )
        .await?;
        let logs = log_directory(&pod.namespace, &pod.name, &pod.uid);
        let is_followed = !self.detach && !self.wait;
        // with a document on standard output, logs are beside it
        let mut follower = is_followed.then(|| {
            let names = pod.containers.iter().map(|one| one.name().to_owned());
            Follower::start(&logs, names.collect(), format != Format::Table)
        });

        let up = tokio::select! {
            // who was told that it is up interrupts a pod that is
            biased;
            up = keeper.up() => up,
            () = signals.next() => Err(Error::Interrupted),
        };
        if let Err(error) = up {
            if let (Error::InitFailed { log, .. }, None) = (&error, &follower) {
                eprint!("{}", logs::last_lines(&logs.join(log), LAST_LINES));
            }
            let error = take_back(keeper, &mut signals, error).await;
            if let Some(follower) = follower {
                // what it had written is printed; that nobody reads it is not what went wrong
                let _ = follower.finish().await;
            }
            return Err(error);
        }

        let parted = match self.detach {
            true => Parted::Signal,
            false => attend(&node, &mut keeper, &mut follower, &mut signals).await?,
        };
        let detail = detail(&node, &pod).await?;
        let is_left = !self.rm && detail.is_some();
        match self.rm {
            true => remove(keeper, &mut signals).await?,
            false => keeper.let_go().await,
        }
        let writes_no_more = match &parted {
            Parted::Ended(_) => true,
            Parted::Signal => self.rm,
            Parted::Unread(_) => false,
        };
        if let Some(follower) = follower.filter(|_| writes_no_more) {
            follower.finish().await?;
        }
        // Who follows logs wants nothing else between them.
        if !is_followed || format != Format::Table {
            pod::print_details(format, detail.as_slice())?;
        }
        match parted {
            Parted::Ended(status) => {
                let name = pod.full_name();
                match (&detail, &status.reason) {
                    (None, _) => eprintln!("berth: {name} is gone: somebody has removed it"),
                    (Some(_), Some(reason)) => eprintln!("berth: {name}: {reason}"),
                    (Some(_), None) => {}
                }
                Ok(ExitCode::from(exit_code(&status)))
            }
            Parted::Signal => {
                if is_left && !self.detach {
                    eprint!("{}", goes_on(&pod));
                }
                Ok(ExitCode::SUCCESS)
            }
            Parted::Unread(error) => Err(error),
        }
    }

    fn read(&self) -> Result<Asked, Error> {
        let failed = |source| Error::File {
            what: "read the manifest",
            path: self.manifest.clone(),
            source,
        };
        let input: Box<dyn Read> = if self.manifest == Path::new("-") {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(&self.manifest).map_err(failed)?)
        };
        let mut text = String::new();
        input
            .take(MAX_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(self.problem("", format!("more than {MAX_BYTES} bytes")));
        }
        let uid = new_uid();
        let mut documents =
            manifest::read(&text, Origin::Run { uid: &uid }).map_err(|it| self.problems(it))?;
        for warning in &documents.warnings {
            eprintln!("berth: {}: {warning}", self.manifest.display());
        }
        let pod = match (documents.pods.pop(), documents.pods.len()) {
            (Some(pod), 0) => self.pod(pod)?,
            (None, _) => return Err(self.problem("", "no Pod in it")),
            (Some(_), more) => {
                let what = format!(
                    "{} Pods in it: `berth run` takes one, with the ConfigMaps and Secrets that it refers to",
                    more + 1
                );
                return Err(self.problem("", what));
            }
        };
        let objects = Objects::default();
        for map in documents.config_maps {
            objects.put_config_map(map);
        }
        for secret in documents.secrets {
            objects.put_secret(secret);
        }
        Ok(Asked { pod, objects })
    }

    fn pod(&self, mut pod: Pod) -> Result<Desired, Error> {
        if let Some(pull) = self.pull {
            pull.overrule(&mut pod);
        }
        let pod = Desired::new(pod, RUN).map_err(|problem| self.problems(vec![problem]))?;
        if self.wait
            && pod.restart_policy() == RestartPolicy::Always
            && pod.spec.active_deadline_seconds.is_none()
        {
            let what =
                "Always, the default, has no end to --wait for: it must be Never or OnFailure";
            return Err(self.problem("spec.restartPolicy", what));
        }
        Ok(pod)
    }

    fn problem(&self, path: &str, what: impl Into<String>) -> Error {
        self.problems(vec![Problem::new(path, what)])
    }

    fn problems(&self, problems: Vec<Problem>) -> Error {
        Error::Manifest {
            file: self.manifest.display().to_string(),
            problems,
        }
    }
}

impl Pull {
    fn overrule(self, pod: &mut Pod) {
        let policy = match self {
            Self::Always => "Always",
            Self::Missing => "IfNotPresent",
            Self::Never => "Never",
        };
        let Some(spec) = &mut pod.spec else {
            return;
        };
        let inits = spec.init_containers.iter_mut().flatten();
        for container in inits.chain(&mut spec.containers) {
            container.image_pull_policy = Some(policy.into());
        }
        for volume in spec.volumes.iter_mut().flatten() {
            if let Some(image) = &mut volume.image {
                image.pull_policy = Some(policy.into());
            }
        }
    }
}

/// One pod a kubelet and one kubelet a directory: many may run at the same time.
fn config(kubelet_dir: PathBuf) -> Config {
    Config {
        kubelet_dir,
        logs_dir: LOGS_DIR.into(),
        cgroup_root: None,
        cgroup_driver: CgroupDriver::default(),
        division: Division::default(),
        source: RUN,
        max_pods: 1,
        images: ImagePolicy::default(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".into(),
        node: NodeFacts::of_this_machine(),
    }
}

/// Pulls with a bar a layer.
fn puller(node: &Node) -> Puller {
    let node = node.clone();
    Arc::new(move |name, auth| {
        let node = node.clone();
        Box::pin(async move {
            let credentials = auth.map(|auth| Credentials {
                user: auth.username,
                password: auth.password,
            });
            image::pull(&node, &name, credentials.as_ref())
                .await
                .map_err(|error| error.to_string())
        })
    })
}

/// Stays with a pod that has come up.
async fn attend(
    node: &Node,
    keeper: &mut Keeper,
    follower: &mut Option<Follower>,
    signals: &mut Signals,
) -> Result<Parted, Error> {
    let status = tokio::select! {
        status = keeper.over() => status?,
        () = signals.next() => return Ok(Parted::Signal),
        error = unread(follower) => return Ok(Parted::Unread(error)),
    };
    tokio::select! {
        stopped = stopped(node, &keeper.pod) => stopped?,
        () = signals.next() => {}
    }
    Ok(Parted::Ended(Box::new(status)))
}

/// A pod that runs already is not run again under another uid.
async fn refuse_second(node: &Node, asked: &Desired) -> Result<(), Error> {
    let same = |pod: &pod::Listed| {
        pod.uid == asked.uid
            || pod.is_ready() && (&pod.name, &pod.namespace) == (&asked.name, &asked.namespace)
    };
    match pod::all(node).await?.into_iter().find(same) {
        Some(pod) => Err(Error::PodExists {
            pod: format!("{}/{}", pod.namespace, pod.name),
            id: pod.id,
        }),
        None => Ok(()),
    }
}

/// Waits until the sandbox of a pod that has ended is stopped, as the kubelet does: sidecars may take their time.
async fn stopped(node: &Node, pod: &Desired) -> Result<(), Error> {
    loop {
        let all = pod::all(node).await?;
        if !all.iter().any(|it| it.uid == pod.uid && it.is_ready()) {
            return Ok(());
        }
        tokio::time::sleep(STOP_INTERVAL).await;
    }
}

/// The pod in its newest sandbox; none where somebody has removed it.
async fn detail(node: &Node, pod: &Desired) -> Result<Option<pod::Detail>, Error> {
    let newest = pod::all(node)
        .await?
        .into_iter()
        .find(|it| it.uid == pod.uid);
    let Some(newest) = newest else {
        return Ok(None);
    };
    match pod::detail(node, &newest.id).await {
        Ok(detail) => Ok(Some(detail)),
        Err(Error::Rpc { status, .. }) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn unread(follower: &mut Option<Follower>) -> Error {
    match follower {
        Some(follower) => follower.unread().await,
        None => pending().await,
    }
}

/// Removes all that there is of the pod; a second signal leaves the rest to `berth pod remove`.
async fn remove(keeper: Keeper, signals: &mut Signals) -> Result<(), Error> {
    let pod = keeper.pod.full_name();
    tokio::select! {
        removed = keeper.remove() => removed,
        () = signals.next() => Err(Error::Left { pod }),
    }
}

async fn take_back(keeper: Keeper, signals: &mut Signals, error: Error) -> Error {
    match remove(keeper, signals).await {
        Ok(()) => error,
        Err(failure) => Error::Untidy {
            error: Box::new(error),
            failures: vec![failure.to_string()],
        },
    }
}

fn goes_on(pod: &Desired) -> String {
    let name = pod.full_name();
    let container = match pod.containers.len() {
        1 => "",
        _ => " -c CONTAINER",
    };
    format!(
        "berth: {name} goes on, and nobody restarts or probes its containers\n  \
         berth pod status {name}\n  \
         berth logs -f {name}{container}\n  \
         berth pod remove {name}\n"
    )
}

/// That of the first container that failed, as a process has one.
fn exit_code(status: &PodStatus) -> u8 {
    let codes = status.container_statuses.iter().flatten();
    let codes = codes.filter_map(|one| {
        one.state
            .as_ref()?
            .terminated
            .as_ref()
            .map(|it| it.exit_code)
    });
    let failed = codes.into_iter().find(|code| *code != 0);
    match (failed, status.phase.as_deref()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some("Succeeded")) => 0,
        (None, _) => 1,
    }
}

/// SIGINT and SIGTERM. Where they can't be watched for, they end the program as ever.
struct Signals(Option<(Signal, Signal)>);

impl Signals {
    fn watch() -> Self {
        let interrupt = signal(SignalKind::interrupt());
        Self(interrupt.ok().zip(signal(SignalKind::terminate()).ok()))
    }

    async fn next(&mut self) {
        let Some((interrupt, terminate)) = &mut self.0 else {
            return pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// The kernel makes random UUIDs for whoever reads this file.
fn new_uid() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn uids_are_uuids_and_never_twice_the_same() {
        let (one, other) = (new_uid(), new_uid());
        assert_eq!((one.len(), one.matches('-').count()), (36, 4), "{one}");
        assert_ne!(one, other);
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_container_that_failed() {
        let of = |phase: &str, codes: &[i32]| {
            let containers: Vec<_> = codes
                .iter()
                .map(|code| json!({"name": "a", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": {"exitCode": code}}}))
                .collect();
            let status = json!({"phase": phase, "containerStatuses": containers});
            exit_code(&serde_json::from_value(status).unwrap())
        };
        assert_eq!(of("Succeeded", &[0, 0]), 0);
        assert_eq!(of("Failed", &[0, 3, 4]), 3);
        assert_eq!(of("Failed", &[137]), 137);
        assert_eq!(of("Failed", &[512]), 255);
        // ended by its deadline, or removed by somebody
        assert_eq!(of("Failed", &[0]), 1);
        assert_eq!(of("Failed", &[]), 1);
    }

    #[test]
    fn a_policy_of_the_command_line_is_every_images() {
        let pod = json!({"spec": {
            "initContainers": [{"name": "i", "image": "x"}],
            "containers": [{"name": "a", "image": "x:1", "imagePullPolicy": "Always"}],
            "volumes": [{"name": "v", "image": {"reference": "y"}}, {"name": "e"}],
        }});
        let mut pod: Pod = serde_json::from_value(pod).unwrap();
        Pull::Missing.overrule(&mut pod);
        let written = serde_json::to_string(&pod).unwrap();
        assert_eq!(written.matches("IfNotPresent").count(), 3, "{written}");
        assert!(!written.contains("Always"));
    }
}
