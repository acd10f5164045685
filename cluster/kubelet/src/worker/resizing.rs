//! The worker's part in changing a pod's resources while it runs.

use std::{sync::Arc, time::Duration};

use super::Worker;
use crate::{
    Desired, Error, Level,
    execute::{self, Grace},
    node::{Inner, Node},
    observed::Observed,
    plan::RESIZE,
    resize::{self, Pending, Progress, Resized},
    store,
};

/// Between two tries at what others have now.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// What the pod wants, what it was given, and how that does.
#[derive(Debug)]
pub(super) struct Resizing {
    wanted: Arc<Desired>,
    resized: Resized,
    progress: Progress,
}

impl Resizing {
    /// As a kubelet before this one has left it.
    pub fn of(node: &Inner, wanted: &Arc<Desired>) -> Self {
        let kept = store::kept_resized(node, &wanted.uid);
        Self {
            resized: kept.unwrap_or_else(|| Resized::of(wanted)),
            wanted: wanted.clone(),
            progress: Progress::default(),
        }
    }

    pub fn wanted(&self) -> &Arc<Desired> {
        &self.wanted
    }

    pub fn resized(&self) -> &Resized {
        &self.resized
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    pub fn given(&self) -> Arc<Desired> {
        self.resized.given(&self.wanted)
    }

    /// Other wishes; what it is given meanwhile.
    pub fn want(&mut self, wanted: Arc<Desired>) -> Arc<Desired> {
        self.wanted = wanted;
        self.given()
    }

    pub fn is_deferred(&self) -> bool {
        matches!(self.progress.pending, Some(Pending::Deferred(_)))
    }

    /// What is known of containers beside what they were made with.
    pub fn fill(&mut self, node: &Inner, observed: &mut Observed) {
        let before = self.resized.clone();
        let all = &mut observed.containers;
        self.resized
            .forget(|id| all.iter().any(|seen| seen.id == id));
        for seen in all {
            if let Some(applied) = self.resized.applied.get(&seen.id) {
                seen.resources = Some(applied.clone());
            }
            seen.restarting = self.resized.restarting.contains(&seen.id);
        }
        if self.resized != before {
            self.keep(node);
        }
    }

    fn keep(&self, node: &Inner) {
        let uid = &self.wanted.uid;
        if node.pod_dir(uid).exists()
            && let Err(error) = store::keep_resized(node, uid, &self.resized)
        {
            tracing::warn!(pod = %self.wanted.full_name(), %error, "what the pod was given is not kept");
        }
    }
}

impl Worker {
    /// Gives the pod what it wants, where the node has it.
    pub(super) fn allocate(&mut self) {
        let resizing = &mut self.resizing;
        if !resize::is_wanted(&resizing.wanted, &self.pod) {
            resizing.progress.pending = None;
            return;
        }
        let others = self.node.view.all();
        let allocatable = self.node.allocatable();
        let pending = resize::refusal(&resizing.wanted, &self.pod, &others, &allocatable);
        if let Some(pending) = &pending {
            let is_news =
                resizing.progress.pending.as_ref().map(Pending::reason) != Some(pending.reason());
            if is_news {
                let reason = match pending {
                    Pending::Deferred(_) => "ResizeDeferred",
                    Pending::Infeasible(_) => "ResizeInfeasible",
                };
                self.node
                    .tell(Level::Warning, &self.pod, "", reason, pending.message());
            }
        } else {
            resizing.resized.allocate(&resizing.wanted);
            resizing.keep(&self.node);
            self.pod = resizing.given();
            self.failures.remove(RESIZE);
            resizing.progress.error = None;
        }
        resizing.progress.pending = pending;
    }

    /// Changes what containers that run have.
    pub(super) async fn resize(&mut self, ids: &[String], observed: &Observed) {
        let (node, pod) = (self.node.clone(), self.pod.clone());
        let resizing = &mut self.resizing;
        let keep: Node = node.clone();
        let done = execute::resize(&node, &pod, observed, ids, |id, given| {
            resizing.resized.applied.insert(id.to_owned(), given);
            resizing.keep(&keep);
        })
        .await;
        match done {
            Ok(()) => {
                self.failures.remove(RESIZE);
                self.backoffs.forget(&format!("{RESIZE}/Error"));
                self.resizing.progress.error = None;
                let message = "The pod has the resources that it was given";
                node.tell(Level::Normal, &pod, "", "ResizeCompleted", message);
            }
            Err(error) => {
                let message = error.to_string();
                if self.resizing.progress.error.as_ref() != Some(&message) {
                    node.tell(Level::Warning, &pod, "", "ResizeError", &message);
                }
                self.resizing.progress.error = Some(message.clone());
                self.failed(RESIZE, "Error", message, None);
            }
        }
    }

    /// Ends a container that starts again with what it was given.
    pub(super) async fn restart(
        &mut self,
        id: &str,
        name: &str,
        observed: &Observed,
    ) -> Result<(), Error> {
        let Some(seen) = observed.containers.iter().find(|seen| seen.id == id) else {
            return Ok(());
        };
        // first, so that a kubelet that is killed in between starts it again
        self.resizing.resized.restarting.insert(id.to_owned());
        self.resizing.keep(&self.node);
        let message = format!("Container {name} resize requires restart");
        self.node
            .tell(Level::Normal, &self.pod, name, "Killing", message);
        let ips = observed
            .newest_sandbox()
            .map(|it| it.ips.clone())
            .unwrap_or_default();
        let grace = Grace::now(self.pod.grace());
        execute::stop_one(&self.node, &self.pod, seen, &ips, grace).await
    }
}
