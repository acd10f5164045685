//! Selectors of labels: of pods, of namespaces, of nodes.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

pub type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
    /// One that isn't there: it takes nothing.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: &str, values: Option<&Vec<String>>) -> Self {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            _ => Operator::Unknown,
        };
        let mut values = values.cloned().unwrap_or_default();
        values.sort();
        Self {
            key: key.to_owned(),
            operator,
            values,
        }
    }

    fn takes(&self, value: Option<&str>) -> bool {
        let listed = || value.is_some_and(|value| self.values.iter().any(|one| one == value));
        let compared = |ordering| {
            let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
            match (
                number(value),
                number(self.values.first().map(String::as_str)),
            ) {
                (Some(value), Some(bound)) => value.cmp(&bound) == ordering,
                _ => false,
            }
        };
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compared(std::cmp::Ordering::Greater),
            Operator::Lt => compared(std::cmp::Ordering::Less),
            Operator::Unknown => false,
        }
    }
}

/// Of labels. Two that say the same in another order are one.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// There is none at all: it takes nothing.
    none: bool,
    /// All have to be met.
    requirements: Vec<Requirement>,
}

impl Selector {
    /// An empty one takes everything, none nothing.
    pub fn of(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else {
            return Self {
                none: true,
                requirements: Vec::new(),
            };
        };
        let labels = selector.match_labels.iter().flatten();
        let labels =
            labels.map(|(key, value)| Requirement::new(key, "In", Some(&vec![value.clone()])));
        let expressions = selector.match_expressions.iter().flatten();
        let expressions =
            expressions.map(|one| Requirement::new(&one.key, &one.operator, one.values.as_ref()));
        let mut requirements: Vec<_> = labels.chain(expressions).collect();
        requirements.sort();
        requirements.dedup();
        Self {
            none: false,
            requirements,
        }
    }

    /// That a label has a value, too.
    pub fn and(mut self, key: &str, value: &str) -> Self {
        let more = Requirement::new(key, "In", Some(&vec![value.to_owned()]));
        if !self.requirements.contains(&more) {
            self.requirements.push(more);
            self.requirements.sort();
        }
        self
    }

    /// There is none: nothing is taken, whatever is labelled how.
    pub fn is_none(&self) -> bool {
        self.none
    }

    pub fn takes(&self, labels: &Labels) -> bool {
        !self.none
            && self
                .requirements
                .iter()
                .all(|one| one.takes(labels.get(&one.key).map(String::as_str)))
    }
}

/// Of nodes: by labels, and by name. One that asks for nothing takes nothing (as upstream).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl NodeTerm {
    pub fn of(term: &NodeSelectorTerm) -> Self {
        let all = |list: Option<&Vec<NodeSelectorRequirement>>| {
            let list = list.into_iter().flatten();
            list.map(|one| Requirement::new(&one.key, &one.operator, one.values.as_ref()))
                .collect()
        };
        Self {
            labels: all(term.match_expressions.as_ref()),
            fields: all(term.match_fields.as_ref()),
        }
    }

    pub fn takes(&self, name: &str, labels: &Labels) -> bool {
        let has = |one: &Requirement| labels.get(&one.key).map(String::as_str);
        let field = |one: &Requirement| (one.key == "metadata.name").then_some(name);
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(|one| one.takes(has(one)))
            && self.fields.iter().all(|one| one.takes(field(one)))
    }

    /// The values of a label outside which it takes nothing.
    pub fn only_with(&self, label: &str) -> Option<&[String]> {
        self.labels
            .iter()
            .find(|one| one.operator == Operator::In && one.key == label)
            .map(|one| one.values.as_slice())
    }

    /// The one node that it can take, where it names one: so a DaemonSet's pods are asked for.
    pub fn only_node(&self) -> Option<&str> {
        self.fields
            .iter()
            .find(|one| one.operator == Operator::In && one.key == "metadata.name")
            .and_then(|one| match one.values.as_slice() {
                [name] => Some(name.as_str()),
                _ => None,
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    /// PO-17: every operator, on a label that is there and on one that isn't.
    #[test]
    fn each_operator_takes_what_it_says() {
        let has = labels(&[("zone", "a"), ("rank", "5"), ("name", "x")]);
        for (key, operator, values, takes) in [
            ("zone", "In", json!(["a", "b"]), true),
            ("zone", "In", json!(["b"]), false),
            ("gone", "In", json!(["b"]), false),
            ("zone", "NotIn", json!(["a"]), false),
            ("gone", "NotIn", json!(["a"]), true),
            ("zone", "Exists", Value::Null, true),
            ("gone", "Exists", Value::Null, false),
            ("zone", "DoesNotExist", Value::Null, false),
            ("gone", "DoesNotExist", Value::Null, true),
            ("rank", "Gt", json!(["4"]), true),
            ("rank", "Gt", json!(["5"]), false),
            ("rank", "Lt", json!(["6"]), true),
            ("rank", "Lt", json!(["5"]), false),
            ("name", "Gt", json!(["4"]), false),
            ("gone", "Lt", json!(["4"]), false),
            ("zone", "Like", json!(["a"]), false),
        ] {
            let term =
                json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
            let term = NodeTerm::of(&from_value(term).expect("a term"));
            assert_eq!(term.takes("n", &has), takes, "{key} {operator} {values}");
        }
    }

    #[test]
    fn an_empty_selector_takes_all_and_none_nothing() {
        let of = |value: Value| Selector::of(Some(&from_value(value).expect("a selector")));
        assert!(of(json!({})).takes(&Labels::new()));
        assert!(!Selector::of(None).takes(&Labels::new()));
        assert!(of(json!({"matchLabels": {"a": "b"}})).takes(&labels(&[("a", "b"), ("c", "d")])));
        let expression =
            json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]});
        assert_eq!(of(json!({"matchLabels": {"a": "b"}})), of(expression));
        assert!(!of(json!({})).and("a", "b").takes(&labels(&[("a", "c")])));
        let nothing = NodeTerm::of(&NodeSelectorTerm::default());
        assert!(!nothing.takes("n", &Labels::new()));
    }

    #[test]
    fn a_node_is_named() {
        let term =
            json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        let term = NodeTerm::of(&from_value(term).expect("a term"));
        assert_eq!(term.only_node(), Some("n1"));
        assert!(term.takes("n1", &Labels::new()) && !term.takes("n2", &Labels::new()));
    }
}
