//! INV: what must hold after every test, whatever it was about. The numbers are those of the ten invariants in the comments below.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::{
    ContainerConfig, ContainerState, PodSandboxState, security_profile::ProfileType,
};

use crate::{
    cgroup,
    machine::patient,
    node::{BRIDGE, Node},
    process::{self, Process},
    request::{BUSYBOX, container},
};

/// How long the kernel and the shims may take to settle after the last call: exits are reaped, cgroups emptied.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What containers may do where nobody asks for more: the fourteen capabilities of Docker's list, by number.
const DEFAULT_CAPABILITIES: [u8; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

fn own_bounding_set() -> u64 {
    let own = Process::read(std::process::id() as i32).and_then(|own| own.mask("CapBnd").ok());
    own.unwrap_or(u64::MAX)
}

/// The bounding set that a container asks for, trimmed to what this machine can give.
pub fn asked_capabilities(config: &ContainerConfig) -> u64 {
    let own = own_bounding_set();
    let security = config
        .linux
        .clone()
        .unwrap_or_default()
        .security_context
        .unwrap_or_default();
    if security.privileged {
        return own;
    }
    let asked = security.capabilities.unwrap_or_default();
    let mut set = DEFAULT_CAPABILITIES
        .iter()
        .fold(0u64, |set, bit| set | 1 << bit);
    let (add, drop) = (
        names(&asked.add_capabilities),
        names(&asked.drop_capabilities),
    );
    let ambient = names(&asked.add_ambient_capabilities);
    // ALL is the ground that single names then change.
    if add == u64::MAX {
        set = own & !drop;
    } else if drop == u64::MAX {
        set = add;
    } else {
        set = (set | add) & !drop;
    }
    (set | ambient) & own
}

/// Capabilities by name, as bits.
fn names(names: &[String]) -> u64 {
    names.iter().fold(0, |mask, name| {
        let name = name.to_uppercase();
        match CAPABILITIES
            .iter()
            .position(|known| *known == name.trim_start_matches("CAP_"))
        {
            Some(bit) => mask | 1 << bit,
            None if name == "ALL" => u64::MAX,
            None => mask,
        }
    })
}

/// Whether the file behind an fdinfo is on one of the process's own mounts.
fn inside(process: &Process, what: &str, fdinfo: &str) -> Result<()> {
    let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", process.pid))?;
    let mount = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))
        .map(str::trim)
        .context("fdinfo without mnt_id")?;
    ensure!(
        mountinfo
            .lines()
            .any(|line| line.split(' ').next() == Some(mount)),
        "pid {} ({}) has {what} on a mount that is not its container's",
        process.pid,
        process.comm
    );
    Ok(())
}

/// Invariant 2, for descriptors.
pub fn descriptors_are_its_own(process: &Process) -> Result<()> {
    let pid = process.pid;
    let ours = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let target = target.display().to_string();
        if let Some(inode) = target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'))
        {
            let named = ours
                .lines()
                .find(|line| line.split_whitespace().nth(6) == Some(inode) && line.contains('/'));
            ensure!(
                named.is_none(),
                "pid {pid} ({}) holds a socket of the host: {named:?}",
                process.comm
            );
        } else if target.starts_with("/memfd:") {
            // Memory, whose name is no path.
        } else if target.starts_with('/') {
            let number = entry.file_name().display().to_string();
            let Ok(fdinfo) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else {
                continue;
            };
            // The host's /dev/null and a tty's master end are given by the shim on purpose.
            if target != "/dev/null" && !target.starts_with("/dev/p") {
                inside(process, &format!("descriptor {number} ({target})"), &fdinfo)?;
            }
        } else {
            ensure!(
                target.starts_with("pipe:[")
                    || target.starts_with("anon_inode:")
                    || target.starts_with("/memfd:"),
                "pid {pid} holds {target}"
            );
        }
    }
    Ok(())
}

/// Invariant 2: nothing that a container's process holds lies outside its own mounts.
pub fn holds_nothing_of_the_host(process: &Process, forbidden: &[PathBuf]) -> Result<()> {
    let pid = process.pid;
    descriptors_are_its_own(process)?;
    for link in ["cwd", "root", "exe"] {
        let path = format!("/proc/{pid}/{link}");
        // A process that ends meanwhile holds nothing any more.
        let Ok(file) = rustix::fs::open(
            &path,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        ) else {
            continue;
        };
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let target = fs::read_link(&path).unwrap_or_default();
        inside(
            process,
            &format!("its {link} ({})", target.display()),
            &fs::read_to_string(format!("/proc/thread-self/fdinfo/{number}"))?,
        )?;
        if link == "exe" {
            let meta = fs::metadata(&path)?;
            for binary in forbidden {
                let Ok(other) = fs::metadata(binary) else {
                    continue;
                };
                ensure!(
                    (meta.dev(), meta.ino()) != (other.dev(), other.ino()),
                    "pid {pid} runs {}",
                    binary.display()
                );
            }
        }
    }
    Ok(())
}

/// Invariant 4: credentials are what was asked for, in every process of a container.
pub fn credentials_as_asked(process: &Process, config: &ContainerConfig) -> Result<()> {
    let (pid, comm) = (process.pid, &process.comm);
    let security = config
        .linux
        .clone()
        .unwrap_or_default()
        .security_context
        .unwrap_or_default();
    let status = process.status()?;
    let ambient = security
        .capabilities
        .clone()
        .unwrap_or_default()
        .add_ambient_capabilities;
    let ambient = names(&ambient) & own_bounding_set();
    for set in ["CapInh", "CapAmb"] {
        // A process may give them up.
        ensure!(
            process.mask(set)? & !ambient == 0,
            "pid {pid} ({comm}) has in {set} what nobody asked for"
        );
    }
    let (has, asked) = (process.mask("CapBnd")?, asked_capabilities(config));
    ensure!(
        has == asked,
        "pid {pid} ({comm}) has the bounding set {has:x}, asked was {asked:x}"
    );
    #[allow(deprecated)]
    let old_field = security.seccomp_profile_path.as_str();
    let seccomp = match (&security.seccomp, old_field) {
        _ if security.privileged => "0",
        (Some(profile), _) if profile.profile_type() == ProfileType::Unconfined => "0",
        (None, "" | "unconfined") => "0",
        _ => "2",
    };
    ensure!(
        status.get("Seccomp").is_some_and(|mode| mode == seccomp),
        "pid {pid} ({comm}) has Seccomp {:?}, not {seccomp}",
        status.get("Seccomp")
    );
    let no_new_privs = if security.no_new_privs { "1" } else { "0" };
    ensure!(
        status
            .get("NoNewPrivs")
            .is_some_and(|flag| flag == no_new_privs),
        "pid {pid} ({comm}) has NoNewPrivs {:?}, not {no_new_privs}",
        status.get("NoNewPrivs")
    );
    Ok(())
}

/// A process that was on its way out when it was looked at has ended by then.
const ENDED_WITHIN: Duration = Duration::from_secs(1);

/// Invariant 3: every process is in its container's cgroup, of each controller that limits it.
fn in_its_cgroup(process: &Process, container_id: &str) -> Result<()> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.pid))?;
    for controller in ["memory", "cpu", "pids", "cpuset", "devices", "freezer"] {
        let line = text.lines().find(|line| {
            line.split(':')
                .nth(1)
                .is_some_and(|names| names.split(',').any(|name| name == controller))
        });
        let line = line.or_else(|| cgroup::unified().then(|| text.lines().next()).flatten());
        if let Some(line) = line {
            ensure!(
                line.contains(container_id),
                "pid {} is outside of its container's cgroup for {controller}: {line}",
                process.pid
            );
        }
    }
    Ok(())
}

/// Invariants 2, 3, 4, 6 for every container that the CRI tells of; the pids of the running ones' first processes.
pub async fn containers_match_the_kernel(node: &Node) -> Result<BTreeMap<String, (i32, u64)>> {
    let bin = crate::daemon::bin_dir()?;
    let binaries: Vec<PathBuf> = ["berthd", "containerd-shim-berth-v2", "berth"]
        .iter()
        .map(|name| bin.join(name))
        .collect();
    let mut running = BTreeMap::new();
    for item in node.cri.containers(None).await? {
        let status = node.cri.status(&item.id).await?;
        let processes = process::in_cgroup(&item.id);
        match status.state() {
            ContainerState::ContainerRunning => {
                // It may have ended since the answer; then the next answer says so.
                let Some(init) = process::init_of(&item.id) else {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                    let now = node.cri.status(&item.id).await?;
                    ensure!(
                        now.state() == ContainerState::ContainerExited,
                        "container {} is RUNNING without a process",
                        item.id
                    );
                    continue;
                };
                running.insert(item.id.clone(), (init.pid, init.started));
                for process in processes.iter().filter(|process| process.state != 'Z') {
                    let checked = holds_nothing_of_the_host(process, &binaries)
                        .and_then(|()| in_its_cgroup(process, &item.id))
                        .and_then(|()| {
                            node.cri
                                .request_of(&item.id)
                                .map_or(Ok(()), |config| credentials_as_asked(process, &config))
                        });
                    // One that ends has left its cgroups of version 1 before it is a zombie.
                    let ends = || {
                        process::eventually(ENDED_WITHIN, || {
                            Process::read(process.pid)
                                .is_none_or(|now| !now.is(process) || now.state == 'Z')
                        })
                    };
                    if let Err(error) = checked
                        && !ends()
                    {
                        return Err(error.context(format!("container {}", item.id)));
                    }
                }
            }
            ContainerState::ContainerExited => {
                ensure!(
                    status.finished_at > 0,
                    "container {} is EXITED without a time of its end",
                    item.id
                );
                ensure!(
                    !status.reason.is_empty(),
                    "container {} is EXITED without a reason",
                    item.id
                );
                let left: Vec<_> = processes
                    .iter()
                    .filter(|process| process.state != 'Z')
                    .collect();
                ensure!(
                    left.is_empty(),
                    "container {} is EXITED, but has {left:?}",
                    item.id
                );
            }
            ContainerState::ContainerCreated => {
                ensure!(
                    status.started_at == 0 && status.finished_at == 0,
                    "container {} is CREATED with times of start or end",
                    item.id
                );
            }
            ContainerState::ContainerUnknown => {
                bail!("container {} is in an unknown state", item.id)
            }
        }
    }
    Ok(running)
}

/// Invariant 5: one shim a ready sandbox, no zombie of ours.
async fn shims_match_sandboxes(node: &Node) -> Result<()> {
    let mut problem = String::new();
    let deadline = std::time::Instant::now() + patient(SETTLE_LIMIT);
    while std::time::Instant::now() < deadline {
        problem.clear();
        let pods = node.cri.pods(None).await?;
        let shims = process::shims();
        for pod in &pods {
            let of_pod = shims
                .iter()
                .filter(|shim| shim.cmdline().contains(&pod.id))
                .count();
            let ready = pod.state() == PodSandboxState::SandboxReady;
            if ready && of_pod != 1 || of_pod > 1 {
                problem = format!(
                    "pod {} ({:?}) has {of_pod} shims: {shims:?}",
                    pod.id,
                    pod.state()
                );
            }
        }
        for shim in &shims {
            let line = shim.cmdline();
            if !pods.iter().any(|pod| line.contains(&pod.id)) {
                problem = format!("a shim without a sandbox: pid {}: {line}", shim.pid);
            }
        }
        let mut ours: BTreeSet<i32> = shims.iter().map(|shim| shim.pid).collect();
        ours.extend(node.daemon.pid());
        if let Some(zombie) = process::descendants(&ours)
            .into_iter()
            .find(|process| process.state == 'Z' && ours.contains(&process.parent))
        {
            problem = format!("a zombie: {zombie:?}");
        }
        if problem.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("{problem}")
}

/// Invariant 7, as far as the ledger knows.
pub async fn nothing_unowned(node: &Node) -> Result<()> {
    let mut findings = Vec::new();
    let deadline = std::time::Instant::now() + patient(SETTLE_LIMIT);
    while std::time::Instant::now() < deadline {
        findings = node.audit().context("audit")?;
        if findings.is_empty() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("the audit must print nothing, but: {findings:#?}")
}

/// Invariant 8.
fn nothing_seen_of_the_canary(node: &Node) -> Result<()> {
    node.canary.check()?;
    node.canary.unseen_below(&node.dir.join("logs"))?;
    node.canary.unseen_in(
        "the daemon's log",
        &fs::read(&node.daemon.log).unwrap_or_default(),
    )
}

/// Invariant 9: modes, and no abstract socket of ours.
pub fn closed_to_others(node: &Node) -> Result<()> {
    let mode = |path: &Path| -> Result<u32> {
        Ok(path
            .metadata()
            .with_context(|| path.display().to_string())?
            .permissions()
            .mode()
            & 0o7777)
    };
    for dir in [node.daemon.root.clone(), node.daemon.state.clone()] {
        ensure!(
            mode(&dir)? == 0o700,
            "{} has mode {:o}, not 700",
            dir.display(),
            mode(&dir)?
        );
    }
    ensure!(
        mode(&node.daemon.socket())? == 0o600,
        "the CRI socket has mode {:o}, not 600",
        mode(&node.daemon.socket())?
    );
    let shims = node.daemon.state.join("s");
    for entry in fs::read_dir(&shims).into_iter().flatten().flatten() {
        ensure!(
            mode(&entry.path())? & 0o077 == 0,
            "{} has mode {:o}",
            entry.path().display(),
            mode(&entry.path())?
        );
    }
    let sockets = fs::read_to_string("/proc/thread-self/net/unix")?;
    let abstracts: Vec<&str> = sockets
        .lines()
        .filter(|line| {
            line.split_whitespace()
                .nth(7)
                .is_some_and(|name| name.starts_with('@'))
        })
        .collect();
    ensure!(abstracts.is_empty(), "abstract sockets: {abstracts:?}");
    Ok(())
}

/// Everything that can be checked while pods run; the running containers' first processes.
pub async fn alive(node: &Node) -> Result<BTreeMap<String, (i32, u64)>> {
    let running = containers_match_the_kernel(node).await?;
    shims_match_sandboxes(node).await?;
    nothing_unowned(node).await?;
    nothing_seen_of_the_canary(node)?;
    closed_to_others(node)?;
    Ok(running)
}

/// Invariant 10: a fresh pod can be made, entered, logged and removed.
async fn a_fresh_pod_works(node: &Node) -> Result<()> {
    let pod = node.run(node.pod("inv")).await?;
    let config = container("inv", BUSYBOX, &["sh", "-c", "echo logged; sleep 1000"]);
    let id = node.start_container(&pod, config.clone()).await?;
    ensure!(node.cri.exec(&id, &["echo", "entered"]).await? == "entered");
    let logged = process::eventually(SETTLE_LIMIT, || {
        node.log_text(&pod, &config, "stdout")
            .is_ok_and(|text| text == "logged\n")
    });
    ensure!(logged, "the log of a fresh container lacks its line");
    node.cri.stop(&id, 0).await?;
    node.cri.remove(&id).await?;
    node.cri.stop_pod(&pod.id).await?;
    node.cri.remove_pod(&pod.id).await?;
    Ok(())
}

/// What must be left when every pod is removed: nothing.
pub async fn nothing_left(node: &Node) -> Result<()> {
    ensure!(
        node.cri.pods(None).await?.is_empty() && node.cri.containers(None).await?.is_empty(),
        "pods or containers are listed after their removal"
    );
    nothing_unowned(node).await?;
    let shims_gone = process::eventually(SETTLE_LIMIT, || process::shims().is_empty());
    ensure!(shims_gone, "shims are left: {:?}", process::shims());
    // The parent itself may stay, as a directory does whose files are gone.
    let left = || {
        cgroup::tree(&node.cgroup_parent)
            .into_iter()
            .filter(|dir| !dir.ends_with(node.cgroup_parent.trim_start_matches('/')))
            .collect::<Vec<_>>()
    };
    ensure!(
        process::eventually(SETTLE_LIMIT, || left().is_empty()),
        "cgroups are left: {:?}",
        left()
    );
    for part in ["netns", "leases", "pods", "s"] {
        let dir = node.daemon.state.join(part);
        let entries: Vec<_> = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(entries.is_empty(), "left in {}: {entries:?}", dir.display());
    }
    for part in ["pods", "containers", "cni"] {
        let dir = node.daemon.root.join(part);
        let entries: Vec<_> = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            // The node's ranges are in a directory beside the records of CNI.
            .filter(|path| !path.is_dir())
            .collect();
        ensure!(
            entries.is_empty(),
            "records left in {}: {entries:?}",
            dir.display()
        );
    }
    node.host.same_but(BRIDGE)?;
    nothing_seen_of_the_canary(node)
}

/// The end of every test: the checks with what still runs; the daemon killed and started, and the checks again; then everything
/// removed, and nothing left.
pub async fn at_the_end(node: &mut Node) -> Result<()> {
    let before = alive(node).await.context("with pods running")?;
    if node.restarts_at_the_end() {
        node.restart().await?;
        let after = alive(node).await.context("after kill -9 and a restart")?;
        for (id, process) in &before {
            if Process::read(process.0).is_some_and(|now| now.started == process.1) {
                ensure!(
                    after.get(id) == Some(process),
                    "container {id} had the first process {process:?}, after a restart {:?}",
                    after.get(id)
                );
            }
        }
        a_fresh_pod_works(node)
            .await
            .context("a fresh pod after a restart")?;
    }
    node.remove_all().await.context("removing everything")?;
    nothing_left(node)
        .await
        .context("after everything was removed")?;
    let status = node.daemon.terminate()?;
    ensure!(status.success(), "berthd ended with {status} on SIGTERM");
    Ok(())
}
