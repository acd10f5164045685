//! Fields of a pod that is run without a cluster that nobody here acts on: warned of, since who wrote them wanted something.

use serde_json::Value;

use crate::problem::Problem;

const SCHEDULER: &str = "it is for the scheduler";
const SERVICE_ACCOUNT: &str = "there are no service accounts here";

/// Fields and why nobody acts on them. `[]` is any element.
const IGNORED: &[(&str, &str)] = &[
    ("metadata.finalizers", "nobody waits for them here"),
    ("metadata.generateName", "metadata.name is taken"),
    ("metadata.ownerReferences", "there are no owners here"),
    ("spec.affinity", SCHEDULER),
    ("spec.automountServiceAccountToken", SERVICE_ACCOUNT),
    (
        "spec.containers[].resizePolicy",
        "limits are not changed while it runs",
    ),
    ("spec.enableServiceLinks", "there are no services here"),
    (
        "spec.initContainers[].resizePolicy",
        "limits are not changed while it runs",
    ),
    ("spec.nodeName", SCHEDULER),
    ("spec.nodeSelector", SCHEDULER),
    ("spec.preemptionPolicy", SCHEDULER),
    (
        "spec.priorityClassName",
        "there are no priority classes here",
    ),
    ("spec.schedulerName", SCHEDULER),
    (
        "spec.securityContext.seLinuxChangePolicy",
        "volumes are not relabelled",
    ),
    ("spec.serviceAccount", SERVICE_ACCOUNT),
    ("spec.serviceAccountName", SERVICE_ACCOUNT),
    ("spec.tolerations", SCHEDULER),
    ("spec.topologySpreadConstraints", SCHEDULER),
];

/// What of the manifest, as it was written, is left out of account.
pub(crate) fn fields(manifest: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (field, why) in IGNORED {
        let names: Vec<&str> = field.split('.').collect();
        find(manifest, &names, "", &mut |path, value| {
            if !is_empty(value) {
                problems.push(Problem::new(path, format!("ignored: {why}")));
            }
        });
    }
    let volumes = manifest.pointer("/spec/volumes").and_then(Value::as_array);
    for (index, volume) in volumes.into_iter().flatten().enumerate() {
        let of = |field: &str| volume.pointer(&format!("/emptyDir/{field}"));
        // in memory it is the size of the file system
        if of("sizeLimit").is_some() && of("medium").is_none_or(is_empty) {
            let path = format!("spec.volumes[{index}].emptyDir.sizeLimit");
            problems.push(Problem::new(path, "ignored: nobody is evicted here"));
        }
    }
    problems
}

/// Calls `found` for what lies at `names` below `value`, with its path in words.
fn find(value: &Value, names: &[&str], path: &str, found: &mut impl FnMut(String, &Value)) {
    let Some((name, rest)) = names.split_first() else {
        return found(path.to_owned(), value);
    };
    let (name, is_list) = match name.strip_suffix("[]") {
        Some(name) => (name, true),
        None => (*name, false),
    };
    let Some(value) = value.get(name) else {
        return;
    };
    let path = match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    if !is_list {
        return find(value, rest, &path, found);
    }
    for (index, element) in value.as_array().into_iter().flatten().enumerate() {
        find(element, rest, &format!("{path}[{index}]"), found);
    }
}

/// `tolerations: []` asks for nothing, and `enableServiceLinks: false` for what there is anyway.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_acts_on_is_named_where_it_asks_for_something() {
        let pod = json!({
            "metadata": {"name": "w", "finalizers": ["a/b"]},
            "spec": {
                "tolerations": [{"operator": "Exists"}],
                "nodeSelector": {},
                "enableServiceLinks": false,
                "restartPolicy": "Never",
                "containers": [{"name": "a"}, {"name": "b", "resizePolicy": [{"resourceName": "cpu"}]}],
                "volumes": [
                    {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                    {"name": "d", "emptyDir": {"sizeLimit": "1Mi"}},
                ],
            },
        });
        let told: Vec<_> = fields(&pod).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "metadata.finalizers: ignored: nobody waits for them here",
                "spec.containers[1].resizePolicy: ignored: limits are not changed while it runs",
                "spec.tolerations: ignored: it is for the scheduler",
                "spec.volumes[1].emptyDir.sizeLimit: ignored: nobody is evicted here",
            ]
        );
    }
}
