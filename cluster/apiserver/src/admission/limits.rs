//! LimitRanger: what containers get that ask for nothing, and what is too little, too much, or too far apart.

use berth_kinds::Quantity;
use serde_json::{Value, json};

use super::{
    Act,
    amounts::{self, Amounts},
};
use crate::{api::Api, failure::Failure, object};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The items of all limit ranges of a namespace.
fn items(api: &Api, namespace: &str) -> Vec<Value> {
    let (entries, _) = api
        .cache
        .shard("limitranges")
        .list(&format!("{namespace}/"), "");
    entries
        .iter()
        .flat_map(|entry| {
            let mut range = entry.value();
            match range.pointer_mut("/spec/limits").map(Value::take) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        })
        .collect()
}

/// Fills in what a new pod's containers leave out.
pub fn fill(api: &Api, act: &Act<'_>, pod: &mut Value) {
    let items = items(api, act.namespace);
    if !items.is_empty() {
        fill_in(&items, pod);
    }
}

fn fill_in(items: &[Value], pod: &mut Value) {
    let mut defaults = [("requests", json!({})), ("limits", json!({}))];
    for item in items.iter().filter(|item| item["type"] == "Container") {
        for ((_, into), field) in defaults.iter_mut().zip(["defaultRequest", "default"]) {
            if let (Some(into), Some(more)) = (into.as_object_mut(), item[field].as_object()) {
                into.extend(more.clone());
            }
        }
    }
    let mut said = Vec::new();
    let spec = object::part(pod, "spec");
    for list in ["containers", "initContainers"] {
        let containers = spec.get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = object::text(container, "/name").to_owned();
            let what = if list == "containers" {
                "container"
            } else {
                "init container"
            };
            for (field, defaults) in &defaults {
                let set = complete(container, field, defaults);
                if !set.is_empty() {
                    let kind = field.trim_end_matches('s');
                    said.push(format!("{} {kind} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let metadata = object::metadata(pod);
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            let text = format!("LimitRanger plugin set: {}", said.join("; "));
            annotations.insert(ANNOTATION.into(), text.into());
        }
    }
}

/// The names of what was set.
fn complete(container: &mut Value, field: &str, defaults: &Value) -> Vec<String> {
    let mut set = Vec::new();
    for (name, amount) in defaults.as_object().into_iter().flatten() {
        let resources = object::part(container, "resources");
        let list = resources.entry(field).or_insert_with(|| json!({}));
        if let Some(list) = list.as_object_mut()
            && !list.contains_key(name)
        {
            list.insert(name.clone(), amount.clone());
            set.push(name.clone());
        }
    }
    set
}

/// # Errors
/// 403 with all that is wrong, in upstream's words.
pub fn check(api: &Api, act: &Act<'_>, new: &Value) -> Result<(), Failure> {
    let is_pod = act.resource.is("", "pods")
        && (act.verb == "create" && act.subresource.is_empty() || act.subresource == "resize");
    let is_claim = act.resource.is("", "persistentvolumeclaims") && act.subresource.is_empty();
    if !is_pod && !is_claim {
        return Ok(());
    }
    let items = items(api, act.namespace);
    let mut errors = Vec::new();
    for item in &items {
        if is_pod {
            of_pod(item, new, &mut errors);
        } else if item["type"] == "PersistentVolumeClaim" {
            of_claim(item, new, &mut errors);
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(Failure::forbidden(act.resource, &act.name, one)),
        all => Err(Failure::forbidden(
            act.resource,
            &act.name,
            format!("[{}]", all.join(", ")),
        )),
    }
}

fn of_pod(item: &Value, pod: &Value, errors: &mut Vec<String>) {
    match item["type"].as_str() {
        Some("Container") => {
            for list in ["containers", "initContainers"] {
                for container in amounts::containers(pod, list) {
                    bounds(
                        item,
                        "Container",
                        &amounts::of(container.pointer("/resources/requests")),
                        &amounts::of(container.pointer("/resources/limits")),
                        errors,
                    );
                }
            }
        }
        Some("Pod") => bounds(
            item,
            "Pod",
            &amounts::of_pod(pod, "requests"),
            &amounts::of_pod(pod, "limits"),
            errors,
        ),
        _ => {}
    }
}

fn of_claim(item: &Value, claim: &Value, errors: &mut Vec<String>) {
    let requests = amounts::of(claim.pointer("/spec/resources/requests"));
    for (name, least) in amounts::of(item.get("min")) {
        minimum(
            &name,
            "PersistentVolumeClaim",
            least,
            requests.get(&name),
            None,
            errors,
        );
    }
    for (name, most) in amounts::of(item.get("max")) {
        let what = usage("maximum", &name, "PersistentVolumeClaim", most);
        match requests.get(&name) {
            None => errors.push(format!("{what}.  No request is specified")),
            Some(asked) if asked.nano > most.nano => {
                errors.push(format!("{what}, but request is {}", asked.canonical()));
            }
            Some(_) => {}
        }
    }
}

fn usage(which: &str, name: &str, kind: &str, amount: Quantity) -> String {
    format!("{which} {name} usage per {kind} is {}", amount.canonical())
}

fn minimum(
    name: &str,
    kind: &str,
    least: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    let what = usage("minimum", name, kind, least);
    // one reason is enough
    match request {
        None => errors.push(format!("{what}.  No request is specified")),
        Some(request) if request.nano < least.nano => {
            errors.push(format!("{what}, but request is {}", request.canonical()));
        }
        Some(_) => {
            if let Some(limit) = limit.filter(|limit| limit.nano < least.nano) {
                errors.push(format!("{what}, but limit is {}", limit.canonical()));
            }
        }
    }
}

fn bounds(
    item: &Value,
    kind: &str,
    requests: &Amounts,
    limits: &Amounts,
    errors: &mut Vec<String>,
) {
    for (name, least) in amounts::of(item.get("min")) {
        minimum(
            &name,
            kind,
            least,
            requests.get(&name),
            limits.get(&name),
            errors,
        );
    }
    for (name, most) in amounts::of(item.get("max")) {
        let what = usage("maximum", &name, kind, most);
        match limits.get(&name) {
            None => errors.push(format!("{what}.  No limit is specified")),
            Some(limit) if limit.nano > most.nano => {
                errors.push(format!("{what}, but limit is {}", limit.canonical()));
            }
            Some(_) => {
                let request = requests.get(&name);
                if let Some(request) = request.filter(|request| request.nano > most.nano) {
                    errors.push(format!("{what}, but request is {}", request.canonical()));
                }
            }
        }
    }
    for (name, ratio) in amounts::of(item.get("maxLimitRequestRatio")) {
        let what = format!(
            "{name} max limit to request ratio per {kind} is {}",
            ratio.canonical()
        );
        let (request, limit) = (requests.get(&name), limits.get(&name));
        let Some(request) = request.filter(|request| request.nano > 0) else {
            errors.push(format!(
                "{what}, but no request is specified or request is 0"
            ));
            continue;
        };
        let Some(limit) = limit.filter(|limit| limit.nano > 0) else {
            errors.push(format!("{what}, but no limit is specified or limit is 0"));
            continue;
        };
        let is = limit.nano as f64 / request.nano as f64;
        if is > ratio.nano as f64 / 1e9 {
            errors.push(format!("{what}, but provided ratio is {is:.6}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_leaves_out_is_filled_in_and_said() {
        let items = [json!({
            "type": "Container",
            "default": {"cpu": "500m", "memory": "128Mi"},
            "defaultRequest": {"cpu": "100m"},
        })];
        let mut pod = json!({"spec": {
            "containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}],
            "initContainers": [{"name": "i"}],
        }});
        fill_in(&items, &mut pod);
        let resources = &pod["spec"]["containers"][0]["resources"];
        assert_eq!(
            *resources,
            json!({"limits": {"cpu": "1", "memory": "128Mi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; memory limit for container a; cpu request for init container i; cpu, memory limit for init container i"
        );
        let before = pod.clone();
        fill_in(&items, &mut pod);
        assert_eq!(pod, before);
    }

    #[test]
    fn too_little_too_much_and_too_far_apart_are_refused_in_upstreams_words() {
        let pod = |requests: Value, limits: Value| {
            json!({"spec": {"containers": [
                {"name": "a", "resources": {"requests": requests, "limits": limits}},
            ]}})
        };
        for (item, pod, says) in [
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                pod(json!({"cpu": "50m"}), json!({"cpu": "60m"})),
                vec!["minimum cpu usage per Container is 100m, but request is 50m"],
            ),
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                pod(json!({}), json!({})),
                vec!["minimum cpu usage per Container is 100m.  No request is specified"],
            ),
            (
                json!({"type": "Pod", "max": {"memory": "1Gi"}}),
                pod(json!({"memory": "2Gi"}), json!({"memory": "2Gi"})),
                vec!["maximum memory usage per Pod is 1Gi, but limit is 2Gi"],
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                pod(json!({"cpu": "1"}), json!({"cpu": "3"})),
                vec![
                    "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
                ],
            ),
            (
                json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}}),
                pod(json!({"cpu": "1"}), json!({"cpu": "2"})),
                vec![],
            ),
        ] {
            let mut errors = Vec::new();
            of_pod(&item, &pod, &mut errors);
            assert_eq!(errors, says, "{item}");
        }
        let claim = json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}});
        let mut errors = Vec::new();
        let item = json!({"type": "PersistentVolumeClaim", "min": {"storage": "6Gi"}, "max": {"storage": "4Gi"}});
        of_claim(&item, &claim, &mut errors);
        assert_eq!(
            errors,
            [
                "minimum storage usage per PersistentVolumeClaim is 6Gi, but request is 5Gi",
                "maximum storage usage per PersistentVolumeClaim is 4Gi, but request is 5Gi",
            ]
        );
    }
}
