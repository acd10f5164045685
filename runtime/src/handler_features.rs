//! What the runtime behind another shim can do. The shim's own contract tells nothing of it (before containerd 2), but runc's shims name
//! their runtime, and that has a command for it: `runc features`, the runtime-spec's features document.

use std::{collections::HashMap, path::Path, process::Stdio, time::Duration};

use berth_proto::cri;
use serde::Deserialize;
use tokio::{io::AsyncReadExt, process::Command, sync::OnceCell, time::timeout};

use crate::{error::Error, handler::Handler, node::Node};

/// A runtime prints a table that it has in it: tens of milliseconds.
const LIMIT: Duration = Duration::from_secs(5);
/// runc's document has 6 KiB.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// What runc's shims run where nothing else is named.
const DEFAULT_RUNTIME: &str = "runc";
/// The shims that have a runtime of runc's command line behind them.
const SHIMS_OF_RUNC: [&str; 2] = ["containerd-shim-runc-v1", "containerd-shim-runc-v2"];

/// By handler, asked once. Who brings another runtime to the node restarts the daemon.
#[derive(Debug, Default)]
pub struct Asked(OnceCell<HashMap<String, bool>>);

/// The part of the document that is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Features {
    mount_options: Vec<String>,
}

impl Node {
    /// Whether a handler's containers can have mounts that are read-only with all that lies below them.
    pub async fn mounts_recursively_read_only(&self, handler: &str) -> bool {
        let config = self.handler_config(handler);
        if config.is_own() {
            return true;
        }
        let all = self.handler_features.0.get_or_init(|| async {
            let mut all = HashMap::new();
            for (name, handler) in &self.config.runtime.handlers {
                let can = match features(handler).await {
                    Ok(features) => features.mount_options.iter().any(|option| option == "rro"),
                    Err(why) => {
                        tracing::info!(
                            handler = name,
                            "no recursive read-only mounts: the runtime's features can't be had: {why}"
                        );
                        false
                    }
                };
                all.insert(name.clone(), can);
            }
            all
        });
        all.await.get(handler).copied().unwrap_or(false)
    }

    /// Refuses a container that needs what the handler's shim can't do.
    pub async fn check_features(
        &self,
        handler: &str,
        config: &cri::ContainerConfig,
    ) -> Result<(), Error> {
        let recursive = config.mounts.iter().find(|mount| mount.recursive_read_only);
        match recursive {
            Some(mount) if !self.mounts_recursively_read_only(handler).await => {
                Err(Error::FailedPrecondition(format!(
                    "mount {}: recursive_read_only is not possible: the runtime of handler {handler} has no mount option rro",
                    berth_spec::quoted(&mount.container_path)
                )))
            }
            _ => Ok(()),
        }
    }
}

async fn features(handler: &Handler) -> Result<Features, String> {
    let shim = handler
        .program()
        .ok_or("Berth's own shim has no runtime behind it")?;
    let name = shim.file_name().and_then(|name| name.to_str());
    if !name.is_some_and(|name| SHIMS_OF_RUNC.contains(&name)) {
        return Err(format!("{} is not runc's shim", shim.display()));
    }
    let named = handler.options.binary_name.as_deref();
    let runtime = Path::new(named.unwrap_or(DEFAULT_RUNTIME));
    let failed = |error: std::io::Error| format!("{} features: {error}", runtime.display());
    let mut child = Command::new(runtime)
        .arg("features")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut document = Vec::new();
    let stdout = child.stdout.take().ok_or("it has no stdout")?;
    let ended = timeout(LIMIT, async {
        let mut bounded = stdout.take(MAX_DOCUMENT_BYTES);
        bounded.read_to_end(&mut document).await?;
        // Else one that has more to say would never end.
        drop(bounded);
        child.wait().await
    });
    let status = match ended.await {
        Ok(status) => status.map_err(failed)?,
        Err(_) => {
            return Err(format!(
                "{} features did not end within {LIMIT:?}",
                runtime.display()
            ));
        }
    };
    if !status.success() {
        return Err(format!("{} features: {status}", runtime.display()));
    }
    serde_json::from_slice(&document)
        .map_err(|error| format!("{} features: {error}", runtime.display()))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;
    use crate::handler::Options;

    #[tokio::test]
    async fn a_runtime_is_believed_only_what_it_prints_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        for (number, (script, expected)) in [
            (
                r#"test "$*" = features && echo '{"mountOptions": ["ro", "rro"], "x": 1}'"#,
                Ok(true),
            ),
            (r#"echo '{"mountOptions": ["ro"]}'"#, Ok(false)),
            (r#"echo '{}'"#, Ok(false)),
            ("echo nonsense", Err("features: ")),
            (
                r#"echo '{"mountOptions": ["rro"]}'; exit 1"#,
                Err("exit status"),
            ),
            ("yes", Err("features: ")),
            ("exec sleep 1000", Err("did not end")),
        ]
        .into_iter()
        .enumerate()
        {
            let path = dir.path().join(format!("runtime{number}"));
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            let handler = Handler {
                shim: "io.containerd.runc.v2".into(),
                options: Options {
                    binary_name: Some(path.display().to_string()),
                    ..Default::default()
                },
            };
            let said = features(&handler).await;
            let said = said.map(|features| features.mount_options.contains(&"rro".into()));
            match expected {
                Ok(expected) => assert_eq!(said, Ok(expected), "{script}"),
                Err(word) => assert!(
                    said.as_ref().is_err_and(|e| e.contains(word)),
                    "{script}: {said:?}"
                ),
            }
        }
        assert!(begin.elapsed() < 2 * LIMIT);
    }

    #[tokio::test]
    async fn another_kind_of_shim_is_not_asked() {
        for shim in ["io.containerd.kata.v2", "/usr/bin/some-shim", ""] {
            let handler = Handler {
                shim: shim.into(),
                ..Default::default()
            };
            assert!(features(&handler).await.is_err(), "{shim}");
        }
    }
}
