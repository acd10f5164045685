//! ExecSync.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_proto::cri::ContainerState;
use tonic::Code;

use super::{
    Case, cases,
    scene::{Scene, refused, unknown_id},
};
use crate::{request::ContainerRequest, sh};

pub const CASES: &[Case] = cases![
    ExecSync: [output_streams_and_exit_codes_come_back_apart],
    ExecSync: [bytes_come_back_as_they_are],
    ExecSync: [long_output_comes_back_whole],
    ExecSync: [a_command_over_its_time_is_ended_and_the_deadline_told],
    ExecSync: [no_timeout_is_none],
    ExecSync: [a_child_that_goes_on_does_not_hold_up_the_answer],
    ExecSync: [a_command_that_is_not_there_is_told_by_its_name_or_127],
    ExecSync: [no_command_is_refused],
    ExecSync: [it_needs_a_container_that_runs],
    ExecSync: [the_command_has_the_containers_environment_user_and_directory],
    ExecSync: [several_at_once_get_their_own_output],
    ExecSync: [a_container_that_ends_ends_its_commands],
];

async fn output_streams_and_exit_codes_come_back_apart(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    for code in [0, 1, 2, 126, 127, 128, 255] {
        let script = format!("echo out; echo err >&2; exit {code}");
        let answer = s.cri.exec_raw(&id, &sh(&script)).await?;
        ensure!(
            answer.exit_code == code
                && answer.stdout[..] == *b"out\n"
                && answer.stderr[..] == *b"err\n",
            "{answer:?}"
        );
    }
    Ok(())
}

async fn bytes_come_back_as_they_are(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let script = r"printf '\000\001\377\n\r\n'; printf '\200' >&2";
    let answer = s.cri.exec_raw(&id, &sh(script)).await?;
    ensure!(
        answer.stdout[..] == *b"\0\x01\xff\n\r\n" && answer.stderr[..] == *b"\x80",
        "{answer:?}"
    );
    Ok(())
}

async fn long_output_comes_back_whole(s: &Scene) -> Result<()> {
    const LEN: usize = 3_000_000;
    let (_, id) = s.a_sleeper().await?;
    let script = format!("head -c {LEN} /dev/zero | tr '\\0' x; echo end >&2");
    let answer = s.cri.exec_raw(&id, &sh(&script)).await?;
    ensure!(answer.stdout.len() == LEN && answer.stderr[..] == *b"end\n");
    Ok(())
}

async fn a_command_over_its_time_is_ended_and_the_deadline_told(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let begin = Instant::now();
    let answer = s.cri.exec_within(&id, &["sleep", "54321"], 1).await;
    let took = begin.elapsed();
    ensure!(
        (Duration::from_millis(900)..Duration::from_secs(10)).contains(&took),
        "{took:?}"
    );
    refused(answer, &[Code::DeadlineExceeded])?;
    let left = s
        .cri
        .exec(&id, &sh("ps | grep '[s]leep 54321' | wc -l"))
        .await?;
    ensure!(left == "0", "it goes on");
    Ok(())
}

async fn no_timeout_is_none(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let answer = s.cri.exec_within(&id, &sh("sleep 3; echo done"), 0).await?;
    ensure!(
        answer.exit_code == 0 && answer.stdout[..] == *b"done\n",
        "{answer:?}"
    );
    Ok(())
}

async fn a_child_that_goes_on_does_not_hold_up_the_answer(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let begin = Instant::now();
    let answer = s
        .cri
        .exec_within(&id, &sh("sleep 30 & echo begun"), 20)
        .await?;
    ensure!(
        answer.exit_code == 0 && answer.stdout[..] == *b"begun\n",
        "{answer:?}"
    );
    ensure!(
        begin.elapsed() < Duration::from_secs(12),
        "{:?}",
        begin.elapsed()
    );
    Ok(())
}

async fn a_command_that_is_not_there_is_told_by_its_name_or_127(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    match s.cri.exec_raw(&id, &["/no/such/command"]).await {
        Ok(answer) => ensure!((126..=128).contains(&answer.exit_code), "{answer:?}"),
        Err(status) => ensure!(status.message().contains("/no/such/command"), "{status:?}"),
    }
    ensure!(s.cri.exec(&id, &["echo", "on"]).await? == "on");
    Ok(())
}

async fn no_command_is_refused(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    refused(s.cri.exec_raw(&id, &[]).await, &[])
}

async fn it_needs_a_container_that_runs(s: &Scene) -> Result<()> {
    let (pod, id) = s.a_sleeper().await?;
    let created = s.create(&pod, &s.container("created", &["true"])).await?;
    refused(s.cri.exec_raw(&created, &["true"]).await, &[])?;
    s.cri.stop(&id, 0).await?;
    refused(s.cri.exec_raw(&id, &["true"]).await, &[])?;
    refused(
        s.cri.exec_raw(&unknown_id(), &["true"]).await,
        &[Code::NotFound],
    )
}

async fn the_command_has_the_containers_environment_user_and_directory(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s
        .container("a", &["sleep", "1000"])
        .env("HARBOUR", b"north")
        .security(|security| {
            security.run_as_user = Some(berth_proto::cri::Int64Value { value: 1234 });
        })
        .with(|config: &mut berth_proto::cri::ContainerConfig| config.working_dir = "/tmp".into());
    let id = s.start(&pod, &config).await?;
    let told = s.cri.exec(&id, &sh("echo $HARBOUR $(id -u) $PWD")).await?;
    ensure!(told == "north 1234 /tmp", "{told}");
    Ok(())
}

async fn several_at_once_get_their_own_output(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (cri, id) = (s.cri.clone(), id.clone());
        calls.spawn(async move {
            let script = format!("echo {number}; exit {number}");
            (number, cri.exec_raw(&id, &sh(&script)).await)
        });
    }
    while let Some(done) = calls.join_next().await {
        let (number, answer) = done?;
        let answer = answer?;
        let expected = format!("{number}\n").into_bytes();
        ensure!(
            answer.exit_code == number && answer.stdout == expected,
            "{number}: {answer:?}"
        );
    }
    Ok(())
}

async fn a_container_that_ends_ends_its_commands(s: &Scene) -> Result<()> {
    let (_, id) = s.a_sleeper().await?;
    let (cri, of_exec) = (s.cri.clone(), id.clone());
    let exec = tokio::spawn(async move { cri.exec_within(&of_exec, &["sleep", "1000"], 0).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    s.cri.stop(&id, 0).await?;
    let answer = tokio::time::timeout(Duration::from_secs(20), exec).await??;
    if let Ok(answer) = answer {
        ensure!(answer.exit_code != 0, "{answer:?}");
    }
    ensure!(s.cri.status(&id).await?.state() == ContainerState::ContainerExited);
    Ok(())
}
