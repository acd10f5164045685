//! Exec and Attach over the stream server, as kubectl uses them.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_proto::cri::{self, ContainerState};
use berth_tests::{
    BUSYBOX, Node, container,
    cri::refused,
    remote::{Remote, STDERR, STDOUT},
    sh,
};
use tonic::Code;

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

async fn attach(node: &Node, id: &str, stdin: bool) -> Result<Remote> {
    let request = cri::AttachRequest {
        container_id: id.to_owned(),
        stdin,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let answer = node.cri.runtime().attach(request).await?.into_inner();
    Remote::open(&answer.url).await
}

#[test]
fn exec_carries_its_streams_and_its_exit_code() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("exec-stream")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let mut session = exec(node, &id, &sh("cat; echo to-stderr >&2; exit 7")).await?;
        // More than a pipe holds, there and back.
        let megabyte = vec![b'm'; 1 << 20];
        session.write(&megabyte[..1 << 19]).await?;
        session.write(&megabyte[1 << 19..]).await?;
        session.close_stdin().await?;
        let outcome = session.outcome().await?;
        ensure!(
            outcome.stdout == megabyte,
            "{} bytes came back",
            outcome.stdout.len()
        );
        ensure!(outcome.stderr == b"to-stderr\n");
        ensure!(
            outcome.status.contains("NonZeroExitCode") && outcome.status.contains("\"7\""),
            "{}",
            outcome.status
        );
        let missing = exec(node, &id, &["/no/such/command"])
            .await?
            .outcome()
            .await?;
        ensure!(
            missing.status.contains("Failure") && missing.status.contains("/no/such/command"),
            "{}",
            missing.status
        );
        Ok(())
    })
}

#[test]
fn attached_clients_see_the_output_and_write_to_stdin_and_the_container_outlives_them() -> Result<()>
{
    Node::test(async |node| {
        let pod = node.run(node.pod("attach")).await?;
        let mut config = container(
            "c",
            BUSYBOX,
            &sh("while read line; do echo got $line; echo err $line >&2; done; echo end"),
        );
        config.stdin = true;
        let id = node.start_container(&pod, config.clone()).await?;
        let mut one = attach(node, &id, true).await?;
        let mut two = attach(node, &id, false).await?;
        one.write(b"first\n").await?;
        one.expect(STDOUT, "got first\n").await?;
        // Who attaches hears what comes from then on, and when that is only what it hears can tell.
        let mut heard = false;
        for _ in 0..50 {
            one.write(b"again\n").await?;
            let hears = two.expect(STDOUT, "got again\n");
            heard = tokio::time::timeout(Duration::from_millis(200), hears)
                .await
                .is_ok();
            if heard {
                break;
            }
        }
        ensure!(heard, "the other client hears nothing");
        // The end of a client, and of its input, is not the container's.
        one.close_stdin().await?;
        drop(one);
        let mut three = attach(node, &id, true).await?;
        three.write(b"second\n").await?;
        three.expect(STDERR, "err second\n").await?;
        two.expect(STDOUT, "got second\n").await?;
        ensure!(node.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
        node.cri.stop(&id, 0).await?;
        two.outcome().await?;
        // Nobody is needed for the log.
        let log = node.log_text(&pod, &config, "stdout")?;
        ensure!(
            log.starts_with("got first\ngot again\n") && log.ends_with("got second\n"),
            "{log:?}"
        );
        Ok(())
    })
}

#[test]
fn stdin_once_ends_with_its_first_client_and_the_daemon_may_restart_in_between() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("once")).await?;
        let mut config = container("c", BUSYBOX, &sh("cat; echo end"));
        (config.stdin, config.stdin_once) = (true, true);
        let id = node.start_container(&pod, config.clone()).await?;
        node.restart().await?;
        let mut client = attach(node, &id, true).await?;
        client.write(b"hello\n").await?;
        client.expect(STDOUT, "hello\n").await?;
        client.close_stdin().await?;
        let rest = client.outcome().await?;
        ensure!(rest.stdout == b"end\n", "{rest:?}");
        ensure!(node.cri.wait_exit(&id).await?.exit_code == 0);
        Ok(())
    })
}

#[test]
fn a_client_that_does_not_read_holds_up_neither_the_container_nor_the_others_sec_cri_02()
-> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("lazy")).await?;
        // 16 MiB: more than every buffer on the way together.
        let script = "read go; i=0; while [ $i -lt 256 ]; do head -c 65535 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo done";
        let mut config = container("c", BUSYBOX, &sh(script));
        config.stdin = true;
        let id = node.start_container(&pod, config.clone()).await?;
        let mut lazy = vec![];
        for _ in 0..8 {
            lazy.push(attach(node, &id, false).await?);
        }
        let mut reader = attach(node, &id, true).await?;
        reader.write(b"go\n").await?;
        ensure!(node.cri.wait_exit(&id).await?.exit_code == 0);
        drop(reader);
        let log = node.log_text(&pod, &config, "stdout")?;
        ensure!(
            log.len() == 256 * 65536 + 5 && log.ends_with("\ndone\n"),
            "{} bytes",
            log.len()
        );
        Ok(())
    })
}

#[test]
fn attach_to_what_can_not_be_attached_to_is_refused() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("refused")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let ended = node
            .start_container(&pod, container("ended", BUSYBOX, &["true"]))
            .await?;
        node.cri.wait_exit(&ended).await?;
        let mut runtime = node.cri.runtime();
        let mut ask = async |id: &str| {
            let request = cri::AttachRequest {
                container_id: id.to_owned(),
                stdin: true,
                ..Default::default()
            };
            runtime.attach(request).await
        };
        refused(ask(&id).await, Code::FailedPrecondition, &["without stdin"])?;
        refused(
            ask(&ended).await,
            Code::FailedPrecondition,
            &["not running"],
        )?;
        refused(ask("nobody").await, Code::NotFound, &["nobody"])?;
        Ok(())
    })
}
