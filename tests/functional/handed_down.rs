//! A node that is itself in a cgroup, one that was not handed every controller: as in a container of another runtime, or on a machine where a
//! controller is switched off. Cgroup v2 alone; `hack/test --vm` runs it.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup, cgroup, container,
    cri::refused,
    process,
    request::{ContainerRequest, PodRequest},
    systemd,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use tonic::Code;

const MOUNT: &str = "/sys/fs/cgroup";
/// What the node's cgroup has; memory is not among them.
const HANDED_DOWN: &str = "+cpu +cpuset +pids";

/// Of this process alone, which is the test's.
fn outer() -> PathBuf {
    Path::new(MOUNT).join(format!("berth-nested-{}", std::process::id()))
}

/// Where this process was before, and goes back to.
struct Outside {
    procs: File,
}

impl Outside {
    fn keep() -> Result<Self> {
        let procs = cgroup::directory(std::process::id() as i32, "")?.join("cgroup.procs");
        // Opened here: the kernel asks which namespace of cgroups the file was opened in.
        let opened = File::options().write(true).open(&procs);
        Ok(Self {
            procs: opened.with_context(|| procs.display().to_string())?,
        })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = write!(self.procs, "{}", std::process::id());
        if Path::new(MOUNT).join("daemon").exists() {
            let _ = umount2(MOUNT, MntFlags::MNT_DETACH);
        }
        let outer = outer();
        let name = outer.file_name().unwrap_or_default().to_string_lossy();
        let gone = process::eventually(Duration::from_secs(5), || {
            cgroup::remove(&format!("/{name}")).is_ok()
        });
        if !gone {
            eprintln!("{} can't be removed", outer.display());
        }
    }
}

/// From here on this thread, and so the daemon, has a cgroup for the root of all that lacks controllers. A cgroup that hands some down has no
/// processes of its own, so they are one below.
fn enter(_: &Path) -> Result<()> {
    let outer = outer();
    let node = outer.join("node");
    fs::create_dir_all(node.join("daemon"))?;
    let own = std::process::id().to_string();
    for (path, value) in [
        (Path::new(MOUNT).join("cgroup.subtree_control"), "+memory"),
        (Path::new(MOUNT).join("cgroup.subtree_control"), HANDED_DOWN),
        (outer.join("cgroup.subtree_control"), HANDED_DOWN),
        (node.join("cgroup.procs"), &own),
    ] {
        fs::write(&path, value).with_context(|| format!("{value} into {}", path.display()))?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
    // Not mounted anew: the kernel refuses the same file system on top of itself.
    mount(
        Some(&node),
        MOUNT,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .context("bind the node's cgroup")?;
    fs::write(Path::new(MOUNT).join("daemon/cgroup.procs"), own).context("enter daemon")
}

#[test]
fn a_limit_whose_controller_is_not_handed_down_makes_no_container_and_no_pod() -> Result<()> {
    if !cgroup::unified() || systemd::is_wanted() {
        eprintln!("skipped: it needs cgroup v2 that no systemd rules");
        return Ok(());
    }
    let outside = Outside::keep()?;
    let setup = Setup {
        before: Some(enter),
        ..Setup::default()
    };
    let outcome = Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("none")).await?;
        node.cri.pull(BUSYBOX).await?;
        let plain = |name: &str| container(name, BUSYBOX, &["sleep", "1000"]);
        let limited = plain("limited").resources(|resources| {
            resources.memory_limit_in_bytes = 32 << 20;
        });
        let by_name = plain("by-name").resources(|resources| {
            resources.unified = [("memory.high".to_owned(), "1048576".to_owned())].into();
        });
        for (config, file) in [(limited, "memory.max"), (by_name, "memory.high")] {
            refused(
                node.cri.create(&pod.id, &config, &pod.config).await,
                Code::FailedPrecondition,
                &[file, "no memory controller", "cpuset cpu pids"],
            )?;
            ensure!(node.cri.containers(None).await?.is_empty(), "{file}");
            ensure!(node.audit()?.is_empty(), "{file}: {:?}", node.audit()?);
            let left: Vec<_> = cgroup::tree(&node.cgroup_parent)
                .into_iter()
                .filter(|dir| dir.file_name().is_some_and(|name| name.len() == 64))
                .filter(|dir| !dir.ends_with(&pod.id))
                .collect();
            ensure!(left.is_empty(), "{file}: {left:?}");
        }
        let config = node.pod("limited").linux(|linux| {
            linux
                .resources
                .get_or_insert_default()
                .memory_limit_in_bytes = 64 << 20;
            linux.cgroup_parent = node.own_cgroup_parent("limited");
        });
        fs::create_dir_all(&config.log_directory)?;
        refused(
            node.cri.run_pod(&config).await,
            Code::FailedPrecondition,
            &["memory.max", "no memory controller"],
        )?;
        ensure!(node.cri.pods(None).await?.len() == 1);
        // Who asks for what is there has it.
        let free = plain("free").resources(|resources| {
            resources.cpu_period = 50_000;
            resources.cpu_quota = 25_000;
        });
        let id = node.start_container(&pod, free).await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        ensure!(cgroup::value(pid, "cpu", "", "cpu.max")? == "25000 50000");
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        let stats = node.cri.stats(&id).await?;
        ensure!(stats.cpu.is_some(), "{stats:?}");
        Ok(())
    });
    drop(outside);
    outcome
}
