//! A command beside the container's own.

use std::{path::Path, sync::Arc, time::Duration};

use berth_stream::{ExecRequest, Stdio};
use oci_spec::runtime::{Process, Spec};

use super::fifos::{Ends, Fifos, carry, pour};
use crate::{
    cri::containers::running,
    error::Error,
    id,
    pod::{
        registry::Registry,
        shim::{Exec, Shim},
    },
};

/// After the command has ended, how long its output may take to be read. A grandchild that keeps the terminal open does not hold the client.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs it, and answers with its exit code. Dropped: nothing of the session outlives its client.
pub async fn run(
    registry: &Arc<Registry>,
    request: ExecRequest,
    stdio: Stdio,
) -> Result<i32, Error> {
    let (view, container) = registry.container_view(&request.container_id)?;
    let shim = running(&view, &container, "exec in")?.clone();
    let container_id = container.record.id.clone();
    let process = process(&view.pod.container_dir(&container_id), &request)?;
    let exec_id = id::generate()[..16].to_owned();
    // A terminal has no stderr of its own.
    let wanted = [
        request.stdin,
        request.stdout,
        request.stderr && !request.tty,
    ];
    let name = format!("exec-{exec_id}");
    let fifos = Fifos::make(view.pod.clone(), container_id.clone(), &name, wanted)?;
    let ends = fifos.ends()?;
    let session = Session {
        shim,
        container_id,
        exec_id,
        fifos,
    };
    session
        .shim
        .exec(&Exec {
            container_id: &session.container_id,
            exec_id: &session.exec_id,
            fifos: session.fifos.names(),
            process: &process,
        })
        .await?;
    session.carry(ends, stdio).await
}

/// The container's own process, with another command.
fn process(bundle: &Path, request: &ExecRequest) -> Result<Process, Error> {
    let config = bundle.join("config.json");
    let spec = Spec::load(&config)
        .map_err(|e| Error::io("read", &config)(std::io::Error::other(e.to_string())))?;
    let mut process = spec.process().clone().unwrap_or_default();
    process
        .set_args(Some(request.cmd.clone()))
        .set_terminal(Some(request.tty));
    Ok(process)
}

/// An exec's fifos and what stands for it in the shim.
struct Session {
    shim: Shim,
    container_id: String,
    exec_id: String,
    fifos: Fifos,
}

impl Session {
    /// Carries bytes until the command has ended and its output is through.
    async fn carry(&self, ends: Ends, mut stdio: Stdio) -> Result<i32, Error> {
        let (shim, container, exec) = (&self.shim, &self.container_id, &self.exec_id);
        let input = async {
            if let (Some(mut from), Some(mut to)) = (stdio.stdin.take(), ends.stdin) {
                let _ = carry(&mut from, &mut to).await;
                let _ = shim.close_exec_stdin(container, exec).await;
            }
            std::future::pending::<()>().await
        };
        let output = async {
            tokio::join!(
                pour(ends.stdout, stdio.stdout.take()),
                pour(ends.stderr, stdio.stderr.take()),
            )
        };
        let sizes = async {
            while let Some(size) = stdio.resize.recv().await {
                // The command may have ended already.
                let _ = shim
                    .resize_exec(container, exec, (size.width, size.height))
                    .await;
            }
            std::future::pending::<()>().await
        };
        let ended = async {
            let (mut output, mut wait) = (
                std::pin::pin!(output),
                std::pin::pin!(shim.wait_exec(container, exec)),
            );
            tokio::select! {
                code = &mut wait => {
                    let code = code?;
                    let _ = tokio::time::timeout(DRAIN, output).await;
                    Ok(code)
                }
                _ = &mut output => wait.await,
            }
        };
        tokio::select! {
            code = ended => code,
            () = input => unreachable!("it waits for ever"),
            () = sizes => unreachable!("it waits for ever"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let (shim, container, exec) = (
            self.shim.clone(),
            self.container_id.clone(),
            self.exec_id.clone(),
        );
        tokio::spawn(async move {
            if let Err(e) = shim.end_exec(&container, &exec).await {
                tracing::debug!("end exec {exec}: {e}");
            }
        });
    }
}
