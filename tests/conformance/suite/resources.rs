//! Limits, their change, and CheckpointContainer.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    CheckpointContainerRequest, ContainerState, LinuxContainerResources,
    UpdateContainerResourcesRequest,
};
use tonic::Code;

use super::{
    Case, cases,
    scene::{Scene, refused, unknown_id},
    skip,
};
use crate::{request::ContainerRequest, sh};

pub const CASES: &[Case] = cases![
    StartContainer: [more_memory_than_allowed_ends_a_container_by_its_reason],
    StartContainer: [a_swap_limit_equal_to_the_memory_limit_is_taken],
    StartContainer: [the_oom_score_is_as_asked],
    UpdateContainerResources: [a_limit_changes_while_the_container_runs],
    UpdateContainerResources: [what_is_not_named_stays_as_it_is],
    UpdateContainerResources: [a_created_container_may_be_changed_and_starts],
    UpdateContainerResources: [what_makes_no_sense_changes_nothing],
    UpdateContainerResources: [an_unknown_container_is_not_found],
    CheckpointContainer: [an_unknown_container_is_not_found_to_checkpoint],
    CheckpointContainer: [a_checkpointed_container_goes_on],
];

const MEMORY: &str =
    "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";

async fn more_memory_than_allowed_ends_a_container_by_its_reason(s: &Scene) -> Result<()> {
    let (pod, neighbour) = s.a_sleeper().await?;
    // A line without an end is kept in memory.
    let config = s
        .container("a", &sh("exec tail /dev/zero"))
        .resources(|resources| {
            resources.memory_limit_in_bytes = 24 << 20;
        });
    let id = s.start(&pod, &config).await?;
    let status = s.cri.wait_exit(&id).await?;
    ensure!(
        status.exit_code == 137 && status.reason == "OOMKilled",
        "{status:?}"
    );
    let state = s.cri.status(&neighbour).await?.state();
    ensure!(
        state == ContainerState::ContainerRunning,
        "the neighbour went with it"
    );
    Ok(())
}

/// So a kubelet asks for no swap, also where the kernel doesn't count it.
async fn a_swap_limit_equal_to_the_memory_limit_is_taken(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &sh(MEMORY)).resources(|resources| {
        resources.memory_limit_in_bytes = 32 << 20;
        resources.memory_swap_limit_in_bytes = 32 << 20;
    });
    let said = s.says(&pod, config).await?;
    ensure!(said == (32 << 20).to_string(), "{said}");
    Ok(())
}

async fn the_oom_score_is_as_asked(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["cat", "/proc/self/oom_score_adj"]);
    let config = config.resources(|resources| resources.oom_score_adj = 789);
    let said = s.says(&pod, config).await?;
    ensure!(said == "789", "{said}");
    Ok(())
}

async fn update(s: &Scene, id: &str, linux: LinuxContainerResources) -> Result<(), tonic::Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(linux),
        ..Default::default()
    };
    let answer = s.cri.runtime().update_container_resources(request).await;
    answer.map(drop)
}

/// A container of 64 MiB and half a CPU.
async fn limited(s: &Scene, run: bool) -> Result<String> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["sleep", "1000"]).resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.cpu_quota = 50_000;
    });
    let id = s.create(&pod, &config).await?;
    if run {
        s.cri.start(&id).await?;
    }
    Ok(id)
}

async fn a_limit_changes_while_the_container_runs(s: &Scene) -> Result<()> {
    let id = limited(s, true).await?;
    let before = s.cri.exec(&id, &sh(MEMORY)).await?;
    ensure!(before == (64 << 20).to_string(), "{before}");
    let linux = LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    };
    update(s, &id, linux).await?;
    let after = s.cri.exec(&id, &sh(MEMORY)).await?;
    ensure!(after == (128 << 20).to_string(), "{after}");
    let status = s.cri.status(&id).await?;
    ensure!(status.state() == ContainerState::ContainerRunning && status.finished_at == 0);
    Ok(())
}

async fn what_is_not_named_stays_as_it_is(s: &Scene) -> Result<()> {
    let id = limited(s, true).await?;
    let linux = LinuxContainerResources {
        cpu_quota: 70_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    update(s, &id, linux).await?;
    let told = s.cri.status(&id).await?.resources.unwrap_or_default().linux;
    let told = told.context("no resources are told")?;
    ensure!(
        told.cpu_quota == 70_000 && told.memory_limit_in_bytes == 64 << 20,
        "{told:?}"
    );
    Ok(())
}

async fn a_created_container_may_be_changed_and_starts(s: &Scene) -> Result<()> {
    let id = limited(s, false).await?;
    let linux = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        ..Default::default()
    };
    update(s, &id, linux).await?;
    s.cri.start(&id).await?;
    let limit = s.cri.exec(&id, &sh(MEMORY)).await?;
    ensure!(limit == (96 << 20).to_string(), "{limit}");
    Ok(())
}

async fn what_makes_no_sense_changes_nothing(s: &Scene) -> Result<()> {
    let id = limited(s, true).await?;
    let linux = LinuxContainerResources {
        cpuset_cpus: "99999".into(),
        ..Default::default()
    };
    refused(update(s, &id, linux).await, &[])?;
    let limit = s.cri.exec(&id, &sh(MEMORY)).await?;
    ensure!(limit == (64 << 20).to_string(), "{limit}");
    Ok(())
}

async fn an_unknown_container_is_not_found(s: &Scene) -> Result<()> {
    refused(
        update(s, &unknown_id(), LinuxContainerResources::default()).await,
        &[Code::NotFound],
    )
}

async fn checkpoint(s: &Scene, id: &str, location: &str) -> Result<(), tonic::Status> {
    let request = CheckpointContainerRequest {
        container_id: id.into(),
        location: location.into(),
        timeout: 20,
    };
    let answer = s.cri.runtime().checkpoint_container(request).await;
    answer.map(drop)
}

async fn an_unknown_container_is_not_found_to_checkpoint(s: &Scene) -> Result<()> {
    let archive = s.dir.join("checkpoint.tar").display().to_string();
    refused(
        checkpoint(s, &unknown_id(), &archive).await,
        &[Code::NotFound],
    )?;
    ensure!(!s.dir.join("checkpoint.tar").exists());
    Ok(())
}

async fn a_checkpointed_container_goes_on(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let archive = s.dir.join("checkpoint.tar");
    let answer = checkpoint(s, &id, &archive.display().to_string()).await;
    let works = Command::new("criu").arg("check").output();
    if answer
        .as_ref()
        .is_err_and(|status| status.code() != Code::Unimplemented)
        && !works.is_ok_and(|out| out.status.success())
    {
        return Err(skip(format!("criu does not work here: {answer:?}")));
    }
    answer?;
    ensure!(std::fs::metadata(&archive)?.len() > 0);
    let status = s.cri.status(&id).await?;
    ensure!(
        status.state() == ContainerState::ContainerRunning,
        "{status:?}"
    );
    tokio::time::timeout(Duration::from_secs(20), s.cri.exec(&id, &["true"])).await??;
    Ok(())
}
