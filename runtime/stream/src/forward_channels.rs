//! Port-forward over plain WebSocket messages, `v4.channel.k8s.io`, as clients speak it that have no SPDY (Kubernetes' Python and
//! JavaScript ones). The ports are those of the request, each with a connection of its own: channel 2n is its data, channel 2n + 1 its
//! error, and each begins with the port's number in two bytes, little end first. The session ends with the last connection.

use std::io;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt, future::join_all};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::sync::CancellationToken;

use crate::{
    PortForwardRequest, Streams,
    channels::Dialect,
    connection::Connection,
    remote_command::forward_failure,
    session::BUFFER_BYTES,
    websocket::{LINGER, PIECE_BYTES, config, goodbye, invalid, to_io},
};

/// Connections of one session. Each has buffers; a client that wants more can open a second session.
const PORTS_LIMIT: usize = 32;

/// Messages that wait for the client to read.
const MESSAGES: usize = 4;

/// Whether these ports can be forwarded so.
pub(crate) fn check(ports: &[i32], dialect: Dialect) -> Result<(), &'static str> {
    if ports.is_empty() {
        return Err(
            "this protocol forwards the ports of the PortForward request, which names none",
        );
    }
    if ports.len() > PORTS_LIMIT || 2 * ports.len() > dialect.channels() {
        return Err("more ports than this protocol can forward in one session");
    }
    Ok(())
}

pub(crate) async fn serve<S>(
    io: S,
    connection: Connection,
    dialect: Dialect,
    request: PortForwardRequest,
    streams: &dyn Streams,
) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (mut sink, mut messages) = socket.split();
    let (sender, mut receiver) = mpsc::channel::<Message>(MESSAGES);
    let mut inputs = Vec::new();
    let mut forwards = Vec::new();
    for (at, port) in request.ports.iter().enumerate() {
        let (near, far) = duplex(BUFFER_BYTES);
        let (from_pod, to_pod) = tokio::io::split(far);
        // Halves of one stream can't be handed on one by one: what the client sends goes through a pipe of its own.
        let (input, queued) = duplex(BUFFER_BYTES);
        inputs.push(Some(input));
        forwards.push(
            Forward {
                port: u16::try_from(*port).unwrap_or_default(),
                channels: [2 * at as u8, 2 * at as u8 + 1],
                dialect,
                sender: sender.clone(),
                pod_sandbox_id: &request.pod_sandbox_id,
            }
            .run(near, from_pod, to_pod, queued, streams),
        );
    }
    drop(sender);
    let write = async {
        while let Some(message) = receiver.recv().await {
            sink.send(message).await.map_err(to_io)?;
        }
        Ok::<_, io::Error>(())
    };
    let read = async {
        while let Some(message) = messages.next().await {
            let message = message.map_err(to_io)?;
            if matches!(message, Message::Close(_)) {
                break;
            }
            let Some((channel, data)) = dialect.read(message)? else {
                continue;
            };
            let at = usize::from(channel / 2);
            match inputs.get_mut(at) {
                Some(input) if channel % 2 == 0 => connection.hand_on(input, &data).await?,
                _ => return Err(invalid("a message on a channel that is not the client's")),
            }
        }
        Ok::<_, io::Error>(())
    };
    let run = async { tokio::join!(join_all(forwards), write).1 };
    tokio::select! {
        written = run => written?,
        gone = read => return gone,
    }
    timeout(LINGER, goodbye(sink, messages))
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
        .map_err(to_io)
}

/// One port's connection.
struct Forward<'a> {
    port: u16,
    /// data, error
    channels: [u8; 2],
    dialect: Dialect,
    sender: mpsc::Sender<Message>,
    pod_sandbox_id: &'a str,
}

impl Forward<'_> {
    /// Until the runtime is done with it. Where the client is gone nobody receives, and the whole session is dropped.
    async fn run(
        self,
        near: DuplexStream,
        mut from_pod: impl tokio::io::AsyncRead + Unpin,
        mut to_pod: impl tokio::io::AsyncWrite + Unpin,
        mut queued: DuplexStream,
        streams: &dyn Streams,
    ) {
        let [data, error] = self.channels;
        for channel in self.channels {
            self.tell(channel, &self.port.to_le_bytes()).await;
        }
        // These messages have no word for half a connection: where the pod has closed its side, the client's goes with it.
        let closed = CancellationToken::new();
        let upload = async {
            tokio::select! {
                _gone = tokio::io::copy(&mut queued, &mut to_pod) => {}
                () = closed.cancelled() => {}
            }
            let _gone = to_pod.shutdown().await;
            std::future::pending::<()>().await;
        };
        let download = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PIECE_BYTES);
                match from_pod.read_buf(&mut buffer).await {
                    Ok(1..) => self.tell(data, &buffer.split()).await,
                    Ok(0) | Err(_) => break,
                }
            }
            closed.cancel();
        };
        let run = async {
            tokio::join!(
                streams.port_forward(self.pod_sandbox_id.to_owned(), self.port, Box::new(near)),
                download
            )
            .0
        };
        let outcome = tokio::select! {
            outcome = run => outcome,
            () = upload => return,
        };
        if let Err(failure) = outcome {
            self.tell(error, forward_failure(self.port, &failure).as_bytes())
                .await;
        }
    }

    async fn tell(&self, channel: u8, data: &[u8]) {
        let _gone = self.sender.send(self.dialect.message(channel, data)).await;
    }
}
