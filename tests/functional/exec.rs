//! ExecSync.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::{BUSYBOX, Node, container, process, refused, request::ContainerRequest, sh};
use tonic::Code;

#[test]
fn output_streams_and_exit_codes_come_back_apart() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"])
            .env("FROM", b"the container")
            .with(|config| config.working_dir = "/tmp".into());
        let id = node.start_container(&pod, config).await?;
        let answer = node
            .cri
            .exec_raw(&id, &sh("echo out; echo err >&2; exit 3"))
            .await?;
        ensure!(
            (&answer.stdout[..], &answer.stderr[..], answer.exit_code) == (b"out\n", b"err\n", 3),
            "{answer:?}"
        );
        ensure!(node.cri.exec(&id, &["pwd"]).await? == "/tmp");
        ensure!(node.cri.shell(&id, "echo $FROM").await? == "the container");
        let killed = node.cri.exec_raw(&id, &sh("kill -9 $$")).await?;
        ensure!(killed.exit_code == 137, "{killed:?}");
        let bytes = node
            .cri
            .exec_raw(&id, &["head", "-c", "300000", "/dev/zero"])
            .await?;
        ensure!(
            bytes.stdout.len() == 300_000 && bytes.stdout.iter().all(|byte| *byte == 0),
            "{} bytes came back",
            bytes.stdout.len()
        );
        Ok(())
    })
}

#[test]
fn long_outputs_of_many_at_once_come_back_whole() -> Result<()> {
    const BYTES: usize = 5_000_000;
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..8 {
            let (cri, id) = (node.cri.clone(), id.clone());
            let line = format!("the line of {number}");
            let script =
                format!("yes '{line}' | head -c {BYTES}; yes '{line}' | head -c {BYTES} >&2");
            calls.spawn(async move { (line, cri.exec_raw(&id, &sh(&script)).await) });
        }
        while let Some(done) = calls.join_next().await {
            let (line, answer) = done?;
            let answer = answer?;
            let whole = format!("{line}\n").repeat(BYTES / line.len());
            for stream in [&answer.stdout, &answer.stderr] {
                ensure!(
                    stream[..] == whole.as_bytes()[..BYTES],
                    "{line}: {} other bytes",
                    stream.len()
                );
            }
        }
        Ok(())
    })
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_its_children() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let begin = Instant::now();
        refused(
            node.cri
                .exec_within(&id, &sh("sleep 4321 & sleep 4321"), 1)
                .await,
            Code::DeadlineExceeded,
            &["1"],
        )?;
        ensure!(
            (900..4_000).contains(&begin.elapsed().as_millis()),
            "a timeout of 1 s took {:?}",
            begin.elapsed()
        );
        let gone = || {
            !process::in_cgroup(&id)
                .iter()
                .any(|process| process.cmdline().contains("4321"))
        };
        ensure!(
            process::eventually(Duration::from_secs(3), gone),
            "the command goes on after its timeout: {:?}",
            process::in_cgroup(&id)
        );
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        Ok(())
    })
}

#[test]
fn an_exec_does_not_wait_for_a_child_that_keeps_its_output_open_rel_10() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let begin = Instant::now();
        let answer = node
            .cri
            .exec_within(&id, &sh("sleep 20 & echo done"), 5)
            .await;
        ensure!(
            begin.elapsed().as_secs() < 8,
            "the exec took {:?}",
            begin.elapsed()
        );
        // Whether the answer is the output so far or a timeout is not laid down; that it comes is.
        if let Ok(answer) = answer {
            ensure!(answer.stdout.starts_with(b"done"), "{answer:?}");
        }
        Ok(())
    })
}

#[test]
fn a_command_that_does_not_exist_is_its_own_exit_code_or_a_refusal_that_names_it() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        match node.cri.exec_raw(&id, &["/no/such/command"]).await {
            Ok(answer) => ensure!(
                matches!(answer.exit_code, 126..=128) && !answer.stderr.is_empty(),
                "{answer:?}"
            ),
            Err(status) => ensure!(status.message().contains("/no/such/command"), "{status:?}"),
        }
        Ok(())
    })
}

#[test]
fn exec_is_refused_where_nothing_runs() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let created = node
            .create(&pod, &container("created", BUSYBOX, &["sleep", "1000"]))
            .await?;
        refused(
            node.cri.exec_raw(&created, &["true"]).await,
            Code::FailedPrecondition,
            &[&created[..12]],
        )?;
        let exited = node
            .start_container(&pod, container("exited", BUSYBOX, &["true"]))
            .await?;
        node.cri.wait_exit(&exited).await?;
        refused(
            node.cri.exec_raw(&exited, &["true"]).await,
            Code::FailedPrecondition,
            &[&exited[..12]],
        )?;
        let running = node
            .start_container(&pod, container("running", BUSYBOX, &["sleep", "1000"]))
            .await?;
        refused(
            node.cri.exec_raw(&running, &[]).await,
            Code::InvalidArgument,
            &[],
        )?;
        Ok(())
    })
}

#[test]
fn a_hundred_execs_leave_no_process_and_no_descriptor() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let shim = process::shims().remove(0);
        let descriptors = || {
            std::fs::read_dir(format!("/proc/{}/fd", shim.pid))
                .map(|dir| dir.count())
                .unwrap_or_default()
        };
        node.cri.exec(&id, &["true"]).await?;
        let before = descriptors();
        for _ in 0..25 {
            let runs = [(); 4].map(|()| {
                let (cri, id) = (node.cri.clone(), id.clone());
                tokio::spawn(async move { cri.exec(&id, &["echo", "one of many"]).await })
            });
            for run in runs {
                ensure!(run.await?? == "one of many");
            }
        }
        ensure!(
            process::eventually(Duration::from_secs(3), || descriptors() <= before + 2),
            "the shim had {before} descriptors, has {}",
            descriptors()
        );
        ensure!(
            process::in_cgroup(&id).len() == 1,
            "{:?}",
            process::in_cgroup(&id)
        );
        Ok(())
    })
}
