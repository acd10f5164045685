//! A pod's end.

use std::{pin::pin, time::Duration};

use super::{AGAIN, Worker, probing::Probing};
use crate::{
    Error, Level,
    execute::{self, Grace},
    happening::REMOVED,
};

/// Upstream's: an eviction has the pod's grace and half of it, and this at least, before it is told to be late.
const LATE_AT_LEAST: Duration = Duration::from_secs(10);

impl Worker {
    /// Ends the pod and takes it away; tries until it is gone.
    pub(super) async fn end(&mut self, grace: Grace) {
        // nobody is asked how it feels while it ends
        self.probing = Probing::default();
        let mut said = String::new();
        loop {
            match self.end_once(grace).await {
                Ok(()) => return,
                Err(error) => {
                    let message = format!("error killing pod: {error}");
                    // once, however often it is tried; a runtime that is away is the node's trouble
                    if said != message && !error.is_unanswered() {
                        self.node
                            .tell(Level::Warning, &self.pod, "", "FailedKillPod", &message);
                        said = message;
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn end_once(&mut self, grace: Grace) -> Result<(), Error> {
        let observed = self.node.runtime.observe(&self.pod.uid).await?;
        execute::end(&self.node, &self.pod, &observed, grace).await?;
        let mut observed = self.node.runtime.observe(&self.pod.uid).await?;
        self.messages.fill(&self.node, &self.pod, &mut observed);
        self.tell_the_end(&observed);
        execute::remove(&self.node, &self.pod, &observed, &self.turn).await?;
        self.node
            .tell(Level::Normal, &self.pod, "", REMOVED, "The pod is gone");
        Ok(())
    }

    /// The end of an evicted pod: told to be late where it is.
    pub(super) async fn in_time<T>(&self, grace: Duration, ends: impl Future<Output = T>) -> T {
        let mut ends = pin!(ends);
        let limit = (grace + grace / 2).max(LATE_AT_LEAST);
        if let Ok(ended) = tokio::time::timeout(limit, &mut ends).await {
            return ended;
        }
        let message = "Container runtime did not kill the pod within specified grace period.";
        self.node.tell(
            Level::Warning,
            &self.pod,
            "",
            "ExceededGracePeriod",
            message,
        );
        ends.await
    }
}
