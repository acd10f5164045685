//! Classes of quality of service, and what follows from them.

use std::collections::BTreeMap;

use berth_kinds::Quantity;
use k8s_openapi::{
    api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity as Text,
};

use crate::pod::{Desired, Role};

/// oom_score_adj of a pod whose containers all have limits equal to their requests, and of one with neither.
const GUARANTEED_OOM_SCORE_ADJ: i64 = -997;
const BEST_EFFORT_OOM_SCORE_ADJ: i64 = 1000;
/// Of what the node can't do without: upstream's critical pods are as guaranteed ones.
const SYSTEM_CRITICAL_PRIORITY: i32 = 2_000_000_000;

const NANO: i128 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    pub fn of(pod: &Desired) -> Self {
        let (mut any, mut guaranteed) = (false, true);
        // those for a look have no resources
        let counting = pod
            .containers
            .iter()
            .filter(|spec| spec.role != Role::Ephemeral);
        let all: Vec<ResourceRequirements> = match pod.resources() {
            // what the pod asks for as a whole counts alone
            Some(whole) => vec![whole.clone()],
            None => counting
                .map(|spec| spec.container.resources.clone().unwrap_or_default())
                .collect(),
        };
        for resources in all {
            for name in ["cpu", "memory"] {
                let of =
                    |list: &Option<BTreeMap<String, Text>>| nano(list, name).filter(|it| *it > 0);
                let (request, limit) = (of(&resources.requests), of(&resources.limits));
                any |= request.or(limit).is_some();
                guaranteed &=
                    limit.is_some() && request.is_none_or(|request| Some(request) == limit);
            }
        }
        match (any, guaranteed) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The more of the node's memory a burstable container asks for, the later it is killed.
    pub fn oom_score_adj(
        self,
        pod: &Desired,
        memory_request: Option<i64>,
        node_memory: i64,
    ) -> i64 {
        if pod
            .spec
            .priority
            .is_some_and(|priority| priority >= SYSTEM_CRITICAL_PRIORITY)
        {
            return GUARANTEED_OOM_SCORE_ADJ;
        }
        match self {
            Self::Guaranteed => GUARANTEED_OOM_SCORE_ADJ,
            Self::BestEffort => BEST_EFFORT_OOM_SCORE_ADJ,
            Self::Burstable => {
                let request = i128::from(memory_request.unwrap_or(0));
                let part = match node_memory {
                    0 => 0,
                    memory => request * 1000 / i128::from(memory),
                };
                let adjusted = i64::try_from(1000 - part).unwrap_or(0);
                // between the two others, never equal to one of them
                adjusted.clamp(
                    BEST_EFFORT_OOM_SCORE_ADJ + GUARANTEED_OOM_SCORE_ADJ,
                    BEST_EFFORT_OOM_SCORE_ADJ - 1,
                )
            }
        }
    }
}

/// Billionths of an amount; validation has seen that it is one.
pub(crate) fn nano(list: &Option<BTreeMap<String, Text>>, name: &str) -> Option<i128> {
    list.as_ref()?
        .get(name)
        .and_then(|text| Quantity::parse(&text.0))
        .map(|quantity| quantity.nano)
}

/// Whole units, rounded up.
pub(crate) fn units(list: &Option<BTreeMap<String, Text>>, name: &str) -> Option<i64> {
    nano(list, name).map(|nano| rounded(nano, NANO))
}

/// Thousandths, rounded up.
pub(crate) fn thousandths(list: &Option<BTreeMap<String, Text>>, name: &str) -> Option<i64> {
    nano(list, name).map(|nano| rounded(nano, NANO / 1000))
}

/// `nano` in parts of `per` billionths, rounded up.
pub(crate) fn rounded(nano: i128, per: i128) -> i64 {
    i64::try_from((nano.max(0) + per - 1) / per).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn classes_and_their_scores() {
        let memory = 10 << 30;
        for (resources, class, score) in [
            ("{}", "BestEffort", 1000),
            ("{limits: {cpu: 1, memory: 1Gi}}", "Guaranteed", -997),
            (
                "{requests: {cpu: 1, memory: 1Gi}, limits: {cpu: 1000m, memory: 1024Mi}}",
                "Guaranteed",
                -997,
            ),
            ("{requests: {memory: 1Gi}}", "Burstable", 900),
            ("{requests: {memory: 20Gi}}", "Burstable", 3),
            ("{limits: {cpu: 500m}}", "Burstable", 999),
            (
                "{limits: {cpu: 0, ephemeral-storage: 1Gi}}",
                "BestEffort",
                1000,
            ),
        ] {
            let pod = pod(&format!(
                "  containers: [{{name: a, image: x, resources: {resources}}}]"
            ));
            let it = Class::of(&pod);
            assert_eq!(it.as_str(), class, "{resources}");
            let request = pod.containers[0]
                .container
                .resources
                .clone()
                .unwrap_or_default();
            let request = units(&request.requests, "memory");
            assert_eq!(
                it.oom_score_adj(&pod, request, memory),
                score,
                "{resources}"
            );
        }
        let whole = pod(
            "  resources: {requests: {memory: 1Gi}, limits: {memory: 2Gi}}\n  containers: [{name: a, image: x, resources: {limits: {cpu: 1, memory: 1Gi}}}]",
        );
        assert_eq!(
            Class::of(&whole),
            Class::Burstable,
            "the pod's own count alone"
        );
        let critical = pod("  priority: 2000001000\n  containers: [{name: a, image: x}]");
        assert_eq!(
            Class::of(&critical).oom_score_adj(&critical, None, memory),
            -997
        );
    }
}
