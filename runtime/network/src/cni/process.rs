//! A plugin as a process: what it is told, how long it may take, how much it may say.

use std::{
    ffi::OsString,
    fs::File,
    io::{Seek, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, killpg},
    },
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
};

use super::error::{Failure, Phase};

/// A result has some hundred bytes; with many routes some ten thousand.
const MAX_STDOUT_BYTES: usize = 1 << 20;
/// Of what a plugin says on standard error, as much is kept; the rest is read and dropped, so that it can't block.
const MAX_STDERR_BYTES: usize = 4096;
/// Of that, as much goes into a message.
const MAX_SAID_BYTES: usize = 1024;
/// A plugin that has ended may have left a child that holds its standard output open.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);
/// Killed, a process ends at once, unless it hangs in the kernel: then nobody waits for it.
const REAP_PATIENCE: Duration = Duration::from_secs(2);
/// Where plugins find their tools (iptables, nft), if the daemon itself was given no PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One execution of a plugin.
#[derive(Debug)]
pub struct Call<'a> {
    pub binary: &'a Path,
    pub phase: Phase,
    /// `CNI_*` beside CNI_COMMAND and CNI_PATH.
    pub variables: Vec<(&'static str, OsString)>,
    /// `CNI_PATH`
    pub bin_dirs: &'a [PathBuf],
    pub stdin: Vec<u8>,
    pub limit: Duration,
}

/// What a plugin that did not do as told said on standard error beside it.
#[derive(Debug)]
pub struct Failed {
    pub failure: Failure,
    pub stderr: String,
}

/// The plugin's binary in the first of the directories that has it. `name` is a plain file name.
pub fn find(dirs: &[PathBuf], name: &str) -> Result<PathBuf, String> {
    let mut not_executable = None;
    for dir in dirs {
        let path = dir.join(name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
                return Ok(path);
            }
            Ok(_) => not_executable = Some(path),
            Err(_) => {}
        }
    }
    let listed: Vec<_> = dirs.iter().map(|d| d.display().to_string()).collect();
    Err(match not_executable {
        Some(path) => format!("{} is no executable file", path.display()),
        None => format!(
            "no such file in {}; install it, or name its directory in [network] cni_bin_dirs",
            listed.join(", ")
        ),
    })
}

/// Changes with the file behind the path.
pub fn stamp(binary: &Path) -> Option<(u64, u64, i64, i64)> {
    let meta = std::fs::metadata(binary).ok()?;
    Some((meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
}

/// Runs the plugin to its end: what it wrote to standard output, if it ended well.
///
/// It runs as root in the daemon's namespaces with nothing of the daemon's but PATH: no other variable, no descriptor. It has a process
/// group of its own, which is killed as a whole where it fails to end, and where this future is dropped.
pub async fn run(call: &Call<'_>) -> Result<Vec<u8>, Failed> {
    let (mut out, mut err) = (
        Bounded::new(MAX_STDOUT_BYTES, Beyond::Refuse),
        Bounded::new(MAX_STDERR_BYTES, Beyond::Drop),
    );
    let ended = execute(call, &mut out, &mut err).await;
    let stderr = printable(&err.bytes, MAX_SAID_BYTES);
    let failed = |failure| {
        Err(Failed {
            failure,
            stderr: stderr.clone(),
        })
    };
    match ended {
        Err(failure) => failed(failure),
        Ok(status) if status.success() => match refusal(&out.bytes) {
            Some(failure) => failed(failure),
            None => Ok(out.bytes),
        },
        Ok(status) => failed(refusal(&out.bytes).unwrap_or(Failure::Died { status })),
    }
}

async fn execute(
    call: &Call<'_>,
    out: &mut Bounded,
    err: &mut Bounded,
) -> Result<std::process::ExitStatus, Failure> {
    let mut command = Command::new(call.binary);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or(PATH.into()))
        .env("CNI_COMMAND", call.phase.as_str())
        .env("CNI_PATH", joined(call.bin_dirs))
        .envs(call.variables.iter().map(|(key, value)| (key, value)))
        .current_dir("/")
        .stdin(Stdio::from(in_memory(&call.stdin).map_err(Failure::Start)?))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(Failure::Start)?;
    let mut group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let running = async {
        let mut reading = pin!(async { tokio::try_join!(out.fill(stdout), err.fill(stderr)) });
        let mut read = false;
        loop {
            tokio::select! {
                biased;
                done = &mut reading, if !read => { done?; read = true; }
                status = child.wait() => {
                    if !read && let Ok(done) = tokio::time::timeout(OUTPUT_GRACE, &mut reading).await {
                        done?;
                    }
                    return status.map_err(Failure::Start);
                }
            }
        }
    };
    let ended = tokio::time::timeout(call.limit, running)
        .await
        .unwrap_or(Err(Failure::TimedOut(call.limit)));
    match &ended {
        // What it left running is meant to run.
        Ok(_) => group.0 = None,
        Err(_) => {
            drop(group);
            let _ = tokio::time::timeout(REAP_PATIENCE, child.wait()).await;
        }
    }
    ended
}

/// A process group that is killed on drop.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.take() {
            let _ = killpg(Pid::from_raw(id as i32), Signal::SIGKILL);
        }
    }
}

/// Standard input that needs no writer beside: a plugin that does not read can't block us.
fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create(c"cni", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

fn joined(dirs: &[PathBuf]) -> OsString {
    let mut all = OsString::new();
    for dir in dirs {
        if !all.is_empty() {
            all.push(":");
        }
        all.push(dir);
    }
    all
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Refuse,
    Drop,
}

/// Bytes up to a bound.
#[derive(Debug)]
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
    beyond: Beyond,
}

impl Bounded {
    fn new(max: usize, beyond: Beyond) -> Self {
        Self {
            bytes: Vec::new(),
            max,
            beyond,
        }
    }

    async fn fill(&mut self, source: Option<impl AsyncRead + Unpin>) -> Result<(), Failure> {
        let Some(mut source) = source else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(read) => {
                    let room = self.max - self.bytes.len();
                    if read > room && self.beyond == Beyond::Refuse {
                        return Err(Failure::TooMuch(self.max));
                    }
                    self.bytes.extend_from_slice(&buffer[..read.min(room)]);
                }
            }
        }
    }
}

/// An error object of the specification, whatever the exit status says.
fn refusal(stdout: &[u8]) -> Option<Failure> {
    let value: Value = serde_json::from_slice(stdout).ok()?;
    let code = value.get("code")?.as_u64().filter(|code| *code != 0)?;
    let text = |key| {
        let text = value.get(key).and_then(Value::as_str).unwrap_or_default();
        printable(text.as_bytes(), MAX_SAID_BYTES)
    };
    Some(Failure::Refused {
        code,
        msg: text("msg"),
        details: text("details"),
    })
}

/// The beginning of it on one line, fit for a log.
pub fn printable(bytes: &[u8], max: usize) -> String {
    let cut = &bytes[..bytes.len().min(max)];
    let mut text: String = String::from_utf8_lossy(cut)
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if bytes.len() > max {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Instant};

    use super::*;

    struct Script {
        dir: tempfile::TempDir,
    }

    impl Script {
        fn new(body: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("plugin");
            fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self { dir }
        }

        async fn run(&self, limit: Duration) -> Result<String, Failed> {
            let binary = self.dir.path().join("plugin");
            let call = Call {
                binary: &binary,
                phase: Phase::Add,
                variables: vec![("CNI_IFNAME", "eth0".into())],
                bin_dirs: &[self.dir.path().to_owned(), "/opt/x".into()],
                stdin: b"{\"a\":1}".to_vec(),
                limit,
            };
            // Other tests fork while the script was open for writing: ETXTBSY (golang/go#22315).
            for _ in 0..100 {
                match run(&call).await {
                    Err(Failed {
                        failure: Failure::Start(e),
                        ..
                    }) if e.raw_os_error() == Some(nix::libc::ETXTBSY) => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    other => return other.map(|bytes| String::from_utf8(bytes).unwrap()),
                }
            }
            panic!("the script is busy")
        }
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_plugin_gets_its_input_its_variables_and_nothing_else() {
        let script = Script::new("cat; echo; env | sort; ls /proc/self/fd | wc -l");
        let said = script.run(LONG).await.unwrap();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some("{\"a\":1}"));
        let rest: Vec<_> = lines.collect();
        let keys: Vec<_> = rest
            .iter()
            .filter_map(|l| l.split_once('=').map(|(k, _)| k))
            .filter(|key| !["PWD", "_", "OLDPWD", "SHLVL"].contains(key))
            .collect();
        assert_eq!(keys, ["CNI_COMMAND", "CNI_IFNAME", "CNI_PATH", "PATH"]);
        // 0, 1, 2, the directory that is listed, and what the test itself was started with.
        let inherited = fs::read_dir("/proc/self/fdinfo")
            .unwrap()
            .flatten()
            .filter(|fd| fd.file_name().to_str().unwrap().parse::<u32>().unwrap() > 2)
            .filter_map(|fd| fs::read_to_string(fd.path()).ok())
            .filter(|info| {
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
                let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
                flags & nix::libc::O_CLOEXEC as u32 == 0
            })
            .count();
        let held: usize = rest.last().unwrap().trim().parse().unwrap();
        assert_eq!(held, 4 + inherited, "{said}");
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_all_that_it_started_sec_net_02() {
        let script = Script::new("sleep 1000 & echo $! > $(dirname $0)/child; wait");
        let since = Instant::now();
        let failed = script.run(Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(failed.failure, Failure::TimedOut(_)), "{failed:?}");
        assert!(since.elapsed() < Duration::from_secs(5));
        let child = fs::read_to_string(script.dir.path().join("child")).unwrap();
        let child = child.trim();
        for _ in 0..100 {
            let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{child} outlived its plugin");
    }

    #[tokio::test]
    async fn one_that_never_stops_talking_is_killed_and_little_of_it_is_kept_sec_net_02() {
        for (body, too_much) in [
            ("exec yes", true),
            ("head -c 10000000 /dev/zero", true),
            ("head -c 10000000 /dev/zero >&2; exit 1", false),
        ] {
            let failed = Script::new(body).run(LONG).await.unwrap_err();
            let refused = matches!(failed.failure, Failure::TooMuch(MAX_STDOUT_BYTES));
            assert_eq!(refused, too_much, "{body}: {failed:?}");
            assert!(failed.stderr.len() < 3 * MAX_SAID_BYTES + 10);
        }
    }

    #[tokio::test]
    async fn errors_are_understood_in_each_of_their_forms() {
        for (body, says) in [
            (
                r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"no","details":"more"}'; exit 1"#,
                "error 7: no (more)",
            ),
            (
                r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"later"}'"#,
                "error 11: later",
            ),
            ("echo oops; exit 3", "exit status: 3"),
            ("kill -SEGV $$", "signal: 11"),
        ] {
            let failed = Script::new(body).run(LONG).await.unwrap_err();
            let said = failed.failure.to_string();
            assert!(said.contains(says), "{body}: {said}");
        }
        let failed = Script::new("echo because >&2; exit 1").run(LONG).await;
        assert_eq!(failed.unwrap_err().stderr, "because");
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_output_open_keeps_nobody() {
        let since = Instant::now();
        let script = Script::new("sleep 3 & echo '{}'");
        assert_eq!(script.run(LONG).await.unwrap(), "{}\n");
        assert!(since.elapsed() < Duration::from_millis(2500));
    }

    #[test]
    fn binaries_are_found_in_the_order_of_the_directories() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = [one.path().to_owned(), two.path().to_owned()];
        assert!(find(&dirs, "a").unwrap_err().contains("cni_bin_dirs"));
        fs::write(two.path().join("a"), "").unwrap();
        assert!(find(&dirs, "a").unwrap_err().contains("no executable"));
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(two.path().join("a"), executable.clone()).unwrap();
        assert_eq!(find(&dirs, "a").unwrap(), two.path().join("a"));
        fs::create_dir(one.path().join("a")).unwrap();
        assert_eq!(find(&dirs, "a").unwrap(), two.path().join("a"));
    }
}
