//! From a manifest's text to a pod: decoded strictly, defaulted and validated as the API server does, by the same code.

use berth_kinds::by_kind;
use berth_schema::{Body, GroupVersionKind, Schema};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use serde_json::{Value, json};

use crate::{ignored, pod::digest, problem::Problem, unbuilt};

/// A manifest of more than this is not one: the API server's bound for a request's body.
pub const MAX_BYTES: u64 = 3 << 20;

/// Who gives the pod, and so what it may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin<'a> {
    /// A file of the node: the pod's name gets the node's behind it, as upstream's static pods, and it can't refer to objects of the API.
    Static { node: &'a str, file: &'a str },
    /// One file with all that the pod refers to in it. `uid` is the pod's, where the manifest has none.
    Run { uid: &'a str },
    /// It has been through an API server.
    Server,
}

/// What one file may have beside its pod.
#[derive(Debug, Default)]
pub struct Documents {
    pub pods: Vec<Pod>,
    pub config_maps: Vec<ConfigMap>,
    pub secrets: Vec<Secret>,
    /// What of a pod without a cluster is left out of account.
    pub warnings: Vec<Problem>,
}

/// One Pod of v1.
///
/// # Errors
/// Everything that is wrong with it, each with its field.
pub fn read_pod(text: &str, origin: Origin<'_>) -> Result<Pod, Vec<Problem>> {
    let mut read = read(text, origin)?;
    let others = read.config_maps.len() + read.secrets.len();
    match (read.pods.pop(), read.pods.len(), others) {
        (Some(pod), 0, 0) => Ok(pod),
        (None, _, 0) => Err(whole("no document in it")),
        _ => Err(whole(
            "more than one document in it: a static pod has a file of its own",
        )),
    }
}

/// One Pod of v1, or a PodList or List of them, as one document.
///
/// # Errors
/// Everything that is wrong with the first that is not good; fields of a list's pods have their place in it: `items[2].spec…`.
pub fn read_pods(text: &str, origin: Origin<'_>) -> Result<Vec<Pod>, Vec<Problem>> {
    let documents: Vec<&str> = split(text);
    let [one] = documents.as_slice() else {
        return Ok(vec![read_pod(text, origin)?]);
    };
    let Some(mut value) = decode(one)? else {
        return Err(whole("no document in it"));
    };
    let kind = string(&value, "/kind");
    if string(&value, "/apiVersion") != "v1" || !matches!(kind, "PodList" | "List") {
        return Ok(vec![read_pod(text, origin)?]);
    }
    let Some(items) = value.get_mut("items").map(Value::take) else {
        return Err(vec![Problem::new("items", "must be set")]);
    };
    let Value::Array(items) = items else {
        return Err(vec![Problem::new("items", "it is no list")]);
    };
    let mut pods = Vec::new();
    for (index, mut item) in items.into_iter().enumerate() {
        let at = |problems: Vec<Problem>| {
            let named = problems.into_iter().map(|problem| {
                let place = format!("items[{index}].{}", problem.path);
                Problem::new(place.trim_end_matches('.'), problem.what)
            });
            named.collect::<Vec<_>>()
        };
        let Some(fields) = item.as_object_mut() else {
            return Err(at(whole("it is no object")));
        };
        // a list says what is in it
        fields.entry("apiVersion").or_insert_with(|| "v1".into());
        fields.entry("kind").or_insert_with(|| "Pod".into());
        match (string(&item, "/apiVersion"), string(&item, "/kind")) {
            ("v1", "Pod") => pods.push(pod(item, origin).map_err(at)?),
            (version, kind) => {
                let what = format!("a {kind} of {version}: the kubelet takes a Pod of v1");
                return Err(at(whole(what)));
            }
        }
    }
    Ok(pods)
}

/// All documents of a file.
///
/// # Errors
/// As [`read_pod`]; what is neither Pod, ConfigMap nor Secret of v1 is refused by its kind.
pub fn read(text: &str, origin: Origin<'_>) -> Result<Documents, Vec<Problem>> {
    let mut documents = Documents::default();
    for text in split(text) {
        let Some(value) = decode(text)? else {
            continue;
        };
        match (string(&value, "/apiVersion"), string(&value, "/kind")) {
            ("v1", "Pod") => {
                if matches!(origin, Origin::Run { .. }) {
                    documents.warnings.extend(ignored::fields(&value));
                }
                documents.pods.push(pod(value, origin)?);
            }
            ("v1", "ConfigMap") => documents
                .config_maps
                .push(typed(complete(value, "ConfigMap")?)?),
            ("v1", "Secret") => documents.secrets.push(typed(complete(value, "Secret")?)?),
            ("", _) | (_, "") => {
                return Err(whole(
                    "no Kubernetes manifest: it needs `apiVersion: v1` and `kind: Pod`",
                ));
            }
            (version, kind) => {
                return Err(whole(format!(
                    "a {kind} of {version}: the kubelet takes a Pod of v1, everything else needs a cluster"
                )));
            }
        }
    }
    Ok(documents)
}

fn whole(what: impl Into<String>) -> Vec<Problem> {
    vec![Problem::new("", what)]
}

fn string<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// At lines of three dashes, which begin a document of YAML.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut begin, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with([' ', '\t']))
        {
            parts.push(&text[begin..at]);
            begin = at;
        }
        at += line.len();
    }
    parts.push(&text[begin..]);
    parts
}

fn decode(text: &str) -> Result<Option<Value>, Vec<Problem>> {
    // a document of comments is none
    let says_something = |line: &str| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        !line.is_empty() && !line.starts_with('#') && line != "..."
    };
    if !text.lines().any(says_something) {
        return Ok(None);
    }
    let body = Body::from_yaml(text.as_bytes()).map_err(|error| whole(error.to_string()))?;
    if !body.duplicates.is_empty() {
        return Err(body
            .duplicates
            .into_iter()
            .map(|what| Problem::new("", what))
            .collect());
    }
    Ok(Some(body.value).filter(|value| !value.is_null()))
}

fn pod(mut value: Value, origin: Origin<'_>) -> Result<Pod, Vec<Problem>> {
    let canonical = value.to_string();
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        match origin {
            Origin::Static { node, file } => {
                if let Some(Value::String(name)) = metadata.get_mut("name") {
                    name.push_str(&format!("-{}", node.to_ascii_lowercase()));
                }
                let uid = &digest(&[node.as_bytes(), file.as_bytes(), canonical.as_bytes()])[..32];
                // a file that is copied from a server's answer would have one that is another pod's
                metadata.insert("uid".into(), uid.into());
            }
            Origin::Run { uid } => {
                metadata.entry("uid").or_insert_with(|| uid.into());
            }
            Origin::Server => {}
        }
    }
    let pod: Pod = typed(complete(value, "Pod")?)?;
    let mut problems = match origin {
        Origin::Server => unbuilt::of_server(&pod),
        Origin::Static { .. } | Origin::Run { .. } => unbuilt::fields(&pod),
    };
    if matches!(origin, Origin::Static { .. }) {
        problems.extend(unbuilt::references(&pod));
    }
    if problems.is_empty() {
        Ok(pod)
    } else {
        Err(problems)
    }
}

/// As the API server takes an object: nothing unknown in it, defaulted, valid.
fn complete(mut value: Value, kind: &str) -> Result<Value, Vec<Problem>> {
    let schema = Schema::built_in();
    let id = schema
        .kind(&GroupVersionKind::new("v1", kind))
        .ok_or_else(|| whole(format!("no schema of {kind}")))?;
    let unknown = schema
        .conform_by_path(id, &mut value)
        .map_err(|(path, error)| vec![Problem::new(path, error.to_string())])?;
    let unknown = unknown.into_iter().map(|text| {
        let path = text
            .trim_start_matches("unknown field \"")
            .trim_end_matches('"');
        Problem::new(path, format!("no such field in a {kind} of v1"))
    });
    // they are left out by now, so that what else is wrong can be told at once
    let mut problems: Vec<Problem> = unknown.collect();
    let Some(object) = value.as_object_mut() else {
        return Err(whole("it is no object"));
    };
    let metadata = object.entry("metadata").or_insert_with(|| json!({}));
    if let Some(metadata) = metadata.as_object_mut()
        && metadata.get("namespace").is_none_or(|it| it == "")
    {
        metadata.insert("namespace".into(), "default".into());
    }
    let rules = by_kind("", "v1", kind).ok_or_else(|| whole(format!("no rules of {kind}")))?;
    (rules.default)(&mut value);
    let invalid = (rules.validate)(&value).into_iter();
    problems.extend(invalid.map(|it| Problem::new(it.field, it.message)));
    match problems.is_empty() {
        true => Ok(value),
        false => Err(problems),
    }
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, Vec<Problem>> {
    serde_json::from_value(value).map_err(|error| whole(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATIC: Origin<'static> = Origin::Static {
        node: "Node-1",
        file: "/m/web.yaml",
    };

    fn refused(text: &str) -> String {
        let problems = read_pod(text, STATIC).expect_err(text);
        problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn of_spec(spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: w}}\nspec:\n  containers: [{{name: a, image: x}}]\n{spec}\n"
        )
    }

    #[test]
    fn a_static_pod_has_the_nodes_name_and_a_uid_of_what_it_says_and_where() {
        let of = |text: &str, file: &str| {
            let origin = Origin::Static { node: "n1", file };
            read_pod(text, origin).unwrap().metadata
        };
        let one = of(&of_spec(""), "/m/a.yaml");
        assert_eq!(one.name.as_deref(), Some("w-n1"));
        assert_eq!(one.namespace.as_deref(), Some("default"));
        let uid = one.uid.unwrap();
        assert_eq!(uid.len(), 32);
        assert_eq!(
            of(&format!("# again\n{}", of_spec("")), "/m/a.yaml").uid,
            Some(uid.clone())
        );
        assert_ne!(of(&of_spec(""), "/m/b.yaml").uid, Some(uid.clone()));
        assert_ne!(
            of(&of_spec("  hostNetwork: true"), "/m/a.yaml").uid,
            Some(uid)
        );
    }

    #[test]
    fn mistakes_are_told_with_field_and_reason() {
        for (text, expected) in [
            (String::new(), "no document in it"),
            ("# nothing\n---\n".into(), "no document in it"),
            (
                "a: 1".into(),
                "no Kubernetes manifest: it needs `apiVersion: v1` and `kind: Pod`",
            ),
            (
                "apiVersion: apps/v1\nkind: Deployment".into(),
                "a Deployment of apps/v1: the kubelet takes a Pod of v1, everything else needs a cluster",
            ),
            (
                of_spec("  hostNetwrk: true"),
                "spec.hostNetwrk: no such field in a Pod of v1",
            ),
            (
                of_spec("  hostNetwrk: true\n  restartPolicy: Sometimes"),
                "spec.hostNetwrk: no such field in a Pod of v1\n\
                 spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                of_spec("  restartPolicy: Sometimes"),
                "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\"",
            ),
            (
                of_spec("").replace("image: x", "image: 7"),
                "spec.containers[0].image: json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
            ),
            (
                of_spec("").replace("image: x", "image: x, resources: {limits: {cpu: much}}"),
                "spec.containers[0].resources.limits.cpu: quantities must match the regular expression \
                 '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
            (
                of_spec("  volumes: [{name: v, emptyDir: {medium: HugePages}}]"),
                "spec.volumes[0].emptyDir.medium: not built: a medium other than the disk and Memory",
            ),
            (
                of_spec("").replace(
                    "image: x",
                    "image: x, resources: {limits: {nvidia.com/gpu: 1}, requests: {nvidia.com/gpu: 1}}",
                ),
                "spec.containers[0].resources.limits.nvidia.com/gpu: not built: resources of device plugins\n\
                 spec.containers[0].resources.requests.nvidia.com/gpu: not built: resources of device plugins",
            ),
            (
                of_spec("  volumes: [{name: v, configMap: {name: c}}]"),
                "spec.volumes[0].configMap: a static pod can't refer to objects of the API",
            ),
            (
                of_spec("") + "---\n" + &of_spec(""),
                "more than one document in it: a static pod has a file of its own",
            ),
        ] {
            assert_eq!(refused(&text), expected, "{text}");
        }
        assert!(refused("apiVersion: v1\nkind: [Pod").contains("line 2"));
        assert!(
            refused(&of_spec("  hostNetwork: true\n  hostNetwork: true"))
                .contains("duplicate field")
        );
    }

    #[test]
    fn a_file_may_have_what_its_pod_refers_to() {
        let text = of_spec("  volumes: [{name: v, configMap: {name: c}}]")
            + "--- # and\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n\
               ---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {p: q}\n";
        let read = read(&text, Origin::Run { uid: "u-1" }).unwrap();
        assert_eq!(
            (read.pods.len(), read.config_maps.len(), read.secrets.len()),
            (1, 1, 1)
        );
        assert_eq!(read.pods[0].metadata.uid.as_deref(), Some("u-1"));
        assert_eq!(
            read.config_maps[0].metadata.namespace.as_deref(),
            Some("default")
        );
    }
}
