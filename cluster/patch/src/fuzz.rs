//! What the fuzz targets drive (see `fuzz/README.md`), and the tests here with mutations of their own: whatever is sent, the answer is an object or
//! an error of the client, soon, and what was accepted once is accepted again.

use berth_schema::{GroupVersionKind, ObjectId, Schema};
use serde_json::{Value, json};

use crate::{FieldSet, Force, OneVersion, PatchType, Write, apply, patch, track_update};

const KINDS: [(&str, &str); 4] = [
    ("apps/v1", "Deployment"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
];

fn kind(at: u8) -> (GroupVersionKind, &'static Schema, ObjectId) {
    let (api_version, kind) = KINDS[usize::from(at) % KINDS.len()];
    let kind = GroupVersionKind::new(api_version, kind);
    let schema = Schema::built_in();
    let id = schema.kind(&kind).expect("a built-in kind");
    (kind, schema, id)
}

/// Input: a byte that chooses the kind, then a live object and patches of it, a line each.
pub fn strategic(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else {
        return;
    };
    let (_, schema, id) = kind(first);
    let mut lines = rest.split(|&byte| byte == b'\n');
    let Ok(mut live @ Value::Object(_)) = serde_json::from_slice(lines.next().unwrap_or_default())
    else {
        return;
    };
    for line in lines {
        for kind in [PatchType::Strategic, PatchType::Json, PatchType::Merge] {
            match patch(kind, Some((schema, id)), &live, line) {
                Ok(patched) if kind == PatchType::Strategic => live = patched,
                Ok(_) => {}
                Err(error) => assert!((400..500).contains(&error.status().0), "{error}"),
            }
        }
    }
}

/// Input: a byte that chooses the kind, then writes, a line each: a byte that says how and who, and the object.
pub fn apply_all(input: &[u8]) {
    let Some((&first, rest)) = input.split_first() else {
        return;
    };
    let (kind, schema, id) = kind(first);
    let reset = FieldSet::of_fields(&[&["status"]]);
    let mut live: Option<Value> = None;
    for line in rest.split(|&byte| byte == b'\n') {
        let Some((&how, object)) = line.split_first() else {
            continue;
        };
        let Ok(mut object) = serde_json::from_slice::<Value>(object) else {
            continue;
        };
        let write = Write {
            schema: (how & 1 == 0).then_some((schema, id)),
            kind: &kind,
            versions: &OneVersion,
            subresource: if how & 2 == 0 { "" } else { "status" },
            reset: &reset,
            manager: ["a", "b", "c", "kubectl"][usize::from(how >> 2) % 4],
            now: "2026-01-01T00:00:00Z",
        };
        let force = if how & 16 == 0 { Force::No } else { Force::Yes };
        if how & 32 != 0 {
            track_update(&write, live.clone().as_mut(), &mut object);
            live = Some(object);
            continue;
        }
        if let Value::Object(fields) = &mut object {
            fields.insert("apiVersion".to_owned(), json!(kind.api_version()));
            fields.insert("kind".to_owned(), json!(kind.kind));
        }
        match apply(&write, live.as_ref(), &object, force) {
            Ok(once) => {
                let twice = apply(&write, Some(&once), &object, Force::No);
                assert_eq!(twice.ok().as_ref(), Some(&once), "applied twice");
                live = Some(once);
            }
            Err(error) => assert!((400..500).contains(&error.status().0), "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use super::*;

    /// Of the kinds' own words, so that what is sent mostly is something.
    const NAMES: [&str; 28] = [
        "metadata",
        "labels",
        "annotations",
        "finalizers",
        "ownerReferences",
        "managedFields",
        "uid",
        "name",
        "spec",
        "replicas",
        "selector",
        "matchLabels",
        "strategy",
        "template",
        "containers",
        "image",
        "ports",
        "containerPort",
        "protocol",
        "port",
        "env",
        "volumes",
        "emptyDir",
        "data",
        "status",
        "conditions",
        "type",
        "a",
    ];

    const DIRECTIVES: [&str; 6] = [
        "$patch",
        "$retainKeys",
        "$setElementOrder/containers",
        "$setElementOrder/finalizers",
        "$deleteFromPrimitiveList/finalizers",
        "$setElementOrder/ports",
    ];

    fn value(directives: bool) -> impl Strategy<Value = Value> {
        let name = if directives {
            select([&NAMES[..], &DIRECTIVES[..]].concat())
        } else {
            select(NAMES.to_vec())
        };
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3_i64).prop_map(Value::from),
            Just(json!(1.0)),
            select(vec!["a", "b", "TCP", "delete", "replace", "merge", "name"])
                .prop_map(Value::from),
        ];
        let nested = scalar.prop_recursive(6, 48, 5, move |inner| {
            let fields = vec((name.clone(), inner.clone()), 0..5);
            prop_oneof![
                1 => vec(inner, 0..4).prop_map(Value::from),
                3 => fields.prop_map(object),
            ]
        });
        let parts = (nested.clone(), nested.clone(), nested);
        parts.prop_map(|(metadata, spec, status)| {
            let pod = json!({"containers": [spec, {"name": "a", "ports": [status]}]});
            json!({"metadata": metadata, "spec": {"template": {"spec": pod}, "ports": [status], "x": spec}})
        })
    }

    fn object(fields: Vec<(&'static str, Value)>) -> Value {
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Value::Object(fields.collect())
    }

    fn lines(first: u8, objects: &[Value]) -> Vec<u8> {
        let objects: Vec<String> = objects.iter().map(Value::to_string).collect();
        [&[first], objects.join("\n").as_bytes()].concat()
    }

    proptest! {
        #[test]
        fn fuzzed_patches_are_done_or_refused(
            first in 0..4_u8,
            live in value(false),
            patches in vec(value(true), 1..5),
        ) {
            let mut objects = vec![live];
            objects.extend(patches);
            strategic(&lines(first, &objects));
        }

        #[test]
        fn fuzzed_writes_are_done_or_refused_and_change_nothing_twice(
            first in 0..4_u8,
            writes in vec((any::<u8>(), value(false)), 1..8),
        ) {
            let mut input = vec![first];
            for (how, object) in writes {
                input.push(if how == b'\n' { 0 } else { how });
                input.extend(object.to_string().into_bytes());
                input.push(b'\n');
            }
            apply_all(&input);
        }

        /// Any two objects: the second is what is applied, and is there afterwards.
        #[test]
        fn what_is_applied_is_there(first in 0..4_u8, live in vec(value(false), 2..3)) {
            let (kind, _, _) = kind(first);
            let none = FieldSet::default();
            let write = Write {
                schema: None,
                kind: &kind,
                versions: &OneVersion,
                subresource: "",
                reset: &none,
                manager: "m",
                now: "2026-01-01T00:00:00Z",
            };
            let mut now = None;
            for mut object in live {
                object["apiVersion"] = kind.api_version().into();
                object["kind"] = json!(kind.kind);
                if object["metadata"].get("managedFields").is_some() || !object["metadata"].is_object() {
                    continue;
                }
                let applied = apply(&write, now.as_ref(), &object, Force::Yes).unwrap();
                let mut without = applied.clone();
                crate::managed::set_entries(&mut without, None);
                for (name, value) in object["spec"].as_object().unwrap() {
                    if value.is_array() {
                        prop_assert_eq!(&without["spec"][name], value);
                    }
                }
                now = Some(applied);
            }
        }
    }

    #[test]
    fn what_is_no_input_is_nothing() {
        for input in [
            &b""[..],
            b"\0",
            b"\0\n\n",
            b"\xff{",
            b"\0{}\n{",
            b"\0[]\n[]",
        ] {
            strategic(input);
            apply_all(input);
        }
    }
}
