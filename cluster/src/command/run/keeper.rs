//! The kubelet of one pod.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use berth_kubelet::{Config, Desired, Happening, Kubelet, Objects, Runtime, Told};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::tell::{Failure, Teller};
use crate::error::Error;

/// Keeps the pod until it is let go or removed.
#[derive(Debug)]
pub struct Keeper {
    pub pod: Arc<Desired>,
    /// The manifest, for messages.
    file: String,
    kubelet_dir: PathBuf,
    desired: watch::Sender<Option<Vec<Arc<Desired>>>>,
    ends: CancellationToken,
    kubelet: JoinHandle<()>,
    status: watch::Receiver<PodStatus>,
    failure: watch::Receiver<Option<Failure>>,
}

impl Keeper {
    pub async fn start(
        pod: Arc<Desired>,
        config: Config,
        runtime: Runtime,
        objects: Objects,
        file: String,
    ) -> Result<Self, Error> {
        let (statuses, status) = watch::channel(PodStatus::default());
        let (failures, failure) = watch::channel(None);
        let kubelet_dir = config.kubelet_dir.clone();
        let told = told(statuses, failures);
        let kubelet = Kubelet::start(config, runtime, objects, told).await?;
        let (desired, receiver) = watch::channel(Some(vec![pod.clone()]));
        let ends = CancellationToken::new();
        Ok(Self {
            pod,
            file,
            kubelet_dir,
            desired,
            kubelet: tokio::spawn(kubelet.run(receiver, ends.clone())),
            ends,
            status,
            failure,
        })
    }

    /// Waits until every container has started once.
    ///
    /// # Errors
    /// What kept one from it. An init container that is to be tried again has not failed.
    pub async fn up(&mut self) -> Result<(), Error> {
        loop {
            if let Some(Failure { what, why }) = self.failure.borrow_and_update().clone() {
                return Err(Error::NotUp {
                    file: self.file.clone(),
                    what,
                    why,
                });
            }
            let status = self.status.borrow_and_update().clone();
            if let Some(error) = init_failed(&status) {
                return Err(error);
            }
            if !matches!(status.phase.as_deref(), None | Some("Pending")) {
                return Ok(());
            }
            let changed = tokio::select! {
                changed = self.status.changed() => changed,
                changed = self.failure.changed() => changed,
            };
            changed.map_err(|_| broken())?;
        }
    }

    /// Waits until nothing runs in the pod and nothing more will; how it ended.
    pub async fn over(&mut self) -> Result<PodStatus, Error> {
        let status = self.status.wait_for(is_over).await;
        status.map(|status| status.clone()).map_err(|_| broken())
    }

    /// Leaves the pod as it is.
    pub async fn let_go(self) {
        self.ends.cancel();
        let _ = self.kubelet.await;
    }

    /// Ends the pod within its grace period and removes it, with its volumes and logs.
    pub async fn remove(self) -> Result<(), Error> {
        let _ = self.desired.send(Some(Vec::new()));
        drop(self.desired);
        let _ = self.kubelet.await;
        // The kubelet has taken the pod's own directory away; of its own, only what is empty goes.
        let failed = |path: PathBuf, done: io::Result<()>| match done {
            // somebody else is at it, too
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            done => done.map_err(|source| Error::File {
                what: "remove",
                path,
                source,
            }),
        };
        let lock = self.kubelet_dir.join("berth-kubelet.lock");
        let removed = fs::remove_file(&lock);
        failed(lock, removed)?;
        for dir in [self.kubelet_dir.join("pods"), self.kubelet_dir] {
            let removed = fs::remove_dir(&dir);
            failed(dir, removed)?;
        }
        Ok(())
    }
}

fn told(statuses: watch::Sender<PodStatus>, failures: watch::Sender<Option<Failure>>) -> Told {
    let teller = Arc::new(Mutex::new(Teller::on_stderr()));
    let of_happenings = teller.clone();
    Told {
        happened: Arc::new(move |it: &Happening| {
            let mut teller = of_happenings.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(failure) = teller.happened(it) {
                // the first is the reason, later ones may be its consequence
                failures.send_if_modified(|first| {
                    let is_first = first.is_none();
                    if is_first {
                        *first = Some(failure);
                    }
                    is_first
                });
            }
        }),
        status: Arc::new(move |_: &Desired, status: &PodStatus| {
            let mut teller = teller.lock().unwrap_or_else(PoisonError::into_inner);
            teller.status(status);
            statuses.send_replace(status.clone());
        }),
    }
}

/// Sidecars end after the others, and who stopped the sandbox may not have stopped the containers yet.
fn is_over(status: &PodStatus) -> bool {
    let lists = [&status.init_container_statuses, &status.container_statuses];
    let mut all = lists.into_iter().flatten().flatten();
    let runs = |one: &ContainerStatus| one.state.as_ref().is_some_and(|it| it.running.is_some());
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) && !all.any(runs)
}

/// A pod that failed before a container of its own was there.
fn init_failed(status: &PodStatus) -> Option<Error> {
    let has_begun = |one: &ContainerStatus| one.container_id.is_some();
    let mut mains = status.container_statuses.iter().flatten();
    if status.phase.as_deref() != Some("Failed") || mains.any(has_begun) {
        return None;
    }
    let inits = status.init_container_statuses.iter().flatten();
    inits.into_iter().find_map(|one| {
        let ended = one.state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then(|| Error::InitFailed {
            name: one.name.clone(),
            code: ended.exit_code,
            reason: ended
                .message
                .clone()
                .or_else(|| ended.reason.clone())
                .unwrap_or_default(),
            log: format!("{}/{}.log", one.name, one.restart_count).into(),
        })
    })
}

fn broken() -> Error {
    Error::Invalid {
        what: "the pod is not kept any more".into(),
        why: "its worker has broken; this is a bug".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(phase: &str, init: Value, main: Value) -> PodStatus {
        let one = |name: &str, state: Value| {
            let id = (!state["waiting"].is_object()).then_some("berth://1");
            json!({"name": name, "image": "", "imageID": "", "ready": false, "restartCount": 2, "containerID": id, "state": state})
        };
        let status = json!({"phase": phase, "initContainerStatuses": [one("i", init)], "containerStatuses": [one("a", main)]});
        serde_json::from_value(status).unwrap()
    }

    fn ended(code: i32) -> Value {
        json!({"terminated": {"exitCode": code, "reason": "Error"}})
    }

    #[test]
    fn a_pod_is_over_once_its_last_sidecar_has_ended() {
        let running = || json!({"running": {}});
        for (phase, sidecar, main, over) in [
            ("Running", running(), ended(0), false),
            ("Succeeded", running(), ended(0), false),
            ("Succeeded", ended(0), ended(0), true),
            ("Failed", ended(0), running(), false),
            ("Failed", ended(0), json!({"waiting": {}}), true),
        ] {
            assert_eq!(is_over(&status(phase, sidecar, main)), over, "{phase}");
        }
    }

    #[test]
    fn an_init_container_has_failed_where_no_other_came_after_it() {
        let waiting = || json!({"waiting": {"reason": "PodInitializing"}});
        let told = |phase: &str, init, main| {
            init_failed(&status(phase, init, main)).map(|error| error.to_string())
        };
        assert_eq!(
            told("Failed", ended(9), waiting()).as_deref(),
            Some("init container i ended with exit code 9: Error")
        );
        // it is tried again
        assert_eq!(told("Pending", ended(9), waiting()), None);
        assert_eq!(told("Failed", ended(0), ended(3)), None);
        assert_eq!(told("Failed", ended(137), ended(3)), None);
    }
}
