//! exec and attach over SPDY: `v5.channel.k8s.io` and its elders. The client opens a stream for each of error, stdin, stdout,
//! stderr and resize, named by the header `streamType`.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    sync::mpsc,
    time::timeout,
};

use crate::{
    Failure, Size, Streams,
    session::{Command, take_sizes},
    spdy::{Incoming, Output},
    status::{self, Outcome},
};

/// In the order in which we prefer them. From v2 on a client closes its half of a stream, v3 brought resize, v4 the `Status`; v5 is v4
/// (what it closes, SPDY could always close).
pub(crate) const PROTOCOLS: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

/// What Kubernetes' own servers wait for a client to open its streams.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Bytes of terminal sizes that wait for their end.
const SIZES_BYTES: usize = 4096;

pub(crate) async fn serve(
    mut opened: mpsc::Receiver<Incoming>,
    protocol: &str,
    command: Command,
    streams: &dyn Streams,
) {
    let wanted = command.wanted();
    let resizes = wanted.tty && PROTOCOLS[..3].contains(&protocol);
    let names = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", resizes),
    ];
    let names: Vec<&str> = names
        .into_iter()
        .filter_map(|(name, wanted)| wanted.then_some(name))
        .collect();
    let Ok(Some(mut streams_of_client)) = timeout(OPEN_WITHIN, collect(&mut opened, &names)).await
    else {
        tracing::debug!("a client has not opened its streams");
        return;
    };
    // no more are taken
    drop(opened);
    let mut take = |name: &str| streams_of_client.remove(name);
    let (Some(error), stdin, stdout, stderr, resize) = (
        take("error"),
        take("stdin"),
        take("stdout"),
        take("stderr"),
        take("resize"),
    ) else {
        return;
    };

    let (mut stdio, ends) = wanted.split();
    stdio.stdin = stdin.map(|stream| Box::new(stream.input) as _);
    let sizes = async {
        if let (Some(stream), Some(sender)) = (resize, ends.resize) {
            read_sizes(stream.input, sender).await;
        }
        std::future::pending().await
    };
    let run = async {
        tokio::join!(
            command.run(streams, stdio),
            copy(stdout, ends.stdout),
            copy(stderr, ends.stderr)
        )
        .0
    };
    let outcome = tokio::select! {
        outcome = run => outcome,
        never = sizes => never,
    };
    tell(&error.output, protocol, &outcome).await;
}

/// Waits for the streams of these names. None: the client went, or opened something else.
async fn collect(
    opened: &mut mpsc::Receiver<Incoming>,
    names: &[&str],
) -> Option<HashMap<String, Incoming>> {
    let mut streams = HashMap::new();
    while streams.len() < names.len() {
        let stream = opened.recv().await?;
        let name = stream.headers.get("streamtype")?.clone();
        if !names.contains(&name.as_str()) || streams.insert(name, stream).is_some() {
            return None;
        }
    }
    Some(streams)
}

async fn copy(to: Option<Incoming>, from: Option<DuplexStream>) {
    if let (Some(stream), Some(mut from)) = (to, from)
        && let Err(err) = stream.output.copy(&mut from).await
    {
        // the runtime's next write fails, as `from` is dropped
        tracing::debug!("output of a session: {err}");
    }
}

async fn read_sizes(mut from: DuplexStream, to: mpsc::Sender<Size>) {
    let mut text = Vec::new();
    while let Ok(1..) = from.read_buf(&mut text).await {
        match take_sizes(&mut text) {
            Ok(sizes) if text.len() <= SIZES_BYTES => sizes.into_iter().for_each(|size| {
                let _full = to.try_send(size);
            }),
            _ => return,
        }
    }
}

async fn tell(error: &Output, protocol: &str, outcome: &Outcome) {
    let text = if PROTOCOLS[..2].contains(&protocol) {
        status::json(outcome)
    } else {
        status::words(outcome).into_bytes()
    };
    let told = async {
        if !text.is_empty() {
            error.send(Bytes::from(text)).await?;
        }
        error.finish().await
    };
    if let Err(err) = told.await {
        tracing::debug!("end of a session: {err}");
    }
}

/// The failure of a forwarded connection, as its error stream tells it.
pub(crate) fn forward_failure(port: u16, failure: &Failure) -> String {
    format!("error forwarding port {port}: {failure}")
}
