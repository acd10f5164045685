//! What a shim does once it has nothing to do. Most of its life it waits for the end of a container, and there is one a pod: what it holds
//! meanwhile is held once for each pod of the node.

use std::time::Duration;

use berth_kernel::heap;
use tokio::{sync::watch, time::sleep};

/// After a change of the pod: its containers start one after another, and each leaves a spec's worth of free memory behind.
const QUIET: Duration = Duration::from_millis(200);

/// Gives the heap's free pages back after each change of the pod, at most once in [`QUIET`]. For the life of the shim.
pub async fn tidy(mut generation: watch::Receiver<u64>) {
    while generation.changed().await.is_ok() {
        sleep(QUIET).await;
        generation.mark_unchanged();
        heap::give_back();
    }
}
