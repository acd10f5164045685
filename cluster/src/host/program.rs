//! A program that is kept running: started, started again when it ends, taken over from whoever kept it before, ended.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{failed, file, write};
use crate::error::Error;

/// From SIGTERM until SIGKILL.
const END: Duration = Duration::from_secs(10);
/// Before a program that has ended is started again; twice as long each time, unless it ran for a while.
const AGAIN: Duration = Duration::from_millis(100);
const AGAIN_MOST: Duration = Duration::from_secs(10);
const A_WHILE: Duration = Duration::from_secs(60);
/// Of its log; what is older is kept once, beside it.
const LOG_MOST: u64 = 16 << 20;
const LOOK_AT_LOG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Program {
    /// As people know it: `berthd`, `kubelet`.
    pub name: &'static str,
    /// With its arguments.
    pub command: Vec<OsString>,
    /// NAME.log and NAME.pid are there.
    pub dir: PathBuf,
    /// What of it the program is told by an argument that nobody else of its kind has: by that one is found whose starter was killed before it had
    /// written down whom it had started.
    pub told: Option<Told>,
}

/// An argument, and the name of the file of who has it.
#[derive(Debug, Clone)]
pub struct Told {
    pub file: OsString,
    pub argument: PathBuf,
}

impl Told {
    fn is_of(&self, cmdline: &[u8]) -> bool {
        let mut arguments = cmdline.split(|byte| *byte == 0);
        let file = arguments
            .next()
            .map(|path| Path::new(OsStr::from_bytes(path)));
        file.and_then(Path::file_name) == Some(self.file.as_os_str())
            && arguments.any(|one| one == self.argument.as_os_str().as_bytes())
    }

    fn all(&self) -> Vec<Identity> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| self.is_of(&cmdline))
        })
        .filter_map(Identity::of)
        .collect()
    }
}

/// A process, and when it began in clock ticks since boot: together they are nobody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    pid: i32,
    began: u64,
}

impl Identity {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // the name may have blanks and brackets in it
        let rest = &stat[stat.rfind(')')? + 1..];
        let mut fields = rest.split_whitespace();
        let is_dead = fields.next()? == "Z";
        let began = fields.nth(18)?.parse().ok()?;
        (!is_dead).then_some(Self { pid, began })
    }

    fn read(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let (pid, began) = text.trim().split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            began: began.parse().ok()?,
        })
    }

    fn lives(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    fn signal(self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && self.lives()
        {
            // gone meanwhile is as good
            let _ = kill_process(pid, signal);
        }
    }

    async fn end(self, within: Duration) {
        self.signal(Signal::TERM);
        let until = Instant::now() + within;
        while self.lives() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
        self.signal(Signal::KILL);
        // one that waits for a disk ends when that answers: nobody waits for it here
        let until = Instant::now() + END;
        while self.lives() && Instant::now() < until {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Program {
    /// This very process, of which there is to be one in `dir`.
    pub fn this(name: &'static str, dir: &Path) -> Self {
        Self {
            name,
            command: Vec::new(),
            dir: dir.to_owned(),
            told: None,
        }
    }

    /// Writes down that it is this process.
    ///
    /// # Errors
    /// Another one is.
    pub fn claim(&self) -> Result<(), Error> {
        let own = Identity::of(std::process::id().cast_signed());
        let other = Identity::read(&self.pid_file()).filter(|other| other.lives());
        match (own, other) {
            (own, Some(other)) if own != Some(other) => Err(failed(
                format!("cannot use {}", self.dir.display()),
                format!("process {} does; `berth down` ends it", other.pid),
            )),
            (Some(own), _) => self.write_pid(own),
            (None, _) => Ok(()),
        }
    }

    pub fn release(&self) {
        let _ = fs::remove_file(self.pid_file());
    }

    fn write_pid(&self, one: Identity) -> Result<(), Error> {
        let text = format!("{} {}", one.pid, one.began);
        write(&self.pid_file(), text.as_bytes())
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join(format!("{}.pid", self.name))
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// One that whoever kept it before has left running, or this process.
    pub fn runs(&self) -> bool {
        Identity::read(&self.pid_file()).is_some_and(Identity::lives)
    }

    /// Ends what is left running, if it is: by SIGTERM, or by SIGKILL after `within`.
    pub async fn end_within(&self, within: Duration) {
        if let Some(before) = Identity::read(&self.pid_file()) {
            before.end(within).await;
        }
        for left in self.told.iter().flat_map(Told::all) {
            left.end(within).await;
        }
        let _ = fs::remove_file(self.pid_file());
    }

    /// … after ten seconds.
    pub async fn end(&self) {
        self.end_within(END).await;
    }

    fn spawn(&self) -> Result<Child, Error> {
        let path = self.log();
        let log = open_log(&path).map_err(file("open", &path))?;
        let again = log.try_clone().map_err(file("open", &path))?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .stdin(Stdio::null())
            .stdout(again)
            .stderr(log)
            // its signals are ours to send, not the terminal's
            .process_group(0)
            .spawn()
            .map_err(|error| {
                let program = self.command[0].display();
                let hint = match error.kind() {
                    io::ErrorKind::NotFound => {
                        "; it is looked for beside this program, and then on PATH"
                    }
                    _ => "",
                };
                failed(format!("cannot start {program}"), format!("{error}{hint}"))
            })?;
        if let Some(one) = child.id().and_then(|pid| Identity::of(pid.cast_signed())) {
            self.write_pid(one)?;
        }
        Ok(child)
    }

    /// The end of its log: for whoever has to know why it does not run.
    pub fn last_words(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..]).into_owned();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("{}\n(of {})", lines.join("\n"), self.log().display())
    }

    /// Starts it; what runs already is ended first, so that it runs as it should now.
    ///
    /// # Errors
    /// There is no such program, or its log can't be written.
    pub async fn start(&self) -> Result<Child, Error> {
        self.end().await;
        self.spawn()
    }

    /// Keeps what was started running until `ends`; then it is ended, which its pods outlive.
    pub async fn keep(self, mut child: Child, ends: CancellationToken) {
        let (mut begun, mut wait) = (Instant::now(), AGAIN);
        let mut look = tokio::time::interval(LOOK_AT_LOG);
        loop {
            let status = tokio::select! {
                status = child.wait() => status,
                _ = look.tick() => {
                    if let Err(error) = turn(&self.log()) {
                        tracing::warn!(log = %self.log().display(), %error, "the log is not turned");
                    }
                    continue;
                }
                () = ends.cancelled() => return self.stop(&mut child).await,
            };
            if begun.elapsed() > A_WHILE {
                wait = AGAIN;
            }
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::warn!(program = self.name, dir = %self.dir.display(), how, "a program has ended: it is started again\n{}", self.last_words());
            loop {
                tokio::select! {
                    () = sleep(wait) => {}
                    () = ends.cancelled() => return,
                }
                wait = (wait * 2).min(AGAIN_MOST);
                match self.spawn() {
                    Ok(again) => {
                        (child, begun) = (again, Instant::now());
                        break;
                    }
                    Err(error) => tracing::error!(program = self.name, %error, "tried again"),
                }
            }
        }
    }

    async fn stop(&self, child: &mut Child) {
        if let Some(one) = child.id().and_then(|pid| Identity::of(pid.cast_signed())) {
            one.signal(Signal::TERM);
        }
        if timeout(END, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
        let _ = fs::remove_file(self.pid_file());
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// A log that has grown too long begins anew; what it had is kept as NAME.log.1. Whoever writes it appends, and need not be told.
fn turn(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.len() < LOG_MOST {
        return Ok(());
    }
    let mut kept = path.as_os_str().to_owned();
    kept.push(".1");
    fs::copy(path, kept)?;
    fs::OpenOptions::new().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(dir: &Path, script: &str) -> Program {
        Program {
            name: "it",
            command: vec!["sh".into(), "-c".into(), script.into()],
            dir: dir.to_owned(),
            told: None,
        }
    }

    async fn kept(program: Program, ends: CancellationToken) {
        let child = program.start().await.unwrap();
        program.keep(child, ends).await;
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..1000 {
            if holds() {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: not within 10 s");
    }

    fn lines(program: &Program) -> usize {
        fs::read_to_string(program.log()).map_or(0, |text| text.lines().count())
    }

    #[tokio::test]
    async fn one_that_is_not_there_is_told_at_once_with_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut program = program(dir.path(), "");
        program.command = vec!["/nowhere/berthd".into()];
        let said = program.start().await.unwrap_err().to_string();
        assert!(
            said.contains("/nowhere/berthd") && said.contains("PATH"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn what_ends_is_started_again_until_nobody_wants_it() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "echo here; exit 3");
        let ends = CancellationToken::new();
        let keeps = tokio::spawn(kept(program.clone(), ends.clone()));
        until("three lives", || lines(&program) >= 3).await;
        ends.cancel();
        keeps.await.unwrap();
        assert!(program.last_words().contains("here"));
    }

    #[tokio::test]
    async fn who_is_killed_leaves_it_running_and_the_next_takes_it_over() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "echo here; exec sleep 1000");
        let keeps = tokio::spawn(kept(program.clone(), CancellationToken::new()));
        until("it runs", || program.runs() && lines(&program) == 1).await;
        let first = Identity::read(&program.pid_file()).unwrap();
        keeps.abort();
        let _ = keeps.await;
        assert!(first.lives());
        let ends = CancellationToken::new();
        let keeps = tokio::spawn(kept(program.clone(), ends.clone()));
        until("another runs", || {
            program.runs() && Identity::read(&program.pid_file()) != Some(first)
        })
        .await;
        assert!(!first.lives());
        let second = Identity::read(&program.pid_file()).unwrap();
        ends.cancel();
        keeps.await.unwrap();
        assert!(!second.lives() && !program.pid_file().exists());
    }

    #[tokio::test]
    async fn one_that_nobody_has_written_down_is_found_by_what_it_was_told() {
        let dir = tempfile::tempdir().unwrap();
        let argument = dir.path().join("its");
        let told = |argument: &Path| Told {
            file: "sh".into(),
            argument: argument.to_owned(),
        };
        let mut program = program(dir.path(), "echo here; while :; do sleep 0.1; done");
        program.command.push(argument.clone().into());
        let mut child = program.spawn().unwrap();
        let one = Identity::read(&program.pid_file()).unwrap();
        until("it runs", || lines(&program) == 1).await;
        fs::remove_file(program.pid_file()).unwrap();
        program.told = Some(told(&dir.path().join("another's")));
        program.end().await;
        assert!(one.lives());
        program.told = Some(told(&argument));
        program.end().await;
        assert!(!one.lives());
        child.wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_number_that_is_anothers_now_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let program = program(dir.path(), "true");
        let own = Identity::of(std::process::id().cast_signed()).unwrap();
        fs::write(program.pid_file(), format!("{} {}", own.pid, own.began + 1)).unwrap();
        assert!(!program.runs());
        program.end().await;
    }

    #[test]
    fn a_log_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("it.log");
        let mut log = open_log(&path).unwrap();
        io::Write::write_all(&mut log, &vec![b'a'; LOG_MOST as usize]).unwrap();
        turn(&path).unwrap();
        io::Write::write_all(&mut log, b"more\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"more\n");
        assert_eq!(
            fs::metadata(dir.path().join("it.log.1")).unwrap().len(),
            LOG_MOST
        );
    }
}
