//! One write: whose it is, and what it makes of the entries that are there.

use std::borrow::Cow;

use berth_schema::{GroupVersionKind, ObjectId, Schema};
use serde_json::{Map, Value, json};

use super::owners::{capped, strip_meta};
use crate::{
    apply::{Typed, Updater, Versions},
    error::PatchError,
    fields::FieldSet,
    managed::{self, Manager, Managers, Operation, Owned},
    typed::TypeRef,
};

/// Who owns what was there when an object that nobody tracked was first applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// One write, and what is written to.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// `None`: nothing is known of its form, what it is is deduced.
    pub schema: Option<(&'a Schema, ObjectId)>,
    pub kind: &'a GroupVersionKind,
    pub versions: &'a dyn Versions,
    /// Empty: the object itself.
    pub subresource: &'a str,
    /// What this endpoint never changes, whatever is sent: `status` of the object itself, all but `status` of its status.
    pub reset: &'a FieldSet,
    /// See [`manager_name`].
    pub manager: &'a str,
    /// RFC 3339, in UTC, to the second.
    pub now: &'a str,
}

impl std::fmt::Debug for Write<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Write")
            .field("kind", self.kind)
            .field("subresource", &self.subresource)
            .field("manager", &self.manager)
            .finish_non_exhaustive()
    }
}

impl<'a> Write<'a> {
    pub(super) fn api_version(&self) -> String {
        self.kind.api_version()
    }

    pub(super) fn typed(&self, object: Cow<'a, Value>) -> Typed<'a> {
        Typed {
            object,
            ty: TypeRef::root(self.schema),
        }
    }

    pub(super) fn manager(&self, operation: Operation) -> Manager {
        Manager::new(
            self.manager,
            operation,
            &self.api_version(),
            self.subresource,
        )
    }

    /// An object that is yet to be made has its kind alone.
    pub(super) fn without_entries(&self, object: Option<&Value>) -> Value {
        let mut object = match object {
            Some(object) => object.clone(),
            None => json!({"apiVersion": self.api_version(), "kind": self.kind.kind}),
        };
        managed::set_entries(&mut object, None);
        object
    }

    /// `namespace/name; group/version, Kind=kind`, as upstream names objects in errors.
    pub(super) fn name_of(&self, object: &Value) -> String {
        let meta = |name: &str| {
            let name = object.get("metadata").and_then(|meta| meta.get(name));
            name.and_then(Value::as_str).unwrap_or_default()
        };
        format!(
            "{}/{}; {}/{}, Kind={}",
            meta("namespace"),
            meta("name"),
            self.kind.group,
            self.kind.version,
            self.kind.kind
        )
    }

    pub(super) fn check_applied(&self, applied: &Value) -> Result<(), PatchError> {
        let empty = Map::new();
        let fields = match applied {
            Value::Object(fields) => fields,
            Value::Null => &empty,
            _ => {
                return Err(PatchError::Malformed(
                    "error decoding patch: it must be an object".to_owned(),
                ));
            }
        };
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if api_version != self.api_version() || kind != &*self.kind.kind {
            let shown = if api_version.contains('/') {
                api_version.to_owned()
            } else {
                format!("/{api_version}")
            };
            return Err(PatchError::Malformed(format!(
                "invalid object type: {shown}, Kind={kind}"
            )));
        }
        if managed::entries(applied).is_some() {
            return Err(PatchError::Malformed(
                "metadata.managedFields must be nil".to_owned(),
            ));
        }
        Ok(())
    }

    /// What the request says of `managedFields` counts where it can be read and is not of a subresource: clients that don't know them don't lose them.
    pub(super) fn decode_of(&self, live: Option<&Value>, sent: Option<&Value>) -> Managers {
        let of_live = || managed::decode(live).unwrap_or_default();
        if !self.subresource.is_empty() {
            return of_live();
        }
        if managed::asks_for_reset(sent) {
            return Managers::new();
        }
        match managed::decode(sent) {
            Ok(managers) if !managers.is_empty() => managers,
            _ => of_live(),
        }
    }

    /// Who owns what was there, of an object that nobody has tracked.
    pub(super) fn before_first_apply(&self, live: &Typed<'a>) -> Result<Managers, PatchError> {
        let nothing = self.typed(Cow::Owned(self.without_entries(None)));
        self.updated(&nothing, live, Managers::new(), BEFORE_FIRST_APPLY)
    }

    pub(super) fn updated(
        &self,
        live: &Typed<'a>,
        new: &Typed<'a>,
        managers: Managers,
        name: &str,
    ) -> Result<Managers, PatchError> {
        // Nobody else's: an Update has a version. What was the manager's before is taken from it, too, and given back below.
        let this_write = Manager::new("current-operation", Operation::Update, "", "");
        let updater = self.updater();
        let mut managers = updater.update(live, new, managers, &this_write)?;
        strip_meta(&mut managers, &this_write);
        if let Some(changed) = managers.remove(&this_write) {
            let manager = Manager::new(
                name,
                Operation::Update,
                &self.api_version(),
                self.subresource,
            );
            let mut fields = changed.fields;
            if let Some(before) = managers.remove(&manager) {
                fields.add(before.fields);
            }
            let owned = Owned {
                fields,
                api_version: changed.api_version,
                time: Some(self.now.into()),
            };
            managers.insert(manager, owned);
        }
        Ok(capped(managers))
    }

    pub(super) fn updater(&self) -> Updater<'a> {
        Updater {
            versions: self.versions,
            api_version: self.api_version().into(),
            reset: self.reset,
        }
    }
}
