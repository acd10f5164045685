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

mod conf;
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

use conf::{Directory, Loaded, has_capability};
use list::Runner;
use record::{Joined, Record};

use crate::{AttachRequest, Attachment, Error, PortMapping, netns, worker::Workers};

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
    pub fn open(config: CniConfig, ledger: Ledger) -> Result<Self, Error> {
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
            if let Some(record) = guessed(&pod_id, &loaded) {
                record.write(dir).map_err(failed)?;
                table.insert(pod_id, Entry::of(&record));
            }
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
fn guessed(pod_id: &str, loaded: &Loaded) -> Option<Record> {
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
        netns: PathBuf::new(),
        ranges: vec![],
        networks: networks.collect(),
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

    async fn attach(
        self: &Arc<Self>,
        request: &AttachRequest,
        netns: &Path,
        loaded: &Loaded,
    ) -> Result<Attachment, Error> {
        let mut plans = Vec::with_capacity(loaded.networks.len());
        let mut networks = Vec::with_capacity(loaded.networks.len());
        for (n, conf) in loaded.networks.iter().enumerate() {
            let plan = self.runner.plan(conf).await?;
            networks.push(Joined {
                conf: conf.as_ref().clone(),
                version: plan.version,
                interface: format!("eth{n}"),
                result: None,
            });
            plans.push(plan);
        }
        let mut record = Record {
            request: request.clone(),
            netns: netns.to_owned(),
            ranges: self.ranges(),
            networks,
        };
        list::arguments(&record)?;
        let takes_ports = |joined: &Joined| {
            let mut plugins = joined.conf.plugins.iter();
            plugins.any(|plugin| has_capability(plugin, "portMappings"))
        };
        if !request.port_mappings.is_empty() && !record.networks.iter().any(takes_ports) {
            tracing::warn!(
                pod_id = request.pod_id,
                "the pod asks for host ports, and no plugin of the configuration has the capability portMappings: they lead nowhere"
            );
        }
        self.claim(&record)?;
        self.begin(&record).await?;
        for (n, plan) in plans.iter().enumerate() {
            let result = self.runner.add(&record, &record.networks[n], plan).await?;
            record.networks[n].result = Some(result);
            // Before it is looked at: DEL gets it, whatever is wrong with it or comes after it.
            self.complete(&record).await?;
        }
        self.attachment(&record, netns)
    }

    /// Takes the host ports for the pod.
    fn claim(&self, record: &Record) -> Result<(), CniError> {
        let mut table = self.lock();
        for wanted in &record.request.port_mappings {
            for (pod_id, entry) in table.iter() {
                if entry.ports.iter().any(|has| overlaps(has, wanted)) {
                    return Err(CniError::PortTaken {
                        mapping: wanted.clone(),
                        by: pod_id.clone(),
                    });
                }
            }
        }
        table.insert(record.request.pod_id.clone(), Entry::of(record));
        Ok(())
    }

    /// What the results come to for the pod.
    fn attachment(&self, record: &Record, netns: &Path) -> Result<Attachment, Error> {
        let pod_id = &record.request.pod_id;
        let refuse = |joined: &Joined, why: String| CniError::Result {
            network: joined.conf.name.clone(),
            plugin: joined
                .conf
                .plugins
                .last()
                .map(|p| conf::plugin_type(p).to_owned())
                .unwrap_or_default(),
            why,
        };
        let mut all: Vec<IpAddr> = Vec::new();
        let mut host_link = None;
        for (n, joined) in record.networks.iter().enumerate() {
            let result = joined.result.as_ref().unwrap_or(&serde_json::Value::Null);
            let outcome = result::outcome(result, joined.version, &joined.interface)
                .map_err(|why| refuse(joined, why))?;
            if n > 0 {
                continue;
            }
            if outcome.ips.is_empty() {
                let why = "it has no address for the pod".into();
                return Err(refuse(joined, why).into());
            }
            let table = self.lock();
            let twice = table.iter().find_map(|(other, entry)| {
                if other == pod_id || entry.network != joined.conf.name {
                    return None;
                }
                let ip = outcome.ips.iter().find(|ip| entry.ips.contains(ip))?;
                Some(format!("{ip} is the address of pod {other} already"))
            });
            drop(table);
            if let Some(why) = twice {
                return Err(refuse(joined, why).into());
            }
            all = outcome.ips;
            host_link = outcome.host_link;
        }
        if let Some(entry) = self.lock().get_mut(pod_id) {
            entry.ips.clone_from(&all);
            entry.attached = true;
        }
        Ok(Attachment {
            netns: netns.to_owned(),
            interface: record.networks[0].interface.clone(),
            ips: all,
            host_link: host_link.unwrap_or_default(),
        })
    }

    /// DEL of all networks, last first, then the record goes.
    async fn delete(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        let deleted = self.try_delete(pod_id).await;
        let mut table = self.lock();
        match (&deleted, table.get_mut(pod_id)) {
            (Ok(()), _) => drop(table.remove(pod_id)),
            (Err(error), Some(entry)) => {
                let (first, most) = BACKOFF;
                let wait = first.saturating_mul(1 << entry.failures.min(16)).min(most);
                entry.failures += 1;
                entry.due = Some(Instant::now() + wait);
                tracing::warn!(pod_id, %error, failures = entry.failures, again_in_s = wait.as_secs(), "CNI DEL");
                self.failed.notify_one();
            }
            (Err(_), None) => {}
        }
        deleted
    }

    async fn try_delete(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        let Some(record) = self.read(pod_id).await? else {
            return self.strike(pod_id).await;
        };
        let orphaned = self.lock().get(pod_id).is_some_and(|e| e.orphaned);
        if orphaned {
            let id = pod_id.to_owned();
            self.blocking(pod_id, move || {
                stragglers::kill(&id);
                Ok(())
            })
            .await?;
            if let Some(entry) = self.lock().get_mut(pod_id) {
                entry.orphaned = false;
            }
        }
        if let Some(entry) = self.lock().get_mut(pod_id) {
            // From here on they may be another pod's at any time.
            entry.ips.clear();
        }
        let netns = Some(record.netns.as_path()).filter(|path| netns::is_pinned(path));
        let mut first = Ok(());
        for joined in record.networks.iter().rev() {
            let limit = self.limit(pod_id)?;
            let done = self.runner.del(&record, joined, netns, limit).await;
            first = first.and(done);
        }
        first?;
        let (dir, id) = (self.config.record_dir.clone(), pod_id.to_owned());
        self.blocking(pod_id, move || {
            let at = |source| failed_at(&dir, &id, source);
            berth_failpoint::site!("network.cni.deleted").map_err(at)?;
            Record::remove(&dir, &id)?;
            berth_failpoint::site!("network.cni.forgotten").map_err(at)
        })
        .await?;
        self.strike(pod_id).await
    }

    /// Of one execution of DEL.
    fn limit(&self, pod_id: &str) -> Result<Duration, CniError> {
        let limit = self.runner.limit();
        let Some(until) = *self.recovery() else {
            return Ok(limit);
        };
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(limit.min(left)),
            _ => Err(CniError::Postponed {
                pod_id: pod_id.to_owned(),
                budget: RECOVERY_BUDGET,
            }),
        }
    }

    async fn read(self: &Arc<Self>, pod_id: &str) -> Result<Option<Record>, Error> {
        let (dir, id) = (self.config.record_dir.clone(), pod_id.to_owned());
        self.blocking(pod_id, move || Record::read(&dir, &id)).await
    }

    /// Writes down what is about to be asked of the plugins.
    async fn begin(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.clone(), record.clone());
        let pod_id = record.request.pod_id.clone();
        self.blocking(&pod_id.clone(), move || {
            let dir = &inner.config.record_dir;
            let at = |source| failed_at(dir, &pod_id, source);
            let object = Object::Cni(record::path(dir, &pod_id));
            inner.ledger.intend(&pod_id, &object).map_err(at)?;
            berth_failpoint::site!("network.cni.intended").map_err(at)?;
            record.write(dir)?;
            berth_failpoint::site!("network.cni.recorded").map_err(at)
        })
        .await
    }

    /// Writes down what they answered.
    async fn complete(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.clone(), record.clone());
        let pod_id = record.request.pod_id.clone();
        self.blocking(&pod_id.clone(), move || {
            let dir = &inner.config.record_dir;
            let at = |source| failed_at(dir, &pod_id, source);
            berth_failpoint::site!("network.cni.added").map_err(at)?;
            record.write(dir)?;
            berth_failpoint::site!("network.cni.attached").map_err(at)
        })
        .await
    }

    async fn strike(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        let (inner, id) = (self.clone(), pod_id.to_owned());
        self.blocking(pod_id, move || {
            let dir = &inner.config.record_dir;
            let object = Object::Cni(record::path(dir, &id));
            inner
                .ledger
                .strike(&id, &object)
                .map_err(|source| failed_at(dir, &id, source))
        })
        .await
    }

    /// Files are synced: not on a thread that answers others.
    async fn blocking<T: Send + 'static>(
        &self,
        pod_id: &str,
        work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
    ) -> Result<T, Error> {
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| Error::Worker {
            pod_id: pod_id.to_owned(),
            why: e.to_string(),
        })?;
        done.map_err(|source| {
            let pod_id = pod_id.to_owned();
            CniError::Record { pod_id, source }.into()
        })
    }
}

fn failed_at(dir: &Path, pod_id: &str, source: std::io::Error) -> RecordError {
    RecordError::Io {
        what: "write down",
        path: record::path(dir, pod_id),
        source,
    }
}

/// Two mappings that can't both be had.
fn overlaps(a: &PortMapping, b: &PortMapping) -> bool {
    a.protocol == b.protocol
        && a.host_port == b.host_port
        && (a.host_ip == b.host_ip || a.host_ip.is_none() || b.host_ip.is_none())
}
