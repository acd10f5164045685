//! exec and attach over WebSocket, in the dialects of [`crate::channels`].

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::mpsc,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    Size, Streams,
    channels::Dialect,
    connection::Connection,
    session::{Command, Ends, take_sizes},
    status,
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes of one message or frame. Clients send their input in pieces of 32 KiB.
const MESSAGE_LIMIT: usize = 1 << 20;

/// Bytes of output in one message.
pub(crate) const PIECE_BYTES: usize = 32 << 10;

/// Bytes of terminal sizes that wait for their end.
const SIZES_BYTES: usize = 4096;

/// How long the client has to take the last of a session, after its end.
pub(crate) const LINGER: std::time::Duration = std::time::Duration::from_secs(10);

pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LIMIT))
        .max_frame_size(Some(MESSAGE_LIMIT))
        .read_buffer_size(PIECE_BYTES)
}

/// Serves one command, from the upgrade to the close.
pub(crate) async fn serve<S>(
    io: S,
    connection: Connection,
    dialect: Dialect,
    command: Command,
    streams: &dyn Streams,
) -> io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
{
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await;
    let (mut sink, mut messages) = socket.split();
    let (
        stdio,
        Ends {
            stdin,
            mut stdout,
            mut stderr,
            resize,
        },
    ) = command.wanted().split();

    // An empty message tells the client that its streams are there.
    let first = if stdout.is_some() {
        STDOUT
    } else if stderr.is_some() {
        STDERR
    } else {
        ERROR
    };
    sink.send(dialect.message(first, &[]))
        .await
        .map_err(to_io)?;

    let mut input = Input {
        connection,
        stdin,
        resize,
        sizes: Vec::new(),
        dialect,
    };
    let outcome = {
        let run = async {
            let (outcome, written) = tokio::join!(
                command.run(streams, stdio),
                write_output(&mut sink, dialect, &mut stdout, &mut stderr)
            );
            written.map(|()| outcome)
        };
        let read = input.read(&mut messages);
        tokio::select! {
            outcome = run => outcome?,
            gone = read => return gone,
        }
    };
    let end = async {
        let told = if dialect.status {
            status::json(&outcome)
        } else {
            status::words(&outcome).into_bytes()
        };
        if !told.is_empty() {
            sink.send(dialect.message(ERROR, &told)).await?;
        }
        goodbye(sink, messages).await
    };
    timeout(LINGER, end)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
        .map_err(to_io)
}

/// Closes, and waits for the client's own close: a reset before would take what it has not read yet.
pub(crate) async fn goodbye(
    mut sink: impl Sink<Message, Error = WsError> + Unpin,
    mut messages: impl Stream<Item = Result<Message, WsError>> + Unpin,
) -> Result<(), WsError> {
    let close = CloseFrame {
        code: CloseCode::Normal,
        reason: "".into(),
    };
    sink.send(Message::Close(Some(close))).await?;
    while messages.next().await.is_some_and(|message| message.is_ok()) {}
    Ok(())
}

struct Input {
    connection: Connection,
    stdin: Option<DuplexStream>,
    resize: Option<mpsc::Sender<Size>>,
    sizes: Vec<u8>,
    dialect: Dialect,
}

impl Input {
    /// Reads until the client is gone. It never returns before: a client that has nothing more to say still listens.
    async fn read<M>(&mut self, messages: &mut M) -> io::Result<()>
    where
        M: Stream<Item = Result<Message, WsError>> + Unpin,
    {
        while let Some(message) = messages.next().await {
            let message = message.map_err(to_io)?;
            if matches!(message, Message::Close(_)) {
                break;
            }
            if let Some((channel, data)) = self.dialect.read(message)? {
                self.take(channel, &data).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, channel: u8, data: &[u8]) -> io::Result<()> {
        match channel {
            STDIN => self.connection.hand_on(&mut self.stdin, data).await,
            RESIZE => {
                self.sizes.extend_from_slice(data);
                if self.sizes.len() > SIZES_BYTES {
                    return Err(invalid("a terminal size without an end"));
                }
                for size in take_sizes(&mut self.sizes)
                    .map_err(|_| invalid("a terminal size that is none"))?
                {
                    if let Some(resize) = &self.resize {
                        let _full = resize.try_send(size);
                    }
                }
                Ok(())
            }
            CLOSE if self.dialect.can_close => {
                if data == [STDIN] {
                    self.stdin = None;
                }
                Ok(())
            }
            _ => Err(invalid("a message on a channel that is not the client's")),
        }
    }
}

/// Copies both outputs until the runtime has dropped its ends.
async fn write_output<W>(
    sink: &mut W,
    dialect: Dialect,
    stdout: &mut Option<DuplexStream>,
    stderr: &mut Option<DuplexStream>,
) -> io::Result<()>
where
    W: Sink<Message, Error = WsError> + Unpin,
{
    let (mut out, mut err) = (BytesMut::new(), BytesMut::new());
    while stdout.is_some() || stderr.is_some() {
        let (channel, read) = tokio::select! {
            read = read_piece(stdout, &mut out) => (STDOUT, read?),
            read = read_piece(stderr, &mut err) => (STDERR, read?),
        };
        if read.is_empty() {
            *(if channel == STDOUT {
                &mut *stdout
            } else {
                &mut *stderr
            }) = None;
        } else {
            sink.send(dialect.message(channel, &read))
                .await
                .map_err(to_io)?;
        }
    }
    Ok(())
}

/// Never ends for a stream that is not there.
async fn read_piece(stream: &mut Option<DuplexStream>, buffer: &mut BytesMut) -> io::Result<Bytes> {
    let Some(stream) = stream else {
        return std::future::pending().await;
    };
    buffer.reserve(PIECE_BYTES);
    stream.read_buf(&mut buffer.limit(PIECE_BYTES)).await?;
    Ok(buffer.split().freeze())
}

pub(crate) fn to_io(err: WsError) -> io::Error {
    match err {
        WsError::Io(err) => err,
        WsError::ConnectionClosed | WsError::AlreadyClosed => {
            io::ErrorKind::ConnectionAborted.into()
        }
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

pub(crate) fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the client sent {what}"),
    )
}
