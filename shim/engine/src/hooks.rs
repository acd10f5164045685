//! The hooks that run beside a container and not in its making: `poststart` once its command runs, `poststop` when nothing is left of it.
//! Both run on the node, as children of a worker, with the container's state on stdin (runtime-spec: config.md, "POSIX-platform Hooks").
//!
//! They are kept beside the record from the create on: the bundle is others' and may be gone, or changed, when they are due.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use berth_kernel::{pidfd, signals};
use nix::sys::signal::{Signal, killpg};
use oci_spec::runtime::{Hook, Spec};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{Error, init::MAX_SPEC_BYTES, request::cut};

/// For a hook that names no time of its own: berthd waits 30 s for a delete.
const WITHOUT_TIMEOUT: Duration = Duration::from_secs(20);
/// Of what a failing hook has said; the rest is read and dropped.
const MAX_SAID_BYTES: usize = 1024;
const NAME: &str = "hooks.json";

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    Poststart,
    Poststop,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Poststart => "poststart",
            Stage::Poststop => "poststop",
        }
    }

    /// The container's status, as hooks are told it.
    fn status(self) -> &'static str {
        match self {
            Stage::Poststart => "running",
            Stage::Poststop => "stopped",
        }
    }
}

/// What is kept of a spec for its late hooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hooks {
    version: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
}

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HooksRequest {
    pub id: String,
    pub pid: i32,
    pub stage: Stage,
    pub hooks: Hooks,
}

/// Whether a spec has hooks that run within the making of a container.
pub(crate) fn within_create(spec: &Spec) -> bool {
    let Some(hooks) = spec.hooks() else {
        return false;
    };
    #[allow(deprecated)]
    let all = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
    ];
    all.into_iter().flatten().any(|list| !list.is_empty())
}

impl Hooks {
    /// Those of a spec; none: it has no late hooks.
    pub(crate) fn of(id: &str, spec: &Spec, bundle: &Path) -> Result<Option<Hooks>, Error> {
        let asked = spec.hooks().clone().unwrap_or_default();
        let hooks = Hooks {
            version: spec.version().clone(),
            bundle: bundle.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            poststart: asked.poststart().clone().unwrap_or_default(),
            poststop: asked.poststop().clone().unwrap_or_default(),
        };
        for stage in [Stage::Poststart, Stage::Poststop] {
            for hook in hooks.at(stage) {
                if !hook.path().is_absolute() {
                    return Err(Error::Spec {
                        id: id.to_owned(),
                        reason: format!(
                            "{} hook {:?}: its path is not absolute",
                            stage.name(),
                            hook.path()
                        ),
                    });
                }
            }
        }
        let none = hooks.poststart.is_empty() && hooks.poststop.is_empty();
        Ok((!none).then_some(hooks))
    }

    pub(crate) fn at(&self, stage: Stage) -> &[Hook] {
        match stage {
            Stage::Poststart => &self.poststart,
            Stage::Poststop => &self.poststop,
        }
    }

    pub(crate) fn write(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(NAME);
        let bytes = serde_json::to_vec(self).map_err(|e| Error::Zygote(e.to_string()))?;
        fs::write(&path, bytes).map_err(Error::io(format!("write {}", path.display())))
    }

    /// `None`: the container has none.
    pub(crate) fn read(directory: &Path) -> Result<Option<Hooks>, Error> {
        let path = directory.join(NAME);
        let step = || Error::io(format!("read {}", path.display()));
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(MAX_SPEC_BYTES).read_to_end(&mut bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        }
        .map_err(step())?;
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| step()(e.into()))
    }
}

/// Runs a stage's hooks in their order. Of `poststart` the first that fails is the last; of `poststop` each has its turn, and what failed
/// comes back as notes.
pub(crate) fn run(request: &HooksRequest) -> Result<Vec<String>, Error> {
    let HooksRequest { id, stage, .. } = request;
    // A hook may end with its stdin unread.
    signals::ignore(Signal::SIGPIPE as i32).map_err(Error::io("ignore SIGPIPE"))?;
    let mut state = json!({
        "ociVersion": request.hooks.version,
        "id": id,
        "status": stage.status(),
        "bundle": request.hooks.bundle,
        "annotations": request.hooks.annotations,
    });
    if *stage == Stage::Poststart {
        state["pid"] = request.pid.into();
    }
    let state = state.to_string().into_bytes();
    let mut notes = Vec::new();
    for hook in request.hooks.at(*stage) {
        if let Err(reason) = one(hook, &state) {
            let reason = cut(format!(
                "{} hook {}: {reason}",
                stage.name(),
                hook.path().display()
            ));
            if *stage == Stage::Poststart {
                return Err(Error::Hook {
                    id: id.clone(),
                    reason,
                });
            }
            notes.push(reason);
        }
    }
    Ok(notes)
}

/// One hook, to its end or the end of its time.
fn one(hook: &Hook, state: &[u8]) -> Result<(), String> {
    let time = match hook.timeout() {
        Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        None => WITHOUT_TIMEOUT,
    };
    let args = hook.args().as_deref().unwrap_or_default();
    let env = hook.env().iter().flatten();
    let mut command = Command::new(hook.path());
    command
        .args(args.get(1..).unwrap_or_default())
        .env_clear()
        .envs(env.map(|entry| entry.split_once('=').unwrap_or((entry, ""))))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // What it forks goes with it.
        .process_group(0);
    if let Some(name) = args.first() {
        command.arg0(name);
    }
    let mut child = command
        .spawn()
        .map_err(|error| format!("can't be run: {error}"))?;
    let pid = child.id() as i32;
    let streams = (
        child.stdin.take().map(OwnedFd::from),
        child.stderr.take().map(OwnedFd::from),
    );
    let attended = pidfd::open(pid).and_then(|process| attend(&process, streams, state, time));
    if !matches!(attended, Ok(Some(_))) {
        let _ = killpg(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match attended {
        Ok(Some(said)) => judge(status, &said),
        Ok(None) => Err(format!("was not done within {} s", time.as_secs())),
        Err(error) => Err(format!("can't be waited for: {error}")),
    }
}

fn judge(status: ExitStatus, said: &[u8]) -> Result<(), String> {
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(said);
    match said.trim() {
        "" => Err(format!("ended with {status}")),
        said => Err(format!("ended with {status}: {said}")),
    }
}

/// Writes the state, reads what is said, and waits for the end; none: the time is over. What the hook has left running may hold its streams:
/// that is not waited for.
fn attend(
    process: &OwnedFd,
    (mut stdin, mut stderr): (Option<OwnedFd>, Option<OwnedFd>),
    state: &[u8],
    time: Duration,
) -> io::Result<Option<Vec<u8>>> {
    for stream in [&stdin, &stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(stream, true)?;
    }
    let until = Instant::now() + time;
    let mut rest = state;
    let mut said = Vec::new();
    loop {
        let mut sources = vec![PollFd::new(process, PollFlags::IN)];
        let writing = stdin.is_some();
        sources.extend(stdin.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        sources.extend(stderr.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut sources, Some(&left)) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = sources
            .iter()
            .map(|source| !source.revents().is_empty())
            .collect();
        drop(sources);
        if writing && ready[1] {
            rest = write_some(&mut stdin, rest)?;
        }
        if ready.get(1 + usize::from(writing)) == Some(&true) {
            read_some(&mut stderr, &mut said)?;
        }
        if ready[0] {
            // Its last words are in the pipe already.
            while read_some(&mut stderr, &mut said)? {}
            return Ok(Some(said));
        }
    }
}

/// Closed when all is written, or when nobody reads.
fn write_some<'a>(stdin: &mut Option<OwnedFd>, rest: &'a [u8]) -> io::Result<&'a [u8]> {
    let Some(stream) = stdin else {
        return Ok(rest);
    };
    let rest = match rustix::io::write(stream.as_fd(), rest) {
        Ok(count) => &rest[count..],
        Err(Errno::AGAIN | Errno::INTR) => return Ok(rest),
        Err(Errno::PIPE) => &[],
        Err(error) => return Err(error.into()),
    };
    if rest.is_empty() {
        *stdin = None;
    }
    Ok(rest)
}

/// Whether there may be more at once.
fn read_some(stderr: &mut Option<OwnedFd>, said: &mut Vec<u8>) -> io::Result<bool> {
    let Some(stream) = stderr else {
        return Ok(false);
    };
    let mut buffer = [0; MAX_SAID_BYTES];
    match rustix::io::read(stream.as_fd(), &mut buffer) {
        Ok(0) => *stderr = None,
        Ok(count) => {
            let room = MAX_SAID_BYTES - said.len();
            said.write_all(&buffer[..count.min(room)])?;
            // A flood is not followed past the hook's end.
            return Ok(room > 0);
        }
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(value: serde_json::Value) -> Hook {
        serde_json::from_value(value).unwrap()
    }

    fn sh(script: &str, timeout: Option<i64>) -> Hook {
        hook(
            json!({"path": "/bin/sh", "args": ["named", "-c", script], "env": ["A=b"], "timeout": timeout}),
        )
    }

    #[test]
    fn a_hook_has_the_state_its_own_name_and_its_own_environment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("out");
        let script = format!(
            "exec >{}; echo $0 $A ${{PATH-none}}; tr '\\0' ' ' </proc/$$/cmdline | cut -c 1-5; cat",
            file.display()
        );
        // PATH is the shell's own default where it has none: it is not exported.
        let script = script.replace("${PATH-none}", "$(env | grep -c ^PATH=)");
        let script = format!("PATH=/usr/bin:/bin; {script}");
        one(&sh(&script, None), b"the state").unwrap();
        let said = fs::read_to_string(file).unwrap();
        assert_eq!(said, "named b 0\nnamed\nthe state");
    }

    #[test]
    fn a_hook_that_fails_hangs_or_is_not_there_is_told_so() {
        let begin = Instant::now();
        for (hook, says) in [
            (
                sh("echo why >&2; exit 3", None),
                "ended with exit status: 3: why",
            ),
            (sh("kill -9 $$", None), "ended with signal: 9"),
            (sh("sleep 100", Some(1)), "was not done within 1 s"),
            // What it leaves behind holds its streams, and nobody up.
            (sh("sleep 3 & exit 4", None), "ended with exit status: 4"),
            (hook(json!({"path": "/no/such"})), "can't be run"),
        ] {
            let error = one(&hook, b"{}").unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_flood_of_words_and_a_state_nobody_reads_stop_no_hook() {
        let state = vec![b'x'; 1 << 20];
        one(&sh("exec <&-; head -c 3000000 /dev/zero >&2", None), &state).unwrap();
        let error = one(&sh("head -c 3000000 /dev/zero >&2; exit 1", None), &state).unwrap_err();
        assert!(error.len() < 2 * MAX_SAID_BYTES, "{}", error.len());
        one(&sh("cat >/dev/null", None), &state).unwrap();
    }

    #[test]
    fn after_a_poststart_hook_that_fails_none_runs_and_every_poststop_hook_does() {
        let dir = tempfile::tempdir().unwrap();
        let ran = dir.path().join("ran");
        let hooks = |mark: &str| {
            vec![
                sh("exit 1", None),
                sh(&format!("echo {mark} >>{}", ran.display()), None),
            ]
        };
        let request = |stage| HooksRequest {
            id: "c".into(),
            pid: 1,
            stage,
            hooks: Hooks {
                version: "1.0.2".into(),
                bundle: dir.path().into(),
                annotations: HashMap::new(),
                poststart: hooks("start"),
                poststop: hooks("stop"),
            },
        };
        let error = run(&request(Stage::Poststart)).unwrap_err().to_string();
        assert!(error.contains("poststart hook /bin/sh"), "{error}");
        let notes = run(&request(Stage::Poststop)).unwrap();
        assert!(
            notes.len() == 1 && notes[0].contains("poststop"),
            "{notes:?}"
        );
        assert_eq!(fs::read_to_string(ran).unwrap(), "stop\n");
    }

    #[test]
    fn a_hook_is_named_by_an_absolute_path() {
        let mut spec = Spec::default();
        assert_eq!(Hooks::of("c", &spec, Path::new("/b")).unwrap(), None);
        for (path, fine) in [("/bin/true", true), ("true", false)] {
            let hooks = serde_json::from_value(json!({"poststop": [{"path": path}]})).unwrap();
            spec.set_hooks(Some(hooks));
            assert!(!within_create(&spec));
            let of = Hooks::of("c", &spec, Path::new("/b"));
            assert_eq!(of.is_ok(), fine, "{of:?}");
        }
    }
}
