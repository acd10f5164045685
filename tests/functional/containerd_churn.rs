//! Many containers under stock containerd: nothing of them stays, and a shim that has served hundreds is as small as at first.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::PodSandboxConfig;
use berth_tests::{
    Cri, Node, cgroup, container,
    containerd::{Containerd, IMAGE},
    process,
    request::ContainerRequest,
};

use crate::under_containerd::{mounts, on_the_host_network, pod, shims_of};

/// In CI; the promise is of a thousand: `BERTH_TEST_CONTAINERS=1000`.
const CONTAINERS: usize = 120;
/// Of a pod; the shim's first pod keeps one and is given the others of its round.
const OF_A_POD: usize = 3;
const SOON: Duration = Duration::from_secs(20);
/// What a shim may grow by, KiB: noise of its allocator.
const GROWTH_KIB: u64 = 256;

/// What is there, by kind: files of containerd's and the shims' directories, cgroups, mounts, shims.
#[derive(Debug, PartialEq, Eq)]
struct Things {
    shims: usize,
    mounts: usize,
    cgroups: usize,
    sockets: usize,
    bundles: usize,
}

impl Things {
    fn of(node: &Node, containerd: &Containerd) -> Things {
        let entries = |path: &str| {
            let dir = containerd.dir().join(path);
            fs::read_dir(dir).map_or(0, |entries| entries.count())
        };
        Things {
            shims: process::shims().len(),
            mounts: mounts(node).len(),
            cgroups: cgroup::tree(&node.cgroup_parent).len(),
            sockets: entries("s"),
            bundles: entries("run/io.containerd.runtime.v2.task/k8s.io")
                + entries("run/io.containerd.grpc.v1.cri/containers")
                + entries("run/io.containerd.grpc.v1.cri/sandboxes"),
        }
    }
}

/// Private memory (KiB) and open descriptors of a shim.
fn size(pid: i32) -> Result<(u64, usize)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let anonymous = cgroup::counter(&text.replace(" kB", ""), "Anonymous:");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    Ok((anonymous.context("no Anonymous")?, descriptors))
}

/// Makes, runs, kills and deletes a container.
async fn pass(cri: &Cri, pod: &str, config: &PodSandboxConfig, name: &str) -> Result<()> {
    let asked = container(name, IMAGE, &["sleep", "1000"]).security(on_the_host_network);
    fs::create_dir_all(Path::new(&config.log_directory).join(name))?;
    let id = cri.create(pod, &asked, config).await?;
    cri.start(&id).await?;
    cri.stop(&id, 0).await?;
    cri.remove(&id).await?;
    Ok(())
}

#[test]
fn a_thousand_containers_leave_no_shim_nor_anything_else_behind() -> Result<()> {
    let containers = match std::env::var("BERTH_TEST_CONTAINERS") {
        Ok(number) => number.parse()?,
        Err(_) => CONTAINERS,
    };
    Node::test(async |node| {
        let containerd = Containerd::start(&node.dir).await?;
        let cri = containerd.cri().await?;
        let lasting_config = pod(node, "lasting");
        let lasting = cri.run_pod(&lasting_config).await?;
        let shim = shims_of(&lasting).pop().context("no shim")?.pid;
        for round in 0..5 {
            pass(&cri, &lasting, &lasting_config, &format!("warm-{round}")).await?;
        }
        let before = Things::of(node, &containerd);
        let (memory, descriptors) = size(shim)?;

        // Half of them in the pod that stays, half as pods of several.
        let rounds = containers.div_ceil(2 * OF_A_POD);
        for round in 0..rounds {
            let config = pod(node, &format!("passing-{round}"));
            let passing = cri.run_pod(&config).await?;
            for at in 0..OF_A_POD {
                pass(&cri, &passing, &config, &format!("p-{at}")).await?;
                pass(&cri, &lasting, &lasting_config, &format!("l-{round}-{at}")).await?;
            }
            cri.stop_pod(&passing).await?;
            cri.remove_pod(&passing).await?;
        }

        let now = || Things::of(node, &containerd);
        ensure!(
            process::eventually(SOON, || now() == before),
            "before: {before:?}, after: {:?}",
            now()
        );
        let (memory_now, descriptors_now) = size(shim)?;
        println!(
            "{containers} containers: {descriptors} descriptors became {descriptors_now}, {memory} KiB became {memory_now} KiB"
        );
        ensure!(
            descriptors_now == descriptors,
            "{descriptors} became {descriptors_now}"
        );
        ensure!(
            memory_now <= memory + GROWTH_KIB,
            "{memory} KiB became {memory_now}"
        );
        cri.stop_pod(&lasting).await?;
        cri.remove_pod(&lasting).await?;
        ensure!(process::eventually(SOON, || process::shims().is_empty()));
        Ok(())
    })
}
