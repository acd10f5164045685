//! What a write does to `managedFields`: server-side apply, and ordinary writes, which are tracked, too.

mod owners;
mod write;

use std::borrow::Cow;

use serde_json::Value;

use crate::{
    apply::{Conflicts, Force, Typed},
    error::PatchError,
    last_applied,
    managed::{self, Managers, Operation},
    typed::{Duplicates, validate},
};
use owners::strip_meta;
pub use write::Write;

/// kubectl's name, which takes over from client-side apply.
const KUBECTL: &str = "kubectl";

/// Of a manager's name, as upstream's validation has it.
pub const MAX_MANAGER_BYTES: usize = 128;

/// The manager that a request names, or what its User-Agent has before its first `/`.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let mut name = String::new();
    let program = user_agent.split('/').next().unwrap_or_default();
    for char in program.chars().filter(|char| !char.is_control()) {
        if name.len() + char.len_utf8() > MAX_MANAGER_BYTES {
            break;
        }
        name.push(char);
    }
    name
}

/// `live` (`None`: there is no such object yet) with what `applied` has, and without what the manager had applied before and nobody owns now.
///
/// Equal to `live`, times included, where nothing changes.
///
/// # Errors
/// [`PatchError::Conflicts`] where others own what would change and `force` does not say that it is taken from them.
pub fn apply(
    write: &Write<'_>,
    live: Option<&Value>,
    applied: &Value,
    force: Force,
) -> Result<Value, PatchError> {
    write.check_applied(applied)?;
    let mut managers = managed::decode(live.and_then(managed::entries))?;
    let live = write.without_entries(live);

    let live = write.typed(Cow::Owned(live));
    let applied = write.typed(Cow::Borrowed(applied));
    let name = |typed: &Typed<'_>| write.name_of(&typed.object);
    validate(&applied.object, applied.ty, Duplicates::Refused).map_err(|errors| {
        PatchError::TypedPatch {
            object: name(&applied),
            errors,
        }
    })?;
    validate(&live.object, live.ty, Duplicates::Allowed).map_err(|errors| {
        PatchError::TypedLive {
            object: name(&live),
            errors,
        }
    })?;
    if managers.is_empty() {
        managers = write.before_first_apply(&live)?;
    }

    let updater = write.updater();
    let manager = write.manager(Operation::Apply);
    let once = |force| updater.apply(&live, &applied, managers.clone(), &manager, force);
    let (new, mut managers) = match once(force) {
        Err(PatchError::Conflicts(conflicts)) if write.manager == KUBECTL => {
            let left = last_applied::not_last_applied(&conflicts, &live, &write.api_version());
            match left {
                None => return Err(PatchError::Conflicts(conflicts)),
                Some(left) if !left.is_empty() => {
                    return Err(PatchError::Conflicts(Conflicts(left)));
                }
                Some(_) => once(Force::Yes)?,
            }
        }
        done => done?,
    };
    strip_meta(&mut managers, &manager);
    let mut new = match new {
        Some(new) => {
            if let Some(owned) = managers.get_mut(&manager) {
                owned.time = Some(write.now.into());
            }
            new
        }
        None => live.object.into_owned(),
    };
    if write.manager == KUBECTL {
        last_applied::refresh(&mut new, &applied.object);
    }
    managed::check_metadata(&new)?;
    managed::set_entries(&mut new, managed::encode(&managers));
    Ok(new)
}

/// Writes into `new`'s `managedFields` what an ordinary write changed of `live` (`None`: it made the object), which is left as it was.
///
/// Nothing is refused for what can't be tracked: `new` keeps the entries of `live` then.
pub fn track_update(write: &Write<'_>, live: Option<&mut Value>, new: &mut Value) {
    // Taken out for as long as the two are compared, so that neither is copied.
    let sent = managed::take_entries(new).filter(|sent| !sent.is_null());
    let mut nothing = write.without_entries(None);
    let (live, is_made) = match live {
        Some(live) => (live, false),
        None => (&mut nothing, true),
    };
    let kept = managed::take_entries(live);
    let known = kept.as_ref().filter(|known| !known.is_null());
    let managers = write.decode_of(known, sent.as_ref());
    let entries = match tracked(write, live, new, managers, is_made) {
        Ok(managers) => managed::encode(&managers),
        Err(_) => known.cloned(),
    };
    managed::set_entries(new, entries);
    if let Some(kept) = kept {
        managed::set_entries(live, Some(kept));
    }
}

fn tracked<'a>(
    write: &Write<'a>,
    live: &'a Value,
    new: &'a Value,
    managers: Managers,
    is_made: bool,
) -> Result<Managers, PatchError> {
    // Whose owners were dropped once has none until it is applied.
    if managers.is_empty() && !is_made {
        return Ok(managers);
    }
    let live = write.typed(Cow::Borrowed(live));
    let new = write.typed(Cow::Borrowed(new));
    for typed in [&new, &live] {
        validate(&typed.object, typed.ty, Duplicates::Allowed).map_err(PatchError::Typed)?;
    }
    write.updated(&live, &new, managers, write.manager)
}

#[cfg(test)]
mod tests;
