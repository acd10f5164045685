//! Who is told what a kubelet does.

use std::{fmt, sync::Arc};

use k8s_openapi::api::core::v1::PodStatus;

use crate::{Desired, Happening, Level};

type Hears<T> = Arc<dyn Fn(&T) + Send + Sync>;
type HearsOfPod<T> = Arc<dyn Fn(&Desired, &T) + Send + Sync>;

/// Who is told what.
#[derive(Clone)]
pub struct Told {
    pub happened: Hears<Happening>,
    pub status: HearsOfPod<PodStatus>,
}

impl Default for Told {
    /// The log.
    fn default() -> Self {
        Self {
            happened: Arc::new(|it| match it.level {
                Level::Normal => tracing::info!(
                    pod = it.pod,
                    container = it.container,
                    reason = it.reason,
                    "{}",
                    it.message
                ),
                Level::Warning => tracing::warn!(
                    pod = it.pod,
                    container = it.container,
                    reason = it.reason,
                    "{}",
                    it.message
                ),
            }),
            status: Arc::new(|pod, status| {
                let phase = status.phase.as_deref().unwrap_or_default();
                tracing::debug!(pod = %pod.full_name(), phase, "status");
            }),
        }
    }
}

impl Told {
    /// What happens to the node itself.
    pub(crate) fn of_node(&self, level: Level, reason: &'static str, message: impl Into<String>) {
        (self.happened)(&Happening {
            level,
            reason,
            pod: String::new(),
            uid: String::new(),
            field: String::new(),
            container: String::new(),
            message: message.into(),
        });
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}
