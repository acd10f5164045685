//! `berth shim`: any shim v2 by hand. Each case is asked of our own shim and of Debian's for runc, and at each end nothing is left.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{cgroup, daemon::bin_dir, machine, process};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    pty::{Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::tcgetattr,
    },
    unistd::Pid,
};
use serde_json::Value;

/// For what ends by itself.
const SOON: Duration = Duration::from_secs(20);
/// Seconds that a shim under test may take for an answer; one that hangs is known by then.
const DEADLINE: &str = "20";

#[derive(Debug, Clone, Copy)]
struct Kind {
    runtime: &'static str,
    program: &'static str,
    /// Of its task service, when it is asked for the newest.
    version: i64,
    /// Whether it takes the options of runc's.
    runc: bool,
}

const KINDS: [Kind; 2] = [
    Kind {
        runtime: "io.containerd.berth.v2",
        program: "containerd-shim-berth-v2",
        version: 3,
        runc: false,
    },
    Kind {
        runtime: "io.containerd.runc.v2",
        program: "containerd-shim-runc-v2",
        version: 2,
        runc: true,
    },
];

/// A machine of the test's own with a state directory, a root file system, and a kind of shim.
struct Yard {
    dir: PathBuf,
    namespace: String,
    kind: Kind,
    ids: BTreeSet<String>,
}

impl Yard {
    /// Runs `test` with each kind of shim.
    fn each(test: impl Fn(&mut Yard) -> Result<()>) -> Result<()> {
        machine::isolate()?;
        for kind in KINDS {
            let mut yard = Yard::make(kind)?;
            test(&mut yard).with_context(|| kind.program)?;
            yard.nothing_is_left().with_context(|| kind.program)?;
        }
        Ok(())
    }

    fn make(kind: Kind) -> Result<Self> {
        let namespace = format!("yard-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let dir = Path::new("/tmp").join(&namespace);
        fs::create_dir_all(dir.join("run"))?;
        // Go's shims have their sockets there, whatever they are told.
        let sockets = Path::new("/run/containerd");
        fs::create_dir_all(sockets)?;
        mount(
            Some(&dir.join("run")),
            sockets,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("mount a directory of our own on /run/containerd")?;
        let bin = dir.join("root/bin");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
            fs::create_dir_all(dir.join("root").join(name))?;
        }
        fs::copy("/bin/busybox", bin.join("busybox")).context("package busybox-static")?;
        let list = Command::new("/bin/busybox").arg("--list").output()?;
        for applet in String::from_utf8(list.stdout)?.split_whitespace() {
            if applet != "busybox" {
                fs::hard_link(bin.join("busybox"), bin.join(applet))?;
            }
        }
        Ok(Self {
            dir,
            namespace,
            kind,
            ids: BTreeSet::new(),
        })
    }

    fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A name that no other test has: cgroups are the machine's.
    fn id(&mut self, name: &str) -> String {
        let id = format!("{}-{name}", self.namespace);
        self.ids.insert(id.clone());
        id
    }

    fn command(&self, words: &[&str]) -> Result<Command> {
        let bin = bin_dir()?;
        let mut path = OsString::from(&bin);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new(bin.join("berth"));
        command
            .env("PATH", path)
            .args(["shim", "--namespace", &self.namespace, "--state"])
            .arg(self.state());
        if !words.contains(&"--timeout") {
            command.args(["--timeout", DEADLINE]);
        }
        command.args(words).stdin(Stdio::null());
        Ok(command)
    }

    fn berth(&self, words: &[&str]) -> Result<Output> {
        Ok(self.command(words)?.output()?)
    }

    /// What it prints; it must succeed.
    fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.berth(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {output:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        Ok(serde_json::from_str(&self.ok(&words)?)?)
    }

    /// What it says on stderr; it must fail with 1 and name each of `parts`.
    fn fails(&self, words: &[&str], parts: &[&str]) -> Result<String> {
        let output = self.berth(words)?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{words:?}: {said}");
        for part in parts {
            ensure!(said.contains(part), "{words:?}: no {part:?} in {said}");
        }
        Ok(said)
    }

    /// A bundle with this command.
    fn bundle(&self, name: &str, more: &[&str], command: &[&str]) -> Result<String> {
        let bundle = self.dir.join("bundles").join(name).display().to_string();
        let root = self.dir.join("root").display().to_string();
        let mut words = vec!["spec", &root, "--force", "--bundle", &bundle];
        words.extend_from_slice(more);
        words.push("--");
        words.extend_from_slice(command);
        self.ok(&words)?;
        Ok(bundle)
    }

    /// `run` or `create` with this kind of shim.
    fn words<'a>(
        &self,
        verb: &'a str,
        id: &'a str,
        bundle: &'a str,
        more: &[&'a str],
    ) -> Vec<String> {
        let mut words: Vec<String> = [verb, id, "--bundle", bundle, "--shim", self.kind.runtime]
            .iter()
            .chain(more)
            .map(|word| word.to_string())
            .collect();
        if self.kind.runc {
            let root = format!("Root={}/runc", self.dir.display());
            words.extend(["--option".into(), root]);
        }
        words
    }

    /// Leaves a container running: its id and pid.
    fn detached(&mut self, name: &str, more: &[&str], script: &str) -> Result<(String, i32)> {
        let id = self.id(name);
        let bundle = self.bundle(name, more, &["sh", "-c", script])?;
        let words = self.words("run", &id, &bundle, &["--detach"]);
        let printed = self.ok(&refs(&words))?;
        Ok((id, printed.trim().parse()?))
    }

    /// Processes of shims; a launcher that one has forked is not another.
    fn shims(&self) -> Vec<process::Process> {
        let all: Vec<process::Process> = process::all()
            .into_iter()
            .filter(|process| {
                let line = process.cmdline();
                process.state != 'Z'
                    && line.contains("containerd-shim-")
                    && line.contains(&self.namespace)
            })
            .collect();
        let pids: BTreeSet<i32> = all.iter().map(|process| process.pid).collect();
        all.into_iter()
            .filter(|process| !pids.contains(&process.parent))
            .collect()
    }

    /// The pid of the shim of a container.
    fn shim_pid(&self, id: &str) -> Result<i32> {
        let list = self.json(&["ps"])?;
        let listed = list.as_array().and_then(|list| {
            let mut of = list.iter().filter(|listed| listed["id"] == id);
            of.next()
        });
        let pid = listed.and_then(|listed| listed["shimPid"].as_i64());
        Ok(pid.with_context(|| format!("{id} is not in {list}"))? as i32)
    }

    fn nothing_is_left(&self) -> Result<()> {
        ensure!(self.json(&["ps"])? == Value::Array(Vec::new()));
        ensure!(
            process::eventually(SOON, || self.shims().is_empty()),
            "shims: {:?}",
            self.shims()
        );
        for id in &self.ids {
            let cgroups = || cgroup::tree(&format!("/berth-shim-{id}"));
            ensure!(
                process::eventually(SOON, || cgroups().is_empty()),
                "{:?}",
                cgroups()
            );
        }
        ensure!(mounts_below(&self.state()).is_empty());
        for (dir, what) in [
            (self.state().join("tasks"), "containers"),
            (self.state().join("e"), "sockets for events"),
            (self.state().join("s"), "sockets of shims"),
            (self.dir.join("run/s"), "sockets of shims"),
            (self.dir.join("runc").join(&self.namespace), "runc's state"),
        ] {
            let empty = || fs::read_dir(&dir).map_or(0, Iterator::count) == 0;
            ensure!(
                process::eventually(SOON, empty),
                "{what} in {}: {:?}",
                dir.display(),
                fs::read_dir(&dir)?.collect::<Vec<_>>()
            );
        }
        Ok(())
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        for shim in self.shims() {
            process::kill_9(shim.pid);
        }
        for id in &self.ids {
            for process in process::in_cgroup(&format!("berth-shim-{id}")) {
                process::kill_9(process.pid);
            }
            let parent = format!("/berth-shim-{id}");
            process::eventually(SOON, || cgroup::remove(&parent).is_ok());
        }
        for target in mounts_below(&self.dir) {
            let _ = umount2(target.as_path(), MntFlags::MNT_DETACH);
        }
        let _ = umount2("/run/containerd", MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let targets = text.lines().rev().filter_map(|line| line.split(' ').nth(4));
    targets
        .map(PathBuf::from)
        .filter(|target| target.starts_with(dir))
        .collect()
}

fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The topics of events in a text of lines of JSON, each with the container's or exec's name without its prefix.
fn topics(text: &str, namespace: &str) -> Vec<String> {
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|event| event["topic"].is_string())
        .map(|event| {
            let name = |key: &str| event["event"][key].as_str().unwrap_or("").to_owned();
            let id = name("containerId").replace(&format!("{namespace}-"), "");
            format!("{} {id}", event["topic"].as_str().unwrap_or(""))
        })
        .collect()
}

#[test]
fn a_run_has_its_output_its_exit_code_and_its_events_in_order() -> Result<()> {
    Yard::each(|yard| {
        for (name, script, code) in [
            ("seven", "echo out; echo err >&2; exit 7", 7),
            ("fine", "echo out; echo err >&2", 0),
            ("killed", "echo out; echo err >&2; kill -KILL $$", 137),
        ] {
            let id = yard.id(name);
            // As the first process of a pid namespace a shell can't be killed from within it.
            let script = if code == 137 {
                "sh -c 'echo out; echo err >&2; kill -KILL $$'; exit $?"
            } else {
                script
            };
            let bundle = yard.bundle(name, &[], &["sh", "-c", script])?;
            let before = fs::read(Path::new(&bundle).join("config.json"))?;
            let words = yard.words("run", &id, &bundle, &["--events", "-o", "json"]);
            let output = yard.berth(&refs(&words))?;
            let said = String::from_utf8(output.stderr.clone())?;
            ensure!(output.status.code() == Some(code), "{output:?}");
            ensure!(output.stdout == b"out\n", "{output:?}");
            ensure!(said.lines().any(|line| line == "err"), "{said}");
            let told = topics(&said, &yard.namespace);
            let expected = ["create", "start", "exit", "delete"];
            let expected: Vec<String> = expected
                .iter()
                .map(|topic| format!("/tasks/{topic} {name}"))
                .collect();
            ensure!(told == expected, "{told:?}");
            // The person's bundle is only read.
            ensure!(fs::read(Path::new(&bundle).join("config.json"))? == before);
            ensure!(fs::read_dir(&bundle)?.count() == 1);
        }
        Ok(())
    })
}

#[test]
fn stdin_reaches_the_process_whole_and_ends() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("input");
        let bundle = yard.bundle("input", &[], &["sh", "-c", "md5sum; echo ended"])?;
        let words = yard.words("run", &id, &bundle, &["--interactive"]);
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let mut child = yard
            .command(&refs(&words))?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        stdin.write_all(&bytes)?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let sum = Command::new("md5sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let expected = fed(sum, &bytes)?;
        let printed = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{:?}", output.status);
        ensure!(printed == format!("{expected}ended\n"), "{printed}");

        // Without --interactive there is nothing to read.
        let id = yard.id("none");
        let words = yard.words("run", &id, &bundle, &[]);
        let printed = yard.ok(&refs(&words))?;
        ensure!(
            printed.starts_with("d41d8cd98f00b204e9800998ecf8427e"),
            "{printed}"
        );
        Ok(())
    })
}

fn fed(mut child: Child, bytes: &[u8]) -> Result<String> {
    child.stdin.take().context("no stdin")?.write_all(bytes)?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

/// A `berth` with a terminal.
struct Seat {
    child: Child,
    master: File,
    /// Held open, so that the terminal's settings can be read at any time.
    slave: File,
    text: String,
}

impl Seat {
    fn take(yard: &Yard, words: &[&str], size: (u16, u16)) -> Result<Self> {
        let size = winsize(size);
        let pty = openpty(&size, None)?;
        let slave = File::from(pty.slave);
        let child = yard
            .command(words)?
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(Stdio::piped())
            .spawn()?;
        let master = File::from(pty.master);
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self {
            child,
            master,
            slave,
            text: String::new(),
        })
    }

    fn is_raw(&self) -> Result<bool> {
        use nix::sys::termios::LocalFlags;
        Ok(!tcgetattr(&self.slave)?
            .local_flags
            .intersects(LocalFlags::ICANON | LocalFlags::ECHO))
    }

    fn expect(&mut self, part: &str) -> Result<()> {
        let began = Instant::now();
        while !self.text.contains(part) {
            let mut buffer = [0; 4096];
            match self.master.read(&mut buffer) {
                Ok(n) => self.text += &String::from_utf8_lossy(&buffer[..n]),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            if began.elapsed() > SOON {
                bail!("no {part:?} in {:?}", self.text);
            }
        }
        self.text.clear();
        Ok(())
    }

    fn resize(&self, size: (u16, u16)) -> Result<()> {
        let (columns, rows) = size;
        let size = rustix::termios::Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&self.master, size)?;
        // It is not the terminal's foreground process group: nobody gave it a session.
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGWINCH)?;
        Ok(())
    }

    fn code(&mut self) -> Result<Option<i32>> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            // Its last output must find room.
            let _ = self.master.read(&mut [0; 4096]);
            ensure!(began.elapsed() < SOON, "berth does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn winsize((columns, rows): (u16, u16)) -> Winsize {
    Winsize {
        ws_col: columns,
        ws_row: rows,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn a_terminal_has_the_persons_size_and_is_restored_whatever_happens() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("seat");
        let bundle = yard.bundle("seat", &[], &["sh"])?;
        let words = yard.words("run", &id, &bundle, &["--tty", "--interactive"]);
        let mut seat = Seat::take(yard, &refs(&words), (101, 37))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        seat.master.write_all(b"stty size; echo first-$?\n")?;
        seat.expect("37 101")?;
        seat.resize((90, 30))?;
        // The size goes its own way, beside the bytes.
        let began = Instant::now();
        loop {
            seat.master.write_all(b"stty size\n")?;
            if seat.expect("30 90").is_ok() {
                break;
            }
            ensure!(began.elapsed() < SOON, "not resized");
        }
        // The terminal's own signals are the container's.
        seat.master.write_all(b"sleep 1000\n")?;
        std::thread::sleep(Duration::from_millis(300));
        seat.master.write_all(b"\x03")?;
        seat.master.write_all(b"echo interrupted-$?\n")?;
        seat.expect("interrupted-130")?;
        seat.master.write_all(b"exit 5\n")?;
        ensure!(seat.code()? == Some(5));
        ensure!(!seat.is_raw()?, "raw after exit");

        // The shim is killed, or this program is told to end: cooked again.
        let id = yard.id("seat2");
        let words = yard.words("run", &id, &bundle, &["--tty", "--interactive"]);
        let mut seat = Seat::take(yard, &refs(&words), (80, 24))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        process::kill_9(yard.shim_pid(&id)?);
        ensure!(seat.code()? == Some(1));
        ensure!(!seat.is_raw()?, "raw after the shim's death");

        let id = yard.id("seat3");
        let words = yard.words("run", &id, &bundle, &["--tty", "--interactive"]);
        let mut seat = Seat::take(yard, &refs(&words), (80, 24))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        for _ in 0..3 {
            kill(Pid::from_raw(seat.child.id() as i32), Signal::SIGTERM)?;
            std::thread::sleep(Duration::from_millis(200));
        }
        ensure!(seat.code()? == Some(137));
        ensure!(!seat.is_raw()?, "raw after signals");
        Ok(())
    })
}

#[test]
fn signals_end_a_container_and_its_end_is_told_by_wait_and_delete() -> Result<()> {
    Yard::each(|yard| {
        let trap = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
        for (name, words, code) in [
            ("term", vec!["kill", "ID"], 3),
            ("nine", vec!["kill", "ID", "KILL"], 137),
            ("all", vec!["kill", "--all", "ID", "9"], 137),
        ] {
            let (id, pid) = yard.detached(name, &[], trap)?;
            ensure!(process::Process::read(pid).is_some());
            // The shell sets its trap.
            std::thread::sleep(Duration::from_millis(300));
            let state = yard.json(&["state", &id])?;
            ensure!(
                state["status"] == "running" && state["pid"] == pid,
                "{state}"
            );
            let words: Vec<&str> = words
                .iter()
                .map(|w| if *w == "ID" { &id } else { *w })
                .collect();
            yard.ok(&words)?;
            let waited = yard.berth(&["wait", &id, "-o", "json"])?;
            ensure!(waited.status.code() == Some(code), "{name}: {waited:?}");
            let state = yard.json(&["state", &id])?;
            ensure!(
                state["status"] == "stopped" && state["exitStatus"] == code,
                "{state}"
            );
            ensure!(state["exitedAt"].is_string(), "{state}");
            let deleted = yard.json(&["delete", &id])?;
            ensure!(deleted["exitStatus"] == code, "{deleted}");
            yard.fails(&["state", &id], &[&id, "berth shim ps"])?;
        }
        // In the foreground the signal is handed on.
        let id = yard.id("front");
        let bundle = yard.bundle("front", &[], &["sh", "-c", trap])?;
        let words = yard.words("run", &id, &bundle, &[]);
        let mut child = yard
            .command(&refs(&words))?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        child
            .stdout
            .as_mut()
            .context("no stdout")?
            .read_exact(&mut ready)?;
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM)?;
        ensure!(child.wait()?.code() == Some(3));
        Ok(())
    })
}

#[test]
fn an_exec_has_its_streams_its_user_and_its_exit_code() -> Result<()> {
    Yard::each(|yard| {
        let (id, _) = yard.detached("host", &[], "sleep 1000")?;
        let answer = yard.berth(&[
            "exec",
            &id,
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 9",
        ])?;
        ensure!(answer.status.code() == Some(9), "{answer:?}");
        ensure!(
            answer.stdout == b"out\n" && answer.stderr == b"err\n",
            "{answer:?}"
        );
        let script = "id -u; id -g; pwd; echo $COLOUR";
        let printed = yard.ok(&[
            "exec",
            "--user",
            "7:8",
            "--cwd",
            "/tmp",
            "--env",
            "COLOUR=blue",
            &id,
            "--",
            "sh",
            "-c",
            script,
        ])?;
        ensure!(printed == "7\n8\n/tmp\nblue\n", "{printed}");
        let child = yard
            .command(&["exec", "-i", &id, "--", "wc", "-c"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        ensure!(fed(child, &[b'x'; 300_000])?.trim() == "300000");

        let mut seat = Seat::take(yard, &["exec", "-ti", &id, "--", "sh"], (70, 20))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        seat.master.write_all(b"stty size; exit 4\n")?;
        seat.expect("20 70")?;
        ensure!(seat.code()? == Some(4));
        ensure!(!seat.is_raw()?);

        yard.ok(&[
            "exec",
            "--detach",
            "--exec-id",
            "one",
            &id,
            "--",
            "sh",
            "-c",
            "sleep 0.2; exit 6",
        ])?;
        let state = yard.json(&["state", &id, "--exec-id", "one"])?;
        // runc's shim says the exec's name where the container's belongs.
        ensure!(state["execId"] == "one" || state["id"] == "one", "{state}");
        let waited = yard.berth(&["wait", &id, "--exec-id", "one"])?;
        ensure!(waited.status.code() == Some(6), "{waited:?}");
        yard.ok(&["delete", &id, "--exec-id", "one"])?;
        yard.fails(
            &["state", &id, "--exec-id", "one"],
            &["State", yard.kind.program],
        )?;

        yard.fails(
            &["exec", &id, "--", "/nowhere/to/be/found"],
            &["Start", yard.kind.program],
        )?;
        yard.fails(
            &["exec", "--user", "root", &id, "--", "true"],
            &["in numbers"],
        )?;
        yard.fails(
            &["exec", "--exec-id", "../x", &id, "--", "true"],
            &["exec id"],
        )?;
        // Nothing of all those is left in its directory.
        let fifos = fs::read_dir(yard.state().join("tasks").join(&yard.namespace).join(&id))?
            .flatten()
            .filter(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name != "log" && entry.file_type().is_ok_and(|kind| kind.is_fifo())
            })
            .count();
        ensure!(fifos == 0, "{fifos} fifos");
        yard.ok(&["delete", "--force", &id])?;
        Ok(())
    })
}

#[test]
fn a_container_is_paused_counted_measured_and_limited() -> Result<()> {
    Yard::each(|yard| {
        let (id, pid) = yard.detached("work", &[], "sleep 1001 & sleep 1002 & wait")?;
        let count = || -> Result<usize> {
            let pids = yard.json(&["pids", &id])?;
            Ok(pids.as_array().map_or(0, Vec::len))
        };
        ensure!(process::eventually(SOON, || count().is_ok_and(|count| count == 3)));
        let pids = yard.json(&["pids", &id])?;
        ensure!(
            pids.as_array()
                .is_some_and(|pids| pids.contains(&pid.into())),
            "{pids}"
        );

        yard.ok(&["pause", &id])?;
        ensure!(yard.json(&["state", &id])?["status"] == "paused");
        yard.ok(&["resume", &id])?;
        ensure!(yard.json(&["state", &id])?["status"] == "running");

        let stats = yard.json(&["stats", &id])?;
        ensure!(stats["pids"] == 3, "{stats}");
        for figure in ["cpuUsageNs", "memoryUsageBytes"] {
            ensure!(
                stats[figure].as_u64().is_some_and(|value| value > 0),
                "{stats}"
            );
        }
        let limit = 64 << 20;
        yard.ok(&["update", &id, "--memory", &limit.to_string()])?;
        ensure!(yard.json(&["stats", &id])?["memoryLimitBytes"] == limit);
        let limits = yard.dir.join("limits.json");
        fs::write(&limits, r#"{"memory": {"limit": 50331648}}"#)?;
        yard.ok(&["update", &id, "--resources", &limits.display().to_string()])?;
        ensure!(yard.json(&["stats", &id])?["memoryLimitBytes"] == 48 << 20);
        yard.fails(&["update", &id], &["no limit"])?;
        let table = yard.ok(&["stats", &id])?;
        ensure!(table.contains("memory limit"), "{table}");
        yard.ok(&["delete", "--force", &id])?;
        Ok(())
    })
}

#[test]
fn containers_of_a_group_share_a_shim_and_its_events() -> Result<()> {
    Yard::each(|yard| {
        let group = yard.id("pod");
        let mut listener = yard
            .command(&["events", &group, "-o", "json"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let socket = || fs::read_dir(yard.state().join("e")).map_or(0, Iterator::count) == 1;
        ensure!(process::eventually(SOON, socket), "nobody listens");
        yard.fails(&["events", &group], &["another process"])?;
        let names = ["pod", "a", "b"];
        let mut ids = Vec::new();
        for name in names {
            ids.push(yard.detached(name, &["--group", &group], "sleep 1000")?.0);
        }
        let list = yard.json(&["ps"])?;
        let list = list.as_array().context("no list")?;
        let pids: BTreeSet<i64> = list
            .iter()
            .filter_map(|one| one["shimPid"].as_i64())
            .collect();
        ensure!(list.len() == 3 && pids.len() == 1, "{list:?}");
        ensure!(yard.shims().len() == 1, "{:?}", yard.shims());
        ensure!(
            list.iter()
                .all(|one| one["group"] == group && one["status"] == "running")
        );
        yard.ok(&["exec", &ids[1], "--", "true"])?;
        for id in ids.iter().rev() {
            yard.ok(&["kill", id, "9"])?;
            let _ = yard.berth(&["wait", id])?;
            yard.ok(&["delete", id])?;
        }
        ensure!(process::eventually(SOON, || yard.shims().is_empty()));
        std::thread::sleep(Duration::from_millis(500));
        kill(Pid::from_raw(listener.id() as i32), Signal::SIGTERM)?;
        let mut text = String::new();
        listener
            .stdout
            .take()
            .context("no stdout")?
            .read_to_string(&mut text)?;
        ensure!(listener.wait()?.success());
        let told = topics(&text, &yard.namespace);
        let of = |name: &str| -> Vec<&str> {
            let end = format!(" {name}");
            told.iter()
                .filter_map(|topic| topic.strip_suffix(end.as_str()))
                .collect()
        };
        for name in ["pod", "b"] {
            ensure!(
                of(name)
                    == [
                        "/tasks/create",
                        "/tasks/start",
                        "/tasks/exit",
                        "/tasks/delete"
                    ],
                "{told:?}"
            );
        }
        ensure!(
            of("a")
                == [
                    "/tasks/create",
                    "/tasks/start",
                    "/tasks/exec-added",
                    "/tasks/exec-started",
                    "/tasks/exit",
                    "/tasks/exit",
                    "/tasks/delete"
                ],
            "{told:?}"
        );
        Ok(())
    })
}

#[test]
fn create_and_start_are_two_steps_and_ps_tells_all_of_them() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("steps");
        let out = yard.dir.join("out");
        nix::unistd::mkfifo(&out, nix::sys::stat::Mode::S_IRWXU)?;
        let mut reader = File::options().read(true).write(true).open(&out)?;
        let bundle = yard.bundle("steps", &[], &["sh", "-c", "echo given; sleep 1000"])?;
        let uri = out.display().to_string();
        // runc's shim takes both outputs or none.
        let uris = ["--stdout", &uri, "--stderr", &uri];
        let words = yard.words("create", &id, &bundle, &uris);
        yard.ok(&refs(&words))?;
        ensure!(yard.json(&["state", &id])?["status"] == "created");
        yard.fails(&refs(&words), &["is there already", "delete --force"])?;
        yard.ok(&["start", &id])?;
        let mut given = [0; 6];
        reader.read_exact(&mut given)?;
        ensure!(&given == b"given\n");
        let table = yard.ok(&["ps"])?;
        for part in ["SHIM PID", &id, yard.kind.program, "running"] {
            ensure!(table.contains(part), "{table}");
        }
        ensure!(yard.json(&["ps"])?[0]["version"] == yard.kind.version);
        // A container that runs is not deleted; its shim says so, and stays.
        yard.fails(&["delete", &id], &["Delete", yard.kind.program])?;
        // With another in it the shim does not end; by `shutdown --now` it does.
        yard.ok(&["shutdown", &id])?;
        ensure!(yard.json(&["state", &id])?["status"] == "running");
        yard.ok(&["delete", "--force", &id])?;
        Ok(())
    })
}

#[test]
fn a_shim_that_is_killed_is_named_and_nothing_of_it_is_left() -> Result<()> {
    Yard::each(|yard| {
        // In the foreground.
        let id = yard.id("front");
        let bundle = yard.bundle("front", &[], &["sh", "-c", "echo ready; sleep 1000"])?;
        let words = yard.words("run", &id, &bundle, &[]);
        let mut child = yard
            .command(&refs(&words))?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdout
            .as_mut()
            .context("no stdout")?
            .read_exact(&mut [0; 6])?;
        process::kill_9(yard.shim_pid(&id)?);
        let output = child.wait_with_output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{said}");
        for part in [yard.kind.program, "Wait", "has died"] {
            ensure!(said.contains(part), "{said}");
        }
        yard.nothing_is_left()?;

        // Left alone.
        let (id, pid) = yard.detached("back", &[], "sleep 1000")?;
        process::kill_9(yard.shim_pid(&id)?);
        ensure!(process::eventually(SOON, || yard
            .json(&["ps"])
            .is_ok_and(|list| list[0]["status"] == "shim is dead")));
        yard.fails(&["state", &id], &[yard.kind.program, "has died"])?;
        yard.ok(&["delete", "--force", &id])?;
        ensure!(process::eventually(SOON, || process::Process::read(pid)
            .is_none_or(|process| process.state == 'Z')));
        Ok(())
    })
}

#[test]
fn a_shim_that_stops_answering_is_named_and_given_up() -> Result<()> {
    Yard::each(|yard| {
        let (id, _) = yard.detached("deaf", &[], "sleep 1000")?;
        let shim = yard.shim_pid(&id)?;
        kill(Pid::from_raw(shim), Signal::SIGSTOP)?;
        let began = Instant::now();
        yard.fails(
            &["--timeout", "1", "state", &id],
            &[yard.kind.program, "State", "no answer for 1 s", "hangs"],
        )?;
        ensure!(began.elapsed() < Duration::from_secs(5));
        ensure!(yard.json(&["ps"])?[0]["status"] == "shim hangs");
        yard.ok(&["delete", "--force", "--timeout", "5", &id])?;

        // While it is waited for.
        let id = yard.id("front");
        let bundle = yard.bundle("front", &[], &["sh", "-c", "echo ready; sleep 1000"])?;
        let words = yard.words("run", &id, &bundle, &["--timeout", "5"]);
        let mut child = yard
            .command(&refs(&words))?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdout
            .as_mut()
            .context("no stdout")?
            .read_exact(&mut [0; 6])?;
        let shim = yard.shim_pid(&id)?;
        kill(Pid::from_raw(shim), Signal::SIGSTOP)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(
            said.contains("no answer for 5 s") && said.contains(yard.kind.program),
            "{said}"
        );
        Ok(())
    })
}

/// Programs that are no shims, and what is said of each.
#[test]
fn a_program_that_is_no_shim_is_named_with_the_step_and_what_it_did() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    let rubbish = yard.dir.join("rubbish.sock");
    let listener = std::os::unix::net::UnixListener::bind(&rubbish)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(&[0x5a; 4096]);
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let silent = yard.dir.join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&silent)?;
    let says_rubbish = format!("echo unix://{}", rubbish.display());
    let says_silent = format!("echo unix://{}", silent.display());
    let bundle = yard.bundle("none", &[], &["true"])?;
    let cases: [(&str, &str, &[&str]); 13] = [
        (
            "garbage",
            "echo hello",
            &["start", "\"hello\"", "no address"],
        ),
        ("nothing", "true", &["start", "printed no address"]),
        (
            "fails",
            "echo no such luck >&2; exit 3",
            &["start", "exited with 3", "no such luck"],
        ),
        (
            "silent-failure",
            "exit 1",
            &["start", "exited with 1", "said nothing"],
        ),
        ("killed", "kill -9 $$", &["start", "killed by signal 9"]),
        (
            "hangs",
            "sleep 1000",
            &["start", "no answer for 1 s", "hangs"],
        ),
        (
            "holds-on",
            "sleep 1000 & echo unix:///x",
            &["start", "hangs"],
        ),
        ("endless", "yes", &["start", "more than 65536 bytes"]),
        ("escapes", "printf '\\033[2J\\000x'", &["start", "\\u{1b}"]),
        (
            "future",
            r#"echo '{"version":4,"address":"unix:///x","protocol":"ttrpc"}'"#,
            &["start", "version 4 is not known"],
        ),
        (
            "grpc",
            r#"echo '{"version":3,"address":"unix:///x","protocol":"grpc"}'"#,
            &["start", "only ttrpc"],
        ),
        (
            "nobody",
            "echo unix:///nonexistent/s",
            &["connect", "has died", "/nonexistent/s"],
        ),
        ("rubbish", &says_rubbish, &["Connect"]),
    ];
    for (name, script, parts) in cases.into_iter().chain([(
        "deaf",
        says_silent.as_str(),
        ["Connect", "hangs"].as_slice(),
    )]) {
        let program = yard.dir.join(format!("shim-{name}"));
        // `delete` succeeds, so that what is said is said of the step alone.
        fs::write(
            &program,
            format!("#!/bin/sh\ncase \"$*\" in *delete) exit 0;; esac\n{script}\n"),
        )?;
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        let id = yard.id(name);
        let shim = program.display().to_string();
        let began = Instant::now();
        let said = yard.fails(
            &[
                "--timeout",
                "1",
                "run",
                &id,
                "--bundle",
                &bundle,
                "--shim",
                &shim,
            ],
            parts,
        )?;
        ensure!(said.contains(&format!("shim-{name}")), "{said}");
        ensure!(said.len() < 1000, "{} bytes", said.len());
        ensure!(!said.contains('\x1b'), "{said:?}");
        ensure!(
            began.elapsed() < Duration::from_secs(15),
            "{name}: {:?}",
            began.elapsed()
        );
        let left: Vec<_> = process::all()
            .into_iter()
            .filter(|process| process.cmdline().contains(&shim) && process.state != 'Z')
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        ensure!(yard.json(&["ps"])? == Value::Array(Vec::new()), "{name}");
    }
    for (shim, part) in [
        ("io.containerd.nonesuch.v2", "containerd-shim-nonesuch-v2"),
        ("nonesuch", "as a runtime"),
        ("/nowhere/shim", "/nowhere/shim"),
    ] {
        let id = yard.id("absent");
        yard.fails(&["run", &id, "--bundle", &bundle, "--shim", shim], &[part])?;
    }
    yard.nothing_is_left()
}

#[test]
fn each_form_of_the_bootstrap_answer_leads_to_a_container() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    for (max, version) in [("0", 2), ("2", 2), ("3", 3)] {
        let id = yard.id(&format!("v{max}"));
        let bundle = yard.bundle("any", &[], &["sleep", "1000"])?;
        let words = yard.words("run", &id, &bundle, &["--detach", "--max-version", max]);
        yard.ok(&refs(&words))?;
        ensure!(yard.json(&["ps"])?[0]["version"] == version, "{max}");
        yard.ok(&["delete", "--force", &id])?;
    }
    yard.nothing_is_left()
}

#[test]
fn what_the_shim_or_the_bundle_refuses_leaves_nothing() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("refused");
        let bundle = yard.bundle("refused", &[], &["/nowhere/command"])?;
        let words = yard.words("run", &id, &bundle, &[]);
        let said = yard.fails(&refs(&words), &[yard.kind.program])?;
        ensure!(said.contains("Create") || said.contains("Start"), "{said}");
        yard.nothing_is_left()?;
        let empty = yard.dir.join("empty");
        fs::create_dir_all(&empty)?;
        let empty = empty.display().to_string();
        for (id, bundle, part) in [
            (id.as_str(), empty.as_str(), "config.json"),
            ("../x", &bundle, "id"),
            ("", &bundle, "id"),
        ] {
            let words = yard.words("run", id, bundle, &[]);
            yard.fails(&refs(&words), &[part])?;
        }
        if !yard.kind.runc {
            let words = yard.words("run", &id, &bundle, &["--option", "BinaryName=crun"]);
            yard.fails(&refs(&words), &["Create", "BinaryName"])?;
        }
        let said = yard.ok(&["info", "--shim", yard.kind.runtime])?;
        ensure!(said.contains(yard.kind.program), "{said}");
        let about = yard.json(&["info", "--shim", yard.kind.runtime])?;
        ensure!(
            about["path"]
                .as_str()
                .is_some_and(|path| path.ends_with(yard.kind.program))
        );
        if !yard.kind.runc {
            ensure!(about["name"] == yard.kind.runtime, "{about}");
        }
        Ok(())
    })
}

#[test]
fn the_state_directory_and_its_sockets_are_roots_own() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    let group = yard.id("private");
    let mut listener = yard
        .command(&["events", &group])?
        .stdout(Stdio::null())
        .spawn()?;
    let sockets = || -> Vec<PathBuf> {
        let entries = fs::read_dir(yard.state().join("e")).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    };
    ensure!(process::eventually(SOON, || !sockets().is_empty()));
    for (path, mode) in sockets()
        .into_iter()
        .map(|path| (path, 0o600))
        .chain([(yard.state(), 0o700)])
    {
        let meta = fs::metadata(&path)?;
        ensure!(
            meta.permissions().mode() & 0o777 == mode,
            "{}",
            path.display()
        );
    }
    kill(Pid::from_raw(listener.id() as i32), Signal::SIGINT)?;
    ensure!(listener.wait()?.success());
    yard.nothing_is_left()
}
