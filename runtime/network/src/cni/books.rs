//! What is written down, and when: before plugins are asked, after they have answered, and once nothing is left of it.

use std::{path::Path, sync::Arc};

use berth_state::{Object, record::RecordError};

use super::{
    CniError, Inner,
    record::{self, Record},
};
use crate::Error;

impl Inner {
    pub(super) async fn read(self: &Arc<Self>, pod_id: &str) -> Result<Option<Record>, Error> {
        let (dir, id) = (self.config.record_dir.clone(), pod_id.to_owned());
        self.blocking(pod_id, move || Record::read(&dir, &id)).await
    }

    /// Writes down what is about to be asked of the plugins.
    pub(super) async fn begin(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.clone(), record.clone());
        let pod_id = record.request.pod_id.clone();
        self.blocking(&pod_id.clone(), move || {
            let dir = &inner.config.record_dir;
            let at = |source| failed_at(dir, &pod_id, source);
            let object = Object::Cni(record::path(dir, &pod_id));
            inner.ledger.intend(&pod_id, &object).map_err(at)?;
            berth_failpoint::site!("network.cni.intended").map_err(at)?;
            record.write(dir)?;
            berth_failpoint::site!("network.cni.recorded").map_err(at)
        })
        .await
    }

    /// Writes down what they answered.
    pub(super) async fn complete(self: &Arc<Self>, record: &Record) -> Result<(), Error> {
        let (inner, record) = (self.clone(), record.clone());
        let pod_id = record.request.pod_id.clone();
        self.blocking(&pod_id.clone(), move || {
            let dir = &inner.config.record_dir;
            let at = |source| failed_at(dir, &pod_id, source);
            berth_failpoint::site!("network.cni.added").map_err(at)?;
            record.write(dir)?;
            berth_failpoint::site!("network.cni.attached").map_err(at)
        })
        .await
    }

    pub(super) async fn strike(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        let (inner, id) = (self.clone(), pod_id.to_owned());
        self.blocking(pod_id, move || {
            let dir = &inner.config.record_dir;
            let object = Object::Cni(record::path(dir, &id));
            inner
                .ledger
                .strike(&id, &object)
                .map_err(|source| failed_at(dir, &id, source))
        })
        .await
    }

    /// Files are synced: not on a thread that answers others.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        pod_id: &str,
        work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
    ) -> Result<T, Error> {
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| Error::Worker {
            pod_id: pod_id.to_owned(),
            why: e.to_string(),
        })?;
        done.map_err(|source| {
            let pod_id = pod_id.to_owned();
            CniError::Record { pod_id, source }.into()
        })
    }
}

pub(super) fn failed_at(dir: &Path, pod_id: &str, source: std::io::Error) -> RecordError {
    RecordError::Io {
        what: "write down",
        path: record::path(dir, pod_id),
        source,
    }
}
