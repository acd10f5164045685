//! A JSON object made to conform to its built-in type, as upstream's decoding into Go's types does: fields that the type doesn't have are
//! dropped and told of, nulls are dropped, and zeros where they say as much as nothing ([`Field::keeps_zero`]); a value of a wrong type is an
//! error.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value};

use crate::{
    IntegerFormat, ObjectId, Schema, StringFormat, Type, error::Error, path::Path, quantity, time,
};

/// As upstream: further ones are not told of.
const MAX_UNKNOWN: usize = 100;

impl Schema {
    /// Gives the fields that were dropped: `unknown field "spec.replicass"`, each once.
    ///
    /// # Errors
    /// [`Error::WrongType`], with upstream's words.
    pub fn conform(&self, id: ObjectId, value: &mut Value) -> Result<Vec<String>, Error> {
        self.conform_by_path(id, value).map_err(|(_, error)| error)
    }

    /// [`Schema::conform`] for who is told of the place, too, which upstream's words often leave out.
    ///
    /// # Errors
    /// The same behind the path of what is wrong: `spec.containers[0].resources.limits.cpu`.
    pub fn conform_by_path(
        &self,
        id: ObjectId,
        value: &mut Value,
    ) -> Result<Vec<String>, (String, Error)> {
        let mut walk = Walk {
            schema: self,
            unknown: Vec::new(),
            wrong_at: String::new(),
        };
        let at = At {
            path: Path::Root,
            fields: Path::Root,
            object: "",
        };
        match walk.value(&Type::Object(id), value, &at) {
            Ok(()) => Ok(walk.unknown),
            Err(error) => Err((walk.wrong_at, error)),
        }
    }
}

struct Walk<'a> {
    schema: &'a Schema,
    unknown: Vec<String>,
    /// Set with the first error, which is the last.
    wrong_at: String,
}

/// Where the walk is.
#[derive(Clone, Copy)]
struct At<'a> {
    path: Path<'a>,
    /// The fields alone, as Go's errors name them.
    fields: Path<'a>,
    /// The type that the last field is of.
    object: &'a str,
}

impl Walk<'_> {
    fn value(&mut self, ty: &Type, value: &mut Value, at: &At<'_>) -> Result<(), Error> {
        let fits = self.fit(ty, value, at);
        if fits.is_err() && self.wrong_at.is_empty() {
            self.wrong_at = at.path.to_string();
        }
        fits
    }

    fn fit(&mut self, ty: &Type, value: &mut Value, at: &At<'_>) -> Result<(), Error> {
        match (ty, &mut *value) {
            (Type::Any, _) => Ok(()),
            (_, Value::Null) => {
                *value = ty.zero();
                Ok(())
            }
            (Type::Boolean, Value::Bool(_)) => Ok(()),
            (Type::Integer(format), Value::Number(number)) => {
                let fits = number.as_i64().is_some_and(|number| match format {
                    IntegerFormat::Int32 => i32::try_from(number).is_ok(),
                    IntegerFormat::Int64 => true,
                });
                match fits {
                    true => Ok(()),
                    false => Err(self.wrong(&format!("number {number}"), ty, at)),
                }
            }
            (Type::Number, Value::Number(_)) => Ok(()),
            (Type::String(format), _) => self.string(*format, value, at),
            (Type::Object(id), Value::Object(object)) => self.object(*id, object, at),
            (Type::List(item, _), Value::Array(list)) => {
                for (index, value) in list.iter_mut().enumerate() {
                    let path = at.path.index(index);
                    self.value(item, value, &At { path, ..*at })?;
                }
                Ok(())
            }
            (Type::Map(item, _), Value::Object(map)) => {
                for (key, value) in map {
                    let path = at.path.key(key);
                    self.value(item, value, &At { path, ..*at })?;
                }
                Ok(())
            }
            (_, value) => Err(self.wrong(sort(value), ty, at)),
        }
    }

    fn object(
        &mut self,
        id: ObjectId,
        object: &mut Map<String, Value>,
        at: &At<'_>,
    ) -> Result<(), Error> {
        let ty = self.schema.object(id);
        let mut gone = Vec::new();
        for (name, value) in object.iter_mut() {
            let path = at.path.key(name);
            let Some(field) = ty.field(name) else {
                if !ty.preserve_unknown {
                    self.unknown(&path);
                    gone.push(name.clone());
                }
                continue;
            };
            if value.is_null() {
                gone.push(name.clone());
                continue;
            }
            let at = At {
                path,
                fields: at.fields.key(name),
                object: unqualified(&ty.name),
            };
            self.value(&field.ty, value, &at)?;
            if !field.keeps_zero && says_nothing(&field.ty, value) {
                gone.push(name.clone());
            }
        }
        for name in gone {
            object.remove(&name);
        }
        Ok(())
    }

    fn string(
        &mut self,
        format: StringFormat,
        value: &mut Value,
        at: &At<'_>,
    ) -> Result<(), Error> {
        let ty = Type::String(format);
        match (format, &*value) {
            (StringFormat::Plain, Value::String(_)) => Ok(()),
            (StringFormat::Bytes, Value::String(text)) => match STANDARD.decode(text) {
                Ok(_) => Ok(()),
                Err(error) => Err(Error::WrongType(format!(
                    "illegal base64 data at input byte {}: {error}: {}",
                    offset(&error, text.len()),
                    at.path
                ))),
            },
            (StringFormat::Time | StringFormat::MicroTime, Value::String(text)) => {
                match time::is_rfc3339(text) {
                    true => Ok(()),
                    false => Err(Error::WrongType(format!(
                        "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
                    ))),
                }
            }
            (StringFormat::Quantity, Value::String(text)) => match quantity::is_quantity(text) {
                true => Ok(()),
                false => Err(Error::WrongType(quantity::MESSAGE.into())),
            },
            // Kept as a string, as upstream writes it.
            (StringFormat::Quantity, Value::Number(number)) => {
                *value = number.to_string().into();
                Ok(())
            }
            (StringFormat::IntOrString, Value::String(_)) => Ok(()),
            (StringFormat::IntOrString, Value::Number(number)) => {
                let fits = number
                    .as_i64()
                    .and_then(|number| i32::try_from(number).ok());
                match fits {
                    Some(_) => Ok(()),
                    None => Err(Error::WrongType(format!(
                        "json: cannot unmarshal number {number} into Go value of type int32"
                    ))),
                }
            }
            (_, value) => Err(self.wrong(sort(value), &ty, at)),
        }
    }

    fn unknown(&mut self, path: &Path<'_>) {
        if self.unknown.len() < MAX_UNKNOWN {
            let text = format!("unknown field \"{path}\"");
            if !self.unknown.contains(&text) {
                self.unknown.push(text);
            }
        }
    }

    fn wrong(&self, sort: &str, ty: &Type, at: &At<'_>) -> Error {
        let ty = self.go_type(ty);
        Error::WrongType(match at.fields {
            Path::Root => format!("json: cannot unmarshal {sort} into Go value of type {ty}"),
            fields => format!(
                "json: cannot unmarshal {sort} into Go struct field {}.{fields} of type {ty}",
                at.object
            ),
        })
    }

    /// As Go names it in its errors, but for the names of strings (`v1.Protocol`).
    fn go_type(&self, ty: &Type) -> String {
        match ty {
            Type::Any => "interface {}".into(),
            Type::Boolean => "bool".into(),
            Type::Integer(IntegerFormat::Int32) => "int32".into(),
            Type::Integer(IntegerFormat::Int64) => "int64".into(),
            Type::Number => "float64".into(),
            Type::String(StringFormat::Bytes) => "[]uint8".into(),
            Type::String(StringFormat::Quantity) => "resource.Quantity".into(),
            Type::String(_) => "string".into(),
            Type::Object(id) => {
                let name = &self.schema.object(*id).name;
                let mut parts = name.rsplit('.');
                let (kind, version) = (parts.next(), parts.next());
                format!("{}.{}", version.unwrap_or("v1"), kind.unwrap_or("Object"))
            }
            Type::List(item, _) => format!("[]{}", self.go_type(item)),
            Type::Map(item, _) => format!("map[string]{}", self.go_type(item)),
        }
    }
}

/// An empty object of a struct's says something (`podSelector: {}`), an empty map doesn't.
fn says_nothing(ty: &Type, value: &Value) -> bool {
    match (ty, value) {
        (Type::Boolean, Value::Bool(value)) => !value,
        (Type::Integer(_) | Type::Number, Value::Number(value)) => value.as_f64() == Some(0.0),
        (Type::String(StringFormat::Plain | StringFormat::Bytes), Value::String(value)) => {
            value.is_empty()
        }
        (Type::List(..), Value::Array(value)) => value.is_empty(),
        (Type::Map(..), Value::Object(value)) => value.is_empty(),
        _ => false,
    }
}

/// As Go's encoding/json calls it.
fn sort(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// `DeploymentSpec` of `io.k8s.api.apps.v1.DeploymentSpec`.
fn unqualified(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn offset(error: &base64::DecodeError, length: usize) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _)
        | base64::DecodeError::InvalidLastSymbol { offset: at, .. } => *at,
        _ => length,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::GroupVersionKind;

    fn conform(
        api_version: &str,
        kind: &str,
        mut value: Value,
    ) -> Result<(Value, Vec<String>), String> {
        let schema = Schema::built_in();
        let id = schema
            .kind(&GroupVersionKind::new(api_version, kind))
            .expect("a built-in kind");
        let unknown = schema
            .conform(id, &mut value)
            .map_err(|error| error.to_string())?;
        Ok((value, unknown))
    }

    #[test]
    fn who_asks_is_told_of_the_place_of_a_wrong_type() {
        let schema = Schema::built_in();
        let id = schema
            .kind(&GroupVersionKind::new("v1", "Pod"))
            .expect("a Pod");
        for (spec, place) in [
            (
                json!({"containers": [{}, {"resources": {"limits": {"cpu": "much"}}}]}),
                "spec.containers[1].resources.limits.cpu",
            ),
            (
                json!({"containers": [{"command": ["a", 1]}]}),
                "spec.containers[0].command[1]",
            ),
            (json!("x"), "spec"),
        ] {
            let (path, _) = schema
                .conform_by_path(id, &mut json!({"spec": spec}))
                .expect_err(place);
            assert_eq!(path, place);
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_told_of() {
        let (value, unknown) = conform(
            "apps/v1",
            "Deployment",
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "Spec": {},
                "metadata": {"name": "a", "labels": {"any": "thing"}, "label": {}},
                "spec": {"replicass": 3, "template": {"spec": {"containers": [
                    {"name": "a"}, {"name": "b", "imagePolicy": null, "Image": "x"}]}}},
            }),
        )
        .expect("its types are right");
        assert_eq!(
            value,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "a", "labels": {"any": "thing"}},
                "spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}},
            })
        );
        assert_eq!(
            unknown,
            [
                r#"unknown field "Spec""#,
                r#"unknown field "metadata.label""#,
                r#"unknown field "spec.replicass""#,
                r#"unknown field "spec.template.spec.containers[1].Image""#,
                r#"unknown field "spec.template.spec.containers[1].imagePolicy""#,
            ]
        );
    }

    #[test]
    fn nulls_and_zeros_that_say_nothing_are_dropped_and_others_kept() {
        let (value, unknown) = conform(
            "apps/v1",
            "Deployment",
            json!({
                "metadata": {"creationTimestamp": null, "name": "a", "namespace": "", "labels": {}, "generation": 0},
                "spec": {"replicas": 0, "paused": false, "minReadySeconds": 0, "strategy": {}, "selector": {"matchLabels": null},
                    "template": {"spec": {
                        "automountServiceAccountToken": false, "hostPID": false, "terminationGracePeriodSeconds": 0,
                        "nodeSelector": {"a": null},
                        "volumes": [{"name": "v", "emptyDir": {}}, null],
                        "containers": [{"name": "", "command": [], "args": ["a", null], "resources": {"limits": {"cpu": 1, "memory": null}}}]}}},
                "status": {},
            }),
        )
        .expect("its types are right");
        assert_eq!(
            value,
            json!({
                "metadata": {"name": "a"},
                "spec": {"replicas": 0, "strategy": {}, "selector": {},
                    "template": {"spec": {
                        "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
                        "nodeSelector": {"a": ""},
                        "volumes": [{"name": "v", "emptyDir": {}}, {}],
                        "containers": [{"name": "", "args": ["a", ""], "resources": {"limits": {"cpu": "1", "memory": "0"}}}]}}},
                "status": {},
            })
        );
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn a_value_of_a_wrong_type_is_named_in_upstreams_words() {
        let go = |what: &str| format!("json: cannot unmarshal {what}");
        for (spec, says) in [
            (
                json!({"replicas": "3"}),
                go("string into Go struct field DeploymentSpec.spec.replicas of type int32"),
            ),
            (
                json!({"replicas": 1.5}),
                go("number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"),
            ),
            (
                json!({"replicas": 3_000_000_000_u64}),
                go(
                    "number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
                ),
            ),
            (
                json!({"paused": "yes"}),
                go("string into Go struct field DeploymentSpec.spec.paused of type bool"),
            ),
            (
                json!([]),
                go("array into Go struct field Deployment.spec of type v1.DeploymentSpec"),
            ),
            (
                json!({"template": {"spec": {"containers": {}}}}),
                go(
                    "object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
                ),
            ),
            (
                json!({"template": {"spec": {"containers": [{"image": 7}]}}}),
                go(
                    "number into Go struct field Container.spec.template.spec.containers.image of type string",
                ),
            ),
            (
                json!({"template": {"metadata": {"labels": {"a": true}}}}),
                go(
                    "bool into Go struct field ObjectMeta.spec.template.metadata.labels of type string",
                ),
            ),
            (
                json!({"template": {"metadata": {"labels": "a"}}}),
                go(
                    "string into Go struct field ObjectMeta.spec.template.metadata.labels of type map[string]string",
                ),
            ),
            (
                json!({"template": {"metadata": {"creationTimestamp": "now"}}}),
                "parsing time \"now\"".into(),
            ),
            (
                json!({"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "much"}}}]}}}),
                "quantities must match the regular expression".into(),
            ),
            (
                json!({"strategy": {"rollingUpdate": {"maxSurge": 1.5}}}),
                go("number 1.5 into Go value of type int32"),
            ),
        ] {
            let error = conform("apps/v1", "Deployment", json!({"spec": spec})).expect_err(&says);
            assert!(error.starts_with(&says), "{error}\n{says}");
        }
        let error = conform("v1", "Secret", json!({"data": {"a": "%"}})).expect_err("no base64");
        assert!(
            error.starts_with("illegal base64 data at input byte 0"),
            "{error}"
        );
        for value in [json!(null), json!([]), json!("a"), json!(1)] {
            let got = conform("v1", "Pod", value.clone());
            assert!(got.is_err() || value.is_null(), "{value}: {got:?}");
        }
    }

    #[test]
    fn of_very_many_unknown_fields_a_hundred_are_told_of_and_all_dropped() {
        let fields: Map<String, Value> =
            (0..100_000).map(|n| (format!("f{n}"), 0.into())).collect();
        let started = std::time::Instant::now();
        let (value, unknown) = conform("v1", "Pod", Value::Object(fields)).expect("types");
        assert_eq!(value, json!({}));
        assert_eq!(unknown.len(), 100);
        assert!(started.elapsed().as_secs() < 5);
    }
}
