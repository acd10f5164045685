//! What a shim does once it has nothing to do. Most of its life it waits for the end of a container, and there is one a pod: what it holds
//! meanwhile is held once for each pod of the node.

use std::{sync::Arc, time::Duration};

use berth_kernel::{code, heap, stack};
use futures_util::FutureExt;
use tokio::{
    select,
    sync::{Notify, watch},
    time::sleep,
};

use crate::stream;

/// Without a call and without a change of the pod: its containers start one after another, and each leaves a spec's worth of free memory
/// behind.
const QUIET: Duration = Duration::from_millis(200);
/// A shim that is never left alone for so long is tidied all the same, after as many times [`QUIET`].
const MAX_WAITS: u32 = 10;

/// After each call (`activity`) and change of the pod, once it is quiet again, gives back what nobody needs until the next: the free pages of
/// the heap, the stack below this task, the buffers of the streams, and code, which the page cache holds. For the life of the shim.
pub async fn tidy(mut generation: watch::Receiver<u64>, activity: Arc<Notify>) {
    loop {
        select! {
            changed = generation.changed() => if changed.is_err() { return },
            () = activity.notified() => {}
        }
        for _ in 0..MAX_WAITS {
            sleep(QUIET).await;
            if activity.notified().now_or_never().is_none() {
                break;
            }
        }
        generation.mark_unchanged();
        stream::give_back();
        heap::give_back();
        stack::give_back();
        code::give_back();
    }
}
