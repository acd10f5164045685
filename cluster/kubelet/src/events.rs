//! What changed in the runtime: by its events where it has them, and by a look at its lists now and then, which is all that there is where it
//! has none.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tonic::Code;

use crate::{Error, keys, runtime::Runtime};

/// With events: a safety net. Without: how late a change may be seen, as upstream's.
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(30);
const RELIST_WITHOUT: Duration = Duration::from_secs(1);
/// Between two tries at a runtime that went away.
const AGAIN: Duration = Duration::from_millis(500);

/// Something of the pod with this uid is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed(pub String);

/// Tells until nobody listens.
pub(crate) async fn watch(runtime: Runtime, changed: mpsc::Sender<Changed>) {
    let mut seen = Seen::default();
    let mut has_events = true;
    let mut said = None;
    while !changed.is_closed() {
        let events = match has_events {
            true => runtime.events().await.map(Some),
            false => Ok(None),
        };
        let ended = match events {
            Ok(Some(stream)) => follow(&runtime, stream, &mut seen, &changed).await,
            Ok(None) => look(&runtime, &mut seen, &changed).await,
            Err(Error::Rpc {
                code: Code::Unimplemented,
                ..
            }) => {
                tracing::info!("the runtime has no events: it is asked every second");
                has_events = false;
                continue;
            }
            Err(error) => Err(error),
        };
        let error = ended.err().map(|error| error.to_string());
        let wait = match &error {
            None if has_events => AGAIN,
            None => RELIST_WITHOUT,
            // once, however long it is away
            Some(_) if error == said => AGAIN,
            Some(error) => {
                tracing::warn!(error, "the runtime does not answer");
                AGAIN
            }
        };
        said = error;
        tokio::time::sleep(wait).await;
    }
}

async fn follow(
    runtime: &Runtime,
    mut stream: tonic::Streaming<berth_proto::cri::ContainerEventResponse>,
    seen: &mut Seen,
    changed: &mpsc::Sender<Changed>,
) -> Result<(), Error> {
    // What happened before there was a stream.
    look(runtime, seen, changed).await?;
    let mut next = Instant::now() + RELIST_WITH_EVENTS;
    loop {
        let event = tokio::select! {
            event = stream.message() => event.map_err(Error::rpc("tell of events"))?,
            () = tokio::time::sleep_until(next) => {
                look(runtime, seen, changed).await?;
                next = Instant::now() + RELIST_WITH_EVENTS;
                continue;
            }
        };
        let Some(event) = event else {
            return Ok(());
        };
        let metadata = event.pod_sandbox_status.and_then(|status| status.metadata);
        if let Some(metadata) = metadata
            && changed.send(Changed(metadata.uid)).await.is_err()
        {
            return Ok(());
        }
    }
}

/// The state of everything, by the pod's uid, at the last look.
#[derive(Debug, Default)]
struct Seen(HashMap<String, BTreeMap<String, i32>>);

/// Looks at the lists, and tells of each pod that differs from the last time.
async fn look(
    runtime: &Runtime,
    seen: &mut Seen,
    changed: &mpsc::Sender<Changed>,
) -> Result<(), Error> {
    let mut now: HashMap<String, BTreeMap<String, i32>> = HashMap::new();
    for sandbox in runtime.sandboxes(None).await? {
        if let Some(metadata) = sandbox.metadata {
            now.entry(metadata.uid)
                .or_default()
                .insert(sandbox.id, sandbox.state);
        }
    }
    for container in runtime.containers(None).await? {
        if let Some(uid) = container.labels.get(keys::POD_UID) {
            now.entry(uid.clone())
                .or_default()
                .insert(container.id, container.state);
        }
    }
    for uid in differing(&seen.0, &now) {
        if changed.send(Changed(uid)).await.is_err() {
            break;
        }
    }
    seen.0 = now;
    Ok(())
}

fn differing(
    before: &HashMap<String, BTreeMap<String, i32>>,
    now: &HashMap<String, BTreeMap<String, i32>>,
) -> Vec<String> {
    let gone = before.keys().filter(|uid| !now.contains_key(*uid));
    let other = now
        .iter()
        .filter(|(uid, states)| before.get(*uid) != Some(states))
        .map(|(uid, _)| uid);
    let mut all: Vec<String> = gone.chain(other).cloned().collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_differ_are_told_of_and_no_others() {
        let states = |list: &[(&str, &[(&str, i32)])]| -> HashMap<String, BTreeMap<String, i32>> {
            list.iter()
                .map(|(uid, states)| {
                    (
                        uid.to_string(),
                        states
                            .iter()
                            .map(|(id, state)| (id.to_string(), *state))
                            .collect(),
                    )
                })
                .collect()
        };
        let before = states(&[
            ("a", &[("1", 0)]),
            ("b", &[("2", 0), ("3", 1)]),
            ("c", &[("4", 0)]),
        ]);
        let now = states(&[
            ("a", &[("1", 0)]),
            ("b", &[("2", 0), ("3", 2)]),
            ("d", &[("5", 0)]),
        ]);
        assert_eq!(differing(&before, &now), ["b", "c", "d"]);
        assert!(differing(&now, &now).is_empty());
    }
}
