//! The lists in parts: for a node whose list would not fit into one message (gRPC's clients take 4 or 16 MiB).

use tokio_stream::{Stream, iter};
use tonic::Status;

/// Entries of one part: with the labels and annotations of a usual pod some hundred KiB, and below 4 MiB with the longest that Kubernetes
/// allows (256 KiB of annotations a pod is what a few have, not all).
const PART: usize = 64;

/// As [`PART`], of pods with the metrics of their containers: some 30 KiB a container.
const PART_OF_METRICS: usize = 8;

/// A list, cut into parts. An empty list has none.
pub fn parts<T, R>(
    items: Vec<T>,
    part: impl Fn(Vec<T>) -> R + Send + 'static,
) -> impl Stream<Item = Result<R, Status>> + Send
where
    T: Send + 'static,
    R: Send + 'static,
{
    parts_of(PART, items, part)
}

/// [`parts`] of pods' metrics.
pub fn parts_of_metrics<T, R>(
    items: Vec<T>,
    part: impl Fn(Vec<T>) -> R + Send + 'static,
) -> impl Stream<Item = Result<R, Status>> + Send
where
    T: Send + 'static,
    R: Send + 'static,
{
    parts_of(PART_OF_METRICS, items, part)
}

fn parts_of<T, R>(
    length: usize,
    items: Vec<T>,
    part: impl Fn(Vec<T>) -> R + Send + 'static,
) -> impl Stream<Item = Result<R, Status>> + Send
where
    T: Send + 'static,
    R: Send + 'static,
{
    let mut items = items.into_iter();
    iter(std::iter::from_fn(move || {
        let some: Vec<T> = items.by_ref().take(length).collect();
        (!some.is_empty()).then(|| Ok(part(some)))
    }))
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn every_entry_comes_once_in_its_order() {
        for length in [0, 1, PART, PART + 1, 3 * PART] {
            let all: Vec<usize> = (0..length).collect();
            let parts: Vec<Vec<usize>> = parts(all.clone(), |some| some)
                .map(Result::unwrap)
                .collect()
                .await;
            assert!(parts.iter().all(|part| (1..=PART).contains(&part.len())));
            assert_eq!(parts.concat(), all);
        }
    }
}
