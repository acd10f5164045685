//! Watches: what is there (where asked for), then what changes, as a stream of JSON lines.

use std::{sync::Arc, time::Duration};

use berth_store::Revision;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, stream};
use http::Response;
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, mpsc::error::TryRecvError},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{Api, Call},
    cache::{Cache, Change, ChangeKind, Entry, WatchScope},
    catalog::Resource,
    clock,
    failure::Failure,
    read::{Selection, convert, parse_revision},
    respond::{Body, Form, Wants, content_type, streamed},
    table,
};

/// How long a watch lasts that says nothing: upstream's, between this and twice this.
const LASTS: Duration = Duration::from_secs(1800);
/// Between two bookmarks.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Frames that wait for one client.
const AHEAD: usize = 2;
/// A client that takes no frame for so long has its watch ended; upstream cuts a watcher whose buffer is full within a fraction of a second.
const STALLED: Duration = Duration::from_secs(60);
/// Of one frame: events that wait together are sent together.
const FRAME: usize = 64 << 10;

/// The annotation of the bookmark that ends what was there.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub async fn watch(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let (resource, query) = (&call.resource, &call.asked.query);
    let mut selection = Selection::of(resource, &call.asked.namespace, query)?;
    if !call.asked.name.is_empty() {
        // `/watch/…/NAME`, the old form
        selection.prefix = crate::read::path(resource, &call.asked.namespace, &call.asked.name);
    }
    let initial = initial_events(query)?;
    let version = parse_revision(query.get("resourceVersion"))?;
    let timeout = match query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.unsigned_abs()),
        _ => LASTS.mul_f64(1.0 + rand::random::<f64>()),
    };
    let scope = scope(resource, &selection, &call.asked.namespace);
    let shard = api.cache.shard(&resource.storage);
    let mut start = match (initial, version) {
        (Some(true), version) => {
            match version {
                Some(version) => api.cache.reach(version).await?,
                None => api.cache.fresh().await?,
            };
            shard.subscribe(scope, &selection.prefix)
        }
        (None, None | Some(0)) => {
            if version.is_none() {
                api.cache.fresh().await?;
            }
            shard.subscribe(scope, &selection.prefix)
        }
        (Some(false), None | Some(0)) => {
            api.cache.fresh().await?;
            let mut start = shard.subscribe(scope, &selection.prefix);
            start.objects.clear();
            start
        }
        (_, Some(version)) => {
            api.cache.reach(version).await?;
            match shard.subscribe_from(scope, version) {
                Ok(start) => start,
                // within the watch, as upstream tells it
                Err(failure) => {
                    let line = error_line(&failure);
                    return Ok(answer(&call.wants, stream::iter([line])));
                }
            }
        }
    };
    start.objects.retain(|entry| selection.selects(entry));
    let watcher = Watcher {
        resource: resource.clone(),
        selection,
        wants: call.wants.clone(),
        cache: api.cache.clone(),
        initial: std::mem::take(&mut start.objects).into_iter(),
        changes: std::mem::take(&mut start.changes).into_iter(),
        queue: start.queue,
        told: start.revision,
        announces: (initial == Some(true)).then_some(start.revision),
        bookmarks: query
            .flag("allowWatchBookmarks")
            .then(|| Instant::now() + BOOKMARK),
        until: Instant::now() + timeout,
        ends: api.ends.clone(),
        over: false,
        _gauge: api.metrics.watching(),
    };
    let lines = stream::unfold(watcher, |mut watcher| async move {
        let frame = watcher.frame().await?;
        Some((frame, watcher))
    });
    Ok(answer(&call.wants, read_in_time(lines, STALLED)))
}

/// `frames`, made ahead by [`AHEAD`] and given up where nobody takes one for `patience`. What a watch holds (the objects that it began with, changes
/// that wait) must not live as long as a client likes that has stopped to read: over HTTP/2 its connection may be alive and well.
fn read_in_time(
    frames: impl Stream<Item = Bytes> + Send + 'static,
    patience: Duration,
) -> impl Stream<Item = Bytes> + Send + 'static {
    let (sender, frames_made) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        let mut frames = std::pin::pin!(frames);
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                () = sender.closed() => return,
            };
            let Some(frame) = frame else { return };
            match tokio::time::timeout(patience, sender.send(frame)).await {
                Ok(Ok(())) => {}
                // It left, or does not read.
                _ => return,
            }
        }
    });
    ReceiverStream::new(frames_made)
}

fn answer(wants: &Wants, lines: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(streamed(lines));
    content_type(
        &mut response,
        match wants.form {
            Form::Table(_) => "application/json;stream=watch",
            _ => "application/json",
        },
    );
    response
}

/// `sendInitialEvents`, checked.
fn initial_events(query: &crate::request::Query) -> Result<Option<bool>, Failure> {
    let matching = query.get("resourceVersionMatch");
    let invalid = |field: &str, message: String| {
        Failure::unprocessable(format!(
            "ListOptions.meta.k8s.io \"\" is invalid: {field}: {message}"
        ))
    };
    if !query.has("sendInitialEvents") {
        if !matching.is_empty() {
            return Err(invalid(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
                    .into(),
            ));
        }
        return Ok(None);
    }
    if matching != "NotOlderThan" {
        return Err(invalid(
            "resourceVersionMatch",
            "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
                .into(),
        ));
    }
    Ok(Some(query.flag("sendInitialEvents")))
}

fn scope(resource: &Resource, selection: &Selection, namespace: &str) -> WatchScope {
    if resource.is("", "pods")
        && let Some(node) = selection.fields.required("spec.nodeName")
        && !node.is_empty()
    {
        return WatchScope::Node(node.to_owned());
    }
    if let Some(name) = selection.fields.required("metadata.name")
        && !name.is_empty()
        && (!resource.namespaced || !namespace.is_empty())
    {
        return WatchScope::Object(crate::read::path(resource, namespace, name));
    }
    if resource.namespaced && !namespace.is_empty() {
        return WatchScope::Namespace(namespace.to_owned());
    }
    WatchScope::All
}

struct Watcher {
    resource: Arc<Resource>,
    selection: Selection,
    wants: Wants,
    cache: Arc<Cache>,
    initial: std::vec::IntoIter<Arc<Entry>>,
    changes: std::vec::IntoIter<Arc<Change>>,
    queue: mpsc::Receiver<Arc<Change>>,
    /// Everything up to it has been told, or is about to be.
    told: Revision,
    /// The bookmark that ends what was there is still to be sent.
    announces: Option<Revision>,
    bookmarks: Option<Instant>,
    until: Instant,
    ends: CancellationToken,
    over: bool,
    _gauge: crate::metrics::Watching,
}

impl Watcher {
    /// What can be told now; waits for something. `None`: the end.
    async fn frame(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let mut frame = BytesMut::new();
        loop {
            if frame.len() >= FRAME {
                return Some(frame.freeze());
            }
            if let Some(entry) = self.initial.next() {
                frame.extend_from_slice(&self.added(&entry));
                continue;
            }
            if let Some(change) = self.changes.next() {
                self.tell(&change, &mut frame);
                continue;
            }
            if let Some(revision) = self.announces.take() {
                let annotations = json!({INITIAL_EVENTS_END: "true"});
                frame.extend_from_slice(&self.bookmark(revision, Some(annotations)));
                continue;
            }
            // Read before the queue: all changes up to it are in there, or were.
            let seen = self.cache.revision();
            match self.queue.try_recv() {
                Ok(change) => {
                    self.tell(&change, &mut frame);
                    continue;
                }
                Err(TryRecvError::Disconnected) => {
                    self.over = true;
                    // Too slow, or the cache is loaded anew: what came after is lost to this watch.
                    let failure = Failure::too_old(self.told, self.cache.revision());
                    frame.extend_from_slice(&error_line(&failure));
                    return Some(frame.freeze());
                }
                Err(TryRecvError::Empty) => self.told = self.told.max(seen),
            }
            if !frame.is_empty() {
                return Some(frame.freeze());
            }
            let next_bookmark = self.bookmarks.unwrap_or(self.until);
            tokio::select! {
                change = self.queue.recv() => {
                    if let Some(change) = change {
                        self.tell(&change, &mut frame);
                    }
                }
                () = tokio::time::sleep_until(next_bookmark.min(self.until)) => {
                    if Instant::now() >= self.until {
                        return None;
                    }
                    self.bookmarks = Some(Instant::now() + BOOKMARK);
                    let line = self.bookmark(self.told, None);
                    frame.extend_from_slice(&line);
                }
                () = self.ends.cancelled() => return None,
            }
        }
    }

    fn tell(&mut self, change: &Arc<Change>, frame: &mut BytesMut) {
        self.told = self.told.max(change.revision);
        let Some(kind) = change.seen(|entry| self.selection.selects(entry)) else {
            return;
        };
        let form = if self.resource.stored {
            self.wants.form.name(self.wants.include)
        } else {
            format!(
                "{} {}",
                self.resource.api_version(),
                self.wants.form.name(self.wants.include)
            )
        };
        let line = change.encoded(kind, &form, |bytes| self.line(kind, bytes));
        if let Some(line) = line {
            frame.extend_from_slice(&line);
        }
    }

    fn added(&self, entry: &Entry) -> Bytes {
        self.line(ChangeKind::Added, entry.bytes.clone())
    }

    /// `bytes` are of the version that is kept.
    fn line(&self, kind: ChangeKind, bytes: Bytes) -> Bytes {
        let bytes = if self.resource.stored {
            bytes
        } else {
            convert(&self.resource, &bytes)
        };
        let object = match &self.wants.form {
            Form::Json | Form::Yaml => bytes,
            form => {
                let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let value = match form {
                    Form::Table(version) => table::of_objects(
                        &self.resource,
                        std::slice::from_ref(&object),
                        self.wants.include,
                        version,
                        json!({"resourceVersion": crate::object::resource_version(&object)}),
                        clock::now(),
                    ),
                    Form::Metadata(version) => table::partial(&object, version),
                    Form::Json | Form::Yaml => object,
                };
                serde_json::to_vec(&value).unwrap_or_default().into()
            }
        };
        line(kind.as_str(), &object)
    }

    fn bookmark(&self, revision: Revision, annotations: Option<Value>) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if let Some(annotations) = annotations {
            metadata["annotations"] = annotations;
        }
        let object = match &self.wants.form {
            Form::Table(version) => table::bookmark(metadata, version),
            Form::Metadata(version) => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata,
            }),
            Form::Json | Form::Yaml => json!({
                "kind": self.resource.kind,
                "apiVersion": self.resource.api_version(),
                "metadata": metadata,
            }),
        };
        line("BOOKMARK", &serde_json::to_vec(&object).unwrap_or_default())
    }
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + 48);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(kind.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.freeze()
}

fn error_line(failure: &Failure) -> Bytes {
    line(
        "ERROR",
        &serde_json::to_vec(&failure.to_value()).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames without end, and whether they are still held.
    fn endless() -> (impl Stream<Item = Bytes> + Send + 'static, Arc<()>) {
        let held = Arc::new(());
        let frames = stream::unfold(held.clone(), |held| async move {
            Some((Bytes::from_static(b"frame"), held))
        });
        (frames, held)
    }

    async fn is_let_go(held: &Arc<()>) {
        while Arc::strong_count(held) > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_watch_that_nobody_reads_is_let_go_with_all_that_it_holds() {
        let (frames, held) = endless();
        let mut watch = read_in_time(frames, Duration::from_millis(50));
        is_let_go(&held).await;
        let mut left = 0;
        while watch.next().await.is_some() {
            left += 1;
        }
        assert_eq!(left, AHEAD);
    }

    #[tokio::test]
    async fn a_watch_that_is_read_goes_on() {
        let (frames, held) = endless();
        let mut watch = read_in_time(frames, STALLED);
        for _ in 0..10 * AHEAD {
            assert!(watch.next().await.is_some());
        }
        drop(watch);
        is_let_go(&held).await;
    }

    #[tokio::test]
    async fn a_watch_with_nothing_to_tell_is_let_go_when_its_client_left() {
        let held = Arc::new(());
        let frames = stream::unfold(held.clone(), |held| async move {
            std::future::pending::<()>().await;
            Some((Bytes::new(), held))
        });
        let watch = read_in_time(frames, STALLED);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&held), 2);
        drop(watch);
        is_let_go(&held).await;
    }
}
