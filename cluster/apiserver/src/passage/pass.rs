//! A request is passed on, and its answer back: as a stream, or as bytes both ways once both sides have upgraded.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Empty, Limited, StreamBody};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    backend::Backend,
    dial::{self, DialError},
    headers,
};
use crate::{
    api::Api,
    failure::Failure,
    respond::{self, Body},
};

/// An answer must have begun within it. One that follows a log begins at once and then takes as long as it likes.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// The client has been told of the upgrade and must go along within it.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);
/// After one side has closed, what the other still sends is passed on for so long.
const LINGER: Duration = Duration::from_secs(10);
/// Of an answer that refuses an upgrade, and of one that is told as a Status.
const REFUSAL_BYTES: usize = 64 << 10;
/// Of an answer's head.
const HEAD_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum PassError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("{authority} broke off: {why}")]
    Broken { authority: String, why: String },
    #[error("{authority} did not begin to answer within {} s", HEAD_WITHIN.as_secs())]
    Silent { authority: String },
    #[error("{authority} switched to {is:?} where {asked:?} was asked for")]
    OtherProtocol {
        authority: String,
        asked: String,
        is: String,
    },
    #[error("too many upgraded connections are open")]
    Full,
}

/// An answer whose body is still to come. Dropping it ends the connection.
#[derive(Debug)]
pub struct Reached {
    pub response: Response<Incoming>,
    connection: AbortOnDropHandle<()>,
}

/// Sends a request (HTTP/1.1, on a connection of its own); no redirect is followed.
pub async fn exchange<B>(backend: &Backend, mut request: Request<B>) -> Result<Reached, PassError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let authority = backend.authority();
    let broken = |error: &dyn std::fmt::Display| PassError::Broken {
        authority: authority.clone(),
        why: error.to_string(),
    };
    let host = HeaderValue::from_str(&authority).map_err(|error| broken(&error))?;
    request.headers_mut().insert(header::HOST, host);
    let stream = dial::dial(backend).await?;
    let answered = async {
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a passage ended");
            }
        }));
        let response = sender.send_request(request).await?;
        Ok::<_, hyper::Error>(Reached {
            response,
            connection,
        })
    };
    match timeout(HEAD_WITHIN, answered).await {
        Ok(Ok(reached)) => Ok(reached),
        Ok(Err(error)) => Err(broken(&error)),
        Err(_) => Err(PassError::Silent { authority }),
    }
}

impl Reached {
    /// Its body, as it comes. One that breaks off ends ours the same way: half an answer is never taken for a whole one.
    pub fn stream(self) -> Response<Body> {
        let (parts, body) = self.response.into_parts();
        let connection = self.connection;
        let frames = BodyStream::new(body).map(move |frame| {
            let _open = &connection;
            frame.map_err(io::Error::other)
        });
        let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
        *response.status_mut() = parts.status;
        *response.headers_mut() = headers::of_answer(&parts.headers);
        response
    }

    /// The whole body.
    ///
    /// # Errors
    /// It broke off, or is longer than `most`.
    pub async fn bytes(self, most: usize) -> Result<Bytes, String> {
        let body = Limited::new(self.response.into_body(), most)
            .collect()
            .await;
        body.map(|body| body.to_bytes())
            .map_err(|error| error.to_string())
    }

    /// Its body as text, cut where it is long.
    pub async fn text(self) -> String {
        let body = Limited::new(self.response.into_body(), REFUSAL_BYTES).collect();
        match timeout(HEAD_WITHIN, body).await {
            Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes())
                .trim_end()
                .to_owned(),
            _ => "it did not say why, or too much".to_owned(),
        }
    }
}

/// Passes on a request that upgrades, and tunnels what follows.
pub async fn upgrade(
    api: &Api,
    backend: &Backend,
    request: Request<Empty<Bytes>>,
    client: OnUpgrade,
) -> Result<Response<Body>, PassError> {
    let Ok(place) = api.passages.tunnels.clone().try_acquire_owned() else {
        return Err(PassError::Full);
    };
    let asked = request.headers().get(header::UPGRADE).cloned();
    let mut reached = exchange(backend, request).await?;
    if reached.response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(refused(reached).await);
    }
    let is = reached.response.headers().get(header::UPGRADE);
    let text = |value: Option<&HeaderValue>| {
        String::from_utf8_lossy(value.map_or(b"", |value| value.as_bytes())).into_owned()
    };
    if !text(is).eq_ignore_ascii_case(&text(asked.as_ref())) {
        return Err(PassError::OtherProtocol {
            authority: backend.authority(),
            asked: text(asked.as_ref()),
            is: text(is),
        });
    }
    let mut response = Response::new(respond::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers::of_upgraded(reached.response.headers());
    let other = hyper::upgrade::on(&mut reached.response);
    let ends = api.ends.clone();
    tokio::spawn(async move {
        let both = async { tokio::join!(client, other) };
        let Ok((Ok(client), Ok(other))) = timeout(UPGRADE_WITHIN, both).await else {
            tracing::debug!("an upgrade was not gone along with");
            return;
        };
        let tunnel = splice(TokioIo::new(client), TokioIo::new(other), LINGER);
        tokio::select! {
            () = tunnel => {}
            () = ends.cancelled() => {}
        }
        drop((reached, place));
    });
    Ok(response)
}

/// The other side does not upgrade: what it says is relayed, and the connection is closed. Whatever the client sends next is nobody's (SEC-API-01).
async fn refused(reached: Reached) -> Response<Body> {
    let status = match reached.response.status() {
        // neither is an answer to an upgrade
        status if status.is_informational() => StatusCode::BAD_GATEWAY,
        status => status,
    };
    let mut headers = headers::of_answer(reached.response.headers());
    for gone in [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::LOCATION,
    ] {
        headers.remove(gone);
    }
    let mut response = Response::new(respond::full(reached.text().await));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Copies both ways until either side has closed; then what the other one still has, for `linger`.
async fn splice<A, B>(client: A, other: B, linger: Duration)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut other_read, mut other_write) = tokio::io::split(other);
    let up = async {
        let _ = tokio::io::copy(&mut client_read, &mut other_write).await;
        let _ = other_write.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut other_read, &mut client_write).await;
        let _ = client_write.shutdown().await;
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        () = up.as_mut() => drop(timeout(linger, down).await),
        () = down.as_mut() => drop(timeout(linger, up).await),
    }
}

/// An upgraded connection that the request's own can become.
///
/// # Errors
/// 400 where it can't: it is HTTP/2, or does not ask to.
pub fn on_upgrade(parts: &http::request::Parts) -> Result<OnUpgrade, Failure> {
    parts
        .extensions
        .get::<OnUpgrade>()
        .filter(|_| headers::asks_to_upgrade(&parts.headers))
        .cloned()
        .ok_or_else(|| Failure::bad_request("Upgrade request required"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_was_sent_before_the_end_still_arrives_and_then_both_are_closed() {
        let (client, near) = duplex(16);
        let (far, other) = duplex(16);
        let tunnel = tokio::spawn(splice(near, far, Duration::from_secs(5)));
        let (mut client_read, mut client_write) = tokio::io::split(client);
        let (mut other_read, mut other_write) = tokio::io::split(other);
        let sends = tokio::spawn(async move {
            client_write.write_all(&[1; 1000]).await.expect("sent");
            client_write.shutdown().await.expect("closed");
        });
        let mut arrived = Vec::new();
        other_read.read_to_end(&mut arrived).await.expect("read");
        assert_eq!(arrived.len(), 1000);
        sends.await.expect("it ends");
        other_write.write_all(b"bye").await.expect("sent");
        let mut word = [0; 3];
        client_read.read_exact(&mut word).await.expect("read");
        assert_eq!(&word, b"bye");
        // the other side never closes: nobody waits for it for ever
        tunnel.await.expect("it ends");
    }
}
