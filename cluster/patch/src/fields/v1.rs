use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{FieldSet, PathElement, set::Node};

/// What is no FieldsV1.
#[derive(Debug, thiserror::Error)]
pub enum FieldsError {
    #[error("a field set must be an object")]
    NotAnObject,
    #[error("key must be 2 characters long: {0:?}")]
    Short(String),
    #[error("missing colon: {0}")]
    Colon(String),
    #[error("path element {0}: {1}")]
    Json(String, serde_json::Error),
    #[error("path element {0}: not an index")]
    Index(String),
}

impl FieldSet {
    /// meta/v1 FieldsV1: `{"f:metadata":{"f:labels":{".":{},"f:app":{}}}}`. A `.` is the field itself, where there are fields below it, too.
    pub fn to_v1(&self) -> Value {
        let mut object = Map::new();
        for (element, node) in &self.nodes {
            let mut below = node.below.to_v1();
            if node.member
                && !node.below.is_empty()
                && let Value::Object(below) = &mut below
            {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            object.insert(write(element), below);
        }
        Value::Object(object)
    }

    /// Kinds of elements that are not known are left out: a later version may have them.
    pub fn from_v1(value: &Value) -> Result<Self, FieldsError> {
        match value {
            Value::Null => Ok(Self::default()),
            Value::Object(object) => Ok(read_node(object)?.below),
            _ => Err(FieldsError::NotAnObject),
        }
    }
}

fn write(element: &PathElement) -> String {
    match element {
        PathElement::Field(name) => ["f:", name].concat(),
        PathElement::Key(keys) => {
            let keys: BTreeMap<&str, &Value> =
                keys.iter().map(|(name, value)| (&**name, value)).collect();
            let keys = serde_json::to_string(&keys).unwrap_or_default();
            ["k:", &keys].concat()
        }
        PathElement::Value(value) => format!("v:{value}"),
        PathElement::Index(index) => format!("i:{index}"),
    }
}

fn read_node(object: &Map<String, Value>) -> Result<Node, FieldsError> {
    let mut node = Node::default();
    for (key, value) in object {
        if key == "." {
            node.member = true;
            continue;
        }
        let Some(element) = read(key)? else {
            continue;
        };
        let below = match value {
            Value::Object(below) => read_node(below)?,
            Value::Null => Node {
                member: true,
                below: FieldSet::default(),
            },
            _ => return Err(FieldsError::NotAnObject),
        };
        node.below.nodes.insert(element, below);
    }
    node.member |= node.below.is_empty();
    Ok(node)
}

fn read(key: &str) -> Result<Option<PathElement>, FieldsError> {
    let (Some(kind), Some(colon)) = (key.as_bytes().first(), key.as_bytes().get(1)) else {
        return Err(FieldsError::Short(key.to_owned()));
    };
    if *colon != b':' {
        return Err(FieldsError::Colon(key.to_owned()));
    }
    // Two bytes of ASCII, or there would be no colon.
    let content = key.get(2..).unwrap_or_default();
    let json = |error| FieldsError::Json(key.to_owned(), error);
    let element = match kind {
        b'f' => PathElement::field(content),
        b'v' => PathElement::value(serde_json::from_str(content).map_err(json)?),
        b'k' => {
            let keys: Map<String, Value> = serde_json::from_str(content).map_err(json)?;
            PathElement::key(keys.into_iter().map(|(k, v)| (k.into(), v)).collect())
        }
        b'i' => PathElement::Index(
            content
                .parse()
                .map_err(|_| FieldsError::Index(key.to_owned()))?,
        ),
        _ => return Ok(None),
    };
    Ok(Some(element))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_set_is_written_as_it_was_read() {
        let written = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"a/b\"": {}}},
            "f:spec": {
                "f:replicas": {},
                "f:ports": {r#"k:{"containerPort":80,"protocol":"TCP"}"#: {".": {}, "f:name": {}}},
                "i:3": {},
            },
        });
        let set = FieldSet::from_v1(&written).unwrap();
        assert_eq!(set.to_v1(), written);
        assert_eq!(
            set.paths()
                .iter()
                .map(|path| super::super::show_path(path))
                .collect::<Vec<_>>(),
            [
                ".metadata.labels",
                ".metadata.finalizers[=\"a/b\"]",
                ".metadata.labels.app",
                ".spec.replicas",
                ".spec[3]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"]",
                ".spec.ports[containerPort=80,protocol=\"TCP\"].name",
            ]
        );
    }

    #[test]
    fn a_number_is_the_same_key_however_it_is_written() {
        let float = FieldSet::from_v1(&json!({r#"k:{"port":80.0}"#: {}})).unwrap();
        let integer = FieldSet::from_v1(&json!({r#"k:{"port":80}"#: {}})).unwrap();
        assert_eq!(float, integer);
        assert_eq!(float.to_v1(), json!({r#"k:{"port":80}"#: {}}));
    }

    #[test]
    fn what_is_no_field_set_is_an_error() {
        for (written, error) in [
            (json!([]), "an object"),
            (json!({"f": {}}), "2 characters"),
            (json!({"": {}}), "2 characters"),
            (json!({"field": {}}), "missing colon"),
            (json!({"é:x": {}}), "missing colon"),
            (json!({"k:[]": {}}), "k:[]"),
            (json!({"v:{": {}}), "v:{"),
            (json!({"v:1 2": {}}), "v:1 2"),
            (json!({"i:x": {}}), "not an index"),
            (json!({"f:a": 1}), "an object"),
        ] {
            let said = FieldSet::from_v1(&written).unwrap_err().to_string();
            assert!(said.contains(error), "{written}: {said}");
        }
        // Of a version to come.
        assert!(FieldSet::from_v1(&json!({"x:a": {}})).unwrap().is_empty());
    }

    #[test]
    fn difference_leaves_what_lies_below_and_without_does_not() {
        let set = |value| FieldSet::from_v1(&value).unwrap();
        let owned = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let other = set(json!({"f:a": {}}));
        assert_eq!(
            owned.difference(&other).to_v1(),
            json!({"f:a": {"f:b": {}}, "f:c": {}})
        );
        assert_eq!(owned.without(&other).to_v1(), json!({"f:c": {}}));
        assert_eq!(owned.intersection(&other).to_v1(), json!({"f:a": {}}));
        assert_eq!(
            other.union(&set(json!({"f:a": {"f:b": {}}, "f:c": {}}))),
            owned
        );
        // And the same in place.
        let sets = [
            json!({}),
            json!({"f:a": {}}),
            json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}),
            json!({"f:a": {"f:b": {".": {}, "f:x": {}}}, "f:d": {}}),
            json!({"f:a": {"f:b": {}, "f:c": {"f:y": {}}}, "f:c": {}}),
        ];
        for (one, other) in sets
            .iter()
            .flat_map(|one| sets.iter().map(move |other| (one, other)))
        {
            let (one, other) = (set(one.clone()), set(other.clone()));
            let in_place = |change: &dyn Fn(&mut FieldSet)| {
                let mut changed = one.clone();
                change(&mut changed);
                changed
            };
            assert_eq!(in_place(&|set| set.add(other.clone())), one.union(&other));
            assert_eq!(
                in_place(&|set| set.subtract(&other)),
                one.difference(&other)
            );
            assert_eq!(in_place(&|set| set.cut(&other)), one.without(&other));
        }
    }
}
