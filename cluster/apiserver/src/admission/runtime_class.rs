//! RuntimeClass: what a pod's class costs, and where it can run.

use serde_json::{Value, json};

use super::{Act, amounts};
use crate::{api::Api, failure::Failure, object};

/// # Errors
/// 403 where there is no such class, or the pod says otherwise than it.
pub fn apply(api: &Api, act: &Act<'_>, pod: &mut Value) -> Result<(), Failure> {
    let name = object::text(pod, "/spec/runtimeClassName").to_owned();
    let refused = |why: String| Failure::forbidden(act.resource, &act.name, why);
    if name.is_empty() {
        return match pod.pointer("/spec/overhead") {
            Some(Value::Object(overhead)) if !overhead.is_empty() => Err(refused(
                "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
                    .into(),
            )),
            _ => Ok(()),
        };
    }
    let Some(entry) = api.cache.shard("runtimeclasses").get(&name) else {
        return Err(refused(format!(
            "pod rejected: RuntimeClass {name:?} not found"
        )));
    };
    complete(&entry.value(), pod).map_err(refused)
}

fn complete(class: &Value, pod: &mut Value) -> Result<(), String> {
    let overhead = class.pointer("/overhead/podFixed");
    let own = pod
        .pointer("/spec/overhead")
        .filter(|own| own.as_object().is_some_and(|own| !own.is_empty()));
    match (own, overhead) {
        (Some(own), Some(overhead)) if !is_same(own, overhead) => {
            return Err(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into(),
            );
        }
        (Some(_), None) => {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".into());
        }
        _ => {}
    }
    let overhead = overhead.cloned();
    let spec = object::part(pod, "spec");
    if let Some(overhead) = overhead {
        spec.insert("overhead".into(), overhead);
    }
    let wanted = class.pointer("/scheduling/nodeSelector");
    if let Some(wanted) = wanted.and_then(Value::as_object) {
        let selector = spec.entry("nodeSelector").or_insert_with(|| json!({}));
        let Some(selector) = selector.as_object_mut() else {
            return Ok(());
        };
        for (key, value) in wanted {
            match selector.get(key) {
                Some(own) if own != value => {
                    return Err(format!(
                        "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                        value.as_str().unwrap_or_default(),
                        own.as_str().unwrap_or_default()
                    ));
                }
                _ => {
                    selector.insert(key.clone(), value.clone());
                }
            }
        }
    }
    let tolerations = class.pointer("/scheduling/tolerations");
    if let Some(more) = tolerations.and_then(Value::as_array) {
        let own = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(own) = own.as_array_mut() {
            for toleration in more {
                if !own.contains(toleration) {
                    own.push(toleration.clone());
                }
            }
        }
    }
    Ok(())
}

/// Amounts may be written in more ways than one.
fn is_same(one: &Value, other: &Value) -> bool {
    let [one, other] = [one, other].map(|list| amounts::of(Some(list)));
    one.len() == other.len()
        && one.iter().all(|(name, amount)| {
            other
                .get(name)
                .is_some_and(|other| other.nano == amount.nano)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_says_what_it_costs_and_where_it_runs() {
        let class = json!({
            "overhead": {"podFixed": {"cpu": "100m"}},
            "scheduling": {
                "nodeSelector": {"kind": "vm"},
                "tolerations": [{"key": "vm", "operator": "Exists"}],
            },
        });
        let mut pod = json!({"spec": {"nodeSelector": {"a": "b"}}});
        complete(&class, &mut pod).expect("it fits");
        complete(&class, &mut pod).expect("it fits again");
        assert_eq!(
            pod["spec"],
            json!({
                "overhead": {"cpu": "100m"},
                "nodeSelector": {"a": "b", "kind": "vm"},
                "tolerations": [{"key": "vm", "operator": "Exists"}],
            })
        );
        let mut otherwise = json!({"spec": {"overhead": {"cpu": "0.1"}}});
        complete(&class, &mut otherwise).expect("it is the same");
        for (class, pod) in [
            (&class, json!({"spec": {"overhead": {"cpu": "1"}}})),
            (&class, json!({"spec": {"nodeSelector": {"kind": "bare"}}})),
            (&json!({}), json!({"spec": {"overhead": {"cpu": "1"}}})),
        ] {
            assert!(complete(class, &mut pod.clone()).is_err(), "{pod}");
        }
    }
}
