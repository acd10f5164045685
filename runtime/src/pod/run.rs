//! Making a pod: reserved → surrounded (network, files, shim: side by side) → running. What fails is undone, step by step.

use std::{path::PathBuf, sync::Arc, time::Instant};

use berth_network::Attachment;
use berth_nri::Pass;
use berth_proto::shim::v1::pod::SandboxOptions;
use berth_state::{
    Object,
    record::{self, Durability},
};

use super::{
    Pod, create, files, launch, mounts, network, pod_limits,
    record::{PodPhase, PodRecord, Timeline},
    shim::{Shim, namespace_mode},
    teardown, userns,
};
use crate::{
    error::Error,
    failpoint, nri,
    trace::{phase, step},
};

/// As the kubelet gives it to its own infrastructure.
const SANDBOX_OOM_SCORE_ADJ: i32 = -998;

/// A pod that runs.
#[derive(Debug)]
pub struct Running {
    pub shim: Shim,
    pub record: PodRecord,
}

/// Makes the pod, or leaves nothing of it; where that failed, too, the error is [`Error::Undo`].
pub async fn run(pod: &Arc<Pod>) -> Result<(Running, Pass), Error> {
    let limits = pod_limits::plan(pod, &pod_limits::asked(&pod.config))?;
    let reserved = Reserved::make(pod)?;
    let surrounded = reserved.surround().await?;
    surrounded.start(limits).await
}

/// Its record says that it is being made, its bundle is there.
struct Reserved<'a> {
    pod: &'a Arc<Pod>,
    record: PodRecord,
    began: Instant,
}

impl<'a> Reserved<'a> {
    fn make(pod: &'a Arc<Pod>) -> Result<Self, Error> {
        let reserved = Self {
            pod,
            began: Instant::now(),
            record: PodRecord {
                id: pod.id.clone(),
                config: pod.config.clone(),
                runtime_handler: pod.handler.clone(),
                created_at: pod.created_at,
                phase: PodPhase::Creating,
                attachment: None,
                address: String::new(),
                timeline: Timeline::default(),
                why: String::new(),
                limits: None,
                cgroup_parent: pod.cgroup_parent.clone(),
            },
        };
        match reserved.write() {
            Ok(()) => Ok(reserved),
            Err(e) => Err(after_undo(e, reserved.undo())),
        }
    }

    fn write(&self) -> Result<(), Error> {
        let (pod, node) = (self.pod, &self.pod.node);
        record::write(
            &node.pod_record(&pod.id),
            &self.record,
            Durability::PageCache,
        )?;
        failpoint::at(|| berth_failpoint::site!("pod.run.recorded"))?;
        let dir = pod.dir();
        node.ledger
            .intend(&pod.id, &Object::Dir(dir.clone()))
            .map_err(Error::io("write ledger for", &dir))?;
        for dir in [&dir, &dir.join("containers"), &dir.join("exits")] {
            make_private_dir(dir)?;
        }
        if !pod.config.log_directory.is_empty() {
            // It is the caller's, who may have made it already and will remove it.
            make_log_directory(pod.config.log_directory.as_ref())?;
        }
        failpoint::at(|| berth_failpoint::site!("pod.run.reserved"))
    }

    fn undo(&self) -> Result<(), Error> {
        teardown::forget_pod(self.pod)
    }

    /// Network and shim take the most time and don't need each other.
    async fn surround(self) -> Result<Surrounded<'a>, Error> {
        match self.surroundings().await {
            Ok((shim, attachment, timeline)) => {
                let mut surrounded = Surrounded {
                    reserved: self,
                    shim,
                    pass: None,
                };
                let record = &mut surrounded.reserved.record;
                record.address = format!("unix://{}", surrounded.shim.socket.display());
                record.attachment = attachment;
                record.timeline.merge(timeline);
                Ok(surrounded)
            }
            Err(e) => {
                let undone = match teardown::surroundings(self.pod, None).await {
                    Ok(()) => self.undo(),
                    failed => failed,
                };
                Err(after_undo(e, undone))
            }
        }
    }

    async fn surroundings(&self) -> Result<(Shim, Option<Attachment>, Timeline), Error> {
        let pod = self.pod;
        let network = async {
            let mut timeline = Timeline::default();
            let attachment = match pod.host_network() {
                true => None,
                false => {
                    let request = network::request(pod)?;
                    let namespace = userns::network_namespace(pod).await?;
                    let since = Instant::now();
                    let attaching = pod.node.network.attach(&request, namespace);
                    let attached = phase(step!("network attach"), attaching).await;
                    pod.node.metrics.network_attaches.ended(since, &attached);
                    let (attachment, took) = attached.map_err(|source| Error::Network {
                        pod_id: pod.id.clone(),
                        source,
                    })?;
                    timeline.set_ms("netns", took.netns_ms);
                    timeline.set_ms("network", took.network_ms);
                    Some(attachment)
                }
            };
            failpoint::at(|| berth_failpoint::site!("pod.run.networked"))?;
            let ips = attachment.as_ref().map_or(&[][..], |a| &a.ips);
            files::write_all(pod, ips)?;
            let shm = pod.shm();
            if shm.starts_with(pod.dir()) {
                mounts::shm(&pod.node.ledger, &pod.id, &shm, pod.root())?;
            }
            failpoint::at(|| berth_failpoint::site!("pod.run.mounted"))?;
            Ok((attachment, timeline))
        };
        let shim = async {
            let since = Instant::now();
            let started = phase(step!("shim launch"), launch::start(pod)).await;
            pod.node.metrics.shim_starts.ended(since, &started);
            let shim = started?;
            failpoint::at(|| berth_failpoint::site!("pod.run.shim_started"))?;
            let mut timeline = Timeline::default();
            timeline.took("shim", since);
            Ok((shim, timeline))
        };
        // Both are waited for even if one fails: what is under way can't be undone.
        let (network, shim) = tokio::join!(network, shim);
        let ((attachment, mut timeline), (shim, shim_timeline)) = match (network, shim) {
            (Ok(network), Ok(shim)) => (network, shim),
            (Err(e), _) | (_, Err(e)) => return Err(e),
        };
        timeline.merge(shim_timeline);
        Ok((shim, attachment, timeline))
    }
}

/// Network, files, /dev/shm and shim are there.
struct Surrounded<'a> {
    reserved: Reserved<'a>,
    shim: Shim,
    /// NRI plugins were told of it.
    pass: Option<Pass>,
}

impl Surrounded<'_> {
    async fn start(mut self, limits: pod_limits::Plan) -> Result<(Running, Pass), Error> {
        match self.sandbox(limits).await {
            Ok(()) => {
                let running = Running {
                    shim: self.shim,
                    record: self.reserved.record,
                };
                Ok((running, self.pass.unwrap_or_default()))
            }
            Err(e) => {
                if let Some(pass) = &self.pass {
                    nri::remove_pod(pass, self.reserved.pod).await;
                }
                let undone = match teardown::surroundings(self.reserved.pod, Some(&self.shim)).await
                {
                    Ok(()) => self.reserved.undo(),
                    failed => failed,
                };
                Err(after_undo(e, undone))
            }
        }
    }

    async fn sandbox(&mut self, limits: pod_limits::Plan) -> Result<(), Error> {
        let (pod, node) = (self.reserved.pod, &self.reserved.pod.node);
        let timeline = &mut self.reserved.record.timeline;
        let since = Instant::now();
        let netns: Option<PathBuf> = self
            .reserved
            .record
            .attachment
            .as_ref()
            .map(|a| a.netns.clone());
        self.shim
            .create_sandbox(&pod.dir(), netns.as_deref(), &options(pod)?)
            .await?;
        failpoint::at(|| berth_failpoint::site!("pod.run.sandbox_created"))?;
        pod_limits::apply(pod, &self.shim, limits).await?;
        timeline.took("create", since);
        let since = Instant::now();
        if !node.handler_config(&pod.handler).is_own() {
            create::intend_pause(pod)?;
        }
        self.shim.start_sandbox().await?;
        failpoint::at(|| berth_failpoint::site!("pod.run.sandbox_started"))?;
        timeline.took("start", since);
        let pass = self.pass.insert(node.nri.pass().await);
        nri::run_pod(pass, pod, self.reserved.record.attachment.as_ref()).await?;
        let timeline = &mut self.reserved.record.timeline;
        timeline.took("total", self.reserved.began);
        self.reserved.record.phase = PodPhase::Ready;
        record::write(
            &node.pod_record(&pod.id),
            &self.reserved.record,
            Durability::PageCache,
        )?;
        failpoint::at(|| berth_failpoint::site!("pod.run.ready"))
    }
}

fn options(pod: &Pod) -> Result<SandboxOptions, Error> {
    let namespaces = pod.namespaces();
    let sysctls = berth_spec::sandbox_sysctls(&pod.config).map_err(|source| Error::Spec {
        what: format!("pod {}", pod.id),
        source,
    })?;
    let userns = berth_spec::user_namespace(&pod.config);
    Ok(SandboxOptions {
        hostname: pod.hostname(),
        ipc: namespace_mode(namespaces.ipc).into(),
        // The kernel's host name is one of the network's facts: with the node's network comes its name.
        uts: namespace_mode(namespaces.network).into(),
        pid: namespace_mode(namespaces.pid).into(),
        sysctls: sysctls.into_iter().collect(),
        cgroup_parent: pod.cgroup_parent.display().to_string(),
        systemd_cgroup: pod.is_by_systemd(),
        exits_dir: pod.node.exits_dir(&pod.id).display().to_string(),
        oom_score_adj: match pod.node.host.can_lower_oom_score {
            true => SANDBOX_OOM_SCORE_ADJ,
            // Nothing goes below the daemon's own without CAP_SYS_RESOURCE.
            false => SANDBOX_OOM_SCORE_ADJ.max(pod.node.host.oom_score_adj),
        },
        uids: userns.map_or_else(Vec::new, |u| userns::for_shim(&u.uids)),
        gids: userns.map_or_else(Vec::new, |u| userns::for_shim(&u.gids)),
        ..Default::default()
    })
}

/// 0700, and there already after a crash is as good.
pub fn make_private_dir(dir: &std::path::Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(Error::io("make", dir))
}

/// The caller names it: where it can't be for what is there already, that is the caller's to mend.
pub fn make_log_directory(dir: &std::path::Path) -> Result<(), Error> {
    use std::io::ErrorKind::{AlreadyExists, InvalidFilename, NotADirectory, ReadOnlyFilesystem};
    std::fs::create_dir_all(dir).map_err(|source| {
        let failed = Error::io("make log directory", dir);
        match source.kind() {
            AlreadyExists | NotADirectory | InvalidFilename | ReadOnlyFilesystem => {
                Error::FailedPrecondition(failed(source).to_string())
            }
            _ => failed(source),
        }
    })
}

pub fn after_undo(what: Error, undone: Result<(), Error>) -> Error {
    match undone {
        Ok(()) => what,
        Err(rest) => Error::Undo {
            what: Arc::new(what),
            rest: Arc::new(rest),
        },
    }
}
