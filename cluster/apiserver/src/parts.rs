//! Some parts of an object's JSON, without a tree of all the rest: what is kept is mostly passed on as it is, and a tree of it takes nine times its bytes.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value, value::RawValue};

/// Which fields, and what of them; none named: the value whole. Of a list, the same of each element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parts(Vec<(Box<str>, Parts)>);

impl Parts {
    /// `metadata.labels`, `spec.nodeName`.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parts = Self::default();
        for path in paths {
            parts.add(path);
        }
        parts
    }

    fn add(&mut self, path: &str) {
        let (name, rest) = path.split_once('.').unwrap_or((path, ""));
        let known = self.0.iter_mut().find(|(known, _)| known.as_ref() == name);
        match known {
            Some((_, below)) if rest.is_empty() => below.0.clear(),
            // It is taken whole already.
            Some((_, below)) if below.0.is_empty() => {}
            Some((_, below)) => below.add(rest),
            None => {
                let below = match rest {
                    "" => Self::default(),
                    rest => Self::of([rest]),
                };
                self.0.push((name.into(), below));
            }
        }
    }

    fn named(&self, name: &str) -> Option<&(Box<str>, Self)> {
        self.0.iter().find(|(known, _)| known.as_ref() == name)
    }

    /// Of a JSON text; its nesting is bounded as serde_json's is where it is looked at.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn read(&self, text: &str) -> Result<Value, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = self.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(value)
    }

    /// The same of an object as it is kept, and where in it the brace is that begins its metadata (where that is an object).
    ///
    /// # Errors
    /// It is no JSON, or no UTF-8.
    pub fn of_kept(&self, bytes: &[u8]) -> Result<(Value, Option<usize>), serde_json::Error> {
        let text = std::str::from_utf8(bytes).map_err(serde_json::Error::custom)?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let (value, metadata) = deserializer.deserialize_any(Kept(self))?;
        deserializer.end()?;
        let at = metadata.and_then(|metadata| {
            let at = metadata
                .get()
                .as_ptr()
                .addr()
                .checked_sub(text.as_ptr().addr())?;
            (bytes.get(at) == Some(&b'{')).then_some(at)
        });
        Ok((value, at))
    }
}

impl<'de> DeserializeSeed<'de> for &Parts {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.is_empty() {
            return serde::Deserialize::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

/// What is no object has no fields: a scalar is as good as nothing.
impl<'de> Visitor<'de> for &Parts {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(part) = map.next_key_seed(Name(self))? {
            match part {
                Some((name, below)) => {
                    values.insert(name.to_string(), map.next_value_seed(below)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(values))
    }
}

/// A field's name, as the part that it is of.
struct Name<'p>(&'p Parts);

impl<'de, 'p> DeserializeSeed<'de> for Name<'p> {
    type Value = Option<&'p (Box<str>, Parts)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'p> Visitor<'_> for Name<'p> {
    type Value = Option<&'p (Box<str>, Parts)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.named(name))
    }
}

/// The object itself: its metadata is told as it stands there, too.
struct Kept<'p>(&'p Parts);

impl<'de> Visitor<'de> for Kept<'_> {
    type Value = (Value, Option<&'de RawValue>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut values, mut metadata) = (Map::new(), None);
        while let Some(part) = map.next_key_seed(Name(self.0))? {
            match part {
                Some((name, below)) if name.as_ref() == "metadata" => {
                    let raw: &RawValue = map.next_value()?;
                    let value = below.read(raw.get()).map_err(A::Error::custom)?;
                    values.insert(name.to_string(), value);
                    metadata = Some(raw);
                }
                Some((name, below)) => {
                    values.insert(name.to_string(), map.next_value_seed(below)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok((Value::Object(values), metadata))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_parts_that_are_asked_for_are_read_and_no_others() {
        let object = json!({
            "kind": "Pod",
            "metadata": {"name": "a", "labels": {"app": "x"}, "managedFields": [{"a": 1}]},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "env": [{"name": "A", "value": "b"}, {"valueFrom": {"x": [1]}}]}, 3]},
            "status": "wrong",
        });
        for (paths, read) in [
            (vec![], object.clone()),
            (vec!["kind", "none"], json!({"kind": "Pod"})),
            (
                vec!["metadata.labels", "spec.nodeName", "status.phase"],
                json!({"metadata": {"labels": {"app": "x"}}, "spec": {"nodeName": "n"}, "status": null}),
            ),
            (
                vec!["spec.containers.env.valueFrom"],
                json!({"spec": {"containers": [{"env": [{}, {"valueFrom": {"x": [1]}}]}, null]}}),
            ),
            // The whole of it, whichever is named first.
            (
                vec![
                    "metadata.labels.app",
                    "metadata.labels",
                    "metadata.labels.other",
                ],
                json!({"metadata": {"labels": {"app": "x"}}}),
            ),
        ] {
            let parts = Parts::of(paths.iter().copied());
            assert_eq!(
                parts.read(&object.to_string()).expect("JSON"),
                read,
                "{paths:?}"
            );
            if !paths.is_empty() {
                let (kept, _) = parts.of_kept(object.to_string().as_bytes()).expect("JSON");
                assert_eq!(kept, read, "{paths:?}");
            }
        }
    }

    #[test]
    fn metadata_is_found_where_it_begins() {
        let parts = Parts::of(["metadata.name"]);
        for (text, at) in [
            (r#"{"a":{"metadata":{}},"metadata":{"name":"x"}}"#, Some(32)),
            (r#"{ "metadata" : {"x":1} }"#, Some(15)),
            (r#"{"m\u0065tadata":{}}"#, Some(17)),
            (r#"{"metadata":3}"#, None),
            (r#"{"metadata":null}"#, None),
            ("{}", None),
        ] {
            assert_eq!(parts.of_kept(text.as_bytes()).expect(text).1, at, "{text}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_an_error() {
        let parts = Parts::of(["metadata.name", "spec.a"]);
        let deep = format!("{{\"spec\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
        for text in [
            "",
            "{",
            "{}x",
            "[]",
            "3",
            "null",
            r#"{"metadata":{"name"}}"#,
            &deep,
        ] {
            assert!(parts.of_kept(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parts.of_kept(b"{\"a\":\"\xff\"}").is_err());
    }
}
