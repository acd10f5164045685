//! How containers and commands end: stop signals, graces, timeouts, clients that leave, containers that die under a command.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, Signal};
use berth_tests::{BUSYBOX, Node, container, debian, process, remote::Remote, sh};
use serde_json::json;
use tonic::Code;

/// Whether no process of the container has `mark` in its command line.
fn none_left(id: &str, mark: &str) -> bool {
    process::eventually(Duration::from_secs(5), || {
        !process::in_cgroup(id)
            .iter()
            .any(|process| process.cmdline().contains(mark))
    })
}

/// Until a `sleep` of the container has `mark` in its command line: the shell that is to start it has it, too, before it has done anything.
fn there(id: &str, mark: &str) -> bool {
    process::eventually(Duration::from_secs(5), || {
        process::in_cgroup(id).iter().any(|process| {
            process.cmdline().starts_with("sleep") && process.cmdline().contains(mark)
        })
    })
}

async fn exec(node: &Node, id: &str, cmd: &[&str]) -> Result<Remote> {
    let request = cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let answer = node.cri.runtime().exec(request).await?.into_inner();
    Remote::open(&answer.url).await
}

#[test]
fn the_stop_signal_is_the_requests_or_the_images_or_term_and_status_tells_it() -> Result<()> {
    Node::test(async |node| {
        let script = "for s in TERM USR1 USR2 QUIT 37; do trap \"echo $s; exit 3\" $s; done; echo ready; while :; do sleep 0.05; done";
        let pod = node.run(node.pod("signals")).await?;
        // SIGRTMIN is 34 to programs: 37 is SIGRTMIN+3.
        let table = [
            ("", None, Signal::Sigterm, "TERM"),
            ("SIGUSR1", None, Signal::Sigusr1, "USR1"),
            ("10", None, Signal::Sigusr1, "USR1"),
            ("SIGRTMIN+3", None, Signal::Sigrtminplus3, "37"),
            ("NONSENSE", None, Signal::Sigterm, "TERM"),
            ("SIGUSR1", Some(Signal::Sigquit), Signal::Sigquit, "QUIT"),
            ("", Some(Signal::Sigusr2), Signal::Sigusr2, "USR2"),
            (
                "SIGUSR2",
                Some(Signal::RuntimeDefault),
                Signal::Sigusr2,
                "USR2",
            ),
        ];
        for (at, (of_image, asked, effective, told)) in table.into_iter().enumerate() {
            let repository = format!("own/stop-{at}");
            debian::busybox_image()?
                .but(json!({"StopSignal": of_image}))
                .push(&node.registry, &repository, &["1"])?;
            let mut config = container(
                &format!("c{at}"),
                &format!("localhost:5000/{repository}:1"),
                &sh(script),
            );
            config.stop_signal = asked.unwrap_or_default().into();
            let id = node.start_container(&pod, config.clone()).await?;
            let log = || node.log_text(&pod, &config, "stdout").unwrap_or_default();
            ensure!(process::eventually(Duration::from_secs(5), || log() == "ready\n"));
            let status = node.cri.status(&id).await?;
            ensure!(
                status.stop_signal() == effective,
                "{of_image:?} {asked:?}: status tells {:?}",
                status.stop_signal()
            );
            let begin = Instant::now();
            node.cri.stop(&id, 30).await?;
            ensure!(
                begin.elapsed() < Duration::from_secs(10),
                "the grace ran out"
            );
            let (code, log) = (node.cri.status(&id).await?.exit_code, log());
            ensure!(
                code == 3 && log == format!("ready\n{told}\n"),
                "{of_image:?} {asked:?}: {code} {log:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn no_grace_is_no_grace_and_a_stop_in_progress_can_be_shortened() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("grace")).await?;
        let deaf = |name: &str| {
            container(
                name,
                BUSYBOX,
                &sh("trap '' TERM; echo ready; while :; do sleep 0.05; done"),
            )
        };
        for grace in [0, -1] {
            let id = node
                .start_container(&pod, deaf(&format!("now{grace}")))
                .await?;
            let begin = Instant::now();
            node.cri.stop(&id, grace).await?;
            ensure!(
                begin.elapsed() < Duration::from_secs(2),
                "{:?}",
                begin.elapsed()
            );
            ensure!(node.cri.status(&id).await?.exit_code == 137);
        }
        let config = deaf("patient");
        let id = node.start_container(&pod, config.clone()).await?;
        ensure!(process::eventually(Duration::from_secs(5), || node
            .log_text(&pod, &config, "stdout")
            .is_ok_and(|log| log == "ready\n")));
        let (cri, patient) = (node.cri.clone(), id.clone());
        let first = tokio::spawn(async move { cri.stop(&patient, 50).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(
            node.cri.status(&id).await?.state() == cri::ContainerState::ContainerRunning,
            "it ended of a signal that it ignores"
        );
        let begin = Instant::now();
        node.cri.stop(&id, 1).await?;
        first.await??;
        ensure!(
            begin.elapsed() < Duration::from_secs(5),
            "{:?}",
            begin.elapsed()
        );
        ensure!(node.cri.status(&id).await?.exit_code == 137);
        Ok(())
    })
}

#[test]
fn a_timeout_ends_the_commands_group_its_sessions_and_their_children() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("timeout")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        for script in [
            // a pipeline, a child of a child, one that ignores what it can, one in a session of its own
            "sleep 4321 | sleep 4321",
            "sh -c 'sh -c \"sleep 4321; true\"; true'; true",
            "trap '' TERM HUP INT; sleep 4321 & sleep 4321; sleep 4321",
            "setsid sleep 4321 & sleep 4321",
            "setsid sh -c 'sleep 4321 & setsid sleep 4321; true'; true",
        ] {
            let answer = node.cri.exec_within(&id, &sh(script), 1).await;
            let code = answer.err().map(|status| status.code());
            ensure!(code == Some(Code::DeadlineExceeded), "{script}: {code:?}");
            ensure!(
                none_left(&id, "4321"),
                "{script}: {:?}",
                process::in_cgroup(&id)
            );
        }
        // (What was orphaned is for the container's init to reap, and `sleep` reaps nobody.)
        ensure!(process::in_cgroup(&id).len() == 1);
        Ok(())
    })
}

#[test]
fn a_command_whose_caller_left_ends_with_all_that_it_has_started() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("left")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        // Without a timeout and with one; by a call that is given up, and by a daemon that dies.
        for timeout in [0, 1000] {
            let (cri, of) = (node.cri.clone(), id.clone());
            let call = tokio::spawn(async move {
                cri.exec_within(&of, &sh("sleep 4322 & sleep 4322; true"), timeout)
                    .await
            });
            ensure!(there(&id, "4322"), "it does not run");
            call.abort();
            ensure!(
                none_left(&id, "4322"),
                "timeout {timeout}: {:?}",
                process::in_cgroup(&id)
            );
        }
        let (cri, of) = (node.cri.clone(), id.clone());
        let call =
            tokio::spawn(async move { cri.exec_within(&of, &sh("sleep 4323; true"), 0).await });
        ensure!(there(&id, "4323"), "it does not run");
        node.restart().await?;
        ensure!(call.await?.is_err(), "an answer of a daemon that died");
        ensure!(none_left(&id, "4323"), "{:?}", process::in_cgroup(&id));
        // A client of Exec that goes takes the command's whole group along.
        let session = exec(node, &id, &sh("sleep 4324 | sleep 4324; true")).await?;
        ensure!(there(&id, "4324"), "it does not run");
        drop(session);
        ensure!(none_left(&id, "4324"), "{:?}", process::in_cgroup(&id));
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        Ok(())
    })
}

#[test]
fn commands_end_promptly_with_the_container_that_dies_under_them() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("dies")).await?;
        for (name, way) in [("stopped", 0), ("killed", 1), ("pod", 2)] {
            let id = node
                .start_container(&pod, container(name, BUSYBOX, &["sleep", "1000"]))
                .await?;
            let session = exec(node, &id, &sh("echo begun; sleep 4325; true")).await?;
            let (cri, of) = (node.cri.clone(), id.clone());
            let sync = tokio::spawn(async move {
                cri.exec_within(&of, &sh("echo begun; sleep 4326; true"), 0)
                    .await
            });
            ensure!(there(&id, "4325") && there(&id, "4326"));
            let begin = Instant::now();
            match way {
                0 => node.cri.stop(&id, 0).await?,
                1 => process::kill_9(process::init_of(&id).context("no init")?.pid),
                _ => node.cri.stop_pod(&pod.id).await?,
            }
            let outcome = session.outcome().await?;
            ensure!(
                outcome.stdout == b"begun\n" && outcome.status.contains("137"),
                "{name}: {outcome:?}"
            );
            match sync.await? {
                Ok(answer) => ensure!(
                    answer.exit_code == 137 && &answer.stdout[..] == b"begun\n",
                    "{name}: {answer:?}"
                ),
                Err(status) => ensure!(
                    way == 2 && status.code() == Code::Unavailable,
                    "{name}: {status:?}"
                ),
            }
            ensure!(
                begin.elapsed() < Duration::from_secs(8),
                "{name}: {:?}",
                begin.elapsed()
            );
            ensure!(none_left(&id, "432"), "{name}");
        }
        Ok(())
    })
}
