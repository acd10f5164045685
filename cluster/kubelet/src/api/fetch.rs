//! What a pod names is fetched when it is needed, and only that (SC-06): ConfigMaps, Secrets, its RuntimeClass, tokens of its ServiceAccount. While
//! the server is away what is here goes on being used; ConfigMaps are kept on disk beside, so that the pods of a node that was rebooted
//! without its server have them. Secrets and tokens are kept in memory alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Pod, Secret, ServiceAccount},
    node::v1::RuntimeClass,
};
use kube::{Api, api::PostParams};
use tokio::sync::Semaphore;

use super::{Cluster, Failed, within};
use crate::{
    Desired, Objects,
    objects::{Key, Token, TokenAsk},
    store,
};

/// What is younger is not asked for again.
const FRESH: Duration = Duration::from_secs(10);
/// Objects that are kept at most; those that were fetched longest ago go first. One has 1 MiB at most.
const MOST_OBJECTS: usize = 1000;
const MOST_BYTES: usize = 64 << 20;
/// Asked for at once for one pod.
const AT_ONCE: usize = 8;
/// A token is renewed at this part of its life, and once a day whatever it says.
const RENEW_PERCENT: i64 = 80;
const RENEW_SECONDS: i64 = 24 * 3600;
/// A token that could not be had is asked for again after so many seconds.
const TOKEN_AGAIN: i64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    ConfigMap,
    Secret,
}

#[derive(Debug)]
pub struct Fetch {
    pub(super) cluster: Cluster,
    /// Where ConfigMaps are kept.
    dir: PathBuf,
    fetched: Mutex<BTreeMap<(Kind, Key), Fetched>>,
}

#[derive(Debug)]
struct Fetched {
    at: Instant,
    bytes: usize,
    /// Of what is on disk, so that it is not written again.
    version: String,
}

impl Objects {
    /// Those of a cluster.
    pub fn of(cluster: Cluster, kubelet_dir: &Path) -> Self {
        let mut objects = Self::default();
        objects.1 = Some(std::sync::Arc::new(Fetch {
            cluster,
            dir: kubelet_dir.join("configmaps"),
            fetched: Mutex::default(),
        }));
        objects
    }

    /// Brings here what the pod names, as far as it can be had; what is not there is seen by who looks for it.
    ///
    /// # Errors
    /// There is no such RuntimeClass.
    pub(crate) async fn fetch(&self, pod: &Desired) -> Result<(), String> {
        let Some(fetch) = self.1.as_deref().filter(|_| pod.source == super::API) else {
            return Ok(());
        };
        let (maps, secrets) = named(&pod.pod);
        let key = |name: String| (pod.namespace.clone(), name);
        let maps = maps.into_iter().map(|name| (Kind::ConfigMap, key(name)));
        let secrets = secrets.into_iter().map(|name| (Kind::Secret, key(name)));
        let places = &Semaphore::new(AT_ONCE);
        let objects = maps.chain(secrets).map(|(kind, key)| async move {
            let _place = places.acquire().await;
            fetch.object(self, kind, key).await;
        });
        let objects = join_all(objects.collect::<Vec<_>>());
        let tokens = tokens(&pod.pod).into_iter().map(|ask| async move {
            let _place = places.acquire().await;
            fetch.token(self, pod, ask).await;
        });
        let tokens = join_all(tokens.collect::<Vec<_>>());
        let (_, _, class) = tokio::join!(objects, tokens, fetch.class(pod));
        fetch.bound(self);
        class
    }
}

impl Fetch {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(Kind, Key), Fetched>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn object(&self, objects: &Objects, kind: Kind, key: Key) {
        let is_fresh = self
            .lock()
            .get(&(kind, key.clone()))
            .is_some_and(|fetched| fetched.at.elapsed() < FRESH);
        if is_fresh {
            return;
        }
        let client = self.cluster.client.clone();
        let (namespace, name) = (&key.0, &key.1);
        let got = match kind {
            Kind::ConfigMap => {
                let api = Api::<ConfigMap>::namespaced(client, namespace);
                within(api.get(name)).await.map(|map| {
                    let bytes = size(&map);
                    let version = map.metadata.resource_version.clone().unwrap_or_default();
                    self.keep(&key, &map, &version);
                    objects.put_config_map(map);
                    (bytes, version)
                })
            }
            Kind::Secret => {
                let api = Api::<Secret>::namespaced(client, namespace);
                within(api.get(name)).await.map(|secret| {
                    let bytes = size(&secret);
                    objects.put_secret(secret);
                    (bytes, String::new())
                })
            }
        };
        match got {
            Ok((bytes, version)) => {
                let fetched = Fetched {
                    at: Instant::now(),
                    bytes,
                    version,
                };
                self.lock().insert((kind, key), fetched);
            }
            Err(Failed::NotFound) => {
                self.lock().remove(&(kind, key.clone()));
                match kind {
                    Kind::ConfigMap => {
                        objects.take_config_map(&key);
                        let _ = std::fs::remove_file(self.path(&key));
                    }
                    Kind::Secret => objects.take_secret(&key),
                }
            }
            Err(failed) => {
                tracing::warn!(kind = ?kind, namespace, name, %failed, "an object is not brought up to date");
                if kind == Kind::ConfigMap
                    && objects.config_map(namespace, name).is_none()
                    && let Some(map) = store::read(&self.path(&key))
                {
                    objects.put_config_map(map);
                }
            }
        }
    }

    /// Names of the API have no slash and no underscore.
    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(format!("{}_{}.json", key.0, key.1))
    }

    fn keep(&self, key: &Key, map: &ConfigMap, version: &str) {
        let is_kept = self
            .lock()
            .get(&(Kind::ConfigMap, key.clone()))
            .is_some_and(|fetched| fetched.version == version);
        if is_kept {
            return;
        }
        let written = store::make_dir(&self.dir).and_then(|()| store::write(&self.path(key), map));
        if let Err(error) = written {
            tracing::warn!(%error, "a ConfigMap is not kept");
        }
    }

    /// Lets go what was fetched longest ago, where there is too much. It is fetched again should it be needed.
    fn bound(&self, objects: &Objects) {
        let mut fetched = self.lock();
        let mut bytes: usize = fetched.values().map(|one| one.bytes).sum();
        while fetched.len() > MOST_OBJECTS || bytes > MOST_BYTES {
            let oldest = fetched.iter().min_by_key(|(_, one)| one.at);
            let Some((kind, key)) = oldest.map(|(id, _)| id.clone()) else {
                return;
            };
            match kind {
                Kind::ConfigMap => {
                    objects.take_config_map(&key);
                    let _ = std::fs::remove_file(self.path(&key));
                }
                Kind::Secret => objects.take_secret(&key),
            }
            let gone = fetched.remove(&(kind, key));
            bytes -= gone.map_or(0, |one| one.bytes);
        }
    }

    async fn token(&self, objects: &Objects, pod: &Desired, ask: TokenAsk) {
        let now = Timestamp::now().as_second();
        let before = objects.known_token(&pod.uid, &ask);
        if before.as_ref().is_some_and(|token| token.renew > now) {
            return;
        }
        let account = match pod.spec.service_account_name.as_deref() {
            None | Some("") => "default",
            Some(name) => name,
        };
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(ask.audience.clone())
                    .filter(|it| !it.is_empty())
                    .map(|it| vec![it]),
                expiration_seconds: Some(ask.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.name.clone()),
                    uid: Some(pod.uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api = Api::<ServiceAccount>::namespaced(self.cluster.client.clone(), &pod.namespace);
        let params = PostParams::default();
        let got = within(api.create_token_request(account, &params, &request)).await;
        let token = match (got, before) {
            (Ok(answer), _) => {
                let status = answer.status.unwrap_or_default();
                let expires = status.expiration_timestamp.map(|it| it.0.as_second());
                match (status.token, expires) {
                    (Some(text), Some(expires)) => Token {
                        renew: renew(now, expires),
                        text: Ok(Some(text)),
                    },
                    _ => Token {
                        text: Err("the API server answered a TokenRequest without a token".into()),
                        renew: now + TOKEN_AGAIN,
                    },
                }
            }
            // an old one may still be good
            (Err(failed), Some(before)) if matches!(before.text, Ok(Some(_))) => {
                tracing::warn!(pod = %pod.full_name(), %failed, "its token is not renewed");
                Token {
                    renew: now + TOKEN_AGAIN,
                    ..before
                }
            }
            (Err(Failed::Unreached(_)), _) => Token {
                text: Ok(None),
                renew: now + TOKEN_AGAIN,
            },
            (Err(failed), _) => Token {
                text: Err(format!(
                    "failed to fetch token for service account {account:?}: {failed}"
                )),
                renew: now + TOKEN_AGAIN,
            },
        };
        objects.put_token(&pod.uid, ask, token);
    }

    async fn class(&self, pod: &Desired) -> Result<(), String> {
        let name = pod.spec.runtime_class_name.as_deref().unwrap_or_default();
        if name.is_empty() || pod.handler.get().is_some() {
            return Ok(());
        }
        let api = Api::<RuntimeClass>::all(self.cluster.client.clone());
        match within(api.get(name)).await {
            Ok(class) => {
                let _ = pod.handler.set(class.handler);
                Ok(())
            }
            Err(Failed::Unreached(why)) => {
                tracing::warn!(
                    class = name,
                    why,
                    "a RuntimeClass can't be asked for: its name is taken for its handler's"
                );
                Ok(())
            }
            Err(failed) => Err(format!("RuntimeClass {name:?} not found: {failed}")),
        }
    }
}

/// When the next token is asked for; both seconds since the epoch.
fn renew(now: i64, expires: i64) -> i64 {
    let life = (expires - now).max(0);
    now + (life * RENEW_PERCENT / 100).min(RENEW_SECONDS)
}

fn size(value: &impl serde::Serialize) -> usize {
    serde_json::to_vec(value).map_or(0, |bytes| bytes.len())
}

/// The names of the ConfigMaps and of the Secrets that a pod refers to.
fn named(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    let Some(spec) = &pod.spec else {
        return (maps, secrets);
    };
    let pulls = spec.image_pull_secrets.iter().flatten();
    secrets.extend(pulls.map(|it| it.name.clone()));
    let plain = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(|it| (&it.env, &it.env_from));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    for (env, env_from) in plain.chain(ephemeral.map(|it| (&it.env, &it.env_from))) {
        for from in env_from.iter().flatten() {
            maps.extend(from.config_map_ref.iter().map(|it| it.name.clone()));
            secrets.extend(from.secret_ref.iter().map(|it| it.name.clone()));
        }
        for from in env.iter().flatten().filter_map(|it| it.value_from.as_ref()) {
            maps.extend(from.config_map_key_ref.iter().map(|it| it.name.clone()));
            secrets.extend(from.secret_key_ref.iter().map(|it| it.name.clone()));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        maps.extend(volume.config_map.iter().map(|it| it.name.clone()));
        secrets.extend(volume.secret.iter().filter_map(|it| it.secret_name.clone()));
        let projected = volume.projected.iter();
        for source in projected.flat_map(|it| it.sources.iter().flatten()) {
            maps.extend(source.config_map.iter().map(|it| it.name.clone()));
            secrets.extend(source.secret.iter().map(|it| it.name.clone()));
        }
    }
    maps.remove("");
    secrets.remove("");
    (maps, secrets)
}

/// The tokens that its volumes have, each once.
fn tokens(pod: &Pod) -> BTreeSet<TokenAsk> {
    let volumes = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .flat_map(|volume| volume.projected.iter())
        .flat_map(|projected| projected.sources.iter().flatten())
        .filter_map(|source| source.service_account_token.as_ref())
        .map(TokenAsk::of)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_a_pod_names_is_asked_for_sc_06() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}, {}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "m1"}}, {"secretRef": {"name": "s1"}}]}],
            "containers": [{"name": "a", "env": [
                {"name": "x", "value": "y"},
                {"name": "c", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}},
                {"name": "s", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
            ]}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"secretRef": {"name": "s3"}}]}],
            "volumes": [
                {"name": "1", "configMap": {"name": "m3"}},
                {"name": "2", "secret": {"secretName": "s4"}},
                {"name": "3", "projected": {"sources": [
                    {"configMap": {"name": "m4"}},
                    {"secret": {"name": "s5"}},
                    {"serviceAccountToken": {"path": "token"}},
                    {"serviceAccountToken": {"path": "again", "expirationSeconds": 3600}},
                    {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
                ]}},
                {"name": "4", "emptyDir": {}},
            ],
        }}))
        .unwrap();
        let (maps, secrets) = named(&pod);
        assert_eq!(Vec::from_iter(maps), ["m1", "m2", "m3", "m4"]);
        assert_eq!(
            Vec::from_iter(secrets),
            ["pull", "s1", "s2", "s3", "s4", "s5"]
        );
        let asks: Vec<_> = tokens(&pod)
            .into_iter()
            .map(|ask| format!("{}:{}", ask.audience, ask.seconds))
            .collect();
        assert_eq!(asks, [":3600", "vault:600"]);
    }

    #[test]
    fn a_token_is_renewed_before_it_ends_and_once_a_day() {
        assert_eq!(renew(1000, 4600), 1000 + 2880);
        assert_eq!(renew(1000, 1000 + 365 * 24 * 3600), 1000 + 24 * 3600);
        assert_eq!(renew(1000, 500), 1000);
    }
}
