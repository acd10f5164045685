//! A shim as a command: found by its name, and called as containerd calls it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use berth_proto::shim::{api::DeleteResponse, introspection::RuntimeInfo};
use berth_shim_client::{Action, Bootstrap, Ended, Failure, Patience, action};
use protobuf::Message;

use crate::error::Error;

/// A shim's program.
#[derive(Debug, Clone)]
pub struct Binary {
    pub path: PathBuf,
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
        call: &Action,
        options: &[u8],
        deadline: Duration,
    ) -> Result<Bootstrap, Error> {
        let command = call.command("start");
        let ended = self.run("start", command, options, deadline).await?;
        ended
            .output()
            .and_then(Bootstrap::parse)
            .map_err(|failure| self.error("start", failure))
    }

    /// Ends what a dead shim has left of the container.
    pub async fn delete(&self, call: &Action, deadline: Duration) -> Result<DeleteResponse, Error> {
        let command = call.command("delete");
        let ended = self.run("delete", command, &[], deadline).await?;
        self.message("delete", ended)
    }

    /// What it says of itself; None where it knows no `-info` (containerd's shims before 2.0).
    pub async fn info(
        &self,
        options: &[u8],
        deadline: Duration,
    ) -> Result<Option<RuntimeInfo>, Error> {
        let mut command = Command::new(&self.path);
        command.arg("-info");
        let ended = self.run("-info", command, options, deadline).await?;
        if !ended.status.is_some_and(|status| status.success()) {
            return Ok(None);
        }
        self.message("-info", ended).map(Some)
    }

    /// What `-v` prints.
    pub async fn version(&self, deadline: Duration) -> Result<String, Error> {
        let mut command = Command::new(&self.path);
        command.arg("-v");
        let ended = self.run("-v", command, &[], deadline).await?;
        let printed = ended
            .output()
            .map_err(|failure| self.error("-v", failure))?;
        Ok(String::from_utf8_lossy(printed).into_owned())
    }

    async fn run(
        &self,
        action: &str,
        command: Command,
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Ended, Error> {
        action::run(command, stdin, deadline, Patience::Output)
            .await
            .map_err(|failure| self.error(action, failure))
    }

    fn message<M: Message>(&self, action: &str, ended: Ended) -> Result<M, Error> {
        let garbage = |error| Failure::Garbage(format!("its answer is no {}: {error}", M::NAME));
        ended
            .output()
            .and_then(|printed| M::parse_from_bytes(printed).map_err(garbage))
            .map_err(|failure| self.error(action, failure))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
