//! Streaming of exec, attach and port-forward: the HTTP server whose URLs the CRI's Exec, Attach and PortForward answer with.
//!
//! The runtime implements [`Streams`] and starts a [`Server`]; an RPC handler calls [`Server::register`] and answers with the URL.
//! The client connects once and upgrades, to SPDY/3.1 (`v5` to `v1`) or to WebSocket (`v5.channel.k8s.io`, `v4`, the first version, and
//! their base64 forms); port-forward speaks SPDY/3.1, bare or inside a WebSocket, or `v4.channel.k8s.io`. What the runtime sees is
//! the same in each case: readers and writers.
//!
//! ```text
//!   client ── TCP ── server ─┬─ websocket ──┬─ session ── Streams::{exec, attach, port_forward}
//!                            └─ spdy ───────┘
//! ```
//!
//! # Synchronization
//! A connection is one task, and no other waits for it. When its client goes, the future that `Streams` returned is dropped, and
//! with it both ends of every stream: a reader gets end of file, a writer `BrokenPipe`. Nothing of a session outlives it.

mod channels;
mod connection;
mod forward_channels;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod port_forward;
mod registry;
mod remote_command;
mod server;
mod session;
mod spdy;
mod status;
mod tunnel;
mod websocket;

use std::{io, net::SocketAddr};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

pub use server::{IDLE_LIMIT, Server};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "stream server: {0} is not a loopback address: whoever reaches it and knows a token gets a shell"
    )]
    NotLoopback(SocketAddr),
    #[error("stream server: listen on {address}: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
    /// The request can't be served as it is (`INVALID_ARGUMENT`).
    #[error("{0}")]
    Invalid(&'static str),
}

/// What went wrong in the runtime while it served a stream: the client is told.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    pub container_id: String,
    pub cmd: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    pub container_id: String,
    pub tty: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    pub pod_sandbox_id: String,
    /// What the caller announced; the ports are asked for one by one on the connection, and these are not a limit.
    pub ports: Vec<i32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// The client's terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

pub type Reader = Box<dyn AsyncRead + Send + Unpin>;
pub type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The client's streams, each there if it was asked for.
///
/// `stdin` ends when the client closes it or goes. A write waits while the client does not read, and fails when it is gone.
/// Dropping a writer is how the runtime says that there is no more; what was written before still arrives.
pub struct Stdio {
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    /// The newest sizes of the client's terminal. Ends with the session; without a terminal it ends at once.
    pub resize: mpsc::Receiver<Size>,
}

impl std::fmt::Debug for Stdio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdio")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .finish_non_exhaustive()
    }
}

/// A forwarded connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What the runtime does with streams. Each future is dropped when its client goes: it must not leave anything behind then.
#[async_trait]
pub trait Streams: Send + Sync + 'static {
    /// Runs a command and answers with its exit code once it has ended and its output is written.
    async fn exec(&self, request: ExecRequest, stdio: Stdio) -> Result<i32, Failure>;

    /// Joins the streams of a running container, until it ends.
    async fn attach(&self, request: AttachRequest, stdio: Stdio) -> Result<(), Failure>;

    /// Connects the stream with a port on the pod's loopback, until either side has closed both ways.
    async fn port_forward(
        &self,
        pod_sandbox_id: String,
        port: u16,
        stream: Box<dyn Duplex>,
    ) -> Result<(), Failure>;
}

#[cfg(test)]
mod tests;
