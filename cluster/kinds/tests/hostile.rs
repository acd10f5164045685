//! Hooks take whatever comes: they get objects that a strict decoder would refuse, too (SEC-API-04).

mod of;

use berth_kinds::{Kind, all, ephemeral_containers_update, resize_update, selectable};
use of::{kind_of, manifests};
use proptest::{collection, prelude::*};
use serde_json::{Value, json};

/// All that is done to an object; none of it may panic, and defaults settle.
fn everything(kind: &Kind, object: &Value, old: &Value) {
    let mut new = object.clone();
    (kind.default)(&mut new);
    let once = new.clone();
    (kind.default)(&mut new);
    assert_eq!(new, once, "defaults of {} settle: {object}", kind.kind);
    let errors = (kind.validate)(&new);
    assert!(errors.len() <= 100);
    (kind.validate)(object);
    (kind.validate_create)(object);
    (kind.validate_update)(&new, old);
    (kind.validate_update)(old, &new);
    if kind.kind == "Pod" {
        ephemeral_containers_update(&new, old);
        resize_update(&new, old);
    }
    (kind.prepare_update)(&mut new, old);
    (kind.prepare_create)(&mut new);
    for column in kind.columns {
        column.cell(object, i64::MAX);
        column.cell(&new, i64::MIN);
    }
    selectable(kind, object);
    (kind.to_stored)(&mut new);
    (kind.from_stored)(&mut new);
}

fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
    all.push(at.to_owned());
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                pointers(value, &format!("{at}/{key}"), all);
            }
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                pointers(value, &format!("{at}/{index}"), all);
            }
        }
        _ => {}
    }
}

#[test]
fn a_manifest_with_anything_at_any_place_never_panics() {
    let hostile = [
        json!(null),
        json!(true),
        json!(-1),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(1e308),
        json!(""),
        json!("ä\u{0}/../:%[]@"),
        json!("9999999999999999999999999999999999999999999999.9E999i"),
        json!([]),
        json!({}),
        json!([null, [[]], {"name": []}, "", 0]),
        json!({"": null, "name": {}, "a/b/c": [1], "type": 5}),
    ];
    for (_, written) in manifests() {
        let kind = kind_of(&written);
        let mut full = written;
        (kind.default)(&mut full);
        (kind.prepare_create)(&mut full);
        let mut places = Vec::new();
        pointers(&full, "", &mut places);
        for (at, place) in places.into_iter().enumerate() {
            // A third of them at each place, another third at the next: all at each would take minutes.
            for value in hostile.iter().skip(at % 3).step_by(3) {
                let mut object = full.clone();
                *object.pointer_mut(&place).unwrap() = value.clone();
                everything(kind, &object, &full);
            }
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    const KEYS: [&str; 30] = [
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "name",
        "ports",
        "selector",
        "labels",
        "matchLabels",
        "resources",
        "limits",
        "requests",
        "cpu",
        "volumes",
        "type",
        "rules",
        "data",
        "type",
        "schedule",
        "jobTemplate",
        "initContainers",
        "conditions",
        "subsets",
        "addresses",
        "metrics",
        "env",
        "state",
        "terminated",
        "x",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        "[0-9.]{1,30}(m|Ki|E|e[0-9]{1,3})?".prop_map(Value::from),
        "20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}(Z|\\+99:99)".prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 96, 8, |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            collection::btree_map(proptest::sample::select(&KEYS[..]), inner, 0..8).prop_map(
                |map| {
                    Value::Object(
                        map.into_iter()
                            .map(|(key, value)| (key.to_owned(), value))
                            .collect(),
                    )
                }
            ),
        ]
    })
}

/// Each case goes through all kinds: half of the usual number, unless PROPTEST_CASES asks for another.
fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES");
    let asked = asked.ok().and_then(|count| count.parse().ok());
    ProptestConfig::with_cases(asked.unwrap_or(128))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn any_json_never_panics(object in any_json(), old in any_json()) {
        for kind in all() {
            everything(kind, &object, &old);
        }
    }
}
