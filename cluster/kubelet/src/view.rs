//! The pods that the node has now, for those who only look: the server, the cluster.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

use crate::Desired;

/// By uid. Cloned, it is the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct View(Arc<RwLock<BTreeMap<String, Shown>>>);

#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub pod: Arc<Desired>,
    /// The last that was told of it.
    pub status: PodStatus,
}

impl View {
    pub fn put(&self, pod: Arc<Desired>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&pod.uid) {
            Some(shown) => shown.pod = pod,
            None => {
                let status = pod.pod.status.clone().unwrap_or_default();
                all.insert(pod.uid.clone(), Shown { pod, status });
            }
        }
    }

    pub fn tell(&self, uid: &str, status: &PodStatus) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = all.get_mut(uid) {
            shown.status = status.clone();
        }
    }

    pub fn take(&self, uid: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    pub fn find(&self, namespace: &str, name: &str) -> Option<Shown> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.values()
            .find(|shown| shown.pod.namespace == namespace && shown.pod.name == name)
            .cloned()
    }

    /// Whether it was told that it has ended, and that nothing of it runs.
    pub fn is_over(&self, uid: &str) -> bool {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.get(uid).is_some_and(|shown| {
            let status = &shown.status;
            let lists = [&status.container_statuses, &status.init_container_statuses];
            let mut containers = lists.into_iter().flatten().flatten();
            matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"))
                && !containers.any(|one| one.state.as_ref().is_some_and(|it| it.running.is_some()))
        })
    }

    pub fn all(&self) -> Vec<Shown> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }
}

impl Shown {
    /// The pod as the API has it, with what is known here.
    pub fn whole(&self) -> Pod {
        Pod {
            status: Some(self.status.clone()),
            ..self.pod.pod.clone()
        }
    }

    pub fn container(&self, name: &str) -> Option<&ContainerStatus> {
        [
            &self.status.container_statuses,
            &self.status.init_container_statuses,
            &self.status.ephemeral_container_statuses,
        ]
        .into_iter()
        .flat_map(|list| list.iter().flatten())
        .find(|one| one.name == name)
    }

    /// The runtime's id of a container that runs.
    pub fn running_id(&self, name: &str) -> Option<&str> {
        let one = self.container(name)?;
        one.state.as_ref()?.running.as_ref()?;
        one.container_id.as_deref()?.rsplit('/').next()
    }
}
