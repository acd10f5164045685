//! ClusterRoles that are made of others, by their labels (aggregationRule).

use std::sync::Arc;

use crate::{
    api::{Actor, Api},
    cache::{Change, Observer},
    queue::Queue,
    write::{self, Part},
};

#[derive(Debug, Default)]
pub struct Roles {
    changed: Queue<()>,
}

impl Observer for Roles {
    fn changed(&self, storage: &str, _: &Arc<Change>) {
        if storage == "clusterroles" {
            self.changed.add(());
        }
    }
}

impl Roles {
    pub async fn run(self: Arc<Self>, api: Arc<Api>) {
        let actor = Actor::internal("clusterrole-aggregation-controller");
        loop {
            self.changed.next().await;
            let (roles, _) = api.cache.shard("clusterroles").list("", "");
            for role in roles {
                let Some(rules) = api.rbac.aggregated(role.name()) else {
                    continue;
                };
                let rules = serde_json::Value::from(rules);
                if role.value().get("rules") == Some(&rules) {
                    continue;
                }
                let catalog = api.served.now();
                let Some(resource) = catalog.by_storage("clusterroles") else {
                    continue;
                };
                let written = write::modify(
                    &api,
                    &actor,
                    resource,
                    "",
                    role.name(),
                    Part::Whole,
                    |role| {
                        let mut role = role.clone();
                        role["rules"] = rules.clone();
                        Ok(role)
                    },
                )
                .await;
                if let Err(failure) = written
                    && !super::is_passing(&failure)
                {
                    tracing::warn!(role = role.name(), %failure, "its rules can't be aggregated");
                }
            }
        }
    }
}
