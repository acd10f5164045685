//! SEC-CRI-12: containers that write as much as they can, in every form. `BERTH_TEST_FLOOD_MIB` sets how much each (10).

use std::{
    fs,
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{BUSYBOX, Node, container, process, sh};

const MIB: u64 = 10;
/// Lines cost more than bytes: one for as many of these.
const PER_LINE: u64 = 128;
/// Of a shim: its buffers, whatever is written. A debug build.
const SHIM_LIMIT_KIB: u64 = 64 << 10;
const PART: usize = 16 << 10;

/// Goes through a log without holding it: each line of `stream` with its tag and content.
fn lines(path: &std::path::Path, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let mut log = BufReader::new(fs::File::open(path)?);
    let mut line = vec![];
    loop {
        line.clear();
        if log.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let line = line
            .strip_suffix(b"\n")
            .context("the last line has no end")?;
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let (_, stream, tag) = (
            fields.next(),
            fields.next(),
            fields.next().context("no tag")?,
        );
        ensure!(stream == Some(b"stdout"), "a line of {stream:?}");
        each(tag, fields.next().context("no content")?)?;
    }
}

#[test]
fn floods_of_every_form_are_logged_whole_in_bounded_memory_sec_cri_12() -> Result<()> {
    Node::test(async |node| {
        let mib = std::env::var("BERTH_TEST_FLOOD_MIB");
        let mib: u64 = mib.map_or(Ok(MIB), |mib| mib.parse())?;
        let bytes = mib << 20;
        let pod = node.run(node.pod("floods")).await?;
        let scripts = [
            ("zeros", format!("head -c {bytes} /dev/zero")),
            ("newlines", format!("yes '' | head -c {}", bytes / PER_LINE)),
            ("lines", format!("seq {}", bytes / PER_LINE)),
            (
                "mixed",
                format!(
                    "seq {} & seq {} & wait",
                    bytes / PER_LINE / 4,
                    bytes / PER_LINE / 4
                ),
            ),
        ];
        let mut running = vec![];
        for (name, script) in &scripts {
            let config = container(name, BUSYBOX, &sh(script));
            let id = node.start_container(&pod, config.clone()).await?;
            running.push((*name, id, config));
        }
        let shim = process::shims().first().context("no shim")?.pid;
        let mut most = 0;
        let limit = Instant::now() + Duration::from_secs(60 + mib);
        for (name, id, _) in &running {
            while node.cri.status(id).await?.finished_at == 0 {
                most = process::resident_kib(shim)?.max(most);
                ensure!(Instant::now() < limit, "{name} writes on");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        ensure!(most < SHIM_LIMIT_KIB, "the shim took {most} KiB");
        for (name, _, config) in &running {
            let path = node.log_path(&pod, config);
            let (mut total, mut count) = (0, 0u64);
            let check = |tag: &[u8], content: &[u8]| {
                total += content.len() as u64;
                count += 1;
                match *name {
                    // No end anywhere: parts, but for the last, which the end of the stream makes whole.
                    "zeros" => {
                        ensure!(content.iter().all(|byte| *byte == 0), "other bytes");
                        ensure!(
                            tag == b"P" && content.len() == PART || total == bytes,
                            "{tag:?}, {}",
                            content.len()
                        );
                    }
                    "newlines" => ensure!(tag == b"F" && content.is_empty()),
                    "lines" => ensure!(
                        tag == b"F" && content == count.to_string().as_bytes(),
                        "{count}"
                    ),
                    _ => ensure!(tag == b"F"),
                }
                Ok(())
            };
            lines(&path, check).with_context(|| name.to_string())?;
            let expected = match *name {
                "zeros" => (bytes, bytes.div_ceil(PART as u64)),
                "newlines" => (0, bytes / PER_LINE),
                "lines" => (total, bytes / PER_LINE),
                _ => (total, bytes / PER_LINE / 4 * 2),
            };
            // A last part may be empty: it says that the line ends here.
            ensure!(
                total == expected.0 && (count == expected.1 || count == expected.1 + 1),
                "{name}: {total} bytes in {count} lines, not {expected:?}"
            );
        }
        Ok(())
    })
}

/// The end of the disk is not the end of the container (REL-09): what can't be written is dropped, and the log goes on when there is room.
#[test]
fn a_full_log_disk_stops_no_container_and_the_log_goes_on_rel_09() -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    Node::test(async |node| {
        let mut pod = node.pod("full");
        let small = node.dir.join("small-log");
        fs::create_dir(&small)?;
        mount(
            Some("tmpfs"),
            &small,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=1m"),
        )?;
        pod.log_directory = small.join("pod").display().to_string();
        let outcome = async {
            let pod = node.run(pod).await?;
            let config = container(
                "a",
                BUSYBOX,
                &sh("head -c 20000000 /dev/zero; touch /done; while :; do echo tick; sleep 0.1; done"),
            );
            let id = node.start_container(&pod, config.clone()).await?;
            let limit = Instant::now() + Duration::from_secs(20);
            while node.cri.exec_raw(&id, &["test", "-e", "/done"]).await?.exit_code != 0 {
                ensure!(Instant::now() < limit, "the container waits for its log");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let path = node.log_path(&pod, &config);
            fs::remove_file(&path)?;
            node.cri.reopen_log(&id).await?;
            let goes_on = || fs::read_to_string(&path).is_ok_and(|log| log.contains(" F tick\n"));
            ensure!(process::eventually(Duration::from_secs(10), goes_on), "the log stays empty");
            node.remove_all().await
        }
        .await;
        umount2(&small, MntFlags::MNT_DETACH)?;
        outcome
    })
}
