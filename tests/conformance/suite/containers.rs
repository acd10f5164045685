//! CreateContainer, StartContainer, RemoveContainer, ContainerStatus, ListContainers.

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerConfig, ContainerFilter, ContainerState, ContainerStateValue, Mount,
};
use tonic::Code;

use super::{
    Case, cases,
    scene::{LABEL, Scene, refused, unknown_id},
};
use crate::{
    request::{ContainerRequest, bind},
    sh,
};

pub const CASES: &[Case] = cases![
    CreateContainer: [a_container_is_created_and_has_no_time_but_its_own],
    CreateContainer: [labels_and_annotations_come_back_as_they_went],
    CreateContainer: [the_image_is_told_by_name_and_reference],
    ContainerStatus: [the_image_id_is_told_and_is_that_of_the_list],
    CreateContainer: [an_unknown_pod_is_not_found],
    CreateContainer: [an_image_that_is_not_there_is_refused_by_its_name],
    CreateContainer: [a_container_without_metadata_or_image_is_refused],
    CreateContainer: [a_repeated_call_makes_no_second_container],
    CreateContainer: [the_next_attempt_is_another_container],
    CreateContainer: [containers_of_two_pods_may_have_one_name],
    StartContainer: [a_started_container_runs_and_its_times_are_in_order],
    StartContainer: [it_may_not_be_repeated],
    StartContainer: [an_unknown_container_is_not_found],
    StartContainer: [a_command_that_is_not_there_is_told_by_its_name],
    RemoveContainer: [a_running_container_goes],
    RemoveContainer: [it_may_be_repeated_also_where_nobody_has_the_id],
    RemoveContainer: [the_log_stays],
    RemoveContainer: [the_name_is_free_again],
    ContainerStatus: [an_unknown_container_is_not_found_to_tell_of],
    ContainerStatus: [the_exit_is_told_with_its_code_and_reason],
    ContainerStatus: [no_container_has_ended_before_it_began],
    ContainerStatus: [mounts_are_told],
    ContainerStatus: [the_log_path_is_the_pods_directory_and_the_containers_path],
    ContainerStatus: [details_are_told_to_who_asks_for_them_alone],
    ContainerStatus: [the_beginning_of_an_id_is_enough_unless_two_have_it],
    ContainerStatus: [the_limits_are_told_as_asked],
    ContainerStatus: [the_user_is_told],
    ListContainers: [a_filter_by_id_pod_state_and_label_finds_what_it_says],
    ListContainers: [parts_of_a_filter_all_have_to_hold],
    ListContainers: [an_unknown_id_pod_or_label_finds_nothing],
    ListContainers: [the_list_and_the_status_say_the_same],
];

async fn a_container_is_created_and_has_no_time_but_its_own(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["true"]);
    let id = s.create(&pod, &config).await?;
    let status = s.cri.status(&id).await?;
    ensure!(
        status.id == id && status.metadata == config.metadata,
        "{status:?}"
    );
    ensure!(
        status.state() == ContainerState::ContainerCreated,
        "{status:?}"
    );
    ensure!(status.created_at > 0, "{status:?}");
    ensure!(
        status.started_at == 0 && status.finished_at == 0,
        "{status:?}"
    );
    let of_pod = s.cri.pod_status(&pod.id).await?.created_at;
    ensure!(of_pod <= status.created_at, "older than its pod");
    Ok(())
}

async fn labels_and_annotations_come_back_as_they_went(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s
        .container("a", &["true"])
        .with(|config: &mut ContainerConfig| {
            for (key, value) in [
                ("a", ""),
                ("b/c.d", "é \" \\ \n"),
                ("long", &"x".repeat(500)),
            ] {
                config.labels.insert(key.into(), value.into());
                config.annotations.insert(key.into(), value.into());
            }
        });
    let id = s.create(&pod, &config).await?;
    let status = s.cri.status(&id).await?;
    ensure!(status.labels == config.labels, "{:?}", status.labels);
    ensure!(
        status.annotations == config.annotations,
        "{:?}",
        status.annotations
    );
    Ok(())
}

async fn the_image_is_told_by_name_and_reference(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let image = s.cri.image(&s.image).await?.context("the image is gone")?;
    let status = s.cri.status(&id).await?;
    let name = status.image.clone().unwrap_or_default().image;
    ensure!(
        !name.is_empty() && !status.image_ref.is_empty(),
        "{status:?}"
    );
    ensure!(
        status.image_ref == image.id || image.repo_digests.contains(&status.image_ref),
        "{} is neither {} nor one of {:?}",
        status.image_ref,
        image.id,
        image.repo_digests
    );
    Ok(())
}

/// By it the kubelet knows which images are in use, whatever `image_ref` is.
async fn the_image_id_is_told_and_is_that_of_the_list(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let image = s.cri.image(&s.image).await?.context("the image is gone")?;
    let status = s.cri.status(&id).await?;
    ensure!(
        status.image_id == image.id,
        "image_id is {:?}, the image's id {:?}",
        status.image_id,
        image.id
    );
    let filter = ContainerFilter {
        id,
        ..Default::default()
    };
    let list = s.cri.containers(Some(filter)).await?;
    ensure!(list.len() == 1 && list[0].image_id == image.id, "{list:?}");
    Ok(())
}

async fn an_unknown_pod_is_not_found(s: &Scene) -> Result<()> {
    let (config, pod) = (s.container("a", &["true"]), s.pod("a"));
    refused(
        s.cri.create(&unknown_id(), &config, &pod).await,
        &[Code::NotFound],
    )
}

async fn an_image_that_is_not_there_is_refused_by_its_name(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = crate::container("a", "no.such.registry/no/such:image", &["true"]);
    let answer = s.cri.create(&pod.id, &config, &pod.config).await;
    ensure!(format!("{answer:?}").contains("no/such"), "{answer:?}");
    refused(answer, &[Code::NotFound])
}

async fn a_container_without_metadata_or_image_is_refused(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let plain = || s.container("a", &["true"]);
    for config in [
        plain().with(|config: &mut ContainerConfig| config.metadata = None),
        plain().with(|config: &mut ContainerConfig| config.image = None),
    ] {
        refused(s.cri.create(&pod.id, &config, &pod.config).await, &[])?;
    }
    ensure!(
        containers(s, |filter| filter.pod_sandbox_id = pod.id.clone())
            .await?
            .is_empty()
    );
    Ok(())
}

/// The first container's id, or an error; never two of one name and attempt.
async fn a_repeated_call_makes_no_second_container(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["sleep", "1000"]);
    let id = s.start(&pod, &config).await?;
    if let Ok(again) = s.cri.create(&pod.id, &config, &pod.config).await {
        ensure!(again == id, "a second container: {again}");
    }
    let all = containers(s, |filter| filter.pod_sandbox_id = pod.id.clone()).await?;
    ensure!(all == [id.clone()], "{all:?}");
    ensure!(s.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
    Ok(())
}

async fn the_next_attempt_is_another_container(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let mut ids = vec![];
    for attempt in 0..3 {
        let config = s
            .container("a", &sh("exit 1"))
            .with(|config: &mut ContainerConfig| {
                config.metadata.get_or_insert_default().attempt = attempt;
                config.log_path = format!("a/{attempt}.log");
            });
        let id = s.start(&pod, &config).await?;
        s.cri.wait_exit(&id).await?;
        let status = s.cri.status(&id).await?;
        ensure!(status.metadata.unwrap_or_default().attempt == attempt);
        ids.push(id);
    }
    ids.dedup();
    ensure!(ids.len() == 3);
    Ok(())
}

async fn containers_of_two_pods_may_have_one_name(s: &Scene) -> Result<()> {
    for name in ["one", "two"] {
        let pod = s.run(s.pod(name)).await?;
        s.start(&pod, &s.container("a", &["sleep", "1000"])).await?;
    }
    Ok(())
}

async fn a_started_container_runs_and_its_times_are_in_order(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let running = s.cri.status(&id).await?;
    ensure!(
        running.state() == ContainerState::ContainerRunning,
        "{running:?}"
    );
    ensure!(
        running.started_at >= running.created_at && running.finished_at == 0,
        "{running:?}"
    );
    s.cri.stop(&id, 0).await?;
    let exited = s.cri.status(&id).await?;
    ensure!(
        exited.state() == ContainerState::ContainerExited,
        "{exited:?}"
    );
    ensure!(
        exited.created_at == running.created_at
            && exited.started_at == running.started_at
            && exited.finished_at >= exited.started_at,
        "{exited:?}"
    );
    Ok(())
}

async fn it_may_not_be_repeated(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    refused(s.cri.start(&id).await, &[])?;
    ensure!(s.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
    s.cri.stop(&id, 0).await?;
    refused(s.cri.start(&id).await, &[])?;
    ensure!(s.cri.status(&id).await?.state() == ContainerState::ContainerExited);
    Ok(())
}

async fn an_unknown_container_is_not_found(s: &Scene) -> Result<()> {
    refused(s.cri.start(&unknown_id()).await, &[Code::NotFound])
}

/// By the answer or by the container's end: in both cases the name of the command is in it.
async fn a_command_that_is_not_there_is_told_by_its_name(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = s
        .create(&pod, &s.container("a", &["/no/such/command"]))
        .await?;
    if let Err(status) = s.cri.start(&id).await {
        ensure!(status.message().contains("/no/such/command"), "{status:?}");
    }
    let status = s.cri.wait_exit(&id).await?;
    ensure!(
        status.exit_code != 0 && !status.reason.is_empty(),
        "{status:?}"
    );
    ensure!(status.message.contains("/no/such/command"), "{status:?}");
    Ok(())
}

async fn a_running_container_goes(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    s.cri.remove(&id).await?;
    refused(s.cri.status(&id).await, &[Code::NotFound])?;
    ensure!(
        containers(s, |filter| filter.pod_sandbox_id = pod.id.clone())
            .await?
            .is_empty()
    );
    Ok(())
}

async fn it_may_be_repeated_also_where_nobody_has_the_id(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    for _ in 0..3 {
        s.cri.remove(&id).await?;
    }
    s.cri.remove(&unknown_id()).await?;
    Ok(())
}

/// It is the kubelet's to remove.
async fn the_log_stays(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["echo", "hello"]);
    let (code, text) = s.outcome(&pod, config.clone()).await?;
    ensure!(code == 0 && text == "hello", "{code}: {text}");
    let id = containers(s, |filter| filter.pod_sandbox_id = pod.id.clone()).await?;
    s.cri.remove(&id[0]).await?;
    s.cri.stop_pod(&pod.id).await?;
    s.cri.remove_pod(&pod.id).await?;
    ensure!(!s.log(&pod, &config)?.is_empty());
    Ok(())
}

async fn the_name_is_free_again(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["sleep", "1000"]);
    let first = s.start(&pod, &config).await?;
    s.cri.remove(&first).await?;
    let second = s.start(&pod, &config).await?;
    ensure!(first != second);
    Ok(())
}

async fn an_unknown_container_is_not_found_to_tell_of(s: &Scene) -> Result<()> {
    refused(s.cri.status(&unknown_id()).await, &[Code::NotFound])
}

async fn the_exit_is_told_with_its_code_and_reason(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    for (name, script, code, reason) in [
        ("well", "exit 0", 0, "Completed"),
        ("badly", "exit 7", 7, "Error"),
        ("most", "exit 255", 255, "Error"),
        ("killed", "kill -9 $$", 137, "Error"),
        ("ended", "kill -15 $$; sleep 10", 143, "Error"),
    ] {
        // A shell as pid 1 ignores what it has no handler for: the signal goes to a child's place instead.
        let script = match name {
            "killed" | "ended" => format!("sh -c '{script}'; exit $?"),
            _ => script.to_owned(),
        };
        let id = s.start(&pod, &s.container(name, &sh(&script))).await?;
        let status = s.cri.wait_exit(&id).await?;
        ensure!(status.exit_code == code, "{name}: {status:?}");
        ensure!(status.reason == reason, "{name}: {status:?}");
        ensure!(status.finished_at > 0, "{name}: {status:?}");
    }
    Ok(())
}

async fn no_container_has_ended_before_it_began(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    for number in 0..5 {
        let id = s
            .start(&pod, &s.container(&format!("c{number}"), &["true"]))
            .await?;
        let status = s.cri.wait_exit(&id).await?;
        ensure!(
            status.finished_at >= status.started_at && status.started_at >= status.created_at,
            "created {}, started {}, finished {}",
            status.created_at,
            status.started_at,
            status.finished_at
        );
    }
    Ok(())
}

async fn mounts_are_told(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let volume = s.dir.join("volume");
    std::fs::create_dir_all(&volume)?;
    let asked = Mount {
        readonly: true,
        ..bind(&volume, "/volume")
    };
    let config = s.container("a", &["true"]).mount(asked);
    let id = s.create(&pod, &config).await?;
    let mounts = s.cri.status(&id).await?.mounts;
    let told = mounts
        .iter()
        .find(|mount| mount.container_path == "/volume");
    let told = told.with_context(|| format!("{mounts:?}"))?;
    ensure!(
        told.host_path == volume.display().to_string() && told.readonly,
        "{told:?}"
    );
    Ok(())
}

async fn the_log_path_is_the_pods_directory_and_the_containers_path(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["true"]);
    let id = s.create(&pod, &config).await?;
    let told = s.cri.status(&id).await?.log_path;
    ensure!(
        told == s.log_path(&pod, &config).display().to_string(),
        "{told}"
    );
    Ok(())
}

async fn details_are_told_to_who_asks_for_them_alone(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let quiet = s.cri.status_verbose(&id, false).await?;
    ensure!(quiet.info.is_empty());
    let info = s.cri.status_verbose(&id, true).await?.info;
    ensure!(!info.is_empty());
    Ok(())
}

/// Seventeen containers: two ids begin with the same of the sixteen digits.
async fn the_beginning_of_an_id_is_enough_unless_two_have_it(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let mut ids: Vec<String> = vec![];
    for number in 0..17 {
        let config = s.container(&format!("c{number}"), &["true"]);
        ids.push(s.create(&pod, &config).await?);
    }
    let status = s.cri.status(&ids[0][..20]).await?;
    ensure!(status.id == ids[0]);
    ids.sort_unstable();
    let same = ids.windows(2).find(|pair| pair[0][..1] == pair[1][..1]);
    let same = same.context("no two ids begin alike")?;
    let common = same[0]
        .bytes()
        .zip(same[1].bytes())
        .take_while(|(a, b)| a == b);
    let short = &same[0][..common.count()];
    refused(s.cri.status(short).await, &[])?;
    refused(s.cri.start(short).await, &[])?;
    refused(s.cri.exec_raw(short, &["true"]).await, &[])?;
    for id in same {
        ensure!(s.cri.status(id).await?.state() == ContainerState::ContainerCreated);
    }
    Ok(())
}

async fn the_limits_are_told_as_asked(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["sleep", "1000"]).resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.cpu_quota = 50_000;
        resources.cpu_period = 100_000;
        resources.cpu_shares = 256;
    });
    let id = s.start(&pod, &config).await?;
    let told = s.cri.status(&id).await?.resources.unwrap_or_default();
    let told = told.linux.context("no resources are told")?;
    ensure!(
        told.memory_limit_in_bytes == 64 << 20
            && told.cpu_quota == 50_000
            && told.cpu_period == 100_000,
        "{told:?}"
    );
    Ok(())
}

async fn the_user_is_told(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["sleep", "1000"]).security(|security| {
        let id = |value| Some(berth_proto::cri::Int64Value { value });
        security.run_as_user = id(1234);
        security.run_as_group = id(5678);
        security.supplemental_groups = vec![4321];
    });
    let id = s.start(&pod, &config).await?;
    let user = s.cri.status(&id).await?.user.unwrap_or_default();
    let user = user.linux.context("no user is told")?;
    ensure!(user.uid == 1234 && user.gid == 5678, "{user:?}");
    ensure!(user.supplemental_groups.contains(&4321), "{user:?}");
    Ok(())
}

fn state(state: ContainerState) -> Option<ContainerStateValue> {
    let state = state.into();
    Some(ContainerStateValue { state })
}

async fn containers(s: &Scene, change: impl FnOnce(&mut ContainerFilter)) -> Result<Vec<String>> {
    let mut filter = ContainerFilter::default();
    change(&mut filter);
    let found = s.cri.containers(Some(filter)).await?;
    let mut ids: Vec<String> = found.into_iter().map(|container| container.id).collect();
    ids.sort_unstable();
    Ok(ids)
}

/// One that is created, one that runs and one that has exited, all with the scene's label; the pod.
async fn three(s: &Scene) -> Result<(String, [String; 3])> {
    let pod = s.a_pod().await?;
    let with = |name: &str, command: &[&str]| {
        let config = s.container(name, command);
        config.with(|config: &mut ContainerConfig| {
            config.labels.insert(LABEL.into(), s.mark.clone());
            config.labels.insert("which".into(), name.into());
        })
    };
    let created = s.create(&pod, &with("created", &["true"])).await?;
    let running = s.start(&pod, &with("running", &["sleep", "1000"])).await?;
    let exited = s.start(&pod, &with("exited", &["true"])).await?;
    s.cri.wait_exit(&exited).await?;
    Ok((pod.id, [created, running, exited]))
}

async fn a_filter_by_id_pod_state_and_label_finds_what_it_says(s: &Scene) -> Result<()> {
    let (pod, ids) = three(s).await?;
    let states = [
        ContainerState::ContainerCreated,
        ContainerState::ContainerRunning,
        ContainerState::ContainerExited,
    ];
    for (id, which) in ids.iter().zip(states) {
        let one = [id.clone()];
        ensure!(containers(s, |filter| filter.id = id.clone()).await? == one);
        ensure!(containers(s, |filter| filter.id = id[..13].to_owned()).await? == one);
        let of_state = containers(s, |filter| {
            filter.state = state(which);
            filter.label_selector.insert(LABEL.into(), s.mark.clone());
        });
        ensure!(of_state.await? == one, "{which:?}");
    }
    let mut all = ids.to_vec();
    all.sort_unstable();
    ensure!(containers(s, |filter| filter.pod_sandbox_id = pod.clone()).await? == all);
    ensure!(containers(s, |filter| filter.pod_sandbox_id = pod[..13].to_owned()).await? == all);
    let labelled = containers(s, |filter| {
        filter.label_selector.insert(LABEL.into(), s.mark.clone());
    });
    ensure!(labelled.await? == all);
    Ok(())
}

async fn parts_of_a_filter_all_have_to_hold(s: &Scene) -> Result<()> {
    let (pod, [created, running, _]) = three(s).await?;
    let other = s.run(s.pod("other")).await?;
    let none = containers(s, |filter| {
        filter.id = created.clone();
        filter.pod_sandbox_id = other.id.clone();
    });
    ensure!(none.await?.is_empty());
    let none = containers(s, |filter| {
        filter.id = created.clone();
        filter.state = state(ContainerState::ContainerRunning);
    });
    ensure!(none.await?.is_empty());
    let none = containers(s, |filter| {
        filter.pod_sandbox_id = pod.clone();
        filter
            .label_selector
            .insert("which".into(), "running".into());
        filter.label_selector.insert("and".into(), "more".into());
    });
    ensure!(none.await?.is_empty());
    let one = containers(s, |filter| {
        filter.pod_sandbox_id = pod.clone();
        filter.state = state(ContainerState::ContainerRunning);
        filter
            .label_selector
            .insert("which".into(), "running".into());
    });
    ensure!(one.await? == [running]);
    Ok(())
}

async fn an_unknown_id_pod_or_label_finds_nothing(s: &Scene) -> Result<()> {
    s.a_sleeper().await?;
    ensure!(
        containers(s, |filter| filter.id = unknown_id())
            .await?
            .is_empty()
    );
    ensure!(
        containers(s, |filter| filter.pod_sandbox_id = unknown_id())
            .await?
            .is_empty()
    );
    let labelled = containers(s, |filter| {
        filter
            .label_selector
            .insert(LABEL.into(), "somebody else's".into());
    });
    ensure!(labelled.await?.is_empty());
    Ok(())
}

async fn the_list_and_the_status_say_the_same(s: &Scene) -> Result<()> {
    let (pod, ids) = three(s).await?;
    for id in ids {
        let status = s.cri.status(&id).await?;
        let filter = ContainerFilter {
            id,
            ..Default::default()
        };
        let list = s.cri.containers(Some(filter)).await?;
        ensure!(list.len() == 1, "{list:?}");
        let container = &list[0];
        ensure!(
            container.pod_sandbox_id == pod
                && container.metadata == status.metadata
                && container.state == status.state
                && container.created_at == status.created_at
                && container.labels == status.labels,
            "{container:?} and {status:?}"
        );
    }
    Ok(())
}
