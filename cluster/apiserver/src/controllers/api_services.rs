//! APIServices: one for each group and version that is served here, and the looks at those that others serve.
//!
//! What is served here is always available. Of the others it is told what the last look found (`Available`), and what they serve is kept for discovery.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream};
use serde_json::{Value, json};

use crate::{
    api::{Actor, Api},
    cache::{Change, Observer},
    catalog::Catalog,
    clock, custom,
    delete::{self, DeleteOptions},
    failure::Failure,
    object,
    passage::Remote,
    queue::Queue,
    write::{self, Part},
};

pub const STORAGE: &str = "apiregistration.k8s.io/apiservices";
/// Whoever makes these is us: upstream's label.
const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Where others serve something it is looked at so often.
const EVERY: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 8;
/// Others, at most: each is asked again and again, and stands in every discovery.
const MOST: usize = 256;
/// Served here until somebody else does.
const HANDED_OVER: &str = "metrics.k8s.io";

/// groupPriorityMinimum and versionPriority, as upstream has them; of custom kinds they are 1000 and 100.
const PRIORITIES: [(&str, i64, i64); 22] = [
    ("", 18_000, 1),
    ("admissionregistration.k8s.io", 16_700, 15),
    ("apiextensions.k8s.io", 16_700, 15),
    ("apiregistration.k8s.io", 18_000, 1),
    ("apps", 17_800, 15),
    ("authentication.k8s.io", 17_700, 15),
    ("authorization.k8s.io", 17_600, 15),
    ("autoscaling", 17_500, 15),
    ("batch", 17_400, 15),
    ("certificates.k8s.io", 17_300, 15),
    ("coordination.k8s.io", 16_500, 15),
    ("discovery.k8s.io", 16_200, 15),
    ("events.k8s.io", 17_750, 5),
    ("flowcontrol.apiserver.k8s.io", 16_100, 21),
    ("networking.k8s.io", 17_200, 15),
    ("node.k8s.io", 16_300, 15),
    ("policy", 17_100, 15),
    ("rbac.authorization.k8s.io", 17_000, 15),
    ("resource.k8s.io", 16_200, 15),
    ("scheduling.k8s.io", 16_600, 15),
    ("storage.k8s.io", 16_800, 15),
    ("storagemigration.k8s.io", 15_900, 15),
];

#[derive(Debug, Default)]
pub struct ApiServices {
    changed: Queue<()>,
}

impl Observer for ApiServices {
    fn changed(&self, storage: &str, _: &Arc<Change>) {
        if storage == STORAGE || storage == custom::STORAGE {
            self.changed.add(());
        }
    }
}

impl ApiServices {
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        let actor = Actor::internal("kube-aggregator");
        loop {
            if let Err(failure) = keep_local(&api, &actor).await
                && !super::is_passing(&failure)
            {
                tracing::warn!(%failure, "the APIServices of this server can't be kept");
            }
            let others = look(&api, &actor).await;
            let again = async {
                match others {
                    0 => std::future::pending().await,
                    _ => tokio::time::sleep(EVERY).await,
                }
            };
            tokio::select! {
                () = self.changed.next() => {}
                () = again => {}
            }
        }
    }
}

/// Those that should be there, and nothing else of ours.
async fn keep_local(api: &Api, actor: &Actor) -> Result<(), Failure> {
    let catalog = api.served.now();
    let Some(resource) = catalog.by_storage(STORAGE) else {
        return Ok(());
    };
    let wanted = local(&catalog);
    let shard = api.cache.shard(STORAGE);
    for service in &wanted {
        if shard.get(object::name(service)).is_some() {
            continue;
        }
        match write::create(api, actor, resource, "", service.clone()).await {
            Err(failure) if failure.reason != "AlreadyExists" => return Err(failure),
            _ => {}
        }
    }
    let (all, _) = shard.list("", "");
    for entry in all {
        let is_wanted = wanted
            .iter()
            .any(|service| object::name(service) == entry.name());
        if entry.label(AUTOMANAGED).is_some() && !is_wanted && !entry.deleting {
            let options = DeleteOptions::default();
            delete::delete(api, actor, resource, "", entry.name(), &options).await?;
        }
    }
    Ok(())
}

fn local(catalog: &Catalog) -> Vec<Value> {
    let mut services = Vec::new();
    for (group, versions) in &catalog.groups {
        if group == HANDED_OVER {
            continue;
        }
        let known = PRIORITIES.iter().find(|(name, ..)| name == group);
        for version in versions {
            let custom = version
                .resources
                .values()
                .all(|resource| resource.custom().is_some());
            let (minimum, mut priority) =
                known.map_or((1000, 100), |(_, minimum, priority)| (*minimum, *priority));
            // the second version of a scaler comes first
            if version.name == "v2" {
                priority += 15;
            }
            services.push(json!({
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {
                    "name": format!("{}.{group}", version.name),
                    "labels": {AUTOMANAGED: if custom { "true" } else { "onstart" }},
                },
                "spec": {
                    "group": group,
                    "version": version.name,
                    "groupPriorityMinimum": minimum,
                    "versionPriority": priority,
                },
            }));
        }
    }
    services
}

/// Looks at what others serve; how many there are.
async fn look(api: &Api, actor: &Actor) -> usize {
    let before = api.aggregation.now();
    let (entries, _) = api.cache.shard(STORAGE).list("", "");
    let services: Vec<(String, Remote)> = entries
        .iter()
        .filter(|entry| !entry.deleting)
        .filter_map(|entry| Some((entry.name().to_owned(), Remote::of(&entry.value())?)))
        .take(MOST)
        .collect();
    let count = services.len();
    let mut looks: Vec<BoxFuture<'_, Remote>> = Vec::with_capacity(count);
    for (name, mut remote) in services {
        let known = before.get(&remote.group, &remote.version);
        if let Some(known) = known {
            remote.resources = known.resources.clone();
            remote.hash.clone_from(&known.hash);
        }
        looks.push(Box::pin(async move {
            let found = remote.refresh(api).await;
            tell(api, actor, &name, &found).await;
            remote
        }));
    }
    let mut all: Vec<Remote> = stream::iter(looks)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    all.sort_by_key(Remote::api_version);
    api.aggregation.set(all);
    count
}

async fn tell(api: &Api, actor: &Actor, name: &str, found: &Result<(), (&'static str, String)>) {
    let (status, reason, message) = match found {
        Ok(()) => ("True", "Passed", "all checks passed"),
        Err((reason, why)) => ("False", *reason, why.as_str()),
    };
    let catalog = api.served.now();
    let Some(resource) = catalog.by_storage(STORAGE) else {
        return;
    };
    let told = write::modify(api, actor, resource, "", name, Part::Whole, |old| {
        let conditions = old.pointer("/status/conditions").and_then(Value::as_array);
        let before = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition["type"] == "Available");
        let since = before
            .filter(|condition| condition["status"] == status)
            .map(|condition| condition["lastTransitionTime"].clone());
        let mut new = old.clone();
        new["status"] = json!({"conditions": [{
            "type": "Available",
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since.unwrap_or_else(|| clock::time(clock::now()).into()),
        }]});
        Ok(new)
    })
    .await;
    if let Err(failure) = told
        && !super::is_passing(&failure)
    {
        tracing::warn!(name, %failure, "it can't be told whether an API server is there");
    }
}
