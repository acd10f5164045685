//! A real berthd: started, killed and started again.

use std::{
    ffi::OsString,
    fs,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::{cri::Cri, machine::patient};

/// How long the daemon may take until it answers `Version`; with many pods to find again, too.
pub const READY_LIMIT: Duration = Duration::from_secs(15);

/// Where the binaries under test are: `BERTH_BIN_DIR`, or the target directory that this test was built in.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("BERTH_BIN_DIR") {
        return Ok(dir.into());
    }
    let own = std::env::current_exe()?;
    let dir = own.parent().context("the test has no directory")?;
    Ok(if dir.ends_with("deps") {
        dir.parent().context("deps has no parent")?.to_owned()
    } else {
        dir.to_owned()
    })
}

#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    pub root: PathBuf,
    pub state: PathBuf,
    pub log: PathBuf,
    config: PathBuf,
    /// `FAILPOINTS` of the next start.
    pub failpoints: String,
    /// The file in which reached failpoints write their names, where it is wanted.
    pub trace: Option<PathBuf>,
    /// Descriptors that the next start inherits, as a careless parent's would be.
    pub inherited: Vec<OwnedFd>,
    /// More flags of each start.
    pub arguments: Vec<String>,
    /// More variables of each start.
    pub environment: Vec<(String, String)>,
}

impl Daemon {
    /// A daemon with its directories below `dir`, not started yet.
    pub fn new(dir: &Path, config: &str) -> Result<Self> {
        let daemon = Self {
            child: None,
            root: dir.join("lib"),
            state: dir.join("run"),
            log: dir.join("berthd.log"),
            config: dir.join("config.toml"),
            failpoints: String::new(),
            trace: None,
            inherited: Vec::new(),
            arguments: Vec::new(),
            environment: Vec::new(),
        };
        fs::write(&daemon.config, config)?;
        Ok(daemon)
    }

    pub fn socket(&self) -> PathBuf {
        self.state.join("berth.sock")
    }

    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id() as i32)
    }

    /// Starts berthd without waiting for it.
    pub fn spawn(&mut self) -> Result<()> {
        let bin = bin_dir()?;
        let mut path = OsString::from(&bin);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)?;
        for descriptor in &self.inherited {
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        let mut command = Command::new(bin.join("berthd"));
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--root")
            .arg(&self.root)
            .arg("--state")
            .arg(&self.state);
        command
            .args(["--log-level", "debug"])
            .args(&self.arguments)
            .env("PATH", path)
            .env("RUST_BACKTRACE", "1")
            .envs(self.environment.iter().cloned())
            .env_remove("FAILPOINTS");
        if !self.failpoints.is_empty() {
            command.env("FAILPOINTS", &self.failpoints);
        }
        command.env_remove("FAILPOINT_TRACE");
        if let Some(trace) = &self.trace {
            command.env("FAILPOINT_TRACE", trace);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        self.child =
            Some(child.with_context(|| format!("start {}", bin.join("berthd").display()))?);
        for descriptor in &self.inherited {
            fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
        }
        Ok(())
    }

    /// Waits until it answers; the client to talk to it.
    pub async fn ready(&mut self) -> Result<Cri> {
        let deadline = Instant::now() + patient(READY_LIMIT);
        loop {
            if let Some(status) = self.exited() {
                bail!("berthd ended before it was ready: {status}");
            }
            if self.socket().exists() {
                let cri = Cri::connect(&self.socket()).await;
                if let Ok(cri) = cri
                    && cri.version().await.is_ok()
                {
                    return Ok(cri);
                }
            }
            if Instant::now() > deadline {
                bail!("berthd is not ready after {READY_LIMIT:?}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How it ended, where it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().ok().flatten()?;
        self.child = None;
        Some(status)
    }

    /// Whether a failpoint's SIGKILL ended it; waits a moment for that.
    pub async fn was_killed(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + patient(within);
        while self.child.is_some() {
            if let Some(status) = self.exited() {
                return status.signal() == Some(9);
            }
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    pub fn kill_9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and the way it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("berthd does not run")?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGTERM,
        )?;
        let deadline = Instant::now() + patient(READY_LIMIT);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("berthd did not end within {READY_LIMIT:?} of SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill_9();
    }
}
