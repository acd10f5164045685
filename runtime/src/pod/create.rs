//! Making a container: reserved → snapshot → mounted → created. What fails is undone, step by step.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use berth_image::Image;
use berth_nri::Pass;
use berth_proto::{cri, shim::v1::pod::CreateOptions};
use berth_state::{
    Object,
    record::{self, Durability},
};

use tracing::Span;

use super::{
    Pod, host_paths,
    image_volumes::{self, Volume},
    mounts,
    record::{ContainerPhase, ContainerRecord, Timeline, now_ns},
    run::{after_undo, make_log_directory, make_private_dir},
    shim::{Shim, namespace_mode},
    teardown, unanswered, update,
};
use crate::{
    cgroup_driver,
    checkpoint::restore::{Archive, Unpacked},
    error::Error,
    failpoint, nri,
    trace::{phase_now, step},
};

/// What a new container is made from.
#[derive(Debug, Clone)]
pub struct Plan {
    pub id: String,
    pub config: cri::ContainerConfig,
    pub image: Arc<Image>,
    /// Images that the container mounts beside its own.
    pub volumes: Vec<Volume>,
    /// Its processes and changed files are those of a checkpoint; `image` is what these are changes of.
    pub archive: Option<Archive>,
}

/// Makes the container, or leaves nothing of it; where that failed, too, the error is [`Error::Undo`].
pub async fn create(
    pod: &Arc<Pod>,
    shim: &Shim,
    plan: Plan,
    pass: &Arc<Pass>,
) -> Result<ContainerRecord, Error> {
    let began = Instant::now();
    unanswered::ask(&plan.config).await?;
    let apparmor = pod.node.load_apparmor_default(&plan.config).await;
    let rooted = {
        let (pod, pass) = (pod.clone(), pass.clone());
        // Files, mounts and a spec: short, but blocking.
        let here = Span::current();
        let work = move || here.in_scope(|| Rooted::make(&pod, &plan, &pass, &apparmor));
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Panicked("create container"))??
    };
    rooted.create(pod, shim, began, pass).await
}

/// Record, snapshot, mounted root and config.json are there.
struct Rooted {
    record: ContainerRecord,
    options: CreateOptions,
    adjusted: Option<nri::Adjusted>,
    checkpoint: Option<Unpacked>,
}

impl Rooted {
    fn make(
        pod: &Pod,
        plan: &Plan,
        pass: &Pass,
        apparmor: &Result<(), String>,
    ) -> Result<Self, Error> {
        let mut told = None;
        Self::phases(pod, plan, pass, apparmor, &mut told)
            .inspect_err(|_| nri::uncreated_blocking(pass, pod, told.as_ref()))
            .map_err(|e| after_undo(e, teardown::forget_container(pod, &plan.id)))
    }

    /// `told`: the container as NRI plugins heard of it.
    fn phases(
        pod: &Pod,
        plan: &Plan,
        pass: &Pass,
        apparmor: &Result<(), String>,
        told: &mut Option<ContainerRecord>,
    ) -> Result<Self, Error> {
        let (node, id, dir) = (&pod.node, &plan.id, pod.container_dir(&plan.id));
        let cgroup = pod.container_cgroup(id);
        let in_spec = cgroup_driver::cgroups_path(&pod.cgroup_parent, id);
        let wrong = |source| Error::Spec {
            what: format!("container {}", name(&plan.config)),
            source,
        };
        berth_spec::check_cpuset(&plan.config, &cgroup, &node.host).map_err(wrong)?;
        let mut record = reserve(pod, plan, &dir)?;

        let since = Instant::now();
        let rootfs = dir.join("rootfs");
        let checkpoint = phase_now(step!("image mount"), || {
            let snapshot = node.images.prepare(id, &plan.image)?;
            failpoint::at(|| berth_failpoint::site!("container.create.snapshot"))?;
            let archive = plan.archive.as_ref();
            let checkpoint = archive
                .map(|archive| Unpacked::make(node, id, archive, &snapshot))
                .transpose()?;
            mounts::overlay(&node.ledger, id, &snapshot, pod.owners().as_ref(), &rootfs)?;
            Ok::<_, Error>(checkpoint)
        })?;
        failpoint::at(|| berth_failpoint::site!("container.create.mounted"))?;
        let image_volumes = image_volumes::mount(pod, id, &plan.config, &plan.volumes)?;
        record.timeline.took("snapshot", since);

        let since = Instant::now();
        host_paths::ensure(&plan.config)?;
        let mut built = berth_spec::container_spec(&berth_spec::Inputs {
            pod_id: &pod.id,
            container_id: id,
            sandbox: &pod.config,
            container: &plan.config,
            image: &plan.image.config,
            rootfs: &rootfs,
            resolv_conf: &pod.dir().join("resolv.conf"),
            hosts: &pod.dir().join("hosts"),
            hostname: &pod.dir().join("hostname"),
            shm: &pod.shm(),
            cgroup_path: &in_spec,
            cdi_spec_dirs: &node.config.runtime.cdi_spec_dirs,
            image_volumes: &image_volumes,
            apparmor_default: apparmor.as_ref().copied().map_err(String::as_str),
            host: &node.host,
        })
        .map_err(wrong)?;
        for note in &built.notes {
            tracing::warn!(pod_id = %pod.id, container_id = %id, "{note}");
        }
        let user = built.user();
        record.user = (user.uid, user.gid, user.supplemental_groups);
        record.notes = built.notes;
        *told = (!pass.is_idle()).then(|| record.clone());
        let mut adjusted = nri::create(pass, pod, &mut record, &mut built.spec, &cgroup)?;
        let path = dir.join("config.json");
        let json =
            serde_json::to_vec(&built.spec).map_err(|e| Error::io("encode", &path)(e.into()))?;
        std::fs::write(&path, json).map_err(Error::io("write", &path))?;
        failpoint::at(|| berth_failpoint::site!("container.create.spec"))?;
        record.timeline.took("spec", since);

        let since = Instant::now();
        let cgroup = adjusted
            .as_mut()
            .map_or(cgroup, |a| std::mem::take(&mut a.cgroup));
        cgroups(pod, id, cgroup)?;
        record.timeline.took("cgroup", since);
        let mut options = options(&plan.config, &record.log_path);
        if let Some(adjusted) = &adjusted {
            adjusted.put_into(&mut options);
        }
        if let Some(checkpoint) = &checkpoint {
            checkpoint.tell(&mut options);
        }
        Ok(Self {
            record,
            options,
            adjusted,
            checkpoint,
        })
    }

    async fn create(
        mut self,
        pod: &Arc<Pod>,
        shim: &Shim,
        began: Instant,
        pass: &Pass,
    ) -> Result<ContainerRecord, Error> {
        let id = self.record.id.clone();
        match self.task(pod, shim, began).await {
            Ok(()) => {
                nri::created(pass, pod, &self.record).await;
                Ok(self.record)
            }
            Err(e) => {
                nri::uncreated(pass, pod, &self.record).await;
                let undone = match teardown::end_task(shim, &id).await {
                    Ok(()) => forget(pod, &id).await,
                    // Without a shim there is no task.
                    Err(gone) if gone.code() == tonic::Code::Unavailable => forget(pod, &id).await,
                    failed => failed,
                };
                Err(after_undo(e, undone))
            }
        }
    }

    async fn task(&mut self, pod: &Pod, shim: &Shim, began: Instant) -> Result<(), Error> {
        nri::change_others(pod, self.adjusted.as_ref()).await?;
        let since = Instant::now();
        let id = &self.record.id;
        let images = self.checkpoint.as_ref().map(Unpacked::images);
        shim.create(id, &pod.container_dir(id), &self.options, images.as_deref())
            .await?;
        failpoint::at(|| berth_failpoint::site!("container.create.task"))?;
        self.record.timeline.took("create", since);
        self.record.timeline.took("create_total", began);
        self.record.phase = ContainerPhase::Made;
        record::write(
            &pod.node.container_record(&self.record.id),
            &self.record,
            Durability::PageCache,
        )?;
        failpoint::at(|| berth_failpoint::site!("container.create.recorded"))
    }
}

fn reserve(pod: &Pod, plan: &Plan, dir: &Path) -> Result<ContainerRecord, Error> {
    let (node, id) = (&pod.node, &plan.id);
    let image = &plan.image;
    let record = ContainerRecord {
        id: id.clone(),
        pod_id: pod.id.clone(),
        config: plan.config.clone(),
        image_id: image.id.clone(),
        image_ref: image.repo_digests.first().unwrap_or(&image.id).clone(),
        created_at: now_ns(),
        phase: ContainerPhase::Creating,
        exit: None,
        log_path: log_path(pod, &plan.config)?,
        stop_signal: super::stop::stop_signal(&plan.config, &image.config),
        user: Default::default(),
        notes: vec![],
        timeline: Timeline::default(),
        resources: update::asked(&plan.config),
    };
    record::write(&node.container_record(id), &record, Durability::PageCache)?;
    failpoint::at(|| berth_failpoint::site!("container.create.recording"))?;
    node.ledger
        .intend(id, &Object::Dir(dir.to_owned()))
        .map_err(Error::io("write ledger for", dir))?;
    make_private_dir(&dir.join("rootfs"))?;
    if let Some(parent) = record.log_path.parent() {
        make_log_directory(parent)?;
    }
    failpoint::at(|| berth_failpoint::site!("container.create.reserved"))?;
    Ok(record)
}

/// Writes down the cgroups that the engine is about to make: the container's own, and with a pod's first container those above
/// it, which are the pod's.
fn cgroups(pod: &Pod, container_id: &str, own: PathBuf) -> Result<(), Error> {
    let _alone = teardown::cgroup_intents();
    intend_cgroups_of_pod(pod)?;
    intend_cgroup(pod, container_id, own)
}

fn intend_cgroup(pod: &Pod, owner: &str, cgroup: PathBuf) -> Result<(), Error> {
    pod.node
        .ledger
        .intend(owner, &Object::Cgroup(cgroup))
        .map_err(Error::io("write ledger for", owner))
}

/// The pause of another shim than ours is a container, with a cgroup in the pod's.
pub(super) fn intend_pause(pod: &Pod) -> Result<(), Error> {
    let _alone = teardown::cgroup_intents();
    intend_cgroups_of_pod(pod)?;
    intend_cgroup(pod, &pod.id, pod.container_cgroup(&pod.id))
}

/// Under [`teardown::cgroup_intents`].
pub(super) fn intend_cgroups_of_pod(pod: &Pod) -> Result<(), Error> {
    let node = &pod.node;
    for above in node.cgroups.missing(&pod.cgroup_parent) {
        // The parent of all pods is no pod's own.
        if above != node.cgroup.parent {
            intend_cgroup(pod, &pod.id, above)?;
        }
    }
    Ok(())
}

/// [`teardown::forget_container`] off the event loop.
pub async fn forget(pod: &Arc<Pod>, container_id: &str) -> Result<(), Error> {
    let (pod, id) = (pod.clone(), container_id.to_owned());
    tokio::task::spawn_blocking(move || teardown::forget_container(&pod, &id))
        .await
        .map_err(|_| Error::Panicked("remove container"))?
}

fn options(config: &cri::ContainerConfig, log_path: &Path) -> CreateOptions {
    let namespaces = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default();
    CreateOptions {
        network: namespace_mode(namespaces.network).into(),
        ipc: namespace_mode(namespaces.ipc).into(),
        uts: namespace_mode(namespaces.network).into(),
        pid: namespace_mode(namespaces.pid).into(),
        target_id: namespaces.target_id,
        log_path: log_path.display().to_string(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        ..Default::default()
    }
}

/// `<log_directory>/<log_path>`; empty where either is.
fn log_path(pod: &Pod, config: &cri::ContainerConfig) -> Result<PathBuf, Error> {
    use std::path::Component;
    if pod.config.log_directory.is_empty() || config.log_path.is_empty() {
        return Ok(PathBuf::new());
    }
    let below = Path::new(&config.log_path);
    if !below
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(Error::InvalidArgument(format!(
            "log_path {} must stay below the pod's log_directory",
            berth_spec::quoted(&config.log_path)
        )));
    }
    Ok(Path::new(&pod.config.log_directory).join(below))
}

fn name(config: &cri::ContainerConfig) -> &str {
    config.metadata.as_ref().map_or("", |m| &m.name)
}
