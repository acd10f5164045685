//! What a starting daemon does with the pods of its predecessor, before it serves anybody.
//!
//! Truth lives in the kernel and the shims: a record says only that there is a pod and how far it had come. Pods whose shim
//! answers go on as they are, with what happened meanwhile; so do those whose shim is silent, as they were, until it is heard again; those
//! without one are taken down and reported as not ready; what was half made is undone. Nothing running is disturbed.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_proto::shim::v1::pod as v1;
use berth_state::record;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    Pod, create,
    driver::{Container, ContainerState, Driver, State, changes::exit_of},
    exit_record,
    record::{ContainerPhase, ContainerRecord, PodPhase, PodRecord},
    registry::Registry,
    shim::Shim,
    stop, teardown,
};
use crate::{checkpoint, error::Error, id};

/// Pods looked at at the same time. Most of the time goes to connecting; a dead one's `delete` is a process.
const PARALLEL: usize = 16;

/// How long all others wait for a shim that does not answer; it is asked on when they are served.
const PATIENCE: Duration = Duration::from_secs(1);

/// Finds every pod again. Returns when each has been looked at, and what could not be brought in order is known as such.
pub async fn recover(registry: &Arc<Registry>) -> Result<(), Error> {
    let since = Instant::now();
    let node = &registry.node;
    node.network.recovering();
    let pods = record::scan::<PodRecord>(&node.pod_records())?;
    let mut containers: BTreeMap<String, Vec<ContainerRecord>> = BTreeMap::new();
    for (name, container) in record::scan::<ContainerRecord>(&node.container_records())? {
        if container.id == name && id::is_whole(&name) {
            containers
                .entry(container.pod_id.clone())
                .or_default()
                .push(container);
        }
    }
    let turns = Arc::new(Semaphore::new(PARALLEL));
    let mut work = JoinSet::new();
    let found = pods.len();
    for (name, pod) in pods {
        if pod.id != name || !id::is_whole(&name) {
            tracing::error!("record {name} of the pods names another pod: left alone");
            continue;
        }
        let containers = containers.remove(&pod.id).unwrap_or_default();
        let (registry, turns) = (registry.clone(), turns.clone());
        work.spawn(async move {
            let _turn = turns.acquire().await;
            let driver = pod_again(&registry, pod, containers).await;
            if let Some(driver) = driver {
                tokio::spawn(driver.drive());
            }
        });
    }
    while work.join_next().await.is_some() {}
    for (pod_id, orphans) in containers {
        for container in orphans {
            tracing::warn!(pod_id = %pod_id, container_id = %container.id, "its pod is not known: removed");
            let _ = record::remove(&node.container_record(&container.id));
        }
    }
    sweep_orphans(registry).await;
    tend_network(registry)?;
    if found > 0 {
        tracing::info!(
            pods = found,
            ms = since.elapsed().as_millis() as u64,
            "recovered"
        );
    }
    Ok(())
}

/// What of the network is left to do beside serving.
fn tend_network(registry: &Arc<Registry>) -> Result<(), Error> {
    let node = &registry.node;
    let records = node.pod_records();
    let known = record::names(&records).map_err(Error::io("list", &records))?;
    tokio::spawn(node.network.clone().tend(known.into_iter().collect()));
    Ok(())
}

async fn pod_again(
    registry: &Arc<Registry>,
    record: PodRecord,
    containers: Vec<ContainerRecord>,
) -> Option<Driver> {
    let phase = record.phase;
    let socket = match record.address.as_str() {
        "" => registry.node.shim_socket(&record.id),
        address => address.strip_prefix("unix://").unwrap_or(address).into(),
    };
    let mut driver = registry.adopt(record);
    driver.claimed = !containers.is_empty();
    let result = match phase {
        PodPhase::Creating => undo(&mut driver, &containers).await.map(|()| true),
        PodPhase::Removing => {
            driver.state = State::Stopped { clean: true };
            remove(&driver, &containers).await.map(|()| true)
        }
        PodPhase::Ready => match found(&driver, &socket).await {
            Ok(Found::Lives(shim, said)) => {
                ready(&mut driver, shim, &said, containers.clone()).await;
                Ok(false)
            }
            Ok(Found::Silent(shim)) => {
                silent(&mut driver, shim, containers.clone());
                Ok(false)
            }
            Ok(Found::Gone) => {
                driver.record.why = "its shim was gone when berthd started".into();
                down(&mut driver, None, containers.clone()).await;
                Ok(false)
            }
            Err(e) => Err(e),
        },
        PodPhase::Stopping => {
            let shim = match found(&driver, &socket).await {
                Ok(Found::Lives(shim, _) | Found::Silent(shim)) => Some(shim),
                _ => None,
            };
            down(&mut driver, shim, containers.clone()).await;
            Ok(false)
        }
        PodPhase::Stopped => {
            driver.state = State::Stopped { clean: true };
            for container in containers.clone() {
                settle_ended(&mut driver, container, "its pod was stopped").await;
            }
            Ok(false)
        }
    };
    match result {
        Ok(true) => {
            registry.forget(&driver.pod);
            return None;
        }
        Ok(false) => {}
        Err(e) => {
            tracing::error!(pod_id = %driver.pod.id, "can't be brought in order, remove it: {e}");
            driver.record.why = e.to_string();
            driver.state = State::Broken;
            for container in containers {
                match &e {
                    // it may run: nothing is written of its end
                    Error::Silent { .. } => {
                        let (record, state) = broken(&driver.pod, container, &e);
                        insert(&mut driver, record, state);
                    }
                    _ => settle_ended(&mut driver, container, "its pod is broken").await,
                }
            }
        }
    }
    for (id, container) in &driver.containers {
        if container.record.is_some() {
            registry.add_container(id, &driver.pod.id);
        }
    }
    Some(driver)
}

/// A pod's shim, as it is found.
enum Found {
    Lives(Shim, v1::InspectResponse),
    /// Somebody listens, and does not answer: the machine is short of something, or the shim stopped. That is no death.
    Silent(Shim),
    Gone,
}

/// # Errors
/// Nobody can even connect any more, so many wait there: whether it lives is not known.
async fn found(driver: &Driver, socket: &Path) -> Result<Found, Error> {
    let shim = match Shim::connect(&driver.pod.id, socket).await {
        Ok(shim) => shim,
        Err(e @ Error::Silent { .. }) => return Err(e),
        Err(_) => return Ok(Found::Gone),
    };
    Ok(match shim.inspect_within(PATIENCE).await {
        Ok(said) if said.sandbox_state.enum_value_or_default() == v1::TaskState::RUNNING => {
            Found::Lives(shim, said)
        }
        Err(Error::Silent { .. }) => Found::Silent(shim),
        _ => Found::Gone,
    })
}

/// Rolls back a pod that was being made.
async fn undo(driver: &mut Driver, containers: &[ContainerRecord]) -> Result<(), Error> {
    teardown::surroundings(&driver.pod, None).await?;
    remove(driver, containers).await
}

async fn remove(driver: &Driver, containers: &[ContainerRecord]) -> Result<(), Error> {
    for container in containers {
        create::forget(&driver.pod, &container.id).await?;
    }
    let pod = driver.pod.clone();
    tokio::task::spawn_blocking(move || teardown::forget_pod(&pod))
        .await
        .map_err(|_| Error::Panicked("remove pod"))?
}

/// A pod that runs on, with its containers as its shim has them.
async fn ready(
    driver: &mut Driver,
    shim: Shim,
    said: &v1::InspectResponse,
    containers: Vec<ContainerRecord>,
) {
    for (record, state) in settle(&driver.pod.clone(), &shim, said, containers).await {
        insert(driver, record, state);
    }
    driver.become_ready(shim);
}

/// A pod that runs on as it was, until its shim is heard: then [`settle`] says what happened meanwhile. What was being made or removed is seen then.
fn silent(driver: &mut Driver, shim: Shim, containers: Vec<ContainerRecord>) {
    tracing::warn!(pod_id = %driver.pod.id, "its shim does not answer: the pod is taken for what it was, until the shim is heard");
    for record in &containers {
        let state = match (record.phase, &record.exit) {
            (ContainerPhase::Creating | ContainerPhase::Removing, _) => continue,
            (_, Some(exit)) => ContainerState::Exited(exit.clone()),
            (_, None) => ContainerState::Running {
                started_at: 0,
                stop: None,
            },
        };
        insert(driver, record.clone(), state);
    }
    driver.become_silent(shim, containers);
}

/// What has become of a pod's containers, as its shim knows them; what was half done is done or undone.
pub(super) async fn settle(
    pod: &Arc<Pod>,
    shim: &Shim,
    said: &v1::InspectResponse,
    containers: Vec<ContainerRecord>,
) -> Vec<(ContainerRecord, ContainerState)> {
    let known: Vec<String> = containers.iter().map(|c| c.id.clone()).collect();
    let mut settled = Vec::new();
    for record in containers {
        let told = said.containers.iter().find(|c| c.id == record.id);
        match (record.phase, told) {
            (ContainerPhase::Creating | ContainerPhase::Removing, _) => {
                let id = record.id.clone();
                if let Err(e) = stop::remove_container(pod.clone(), Some(shim.clone()), id).await {
                    settled.push(broken(pod, record, &e));
                }
            }
            (ContainerPhase::Made, Some(told)) => {
                if told.state.enum_value_or_default() == v1::TaskState::RUNNING
                    && checkpoint::left_paused(&pod.node, &record.id)
                    && let Err(e) = shim.resume(&record.id).await
                {
                    tracing::error!(pod = %pod.id, container = %record.id, "let it go on: {e}");
                }
                let state = match told.state.enum_value_or_default() {
                    v1::TaskState::CREATED => ContainerState::Created,
                    v1::TaskState::RUNNING => ContainerState::Running {
                        started_at: told.started_at,
                        stop: None,
                    },
                    _ => ContainerState::Exited(exit_of(told)),
                };
                settled.push((record, state));
            }
            (ContainerPhase::Made | ContainerPhase::Exited, _) => {
                settled.extend(ended(pod, record, "its shim does not know it").await);
            }
        }
    }
    // A task without a record: the daemon died between the two. One that was made while a silent shim was waited for has its own.
    let has_record = |id: &String| known.contains(id) || pod.node.container_record(id).exists();
    for stranger in said.containers.iter().filter(|c| !has_record(&c.id)) {
        if let Err(e) = teardown::end_task(shim, &stranger.id).await {
            tracing::error!(pod_id = %pod.id, container_id = %stranger.id, "unknown, and can't be ended: {e}");
        }
    }
    settled
}

/// A pod that is to be taken down, be it that its shim is dead or that this had begun.
async fn down(driver: &mut Driver, shim: Option<Shim>, containers: Vec<ContainerRecord>) {
    let ids = containers.iter().map(|c| c.id.clone()).collect();
    let ids: Vec<String> = ids;
    let (last, result) = match stop::end(&driver.pod, shim, ids.clone()).await {
        Ok(ended) => {
            let result = stop::take_down(&driver.pod, ended.alive.as_ref(), ids).await;
            (ended.last, result)
        }
        Err(outcome) => (None, outcome.result),
    };
    let why = match driver.record.why.as_str() {
        "" => "its pod was stopped".to_owned(),
        why => why.to_owned(),
    };
    for record in containers {
        let told = last
            .iter()
            .flat_map(|said| &said.containers)
            .find(|c| c.id == record.id)
            .filter(|c| c.state.enum_value_or_default() == v1::TaskState::EXITED)
            .map(exit_of);
        match told {
            Some(exit) if record.phase == ContainerPhase::Made => {
                insert(driver, record, ContainerState::Exited(exit));
            }
            _ => settle_ended(driver, record, &why).await,
        }
    }
    driver.state = State::Stopped {
        clean: result.is_ok(),
    };
    match result {
        Ok(()) => driver.record.phase = PodPhase::Stopped,
        Err(e) => {
            tracing::error!(pod_id = %driver.pod.id, "take down: {e}");
            driver.record.phase = PodPhase::Stopping;
        }
    }
    driver.write_pod();
}

async fn settle_ended(driver: &mut Driver, record: ContainerRecord, why: &str) {
    if let Some((record, state)) = ended(&driver.pod, record, why).await {
        insert(driver, record, state);
    }
}

/// A container that has no task any more; none: it is gone.
async fn ended(
    pod: &Arc<Pod>,
    record: ContainerRecord,
    why: &str,
) -> Option<(ContainerRecord, ContainerState)> {
    match (record.phase, record.exit.clone()) {
        (ContainerPhase::Creating | ContainerPhase::Removing, _) => {
            let forgotten = create::forget(pod, &record.id).await;
            forgotten.err().map(|e| broken(pod, record, &e))
        }
        (_, Some(exit)) => Some((record, ContainerState::Exited(exit))),
        (_, None) => {
            let exit = exit_record::read_or_unknown(pod, &record.id, why);
            Some((record, ContainerState::Exited(exit)))
        }
    }
}

fn broken(pod: &Pod, record: ContainerRecord, e: &Error) -> (ContainerRecord, ContainerState) {
    tracing::error!(pod_id = %pod.id, container_id = %record.id, "can't be brought in order: {e}");
    (record, ContainerState::Broken { why: e.to_string() })
}

pub(super) fn insert(driver: &mut Driver, mut record: ContainerRecord, state: ContainerState) {
    if let ContainerState::Exited(exit) = &state
        && record.exit.as_ref() != Some(exit)
    {
        record.phase = ContainerPhase::Exited;
        record.exit = Some(exit.clone());
        driver.write_container(&record);
    }
    driver.containers.insert(
        record.id.clone(),
        Container {
            config: Arc::new(record.config.clone()),
            timeline: record.timeline.clone(),
            record: Some(Arc::new(record)),
            state,
            pid: 0,
            updating: false,
            telling: false,
        },
    );
}

/// Objects in the ledger whose owner has no record: a reboot, a lost disk, a record set aside as damaged.
async fn sweep_orphans(registry: &Arc<Registry>) {
    let node = &registry.node;
    let owners = match node.ledger.owners() {
        Ok(owners) => owners,
        Err(e) => return tracing::error!("read ledger: {e}"),
    };
    // Containers lie within pods: their mounts go first.
    let (mut pods, mut containers) = (vec![], vec![]);
    for owner in owners.into_iter().filter(|owner| id::is_whole(owner)) {
        if node.pod_record(&owner).exists() || node.container_record(&owner).exists() {
            continue;
        }
        match node.ledger.outstanding(&owner) {
            Ok(left) if left.iter().any(of_a_pod) => pods.push(owner),
            Ok(_) => containers.push(owner),
            Err(e) => tracing::error!(%owner, "read ledger: {e}"),
        }
    }
    for owner in &pods {
        // The configuration is lost; what is needed of it is in the ledger.
        let record = PodRecord {
            id: owner.clone(),
            config: Default::default(),
            runtime_handler: node.config.runtime.default_handler.clone(),
            created_at: 0,
            phase: PodPhase::Removing,
            attachment: None,
            address: String::new(),
            timeline: Default::default(),
            why: String::new(),
            limits: None,
            cgroup_parent: Default::default(),
        };
        let driver = registry.adopt(record);
        let swept = teardown::surroundings(&driver.pod, None).await;
        registry.forget(&driver.pod);
        tell(owner, swept);
    }
    for owner in containers.iter().chain(&pods) {
        tell(owner, teardown::sweep(node, owner));
    }
}

fn of_a_pod(object: &berth_state::Object) -> bool {
    use berth_state::Object as O;
    matches!(
        object,
        O::Shim(_) | O::Netns(_) | O::Lease(_) | O::Link(_) | O::Cni(_)
    )
}

fn tell(owner: &str, swept: Result<(), Error>) {
    match swept {
        Ok(()) => {
            tracing::warn!(%owner, "no record names it: what it had in the kernel was removed")
        }
        Err(e) => {
            tracing::error!(%owner, "no record names it, and not all of it could be removed: {e}")
        }
    }
}
