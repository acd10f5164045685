//! Who is connected, who joins, and the gate between them and the pods.
//!
//! A plugin that joins waits for what is under way: at most [`GATE_PATIENCE`] at a time, then it steps back, so that a pod which takes long
//! does not hold up the others behind the one who waits. While it is being synchronized, pods wait for it: at most the registration timeout.

use std::{
    io,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{OwnedRwLockWriteGuard, RwLock},
    task::JoinSet,
};

use crate::{
    Error, Pass, Validator, api, launch,
    plugin::{Launched, Plugin},
};

/// How long pods wait behind a plugin that waits for other pods.
const GATE_PATIENCE: Duration = Duration::from_secs(2);
const GATE_PAUSE: Duration = Duration::from_millis(500);
/// After this a plugin that wants to join is turned away: some work has been under way for all that time.
const JOIN_PATIENCE: Duration = Duration::from_secs(120);
/// Each is asked before each step of each container: more would be a mistake.
const MAX_PLUGINS: usize = 64;
/// The listener of a machine that is out of descriptors is not asked again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Plugins hear that the runtime ends, but it does not wait long for them.
const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(500);

/// What the pods are to the plugins.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// All pods and containers that have been told of, or would have been.
    async fn snapshot(&self) -> (Vec<api::PodSandbox>, Vec<api::Container>);

    /// Changes limits; answers with those that could not be changed.
    async fn update(
        &self,
        plugin: &str,
        updates: Vec<api::ContainerUpdate>,
    ) -> Vec<api::ContainerUpdate>;
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub enable: bool,
    pub runtime_name: String,
    pub runtime_version: String,
    pub plugin_dir: std::path::PathBuf,
    pub config_dir: std::path::PathBuf,
    /// From the connection to RegisterPlugin; and for Synchronize.
    pub registration_timeout: Duration,
    /// For every other request.
    pub request_timeout: Duration,
    pub validator: Validator,
}

pub struct Nri {
    pub(crate) settings: Settings,
    validator: Option<Arc<Validator>>,
    runtime: OnceLock<Arc<dyn Runtime>>,
    gate: Arc<RwLock<()>>,
    /// In the order of the indices.
    plugins: Mutex<Arc<[Arc<Plugin>]>>,
    /// Connections, registered or not.
    connections: AtomicUsize,
    numbers: AtomicU32,
}

impl std::fmt::Debug for Nri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nri({:?})", self.plugins())
    }
}

/// A seat among [`MAX_PLUGINS`].
struct Seat(Arc<Nri>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Nri {
    pub fn new(settings: Settings) -> Arc<Self> {
        let validator = settings.validator.clone();
        Arc::new(Self {
            validator: (settings.enable && validator.enable).then(|| Arc::new(validator)),
            settings,
            runtime: OnceLock::new(),
            gate: Arc::default(),
            plugins: Mutex::new(Arc::default()),
            connections: AtomicUsize::new(0),
            numbers: AtomicU32::new(0),
        })
    }

    pub(crate) fn next_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Those who are connected, by name.
    pub fn names(&self) -> Vec<String> {
        let plugins = self.plugins();
        plugins.iter().map(|p| p.name().to_owned()).collect()
    }

    fn plugins(&self) -> Arc<[Arc<Plugin>]> {
        self.plugins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Plugin>>)) {
        let mut place = self.plugins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut plugins = place.to_vec();
        change(&mut plugins);
        plugins.sort_by(|a, b| (a.name(), a.number).cmp(&(b.name(), b.number)));
        *place = plugins.into();
    }

    /// To be held while a pod or container begins, changes or ends. Where NRI is off it costs nothing; where nobody is connected, two atomic
    /// operations.
    pub async fn pass(&self) -> Pass {
        if !self.settings.enable {
            return Pass::default();
        }
        let gate = self.gate.clone().read_owned().await;
        Pass {
            plugins: self.plugins(),
            validator: self.validator.clone(),
            _gate: Some(gate),
        }
    }

    /// [`Self::pass`] where nobody joins just now.
    pub fn try_pass(&self) -> Option<Pass> {
        if !self.settings.enable {
            return Some(Pass::default());
        }
        let gate = self.gate.clone().try_read_owned().ok()?;
        Some(Pass {
            plugins: self.plugins(),
            validator: self.validator.clone(),
            _gate: Some(gate),
        })
    }

    /// Starts the installed plugins and waits until they are synchronized, or have had their time.
    pub async fn start(self: &Arc<Self>, runtime: Arc<dyn Runtime>) -> Result<(), Error> {
        if self.runtime.set(runtime).is_err() || !self.settings.enable {
            return Ok(());
        }
        let settings = &self.settings;
        let mut starting = JoinSet::new();
        for installed in launch::discover(&settings.plugin_dir, &settings.config_dir)? {
            let nri = self.clone();
            match launch::start(&installed) {
                Ok((trunk, launched)) => {
                    starting.spawn(async move { nri.admit(trunk, Some(launched)).await });
                }
                Err(e) => tracing::error!("{e}"),
            }
        }
        while starting.join_next().await.is_some() {}
        Ok(())
    }

    /// Takes connections of plugins, for as long as it is polled.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let mut joining = JoinSet::new();
        loop {
            while joining.try_join_next().is_some() {}
            let trunk = match listener.accept().await {
                Ok((trunk, _)) => trunk,
                Err(e) => {
                    tracing::warn!("take a connection of an NRI plugin: {e}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            if !is_root(&trunk) {
                continue;
            }
            let nri = self.clone();
            joining.spawn(async move { nri.admit(trunk, None).await });
        }
    }

    /// From the connection to a place in the list.
    async fn admit(self: Arc<Self>, trunk: UnixStream, launched: Option<Launched>) {
        if self.connections.fetch_add(1, Ordering::Relaxed) >= MAX_PLUGINS {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            tracing::error!("an NRI plugin is turned away: {MAX_PLUGINS} are connected");
            return;
        }
        let seat = Seat(self.clone());
        match Plugin::connect(trunk, launched, &self).await {
            Ok(plugin) => {
                let plugin = Arc::new(plugin);
                match self.join(&plugin).await {
                    Ok(()) => drop(tokio::spawn(stay(seat, plugin))),
                    Err(e) => {
                        tracing::error!("{e}; it does not take part");
                        plugin.close();
                    }
                }
            }
            Err(e) => tracing::error!("{e}; it does not take part"),
        }
    }

    /// The ordering point: what is there now is told by Synchronize, and what begins later by events.
    async fn join(&self, plugin: &Arc<Plugin>) -> Result<(), Error> {
        let lost = |why: String| Error::Lost {
            plugin: plugin.name().to_owned(),
            why,
        };
        let Some(runtime) = self.runtime.get() else {
            return Err(lost("the runtime is not ready".into()));
        };
        let since = Instant::now();
        let gate = self.stop_pods(plugin).await.ok_or_else(|| {
            lost(format!(
                "pods have been under way for {:?} without a moment to synchronize it",
                since.elapsed()
            ))
        })?;
        let (pods, containers) = runtime.snapshot().await;
        let counts = (pods.len(), containers.len());
        let updates = plugin
            .synchronize(pods, containers, self.settings.registration_timeout)
            .await?;
        self.change(|plugins| plugins.push(plugin.clone()));
        drop(gate);
        tracing::info!(
            plugin = %plugin.name(),
            pods = counts.0,
            containers = counts.1,
            ms = since.elapsed().as_millis() as u64,
            "NRI plugin takes part"
        );
        if !updates.is_empty() {
            self.update(plugin.name(), updates).await;
        }
        Ok(())
    }

    async fn stop_pods(&self, plugin: &Plugin) -> Option<OwnedRwLockWriteGuard<()>> {
        let until = Instant::now() + JOIN_PATIENCE;
        while Instant::now() < until && !plugin.is_closed() {
            let gate = self.gate.clone().write_owned();
            if let Ok(gate) = tokio::time::timeout(GATE_PATIENCE, gate).await {
                return Some(gate);
            }
            tokio::time::sleep(GATE_PAUSE).await;
        }
        None
    }

    /// Limits that a plugin asks for of its own accord.
    pub(crate) async fn update(
        &self,
        plugin: &str,
        updates: Vec<api::ContainerUpdate>,
    ) -> Vec<api::ContainerUpdate> {
        match self.runtime.get() {
            Some(runtime) => runtime.update(plugin, updates).await,
            None => updates,
        }
    }

    /// Tells the plugins that the runtime ends, and lets go of them.
    pub async fn shut_down(&self) {
        let plugins = self.plugins();
        let told = plugins.iter().map(|plugin| async {
            plugin
                .ask("Shutdown", SHUTDOWN_PATIENCE, |context| async {
                    let nothing = api::Empty::default();
                    match plugin.client().shutdown(context, &nothing).await {
                        // It may be gone before its answer is here.
                        Err(ttrpc::Error::RpcStatus(status)) => {
                            Err(ttrpc::Error::RpcStatus(status))
                        }
                        _ => Ok(()),
                    }
                })
                .await;
        });
        let told = futures_util::future::join_all(told);
        let _ = tokio::time::timeout(SHUTDOWN_PATIENCE * 2, told).await;
        for plugin in plugins.iter() {
            plugin.close();
        }
        self.change(Vec::clear);
    }
}

/// Until it goes.
async fn stay(seat: Seat, plugin: Arc<Plugin>) {
    plugin.closed().await;
    tracing::warn!(plugin = %plugin.name(), "NRI plugin is gone");
    plugin.close();
    seat.0
        .change(|plugins| plugins.retain(|other| !Arc::ptr_eq(other, &plugin)));
}

fn is_root(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = ?peer.pid(), "refused a connection: only root may be an NRI plugin");
            false
        }
        Err(_) => false,
    }
}

/// Whether somebody else serves at `path`.
pub async fn is_served(path: &std::path::Path) -> bool {
    match UnixStream::connect(path).await {
        Ok(_) => true,
        Err(e) => !matches!(
            e.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        ),
    }
}
