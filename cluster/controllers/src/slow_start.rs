//! Many of the same act: one, two, four … at a time, and no more of them once one has failed.
//!
//! What fails for one most likely fails for all (a quota, an admission): so it is asked for few times, not for all of them.

use std::future::Future;

use futures_util::{StreamExt, stream};

use crate::Error;

/// In one reconciliation; the rest comes with the next.
pub(crate) const MOST: usize = 500;
/// Of one object: requests beyond that wait for each other in the server anyway.
const IN_FLIGHT: usize = 64;

/// Acts for each number below `count`, `MOST` at most. The first error of a batch, once all of the batch are done.
pub(crate) async fn slow_start<A, F>(count: usize, act: A) -> Result<(), Error>
where
    A: Fn(usize) -> F,
    F: Future<Output = Result<(), Error>>,
{
    let count = count.min(MOST);
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let until = count.min(done + batch);
        let results: Vec<_> = stream::iter(done..until)
            .map(&act)
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        results.into_iter().collect::<Result<(), Error>>()?;
        done = until;
        batch *= 2;
    }
    Ok(())
}

/// All of them, whatever becomes of one. The first error.
pub(crate) async fn each<T, A, F>(items: impl IntoIterator<Item = T>, act: A) -> Result<(), Error>
where
    A: FnMut(T) -> F,
    F: Future<Output = Result<(), Error>>,
{
    let results: Vec<_> = stream::iter(items.into_iter().take(MOST))
        .map(act)
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn tries(count: usize, fails_from: usize) -> (usize, bool) {
        let tried = AtomicUsize::new(0);
        let result = slow_start(count, |at| {
            tried.fetch_add(1, Ordering::Relaxed);
            async move {
                if at < fails_from {
                    Ok(())
                } else {
                    Err(Error::Other("no room".into()))
                }
            }
        })
        .await;
        (tried.into_inner(), result.is_ok())
    }

    #[tokio::test]
    async fn what_fails_is_not_tried_for_all() {
        for (count, fails_from, expected) in [
            (0, 0, (0, true)),
            (1, 9, (1, true)),
            (100, 1000, (100, true)),
            (10_000, 100_000, (MOST, true)),
            (100, 0, (1, false)),
            (100, 2, (3, false)),
            (100, 3, (7, false)),
        ] {
            assert_eq!(
                tries(count, fails_from).await,
                expected,
                "{count} {fails_from}"
            );
        }
    }
}
