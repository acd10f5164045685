//! Exec and Attach with a terminal.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_proto::cri;
use berth_tests::{
    BUSYBOX, Node, container,
    remote::{Remote, STDOUT},
    request::ContainerRequest,
    sh, spdy,
};

async fn exec(node: &Node, id: &str, cmd: &[&str]) -> Result<String> {
    let request = cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        tty: true,
        stdin: true,
        stdout: true,
        ..Default::default()
    };
    Ok(node.cri.runtime().exec(request).await?.into_inner().url)
}

/// Tells the terminal's size whenever a line comes.
const TELL: &str = "tty; while read line; do stty size; done; exit 5";

#[test]
fn a_terminal_echoes_has_its_clients_size_and_ends_with_its_end_of_file() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("terminal")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let mut client = Remote::open(&exec(node, &id, &sh(TELL)).await?).await?;
        client.expect(STDOUT, "/dev/pts/").await?;
        for (width, height) in [(123, 45), (80, 24), (29_999, 2)] {
            client.resize(width, height).await?;
            let (mut seen, size) = (false, format!("\r\n{height} {width}\r\n"));
            // Sizes and lines go different ways to it.
            for _ in 0..50 {
                client.write(b"\n").await?;
                let told = client.expect(STDOUT, &size);
                seen = tokio::time::timeout(Duration::from_millis(300), told)
                    .await
                    .is_ok();
                if seen {
                    break;
                }
            }
            ensure!(seen, "{width}x{height} has not arrived");
        }
        client.write(b"\x04").await?;
        let outcome = client.outcome().await?;
        ensure!(
            outcome.status.contains("ExitCode") && outcome.status.contains("\"5\""),
            "{outcome:?}"
        );
        // ^C is the terminal's own word for a signal.
        let mut client = Remote::open(
            &exec(
                node,
                &id,
                &sh("trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"),
            )
            .await?,
        )
        .await?;
        client.expect(STDOUT, "ready").await?;
        client.write(b"\x03").await?;
        let outcome = client.outcome().await?;
        ensure!(
            String::from_utf8_lossy(&outcome.stdout).contains("caught")
                && outcome.status.contains("\"9\""),
            "{outcome:?}"
        );
        Ok(())
    })
}

#[test]
fn a_terminal_over_spdy_has_its_clients_size() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("terminal")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        for protocol in ["v5", "v4", "v3"] {
            let url = exec(
                node,
                &id,
                &sh("until stty size | grep '45 123'; do sleep 0.05; done; exit 4"),
            )
            .await?;
            let protocol = format!("{protocol}.channel.k8s.io");
            let (mut sender, mut receiver) = spdy::open(&url, &protocol).await?;
            let [error, _, _, resize] = sender
                .streams(["error", "stdin", "stdout", "resize"])
                .await?;
            let size = b"{\"Width\":123,\"Height\":45}\n";
            sender.data(resize, size, false).await?;
            let status = String::from_utf8(receiver.whole(error).await?)?;
            let code = match protocol.starts_with("v3") {
                true => "exit status 4",
                false => "\"4\"",
            };
            ensure!(status.contains(code), "{protocol}: {status}");
        }
        Ok(())
    })
}

#[test]
fn a_containers_own_terminal_is_attached_to_with_size_and_echo() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("own")).await?;
        let config = container("c", BUSYBOX, &sh(TELL))
            .with(|config| (config.tty, config.stdin) = (true, true));
        let id = node.start_container(&pod, config).await?;
        let request = cri::AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            tty: true,
            ..Default::default()
        };
        let answer = node.cri.runtime().attach(request).await?.into_inner();
        let mut client = Remote::open(&answer.url).await?;
        client.resize(99, 33).await?;
        let mut seen = false;
        for _ in 0..50 {
            client.write(b"\n").await?;
            let told = client.expect(STDOUT, "\r\n33 99\r\n");
            seen = tokio::time::timeout(Duration::from_millis(300), told)
                .await
                .is_ok();
            if seen {
                break;
            }
        }
        ensure!(seen, "the size has not arrived");
        client.write(b"\x04").await?;
        client.outcome().await?;
        ensure!(node.cri.wait_exit(&id).await?.exit_code == 5);
        Ok(())
    })
}
