//! What the stream server's sessions do: an exec or an attach over the shim's fifos, a connection into a pod's network namespace.

mod attach;
mod exec;
mod fifos;

use std::{
    fs::File,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use berth_stream::{AttachRequest, Duplex, ExecRequest, Failure, Stdio, Streams};
use nix::sched::{CloneFlags, setns};

use crate::{error::Error, pod::registry::Registry};

/// A port of the pod's own loopback answers at once or not at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The sessions of this node.
#[derive(Debug)]
pub struct Sessions {
    pub registry: Arc<Registry>,
}

#[async_trait::async_trait]
impl Streams for Sessions {
    async fn exec(&self, request: ExecRequest, stdio: Stdio) -> Result<i32, Failure> {
        exec::run(&self.registry, request, stdio)
            .await
            .map_err(told)
    }

    async fn attach(&self, request: AttachRequest, stdio: Stdio) -> Result<(), Failure> {
        attach::run(&self.registry, request, stdio)
            .await
            .map_err(told)
    }

    async fn port_forward(
        &self,
        pod_sandbox_id: String,
        port: u16,
        mut stream: Box<dyn Duplex>,
    ) -> Result<(), Failure> {
        let view = self.registry.pod(&pod_sandbox_id).map_err(told)?.view();
        if !view.ready {
            return Err(Failure(format!(
                "forward port {port} of pod {pod_sandbox_id}: it is not ready"
            )));
        }
        let netns = Some(PathBuf::from(&view.netns)).filter(|_| !view.pod.host_network());
        let mut connection = connect(netns, port)
            .await
            .map_err(|e| Failure(format!("forward port {port} of pod {pod_sandbox_id}: {e}")))?;
        // An end that breaks off is how connections end.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut connection).await;
        Ok(())
    }
}

fn told(error: Error) -> Failure {
    Failure(error.to_string())
}

/// Connects to the port on the loopback of the namespace; `None`: the node's. A thread of its own, since it changes its namespace for good.
async fn connect(netns: Option<PathBuf>, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(move || {
            let connected = (|| {
                if let Some(netns) = netns {
                    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
                }
                let dial =
                    |address| std::net::TcpStream::connect_timeout(&address, CONNECT_DEADLINE);
                dial(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
                    .or_else(|e| dial(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|_| e))
            })();
            let _ = sender.send(connected);
        })?;
    let stream = receiver
        .await
        .map_err(|_| std::io::Error::other("the connecting thread ended"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
