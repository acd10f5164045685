//! CNI: networks that plugins make, as configurations in a directory say.
//!
//! ```text
//!   record: written → namespace: made (by the caller) → ADD, plugin by plugin → record: with the results
//!   DEL, plugin by plugin, against the order → record: removed → namespace: removed (by the caller)
//! ```
//!
//! The record stands before the first plugin runs and until the last DEL has succeeded. It has the configuration in it, so a pod is let go
//! of with what it was attached with, whatever the directory says by then. What DEL could not finish is tried again beside everything
//! else ([`Cni::take_due`]), also by the next daemon and after a reboot.
//!
//! A pod that was attached waits for its DEL: who stops it is told the error. One whose ADD never came to its end does not: nobody knows it
//! as a pod, its record alone stays until DEL has succeeded. And no pod waits for ever with its namespace: plugins that can't find
//! something of theirs in it, or in the host's rules for it, are told that it is gone, which they must take ([`NETNS_TRIES`]).
//!
//! # Synchronization
//! Operations on one pod take turns: the specification forbids two at a time on one container. Those on different pods don't wait for each other, but
//! for the bound on running plugins.

mod attach;
mod books;
mod conf;
mod detach;
mod directory;
mod error;
mod list;
mod process;
mod record;
mod result;
mod stragglers;
mod template;
mod version;

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::{Duration, Instant},
};

use berth_state::{
    Ledger, Object,
    record::{Durability, RecordError},
};
use ipnet::IpNet;
use tokio::sync::Notify;

use directory::{Directory, Loaded};
use list::Runner;
use record::{Joined, Record};

use crate::{AttachRequest, Attachment, Error, PortMapping, worker::Workers};

pub use error::{CniError, Failure, Phase};

/// What a starting daemon spends on DEL, all pods together, before it serves. The rest is done beside serving.
pub const RECOVERY_BUDGET: Duration = Duration::from_secs(10);
/// Between two tries of a DEL: doubled each time up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// DELs with the namespace there; after them it is removed, and DEL is told so.
pub const NETNS_TRIES: u32 = 3;
/// An answer to STATUS is good for so long: who polls often does not start processes each time.
const STATUS_AGE: Duration = Duration::from_secs(2);

/// Record of the node's ranges.
const RANGES: &str = "ranges.json";
/// The file that is made of the template.
const RENDERED: &str = "10-berth.conflist";

#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Configurations: `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Plugins are looked for here and nowhere else, in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Networks that each pod joins, by the lexical order of their files: eth0, eth1, …
    pub max_networks: usize,
    /// The most that one execution of a plugin may take.
    pub timeout: Duration,
    /// Records of attachments; outlives a reboot.
    pub record_dir: PathBuf,
    /// What a configuration is made of where there is none and the kubelet tells the node's ranges.
    pub conf_template: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Cni {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: CniConfig,
    ledger: Ledger,
    directory: Directory,
    runner: Runner,
    turns: Workers,
    /// One entry a record.
    table: Mutex<HashMap<String, Entry>>,
    /// A DEL has failed: who replays looks again.
    failed: Notify,
    /// Until when a recovering daemon runs plugins.
    recovery: Mutex<Option<Instant>>,
    /// The node's ranges.
    ranges: RwLock<Vec<IpNet>>,
    status: tokio::sync::Mutex<Option<Status>>,
}

/// The last answer to STATUS, of what, and when.
#[derive(Debug)]
struct Status {
    at: Instant,
    of: Arc<Loaded>,
    said: Result<(), Arc<CniError>>,
}

/// What others must know of a pod's record.
#[derive(Debug, Default)]
struct Entry {
    /// Of the first network.
    ips: Vec<IpAddr>,
    network: String,
    ports: Vec<PortMapping>,
    /// Every ADD has come to its end.
    attached: bool,
    /// A daemon before this one died in the middle of ADD: its plugin may still run.
    orphaned: bool,
    /// When DEL is tried again.
    due: Option<Instant>,
    failures: u32,
}

/// What became of a DEL.
#[derive(Debug)]
pub enum Detached {
    Done,
    /// It failed, and nobody has to wait for it: the pod never was attached.
    Later,
    Not(Error),
    /// It failed again: it is to be tried without the namespace.
    NotWithNetns(Error),
}

impl Entry {
    fn of(record: &Record) -> Self {
        let first = record.networks.first();
        Self {
            ips: first
                .and_then(|joined| {
                    let result = joined.result.as_ref()?;
                    result::outcome(result, joined.version, &joined.interface).ok()
                })
                .map(|outcome| outcome.ips)
                .unwrap_or_default(),
            network: first.map(|j| j.conf.name.clone()).unwrap_or_default(),
            ports: record.request.port_mappings.clone(),
            attached: record.networks.iter().all(|j| j.result.is_some()),
            ..Self::default()
        }
    }
}

impl Cni {
    /// Reads the records of the daemons before. Runs nothing.
    pub fn open(config: CniConfig, ledger: Ledger, netns_dir: &Path) -> Result<Self, Error> {
        let dir = &config.record_dir;
        berth_state::dir::ensure_private(dir).map_err(|source| Error::Dir {
            path: dir.clone(),
            source,
        })?;
        let directory = Directory::new(&config.conf_dir, config.max_networks);
        let mut table = HashMap::new();
        let failed = |source| CniError::Record {
            pod_id: "(all)".into(),
            source,
        };
        let names = berth_state::record::names(dir).map_err(|source| Error::Dir {
            path: dir.clone(),
            source,
        })?;
        let records = berth_state::record::scan::<Record>(dir).map_err(failed)?;
        for (pod_id, record) in &records {
            let mut entry = Entry::of(record);
            entry.orphaned = !entry.attached;
            table.insert(pod_id.clone(), entry);
        }
        // What a damaged record said is lost, but not that there was one: DEL is told what the configuration says now.
        for pod_id in names {
            if table.contains_key(&pod_id) || crate::check_pod_id(&pod_id).is_err() {
                continue;
            }
            let loaded = directory.load();
            let netns = netns_dir.join(&pod_id);
            let Some(record) = guessed(&pod_id, netns, &loaded) else {
                tracing::error!(
                    pod_id,
                    "a CNI attachment whose record is damaged can't be let go of, since there is no configuration that says how: an address may stay taken"
                );
                continue;
            };
            tracing::error!(
                pod_id,
                "the record of a CNI attachment is damaged: it will be let go of with the configuration of now"
            );
            record.write(dir).map_err(failed)?;
            table.insert(pod_id, Entry::of(&record));
        }
        // A reboot has taken the ledger.
        for pod_id in table.keys() {
            let object = Object::Cni(record::path(dir, pod_id));
            let written = ledger.intend(pod_id, &object);
            written.map_err(|source| Error::Ledger {
                owner: pod_id.clone(),
                source,
            })?;
        }
        let runner = Runner::new(config.bin_dirs.clone(), config.timeout);
        let ranges = berth_state::record::read(&dir.join("node").join(RANGES)).unwrap_or_else(|error| {
            tracing::error!(%error, "the node's ranges are lost until the kubelet tells them again");
            None
        });
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                ledger,
                directory,
                runner,
                turns: Workers::default(),
                table: Mutex::new(table),
                failed: Notify::new(),
                recovery: Mutex::default(),
                ranges: RwLock::new(ranges.unwrap_or_default()),
                status: tokio::sync::Mutex::default(),
            }),
        })
    }

    /// Whether there is any configuration, be it broken: then the pods' network is CNI's.
    pub fn is_configured(&self) -> bool {
        !self.inner.directory.load().is_empty()
    }

    /// Whether new pods can be attached, as far as configuration and plugins can tell. Starts plugins of 1.1, at most every [`STATUS_AGE`].
    pub async fn ready(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let mut last = inner.status.lock().await;
        let loaded = inner.directory.load();
        if let Some(last) = last.as_ref()
            && Arc::ptr_eq(&last.of, &loaded)
            && last.at.elapsed() < STATUS_AGE
        {
            return last.said.clone().map_err(Error::Cni);
        }
        let said = inner.status(&loaded).await.map_err(Arc::new);
        *last = Some(Status {
            at: Instant::now(),
            of: loaded,
            said: said.clone(),
        });
        said.map_err(Error::Cni)
    }

    /// Ranges of the node, from the pods attached next on: for plugins with the capability `ipRanges`, and for a configuration made of
    /// the template.
    pub fn set_ranges(&self, ranges: Vec<IpNet>) -> Result<(), Error> {
        let rendered = self.inner.render(&ranges);
        *self
            .inner
            .ranges
            .write()
            .unwrap_or_else(PoisonError::into_inner) = ranges;
        rendered.map_err(Error::from)
    }

    /// The node's ranges, as the kubelet told them last; empty where it never did.
    pub fn ranges(&self) -> Vec<IpNet> {
        self.inner.ranges()
    }

    /// Writes the node's ranges down for the next daemon.
    pub fn keep_ranges(&self, ranges: &[IpNet]) -> Result<(), Error> {
        let path = self.inner.config.record_dir.join("node").join(RANGES);
        let written = berth_state::dir::ensure_private(path.parent().unwrap_or(Path::new("/")))
            .map_err(|source| RecordError::Io {
                what: "make the directory of",
                path: path.clone(),
                source,
            })
            .and_then(|()| berth_state::record::write(&path, &ranges, Durability::Disk));
        written.map_err(|source| {
            let pod_id = "(all)".to_owned();
            CniError::Record { pod_id, source }.into()
        })
    }

    /// Attaches the pod to the networks of the configuration, in the namespace pinned at `netns`, which has nothing but lo.
    ///
    /// On an error plugins may have made something: [`Cni::detach`] must follow.
    pub async fn attach(&self, request: &AttachRequest, netns: &Path) -> Result<Attachment, Error> {
        let inner = &self.inner;
        let _turn = inner.turns.turn(&request.pod_id).lock_owned().await;
        // Of an attach that was given up: what it made goes first.
        if inner.lock().contains_key(&request.pod_id) {
            inner.delete(&request.pod_id).await?;
        }
        let loaded = inner.directory.load();
        if loaded.networks.is_empty() {
            return Err(inner.none(&loaded).into());
        }
        inner.attach(request, netns, &loaded).await
    }

    /// Runs DEL of every network that the pod joined or began to. No record is no error. What fails is tried again in the background, too.
    pub async fn detach(&self, pod_id: &str) -> Detached {
        let inner = &self.inner;
        let _turn = inner.turns.turn(pod_id).lock_owned().await;
        let Err(error) = inner.delete(pod_id).await else {
            return Detached::Done;
        };
        let table = inner.lock();
        match table.get(pod_id) {
            Some(entry) if !entry.attached => Detached::Later,
            Some(entry) if entry.failures >= NETNS_TRIES => Detached::NotWithNetns(error),
            _ => Detached::Not(error),
        }
    }

    /// From now until [`Cni::recovered`] all DELs together may take no longer than [`RECOVERY_BUDGET`].
    pub fn recovering(&self) {
        *self.inner.recovery() = Some(Instant::now() + RECOVERY_BUDGET);
    }

    /// Recovery is over. Records of pods that nobody knows are to be replayed.
    pub fn recovered(&self, known: &HashSet<String>) {
        *self.inner.recovery() = None;
        for (pod_id, entry) in self.inner.lock().iter_mut() {
            if !known.contains(pod_id) {
                tracing::warn!(%pod_id, "a CNI attachment without a pod: to be let go of");
                entry.due = Some(Instant::now());
            }
        }
    }

    /// A pod whose DEL is to be tried again now. It is the caller's turn to do that.
    pub fn take_due(&self) -> Option<String> {
        let now = Instant::now();
        let mut table = self.inner.lock();
        let (pod_id, entry) = table
            .iter_mut()
            .filter(|(_, entry)| entry.due.is_some_and(|due| due <= now))
            .min_by_key(|(_, entry)| entry.due)?;
        entry.due = None;
        Some(pod_id.clone())
    }

    /// Waits until a DEL may be due.
    pub async fn until_due(&self) {
        let changed = self.inner.failed.notified();
        let next = self.inner.lock().values().filter_map(|e| e.due).min();
        match next {
            Some(next) => drop(tokio::time::timeout_at(next.into(), changed).await),
            None => changed.await,
        }
    }

    /// Lets the plugins of the present configuration clean up what belongs to no pod (1.1).
    pub async fn collect_garbage(&self) {
        let inner = &self.inner;
        let loaded = inner.directory.load();
        if loaded.networks.is_empty() {
            return;
        }
        let ids: Vec<String> = inner.lock().keys().cloned().collect();
        let mut records = Vec::new();
        for pod_id in ids {
            match inner.read(&pod_id).await {
                Ok(record) => records.extend(record),
                // Better to leave something than to take a pod's address away.
                Err(e) => return tracing::error!("no GC of CNI networks: {e}"),
            }
        }
        for conf in &loaded.networks {
            let valid: Vec<_> = records
                .iter()
                .flat_map(|record| {
                    let of_it = record.networks.iter().filter(|j| j.conf.name == conf.name);
                    of_it.map(|j| (record.request.pod_id.clone(), j.interface.clone()))
                })
                .collect();
            if let Err(e) = inner.runner.gc(conf, &valid).await {
                tracing::warn!("{e}");
            }
        }
    }

    /// The host ports of all pods that have a record.
    pub fn ports(&self) -> Vec<(String, Vec<PortMapping>)> {
        let table = self.inner.lock();
        let ports = table
            .iter()
            .map(|(id, entry)| (id.clone(), entry.ports.clone()));
        ports.collect()
    }

    /// Pods that are attached and that nobody has begun to let go of.
    pub fn attached(&self) -> Vec<String> {
        let table = self.inner.lock();
        let all = table.iter().filter(|(_, e)| e.attached && e.failures == 0);
        all.map(|(pod_id, _)| pod_id.clone()).collect()
    }

    /// Asks the plugins whether the pod is still attached as they left it.
    pub async fn check(&self, pod_id: &str) -> Result<(), Error> {
        let inner = &self.inner;
        let _turn = inner.turns.turn(pod_id).lock_owned().await;
        let Some(record) = inner.read(pod_id).await? else {
            return Ok(());
        };
        for joined in &record.networks {
            inner.runner.check(&record, joined).await?;
        }
        Ok(())
    }
}

impl From<CniError> for Error {
    fn from(error: CniError) -> Self {
        Self::Cni(Arc::new(error))
    }
}

/// What is known of a pod whose record is damaged: its id, and what it would join now.
fn guessed(pod_id: &str, netns: PathBuf, loaded: &Loaded) -> Option<Record> {
    if loaded.networks.is_empty() {
        return None;
    }
    let networks = loaded.networks.iter().zip(0..).map(|(conf, n)| Joined {
        conf: conf.as_ref().clone(),
        version: conf.versions[0],
        interface: format!("eth{n}"),
        result: None,
    });
    Some(Record {
        request: AttachRequest {
            pod_id: pod_id.to_owned(),
            ..AttachRequest::default()
        },
        netns,
        ranges: vec![],
        networks: networks.collect(),
        owed: None,
    })
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recovery(&self) -> MutexGuard<'_, Option<Instant>> {
        self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ranges(&self) -> Vec<IpNet> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.clone()
    }

    fn none(&self, loaded: &Loaded) -> CniError {
        let dir = self.directory.path().to_owned();
        match loaded.is_empty() {
            true => CniError::None { dir },
            false => CniError::Broken {
                dir,
                why: loaded.why_broken(),
            },
        }
    }

    /// Writes the configuration of the template, unless there is one by somebody else.
    fn render(&self, ranges: &[IpNet]) -> Result<(), CniError> {
        let Some(template) = &self.config.conf_template else {
            return Ok(());
        };
        let path = self.directory.path().join(RENDERED);
        let by_others = |loaded: &Loaded| {
            let mut of = loaded.networks.iter().map(|conf| &conf.path);
            of.any(|of| *of != path) || loaded.broken.iter().any(|(of, _)| *of != path)
        };
        if by_others(&self.directory.load()) {
            tracing::info!("there is a CNI configuration: none is made of the template");
            return Ok(());
        }
        let failed = |why: String| CniError::Template {
            template: template.clone(),
            why,
        };
        let text = std::fs::read_to_string(template).map_err(|e| failed(e.to_string()))?;
        let text = template::render(&text, ranges).map_err(failed)?;
        conf::Conf::parse(&path, text.as_bytes()).map_err(failed)?;
        if std::fs::read_to_string(&path).is_ok_and(|now| now == text) {
            return Ok(());
        }
        // Its name is none of a configuration until it is whole.
        let temporary = self.directory.path().join(format!(".{RENDERED}.tmp"));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(|e| failed(format!("write {}: {e}", path.display())))
    }

    async fn status(&self, loaded: &Loaded) -> Result<(), CniError> {
        if loaded.networks.is_empty() {
            return Err(self.none(loaded));
        }
        for conf in &loaded.networks {
            self.runner.status(conf).await?;
        }
        Ok(())
    }
}
