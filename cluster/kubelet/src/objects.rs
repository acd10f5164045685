//! Objects of the API that pods refer to: ConfigMaps, Secrets, tokens of ServiceAccounts. What is here was put here, or fetched from a cluster
//! (`api/fetch.rs`).

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccountTokenProjection};

use crate::{Desired, api::fetch::Fetch};

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
