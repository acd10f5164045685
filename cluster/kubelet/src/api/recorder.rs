//! What happens to pods and to the node, as events of the API.

use berth_recorder::Teller;
use k8s_openapi::api::core::v1::ObjectReference;

use super::Cluster;
use crate::{Happening, Level, happening::REMOVED};

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
        // its object is gone by then: that is for who keeps a pod by hand
        if happening.reason == REMOVED {
            return;
        }
        self.inner.record(berth_recorder::Happening {
            level: match happening.level {
                Level::Normal => berth_recorder::Level::Normal,
                Level::Warning => berth_recorder::Level::Warning,
            },
            reason: happening.reason.to_owned(),
            message: happening.message.clone(),
            about: self.about(happening),
            by: self.by.clone(),
        });
    }

    fn about(&self, happening: &Happening) -> ObjectReference {
        let (kind, namespace, name, uid) = match happening.pod.split_once('/') {
            Some((namespace, name)) => ("Pod", Some(namespace.to_owned()), name, &happening.uid),
            // upstream's: kubectl describe looks for those of a node by its name
            None => ("Node", None, self.by.host.as_str(), &self.by.host),
        };
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some(kind.into()),
            namespace,
            name: Some(name.to_owned()),
            uid: Some(uid.clone()),
            field_path: Some(happening.field.clone()).filter(|field| !field.is_empty()),
            ..ObjectReference::default()
        }
    }
}
