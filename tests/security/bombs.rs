//! SEC-IMG-07: layers that are small on the way and large, many or deep when they are unpacked.

use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup, container,
    image::{Compression, Image, Layer, digest},
    process,
    tarball::{Entry, tar},
};
use tonic::Code;

/// The node's root: what a bomb is to fill, and a disk's size in a test's time.
const ROOT_BYTES: u64 = 128 << 20;
const ROOT_INODES: u64 = 60_000;
/// Peak of the daemon's own memory, whatever it unpacks.
const RSS_LIMIT: u64 = 256 << 20;
/// Until a bomb is refused: a debug build on a busy machine.
const REFUSED_WITHIN: Duration = Duration::from_secs(20);
/// Until a command in a container of another pod answers meanwhile.
const NEIGHBOUR_WITHIN: Duration = Duration::from_secs(5);

/// A layer as it travels. No digest of what it unpacks to: nobody gets that far.
fn layer(bytes: Vec<u8>, compression: Compression) -> Layer {
    Layer {
        diff_id: digest(&bytes),
        bytes,
        compression,
    }
}

/// The beginning of an archive whose last file says to have `size` bytes; they are to follow.
fn beginning(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = tar(&[Entry::file(name, 0o644, "").pax("size", size.to_string().as_bytes())]);
    bytes.truncate(bytes.len() - 1024);
    bytes
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

/// A zstd frame by hand: `raw` as it is, then `zeros` bytes of zeros in blocks of four bytes for 128 KiB each.
fn zstd_frame(window_log: u8, raw: &[u8], zeros: u64) -> Vec<u8> {
    const BLOCK: u64 = 128 << 10;
    const RAW: u32 = 0;
    const RUN: u32 = 1;
    let header = |last: bool, kind: u32, size: u32| -> [u8; 3] {
        let [a, b, c, _] = (u32::from(last) | kind << 1 | size << 3).to_le_bytes();
        [a, b, c]
    };
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3];
    frame.extend(header(false, RAW, raw.len() as u32));
    frame.extend_from_slice(raw);
    for _ in 0..zeros / BLOCK {
        frame.extend(header(false, RUN, BLOCK as u32));
        frame.push(0);
    }
    frame.extend(header(true, RAW, 0));
    frame
}

/// 1:1000, the most that gzip can: members of 16 MiB of zeros.
fn gzip_bomb(members: usize) -> Result<Layer> {
    const MEMBER: usize = 16 << 20;
    let mut bytes = gzip(&beginning("zeros", (members * MEMBER) as u64))?;
    let member = gzip(&vec![0; MEMBER])?;
    ensure!(MEMBER / member.len() > 1000);
    for _ in 0..members {
        bytes.extend_from_slice(&member);
    }
    Ok(layer(bytes, Compression::Gzip))
}

/// 1:32000.
fn zstd_bomb(name: &str, window_log: u8, size: u64) -> Layer {
    let frame = zstd_frame(window_log, &beginning(name, size), size);
    layer(frame, Compression::Zstd)
}

fn tiny_files(count: usize) -> Result<Layer> {
    // One header after the other, the same but for a number: what compresses best.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
    let mut digits = tar(&[Entry::file("many/0000000", 0o644, "")]);
    digits.truncate(512);
    let sum = |bytes: &[u8]| -> u32 { bytes.iter().map(|byte| u32::from(*byte)).sum() };
    digits[148..156].copy_from_slice(b"        ");
    let zeros = sum(&digits) - sum(&digits[5..12]);
    for number in 0..count {
        let name = format!("{number:07}");
        digits[5..12].copy_from_slice(name.as_bytes());
        let checksum = format!("{:06o}\0 ", zeros + sum(name.as_bytes()));
        digits[148..156].copy_from_slice(checksum.as_bytes());
        encoder.write_all(&digits)?;
    }
    Ok(layer(encoder.finish()?, Compression::Zstd))
}

/// A header of GNU's sparse format: a file of 1 TB of which nothing is in the archive.
fn gnu_sparse() -> Layer {
    let mut header = tar(&[Entry::file("sparse", 0o644, "")]);
    header[156] = b'S';
    header[257..265].copy_from_slice(b"ustar  \0");
    header[483..495].copy_from_slice(b"\x80\0\0\0\0\0\0\xe8\xd4\xa5\x10\0");
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    layer(header, Compression::None)
}

/// Directories below directories, each level by way of a link to the one before: deeper than any path can say.
fn deep(levels: usize) -> Vec<Entry> {
    const STEP: usize = 400;
    let mut entries = Vec::new();
    for level in 0..levels / STEP {
        let above = if level == 0 {
            String::new()
        } else {
            format!("l{}/", level - 1)
        };
        let dir = format!("{above}{}", vec!["d"; STEP].join("/"));
        entries.push(Entry::dir(&dir, 0o755));
        entries.push(Entry::symlink(&format!("l{level}"), &dir));
    }
    entries.push(Entry::file(
        &format!("l{}/bottom", levels / STEP - 1),
        0o644,
        "x",
    ));
    entries
}

/// Bytes and inodes that are taken of the root.
fn taken(node: &Node) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(&node.daemon.root)?;
    Ok((
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize,
        stat.f_files - stat.f_ffree,
    ))
}

fn peak_bytes(pid: i32) -> Result<u64> {
    let status = process::Process::read(pid)
        .context("berthd is gone")?
        .status()?;
    let peak = status.get("VmHWM").context("no VmHWM")?;
    Ok(peak.trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

#[test]
fn bombs_are_refused_in_bounded_time_and_memory_and_give_back_what_they_took_sec_img_07()
-> Result<()> {
    let setup = Setup {
        root_bytes: Some(ROOT_BYTES),
        root_inodes: Some(ROOT_INODES),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("neighbour")).await?;
        let neighbour = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let berthd = node.daemon.pid().context("berthd does not run")?;
        let before = taken(node)?;

        const GIB: u64 = 1 << 30;
        const TB: u64 = 1_000_000_000_000;
        let full = &[Code::ResourceExhausted][..];
        let content = &[
            Code::InvalidArgument,
            Code::DataLoss,
            Code::FailedPrecondition,
        ][..];
        let bombs: Vec<(&str, Layer, &[Code])> = vec![
            ("gzip-1000", gzip_bomb(64)?, full),
            ("zstd-window-2g", zstd_bomb("w", 31, GIB), content),
            ("zstd-window-64m", zstd_bomb("w", 26, GIB), content),
            ("zstd-32000", zstd_bomb("z", 25, 64 * GIB), full),
            ("zstd-whiteout", zstd_bomb(".wh.z", 20, 64 * GIB), content),
            ("tiny-files", tiny_files(1_000_000)?, full),
            ("sparse-gnu", gnu_sparse(), content),
            (
                "sparse-pax",
                Layer::of(&[Entry::file("s", 0o644, "")
                    .pax("GNU.sparse.major", b"1")
                    .pax("GNU.sparse.minor", b"0")
                    .pax("GNU.sparse.realsize", TB.to_string().as_bytes())])?,
                content,
            ),
            (
                "only-says-so",
                layer(beginning("s", TB), Compression::None),
                content,
            ),
            (
                "path-10000",
                Layer::of(&[Entry::file(&format!("{}x", "d/".repeat(10_000)), 0o644, "")])?,
                content,
            ),
        ];
        let mut images = Vec::new();
        for (name, layer, codes) in bombs {
            let repository = format!("bomb/{name}");
            Image {
                index: false,
                ..Image::new(vec![layer])
            }
            .push(&node.registry, &repository, &["1"])?;
            images.push((format!("localhost:5000/{repository}:1"), codes));
        }
        fs::write(format!("/proc/{berthd}/clear_refs"), "5").context("reset the peak")?;

        // One after the other, for the answer that each gets.
        for (image, codes) in &images {
            let since = Instant::now();
            let answer = node.cri.pull(image).await;
            let took = since.elapsed();
            let code = answer.as_ref().err().map(tonic::Status::code);
            ensure!(
                code.is_some_and(|code| codes.contains(&code)),
                "{image}: {answer:?}"
            );
            ensure!(took < REFUSED_WITHIN, "{image}: refused after {took:?}");
            ensure!(node.cri.image(image).await?.is_none(), "{image} is there");
            given_back(node, before)
                .await
                .with_context(|| image.clone())?;
        }
        // All at once, while the neighbour is asked.
        let mut pulls = tokio::task::JoinSet::new();
        for (image, _) in &images {
            let (cri, image) = (node.cri.clone(), image.clone());
            pulls.spawn(async move { (cri.pull(&image).await.is_err(), image) });
        }
        let (mut asked, mut slowest) = (0, Duration::ZERO);
        while !pulls.is_empty() {
            let since = Instant::now();
            ensure!(node.cri.exec(&neighbour, &["echo", "alive"]).await? == "alive");
            slowest = slowest.max(since.elapsed());
            asked += 1;
            while let Some(done) = pulls.try_join_next() {
                let (refused, image) = done?;
                ensure!(refused, "{image} was pulled");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(
            asked > 1 && slowest < NEIGHBOUR_WITHIN,
            "the neighbour answered {asked} times, once after {slowest:?}"
        );
        given_back(node, before).await.context("all at once")?;
        let peak = peak_bytes(berthd)?;
        ensure!(peak < RSS_LIMIT, "berthd took {} MiB", peak >> 20);
        Ok(())
    })
}

async fn given_back(node: &Node, before: (u64, u64)) -> Result<()> {
    /// Records and directories of the store itself.
    const SLACK: (u64, u64) = (256 << 10, 32);
    let mut now = taken(node)?;
    let end = Instant::now() + Duration::from_secs(5);
    while now.0 > before.0 + SLACK.0 || now.1 > before.1 + SLACK.1 {
        ensure!(
            Instant::now() < end,
            "bytes and inodes were {before:?} and are {now:?}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = taken(node)?;
    }
    Ok(())
}

#[test]
fn a_tree_deeper_than_a_path_can_say_is_refused_or_goes_as_it_came_sec_img_07() -> Result<()> {
    const LEVELS: usize = 10_000;
    let setup = Setup {
        root_bytes: Some(ROOT_BYTES),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("deep")).await?;
        node.cri.pull(BUSYBOX).await?;
        let before = taken(node)?;
        let image = berth_tests::debian::busybox_image()?.plus(&deep(LEVELS))?;
        image.push(&node.registry, "bomb/deep", &["1"])?;
        let name = "localhost:5000/bomb/deep:1";
        let since = Instant::now();
        match node.cri.pull(name).await {
            Ok(_) => {
                // It is of use: a container runs over it, and goes.
                let config = container(
                    "a",
                    name,
                    &["sh", "-c", &format!("cat /l{}/bottom", LEVELS / 400 - 1)],
                );
                let id = node.start_container(&pod, config).await?;
                node.cri.wait_exit(&id).await?;
                node.cri.remove(&id).await?;
                node.cri.remove_image(name).await?;
            }
            Err(status) => ensure!(
                matches!(status.code(), Code::InvalidArgument | Code::DataLoss),
                "{status:?}"
            ),
        }
        ensure!(since.elapsed() < REFUSED_WITHIN);
        given_back(node, before).await
    })
}
