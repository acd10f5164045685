//! `managedFields` between an object and its scale subresource: who scales owns the replicas of the object.

use serde_json::Value;

use crate::{
    fields::{FieldSet, PathElement},
    managed::{self, ManagedFieldsError, Managers, Operation, Owned},
};

const SCALE_VERSION: &str = "autoscaling/v1";

/// Where each apiVersion of a kind has its replicas, by names of fields; `None` where one has no scale.
pub type ReplicasPaths<'a> = &'a [(&'a str, Option<&'a [&'a str]>)];

fn path_of<'a>(paths: ReplicasPaths<'a>, api_version: &str) -> Option<Option<Vec<PathElement>>> {
    let (_, path) = paths.iter().find(|(version, _)| *version == api_version)?;
    Some(path.map(elements))
}

fn elements(path: &[&str]) -> Vec<PathElement> {
    path.iter().map(|name| PathElement::field(name)).collect()
}

fn replicas_of_scale() -> FieldSet {
    FieldSet::of_fields(&[&["spec", "replicas"]])
}

/// The `managedFields` of a scale, of those of its object; `None`: it has none.
pub fn scale_entries(
    parent: &Value,
    paths: ReplicasPaths<'_>,
) -> Result<Option<Value>, ManagedFieldsError> {
    let mut managers = managed::decode(managed::entries(parent))?;
    managers.retain(|_, owned| {
        let path = path_of(paths, &owned.api_version).flatten();
        path.is_some_and(|path| owned.fields.contains(&path))
    });
    for owned in managers.values_mut() {
        owned.fields = replicas_of_scale();
        owned.api_version = SCALE_VERSION.into();
    }
    Ok(managed::encode(&managers))
}

/// The `managedFields` of an object (of `api_version`), of its own and of those of its scale after a write to that.
pub fn parent_entries(
    parent: &Value,
    scale: &Value,
    api_version: &str,
    paths: ReplicasPaths<'_>,
) -> Result<Option<Value>, ManagedFieldsError> {
    // A manager of the scale is the one of the object, in the object's version.
    let mut of_scale = Managers::new();
    for (mut manager, owned) in managed::decode(managed::entries(scale))? {
        if manager.operation == Operation::Update {
            manager.api_version = api_version.into();
        }
        of_scale.insert(manager, owned);
    }
    let mut merged = Managers::new();
    for (manager, mut owned) in managed::decode(managed::entries(parent))? {
        let Some(path) = path_of(paths, &owned.api_version) else {
            continue;
        };
        if let Some(path) = path.filter(|path| owned.fields.contains(path))
            && of_scale.remove(&manager).is_none()
        {
            // Whoever scaled has taken it.
            let mut replicas = FieldSet::default();
            replicas.insert(&path);
            owned.fields = owned.fields.difference(&replicas);
            if owned.fields.is_empty() {
                continue;
            }
        }
        merged.insert(manager, owned);
    }
    let Some(Some(path)) = path_of(paths, api_version) else {
        return Ok(managed::encode(&merged));
    };
    let mut replicas = FieldSet::default();
    replicas.insert(&path);
    for (manager, owned) in of_scale {
        if owned.fields.contains(&elements(&["spec", "replicas"])) {
            let before = merged.remove(&manager).map(|owned| owned.fields);
            let owned = Owned {
                fields: replicas.union(&before.unwrap_or_default()),
                api_version: api_version.into(),
                time: owned.time,
            };
            merged.insert(manager, owned);
        }
    }
    Ok(managed::encode(&merged))
}
