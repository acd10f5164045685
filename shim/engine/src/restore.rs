//! A container's processes made again from what CRIU wrote down (`criu restore`), instead of a new init.
//!
//! ```text
//!   a new init as the request wants it ──▶ its mounts and namespaces are noted, and it goes
//!   criu restore: cgroup, namespaces, binds, streams of the request; the processes stand still
//!   what stands there is held against what was noted: else it ends here, before it has run
//! ```
//!
//! The images are somebody's: what they say of mounts, capabilities, users and seccomp holds only as far as the request says the same
//! (SEC-IMG-14, CVE-2024-8676). Nothing in them names a file of the node: every mount from outside is one of the request's, by its place.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use berth_kernel::{
    mount::{Change, set_attributes},
    pidfd,
};
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};
use rustix::{
    fs::{CWD, FileType},
    io::FdFlags,
    mount::{
        MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount_change,
        move_mount, open_tree,
    },
};

use crate::{
    Error, Maker, Stdio,
    cgroup::Cgroup,
    checkpoint::{self, DESCRIPTORS, NET, PID, is_external},
    confine,
    filter::Filter,
    init::{Prepared, children, prepare, streams},
    native,
    request::{CreateRequest, RestoreRequest},
    worker::Made,
};

const LOG: &str = "restore.log";
const PIDFILE: &str = "pid";
const SECCOMP: &str = "seccomp.img";
/// Three names.
const MAX_DESCRIPTORS_BYTES: u64 = 4096;
/// Filters are 64 KiB at most.
const MAX_SECCOMP_BYTES: u64 = 1 << 20;

pub(crate) fn restore(
    request: &CreateRequest,
    from: &RestoreRequest,
    stdio: Stdio,
) -> Result<Made, Error> {
    let prepared = prepare(request)?;
    let refuse = |reason: String| Error::Spec {
        id: request.id.clone(),
        reason: format!("can't be restored: {reason}"),
    };
    if request.tty {
        return Err(refuse("a terminal can't be".into()));
    }
    if let Some(alien) = native::unsupported(&prepared) {
        return Err(refuse(format!("{alien} can't be")));
    }
    let Prepared {
        spec,
        process,
        linux,
        cgroup,
        notes,
        capabilities,
        filter,
        ..
    } = prepared;
    for kind in [LinuxNamespaceType::Network, LinuxNamespaceType::Pid] {
        let named = |found: &oci_spec::runtime::LinuxNamespace| found.typ() == kind;
        if !linux.namespaces().iter().flatten().any(named) {
            // Sockets and processes of the node's own are not to be made by what an archive says.
            return Err(refuse(format!("the node's own {kind} namespace can't be")));
        }
    }
    let in_user_namespace =
        |found: &oci_spec::runtime::LinuxNamespace| found.typ() == LinuxNamespaceType::User;
    if linux.namespaces().iter().flatten().any(in_user_namespace) {
        return Err(refuse("a user namespace can't be".into()));
    }
    let mut outside = Outside::of(request)?;
    let user = process.user();
    let streams = streams(stdio, user.uid(), user.gid())?;
    let names = descriptors(&from.images).map_err(&refuse)?;

    let mut command = Command::new(&from.criu);
    command
        .arg("restore")
        .arg("--images-dir")
        .arg(&from.images)
        .arg("--work-dir")
        .arg(&from.work)
        .args(["--log-file", LOG, "-v4"])
        .args(["--manage-cgroups=ignore", "--tcp-established"])
        .args(["--file-locks", "--link-remap"])
        .args(["--restore-detached", "--restore-sibling", "--leave-stopped"])
        .arg("--pidfile")
        .arg(from.work.join(PIDFILE))
        .arg("--root")
        .arg(root(request, &spec));
    let mut inherited: Vec<OwnedFd> = Vec::new();
    let mut inherit = |command: &mut Command, fd: OwnedFd, name: &str| {
        rustix::io::fcntl_setfd(&fd, FdFlags::empty())
            .map_err(Error::errno("let CRIU have a descriptor"))?;
        command
            .arg("--inherit-fd")
            .arg(format!("fd[{}]:{name}", fd.as_raw_fd()));
        inherited.push(fd);
        Ok::<_, Error>(())
    };
    let mut given = BTreeSet::new();
    for (stream, name) in streams.into_iter().zip(names) {
        // Two numbers of one file are one file to CRIU.
        if !name.is_empty() && given.insert(name.clone()) {
            inherit(&mut command, stream, &name)?;
        }
    }
    for namespace in linux.namespaces().iter().flatten() {
        let path = namespace.path().as_ref();
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            continue;
        };
        let open = || {
            File::open(path)
                .map(OwnedFd::from)
                .map_err(Error::io(format!("open namespace {}", path.display())))
        };
        match namespace.typ() {
            LinuxNamespaceType::Network => inherit(&mut command, open()?, NET)?,
            LinuxNamespaceType::Pid => inherit(&mut command, open()?, PID)?,
            kind @ (LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts) => {
                let join = format!("{kind}:{}", path.display());
                command.arg("--join-ns").arg(join);
            }
            kind => return Err(refuse(format!("the shared {kind} namespace can't be"))),
        }
    }

    // What CRIU makes is where CRIU is.
    cgroup.add(std::process::id() as i32)?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::io("leave the node's mounts")(e.into()))?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(Error::errno("cut the mounts off from the node's"))?;
    // Seen by CRIU alone: they end with this worker.
    for (number, mount) in outside.mounts.iter().enumerate() {
        if is_external(mount, &spec, &linux) {
            let at = &mount.at;
            let source = source(at, &spec, &linux, &cgroup).ok_or_else(|| {
                refuse(format!("the mount {} can't be found again", at.display()))
            })?;
            let place = from.work.join(format!("mount-{number}"));
            stage(&source, &mount.flags, &place).map_err(Error::io(format!(
                "take the source of mount {}",
                at.display()
            )))?;
            let external = format!("mnt[{}]:{}", at.display(), place.display());
            command.arg("--external").arg(external);
        }
    }
    let own_cgroup = |found: &oci_spec::runtime::LinuxNamespace| {
        found.typ() == LinuxNamespaceType::Cgroup && found.path().is_none()
    };
    if linux.namespaces().iter().flatten().any(own_cgroup) {
        unshare(CloneFlags::CLONE_NEWCGROUP)
            .map_err(|e| Error::io("make a cgroup namespace")(e.into()))?;
        outside.as_seen_from(cgroup.path());
    }
    let run = checkpoint::Run {
        id: &request.id,
        act: "restore",
        criu: &from.criu,
        disk: &from.images,
        work: &from.work,
        log: LOG,
        timeout: Duration::from_millis(from.timeout_ms),
    };
    checkpoint::run(&run, command)?;
    drop(inherited);

    let pidfile = from.work.join(PIDFILE);
    let pid = fs::read_to_string(&pidfile).map_err(Error::io("read the restored pid"))?;
    let pid = pid.trim().parse::<i32>().ok();
    let pid = pid
        .filter(|pid| children().contains(pid))
        .ok_or_else(|| refuse("CRIU names no process of its own".into()))?;
    // Our child, not reaped: the pid is still its.
    let process_fd = pidfd::open(pid).map_err(Error::io("open the restored process"))?;
    let check = Check {
        outside: &outside,
        process: &process,
        linux: &linux,
        capabilities: &capabilities,
        cgroup: &cgroup,
        filter: filter.as_ref(),
        images: &from.images,
    };
    check.all(pid).map_err(refuse)?;
    // It starts by a signal, not by a word of the shim's.
    let report = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
    Ok(Made {
        pid,
        maker: Maker::Native,
        notes,
        descriptors: vec![process_fd, report.into()],
    })
}

/// Mounts what `source` is at the new `place`, with the flags that the container is to see it with: CRIU clones what it finds.
fn stage(source: &Path, flags: &str, place: &Path) -> io::Result<()> {
    let tree = open_tree(
        CWD,
        source,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let known = [
        ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY),
        ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID),
        ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
        ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        ("nosymfollow", MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
    ];
    let has = |name: &str| flags.split(',').any(|flag| flag == name);
    let mut change = Change {
        propagation: MountPropagationFlags::PRIVATE.bits().into(),
        clear: MountAttrFlags::MOUNT_ATTR__ATIME.bits().into(),
        ..Change::default()
    };
    for (name, flag) in known {
        match has(name) {
            true => change.set |= u64::from(flag.bits()),
            false => change.clear |= u64::from(flag.bits()),
        }
    }
    change.set |= match (has("noatime"), has("relatime")) {
        (true, _) => u64::from(MountAttrFlags::MOUNT_ATTR_NOATIME.bits()),
        (_, true) => u64::from(MountAttrFlags::MOUNT_ATTR_RELATIME.bits()),
        _ => u64::from(MountAttrFlags::MOUNT_ATTR_STRICTATIME.bits()),
    };
    set_attributes(tree.as_fd(), false, change)?;
    // A place of the same kind.
    match FileType::from_raw_mode(rustix::fs::fstat(&tree)?.st_mode) {
        FileType::Directory => fs::create_dir(place)?,
        _ => drop(File::create_new(place)?),
    }
    Ok(move_mount(
        &tree,
        "",
        CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

fn root(request: &CreateRequest, spec: &Spec) -> PathBuf {
    let root = spec.root().as_ref().map(|root| root.path().clone());
    request.bundle.join(root.unwrap_or_default())
}

/// What the standard streams were called, as the dump wrote it down.
fn descriptors(images: &Path) -> Result<[String; 3], String> {
    let mut text = Vec::new();
    File::open(images.join(DESCRIPTORS))
        .and_then(|file| file.take(MAX_DESCRIPTORS_BYTES).read_to_end(&mut text))
        .map_err(|e| format!("{DESCRIPTORS}: {e}"))?;
    let names: [String; 3] =
        serde_json::from_slice(&text).map_err(|e| format!("{DESCRIPTORS}: {e}"))?;
    // Only what is a stream's: other keys name what is not given away.
    for name in &names {
        let inside = ["pipe:[", "file["]
            .iter()
            .find_map(|kind| name.strip_prefix(kind)?.strip_suffix(']'));
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        if !name.is_empty() && !inside.is_some_and(plain) {
            return Err(format!("{DESCRIPTORS}: {name:?} is no stream"));
        }
    }
    Ok(names)
}

/// What an external mount is on the node.
fn source(at: &Path, spec: &Spec, linux: &Linux, cgroup: &Cgroup) -> Option<PathBuf> {
    let masked = linux.masked_paths().iter().flatten();
    if masked.into_iter().any(|path| Path::new(path) == at) {
        return Some("/dev/null".into());
    }
    let mounts = || spec.mounts().iter().flatten();
    for mount in mounts().filter(|mount| mount.typ().as_deref() == Some("cgroup")) {
        if let Ok(below) = at.strip_prefix(mount.destination()) {
            return match cgroup.v1_places().ok()? {
                None => cgroup.directories().ok()?.into_iter().next(),
                Some(places) => places
                    .into_iter()
                    .find(|(name, _)| Path::new(name) == below)
                    .map(|(_, directory)| directory),
            };
        }
    }
    // The longest place that it lies in: a recursive bind brings what is mounted below.
    let mut found: Option<(&Path, PathBuf)> = None;
    for mount in mounts() {
        let (Ok(below), Some(source)) = (at.strip_prefix(mount.destination()), mount.source())
        else {
            continue;
        };
        let longer = found
            .as_ref()
            .is_none_or(|(place, _)| mount.destination().starts_with(place));
        if longer && source.is_absolute() {
            let source = match below.as_os_str().is_empty() {
                true => source.clone(),
                false => source.join(below),
            };
            found = Some((mount.destination(), source));
        }
    }
    found.map(|(_, source)| source)
}

const NAMESPACES: [&str; 7] = ["net", "ipc", "uts", "pid", "mnt", "user", "cgroup"];

fn namespace(process: &str, name: &str) -> Result<u64, Error> {
    let path = format!("/proc/{process}/ns/{name}");
    fs::metadata(&path)
        .map(|meta| meta.ino())
        .map_err(Error::io(format!("look at {path}")))
}

/// What the request gives a container, seen from one that was made for it.
struct Outside {
    mounts: Vec<checkpoint::Mounted>,
    /// Inodes, in the order of [`NAMESPACES`]: the new container's, and the node's.
    namespaces: [u64; 7],
    node: [u64; 7],
}

impl Outside {
    /// Makes the container's init, looks at it, and ends it.
    fn of(request: &CreateRequest) -> Result<Outside, Error> {
        let mut node = [0; 7];
        for (inode, name) in node.iter_mut().zip(NAMESPACES) {
            *inode = namespace("self", name)?;
        }
        // Making it takes this worker into the pod's.
        let home =
            ["net", "ipc", "uts", "pid"].map(|name| File::open(format!("/proc/self/ns/{name}")));
        let made = native::create(request, prepare(request)?, Stdio::default())?;
        let seen = (|| {
            let mut namespaces = [0; 7];
            for (inode, name) in namespaces.iter_mut().zip(NAMESPACES) {
                *inode = namespace(&made.pid.to_string(), name)?;
            }
            let path = format!("/proc/{}/mountinfo", made.pid);
            let text = fs::read_to_string(&path).map_err(Error::io(format!("read {path}")))?;
            Ok(Outside {
                mounts: checkpoint::mounts(&text),
                namespaces,
                node,
            })
        })();
        let mut descriptors = made.descriptors.into_iter();
        if let Some(init) = descriptors.next() {
            let _ = pidfd::send_signal(&init, nix::sys::signal::Signal::SIGKILL as i32);
            pidfd::wait(&init).map_err(Error::io("end the pattern"))?;
        }
        for namespace in home {
            let namespace = namespace.map_err(Error::io("open our own namespaces"))?;
            setns(namespace.as_fd(), CloneFlags::empty())
                .map_err(|e| Error::io("go back to our own namespaces")(e.into()))?;
        }
        seen
    }
}

impl Outside {
    /// The roots of cgroup mounts are told from the root of the reader's cgroup namespace (cgroup_namespaces(7)): that was the node's, and is
    /// `cgroup` from here on.
    fn as_seen_from(&mut self, cgroup: &str) {
        let of_cgroups = |mount: &&mut checkpoint::Mounted| mount.kind.starts_with("cgroup");
        for mount in self.mounts.iter_mut().filter(of_cgroups) {
            if let Ok(below) = mount.root.strip_prefix(cgroup) {
                mount.root = Path::new("/").join(below);
            }
        }
    }
}

/// What was restored, against what was asked for. Nothing of it has run yet.
struct Check<'a> {
    outside: &'a Outside,
    process: &'a Process,
    linux: &'a Linux,
    capabilities: &'a confine::Request,
    cgroup: &'a Cgroup,
    filter: Option<&'a Filter>,
    images: &'a Path,
}

impl Check<'_> {
    fn all(&self, init: i32) -> Result<(), String> {
        let own = std::process::id() as i32;
        let processes = self.cgroup.procs().map_err(|e| e.to_string())?;
        if !processes.contains(&init) {
            return Err("its first process is in another cgroup".into());
        }
        let path = format!("/proc/{init}/mountinfo");
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        same_mounts(&self.outside.mounts, &checkpoint::mounts(&text))?;
        let mut first = [0; 7];
        for (inode, name) in first.iter_mut().zip(NAMESPACES) {
            *inode = namespace(&init.to_string(), name).map_err(|e| e.to_string())?;
        }
        for (at, name) in NAMESPACES.into_iter().enumerate() {
            let (asked, node) = (self.outside.namespaces[at], self.outside.node[at]);
            let kind = match name {
                "net" => LinuxNamespaceType::Network,
                "ipc" => LinuxNamespaceType::Ipc,
                "uts" => LinuxNamespaceType::Uts,
                "pid" => LinuxNamespaceType::Pid,
                "mnt" => LinuxNamespaceType::Mount,
                "user" => LinuxNamespaceType::User,
                _ => LinuxNamespaceType::Cgroup,
            };
            let new = self.linux.namespaces().iter().flatten().any(|namespace| {
                namespace.typ() == kind
                    && namespace
                        .path()
                        .as_ref()
                        .is_none_or(|path| path.as_os_str().is_empty())
            });
            let right = match new {
                true => first[at] != node,
                false => first[at] == asked,
            };
            if !right {
                return Err(format!(
                    "it is in another {name} namespace than was asked for"
                ));
            }
        }
        if let Some(filter) = self.filter {
            self.filters(filter)?;
        }
        for pid in processes.into_iter().filter(|pid| *pid != own) {
            for (inode, name) in first.iter().zip(NAMESPACES) {
                let its = namespace(&pid.to_string(), name).map_err(|e| e.to_string())?;
                if its != *inode {
                    return Err(format!("a process has a {name} namespace of its own"));
                }
            }
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| e.to_string())?;
            for task in tasks {
                let path = task.map_err(|e| e.to_string())?.path().join("status");
                let status = fs::read_to_string(&path).map_err(|e| e.to_string())?;
                self.credentials(&status)?;
            }
            self.environment(pid)?;
        }
        Ok(())
    }

    /// What a thread may do.
    fn credentials(&self, status: &str) -> Result<(), String> {
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .ok_or_else(|| format!("a process without {name}"))
        };
        let bounding = self.capabilities.bounding.bits();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let has = u64::from_str_radix(field(set)?, 16).map_err(|e| e.to_string())?;
            if has & !bounding != 0 {
                return Err(format!(
                    "a process has capabilities that were not asked for ({set} {has:016x}, allowed are {bounding:016x})"
                ));
            }
        }
        if self.process.no_new_privileges() == Some(true) && field("NoNewPrivs")? != "1" {
            return Err("a process may gain privileges".into());
        }
        if self.filter.is_some() && field("Seccomp")? != "2" {
            return Err("a process is without a seccomp filter".into());
        }
        if self.process.user().uid() != 0 {
            let uids = field("Uid")?;
            if uids.split_ascii_whitespace().any(|uid| uid == "0") {
                return Err("a process is root's, which was not asked for".into());
            }
        }
        Ok(())
    }

    /// What the kernel keeps of a process beside that, as the request has it.
    fn environment(&self, pid: i32) -> Result<(), String> {
        if let Some(score) = self.process.oom_score_adj() {
            let path = format!("/proc/{pid}/oom_score_adj");
            let now = fs::read_to_string(&path).map_err(|e| e.to_string())?;
            if now.trim() != score.to_string()
                && let Err(e) = fs::write(&path, score.to_string())
                && e.kind() != std::io::ErrorKind::PermissionDenied
            {
                return Err(format!("{path}: {e}"));
            }
        }
        let profile = self.process.apparmor_profile().as_deref();
        if let Some(profile) = profile.filter(|profile| !profile.is_empty()) {
            let path = format!("/proc/{pid}/attr/apparmor/current");
            let now = fs::read_to_string(&path).unwrap_or_default();
            if now.split(' ').next().map(str::trim) != Some(profile) {
                return Err(format!("a process is not under AppArmor's {profile}"));
            }
        }
        Ok(())
    }

    /// Every chain of filters that the images hold begins with the one that was asked for.
    fn filters(&self, asked: &Filter) -> Result<(), String> {
        let mut image = Vec::new();
        File::open(self.images.join(SECCOMP))
            .and_then(|file| file.take(MAX_SECCOMP_BYTES + 1).read_to_end(&mut image))
            .map_err(|e| format!("{SECCOMP}: {e}"))?;
        let chains = chains(&image).ok_or_else(|| format!("{SECCOMP} is not understood"))?;
        match chains.iter().all(|first| *first == asked.program()) {
            true => Ok(()),
            false => Err("its seccomp filter is another than was asked for".into()),
        }
    }
}

/// The filters without one before them. `None`: not as CRIU writes it (a header of two words, a length, and `seccomp_entry`).
fn chains(image: &[u8]) -> Option<Vec<&[u8]>> {
    if image.len() as u64 > MAX_SECCOMP_BYTES {
        return None;
    }
    let (length, entry) = image.get(8..)?.split_first_chunk::<4>()?;
    if entry.len() != u32::from_le_bytes(*length) as usize {
        return None;
    }
    let mut first = Vec::new();
    let mut rest = entry;
    while !rest.is_empty() {
        let (1, Value::Bytes(filter)) = field(&mut rest)? else {
            return None;
        };
        let (mut program, mut follows) = (None, false);
        let mut fields = filter;
        while !fields.is_empty() {
            match field(&mut fields)? {
                // Said twice, another reader may hold to the other.
                (1, Value::Bytes(bytes)) if program.is_none() => program = Some(bytes),
                (2, Value::Number) if !follows => follows = true,
                (3, Value::Number) => {}
                _ => return None,
            }
        }
        let program = program?;
        if !follows {
            first.push(program);
        }
    }
    Some(first)
}

enum Value<'a> {
    Number,
    Bytes(&'a [u8]),
}

/// One field of a protobuf message; only the two kinds that are needed.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = number(rest)?;
    let value = match tag & 7 {
        0 => {
            number(rest)?;
            Value::Number
        }
        2 => {
            let length = usize::try_from(number(rest)?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            *rest = after;
            Value::Bytes(bytes)
        }
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for at in 0..10 {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Mounts in the same places, of the same kinds, with the same flags; those from outside of the same files.
fn same_mounts(
    asked: &[checkpoint::Mounted],
    restored: &[checkpoint::Mounted],
) -> Result<(), String> {
    let own = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"];
    let facts = |mounts: &[checkpoint::Mounted]| {
        let mut facts: Vec<_> = mounts
            .iter()
            .map(|mount| {
                // What was made for the container is made anew, and has another number.
                let of = match own.contains(&mount.kind.as_str()) {
                    true => String::new(),
                    false => mount.device.clone(),
                };
                let mut flags: Vec<&str> = mount.flags.split(',').collect();
                flags.sort_unstable();
                (
                    mount.at.clone(),
                    mount.kind.clone(),
                    of,
                    mount.root.clone(),
                    flags.join(","),
                    mount.peers,
                )
            })
            .collect();
        facts.sort();
        facts
    };
    let (asked, restored) = (facts(asked), facts(restored));
    for mount in &restored {
        if !asked.contains(mount) {
            let (at, kind, _, root, flags, _) = mount;
            return Err(format!(
                "the mount {} ({kind} {}, {flags}) was not asked for",
                at.display(),
                root.display()
            ));
        }
    }
    match asked.len() == restored.len() {
        true => Ok(()),
        false => {
            let missing = asked.iter().find(|mount| !restored.contains(mount));
            let at = missing.map_or(Path::new("/"), |mount| &mount.0);
            Err(format!(
                "a mount is missing, or is there twice: {}",
                at.display()
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(entry: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 8];
        image.extend((entry.len() as u32).to_le_bytes());
        image.extend(entry);
        image
    }

    #[test]
    fn only_filters_that_begin_a_chain_are_compared_sec_img_14() {
        let one = [0x0a, 4, 0x0a, 2, 7, 8];
        let after = [0x0a, 6, 0x0a, 2, 1, 2, 0x10, 0];
        let with_flags = [0x0a, 6, 0x0a, 2, 7, 8, 0x18, 1];
        let chain = [&one[..], &after, &with_flags].concat();
        assert_eq!(chains(&image(&chain)).unwrap(), [[7, 8], [7, 8]]);
        assert!(chains(&image(&[])).unwrap().is_empty());
        for bad in [
            &[0x0a, 9, 0][..],
            // Two programs, and a kind that is none of these.
            &[0x0a, 8, 0x0a, 2, 7, 8, 0x0a, 2, 1, 2],
            &[0x0a, 2, 0x10, 0],
            &[0x12, 0],
            &[0x0d, 0, 0, 0, 0],
            &[0xff; 12],
        ] {
            assert!(chains(&image(bad)).is_none(), "{bad:?}");
        }
        let mut long = image(&one);
        long.push(0);
        assert!(chains(&long).is_none());
        assert!(chains(&[1, 2, 3]).is_none());
    }

    #[test]
    fn a_mount_that_differs_in_anything_is_named_sec_img_14() {
        let asked = "1 0 0:50 / / rw - overlay b rw\n2 1 0:51 / /proc rw,nosuid - proc p rw\n3 1 8:1 /v /v ro - ext4 d rw\n";
        let same = "7 0 0:50 / / rw - overlay b rw\n8 7 8:1 /v /v ro - ext4 d rw\n9 7 0:99 / /proc nosuid,rw - proc p rw\n";
        let of = checkpoint::mounts;
        same_mounts(&of(asked), &of(same)).unwrap();
        for (from, to, named) in [
            ("/v ro", "/v rw", "/v"),
            ("8:1 /v", "8:1 /etc", "/v"),
            ("8:1 /v", "8:2 /v", "/v"),
            ("nosuid,rw", "rw", "/proc"),
            ("- proc p", "- sysfs p", "/proc"),
            ("/v ro - ", "/v ro shared:5 - ", "/v"),
        ] {
            let other = same.replace(from, to);
            let why = same_mounts(&of(asked), &of(&other)).unwrap_err();
            assert!(why.contains(named), "{from} -> {to}: {why}");
        }
        let more = format!("{same}10 7 8:1 /root /root rw - ext4 d rw\n");
        assert!(same_mounts(&of(asked), &of(&more)).is_err());
        let fewer: String = same
            .lines()
            .take(2)
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(same_mounts(&of(asked), &of(&fewer)).is_err());
    }

    #[test]
    fn a_stream_can_not_be_given_another_things_name_sec_img_14() {
        let dir = tempfile::tempdir().unwrap();
        for (text, good) in [
            (r#"["file[18:3]","pipe:[1]","pipe:[2]"]"#, true),
            (r#"["","pipe:[1]","pipe:[1]"]"#, true),
            (r#"["extNetNs","pipe:[1]","pipe:[2]"]"#, false),
            (r#"["pipe:[1]x","pipe:[1]","pipe:[2]"]"#, false),
            (r#"["pipe:[1]"]"#, false),
            ("{}", false),
        ] {
            fs::write(dir.path().join(DESCRIPTORS), text).unwrap();
            assert_eq!(descriptors(dir.path()).is_ok(), good, "{text}");
        }
    }
}
