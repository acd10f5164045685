//! GetContainerEvents and the lists in parts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerEventType as Type};
use berth_tests::{BUSYBOX, Node, container, sh};

/// The events of one client, as they come.
struct Events(tonic::Streaming<cri::ContainerEventResponse>);

impl Events {
    async fn subscribe(node: &Node) -> Result<Self> {
        let mut client = node.cri.runtime();
        let answer = client
            .get_container_events(cri::GetEventsRequest {})
            .await?;
        Ok(Self(answer.into_inner()))
    }

    async fn next(&mut self) -> Result<cri::ContainerEventResponse> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.0.message()).await;
        next.context("no event within 10 s")??
            .context("the stream ended")
    }

    /// As many as are expected, by id and kind.
    async fn take(&mut self, count: usize) -> Result<Vec<(String, Type)>> {
        let mut taken = vec![];
        for _ in 0..count {
            let event = self.next().await?;
            let status = event.pod_sandbox_status.clone().unwrap_or_default();
            ensure!(
                status.metadata.is_some(),
                "an event without its pod: {event:?}"
            );
            ensure!(event.created_at > 0, "an event without a time");
            taken.push((event.container_id.clone(), event.container_event_type()));
        }
        Ok(taken)
    }
}

#[test]
fn events_are_told_in_order_and_without_a_gap_to_each_who_listens() -> Result<()> {
    Node::test(async |node| {
        let mut events = Events::subscribe(node).await?;
        let mut other = Events::subscribe(node).await?;
        let pod = node.run(node.pod("events")).await?;
        let quick = node
            .start_container(&pod, container("quick", BUSYBOX, &sh("exit 3")))
            .await?;
        node.cri.wait_exit(&quick).await?;
        node.cri.remove(&quick).await?;
        let never = node
            .create(&pod, &container("never", BUSYBOX, &["true"]))
            .await?;
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        let of = |id: &str, what| (id.to_owned(), what);
        let expected = [
            of(&pod.id, Type::ContainerCreatedEvent),
            of(&pod.id, Type::ContainerStartedEvent),
            of(&quick, Type::ContainerCreatedEvent),
            of(&quick, Type::ContainerStartedEvent),
            of(&quick, Type::ContainerStoppedEvent),
            of(&quick, Type::ContainerDeletedEvent),
            of(&never, Type::ContainerCreatedEvent),
        ];
        let told = events.take(expected.len()).await?;
        ensure!(told == expected, "{told:?}");
        ensure!(
            other.take(expected.len()).await? == expected,
            "another client hears other things"
        );
        // The pod's end, and within it that of a container that never ran.
        let mut end = vec![];
        loop {
            let event = events.next().await?;
            let (id, what) = (event.container_id.clone(), event.container_event_type());
            end.push((id.clone(), what));
            if id == pod.id && what == Type::ContainerDeletedEvent {
                break;
            }
        }
        let at = |id: &str, what| {
            let place = end.iter().position(|event| *event == of(id, what));
            place.with_context(|| format!("no {what:?} of {id} in {end:?}"))
        };
        ensure!(
            at(&pod.id, Type::ContainerStoppedEvent)? < at(&pod.id, Type::ContainerDeletedEvent)?
                && at(&never, Type::ContainerDeletedEvent)?
                    < at(&pod.id, Type::ContainerDeletedEvent)?,
            "{end:?}"
        );
        let mut once = end.clone();
        once.sort_by(|a, b| (&a.0, a.1 as i32).cmp(&(&b.0, b.1 as i32)));
        once.dedup();
        ensure!(once.len() == end.len(), "told twice: {end:?}");
        Ok(())
    })
}

#[test]
fn a_listener_that_does_not_read_holds_up_nobody() -> Result<()> {
    Node::test(async |node| {
        let _lazy = Events::subscribe(node).await?;
        let mut events = Events::subscribe(node).await?;
        let pod = node.run(node.pod("lazy")).await?;
        events.take(2).await?;
        for at in 0..20 {
            let name = format!("c{at}");
            let id = node
                .create(&pod, &container(&name, BUSYBOX, &["true"]))
                .await?;
            node.cri.remove(&id).await?;
            let told = events.take(2).await?;
            ensure!(
                told == [
                    (id.clone(), Type::ContainerCreatedEvent),
                    (id, Type::ContainerDeletedEvent)
                ],
                "{told:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn the_lists_in_parts_are_the_lists() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("parts")).await?;
        for name in ["a", "b"] {
            node.start_container(&pod, container(name, BUSYBOX, &["sleep", "1000"]))
                .await?;
        }
        let mut runtime = node.cri.runtime();
        let mut whole = runtime
            .list_containers(cri::ListContainersRequest::default())
            .await?
            .into_inner()
            .containers;
        let mut parts = runtime
            .stream_containers(cri::StreamContainersRequest::default())
            .await?
            .into_inner();
        let mut together = vec![];
        while let Some(part) = parts.message().await? {
            together.extend(part.containers);
        }
        whole.sort_by(|a, b| a.id.cmp(&b.id));
        together.sort_by(|a, b| a.id.cmp(&b.id));
        ensure!(together.len() == 2 && whole == together, "{together:?}");

        let filter = Some(cri::PodSandboxFilter {
            id: pod.id.clone(),
            ..Default::default()
        });
        let mut pods = runtime
            .stream_pod_sandboxes(cri::StreamPodSandboxesRequest { filter })
            .await?
            .into_inner();
        let first = pods.message().await?.context("no part")?;
        ensure!(first.pod_sandboxes.len() == 1 && first.pod_sandboxes[0].id == pod.id);
        let mut stats = runtime
            .stream_container_stats(cri::StreamContainerStatsRequest::default())
            .await?
            .into_inner();
        let first = stats.message().await?.context("no part")?;
        ensure!(first.container_stats.len() == 2, "{first:?}");
        let mut images = node
            .cri
            .images()
            .stream_images(cri::StreamImagesRequest::default())
            .await?
            .into_inner();
        let first = images.message().await?.context("no part")?;
        ensure!(first.images == node.cri.list_images().await?);
        Ok(())
    })
}
