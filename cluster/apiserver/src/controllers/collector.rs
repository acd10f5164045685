//! Garbage collection: what is owned goes with its owners.
//!
//! ```text
//!   an owner is gone ──────────────── its dependents are looked at: none of their owners left → deleted
//!   an owner waits (foreground) ───── its dependents are deleted; the finalizer goes when none that blocks is left
//!   an owner lets them be (orphan) ── the references to it are taken away, then the finalizer
//! ```

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Map, Value};

use crate::{
    api::{Actor, Api},
    cache::{Change, Entry, Observer},
    catalog::{Catalog, Resource, split_api_version},
    delete::{self, DeleteOptions, FOREGROUND, ORPHAN, Propagation},
    failure::Failure,
    object,
    queue::Queue,
    write::{self, Part},
};

/// (storage, path)
type Key = (String, String);

/// What could not be dealt with is looked at again after it.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub struct Collector {
    /// By the owner's uid. Only objects that have owners are in it.
    dependents: Mutex<HashMap<Box<str>, BTreeSet<Key>>>,
    changed: Queue<Key>,
}

impl Observer for Collector {
    fn changed(&self, storage: &str, change: &Arc<Change>) {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        let Some(entry) = new.or(old) else {
            return;
        };
        // Events have no owners, and are too many to look at.
        if storage == "events" {
            return;
        }
        let key = (storage.to_owned(), entry.path.to_string());
        let none: &[Box<str>] = &[];
        let before = old.map_or(none, |old| &old.owners);
        let now = new.map_or(none, |new| &new.owners);
        let mut dependents = self
            .dependents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for uid in before.iter().filter(|uid| !now.contains(uid)) {
            if let Some(keys) = dependents.get_mut(uid) {
                keys.remove(&key);
                if keys.is_empty() {
                    dependents.remove(uid);
                }
            }
        }
        for uid in now {
            dependents
                .entry(uid.clone())
                .or_default()
                .insert(key.clone());
        }
        match new {
            None => {
                // Its dependents may have none left, and its owners may have waited for it.
                let uid = old.map_or("", |old| &old.uid);
                for dependent in dependents.get(uid).into_iter().flatten() {
                    self.changed.add(dependent.clone());
                }
                for uid in before {
                    self.changed.add((OWNER.into(), uid.to_string()));
                }
            }
            Some(new) => {
                if new.deleting || before != now {
                    self.changed.add(key);
                }
                for uid in before.iter().filter(|uid| !now.contains(uid)) {
                    self.changed.add((OWNER.into(), uid.to_string()));
                }
            }
        }
    }
}

/// Instead of a storage: the key is the uid of an owner that may wait for its dependents.
const OWNER: &str = "";

impl Collector {
    fn dependents(&self, uid: &str) -> Vec<Key> {
        self.dependents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        // Owners that wait, by uid.
        let mut waiting: HashMap<String, Key> = HashMap::new();
        loop {
            let mut key = self.changed.next().await;
            if key.0 == OWNER {
                match waiting.get(&key.1) {
                    Some(owner) => key = owner.clone(),
                    None => continue,
                }
            }
            let Some(entry) = api.cache.shard(&key.0).get(&key.1) else {
                waiting.retain(|_, owner| *owner != key);
                continue;
            };
            if entry.deleting {
                waiting.insert(entry.uid.to_string(), key.clone());
            }
            match self.look_at(&api, &key, &entry).await {
                Err(failure) if failure.code != 404 => {
                    tracing::debug!(?key, %failure, "it is looked at again");
                    let this = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(AGAIN).await;
                        this.changed.add(key);
                    });
                }
                _ => {}
            }
        }
    }

    async fn look_at(&self, api: &Api, key: &Key, entry: &Entry) -> Result<(), Failure> {
        let catalog = api.served.now();
        let Some(resource) = catalog.by_storage(&key.0) else {
            return Ok(());
        };
        let value = entry.value();
        let finalizers = object::finalizers(&value);
        if entry.deleting && finalizers.contains(&ORPHAN) {
            return self.orphan(api, &catalog, resource, entry).await;
        }
        if entry.deleting && finalizers.contains(&FOREGROUND) {
            return self.foreground(api, &catalog, resource, entry).await;
        }
        if entry.owners.is_empty() || entry.deleting {
            return Ok(());
        }
        let (mut solid, mut waiting, mut absent) = (0, 0, 0);
        for owner in object::owners(&value) {
            match find_owner(api, &catalog, entry.namespace(), owner).await? {
                Owner::There => solid += 1,
                Owner::Waits => waiting += 1,
                Owner::Absent => absent += 1,
            }
        }
        if solid > 0 {
            if absent + waiting > 0 {
                return self.forget(api, &catalog, resource, entry).await;
            }
            return Ok(());
        }
        let dependents = self.dependents(&entry.uid);
        let propagation = if waiting > 0 && !dependents.is_empty() {
            if self
                .unblock(api, resource, entry, &value, &dependents)
                .await?
            {
                return Ok(());
            }
            Propagation::Foreground
        } else if finalizers.contains(&ORPHAN) {
            Propagation::Orphan
        } else if finalizers.contains(&FOREGROUND) {
            Propagation::Foreground
        } else {
            Propagation::Background
        };
        remove(api, resource, entry, propagation).await
    }

    /// An owner that waits for this one, which would wait for a dependent that waits in its turn: they may own each other, and none would ever go. So this one's owners
    /// do not wait for it (as upstream, which does not look further either). Whether they did.
    async fn unblock(
        &self,
        api: &Api,
        resource: &Resource,
        entry: &Entry,
        value: &Value,
        dependents: &[Key],
    ) -> Result<bool, Failure> {
        let waits = |(storage, path): &Key| {
            let dependent = api.cache.shard(storage).get(path);
            dependent.is_some_and(|it| it.deleting && waits_for_dependents(&it))
        };
        let blocks = object::owners(value)
            .any(|owner| owner.get("blockOwnerDeletion") == Some(&Value::Bool(true)));
        if !blocks || !dependents.iter().any(waits) {
            return Ok(false);
        }
        rewrite(api, resource, entry, |value| {
            let owners = object::metadata(value).get_mut("ownerReferences");
            for owner in owners.and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(blocks) = owner.get_mut("blockOwnerDeletion") {
                    *blocks = false.into();
                }
            }
        })
        .await?;
        for uid in &entry.owners {
            self.changed.add((OWNER.into(), uid.to_string()));
        }
        self.changed
            .add((resource.storage.clone(), entry.path.to_string()));
        Ok(true)
    }

    /// Takes away the references to owners that are gone, where another is there.
    async fn forget(
        &self,
        api: &Api,
        catalog: &Catalog,
        resource: &Resource,
        entry: &Entry,
    ) -> Result<(), Failure> {
        let value = entry.value();
        let mut gone = Vec::new();
        for owner in object::owners(&value) {
            if !matches!(
                find_owner(api, catalog, entry.namespace(), owner).await?,
                Owner::There
            ) {
                gone.extend(owner.get("uid").and_then(Value::as_str).map(str::to_owned));
            }
        }
        drop_references(api, resource, entry, &gone).await
    }

    async fn orphan(
        &self,
        api: &Api,
        catalog: &Catalog,
        resource: &Resource,
        entry: &Entry,
    ) -> Result<(), Failure> {
        // All that were made before it was deleted are known.
        api.cache.fresh().await?;
        for (storage, path) in self.dependents(&entry.uid) {
            let Some(dependent) = api.cache.shard(&storage).get(&path) else {
                continue;
            };
            if let Some(resource) = catalog.by_storage(&storage) {
                ignore_gone(
                    drop_references(api, resource, &dependent, &[entry.uid.to_string()]).await,
                )?;
            }
        }
        finish(api, resource, entry, ORPHAN).await
    }

    async fn foreground(
        &self,
        api: &Api,
        catalog: &Catalog,
        resource: &Resource,
        entry: &Entry,
    ) -> Result<(), Failure> {
        api.cache.fresh().await?;
        let mut blocked = false;
        for (storage, path) in self.dependents(&entry.uid) {
            let Some(dependent) = api.cache.shard(&storage).get(&path) else {
                continue;
            };
            let Some(of_dependent) = catalog.by_storage(&storage) else {
                continue;
            };
            let value = dependent.value();
            blocked |= object::owners(&value).any(|owner| {
                owner.get("uid").and_then(Value::as_str) == Some(entry.uid.as_ref())
                    && owner.get("blockOwnerDeletion") == Some(&Value::Bool(true))
            });
            if !dependent.deleting {
                self.changed.add((storage, path));
                let _ = of_dependent;
            }
        }
        if blocked {
            return Ok(());
        }
        finish(api, resource, entry, FOREGROUND).await
    }
}

enum Owner {
    There,
    /// It is being deleted in the foreground.
    Waits,
    Absent,
}

async fn find_owner(
    api: &Api,
    catalog: &Catalog,
    namespace: &str,
    owner: &Map<String, Value>,
) -> Result<Owner, Failure> {
    let text = |name: &str| owner.get(name).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = split_api_version(text("apiVersion"));
    let Some(resource) = catalog.by_kind(group, version, text("kind")) else {
        // Of a kind that is not known now: it may be known again.
        return Ok(Owner::There);
    };
    if resource.storage.is_empty() {
        return Ok(Owner::There);
    }
    let namespace = if resource.namespaced { namespace } else { "" };
    let path = crate::read::path(resource, namespace, text("name"));
    let entry = match api.cache.shard(&resource.storage).get(&path) {
        Some(entry) => entry,
        None => {
            api.cache.fresh().await?;
            match api.cache.shard(&resource.storage).get(&path) {
                Some(entry) => entry,
                None => return Ok(Owner::Absent),
            }
        }
    };
    if entry.uid.as_ref() != text("uid") {
        return Ok(Owner::Absent);
    }
    let waits = entry.deleting && waits_for_dependents(&entry);
    Ok(if waits { Owner::Waits } else { Owner::There })
}

fn waits_for_dependents(entry: &Entry) -> bool {
    object::finalizers(&entry.value()).contains(&FOREGROUND)
}

fn actor() -> Actor {
    Actor::internal("generic-garbage-collector")
}

async fn remove(
    api: &Api,
    resource: &Resource,
    entry: &Entry,
    propagation: Propagation,
) -> Result<(), Failure> {
    let options = DeleteOptions {
        propagation: Some(propagation),
        uid: Some(entry.uid.to_string()),
        // Its owners may have been changed meanwhile.
        resource_version: Some(entry.revision.to_string()),
        ..DeleteOptions::default()
    };
    let actor = actor();
    let deleted = delete::delete(
        api,
        &actor,
        resource,
        entry.namespace(),
        entry.name(),
        &options,
    );
    ignore_gone(deleted.await.map(drop))
}

fn ignore_gone(result: Result<(), Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.code == 404 => Ok(()),
        result => result,
    }
}

async fn drop_references(
    api: &Api,
    resource: &Resource,
    entry: &Entry,
    uids: &[String],
) -> Result<(), Failure> {
    rewrite(api, resource, entry, |value| {
        let metadata = object::metadata(value);
        if let Some(owners) = metadata
            .get_mut("ownerReferences")
            .and_then(Value::as_array_mut)
        {
            owners.retain(|owner| {
                !uids
                    .iter()
                    .any(|uid| owner.get("uid").and_then(Value::as_str) == Some(uid))
            });
            if owners.is_empty() {
                metadata.remove("ownerReferences");
            }
        }
    })
    .await
}

async fn finish(
    api: &Api,
    resource: &Resource,
    entry: &Entry,
    finalizer: &str,
) -> Result<(), Failure> {
    rewrite(api, resource, entry, |value| {
        let kept = object::finalizers(value)
            .into_iter()
            .filter(|known| *known != finalizer)
            .map(Into::into)
            .collect();
        object::set_finalizers(value, kept);
    })
    .await
}

/// One that is gone meanwhile needs no change.
async fn rewrite(
    api: &Api,
    resource: &Resource,
    entry: &Entry,
    change: impl Fn(&mut Value) + Send + Sync,
) -> Result<(), Failure> {
    let changed = write::modify(
        api,
        &actor(),
        resource,
        entry.namespace(),
        entry.name(),
        Part::Whole,
        |value| {
            let mut new = value.clone();
            change(&mut new);
            Ok(new)
        },
    )
    .await;
    ignore_gone(changed.map(drop))
}
