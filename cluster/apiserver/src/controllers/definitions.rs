//! A CustomResourceDefinition that is deleted takes its objects with it.

use std::{sync::Arc, time::Duration};

use crate::{
    api::{Actor, Api},
    cache::{Change, Observer},
    custom::{self, FINALIZER},
    delete::{self, DeleteOptions, Propagation},
    failure::Failure,
    object,
    queue::Queue,
    write::{self, Part},
};

/// One whose objects are held by finalizers is looked at again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Definitions {
    deleted: Queue<String>,
}

impl Observer for Definitions {
    fn changed(&self, storage: &str, change: &Arc<Change>) {
        if storage == custom::STORAGE
            && let Some(new) = &change.new
            && new.deleting
        {
            self.deleted.add(new.name().into());
        }
    }
}

impl Definitions {
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        loop {
            let name = self.deleted.next().await;
            match clear(&api, &name).await {
                Ok(true) => {}
                done => {
                    if let Err(failure) = done
                        && !super::is_passing(&failure)
                    {
                        tracing::warn!(name, %failure, "the objects of a definition can't be deleted");
                    }
                    let this = self.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(AGAIN).await;
                        this.deleted.add(name);
                    });
                }
            }
        }
    }
}

/// Whether there is nothing left to do.
async fn clear(api: &Api, name: &str) -> Result<bool, Failure> {
    let Some(entry) = api.cache.shard(custom::STORAGE).get(name) else {
        return Ok(true);
    };
    let definition = entry.value();
    if !object::finalizers(&definition).contains(&FINALIZER) {
        return Ok(true);
    }
    let actor = Actor::internal("crd-finalizer");
    let catalog = api.served.now();
    let storage = format!(
        "{}/{}",
        object::text(&definition, "/spec/group"),
        object::text(&definition, "/spec/names/plural")
    );
    api.cache.fresh().await?;
    let shard = api.cache.shard(&storage);
    if let Some(resource) = catalog.by_storage(&storage) {
        let options = DeleteOptions {
            propagation: Some(Propagation::Background),
            ..DeleteOptions::default()
        };
        let (entries, _) = shard.list("", "");
        for entry in entries.iter().filter(|entry| !entry.deleting) {
            let (namespace, name) = (entry.namespace(), entry.name());
            let deleted = delete::delete(api, &actor, resource, namespace, name, &options).await;
            if let Err(failure) = deleted
                && !super::is_passing(&failure)
            {
                return Err(failure);
            }
        }
        api.cache.fresh().await?;
    }
    if !shard.is_empty("") {
        return Ok(false);
    }
    let definitions = catalog
        .by_storage(custom::STORAGE)
        .ok_or_else(Failure::no_such_path)?;
    write::modify(api, &actor, definitions, "", name, Part::Whole, |value| {
        let mut new = value.clone();
        let kept = object::finalizers(value)
            .into_iter()
            .filter(|known| *known != FINALIZER)
            .map(Into::into)
            .collect();
        object::set_finalizers(&mut new, kept);
        Ok(new)
    })
    .await?;
    Ok(true)
}
