//! What a pod's containers need before they are: the pod on disk, what it names, its volumes.

use std::time::{Duration, Instant};

use super::{CONFIG_RETRY, TOKEN_RETRY, Worker, now};
use crate::{
    Error, Level,
    plan::{Over, SANDBOX},
    store,
    volume::{self, Bound},
};

/// Upstream's: how late a change of a ConfigMap may reach a file.
const REFRESH_VOLUMES: Duration = Duration::from_secs(60);
const FAILED_MOUNT: &str = "FailedMount";

impl Worker {
    /// The pod on disk, and its volumes: new, or brought up to date now and then.
    pub(super) async fn prepare(&mut self) -> Result<(), Error> {
        // Of a pod that is over nothing is made again.
        if self.before.as_ref().and_then(Over::told).is_some() {
            return Ok(());
        }
        let is_due = match self.volumes_made {
            None => true,
            Some(made) => {
                let after = match self.node.objects.lacks_token(&self.pod.uid) {
                    true => TOKEN_RETRY,
                    false => REFRESH_VOLUMES,
                };
                volume::may_change(&self.pod) && made.elapsed() >= after
            }
        };
        if !is_due
            || self
                .failures
                .get(SANDBOX)
                .is_some_and(|failure| failure.retry_at > now())
        {
            return Ok(());
        }
        let is_first = self.volumes_made.is_none();
        if let Err(message) = self.node.objects.fetch(&self.pod).await {
            self.lacks("FailedCreatePodSandBox", message);
            return Ok(());
        }
        if is_first {
            let (node, pod, turn) = (self.node.clone(), self.pod.clone(), self.turn.clone());
            let resized = self.resizing.resized().clone();
            let kept = tokio::task::spawn_blocking(move || {
                turn.make(|| {
                    store::keep_pod(&node, &pod)?;
                    store::keep_resized(&node, &pod.uid, &resized)
                })
            });
            if let Ok(kept) = kept.await {
                kept?;
            }
        }
        let claims = match self.claims().await {
            Ok(claims) => claims,
            Err(message) => {
                self.lacks(FAILED_MOUNT, message);
                return Ok(());
            }
        };
        let (node, pod, turn) = (self.node.clone(), self.pod.clone(), self.turn.clone());
        let made = tokio::task::spawn_blocking(move || {
            turn.make(|| volume::set_up(&node, &pod, &claims, &turn))
        });
        match made.await {
            Ok(Ok(())) => {
                self.volumes_made = Some(Instant::now());
                self.failures.remove(SANDBOX);
            }
            // What is there already is not taken away because it can't be brought up to date.
            Ok(Err(error)) if !is_first => {
                tracing::warn!(pod = %self.pod.full_name(), %error, "a volume is not up to date");
                self.volumes_made = Some(Instant::now());
            }
            Ok(Err(error)) => {
                self.failed(SANDBOX, FAILED_MOUNT, error.to_string(), Some(CONFIG_RETRY));
            }
            Err(error) => tracing::error!(%error, "a volume's work broke"),
        }
        Ok(())
    }

    /// What its claims come to: as they were kept, which outlives a kubelet and needs no server; or as a server says.
    async fn claims(&self) -> Result<Vec<Bound>, String> {
        match store::kept_claims(&self.node, &self.pod.uid) {
            Some(kept) => Ok(kept),
            None => self.node.objects.claims(&self.pod).await,
        }
    }

    /// Something that it refers to is not there (CM-06), or a claim of it is not bound: it is looked for again.
    fn lacks(&mut self, reason: &'static str, message: String) {
        self.node
            .tell(Level::Warning, &self.pod, "", reason, &message);
        self.failed(SANDBOX, reason, message, Some(CONFIG_RETRY));
    }
}
