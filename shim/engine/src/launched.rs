//! The engine as the shim sees it: containers are made by workers of the launcher, natively or by libcontainer.

use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::DirBuilderExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use berth_kernel::pidfd;
use nix::sys::signal::Signal;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    Checkpoint, Create, Engine, Error, Exec, Pause, Process, Zygote,
    cgroup::Cgroup,
    hooks::{self, Hooks, HooksRequest, Stage},
    init, native,
    record::Record,
    request::{CheckpointRequest, CreateRequest, ExecRequest, Operation, RestoreRequest},
    worker::Made,
};

/// Where the engine keeps its files.
#[derive(Debug, Clone)]
pub struct Config {
    /// Records and sockets of this pod's containers; made 0700. One pod's own: `<bundle>/engine`.
    pub state_dir: PathBuf,
    /// Compiled seccomp profiles, shared by all pods of the node (made 0700); none: each container's is compiled anew.
    pub seccomp_cache_dir: Option<PathBuf>,
    pub maker: Maker,
}

/// What makes a container's init. An exec is always our own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Maker {
    /// Our own; what it does not build is left to the reference.
    #[default]
    Native,
    /// The reference.
    Libcontainer,
}

/// The engine: a launcher, and what its workers have made.
#[derive(Debug)]
pub struct Launched {
    config: Config,
    zygote: Option<Arc<Zygote>>,
    containers: Mutex<HashMap<String, Container>>,
    warnings: Mutex<Vec<String>>,
}

/// Init ends within microseconds of saying so where the node has a processor for it.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Of hooks that failed, until the shim has logged them: after each delete.
const MAX_WARNINGS: usize = 64;

/// What is kept in memory of a container that this process made.
#[derive(Debug)]
struct Container {
    pid: i32,
    pidfd: Arc<OwnedFd>,
    maker: Maker,
    /// Where init tells at its start that its command can't be run, and a native one hears of its start; taken by the first start.
    report: Option<OwnedFd>,
    /// Its processes stand still, and start by a signal.
    restored: bool,
    notes: Vec<String>,
}

impl Launched {
    pub fn new(config: Config, zygote: Arc<Zygote>) -> Result<Launched, Error> {
        for directory in [Some(&config.state_dir), config.seccomp_cache_dir.as_ref()]
            .into_iter()
            .flatten()
        {
            let step = Error::io(format!("make {}", directory.display()));
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(step)?;
        }
        Ok(Launched {
            config,
            zygote: Some(zygote),
            containers: Mutex::default(),
            warnings: Mutex::default(),
        })
    }

    /// An engine that can only `kill` and `delete` what another process left behind (the shim's `delete` command).
    pub fn for_cleanup(config: Config) -> Launched {
        Launched {
            config,
            zygote: None,
            containers: Mutex::default(),
            warnings: Mutex::default(),
        }
    }

    /// Ids of the containers that have a directory below the state directory.
    pub fn known(&self) -> Result<Vec<String>, Error> {
        let directory = &self.config.state_dir;
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(format!("list {}", directory.display()))(error)),
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    /// The bundle of a container that was made here, from its record.
    pub fn bundle(&self, id: &str) -> Option<PathBuf> {
        let record = Record::read(&self.directory(id).ok()?).ok()??;
        Some(record.bundle)
    }

    /// The cgroup of a container: for stats, updates and the OOM counter.
    pub fn cgroup(&self, id: &str) -> Result<Cgroup, Error> {
        let record = Record::read(&self.directory(id)?)?
            .ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        record.cgroup()
    }

    /// What this machine could not do of a container's limits, to be logged once.
    pub fn notes(&self, id: &str) -> Vec<String> {
        self.containers()
            .get(id)
            .map(|container| container.notes.clone())
            .unwrap_or_default()
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Container>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn zygote(&self) -> Result<&Zygote, Error> {
        self.zygote
            .as_deref()
            .ok_or_else(|| Error::Zygote("this engine is for cleaning up only".into()))
    }

    /// An id names a directory: only what can't name another.
    fn directory(&self, id: &str) -> Result<PathBuf, Error> {
        /// Kubernetes' ids have 64.
        const MAX_ID_BYTES: usize = 200;
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if id.is_empty() || id.len() > MAX_ID_BYTES || id.starts_with('.') || !id.bytes().all(plain)
        {
            let id: String = id.chars().take(MAX_ID_BYTES).collect();
            let reason = "an id has 1 to 200 of a-z, A-Z, 0-9, _, - and ., and no . first".into();
            return Err(Error::Spec { id, reason });
        }
        Ok(self.config.state_dir.join(id))
    }

    /// Ends and removes all that a container's record names, then runs its `poststop` hooks. Idempotent: they run once.
    fn clean_up(&self, id: &str, directory: &Path) -> Result<(), Error> {
        let hooks = Hooks::read(directory);
        self.remove(directory)?;
        let ran = hooks.and_then(|hooks| match hooks {
            Some(hooks) => self.run_hooks(Stage::Poststop, id, 0, hooks),
            None => Ok(Vec::new()),
        });
        let warnings = ran.unwrap_or_else(|error| vec![error.to_string()]);
        let mut kept = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_WARNINGS.saturating_sub(kept.len());
        kept.extend(warnings.into_iter().take(room));
        Ok(())
    }

    /// By a worker; where there is none, by this process itself.
    fn run_hooks(
        &self,
        stage: Stage,
        id: &str,
        pid: i32,
        hooks: Hooks,
    ) -> Result<Vec<String>, Error> {
        if hooks.at(stage).is_empty() {
            return Ok(Vec::new());
        }
        let request = HooksRequest {
            id: id.to_owned(),
            pid,
            stage,
            hooks,
        };
        match &self.zygote {
            Some(zygote) => Ok(zygote.call(Operation::Hooks, &request, [None; 4])?.notes),
            None => hooks::run(&request),
        }
    }

    /// Lets a container's command run.
    fn run_command(&self, id: &str) -> Result<(), Error> {
        let (maker, report) = {
            let mut containers = self.containers();
            let container = containers
                .get_mut(id)
                .ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
            let report = container.report.take().ok_or_else(|| Error::Create {
                id: id.to_owned(),
                reason: "has been started already".into(),
            })?;
            if container.restored {
                drop(containers);
                return Ok(self.cgroup(id)?.signal(Signal::SIGCONT as i32)?);
            }
            (container.maker, report)
        };
        if maker == Maker::Native {
            return native::start(report);
        }
        // libcontainer's init waits for a connection to this socket. By way of its directory's descriptor: a socket's path has
        // room for 107 bytes.
        let step = || Error::io(format!("start container {id}"));
        let directory = self.directory(id)?.join(id);
        let at = fs::File::open(&directory).map_err(step())?;
        let socket = UnixStream::connect(format!("/proc/self/fd/{}/notify.sock", at.as_raw_fd()));
        match socket {
            Ok(mut socket) => socket.write_all(b"start container").map_err(step())?,
            // Init is gone: killed between create and start. Its exit tells.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(()),
            Err(error) => return Err(step()(error)),
        }
        init::hear(report)
    }

    /// Init has been told to end, or said that it does: a start that failed is told once it has, since then the container counts as ended.
    fn await_end(&self, id: &str) {
        let init = self
            .containers()
            .get(id)
            .map(|container| Arc::clone(&container.pidfd));
        let Some(init) = init else { return };
        let limit = Timespec::try_from(END_LIMIT).ok();
        // Readable once it is a zombie. What holds it longer than the limit holds up nobody: its end is told when it comes.
        let mut ended = [PollFd::new(&*init, PollFlags::IN)];
        while matches!(poll(&mut ended, limit.as_ref()), Err(Errno::INTR)) {}
    }

    fn remove(&self, directory: &Path) -> Result<(), Error> {
        if let Some(record) = Record::read(directory)? {
            let cgroup = record.cgroup()?;
            cgroup.kill()?;
            cgroup.remove()?;
        }
        // Last: while it is there, a second try knows what to remove.
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", directory.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

/// A worker is in a scope of systemd's from its beginning, and so within the container's limits while it makes it: killed there, it has left
/// nobody to tell why, and the scope is gone with it.
fn for_want_of_memory(error: Error, request: &CreateRequest) -> Error {
    let killed = 128 + Signal::SIGKILL as i32;
    if !matches!(error, Error::Worker { exit_code } if exit_code == killed) {
        return error;
    }
    let spec = init::load_spec(&request.id, &request.bundle).ok();
    let linux = spec.as_ref().and_then(|spec| spec.linux().as_ref());
    let memory = linux.and_then(|linux| linux.resources().as_ref()?.memory().as_ref());
    match memory.and_then(|memory| memory.limit()) {
        Some(limit) if limit > 0 => Error::NoMemory(request.id.clone()),
        _ => error,
    }
}

impl Engine for Launched {
    fn pause(&self, pause: &Pause) -> Result<Process, Error> {
        self.zygote()?.pause(pause)
    }

    fn create(&self, create: Create) -> Result<Process, Error> {
        let zygote = self.zygote()?;
        let directory = self.directory(&create.id)?;
        match fs::DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::ContainerExists(create.id));
            }
            Err(error) => return Err(Error::io(format!("make {}", directory.display()))(error)),
        }
        let request = CreateRequest {
            id: create.id.clone(),
            bundle: create.bundle,
            directory: directory.clone(),
            seccomp_cache_dir: self.config.seccomp_cache_dir.clone(),
            maker: self.config.maker,
            tty: create.tty,
            systemd_cgroup: create.systemd_cgroup,
            restore: create.restore.map(|restore| RestoreRequest {
                criu: restore.criu,
                images: restore.images,
                work: restore.work,
                timeout_ms: restore.timeout.as_millis() as u64,
            }),
        };
        let stdio = &create.stdio;
        let streams = [
            stdio.stdin.as_ref(),
            stdio.stdout.as_ref(),
            stdio.stderr.as_ref(),
            None,
        ];
        let made = zygote.call(
            Operation::Create,
            &request,
            streams.map(|fd| fd.map(AsFd::as_fd)),
        );
        let Made {
            pid,
            maker,
            notes,
            mut descriptors,
        } = match made {
            Ok(made) => made,
            Err(error) => {
                let error = for_want_of_memory(error, &request);
                // The first error is the one to tell.
                let _ = self.clean_up(&request.id, &directory);
                return Err(error);
            }
        };
        let console = if create.tty { descriptors.pop() } else { None };
        let report = descriptors.pop();
        let (Some(report), Some(ours)) = (report, descriptors.pop()) else {
            let _ = self.clean_up(&request.id, &directory);
            return Err(Error::Zygote(
                "answered a create without its descriptors".into(),
            ));
        };
        let pidfd = ours.try_clone().map_err(Error::io("duplicate a pidfd"))?;
        let container = Container {
            pid,
            pidfd: Arc::new(ours),
            maker,
            report: Some(report),
            restored: request.restore.is_some(),
            notes,
        };
        self.containers().insert(create.id, container);
        Ok(Process {
            pid,
            pidfd,
            console,
        })
    }

    fn start(&self, id: &str) -> Result<(), Error> {
        if let Err(error) = self.run_command(id) {
            if matches!(error, Error::Command { .. }) {
                self.await_end(id);
            }
            return Err(error);
        }
        let Some(hooks) = Hooks::read(&self.directory(id)?)? else {
            return Ok(());
        };
        let pid = self.containers().get(id).map_or(0, |c| c.pid);
        let ran = self.run_hooks(Stage::Poststart, id, pid, hooks);
        if let Err(error) = ran {
            self.kill(id, Signal::SIGKILL as i32, false)?;
            self.await_end(id);
            return Err(error);
        }
        Ok(())
    }

    fn exec(&self, exec: Exec) -> Result<Process, Error> {
        let zygote = self.zygote()?;
        let id = exec.container_id;
        let (pid, init) = {
            let containers = self.containers();
            let container = containers
                .get(&id)
                .ok_or_else(|| Error::UnknownContainer(id.clone()))?;
            (container.pid, Arc::clone(&container.pidfd))
        };
        let request = ExecRequest {
            directory: self.directory(&id)?,
            id,
            pid,
            process: exec.process,
            tty: exec.tty,
        };
        let stdio = &exec.stdio;
        let streams = [
            stdio.stdin.as_ref(),
            stdio.stdout.as_ref(),
            stdio.stderr.as_ref(),
            Some(&*init),
        ];
        let Made {
            pid,
            mut descriptors,
            ..
        } = zygote.call(
            Operation::Exec,
            &request,
            streams.map(|fd| fd.map(AsFd::as_fd)),
        )?;
        let console = if exec.tty { descriptors.pop() } else { None };
        let pidfd = descriptors
            .pop()
            .ok_or_else(|| Error::Zygote("answered an exec without its pidfd".into()))?;
        Ok(Process {
            pid,
            pidfd,
            console,
        })
    }

    fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let step = || Error::io(format!("send signal {signal} to container {id}"));
        if all {
            return match self.cgroup(id) {
                Ok(cgroup) => Ok(cgroup.signal(signal)?),
                Err(Error::UnknownContainer(_)) => Ok(()),
                Err(error) => Err(error),
            };
        }
        let init = self
            .containers()
            .get(id)
            .map(|container| Arc::clone(&container.pidfd));
        let init = init.ok_or_else(|| Error::UnknownContainer(id.to_owned()))?;
        match pidfd::send_signal(&*init, signal) {
            Err(error) if error.raw_os_error() != Some(nix::errno::Errno::ESRCH as i32) => {
                Err(step()(error))
            }
            _ => Ok(()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn resume(&self, id: &str) -> Result<(), Error> {
        match self.cgroup(id) {
            Ok(cgroup) => Ok(cgroup.resume()?),
            Err(Error::UnknownContainer(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), Error> {
        let zygote = self.zygote()?;
        let id = checkpoint.id;
        let (pid, init) = {
            let containers = self.containers();
            let container = containers
                .get(&id)
                .ok_or_else(|| Error::UnknownContainer(id.clone()))?;
            (container.pid, Arc::clone(&container.pidfd))
        };
        let request = CheckpointRequest {
            directory: self.directory(&id)?,
            id,
            pid,
            criu: checkpoint.criu,
            images: checkpoint.images,
            work: checkpoint.work,
            timeout_ms: checkpoint.timeout.as_millis() as u64,
            leave_running: checkpoint.leave_running,
        };
        let cgroup = self.cgroup(&request.id)?;
        cgroup.pause()?;
        let streams = [None, None, None, Some(init.as_fd())];
        let dumped = zygote.call(Operation::Checkpoint, &request, streams);
        if dumped.is_err() || !request.leave_running {
            cgroup.resume()?;
        }
        dumped.map(drop)
    }

    fn delete(&self, id: &str) -> Result<(), Error> {
        self.clean_up(id, &self.directory(id)?)?;
        self.containers().remove(id);
        Ok(())
    }
}
