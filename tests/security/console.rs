//! SEC-ENG-04: a container's console made by way of files that the container controls (CVE-2025-52565).

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::ContainerConfig;
use berth_tests::{
    BUSYBOX, Node, Pod, container, debian, host::Snapshot, process, refused,
    request::ContainerRequest, request::bind, swap::Swap, tarball::Entry,
};
use rustix::fs::{Mode, OFlags};
use tonic::Code;

/// `UNIX98_PTY_SLAVE_MAJOR`: slaves of pseudo-terminals.
const SLAVE_MAJOR: u32 = 136;
const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;

fn with_terminal(name: &str, image: &str) -> ContainerConfig {
    container(
        name,
        image,
        &["sh", "-c", "echo from the terminal; sleep 1000"],
    )
    .with(|config| config.tty = true)
}

/// Fails unless this file, opened without following it, is the slave of a pseudo-terminal on a devpts; its number.
fn slave(path: &str, follow: OFlags) -> Result<u64> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | follow, Mode::empty())
        .with_context(|| path.to_owned())?;
    let (stat, filesystem) = (rustix::fs::fstat(&file)?, rustix::fs::fstatfs(&file)?);
    let major = rustix::fs::major(stat.st_rdev);
    ensure!(
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
            && major == SLAVE_MAJOR,
        "{path} is no slave: mode {:o}, device {major}:{}",
        stat.st_mode,
        rustix::fs::minor(stat.st_rdev)
    );
    ensure!(
        filesystem.f_type as u64 == DEVPTS_SUPER_MAGIC,
        "{path} is on a filesystem of the type {:x}",
        filesystem.f_type
    );
    Ok(u64::from(rustix::fs::minor(stat.st_rdev)))
}

/// All of a running container's terminal, from the host: its streams, and what lies under /dev/console where that is a device.
fn terminal_is_real(id: &str) -> Result<()> {
    let init = process::init_of(id).context("the container does not run")?;
    let mut numbers = Vec::new();
    for stream in 0..3 {
        // The link in /proc is to be followed: it is the descriptor.
        numbers.push(slave(
            &format!("/proc/{}/fd/{stream}", init.pid),
            OFlags::empty(),
        )?);
    }
    numbers.push(slave(
        &format!("/proc/{}/root/dev/console", init.pid),
        OFlags::NOFOLLOW,
    )?);
    ensure!(
        numbers.iter().all(|number| *number == numbers[0]),
        "streams and console are different terminals: {numbers:?}"
    );
    let controlling = fs::read_to_string(format!("/proc/{}/stat", init.pid))?;
    let tty: u32 = controlling
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().nth(4))
        .context("stat has no tty_nr")?
        .parse()?;
    ensure!(
        tty >> 8 == SLAVE_MAJOR,
        "its controlling terminal is {tty:x}"
    );
    Ok(())
}

async fn terminal_works(node: &Node, pod: &Pod, config: &ContainerConfig, id: &str) -> Result<()> {
    terminal_is_real(id)?;
    ensure!(
        node.cri
            .exec(id, &["stat", "-c", "%F %t", "/dev/console"])
            .await?
            == "character special file 88"
    );
    ensure!(
        process::eventually(std::time::Duration::from_secs(5), || node
            .log_text(pod, config, "stdout")
            .is_ok_and(|text| text.contains("from the terminal"))),
        "nothing came over the terminal: {:?}",
        node.log_text(pod, config, "stdout")
    );
    Ok(())
}

#[test]
fn a_console_is_the_slave_of_our_own_terminal_whatever_the_image_brings_sec_eng_04() -> Result<()> {
    const TARGETS: [&str; 4] = [
        "/proc/sys/kernel/core_pattern",
        "../proc/sysrq-trigger",
        "/proc/self/attr/exec",
        "/dev/null",
    ];
    Node::test(async |node| {
        let host = Snapshot::take();
        let pod = node.run(node.pod("plain")).await?;
        let config = with_terminal("plain", BUSYBOX);
        let id = node.start_container(&pod, config.clone()).await?;
        terminal_works(node, &pod, &config, &id).await?;
        let mut works = 0;
        for (number, target) in TARGETS.into_iter().enumerate() {
            let image = debian::busybox_image()?.plus(&[
                Entry::symlink("dev/console", target),
                Entry::symlink("dev/ptmx", target),
                Entry::symlink("dev/tty", target),
                Entry::dir("dev/pts", 0o755),
                Entry::symlink("dev/pts/ptmx", target),
                Entry::symlink("dev/pts/0", target),
                Entry::symlink("dev/pts/1", target),
            ])?;
            let repository = format!("own/console-{number}");
            image.push(&node.registry, &repository, &["1"])?;
            let config = with_terminal(
                &format!("c{number}"),
                &format!("localhost:5000/{repository}:1"),
            );
            let Ok(id) = node.create(&pod, &config).await else {
                continue;
            };
            if node.cri.start(&id).await.is_ok() {
                terminal_works(node, &pod, &config, &id)
                    .await
                    .with_context(|| format!("links to {target}"))?;
                works += 1;
            }
            node.cri.remove(&id).await?;
        }
        ensure!(works > 0, "no image worked: this proves nothing");
        Snapshot::take().sysctls_same(&host)
    })
}

/// Parts of /dev as a volume of another container's: the places of the console change while the container is made.
#[test]
fn a_console_in_a_dev_that_changes_meanwhile_is_real_or_the_container_is_refused_sec_eng_04()
-> Result<()> {
    const TRIES: usize = 15;
    const TARGET: &str = "/proc/sys/kernel/core_pattern";
    Node::test(async |node| {
        let host = Snapshot::take();
        let core_pattern = fs::read(TARGET)?;
        let pod = node.run(node.pod("swap")).await?;
        let dev = node.volume("dev")?;
        // All of /dev is not to be had at all.
        let all = with_terminal("all", BUSYBOX).mount(bind(&dev, "/dev"));
        node.cri.pull(BUSYBOX).await?;
        let answer = node.cri.create(&pod.id, &all, &pod.config).await;
        refused(answer, Code::Unimplemented, &["/dev"])?;

        for place in ["ptmx", "0", "1", "console"] {
            fs::write(dev.join(place), "")?;
            symlink(TARGET, dev.join(format!("other-{place}")))?;
        }
        let mut outcomes = Vec::new();
        for (name, from, to) in [
            ("pts", dev.clone(), "/dev/pts"),
            ("console", dev.join("console"), "/dev/console"),
            ("ptmx", dev.join("ptmx"), "/dev/ptmx"),
        ] {
            let swaps: Vec<Swap> = ["ptmx", "0", "1", "console"]
                .into_iter()
                // What is mounted itself stays: a source is the kubelet's to give, and it gives what is fixed.
                .filter(|place| *place != name)
                .map(|place| Swap::start(&dev.join(place), &dev.join(format!("other-{place}"))))
                .collect();
            for number in 0..TRIES {
                let config =
                    with_terminal(&format!("{name}{number}"), BUSYBOX).mount(bind(&from, to));
                let id = match node.create(&pod, &config).await {
                    Ok(id) => id,
                    Err(error) => {
                        outcomes.push(format!("{to}: {error:#}"));
                        continue;
                    }
                };
                node.cri.start(&id).await?;
                let init = process::init_of(&id).context("the container does not run")?;
                for stream in 0..3 {
                    slave(&format!("/proc/{}/fd/{stream}", init.pid), OFlags::empty())
                        .with_context(|| format!("{to}, try {number}"))?;
                }
                let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", init.pid))?;
                for line in mounts.lines() {
                    let target = line.split(' ').nth(4).unwrap_or_default();
                    ensure!(
                        !target.starts_with("/proc/sys/"),
                        "{to}: something was mounted on {target}: {line}"
                    );
                }
                outcomes.push(format!("{to}: runs"));
                node.cri.remove(&id).await?;
            }
            ensure!(
                swaps.iter().all(|swap| swap.rounds() > 100),
                "nothing was swapped"
            );
        }
        outcomes.sort();
        outcomes.dedup();
        ensure!(
            outcomes.iter().any(|outcome| outcome.ends_with("runs")),
            "nothing ran: this proves nothing: {outcomes:#?}"
        );
        ensure!(fs::read(TARGET)? == core_pattern, "{TARGET} has changed");
        // The volume is the host's: nothing in it was changed, and no device was made in it.
        for entry in fs::read_dir(&dev)?.flatten() {
            let meta = entry.path().symlink_metadata()?;
            ensure!(
                (meta.uid(), meta.gid()) == (0, 0) && (meta.is_file() || meta.is_symlink()),
                "{} has become {:?}",
                entry.path().display(),
                meta
            );
        }
        Snapshot::take().sysctls_same(&host)
    })
}
