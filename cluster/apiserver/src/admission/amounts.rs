//! How much a pod asks for: what limit ranges and quotas count.

use std::collections::BTreeMap;

use berth_kinds::{Amount, Quantity, Runs, neediest};
use serde_json::Value;

/// By resource.
pub type Amounts = BTreeMap<String, Quantity>;

pub fn of(list: Option<&Value>) -> Amounts {
    list.and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), Quantity::of(value)?)))
        .collect()
}

pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        to.entry(name.clone())
            .and_modify(|has| *has = has.plus(*amount))
            .or_insert(*amount);
    }
}

#[derive(Default)]
struct Own(Amounts);

impl Amount for Own {
    fn add(&mut self, more: &Self) {
        add(&mut self.0, &more.0);
    }

    fn at_least(&mut self, least: &Self) {
        for (name, amount) in &least.0 {
            let has = self.0.entry(name.clone()).or_insert(*amount);
            if has.nano < amount.nano {
                *has = *amount;
            }
        }
    }
}

pub fn containers<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod.get("spec")
        .and_then(|spec| spec.get(list))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// Upstream's PodRequests and PodLimits (`which` is `requests` or `limits`): containers and sidecars together, or more where one of the init containers, beside
/// the sidecars that run by then, needs more; or what the pod says for all of them. And the overhead.
pub fn of_pod(pod: &Value, which: &str) -> Amounts {
    let asked = |container: &Value| Own(of(container.pointer(&format!("/resources/{which}"))));
    let mains = containers(pod, "containers").map(|it| (Runs::Main, asked(it)));
    let inits = containers(pod, "initContainers").map(|it| match is_sidecar(it) {
        true => (Runs::Sidecar, asked(it)),
        false => (Runs::Init, asked(it)),
    });
    let Own(mut sum) = neediest(mains.chain(inits));
    for (name, amount) in of(pod.pointer(&format!("/spec/resources/{which}"))) {
        sum.insert(name, amount);
    }
    let overhead = of(pod.pointer("/spec/overhead"));
    for (name, amount) in overhead {
        // a limit that isn't there isn't made by the overhead
        if which == "requests" || sum.contains_key(&name) {
            sum.entry(name)
                .and_modify(|has| *has = has.plus(amount))
                .or_insert(amount);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_what_it_needs_at_its_neediest() {
        let pod = json!({"spec": {
            "containers": [
                {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
                {"resources": {"requests": {"cpu": "200m"}}},
            ],
            "initContainers": [
                {"resources": {"requests": {"cpu": "1"}}},
                {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"resources": {"requests": {"cpu": "1", "memory": "1Mi"}}},
            ],
            "overhead": {"cpu": "10m"},
        }});
        let asked = of_pod(&pod, "requests");
        assert_eq!(asked["cpu"].canonical(), "1060m");
        assert_eq!(asked["memory"].canonical(), "64Mi");
        assert!(of_pod(&pod, "limits").is_empty());
        let whole = json!({"spec": {"resources": {"limits": {"cpu": "2"}}, "containers": [{}]}});
        assert_eq!(of_pod(&whole, "limits")["cpu"].canonical(), "2");
        assert!(of_pod(&json!({"spec": {"containers": 3}}), "requests").is_empty());
    }
}
