use serde_json::{Map, Value, json};

use super::{
    pod::template,
    storage::{canonical_metrics, claim_spec},
};
use crate::write::{absent, each, ensure, has, object_at, text_of, zero};

const TEMPLATE: &str = "/spec/template";

pub(crate) fn deployment(object: &mut Value) {
    template(object, TEMPLATE);
    let Some(spec) = object_at(object, "/spec") else {
        return;
    };
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    absent(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = ensure(spec, "strategy") {
        zero(strategy, "type", "RollingUpdate");
        if text_of(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            absent(rolling, "maxUnavailable", "25%");
            absent(rolling, "maxSurge", "25%");
        }
    }
}

pub(crate) fn replica_set(object: &mut Value) {
    template(object, TEMPLATE);
    if let Some(spec) = object_at(object, "/spec") {
        absent(spec, "replicas", 1);
    }
}

pub(crate) fn replication_controller(object: &mut Value) {
    template(object, TEMPLATE);
    if let Some(Value::Object(labels)) = object.pointer("/spec/template/metadata/labels").cloned() {
        if let Some(spec) = object_at(object, "/spec") {
            zero(spec, "selector", labels.clone());
        }
        labels_from_template(object, labels);
    }
    if let Some(spec) = object_at(object, "/spec") {
        absent(spec, "replicas", 1);
    }
}

/// Objects of the first workload kinds without labels have those of their template.
fn labels_from_template(object: &mut Value, labels: Map<String, Value>) {
    if let Some(object) = object.as_object_mut()
        && let Some(metadata) = ensure(object, "metadata")
        && !labels.is_empty()
    {
        zero(metadata, "labels", labels);
    }
}

pub(crate) fn stateful_set(object: &mut Value) {
    template(object, TEMPLATE);
    let Some(spec) = object_at(object, "/spec") else {
        return;
    };
    zero(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = ensure(spec, "updateStrategy") {
        zero(strategy, "type", "RollingUpdate");
        if text_of(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            absent(rolling, "partition", 0);
        }
    }
    if let Some(retention) = ensure(spec, "persistentVolumeClaimRetentionPolicy") {
        zero(retention, "whenDeleted", "Retain");
        zero(retention, "whenScaled", "Retain");
    }
    absent(spec, "replicas", 1);
    absent(spec, "revisionHistoryLimit", 10);
    for claim in each(spec, "volumeClaimTemplates") {
        zero(claim, "apiVersion", "v1");
        zero(claim, "kind", "PersistentVolumeClaim");
        if let Some(Value::Object(spec)) = claim.get_mut("spec") {
            claim_spec(spec);
        }
        if let Some(status) = ensure(claim, "status") {
            zero(status, "phase", "Pending");
        }
    }
}

pub(crate) fn daemon_set(object: &mut Value) {
    template(object, TEMPLATE);
    let Some(spec) = object_at(object, "/spec") else {
        return;
    };
    absent(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = ensure(spec, "updateStrategy") {
        zero(strategy, "type", "RollingUpdate");
        if text_of(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = ensure(strategy, "rollingUpdate")
        {
            absent(rolling, "maxUnavailable", 1);
            absent(rolling, "maxSurge", 0);
        }
    }
}

pub(crate) fn job(object: &mut Value) {
    template(object, TEMPLATE);
    let labels = object.pointer("/spec/template/metadata/labels").cloned();
    let Some(spec) = object_at(object, "/spec") else {
        return;
    };
    // A job that says neither is for one pod to do; one that says how many at once ends when one of them has done it.
    if !has(spec, "completions") && !has(spec, "parallelism") {
        absent(spec, "completions", 1);
    }
    absent(spec, "parallelism", 1);
    let limit = if has(spec, "backoffLimitPerIndex") {
        i64::from(i32::MAX)
    } else {
        6
    };
    absent(spec, "backoffLimit", limit);
    absent(spec, "completionMode", "NonIndexed");
    absent(spec, "suspend", false);
    absent(spec, "manualSelector", false);
    let replacement = if has(spec, "podFailurePolicy") {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    absent(spec, "podReplacementPolicy", replacement);
    if let Some(Value::Object(policy)) = spec.get_mut("podFailurePolicy") {
        for rule in each(policy, "rules") {
            for pattern in each(rule, "onPodConditions") {
                zero(pattern, "status", "True");
            }
        }
    }
    if let Some(Value::Object(labels)) = labels {
        labels_from_template(object, labels);
    }
}

pub(crate) fn cron_job(object: &mut Value) {
    template(object, "/spec/jobTemplate/spec/template");
    let Some(spec) = object_at(object, "/spec") else {
        return;
    };
    zero(spec, "concurrencyPolicy", "Allow");
    absent(spec, "suspend", false);
    absent(spec, "successfulJobsHistoryLimit", 3);
    absent(spec, "failedJobsHistoryLimit", 1);
}

pub(crate) fn horizontal_pod_autoscaler(object: &mut Value) {
    let Some(spec) = object_at(object, "/spec") else {
        return;
    };
    absent(spec, "minReplicas", 1);
    zero(
        spec,
        "metrics",
        json!([{
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
        }]),
    );
    each(spec, "metrics").for_each(canonical_metrics);
    if let Some(Value::Object(behavior)) = spec.get_mut("behavior") {
        if let Some(up) = ensure(behavior, "scaleUp") {
            absent(up, "stabilizationWindowSeconds", 0);
            absent(up, "selectPolicy", "Max");
            zero(
                up,
                "policies",
                json!([
                    {"type": "Pods", "value": 4, "periodSeconds": 15},
                    {"type": "Percent", "value": 100, "periodSeconds": 15},
                ]),
            );
        }
        if let Some(down) = ensure(behavior, "scaleDown") {
            absent(down, "selectPolicy", "Max");
            zero(
                down,
                "policies",
                json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
            );
        }
    }
}

pub(crate) fn priority_class(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        absent(object, "preemptionPolicy", "PreemptLowerPriority");
    }
}
