use serde_json::{Value, json};

use super::super::{Cause, CustomSchema, check};
use crate::GroupVersionKind;

fn schema(spec: &Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec}})
}

fn causes(spec: &Value, new: &Value, old: Option<&Value>) -> Vec<String> {
    let source = schema(spec);
    assert_eq!(check("s", &source), [], "{spec}");
    let schema = CustomSchema::parse(GroupVersionKind::new("example.com/v1", "Widget"), source);
    let whole = |spec: &Value| json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a"}, "spec": spec});
    let old = old.map(whole);
    let causes = schema.validate(&whole(new), old.as_ref());
    let shown = |cause: Cause| format!("{}: {}", cause.field, cause.message);
    causes.into_iter().map(shown).collect()
}

#[test]
fn rules_are_asked_and_say_what_they_have_to_in_upstreams_words() {
    let spec = json!({
        "type": "object",
        "required": ["least"],
        "properties": {
            "least": {"type": "integer"}, "most": {"type": "integer"},
            "name": {"type": "string", "x-kubernetes-validations": [
                {"rule": "self.startsWith('a')", "reason": "FieldValueForbidden", "message": "it begins with an a"},
                {"rule": "size(self) < 10", "messageExpression": "'it has ' + string(size(self)) + ' characters'"},
            ]},
            "at": {"type": "string", "format": "date-time"},
            "items": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.x > 0"}]}},
            "labels": {"type": "object", "additionalProperties": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self != ''", "message": "not empty"}]}},
        },
        "x-kubernetes-validations": [
            {"rule": "!has(self.most) || self.least <= self.most", "fieldPath": ".most"},
            {"rule": "!has(self.at) || self.at < timestamp('2030-01-01T00:00:00Z')", "message": "too late"},
            {"rule": "!has(self.labels) || self.labels['must'] == 'be'"},
        ],
    });
    let good = json!({"least": 1, "most": 2, "name": "ab", "at": "2024-01-01T00:00:00Z", "items": [{"x": 1}], "labels": {"must": "be"}});
    assert_eq!(causes(&spec, &good, None), [""; 0]);
    for (new, says) in [
        (
            json!({"least": 3, "most": 2}),
            vec![
                r#"spec.most: Invalid value: "object": failed rule: !has(self.most) || self.least <= self.most"#,
            ],
        ),
        (
            json!({"least": 1, "name": "b"}),
            vec!["spec.name: Forbidden: it begins with an a"],
        ),
        (
            json!({"least": 1, "name": "abcdefghijkl"}),
            vec![r#"spec.name: Invalid value: "string": it has 12 characters"#],
        ),
        (
            json!({"least": 1, "at": "2031-01-01T00:00:00Z"}),
            vec![r#"spec: Invalid value: "object": too late"#],
        ),
        (
            json!({"least": 1, "items": [{"x": 1}, {"x": 0}]}),
            vec![r#"spec.items[1]: Invalid value: "object": failed rule: self.x > 0"#],
        ),
        (
            json!({"least": 1, "labels": {"must": "be", "b": ""}}),
            vec![r#"spec.labels.b: Invalid value: "string": not empty"#],
        ),
        (
            json!({"least": 1, "labels": {"b": "c"}}),
            vec![
                r#"spec: Invalid value: "object": no such key: must evaluating rule: failed rule: !has(self.labels) || self.labels['must'] == 'be'"#,
            ],
        ),
        (
            json!({"name": "b"}),
            vec![
                "spec.least: Required value",
                "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ],
        ),
    ] {
        assert_eq!(causes(&spec, &new, None), says, "{new}");
    }
}

#[test]
fn rules_of_a_change_are_asked_where_there_was_something_before() {
    let spec = json!({
        "type": "object",
        "properties": {
            "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "it stays"}]},
            "grows": {"type": "integer", "x-kubernetes-validations": [
                {"rule": "oldSelf.orValue(0) <= self", "optionalOldSelf": true, "message": "it grows"},
            ]},
            "even": {"type": "integer", "x-kubernetes-validations": [{"rule": "self % 2 == 0", "message": "even"}]},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "port": {"type": "integer",
                    "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "a port stays"}]}}}},
        },
    });
    for (new, old, says) in [
        (json!({"fixed": "a"}), None, vec![]),
        (json!({"fixed": "a"}), Some(json!({})), vec![]),
        (json!({"fixed": "a"}), Some(json!({"fixed": "a"})), vec![]),
        (
            json!({"fixed": "b"}),
            Some(json!({"fixed": "a"})),
            vec![r#"spec.fixed: Invalid value: "string": it stays"#],
        ),
        (
            json!({"grows": -1}),
            None,
            vec![r#"spec.grows: Invalid value: "integer": it grows"#],
        ),
        (json!({"grows": 2}), Some(json!({"grows": 1})), vec![]),
        (
            json!({"grows": 0}),
            Some(json!({"grows": 1})),
            vec![r#"spec.grows: Invalid value: "integer": it grows"#],
        ),
        (
            json!({"even": 3}),
            Some(json!({"even": 2})),
            vec![r#"spec.even: Invalid value: "integer": even"#],
        ),
        // what was there before the rule may stay
        (json!({"even": 3}), Some(json!({"even": 3})), vec![]),
        (
            json!({"ports": [{"name": "b", "port": 2}, {"name": "a", "port": 9}, {"name": "c", "port": 3}]}),
            Some(json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]})),
            vec![r#"spec.ports[1].port: Invalid value: "integer": a port stays"#],
        ),
    ] {
        assert_eq!(causes(&spec, &new, old.as_ref()), says, "{new} {old:?}");
    }
}

#[test]
fn a_rule_that_can_not_be_is_refused_with_its_schema() {
    let with = |rule: Value| {
        schema(
            &json!({"type": "object", "properties": {"n": {"type": "integer"}}, "x-kubernetes-validations": [rule]}),
        )
    };
    let at = "s.properties[spec].x-kubernetes-validations[0]";
    for (rule, field, says) in [
        (json!({"rule": ""}), "rule", "rule is not specified"),
        (
            json!({"rule": "self.m == 1"}),
            "rule",
            "undefined field 'm'",
        ),
        (
            json!({"rule": "self.n.nope()"}),
            "rule",
            "undeclared reference to 'nope'",
        ),
        (json!({"rule": "self.n"}), "rule", "must evaluate to bool"),
        (
            json!({"rule": "true", "messageExpression": "1"}),
            "messageExpression",
            "must evaluate to string",
        ),
        (
            json!({"rule": "true", "message": "a\nb"}),
            "message",
            "must not contain line breaks",
        ),
        (
            json!({"rule": "true &&\ntrue"}),
            "message",
            "must be specified if rule contains line breaks",
        ),
        (
            json!({"rule": "true", "reason": "Nope"}),
            "reason",
            "Unsupported value",
        ),
        (
            json!({"rule": "true", "fieldPath": ".m"}),
            "fieldPath",
            "must be a valid path",
        ),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            "optionalOldSelf",
            "may not be set",
        ),
    ] {
        let found = check("s", &with(rule.clone()));
        assert_eq!(found.len(), 1, "{rule}: {found:?}");
        assert_eq!(found[0].field, format!("{at}.{field}"), "{rule}");
        assert!(found[0].message.contains(says), "{rule}: {found:?}");
    }
    let in_a_set = schema(
        &json!({"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}),
    );
    let found = check("s", &in_a_set);
    assert!(found[0].message.contains("uncorrelatable"), "{found:?}");
}

#[test]
fn rules_that_cost_too_much_end() {
    let spec = json!({"type": "array", "items": {"type": "integer"}, "x-kubernetes-validations": [
        {"rule": "self.all(a, self.all(b, self.all(c, a + b + c >= 0)))"},
        {"rule": "true"},
    ]});
    let many: Vec<u32> = (0..1000).collect();
    let found = causes(&spec, &json!(many), None);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("out of cost budget"), "{found:?}");
}
