//! Who owns what after a write, and what is left of an object of which somebody applies less than before.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use berth_schema::{ObjectId, Schema};
use serde_json::Value;

use crate::{
    error::PatchError,
    fields::{FieldSet, PathElement, equal_values, show_path},
    managed::{Manager, Managers, Owned},
    reconcile::reconcile,
    typed::{self, Comparison, TypeRef, compare, field_set, remove, with_named_fields},
};

/// A kind's other versions: who owns a field wrote it in some version, which need not be the one that is asked for now.
pub trait Versions {
    /// `object` in `api_version`, and its form there; `None` where the kind has no such version (any more): what is owned in it is forgotten.
    fn convert(&self, object: &Value, api_version: &str) -> Option<Converted<'_>>;
}

/// An object in another version.
#[derive(Debug)]
pub struct Converted<'a> {
    pub object: Value,
    pub schema: Option<(&'a Schema, ObjectId)>,
}

/// A kind of one version.
#[derive(Debug, Clone, Copy)]
pub struct OneVersion;

impl Versions for OneVersion {
    fn convert(&self, _: &Value, _: &str) -> Option<Converted<'_>> {
        None
    }
}

/// A field that somebody else owns and that would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub manager: Manager,
    pub(crate) path: Vec<PathElement>,
}

impl Conflict {
    /// `.spec.replicas`: the field of the Status' cause, whose type is FieldManagerConflict.
    pub fn field(&self) -> String {
        show_path(&self.path)
    }

    /// Of the Status' cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager)
    }
}

/// All of one write; sorted by manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

impl std::error::Error for Conflicts {}

impl fmt::Display for Conflicts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [conflict] = &self.0[..] {
            let (message, field) = (conflict.message(), conflict.field());
            return write!(out, "Apply failed with 1 conflict: {message}: {field}");
        }
        write!(out, "Apply failed with {} conflicts: ", self.0.len())?;
        let mut last = None;
        for conflict in &self.0 {
            if last.is_some() {
                out.write_str("\n")?;
            }
            if last != Some(&conflict.manager) {
                writeln!(out, "conflicts with {}:", conflict.manager)?;
            }
            write!(out, "- {}", conflict.field())?;
            last = Some(&conflict.manager);
        }
        Ok(())
    }
}

/// An object in a version, with its form.
#[derive(Debug, Clone)]
pub(crate) struct Typed<'a> {
    pub(crate) object: Cow<'a, Value>,
    pub(crate) ty: TypeRef<'a>,
}

impl<'a> Typed<'a> {
    fn is_in(&self, api_version: &str) -> bool {
        self.object.get("apiVersion").and_then(Value::as_str) == Some(api_version)
    }

    fn field_set(&self) -> Result<FieldSet, PatchError> {
        field_set(&self.object, self.ty).map_err(PatchError::Typed)
    }

    fn without(&self, gone: &FieldSet) -> Self {
        Self {
            object: Cow::Owned(remove(&self.object, gone, self.ty)),
            ty: self.ty,
        }
    }
}

/// structured-merge-diff's updater, of one request.
pub(crate) struct Updater<'a> {
    pub(crate) versions: &'a dyn Versions,
    pub(crate) api_version: Box<str>,
    /// What this endpoint never changes.
    pub(crate) reset: &'a FieldSet,
}

impl<'a> Updater<'a> {
    fn convert(&self, typed: &Typed<'a>, api_version: &str) -> Option<Typed<'a>> {
        if typed.is_in(api_version) {
            return Some(typed.clone());
        }
        let converted = self.versions.convert(&typed.object, api_version)?;
        Some(Typed {
            object: Cow::Owned(converted.object),
            ty: TypeRef::root(converted.schema),
        })
    }

    /// `live` became `new` by an ordinary write: what changed is `manager`'s.
    pub(crate) fn update(
        &self,
        live: &Typed<'a>,
        new: &Typed<'a>,
        managers: Managers,
        manager: &Manager,
    ) -> Result<Managers, PatchError> {
        let managers = self.reconciled(live, managers)?;
        let (mut managers, compared) = self.take(live, new, managers, manager, Force::Yes)?;
        let mut owned = managers.remove(manager).unwrap_or_else(|| Owned {
            fields: FieldSet::default(),
            api_version: self.api_version.clone(),
            time: None,
        });
        owned.fields.subtract(&compared.removed);
        owned.fields.add(compared.modified);
        owned.fields.add(compared.added);
        owned.fields.cut(self.reset);
        owned.api_version = self.api_version.clone();
        if !owned.fields.is_empty() {
            managers.insert(manager.clone(), owned);
        }
        Ok(managers)
    }

    /// `live` with what `applied` has and without what `manager` had applied before and nobody owns now. `None`: it stays as it is.
    pub(crate) fn apply(
        &self,
        live: &Typed<'a>,
        applied: &Typed<'a>,
        managers: Managers,
        manager: &Manager,
        force: Force,
    ) -> Result<(Option<Value>, Managers), PatchError> {
        let mut managers = self.reconciled(live, managers)?;
        let merged =
            typed::merge(&live.object, &applied.object, live.ty).map_err(PatchError::Typed)?;
        let merged = Typed {
            object: Cow::Owned(merged),
            ty: live.ty,
        };
        let last = managers.remove(manager);
        let owned = Owned {
            fields: applied.field_set()?.without(self.reset),
            api_version: self.api_version.clone(),
            time: last.as_ref().and_then(|last| last.time.clone()),
        };
        managers.insert(manager.clone(), owned);
        let new = self.pruned(merged, &managers, last.as_ref())?;
        // An empty map or list that is applied is null once all that was in it is taken away (structured-merge-diff leaves it so, and puts it
        // back when the same is applied again): it is what was applied at once.
        let new = Typed {
            object: Cow::Owned(
                typed::merge(&new.object, &applied.object, live.ty).map_err(PatchError::Typed)?,
            ),
            ty: live.ty,
        };
        let (managers, _) = self.take(live, &new, managers, manager, force)?;
        let new = (!equal_values(&live.object, &new.object)).then(|| new.object.into_owned());
        Ok((new, managers))
    }

    /// What others own and `new` changes or removes is no longer theirs; without force that is a conflict.
    fn take(
        &self,
        live: &Typed<'a>,
        new: &Typed<'a>,
        mut managers: Managers,
        taker: &Manager,
        force: Force,
    ) -> Result<(Managers, Comparison), PatchError> {
        let mut versions: BTreeMap<Box<str>, Comparison> = BTreeMap::new();
        versions.insert(self.api_version.clone(), self.compared(live, new)?);

        let mut conflicts = Vec::new();
        let mut left = Managers::new();
        for (manager, mut owned) in std::mem::take(&mut managers) {
            if manager == *taker {
                left.insert(manager, owned);
                continue;
            }
            if !versions.contains_key(&owned.api_version) {
                let both = self
                    .convert(live, &owned.api_version)
                    .zip(self.convert(new, &owned.api_version));
                let Some((live, new)) = both else {
                    // Nobody can say any more what that was.
                    continue;
                };
                versions.insert(owned.api_version.clone(), self.compared(&live, &new)?);
            }
            let Some(compared) = versions.get(&owned.api_version) else {
                continue;
            };
            let mut changed = owned.fields.intersection(&compared.modified);
            changed.add(owned.fields.intersection(&compared.added));
            conflicts.extend(changed.paths().into_iter().map(|path| Conflict {
                manager: manager.clone(),
                path,
            }));
            owned.fields.subtract(&changed);
            owned.fields.subtract(&compared.removed);
            left.insert(manager, owned);
        }
        if force == Force::No && !conflicts.is_empty() {
            return Err(PatchError::Conflicts(Conflicts(conflicts)));
        }
        left.retain(|_, owned| !owned.fields.is_empty());
        let compared = versions.remove(&self.api_version).unwrap_or_default();
        Ok((left, compared))
    }

    fn compared(&self, live: &Typed<'a>, new: &Typed<'a>) -> Result<Comparison, PatchError> {
        let compared = compare(&live.object, &new.object, live.ty);
        Ok(compared.map_err(PatchError::Typed)?.without(self.reset))
    }

    /// Takes a field or an element away where it was applied last time, is not now, and nobody else owns it.
    fn pruned(
        &self,
        merged: Typed<'a>,
        managers: &Managers,
        last: Option<&Owned>,
    ) -> Result<Typed<'a>, PatchError> {
        let Some(last) = last.filter(|last| !last.fields.is_empty()) else {
            return Ok(merged);
        };
        let Some(merged_then) = self.convert(&merged, &last.api_version) else {
            return Ok(merged);
        };
        let last_fields = with_named_fields(&last.fields, merged_then.ty);
        let pruned = merged_then.without(&last_fields);
        let pruned = self.with_owned(&merged_then, pruned, &last.api_version, managers)?;
        let pruned = self.with_dangling(&merged_then, &pruned, last)?;
        self.convert(&pruned, &self.api_version)
            .ok_or_else(|| PatchError::NoVersion(self.api_version.to_string()))
    }

    /// Puts back what somebody owns, the new configuration itself included.
    fn with_owned(
        &self,
        merged: &Typed<'a>,
        mut pruned: Typed<'a>,
        pruned_version: &str,
        managers: &Managers,
    ) -> Result<Typed<'a>, PatchError> {
        let mut by_version: BTreeMap<&str, FieldSet> = BTreeMap::new();
        for owned in managers.values() {
            let fields = by_version.entry(&owned.api_version).or_default();
            *fields = fields.union(&owned.fields);
        }
        let mut merged = merged.clone();
        // The version it is in comes first: without what that puts back it may not be convertible.
        let first = by_version.remove_entry(pruned_version);
        for (version, owned) in first.into_iter().chain(by_version) {
            let both = self
                .convert(&merged, version)
                .zip(self.convert(&pruned, version));
            let Some((merged_there, pruned_there)) = both else {
                continue;
            };
            let ty = merged_there.ty;
            let had = with_named_fields(&merged_there.field_set()?, ty);
            let has = with_named_fields(&pruned_there.field_set()?, ty);
            let kept = has.union(&with_named_fields(&owned, ty));
            pruned = merged_there.without(&had.difference(&kept));
            merged = merged_there;
        }
        Ok(pruned)
    }

    /// Puts back what the applier had not owned either: it went only since it lay below something that did go.
    fn with_dangling(
        &self,
        merged: &Typed<'a>,
        pruned: &Typed<'a>,
        last: &Owned,
    ) -> Result<Typed<'a>, PatchError> {
        let Some(pruned) = self.convert(pruned, &last.api_version) else {
            return Ok(merged.clone());
        };
        let has = with_named_fields(&pruned.field_set()?, merged.ty);
        let had = with_named_fields(&merged.field_set()?, merged.ty);
        let owned = with_named_fields(&last.fields, merged.ty);
        Ok(merged.without(&had.difference(&has).intersection(&owned)))
    }

    /// Lists and maps that have become one field since somebody owned a part of them are owned whole.
    fn reconciled(&self, live: &Typed<'a>, managers: Managers) -> Result<Managers, PatchError> {
        let mut reconciled = Managers::new();
        for (manager, mut owned) in managers {
            let Some(live) = self.convert(live, &owned.api_version) else {
                continue;
            };
            if let Some(fields) = reconcile(&owned.fields, live.ty) {
                owned.fields = fields;
            }
            reconciled.insert(manager, owned);
        }
        Ok(reconciled)
    }
}

/// Whether others' fields are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    No,
    Yes,
}
