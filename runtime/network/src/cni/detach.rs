//! DEL: a pod leaves the networks that it joined, against their order. What fails is owed, in the record, and tried again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    BACKOFF, CniError, Inner, RECOVERY_BUDGET,
    books::failed_at,
    record::{Owed, Record},
    stragglers,
};
use crate::{Error, netns};

impl Inner {
    /// DEL of all networks, last first, then the record goes.
    pub(super) async fn delete(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        let deleted = self.try_delete(pod_id).await;
        let mut table = self.lock();
        match (&deleted, table.get_mut(pod_id)) {
            (Ok(()), _) => drop(table.remove(pod_id)),
            (Err(error), Some(entry)) => {
                let (first, most) = BACKOFF;
                let wait = first.saturating_mul(1 << entry.failures.min(16)).min(most);
                entry.failures += 1;
                entry.due = Some(Instant::now() + wait);
                tracing::warn!(pod_id, %error, failures = entry.failures, again_in_s = wait.as_secs(), "CNI DEL");
                self.failed.notify_one();
            }
            (Err(_), None) => {}
        }
        deleted
    }

    async fn try_delete(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        let Some(record) = self.read(pod_id).await? else {
            return self.strike(pod_id).await;
        };
        let orphaned = self.lock().get(pod_id).is_some_and(|e| e.orphaned);
        if orphaned {
            let id = pod_id.to_owned();
            self.blocking(pod_id, move || {
                stragglers::kill(&id);
                Ok(())
            })
            .await?;
            if let Some(entry) = self.lock().get_mut(pod_id) {
                entry.orphaned = false;
            }
        }
        if let Some(entry) = self.lock().get_mut(pod_id) {
            // From here on they may be another pod's at any time.
            entry.ips.clear();
        }
        let netns = Some(record.netns.as_path()).filter(|path| netns::is_pinned(path));
        let mut first = Ok(());
        for joined in record.networks.iter().rev() {
            let done = match self.limit(pod_id) {
                Ok(limit) => self.runner.del(&record, joined, netns, limit).await,
                Err(error) => Err(error),
            };
            first = first.and(done);
        }
        if let Err(error) = first {
            self.owe(record, &error).await;
            return Err(error.into());
        }
        let (dir, id) = (self.config.record_dir.clone(), pod_id.to_owned());
        self.blocking(pod_id, move || {
            let at = |source| failed_at(&dir, &id, source);
            berth_failpoint::site!("network.cni.deleted").map_err(at)?;
            Record::remove(&dir, &id)?;
            berth_failpoint::site!("network.cni.forgotten").map_err(at)
        })
        .await?;
        self.strike(pod_id).await
    }

    /// Writes down why DEL is owed still, for the audit, unless it says so already.
    async fn owe(self: &Arc<Self>, mut record: Record, error: &CniError) {
        let owed = Some(Owed {
            error: error.to_string(),
        });
        if record.owed == owed {
            return;
        }
        record.owed = owed;
        let (dir, pod_id) = (
            self.config.record_dir.clone(),
            record.request.pod_id.clone(),
        );
        let written = self.blocking(&pod_id, move || record.write(&dir)).await;
        // The record as it was is as good for DEL.
        if let Err(error) = written {
            tracing::warn!(pod_id, %error, "writing down that a CNI DEL is owed");
        }
    }

    /// Of one execution of DEL.
    fn limit(&self, pod_id: &str) -> Result<Duration, CniError> {
        let limit = self.runner.limit();
        let Some(until) = *self.recovery() else {
            return Ok(limit);
        };
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(limit.min(left)),
            _ => Err(CniError::Postponed {
                pod_id: pod_id.to_owned(),
                budget: RECOVERY_BUDGET,
            }),
        }
    }
}
