//! A real etcd as the store.
//!
//! Spoken to with messages of our own making (proto/): etcd's client crates need `protoc` to be built.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use tonic::{Code, transport::Channel};

use crate::{
    Compare, Error, Event, EventKind, Is, KeyValue, Keys, Lease, LeaseId, Op, OpAnswer,
    RangeAnswer, RangeRequest, Revision, Status, Store, Target, Txn, TxnAnswer, Watch, WatchBatch,
    WatchRequest, core, leases,
    watchers::{Feeder, Reader},
    wire::{
        etcdserverpb::{
            self as pb, compare, kv_client::KvClient, lease_client::LeaseClient,
            maintenance_client::MaintenanceClient, request_op, response_op,
            watch_client::WatchClient, watch_request,
        },
        mvccpb,
    },
};

/// An answer may be as large as a list without a limit.
const MAX_MESSAGE: usize = 512 << 20;

/// How long etcd may think about an answer. A majority that is lost for longer is to be told, not waited for.
const TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Etcd {
    channel: Channel,
    /// The last compaction that was heard of: etcd says it to watches only.
    compacted: AtomicU64,
}

impl Etcd {
    /// `channel` says where it is, and with which certificates.
    pub fn new(channel: Channel) -> Self {
        Self {
            channel,
            compacted: AtomicU64::new(0),
        }
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    /// What `status` means, asked for `revision`.
    async fn error(&self, act: &'static str, status: tonic::Status, asked: Revision) -> Error {
        let message = status.message();
        if message.contains("required revision has been compacted") {
            return Error::Compacted {
                asked,
                compacted: self.compacted().await,
            };
        }
        if message.contains("required revision is a future revision") {
            let newest = match self.revision().await {
                Ok(newest) => newest,
                Err(e) => return e,
            };
            return Error::Future { asked, newest };
        }
        broken(act, status)
    }

    /// Up to where it is compacted: a watch from the first revision is told.
    async fn compacted(&self) -> Revision {
        let request = WatchRequest {
            keys: Keys::One(Bytes::from_static(b"\0")),
            from: 1,
            previous: false,
        };
        let asked = async {
            let mut told = self.open(&request).await?;
            for _ in 0..2 {
                match told.1.message().await {
                    Ok(Some(told)) if told.compact_revision > 0 => {
                        return Ok(told.compact_revision as Revision);
                    }
                    Ok(Some(_)) => {}
                    _ => break,
                }
            }
            Ok::<_, Error>(0)
        };
        // Where nothing is compacted there is no answer but that it was opened.
        if let Ok(Ok(compacted)) = tokio::time::timeout(Duration::from_millis(300), asked).await {
            self.compacted.fetch_max(compacted, Ordering::Relaxed);
        }
        self.compacted.load(Ordering::Relaxed)
    }

    /// A watch that etcd says it has made: what is written from now on is told.
    async fn open(
        &self,
        request: &WatchRequest,
    ) -> Result<
        (
            tokio::sync::mpsc::Sender<pb::WatchRequest>,
            tonic::Streaming<pb::WatchResponse>,
        ),
        Error,
    > {
        let (key, range_end) = bounds(&request.keys);
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: request.from as i64,
            progress_notify: true,
            prev_kv: request.previous,
            ..Default::default()
        };
        let (asks, asked) = tokio::sync::mpsc::channel(1);
        asks.try_send(pb::WatchRequest {
            request_union: Some(watch_request::RequestUnion::CreateRequest(create)),
        })
        .map_err(|e| broken("watch", tonic::Status::internal(e.to_string())))?;
        let mut client =
            WatchClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE);
        let opened = async {
            let mut told = client
                .watch(tokio_stream::wrappers::ReceiverStream::new(asked))
                .await?
                .into_inner();
            match told.message().await? {
                Some(first) if first.created => Ok(told),
                _ => Err(tonic::Status::unknown("etcd didn't say that it watches")),
            }
        };
        let told = tokio::time::timeout(TIMEOUT, opened)
            .await
            .unwrap_or_else(|_| Err(late()))
            .map_err(|status| broken("watch", status))?;
        Ok((asks, told))
    }

    async fn known(&self, id: LeaseId) -> Result<pb::LeaseTimeToLiveResponse, Error> {
        let asked = pb::LeaseTimeToLiveRequest {
            id: id as i64,
            keys: false,
        };
        let left = within(self.leases().lease_time_to_live(asked))
            .await
            .map_err(|status| broken("ask for a lease", status))?;
        match left.ttl {
            ttl if ttl > 0 => Ok(left),
            _ => Err(Error::NoLease { id }),
        }
    }
}

fn late() -> tonic::Status {
    tonic::Status::deadline_exceeded(format!("etcd doesn't answer within {TIMEOUT:?}"))
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, tonic::Status> {
    Ok(tokio::time::timeout(TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(late()))?
        .into_inner())
}

fn broken(act: &'static str, status: tonic::Status) -> Error {
    Error::Broken {
        act,
        why: format!("etcd: {}: {}", status.code(), status.message()),
    }
}

/// `key` and `range_end`, as etcd has them.
fn bounds(keys: &Keys) -> (Bytes, Bytes) {
    const NOTHING: Bytes = Bytes::from_static(b"\0");
    match keys {
        Keys::One(key) => (key.clone(), Bytes::new()),
        Keys::Range { from, to } => {
            let start = if from.is_empty() { &NOTHING } else { from };
            let end = if to.is_empty() { &NOTHING } else { to };
            (start.clone(), end.clone())
        }
    }
}

fn range_request(request: &RangeRequest) -> pb::RangeRequest {
    let (key, range_end) = bounds(&request.keys);
    pb::RangeRequest {
        key,
        range_end,
        limit: if request.count_only {
            0
        } else {
            request.limit as i64
        },
        revision: request.revision as i64,
        keys_only: request.keys_only,
        count_only: request.count_only,
        ..Default::default()
    }
}

fn range_answer(answer: pb::RangeResponse, revision: Revision) -> RangeAnswer {
    RangeAnswer {
        kvs: answer.kvs.into_iter().map(key_value).collect(),
        count: answer.count as u64,
        more: answer.more,
        revision,
    }
}

fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision as Revision,
        mod_revision: kv.mod_revision as Revision,
        version: kv.version as u64,
        lease: kv.lease as LeaseId,
    }
}

fn header(header: &Option<pb::ResponseHeader>) -> Revision {
    header.as_ref().map_or(0, |header| header.revision as u64)
}

fn compare(asked: &Compare) -> pb::Compare {
    use compare::{CompareResult, CompareTarget, TargetUnion};
    let (target, union) = match &asked.target {
        Target::CreateRevision(n) => (
            CompareTarget::Create,
            TargetUnion::CreateRevision(*n as i64),
        ),
        Target::ModRevision(n) => (CompareTarget::Mod, TargetUnion::ModRevision(*n as i64)),
        Target::Version(n) => (CompareTarget::Version, TargetUnion::Version(*n as i64)),
        Target::Lease(n) => (CompareTarget::Lease, TargetUnion::Lease(*n as i64)),
        Target::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
    };
    let result = match asked.is {
        Is::Equal => CompareResult::Equal,
        Is::NotEqual => CompareResult::NotEqual,
        Is::Greater => CompareResult::Greater,
        Is::Less => CompareResult::Less,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: asked.key.clone(),
        target_union: Some(union),
    }
}

fn request_op(op: &Op, blind: bool) -> pb::RequestOp {
    let request = match op {
        Op::Put { key, value, lease } => request_op::Request::RequestPut(pb::PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease: *lease as i64,
            prev_kv: !blind,
            ..Default::default()
        }),
        Op::Delete(keys) => {
            let (key, range_end) = bounds(keys);
            request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key,
                range_end,
                prev_kv: true,
            })
        }
        Op::Range(request) => request_op::Request::RequestRange(range_request(request)),
    };
    pb::RequestOp {
        request: Some(request),
    }
}

fn op_answer(answer: pb::ResponseOp, revision: Revision) -> Option<OpAnswer> {
    Some(match answer.response? {
        response_op::Response::ResponsePut(put) => OpAnswer::Put(put.prev_kv.map(key_value)),
        response_op::Response::ResponseDeleteRange(deleted) => {
            OpAnswer::Delete(deleted.prev_kvs.into_iter().map(key_value).collect())
        }
        response_op::Response::ResponseRange(range) => {
            OpAnswer::Range(range_answer(range, revision))
        }
    })
}

#[async_trait]
impl Store for Etcd {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, Error> {
        match within(self.kv().range(range_request(&request))).await {
            Ok(answer) => {
                let revision = header(&answer.header);
                Ok(range_answer(answer, revision))
            }
            Err(status) => Err(self.error("range", status, request.revision).await),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, Error> {
        core::check(&txn)?;
        let mut asked = 0;
        for op in txn.then.iter().chain(&txn.otherwise) {
            match op {
                // etcd 3.4 ends itself where a transaction names a lease that isn't there.
                Op::Put { lease, .. } if *lease != 0 => {
                    self.known(*lease).await?;
                }
                Op::Range(range) => asked = asked.max(range.revision),
                _ => {}
            }
        }
        let request = pb::TxnRequest {
            compare: txn.compares.iter().map(compare).collect(),
            success: txn
                .then
                .iter()
                .map(|op| request_op(op, txn.blind))
                .collect(),
            failure: txn
                .otherwise
                .iter()
                .map(|op| request_op(op, txn.blind))
                .collect(),
        };
        let answer = match within(self.kv().txn(request)).await {
            Ok(answer) => answer,
            Err(status) => return Err(self.error("write", status, asked).await),
        };
        let revision = header(&answer.header);
        let answers: Vec<_> = answer
            .responses
            .into_iter()
            .filter_map(|answer| op_answer(answer, revision))
            .collect();
        Ok(TxnAnswer {
            succeeded: answer.succeeded,
            revision,
            answers,
        })
    }

    async fn watch(&self, request: WatchRequest) -> Result<Watch, Error> {
        let (asks, told) = self.open(&request).await?;
        let (feeder, reader) = Reader::pipe();
        // Ends with the watch: `asks`, held open until then, is what keeps etcd telling.
        tokio::spawn(async move {
            follow(told, &feeder, request.from).await;
            drop(asks);
        });
        Ok(stream::unfold(reader, |reader| async move {
            let told = future::poll_fn(|cx| reader.poll(cx)).await?;
            Some((told, reader))
        })
        .boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        // etcd takes revision 0 once, and refuses it from then on: there is nothing before it, and it is no revision.
        if revision == 0 {
            return Err(Error::Compacted {
                asked: 0,
                compacted: self.compacted().await,
            });
        }
        let request = pb::CompactionRequest {
            revision: revision as i64,
            physical: false,
        };
        match within(self.kv().compact(request)).await {
            Ok(_) => {
                self.compacted.fetch_max(revision, Ordering::Relaxed);
                Ok(())
            }
            Err(status) => Err(self.error("compact", status, revision).await),
        }
    }

    async fn lease_grant(&self, ttl: u64) -> Result<Lease, Error> {
        let request = pb::LeaseGrantRequest {
            ttl: ttl.clamp(1, leases::MAX_TTL) as i64,
            id: 0,
        };
        let granted = within(self.leases().lease_grant(request))
            .await
            .map_err(|status| broken("grant a lease", status))?;
        Ok(Lease {
            id: granted.id as LeaseId,
            ttl: granted.ttl as u64,
            left: granted.ttl as u64,
        })
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<Lease, Error> {
        let request = pb::LeaseKeepAliveRequest { id: id as i64 };
        let kept = async {
            let mut told = self
                .leases()
                .lease_keep_alive(stream::iter([request]).chain(stream::pending()))
                .await?
                .into_inner();
            let first = told.message().await?;
            Ok(tonic::Response::new(first))
        };
        let kept = within(kept)
            .await
            .map_err(|status| broken("keep a lease alive", status))?;
        match kept.map(|kept| kept.ttl) {
            Some(ttl) if ttl > 0 => Ok(Lease {
                id,
                ttl: ttl as u64,
                left: ttl as u64,
            }),
            _ => Err(Error::NoLease { id }),
        }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        let request = pb::LeaseRevokeRequest { id: id as i64 };
        match within(self.leases().lease_revoke(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Err(Error::NoLease { id }),
            Err(status) => Err(broken("revoke a lease", status)),
        }
    }

    async fn revision(&self) -> Result<Revision, Error> {
        let asked = RangeRequest {
            keys: Keys::One(Bytes::from_static(b"\0")),
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: true,
        };
        Ok(self.range(asked).await?.revision)
    }

    async fn status(&self) -> Result<Status, Error> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let status = within(client.status(pb::StatusRequest {}))
            .await
            .map_err(|status| broken("ask for the status", status))?;
        Ok(Status {
            revision: header(&status.header),
            compacted: self.compacted().await,
            size: status.db_size as u64,
        })
    }
}

async fn follow(mut told: tonic::Streaming<pb::WatchResponse>, feeder: &Feeder, asked: Revision) {
    /// How often it is looked whether the reader is gone.
    const LOOK: Duration = Duration::from_secs(5);
    loop {
        let response = match tokio::time::timeout(LOOK, told.message()).await {
            Err(_) if feeder.closed() => return,
            Err(_) => continue,
            Ok(Err(status)) => return feeder.end(broken("watch", status)),
            Ok(Ok(None)) => {
                return feeder.end(broken("watch", tonic::Status::unavailable("etcd ended it")));
            }
            Ok(Ok(Some(response))) => response,
        };
        if response.compact_revision > 0 {
            return feeder.end(Error::Compacted {
                asked,
                compacted: response.compact_revision as Revision,
            });
        }
        if response.canceled {
            return feeder.end(broken(
                "watch",
                tonic::Status::unknown(response.cancel_reason),
            ));
        }
        let events: Vec<_> = response.events.into_iter().filter_map(event).collect();
        // The header's revision may be ahead of what this watch has been told.
        let revision = match events.last() {
            Some(event) => event.kv.mod_revision,
            None => header(&response.header),
        };
        if !feeder.push(WatchBatch { revision, events }) {
            return;
        }
    }
}

fn event(event: mvccpb::Event) -> Option<Event> {
    let kind = match event.r#type() {
        mvccpb::event::EventType::Put => EventKind::Put,
        mvccpb::event::EventType::Delete => EventKind::Delete,
    };
    Some(Event {
        kind,
        kv: key_value(event.kv?),
        previous: event.prev_kv.map(key_value),
    })
}
