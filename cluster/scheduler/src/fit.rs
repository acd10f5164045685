//! What a pod's spec asks of a node alone, whatever else runs there: so DaemonSets know where their pods will go.

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec, Taint};

use crate::pod::Wants;

/// Of one pod's spec, for any number of nodes.
#[derive(Debug, Clone)]
pub struct Demands(Wants);

impl Demands {
    pub fn of(spec: &PodSpec) -> Self {
        Self(Wants::of(&Pod {
            spec: Some(spec.clone()),
            ..Pod::default()
        }))
    }

    /// Whether its node selector and required node affinity take the node.
    pub fn take(&self, node: &Node) -> bool {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        match &node.metadata.labels {
            Some(labels) => self.0.takes_node(name, labels),
            None => self.0.takes_node(name, &std::collections::BTreeMap::new()),
        }
    }

    pub fn tolerate(&self, taint: &Taint) -> bool {
        let value = taint.value.as_deref().unwrap_or_default();
        self.0.tolerates(&taint.key, value, &taint.effect)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn a_spec_asks_for_labels_names_and_taints() {
        let node: Node = from_value(json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}}))
            .expect("a node");
        let taint: Taint =
            from_value(json!({"key": "k", "value": "v", "effect": "NoExecute"})).expect("a taint");
        let field = |name: &str| {
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]},
            ]}}})
        };
        for (more, takes, tolerates) in [
            (json!({}), true, false),
            (json!({"nodeSelector": {"zone": "a"}}), true, false),
            (json!({"nodeSelector": {"zone": "b"}}), false, false),
            (json!({"affinity": field("n1")}), true, false),
            (json!({"affinity": field("n2")}), false, false),
            (json!({"tolerations": [{"operator": "Exists"}]}), true, true),
            (
                json!({"tolerations": [{"key": "k", "operator": "Equal", "value": "x"}]}),
                true,
                false,
            ),
        ] {
            let mut spec: Value = json!({"containers": []});
            for (key, value) in more.as_object().expect("fields") {
                spec[key] = value.clone();
            }
            let demands = Demands::of(&from_value(spec).expect("a spec"));
            assert_eq!(demands.take(&node), takes, "{more}");
            assert_eq!(demands.tolerate(&taint), tolerates, "{more}");
        }
    }
}
