//! Namespaces: each has its first ServiceAccount and the CA's certificate, and one that is deleted goes when it is empty.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    api::{Actor, Api},
    cache::{Change, Observer, Shard},
    catalog::Resource,
    clock,
    delete::{self, DeleteOptions},
    failure::Failure,
    object,
    queue::Queue,
    write::{self, Part},
};

/// A namespace that is not empty yet is looked at again, besides when something of it goes.
const AGAIN: Duration = Duration::from_secs(5);

const FINALIZER: &str = "kubernetes";
pub const ROOT_CA: &str = "kube-root-ca.crt";

#[derive(Debug, Default)]
pub struct Namespaces {
    changed: Queue<String>,
    /// Those that are on their way out.
    going: std::sync::Mutex<std::collections::BTreeSet<String>>,
}

impl Namespaces {
    fn is_going(&self, namespace: &str) -> bool {
        self.going
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .contains(namespace)
    }
}

impl Observer for Namespaces {
    fn changed(&self, storage: &str, change: &Arc<Change>) {
        match storage {
            "namespaces" => {
                let entry = change.new.as_ref().or(change.old.as_ref());
                if let Some(entry) = entry {
                    let going = change.new.as_ref().is_some_and(|new| new.deleting);
                    let mut all = self
                        .going
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner);
                    if going {
                        all.insert(entry.name().into());
                    } else {
                        all.remove(entry.name());
                    }
                    drop(all);
                    self.changed.add(entry.name().into());
                }
            }
            // What every namespace has is made again where it is deleted.
            "serviceaccounts" | "configmaps" if change.new.is_none() => {
                if let Some(old) = &change.old
                    && matches!(old.name(), "default" | ROOT_CA)
                {
                    self.changed.add(old.namespace().into());
                }
            }
            _ => {}
        }
        if change.new.is_none()
            && let Some(old) = &change.old
            && self.is_going(old.namespace())
        {
            self.changed.add(old.namespace().into());
        }
    }
}

impl Namespaces {
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        let mut again = tokio::time::interval(AGAIN);
        loop {
            let namespace = tokio::select! {
                namespace = self.changed.next() => namespace,
                _ = again.tick() => {
                    let going: Vec<String> = self
                        .going
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .iter()
                        .cloned()
                        .collect();
                    for namespace in going {
                        self.changed.add(namespace);
                    }
                    continue;
                }
            };
            if let Err(failure) = look_at(&api, &namespace).await
                && !super::is_passing(&failure)
            {
                tracing::warn!(namespace, %failure, "a namespace can't be kept in order");
            }
        }
    }
}

async fn look_at(api: &Api, name: &str) -> Result<(), Failure> {
    let Some(entry) = api.cache.shard("namespaces").get(name) else {
        return Ok(());
    };
    if entry.deleting {
        return empty(api, name, &entry.value()).await;
    }
    furnish(api, name).await
}

/// The ServiceAccount `default`, and the certificate by which its pods know the server.
async fn furnish(api: &Api, namespace: &str) -> Result<(), Failure> {
    let actor = Actor::internal("kube-controller-manager");
    let accounts = api.cache.shard("serviceaccounts");
    if accounts.get(&format!("{namespace}/default")).is_none() {
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": namespace},
        });
        make(api, &actor, "serviceaccounts", namespace, account).await?;
    }
    let ca = api.pki.ca_pem();
    let maps = api.cache.shard("configmaps");
    let map = maps.get(&format!("{namespace}/{ROOT_CA}"));
    let data = json!({"ca.crt": ca});
    match map {
        None => {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": ROOT_CA,
                    "namespace": namespace,
                    "annotations": {
                        "kubernetes.io/description": "The certificates by which the API server is known.",
                    },
                },
                "data": data,
            });
            make(api, &actor, "configmaps", namespace, map).await
        }
        Some(entry) if entry.value().get("data") != Some(&data) => {
            let catalog = api.served.now();
            let resource = catalog
                .by_storage("configmaps")
                .ok_or_else(Failure::no_such_path)?;
            write::modify(
                api,
                &actor,
                resource,
                namespace,
                ROOT_CA,
                Part::Main,
                |map| {
                    let mut map = map.clone();
                    map["data"] = data.clone();
                    Ok(map)
                },
            )
            .await
            .map(drop)
        }
        Some(_) => Ok(()),
    }
}

async fn make(
    api: &Api,
    actor: &Actor,
    storage: &str,
    namespace: &str,
    object: Value,
) -> Result<(), Failure> {
    let catalog = api.served.now();
    let resource = catalog
        .by_storage(storage)
        .ok_or_else(Failure::no_such_path)?;
    match write::create(api, actor, resource, namespace, object).await {
        Err(failure) if !super::is_passing(&failure) && failure.code != 403 => Err(failure),
        _ => Ok(()),
    }
}

/// Deletes what is in it; when nothing is left it may go.
async fn empty(api: &Api, name: &str, namespace: &Value) -> Result<(), Failure> {
    let waits = namespace
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|all| all.iter().any(|finalizer| finalizer == FINALIZER));
    if !waits {
        return Ok(());
    }
    api.cache.fresh().await?;
    let catalog = api.served.now();
    let actor = Actor::internal("namespace-controller");
    let prefix = format!("{name}/");
    let (mut left, mut held) = (Vec::new(), Vec::new());
    for resource in catalog.stored().filter(|resource| resource.namespaced) {
        let shard = api.cache.shard(&resource.storage);
        clear(api, &actor, resource, &shard, &prefix).await?;
    }
    api.cache.fresh().await?;
    for resource in catalog.stored().filter(|resource| resource.namespaced) {
        let (entries, _) = api.cache.shard(&resource.storage).list(&prefix, "");
        if entries.is_empty() {
            continue;
        }
        left.push(format!(
            "{} has {} resource instances",
            resource.qualified(),
            entries.len()
        ));
        for entry in entries {
            for finalizer in object::finalizers(&entry.value()) {
                held.push(format!("{finalizer} in 1 resource instances"));
            }
        }
    }
    let namespaces = catalog
        .by_storage("namespaces")
        .ok_or_else(Failure::no_such_path)?;
    if left.is_empty() {
        write::modify(
            api,
            &actor,
            namespaces,
            "",
            name,
            Part::Finalize,
            |namespace| {
                let mut new = namespace.clone();
                if let Some(finalizers) = new
                    .pointer_mut("/spec/finalizers")
                    .and_then(Value::as_array_mut)
                {
                    finalizers.retain(|finalizer| finalizer != FINALIZER);
                }
                Ok(new)
            },
        )
        .await?;
        return Ok(());
    }
    held.sort_unstable();
    held.dedup();
    let conditions = [
        (
            "NamespaceContentRemaining",
            "SomeResourcesRemain",
            format!("Some resources are remaining: {}", left.join(", ")),
        ),
        (
            "NamespaceFinalizersRemaining",
            "SomeFinalizersRemain",
            format!(
                "Some content in the namespace has finalizers remaining: {}",
                held.join(", ")
            ),
        ),
    ];
    write::modify(
        api,
        &actor,
        namespaces,
        "",
        name,
        Part::Status,
        |namespace| {
            let mut new = namespace.clone();
            let status = object::part(&mut new, "status");
            let all = status.entry("conditions").or_insert_with(|| json!([]));
            let Some(all) = all.as_array_mut() else {
                return Ok(new);
            };
            for (kind, reason, message) in &conditions {
                let same = all
                    .iter()
                    .any(|known| known["type"] == *kind && known["message"] == message.as_str());
                if same {
                    continue;
                }
                all.retain(|known| known["type"] != *kind);
                all.push(json!({
                    "type": kind,
                    "status": "True",
                    "lastTransitionTime": clock::time(clock::now()),
                    "reason": reason,
                    "message": message,
                }));
            }
            Ok(new)
        },
    )
    .await?;
    Ok(())
}

async fn clear(
    api: &Api,
    actor: &Actor,
    resource: &Resource,
    shard: &Shard,
    prefix: &str,
) -> Result<(), Failure> {
    let (entries, _) = shard.list(prefix, "");
    let options = DeleteOptions {
        propagation: Some(delete::Propagation::Background),
        ..DeleteOptions::default()
    };
    for entry in entries {
        if entry.deleting {
            continue;
        }
        let deleted = delete::delete(
            api,
            actor,
            resource,
            entry.namespace(),
            entry.name(),
            &options,
        )
        .await;
        if let Err(failure) = deleted
            && !super::is_passing(&failure)
        {
            return Err(failure);
        }
    }
    Ok(())
}
