//! A shim as a command: `start`, `delete`, `-info`. What it prints is a stranger's word: read in bounds and within a deadline.

use std::{
    ffi::OsString,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use berth_proto::shim::{api::DeleteResponse, introspection::RuntimeInfo};
use protobuf::Message;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use crate::error::{Error, Failure};

/// Of each of its two outputs; an address has a hundred bytes, the features of a runtime a few thousand.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;
/// Of what it says on stderr, as much goes into an error.
const SHOWN_BYTES: usize = 2048;
/// Of an address that makes no sense, as much is shown.
const SHOWN_ADDRESS_CHARS: usize = 80;

/// Where a shim listens, and which task service it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    /// Of a unix socket.
    pub path: PathBuf,
    /// 2: `containerd.task.v2.Task`; 3: `containerd.task.v3.Task`.
    pub version: i32,
}

/// A shim's program.
#[derive(Debug, Clone)]
pub struct Binary {
    pub path: PathBuf,
}

/// With what `start` and `delete` are called, beside their id.
#[derive(Debug)]
pub struct Call<'a> {
    pub namespace: &'a str,
    pub id: &'a str,
    pub bundle: &'a Path,
    /// What the shim takes for containerd's socket. Go's shims name their own sockets by it.
    pub address: &'a Path,
    pub events: &'a Path,
    /// Where berth's own shim puts its socket.
    pub sockets: &'a Path,
    /// 0: nothing is said of it, as containerd 1.6 does.
    pub max_version: u32,
    pub debug: bool,
}

struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Binary {
    /// By path, or by a runtime's name: `io.containerd.runc.v2` is `containerd-shim-runc-v2` on PATH or beside this program.
    pub fn find(name: &str) -> Result<Self, Error> {
        let unknown = |why: String| Error::Invalid {
            what: format!("shim {name:?}"),
            why,
        };
        if name.contains('/') {
            let path = std::path::absolute(name).map_err(|error| unknown(error.to_string()))?;
            return Ok(Self { path });
        }
        let file = file_name(name).ok_or_else(|| {
            unknown(
                "name it by its path, its file name, or as a runtime like io.containerd.runc.v2"
                    .into(),
            )
        })?;
        let own = std::env::current_exe().ok();
        let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(beside)
            .map(|dir| dir.join(&file))
            .find(|path| path.is_file())
            .map(|path| Self { path })
            .ok_or_else(|| unknown(format!("there is no {file} on PATH")))
    }

    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str());
        name.to_string_lossy().into_owned()
    }

    fn error(&self, step: &str, failure: Failure) -> Error {
        Error::Shim {
            shim: self.name(),
            step: step.into(),
            failure,
        }
    }

    /// Leaves a shim behind, or finds that of the container's group. `options` is an encoded Any.
    pub async fn start(
        &self,
        call: &Call<'_>,
        options: &[u8],
        deadline: Duration,
    ) -> Result<Bootstrap, Error> {
        let output = self.output("start", call, options, deadline).await?;
        parse(&output.stdout).map_err(|failure| self.error("start", failure))
    }

    /// Ends what a dead shim has left of the container.
    pub async fn delete(
        &self,
        call: &Call<'_>,
        deadline: Duration,
    ) -> Result<DeleteResponse, Error> {
        let output = self.output("delete", call, &[], deadline).await?;
        DeleteResponse::parse_from_bytes(&output.stdout).map_err(|error| {
            self.error(
                "delete",
                Failure::Garbage(format!("its answer is no DeleteResponse: {error}")),
            )
        })
    }

    /// What it says of itself; None where it knows no `-info` (containerd's shims before 2.0).
    pub async fn info(
        &self,
        options: &[u8],
        deadline: Duration,
    ) -> Result<Option<RuntimeInfo>, Error> {
        let mut command = Command::new(&self.path);
        command.arg("-info");
        let output = self.ended("-info", command, options, deadline).await?;
        if !output.status.success() {
            return Ok(None);
        }
        RuntimeInfo::parse_from_bytes(&output.stdout)
            .map(Some)
            .map_err(|error| {
                self.error(
                    "-info",
                    Failure::Garbage(format!("its answer is no RuntimeInfo: {error}")),
                )
            })
    }

    /// What `-v` prints.
    pub async fn version(&self, deadline: Duration) -> Result<String, Error> {
        let mut command = Command::new(&self.path);
        command.arg("-v");
        let output = self.ended("-v", command, &[], deadline).await?;
        self.succeeded("-v", &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn output(
        &self,
        action: &'static str,
        call: &Call<'_>,
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Output, Error> {
        let mut events = OsString::from("unix://");
        events.push(call.events);
        let mut command = Command::new(&self.path);
        command
            .current_dir(call.bundle)
            .args(["-namespace", call.namespace])
            .arg("-address")
            .arg(call.address)
            .args(["-publish-binary", "", "-id", call.id])
            .env_remove("NOTIFY_SOCKET")
            .env_remove("MAX_SHIM_VERSION")
            // containerd hands over the bare path; its own client takes both.
            .env("TTRPC_ADDRESS", call.events)
            .env("GRPC_ADDRESS", call.address)
            .env("NAMESPACE", call.namespace)
            .env("GOMAXPROCS", "2")
            .env("BERTH_SHIM_SOCKET_DIR", call.sockets);
        if call.max_version > 0 {
            command.env("MAX_SHIM_VERSION", call.max_version.to_string());
        }
        if action == "delete" {
            command.arg("-bundle").arg(call.bundle);
        }
        if call.debug {
            command.arg("-debug");
        }
        command.arg(action);
        let output = self.ended(action, command, stdin, deadline).await?;
        self.succeeded(action, &output)?;
        Ok(output)
    }

    fn succeeded(&self, action: &str, output: &Output) -> Result<(), Error> {
        if output.status.success() {
            return Ok(());
        }
        let status = match output.status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("exited with {}", output.status.code().unwrap_or(-1)),
        };
        let mut said = last_words(&output.stderr);
        if said.is_empty() {
            said = last_words(&output.stdout);
        }
        let said = if said.is_empty() {
            ", and said nothing".into()
        } else {
            format!(": {said}")
        };
        Err(self.error(action, Failure::Failed(format!("{status}{said}"))))
    }

    /// In a process group of its own, which ends at the deadline: what a shim leaves behind has left that group.
    async fn ended(
        &self,
        action: &str,
        mut command: Command,
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Output, Error> {
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let why = format!("cannot run {}: {error}", self.path.display());
                self.error(action, Failure::Failed(why))
            })?;
        let group = child.id().and_then(|pid| Pid::from_raw(pid as i32));
        let (input, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut input) = input {
                // It need not read them.
                let _ = input.write_all(stdin).await;
            }
        };
        let all = async { tokio::join!(feed, read(stdout), read(stderr), child.wait()) };
        let outcome = timeout(deadline, all).await;
        let Ok(((), stdout, stderr, status)) = outcome else {
            if let Some(group) = group {
                // Gone already is as good.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait().await;
            return Err(self.error(action, Failure::Hangs(deadline)));
        };
        let status = status.map_err(|error| {
            self.error(action, Failure::Failed(format!("wait for it: {error}")))
        })?;
        if stdout.len() as u64 > MAX_OUTPUT_BYTES {
            let why = format!("it prints more than {MAX_OUTPUT_BYTES} bytes");
            return Err(self.error(action, Failure::Garbage(why)));
        }
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }
}

/// One byte more than is allowed, so that too much is seen.
async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // What came before an error is what there is.
        let _ = from
            .take(MAX_OUTPUT_BYTES + 1)
            .read_to_end(&mut bytes)
            .await;
    }
    bytes
}

/// The end of what a program has said, without what a terminal would take for commands.
pub fn last_words(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(SHOWN_BYTES);
    String::from_utf8_lossy(&bytes[from..])
        .trim()
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

/// `io.containerd.runc.v2` → `containerd-shim-runc-v2`, as containerd finds it; a file name stays.
fn file_name(name: &str) -> Option<String> {
    if name.starts_with("containerd-shim-") {
        return Some(name.into());
    }
    let parts: Vec<&str> = name.split('.').collect();
    match parts[..] {
        [.., kind, version] if !kind.is_empty() && !version.is_empty() => {
            Some(format!("containerd-shim-{kind}-{version}"))
        }
        _ => None,
    }
}

/// The answer of `start` in each of its forms.
fn parse(stdout: &[u8]) -> Result<Bootstrap, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        version: i32,
        #[serde(default)]
        address: String,
        #[serde(default)]
        protocol: String,
    }
    let text = String::from_utf8_lossy(stdout);
    let text = text.trim();
    let shown: String = text.chars().take(SHOWN_ADDRESS_CHARS).collect();
    let garbage = |why: String| Failure::Garbage(format!("it printed {shown:?}: {why}"));
    if text.is_empty() {
        return Err(Failure::Garbage("it printed no address".into()));
    }
    let (address, version) = if text.starts_with('{') {
        let answer: Answer =
            serde_json::from_str(text).map_err(|error| garbage(error.to_string()))?;
        if answer.protocol != "ttrpc" {
            return Err(garbage(format!(
                "protocol {:?} is not spoken here, only ttrpc is",
                answer.protocol
            )));
        }
        if !(2..=3).contains(&answer.version) {
            return Err(garbage(format!(
                "version {} is not known, 2 and 3 are",
                answer.version
            )));
        }
        (answer.address, answer.version)
    } else {
        (text.to_owned(), 2)
    };
    let path = address.strip_prefix("unix://").unwrap_or(&address);
    if !path.starts_with('/') || path.contains(char::is_control) {
        return Err(garbage(
            "that is no address of a unix socket (unix:///PATH)".into(),
        ));
    }
    Ok(Bootstrap {
        path: path.into(),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_answer_is_understood() {
        for (text, path, version) in [
            ("unix:///run/s", "/run/s", 2),
            ("/run/s\n", "/run/s", 2),
            (
                r#"{"version":2,"address":"unix:///run/s","protocol":"ttrpc"}"#,
                "/run/s",
                2,
            ),
            (
                r#"{"version":3,"address":"unix:///run/s","protocol":"ttrpc","metadata":{}}"#,
                "/run/s",
                3,
            ),
        ] {
            let expected = Bootstrap {
                path: path.into(),
                version,
            };
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_that_makes_no_sense_is_shown_with_what_is_wrong() {
        for (text, word) in [
            ("", "no address"),
            ("hello", "no address of a unix socket"),
            ("vsock://3:1024", "no address of a unix socket"),
            ("/run/s\n/run/t", "no address of a unix socket"),
            ("{", "EOF"),
            (
                r#"{"version":3,"address":"unix:///s","protocol":"grpc"}"#,
                "only ttrpc",
            ),
            (
                r#"{"version":4,"address":"unix:///s","protocol":"ttrpc"}"#,
                "version 4",
            ),
            (r#"{"address":"unix:///s","protocol":"ttrpc"}"#, "version 0"),
            (
                r#"{"version":"3","address":"unix:///s","protocol":"ttrpc"}"#,
                "invalid type",
            ),
        ] {
            let failure = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(failure.contains(word), "{text}: {failure}");
        }
        let long = parse("x".repeat(10_000).as_bytes()).unwrap_err();
        assert!(long.to_string().len() < 200);
    }

    #[test]
    fn a_runtime_is_found_by_the_name_that_containerd_gives_it() {
        for (name, file) in [
            ("io.containerd.runc.v2", Some("containerd-shim-runc-v2")),
            ("io.containerd.berth.v2", Some("containerd-shim-berth-v2")),
            ("containerd-shim-kata-v2", Some("containerd-shim-kata-v2")),
            ("runc", None),
            ("", None),
            ("a.", None),
        ] {
            assert_eq!(file_name(name).as_deref(), file, "{name}");
        }
    }
}
