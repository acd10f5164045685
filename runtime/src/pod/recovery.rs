//! What a starting daemon does with the pods of its predecessor, before it serves anybody.
//!
//! Truth lives in the kernel and the shims: a record says only that there is a pod and how far it had come. Pods whose shim
//! answers go on as they are, with what happened meanwhile; those without one are taken down and reported as not ready; what was
//! half made is undone. Nothing running is disturbed.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use berth_proto::shim::v1::pod as v1;
use berth_state::record;
use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    create,
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
        PodPhase::Ready => {
            match living(&driver, &socket).await {
                Some((shim, said)) => ready(&mut driver, shim, &said, containers.clone()).await,
                None => {
                    driver.record.why = "its shim was gone when berthd started".into();
                    down(&mut driver, None, containers.clone()).await
                }
            }
            Ok(false)
        }
        PodPhase::Stopping => {
            let shim = living(&driver, &socket).await.map(|(shim, _)| shim);
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
                settle_ended(&mut driver, container, "its pod is broken").await;
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

async fn living(driver: &Driver, socket: &Path) -> Option<(Shim, v1::InspectResponse)> {
    let shim = Shim::connect(&driver.pod.id, socket).await.ok()?;
    let said = shim.inspect().await.ok()?;
    (said.sandbox_state.enum_value_or_default() == v1::TaskState::RUNNING).then_some((shim, said))
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
    let known: Vec<String> = containers.iter().map(|c| c.id.clone()).collect();
    for record in containers {
        let told = said.containers.iter().find(|c| c.id == record.id);
        match (record.phase, told) {
            (ContainerPhase::Creating | ContainerPhase::Removing, _) => {
                let pod = driver.pod.clone();
                let id = record.id.clone();
                if let Err(e) = stop::remove_container(pod, Some(shim.clone()), id).await {
                    broken(driver, record, &e);
                }
            }
            (ContainerPhase::Made, Some(told)) => {
                if told.state.enum_value_or_default() == v1::TaskState::RUNNING
                    && checkpoint::left_paused(&driver.pod.node, &record.id)
                    && let Err(e) = shim.resume(&record.id).await
                {
                    tracing::error!(pod = %driver.pod.id, container = %record.id, "let it go on: {e}");
                }
                let state = match told.state.enum_value_or_default() {
                    v1::TaskState::CREATED => ContainerState::Created,
                    v1::TaskState::RUNNING => ContainerState::Running {
                        started_at: told.started_at,
                        stop: None,
                    },
                    _ => ContainerState::Exited(exit_of(told)),
                };
                insert(driver, record, state);
            }
            (ContainerPhase::Made | ContainerPhase::Exited, _) => {
                settle_ended(driver, record, "its shim does not know it").await;
            }
        }
    }
    // A task without a record: the daemon died between the two.
    for stranger in said.containers.iter().filter(|c| !known.contains(&c.id)) {
        if let Err(e) = teardown::end_task(&shim, &stranger.id).await {
            tracing::error!(pod_id = %driver.pod.id, container_id = %stranger.id, "unknown, and can't be ended: {e}");
        }
    }
    driver.become_ready(shim);
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

/// A container that has no task any more.
async fn settle_ended(driver: &mut Driver, record: ContainerRecord, why: &str) {
    match (record.phase, record.exit.clone()) {
        (ContainerPhase::Creating | ContainerPhase::Removing, _) => {
            if let Err(e) = create::forget(&driver.pod, &record.id).await {
                broken(driver, record, &e);
            }
        }
        (_, Some(exit)) => insert(driver, record, ContainerState::Exited(exit)),
        (_, None) => {
            let exit = exit_record::read_or_unknown(&driver.pod, &record.id, why);
            insert(driver, record, ContainerState::Exited(exit));
        }
    }
}

fn broken(driver: &mut Driver, record: ContainerRecord, e: &Error) {
    tracing::error!(pod_id = %driver.pod.id, container_id = %record.id, "can't be brought in order: {e}");
    insert(
        driver,
        record,
        ContainerState::Broken { why: e.to_string() },
    );
}

fn insert(driver: &mut Driver, mut record: ContainerRecord, state: ContainerState) {
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
