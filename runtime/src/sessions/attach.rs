//! A client on a running container's own streams.

use std::{future::pending, sync::Arc};

use berth_stream::{AttachRequest, Stdio};

use super::fifos::{Fifos, carry, pour};
use crate::{
    cri::containers::running,
    error::Error,
    id,
    pod::{registry::Registry, shim::Shim},
};

/// Lasts until the container ends, or its client goes.
pub async fn run(
    registry: &Arc<Registry>,
    request: AttachRequest,
    mut stdio: Stdio,
) -> Result<(), Error> {
    let (view, container) = registry.container_view(&request.container_id)?;
    let shim = running(&view, &container, "attach to")?.clone();
    let container_id = container.record.id.clone();
    let attach_id = id::generate()[..16].to_owned();
    let wanted = [
        request.stdin,
        request.stdout,
        request.stderr && !request.tty,
    ];
    let name = format!("attach-{attach_id}");
    let fifos = Fifos::make(view.pod.clone(), container_id.clone(), &name, wanted)?;
    let ends = fifos.ends()?;
    let session = Session {
        shim,
        container_id,
        attach_id,
    };
    let (shim, container) = (&session.shim, &session.container_id);
    shim.attach(container, &session.attach_id, fifos.names())
        .await?;
    let with_output = request.stdout || request.stderr;
    let input = async {
        if let (Some(mut from), Some(mut to)) = (stdio.stdin.take(), ends.stdin) {
            // The end of a client's input is not that of the container's, unless that was to have one client only: the shim knows.
            let _ = carry(&mut from, &mut to).await;
            drop(to);
        }
        if with_output {
            pending::<()>().await;
        }
    };
    let output = async {
        tokio::join!(
            pour(ends.stdout, stdio.stdout.take()),
            pour(ends.stderr, stdio.stderr.take()),
        );
        if !with_output {
            pending::<()>().await;
        }
    };
    let sizes = async {
        while let Some(size) = stdio.resize.recv().await {
            let size = (size.width, size.height);
            // The container may have ended already. Without an exec's id it is the container's own terminal.
            let _ = shim.resize_exec(container, "", size).await;
        }
        pending::<()>().await
    };
    tokio::select! {
        () = input => Ok(()),
        () = output => Ok(()),
        () = sizes => Ok(()),
    }
}

/// What stands for the client in the shim.
struct Session {
    shim: Shim,
    container_id: String,
    attach_id: String,
}

impl Drop for Session {
    fn drop(&mut self) {
        let (shim, container, attach) = (
            self.shim.clone(),
            self.container_id.clone(),
            self.attach_id.clone(),
        );
        tokio::spawn(async move {
            if let Err(e) = shim.detach(&container, &attach).await {
                tracing::debug!("detach {attach}: {e}");
            }
        });
    }
}
