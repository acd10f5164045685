//! What the server keeps in order by itself: upstream's controller manager has these, but nothing works without them.

mod api_services;
mod certificates;
mod collector;
mod definitions;
mod first_objects;
mod index;
mod namespaces;
mod quotas;
mod roles;

use std::sync::Arc;

use tokio::task::JoinSet;

use crate::{api::Api, failure::Failure};

pub use first_objects::make as make_first_objects;

/// All of them, before everything is loaded: they hear of every object from the first on.
#[derive(Debug)]
pub struct Controllers {
    api_services: Arc<api_services::ApiServices>,
    certificates: Arc<certificates::Certificates>,
    collector: Arc<collector::Collector>,
    definitions: Arc<definitions::Definitions>,
    namespaces: Arc<namespaces::Namespaces>,
    quotas: Arc<quotas::ResourceQuotas>,
    roles: Arc<roles::Roles>,
}

impl Controllers {
    pub fn observe(api: &Api) -> Self {
        let controllers = Self {
            api_services: Arc::default(),
            certificates: Arc::default(),
            collector: Arc::default(),
            definitions: Arc::default(),
            namespaces: Arc::default(),
            quotas: Arc::default(),
            roles: Arc::default(),
        };
        api.cache.observe(Arc::new(index::Index::new(
            api.rbac.clone(),
            api.nodes.clone(),
        )));
        api.cache.observe(controllers.api_services.clone());
        api.cache.observe(controllers.certificates.clone());
        api.cache.observe(controllers.collector.clone());
        api.cache.observe(controllers.definitions.clone());
        api.cache.observe(controllers.namespaces.clone());
        api.cache.observe(controllers.quotas.clone());
        api.cache.observe(controllers.roles.clone());
        controllers
    }

    pub fn run(self, api: &Arc<Api>, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.api_services.run(api.clone()));
        tasks.spawn(self.certificates.run(api.clone()));
        tasks.spawn(self.collector.run(api.clone()));
        tasks.spawn(self.definitions.run(api.clone()));
        tasks.spawn(self.namespaces.run(api.clone()));
        tasks.spawn(self.quotas.run(api.clone()));
        tasks.spawn(self.roles.run(api.clone()));
    }
}

/// What was not there, or was changed meanwhile, is looked at again when it is told of.
fn is_passing(failure: &Failure) -> bool {
    matches!(failure.code, 404 | 409)
}
