//! Keeps what quotas say to be used: creates are charged as they happen (`admission/quota.rs`), and what goes or ends is counted here.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{
    admission::quota::{self, STORAGE},
    api::Api,
    cache::{Change, Observer},
    queue::Queue,
};

/// Changes that come together are counted together: counting looks at everything that a quota is about.
const TOGETHER: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub struct ResourceQuotas {
    changed: Queue<String>,
    /// How many quotas there are in the namespaces that have any.
    have: Mutex<BTreeMap<String, usize>>,
}

impl Observer for ResourceQuotas {
    fn changed(&self, storage: &str, change: &Arc<Change>) {
        let Some(entry) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let namespace = entry.namespace();
        if namespace.is_empty() || matches!(storage, "events" | "leases") {
            return;
        }
        let mut have = self.have.lock().unwrap_or_else(PoisonError::into_inner);
        if storage == STORAGE {
            let count = have.entry(namespace.to_owned()).or_default();
            match (&change.old, &change.new) {
                (None, Some(_)) => *count += 1,
                (Some(_), None) => *count = count.saturating_sub(1),
                _ => {}
            }
            if *count == 0 {
                have.remove(namespace);
            }
        }
        if have.contains_key(namespace) {
            self.changed.add(namespace.to_owned());
        }
    }
}

impl ResourceQuotas {
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        loop {
            let namespace = self.changed.next().await;
            tokio::time::sleep(TOGETHER).await;
            if let Err(failure) = quota::recount(&api, &namespace).await
                && !super::is_passing(&failure)
            {
                tracing::warn!(namespace, %failure, "a namespace's quotas can't be counted");
            }
        }
    }
}
