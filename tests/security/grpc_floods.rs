//! SEC-CRI-11: floods on the CRI's own socket (CVE-2023-44487, RUSTSEC-2024-0332).
//!
//! `BERTH_TEST_FLOOD_SECONDS` sets how long the resets go on (4).

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::GetEventsRequest;
use berth_tests::{BUSYBOX, Cri, Node, container, process, refused};
use bytes::Bytes;
use tokio::{net::UnixStream, task::JoinSet};
use tonic::Code;

const SECONDS: u64 = 4;
const FLOODERS: usize = 4;
/// What a flood may add to the daemon's memory: a debug build holds some more of everything.
const LIMIT_KIB: u64 = 96 << 10;
/// Of a call while a flood goes on. A kubelet looks once a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Asks what a kubelet asks until `end`, and looks how much memory the daemon takes meanwhile.
async fn undisturbed(cri: &Cri, daemon: i32, end: Instant) -> Result<u64> {
    let mut most = 0;
    while Instant::now() < end {
        let begin = Instant::now();
        cri.version().await?;
        cri.pods(None).await?;
        cri.containers(None).await?;
        let took = begin.elapsed();
        ensure!(took < 3 * ANSWER_WITHIN, "three calls took {took:?}");
        most = process::resident_kib(daemon)?.max(most);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(most)
}

type Sender = h2::client::SendRequest<Bytes>;

async fn connect(socket: &Path) -> Result<Sender> {
    let (sender, connection) = h2::client::handshake(UnixStream::connect(socket).await?).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn request(rpc: &str) -> Result<http::Request<()>> {
    Ok(
        http::Request::post(format!("http://localhost/runtime.v1.RuntimeService/{rpc}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?,
    )
}

/// Begins calls and resets them, as fast as the server lets it; how many.
async fn reset(socket: std::path::PathBuf, end: Instant) -> Result<usize> {
    let mut count = 0;
    while Instant::now() < end {
        // A server may end a connection that does this, as it may refuse to be asked: then there is the next.
        let Ok(mut sender) = connect(&socket).await else {
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        while Instant::now() < end {
            let Ok(ready) = sender.ready().await else {
                break;
            };
            sender = ready;
            let Ok((_, mut stream)) = sender.send_request(request("Status")?, false) else {
                break;
            };
            // An empty message: the call is whole, its answer is not waited for.
            let _ = stream.send_data(Bytes::from_static(&[0; 5]), true);
            stream.send_reset(h2::Reason::CANCEL);
            count += 1;
            if count % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    Ok(count)
}

#[test]
fn calls_that_are_reset_by_the_thousand_disturb_nobody_sec_cri_11() -> Result<()> {
    Node::test(async |node| {
        let seconds = std::env::var("BERTH_TEST_FLOOD_SECONDS");
        let seconds = seconds.map_or(Ok(SECONDS), |seconds| seconds.parse())?;
        let pod = node.run(node.pod("neighbour")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]);
        let id = node.start_container(&pod, config).await?;
        let daemon = node.daemon.pid().context("no daemon")?;
        let before = process::resident_kib(daemon)?;
        let end = Instant::now() + Duration::from_secs(seconds);
        let mut flood = JoinSet::new();
        for _ in 0..FLOODERS {
            flood.spawn(reset(node.daemon.socket(), end));
        }
        let most = undisturbed(&node.cri, daemon, end).await?;
        let mut count = 0;
        while let Some(done) = flood.join_next().await {
            count += done??;
        }
        ensure!(
            count > 1000 * seconds as usize,
            "only {count} calls were reset"
        );
        ensure!(
            most < before + LIMIT_KIB,
            "{before} KiB became {most} over {count} resets"
        );
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        Ok(())
    })
}

#[test]
fn a_message_over_the_limit_is_refused_and_one_that_only_says_its_length_costs_nothing_sec_cri_11()
-> Result<()> {
    Node::test(async |node| {
        let daemon = node.daemon.pid().context("no daemon")?;
        node.cri.version().await?;
        let before = process::resident_kib(daemon)?;
        // 16 MiB and what is around it.
        let long = "x".repeat(16 << 20);
        for _ in 0..3 {
            let answer = node.cri.exec_raw("0123", &["echo", &long]).await;
            let code = answer.as_ref().err().map(tonic::Status::code);
            ensure!(
                matches!(code, Some(Code::OutOfRange | Code::ResourceExhausted)),
                "{code:?}"
            );
        }
        // Heads of messages that say 16 MiB, and nothing behind them.
        let mut open = vec![];
        let mut connections = vec![];
        for _ in 0..4 {
            let mut sender = connect(&node.daemon.socket()).await?;
            for _ in 0..100 {
                sender = sender.ready().await?;
                let (answer, mut stream) = sender.send_request(request("ExecSync")?, false)?;
                let mut head = vec![0];
                head.extend((16u32 << 20).to_be_bytes());
                head.extend([0x0a, 0x01]);
                stream.send_data(head.into(), false)?;
                open.push((answer, stream));
            }
            connections.push(sender);
        }
        let end = Instant::now() + Duration::from_secs(1);
        let most = undisturbed(&node.cri, daemon, end).await?;
        ensure!(most < before + LIMIT_KIB, "{before} KiB became {most}");
        drop((open, connections));
        Ok(())
    })
}

/// Streams of events that nobody reads, while there are some to tell of.
#[test]
fn ten_thousand_idle_streams_disturb_nobody_sec_cri_11() -> Result<()> {
    const STREAMS: usize = 10_000;
    /// The server's own limit of a connection is about this.
    const OF_ONE_CONNECTION: usize = 1000;
    Node::test(async |node| {
        let pod = node.run(node.pod("neighbour")).await?;
        node.cri.pull(BUSYBOX).await?;
        let daemon = node.daemon.pid().context("no daemon")?;
        let before = process::resident_kib(daemon)?;
        let mut open = vec![];
        let mut refusals = 0;
        for _ in 0..STREAMS / OF_ONE_CONNECTION {
            let mut sender = connect(&node.daemon.socket()).await?;
            let mut answers = vec![];
            for _ in 0..OF_ONE_CONNECTION {
                sender = sender.ready().await?;
                let (answer, mut stream) =
                    sender.send_request(request("GetContainerEvents")?, false)?;
                stream.send_data(Bytes::from_static(&[0; 5]), true)?;
                answers.push(answer);
            }
            for answer in answers {
                let answer = tokio::time::timeout(Duration::from_secs(10), answer).await??;
                match answer.headers().contains_key("grpc-status") {
                    true => refusals += 1,
                    // Its body is never read, nor is it let go of.
                    false => open.push(answer),
                }
            }
        }
        ensure!(!open.is_empty() && open.len() + refusals == STREAMS);
        for number in 0..30 {
            let config = container(&format!("c{number}"), BUSYBOX, &["true"]);
            let id = node.create(&pod, &config).await?;
            node.cri.remove(&id).await?;
        }
        let end = Instant::now() + Duration::from_secs(1);
        let most = undisturbed(&node.cri, daemon, end).await?;
        ensure!(
            most < before + LIMIT_KIB,
            "{before} KiB became {most} by {} streams",
            open.len()
        );
        let refused_too = node
            .cri
            .runtime()
            .get_container_events(GetEventsRequest {})
            .await;
        if refusals > 0 {
            refused(refused_too.map(drop), Code::ResourceExhausted, &[])?;
        }
        drop(open);
        // There is room again as soon as they have gone.
        let limit = Instant::now() + Duration::from_secs(10);
        while let Err(status) = node
            .cri
            .runtime()
            .get_container_events(GetEventsRequest {})
            .await
        {
            ensure!(Instant::now() < limit, "nobody may listen: {status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    })
}
