//! Leases: what hangs on them is deleted when nobody renews them. Their deadlines are in memory only: after a start each has its whole time
//! again, as after a change of etcd's leader.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{Error, Lease, LeaseId};

/// How often expired ones are looked for.
pub(crate) const TICK: Duration = Duration::from_millis(500);

/// etcd's longest, in seconds.
pub(crate) const MAX_TTL: u64 = 9_000_000_000;

#[derive(Debug, Default)]
pub(crate) struct Leases(HashMap<LeaseId, Granted>);

#[derive(Debug)]
struct Granted {
    ttl: u64,
    deadline: Instant,
    keys: BTreeSet<Bytes>,
}

impl Leases {
    pub fn grant(&mut self, id: LeaseId, ttl: u64, now: Instant) -> Lease {
        self.0.insert(
            id,
            Granted {
                ttl,
                deadline: now + Duration::from_secs(ttl),
                keys: BTreeSet::new(),
            },
        );
        Lease { id, ttl, left: ttl }
    }

    pub fn has(&self, id: LeaseId) -> bool {
        self.0.contains_key(&id)
    }

    pub fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Result<Lease, Error> {
        let granted = self.0.get_mut(&id).ok_or(Error::NoLease { id })?;
        granted.deadline = now + Duration::from_secs(granted.ttl);
        Ok(Lease {
            id,
            ttl: granted.ttl,
            left: granted.ttl,
        })
    }

    /// `key` hangs on `new` (0: on none) and no longer on `old`.
    pub fn moved(&mut self, key: &Bytes, old: LeaseId, new: LeaseId) {
        if old == new {
            return;
        }
        if let Some(granted) = self.0.get_mut(&old) {
            granted.keys.remove(key);
        }
        if let Some(granted) = self.0.get_mut(&new) {
            granted.keys.insert(key.clone());
        }
    }

    /// What hung on it, in order.
    pub fn revoke(&mut self, id: LeaseId) -> Result<Vec<Bytes>, Error> {
        let granted = self.0.remove(&id).ok_or(Error::NoLease { id })?;
        Ok(granted.keys.into_iter().collect())
    }

    pub fn expired(&self, now: Instant) -> Vec<LeaseId> {
        self.0
            .iter()
            .filter(|(_, granted)| granted.deadline <= now)
            .map(|(id, _)| *id)
            .collect()
    }
}

/// An id that is not taken, and that etcd's tools can print (63 bits).
pub(crate) fn new_id(taken: impl Fn(LeaseId) -> bool) -> LeaseId {
    loop {
        let id = rand::random::<u64>() >> 1;
        if id != 0 && !taken(id) {
            return id;
        }
    }
}
