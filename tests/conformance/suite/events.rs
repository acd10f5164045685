//! GetContainerEvents.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerEventType as Type, GetEventsRequest};
use tokio::sync::{mpsc, oneshot};

use super::{Case, cases, scene::Scene};
use crate::sh;

pub const CASES: &[Case] = cases![
    GetContainerEvents: [a_containers_life_is_told_in_its_order],
    GetContainerEvents: [each_who_listens_hears_the_same],
    GetContainerEvents: [an_event_has_a_time_its_pod_and_its_container],
    GetContainerEvents: [who_has_gone_holds_up_nobody],
];

/// One who listens. Some servers answer the call with the first event: it is listened for beside the case.
struct Events {
    heard: mpsc::Receiver<Result<cri::ContainerEventResponse, tonic::Status>>,
    _listening: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Events that a case has not looked at yet: those of all others are among them.
const HEARD: usize = 4096;
/// Until a server has taken up who listens, where it doesn't say so.
const TAKEN_UP: Duration = Duration::from_secs(1);

impl Events {
    async fn subscribe(s: &Scene) -> Result<Self> {
        let mut client = s.cri.runtime();
        let (sender, receiver) = mpsc::channel(HEARD);
        let (begun, begins) = oneshot::channel();
        let listening = tokio::spawn(async move {
            let mut stream = match client.get_container_events(GetEventsRequest {}).await {
                Ok(answer) => {
                    let _ = begun.send(Ok(()));
                    answer.into_inner()
                }
                Err(status) => {
                    let _ = begun.send(Err(status));
                    return;
                }
            };
            while let Some(event) = stream.message().await.transpose() {
                let last = event.is_err();
                if sender.send(event).await.is_err() || last {
                    return;
                }
            }
        });
        let events = Self {
            heard: receiver,
            _listening: AbortOnDrop(listening),
        };
        if let Ok(begun) = tokio::time::timeout(TAKEN_UP, begins).await {
            begun.context("the call ended")??;
        }
        Ok(events)
    }

    /// Those of `id`, until it is gone.
    async fn of(&mut self, id: &str) -> Result<Vec<cri::ContainerEventResponse>> {
        let mut told = vec![];
        loop {
            let next = tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await;
            let kinds: Vec<Type> = told
                .iter()
                .map(cri::ContainerEventResponse::container_event_type)
                .collect();
            let next = next.with_context(|| format!("no more events after {kinds:?}"))?;
            let event = next.context("the stream ended")??;
            if event.container_id != id {
                continue;
            }
            let last = event.container_event_type() == Type::ContainerDeletedEvent;
            told.push(event);
            if last {
                return Ok(told);
            }
        }
    }
}

fn kinds(events: &[cri::ContainerEventResponse]) -> Vec<Type> {
    events
        .iter()
        .map(cri::ContainerEventResponse::container_event_type)
        .collect()
}

const LIFE: [Type; 4] = [
    Type::ContainerCreatedEvent,
    Type::ContainerStartedEvent,
    Type::ContainerStoppedEvent,
    Type::ContainerDeletedEvent,
];

/// A container that ends by itself, from its making to its removal.
async fn live(s: &Scene) -> Result<(String, String)> {
    let pod = s.a_pod().await?;
    let id = s.start(&pod, &s.container("a", &sh("exit 3"))).await?;
    s.cri.wait_exit(&id).await?;
    s.cri.remove(&id).await?;
    s.cri.stop_pod(&pod.id).await?;
    s.cri.remove_pod(&pod.id).await?;
    Ok((pod.id, id))
}

async fn a_containers_life_is_told_in_its_order(s: &Scene) -> Result<()> {
    let mut events = Events::subscribe(s).await?;
    let (_, id) = live(s).await?;
    let told = events.of(&id).await?;
    ensure!(kinds(&told) == LIFE, "{:?}", kinds(&told));
    let times: Vec<i64> = told.iter().map(|event| event.created_at).collect();
    ensure!(times.is_sorted() && times[0] > 0, "{times:?}");
    Ok(())
}

async fn each_who_listens_hears_the_same(s: &Scene) -> Result<()> {
    let mut one = Events::subscribe(s).await?;
    let mut other = Events::subscribe(s).await?;
    let (_, id) = live(s).await?;
    let (a, b) = (one.of(&id).await?, other.of(&id).await?);
    ensure!(
        kinds(&a) == kinds(&b) && kinds(&a) == LIFE,
        "{:?} and {:?}",
        kinds(&a),
        kinds(&b)
    );
    Ok(())
}

async fn an_event_has_a_time_its_pod_and_its_container(s: &Scene) -> Result<()> {
    let mut events = Events::subscribe(s).await?;
    let (pod, id) = live(s).await?;
    for event in events.of(&id).await? {
        if event.container_event_type() == Type::ContainerDeletedEvent {
            continue;
        }
        let of_pod = event.pod_sandbox_status.clone().unwrap_or_default();
        ensure!(of_pod.id == pod && of_pod.metadata.is_some(), "{event:?}");
        let status = event
            .containers_statuses
            .iter()
            .find(|status| status.id == id);
        let status = status.with_context(|| format!("{event:?}"))?;
        if event.container_event_type() == Type::ContainerStoppedEvent {
            ensure!(status.exit_code == 3, "{status:?}");
        }
    }
    Ok(())
}

async fn who_has_gone_holds_up_nobody(s: &Scene) -> Result<()> {
    for _ in 0..5 {
        drop(Events::subscribe(s).await?);
    }
    let mut events = Events::subscribe(s).await?;
    let (_, id) = live(s).await?;
    ensure!(kinds(&events.of(&id).await?) == LIFE);
    Ok(())
}
