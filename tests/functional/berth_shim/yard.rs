//! A machine of the test's own with shims on it, driven by `berth shim`.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{cgroup, daemon::bin_dir, machine, process};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

/// For what ends by itself.
pub(super) const SOON: Duration = Duration::from_secs(20);
/// Seconds that a shim under test may take for an answer; one that hangs is known by then.
pub(super) const DEADLINE: &str = "20";

#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    pub(super) runtime: &'static str,
    pub(super) program: &'static str,
    /// Of its task service, when it is asked for the newest.
    pub(super) version: i64,
    /// Whether it takes the options of runc's.
    pub(super) runc: bool,
}

pub(super) const KINDS: [Kind; 2] = [
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
pub(super) struct Yard {
    pub(super) dir: PathBuf,
    pub(super) namespace: String,
    pub(super) kind: Kind,
    pub(super) ids: BTreeSet<String>,
}

impl Yard {
    /// Runs `test` with each kind of shim.
    pub(super) fn each(test: impl Fn(&mut Yard) -> Result<()>) -> Result<()> {
        machine::isolate()?;
        for kind in KINDS {
            let mut yard = Yard::make(kind)?;
            test(&mut yard).with_context(|| kind.program)?;
            yard.nothing_is_left().with_context(|| kind.program)?;
        }
        Ok(())
    }

    pub(super) fn make(kind: Kind) -> Result<Self> {
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

    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// A name that no other test has: cgroups are the machine's.
    pub(super) fn id(&mut self, name: &str) -> String {
        let id = format!("{}-{name}", self.namespace);
        self.ids.insert(id.clone());
        id
    }

    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let bin = bin_dir()?;
        let mut path = OsString::from(&bin);
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new(bin.join("berth"));
        command
            .env("PATH", path)
            .args(["shim", "--namespace", &self.namespace]);
        if !words.contains(&"--state") {
            command.arg("--state").arg(self.state());
        }
        if !words.contains(&"--timeout") {
            command.args(["--timeout", DEADLINE]);
        }
        command.args(words).stdin(Stdio::null());
        Ok(command)
    }

    pub(super) fn berth(&self, words: &[&str]) -> Result<Output> {
        Ok(self.command(words)?.output()?)
    }

    /// What it prints; it must succeed.
    pub(super) fn ok(&self, words: &[&str]) -> Result<String> {
        let output = self.berth(words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{words:?}: {output:?}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(super) fn json(&self, words: &[&str]) -> Result<Value> {
        let words: Vec<&str> = words.iter().copied().chain(["-o", "json"]).collect();
        Ok(serde_json::from_str(&self.ok(&words)?)?)
    }

    /// What it says on stderr; it must fail with 1 and name each of `parts`.
    pub(super) fn fails(&self, words: &[&str], parts: &[&str]) -> Result<String> {
        let output = self.berth(words)?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{words:?}: {said}");
        for part in parts {
            ensure!(said.contains(part), "{words:?}: no {part:?} in {said}");
        }
        Ok(said)
    }

    /// A bundle with this command.
    pub(super) fn bundle(&self, name: &str, more: &[&str], command: &[&str]) -> Result<String> {
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
    pub(super) fn words<'a>(
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
    pub(super) fn detached(
        &mut self,
        name: &str,
        more: &[&str],
        script: &str,
    ) -> Result<(String, i32)> {
        let id = self.id(name);
        let bundle = self.bundle(name, more, &["sh", "-c", script])?;
        let words = self.words("run", &id, &bundle, &["--detach"]);
        let printed = self.ok(&refs(&words))?;
        Ok((id, printed.trim().parse()?))
    }

    /// Processes of shims; a launcher that one has forked is not another.
    pub(super) fn shims(&self) -> Vec<process::Process> {
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
    pub(super) fn shim_pid(&self, id: &str) -> Result<i32> {
        let list = self.json(&["ps"])?;
        let listed = list.as_array().and_then(|list| {
            let mut of = list.iter().filter(|listed| listed["id"] == id);
            of.next()
        });
        let pid = listed.and_then(|listed| listed["shimPid"].as_i64());
        Ok(pid.with_context(|| format!("{id} is not in {list}"))? as i32)
    }

    pub(super) fn nothing_is_left(&self) -> Result<()> {
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

pub(super) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let targets = text.lines().rev().filter_map(|line| line.split(' ').nth(4));
    targets
        .map(PathBuf::from)
        .filter(|target| target.starts_with(dir))
        .collect()
}

pub(super) fn refs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The topics of events in a text of lines of JSON, each with the container's or exec's name without its prefix.
pub(super) fn topics(text: &str, namespace: &str) -> Vec<String> {
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
