use serde_json::Value;

use crate::write::{each, ensure, text_of, zero};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(crate) fn role_binding(binding: &mut Value) {
    let Some(binding) = binding.as_object_mut() else {
        return;
    };
    if let Some(role) = ensure(binding, "roleRef") {
        zero(role, "apiGroup", RBAC);
    }
    for subject in each(binding, "subjects") {
        if ["User", "Group"].contains(&text_of(subject, "kind")) {
            zero(subject, "apiGroup", RBAC);
        }
    }
}

pub(crate) fn custom_resource_definition(definition: &mut Value) {
    let Some(Value::Object(spec)) = definition.get_mut("spec") else {
        return;
    };
    if let Some(Value::Object(names)) = spec.get_mut("names") {
        let kind = text_of(names, "kind").to_owned();
        if !kind.is_empty() {
            zero(names, "singular", kind.to_lowercase());
            zero(names, "listKind", format!("{kind}List"));
        }
    }
    if let Some(conversion) = ensure(spec, "conversion") {
        zero(conversion, "strategy", "None");
    }
}
