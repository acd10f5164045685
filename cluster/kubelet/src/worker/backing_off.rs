//! What is waited for after a failure is told once for each failure, in upstream's words.

use std::collections::BTreeMap;

use crate::{
    Desired, Level,
    node::Inner,
    observed::Observed,
    plan::{Failure, Plan},
};

/// After which failure each container was last told to wait, by its name.
#[derive(Debug, Default)]
pub(super) struct BackingOff(BTreeMap<String, i64>);

/// A container that waits for its next try.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wait {
    container: String,
    /// Its image can't be had; else it has ended.
    is_of_image: bool,
    /// Each failure has another: nanoseconds since the epoch.
    failure: i64,
}

pub(super) fn waits(
    plan: &Plan,
    observed: &Observed,
    failures: &BTreeMap<String, Failure>,
) -> Vec<Wait> {
    let all = plan.waiting.iter();
    all.filter_map(|(name, (reason, _))| {
        let (is_of_image, failure) = match reason.as_str() {
            "CrashLoopBackOff" => (false, observed.newest(name)?.finished),
            "ImagePullBackOff" => (true, failures.get(name)?.retry_at),
            _ => return None,
        };
        Some(Wait {
            container: name.clone(),
            is_of_image,
            failure,
        })
    })
    .collect()
}

impl BackingOff {
    pub fn tell(&mut self, node: &Inner, pod: &Desired, waits: &[Wait]) {
        for wait in self.news(waits) {
            let name = wait.container.as_str();
            let Some(spec) = pod.container(name) else {
                continue;
            };
            if wait.is_of_image {
                let message = format!("Back-off pulling image {:?}", spec.image());
                node.tell(Level::Normal, pod, name, "BackOff", message);
                let message = "Error: ImagePullBackOff";
                node.tell(Level::Warning, pod, name, "Failed", message);
            } else {
                let message = format!(
                    "Back-off restarting failed container {name} in pod {}_{}({})",
                    pod.name, pod.namespace, pod.uid
                );
                node.tell(Level::Warning, pod, name, "BackOff", message);
            }
        }
    }

    fn news<'a>(&mut self, waits: &'a [Wait]) -> Vec<&'a Wait> {
        self.0
            .retain(|name, _| waits.iter().any(|wait| wait.container == *name));
        let is_new = |wait: &&Wait| {
            self.0.insert(wait.container.clone(), wait.failure) != Some(wait.failure)
        };
        waits.iter().filter(is_new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Seen;

    #[test]
    fn each_failure_is_told_of_once() {
        let plan = Plan {
            waiting: [
                ("ended", "CrashLoopBackOff"),
                ("image", "ImagePullBackOff"),
                ("config", "CreateContainerConfigError"),
            ]
            .map(|(name, reason)| (name.to_owned(), (reason.to_owned(), String::new())))
            .into(),
            ..Plan::default()
        };
        let mut observed = Observed {
            containers: vec![Seen {
                name: "ended".into(),
                finished: 5,
                ..Seen::default()
            }],
            ..Observed::default()
        };
        let failure = Failure {
            reason: "ErrImagePull",
            message: String::new(),
            retry_at: 7,
        };
        let failures = ["image", "config"].map(|name| (name.to_owned(), failure.clone()));
        let failures = BTreeMap::from(failures);
        let mut told = BackingOff::default();
        let mut news = |observed: &Observed| {
            let waits = waits(&plan, observed, &failures);
            let news = told.news(&waits).into_iter();
            news.map(|it| it.container.clone()).collect::<Vec<_>>()
        };
        assert_eq!(news(&observed), ["ended", "image"]);
        assert!(news(&observed).is_empty(), "the same failure");
        observed.containers[0].finished = 6;
        assert_eq!(news(&observed), ["ended"]);
        // it runs meanwhile, and ends at the same moment by a clock that was set back
        observed.containers.clear();
        assert!(news(&observed).is_empty());
        observed.containers.push(Seen {
            name: "ended".into(),
            finished: 6,
            ..Seen::default()
        });
        assert_eq!(news(&observed), ["ended"]);
    }
}
