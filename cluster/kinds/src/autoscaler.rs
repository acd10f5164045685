//! HorizontalPodAutoscaler in autoscaling/v1: kept as v2. What v1 has no field for stands in annotations, named and formed as upstream's, so that an object
//! that is read and written in v1 loses nothing.

use serde_json::{Map, Value, json};

use crate::{
    defaults, prepare,
    read::{items, map, text},
    write::{absent, ensure, object_at},
};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const ALL: [&str; 4] = [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS];

/// Where v1 has what v2 has there, by the type of a metric: (v2, v1), as pointers into its source.
type Names = &'static [(&'static str, &'static str)];

/// Of a type: its field, names of a target and of what is current.
const TYPES: [(&str, &str, Names, Names); 5] = [
    (
        "Resource",
        "resource",
        &[
            ("/name", "/name"),
            ("/target/averageUtilization", "/targetAverageUtilization"),
            ("/target/averageValue", "/targetAverageValue"),
        ],
        &[
            ("/name", "/name"),
            ("/current/averageUtilization", "/currentAverageUtilization"),
            ("/current/averageValue", "/currentAverageValue"),
        ],
    ),
    (
        "ContainerResource",
        "containerResource",
        &[
            ("/name", "/name"),
            ("/container", "/container"),
            ("/target/averageUtilization", "/targetAverageUtilization"),
            ("/target/averageValue", "/targetAverageValue"),
        ],
        &[
            ("/name", "/name"),
            ("/container", "/container"),
            ("/current/averageUtilization", "/currentAverageUtilization"),
            ("/current/averageValue", "/currentAverageValue"),
        ],
    ),
    (
        "Pods",
        "pods",
        &[
            ("/metric/name", "/metricName"),
            ("/metric/selector", "/selector"),
            ("/target/averageValue", "/targetAverageValue"),
        ],
        &[
            ("/metric/name", "/metricName"),
            ("/metric/selector", "/selector"),
            ("/current/averageValue", "/currentAverageValue"),
        ],
    ),
    (
        "Object",
        "object",
        &[
            ("/describedObject", "/target"),
            ("/metric/name", "/metricName"),
            ("/metric/selector", "/selector"),
            ("/target/value", "/targetValue"),
            ("/target/averageValue", "/averageValue"),
        ],
        &[
            ("/describedObject", "/target"),
            ("/metric/name", "/metricName"),
            ("/metric/selector", "/selector"),
            ("/current/value", "/currentValue"),
            ("/current/averageValue", "/averageValue"),
        ],
    ),
    (
        "External",
        "external",
        &[
            ("/metric/name", "/metricName"),
            ("/metric/selector", "/metricSelector"),
            ("/target/value", "/targetValue"),
            ("/target/averageValue", "/targetAverageValue"),
        ],
        &[
            ("/metric/name", "/metricName"),
            ("/metric/selector", "/metricSelector"),
            ("/current/value", "/currentValue"),
            ("/current/averageValue", "/currentAverageValue"),
        ],
    ),
];

/// Sets what is at a pointer of one or two names.
fn put(object: &mut Map<String, Value>, pointer: &str, value: Value) {
    let mut names = pointer.split('/').skip(1);
    match (names.next(), names.next()) {
        (Some(name), None) => {
            object.insert(name.to_owned(), value);
        }
        (Some(part), Some(name)) => {
            if let Some(part) = ensure(object, part) {
                part.insert(name.to_owned(), value);
            }
        }
        _ => {}
    }
}

#[derive(Clone, Copy)]
enum Side {
    Target,
    Current,
}

/// One metric as the other version has it; none where it has no type that is known.
fn metric(of: &Value, side: Side, to_v2: bool) -> Option<Value> {
    let kind = text(of, "/type");
    let (_, field, target, current) = TYPES.iter().find(|(name, ..)| *name == kind)?;
    let names = match side {
        Side::Target => target,
        Side::Current => current,
    };
    let from = of.get(*field)?;
    let mut source = Map::new();
    for (v2, v1) in *names {
        let (at, to) = if to_v2 { (v1, v2) } else { (v2, v1) };
        if let Some(value) = from.pointer(at).filter(|value| !value.is_null()) {
            put(&mut source, to, value.clone());
        }
    }
    if to_v2 && matches!(side, Side::Target) {
        let has = |name: &str| {
            source
                .get("target")
                .and_then(|target| target.get(name))
                .is_some()
        };
        let kind = match *field {
            "resource" | "containerResource" if has("averageUtilization") => "Utilization",
            "object" if !has("averageValue") => "Value",
            "external" if has("value") => "Value",
            _ => "AverageValue",
        };
        put(&mut source, "/target/type", kind.into());
    }
    Some(json!({"type": kind, *field: source}))
}

/// Names of fields as Go has them in the type that upstream writes down here: `ScaleUp`; read in either form.
fn recased(value: &Value, case: fn(&str) -> String) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (case(name), recased(value, case)))
            .collect(),
        Value::Array(all) => all.iter().map(|one| recased(one, case)).collect(),
        other => other.clone(),
    }
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_ascii_uppercase().to_string() + letters.as_str()
    })
}

fn small(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_ascii_lowercase().to_string() + letters.as_str()
    })
}

fn is_cpu_utilization(metric: &Value) -> bool {
    text(metric, "/type") == "Resource"
        && text(metric, "/resource/name") == "cpu"
        && metric
            .pointer("/resource/target/averageUtilization")
            .is_some_and(|value| !value.is_null())
}

/// From v2, as it is kept.
pub(crate) fn to_v1(object: &mut Value) {
    let other_metrics: Vec<Value> = items(object, "/spec/metrics")
        .iter()
        .filter(|one| !is_cpu_utilization(one))
        .filter_map(|one| metric(one, Side::Target, false))
        .collect();
    let cpu = |list: &str, at: &str| {
        items(object, list)
            .iter()
            .filter(|one| text(one, "/type") == "Resource" && text(one, "/resource/name") == "cpu")
            .find_map(|one| one.pointer(at).filter(|value| !value.is_null()).cloned())
    };
    let target = cpu("/spec/metrics", "/resource/target/averageUtilization");
    let current = cpu(
        "/status/currentMetrics",
        "/resource/current/averageUtilization",
    );
    let current_metrics: Vec<Value> = items(object, "/status/currentMetrics")
        .iter()
        .filter_map(|one| metric(one, Side::Current, false))
        .collect();
    let conditions = items(object, "/status/conditions").to_vec();
    let behavior = map(object, "/spec/behavior")
        .map(|behavior| recased(&Value::Object(behavior.clone()), capital));
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    fields.insert("apiVersion".to_owned(), "autoscaling/v1".into());
    for (part, gone, name, value) in [
        (
            "spec",
            ["metrics", "behavior"],
            "targetCPUUtilizationPercentage",
            target,
        ),
        (
            "status",
            ["currentMetrics", "conditions"],
            "currentCPUUtilizationPercentage",
            current,
        ),
    ] {
        let Some(part) = fields.get_mut(part).and_then(Value::as_object_mut) else {
            continue;
        };
        for name in gone {
            part.remove(name);
        }
        if let Some(value) = value {
            part.insert(name.to_owned(), value);
        }
    }
    let told = [
        (
            METRICS,
            (!other_metrics.is_empty()).then(|| other_metrics.into()),
        ),
        (BEHAVIOR, behavior),
        (
            CURRENT_METRICS,
            (!current_metrics.is_empty()).then(|| current_metrics.into()),
        ),
        (
            CONDITIONS,
            (!conditions.is_empty()).then(|| conditions.into()),
        ),
    ];
    forget(object);
    for (name, value) in told {
        let value: Option<Value> = value;
        if let Some(value) = value
            && let Some(metadata) = object_at(object, "/metadata")
            && let Some(annotations) = ensure(metadata, "annotations")
        {
            annotations.insert(name.to_owned(), value.to_string().into());
        }
    }
}

/// Annotations that nothing but the conversion sets.
fn forget(object: &mut Value) {
    let Some(metadata) = object_at(object, "/metadata") else {
        return;
    };
    if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
        for name in ALL {
            annotations.remove(name);
        }
        if annotations.is_empty() {
            metadata.remove("annotations");
        }
    }
}

/// To v2, as it is kept. An annotation that is no JSON of its form says nothing.
pub(crate) fn to_v2(object: &mut Value) {
    let annotation = |name: &str| -> Option<Value> {
        let text = map(object, "/metadata/annotations")?.get(name)?.as_str()?;
        serde_json::from_str(text).ok()
    };
    let list = |name: &str, side: Side| -> Option<Vec<Value>> {
        let list = annotation(name)?;
        let list = list.as_array()?.iter();
        Some(list.filter_map(|one| metric(one, side, true)).collect())
    };
    let mut metrics = list(METRICS, Side::Target).unwrap_or_default();
    let current_metrics = list(CURRENT_METRICS, Side::Current);
    let behavior = annotation(BEHAVIOR)
        .filter(Value::is_object)
        .map(|behavior| recased(&behavior, small));
    let conditions = annotation(CONDITIONS).filter(Value::is_array);
    let Some(fields) = object.as_object_mut() else {
        return;
    };
    fields.insert("apiVersion".to_owned(), "autoscaling/v2".into());
    if let Some(Value::Object(spec)) = fields.get_mut("spec") {
        if let Some(target) = spec.remove("targetCPUUtilizationPercentage")
            && !target.is_null()
        {
            metrics.push(json!({
                "type": "Resource",
                "resource": {
                    "name": "cpu",
                    "target": {"type": "Utilization", "averageUtilization": target},
                },
            }));
        }
        if !metrics.is_empty() {
            spec.insert("metrics".to_owned(), metrics.into());
        }
        if let Some(behavior) = behavior {
            spec.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(Value::Object(status)) = fields.get_mut("status") {
        let current = status.remove("currentCPUUtilizationPercentage");
        let current_metrics = current_metrics.or_else(|| {
            Some(vec![json!({
                "type": "Resource",
                "resource": {"name": "cpu", "current": {"averageUtilization": current?}},
            })])
        });
        if let Some(current_metrics) = current_metrics {
            status.insert("currentMetrics".to_owned(), current_metrics.into());
        }
        if let Some(conditions) = conditions {
            status.insert("conditions".to_owned(), conditions);
        }
    }
    forget(object);
    defaults::horizontal_pod_autoscaler(object);
}

/// As v2 has it, for what is said of it there.
pub(crate) fn as_v2(object: &Value) -> Value {
    let mut object = object.clone();
    to_v2(&mut object);
    object
}

pub(crate) fn default_v1(object: &mut Value) {
    if let Some(spec) = object_at(object, "/spec") {
        absent(spec, "minReplicas", 1);
    }
}

/// What stands in annotations of its status is as little the client's as the status.
pub(crate) fn update_v1(new: &mut Value, old: &Value) {
    prepare::update_status(new, old);
    for name in [CURRENT_METRICS, CONDITIONS] {
        let kept = map(old, "/metadata/annotations").and_then(|all| all.get(name));
        let Some(metadata) = object_at(new, "/metadata") else {
            return;
        };
        match kept {
            Some(kept) => {
                if let Some(annotations) = ensure(metadata, "annotations") {
                    annotations.insert(name.to_owned(), kept.clone());
                }
            }
            None => {
                if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
                    annotations.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaler() -> Value {
        json!({
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "web", "annotations": {"a": "b"}},
            "spec": {
                "minReplicas": 1,
                "maxReplicas": 5,
                "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
                    {"type": "Object", "object": {
                        "describedObject": {"kind": "Ingress", "name": "i"},
                        "metric": {"name": "h", "selector": {"matchLabels": {"a": "b"}}},
                        "target": {"type": "Value", "value": "10"},
                    }},
                    {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "3"}}},
                    {"type": "ContainerResource", "containerResource": {
                        "name": "memory",
                        "container": "c",
                        "target": {"type": "Utilization", "averageUtilization": 50},
                    }},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                ],
                "behavior": {"scaleDown": {
                    "selectPolicy": "Max",
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
                }, "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "selectPolicy": "Max",
                    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
                }},
            },
            "status": {
                "currentReplicas": 2,
                "desiredReplicas": 3,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 90, "averageValue": "9m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        })
    }

    #[test]
    fn a_scaler_that_goes_through_v1_is_what_it_was() {
        let was = scaler();
        let mut object = was.clone();
        to_v1(&mut object);
        assert_eq!(object["apiVersion"], "autoscaling/v1");
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 70);
        assert_eq!(object["status"]["currentCPUUtilizationPercentage"], 90);
        assert!(object["spec"].get("metrics").is_none(), "{object}");
        let behavior = text(
            &object,
            "/metadata/annotations/autoscaling.alpha.kubernetes.io~1behavior",
        );
        assert!(behavior.contains("\"ScaleDown\""), "{behavior}");
        to_v2(&mut object);
        assert_eq!(object, was);
    }

    #[test]
    fn what_v1_says_is_kept_as_v2_says_it() {
        let mut object = json!({
            "apiVersion": "autoscaling/v1",
            "metadata": {"name": "web"},
            "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 60},
        });
        to_v2(&mut object);
        assert_eq!(
            object["spec"]["metrics"],
            json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}])
        );
        // and nothing said: as v2's default
        let mut object = json!({"metadata": {}, "spec": {"maxReplicas": 3}});
        to_v2(&mut object);
        to_v1(&mut object);
        assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 80);
    }

    #[test]
    fn annotations_of_any_form_break_nothing() {
        for said in [
            "",
            "3",
            "[3]",
            "{}",
            "[{\"type\":\"Pods\"}]",
            "{\"ScaleUp\":3}",
            "[[]]",
            "nul",
        ] {
            let annotations: Map<String, Value> = ALL
                .iter()
                .map(|name| ((*name).to_owned(), said.into()))
                .collect();
            let mut object = json!({
                "metadata": {"annotations": annotations},
                "spec": {"maxReplicas": 3},
                "status": {},
            });
            to_v2(&mut object);
            to_v1(&mut object);
            assert_eq!(object["spec"]["maxReplicas"], 3, "{said}");
        }
        for mut object in [json!(null), json!([]), json!({"spec": 3, "metadata": 4})] {
            to_v2(&mut object);
            to_v1(&mut object);
        }
    }

    #[test]
    fn a_status_is_not_changed_by_its_annotations() {
        let mut old = scaler();
        to_v1(&mut old);
        let mut new = old.clone();
        for (name, value) in [(CONDITIONS, "[]"), (CURRENT_METRICS, "[]")] {
            new["metadata"]["annotations"][name] = value.into();
        }
        update_v1(&mut new, &old);
        assert_eq!(new, old);
    }
}
