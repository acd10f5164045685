//! The shim as a command: `start` makes it, `delete` cleans up after a dead one. It is detached: berthd's end is not its end.

use std::{path::Path, time::Duration};

use berth_shim_client::{Action, Bootstrap, Ended, Failure, Patience, action, bootstrap::NEWEST};
use berth_state::Object;

use super::{Pod, shim::Shim};
use crate::error::Error;

/// `start` forks the shim, waits until it listens and prints its address.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// `delete` kills what is left and waits until the kernel has reaped it.
const DELETE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a shim that was told to end may take until its socket refuses.
const END_DEADLINE: Duration = Duration::from_secs(5);
const END_POLL: Duration = Duration::from_millis(2);

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
    let front = handler
        .front(pod.is_by_systemd())
        .map_err(|why| Error::ShimStart {
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
    let ended = match run(pod, &binary, &front, "start", START_DEADLINE).await {
        Ok(ended) => ended,
        Err(failure) => {
            if matches!(failure, Failure::NotRun { .. }) {
                // There is nothing to end, and no program that could.
                node.ledger
                    .strike(&pod.id, &Object::Shim(socket))
                    .map_err(Error::io("write ledger for", &pod.id))?;
            }
            return Err(error(pod, &binary, "shim start", failure));
        }
    };
    let bootstrap = ended.output().and_then(Bootstrap::parse);
    let bootstrap = bootstrap.map_err(|failure| failed(failure.to_string()))?;
    Shim::connect(&pod.id, &bootstrap.socket).await
}

/// Ends the pod's shim, by its own word where it still listens, else through `delete`. Idempotent.
pub async fn end(pod: &Pod, shim: Option<&Shim>) -> Result<(), Error> {
    if !is_ledgered(pod)? {
        return Ok(());
    }
    let connected = match shim {
        Some(shim) => Some(shim.clone()),
        None => {
            let socket = pod.node.shim_socket(&pod.id);
            Shim::connect(&pod.id, &socket).await.ok()
        }
    };
    let mut ended = false;
    if let Some(shim) = connected {
        // An error here is not the end: `delete` is stronger.
        let told = match shim.stop_sandbox().await {
            Ok(()) => shim.shutdown().await,
            Err(e) => Err(e),
        };
        match told {
            Ok(()) => ended = refuses(&pod.id, &shim.socket).await,
            Err(e) => tracing::warn!(pod_id = %pod.id, "shim does not end by itself: {e}"),
        }
    }
    if !ended {
        delete(pod).await?;
    }
    strike(pod)
}

/// … of one that does not answer: it is not asked.
pub async fn end_deaf(pod: &Pod) -> Result<(), Error> {
    if !is_ledgered(pod)? {
        return Ok(());
    }
    delete(pod).await?;
    strike(pod)
}

fn is_ledgered(pod: &Pod) -> Result<bool, Error> {
    let left = pod.node.ledger.outstanding(&pod.id);
    let left = left.map_err(Error::io("read ledger of", &pod.id))?;
    Ok(left.iter().any(|object| matches!(object, Object::Shim(_))))
}

fn strike(pod: &Pod) -> Result<(), Error> {
    let socket = pod.node.shim_socket(&pod.id);
    let _ = std::fs::remove_file(&socket);
    pod.node
        .ledger
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
    let ended = run(pod, &binary, &[], "delete", DELETE_DEADLINE).await;
    let ended = ended.map_err(|failure| error(pod, &binary, "shim delete", failure))?;
    match ended.output() {
        Ok(_) => Ok(()),
        Err(failure) => Err(Error::ShimStart {
            path: binary,
            why: format!("`delete` of pod {}: {failure}", pod.id),
        }),
    }
}

async fn refuses(pod_id: &str, socket: &Path) -> bool {
    let since = std::time::Instant::now();
    while since.elapsed() < END_DEADLINE {
        if Shim::connect(pod_id, socket).await.is_err() {
            return true;
        }
        tokio::time::sleep(END_POLL).await;
    }
    false
}

async fn run(
    pod: &Pod,
    binary: &Path,
    front: &[String],
    name: &'static str,
    deadline: Duration,
) -> Result<Ended, Failure> {
    let node = &pod.node;
    let action = Action {
        program: binary.to_owned(),
        namespace: "k8s.io".into(),
        id: pod.id.clone(),
        bundle: node.pod_dir(&pod.id),
        publish_binary: binary.display().to_string(),
        sockets: Some(node.shim_sockets()),
        max_version: NEWEST,
        flags: front.iter().map(Into::into).collect(),
        ..Action::default()
    };
    action::run(action.command(name), b"", deadline, Patience::Output).await
}

fn error(pod: &Pod, binary: &Path, stage: &'static str, failure: Failure) -> Error {
    match failure.bare() {
        Failure::Hangs(since) => Error::Stuck {
            what: format!("pod {}", pod.id),
            stage,
            since: *since,
        },
        _ => Error::ShimStart {
            path: binary.to_owned(),
            why: format!(
                "{failure}; key `runtime.handlers.{}.shim` names the binary",
                pod.handler
            ),
        },
    }
}
