//! Our own way of making a container: the fewest system calls, in a process that is born where it is to be.
//!
//! ```text
//!   worker                                init
//!   ──────                                ────
//!   prepare: record, cgroup, filter
//!   join the namespaces that are given
//!   clone3: new namespaces, v2 cgroup ──▶ enter the v1 cgroups (by itself: no lock of the whole machine is taken)
//!        │                                build the root, pivot into it
//!        │                                streams, limits, user
//!        │ ◀── [`Birth`], the console ──── made
//!   answer, exit                          waits for one byte from the shim
//!                                         capabilities, seccomp, execve
//! ```
//!
//! One socket goes from init to the shim: how the birth went, then the byte that starts it, then why its command can't be run;
//! execve closes it. Where the shim ends before the start, so does init.
//!
//! In a user namespace the worker builds the root, and enters it before init is born ([`userns`]); init then completes the root.
//!
//! What is not built here ([`unsupported`]) is made by libcontainer, the reference.

mod beneath;
mod device;
mod mount;
mod root;
mod userns;

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_kernel::{
    clone::{Clone, SingleThreaded},
    pidfd,
};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::prctl,
};
use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Maker, Stdio,
    cgroup::Entrance,
    channel, command, confine, console, hooks, idmap,
    init::{self, Prepared, streams},
    memory_policy, process,
    request::{CreateRequest, Failure},
    worker::Made,
};

use userns::{IdMap, Userns};

/// What starts a container's command.
const START: &[u8] = b"s";

/// How it went until just before the command.
#[derive(Debug, Serialize, Deserialize)]
enum Birth {
    /// With the console's master, where a terminal was asked for.
    Made,
    Failed(Failure),
}

/// Whether a mount's option is this engine's own, and not its file system's.
#[cfg(test)]
pub(crate) fn takes_mount_option(option: &str) -> bool {
    mount::takes(option)
}

/// The first thing in a spec that this engine does not build, named.
pub(crate) fn unsupported(prepared: &Prepared) -> Option<String> {
    let Prepared {
        spec,
        process,
        linux,
        ..
    } = prepared;
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        let alien = kind == LinuxNamespaceType::Time
            || (kind == LinuxNamespaceType::Mount && namespace.path().is_some());
        if alien {
            return Some(format!("the {kind} namespace"));
        }
    }
    let has_mount_namespace = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    [
        ("no mount namespace", !has_mount_namespace),
        ("hooks", hooks::within_create(spec)),
        ("linux.netDevices", linux.net_devices().is_some()),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        (
            "process.execCPUAffinity",
            process.exec_cpu_affinity().is_some(),
        ),
    ]
    .into_iter()
    .find(|(_, has)| *has)
    .map(|(name, _)| name.to_owned())
    .or_else(|| spec.mounts().iter().flatten().find_map(mount::unsupported))
}

/// Makes a container's init. What it leaves behind when it fails is removed by the engine's `delete`.
pub(crate) fn create(
    request: &CreateRequest,
    prepared: Prepared,
    stdio: Stdio,
) -> Result<Made, Error> {
    let notes = prepared.notes.clone();
    let user = prepared.process.user();
    let userns = Userns::of(&request.id, &prepared.linux)?;
    let (uid, gid) = idmap::on_the_node(
        &request.id,
        userns.as_ref().map(|userns| &userns.maps),
        user.uid(),
        user.gid(),
    )?;
    let streams = match request.tty {
        true => None,
        false => Some(streams(stdio, uid, gid)?),
    };
    process::adjust_oom_score(None, &prepared.process)?;
    let mut entrance = prepared.cgroup.entrance()?;
    let born_in = entrance.born_in.take();
    let proc = process::open_proc()?;
    // Asked before /proc could be another pid namespace's.
    let single_threaded = SingleThreaded::prove().map_err(Error::io("look for threads"))?;
    let namespaces = Namespaces::of(&prepared.linux)?;
    let mounts = prepared.spec.mounts().as_deref().unwrap_or_default();
    let id_maps = IdMap::of_all(mounts, userns.as_ref())?;
    namespaces.join()?;
    let mut ground = Ground {
        userns,
        id_maps,
        built: None,
    };
    if let Some(userns) = &ground.userns {
        Userns::begin()?;
        process::raise_limits(&prepared.process)?;
        let umask = rustix::process::umask(Mode::empty());
        let plan = ground.plan(request, &prepared, &namespaces)?;
        let built = userns.as_root(|| root::build(&plan))?;
        rustix::process::umask(umask);
        userns.enter()?;
        ground.built = Some(built);
    }
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Error::errno("make the container's socket"))?;
    let birth = Clone {
        namespaces: namespaces.new.bits(),
        cgroup: born_in.as_ref().map(AsFd::as_fd),
        ..Clone::default()
    };
    let cgroup = prepared.cgroup.clone();
    let child = birth
        .spawn(single_threaded, || {
            let init = Init {
                request,
                prepared,
                namespaces,
                ground,
                streams,
                entrance,
                proc,
            };
            init.live(&theirs)
        })
        .map_err(Error::io("make the container's first process"))?;
    drop(theirs);
    let born = channel::receive_value::<Birth>(&ours)
        .map_err(Error::io("hear from the container's first process"));
    let failed = |error| {
        let _ = pidfd::send_signal(&child.pidfd, nix::sys::signal::Signal::SIGKILL as i32);
        let _ = pidfd::wait(&child.pidfd);
        Err(error)
    };
    let consoles = match born {
        Ok(Some((Birth::Made, consoles))) => consoles,
        Ok(Some((Birth::Failed(failure), _))) => {
            let reason = match Error::from(failure) {
                // The step's own words, and its errno, which a full disk is told from a bad request by.
                error @ (Error::Io { .. } | Error::Unfit { .. } | Error::Cgroup(_)) => {
                    return failed(error);
                }
                error => error.to_string(),
            };
            return failed(Error::Create {
                id: request.id.clone(),
                reason,
            });
        }
        // The cgroup was made for this container.
        Ok(None) if cgroup.oom_kills().is_ok_and(|kills| kills > 0) => {
            return failed(Error::NoMemory(request.id.clone()));
        }
        Ok(None) => {
            return failed(Error::Create {
                id: request.id.clone(),
                reason: "its first process died before its root was made".into(),
            });
        }
        Err(error) => return failed(error),
    };
    let mut descriptors = vec![child.pidfd, ours];
    descriptors.extend(consoles);
    Ok(Made {
        pid: child.pid,
        maker: Maker::Native,
        notes,
        descriptors,
    })
}

/// Lets the command run: the shim's end of init's socket. An init that is gone tells by its exit.
pub(crate) fn start(socket: OwnedFd) -> Result<(), Error> {
    match rustix::net::send(&socket, START, SendFlags::NOSIGNAL) {
        Ok(_) => init::hear(socket),
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(error) => Err(Error::errno("start the container")(error)),
    }
}

/// A spec's namespaces: those to be joined, opened, and the flags of the new ones.
struct Namespaces {
    join: Vec<(CloneFlags, OwnedFd, String)>,
    new: CloneFlags,
    /// Cgroup namespaces show a process the cgroup it was in: entered, or made, from inside.
    new_cgroup: bool,
    cgroup: Option<OwnedFd>,
    new_uts: bool,
}

impl Namespaces {
    fn of(linux: &Linux) -> Result<Namespaces, Error> {
        let mut namespaces = Namespaces {
            join: Vec::new(),
            new: CloneFlags::empty(),
            new_cgroup: false,
            cgroup: None,
            new_uts: false,
        };
        for namespace in linux.namespaces().iter().flatten() {
            let flag = match namespace.typ() {
                LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
                LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
                LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
                LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
                LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
                LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
                // [`Userns`]; refused by [`unsupported`].
                LinuxNamespaceType::User | LinuxNamespaceType::Time => continue,
            };
            match namespace
                .path()
                .as_deref()
                .filter(|p| !p.as_os_str().is_empty())
            {
                Some(path) => {
                    let opened =
                        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                            .map_err(Error::errno(format!("open namespace {}", path.display())))?;
                    if flag == CloneFlags::CLONE_NEWCGROUP {
                        namespaces.cgroup = Some(opened);
                    } else {
                        namespaces
                            .join
                            .push((flag, opened, path.display().to_string()));
                    }
                }
                None if flag == CloneFlags::CLONE_NEWCGROUP => namespaces.new_cgroup = true,
                None => {
                    namespaces.new |= flag;
                    namespaces.new_uts |= flag == CloneFlags::CLONE_NEWUTS;
                }
            }
        }
        Ok(namespaces)
    }

    /// Enters those that are given. A pid namespace counts for the children to come.
    fn join(&self) -> Result<(), Error> {
        for (flag, namespace, path) in &self.join {
            setns(namespace, *flag)
                .map_err(|e| Error::io(format!("enter namespace {path}"))(e.into()))?;
        }
        Ok(())
    }
}

/// What the root is built on.
struct Ground {
    userns: Option<Userns>,
    /// One for each mount.
    id_maps: Vec<Option<IdMap>>,
    /// By the worker, where there is a user namespace.
    built: Option<root::Built>,
}

impl Ground {
    fn plan<'a>(
        &'a self,
        request: &CreateRequest,
        prepared: &'a Prepared,
        namespaces: &Namespaces,
    ) -> Result<root::Plan<'a>, Error> {
        let given = prepared.spec.root().as_ref().ok_or_else(|| Error::Spec {
            id: request.id.clone(),
            reason: "has no root".into(),
        })?;
        let mut born = namespaces.new;
        born.set(CloneFlags::CLONE_NEWCGROUP, namespaces.new_cgroup);
        Ok(root::Plan {
            path: request.bundle.join(given.path()),
            read_only: given.readonly() == Some(true),
            cwd: prepared.process.cwd(),
            mounts: prepared.spec.mounts().as_deref().unwrap_or_default(),
            id_maps: &self.id_maps,
            linux: &prepared.linux,
            cgroup: &prepared.cgroup,
            userns: self.userns.as_ref(),
            born,
        })
    }
}

/// Init, from its first instant.
struct Init<'a> {
    request: &'a CreateRequest,
    prepared: Prepared,
    namespaces: Namespaces,
    ground: Ground,
    /// None: a terminal is to be made.
    streams: Option<[OwnedFd; 3]>,
    entrance: Entrance,
    proc: OwnedFd,
}

/// What is left to be done once the shim says so.
struct Command {
    capabilities: confine::Request,
    filter: Option<crate::filter::Filter>,
    no_new_privileges: bool,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Init<'_> {
    /// Answers its exit code.
    fn live(self, socket: &OwnedFd) -> i32 {
        let command = match self.become_container(socket) {
            Ok(command) => command,
            Err(error) => {
                let failed = Birth::Failed(error.into());
                let _ = channel::send_value(socket, &failed, &[]);
                return 1;
            }
        };
        if !wait_for_start(socket) {
            return 1;
        }
        let error = match confine::run(
            &command.capabilities,
            command.filter.as_ref(),
            command.no_new_privileges,
            &command.args,
            &command.env,
        ) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        init::tell(socket, error)
    }

    /// Everything but the command, and tells that it is done.
    fn become_container(self, socket: &OwnedFd) -> Result<Command, Error> {
        let Init {
            request,
            prepared,
            namespaces,
            mut ground,
            streams,
            entrance,
            proc,
        } = self;
        entrance
            .enter()
            .map_err(Error::io("join the container's cgroup"))?;
        memory_policy::set(prepared.linux.memory_policy().as_ref())?;
        if namespaces.new_cgroup {
            unshare(CloneFlags::CLONE_NEWCGROUP)
                .map_err(|e| Error::io("make a cgroup namespace")(e.into()))?;
        }
        if let Some(namespace) = &namespaces.cgroup {
            setns(namespace, CloneFlags::CLONE_NEWCGROUP)
                .map_err(|e| Error::io("enter a cgroup namespace")(e.into()))?;
        }
        prctl::set_name(c"berth-init").ok();
        // While the file is still this user's.
        process::set_apparmor(&prepared.process, &proc)?;
        if let Some(userns) = &ground.userns {
            userns.verify(&proc)?;
            berth_kernel::userns::become_root()
                .map_err(Error::io("become root of the container's user namespace"))?;
        }
        if namespaces.new_uts {
            let spec = &prepared.spec;
            name_host(spec.hostname().as_deref(), spec.domainname().as_deref())?;
        }
        // Modes are as they are asked for.
        let umask = rustix::process::umask(Mode::empty());
        let built = ground.built.take();
        let plan = ground.plan(request, &prepared, &namespaces)?;
        let root = match built {
            None => root::build(&plan)?.root,
            Some(built) => root::complete(&plan, built)?,
        };
        for (name, value) in prepared.linux.sysctl().iter().flatten() {
            set_sysctl(&proc, name, value)?;
        }
        root::enter(&root)?;
        let (master, streams) = match streams {
            Some(streams) => (None, streams),
            None => {
                let (master, slave) = console::open(&prepared.process)?;
                device::bind_console(root.as_fd(), &slave)?;
                let again = || slave.try_clone().map_err(Error::io("duplicate a terminal"));
                (Some(master), [again()?, again()?, slave])
            }
        };
        root::make_working_directory(&root, plan.cwd)?;
        root::finish(&root, &plan)?;
        rustix::process::umask(umask);

        // From here on nothing of the node is open (SEC-ENG-01). The owners of the rest in this copy of the worker's memory must not
        // close numbers that are gone.
        std::mem::forget((entrance, namespaces, ground, proc, root));
        let Prepared {
            process,
            filter,
            capabilities,
            args,
            mut env,
            ..
        } = prepared;
        let console: Vec<_> = master.iter().map(AsFd::as_fd).collect();
        let mut kept = console.clone();
        kept.push(socket.as_fd());
        process::take_streams(streams, !console.is_empty(), &kept)?;
        process::settle(&process, &capabilities)?;
        command::ensure_home(&mut env, process.user().uid());
        channel::send_value(socket, &Birth::Made, &console)
            .map_err(Error::io("tell that the container is made"))?;
        drop(master);
        Ok(Command {
            capabilities,
            filter,
            no_new_privileges: process.no_new_privileges() == Some(true),
            args,
            env,
        })
    }
}

fn wait_for_start(socket: &OwnedFd) -> bool {
    let mut byte = [0; START.len()];
    loop {
        match rustix::io::read(socket, &mut byte) {
            Ok(0) => return false,
            Ok(_) => return byte == START,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn name_host(hostname: Option<&str>, domainname: Option<&str>) -> Result<(), Error> {
    if let Some(name) = hostname.filter(|name| !name.is_empty()) {
        rustix::system::sethostname(name.as_bytes())
            .map_err(Error::errno(format!("set hostname {name:?}")))?;
    }
    if let Some(name) = domainname.filter(|name| !name.is_empty()) {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(Error::errno(format!("set domain name {name:?}")))?;
    }
    Ok(())
}

/// Through the node's /proc, whose sysctls of a namespace are those of the writer's.
fn set_sysctl(proc: &OwnedFd, name: &str, value: &str) -> Result<(), Error> {
    let step = || Error::errno(format!("set sysctl {name} to {value:?}"));
    // `net.ipv4.conf.eth0/1.forwarding`: a dot of its own in a name is written as a slash.
    let path: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            c => c,
        })
        .collect();
    let file = rustix::fs::openat2(
        proc,
        Path::new("sys").join(path),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
    .map_err(step())?;
    rustix::io::write(&file, value.as_bytes()).map_err(step())?;
    Ok(())
}
