//! SEC-CRI-02: what clients of the stream server leave behind (CVE-2022-23471, CVE-2025-64329).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{BUSYBOX, Node, container, process, remote::Remote, sh};
use futures_util::StreamExt;

/// Sessions of an ordinary run; BERTH_TEST_STREAMS for more.
const SESSIONS: usize = 240;
/// At a time. More only wait for the two cores.
const AT_ONCE: usize = 16;
/// What the allocators of daemon and shim may keep of them, KiB each.
const KEPT_KIB: u64 = 6 << 10;

fn sessions() -> usize {
    std::env::var("BERTH_TEST_STREAMS")
        .ok()
        .and_then(|sessions| sessions.parse().ok())
        .unwrap_or(SESSIONS)
}

/// What a process holds: descriptors, threads, KiB resident.
fn holds(pid: i32) -> Result<(usize, u64, u64)> {
    let status = process::Process::read(pid)
        .context("it has ended")?
        .status()?;
    let number = |field: &str| -> Result<u64> {
        let text = status.get(field).with_context(|| format!("no {field}"))?;
        Ok(text.trim_end_matches(" kB").parse()?)
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((descriptors, number("Threads")?, number("VmRSS")?))
}

/// Fifos of sessions in the container's bundle.
fn fifos(node: &Node, pod: &str, id: &str) -> usize {
    let bundle = node
        .daemon
        .state
        .join("pods")
        .join(pod)
        .join("containers")
        .join(id);
    std::fs::read_dir(bundle)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("exec-") || name.starts_with("attach-")
        })
        .count()
}

/// Runs sessions by number and lets go what they keep, and holds what daemon and shim have afterwards against what they had before.
async fn run(
    node: &Node,
    pod: &str,
    id: &str,
    session: impl AsyncFn(usize) -> Result<()>,
    lets_go: impl Fn(),
) -> Result<()> {
    let pids = [
        node.daemon.pid().context("no daemon")?,
        process::shims().first().context("no shim")?.pid,
    ];
    // The first ones bring what all need.
    for number in 0..AT_ONCE {
        session(number).await?;
    }
    lets_go();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = [holds(pids[0])?, holds(pids[1])?];
    let mut all = futures_util::stream::iter(0..sessions())
        .map(|number| session(number))
        .buffer_unordered(AT_ONCE);
    while let Some(done) = all.next().await {
        done?;
    }
    drop(all);
    lets_go();
    let settled = || {
        let now = pids.map(holds);
        let back = now.iter().zip(before).all(|(now, before)| {
            now.as_ref().is_ok_and(|now| {
                now.0 <= before.0 + 2 && now.1 <= before.1 + 2 && now.2 <= before.2 + KEPT_KIB
            })
        });
        back && fifos(node, pod, id) == 0
    };
    ensure!(
        process::eventually(Duration::from_secs(15), settled),
        "descriptors, threads and KiB: {before:?} before, {:?} after; {} fifos",
        pids.map(holds),
        fifos(node, pod, id)
    );
    Ok(())
}

#[test]
fn terminals_of_a_missing_command_leave_nothing_sec_cri_02() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("missing")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        run(
            node,
            &pod.id,
            &id,
            async |number| {
                let request = cri::ExecRequest {
                    container_id: id.clone(),
                    cmd: vec!["/no/such/command".into()],
                    tty: true,
                    stdin: true,
                    stdout: true,
                    ..Default::default()
                };
                let answer = node.cri.runtime().exec(request).await?.into_inner();
                let mut client = Remote::open(&answer.url).await?;
                for at in 0..20 {
                    // Those after its end find nobody.
                    if client.resize(80 + at, 24).await.is_err() {
                        break;
                    }
                }
                match number % 3 {
                    // Goes without hearing why.
                    0 => drop(client),
                    _ => {
                        let outcome = client.outcome().await?;
                        ensure!(
                            outcome.status.contains("/no/such/command"),
                            "{number}: {outcome:?}"
                        );
                    }
                }
                Ok(())
            },
            || (),
        )
        .await?;
        ensure!(process::in_cgroup(&id).len() == 1);
        Ok(())
    })
}

#[test]
fn attached_clients_that_vanish_leave_nothing_and_the_log_is_whole_sec_cri_02() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("vanish")).await?;
        // A number a line, in bursts that fill every pipe, until it is told to end.
        let script = "i=0; while [ ! -e /end ]; do sleep 0.1; for n in $(seq 2000); do i=$((i+1)); echo $i; done; done; echo end $i";
        let mut config = container("c", BUSYBOX, &sh(script));
        config.stdin = true;
        let id = node.start_container(&pod, config.clone()).await?;
        let silent = std::sync::Mutex::new(Vec::new());
        let lets_go = || silent.lock().expect("nobody panics").clear();
        run(
            node,
            &pod.id,
            &id,
            async |number| {
                let request = cri::AttachRequest {
                    container_id: id.clone(),
                    stdin: true,
                    stdout: true,
                    stderr: true,
                    ..Default::default()
                };
                let answer = node.cri.runtime().attach(request).await?.into_inner();
                let mut client = Remote::open(&answer.url).await?;
                if number % 2 == 0 {
                    client.next().await?;
                }
                let stream = client.into_stream();
                match number % 4 {
                    0 => {
                        // Its close is a reset.
                        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                    }
                    1 => rustix::net::shutdown(&stream, rustix::net::Shutdown::Write)?,
                    // Never reads: until the next few have come and gone, and the taps are not all taken.
                    2 => {
                        let stream = stream.into_std()?;
                        let mut silent = silent.lock().expect("nobody panics");
                        silent.push(stream);
                        if silent.len() > 4 {
                            silent.remove(0);
                        }
                    }
                    _ => {}
                }
                Ok(())
            },
            lets_go,
        )
        .await?;
        ensure!(
            node.cri.status(&id).await?.state() == cri::ContainerState::ContainerRunning,
            "the container has ended"
        );
        node.cri.exec(&id, &["touch", "/end"]).await?;
        ensure!(node.cri.wait_exit(&id).await?.exit_code == 0);
        let log = node.log_text(&pod, &config, "stdout")?;
        let mut lines = log.lines();
        let last = lines.next_back().context("an empty log")?;
        let mut count = 0_u64;
        for line in lines {
            count += 1;
            ensure!(line == count.to_string(), "line {count} is {line:?}");
        }
        ensure!(
            last == format!("end {count}"),
            "{last:?} after {count} lines"
        );
        Ok(())
    })
}
