use serde_json::{Map, Value, json};

use super::{container, volume};
use crate::{
    quantity::canonicalize,
    write::{absent, each, object_at, text_of, zero},
};

pub(crate) fn pod(pod: &mut Value) {
    let Some(spec) = object_at(pod, "/spec") else {
        return;
    };
    pod_spec(spec);
    for list in ["containers", "initContainers"] {
        each(spec, list).for_each(container::requests_from_limits);
    }
    absent(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for container in each(spec, list) {
                for port in each(container, "ports") {
                    if let Some(own) = port.get("containerPort").cloned() {
                        zero(port, "hostPort", own);
                    }
                }
            }
        }
    }
}

/// Of PodTemplate; the workloads' own templates go the same way.
pub(crate) fn pod_template(object: &mut Value) {
    template(object, "/template");
}

/// The template at `pointer`.
pub(super) fn template(object: &mut Value, pointer: &str) {
    if let Some(template) = object_at(object, pointer)
        && let Some(Value::Object(spec)) = template.get_mut("spec")
    {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    zero(spec, "dnsPolicy", "ClusterFirst");
    zero(spec, "restartPolicy", "Always");
    absent(spec, "securityContext", json!({}));
    absent(spec, "terminationGracePeriodSeconds", 30);
    zero(spec, "schedulerName", "default-scheduler");
    // The field has an older name, which is kept beside it.
    let account = match text_of(spec, "serviceAccountName") {
        "" => text_of(spec, "serviceAccount").to_owned(),
        account => account.to_owned(),
    };
    if !account.is_empty() {
        spec.insert("serviceAccountName".to_owned(), account.clone().into());
        spec.insert("serviceAccount".to_owned(), account.into());
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        each(spec, list).for_each(container::container);
    }
    each(spec, "volumes").for_each(volume::volume);
    canonicalize(spec.get_mut("overhead"));
    if let Some(Value::Object(resources)) = spec.get_mut("resources") {
        canonicalize(resources.get_mut("limits"));
        canonicalize(resources.get_mut("requests"));
    }
}
