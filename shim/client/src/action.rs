//! A shim as a command: `start` leaves it serving, `delete` cleans up after a dead one, `-info` and `-v` tell what it is.

use std::{
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use tokio::{
    io::AsyncWriteExt,
    net::unix::pipe::{self, Receiver},
    time::timeout,
};

use crate::{
    Failure,
    failure::{last_words, line},
};

/// Of each of its two outputs; an address has a hundred bytes, the features of a runtime a few thousand.
const MAX_OUTPUT_BYTES: usize = 64 << 10;
/// How long what was killed may take to end.
const KILLED: Duration = Duration::from_secs(5);
/// How long who reaps for us may take to tell how it ended.
const REAPED: Duration = Duration::from_secs(5);

/// With what a shim's program is called, as containerd calls it.
#[derive(Debug, Clone, Default)]
pub struct Action {
    pub program: PathBuf,
    pub namespace: String,
    pub id: String,
    /// The working directory.
    pub bundle: PathBuf,
    /// What the shim takes for containerd's socket. Go's shims name their own sockets by it.
    pub address: PathBuf,
    /// Where it tells its events; none: nowhere.
    pub events: Option<PathBuf>,
    pub publish_binary: String,
    /// Where Berth's own shim puts its socket.
    pub sockets: Option<PathBuf>,
    /// The newest answer of `start` that is understood. 0: nothing is said of it, as containerd 1.6 does.
    pub max_version: u32,
    /// Before the action's name.
    pub flags: Vec<OsString>,
}

impl Action {
    /// The command of `start` or `delete`.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.bundle)
            .args(["-namespace", &self.namespace, "-id", &self.id])
            .arg("-address")
            .arg(&self.address)
            .args(["-publish-binary", &self.publish_binary])
            .args(&self.flags)
            .env("GRPC_ADDRESS", &self.address)
            .env("NAMESPACE", &self.namespace)
            .env("GOMAXPROCS", "2");
        for (variable, value) in [
            // containerd hands over the bare path; its own client takes both.
            ("TTRPC_ADDRESS", self.events.clone().map(OsString::from)),
            (
                "BERTH_SHIM_SOCKET_DIR",
                self.sockets.clone().map(OsString::from),
            ),
            (
                "MAX_SHIM_VERSION",
                (self.max_version > 0).then(|| self.max_version.to_string().into()),
            ),
            // Of a daemon that systemd has started, and no shim's.
            ("NOTIFY_SOCKET", None),
        ] {
            match value {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        if name == "delete" {
            command.arg("-bundle").arg(&self.bundle);
        }
        command.arg(name);
        command
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The command's end.
    Exit,
    /// The end of its output, too, which what it left running may hold open: containerd waits for that.
    Output,
}

/// A command's first process.
#[derive(Debug)]
pub struct Spawned {
    pub pid: Pid,
    pub pidfd: OwnedFd,
}

/// How a command has ended.
#[derive(Debug)]
pub struct Ended {
    /// Refers to a process that is no more.
    pub pidfd: OwnedFd,
    /// None: somebody else has reaped it and did not tell.
    pub status: Option<ExitStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ended {
    /// Its stdout, if it has succeeded.
    pub fn output(&self) -> Result<&[u8], Failure> {
        if self.status.is_some_and(|status| status.success()) {
            return Ok(&self.stdout);
        }
        let status = match self.status {
            None => "ended, and nobody knows how".into(),
            Some(status) => match (status.signal(), status.code()) {
                (Some(signal), _) => format!("was killed by signal {signal}"),
                (None, code) => format!("exited with {}", code.unwrap_or(-1)),
            },
        };
        let mut said = last_words(&self.stderr);
        if said.is_empty() {
            said = last_words(&self.stdout);
        }
        Err(Failure::Failed(match said.as_str() {
            "" => format!("{status}, and said nothing"),
            said => format!("{status}: {said}"),
        }))
    }
}

/// Spawns a command, and reaps it when it has ended.
pub async fn run(
    command: Command,
    stdin: &[u8],
    deadline: Duration,
    patience: Patience,
) -> Result<Ended, Failure> {
    let reap = |spawned: &Spawned| {
        let status = waitid(WaitId::PidFd(spawned.pidfd.as_fd()), WaitIdOptions::EXITED);
        let status = status.ok().flatten().map(|status| {
            let code = status.exit_status().map(|code| code << 8);
            ExitStatus::from_raw(code.or(status.terminating_signal()).unwrap_or(-1))
        });
        std::future::ready(status)
    };
    run_with(command, stdin, deadline, patience, spawn, reap).await
}

/// As `spawn`, for who has no children of his own to take care of.
pub fn spawn(command: &mut Command) -> io::Result<Spawned> {
    let pid = Pid::from_child(&command.spawn()?);
    let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    Ok(Spawned { pid, pidfd })
}

/// As [`run`], for a process with a reaper of its own: `spawn` begins, `reap` is asked how the command has ended once it has.
///
/// In a process group of its own, which ends at the deadline: what a shim leaves behind has left that group. Where the answer is dropped it
/// ends, too, and is left to be reaped.
pub async fn run_with<F: Future<Output = Option<ExitStatus>>>(
    mut command: Command,
    stdin: &[u8],
    deadline: Duration,
    patience: Patience,
    spawn: impl FnOnce(&mut Command) -> io::Result<Spawned>,
    reap: impl FnOnce(&Spawned) -> F,
) -> Result<Ended, Failure> {
    let program = Path::new(command.get_program()).to_owned();
    let cannot = |error: io::Error| Failure::NotRun {
        program: program.clone(),
        error: Arc::new(error),
    };
    let ((mut feed, input), (out_end, out), (err_end, err)) = (
        pipe::pipe().map_err(cannot)?,
        pipe::pipe().map_err(cannot)?,
        pipe::pipe().map_err(cannot)?,
    );
    command
        .process_group(0)
        .stdin(input.into_blocking_fd().map_err(cannot)?)
        .stdout(out_end.into_blocking_fd().map_err(cannot)?)
        .stderr(err_end.into_blocking_fd().map_err(cannot)?);
    let spawned = spawn(&mut command).map_err(cannot)?;
    // With it go our copies of its ends.
    drop(command);
    let mut group = Group(Some(spawned.pid));
    let (mut out, mut err) = (Output::of(out), Output::of(err));
    let watch = |error: io::Error| Failure::Failed(format!("wait for its end: {error}"));
    let pidfd = spawned.pidfd.try_clone().map_err(watch)?;
    // Readable once its process has ended; nothing is ever read of it.
    let exit = Receiver::from_owned_fd_unchecked(pidfd).map_err(watch)?;
    let in_time = {
        let feeds = async move {
            // It need not read them.
            let _ = feed.write_all(stdin).await;
        };
        let streams = async {
            tokio::join!(feeds, out.read(), err.read());
        };
        let works = async {
            match patience {
                Patience::Output => {
                    let (_, _) = tokio::join!(exit.readable(), streams);
                }
                Patience::Exit => {
                    let streams = async {
                        streams.await;
                        std::future::pending::<()>().await
                    };
                    tokio::select! {
                        _ = exit.readable() => {}
                        () = streams => {}
                    }
                }
            }
        };
        timeout(deadline, works).await.is_ok()
    };
    out.take_what_is_there();
    err.take_what_is_there();
    if !in_time {
        group.kill();
        let _ = timeout(KILLED, exit.readable()).await;
    }
    let status = timeout(REAPED, reap(&spawned)).await.ok().flatten();
    group.0 = None;
    if out.over || err.over {
        let why = format!("it prints more than {MAX_OUTPUT_BYTES} bytes");
        return Err(Failure::Garbage(why));
    }
    if !in_time {
        let hangs = Failure::Hangs(deadline);
        return Err(match line(&String::from_utf8_lossy(&err.bytes)) {
            said if said.is_empty() => hangs,
            said => Failure::Logged(Box::new(hangs), said),
        });
    }
    Ok(Ended {
        pidfd: spawned.pidfd,
        status,
        stdout: out.bytes,
        stderr: err.bytes,
    })
}

/// A command's process group, killed where nobody waits for it any more.
struct Group(Option<Pid>);

impl Group {
    fn kill(&self) {
        if let Some(group) = self.0 {
            // Gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One of its outputs, as far as it has come.
struct Output {
    /// None: it is at its end, or more has come than is taken; who writes on gets SIGPIPE.
    from: Option<Receiver>,
    bytes: Vec<u8>,
    over: bool,
}

impl Output {
    fn of(from: Receiver) -> Self {
        Self {
            from: Some(from),
            bytes: Vec::new(),
            over: false,
        }
    }

    /// To its end.
    async fn read(&mut self) {
        while let Some(from) = &self.from {
            if from.readable().await.is_err() {
                self.from = None;
            }
            self.take_what_is_there();
        }
    }

    fn take_what_is_there(&mut self) {
        while let Some(from) = &self.from {
            match from.try_read_buf(&mut self.bytes) {
                Ok(1..) if self.bytes.len() <= MAX_OUTPUT_BYTES => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Its end, or too much; what came before an error is what there is.
                Ok(_) | Err(_) => {
                    self.over = self.bytes.len() > MAX_OUTPUT_BYTES;
                    self.from = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn action(dir: &Path, script: &str) -> Action {
        let program = dir.join("shim");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        Action {
            program,
            namespace: "n".into(),
            id: "i".into(),
            bundle: dir.into(),
            ..Action::default()
        }
    }

    async fn start(
        script: &str,
        stdin: &[u8],
        deadline_ms: u64,
        patience: Patience,
    ) -> Result<Ended, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let command = action(dir.path(), script).command("start");
        let deadline = Duration::from_millis(deadline_ms);
        run(command, stdin, deadline, patience).await
    }

    #[tokio::test]
    async fn a_command_is_told_what_containerd_tells_it_and_nothing_that_is_not_meant() {
        let dir = tempfile::tempdir().unwrap();
        let script = "echo \"$@\" $TTRPC_ADDRESS,$MAX_SHIM_VERSION,$NAMESPACE,$PWD; cat";
        let mut action = action(dir.path(), script);
        let here = dir.path().display();
        let all = |action: &Action, name| {
            let command = action.command(name);
            async move {
                let ended = run(command, b"in", Duration::from_secs(10), Patience::Output);
                let ended = ended.await.unwrap();
                String::from_utf8(ended.output().unwrap().to_vec()).unwrap()
            }
        };
        let said = all(&action, "start").await;
        let flags = "-namespace n -id i -address  -publish-binary ";
        assert_eq!(said, format!("{flags} start ,,n,{here}\nin"));
        action.events = Some("/e".into());
        action.max_version = 3;
        action.flags = vec!["-debug".into()];
        let said = all(&action, "delete").await;
        let rest = format!("-debug -bundle {here} delete /e,3,n,{here}\nin");
        assert_eq!(said, format!("{flags} {rest}"));
    }

    #[tokio::test]
    async fn a_command_is_not_waited_for_by_what_it_has_left_running_rel_03() {
        let began = std::time::Instant::now();
        let script = "cat; sleep 3 & echo no >&2; exit 3";
        let ended = start(script, b"in", 10_000, Patience::Exit).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(2));
        assert_eq!(ended.stdout, b"in");
        let failure = ended.output().unwrap_err().to_string();
        assert!(failure.contains("exited with 3: no"), "{failure}");
        let hangs = start(script, b"in", 300, Patience::Output).await;
        assert!(matches!(hangs.unwrap_err().bare(), Failure::Hangs(_)));
    }

    #[tokio::test]
    async fn what_a_command_does_wrong_is_told() {
        for (script, word) in [
            ("exit 7", "exited with 7, and said nothing"),
            ("kill -9 $$", "killed by signal 9"),
            ("echo a; exit 1", "exited with 1: a"),
            ("yes", "more than 65536 bytes"),
            (
                "echo here >&2; sleep 100",
                "300 ms: it hangs; its log ends with: here",
            ),
        ] {
            let ended = start(script, b"", 300, Patience::Output).await;
            let failure = ended.and_then(|ended| ended.output().map(drop));
            let failure = failure.unwrap_err().to_string();
            assert!(failure.contains(word), "{script}: {failure}");
        }
        let missing = Action {
            program: "/nowhere/shim".into(),
            bundle: "/".into(),
            ..Action::default()
        };
        let ended = run(missing.command("start"), b"", KILLED, Patience::Exit).await;
        let failure = ended.unwrap_err().to_string();
        assert!(failure.contains("cannot run /nowhere/shim"), "{failure}");
    }

    #[tokio::test]
    async fn who_does_not_wait_any_longer_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let command = action(dir.path(), "sleep 0.3; touch done").command("start");
        let dropped = run(command, b"", KILLED, Patience::Exit);
        assert!(timeout(Duration::from_millis(100), dropped).await.is_err());
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!dir.path().join("done").exists());
    }
}
