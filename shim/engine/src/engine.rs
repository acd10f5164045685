//! The seam: what every engine can do, and nothing of how.

use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

use oci_spec::runtime::LinuxResources;

use crate::{Error, Pause};

/// The three standard streams of a process, given to it as they are. What is absent is `/dev/null`.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// A container to be made. `bundle/config.json` is its spec (namespaces filled in), `bundle/rootfs` its root.
#[derive(Debug)]
pub struct Create {
    pub id: String,
    pub bundle: PathBuf,
    pub stdio: Stdio,
    /// A console is made and its master comes back; `stdio` is not used.
    pub tty: bool,
    /// Its cgroup, `slice:prefix:name`, is made as a scope by systemd.
    pub systemd_cgroup: bool,
    /// Its processes are those of a checkpoint. They stand still until the start.
    pub restore: Option<Restore>,
}

/// A checkpoint as [`Engine::checkpoint`] wrote it.
#[derive(Debug)]
pub struct Restore {
    pub criu: PathBuf,
    pub images: PathBuf,
    /// For CRIU's log.
    pub work: PathBuf,
    pub timeout: Duration,
}

/// A process the engine made: a child of this process (by way of PR_SET_CHILD_SUBREAPER), to be awaited by its pidfd
/// (`berth_kernel::pidfd::wait`).
#[derive(Debug)]
pub struct Process {
    /// As the node sees it, not the container.
    pub pid: i32,
    pub pidfd: OwnedFd,
    /// The console's master, where a tty was asked for.
    pub console: Option<OwnedFd>,
}

/// A command to run in a running container. What is not named is the container's own (seccomp, cgroup, namespaces, …).
#[derive(Debug)]
pub struct Exec {
    pub container_id: String,
    /// OCI process: args, env, cwd, user, capabilities, no_new_privileges, rlimits, as the spec's own.
    pub process: oci_spec::runtime::Process,
    pub stdio: Stdio,
    /// A console is made and its master comes back; `stdio` is not used.
    pub tty: bool,
}

/// A running container's processes, to be written down by CRIU.
#[derive(Debug)]
pub struct Checkpoint {
    pub id: String,
    /// CRIU's program.
    pub criu: PathBuf,
    /// Directories that are there: for the images, and for CRIU's log.
    pub images: PathBuf,
    pub work: PathBuf,
    pub timeout: Duration,
    /// Else they end with it.
    pub leave_running: bool,
}

/// The seam. Calls block (they are short); the shim runs them off its event loop. Calls for different containers, and
/// several execs in one, may overlap; calls that change the same container are the caller's to order.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Makes the process that holds the pod's namespaces, at `/proc/<pid>/ns/{ipc,uts,net,pid}`.
    fn pause(&self, pause: &Pause) -> Result<Process, Error>;
    /// Makes the container up to just before its command: created, not started.
    fn create(&self, create: Create) -> Result<Process, Error>;
    /// Lets the container's command run, and runs the spec's `poststart` hooks: where one fails, the container is killed. A command that does not exist or can't be executed is [`Error::Command`]; the
    /// container's init then ends by itself with that exit code (126, 127 or 128), as it would under a shell.
    fn start(&self, id: &str) -> Result<(), Error>;
    /// Runs a command in the container. It is as confined as the container's init.
    fn exec(&self, exec: Exec) -> Result<Process, Error>;
    /// Signals the container's init, or every process of its cgroup. A container that is gone already is no error.
    fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error>;
    /// Lets a paused container go on. One that is not paused, or gone, is no error.
    fn resume(&self, id: &str) -> Result<(), Error>;
    /// Writes the container's processes down. One that is left running is paused afterwards, so that its files can be had as its
    /// memory was: [`Engine::resume`] is the caller's to call. When it failed, the container runs as before.
    fn checkpoint(&self, checkpoint: Checkpoint) -> Result<(), Error>;
    /// Kills what is left, removes cgroup and state, and runs the spec's `poststop` hooks. Idempotent: an id that is not known is no error.
    fn delete(&self, id: &str) -> Result<(), Error>;

    /// Whether a process's streams are carried by another: what it has written may then come after its end. A console's master stays
    /// with that one: `stdio` is used with a tty, too, and [`Engine::resize`] sets its size.
    fn carries_streams(&self) -> bool {
        false
    }
    /// Sets the size of the console of the process that [`Engine::create`] or [`Engine::exec`] answered with this pid. One that has
    /// ended is no error.
    fn resize(&self, _pid: i32, _width: u32, _height: u32) -> Result<(), Error> {
        Ok(())
    }
    /// The container's cgroup has got other limits, for an engine that keeps them elsewhere, too.
    fn updated(&self, _id: &str, _resources: &LinuxResources) {}
    /// Whether the engine was told that the kernel killed for want of memory in the container.
    fn oom_killed(&self, _id: &str) -> bool {
        false
    }
    /// What has gone wrong since this was last asked and stopped nothing, to be logged.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
    /// Why the containers end: what made them is gone.
    fn lost(&self) -> Option<String> {
        None
    }
    /// The pod's last call: nothing of the engine's own is left afterwards.
    fn close(&self) {}
}
