//! JSON and YAML bodies: a [`Value`], and the fields that a body has twice.
//!
//! Whatever a client sends, the time and memory are those of its bytes: nesting and the number of values are bounded here, the length by
//! the server before. YAML's anchors count as what they stand for.

use std::{fmt, thread};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{error::Error, path::Path};

/// Lists and objects in one another. serde_json reads 127 of them, and what is kept must be readable again; the deepest
/// CustomResourceDefinitions in use have about 70. Upstream: 10,000.
pub const MAX_DEPTH: usize = 120;

/// Of all sorts, in one body: each takes up to 100 bytes of memory while it is worked on, whatever it took in the body. A body of 3 MiB, the
/// longest that the server takes, has 150,000 of them if it is an object that people write.
pub const MAX_VALUES: usize = 1 << 18;

/// Of a YAML body, whose reader takes more time for each. CustomResourceDefinitions of a megabyte have 40,000; kubectl sends JSON.
const MAX_YAML_VALUES: usize = 1 << 16;

/// Anchors, and as many aliases: what people write has a few.
const MAX_ALIASES: usize = 1000;

/// Events that aliases stand for, all together: what keeps a billion laughs short.
const MAX_REPLAYED: usize = 20_000;

/// 64 KiB for each level.
const YAML_STACK_BYTES: usize = 8 << 20;

/// As upstream: further ones are not told of.
const MAX_DUPLICATES: usize = 100;

/// What was in a body.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// Of a field that is there twice, the last.
    pub value: Value,
    /// `duplicate field "spec.replicas"`, in the order of the body, each once.
    pub duplicates: Vec<String>,
}

impl Body {
    /// # Errors
    /// Not JSON, something after it, or beyond a bound.
    pub fn from_json(bytes: &[u8]) -> Result<Self, Error> {
        Self::json_of_depth(bytes, MAX_DEPTH)
    }

    pub(crate) fn json_of_depth(bytes: &[u8], depth: usize) -> Result<Self, Error> {
        let mut reader = Reader::default();
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let value = reader
            .at(&Path::Root, depth)
            .deserialize(&mut deserializer)
            .and_then(|value| deserializer.end().map(|()| value))
            .map_err(|error| Error::Json(error.to_string()))?;
        Ok(reader.body(value))
    }

    /// One document; JSON is YAML, too.
    ///
    /// # Errors
    /// Not YAML, more than one document, a key that is no string, or beyond a bound.
    pub fn from_yaml(bytes: &[u8]) -> Result<Self, Error> {
        // The YAML reader's frames are large, in builds without optimisation too large for a thread of 2 MiB at our depth.
        thread::scope(|scope| {
            let reader = thread::Builder::new()
                .name("yaml".into())
                .stack_size(YAML_STACK_BYTES)
                .spawn_scoped(scope, || Self::yaml(bytes))
                .map_err(|error| Error::Yaml(format!("cannot start a thread: {error}")))?;
            let broken = || Error::Yaml("its reader broke".into());
            reader.join().unwrap_or_else(|_| Err(broken()))
        })
    }

    fn yaml(bytes: &[u8]) -> Result<Self, Error> {
        let budget = serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_YAML_VALUES,
            max_events: 2 * MAX_YAML_VALUES,
            max_documents: 1,
            max_aliases: MAX_ALIASES,
            max_anchors: MAX_ALIASES,
        };
        let aliases = serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_REPLAYED,
            max_replay_stack_depth: 16,
        };
        let options = serde_saphyr::options! {
            budget: budget,
            alias_limits: aliases,
            duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
            with_snippet: false,
        };
        let mut reader = Reader::default();
        let value = serde_saphyr::with_deserializer_from_slice_with_options(
            bytes,
            options,
            |deserializer| reader.at(&Path::Root, MAX_DEPTH).deserialize(deserializer),
        )
        .map_err(|error| Error::Yaml(error.to_string()))?;
        Ok(reader.body(value))
    }
}

#[derive(Debug, Default)]
struct Reader {
    values: usize,
    duplicates: Vec<String>,
}

impl Reader {
    fn at<'a>(&'a mut self, path: &'a Path<'a>, depth: usize) -> At<'a> {
        At {
            reader: self,
            path,
            depth,
        }
    }

    fn duplicate(&mut self, path: &Path<'_>) {
        if self.duplicates.len() < MAX_DUPLICATES {
            let text = format!("duplicate field \"{path}\"");
            if !self.duplicates.contains(&text) {
                self.duplicates.push(text);
            }
        }
    }

    fn body(self, value: Value) -> Body {
        Body {
            value,
            duplicates: self.duplicates,
        }
    }
}

/// The value at a path, with as many levels below it as `depth`.
#[derive(Debug)]
struct At<'a> {
    reader: &'a mut Reader,
    path: &'a Path<'a>,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.reader.values += 1;
        if self.reader.values > MAX_VALUES {
            return Err(D::Error::custom(format!(
                "more than {MAX_VALUES} values in one body"
            )));
        }
        deserializer.deserialize_any(self)
    }
}

impl At<'_> {
    fn below<E: serde::de::Error>(&self) -> Result<usize, E> {
        self.depth
            .checked_sub(1)
            .ok_or_else(|| E::custom(format!("exceeded max depth {MAX_DEPTH}")))
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is no number of JSON")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut values = Vec::new();
        loop {
            let path = self.path.index(values.len());
            match list.next_element_seed(self.reader.at(&path, depth))? {
                Some(value) => values.push(value),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let depth = self.below()?;
        let mut values = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = self.path.key(&key);
            if values.contains_key(&key) {
                self.reader.duplicate(&path);
            }
            let value = map.next_value_seed(self.reader.at(&path, depth))?;
            values.insert(key, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicate_fields_are_found_with_their_paths_and_the_last_one_holds() {
        for (text, value, duplicates) in [
            ("{}", json!({}), vec![]),
            (
                r#"{"spec":{"replicas":1,"replicas":2}}"#,
                json!({"spec":{"replicas":2}}),
                vec![r#"duplicate field "spec.replicas""#],
            ),
            (
                r#"{"a":[{"b":1},{"b":1,"b":2,"b":3}],"a":[]}"#,
                json!({"a":[]}),
                vec![r#"duplicate field "a[1].b""#, r#"duplicate field "a""#],
            ),
        ] {
            for body in [
                Body::from_json(text.as_bytes()),
                Body::from_yaml(text.as_bytes()),
            ] {
                let body = body.expect(text);
                assert_eq!(body.value, value, "{text}");
                assert_eq!(body.duplicates, duplicates, "{text}");
            }
        }
        let body = Body::from_yaml(b"spec:\n  replicas: 1\n  replicas: 2\n").expect("YAML");
        assert_eq!(body.duplicates, [r#"duplicate field "spec.replicas""#]);
    }

    #[test]
    fn numbers_and_strings_stay_what_they_are() {
        let text = r#"[0,-1,18446744073709551615,1.5,1e3,"1",null,true,"\ud83d\ude00"]"#;
        let body = Body::from_json(text.as_bytes()).expect("JSON");
        assert_eq!(
            body.value,
            json!([0, -1, u64::MAX, 1.5, 1e3, "1", null, true, "😀"])
        );
        let yaml = "a: 1\nb: \"1\"\nc: 1.5\nd: true\ne:\nf: 010\ng: a:b\nh: |\n  x\n  y\n";
        let body = Body::from_yaml(yaml.as_bytes()).expect("YAML");
        assert_eq!(body.value["a"], json!(1));
        assert_eq!(body.value["b"], json!("1"));
        assert_eq!(body.value["c"], json!(1.5));
        assert_eq!(body.value["d"], json!(true));
        assert_eq!(body.value["e"], json!(null));
        assert_eq!(body.value["g"], json!("a:b"));
        assert_eq!(body.value["h"], json!("x\ny\n"));
    }

    #[test]
    fn what_is_no_json_is_refused_sec_api_04() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let long_list = format!("[{}0]", "0,".repeat(MAX_VALUES));
        let cases = [
            "",
            "{",
            "{\"a\":}",
            "{} {}",
            "{\"a\":1}x",
            "{\"a\":NaN}",
            "{\"a\":1e999}",
            "[\"\u{0}\"]",
            "{1:2}",
        ];
        for text in cases {
            let error = Body::from_json(text.as_bytes()).expect_err(text);
            assert!(matches!(error, Error::Json(_)), "{text}: {error}");
        }
        assert!(Body::from_json(b"\xff\xfe{\"a\":\"\xff\"}").is_err());
        assert!(Body::from_json(deep(MAX_DEPTH).as_bytes()).is_ok());
        for n in [MAX_DEPTH + 1, 10_000, 1_000_000] {
            assert!(Body::from_json(deep(n).as_bytes()).is_err(), "{n}");
            assert!(
                Body::from_json("{\"a\":".repeat(n).as_bytes()).is_err(),
                "{n}"
            );
        }
        let error = Body::from_json(long_list.as_bytes()).expect_err("a long list");
        assert!(error.to_string().contains("values"), "{error}");
    }

    #[test]
    fn yaml_bombs_are_refused_in_bounded_time_sec_api_04() {
        let mut laughs = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for n in 1..12 {
            let of = format!("*a{}", n - 1);
            laughs += &format!("a{n}: &a{n} [{}]\n", vec![of; 9].join(","));
        }
        let started = std::time::Instant::now();
        let aliases = format!("a: &a [x]\nb: [{}]\n", "*a,".repeat(300_000));
        let cases = [
            ("a billion laughs", laughs),
            ("aliases", aliases),
            ("deep flow lists", "[".repeat(100_000)),
            ("deep flow maps", "{a: ".repeat(100_000)),
            ("deep block lists", "- ".repeat(100_000)),
            ("many values", format!("[{}]", "0,".repeat(MAX_YAML_VALUES))),
            ("itself", "a: &a [*a]\n".into()),
            ("two documents", "a: 1\n---\nb: 1\n".into()),
            ("tabs", "a:\n\t- b\n".into()),
            ("a list as a key", "? [a]\n: b\n".into()),
        ];
        for (name, text) in cases {
            assert!(Body::from_yaml(text.as_bytes()).is_err(), "{name}");
        }
        let took = started.elapsed();
        // All of them, unoptimised and on a busy machine: optimised, each takes some tens of milliseconds.
        assert!(took.as_secs() < 60, "{took:?}");
    }

    #[test]
    fn of_very_many_duplicates_a_hundred_are_told_of() {
        let fields: Vec<_> = (0..1000)
            .map(|n| format!("\"f{n}\":0,\"f{n}\":0"))
            .collect();
        let text = format!("{{{}}}", fields.join(","));
        let body = Body::from_json(text.as_bytes()).expect("JSON");
        assert_eq!(body.duplicates.len(), 100);
    }
}
