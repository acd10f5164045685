//! What is served now: the built-in kinds, and those of the CustomResourceDefinitions that are established.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, RwLock},
};

use berth_kinds::Kind;

use crate::{cache::parts_of, custom::Custom, failure::qualified, parts::Parts};

/// All keys are below it, as upstream's are.
pub const REGISTRY: &str = "/registry/";

/// One kind in one version, by the plural that paths say.
#[derive(Debug)]
pub struct Resource {
    /// Empty for core.
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<&'static str>,
    pub subresources: Vec<Subresource>,
    /// Below [`REGISTRY`]; empty where it isn't kept.
    pub storage: String,
    /// It is kept in this version: others that share the storage are converted.
    pub stored: bool,
    /// What the cache has to know of its objects.
    pub parts: Parts,
    pub made_of: MadeOf,
}

#[derive(Debug, Clone)]
pub struct Subresource {
    pub name: &'static str,
    pub verbs: Vec<&'static str>,
    /// Group, version and kind of what it takes and answers, where that is another kind.
    pub kind: Option<(&'static str, &'static str, &'static str)>,
}

#[derive(Debug)]
pub enum MadeOf {
    BuiltIn(&'static Kind),
    Custom(Arc<Custom>),
}

impl Resource {
    fn built_in(kind: &'static Kind) -> Self {
        let own = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Self {
            group: kind.group.into(),
            version: kind.version.into(),
            kind: kind.kind.into(),
            list_kind: format!("{}List", kind.kind),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            short_names: own(kind.short_names),
            categories: own(kind.categories),
            namespaced: kind.namespaced,
            verbs: kind.verbs.to_vec(),
            subresources: kind
                .subresources
                .iter()
                .map(|sub| Subresource {
                    name: sub.name,
                    verbs: sub.verbs.to_vec(),
                    kind: sub.kind,
                })
                .collect(),
            storage: kind.storage.into(),
            stored: is_kept(kind),
            parts: parts_of(Some(kind)),
            made_of: MadeOf::BuiltIn(kind),
        }
    }

    pub fn kind(&self) -> Option<&'static Kind> {
        match &self.made_of {
            MadeOf::BuiltIn(kind) => Some(kind),
            MadeOf::Custom(_) => None,
        }
    }

    pub fn custom(&self) -> Option<&Arc<Custom>> {
        match &self.made_of {
            MadeOf::BuiltIn(_) => None,
            MadeOf::Custom(custom) => Some(custom),
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// `pods`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Where an object is kept.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(namespace))
    }

    /// Where those of a namespace are kept, or all.
    pub fn prefix(&self, namespace: &str) -> String {
        let storage = &self.storage;
        if self.namespaced && !namespace.is_empty() {
            format!("{REGISTRY}{storage}/{namespace}/")
        } else {
            format!("{REGISTRY}{storage}/")
        }
    }
}

pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// The group and the version that an object's `apiVersion` says.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// A snapshot: it never changes.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By group, then versions, the preferred one first.
    pub groups: BTreeMap<String, Vec<Version>>,
    by_storage: HashMap<String, Arc<Resource>>,
    /// Counts the snapshots.
    pub generation: u64,
}

#[derive(Debug)]
pub struct Version {
    pub name: String,
    /// By plural.
    pub resources: BTreeMap<String, Arc<Resource>>,
}

impl Catalog {
    pub fn of(custom: &[Arc<Custom>], generation: u64) -> Self {
        let built_in = berth_kinds::all().iter().map(Resource::built_in);
        let custom = custom.iter().flat_map(Custom::resources);
        let mut catalog = Self {
            generation,
            ..Self::default()
        };
        for resource in built_in.chain(custom) {
            let resource = Arc::new(resource);
            if !resource.storage.is_empty() {
                // The kind that is kept is the one that needs no conversion: it comes first among those that share a storage.
                let known = catalog.by_storage.contains_key(&resource.storage);
                if resource.stored || !known {
                    catalog
                        .by_storage
                        .insert(resource.storage.clone(), resource.clone());
                }
            }
            let versions = catalog.groups.entry(resource.group.clone()).or_default();
            let at = match versions
                .iter()
                .position(|version| version.name == resource.version)
            {
                Some(at) => at,
                None => {
                    versions.push(Version {
                        name: resource.version.clone(),
                        resources: BTreeMap::new(),
                    });
                    versions.sort_by_key(|version| std::cmp::Reverse(priority(&version.name)));
                    versions
                        .iter()
                        .position(|version| version.name == resource.version)
                        .unwrap_or_default()
                }
            };
            versions[at]
                .resources
                .entry(resource.plural.clone())
                .or_insert(resource);
        }
        catalog
    }

    pub fn version(&self, group: &str, version: &str) -> Option<&Version> {
        self.groups
            .get(group)?
            .iter()
            .find(|known| known.name == version)
    }

    pub fn resource(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.version(group, version)?.resources.get(plural)
    }

    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Resource>> {
        self.version(group, version)?
            .resources
            .values()
            .find(|resource| resource.kind == kind)
    }

    /// In the version that is kept.
    pub fn by_storage(&self, storage: &str) -> Option<&Arc<Resource>> {
        self.by_storage.get(storage)
    }

    pub fn stored(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_storage.values()
    }
}

/// Whether objects of this kind are kept in this version of it.
fn is_kept(kind: &'static Kind) -> bool {
    let first = berth_kinds::all()
        .iter()
        .filter(|other| other.storage == kind.storage)
        .max_by_key(|other| match (other.group, other.version) {
            // events are kept as core's, scalers as v2's
            ("autoscaling", "v2") => 2,
            ("", _) => 1,
            _ => 0,
        });
    first.is_some_and(|first| first.group == kind.group && first.version == kind.version)
}

/// Upstream's order of versions: v2 before v1, v1 before v1beta1, v1beta1 before v1alpha1; what is no such version last.
pub fn priority(version: &str) -> (u8, u32, u32) {
    let parsed = || {
        let rest = version.strip_prefix('v')?;
        for (rank, word) in [(2, "beta"), (1, "alpha")] {
            if let Some((major, minor)) = rest.split_once(word) {
                return Some((rank, major.parse().ok()?, minor.parse().ok()?));
            }
        }
        Some((3, rest.parse().ok()?, 0))
    };
    parsed().unwrap_or((0, 0, 0))
}

/// The snapshot of now.
#[derive(Debug)]
pub struct Served(RwLock<Arc<Catalog>>);

impl Served {
    pub fn new() -> Self {
        Self(RwLock::new(Arc::new(Catalog::of(&[], 1))))
    }

    pub fn now(&self) -> Arc<Catalog> {
        self.0
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    pub fn set(&self, custom: &[Arc<Custom>]) {
        let mut now = self
            .0
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *now = Arc::new(Catalog::of(custom, now.generation + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_upstream_orders_them() {
        let mut versions = ["v1alpha1", "foo", "v1", "v2beta1", "v10", "v1beta2", "v2"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]
        );
    }

    #[test]
    fn objects_lie_where_upstream_has_them() {
        let catalog = Catalog::of(&[], 1);
        for (group, version, plural, key) in [
            ("", "v1", "pods", "/registry/pods/ns/x"),
            ("", "v1", "services", "/registry/services/specs/ns/x"),
            ("", "v1", "nodes", "/registry/minions/x"),
            ("apps", "v1", "deployments", "/registry/deployments/ns/x"),
            ("events.k8s.io", "v1", "events", "/registry/events/ns/x"),
        ] {
            let resource = catalog.resource(group, version, plural).expect(plural);
            assert_eq!(resource.key("ns", "x"), key);
        }
        assert_eq!(catalog.by_storage("events").expect("events").group, "");
    }
}
