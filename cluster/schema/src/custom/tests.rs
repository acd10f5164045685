use serde_json::{Value, json};

use super::*;

fn kind() -> GroupVersionKind {
    GroupVersionKind::new("example.com/v1", "Widget")
}

fn widget() -> CustomSchema {
    let source = json!({
        "type": "object", "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": {"type": "object", "required": ["size"], "properties": {
                "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 10},
                "ratio": {"type": "number", "exclusiveMinimum": true, "minimum": 0, "multipleOf": 0.5},
                "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
                "name": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4},
                "when": {"type": "string", "format": "date-time"},
                "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "note": {"type": "string", "nullable": true},
                "ports": {"type": "array", "maxItems": 3, "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["port", "protocol"],
                    "items": {"type": "object", "required": ["port"], "properties": {
                        "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
                "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 2},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true,
                    "x-kubernetes-preserve-unknown-fields": true},
                "deep": {"type": "object", "default": {}, "properties": {
                    "on": {"type": "boolean", "default": true}}},
                "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            }},
            "status": {"type": "object", "properties": {"size": {"type": "integer"}}},
        },
    });
    assert_eq!(check("s", &source), []);
    CustomSchema::parse(kind(), source)
}

#[test]
fn fields_that_a_schema_does_not_have_are_pruned_and_told_of() {
    let mut object = json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "other": 1,
        "metadata": {"name": "a", "labels": {"any": "thing"}, "wrong": 1, "creationTimestamp": null},
        "spec": {
            "size": 1, "sizes": 2,
            "ports": [{"port": 1, "x": 1}],
            "labels": {"any": "thing"},
            "free": {"any": {"thing": [1]}, "known": {"a": "b", "c": "d"}},
            "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"x": 1}, "spec": {"y": 1}},
        },
    });
    let unknown = widget().prune(&mut object).expect("its metadata is right");
    assert_eq!(
        unknown,
        [
            r#"unknown field "metadata.wrong""#,
            r#"unknown field "other""#,
            r#"unknown field "spec.free.known.c""#,
            r#"unknown field "spec.ports[0].x""#,
            r#"unknown field "spec.sizes""#,
        ]
    );
    assert_eq!(
        object,
        json!({
            "apiVersion": "example.com/v1", "kind": "Widget",
            "metadata": {"name": "a", "labels": {"any": "thing"}},
            "spec": {
                "size": 1, "ports": [{"port": 1}], "labels": {"any": "thing"},
                "free": {"any": {"thing": [1]}, "known": {"a": "b"}},
                "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"x": 1}, "spec": {"y": 1}},
            },
        })
    );
    let mut wrong = json!({"metadata": {"labels": {"a": 1}}});
    assert!(widget().prune(&mut wrong).is_err());
}

#[test]
fn defaults_fill_in_what_is_absent_and_in_what_they_filled_in() {
    let mut object = json!({"metadata": {}, "spec": {
        "size": null, "color": null, "note": null, "ports": [{"port": 1}, {"port": 2, "protocol": "UDP"}]}});
    let widget = widget();
    widget.default(&mut object);
    assert_eq!(
        object,
        json!({"metadata": {}, "spec": {
            "color": "red", "note": null, "deep": {"on": true},
            "ports": [{"port": 1, "protocol": "TCP"}, {"port": 2, "protocol": "UDP"}]}})
    );
    let mut again = object.clone();
    widget.default(&mut again);
    assert_eq!(again, object);
    let mut none = json!({});
    widget.default(&mut none);
    assert_eq!(none, json!({}));
}

#[test]
fn values_are_validated_with_upstreams_causes() {
    let widget = widget();
    for (spec, causes) in [
        (json!({"size": 1}), vec![]),
        (
            json!({"size": 10, "ratio": 0.5, "port": "http", "note": null, "name": "abc"}),
            vec![],
        ),
        (json!({}), vec![("spec.size", "Required value")]),
        (
            json!({"size": "1"}),
            vec![(
                "spec.size",
                "Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
            )],
        ),
        (
            json!({"size": 0}),
            vec![(
                "spec.size",
                "Invalid value: 0: spec.size in body should be greater than or equal to 1",
            )],
        ),
        (
            json!({"size": 11}),
            vec![(
                "spec.size",
                "Invalid value: 11: spec.size in body should be less than or equal to 10",
            )],
        ),
        (
            json!({"size": 1, "ratio": 0}),
            vec![(
                "spec.ratio",
                "Invalid value: 0: spec.ratio in body should be greater than 0",
            )],
        ),
        (
            json!({"size": 1, "ratio": 0.7}),
            vec![(
                "spec.ratio",
                "Invalid value: 0.7: spec.ratio in body should be a multiple of 0.5",
            )],
        ),
        (
            json!({"size": 1, "color": "blue"}),
            vec![(
                "spec.color",
                "Unsupported value: \"blue\": supported values: \"red\", \"green\"",
            )],
        ),
        (
            json!({"size": 1, "name": "A"}),
            vec![
                (
                    "spec.name",
                    "Invalid value: \"A\": spec.name in body should be at least 2 chars long",
                ),
                (
                    "spec.name",
                    "Invalid value: \"A\": spec.name in body should match '^[a-z]+$'",
                ),
            ],
        ),
        (
            json!({"size": 1, "name": "abcde"}),
            vec![("spec.name", "Too long: may not be more than 4 bytes")],
        ),
        (
            json!({"size": 1, "when": "now"}),
            vec![(
                "spec.when",
                "Invalid value: \"now\": spec.when in body must be of type date-time: \"now\"",
            )],
        ),
        (
            json!({"size": 1, "port": true}),
            vec![(
                "spec.port",
                "Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            )],
        ),
        (
            json!({"size": 1, "color": null}),
            vec![(
                "spec.color",
                "Invalid value: \"null\": spec.color in body must be of type string: \"null\"",
            )],
        ),
        (
            json!({"size": 1, "ports": [{"port": 1}, {"port": 1, "protocol": "UDP"}, {"port": 1, "protocol": "TCP"}]}),
            vec![(
                "spec.ports[2]",
                "Duplicate value: {\"port\":1,\"protocol\":\"TCP\"}",
            )],
        ),
        (
            json!({"size": 1, "ports": [1, 2, 3, 4]}),
            vec![("spec.ports", "Too many: 4: must have at most 3 items")],
        ),
        (
            json!({"size": 1, "tags": ["a", "b", "a"]}),
            vec![("spec.tags[2]", "Duplicate value: \"a\"")],
        ),
        (
            json!({"size": 1, "labels": {"a": 1}}),
            vec![(
                "spec.labels.a",
                "Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
            )],
        ),
        (
            json!({"size": 1, "template": {"kind": "Pod"}}),
            vec![(
                "spec.template.apiVersion",
                "Required value: must not be empty",
            )],
        ),
        (
            json!({"size": 1, "one": {}}),
            vec![(
                "spec.one",
                "Invalid value: \"\": spec.one in body must validate one and only one schema (oneOf). Found none valid",
            )],
        ),
    ] {
        let found = widget.validate(&json!({"spec": spec}), None);
        let found: Vec<_> = found
            .iter()
            .map(|cause| (cause.field.as_str(), cause.message.as_str()))
            .collect();
        assert_eq!(found, causes, "{spec}");
    }
    let many: Vec<_> = (0..10_000).map(|_| json!("a")).collect();
    let found = widget.validate(&json!({"spec": {"size": 1, "tags": many}}), None);
    assert!(found.len() <= 100, "{}", found.len());
}

#[test]
fn what_patches_need_is_in_the_schema() {
    let widget = widget();
    let schema = widget.schema();
    assert_eq!(schema.kind(&kind()), Some(widget.id()));
    let root = schema.object(widget.id());
    let Some(Type::Object(metadata)) = root.field("metadata").map(|field| &field.ty) else {
        panic!("{root:?}")
    };
    let owners = schema.object(*metadata).field("ownerReferences");
    assert_eq!(
        owners.and_then(|field| field.merge_key.as_deref()),
        Some("uid")
    );
    let Some(Type::Object(spec)) = root.field("spec").map(|field| &field.ty) else {
        panic!("{root:?}")
    };
    let spec = schema.object(*spec);
    let ty = |name: &str| spec.field(name).map(|field| field.ty.clone());
    assert_eq!(ty("port"), Some(Type::String(StringFormat::IntOrString)));
    let Some(Type::List(_, ListKind::Map { keys })) = ty("ports") else {
        panic!("{spec:?}")
    };
    assert_eq!(keys, ["port".into(), "protocol".into()]);
    assert!(matches!(ty("tags"), Some(Type::List(_, ListKind::Set))));
    assert!(matches!(ty("labels"), Some(Type::Map(..))));
    let Some(Type::Object(free)) = ty("free") else {
        panic!("{spec:?}")
    };
    assert!(schema.object(free).preserve_unknown);
}

#[test]
fn schemas_that_are_not_structural_are_refused_in_upstreams_words() {
    for (schema, field, message) in [
        (
            json!({}),
            "s.type",
            "Required value: must not be empty at the root",
        ),
        (
            json!({"type": "string"}),
            "s.type",
            "Invalid value: \"string\": must be object at the root",
        ),
        (
            json!({"type": "object", "nullable": true}),
            "s.nullable",
            "Forbidden: nullable cannot be true at the root",
        ),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            "s.properties[a].type",
            "Required value: must not be empty for specified object fields",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            "s.properties[a].items",
            "Required value: must be specified",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "items": {}}}}),
            "s.properties[a].items.type",
            "Required value: must not be empty for specified array items",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "items": [{"type": "string"}]}}}),
            "s.properties[a].items",
            "Forbidden: items must be a schema object and not an array",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "word"}}}),
            "s.properties[a].type",
            "Unsupported value: \"word\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "uniqueItems": true}}}),
            "s.properties[a].uniqueItems",
            "Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "$ref": "#/x"}}}),
            "s.properties[a].$ref",
            "Forbidden: $ref is not supported",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}},
                "additionalProperties": {"type": "string"}}}}),
            "s.properties[a].additionalProperties",
            "Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            json!({"type": "object", "anyOf": [{"properties": {"a": {"type": "string"}}}]}),
            "s.anyOf[0].properties[a].type",
            "Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            "s.properties[metadata]",
            "Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["b"], "items": {"type": "object", "properties": {"b": {"type": "string"}}}}}}),
            "s.properties[a].items.properties[b].default",
            "Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            "s.properties[a].default",
            "Invalid value: \"string\":  in body must be of type integer: \"string\"",
        ),
    ] {
        let causes = check("s", &schema);
        let found: Vec<_> = causes
            .iter()
            .map(|cause| (cause.field.as_str(), cause.message.as_str()))
            .collect();
        assert_eq!(found, [(field, message)], "{schema}");
    }
    let pattern =
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}});
    assert!(
        check("s", &pattern)[0]
            .message
            .contains("must be a valid regular expression")
    );
    assert!(!check("s", &json!("object")).is_empty());
}

/// Patterns of a CRD are those of whoever may write CRDs: none may stop the server.
#[test]
fn a_pattern_takes_no_more_than_linear_time_and_little_memory_sec_api_04() {
    let source = json!({"type": "object", "properties": {
        "a": {"type": "string", "pattern": "^(a+)+$"}}});
    assert_eq!(check("s", &source), []);
    let schema = CustomSchema::parse(kind(), source);
    let started = std::time::Instant::now();
    let causes = schema.validate(&json!({"a": format!("{}b", "a".repeat(100_000))}), None);
    assert_eq!(causes.len(), 1);
    assert!(started.elapsed().as_secs() < 5);
    let huge = json!({"type": "object", "properties": {
        "a": {"type": "string", "pattern": "((((a{100}){100}){100}){100})"}}});
    assert_eq!(check("s", &huge).len(), 1);
}

#[test]
fn what_was_never_checked_is_read_and_does_no_harm() {
    for source in [
        json!(null),
        json!([]),
        json!({"type": 1, "properties": [], "items": 1, "required": "a", "enum": {}, "pattern": "("}),
        json!({"properties": {"a": null, "b": 1, "metadata": {"type": "string"}}}),
    ] {
        let schema = CustomSchema::parse(kind(), source);
        let mut object = json!({"a": 1, "b": {"c": [1]}, "metadata": {"name": "a"}});
        let _ = schema.prune(&mut object);
        schema.default(&mut object);
        let _: Vec<Cause> = schema.validate(&object, None);
        assert_eq!(object["metadata"], json!({"name": "a"}));
        let _: &Value = schema.source();
    }
}
