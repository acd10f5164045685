//! NRI: what berthd has to say to the plugins, and what it does at their word. How they are spoken to is `berth-nri`'s.
//!
//! The pod driver calls one function a step, with the [`Pass`] that it holds. Where nobody is connected none of them reads or builds
//! anything.

mod adjust;
mod limits;
mod message;

pub use limits::overlay;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use berth_network::Attachment;
use berth_nri::{Nri, Pass, Runtime, api};
use berth_proto::{cri, shim::v1::pod as v1};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources, Spec};

use crate::{
    config::Config,
    error::Error,
    pod::{
        Pod,
        event::Request,
        record::{ContainerRecord, Exit, PodLimits},
        registry::Registry,
        update,
        view::{ContainerView, PodView},
    },
    server,
};
use message::Moment;

/// Limits that a plugin wants of a container on which other work is under way wait for that; not for ever, since that work may wait for
/// the plugin.
const UPDATE_PATIENCE: Duration = Duration::from_secs(10);
/// Updates in one message.
const MAX_UPDATES: usize = 10_000;

/// The plugins, and the way from them to the pods.
#[derive(Debug)]
pub struct Plugins {
    nri: Arc<Nri>,
    registry: OnceLock<Weak<Registry>>,
    serving: OnceLock<tokio::task::AbortHandle>,
}

impl Plugins {
    pub fn new(config: &Config) -> Self {
        let of = &config.nri;
        Self {
            nri: Nri::new(berth_nri::Settings {
                enable: !of.disable,
                runtime_name: "berth".into(),
                runtime_version: env!("CARGO_PKG_VERSION").into(),
                plugin_dir: of.plugin_dir.clone(),
                config_dir: of.plugin_config_dir.clone(),
                registration_timeout: Duration::from_millis(of.registration_timeout_ms as u64),
                request_timeout: Duration::from_millis(of.request_timeout_ms as u64),
                validator: of.default_validator.clone(),
            }),
            registry: OnceLock::new(),
            serving: OnceLock::new(),
        }
    }

    /// To be held while a pod or container begins, changes or ends.
    pub async fn pass(&self) -> Pass {
        self.nri.pass().await
    }

    /// [`Self::pass`] where it is to be had at once.
    pub fn try_pass(&self) -> Option<Pass> {
        self.nri.try_pass()
    }

    fn view(&self, pod_id: &str) -> Option<Arc<PodView>> {
        let registry = self.registry.get()?.upgrade()?;
        registry.pod(pod_id).ok().map(|handle| handle.view())
    }
}

/// Starts the installed plugins, then takes those that connect. Not before all pods of the last run are known.
pub async fn start(registry: &Arc<Registry>) -> Result<(), Error> {
    let node = &registry.node;
    let of = &node.config.nri;
    let _ = node.nri.registry.set(Arc::downgrade(registry));
    let nri = node.nri.nri.clone();
    let link = Arc::new(Link(Arc::downgrade(registry)));
    nri.start(link).await?;
    if of.disable || of.socket.as_os_str().is_empty() {
        return Ok(());
    }
    if berth_nri::registry::is_served(&of.socket).await {
        tracing::error!(
            socket = %of.socket.display(),
            "somebody else serves NRI plugins here: berthd takes none by a socket; key `nri.socket` names another one"
        );
        return Ok(());
    }
    if let Some(dir) = of.socket.parent() {
        crate::pod::run::make_private_dir(dir)?;
    }
    let listener = server::listen(&of.socket)?;
    tracing::info!(socket = %of.socket.display(), "taking NRI plugins");
    let _ = node
        .nri
        .serving
        .set(tokio::spawn(nri.serve(listener)).abort_handle());
    Ok(())
}

/// Tells the plugins that the daemon ends.
pub async fn stop(registry: &Arc<Registry>) {
    let plugins = &registry.node.nri;
    if let Some(serving) = plugins.serving.get() {
        serving.abort();
        let _ = std::fs::remove_file(&registry.node.config.nri.socket);
    }
    plugins.nri.shut_down().await;
}

fn spec_of(pod: &Pod, container_id: &str) -> Option<Spec> {
    read_spec(&pod.container_dir(container_id))
}

fn read_spec(bundle: &Path) -> Option<Spec> {
    let text = std::fs::read(bundle.join("config.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

fn pod_message(pod: &Pod) -> api::PodSandbox {
    match pod.node.nri.view(&pod.id) {
        Some(view) => message::pod_view(&view),
        None => message::pod(pod, None),
    }
}

/// A pod that is ready, but for the word of the plugins.
pub async fn run_pod(pass: &Pass, pod: &Pod, attachment: Option<&Attachment>) -> Result<(), Error> {
    if pass.is_idle() {
        return Ok(());
    }
    let message = message::pod(pod, attachment);
    Ok(pass
        .tell(api::Event::RUN_POD_SANDBOX, &message, None)
        .await?)
}

/// A pod whose limits are about to change, to `limits`.
pub async fn update_pod(pass: &Pass, pod: &Pod, limits: &PodLimits) -> Result<(), Error> {
    if pass.is_idle() {
        return Ok(());
    }
    let resources = |of| protobuf::MessageField::some(limits::message(of));
    let request = api::UpdatePodSandboxRequest {
        pod: protobuf::MessageField::some(pod_message(pod)),
        overhead_linux_resources: resources(&limits.overhead),
        linux_resources: resources(&limits.resources),
        ..Default::default()
    };
    Ok(pass.update_pod_sandbox(&request).await?)
}

/// A pod whose limits have changed.
pub async fn pod_updated(pass: &Pass, pod: &Pod) {
    if !pass.is_idle() {
        let event = api::Event::POST_UPDATE_POD_SANDBOX;
        pass.inform(event, &pod_message(pod), None).await;
    }
}

/// A pod whose containers have ended, before it is taken down.
pub async fn stop_pod(pass: &Pass, pod: &Pod) {
    if !pass.is_idle() {
        pass.inform(api::Event::STOP_POD_SANDBOX, &pod_message(pod), None)
            .await;
    }
}

/// A pod that is gone.
pub async fn remove_pod(pass: &Pass, pod: &Pod) {
    if !pass.is_idle() {
        pass.inform(api::Event::REMOVE_POD_SANDBOX, &pod_message(pod), None)
            .await;
    }
}

/// What plugins make of a container that is about to be made.
#[derive(Debug)]
pub struct Adjusted {
    pub cgroup: PathBuf,
    namespaces: Vec<(LinuxNamespaceType, v1::NamespaceMode)>,
    updates: Vec<api::ContainerUpdate>,
}

impl Adjusted {
    /// The namespaces that it is to have.
    pub fn put_into(&self, options: &mut v1::CreateOptions) {
        for (kind, mode) in &self.namespaces {
            let place = match kind {
                LinuxNamespaceType::Network => &mut options.network,
                LinuxNamespaceType::Ipc => &mut options.ipc,
                LinuxNamespaceType::Uts => &mut options.uts,
                LinuxNamespaceType::Pid => &mut options.pid,
                _ => continue,
            };
            *place = (*mode).into();
        }
    }
}

/// Asks the plugins what is to be changed in `spec`, and changes it. In a thread that may block.
pub fn create(
    pass: &Pass,
    pod: &Pod,
    record: &mut ContainerRecord,
    spec: &mut Spec,
    cgroup: &Path,
) -> Result<Option<Adjusted>, Error> {
    if pass.changes_nothing() {
        return Ok(None);
    }
    let moment = Moment {
        record,
        state: api::ContainerState::CONTAINER_UNKNOWN,
        started_at: 0,
        exit: None,
        pid: 0,
    };
    let container = message::container(&moment, Some(spec));
    let pod_message = pod_message(pod);
    let asked = pass.create_container(&pod_message, container);
    let created = tokio::runtime::Handle::current().block_on(asked)?;
    let adjusted = adjust::Target {
        pod,
        config: &record.config,
        cgroup: cgroup.to_owned(),
        spec,
        owners: &created.owners,
        container_id: &record.id,
    }
    .apply(&created.adjust)?;
    for note in &adjusted.notes {
        tracing::warn!(pod_id = %pod.id, container_id = %record.id, "{note}");
    }
    record.notes.extend(adjusted.notes);
    record.resources = adjusted.resources;
    Ok(Some(Adjusted {
        cgroup: adjusted.cgroup,
        namespaces: adjusted.namespaces,
        updates: created.updates,
    }))
}

/// Changes the limits of others that came with a creation. Where one is refused that the plugin insists on, so is the creation.
pub async fn change_others(pod: &Pod, adjusted: Option<&Adjusted>) -> Result<(), Error> {
    match adjusted {
        Some(adjusted) => others(pod, adjusted.updates.clone()).await,
        None => Ok(()),
    }
}

async fn others(pod: &Pod, updates: Vec<api::ContainerUpdate>) -> Result<(), Error> {
    if updates.is_empty() {
        return Ok(());
    }
    let Some(registry) = pod.node.nri.registry.get().and_then(Weak::upgrade) else {
        return Ok(());
    };
    for update in &updates {
        if let Err(e) = change(&registry, update).await {
            tracing::warn!(container_id = %update.container_id.escape_debug(), "limits that an NRI plugin wants: {e}");
            if !update.ignore_failure {
                return Err(e);
            }
        }
    }
    Ok(())
}

/// A container that is made.
pub async fn created(pass: &Pass, pod: &Pod, record: &ContainerRecord) {
    let event = api::Event::POST_CREATE_CONTAINER;
    inform(pass, pod, event, &made(record)).await;
}

/// A container of which plugins were told, and that could not be made.
pub async fn uncreated(pass: &Pass, pod: &Pod, record: &ContainerRecord) {
    inform(pass, pod, api::Event::REMOVE_CONTAINER, &made(record)).await;
}

/// [`uncreated`] in a thread that may block.
pub fn uncreated_blocking(pass: &Pass, pod: &Pod, record: Option<&ContainerRecord>) {
    if let Some(record) = record.filter(|_| !pass.is_idle()) {
        tokio::runtime::Handle::current().block_on(uncreated(pass, pod, record));
    }
}

fn made(record: &ContainerRecord) -> Moment<'_> {
    Moment {
        record,
        state: api::ContainerState::CONTAINER_CREATED,
        started_at: 0,
        exit: None,
        pid: 0,
    }
}

async fn inform(pass: &Pass, pod: &Pod, event: api::Event, moment: &Moment<'_>) {
    if pass.is_idle() {
        return;
    }
    let spec = spec_of(pod, &moment.record.id);
    let container = message::container(moment, spec.as_ref());
    pass.inform(event, &pod_message(pod), Some(&container))
        .await;
}

/// A container that is about to be started.
pub async fn start_container(
    pass: &Pass,
    pod: &Pod,
    record: Option<&ContainerRecord>,
) -> Result<(), Error> {
    let Some(record) = record.filter(|_| !pass.is_idle()) else {
        return Ok(());
    };
    let spec = spec_of(pod, &record.id);
    let container = message::container(&made(record), spec.as_ref());
    let event = api::Event::START_CONTAINER;
    Ok(pass
        .tell(event, &pod_message(pod), Some(&container))
        .await?)
}

/// A container that runs, since `started_at` (ns since the epoch).
pub async fn started(pass: &Pass, pod: &Pod, record: Option<&ContainerRecord>, started_at: i64) {
    let Some(record) = record else { return };
    let moment = Moment {
        state: api::ContainerState::CONTAINER_RUNNING,
        started_at,
        ..made(record)
    };
    inform(pass, pod, api::Event::POST_START_CONTAINER, &moment).await;
}

/// A container that has ended, by itself or not. What plugins want of others then is done.
pub async fn stopped(pass: &Pass, pod: &Pod, record: &ContainerRecord) {
    if pass.is_idle() {
        return;
    }
    let moment = ended(record, record.exit.as_ref());
    let spec = spec_of(pod, &record.id);
    let container = message::container(&moment, spec.as_ref());
    let updates = pass.stop_container(&pod_message(pod), &container).await;
    // Nobody waits for these in vain: the container has stopped.
    let _ = others(pod, updates).await;
}

fn ended<'a>(record: &'a ContainerRecord, exit: Option<&'a Exit>) -> Moment<'a> {
    Moment {
        state: api::ContainerState::CONTAINER_STOPPED,
        started_at: exit.map_or(0, |exit| exit.started_at),
        exit,
        ..made(record)
    }
}

/// A container that is to be removed, as it was: its spec goes with it.
pub fn last_sight(
    pass: &Pass,
    pod: &Pod,
    record: Option<&ContainerRecord>,
) -> Option<api::Container> {
    let record = record.filter(|_| !pass.is_idle())?;
    let spec = spec_of(pod, &record.id);
    let moment = ended(record, record.exit.as_ref());
    Some(message::container(&moment, spec.as_ref()))
}

/// A container that is gone.
pub async fn removed(pass: &Pass, pod: &Pod, container: Option<api::Container>) {
    if let Some(container) = container {
        let event = api::Event::REMOVE_CONTAINER;
        pass.inform(event, &pod_message(pod), Some(&container))
            .await;
    }
}

/// Limits that are about to change: what the plugins make of them, and of those of others.
#[derive(Debug)]
pub struct Change {
    pub limits: cri::LinuxContainerResources,
    /// What the CRI has no word for.
    pub beyond: LinuxResources,
    updates: Vec<api::ContainerUpdate>,
}

/// `None`: nobody has a say.
pub async fn update(
    pass: &Pass,
    pod: &Pod,
    view: &ContainerView,
    asked: &cri::LinuxContainerResources,
) -> Result<Option<Change>, Error> {
    if pass.is_idle() {
        return Ok(None);
    }
    let spec = spec_of(pod, &view.record.id);
    let container = message::container(&Moment::of(view), spec.as_ref());
    let (wanted, updates) = pass
        .update_container(&pod_message(pod), &container, limits::message(asked))
        .await?;
    let (mut limits, beyond) = wanted_of(pod, &view.record.id, &wanted)?;
    // What plugins have no word for stays as it was asked.
    limits.oom_score_adj = asked.oom_score_adj;
    if limits.memory_limit_in_bytes != asked.memory_limit_in_bytes {
        limits::follow_with_swap(&view.record.resources, &mut limits);
    }
    Ok(Some(Change {
        limits,
        beyond,
        updates,
    }))
}

fn wanted_of(
    pod: &Pod,
    container_id: &str,
    wanted: &api::LinuxResources,
) -> Result<(cri::LinuxContainerResources, LinuxResources), Error> {
    let wanted = limits::wanted(wanted, pod.node.host.cgroup_v2, &pod.node.config.blockio);
    let wanted = wanted.map_err(|(field, why, code)| Error::Adjustment {
        plugins: String::new(),
        what: format!("{field:?} of container {container_id}"),
        why,
        code,
    })?;
    Ok((wanted.limits, wanted.beyond))
}

/// Limits that have changed.
pub async fn updated(
    pass: &Pass,
    pod: &Pod,
    view: &ContainerView,
    resources: &cri::LinuxContainerResources,
    change: Option<Change>,
) -> Result<(), Error> {
    if pass.is_idle() {
        return Ok(());
    }
    let mut record = ContainerRecord::clone(&view.record);
    record.resources = resources.clone();
    let moment = Moment {
        record: &record,
        ..Moment::of(view)
    };
    inform(pass, pod, api::Event::POST_UPDATE_CONTAINER, &moment).await;
    match change {
        Some(change) => others(pod, change.updates).await,
        None => Ok(()),
    }
}

/// What a plugin wants of one container, by way of its pod's driver.
async fn change(registry: &Registry, asked: &api::ContainerUpdate) -> Result<(), Error> {
    let Some(wanted) = asked.linux.resources.as_ref() else {
        return Ok(());
    };
    let (id, handle) = registry.container(&asked.container_id)?;
    if !wanted.devices.is_empty() {
        return Err(Error::Adjustment {
            plugins: String::new(),
            what: format!("device rules of container {id}"),
            why: "they can't be changed while it runs".into(),
            code: tonic::Code::Unimplemented,
        });
    }
    let (mut limits, beyond) = wanted_of(&handle.pod, &id, wanted)?;
    if let Some(view) = handle.view().container(&id) {
        limits::follow_with_swap(&view.record.resources, &mut limits);
    }
    let request = |reply| Request::Update {
        id: id.clone(),
        resources: Box::new(limits),
        by: update::By::Plugin(Box::new(beyond)),
        reply,
    };
    match tokio::time::timeout(UPDATE_PATIENCE, handle.ask(request)).await {
        Ok(done) => done,
        Err(_) => Err(Error::Stuck {
            what: format!("limits of container {id} that an NRI plugin wants"),
            stage: "other work on it",
            since: UPDATE_PATIENCE,
        }),
    }
}

/// The pods, to those who join or ask of their own accord.
struct Link(Weak<Registry>);

#[async_trait]
impl Runtime for Link {
    async fn snapshot(&self) -> (Vec<api::PodSandbox>, Vec<api::Container>) {
        let Some(registry) = self.0.upgrade() else {
            return Default::default();
        };
        // A file a container.
        let seen = tokio::task::spawn_blocking(move || {
            let views = registry.views();
            let pods = views.iter().map(|view| message::pod_view(view)).collect();
            let containers = views
                .iter()
                .flat_map(|view| view.containers.iter().map(move |c| (view, c)))
                .map(|(view, c)| {
                    let spec = spec_of(&view.pod, &c.record.id);
                    message::container(&Moment::of(c), spec.as_ref())
                })
                .collect();
            (pods, containers)
        });
        seen.await.unwrap_or_default()
    }

    async fn update(
        &self,
        plugin: &str,
        updates: Vec<api::ContainerUpdate>,
    ) -> Vec<api::ContainerUpdate> {
        let Some(registry) = self.0.upgrade() else {
            return updates;
        };
        if updates.len() > MAX_UPDATES {
            tracing::warn!(%plugin, "{} updates in one message: at most {MAX_UPDATES} are taken", updates.len());
            return updates;
        }
        let mut failed = vec![];
        for update in updates {
            if let Err(e) = change(&registry, &update).await {
                tracing::warn!(%plugin, container_id = %update.container_id.escape_debug(), "limits that an NRI plugin wants: {e}");
                failed.push(update);
            }
        }
        failed
    }
}
