//! What happens to pods, as events of the API.

use berth_recorder::Teller;
use k8s_openapi::api::core::v1::ObjectReference;

use super::Cluster;
use crate::{Happening, Level};

/// Takes what happens, and never waits.
#[derive(Debug, Clone)]
pub struct Recorder {
    inner: berth_recorder::Recorder,
    by: Teller,
}

impl Recorder {
    /// With the task that writes; it ends with the last recorder.
    pub fn new(cluster: Cluster) -> (Self, impl Future<Output = ()>) {
        let (inner, writes) = berth_recorder::Recorder::new(cluster.client);
        let by = Teller {
            component: "kubelet".into(),
            host: cluster.node,
        };
        (Self { inner, by }, writes)
    }

    pub fn record(&self, happening: &Happening) {
        let Some((namespace, name)) = happening.pod.split_once('/') else {
            return;
        };
        let field = Some(happening.field.clone()).filter(|field| !field.is_empty());
        self.inner.record(berth_recorder::Happening {
            level: match happening.level {
                Level::Normal => berth_recorder::Level::Normal,
                Level::Warning => berth_recorder::Level::Warning,
            },
            reason: happening.reason.to_owned(),
            message: happening.message.clone(),
            about: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                uid: Some(happening.uid.clone()),
                field_path: field,
                ..ObjectReference::default()
            },
            by: self.by.clone(),
        });
    }
}
