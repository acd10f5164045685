//! An object in the cache, and what a change makes of it.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use berth_kinds::{Kind, at, looked_at, selectable};
use berth_store::Revision;
use bytes::Bytes;
use serde_json::Value;

use crate::{
    catalog::Resource,
    object,
    parts::Parts,
    selector::{FieldSelector, LabelSelector},
};

/// An object as it is kept, with its resourceVersion.
#[derive(Debug)]
pub struct Entry {
    /// Below `/registry/STORAGE/`: `NAMESPACE/NAME`, or `NAME`.
    pub path: Box<str>,
    pub revision: Revision,
    /// JSON.
    pub bytes: Bytes,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// What field selectors can name beside name and namespace.
    pub fields: Box<[(&'static str, Box<str>)]>,
    /// The uids of its owners.
    pub owners: Box<[Box<str>]>,
    pub uid: Box<str>,
    /// metadata.deletionTimestamp is set.
    pub deleting: bool,
}

/// Of every object: what the cache has to know beside what its kind can be selected by.
const OF_METADATA: [&str; 5] = [
    "metadata.deletionTimestamp",
    "metadata.labels",
    "metadata.ownerReferences",
    "metadata.resourceVersion",
    "metadata.uid",
];

/// The parts of a kind's objects that an entry is made of.
pub fn parts_of(kind: Option<&Kind>) -> Parts {
    let selectable = kind.into_iter().flat_map(|kind| kind.selectable);
    let looked_at = selectable.flat_map(|path| looked_at(path));
    Parts::of(OF_METADATA.into_iter().chain(looked_at))
}

/// Of what nobody knows the kind of.
static OF_ANY: LazyLock<Parts> = LazyLock::new(|| parts_of(None));

impl Entry {
    /// Of what is kept. A tree is made of what the cache has to know alone: the object itself is only passed on.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn of_kept(
        resource: Option<&Resource>,
        path: &str,
        revision: Revision,
        bytes: &[u8],
    ) -> Result<Self, serde_json::Error> {
        let parts = resource.map_or(&*OF_ANY, |resource| &resource.parts);
        if let Ok((known, Some(brace))) = parts.of_kept(bytes)
            && at(&known, "/metadata/resourceVersion").is_none()
        {
            let bytes = with_revision(bytes, brace, revision);
            return Ok(Self::known(resource, path, revision, &known, bytes));
        }
        let mut object = serde_json::from_slice(bytes)?;
        Ok(Self::new(resource, path, revision, &mut object))
    }

    /// `object` is what is kept; its resourceVersion is set to `revision`.
    pub fn new(
        resource: Option<&Resource>,
        path: &str,
        revision: Revision,
        object: &mut Value,
    ) -> Self {
        object::set_resource_version(object, revision);
        let bytes = serde_json::to_vec(object).unwrap_or_default().into();
        Self::known(resource, path, revision, object, bytes)
    }

    fn known(
        resource: Option<&Resource>,
        path: &str,
        revision: Revision,
        object: &Value,
        bytes: Bytes,
    ) -> Self {
        let labels = object
            .pointer("/metadata/labels")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())))
            .collect();
        let fields = resource
            .and_then(Resource::kind)
            .filter(|kind| !kind.selectable.is_empty())
            .map(|kind| {
                selectable(kind, object)
                    .into_iter()
                    .filter(|(path, _)| !path.starts_with("metadata."))
                    .map(|(path, value)| (path, value.into_boxed_str()))
                    .collect()
            })
            .unwrap_or_default();
        let owners = object::owners(object)
            .filter_map(|owner| Some(owner.get("uid")?.as_str()?.into()))
            .collect();
        Self {
            path: path.into(),
            revision,
            bytes,
            labels,
            fields,
            owners,
            uid: object::uid(object).into(),
            deleting: object::is_deleting(object),
        }
    }

    pub fn name(&self) -> &str {
        self.path
            .rsplit_once('/')
            .map_or(&self.path, |(_, name)| name)
    }

    /// Empty where it has none.
    pub fn namespace(&self) -> &str {
        self.path
            .rsplit_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels
            .iter()
            .find(|(name, _)| name.as_ref() == key)
            .map(|(_, value)| value.as_ref())
    }

    pub fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            _ => self
                .fields
                .iter()
                .find(|(name, _)| *name == path)
                .map_or("", |(_, value)| value),
        }
    }

    pub fn matches(&self, labels: &LabelSelector, fields: &FieldSelector) -> bool {
        labels.matches(|key| self.label(key)) && fields.matches(|path| self.field(path))
    }
}

/// The object that has its metadata begin with `brace`, and no resourceVersion, with one.
fn with_revision(bytes: &[u8], brace: usize, revision: Revision) -> Bytes {
    let (head, rest) = bytes.split_at(brace + 1);
    let comma = match rest.trim_ascii_start().first() {
        Some(b'}') => "",
        _ => ",",
    };
    let version = format!("\"resourceVersion\":\"{revision}\"{comma}");
    [head, version.as_bytes(), rest].concat().into()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

impl ChangeKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// What an event was encoded as: its form, in which version.
pub type Encoded = (ChangeKind, String, Bytes);

#[derive(Debug)]
pub struct Change {
    pub revision: Revision,
    pub old: Option<Arc<Entry>>,
    pub new: Option<Arc<Entry>>,
    /// Each form is encoded once, by the first watcher that wants it. None: nothing is kept any more.
    encoded: Mutex<Option<Vec<Encoded>>>,
}

impl Change {
    pub fn new(revision: Revision, old: Option<Arc<Entry>>, new: Option<Arc<Entry>>) -> Self {
        Self {
            revision,
            old,
            new,
            encoded: Mutex::new(Some(Vec::new())),
        }
    }

    /// What it is to a watcher that sees what `selects` says; `None`: nothing.
    pub fn seen(&self, selects: impl Fn(&Entry) -> bool) -> Option<ChangeKind> {
        let was = self.old.as_deref().is_some_and(&selects);
        let is = self.new.as_deref().is_some_and(&selects);
        match (was, is) {
            (false, false) => None,
            (false, true) => Some(ChangeKind::Added),
            (true, true) => Some(ChangeKind::Modified),
            (true, false) => Some(ChangeKind::Deleted),
        }
    }

    /// The object to tell of. What is gone (or no longer selected) is told as it was last, with the revision of its end.
    pub fn object(&self, kind: ChangeKind) -> Option<Bytes> {
        if kind != ChangeKind::Deleted {
            return self.new.as_ref().map(|entry| entry.bytes.clone());
        }
        let mut object = self.old.as_ref()?.value();
        object::set_resource_version(&mut object, self.revision);
        serde_json::to_vec(&object).ok().map(Bytes::from)
    }

    /// In this form, made by `encode` where nobody has asked for it yet.
    pub fn encoded(
        &self,
        kind: ChangeKind,
        form: &str,
        encode: impl FnOnce(Bytes) -> Bytes,
    ) -> Option<Bytes> {
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(encoded) = encoded.as_mut() else {
            return Some(encode(self.object(kind)?));
        };
        let known = encoded
            .iter()
            .find(|(known, name, _)| *known == kind && name == form);
        if let Some((.., bytes)) = known {
            return Some(bytes.clone());
        }
        let bytes = encode(self.object(kind)?);
        encoded.push((kind, form.to_owned(), bytes.clone()));
        Some(bytes)
    }

    /// Who still asks for it encodes for itself.
    pub fn forget_encoded(&self) {
        let mut encoded = self.encoded.lock().unwrap_or_else(PoisonError::into_inner);
        *encoded = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn an_entry_of_bytes_is_the_one_of_the_tree() {
        let catalog = Catalog::of(&[], 1);
        let metadata = json!({
            "name": "a", "namespace": "n", "uid": "u", "deletionTimestamp": "2026-11-22T15:04:05Z",
            "labels": {"app": "x", "b": 3}, "ownerReferences": [{"uid": "o"}, {"uid": 4}, {"uid": "p", "kind": "X"}],
            "managedFields": [{"manager": "m", "fieldsV1": {"f:a": {}}}],
        });
        for resource in catalog.stored() {
            // Each field that can be selected by, and what it is made of.
            let mut object = json!({"kind": resource.kind, "metadata": metadata});
            let kind = resource.kind().expect("built in");
            for path in kind.selectable.iter().flat_map(|path| looked_at(path)) {
                let mut at = &mut object;
                for name in path.split('.') {
                    at = &mut at[name];
                }
                *at = format!("value of {path}").into();
            }
            for (object, is) in [
                (object.clone(), "whole"),
                (json!({"metadata": {}}), "empty"),
                (json!({"metadata": {"resourceVersion": ""}}), "with none"),
                (
                    json!({"metadata": {"resourceVersion": "3", "name": "a"}}),
                    "with a version",
                ),
                (
                    json!({"metadata": 3, "spec": [1], "status": "a"}),
                    "of wrong types",
                ),
                (json!([1]), "no object"),
            ] {
                let bytes = object.to_string();
                let read =
                    Entry::of_kept(Some(resource), "n/a", 7, bytes.as_bytes()).expect(&bytes);
                let made = Entry::new(Some(resource), "n/a", 7, &mut object.clone());
                assert_eq!(read.value(), made.value(), "{} {is}", resource.plural);
                let known = |entry: Entry| {
                    format!(
                        "{:?}",
                        Entry {
                            bytes: Bytes::new(),
                            ..entry
                        }
                    )
                };
                assert_eq!(known(read), known(made), "{} {is}", resource.plural);
            }
        }
        assert!(Entry::of_kept(None, "a", 7, b"{").is_err());
    }
}
