//! Environment variables, and `$(NAME)` in them, in commands and in arguments.

use std::collections::BTreeMap;

use berth_proto::cri::KeyValue;

use super::field::{Fields, resource};
use crate::{objects::Objects, pod::ContainerSpec, problem::Problem};

/// In the order of their first mention, each once.
#[derive(Debug, Default)]
struct Variables {
    list: Vec<KeyValue>,
    values: BTreeMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        // the last of a name wins, in the place of the first
        match self.list.iter_mut().find(|other| other.key == name) {
            Some(other) => other.value = value.clone().into_bytes(),
            None => self.list.push(KeyValue {
                key: name.to_owned(),
                value: value.clone().into_bytes(),
            }),
        }
        self.values.insert(name.to_owned(), value);
    }
}

/// The variables in their order, and their values for [`expand`].
///
/// # Errors
/// In upstream's words where an object that is not optional is not there, or lacks the key.
pub(crate) fn variables(
    spec: &ContainerSpec,
    fields: Fields<'_>,
    objects: &Objects,
) -> Result<(Vec<KeyValue>, BTreeMap<String, String>), Problem> {
    let mut variables = Variables::default();
    for (name, value) in objects.service_variables(fields.pod) {
        variables.set(&name, value);
    }
    for (index, from) in spec.container.env_from.iter().flatten().enumerate() {
        let path = format!("{}.envFrom[{index}]", spec.path);
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let namespace = &fields.pod.namespace;
        let data = if let Some(it) = &from.config_map_ref {
            let found = objects
                .config_map(namespace, &it.name)
                .map(|data| (*data).clone());
            there(found, it.optional, || {
                format!("configmap {:?} not found", it.name)
            })
        } else if let Some(it) = &from.secret_ref {
            let found = objects
                .secret(namespace, &it.name)
                .map(|secret| secret.data.clone());
            there(found, it.optional, || {
                format!("secret {:?} not found", it.name)
            })
        } else {
            Ok(None)
        };
        for (key, value) in data
            .map_err(|what| Problem::new(&path, what))?
            .into_iter()
            .flatten()
        {
            let name = format!("{prefix}{key}");
            // what can be no variable is skipped, and the container starts (CM-07)
            if is_name(&name)
                && let Ok(value) = String::from_utf8(value)
                && !value.contains('\0')
            {
                variables.set(&name, value);
            }
        }
    }
    for (index, variable) in spec.container.env.iter().flatten().enumerate() {
        let path = format!("{}.env[{index}]", spec.path);
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &variables.values)),
            (None, None) => Some(String::new()),
            (None, Some(from)) => {
                let namespace = &fields.pod.namespace;
                let value = if let Some(it) = &from.field_ref {
                    fields.for_variable(&it.field_path).map(Some)
                } else if let Some(it) = &from.resource_field_ref {
                    let named = it.container_name.as_deref().unwrap_or_default();
                    let of = match named {
                        "" => Some(spec),
                        name => fields.pod.container(name),
                    };
                    match of {
                        Some(of) => resource(of, it, fields.node).map(Some),
                        None => Err(format!("there is no container {named:?}")),
                    }
                } else if let Some(it) = &from.config_map_key_ref {
                    let object = objects.config_map(namespace, &it.name);
                    let missing = || match &object {
                        None => format!("configmap {:?} not found", it.name),
                        Some(_) => format!(
                            "couldn't find key {} in ConfigMap {namespace}/{}",
                            it.key, it.name
                        ),
                    };
                    let found = object.as_ref().and_then(|data| data.get(&it.key).cloned());
                    there(found, it.optional, missing).and_then(|value| value.map(text).transpose())
                } else if let Some(it) = &from.secret_key_ref {
                    let object = objects.secret(namespace, &it.name);
                    let missing = || match &object {
                        None => format!("secret {:?} not found", it.name),
                        Some(_) => format!(
                            "couldn't find key {} in Secret {namespace}/{}",
                            it.key, it.name
                        ),
                    };
                    let found = object
                        .as_ref()
                        .and_then(|secret| secret.data.get(&it.key).cloned());
                    there(found, it.optional, missing).and_then(|value| value.map(text).transpose())
                } else {
                    Err("has no source that is known".into())
                };
                value.map_err(|what| Problem::new(format!("{path}.valueFrom"), what))?
            }
        };
        let Some(value) = value else {
            continue;
        };
        if value.contains('\0') {
            return Err(Problem::new(format!("{path}.value"), "has a NUL in it"));
        }
        variables.set(&variable.name, value);
    }
    Ok((variables.list, variables.values))
}

/// What is optional may be missing (CM-06).
fn there<T>(
    found: Option<T>,
    optional: Option<bool>,
    missing: impl FnOnce() -> String,
) -> Result<Option<T>, String> {
    match found {
        None if optional != Some(true) => Err(missing()),
        found => Ok(found),
    }
}

fn text(value: Vec<u8>) -> Result<String, String> {
    String::from_utf8(value).map_err(|_| "is no text".into())
}

/// As since 1.34: printable ASCII, but for the sign that ends a name.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
}

/// `$(NAME)` becomes the variable's value, or stays where there is none; `$$` becomes `$`.
pub(crate) fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inside| inside.split_once(')'))
        {
            match values.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node::NodeFacts, pod::tests::pod};

    #[test]
    fn references_are_expanded_and_dollars_escaped() {
        let values = BTreeMap::from([
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "$(A)".to_owned()),
        ]);
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(A)"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, &values), expected, "{text}");
        }
    }

    fn environment(container: &str) -> Result<String, String> {
        let objects = Objects::default();
        let object = |name: &str, data| serde_json::json!({"metadata": {"namespace": "default", "name": name}, "data": data});
        objects.put_config_map(
            serde_json::from_value(object(
                "c",
                serde_json::json!({"k": "v", "bad=key": "x", "two": "2"}),
            ))
            .unwrap(),
        );
        objects.put_secret(
            serde_json::from_value(object("s", serde_json::json!({"p": "cQ=="}))).unwrap(),
        );
        let pod = pod(&format!(
            "  containers: [{{name: a, image: x, {container}}}]"
        ));
        let node = NodeFacts {
            name: "n".into(),
            ips: vec!["192.0.2.1".into()],
            ..NodeFacts::default()
        };
        let ips = ["10.0.0.2".to_owned(), "fd00::2".to_owned()];
        let fields = Fields {
            pod: &pod,
            ips: &ips,
            node: &node,
        };
        let (list, _) = variables(&pod.containers[0], fields, &objects)
            .map_err(|problem| problem.to_string())?;
        let pairs: Vec<_> = list
            .iter()
            .map(|it| format!("{}={}", it.key, String::from_utf8_lossy(&it.value)))
            .collect();
        Ok(pairs.join(" "))
    }

    #[test]
    fn variables_come_from_values_fields_and_objects() {
        let from = |path: &str| format!("valueFrom: {{fieldRef: {{fieldPath: \"{path}\"}}}}");
        for (container, expected) in [
            (
                format!(
                    "env: [{{name: A, value: x}}, {{name: B, value: \"$(A)$(C)\"}}, {{name: C, {}}}, {{name: A, value: z}}, {{name: H}}]",
                    from("metadata.name")
                ),
                "A=z B=x$(C) C=web H=",
            ),
            (
                format!(
                    "env: [{{name: A, {}}}, {{name: B, {}}}, {{name: C, {}}}, {{name: D, {}}}, {{name: E, {}}}]",
                    from("status.podIP"),
                    from("status.podIPs"),
                    from("spec.nodeName"),
                    from("status.hostIP"),
                    from("metadata.labels['app']")
                ),
                "A=10.0.0.2 B=10.0.0.2,fd00::2 C=n D=192.0.2.1 E=x",
            ),
            ("envFrom: [{prefix: P_, configMapRef: {name: c}}, {secretRef: {name: s}}], env: [{name: p, value: own}]".into(), "P_k=v P_two=2 p=own"),
            (
                "env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}, {name: B, valueFrom: {secretKeyRef: {name: s, key: p}}}]".into(),
                "A=v B=q",
            ),
            (
                "envFrom: [{configMapRef: {name: none, optional: true}}], env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: none, optional: true}}}]".into(),
                "",
            ),
        ] {
            assert_eq!(environment(&container).unwrap(), expected, "{container}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        const PATH: &str = "spec.containers[0]";
        for (container, expected) in [
            (
                "envFrom: [{configMapRef: {name: none}}]",
                "envFrom[0]: configmap \"none\" not found",
            ),
            (
                "envFrom: [{secretRef: {name: none}}]",
                "envFrom[0]: secret \"none\" not found",
            ),
            (
                "env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: none}}}]",
                "env[0].valueFrom: couldn't find key none in ConfigMap default/c",
            ),
            (
                "env: [{name: A, valueFrom: {secretKeyRef: {name: none, key: none}}}]",
                "env[0].valueFrom: secret \"none\" not found",
            ),
        ] {
            assert_eq!(
                environment(container).unwrap_err(),
                format!("{PATH}.{expected}")
            );
        }
    }
}
