//! A command in a running container: our own, since libcontainer's exec runs without the container's seccomp filter and leaves a
//! socket file behind.
//!
//! The worker opens what it needs of the node (cgroups, /proc), enters the namespaces of the container's init by its pidfd, and
//! forks the process, which then is in the pid namespace too. That process takes the steps of [`become_command`] in order; each comes
//! before the one that would forbid it. It is the worker's child and passes to the shim as an init does.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        linux::fs::MetadataExt,
    },
};

use berth_kernel::{
    clone::{Clone, SingleThreaded},
    pidfd,
    userns::{self, IdMaps},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::prctl,
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use oci_spec::runtime::{LinuxMemoryPolicy, Process};

use crate::{
    Error, Maker, Stdio,
    cgroup::{Cgroup, Entrance},
    command, confine, console,
    filter::Filter,
    idmap,
    init::{self, load_spec, refuse_unbuilt, streams},
    memory_policy, process,
    record::{self, Record},
    request::ExecRequest,
    worker::Made,
};

/// All that the process needs, worked out before the container is entered.
struct Plan {
    process: Process,
    args: Vec<CString>,
    env: Vec<CString>,
    capabilities: confine::Request,
    filter: Option<Filter>,
    no_new_privileges: bool,
    memory_policy: Option<LinuxMemoryPolicy>,
    cgroup: Entrance,
    /// The node's `/proc`, for what must not be read through the container's.
    proc: OwnedFd,
}

/// What fails because the container has ended meanwhile (its cgroup may be gone before its last process is reaped) fails for that reason.
pub(crate) fn exec(request: &ExecRequest, stdio: Stdio, init: &OwnedFd) -> Result<Made, Error> {
    begin(request, stdio, init).map_err(|error| match pidfd::send_signal(init, 0) {
        Err(_) if !matches!(error, Error::Command { .. }) => not_running(request),
        _ => error,
    })
}

fn not_running(request: &ExecRequest) -> Error {
    Error::Unfit {
        step: format!("exec in container {}", request.id),
        reason: "it is not running".into(),
    }
}

fn begin(request: &ExecRequest, stdio: Stdio, init: &OwnedFd) -> Result<Made, Error> {
    let mut plan = plan(request)?;
    // Asked of /proc before it is the container's.
    let single_threaded = SingleThreaded::prove().map_err(Error::io("look for threads"))?;
    process::adjust_oom_score(Some(request.pid), &plan.process)?;
    let userns = Userns::of(request.pid)?;
    let own = Own {
        user: userns.is_some(),
        cgroup: is_another(request.pid, "cgroup")?,
    };
    let user = plan.process.user();
    let owner = idmap::on_the_node(
        &request.id,
        userns.as_ref().map(|userns| &userns.0),
        user.uid(),
        user.gid(),
    )?;
    // /proc/<pid> above was init's, if init still is now.
    if pidfd::send_signal(init, 0).is_err() {
        return Err(not_running(request));
    }
    let enter = |namespaces: CloneFlags| {
        setns(init, namespaces).map_err(|e| {
            Error::io(format!("enter the namespaces of container {}", request.id))(e.into())
        })
    };
    if userns.is_some() {
        process::raise_limits(&plan.process)?;
    }
    enter(NAMESPACES)?;

    let (terminal, stdio) = if request.tty {
        let (master, slave) = match &userns {
            None => console::open(&plan.process)?,
            Some(userns) => userns.open_console(&plan.process)?,
        };
        console::give(&slave, owner);
        let again = || slave.try_clone().map_err(Error::io("duplicate a terminal"));
        (Some(master), [again()?, again()?, slave])
    } else {
        (None, streams(stdio, owner.0, owner.1)?)
    };
    // Last: who has entered gives no more files away outside.
    if userns.is_some() {
        enter(CloneFlags::CLONE_NEWUSER)?;
    }
    let (report, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(Error::errno("make the report pipe"))?;
    let born_in = plan.cgroup.born_in.take();
    let birth = Clone {
        cgroup: born_in.as_ref().map(AsFd::as_fd),
        ..Clone::default()
    };
    let child = birth
        .spawn(single_threaded, || {
            let error = match become_command(plan, init, stdio, (request.tty, own), &told) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            init::tell(&told, error)
        })
        .map_err(Error::io(format!("fork in container {}", request.id)))?;
    drop(told);
    if let Err(error) = init::hear(report) {
        // It ends by itself; here nobody else would reap it.
        let _ = pidfd::wait(&child.pidfd);
        return Err(error);
    }
    let mut descriptors = vec![child.pidfd];
    descriptors.extend(terminal);
    Ok(Made {
        pid: child.pid,
        maker: Maker::Native,
        notes: Vec::new(),
        descriptors,
    })
}

fn plan(request: &ExecRequest) -> Result<Plan, Error> {
    let record = Record::read(&request.directory)?
        .ok_or_else(|| Error::UnknownContainer(request.id.clone()))?;
    let mut process = request.process.clone();
    refuse_unbuilt(&request.id, &process)?;
    // What is not named is the container's own.
    if process.capabilities().is_none()
        || process.rlimits().is_none()
        || process.apparmor_profile().is_none()
    {
        let spec = load_spec(&request.id, &record.bundle)?;
        if let Some(own) = spec.process() {
            if process.capabilities().is_none() {
                process.set_capabilities(own.capabilities().clone());
            }
            if process.rlimits().is_none() {
                process.set_rlimits(own.rlimits().clone());
            }
            if process.apparmor_profile().is_none() {
                process.set_apparmor_profile(own.apparmor_profile().clone());
            }
        }
    }
    let filter = if record.seccomp {
        Some(Filter::read(&record::seccomp_path(&request.directory))?)
    } else {
        None
    };
    let cgroup = Cgroup::at(&record.cgroup)?.entrance()?;
    let proc = process::open_proc()?;
    Ok(Plan {
        args: command::c_strings("argument", process.args().as_deref().unwrap_or_default())?,
        env: command::c_strings(
            "environment entry",
            process.env().as_deref().unwrap_or_default(),
        )?,
        capabilities: confine::Request::of(&process)
            .map_err(Error::io("read our own capabilities"))?,
        filter,
        // Never less than init has (SEC-ENG-09).
        no_new_privileges: record.no_new_privileges || process.no_new_privileges() == Some(true),
        memory_policy: record.memory_policy,
        cgroup,
        proc,
        process,
    })
}

/// All that a container can have but the cgroup namespace and the user namespace.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// Namespaces of the container's that are not ours, of those that its init may share with us.
struct Own {
    user: bool,
    cgroup: bool,
}

/// Whether a process is in another namespace of a kind than this one.
fn is_another(pid: i32, name: &str) -> Result<bool, Error> {
    let inode = |pid: &str| {
        let path = format!("/proc/{pid}/ns/{name}");
        fs::metadata(&path)
            .map(|m| m.st_ino())
            .map_err(Error::io(format!("look at {path}")))
    };
    Ok(inode(&pid.to_string())? != inode("self")?)
}

/// The maps of a container's own user namespace.
struct Userns(IdMaps);

impl Userns {
    /// None: it is in ours, which the kernel refuses to enter again.
    fn of(init: i32) -> Result<Option<Userns>, Error> {
        if !is_another(init, "user")? {
            return Ok(None);
        }
        IdMaps::of_process(init)
            .map(|maps| Some(Userns(maps)))
            .map_err(Error::io("read the maps of the container's user namespace"))
    }

    /// As the container's root, and with none of the node's power over files: what lies at the path is the container's to say.
    fn open_console(&self, process: &Process) -> Result<(OwnedFd, OwnedFd), Error> {
        let step = Error::io("open a terminal in the container's user namespace");
        let Some((uid, gid)) = self.0.uid(0).zip(self.0.gid(0)) else {
            return Err(step(std::io::Error::other("it has no root")));
        };
        let become_user = |uid: u32, gid: u32| {
            setfsgid(Gid::from_raw(gid));
            setfsuid(Uid::from_raw(uid));
        };
        become_user(uid, gid);
        let opened = console::open(process);
        become_user(0, 0);
        opened
    }
}

/// The exec's process from its first instant to execve.
fn become_command(
    plan: Plan,
    init: &OwnedFd,
    stdio: [OwnedFd; 3],
    (tty, own): (bool, Own),
    told: &OwnedFd,
) -> Result<std::convert::Infallible, Error> {
    let Plan {
        process,
        args,
        mut env,
        capabilities,
        filter,
        no_new_privileges,
        memory_policy: policy,
        cgroup,
        proc,
    } = plan;
    cgroup
        .enter()
        .map_err(Error::io("join the container's cgroup"))?;
    memory_policy::set(policy.as_ref())?;
    // Last of the namespaces: one's own cgroup must be seen from where one moves to another.
    // The node's is open only to the node's root.
    if own.cgroup {
        setns(init, CloneFlags::CLONE_NEWCGROUP)
            .map_err(|e| Error::io("enter the container's cgroup namespace")(e.into()))?;
    }
    process::set_apparmor(&process, &proc)?;
    if own.user {
        userns::become_root()
            .map_err(Error::io("become root of the container's user namespace"))?;
    }
    prctl::set_name(c"berth-exec").ok();
    // From here on nothing of the node is open: a working directory of /proc/self/fd/7 leads nowhere (CVE-2024-21626). The owners
    // of the rest in this copy of the worker's memory must not close numbers that are gone.
    std::mem::forget((cgroup, proc));
    process::take_streams(stdio, tty, &[told.as_fd()])?;
    process::settle(&process, &capabilities)?;
    command::ensure_home(&mut env, process.user().uid());
    confine::run(
        &capabilities,
        filter.as_ref(),
        no_new_privileges,
        &args,
        &env,
    )
}
