//! A CustomResourceDefinition as it is written: what it lacks, what is wrong with it, whether its names are free.

use berth_kinds::{Invalid, Reason};
use serde_json::{Value, json};

use crate::{api::Api, catalog::Resource, clock, failure::Failure, object};

/// Its objects are deleted before it is.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Fills in names and status: a definition is established when it is written, unless its names are taken.
///
/// # Errors
/// 422 where a schema is not structural.
pub fn establish(api: &Api, resource: &Resource, definition: &mut Value) -> Result<(), Failure> {
    if !resource.is("apiextensions.k8s.io", "customresourcedefinitions")
        || object::is_deleting(definition)
    {
        return Ok(());
    }
    let kind = object::text(definition, "/spec/names/kind").to_owned();
    let mut errors = Vec::new();
    let versions = definition
        .pointer("/spec/versions")
        .and_then(Value::as_array);
    for (at, version) in versions.into_iter().flatten().enumerate() {
        let path = format!("spec.versions[{at}].schema.openAPIV3Schema");
        match version.pointer("/schema/openAPIV3Schema") {
            Some(schema) => {
                errors.extend(super::invalid(berth_schema::check_custom(&path, schema)))
            }
            None => errors.push(Invalid {
                field: path,
                reason: Reason::Required,
                message: "Required value: schemas are required".into(),
            }),
        }
    }
    let strategy = object::text(definition, "/spec/conversion/strategy");
    if !matches!(strategy, "" | "None") {
        errors.push(Invalid {
            field: "spec.conversion.strategy".into(),
            reason: Reason::NotSupported,
            message: format!(
                "Unsupported value: {strategy:?}: supported values: \"None\" (conversion webhooks are not built)"
            ),
        });
    }
    if !errors.is_empty() {
        return Err(Failure::invalid(resource, object::name(definition), errors));
    }
    let spec = object::part(definition, "spec");
    spec.entry("conversion")
        .or_insert_with(|| json!({"strategy": "None"}));
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        names
            .entry("singular")
            .or_insert_with(|| kind.to_lowercase().into());
        names
            .entry("listKind")
            .or_insert_with(|| format!("{kind}List").into());
    }
    let mut finalizers: Vec<String> = object::finalizers(definition)
        .into_iter()
        .map(Into::into)
        .collect();
    if !finalizers.iter().any(|known| known == FINALIZER) {
        finalizers.push(FINALIZER.into());
        object::set_finalizers(definition, finalizers);
    }
    let taken = taken(api, definition);
    let accepted = taken.is_none();
    let names = definition
        .pointer("/spec/names")
        .cloned()
        .unwrap_or_default();
    let storage: Vec<Value> = definition
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    let status = object::part(definition, "status");
    let stored = status.entry("storedVersions").or_insert_with(|| json!([]));
    if let Some(stored) = stored.as_array_mut() {
        for version in storage {
            if !stored.contains(&version) {
                stored.push(version);
            }
        }
    }
    if accepted {
        status.insert("acceptedNames".into(), names);
    } else {
        status
            .entry("acceptedNames")
            .or_insert_with(|| json!({"plural": "", "kind": ""}));
    }
    let conflict = taken.unwrap_or_default();
    set(
        status,
        "NamesAccepted",
        accepted,
        "NoConflicts",
        "no conflicts found",
        &conflict,
    );
    set(
        status,
        "Established",
        accepted,
        "InitialNamesAccepted",
        "the initial names have been accepted",
        "not all names are accepted",
    );
    Ok(())
}

fn set(
    status: &mut serde_json::Map<String, Value>,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    otherwise: &str,
) {
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(conditions) = conditions.as_array_mut() else {
        return;
    };
    let word = if holds { "True" } else { "False" };
    let known = conditions
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == word);
    // What is established stays so: its objects are there.
    let stays = kind == "Established"
        && conditions
            .iter()
            .any(|condition| condition["type"] == kind && condition["status"] == "True");
    if known || stays {
        return;
    }
    conditions.retain(|condition| condition["type"] != kind);
    conditions.push(json!({
        "type": kind,
        "status": word,
        "lastTransitionTime": clock::time(clock::now()),
        "reason": if holds { reason } else { "NotAccepted" },
        "message": if holds { message } else { otherwise },
    }));
}

/// A name that another kind of the group has already.
fn taken(api: &Api, definition: &Value) -> Option<String> {
    let group = object::text(definition, "/spec/group");
    let plural = object::text(definition, "/spec/names/plural");
    let kind = object::text(definition, "/spec/names/kind");
    let singular = object::text(definition, "/spec/names/singular");
    let catalog = api.served.now();
    let versions = catalog.groups.get(group)?;
    let others = versions
        .iter()
        .flat_map(|version| version.resources.values())
        .filter(|resource| resource.custom().is_none() || resource.plural != plural);
    for other in others {
        if other.plural == plural {
            return Some(format!("{plural:?} is already in use"));
        }
        if other.kind == kind {
            return Some(format!("{kind:?} is already in use"));
        }
        if other.singular == singular || other.short_names.iter().any(|name| name == singular) {
            return Some(format!("{singular:?} is already in use"));
        }
    }
    None
}
