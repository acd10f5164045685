//! SEC-CRI-01: ExecSync without bound (CVE-2022-31030, CVE-2022-1708).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::{BUSYBOX, Node, container, process, sh};
use tokio::task::JoinSet;
use tonic::Code;

/// What is kept of each output stream.
const CAP: usize = 16 << 20;
/// A kubelet takes no message above the cap: what an answer carries beside the output is cut off it.
const OVERHEAD: usize = 4096;
const CALLS: usize = 20;
/// Of those with a timeout, s.
const TIMEOUT: i64 = 3;
/// What the shim holds in its own memory, however much is written: buffers, and the pieces of output on their way.
const SHIM_LIMIT_KIB: u64 = 64 << 10;
/// The daemon holds each answer whole, and again as a message.
const DAEMON_LIMIT_KIB: u64 = (CALLS * CAP * 2 + (64 << 20)) as u64 >> 10;

#[test]
fn endless_output_is_capped_and_nobody_else_waits_sec_cri_01() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("flood")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let shim = process::shims().first().context("no shim")?.pid;
        let daemon = node.daemon.pid().context("no daemon")?;
        // A quarter each: ends by itself after more than the cap, with and without a timeout; endless, until its timeout; endless
        // without a timeout, until the test ends it.
        let mut calls = JoinSet::new();
        for number in 0..CALLS {
            let (script, timeout) = [
                ("head -c 40000000 /dev/zero", 0),
                ("head -c 40000000 /dev/zero >&2", 60),
                ("yes", TIMEOUT),
                ("cat /dev/zero >&2", 0),
            ][number % 4];
            let (cri, id) = (node.cri.clone(), id.clone());
            calls.spawn(async move {
                let answer = cri.exec_within(&id, &sh(script), timeout).await;
                (script, answer)
            });
        }
        let begin = Instant::now();
        let mut ended = false;
        let (mut of_shim, mut of_daemon) = (0, 0);
        let mut look = tokio::time::interval(Duration::from_millis(100));
        while !calls.is_empty() {
            let (script, answer) = tokio::select! {
                done = calls.join_next() => match done {
                    Some(done) => done?,
                    None => break,
                },
                _ = look.tick() => {
                    of_shim = process::resident_kib(shim)?.max(of_shim);
                    of_daemon = process::resident_kib(daemon)?.max(of_daemon);
                    let asked = Instant::now();
                    node.cri.pods(None).await?;
                    node.cri.status(&id).await?;
                    ensure!(
                        asked.elapsed() < Duration::from_secs(1),
                        "other calls take {:?}",
                        asked.elapsed()
                    );
                    if !ended && begin.elapsed() > Duration::from_secs(2 * TIMEOUT as u64) {
                        // `sh -c` of a single command is that command.
                        node.cri.exec(&id, &["killall", "-9", "cat"]).await?;
                        ended = true;
                    }
                    continue;
                }
            };
            if script == "yes" {
                let code = answer.as_ref().err().map(tonic::Status::code);
                ensure!(code == Some(Code::DeadlineExceeded), "{script}: {code:?}");
                continue;
            }
            let answer = answer.with_context(|| format!("{script} has lost its answer"))?;
            let (flood, other) = match script.contains(">&2") {
                true => (answer.stderr, answer.stdout),
                false => (answer.stdout, answer.stderr),
            };
            ensure!(
                (CAP - OVERHEAD..=CAP).contains(&flood.len()) && other.is_empty(),
                "{script}: {} and {} bytes",
                flood.len(),
                other.len()
            );
            ensure!(flood.iter().all(|byte| *byte == 0), "{script}: other bytes");
        }
        ensure!(ended, "nothing was endless: the test proves nothing");
        ensure!(
            of_shim < SHIM_LIMIT_KIB && of_daemon < DAEMON_LIMIT_KIB,
            "the shim took {of_shim} KiB, the daemon {of_daemon} KiB"
        );
        let gone = || {
            !process::in_cgroup(&id)
                .iter()
                .any(|process| process.comm != "sleep" && process.state != 'Z')
        };
        ensure!(
            process::eventually(Duration::from_secs(5), gone),
            "the commands go on: {:?}",
            process::in_cgroup(&id)
        );
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        Ok(())
    })
}
