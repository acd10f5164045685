//! Objects in the store: read, made, replaced and removed, each by a transaction that compares what was read.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use berth_store::{
    Compare, Durability, Is, KeyValue, Keys, LeaseId, Op, RangeRequest, Revision, Store, Target,
    Txn,
};
use bytes::Bytes;
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use crate::{catalog::REGISTRY, cipher::Cipher, failure::Failure, object};

/// What upstream's etcd takes: a larger object is refused with its own words.
const LARGEST: usize = 1_572_864;

/// An object as it is kept; its resourceVersion is set.
#[derive(Debug, Clone)]
pub struct Stored {
    pub value: Value,
    pub revision: Revision,
}

/// What a write says of other objects: the same transaction, or none.
#[derive(Debug, Default)]
pub struct Beside {
    /// Keys that must still have these revisions.
    pub unchanged: Vec<(String, Revision)>,
    /// Objects that are replaced, where they still have these revisions.
    pub puts: Vec<(String, Value, Revision)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// At this revision.
    At(Revision),
    /// A compare did not hold: another was quicker.
    Outrun,
}

#[derive(Debug)]
pub struct Storage {
    pub store: Arc<dyn Store>,
    cipher: Option<Arc<Cipher>>,
    event_lease: Mutex<Option<EventLease>>,
    /// How long an Event is kept.
    event_ttl: Duration,
}

/// Events that are made within a minute hang on one lease, as upstream's do.
#[derive(Debug)]
struct EventLease {
    id: LeaseId,
    until: Instant,
    left: usize,
}

const LEASE_SHARED_FOR: Duration = Duration::from_secs(60);
const LEASE_SHARED_BY: usize = 1000;

impl Storage {
    pub fn new(store: Arc<dyn Store>, cipher: Option<Arc<Cipher>>, event_ttl: Duration) -> Self {
        Self {
            store,
            cipher,
            event_lease: Mutex::new(None),
            event_ttl,
        }
    }

    pub async fn read(&self, key: &str) -> Result<Option<Stored>, Failure> {
        let answer = self
            .store
            .range(RangeRequest {
                keys: Keys::One(Bytes::copy_from_slice(key.as_bytes())),
                revision: 0,
                limit: 1,
                keys_only: false,
                count_only: false,
            })
            .await?;
        answer.kvs.first().map(|kv| self.decode(kv)).transpose()
    }

    /// Those of a range as of `revision`.
    pub async fn range(
        &self,
        from: &str,
        prefix: &str,
        revision: Revision,
        limit: usize,
    ) -> Result<(Vec<(String, Stored)>, u64, bool), Failure> {
        let Keys::Range { to, .. } = Keys::prefix(Bytes::copy_from_slice(prefix.as_bytes())) else {
            return Ok((Vec::new(), 0, false));
        };
        let answer = self
            .store
            .range(RangeRequest {
                keys: Keys::Range {
                    from: Bytes::copy_from_slice(from.as_bytes()),
                    to,
                },
                revision,
                limit,
                keys_only: false,
                count_only: false,
            })
            .await?;
        let stored = answer
            .kvs
            .iter()
            .map(|kv| {
                Ok((
                    String::from_utf8_lossy(&kv.key).into_owned(),
                    self.decode(kv)?,
                ))
            })
            .collect::<Result<_, Failure>>()?;
        Ok((stored, answer.count, answer.more))
    }

    fn decode(&self, kv: &KeyValue) -> Result<Stored, Failure> {
        let bytes = match &self.cipher {
            Some(cipher) => cipher
                .open_value(&kv.key, kv.value.clone())
                .map_err(Failure::internal)?,
            None => kv.value.clone(),
        };
        let mut value = serde_json::from_slice(&bytes).map_err(Failure::internal)?;
        object::set_resource_version(&mut value, kv.mod_revision);
        Ok(Stored {
            value,
            revision: kv.mod_revision,
        })
    }

    fn encode(&self, key: &str, value: &Value) -> Result<Bytes, Failure> {
        let bytes = serde_json::to_vec(&Kept(value)).map_err(Failure::internal)?;
        if bytes.len() > LARGEST {
            return Err(Failure::too_large(LARGEST));
        }
        match &self.cipher {
            Some(cipher) if key.starts_with(&format!("{REGISTRY}secrets/")) => cipher
                .seal(key.as_bytes(), &bytes)
                .map_err(Failure::internal),
            _ => Ok(bytes.into()),
        }
    }

    /// Makes it (`expected` 0) or replaces what has revision `expected`, with what is to be `beside` it.
    pub async fn put(
        &self,
        key: &str,
        value: &Value,
        expected: Revision,
        beside: &Beside,
    ) -> Result<Written, Failure> {
        let lease = if key.starts_with(&format!("{REGISTRY}events/")) {
            self.event_lease().await?
        } else {
            0
        };
        let put = Op::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: self.encode(key, value)?,
            lease,
        };
        self.transact(key, put, expected, beside).await
    }

    pub async fn remove(&self, key: &str, expected: Revision) -> Result<Written, Failure> {
        let delete = Op::Delete(Keys::One(Bytes::copy_from_slice(key.as_bytes())));
        self.transact(key, delete, expected, &Beside::default())
            .await
    }

    async fn transact(
        &self,
        key: &str,
        op: Op,
        expected: Revision,
        beside: &Beside,
    ) -> Result<Written, Failure> {
        let mut then = vec![op];
        for (key, value, _) in &beside.puts {
            then.push(Op::Put {
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: self.encode(key, value)?,
                lease: 0,
            });
        }
        let compares = [(key, expected)]
            .into_iter()
            .chain(beside.unchanged.iter().map(|(key, at)| (key.as_str(), *at)))
            .chain(beside.puts.iter().map(|(key, _, at)| (key.as_str(), *at)))
            .map(|(key, at)| Compare {
                key: Bytes::copy_from_slice(key.as_bytes()),
                is: Is::Equal,
                target: Target::ModRevision(at),
            })
            .collect();
        let answer = self
            .store
            .txn(Txn {
                compares,
                then,
                otherwise: Vec::new(),
                durability: durability(key),
                blind: true,
            })
            .await?;
        Ok(if answer.succeeded {
            Written::At(answer.revision)
        } else {
            Written::Outrun
        })
    }

    async fn event_lease(&self) -> Result<LeaseId, Failure> {
        let mut shared = self.event_lease.lock().await;
        if let Some(lease) = shared.as_mut()
            && lease.until > Instant::now()
            && lease.left > 0
        {
            lease.left -= 1;
            return Ok(lease.id);
        }
        // Those that share it live at least for their time.
        let ttl = self.event_ttl + LEASE_SHARED_FOR;
        let lease = self.store.lease_grant(ttl.as_secs()).await?;
        *shared = Some(EventLease {
            id: lease.id,
            until: Instant::now() + LEASE_SHARED_FOR,
            left: LEASE_SHARED_BY,
        });
        Ok(lease.id)
    }
}

/// An object as it is kept: its resourceVersion is the revision at which it is.
struct Kept<'a>(&'a Value);

impl Serialize for Kept<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Value::Object(fields) = self.0 else {
            return self.0.serialize(serializer);
        };
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in fields {
            match value {
                Value::Object(metadata) if name == "metadata" => {
                    map.serialize_entry(name, &Unversioned(metadata))?;
                }
                value => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}

/// metadata, without its resourceVersion.
struct Unversioned<'a>(&'a Map<String, Value>);

impl Serialize for Unversioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().filter(|(name, _)| *name != "resourceVersion"))
    }
}

/// What is renewed anyway need not be on the disk before it is answered.
fn durability(key: &str) -> Durability {
    let relaxed = ["leases/", "events/"]
        .iter()
        .any(|storage| key[REGISTRY.len().min(key.len())..].starts_with(storage));
    if relaxed {
        Durability::Relaxed
    } else {
        Durability::Synced
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_kept_without_its_resource_version_alone() {
        for (object, kept) in [
            (
                json!({"kind": "A", "metadata": {"name": "a", "resourceVersion": "3"}, "spec": {"resourceVersion": "4"}}),
                json!({"kind": "A", "metadata": {"name": "a"}, "spec": {"resourceVersion": "4"}}),
            ),
            (json!({"metadata": 3}), json!({"metadata": 3})),
            (json!([1]), json!([1])),
        ] {
            let bytes = serde_json::to_vec(&Kept(&object)).expect("JSON");
            assert_eq!(bytes, serde_json::to_vec(&kept).expect("JSON"), "{object}");
        }
    }
}
