//! StopContainer: it asks, waits as long as it was told, and kills.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_proto::cri::{ContainerConfig, ContainerState, Signal};

use super::{
    Case, cases,
    scene::{Scene, unknown_id},
};
use crate::{Pod, process, request::ContainerRequest, sh};

pub const CASES: &[Case] = cases![
    StopContainer: [a_container_that_heeds_the_signal_ends_with_its_own_code],
    StopContainer: [a_container_that_heeds_nothing_is_killed_when_the_grace_is_over],
    StopContainer: [no_grace_is_none],
    StopContainer: [a_stopped_container_may_be_stopped_again],
    StopContainer: [a_container_that_is_gone_or_never_was_may_be_stopped],
    StopContainer: [a_created_container_may_be_stopped_and_removed],
    StopContainer: [a_later_call_with_less_grace_is_not_held_up_by_an_earlier_one],
    StopContainer: [a_call_whose_client_has_gone_does_not_hold_up_the_next],
    StopContainer: [the_signal_is_the_one_that_the_container_asks_for],
    ContainerStatus: [the_stop_signal_is_told],
    StopContainer: [processes_that_the_container_has_started_end_with_it],
];

/// Says when it is ready to take signals.
async fn ready(s: &Scene, pod: &Pod, name: &str, script: &str) -> Result<String> {
    let script = format!("{script}; touch /ready; while :; do sleep 0.1; done");
    let config = s.container(name, &sh(&script));
    ready_as(s, pod, &config).await
}

async fn ready_as(s: &Scene, pod: &Pod, config: &ContainerConfig) -> Result<String> {
    let id = s.start(pod, config).await?;
    let limit = Instant::now() + Duration::from_secs(20);
    while s
        .cri
        .exec_raw(&id, &["test", "-e", "/ready"])
        .await?
        .exit_code
        != 0
    {
        ensure!(Instant::now() < limit, "{id} does not get ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(id)
}

async fn a_container_that_heeds_the_signal_ends_with_its_own_code(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = ready(s, &pod, "a", "trap 'exit 42' TERM").await?;
    let begin = Instant::now();
    s.cri.stop(&id, 30).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(20),
        "it waited out the grace"
    );
    let status = s.cri.status(&id).await?;
    ensure!(
        status.state() == ContainerState::ContainerExited,
        "not when the call returns"
    );
    ensure!(
        status.exit_code == 42 && status.reason == "Error",
        "{status:?}"
    );
    Ok(())
}

async fn a_container_that_heeds_nothing_is_killed_when_the_grace_is_over(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = ready(s, &pod, "a", "trap '' TERM").await?;
    let begin = Instant::now();
    s.cri.stop(&id, 2).await?;
    let took = begin.elapsed();
    ensure!(
        (Duration::from_millis(1900)..Duration::from_secs(15)).contains(&took),
        "{took:?}"
    );
    let status = s.cri.status(&id).await?;
    ensure!(
        status.state() == ContainerState::ContainerExited && status.exit_code == 137,
        "{status:?}"
    );
    Ok(())
}

async fn no_grace_is_none(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = ready(s, &pod, "a", "trap '' TERM").await?;
    let begin = Instant::now();
    s.cri.stop(&id, 0).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(8),
        "{:?}",
        begin.elapsed()
    );
    ensure!(s.cri.status(&id).await?.exit_code == 137);
    Ok(())
}

async fn a_stopped_container_may_be_stopped_again(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    s.cri.stop(&id, 0).await?;
    let first = s.cri.status(&id).await?;
    for grace in [0, 1, 1000] {
        let begin = Instant::now();
        s.cri.stop(&id, grace).await?;
        ensure!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
    }
    ensure!(
        s.cri.status(&id).await? == first,
        "a second stop changed something"
    );
    Ok(())
}

async fn a_container_that_is_gone_or_never_was_may_be_stopped(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    s.cri.remove(&id).await?;
    s.cri.stop(&id, 0).await?;
    s.cri.stop(&unknown_id(), 0).await?;
    Ok(())
}

async fn a_created_container_may_be_stopped_and_removed(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = s.create(&pod, &s.container("a", &["true"])).await?;
    s.cri.stop(&id, 0).await?;
    s.cri.remove(&id).await?;
    Ok(())
}

async fn a_later_call_with_less_grace_is_not_held_up_by_an_earlier_one(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = ready(s, &pod, "a", "trap '' TERM").await?;
    let (cri, of_first) = (s.cri.clone(), id.clone());
    let first = tokio::spawn(async move { cri.stop(&of_first, 40).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begin = Instant::now();
    s.cri.stop(&id, 1).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    first.await??;
    ensure!(
        begin.elapsed() < Duration::from_secs(15),
        "the first call waits on"
    );
    Ok(())
}

async fn a_call_whose_client_has_gone_does_not_hold_up_the_next(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let id = ready(s, &pod, "a", "trap '' TERM").await?;
    let hasty = s.cri.within(Duration::from_millis(200));
    ensure!(
        hasty.stop(&id, 60).await.is_err(),
        "it was stopped within 200 ms"
    );
    ensure!(s.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
    let begin = Instant::now();
    s.cri.stop(&id, 1).await?;
    ensure!(
        begin.elapsed() < Duration::from_secs(15),
        "{:?}",
        begin.elapsed()
    );
    Ok(())
}

async fn the_signal_is_the_one_that_the_container_asks_for(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let script =
        "trap 'exit 1' TERM; trap 'exit 2' USR1; touch /ready; while :; do sleep 0.1; done";
    let config = s
        .container("a", &sh(script))
        .with(|config: &mut ContainerConfig| {
            config.stop_signal = Signal::Sigusr1.into();
        });
    let id = ready_as(s, &pod, &config).await?;
    s.cri.stop(&id, 20).await?;
    let status = s.cri.status(&id).await?;
    ensure!(status.exit_code == 2, "{status:?}");
    Ok(())
}

async fn the_stop_signal_is_told(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &["true"]);
    let config = config.with(|config: &mut ContainerConfig| {
        config.stop_signal = Signal::Sigusr1.into();
    });
    let id = s.create(&pod, &config).await?;
    let told = s.cri.status(&id).await?.stop_signal();
    ensure!(told == Signal::Sigusr1, "{told:?}");
    Ok(())
}

/// Those that ignore everything, and those that are no longer children of anything in it.
async fn processes_that_the_container_has_started_end_with_it(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let mark = format!("{}", 100_000 + rand::random::<u32>() % 900_000);
    let script = format!("(setsid sh -c \"trap '' TERM HUP; sleep {mark}\" &); trap 'exit 0' TERM");
    let id = ready(s, &pod, "a", &script).await?;
    let orphans = || {
        let all = process::all();
        all.into_iter()
            .any(|process| process.cmdline().contains(&format!("sleep {mark}")))
    };
    if !orphans() {
        return Err(super::skip(
            "the runtime's processes are not in this machine's /proc",
        ));
    }
    s.cri.stop(&id, 10).await?;
    ensure!(
        process::eventually(Duration::from_secs(5), || !orphans()),
        "it lives on"
    );
    Ok(())
}
