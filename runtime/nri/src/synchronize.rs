//! What there is, told to a plugin that joins: in one request, or in as many as the length of a message asks for.

use std::time::Instant;

use protobuf::Message;

use crate::{
    Error, api, mux,
    plugin::{Answer, Plugin},
};

/// Of a message, what pods and containers may take: there is an envelope around them, and a peer may count otherwise.
const MAX_BYTES: usize = mux::MAX_MESSAGE_BYTES / 4 * 3;

/// Requests that each fit into a message, in order: pods before containers, so that no container comes before its pod.
pub(crate) fn requests(
    pods: Vec<api::PodSandbox>,
    containers: Vec<api::Container>,
    max_bytes: usize,
) -> Vec<api::SynchronizeRequest> {
    let mut requests = vec![api::SynchronizeRequest::default()];
    let mut bytes = 0;
    let mut place = |size: u64| {
        // The tag and the length of an entry.
        let size = size as usize + 6;
        let anew = bytes > 0 && bytes + size > max_bytes;
        bytes = if anew { size } else { bytes + size };
        anew
    };
    for pod in pods {
        if place(pod.compute_size()) {
            requests.push(Default::default());
        }
        if let Some(last) = requests.last_mut() {
            last.pods.push(pod);
        }
    }
    for container in containers {
        if place(container.compute_size()) {
            requests.push(Default::default());
        }
        if let Some(last) = requests.last_mut() {
            last.containers.push(container);
        }
    }
    let last = requests.len() - 1;
    for request in &mut requests[..last] {
        request.more = true;
    }
    requests
}

impl Plugin {
    /// Tells the plugin what there is, within the time that it has to register; answers with what it asks for.
    pub(crate) async fn synchronize(
        &self,
        pods: Vec<api::PodSandbox>,
        containers: Vec<api::Container>,
        within: std::time::Duration,
    ) -> Result<Vec<api::ContainerUpdate>, Error> {
        let lost = |why: String| Error::Lost {
            plugin: self.name().to_owned(),
            why,
        };
        let since = Instant::now();
        for request in requests(pods, containers, MAX_BYTES) {
            let left = within.saturating_sub(since.elapsed());
            let answer = self
                .ask("Synchronize", left, |context| {
                    self.client().synchronize(context, &request)
                })
                .await;
            let answer = match answer {
                Answer::Said(answer) => answer,
                Answer::Refused(error) => return Err(error),
                Answer::Gone => return Err(lost("it was not synchronized".into())),
            };
            if !request.more {
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err(lost(
                    "there is more on this node than goes into one message, and it takes only one"
                        .into(),
                ));
            }
        }
        Ok(vec![])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_told_once_in_order_and_no_message_is_too_long() {
        let pods: Vec<_> = (0..100)
            .map(|at| api::PodSandbox {
                id: format!("{at:064}"),
                ..Default::default()
            })
            .collect();
        let containers: Vec<_> = (0..300)
            .map(|at| api::Container {
                id: format!("{at:064}"),
                env: vec!["x".repeat(at)],
                ..Default::default()
            })
            .collect();
        for max in [100, 1000, 10_000, 1 << 20] {
            let requests = requests(pods.clone(), containers.clone(), max);
            let told: Vec<_> = requests.iter().flat_map(|r| r.pods.clone()).collect();
            assert_eq!(told, pods);
            let told: Vec<_> = requests.iter().flat_map(|r| r.containers.clone()).collect();
            assert_eq!(told, containers);
            let (last, others) = requests.split_last().unwrap();
            assert!(!last.more && others.iter().all(|r| r.more));
            for request in &requests {
                let entries = request.pods.len() + request.containers.len();
                assert!(entries > 0);
                // One that is too long by itself goes alone.
                assert!(
                    entries == 1 || request.compute_size() as usize <= max,
                    "{max}"
                );
            }
        }
        assert_eq!(
            requests(vec![], vec![], 10).len(),
            1,
            "nothing is told, too"
        );
    }
}
