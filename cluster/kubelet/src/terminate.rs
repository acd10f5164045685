//! The order in which a pod's containers end.

use std::time::Duration;

use crate::{
    observed::{Observed, Seen, State},
    pod::{Desired, Role},
};

/// What a container gets, however long others have taken, to end by itself: upstream's, too.
pub(crate) const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Those of one group end at the same time, and a group begins when the one before has ended: first all but the sidecars, then these from
/// the last to the first, since each may need those before it.
pub(crate) fn order<'a>(pod: &Desired, observed: &'a Observed) -> Vec<Vec<&'a Seen>> {
    let up = |seen: &&Seen| matches!(seen.state, State::Running | State::Unknown);
    let is_sidecar = |name: &str| pod.of_role(Role::Sidecar).any(|spec| spec.name() == name);
    let mut groups = vec![
        observed
            .containers
            .iter()
            .filter(up)
            .filter(|seen| !is_sidecar(&seen.name))
            .collect::<Vec<_>>(),
    ];
    let sidecars: Vec<_> = pod.of_role(Role::Sidecar).collect();
    for spec in sidecars.iter().rev() {
        let of_it = observed
            .containers
            .iter()
            .filter(|seen| seen.name == spec.name());
        groups.push(of_it.filter(up).collect());
    }
    groups.retain(|group| !group.is_empty());
    groups
}

/// What is left of a grace period; 0 stays 0: somebody wants it at once.
pub(crate) fn left(grace: Duration, passed: Duration) -> Duration {
    if grace.is_zero() {
        return grace;
    }
    grace.saturating_sub(passed).max(LEAST_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn sidecars_end_last_and_the_last_of_them_first() {
        let pod = pod(
            "  initContainers: [{name: s, image: x, restartPolicy: Always}, {name: i, image: x}, {name: t, image: x, restartPolicy: Always}]\n  \
             containers: [{name: a, image: x}, {name: b, image: x}, {name: c, image: x}]",
        );
        let seen = |name: &str, state| Seen {
            name: name.into(),
            state,
            ..Seen::default()
        };
        use State::*;
        let mut observed = Observed {
            containers: vec![
                seen("s", Running),
                seen("i", Exited),
                seen("t", Running),
                seen("a", Running),
                seen("b", Exited),
                // of a spec that is no more
                seen("z", Running),
            ],
            ..Observed::default()
        };
        let names = |observed: &Observed| {
            order(&pod, observed)
                .iter()
                .map(|group| {
                    group
                        .iter()
                        .map(|seen| seen.name.as_str())
                        .collect::<Vec<_>>()
                        .join(" ")
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&observed), ["a z", "t", "s"]);
        observed.containers.truncate(2);
        assert_eq!(names(&observed), ["s"]);
    }

    #[test]
    fn a_grace_period_is_shared_and_nobody_gets_less_than_two_seconds_of_it() {
        let seconds = Duration::from_secs;
        for (grace, passed, rest) in [
            (30, 0, 30),
            (30, 10, 20),
            (30, 29, 2),
            (30, 300, 2),
            (0, 0, 0),
            (0, 9, 0),
            (1, 0, 2),
        ] {
            assert_eq!(
                left(seconds(grace), seconds(passed)),
                seconds(rest),
                "{grace} {passed}"
            );
        }
    }
}
