//! Between a kubelet and its runtime: the first calls of each kind fail, by turns before they get there and after they have been answered.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

/// gRPC's UNAVAILABLE.
const UNAVAILABLE: &str = "14";
/// Without these there is no kubelet at all, or a stream that never ends.
const PASSED: [&str; 4] = ["Version", "RuntimeConfig", "Status", "GetContainerEvents"];

type Counts = Arc<Mutex<BTreeMap<String, usize>>>;

pub struct Proxy {
    failed: Counts,
    accepts: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Passes,
    /// It does not get there.
    Refused,
    /// It was done, and nobody hears of it.
    Lost,
}

impl Proxy {
    /// From the socket `at`, which is made, to the one at `to`; so many calls of each kind fail.
    pub fn serve(at: &Path, to: &Path, most: usize) -> Result<Self> {
        let listener = UnixListener::bind(at)?;
        let failed = Counts::default();
        let (to, counts): (Arc<Path>, _) = (to.into(), failed.clone());
        let accepts = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                // a connection that breaks is made anew by who needs it
                tokio::spawn(carry(caller, to.clone(), counts.clone(), most));
            }
        });
        Ok(Self { failed, accepts })
    }

    /// How many calls have failed, by their name.
    pub fn failed(&self) -> BTreeMap<String, usize> {
        let failed = self.failed.lock();
        failed.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

fn fate(counts: &Counts, call: &str, most: usize) -> Fate {
    if PASSED.contains(&call) {
        return Fate::Passes;
    }
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.entry(call.to_owned()).or_default();
    if *count == most {
        return Fate::Passes;
    }
    *count += 1;
    match *count % 2 {
        1 => Fate::Refused,
        _ => Fate::Lost,
    }
}

async fn carry(caller: UnixStream, to: Arc<Path>, counts: Counts, most: usize) -> Result<()> {
    let called = UnixStream::connect(&to).await?;
    let (sender, connection) = client::handshake(called).await?;
    let drives = tokio::spawn(connection);
    let mut calls = server::handshake(caller).await?;
    while let Some(call) = calls.accept().await {
        let (request, respond) = call?;
        let (sender, counts) = (sender.clone(), counts.clone());
        // who has hung up hears nothing
        tokio::spawn(async move { one(request, respond, sender, &counts, most).await });
    }
    drives.abort();
    Ok(())
}

async fn one(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    sender: client::SendRequest<Bytes>,
    counts: &Counts,
    most: usize,
) -> Result<()> {
    let call = request.uri().path().rsplit('/').next().unwrap_or_default();
    let fate = fate(counts, call, most);
    if fate == Fate::Refused {
        return unavailable(&mut respond, "the proxy lets nobody through");
    }
    let (parts, body) = request.into_parts();
    let mut head = Request::from_parts(parts, ());
    // an absolute one is wanted, whoever it names
    *head.uri_mut() = format!("http://localhost{}", head.uri().path()).parse()?;
    let mut sender = sender.ready().await?;
    let (answer, mut to) = sender.send_request(head, false)?;
    pump(body, &mut to).await?;
    let (parts, body) = answer.await?.into_parts();
    if fate == Fate::Lost {
        drain(body).await?;
        return unavailable(&mut respond, "the proxy has lost the answer");
    }
    let is_ended = body.is_end_stream();
    let mut to = respond.send_response(Response::from_parts(parts, ()), is_ended)?;
    match is_ended {
        true => Ok(()),
        false => pump(body, &mut to).await,
    }
}

fn unavailable(respond: &mut server::SendResponse<Bytes>, why: &str) -> Result<()> {
    let response = Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", UNAVAILABLE)
        .header("grpc-message", why)
        .body(())?;
    respond.send_response(response, true)?;
    Ok(())
}

async fn pump(mut from: RecvStream, to: &mut SendStream<Bytes>) -> Result<()> {
    while let Some(piece) = from.data().await {
        let piece = piece?;
        from.flow_control().release_capacity(piece.len())?;
        to.send_data(piece, false)?;
    }
    match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers)?,
        None => to.send_data(Bytes::new(), true)?,
    }
    Ok(())
}

/// To its end: by then it is done.
async fn drain(mut from: RecvStream) -> Result<HeaderMap> {
    while let Some(piece) = from.data().await {
        from.flow_control().release_capacity(piece?.len())?;
    }
    from.trailers().await?.context("no trailers")
}
