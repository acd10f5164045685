//! Which failures of pods count, and when some successes are enough.

use k8s_openapi::api::{
    batch::v1::{PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy},
    core::v1::{ContainerStatus, Pod},
};

use super::indexes::Indexes;

/// What a failed pod's rule says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    Counts,
    Ignored,
    FailsIndex,
    /// With what is said of it.
    FailsJob(String),
}

impl Failure {
    pub fn of(policy: Option<&PodFailurePolicy>, pod: &Pod) -> Self {
        let rules = policy.map(|policy| policy.rules.as_slice());
        for (at, rule) in rules.unwrap_or_default().iter().enumerate() {
            let matched = match (&rule.on_exit_codes, &rule.on_pod_conditions) {
                (Some(codes), _) => exited(pod, codes).map(|(name, code)| {
                    format!(
                        "Container {name} for pod {} failed with exit code {code}",
                        shown(pod)
                    )
                }),
                (None, Some(patterns)) => {
                    let conditions = pod.status.iter().flat_map(|status| &status.conditions);
                    let found = conditions.flatten().find(|condition| {
                        patterns.iter().any(|pattern| {
                            // upstream's default, too
                            let status = pattern.status.as_deref().unwrap_or("True");
                            pattern.type_ == condition.type_ && status == condition.status
                        })
                    });
                    found.map(|condition| {
                        format!("Pod {} has condition {}", shown(pod), condition.type_)
                    })
                }
                (None, None) => None,
            };
            let Some(what) = matched else { continue };
            match rule.action.as_str() {
                "Ignore" => return Self::Ignored,
                "FailIndex" => return Self::FailsIndex,
                "Count" => return Self::Counts,
                "FailJob" => {
                    let why = format!("{what} matching FailJob rule at index {at}");
                    return Self::FailsJob(why);
                }
                // of a newer API: as upstream, the next rule is asked
                _ => {}
            }
        }
        Self::Counts
    }

    pub fn is_counted(&self) -> bool {
        *self != Self::Ignored
    }
}

fn shown(pod: &Pod) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!(
        "{}/{}",
        part(&pod.metadata.namespace),
        part(&pod.metadata.name)
    )
}

fn exited<'a>(
    pod: &'a Pod,
    codes: &PodFailurePolicyOnExitCodesRequirement,
) -> Option<(&'a str, i32)> {
    let status = pod.status.as_ref()?;
    let containers = status.container_statuses.iter();
    let all = containers.chain(&status.init_container_statuses).flatten();
    let code =
        |status: &ContainerStatus| Some(status.state.as_ref()?.terminated.as_ref()?.exit_code);
    all.filter(|status| {
        codes
            .container_name
            .as_ref()
            .is_none_or(|name| *name == status.name)
    })
    .filter_map(|status| Some((status.name.as_str(), code(status)?)))
    .find(|(_, code)| {
        *code != 0
            && match codes.operator.as_str() {
                "In" => codes.values.contains(code),
                "NotIn" => !codes.values.contains(code),
                _ => false,
            }
    })
}

/// The first rule that `succeeded` fulfils, in upstream's words.
pub(super) fn enough(
    policy: Option<&SuccessPolicy>,
    succeeded: &Indexes,
    completions: u32,
) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let rules = policy?.rules.iter();
    let met = |rule: &k8s_openapi::api::batch::v1::SuccessPolicyRule| {
        let count = rule
            .succeeded_count
            .and_then(|count| usize::try_from(count).ok());
        match &rule.succeeded_indexes {
            Some(indexes) => {
                let wanted = Indexes::parse(indexes, completions);
                let common = wanted.common(succeeded);
                !wanted.is_empty()
                    && (common == wanted.count() || count.is_some_and(|count| common >= count))
            }
            None => count.is_some_and(|count| succeeded.count() >= count),
        }
    };
    let at = rules
        .enumerate()
        .find_map(|(at, rule)| met(rule).then_some(at))?;
    Some(format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn failed(code: i32) -> Pod {
        from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "status": {
                "phase": "Failed",
                "conditions": [{"type": "DisruptionTarget", "status": "True"}],
                "containerStatuses": [
                    {"name": "runs", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}},
                    {"name": "main", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": {"terminated": {"exitCode": code}}},
                ],
            },
        }))
        .expect("a pod")
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let policy =
            |rules| -> PodFailurePolicy { from_value(json!({"rules": rules})).expect("a policy") };
        let of = |rules, code| Failure::of(Some(&policy(rules)), &failed(code));
        let codes = |action, operator, values: &[i32]| json!({"action": action, "onExitCodes": {"operator": operator, "values": values, "containerName": "main"}});
        let disrupted = |status| json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": status}]});

        assert_eq!(Failure::of(None, &failed(1)), Failure::Counts);
        assert_eq!(of(json!([disrupted("True")]), 1), Failure::Ignored);
        assert_eq!(of(json!([disrupted("False")]), 1), Failure::Counts);
        assert_eq!(
            of(
                json!([codes("FailIndex", "In", &[2, 3]), disrupted("True")]),
                3
            ),
            Failure::FailsIndex
        );
        assert_eq!(
            of(json!([codes("Count", "NotIn", &[2]), disrupted("True")]), 3),
            Failure::Counts
        );
        // zero is no failure, whatever the rule
        assert_eq!(
            of(json!([codes("Ignore", "NotIn", &[2])]), 0),
            Failure::Counts
        );
        assert_eq!(
            of(json!([codes("Count", "In", &[1]), codes("FailJob", "In", &[42])]), 42),
            Failure::FailsJob("Container main for pod n/p failed with exit code 42 matching FailJob rule at index 1".into())
        );
        let fails = json!([{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]);
        assert_eq!(
            of(fails, 1),
            Failure::FailsJob(
                "Pod n/p has condition DisruptionTarget matching FailJob rule at index 0".into()
            )
        );
    }

    #[test]
    fn some_indexes_can_be_enough() {
        let met = |rules, succeeded| {
            let policy: SuccessPolicy = from_value(json!({"rules": rules})).expect("a policy");
            enough(Some(&policy), &Indexes::parse(succeeded, 10), 10)
        };
        let at = |at: usize| Some(format!("Matched rules at index {at}"));
        assert_eq!(met(json!([{"succeededCount": 2}]), "1"), None);
        assert_eq!(met(json!([{"succeededCount": 2}]), "1,9"), at(0));
        assert_eq!(met(json!([{"succeededIndexes": "0,2-4"}]), "0,2,3"), None);
        assert_eq!(
            met(
                json!([{"succeededIndexes": "0,2-4"}, {"succeededIndexes": "0"}]),
                "0,2,3"
            ),
            at(1)
        );
        assert_eq!(
            met(
                json!([{"succeededIndexes": "0,2-4", "succeededCount": 2}]),
                "1-3"
            ),
            at(0)
        );
        assert_eq!(met(json!([{"succeededIndexes": "x"}]), "1"), None);
        assert_eq!(enough(None, &Indexes::parse("1", 2), 2), None);
    }
}
