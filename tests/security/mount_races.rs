//! SEC-ENG-07: targets of mounts, of devices and of the working directory that change while a container is made
//! (CVE-2021-30465, CVE-2024-45310, CVE-2026-55686).

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerConfig, Device};
use berth_tests::{
    BUSYBOX, Node, Pod, container,
    request::{ContainerRequest, bind},
    sh,
    swap::Swap,
};

/// How long creates are repeated for one kind of target, in two pods at once.
const RACE: Duration = Duration::from_secs(5);
/// Fewer tries than this, and the race was none. A refusal is a good answer, but not to everything.
const LEAST_TRIES: usize = 10;
const LEAST_MADE: usize = 2;
const LEAST_ROUNDS: u64 = 1000;

/// A volume that two pods share: its directory `real` and its link `link`, which leads to the canary, are to be exchanged.
fn exchanged(node: &Node, name: &str) -> Result<std::path::PathBuf> {
    let shared = node.volume(name)?;
    fs::create_dir_all(shared.join("real/work"))?;
    fs::write(shared.join("real/file"), "")?;
    // Upwards and down again: as a path of the host it leads to the canary from wherever the root of a container is.
    let canary = node.canary.dir.display();
    symlink(
        format!("../../../../../../../../../../../../../..{canary}"),
        shared.join("link"),
    )?;
    Ok(shared)
}

/// Makes and removes containers until the time is up: how many could be made, and why others could not.
async fn create_and_remove(
    node: &Node,
    pod: &Pod,
    config: impl Fn(usize) -> ContainerConfig,
) -> Result<(usize, Vec<String>)> {
    let end = Instant::now() + RACE;
    let (mut made, mut refusals) = (0, Vec::new());
    let mut number = 0;
    while Instant::now() < end {
        number += 1;
        match node.create(pod, &config(number)).await {
            Ok(id) => {
                // What it prints is searched for tokens at the end. Not each: making it is the race.
                if number % 3 == 1 && node.cri.start(&id).await.is_ok() {
                    node.cri.wait_exit(&id).await?;
                }
                node.cri.remove(&id).await?;
                made += 1;
            }
            Err(error) => refusals.push(format!("{error:#}")),
        }
    }
    Ok((made, refusals))
}

/// The race itself: `config` makes the request number so-and-so of a pod, over the volume that is given.
async fn race(
    node: &Node,
    name: &str,
    config: impl Fn(&Path, usize) -> ContainerConfig + Copy,
) -> Result<()> {
    let shared = exchanged(node, name)?;
    let (one, other) = (
        node.run(node.pod(&format!("{name}-1"))).await?,
        node.run(node.pod(&format!("{name}-2"))).await?,
    );
    let canary = node.canary.dir.display().to_string();
    let swap = Swap::start(&shared.join("real"), &shared.join("link"));
    let make = |number: usize| config(&shared, number);
    let (first, second) = tokio::join!(
        create_and_remove(node, &one, make),
        create_and_remove(node, &other, make)
    );
    let rounds = swap.rounds();
    drop(swap);
    let ((made, mut refusals), (also, others)) = (first?, second?);
    let made = made + also;
    refusals.extend(others);
    ensure!(
        rounds > LEAST_ROUNDS && made >= LEAST_MADE && made + refusals.len() >= LEAST_TRIES,
        "{name}: {rounds} exchanges, {made} containers: no race. Refusals: {refusals:#?}"
    );
    node.canary.check().with_context(|| name.to_owned())?;
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    ensure!(
        !mounts.contains(&canary),
        "{name}: something was mounted on the canary:\n{mounts}"
    );
    for pod in [one, other] {
        node.canary
            .unseen_below(Path::new(&pod.config.log_directory))?;
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
    }
    Ok(())
}

/// Prints all that could be a token by any of the places that the race is about.
const LOOK: &str = "pwd; cat secret file etc/passwd /vol/real/* /vol/real/*/* /vol/link/* /vol/link/*/* \
    /dev/vol/real/x /dev/vol/link/x 2>/dev/null; ls -lR /vol; ls -l; true";

#[test]
fn a_directory_mounted_below_an_exchanged_one_stays_in_its_container_sec_eng_07() -> Result<()> {
    Node::test(async |node| {
        let inner = node.volume("inner")?;
        fs::write(inner.join("marker"), "inner")?;
        race(node, "dir", |shared, number| {
            container(&format!("c{number}"), BUSYBOX, &sh(LOOK))
                .mount(bind(shared, "/vol"))
                // Made where it is missing, and one that is there.
                .mount(bind(&inner, &format!("/vol/real/new/d{number}")))
                .mount(bind(&inner, "/vol/real/work"))
        })
        .await
    })
}

#[test]
fn a_file_mounted_below_an_exchanged_directory_stays_in_its_container_sec_eng_07() -> Result<()> {
    Node::test(async |node| {
        let file = node.volume("inner")?.join("file");
        fs::write(&file, "inner")?;
        race(node, "file", |shared, number| {
            container(&format!("c{number}"), BUSYBOX, &sh(LOOK))
                .mount(bind(shared, "/vol"))
                .mount(bind(&file, &format!("/vol/real/f{number}")))
                .mount(bind(&file, "/vol/real/etc/passwd"))
                .mount(bind(&file, "/vol/real/file"))
        })
        .await
    })
}

#[test]
fn a_working_directory_below_an_exchanged_one_stays_in_its_container_sec_eng_07() -> Result<()> {
    Node::test(async |node| {
        race(node, "cwd", |shared, number| {
            container(&format!("c{number}"), BUSYBOX, &sh(LOOK))
                .mount(bind(shared, "/vol"))
                .with(|config| {
                    config.working_dir = if number % 2 == 0 {
                        "/vol/real/work".into()
                    } else {
                        "/vol/real/etc".into()
                    };
                })
        })
        .await
    })
}

#[test]
fn a_device_below_an_exchanged_directory_stays_in_its_container_sec_eng_07() -> Result<()> {
    Node::test(async |node| {
        race(node, "device", |shared, number| {
            container(&format!("c{number}"), BUSYBOX, &sh(LOOK))
                .mount(bind(shared, "/dev/vol"))
                .with(|config| {
                    config.devices = vec![Device {
                        container_path: format!("/dev/vol/real/etc/n{number}"),
                        host_path: "/dev/null".into(),
                        permissions: "rwm".into(),
                    }];
                })
        })
        .await
    })
}
