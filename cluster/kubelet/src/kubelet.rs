//! The kubelet itself: pods as they should be on one side, their workers on the other.

mod admitting;
mod orphans;
mod told;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    API, Config, Desired, Error, Known, Level, Objects, OwnNode, RUN, Runtime, Statuses,
    Thresholds,
    admission::{self, Pressed},
    cgroup::{self, Cgroups},
    division::Amounts,
    events,
    eviction::{self, Evicted},
    images,
    machine::Machine,
    node::{Inner, Node, TAKEDOWNS},
    oom,
    plan::Over,
    rotation,
    shutdown::{self, ShutdownNews, ShutdownPolicy},
    store::{self, Lock},
    view::View,
    volume,
    worker::{self, Order},
};
use admitting::Admitted;
use orphans::soon;

pub use told::Told;

/// Changes in the runtime that wait to be passed on.
const CHANGES: usize = 256;
/// Between two tries at a runtime that is not there yet.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Kubelet {
    node: Node,
    workers: HashMap<String, Handle>,
    tasks: JoinSet<String>,
    /// That may not begin here, as was told: until nobody wants them any more.
    refused: HashMap<String, Arc<Desired>>,
    own: OwnNode,
    /// Deleted from the API and gone from here: until the API knows it, too.
    ended: HashSet<String>,
    cluster: Option<OfCluster>,
    thresholds: Thresholds,
    shutdown: Option<(ShutdownPolicy, mpsc::Receiver<ShutdownNews>)>,
    /// The machine shuts down: whoever wants to know is told.
    shuts_down: watch::Sender<bool>,
    _lock: Lock,
}

/// Who is told the end of pods, and whether a server has said which there are.
#[derive(Debug)]
struct OfCluster {
    statuses: Arc<Statuses>,
    known: watch::Receiver<Option<Known>>,
}

#[derive(Debug)]
struct Handle {
    pod: Arc<Desired>,
    /// What the source told last of it, whether or not there was anything in it for the worker.
    told: Arc<Desired>,
    orders: watch::Sender<Order>,
    wake: Arc<Notify>,
    is_ending: bool,
    /// Of an end that was ordered: how long it may take.
    grace: Option<Duration>,
    /// It makes room for another.
    is_preempted: bool,
}

impl Kubelet {
    /// Waits until the runtime answers.
    ///
    /// # Errors
    /// The directory can't be made, or is another kubelet's; or there can be no cgroups as it is told to have them.
    pub async fn start(
        config: Config,
        runtime: Runtime,
        objects: Objects,
        told: Told,
    ) -> Result<Self, Error> {
        let lock = Lock::take(&config.kubelet_dir)?;
        store::make_dir(&config.kubelet_dir.join("pods"))?;
        let (runtime_name, driver) = loop {
            match tokio::try_join!(runtime.name(), runtime.cgroup_driver()) {
                Ok(told) => break told,
                Err(error) => tracing::warn!(%error, "waiting for the runtime"),
            }
            tokio::time::sleep(AGAIN).await;
        };
        let machine = Machine::now(&config.kubelet_dir);
        let capacity = Amounts::capacity(&machine, &config.node, config.max_pods);
        let allocatable = config
            .division
            .allocatable(&capacity, &Thresholds::default());
        let cgroups = match &config.cgroup_root {
            Some(root) => {
                let driver = driver.unwrap_or(config.cgroup_driver);
                let sizes = machine.huge_pages.iter().map(|(size, _)| *size).collect();
                let division = &config.division;
                let all = division.limits(&capacity);
                let cgroups = Cgroups::new(driver, root, all, division.pod_max_pids, sizes)?;
                Some(Arc::new(cgroups))
            }
            None => None,
        };
        let own = OwnNode::alone(&config.node.name, &BTreeMap::new());
        let node = Arc::new(Inner {
            cgroups,
            allocatable: Mutex::new(allocatable),
            pressed: Pressed::default(),
            images: Default::default(),
            volumes: Default::default(),
            network: Default::default(),
            takedowns: Semaphore::new(TAKEDOWNS),
            config,
            runtime,
            objects,
            told,
            runtime_name,
            view: View::default(),
        });
        Ok(Self {
            node,
            workers: HashMap::new(),
            tasks: JoinSet::new(),
            refused: HashMap::new(),
            own,
            ended: HashSet::new(),
            cluster: None,
            thresholds: Thresholds::default(),
            shutdown: None,
            shuts_down: watch::Sender::new(false),
            _lock: lock,
        })
    }

    /// Has `statuses` told of pods that end, and ends what nobody wants only once a server has said what is wanted. Pods are admitted by what others
    /// say of the node.
    #[must_use]
    pub fn in_cluster(
        mut self,
        statuses: Arc<Statuses>,
        known: watch::Receiver<Option<Known>>,
        own: OwnNode,
    ) -> Self {
        self.own = own;
        self.cluster = Some(OfCluster { statuses, known });
        self
    }

    /// When pods are evicted, instead of by default.
    ///
    /// # Errors
    /// Less is left for pods than nothing.
    pub fn evicting(mut self, thresholds: Thresholds) -> Result<Self, Error> {
        let config = &self.node.config;
        let machine = Machine::now(&config.kubelet_dir);
        let capacity = Amounts::capacity(&machine, &config.node, config.max_pods);
        config.division.check(&capacity, &thresholds)?;
        let allocatable = config.division.allocatable(&capacity, &thresholds);
        self.node.set_allocatable(allocatable);
        self.thresholds = thresholds;
        Ok(self)
    }

    /// What the node runs short of, as far as this kubelet has found.
    pub fn pressed(&self) -> Pressed {
        self.node.pressed.clone()
    }

    /// Ends pods by `policy` when the machine shuts down, of which `news` are told.
    #[must_use]
    pub fn ending_with_the_machine(
        mut self,
        policy: ShutdownPolicy,
        news: mpsc::Receiver<ShutdownNews>,
    ) -> Self {
        self.shutdown = Some((policy, news));
        self
    }

    /// Whether the machine shuts down.
    pub fn shuts_down(&self) -> watch::Receiver<bool> {
        self.shuts_down.subscribe()
    }

    pub(crate) fn node(&self) -> Node {
        self.node.clone()
    }

    /// Keeps pods as `desired` says, all of them each time; `None`: the source does not know yet. Until `ends`, which leaves all pods as they
    /// are; or until `desired` is closed, and all pods that it named last are gone.
    pub async fn run(
        mut self,
        mut desired: watch::Receiver<Option<Vec<Arc<Desired>>>>,
        ends: CancellationToken,
    ) {
        let (changes, mut changed) = mpsc::channel(CHANGES);
        let mut beside = JoinSet::new();
        beside.spawn(events::watch(self.node.runtime.clone(), changes));
        beside.spawn(rotation::keep(self.node.clone()));
        beside.spawn(cgroup::keep(self.node.clone()));
        let (evicts, mut evicted) = mpsc::channel(1);
        // Whoever runs but a pod or two is not asked to tidy up the node.
        if self.cluster.is_some() {
            beside.spawn(oom::watch(self.node.clone()));
            let watches = eviction::watch(self.node.clone(), self.thresholds.clone(), evicts);
            beside.spawn(watches);
        }
        let shutdown = self.shutdown.take();
        let (policy, mut news) = match shutdown {
            Some((policy, news)) => (Some(policy), Some(news)),
            None => (None, None),
        };
        let node = self.node.clone();
        // Of a kubelet that was killed. Whoever needs one of them meanwhile waits for it.
        beside.spawn_blocking(move || {
            if let Err(error) = volume::unmount_devices(&node) {
                tracing::warn!(%error, "a device that no pod has stays mounted");
            }
        });
        let mut wanted = desired.borrow_and_update().clone();
        let (mut is_open, mut is_waiting) = (true, false);
        let mut keeps_images = self.cluster.is_none();
        // What is left of kubelets before this one; and what the runtime has made for a call that nobody waited for any more.
        let mut orphans = Some(Instant::now());
        loop {
            if let Some(wanted) = &wanted {
                is_waiting = self.reconcile(wanted).await;
                // what pods name stays, and is known only now
                if !std::mem::replace(&mut keeps_images, true) {
                    beside.spawn(images::keep(self.node.clone()));
                }
                if orphans.is_some_and(|from| from <= Instant::now())
                    && self.is_certain()
                    && self.end_orphans(wanted).await
                {
                    orphans = None;
                }
            }
            if !is_open && self.workers.is_empty() {
                break;
            }
            tokio::select! {
                () = ends.cancelled() => break,
                has = desired.changed(), if is_open => match has {
                    Ok(()) => wanted = desired.borrow_and_update().clone(),
                    Err(_) => is_open = false,
                },
                Some(change) = changed.recv() => match self.workers.get(&change.0) {
                    Some(handle) => handle.wake.notify_one(),
                    None => orphans = soon(orphans),
                },
                Some(evicted) = evicted.recv() => self.evict(evicted),
                Some(news) = next(&mut news) => match (news, &policy) {
                    (ShutdownNews::Begins(lock), Some(policy)) => {
                        self.shut_down(policy.clone(), lock, &mut beside);
                    }
                    _ => {
                        tracing::info!("the machine does not shut down");
                        // those of files have another chance
                        self.refused.retain(|_, pod| pod.source == API);
                        self.shuts_down.send_replace(false);
                    }
                },
                Some(done) = self.tasks.join_next() => {
                    self.done(done);
                    // what came after its last look
                    orphans = soon(orphans);
                }
                () = tokio::time::sleep(AGAIN), if (is_waiting || orphans.is_some()) && wanted.is_some() => {}
            }
        }
        beside.shutdown().await;
        self.tasks.shutdown().await;
    }

    fn evict(&mut self, evicted: Evicted) {
        let Some(handle) = self.workers.get(&evicted.uid).filter(|it| !it.is_ending) else {
            return;
        };
        let (pod, why) = (handle.pod.clone(), evicted.why);
        self.node
            .tell(Level::Warning, &pod, "", why.reason, why.message.clone());
        let _ = handle.orders.send(Order::Fail {
            pod,
            most: why.grace,
            over: Over::Evicted(why),
        });
    }

    fn shut_down(&self, policy: ShutdownPolicy, lock: OwnedFd, beside: &mut JoinSet<()>) {
        tracing::warn!(
            pods = self.workers.len(),
            "the machine shuts down: pods end"
        );
        self.node.tell_of_node(
            Level::Normal,
            "Shutdown",
            "Shutdown manager detected shutdown event",
        );
        self.shuts_down.send_replace(true);
        let all = self.workers.values().filter(|handle| !handle.is_ending);
        let workers = all.map(|handle| (handle.pod.clone(), handle.orders.clone()));
        let statuses = self.cluster.as_ref().map(|it| it.statuses.clone());
        let ends = shutdown::end_pods(self.node.clone(), policy, workers.collect(), statuses, lock);
        beside.spawn(ends);
    }

    /// Whether all that is wanted is known: what was only remembered, while a server is away, is no reason to end anything.
    fn is_certain(&self) -> bool {
        self.cluster.as_ref().is_none_or(|cluster| {
            let known = cluster.known.borrow();
            known.as_ref().is_some_and(|known| known.by_server)
        })
    }

    fn done(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(uid) => {
                self.node.view.take(&uid);
                self.node.objects.forget(&uid);
                let Some(handle) = self.workers.remove(&uid) else {
                    return;
                };
                if handle.pod.deletion().is_some() {
                    self.ended.insert(uid);
                }
                if let Some(cluster) = &self.cluster {
                    cluster.statuses.gone(&handle.pod);
                }
            }
            // A panic in the work of one pod is not everybody's end; what it was doing is begun anew by the next worker.
            Err(error) => {
                tracing::error!(%error, "a pod's worker broke");
                self.workers.retain(|_, handle| !handle.orders.is_closed());
            }
        }
    }

    /// Gives each worker its order, and a worker to each pod that has none and may begin. Whether one waits until others have made room for it.
    async fn reconcile(&mut self, wanted: &[Arc<Desired>]) -> bool {
        let uids: BTreeSet<&str> = wanted.iter().map(|pod| pod.uid.as_str()).collect();
        self.ended.retain(|uid| uids.contains(uid.as_str()));
        let cluster = self.cluster.as_ref();
        self.refused.retain(|uid, pod| {
            let is_wanted = uids.contains(uid.as_str());
            // of others the end is told once they have been ended
            if let Some(cluster) = cluster.filter(|_| !is_wanted && pod.source != API) {
                cluster.statuses.gone(pod);
            }
            is_wanted
        });
        let mut new = Vec::new();
        for (uid, handle) in &mut self.workers {
            if !uids.contains(uid.as_str()) && !handle.is_ending {
                handle.end(handle.pod.clone(), None);
            }
        }
        for pod in wanted {
            if self.ended.contains(&pod.uid) {
                continue;
            }
            if let Some(handle) = self.workers.get_mut(&pod.uid) {
                // all others, each time that one of them changes
                if Arc::ptr_eq(&handle.told, pod) {
                    continue;
                }
                handle.told = pod.clone();
                match pod.deletion() {
                    Some(grace) => {
                        // asked to be quicker than it was told to be
                        let is_news =
                            !handle.is_ending || handle.grace.is_some_and(|before| grace < before);
                        if is_news {
                            self.node.view.put(pod.clone());
                            handle.end(pod.clone(), Some(grace));
                        }
                    }
                    None if !handle.is_ending && pod.differs(&handle.pod) => {
                        self.node.view.put(pod.clone());
                        handle.pod = pod.clone();
                        let _ = handle.orders.send(Order::Keep(pod.clone()));
                    }
                    None => {}
                }
                continue;
            }
            if let Some(grace) = pod.deletion() {
                let order = Order::End {
                    grace: Some(grace),
                    pod: pod.clone(),
                };
                self.spawn(pod.clone(), order);
                continue;
            }
            // It was here before, and whoever was is not asked again.
            let was_here = store::is_kept(&self.node, &pod.uid);
            // It was over before it came here, or all that there was of it is gone: it is not begun anew.
            if (is_over(pod) && !was_here) || self.refused.contains_key(&pod.uid) {
                continue;
            }
            if *self.shuts_down.borrow() {
                if !was_here {
                    self.refuse(pod, &admission::shuts_down());
                }
                continue;
            }
            new.push((!was_here, created(pod), pod.clone()));
        }
        // who was here, and then who was there first
        new.sort_by_key(|(is_new, created, pod)| (*is_new, *created, pod.uid.clone()));
        let mut load = None;
        let mut is_waiting = false;
        for (is_new, _, pod) in new {
            // Two with one name are one after the other.
            let has_its_name = |handle: &Handle| {
                handle.pod.name == pod.name && handle.pod.namespace == pod.namespace
            };
            if self.workers.values().any(has_its_name) {
                continue;
            }
            // Somebody runs it by hand, and it is the only one.
            if is_new && pod.source != RUN {
                let load = load.get_or_insert_with(|| self.load());
                match self.admit(&pod, load).await {
                    Admitted::Now => load.add(&pod),
                    Admitted::Later => {
                        is_waiting = true;
                        continue;
                    }
                    Admitted::No(refused) => {
                        self.refuse(&pod, &refused);
                        continue;
                    }
                }
            }
            self.spawn(pod.clone(), Order::Keep(pod));
        }
        is_waiting
    }

    fn spawn(&mut self, pod: Arc<Desired>, order: Order) {
        let (is_ending, grace) = match &order {
            Order::Keep(_) | Order::Fail { .. } => (false, None),
            Order::End { grace, .. } => (true, *grace),
        };
        self.node.view.put(pod.clone());
        let (orders, receiver) = watch::channel(order);
        let wake = Arc::new(Notify::new());
        let (node, uid) = (self.node.clone(), pod.uid.clone());
        let work = worker::run(node, pod.clone(), receiver, wake.clone());
        self.tasks.spawn(async move {
            work.await;
            uid
        });
        let handle = Handle {
            told: pod.clone(),
            pod,
            orders,
            wake,
            is_ending,
            grace,
            is_preempted: false,
        };
        self.workers.insert(handle.pod.uid.clone(), handle);
    }
}

impl Handle {
    /// Orders the pod's end.
    fn end(&mut self, pod: Arc<Desired>, grace: Option<Duration>) {
        self.is_ending = true;
        self.grace = grace;
        self.pod = pod.clone();
        let _ = self.orders.send(Order::End { grace, pod });
    }
}

/// Seconds since the epoch.
fn created(pod: &Desired) -> i64 {
    let time = pod.pod.metadata.creation_timestamp.as_ref();
    time.map_or(0, |time| time.0.as_second())
}

/// Pending where nothing is ever told.
async fn next(news: &mut Option<mpsc::Receiver<ShutdownNews>>) -> Option<ShutdownNews> {
    match news {
        Some(news) => news.recv().await,
        None => std::future::pending().await,
    }
}

/// By what a server has been told of it.
fn is_over(pod: &Desired) -> bool {
    let phase = pod.pod.status.as_ref().and_then(|it| it.phase.as_deref());
    pod.source == API && matches!(phase, Some("Failed" | "Succeeded"))
}
