//! What is left of the entries after a write: no field that is nobody's, and not too many managers.

use std::sync::LazyLock;

use crate::{
    fields::FieldSet,
    managed::{Manager, Managers, Operation},
};

/// Of ordinary writes; the oldest beyond it become one.
pub(super) const MAX_UPDATE_MANAGERS: usize = 10;

/// Who owns what more than [`MAX_UPDATE_MANAGERS`] wrote.
pub(super) const ANCIENT: &str = "ancient-changes";

/// What makes an object that object, and what only the server sets.
static NOBODYS: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// Nobody owns [`NOBODYS`].
pub(super) fn strip_meta(managers: &mut Managers, manager: &Manager) {
    let Some(owned) = managers.get_mut(manager) else {
        return;
    };
    owned.fields.subtract(&NOBODYS);
    if owned.fields.is_empty() {
        managers.remove(manager);
    }
}

/// The oldest Update managers beyond [`MAX_UPDATE_MANAGERS`] become one for each version.
pub(super) fn capped(mut managers: Managers) -> Managers {
    let mut updaters: Vec<(Option<Box<str>>, Manager)> = managers
        .iter()
        .filter(|(manager, _)| manager.operation == Operation::Update)
        .map(|(manager, owned)| (owned.time.clone(), manager.clone()))
        .collect();
    updaters.sort();
    let mut beyond = updaters.len().saturating_sub(MAX_UPDATE_MANAGERS);
    let mut first_of_version: Vec<(Box<str>, Manager)> = Vec::new();
    for (time, manager) in updaters {
        if beyond == 0 {
            break;
        }
        let version = manager.api_version.clone();
        let first = first_of_version.iter().find(|(known, _)| *known == version);
        let Some((_, first)) = first else {
            first_of_version.push((version, manager));
            continue;
        };
        let bucket = Manager::new(ANCIENT, Operation::Update, &version, "");
        if !managers.contains_key(&bucket)
            && let Some(owned) = managers.remove(first)
        {
            managers.insert(bucket.clone(), owned);
        }
        if manager == bucket {
            // It is the bucket itself that is next.
            continue;
        }
        if let Some(owned) = managers.remove(&manager)
            && let Some(into) = managers.get_mut(&bucket)
        {
            into.fields = into.fields.union(&owned.fields);
            into.time = time;
            beyond -= 1;
        }
    }
    managers
}
