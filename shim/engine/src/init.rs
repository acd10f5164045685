//! A container's init by libcontainer, in a worker.
//!
//! What is ours and not libcontainer's: the cgroup and its limits (it would parse mountinfo for each controller, and fails where
//! one that a limit names is absent), the seccomp filter, the last trimming of capabilities and the execve itself (its
//! `Executor` hook), and how a failing command is told.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::CString,
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{fs::DirBuilderExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use berth_kernel::signals;
use libcontainer::{
    container::builder::ContainerBuilder,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::sys::{
    signal::Signal,
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use oci_spec::runtime::{Linux, LinuxCapabilities, Process, Spec};
use rustix::{mount::MountPropagationFlags, thread::CapabilitySet};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Maker, Stdio,
    cgroup::Cgroup,
    channel, command,
    complaints::Complaints,
    confine,
    filter::{self, Filter},
    hooks::Hooks,
    native, process,
    record::{self, Record},
    request::{CreateRequest, cut},
    restore,
    worker::Made,
};

/// The longest config.json: a pod with some thousand mounts and variables stays below 2 MiB.
pub(crate) const MAX_SPEC_BYTES: u64 = 16 << 20;

/// What init tells when its command could not be run; nothing is told when it could.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub exit_code: i32,
    pub message: String,
}

/// Reads and checks a bundle's spec.
pub(crate) fn load_spec(id: &str, bundle: &Path) -> Result<Spec, Error> {
    let path = bundle.join("config.json");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_SPEC_BYTES + 1).read_to_end(&mut text))
        .map_err(Error::io(format!("read {}", path.display())))?;
    let refuse = |reason: String| Error::Spec {
        id: id.to_owned(),
        reason,
    };
    if text.len() as u64 > MAX_SPEC_BYTES {
        return Err(refuse(format!("longer than {MAX_SPEC_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))
}

/// What no engine of ours honours yet must not be dropped in silence (SEC-ENG-10).
pub(crate) fn refuse_unbuilt(id: &str, process: &Process) -> Result<(), Error> {
    if process
        .selinux_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        return Err(Error::Spec {
            id: id.to_owned(),
            reason: "process.selinuxLabel is not built".into(),
        });
    }
    Ok(())
}

pub(crate) fn create(
    request: &CreateRequest,
    stdio: Stdio,
    reply: &OwnedFd,
) -> Result<Made, Error> {
    let made = match &request.restore {
        Some(from) => restore::restore(request, from, stdio),
        None => make(request, stdio, reply),
    };
    let made = made.and_then(|made| {
        berth_failpoint::site!("engine.create.made").map_err(Error::io("make the container"))?;
        Ok(made)
    });
    if made.is_err() {
        end_children();
    }
    made
}

fn make(request: &CreateRequest, stdio: Stdio, reply: &OwnedFd) -> Result<Made, Error> {
    prepare(request).and_then(|prepared| {
        if request.maker == Maker::Native && native::unsupported(&prepared).is_none() {
            native::create(request, prepared, stdio)
        } else {
            by_libcontainer(request, prepared, stdio, reply)
        }
    })
}

/// A container's spec taken apart, its record written, its cgroup made and limited.
pub(crate) struct Prepared {
    pub spec: Spec,
    pub process: Process,
    pub linux: Linux,
    pub cgroup: Cgroup,
    pub notes: Vec<String>,
    pub filter: Option<Filter>,
    pub capabilities: confine::Request,
    pub args: Vec<CString>,
    pub env: Vec<CString>,
}

/// What every way of making a container begins with. What it makes is removed by the engine's `delete`, whatever fails here.
pub(crate) fn prepare(request: &CreateRequest) -> Result<Prepared, Error> {
    let id = &request.id;
    let refuse = |reason: &str| Error::Spec {
        id: id.clone(),
        reason: reason.to_owned(),
    };
    let spec = load_spec(id, &request.bundle)?;
    let process = spec
        .process()
        .clone()
        .ok_or_else(|| refuse("has no process"))?;
    let linux = spec.linux().clone().ok_or_else(|| refuse("has no linux"))?;
    refuse_unbuilt(id, &process)?;
    let late_hooks = Hooks::of(id, &spec, &request.bundle)?;
    let cgroup_path = linux.cgroups_path().as_ref().and_then(|path| path.to_str());
    let cgroup_path = cgroup_path.ok_or_else(|| refuse("has no linux.cgroupsPath"))?;
    let cgroup = Cgroup::by(request.systemd_cgroup, cgroup_path)?;

    Record {
        cgroup: cgroup.path().to_owned(),
        systemd_cgroup: request.systemd_cgroup,
        bundle: request.bundle.clone(),
        no_new_privileges: process.no_new_privileges() == Some(true),
        seccomp: linux.seccomp().is_some(),
        memory_policy: linux.memory_policy().clone(),
    }
    .write(&request.directory)?;
    if let Some(hooks) = late_hooks {
        hooks.write(&request.directory)?;
    }
    berth_failpoint::site!("engine.create.recorded").map_err(Error::io("record the container"))?;
    let notes = cgroup.make(linux.resources().as_ref())?;
    berth_failpoint::site!("engine.create.limited").map_err(Error::io("limit the container"))?;
    let filter = match linux.seccomp() {
        Some(profile) => Some(filter::prepare(
            profile,
            request.seccomp_cache_dir.as_deref(),
            &record::seccomp_path(&request.directory),
        )?),
        None => None,
    };
    let capabilities =
        confine::Request::of(&process).map_err(Error::io("read our own capabilities"))?;
    let args = command::c_strings("argument", process.args().as_deref().unwrap_or_default())?;
    let env = command::c_strings(
        "environment entry",
        process.env().as_deref().unwrap_or_default(),
    )?;
    Ok(Prepared {
        spec,
        process,
        linux,
        cgroup,
        notes,
        filter,
        capabilities,
        args,
        env,
    })
}

/// libcontainer 0.7 refuses id-mapped mounts, makes device nodes where a user namespace does not allow it, and knows no user namespace that
/// others share.
fn refuse_mapped_ids(spec: &Spec, linux: &Linux) -> Result<(), String> {
    let mut namespaces = linux.namespaces().iter().flatten();
    if namespaces.any(|n| n.typ() == oci_spec::runtime::LinuxNamespaceType::User) {
        return Err("a user namespace".into());
    }
    let mapped = |mount: &&oci_spec::runtime::Mount| {
        let mut options = mount.options().iter().flatten();
        mount.uid_mappings().is_some()
            || mount.gid_mappings().is_some()
            || options.any(|option| option == "idmap" || option == "ridmap")
    };
    match spec.mounts().iter().flatten().find(mapped) {
        Some(mount) => Err(format!(
            "the id-mapped mount {}",
            mount.destination().display()
        )),
        None => Ok(()),
    }
}

fn by_libcontainer(
    request: &CreateRequest,
    prepared: Prepared,
    stdio: Stdio,
    reply: &OwnedFd,
) -> Result<Made, Error> {
    // libcontainer writes the state to a hook's stdin, which a hook may close unread. The command's own signals are reset at its execve.
    signals::ignore(Signal::SIGPIPE as i32).map_err(Error::io("ignore SIGPIPE"))?;
    let Prepared {
        mut spec,
        mut process,
        mut linux,
        cgroup,
        notes,
        filter,
        capabilities,
        args,
        env,
    } = prepared;
    let id = &request.id;
    let refuse = |reason: &str| Error::Spec {
        id: id.clone(),
        reason: reason.to_owned(),
    };
    refuse_mapped_ids(&spec, &linux).map_err(|what| {
        refuse(&format!(
            "has {what}, which only the native engine builds, and what is for libcontainer"
        ))
    })?;
    let (report, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(Error::errno("make the report pipe"))?;
    let told = Rc::new(told);
    let mut last_steps = LastSteps {
        capabilities,
        filter: filter.map(Rc::new),
        no_new_privileges: process.no_new_privileges() == Some(true),
        args,
        env: Rc::new(RefCell::new(env)),
        uid: process.user().uid(),
        report: Rc::clone(&told),
        propagation: propagation(&spec),
        reply: reply.as_raw_fd(),
        log: None,
    };

    // Here, so that one which can't be given is no failure.
    process::adjust_oom_score(None, &process)?;
    process.set_oom_score_adj(None);
    // libcontainer gets what it is to do, and the capabilities that the last steps need on top of the request.
    linux
        .set_seccomp(None)
        .set_resources(None)
        .set_cgroups_path(Some(cgroup.path().into()));
    // It knows these without their "r", and means them recursively.
    let propagation = linux.rootfs_propagation().as_deref();
    if let Some(name) = propagation.and_then(|name| name.strip_prefix('r')) {
        let name = name.to_owned();
        linux.set_rootfs_propagation(Some(name));
    }
    process
        .set_capabilities(Some(widened(&capabilities)?))
        .set_terminal(Some(request.tty));
    let root = spec.root().clone().ok_or_else(|| refuse("has no root"))?;
    let root_path = request.bundle.join(root.path());
    let uid = process.user().uid();
    let gid = process.user().gid();
    spec.set_linux(Some(linux))
        .set_process(Some(process))
        .set_root(Some({
            let mut root = root;
            root.set_path(root_path);
            root
        }));
    let bundle = request.directory.join("bundle");
    make_directory(&bundle)?;
    let config = bundle.join("config.json");
    let text = serde_json::to_vec(&spec).map_err(|e| refuse(&e.to_string()))?;
    fs::write(&config, text).map_err(Error::io(format!("write {}", config.display())))?;

    check_sources(&spec, id)?;
    check_net_devices(&spec, id)?;
    make_working_directory(&spec)?;
    let complaints = Complaints::listen().map_err(Error::io("keep libcontainer's log"))?;
    last_steps.log = Some(complaints.descriptors());
    let mut complaints = Some(complaints);
    let mut build_failed = |e: &dyn std::error::Error| Error::Create {
        id: id.clone(),
        reason: match complaints.take().and_then(Complaints::first) {
            Some(cause) => format!("{cause} ({})", chain(e)),
            None => chain(e),
        },
    };
    let mut builder = ContainerBuilder::new(id.clone(), SyscallType::default())
        .with_root_path(&request.directory)
        .map_err(|e| build_failed(&e))?
        .with_executor(last_steps);
    let console = if request.tty {
        Some(console_socket(&request.directory)?)
    } else {
        None
    };
    if console.is_some() {
        builder = builder.with_console_socket(Some("../console.sock"));
    } else {
        let [stdin, stdout, stderr] = streams(stdio, uid, gid)?;
        builder = builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr);
    }
    // libcontainer moves its processes into the cgroups of controllers, not into these; children inherit them. Right before it
    // does so: moves shortly after another share its wait for an RCU grace period.
    cgroup.add_to_uncontrolled(std::process::id() as i32)?;
    let container = builder
        .as_init(&bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| build_failed(&e))?;
    drop(told);
    let pid = container
        .pid()
        .ok_or_else(|| {
            build_failed(&std::io::Error::other(
                "libcontainer made a container without a pid",
            ))
        })?
        .as_raw();
    // Our child, not reaped: the pid is still its.
    let pidfd = berth_kernel::pidfd::open(pid).map_err(Error::io("open the container's init"))?;
    let mut descriptors = vec![pidfd, report];
    if let Some(listener) = console {
        descriptors.push(receive_console(&listener)?);
        let _ = fs::remove_file(request.directory.join("console.sock"));
    }
    Ok(Made {
        pid,
        maker: Maker::Libcontainer,
        notes,
        descriptors,
    })
}

/// Ends what a failed create left running: every child of this worker, so that none passes to the shim, which knows of none.
/// Cgroups and files are the shim's to remove, which can do so too when this worker is killed.
fn end_children() {
    for _ in 0..END_CHILDREN_TRIES {
        for pid in children() {
            if let Ok(process) = berth_kernel::pidfd::open(pid) {
                let _ = berth_kernel::pidfd::send_signal(process, Signal::SIGKILL as i32);
            }
        }
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(nix::errno::Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(END_CHILDREN_PAUSE),
            _ => {}
        }
    }
}

/// A second in all: a killed process ends within a millisecond, but for one that waits for a disk.
const END_CHILDREN_TRIES: usize = 1000;
const END_CHILDREN_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// Our children that are not reaped yet: their pids can't be reused.
pub(crate) fn children() -> Vec<i32> {
    let path = format!("/proc/self/task/{}/children", std::process::id());
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

/// The kernel's answer to a name that it does not know has no name in it.
fn check_net_devices(spec: &Spec, id: &str) -> Result<(), Error> {
    let devices = spec.linux().iter().flat_map(|linux| linux.net_devices());
    for name in devices.flat_map(HashMap::keys) {
        nix::net::if_::if_nametoindex(name.as_str()).map_err(|errno| Error::Create {
            id: id.to_owned(),
            reason: format!("network device {name:?} to be moved into the container: {errno}"),
        })?;
    }
    Ok(())
}

/// A mount source that is missing is the most usual mistake, and deserves better words than libcontainer's.
fn check_sources(spec: &Spec, id: &str) -> Result<(), Error> {
    for mount in spec.mounts().iter().flatten() {
        let bind = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|option| option == "bind" || option == "rbind");
        let Some(source) = mount.source().as_ref().filter(|_| bind) else {
            continue;
        };
        if let Err(error) = fs::metadata(source) {
            let reason = format!(
                "mount {} on {}: {error}",
                source.display(),
                mount.destination().display()
            );
            return Err(Error::Create {
                id: id.to_owned(),
                reason,
            });
        }
    }
    Ok(())
}

/// libcontainer makes none. What lies in a mount can't be made before it is there: this is for the others.
fn make_working_directory(spec: &Spec) -> Result<(), Error> {
    let (Some(process), Some(root)) = (spec.process(), spec.root()) else {
        return Ok(());
    };
    let (cwd, root) = (process.cwd(), root.path());
    let in_a_mount = spec
        .mounts()
        .iter()
        .flatten()
        .any(|mount| cwd.starts_with(mount.destination()));
    if in_a_mount || !cwd.is_absolute() {
        return Ok(());
    }
    let root = File::open(root).map_err(Error::io(format!("open {}", root.display())))?;
    // Where it can't be made, entering it tells why.
    let _ = berth_beneath::ensure_directory(root, cwd);
    Ok(())
}

/// The propagation that bind mounts ask for; the last word counts, as with mount(8).
fn propagation(spec: &Spec) -> Vec<(PathBuf, MountPropagationFlags)> {
    let flags = |option: &str| {
        let (name, recursive) = match option.strip_prefix('r') {
            Some(name) => (name, MountPropagationFlags::REC),
            None => (option, MountPropagationFlags::empty()),
        };
        let kind = match name {
            "private" => MountPropagationFlags::PRIVATE,
            "slave" => MountPropagationFlags::DOWNSTREAM,
            "shared" => MountPropagationFlags::SHARED,
            "unbindable" => MountPropagationFlags::UNBINDABLE,
            _ => return None,
        };
        Some(kind | recursive)
    };
    let mounts = spec.mounts().iter().flatten();
    mounts
        .filter_map(|mount| {
            let asked = mount
                .options()
                .iter()
                .flatten()
                .rev()
                .find_map(|option| flags(option))?;
            Some((mount.destination().clone(), asked))
        })
        .collect()
}

/// The request and what the last steps need, as a spec says it.
fn widened(request: &confine::Request) -> Result<LinuxCapabilities, Error> {
    let own = rustix::thread::capabilities(None)
        .map_err(Error::errno("read our own capabilities"))?
        .permitted;
    let also = |set: CapabilitySet| Some(confine::names((set | confine::needed()) & own));
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(also(request.bounding))
        .set_effective(also(request.permitted))
        .set_permitted(also(request.permitted))
        .set_inheritable(Some(confine::names(CapabilitySet::empty())))
        .set_ambient(Some(confine::names(CapabilitySet::empty())));
    Ok(capabilities)
}

/// The streams as given, `/dev/null` for the absent. The container's user owns them: a command that opens `/dev/stdout` anew
/// would be refused else.
pub(crate) fn streams(stdio: Stdio, uid: u32, gid: u32) -> Result<[OwnedFd; 3], Error> {
    let own = |stream: Option<OwnedFd>, write: bool| -> Result<OwnedFd, Error> {
        let Some(stream) = stream else {
            let null = fs::OpenOptions::new()
                .read(!write)
                .write(write)
                .open("/dev/null");
            return null.map(Into::into).map_err(Error::io("open /dev/null"));
        };
        let kind = rustix::fs::fstat(&stream)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        // Only what was made for this container: a pipe or a socket. A file or a device has an owner of its own.
        if matches!(
            kind,
            Ok(rustix::fs::FileType::Fifo | rustix::fs::FileType::Socket)
        ) {
            let (uid, gid) = (
                rustix::fs::Uid::from_raw(uid),
                rustix::fs::Gid::from_raw(gid),
            );
            let _ = rustix::fs::fchown(&stream, Some(uid), Some(gid));
        }
        Ok(stream)
    };
    Ok([
        own(stdio.stdin, false)?,
        own(stdio.stdout, true)?,
        own(stdio.stderr, true)?,
    ])
}

/// libcontainer sends the console's master to a socket by path, linked from its own directory.
fn console_socket(directory: &Path) -> Result<UnixListener, Error> {
    // By way of the directory's descriptor: a socket's path has room for 107 bytes.
    let at = File::open(directory).map_err(Error::io(format!("open {}", directory.display())))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/console.sock", at.as_raw_fd()));
    UnixListener::bind(path).map_err(Error::io("make the console's socket"))
}

fn receive_console(listener: &UnixListener) -> Result<OwnedFd, Error> {
    let step = || Error::io("receive the console");
    let (connection, _) = listener.accept().map_err(step())?;
    let mut name = [0; 256];
    let (_, mut descriptors) = channel::receive(connection.as_fd(), &mut name).map_err(step())?;
    descriptors
        .pop()
        .ok_or_else(|| step()(std::io::Error::other("no descriptor came")))
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(Error::io(format!("make {}", path.display())))
}

/// An error with its causes, as one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    cut(text)
}

/// What init does last, in libcontainer's hook: in the container, as its user, holding the widened capabilities.
#[derive(Clone)]
struct LastSteps {
    capabilities: confine::Request,
    filter: Option<Rc<Filter>>,
    no_new_privileges: bool,
    args: Vec<CString>,
    env: Rc<RefCell<Vec<CString>>>,
    uid: u32,
    /// Where a failure is told; closed by execve.
    report: Rc<OwnedFd>,
    /// What libcontainer 0.7 leaves out: the propagation of each bind mount.
    propagation: Vec<(PathBuf, MountPropagationFlags)>,
    /// The worker's socket, which a fork of it has too.
    reply: RawFd,
    /// libcontainer's log, which it has too.
    log: Option<RawFd>,
}

impl Executor for LastSteps {
    /// Runs before init waits for its start. A missing command is no error yet: it is the container's own, told at start.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        // In the container's root by now, and still with the capability that it takes.
        for (destination, flags) in &self.propagation {
            rustix::mount::mount_change(destination, *flags).map_err(|error| {
                let what = format!(
                    "set the propagation of mount {}: {error}",
                    destination.display()
                );
                tracing::error!("{what}");
                ExecutorValidationError::ArgValidationError(what)
            })?;
        }
        for descriptor in [Some(self.reply), self.log].into_iter().flatten() {
            let _ = nix::unistd::close(descriptor);
        }
        Ok(())
    }

    /// The environment goes to execve as it was given, in its order; this process's own is not touched.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        command::ensure_home(&mut self.env.borrow_mut(), self.uid);
        Ok(())
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let error = match confine::run(
            &self.capabilities,
            self.filter.as_deref(),
            self.no_new_privileges,
            &self.args,
            &self.env.borrow(),
        ) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        berth_kernel::clone::exit_now(tell(&self.report, error));
    }
}

/// Tells why a command could not be run; answers the exit code that the process is to end with.
pub(crate) fn tell(report: &OwnedFd, error: Error) -> i32 {
    let told = match error {
        Error::Command { exit_code, message } => Report {
            exit_code,
            message: cut(message),
        },
        other => Report {
            exit_code: 128,
            message: cut(other.to_string()),
        },
    };
    let bytes = serde_json::to_vec(&told).unwrap_or_default();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        match rustix::io::write(report, rest) {
            Ok(n) => rest = &rest[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => break,
        }
    }
    told.exit_code
}

/// Reads a report to its end: `Ok(())` where execve closed it, or the process died before it had anything to tell.
pub(crate) fn hear(report: OwnedFd) -> Result<(), Error> {
    /// Longer than [`tell`] ever writes.
    const MAX_REPORT_BYTES: u64 = 64 << 10;
    let mut bytes = Vec::new();
    File::from(report)
        .take(MAX_REPORT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(Error::io("read a process's report"))?;
    if bytes.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<Report>(&bytes) {
        Ok(report) => Err(Error::Command {
            exit_code: report.exit_code,
            message: report.message,
        }),
        Err(_) => Err(Error::Command {
            exit_code: 128,
            message: cut(String::from_utf8_lossy(&bytes).into_owned()),
        }),
    }
}
