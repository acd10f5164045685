//! A client of the stream server's URLs: `v5.channel.k8s.io` over WebSocket, as kubectl speaks it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest, http::HeaderValue},
};

use crate::machine::patient;

const PROTOCOL: &str = "v5.channel.k8s.io";
/// Or the one before, without the message that ends stdin alone.
const EITHER: &str = "v5.channel.k8s.io, v4.channel.k8s.io";
const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
const ERROR: u8 = 3;
const CLOSE: u8 = 255;

const RESIZE: u8 = 4;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// One session.
#[derive(Debug)]
pub struct Remote(WebSocketStream<TcpStream>);

/// What came over one session until its end.
#[derive(Debug, Default)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The `Status` that ends a session; empty: it ended without.
    pub status: String,
}

impl Remote {
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_by(url, PROTOCOL).await
    }

    /// For a server that may know nothing newer than v4. A URL is good for one attempt: both are offered at once.
    pub async fn open_old_or_new(url: &str) -> Result<Self> {
        Self::open_by(url, EITHER).await
    }

    async fn open_by(url: &str, protocol: &'static str) -> Result<Self> {
        let url = url.replacen("http://", "ws://", 1);
        let authority = url
            .strip_prefix("ws://")
            .and_then(|rest| rest.split('/').next())
            .with_context(|| format!("{url} is no URL of a stream server"))?;
        let stream = TcpStream::connect(authority).await?;
        let mut request = url.as_str().into_client_request()?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", HeaderValue::from_static(protocol));
        let (socket, answer) = client_async(request, stream).await?;
        let chosen = answer.headers().get("Sec-WebSocket-Protocol");
        ensure!(
            chosen.is_some_and(|chosen| protocol.split(", ").any(|known| chosen == known)),
            "{answer:?}"
        );
        Ok(Self(socket))
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let message = [&[STDIN], bytes].concat();
        Ok(self.0.send(Message::binary(message)).await?)
    }

    /// The size of the client's terminal, in characters.
    pub async fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        let message = [&[RESIZE], size.as_bytes()].concat();
        Ok(self.0.send(Message::binary(message)).await?)
    }

    /// The connection itself, for a client that goes without a word.
    pub fn into_stream(self) -> TcpStream {
        self.0.into_inner()
    }

    /// What can be sent while the rest is received: messages of a byte, the channel, and its data.
    pub fn split(
        self,
    ) -> (
        impl futures_util::Sink<Message, Error = tokio_tungstenite::tungstenite::Error> + Unpin,
        impl futures_util::Stream<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
    ) {
        self.0.split()
    }

    /// Ends stdin, and nothing else.
    pub async fn close_stdin(&mut self) -> Result<()> {
        Ok(self.0.send(Message::binary(vec![CLOSE, STDIN])).await?)
    }

    /// The next message: its channel and bytes. `None`: the session has ended.
    pub async fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let next = tokio::time::timeout(patient(PATIENCE), self.0.next()).await;
            match next.context("nothing came")? {
                None | Some(Ok(Message::Close(_)) | Err(_)) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => {
                    let Some((channel, rest)) = bytes.split_first() else {
                        bail!("a message without a channel");
                    };
                    return Ok(Some((*channel, rest.to_vec())));
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// Reads on until `text` has come over `channel`.
    pub async fn expect(&mut self, channel: u8, text: &str) -> Result<()> {
        let mut seen = Vec::new();
        while let Some((from, bytes)) = self.next().await? {
            if from == channel {
                seen.extend(bytes);
            }
            if String::from_utf8_lossy(&seen).contains(text) {
                return Ok(());
            }
        }
        bail!(
            "the session ended before {text:?}: {:?}",
            String::from_utf8_lossy(&seen)
        )
    }

    /// Everything until the end.
    pub async fn outcome(mut self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        while let Some((channel, bytes)) = self.next().await? {
            match channel {
                STDOUT => outcome.stdout.extend(bytes),
                STDERR => outcome.stderr.extend(bytes),
                ERROR => outcome.status.push_str(&String::from_utf8_lossy(&bytes)),
                _ => {}
            }
        }
        Ok(outcome)
    }
}
