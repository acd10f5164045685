//! What all controllers have in common: the caches, and one way to write.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_recorder::{Happening, Level, Recorder, Teller};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use kube::{
    Client, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy},
    core::request::{Error as Unbuilt, Request},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Error, Key, Options,
    cache::{Cache, Kind},
    controller::MANAGER,
    error::Call,
};

/// One request.
const CALL: Duration = Duration::from_secs(30);
/// Requests under way; more wait.
const CALLS: usize = 128;

/// How a patch is read (RFC 7386, or Kubernetes' strategic merge).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    Json,
    Strategic,
}

/// Who the controllers are to the API server.
#[derive(Clone)]
pub struct Callers {
    manager: Client,
    account: Arc<dyn Fn(&str) -> Client + Send + Sync>,
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callers").finish_non_exhaustive()
    }
}

impl Callers {
    /// One for all: upstream's `--use-service-account-credentials=false`. It must be allowed what any controller does.
    pub fn one(client: Client) -> Self {
        let account = client.clone();
        Self {
            manager: client,
            account: Arc::new(move |_| account.clone()),
        }
    }

    /// What is listed, watched and told is `manager`'s; each controller writes as its own ServiceAccount of the namespace `kube-system`, for whose name
    /// `account` gives the client. The default roles `system:kube-controller-manager` and `system:controller:NAME` are enough for them.
    pub fn by_account(
        manager: Client,
        account: impl Fn(&str) -> Client + Send + Sync + 'static,
    ) -> Self {
        Self {
            manager,
            account: Arc::new(account),
        }
    }

    /// Who lists, watches and tells.
    pub fn manager(&self) -> &Client {
        &self.manager
    }
}

/// What one controller works with.
pub struct Context {
    /// The controller's own.
    client: Client,
    shared: Arc<Shared>,
}

/// What all of them have in common.
struct Shared {
    callers: Callers,
    options: Options,
    ends: CancellationToken,
    caches: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
    /// Each waits until its cache has been listed.
    lists: Mutex<Vec<BoxFuture<'static, ()>>>,
    tasks: Mutex<JoinSet<()>>,
    calls: Semaphore,
    recorder: Recorder,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    /// The manager's, from which each controller has its own.
    pub(crate) fn new(callers: Callers, options: Options, ends: CancellationToken) -> Self {
        let manager = callers.manager.clone();
        let (recorder, records) = Recorder::new(manager.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(records);
        Self {
            client: manager,
            shared: Arc::new(Shared {
                callers,
                options,
                ends,
                caches: Mutex::default(),
                lists: Mutex::default(),
                tasks: Mutex::new(tasks),
                calls: Semaphore::new(CALLS),
                recorder,
            }),
        }
    }

    /// That of a controller.
    pub(crate) fn of(&self, account: &str) -> Arc<Self> {
        Arc::new(Self {
            client: match account {
                MANAGER => self.manager().clone(),
                account => (self.shared.callers.account)(account),
            },
            shared: self.shared.clone(),
        })
    }

    /// For what the functions here don't do: it is not told to the caches.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The one that lists and watches for all controllers: it may look at everything.
    pub(crate) fn manager(&self) -> &Client {
        &self.shared.callers.manager
    }

    pub(crate) fn options(&self) -> &Options {
        &self.shared.options
    }

    /// In whole seconds, as the API keeps times.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default()
    }

    /// The one cache of a kind; its watch begins when it is first asked for.
    pub fn cache<K: Kind>(&self) -> Cache<K> {
        self.cache_where("")
    }

    /// The one cache of a kind of which only what the field selector `fields` chooses is ever wanted. All who ask for the kind name the same.
    pub(crate) fn cache_where<K: Kind>(&self, fields: &'static str) -> Cache<K> {
        let shared = &self.shared;
        let mut caches = shared.caches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = known::<K>(&caches) {
            assert_eq!(cache.fields(), fields, "of {cache:?}");
            return cache;
        }
        let cache = Cache::<K>::new(fields);
        let follow = cache.clone();
        let follow = follow.follow(self.manager().clone(), shared.ends.clone());
        let mut tasks = shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(follow);
        let waits = cache.clone();
        let mut lists = shared.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.push(Box::pin(async move { waits.listed().await }));
        caches.insert(TypeId::of::<K>(), Box::new(cache.clone()));
        cache
    }

    /// Waits until every cache that was asked for has all that there was.
    pub(crate) async fn listed(&self) {
        let lists = &self.shared.lists;
        let lists = std::mem::take(&mut *lists.lock().unwrap_or_else(PoisonError::into_inner));
        futures_util::future::join_all(lists).await;
    }

    async fn call<T>(
        &self,
        call: Call,
        request: Result<http::Request<Vec<u8>>, Unbuilt>,
        answer: impl AsyncFnOnce(Client, http::Request<Vec<u8>>) -> kube::Result<T>,
    ) -> Result<T, Error> {
        let request = match request {
            Ok(request) => request,
            Err(error) => return Err(Error::new(call, kube::Error::BuildRequest(error))),
        };
        let Ok(_permit) = self.shared.calls.acquire().await else {
            return Err(Error::Other(format!("{call}: no more requests are made")));
        };
        match timeout(CALL, answer(self.client.clone(), request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Error::new(call, error)),
            Err(_) => Err(Error::Late { call, wait: CALL }),
        }
    }

    /// Its answer, which the cache of the kind, if there is one, has as well.
    async fn write<K>(
        &self,
        call: Call,
        request: Result<http::Request<Vec<u8>>, Unbuilt>,
    ) -> Result<Arc<K>, Error>
    where
        K: Kind,
    {
        let answer = self
            .call(call, request, async |client, request| {
                client.request::<K>(request).await
            })
            .await?;
        self.cached(|cache| cache.wrote(answer.clone()));
        Ok(Arc::new(answer))
    }

    fn cached<K: Kind>(&self, tell: impl FnOnce(&Cache<K>)) {
        let caches = &self.shared.caches;
        let caches = caches.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = known::<K>(&caches);
        drop(caches);
        if let Some(cache) = cache {
            tell(&cache);
        }
    }

    fn request<K: Kind>(&self, key: &Key) -> Request {
        Request::new(K::url_path(&(), key.scope()))
    }

    /// Makes an object.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], or what the server says against it.
    pub async fn create<K: Kind + Serialize>(&self, object: &K) -> Result<Arc<K>, Error> {
        let key = Key::of(object);
        let request = bytes(object).and_then(|bytes| {
            self.request::<K>(&key)
                .create(&PostParams::default(), bytes)
        });
        self.write(Call::new::<K>("create", key), request).await
    }

    /// Replaces an object that was read before.
    ///
    /// # Errors
    /// [`Error::Conflict`]: somebody has changed it since (by its `resourceVersion`).
    pub async fn update<K: Kind + Serialize>(&self, object: &K) -> Result<Arc<K>, Error> {
        let key = Key::of(object);
        let request = bytes(object).and_then(|bytes| {
            self.request::<K>(&key)
                .replace(&key.name, &PostParams::default(), bytes)
        });
        self.write(Call::new::<K>("update", key), request).await
    }

    /// Replaces the status of an object that was read before.
    ///
    /// # Errors
    /// [`Error::Conflict`]: somebody has changed it since (by its `resourceVersion`).
    pub async fn update_status<K: Kind + Serialize>(&self, object: &K) -> Result<Arc<K>, Error> {
        let key = Key::of(object);
        let request = bytes(object).and_then(|bytes| {
            let params = PostParams::default();
            self.request::<K>(&key)
                .replace_subresource("status", &key.name, &params, bytes)
        });
        let call = Call::new::<K>("update the status of", key);
        self.write(call, request).await
    }

    /// Changes what `patch` names. With `metadata.uid` in it, no other object of the name.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`], or what the server says against it.
    pub async fn patch<K: Kind>(
        &self,
        key: &Key,
        patch: &Value,
        merge: Merge,
    ) -> Result<Arc<K>, Error> {
        let params = PatchParams::default();
        let request = self.request::<K>(key);
        let request = match merge {
            Merge::Json => request.patch(&key.name, &params, &Patch::Merge(patch)),
            Merge::Strategic => request.patch(&key.name, &params, &Patch::Strategic(patch)),
        };
        self.write(Call::new::<K>("patch", key.clone()), request)
            .await
    }

    /// The same of its status.
    ///
    /// # Errors
    /// As of [`Context::patch`].
    pub async fn patch_status<K: Kind>(
        &self,
        key: &Key,
        patch: &Value,
        merge: Merge,
    ) -> Result<Arc<K>, Error> {
        let params = PatchParams::default();
        let request = self.request::<K>(key);
        let name = &key.name;
        let request = match merge {
            Merge::Json => request.patch_subresource("status", name, &params, &Patch::Merge(patch)),
            Merge::Strategic => {
                request.patch_subresource("status", name, &params, &Patch::Strategic(patch))
            }
        };
        let call = Call::new::<K>("patch the status of", key.clone());
        self.write(call, request).await
    }

    /// Deletes this very object (by its uid), and no other that has its name meanwhile. That it is gone already is as good.
    ///
    /// # Errors
    /// [`Error::Conflict`]: another has its name. Or what the server says against it.
    pub async fn delete<K: Kind>(
        &self,
        object: &K,
        propagation: Option<PropagationPolicy>,
    ) -> Result<(), Error> {
        let key = Key::of(object);
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.meta().uid.clone(),
                resource_version: None,
            }),
            propagation_policy: propagation,
            ..DeleteParams::default()
        };
        let request = self.request::<K>(&key).delete(&key.name, &params);
        let call = Call::new::<K>("delete", key);
        let answer = self
            .call(call, request, async |client, request| {
                client.request_status::<K>(request).await
            })
            .await;
        match answer.map(|answer| answer.left()) {
            // it ends in its time
            Ok(Some(ending)) => self.cached(|cache| cache.wrote(ending)),
            Ok(None) | Err(Error::NotFound(_)) => self.cached(|cache| cache.removed(object)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What the server has now, whatever the cache has.
    ///
    /// # Errors
    /// [`Error::NotFound`], or what the server says against it.
    pub async fn read<K: Kind>(&self, key: &Key) -> Result<K, Error> {
        let request = self
            .request::<K>(key)
            .get(&key.name, &kube::api::GetParams::default());
        let call = Call::new::<K>("read", key.clone());
        self.call(call, request, async |client, request| {
            client.request::<K>(request).await
        })
        .await
    }

    /// An event about `object`. `component` is the controller's name as upstream's events have it: `deployment-controller`.
    pub fn event<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        component: &str,
        level: Level,
        reason: &str,
        message: String,
    ) {
        self.shared.recorder.record(Happening {
            level,
            reason: reason.to_owned(),
            message,
            about: berth_recorder::about(object),
            by: Teller {
                component: component.to_owned(),
                host: String::new(),
            },
        });
    }
}

fn known<K: Kind>(caches: &HashMap<TypeId, Box<dyn Any + Send>>) -> Option<Cache<K>> {
    caches.get(&TypeId::of::<K>())?.downcast_ref().cloned()
}

fn bytes<K: Serialize>(object: &K) -> Result<Vec<u8>, Unbuilt> {
    serde_json::to_vec(object).map_err(Unbuilt::SerializeBody)
}

/// Of any JSON, by its path: for kinds that are not known when this is built.
pub async fn get<T: DeserializeOwned>(client: &Client, path: &str) -> Result<T, String> {
    let request = http::Request::get(path)
        .body(Vec::new())
        .map_err(|error| format!("{path}: {error}"))?;
    match timeout(CALL, client.request::<T>(request)).await {
        Ok(answer) => answer.map_err(|error| format!("{path}: {error}")),
        Err(_) => Err(format!("{path}: no answer within {} s", CALL.as_secs())),
    }
}
