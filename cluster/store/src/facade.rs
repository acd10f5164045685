//! etcd's API v3, read only, on loopback with mutual TLS: so that `etcdctl get`, `etcdctl watch` and `etcdctl endpoint status` show what is in the store.
//!
//! KV.Range, Watch and Maintenance.Status; everything else is UNIMPLEMENTED by its name. Who is served may read all objects (Secrets are sealed here, too), so
//! the caller says whose certificates are taken (SEC-API-12). A unix socket would need none, but etcdctl sends its path as `:authority`, which HTTP/2 has no
//! such form for.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream::SelectAll};
use http::Request as HttpRequest;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, codegen::Service, service::Routes};

use crate::{
    Error, Event, EventKind, KeyValue, Keys, RangeRequest, Revision, Store, WatchBatch,
    WatchRequest,
    wire::{
        etcdserverpb::{
            self as pb,
            kv_server::{Kv, KvServer},
            maintenance_server::{Maintenance, MaintenanceServer},
            range_request::{SortOrder, SortTarget},
            watch_create_request::FilterType,
            watch_request::RequestUnion,
            watch_server::{self, WatchServer},
        },
        mvccpb,
    },
};

/// What etcdctl's `endpoint status` shows: the version whose API this is.
const VERSION: &str = "3.4.0";

/// Clusters and members have ids in etcd; here both are this.
const ID: u64 = 1;

/// Connections at once: it is for people who look.
const CONNECTIONS: usize = 16;

const HANDSHAKE: Duration = Duration::from_secs(10);

/// A silent client is asked whether it lives.
const PING: Duration = Duration::from_secs(30);

/// Watches of one stream.
const MAX_WATCHES: usize = 64;

/// Answers that may wait for a slow client before its watches are no longer read (and become too slow themselves).
const WAITING: usize = 16;

/// What is known by name; the rest is refused by it.
const METHODS: [&str; 7] = [
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/DeleteRange",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.KV/Compact",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Maintenance/Status",
];

/// Whether the client with this certificate (DER, checked by TLS) may read.
pub type MayRead = fn(&[u8]) -> bool;

/// Serves `store` on `listener` for as long as it is polled. `config` must ask clients for their certificates.
pub async fn serve(
    store: Arc<dyn Store>,
    listener: TcpListener,
    mut config: ServerConfig,
    may_read: MayRead,
) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let facade = Facade { store };
    let routes = Routes::new(KvServer::new(facade.clone()))
        .add_service(WatchServer::new(facade.clone()))
        .add_service(MaintenanceServer::new(facade))
        .prepare();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropped with this future, and with it every connection.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection can't be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%address, "refused: {CONNECTIONS} clients of etcd's API are connected");
            continue;
        };
        let (acceptor, routes) = (acceptor.clone(), routes.clone());
        connections.spawn(async move {
            connection(stream, address, acceptor, routes, may_read).await;
            drop(place);
        });
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    routes: Routes,
    may_read: MayRead,
) {
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        tracing::debug!(%address, "a handshake failed");
        return;
    };
    let allowed = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .is_some_and(|certificate| may_read(certificate));
    let service = service_fn(move |request: HttpRequest<Incoming>| {
        let mut routes = routes.clone();
        async move {
            let path = request.uri().path();
            let refused = if !allowed {
                Some(Status::permission_denied(
                    "the certificate is none that may read the store",
                ))
            } else if !METHODS.contains(&path) {
                Some(unimplemented(path.trim_start_matches('/')))
            } else {
                None
            };
            if let Some(refused) = refused {
                return Ok::<_, Infallible>(refused.into_http());
            }
            routes.call(request.map(tonic::body::Body::new)).await
        }
    });
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING);
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%address, %error, "a client of etcd's API is gone");
    }
}

#[derive(Debug, Clone)]
struct Facade {
    store: Arc<dyn Store>,
}

fn unimplemented(name: &str) -> Status {
    Status::unimplemented(format!(
        "{name}: this store is read through etcd's API, and written by the API server alone"
    ))
}

fn header(revision: Revision) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader {
        cluster_id: ID,
        member_id: ID,
        revision: revision as i64,
        raft_term: 1,
    })
}

fn keys(key: Bytes, range_end: Bytes) -> Result<Keys, Status> {
    match (key.is_empty(), range_end.as_ref()) {
        (true, _) => Err(Status::invalid_argument("etcdserver: key is not provided")),
        (false, b"") => Ok(Keys::One(key)),
        (false, b"\0") => Ok(Keys::Range {
            from: key,
            to: Bytes::new(),
        }),
        (false, _) => Ok(Keys::Range {
            from: key,
            to: range_end,
        }),
    }
}

fn revision(revision: i64) -> Result<Revision, Status> {
    u64::try_from(revision).map_err(|_| Status::invalid_argument("a negative revision"))
}

fn key_value(kv: KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        value: kv.value,
        lease: kv.lease as i64,
    }
}

/// The codes and words of etcd's, which its clients look for.
fn status(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => {
            Status::out_of_range("etcdserver: mvcc: required revision has been compacted")
        }
        Error::Future { .. } => {
            Status::out_of_range("etcdserver: mvcc: required revision is a future revision")
        }
        other => Status::internal(other.to_string()),
    }
}

#[tonic::async_trait]
impl Kv for Facade {
    async fn range(
        &self,
        request: Request<pb::RangeRequest>,
    ) -> Result<Response<pb::RangeResponse>, Status> {
        let asked = request.into_inner();
        let filtered = [
            asked.min_mod_revision,
            asked.max_mod_revision,
            asked.min_create_revision,
            asked.max_create_revision,
        ];
        if filtered.iter().any(|bound| *bound != 0) {
            return Err(unimplemented("a range between revisions"));
        }
        // A range is in the order of its keys.
        let turned = match (asked.sort_target(), asked.sort_order()) {
            (_, SortOrder::None) | (SortTarget::Key, SortOrder::Ascend) => false,
            (SortTarget::Key, SortOrder::Descend) => true,
            _ => return Err(unimplemented("a range sorted by other than its keys")),
        };
        let limit = usize::try_from(asked.limit.max(0)).unwrap_or(usize::MAX);
        let mut found = self
            .store
            .range(RangeRequest {
                revision: revision(asked.revision)?,
                limit: if turned { 0 } else { limit },
                keys_only: asked.keys_only,
                count_only: asked.count_only,
                keys: keys(asked.key, asked.range_end)?,
            })
            .await
            .map_err(status)?;
        if turned {
            found.kvs.reverse();
            if limit > 0 && found.kvs.len() > limit {
                found.kvs.truncate(limit);
                found.more = true;
            }
        }
        Ok(Response::new(pb::RangeResponse {
            header: header(found.revision),
            kvs: found.kvs.into_iter().map(key_value).collect(),
            more: found.more,
            count: found.count as i64,
        }))
    }

    async fn put(&self, _: Request<pb::PutRequest>) -> Result<Response<pb::PutResponse>, Status> {
        Err(unimplemented("etcdserverpb.KV/Put"))
    }

    async fn delete_range(
        &self,
        _: Request<pb::DeleteRangeRequest>,
    ) -> Result<Response<pb::DeleteRangeResponse>, Status> {
        Err(unimplemented("etcdserverpb.KV/DeleteRange"))
    }

    async fn txn(&self, _: Request<pb::TxnRequest>) -> Result<Response<pb::TxnResponse>, Status> {
        Err(unimplemented("etcdserverpb.KV/Txn"))
    }

    async fn compact(
        &self,
        _: Request<pb::CompactionRequest>,
    ) -> Result<Response<pb::CompactionResponse>, Status> {
        Err(unimplemented("etcdserverpb.KV/Compact"))
    }
}

#[tonic::async_trait]
impl Maintenance for Facade {
    async fn status(
        &self,
        _: Request<pb::StatusRequest>,
    ) -> Result<Response<pb::StatusResponse>, Status> {
        let found = self.store.status().await.map_err(status)?;
        Ok(Response::new(pb::StatusResponse {
            header: header(found.revision),
            version: VERSION.to_owned(),
            db_size: found.size as i64,
            db_size_in_use: found.size as i64,
            leader: ID,
            raft_term: 1,
            raft_index: found.revision,
            raft_applied_index: found.revision,
            ..Default::default()
        }))
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<pb::WatchResponse, Status>> + Send>>;

/// What one of a stream's watches tells, with its number.
type Told = Pin<Box<dyn Stream<Item = (i64, Result<WatchBatch, Error>)> + Send>>;

#[tonic::async_trait]
impl watch_server::Watch for Facade {
    type WatchStream = Answers;

    async fn watch(
        &self,
        request: Request<tonic::Streaming<pb::WatchRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (answers, answered) = tokio::sync::mpsc::channel(WAITING);
        let mut watches = Watches {
            store: self.store.clone(),
            told: SelectAll::new(),
            open: Vec::new(),
            next: 0,
        };
        let mut asked = request.into_inner();
        // Ends when the client does: then its requests end, or nobody takes an answer.
        tokio::spawn(async move {
            loop {
                let answer = tokio::select! {
                    asked = asked.message() => match asked {
                        Ok(Some(asked)) => watches.ask(asked).await,
                        _ => return,
                    },
                    Some((id, told)) = watches.told.next() => watches.tell(id, told),
                    () = answers.closed() => return,
                };
                if let Some(answer) = answer.transpose()
                    && answers.send(answer).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answered))))
    }
}

struct Watches {
    store: Arc<dyn Store>,
    told: SelectAll<Told>,
    open: Vec<(i64, Vec<FilterType>)>,
    next: i64,
}

impl Watches {
    async fn ask(
        &mut self,
        request: pb::WatchRequest,
    ) -> Result<Option<pb::WatchResponse>, Status> {
        let now = self.store.status().await.map_err(status)?.revision;
        match request.request_union {
            Some(RequestUnion::CreateRequest(asked)) => self.create(asked, now).await.map(Some),
            Some(RequestUnion::CancelRequest(asked)) => {
                self.open.retain(|(id, _)| *id != asked.watch_id);
                // What it still tells is dropped: it is no longer open.
                Ok(Some(pb::WatchResponse {
                    header: header(now),
                    watch_id: asked.watch_id,
                    canceled: true,
                    ..Default::default()
                }))
            }
            Some(RequestUnion::ProgressRequest(_)) => Err(unimplemented("a request for progress")),
            None => Ok(None),
        }
    }

    async fn create(
        &mut self,
        asked: pb::WatchCreateRequest,
        now: Revision,
    ) -> Result<pb::WatchResponse, Status> {
        let filters = asked.filters().collect();
        let id = match asked.watch_id {
            0 => {
                self.next += 1;
                self.next - 1
            }
            id => id,
        };
        let created = pb::WatchResponse {
            header: header(now),
            watch_id: id,
            created: true,
            ..Default::default()
        };
        let refused = |reason: String, compacted: Revision| pb::WatchResponse {
            canceled: true,
            cancel_reason: reason,
            compact_revision: compacted as i64,
            ..created.clone()
        };
        if self.open.len() >= MAX_WATCHES {
            return Ok(refused(format!("{MAX_WATCHES} watches are open"), 0));
        }
        let request = WatchRequest {
            keys: keys(asked.key, asked.range_end)?,
            from: revision(asked.start_revision)?,
            previous: asked.prev_kv,
        };
        match self.store.watch(request).await {
            Ok(watch) => {
                self.open.push((id, filters));
                self.told.push(Box::pin(watch.map(move |told| (id, told))));
                Ok(created)
            }
            Err(Error::Compacted { compacted, .. }) => Ok(refused(
                "etcdserver: mvcc: required revision has been compacted".to_owned(),
                compacted,
            )),
            Err(e) => Ok(refused(e.to_string(), 0)),
        }
    }

    fn tell(
        &mut self,
        id: i64,
        told: Result<WatchBatch, Error>,
    ) -> Result<Option<pb::WatchResponse>, Status> {
        let Some((_, filters)) = self.open.iter().find(|(open, _)| *open == id) else {
            return Ok(None);
        };
        match told {
            Ok(batch) => {
                let wanted = |event: &Event| match event.kind {
                    EventKind::Put => !filters.contains(&FilterType::Noput),
                    EventKind::Delete => !filters.contains(&FilterType::Nodelete),
                };
                let events: Vec<_> = batch.events.into_iter().filter(wanted).map(event).collect();
                Ok((!events.is_empty()).then(|| pb::WatchResponse {
                    header: header(batch.revision),
                    watch_id: id,
                    events,
                    ..Default::default()
                }))
            }
            Err(e) => {
                self.open.retain(|(open, _)| *open != id);
                let compacted = match e {
                    Error::Compacted { compacted, .. } => compacted,
                    _ => 0,
                };
                Ok(Some(pb::WatchResponse {
                    header: header(0),
                    watch_id: id,
                    canceled: true,
                    compact_revision: compacted as i64,
                    cancel_reason: e.to_string(),
                    ..Default::default()
                }))
            }
        }
    }
}

fn event(event: Event) -> mvccpb::Event {
    let kind = match event.kind {
        EventKind::Put => mvccpb::event::EventType::Put,
        EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind.into(),
        kv: Some(key_value(event.kv)),
        prev_kv: event.previous.map(key_value),
    }
}
