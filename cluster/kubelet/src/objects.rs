//! Objects of the API that pods refer to: ConfigMaps and Secrets.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

/// By namespace and name. Cloned, it is the same set.
#[derive(Debug, Clone, Default)]
pub struct Objects(Arc<RwLock<Sets>>);

/// Namespace and name.
type Key = (String, String);
pub(crate) type Bytes = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Default)]
struct Sets {
    config_maps: BTreeMap<Key, Arc<Bytes>>,
    secrets: BTreeMap<Key, Arc<Data>>,
}

/// Of a Secret.
#[derive(Debug, Clone, Default)]
pub(crate) struct Data {
    pub kind: String,
    pub data: Bytes,
}

impl Objects {
    pub fn put_config_map(&self, map: ConfigMap) {
        let key = key(map.metadata.namespace, map.metadata.name);
        let text = map
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.into_bytes()));
        let binary = map
            .binary_data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0));
        let data = Arc::new(text.chain(binary).collect());
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .config_maps
            .insert(key, data);
    }

    pub fn put_secret(&self, secret: Secret) {
        let key = key(secret.metadata.namespace, secret.metadata.name);
        let mut data: BTreeMap<_, _> = secret
            .data
            .into_iter()
            .flatten()
            .map(|(key, value)| (key, value.0))
            .collect();
        // the API server merges it in when it is written
        data.extend(
            secret
                .string_data
                .into_iter()
                .flatten()
                .map(|(key, value)| (key, value.into_bytes())),
        );
        let data = Arc::new(Data {
            kind: secret.type_.unwrap_or_default(),
            data,
        });
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .secrets
            .insert(key, data);
    }

    pub(crate) fn config_map(&self, namespace: &str, name: &str) -> Option<Arc<Bytes>> {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.config_maps
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Data>> {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.secrets
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }
}

fn key(namespace: Option<String>, name: Option<String>) -> Key {
    (namespace.unwrap_or_default(), name.unwrap_or_default())
}
