//! Strategic merge: a patch of the object's own form, whose lists are merged by key where the form says so, with directives for what such a patch can't say.
//!
//! Like upstream's, it takes a directive out of the patch where it acts on it; in what the patch brings anew, none is left.

mod list;
mod order;

use std::collections::BTreeSet;

use berth_schema::{Field, ObjectId, ObjectType, Schema, Type};
use serde_json::{Map, Value};

use crate::{error::PatchError, print};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ELEMENT_ORDER: &str = "$setElementOrder";
const DELETE_FROM_PRIMITIVE_LIST: &str = "$deleteFromPrimitiveList";

/// `live` as `patch` changes it.
pub(crate) fn strategic_merge(
    schema: &Schema,
    id: ObjectId,
    live: &Map<String, Value>,
    patch: Map<String, Value>,
) -> Result<Map<String, Value>, PatchError> {
    merge_map(live.clone(), patch, Form::Object(schema, schema.object(id)))
}

/// What is known of a map whose fields are merged.
#[derive(Debug, Clone, Copy)]
enum Form<'a> {
    Object(&'a Schema, &'a ObjectType),
    Map(&'a Schema, &'a Type),
    /// Upstream refuses what it can't look into; it is merged like JSON here.
    Unknown,
}

/// How a list is merged.
#[derive(Debug, Clone, Copy)]
struct ListForm<'a> {
    elements: Form<'a>,
    /// Otherwise it is replaced.
    merged: bool,
    merge_key: Option<&'a str>,
}

impl<'a> Form<'a> {
    fn of_type(schema: &'a Schema, ty: &'a Type) -> Self {
        match ty {
            Type::Object(id) => Self::Object(schema, schema.object(*id)),
            Type::Map(element, _) => Self::Map(schema, element),
            _ => Self::Unknown,
        }
    }

    fn field(self, name: &str) -> Result<Option<&'a Field>, PatchError> {
        let Self::Object(_, object) = self else {
            return Ok(None);
        };
        match object.field(name) {
            Some(field) => Ok(Some(field)),
            None if object.preserve_unknown || object.fields.is_empty() => Ok(None),
            None => Err(malformed(format!(
                "unable to find api field in struct {} for the json field {}",
                object.name.rsplit('.').next().unwrap_or_default(),
                print::quoted(name)
            ))),
        }
    }

    fn child(self, name: &str) -> Result<Self, PatchError> {
        let field = self.field(name)?;
        Ok(match (self, field) {
            (Self::Object(schema, _), Some(field)) => Self::of_type(schema, &field.ty),
            (Self::Map(schema, element), _) => Self::of_type(schema, element),
            _ => Self::Unknown,
        })
    }

    fn list(self, name: &str) -> Result<ListForm<'a>, PatchError> {
        let replaced = ListForm {
            elements: Self::Unknown,
            merged: false,
            merge_key: None,
        };
        let (Self::Object(schema, _), Some(field)) = (self, self.field(name)?) else {
            return Ok(replaced);
        };
        let Type::List(element, _) = &field.ty else {
            return Ok(replaced);
        };
        Ok(ListForm {
            elements: Self::of_type(schema, element),
            merged: field.patch_merge,
            merge_key: field.merge_key.as_deref(),
        })
    }

    fn replaces(self, name: &str) -> bool {
        let Self::Object(_, object) = self else {
            return false;
        };
        object.field(name).is_some_and(|field| field.patch_replace)
    }
}

fn merge_map(
    mut original: Map<String, Value>,
    mut patch: Map<String, Value>,
    form: Form<'_>,
) -> Result<Map<String, Value>, PatchError> {
    if let Some(directive) = patch.get(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => {
                patch.remove(DIRECTIVE);
                Ok(patch)
            }
            Some("delete") => Ok(Map::new()),
            _ => Err(unknown_directive(directive, &patch)),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    order::merge_ordered(&mut original, &mut patch, form)?;

    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_FROM_PRIMITIVE_LIST) {
            let name = name.strip_prefix('/').ok_or_else(bad_primitive_list)?;
            delete_from_list(&mut original, name, &value)?;
            continue;
        }
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        let merged = match (original.remove(&key), value) {
            (Some(Value::Object(_)), Value::Object(patch)) if form.replaces(&key) => {
                Some(Value::Object(patch))
            }
            (Some(Value::Object(old)), Value::Object(patch)) => {
                let merged = merge_map(old, patch, form.child(&key)?)?;
                Some(Value::Object(merged))
            }
            (Some(Value::Array(old)), Value::Array(patch)) => {
                let list = form.list(&key)?;
                let merged = if list.merged {
                    list::merge_list(old, patch, list)?
                } else {
                    patch
                };
                Some(Value::Array(merged))
            }
            (_, value) => as_new(value),
        };
        if let Some(merged) = merged {
            original.insert(key, merged);
        }
    }
    Ok(original)
}

/// Takes away all that `$retainKeys` does not name; the patch may have nothing that it does not name.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), PatchError> {
    let Some(kept) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || malformed("invalid patch format of retainKeys");
    let kept: BTreeSet<&str> = kept
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let named = patch.iter().all(|(key, value)| {
        value.is_null()
            || key.starts_with(DELETE_FROM_PRIMITIVE_LIST)
            || key.starts_with(SET_ELEMENT_ORDER)
            || kept.contains(key.as_str())
    });
    if !named {
        return Err(bad());
    }
    original.retain(|key, _| kept.contains(key.as_str()));
    Ok(())
}

fn delete_from_list(
    original: &mut Map<String, Value>,
    name: &str,
    gone: &Value,
) -> Result<(), PatchError> {
    if gone.is_null() {
        original.remove(name);
        return Ok(());
    }
    let (Some(Value::Array(old)), Value::Array(gone)) = (original.get_mut(name), gone) else {
        return Ok(());
    };
    if old.is_empty() && gone.is_empty() {
        return Ok(());
    }
    if list::element_kind(&[old, gone])? == list::ElementKind::Map {
        return Err(bad_primitive_list());
    }
    let gone: BTreeSet<String> = gone.iter().map(list::text_of).collect();
    old.retain(|value| !gone.contains(&list::text_of(value)));
    Ok(())
}

/// What a patch brings that was not there: without nulls, and without what has a directive. `None`: it is one itself.
fn as_new(mut value: Value) -> Option<Value> {
    discard_nulls(&mut value);
    without_directives(value)
}

fn discard_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(discard_nulls);
        }
        Value::Array(elements) => elements.iter_mut().for_each(discard_nulls),
        _ => {}
    }
}

fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) => {
            if fields.contains_key(DIRECTIVE) {
                return None;
            }
            let fields = fields
                .into_iter()
                .filter_map(|(key, value)| Some((key, without_directives(value)?)));
            Some(Value::Object(fields.collect()))
        }
        Value::Array(elements) => Some(Value::Array(list_without_directives(elements))),
        value => Some(value),
    }
}

fn list_without_directives(elements: Vec<Value>) -> Vec<Value> {
    elements
        .into_iter()
        .filter_map(without_directives)
        .collect()
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

fn bad_primitive_list() -> PatchError {
    malformed("invalid patch format of primitive list")
}

fn bad_element_order() -> PatchError {
    malformed("invalid patch format of setElementOrder list")
}

fn unknown_directive(directive: &Value, patch: &Map<String, Value>) -> PatchError {
    malformed(format!(
        "unknown patch type: {} in map: {}",
        print::plain(directive),
        print::plain_map(patch)
    ))
}

fn no_merge_key(element: &Map<String, Value>, key: &str) -> PatchError {
    malformed(format!(
        "map: {} does not contain declared merge key: {key}",
        print::plain_map(element)
    ))
}

fn bad_type(expected: &str, value: &Value) -> PatchError {
    malformed(format!(
        "expected a {expected}, but received a {}",
        print::type_name(value)
    ))
}

fn as_element(value: &Value) -> Result<&Map<String, Value>, PatchError> {
    value
        .as_object()
        .ok_or_else(|| bad_type("map[string]interface {}", value))
}

#[cfg(test)]
mod tests {
    use berth_schema::GroupVersionKind;
    use serde_json::json;

    use super::*;

    fn merged(
        api_version: &str,
        kind: &str,
        live: &Value,
        patch: &Value,
    ) -> Result<Value, PatchError> {
        let schema = Schema::built_in();
        let id = schema
            .kind(&GroupVersionKind::new(api_version, kind))
            .unwrap();
        let (Value::Object(live), Value::Object(patch)) = (live, patch) else {
            panic!("no objects: {live} {patch}");
        };
        strategic_merge(schema, id, live, patch.clone()).map(Value::Object)
    }

    fn pod(live: Value, patch: Value) -> Result<Value, PatchError> {
        merged("v1", "Pod", &json!({"spec": live}), &json!({"spec": patch}))
            .map(|pod| pod["spec"].clone())
    }

    #[test]
    fn each_directive_does_what_it_says() {
        let cases = [
            (
                "null takes a field away, and is nothing where there is none",
                json!({"hostname": "a", "nodeName": "n"}),
                json!({"hostname": null, "subdomain": null}),
                json!({"nodeName": "n"}),
            ),
            (
                "a list with a merge key is merged by it, and takes the patch's order",
                json!({"containers": [{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}]}),
                json!({"containers": [{"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2"}]}),
                json!({"containers": [
                    {"name": "c", "image": "c:1"}, {"name": "a", "image": "a:2"}, {"name": "b", "image": "b:1"},
                ]}),
            ),
            (
                "a list without one is replaced",
                json!({"containers": [{"name": "a", "args": ["x", "y"]}]}),
                json!({"containers": [{"name": "a", "args": ["z"]}]}),
                json!({"containers": [{"name": "a", "args": ["z"]}]}),
            ),
            (
                "$patch: delete takes an element away",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"name": "a", "$patch": "delete"}]}),
                json!({"containers": [{"name": "b"}]}),
            ),
            (
                "$patch: replace in a list leaves what is beside it",
                json!({"containers": [{"name": "a"}, {"name": "b"}]}),
                json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
                json!({"containers": [{"name": "c"}]}),
            ),
            (
                "$patch: replace in a map leaves what is beside it",
                json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
                json!({"securityContext": {"$patch": "replace", "runAsGroup": 3}}),
                json!({"securityContext": {"runAsGroup": 3}}),
            ),
            (
                "$patch: delete empties a map",
                json!({"securityContext": {"runAsUser": 1}}),
                json!({"securityContext": {"$patch": "delete"}}),
                json!({"securityContext": {}}),
            ),
            (
                "what is new brings no nulls and nothing that has a directive",
                json!({}),
                json!({"securityContext": {"runAsUser": null, "seLinuxOptions": {"$patch": "delete"}}}),
                json!({"securityContext": {}}),
            ),
            (
                "$retainKeys clears what it does not name",
                json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}]}),
                json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
            ),
            (
                "$setElementOrder orders what it names, and the rest stays where it was",
                json!({"containers": [{"name": "a"}, {"name": "s"}, {"name": "b"}]}),
                json!({
                    "$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
                    "containers": [{"name": "n", "image": "n:1"}],
                }),
                json!({"containers": [
                    {"name": "s"}, {"name": "b"}, {"name": "n", "image": "n:1"}, {"name": "a"},
                ]}),
            ),
            (
                "what is new takes the place of what is deleted",
                json!({"containers": [{"name": "e"}, {"name": "d"}]}),
                json!({
                    "$setElementOrder/containers": [{"name": "a"}],
                    "containers": [{"name": "e", "$patch": "delete"}, {"name": "a"}],
                }),
                json!({"containers": [{"name": "d"}, {"name": "a"}]}),
            ),
            (
                "ports are merged by containerPort alone",
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}),
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "web"}]}]}),
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "web"}]}]}),
            ),
        ];
        for (what, live, patch, expected) in cases {
            let once = pod(live, patch.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(once, expected, "{what}");
            assert_eq!(pod(once, patch).unwrap(), expected, "twice: {what}");
        }
    }

    #[test]
    fn lists_of_primitives_are_sets_that_a_parallel_list_takes_from() {
        let meta = |live: Value, patch: Value| {
            merged(
                "v1",
                "ConfigMap",
                &json!({"metadata": live}),
                &json!({"metadata": patch}),
            )
            .map(|object| object["metadata"]["finalizers"].clone())
        };
        let live = json!({"finalizers": ["a", "b", "c"]});
        assert_eq!(
            meta(live.clone(), json!({"finalizers": ["d", "b"]})).unwrap(),
            json!(["d", "a", "b", "c"])
        );
        assert_eq!(
            meta(
                live.clone(),
                json!({"$deleteFromPrimitiveList/finalizers": ["b", "x"]})
            )
            .unwrap(),
            json!(["a", "c"])
        );
        assert_eq!(
            meta(
                live,
                json!({
                    "$deleteFromPrimitiveList/finalizers": ["b"],
                    "$setElementOrder/finalizers": ["c", "d", "a"],
                    "finalizers": ["d"],
                })
            )
            .unwrap(),
            json!(["c", "d", "a"])
        );
    }

    #[test]
    fn a_field_that_is_replaced_is_replaced() {
        let live = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        let patch = json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}});
        assert_eq!(
            merged("policy/v1", "PodDisruptionBudget", &live, &patch).unwrap(),
            patch
        );
        let merged = merged("apps/v1", "Deployment", &live, &patch).unwrap();
        assert_eq!(
            merged,
            json!({"spec": {"selector": {"matchLabels": {"a": "b", "c": "d"}}}})
        );
    }

    #[test]
    fn what_is_no_patch_of_the_object_says_why() {
        let containers = json!({"containers": [{"name": "a"}]});
        let cases = [
            (
                json!({"containers": [{"image": "x"}]}),
                "map: map[image:x] does not contain declared merge key: name",
            ),
            (
                json!({"containers": [{"name": "a", "$patch": "merge"}]}),
                "merging lists cannot yet be specified in the patch",
            ),
            (
                json!({"containers": [{"name": "a", "$patch": "keep"}]}),
                "unknown patch type: keep in map: map[$patch:keep name:a]",
            ),
            (
                json!({"$patch": "keep"}),
                "unknown patch type: keep in map: map[$patch:keep]",
            ),
            (
                json!({"containers": ["a"]}),
                "list element types are not identical",
            ),
            (
                json!({"containers": [["a"]]}),
                "lists of lists are not supported",
            ),
            (
                json!({"containers": [null]}),
                "list element types are not identical",
            ),
            (
                json!({"$retainKeys": "x"}),
                "invalid patch format of retainKeys",
            ),
            (
                json!({"$retainKeys": ["x"], "hostname": "a"}),
                "invalid patch format of retainKeys",
            ),
            (
                json!({"$setElementOrder": []}),
                "invalid patch format of setElementOrder list",
            ),
            (
                json!({"$setElementOrder/containers": "x"}),
                "expected a []interface {}, but received a string",
            ),
            (
                json!({"$setElementOrder/none": []}),
                "unable to find api field in struct PodSpec for the json field \"none\"",
            ),
            (
                json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "c"}]}),
                "doesn't match $setElementOrder list",
            ),
            (
                json!({"$deleteFromPrimitiveList": ["x"]}),
                "invalid patch format of primitive list",
            ),
            (
                json!({"containers": [{"name": {"a": 1}}]}),
                "has merge key name that is no scalar",
            ),
        ];
        for (patch, expected) in cases {
            let error = pod(containers.clone(), patch.clone()).unwrap_err();
            assert!(error.to_string().contains(expected), "{patch}: {error}");
            let (code, _) = error.status();
            assert!((400..500).contains(&code), "{patch}: {code}");
        }
    }

    /// SEC-API-04: no list is searched for each element of another.
    #[test]
    fn lists_of_many_thousands_are_merged_in_linear_time() {
        const ELEMENTS: usize = 20_000;
        let element = |at: usize| json!({"name": format!("c{at}")});
        let live: Vec<Value> = (0..ELEMENTS).map(element).collect();
        let patch: Vec<Value> = (0..ELEMENTS).rev().map(|at| element(at * 2)).collect();
        let deleted: Vec<Value> = (0..ELEMENTS)
            .map(|at| json!({"name": format!("c{}", at * 3), "$patch": "delete"}))
            .collect();
        let finalizers: Vec<Value> = (0..ELEMENTS).map(|at| at.to_string().into()).collect();
        let began = std::time::Instant::now();
        for patch in [
            json!({"containers": patch, "$setElementOrder/containers": patch}),
            json!({"containers": deleted}),
        ] {
            pod(json!({"containers": live}), patch).unwrap();
        }
        let meta = json!({"metadata": {"finalizers": finalizers}});
        merged("v1", "ConfigMap", &meta, &meta).unwrap();
        // Each pair compared once would take minutes here.
        assert!(
            began.elapsed() < std::time::Duration::from_secs(60),
            "{:?}",
            began.elapsed()
        );
    }
}
