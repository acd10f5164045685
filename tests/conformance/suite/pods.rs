//! RunPodSandbox to RemovePodSandbox.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerState, NamespaceMode, PodSandboxConfig, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, UpdatePodSandboxResourcesRequest,
};
use tonic::Code;

use super::{
    Case, cases,
    scene::{LABEL, Scene, refused, unknown_id},
    skip,
};
use crate::request::PodRequest;

pub const CASES: &[Case] = cases![
    RunPodSandbox: [a_pod_is_ready_when_the_call_returns],
    RunPodSandbox: [a_pod_was_created_between_the_call_and_its_answer],
    RunPodSandbox: [labels_and_annotations_come_back_as_they_went],
    RunPodSandbox: [the_runtime_handler_comes_back],
    RunPodSandbox: [a_pod_has_an_address_of_its_own_and_none_on_the_hosts_network],
    RunPodSandbox: [pods_differ_by_attempt_namespace_or_uid],
    RunPodSandbox: [a_repeated_call_makes_no_second_pod],
    RunPodSandbox: [an_unknown_runtime_handler_is_refused_by_its_name],
    RunPodSandbox: [a_pod_without_metadata_is_refused],
    RunPodSandbox: [what_was_refused_is_in_no_list],
    PodSandboxStatus: [an_unknown_pod_is_not_found],
    PodSandboxStatus: [the_beginning_of_an_id_is_enough_where_no_other_has_it],
    PodSandboxStatus: [details_are_told_to_who_asks_for_them_alone],
    PodSandboxStatus: [namespaces_are_told_as_they_were_asked_for],
    ListPodSandbox: [a_filter_by_id_state_and_label_finds_what_it_says],
    ListPodSandbox: [parts_of_a_filter_all_have_to_hold],
    ListPodSandbox: [an_unknown_id_or_label_finds_nothing],
    ListPodSandbox: [no_filter_and_an_empty_one_find_everything],
    ListPodSandbox: [the_list_and_the_status_say_the_same],
    StopPodSandbox: [a_stopped_pod_is_not_ready_and_its_containers_have_exited],
    StopPodSandbox: [a_stopped_pod_may_be_stopped_again],
    StopPodSandbox: [a_pod_that_is_gone_or_never_was_may_be_stopped],
    StopPodSandbox: [a_stopped_pod_takes_no_container],
    StopPodSandbox: [a_stopped_pod_is_not_started_again_by_a_new_attempt],
    RemovePodSandbox: [a_ready_pod_goes_with_its_running_containers],
    RemovePodSandbox: [it_may_be_repeated_also_where_nobody_has_the_id],
    UpdatePodSandboxResources: [an_unknown_pod_is_not_found_to_update],
    UpdatePodSandboxResources: [a_pods_resources_may_change],
];

fn now() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_nanos() as i64
}

async fn a_pod_is_ready_when_the_call_returns(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    ensure!(!pod.id.is_empty());
    let status = s.cri.pod_status(&pod.id).await?;
    ensure!(
        status.id == pod.id && status.metadata == pod.config.metadata,
        "{status:?}"
    );
    ensure!(
        status.state() == PodSandboxState::SandboxReady,
        "{status:?}"
    );
    ensure!(
        status.network.is_some() && status.linux.is_some(),
        "{status:?}"
    );
    Ok(())
}

async fn a_pod_was_created_between_the_call_and_its_answer(s: &Scene) -> Result<()> {
    let before = now();
    let pod = s.a_pod().await?;
    let created = s.cri.pod_status(&pod.id).await?.created_at;
    ensure!(
        (before..=now()).contains(&created),
        "{created}, asked at {before}"
    );
    Ok(())
}

async fn labels_and_annotations_come_back_as_they_went(s: &Scene) -> Result<()> {
    let config = s.pod("labels").with(|config: &mut PodSandboxConfig| {
        for (key, value) in [
            ("a", ""),
            ("b/c.d", "é \" \\ \n"),
            ("long", &"x".repeat(500)),
        ] {
            config.labels.insert(key.into(), value.into());
            config.annotations.insert(key.into(), value.into());
        }
    });
    let pod = s.run(config.clone()).await?;
    let status = s.cri.pod_status(&pod.id).await?;
    ensure!(status.labels == config.labels, "{:?}", status.labels);
    ensure!(
        status.annotations == config.annotations,
        "{:?}",
        status.annotations
    );
    let list = s.cri.pods(Some(s.own())).await?;
    ensure!(list[0].labels == config.labels && list[0].annotations == config.annotations);
    Ok(())
}

async fn the_runtime_handler_comes_back(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let status = s.cri.pod_status(&pod.id).await?;
    let list = s.cri.pods(Some(s.own())).await?;
    ensure!(list[0].runtime_handler == status.runtime_handler);
    // The default may be told by its name.
    ensure!(
        s.runtime_handler.is_empty() || status.runtime_handler == s.runtime_handler,
        "{:?}",
        status.runtime_handler
    );
    Ok(())
}

async fn a_pod_has_an_address_of_its_own_and_none_on_the_hosts_network(s: &Scene) -> Result<()> {
    let host = s.pod("host").on_the_host_network();
    let host = s.run(host).await?;
    let network = s
        .cri
        .pod_status(&host.id)
        .await?
        .network
        .unwrap_or_default();
    ensure!(
        network.ip.is_empty() && network.additional_ips.is_empty(),
        "{network:?}"
    );
    if s.host_network {
        return Err(skip("pods have no network of their own here"));
    }
    let mut addresses = vec![];
    for name in ["a", "b"] {
        let pod = s.run(s.pod(name)).await?;
        let network = s.cri.pod_status(&pod.id).await?.network.unwrap_or_default();
        addresses.push(network.ip.parse::<std::net::IpAddr>().context(network.ip)?);
    }
    ensure!(addresses[0] != addresses[1], "{addresses:?}");
    Ok(())
}

async fn pods_differ_by_attempt_namespace_or_uid(s: &Scene) -> Result<()> {
    let first = s.run(s.pod("pod")).await?;
    let mut ids = vec![first.id.clone()];
    for change in ["attempt", "namespace", "uid"] {
        let mut config = first.config.clone();
        let metadata = config.metadata.as_mut().context("it has some")?;
        match change {
            "attempt" => metadata.attempt = 1,
            "namespace" => metadata.namespace.push_str("-2"),
            _ => metadata.uid.push('2'),
        }
        ids.push(s.run(config).await.context(change)?.id);
    }
    ids.sort_unstable();
    ids.dedup();
    ensure!(ids.len() == 4 && s.cri.pods(Some(s.own())).await?.len() == 4);
    Ok(())
}

/// The first pod's id, or an error; never a second pod of the same name and attempt.
async fn a_repeated_call_makes_no_second_pod(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    if let Ok(again) = s.cri.run_pod_with(&pod.config, &s.runtime_handler).await {
        ensure!(again == pod.id, "a second pod: {again}");
    }
    ensure!(s.cri.pods(Some(s.own())).await?.len() == 1);
    let status = s.cri.pod_status(&pod.id).await?;
    ensure!(status.state() == PodSandboxState::SandboxReady);
    Ok(())
}

async fn an_unknown_runtime_handler_is_refused_by_its_name(s: &Scene) -> Result<()> {
    let answer = s.cri.run_pod_with(&s.pod("pod"), "no-such-handler").await;
    ensure!(
        format!("{answer:?}").contains("no-such-handler"),
        "{answer:?}"
    );
    refused(answer, &[])
}

async fn a_pod_without_metadata_is_refused(s: &Scene) -> Result<()> {
    let config = s
        .pod("pod")
        .with(|config: &mut PodSandboxConfig| config.metadata = None);
    refused(s.cri.run_pod(&config).await, &[])
}

async fn what_was_refused_is_in_no_list(s: &Scene) -> Result<()> {
    let _ = s.cri.run_pod_with(&s.pod("pod"), "no-such-handler").await;
    let config = s.pod("pod").with(|config: &mut PodSandboxConfig| {
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert("no.such.sysctl".into(), "1".into());
    });
    refused(s.cri.run_pod_with(&config, &s.runtime_handler).await, &[])?;
    let left = s.cri.pods(Some(s.own())).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

async fn an_unknown_pod_is_not_found(s: &Scene) -> Result<()> {
    refused(s.cri.pod_status(&unknown_id()).await, &[Code::NotFound])
}

/// People and crictl give short ids.
async fn the_beginning_of_an_id_is_enough_where_no_other_has_it(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let status = s.cri.pod_status(&pod.id[..13]).await?;
    ensure!(status.id == pod.id);
    Ok(())
}

async fn details_are_told_to_who_asks_for_them_alone(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let quiet = s.cri.pod_status_verbose(&pod.id, false).await?;
    ensure!(quiet.info.is_empty());
    let info = s.cri.pod_status_verbose(&pod.id, true).await?.info;
    ensure!(!info.is_empty());
    Ok(())
}

async fn namespaces_are_told_as_they_were_asked_for(s: &Scene) -> Result<()> {
    for (network, pid, ipc) in [
        (
            NamespaceMode::Node,
            NamespaceMode::Container,
            NamespaceMode::Pod,
        ),
        (NamespaceMode::Node, NamespaceMode::Pod, NamespaceMode::Pod),
        (
            NamespaceMode::Node,
            NamespaceMode::Node,
            NamespaceMode::Node,
        ),
    ] {
        let config = s.pod(&format!("pod-{}", pid as i32));
        let config = config.namespaces(|namespaces| {
            namespaces.network = network.into();
            namespaces.pid = pid.into();
            namespaces.ipc = ipc.into();
        });
        let pod = s.run(config).await?;
        let linux = s.cri.pod_status(&pod.id).await?.linux.unwrap_or_default();
        let told = linux
            .namespaces
            .unwrap_or_default()
            .options
            .unwrap_or_default();
        ensure!(
            told.network() == network && told.pid() == pid && told.ipc() == ipc,
            "{told:?}"
        );
    }
    Ok(())
}

fn state(state: PodSandboxState) -> Option<PodSandboxStateValue> {
    let state = state.into();
    Some(PodSandboxStateValue { state })
}

/// A ready pod and a stopped one, and what a filter finds of them.
async fn two(s: &Scene) -> Result<(String, String)> {
    let with = |name: &str| {
        let config = s.pod(name);
        config.with(|config: &mut PodSandboxConfig| {
            config.labels.insert("which".into(), name.into());
        })
    };
    let ready = s.run(with("ready")).await?.id;
    let stopped = s.run(with("stopped")).await?.id;
    s.cri.stop_pod(&stopped).await?;
    Ok((ready, stopped))
}

async fn found(s: &Scene, change: impl FnOnce(&mut PodSandboxFilter)) -> Result<Vec<String>> {
    let mut filter = s.own();
    change(&mut filter);
    let pods = s.cri.pods(Some(filter)).await?;
    let mut ids: Vec<String> = pods.into_iter().map(|pod| pod.id).collect();
    ids.sort_unstable();
    Ok(ids)
}

async fn a_filter_by_id_state_and_label_finds_what_it_says(s: &Scene) -> Result<()> {
    let (ready, stopped) = two(s).await?;
    let by_id = found(s, |filter| filter.id = stopped.clone()).await?;
    ensure!(by_id == [stopped.clone()], "by id: {by_id:?}");
    let short = found(s, |filter| filter.id = stopped[..13].to_owned()).await?;
    ensure!(short == [stopped.clone()], "by a short id: {short:?}");
    for (which, id) in [
        (PodSandboxState::SandboxReady, &ready),
        (PodSandboxState::SandboxNotready, &stopped),
    ] {
        let by_state = found(s, |filter| filter.state = state(which)).await?;
        ensure!(by_state == [id.clone()], "{which:?}: {by_state:?}");
    }
    let by_label = found(s, |filter| {
        filter.label_selector.insert("which".into(), "ready".into());
    });
    ensure!(by_label.await? == [ready]);
    Ok(())
}

async fn parts_of_a_filter_all_have_to_hold(s: &Scene) -> Result<()> {
    let (ready, stopped) = two(s).await?;
    let both = found(s, |filter| {
        filter.id = ready.clone();
        filter.state = state(PodSandboxState::SandboxNotready);
    });
    ensure!(both.await?.is_empty());
    let labels = found(s, |filter| {
        filter.id = stopped.clone();
        filter.label_selector.insert("which".into(), "ready".into());
    });
    ensure!(labels.await?.is_empty());
    let all = found(s, |filter| {
        filter.id = stopped.clone();
        filter.state = state(PodSandboxState::SandboxNotready);
        filter
            .label_selector
            .insert("which".into(), "stopped".into());
    });
    ensure!(all.await? == [stopped]);
    Ok(())
}

async fn an_unknown_id_or_label_finds_nothing(s: &Scene) -> Result<()> {
    s.a_pod().await?;
    ensure!(
        found(s, |filter| filter.id = unknown_id())
            .await?
            .is_empty()
    );
    let filter = PodSandboxFilter {
        label_selector: [(LABEL.to_owned(), "somebody else's".to_owned())].into(),
        ..Default::default()
    };
    ensure!(s.cri.pods(Some(filter)).await?.is_empty());
    Ok(())
}

async fn no_filter_and_an_empty_one_find_everything(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    for filter in [None, Some(PodSandboxFilter::default())] {
        let pods = s.cri.pods(filter).await?;
        ensure!(pods.iter().any(|other| other.id == pod.id));
    }
    Ok(())
}

async fn the_list_and_the_status_say_the_same(s: &Scene) -> Result<()> {
    let (ready, stopped) = two(s).await?;
    for id in [ready, stopped] {
        let status = s.cri.pod_status(&id).await?;
        let filter = PodSandboxFilter { id, ..s.own() };
        let list = s.cri.pods(Some(filter)).await?;
        ensure!(list.len() == 1, "{list:?}");
        let pod = &list[0];
        ensure!(
            pod.metadata == status.metadata
                && pod.state == status.state
                && pod.created_at == status.created_at,
            "{pod:?} and {status:?}"
        );
    }
    Ok(())
}

async fn a_stopped_pod_is_not_ready_and_its_containers_have_exited(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    s.cri.stop_pod(&pod.id).await?;
    let status = s.cri.pod_status(&pod.id).await?;
    ensure!(
        status.state() == PodSandboxState::SandboxNotready,
        "{status:?}"
    );
    let container = s.cri.status(&id).await?;
    ensure!(
        container.state() == ContainerState::ContainerExited,
        "{container:?}"
    );
    ensure!(
        container.exit_code != 0 && container.finished_at > 0,
        "{container:?}"
    );
    Ok(())
}

async fn a_stopped_pod_may_be_stopped_again(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    s.cri.stop_pod(&pod.id).await?;
    let (first, container) = (s.cri.pod_status(&pod.id).await?, s.cri.status(&id).await?);
    for _ in 0..3 {
        s.cri.stop_pod(&pod.id).await?;
    }
    ensure!(s.cri.pod_status(&pod.id).await?.state == first.state);
    ensure!(s.cri.status(&id).await? == container);
    Ok(())
}

async fn a_pod_that_is_gone_or_never_was_may_be_stopped(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    s.cri.remove_pod(&pod.id).await?;
    s.cri.stop_pod(&pod.id).await?;
    s.cri.stop_pod(&unknown_id()).await?;
    Ok(())
}

async fn it_may_be_repeated_also_where_nobody_has_the_id(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    for _ in 0..3 {
        s.cri.remove_pod(&pod.id).await?;
    }
    s.cri.remove_pod(&unknown_id()).await?;
    Ok(())
}

async fn a_stopped_pod_takes_no_container(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("late", &["true"]);
    let early = s.create(&pod, &s.container("early", &["true"])).await?;
    s.cri.stop_pod(&pod.id).await?;
    refused(s.cri.create(&pod.id, &config, &pod.config).await, &[])?;
    refused(s.cri.start(&early).await, &[])
}

async fn a_stopped_pod_is_not_started_again_by_a_new_attempt(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    s.cri.stop_pod(&pod.id).await?;
    let mut config = pod.config.clone();
    config.metadata.as_mut().context("it has some")?.attempt += 1;
    let next = s.run(config).await?;
    ensure!(next.id != pod.id);
    for (id, state) in [
        (&pod.id, PodSandboxState::SandboxNotready),
        (&next.id, PodSandboxState::SandboxReady),
    ] {
        ensure!(s.cri.pod_status(id).await?.state() == state);
    }
    Ok(())
}

async fn a_ready_pod_goes_with_its_running_containers(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    s.cri.remove_pod(&pod.id).await?;
    refused(s.cri.pod_status(&pod.id).await, &[Code::NotFound])?;
    refused(s.cri.status(&id).await, &[Code::NotFound])?;
    ensure!(s.cri.pods(Some(s.own())).await?.is_empty());
    Ok(())
}

async fn update(s: &Scene, id: &str, shares: i64) -> Result<(), tonic::Status> {
    let mut request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.into(),
        ..Default::default()
    };
    let resources = request.resources.get_or_insert_default();
    resources.cpu_period = 100_000;
    resources.cpu_shares = shares;
    let answer = s.cri.runtime().update_pod_sandbox_resources(request).await;
    answer.map(drop)
}

async fn an_unknown_pod_is_not_found_to_update(s: &Scene) -> Result<()> {
    refused(update(s, &unknown_id(), 512).await, &[Code::NotFound])
}

async fn a_pods_resources_may_change(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    update(s, &pod.id, 512).await?;
    ensure!(s.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
    tokio::time::timeout(Duration::from_secs(20), s.cri.exec(&id, &["true"])).await??;
    Ok(())
}
