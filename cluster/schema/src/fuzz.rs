//! What a fuzzer feeds: bodies as clients may send them. Each entry returns, whatever the bytes are, and asserts what must hold for those
//! that are taken.

use serde_json::Value;

use crate::{Body, CustomSchema, GroupVersionKind, MAX_DEPTH, Schema, check_custom};

/// A body of `application/vnd.kubernetes.protobuf`.
pub fn protobuf(input: &[u8]) {
    let schema = Schema::built_in();
    let Ok((kind, value)) = schema.decode_protobuf(input, None) else {
        return;
    };
    assert!(depth(&value) <= MAX_DEPTH, "{kind:?}");
    let id = schema.kind(&kind).expect("it was decoded as one");
    let mut conformed = value.clone();
    let unknown = schema
        .conform(id, &mut conformed)
        .expect("it has the types of the table");
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(serde_json::from_slice::<Value>(value.to_string().as_bytes()).is_ok());
}

/// A body of JSON or YAML, taken for an object of a few kinds.
pub fn text(input: &[u8]) {
    let schema = Schema::built_in();
    for body in [Body::from_json(input), Body::from_yaml(input)] {
        let Ok(Body { value, .. }) = body else {
            continue;
        };
        assert!(depth(&value) <= MAX_DEPTH);
        for (version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Secret")] {
            let id = schema
                .kind(&GroupVersionKind::new(version, kind))
                .expect("built in");
            let mut once = value.clone();
            if schema.conform(id, &mut once).is_ok() {
                let mut twice = once.clone();
                assert_eq!(schema.conform(id, &mut twice), Ok(Vec::new()));
                assert_eq!(once, twice);
            }
        }
    }
}

/// An openAPIV3Schema and an object, in a list of two.
pub fn custom(input: &[u8]) {
    let Ok(Body { value, .. }) = Body::from_json(input) else {
        return;
    };
    let (source, object) = (value[0].clone(), value[1].clone());
    let _causes = check_custom("schema", &source);
    let schema = CustomSchema::parse(GroupVersionKind::new("example.com/v1", "Widget"), source);
    let mut object = object;
    if schema.prune(&mut object).is_ok() {
        assert_eq!(schema.prune(&mut object), Ok(Vec::new()));
    }
    schema.default(&mut object);
    let _causes = schema.validate(&object, None);
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protobuf::tests::BODIES;

    /// Bytes written over, and a length to cut at.
    fn mutated(
        seed: &[u8],
        edits: &[(prop::sample::Index, u8)],
        cut: Option<prop::sample::Index>,
    ) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes
    }

    const TEXTS: [&str; 2] = [
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"containers":[{"name":"a","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1"}}}]}}"#,
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: &m\n  name: a\nspec:\n  replicas: 3\n  template: {metadata: *m, spec: {containers: []}}\n",
    ];

    const CUSTOMS: [&str; 2] = [
        r#"[{"type":"object","properties":{"spec":{"type":"object","required":["a"],"properties":{"a":{"type":"integer","minimum":1,"default":2},"b":{"type":"array","items":{"type":"string","pattern":"^a+$"}}}}}},{"metadata":{"name":"a"},"spec":{"a":0,"b":["a","b"],"c":null}}]"#,
        r#"[{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"a":{"type":"object","additionalProperties":{"type":"number"}}}},{"a":{"b":1,"c":"d"},"e":{}}]"#,
    ];

    proptest! {
        #[test]
        fn a_mutated_protobuf_body_is_refused_or_whole_sec_api_05(
            seed in 0..BODIES.len(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<Option<prop::sample::Index>>(),
        ) {
            protobuf(&mutated(BODIES[seed].1, &edits, cut));
        }

        #[test]
        fn a_mutated_text_is_refused_or_conforms_for_good(
            seed in 0..TEXTS.len(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<Option<prop::sample::Index>>(),
        ) {
            text(&mutated(TEXTS[seed].as_bytes(), &edits, cut));
        }

        #[test]
        fn a_mutated_schema_does_no_harm(
            seed in 0..CUSTOMS.len(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            custom(&mutated(CUSTOMS[seed].as_bytes(), &edits, None));
        }
    }
}
