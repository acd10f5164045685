//! The shim as a command: `start` makes it, `delete` cleans up after a dead one. It is detached: berthd's end is not its end.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use berth_state::Object;
use serde::Deserialize;
use tokio::process::{Child, Command};

use super::{Pod, shim::Shim};
use crate::error::Error;

/// `start` forks the shim, waits until it listens and prints its address.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// `delete` kills what is left and waits until the kernel has reaped it.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// Of what the command says on stderr, as much goes into an error message.
const STDERR_BYTES: usize = 2048;
/// How long a shim that was told to end may take until its socket refuses.
const END_DEADLINE: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(2);

/// The newest answer of `start` that is understood: task API v3.
const BOOTSTRAP_VERSION: &str = "3";

/// What `start` prints (shim v2, bootstrap version 3).
#[derive(Debug, Deserialize)]
struct Bootstrap {
    address: String,
    protocol: String,
}

/// Starts the pod's shim and connects to it.
pub async fn start(pod: &Pod) -> Result<Shim, Error> {
    let node = &pod.node;
    let binary = node.shim_binary(&pod.handler);
    let failed = |why: String| Error::ShimStart {
        path: binary.clone(),
        why,
    };
    // Before anything is made: what is missing is missing to begin with.
    let handler = node.handler_config(&pod.handler);
    let front = handler.front().map_err(|why| Error::ShimStart {
        path: handler.shim.clone(),
        why: format!(
            "{why}; key `runtime.handlers.{}.shim` names the binary",
            pod.handler
        ),
    })?;
    let socket = node.shim_socket(&pod.id);
    node.ledger
        .intend(&pod.id, &Object::Shim(socket.clone()))
        .map_err(Error::io("write ledger for", &pod.id))?;
    let output = match spawn(pod, &binary, &front, "start") {
        Ok(child) => ended(pod, child, "start", START_DEADLINE).await?,
        Err(e) => {
            // Nothing ran: there is nothing to end, and no program that could.
            node.ledger
                .strike(&pod.id, &Object::Shim(socket))
                .map_err(Error::io("write ledger for", &pod.id))?;
            return Err(e);
        }
    };
    if !output.status.success() {
        return Err(failed(said(&output)));
    }
    let bootstrap: Bootstrap = serde_json::from_slice(&output.stdout).map_err(|e| {
        let printed: String = String::from_utf8_lossy(&output.stdout)
            .chars()
            .take(200)
            .collect();
        failed(format!("`start` printed {printed:?}: {e}"))
    })?;
    if bootstrap.protocol != "ttrpc" {
        return Err(failed(format!(
            "it speaks {:?}, not ttrpc",
            bootstrap.protocol
        )));
    }
    Shim::connect(&pod.id, &bootstrap.address).await
}

/// Ends the pod's shim, by its own word where it still listens, else through `delete`. Idempotent.
pub async fn end(pod: &Pod, shim: Option<&Shim>) -> Result<(), Error> {
    let node = &pod.node;
    let socket = node.shim_socket(&pod.id);
    let ledgered = node
        .ledger
        .outstanding(&pod.id)
        .map_err(Error::io("read ledger of", &pod.id))?
        .iter()
        .any(|object| matches!(object, Object::Shim(_)));
    if !ledgered {
        return Ok(());
    }
    let address = format!("unix://{}", socket.display());
    let connected = match shim {
        Some(shim) => Some(shim.clone()),
        None => Shim::connect(&pod.id, &address).await.ok(),
    };
    let mut ended = false;
    if let Some(shim) = connected {
        // An error here is not the end: `delete` is stronger.
        let told = match shim.stop_sandbox().await {
            Ok(()) => shim.shutdown().await,
            Err(e) => Err(e),
        };
        match told {
            Ok(()) => ended = refuses(&pod.id, &shim.address).await,
            Err(e) => tracing::warn!(pod_id = %pod.id, "shim does not end by itself: {e}"),
        }
    }
    if !ended {
        delete(pod).await?;
    }
    let _ = std::fs::remove_file(&socket);
    node.ledger
        .strike(&pod.id, &Object::Shim(socket))
        .map_err(Error::io("write ledger for", &pod.id))
}

/// Kills what is left of each container of a pod whose shim is dead or deaf, and the shim.
pub async fn delete(pod: &Pod) -> Result<(), Error> {
    let binary = pod.node.shim_binary(&pod.handler);
    // Without a bundle the shim has never run here, or a reboot took both.
    if !pod.node.pod_dir(&pod.id).exists() {
        return Ok(());
    }
    // What it fronts, the bundle says.
    let child = spawn(pod, &binary, &[], "delete")?;
    let output = ended(pod, child, "delete", DELETE_DEADLINE).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::ShimStart {
        path: binary,
        why: format!("`delete` of pod {}: {}", pod.id, said(&output)),
    })
}

async fn refuses(pod_id: &str, address: &str) -> bool {
    let since = std::time::Instant::now();
    while since.elapsed() < END_DEADLINE {
        if Shim::connect(pod_id, address).await.is_err() {
            return true;
        }
        tokio::time::sleep(END_POLL).await;
    }
    false
}

fn spawn(pod: &Pod, binary: &Path, front: &[String], action: &'static str) -> Result<Child, Error> {
    let node = &pod.node;
    Command::new(binary)
        .current_dir(node.pod_dir(&pod.id))
        .args(["-namespace", "k8s.io", "-id", &pod.id, "-address", ""])
        .arg("-publish-binary")
        .arg(binary)
        .args(front)
        .arg(action)
        .env_remove("NOTIFY_SOCKET")
        .env("BERTH_SHIM_SOCKET_DIR", node.shim_sockets())
        .env("MAX_SHIM_VERSION", BOOTSTRAP_VERSION)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| unusable(pod, binary, &e))
}

fn unusable(pod: &Pod, binary: &Path, error: &std::io::Error) -> Error {
    Error::ShimStart {
        path: binary.to_owned(),
        why: format!(
            "{error}; key `runtime.handlers.{}.shim` names the binary",
            pod.handler
        ),
    }
}

async fn ended(
    pod: &Pod,
    child: Child,
    action: &'static str,
    deadline: Duration,
) -> Result<Output, Error> {
    match tokio::time::timeout(deadline, child.wait_with_output()).await {
        Ok(output) => output.map_err(|e| unusable(pod, &pod.node.shim_binary(&pod.handler), &e)),
        Err(_) => Err(Error::Stuck {
            what: format!("pod {}", pod.id),
            stage: if action == "start" {
                "shim start"
            } else {
                "shim delete"
            },
            since: deadline,
        }),
    }
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let from = text
        .char_indices()
        .map(|(at, _)| at)
        .find(|at| text.len() - at <= STDERR_BYTES)
        .unwrap_or(0);
    format!("{}: {}", output.status, text[from..].trim())
}
