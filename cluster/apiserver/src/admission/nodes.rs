//! TaintNodesByCondition: pods come to a node after it has said that it is ready, not before.
//!
//! It takes a node controller to take the taint away: without one it is off.

use serde_json::{Value, json};

use crate::object;

const KEY: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

/// Of a node that is being made.
pub fn taint(node: &mut Value) {
    let spec = object::part(node, "spec");
    let taints = spec.entry("taints").or_insert(Value::Null);
    if taints.is_null() {
        *taints = json!([]);
    }
    let Some(taints) = taints.as_array_mut() else {
        return;
    };
    if !taints
        .iter()
        .any(|taint| taint["key"] == KEY && taint["effect"] == EFFECT)
    {
        taints.push(json!({"key": KEY, "effect": EFFECT}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_has_it_once() {
        let own = json!({"key": KEY, "effect": EFFECT});
        let other = json!({"key": KEY, "effect": "NoExecute"});
        for (before, after) in [
            (json!({}), json!([own])),
            (json!({"spec": {"taints": null}}), json!([own])),
            (json!({"spec": {"taints": [own]}}), json!([own])),
            (json!({"spec": {"taints": [other]}}), json!([other, own])),
        ] {
            let mut node = before;
            taint(&mut node);
            assert_eq!(node["spec"]["taints"], after);
        }
    }
}
