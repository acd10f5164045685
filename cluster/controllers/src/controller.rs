use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Context, Error, Key, Queue};

/// A key that is to be looked at again at once waits so long: one that never settles must not take a processor whole.
const SOONEST: Duration = Duration::from_millis(20);

/// What comes after a key was worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing, until something changes.
    Settled,
    /// It is looked at again then, if nothing changes before.
    After(Duration),
}

/// Who has no account of its own writes as the manager.
pub(crate) const MANAGER: &str = "";

/// Keeps what one kind of objects says (CP-01).
pub(crate) trait Controller: Send + Sync + Sized + 'static {
    /// As upstream's `--controllers` names it.
    const NAME: &'static str;
    /// The ServiceAccount of `kube-system` that it writes as: the default roles name what each may do. Or [`MANAGER`].
    const ACCOUNT: &'static str;
    /// Keys that are worked at the same time.
    const WORKERS: usize = 5;

    /// Attaches its handlers to the caches that it needs. Handlers only put keys into the queue (CP-06).
    fn new(context: Arc<Context>, queue: Queue) -> Self;

    /// Brings what `key` names nearer to what it says. Called for a key by one worker at a time (CP-07); it reads the newest objects (CP-08), and what it did before
    /// hangs on nothing that it remembers (CP-12).
    ///
    /// # Errors
    /// The key is worked again later (CP-09, CP-11).
    fn reconcile(&self, key: &Key) -> impl Future<Output = Result<Next, Error>> + Send;
}

/// A controller that has attached its handlers, and will work once the caches have been listed.
pub(crate) type Ready = BoxFuture<'static, ()>;

/// Works until `ends`; what is under way then is given up between two writes: whoever works the key next goes on.
pub(crate) fn ready<C: Controller>(context: &Context, ends: &CancellationToken) -> Ready {
    let queue = Queue::default();
    let controller = Arc::new(C::new(context.of(C::ACCOUNT), queue.clone()));
    let ends = ends.clone();
    async move {
        let mut workers = JoinSet::new();
        for _ in 0..C::WORKERS {
            workers.spawn(work(controller.clone(), queue.clone()));
        }
        ends.cancelled().await;
        workers.shutdown().await;
    }
    .boxed()
}

async fn work<C: Controller>(controller: Arc<C>, queue: Queue) {
    loop {
        let key = queue.next().await;
        // its answers may all be there: then nothing else would let others have a turn
        tokio::task::yield_now().await;
        let reconciled = AssertUnwindSafe(controller.reconcile(&key)).catch_unwind();
        let why = match reconciled.await {
            Ok(Ok(next)) => {
                queue.forget(&key);
                if let Next::After(wait) = next {
                    queue.add_after(key.clone(), wait.max(SOONEST));
                }
                None
            }
            // another writer was faster: nothing is wrong
            Ok(Err(error)) if error.is_conflict() => {
                tracing::debug!(controller = C::NAME, %key, %error, "worked again");
                queue.add_failed(key.clone());
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it panicked, which is a bug; what it said is above".into()),
        };
        if let Some(why) = why {
            let wait = queue.add_failed(key.clone());
            tracing::warn!(controller = C::NAME, %key, ?wait, why, "worked again later");
        }
        queue.done(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Never settles, and never waits for anything.
    struct Restless(AtomicUsize);

    impl Controller for Restless {
        const NAME: &'static str = "restless";
        const ACCOUNT: &'static str = "restless-controller";

        fn new(_: Arc<Context>, _: Queue) -> Self {
            unreachable!("made by hand")
        }

        async fn reconcile(&self, _: &Key) -> Result<Next, Error> {
            match self.0.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => Ok(Next::After(Duration::ZERO)),
                1 => Err(Error::Other("it fails".into())),
                _ => panic!("it panics"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_never_settles_is_worked_now_and_then_and_others_have_their_turn() {
        let (queue, restless) = (Queue::default(), Arc::new(Restless(AtomicUsize::default())));
        queue.add(Key::new("default", "it"));
        let worker = tokio::spawn(work(restless.clone(), queue));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let times = restless.0.load(Ordering::Relaxed);
        assert!((10..=150).contains(&times), "{times} times in a second");
        worker.abort();
        assert!(worker.await.is_err_and(|error| error.is_cancelled()));
    }
}
