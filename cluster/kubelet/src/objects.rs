//! Objects of the API that pods refer to: ConfigMaps, Secrets, tokens of ServiceAccounts. What is here was put here, or fetched from a cluster
//! (`api/fetch.rs`).

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccountTokenProjection};

use crate::{
    Desired,
    api::{
        fetch::Fetch,
        services::{self, Variables},
    },
};

/// By namespace and name. Cloned, it is the same set.
#[derive(Debug, Clone, Default)]
pub struct Objects(Arc<RwLock<Sets>>, pub(crate) Option<Arc<Fetch>>);

/// Namespace and name.
pub(crate) type Key = (String, String);
pub(crate) type Bytes = BTreeMap<String, Vec<u8>>;

#[derive(Debug, Default)]
struct Sets {
    config_maps: BTreeMap<Key, Arc<Bytes>>,
    secrets: BTreeMap<Key, Arc<Data>>,
    services: BTreeMap<Key, Variables>,
    /// By the pod's uid and what it asks for.
    tokens: BTreeMap<(String, TokenAsk), Token>,
}

/// What a token is asked to be good for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenAsk {
    /// Empty: the API server itself.
    pub audience: String,
    pub seconds: i64,
}

impl TokenAsk {
    pub fn of(projection: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(3600),
        }
    }
}

/// A token, or why there is none. `None` within: no server was reached.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub text: Result<Option<String>, String>,
    /// Seconds since the epoch: when the next one is asked for.
    pub renew: i64,
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

    /// All that there are.
    pub(crate) fn put_services(&self, all: BTreeMap<Key, Variables>) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sets.services = all;
    }

    /// Of the services that a pod is told of; its own namespace's are the last.
    pub(crate) fn service_variables(&self, pod: &Desired) -> Variables {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let links = pod.spec.enable_service_links != Some(false);
        let (own, others): (Vec<_>, Vec<_>) = sets
            .services
            .iter()
            .filter(|(key, _)| services::is_told(key, &pod.namespace, links))
            .partition(|(key, _)| key.0 == pod.namespace);
        let all = others.into_iter().chain(own);
        all.flat_map(|(_, variables)| variables.clone()).collect()
    }

    pub(crate) fn take_config_map(&self, key: &Key) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sets.config_maps.remove(key);
    }

    pub(crate) fn take_secret(&self, key: &Key) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sets.secrets.remove(key);
    }

    pub(crate) fn put_token(&self, uid: &str, ask: TokenAsk, token: Token) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sets.tokens.insert((uid.to_owned(), ask), token);
    }

    pub(crate) fn known_token(&self, uid: &str, ask: &TokenAsk) -> Option<Token> {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        sets.tokens.get(&(uid.to_owned(), ask.clone())).cloned()
    }

    /// Whether the pod waits for a token that no server could be asked for.
    pub(crate) fn lacks_token(&self, uid: &str) -> bool {
        let sets = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = sets.tokens.iter();
        all.any(|((of, _), token)| of == uid && matches!(token.text, Ok(None)))
    }

    /// The pod is gone, and its tokens with it.
    pub(crate) fn forget(&self, uid: &str) {
        let mut sets = self.0.write().unwrap_or_else(PoisonError::into_inner);
        sets.tokens.retain(|(of, _), _| of != uid);
    }

    /// The pod's token; none where no server was reached.
    ///
    /// # Errors
    /// Why the server gives none.
    pub(crate) fn token(
        &self,
        pod: &Desired,
        projection: &ServiceAccountTokenProjection,
    ) -> Result<Option<String>, String> {
        match self.known_token(&pod.uid, &TokenAsk::of(projection)) {
            Some(token) => token.text,
            None => Err("a token needs an API server as the pod's source".into()),
        }
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
