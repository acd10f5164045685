//! Whose an object is: a keeper has what it controls and its selector takes, takes what is nobody's, and lets go of what its selector no longer takes.
//!
//! Invariant: nobody takes what another controls.
//! Invariant: before anything is taken, the server itself has said that the keeper lives: a cache may be behind a deletion, and what a dead one takes is collected.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::core::{Selector, SelectorExt};
use serde_json::json;

use crate::{Cache, Context, Error, Key, Kind, Merge, Queue, owner};

/// One that keeps objects by a selector.
pub(crate) trait Keeper: Kind {
    fn label_selector(&self) -> Option<&LabelSelector>;

    /// None if there is none, or one that can't be read: then nothing is taken.
    fn selector(&self) -> Option<Selector> {
        Selector::try_from(self.label_selector()?.clone()).ok()
    }
}

impl Keeper for ReplicaSet {
    fn label_selector(&self) -> Option<&LabelSelector> {
        Some(&self.spec.as_ref()?.selector)
    }
}

impl Keeper for Deployment {
    fn label_selector(&self) -> Option<&LabelSelector> {
        Some(&self.spec.as_ref()?.selector)
    }
}

impl Keeper for DaemonSet {
    fn label_selector(&self) -> Option<&LabelSelector> {
        Some(&self.spec.as_ref()?.selector)
    }
}

impl Keeper for StatefulSet {
    fn label_selector(&self) -> Option<&LabelSelector> {
        Some(&self.spec.as_ref()?.selector)
    }
}

/// An empty selector takes all: no keeper may have one, and whoever has is told so.
pub(crate) fn takes_all(selector: &LabelSelector) -> bool {
    let labels = selector.match_labels.as_ref();
    let expressions = selector.match_expressions.as_ref();
    labels.is_none_or(BTreeMap::is_empty) && expressions.is_none_or(Vec::is_empty)
}

pub(crate) fn selects(selector: &Selector, meta: &ObjectMeta) -> bool {
    match &meta.labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&BTreeMap::new()),
    }
}

/// Whether the reference is to one of this kind, whatever the version.
pub(crate) fn is_of<O: Kind>(reference: &OwnerReference) -> bool {
    let group = |version: &str| version.rsplit_once('/').map(|(group, _)| group.to_owned());
    reference.kind == O::kind(&()) && group(&reference.api_version) == group(&O::api_version(&()))
}

/// What to do about an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    Ours,
    Take,
    LetGo,
    NotOurs,
}

pub(crate) fn claim(keeper: &ObjectMeta, object: &ObjectMeta, selected: bool) -> Claim {
    let keeper_ends = keeper.deletion_timestamp.is_some();
    match owner::controller_of(object) {
        Some(owner) if Some(&owner.uid) != keeper.uid.as_ref() => Claim::NotOurs,
        Some(_) if selected => Claim::Ours,
        Some(_) if keeper_ends => Claim::NotOurs,
        Some(_) => Claim::LetGo,
        None if keeper_ends || !selected => Claim::NotOurs,
        None if object.deletion_timestamp.is_some() => Claim::NotOurs,
        None if object.namespace != keeper.namespace => Claim::NotOurs,
        None => Claim::Take,
    }
}

/// Those of a kind that nobody controls, by namespace: they are few, and would else be looked for among all.
pub(crate) struct Orphans<K> {
    objects: Cache<K>,
    names: Arc<Mutex<HashMap<String, BTreeSet<String>>>>,
}

impl<K: Kind> Orphans<K> {
    pub(crate) fn of(objects: &Cache<K>) -> Self {
        let names: Arc<Mutex<HashMap<String, BTreeSet<String>>>> = Arc::default();
        let kept = names.clone();
        objects.on_change(move |old, new| {
            let Some(one) = new.or(old) else { return };
            let is_orphan = new.is_some_and(|new| owner::controller_of(new.meta()).is_none());
            let key = Key::of(&**one);
            let mut names = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if is_orphan {
                names.entry(key.namespace).or_default().insert(key.name);
            } else if let Some(here) = names.get_mut(&key.namespace) {
                here.remove(&key.name);
                if here.is_empty() {
                    names.remove(&key.namespace);
                }
            }
        });
        Self {
            objects: objects.clone(),
            names,
        }
    }

    fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let names = names.get(namespace).into_iter().flatten();
        names
            .filter_map(|name| self.objects.get(&Key::new(namespace, name)))
            .filter(|object| owner::controller_of(object.meta()).is_none())
            .collect()
    }

    /// Whatever `keeper` may have: what it controls, and what nobody does.
    pub(crate) fn and_those_of<O: Kind>(&self, keeper: &O) -> Vec<Arc<K>> {
        let meta = keeper.meta();
        let mut all = self
            .objects
            .controlled_by(meta.uid.as_deref().unwrap_or_default());
        all.extend(self.in_namespace(meta.namespace.as_deref().unwrap_or_default()));
        all
    }
}

/// Wakes whom a change of an object may concern: who controlled it, who controls it, and who may take it now that nobody does.
pub(crate) fn wake<O: Keeper, K: Kind>(objects: &Cache<K>, keepers: &Cache<O>, queue: &Queue) {
    let (keepers, queue) = (keepers.clone(), queue.clone());
    objects.on_change(move |old, new| {
        for object in [old, new].into_iter().flatten() {
            if let Some(owner) = owner::controller_of(object.meta())
                && is_of::<O>(owner)
            {
                let namespace = object.meta().namespace.as_deref().unwrap_or_default();
                queue.add(Key::new(namespace, &owner.name));
            }
        }
        let Some(new) = new.filter(|new| owner::controller_of(new.meta()).is_none()) else {
            return;
        };
        let was_so = old.is_some_and(|old| {
            old.meta().labels == new.meta().labels && owner::controller_of(old.meta()).is_none()
        });
        if was_so || new.meta().deletion_timestamp.is_some() {
            return;
        }
        for keeper in keepers.in_namespace(new.meta().namespace.as_deref().unwrap_or_default()) {
            if keeper
                .selector()
                .is_some_and(|selector| selects(&selector, new.meta()))
            {
                queue.add(Key::of(&*keeper));
            }
        }
    });
}

/// Those of `objects` that are the keeper's, after it has taken and let go of what it must.
///
/// The first error, once all were tried.
pub(crate) async fn settle<O: Keeper, K: Kind>(
    context: &Context,
    keeper: &O,
    objects: Vec<Arc<K>>,
    selected: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error> {
    let mut ours = Vec::with_capacity(objects.len());
    let (mut lives, mut failed) = (None, None);
    for object in objects {
        match claim(keeper.meta(), object.meta(), selected(&object)) {
            Claim::Ours => ours.push(object),
            Claim::NotOurs => {}
            Claim::LetGo => {
                if let Err(error) = let_go(context, keeper, &*object).await {
                    failed.get_or_insert(error);
                }
            }
            Claim::Take => {
                if lives.is_none() {
                    lives = Some(does_live(context, keeper).await?);
                }
                if lives != Some(true) {
                    continue;
                }
                match take(context, keeper, &*object).await {
                    Ok(taken) => ours.extend(taken),
                    Err(error) => _ = failed.get_or_insert(error),
                }
            }
        }
    }
    failed.map_or(Ok(ours), Err)
}

/// As the server says, not the cache.
async fn does_live<O: Keeper>(context: &Context, keeper: &O) -> Result<bool, Error> {
    match context.read::<O>(&Key::of(keeper)).await {
        Ok(fresh) => {
            Ok(fresh.meta().uid == keeper.meta().uid && fresh.meta().deletion_timestamp.is_none())
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// None if it has gone meanwhile. That another took it first is an error: the uid and the one controller that the server allows say so.
async fn take<O: Keeper, K: Kind>(
    context: &Context,
    keeper: &O,
    object: &K,
) -> Result<Option<Arc<K>>, Error> {
    let patch = json!({"metadata": {
        "uid": object.meta().uid, "ownerReferences": [owner::reference(keeper)],
    }});
    match context
        .patch::<K>(&Key::of(object), &patch, Merge::Strategic)
        .await
    {
        Ok(taken) => Ok(Some(taken)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn let_go<O: Keeper, K: Kind>(
    context: &Context,
    keeper: &O,
    object: &K,
) -> Result<(), Error> {
    let patch = json!({"metadata": {
        "uid": object.meta().uid, "ownerReferences": [{"$patch": "delete", "uid": keeper.meta().uid}],
    }});
    match context
        .patch::<K>(&Key::of(object), &patch, Merge::Strategic)
        .await
    {
        // invalid or a conflict: it is another of the same name by now, or belongs to nobody
        Err(error) if !error.is_not_found() && error.code() != Some(422) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    fn owned(uid: &str) -> Value {
        json!({"namespace": "n", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "other"},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true},
        ]})
    }

    #[test]
    fn nobody_takes_what_another_controls() {
        let lives = json!({"namespace": "n", "uid": "us"});
        let ends =
            json!({"namespace": "n", "uid": "us", "deletionTimestamp": "2026-01-01T00:00:00Z"});
        let free = json!({"namespace": "n", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "other", "controller": false},
        ]});
        let mut ending = free.clone();
        ending["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        for (keeper, object, selected, expected) in [
            (&lives, owned("us"), true, Claim::Ours),
            (&lives, owned("us"), false, Claim::LetGo),
            (&lives, owned("them"), true, Claim::NotOurs),
            (&lives, owned("them"), false, Claim::NotOurs),
            (&lives, free.clone(), true, Claim::Take),
            (&lives, free.clone(), false, Claim::NotOurs),
            (&lives, ending, true, Claim::NotOurs),
            (&lives, json!({"namespace": "m"}), true, Claim::NotOurs),
            (&ends, owned("us"), true, Claim::Ours),
            (&ends, owned("us"), false, Claim::NotOurs),
            (&ends, free, true, Claim::NotOurs),
        ] {
            let claim = claim(&meta(keeper.clone()), &meta(object.clone()), selected);
            assert_eq!(claim, expected, "{keeper} {object} {selected}");
        }
    }

    #[test]
    fn a_reference_is_to_a_kind_of_a_group() {
        let reference = |version: &str, kind: &str| OwnerReference {
            api_version: version.into(),
            kind: kind.into(),
            ..OwnerReference::default()
        };
        assert!(is_of::<ReplicaSet>(&reference("apps/v1", "ReplicaSet")));
        assert!(is_of::<ReplicaSet>(&reference(
            "apps/v1beta1",
            "ReplicaSet"
        )));
        assert!(!is_of::<ReplicaSet>(&reference(
            "example.com/v1",
            "ReplicaSet"
        )));
        assert!(!is_of::<ReplicaSet>(&reference("apps/v1", "Deployment")));
        assert!(!is_of::<ReplicaSet>(&reference("v1", "ReplicaSet")));
    }

    #[test]
    fn an_empty_selector_takes_all_and_a_bad_one_nothing() {
        let selector = |value: Value| -> LabelSelector { serde_json::from_value(value).unwrap() };
        assert!(takes_all(&selector(json!({}))));
        assert!(takes_all(&selector(
            json!({"matchLabels": {}, "matchExpressions": []})
        )));
        assert!(!takes_all(&selector(json!({"matchLabels": {"a": "b"}}))));
        let mut set: ReplicaSet = serde_json::from_value(json!({
            "metadata": {}, "spec": {"selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
        }))
        .unwrap();
        assert!(set.selector().is_none());
        set.spec.as_mut().unwrap().selector = selector(json!({"matchLabels": {"a": "b"}}));
        let selector = set.selector().unwrap();
        assert!(selects(
            &selector,
            &meta(json!({"labels": {"a": "b", "c": "d"}}))
        ));
        assert!(!selects(&selector, &meta(json!({}))));
    }
}
