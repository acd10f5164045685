//! How much a pod asks for: what limit ranges and quotas count.

use std::collections::BTreeMap;

use berth_kinds::Quantity;
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

fn at_least(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        to.entry(name.clone())
            .and_modify(|has| {
                if has.nano < amount.nano {
                    *has = *amount;
                }
            })
            .or_insert(*amount);
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
    let asked = |container: &Value| of(container.pointer(&format!("/resources/{which}")));
    let mut sum = Amounts::new();
    for container in containers(pod, "containers") {
        add(&mut sum, &asked(container));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in containers(pod, "initContainers") {
        let own = asked(container);
        if is_sidecar(container) {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            at_least(&mut most, &sidecars);
        } else {
            let mut with = own;
            add(&mut with, &sidecars);
            at_least(&mut most, &with);
        }
    }
    at_least(&mut sum, &most);
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
