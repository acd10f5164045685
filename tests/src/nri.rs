//! An NRI plugin as tests want it: it remembers what it hears, answers as it is told to, and hangs where it is told to.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use berth_nri::mux;
use berth_proto::nri::{
    nri::{self as api, *},
    nri_ttrpc::{Plugin as PluginService, RuntimeClient, create_plugin},
};
use tokio::{net::UnixStream, sync::watch, task::JoinHandle};
use ttrpc::r#async::{
    Client, Server, TtrpcContext,
    transport::{Listener, Socket},
};

use crate::machine::patient;

/// How long a test waits for what a plugin is to hear.
const PATIENCE: Duration = Duration::from_secs(20);

type Answer<Q, A> = Box<dyn Fn(&Q) -> A + Send + Sync>;

/// What a plugin does, and has heard.
#[derive(Default)]
pub struct Script {
    /// `Call id`, the id being the container's, else the pod's.
    heard: Mutex<Vec<String>>,
    pub synced: Mutex<Vec<String>>,
    pub configured: Mutex<Option<ConfigureRequest>>,
    /// The subscription; 0 is all.
    pub events: AtomicI32,
    hangs_at: Mutex<BTreeSet<String>>,
    refuses: Mutex<BTreeSet<String>>,
    /// Synchronize answers when this is false.
    pub hold: watch::Sender<bool>,
    pub adjust: Mutex<Option<Answer<CreateContainerRequest, CreateContainerResponse>>>,
    pub update: Mutex<Option<Answer<UpdateContainerRequest, UpdateContainerResponse>>>,
    pub stop: Mutex<Option<Answer<StopContainerRequest, StopContainerResponse>>>,
    pub validate: Mutex<
        Option<Answer<ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse>>,
    >,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.heard().iter()).finish()
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Script {
    pub fn hang_at(&self, call: &str) {
        lock(&self.hangs_at).insert(call.to_owned());
    }

    pub fn refuse(&self, call: &str) {
        lock(&self.refuses).insert(call.to_owned());
    }

    pub fn agree(&self) {
        lock(&self.refuses).clear();
    }

    /// Answers each CreateContainer so.
    pub fn adjusts(&self, adjust: impl Fn(&mut ContainerAdjustment) + Send + Sync + 'static) {
        *lock(&self.adjust) = Some(Box::new(move |_| {
            let mut answer = CreateContainerResponse::default();
            adjust(answer.adjust.mut_or_insert_default());
            answer
        }));
    }

    pub fn heard(&self) -> Vec<String> {
        lock(&self.heard).clone()
    }

    pub fn forget(&self) {
        lock(&self.heard).clear();
    }

    pub fn synced(&self) -> Vec<String> {
        lock(&self.synced).clone()
    }

    /// What was heard of the thing with this id.
    pub fn heard_of(&self, id: &str) -> Vec<String> {
        let heard = self.heard();
        let of = heard.iter().filter_map(|line| line.split_once(' '));
        of.filter(|(_, of)| *of == id)
            .map(|(call, _)| call.to_owned())
            .collect()
    }

    pub async fn wait_for(&self, call: &str, id: &str) -> Result<()> {
        let since = Instant::now();
        while !self.heard_of(id).iter().any(|heard| heard == call) {
            ensure!(
                since.elapsed() < patient(PATIENCE),
                "no {call} of {id} in {:#?}",
                self.heard()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn hear(&self, call: &str, id: &str) -> ttrpc::Result<()> {
        lock(&self.heard).push(format!("{call} {id}"));
        if lock(&self.hangs_at).contains(call) {
            std::future::pending::<()>().await;
        }
        if lock(&self.refuses).contains(call) {
            let why = format!("this plugin refuses {call}");
            return Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                ttrpc::Code::UNKNOWN,
                why,
            )));
        }
        Ok(())
    }
}

/// A plugin that is connected.
pub struct Plugin {
    pub script: Arc<Script>,
    pub runtime: RuntimeClient,
    carrier: JoinHandle<std::io::Result<()>>,
    _server: Server,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Plugin({:?})", self.script)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

impl Plugin {
    /// Connects and registers.
    pub async fn connect(
        socket: &Path,
        index: &str,
        name: &str,
        script: Arc<Script>,
    ) -> Result<Self> {
        let trunk = UnixStream::connect(socket).await.context("connect")?;
        let plugin = Self::over(trunk, script).await?;
        plugin.register(index, name).await.context("register")?;
        Ok(plugin)
    }

    /// [`Self::connect`], and waits until it is being synchronized.
    pub async fn joined(
        socket: &Path,
        index: &str,
        name: &str,
        script: Arc<Script>,
    ) -> Result<Self> {
        let plugin = Self::connect(socket, index, name, script).await?;
        // From before Synchronize until it takes part nothing else begins: whatever is asked for after this is told to it.
        plugin.script.wait_for("Synchronize", "").await?;
        Ok(plugin)
    }

    /// A plugin whose connection is there already.
    pub async fn over(trunk: UnixStream, script: Arc<Script>) -> Result<Self> {
        let (connections, carry) = mux::multiplex(trunk);
        let carrier = tokio::spawn(carry);
        let service = Arc::new(Service(script.clone()));
        let listener = Listener::new(futures_util::stream::iter([Ok(connections.plugin)]));
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(create_plugin(service));
        server.start().await?;
        Ok(Self {
            script,
            runtime: RuntimeClient::new(Client::new(Socket::new(connections.runtime))),
            carrier,
            _server: server,
        })
    }

    pub async fn register(&self, index: &str, name: &str) -> ttrpc::Result<()> {
        let request = RegisterPluginRequest {
            plugin_name: name.into(),
            plugin_idx: index.into(),
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(patient(PATIENCE));
        self.runtime
            .register_plugin(context, &request)
            .await
            .map(drop)
    }

    /// Limits of its own accord; the ids of those that could not be had.
    pub async fn update(&self, updates: Vec<ContainerUpdate>) -> ttrpc::Result<Vec<String>> {
        let request = UpdateContainersRequest {
            update: updates,
            ..Default::default()
        };
        let context = ttrpc::context::with_duration(patient(PATIENCE));
        let answer = self.runtime.update_containers(context, &request).await?;
        Ok(answer.failed.into_iter().map(|u| u.container_id).collect())
    }

    /// Whether the daemon has let go of it.
    pub fn is_let_go(&self) -> bool {
        self.carrier.is_finished()
    }

    pub async fn wait_let_go(&self) -> Result<()> {
        let since = Instant::now();
        while !self.is_let_go() {
            ensure!(
                since.elapsed() < patient(PATIENCE),
                "the plugin is still connected"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Other limits for one container.
pub fn limits(id: &str, set: impl FnOnce(&mut LinuxResources)) -> ContainerUpdate {
    let mut update = ContainerUpdate {
        container_id: id.into(),
        ..Default::default()
    };
    set(update
        .linux
        .mut_or_insert_default()
        .resources
        .mut_or_insert_default());
    update
}

pub fn optional(value: i64) -> protobuf::MessageField<OptionalInt64> {
    protobuf::MessageField::some(OptionalInt64 {
        value,
        ..Default::default()
    })
}

struct Service(Arc<Script>);

macro_rules! events {
    ($($call:ident $name:literal $request:ident $response:ident $of:ident;)*) => {
        /// Everything that has no say of its own.
        #[async_trait]
        impl PluginService for Service {
            $(
                async fn $call(&self, _: &TtrpcContext, request: $request) -> ttrpc::Result<$response> {
                    self.0.hear($name, &request.$of.id).await?;
                    Ok($response::default())
                }
            )*

            async fn configure(
                &self,
                _: &TtrpcContext,
                request: ConfigureRequest,
            ) -> ttrpc::Result<ConfigureResponse> {
                *lock(&self.0.configured) = Some(request);
                self.0.hear("Configure", "").await?;
                Ok(ConfigureResponse {
                    events: self.0.events.load(Ordering::Relaxed),
                    ..Default::default()
                })
            }

            async fn synchronize(
                &self,
                _: &TtrpcContext,
                request: SynchronizeRequest,
            ) -> ttrpc::Result<SynchronizeResponse> {
                {
                    let mut synced = lock(&self.0.synced);
                    synced.extend(request.pods.iter().map(|pod| pod.id.clone()));
                    synced.extend(request.containers.iter().map(|c| c.id.clone()));
                }
                if !request.more {
                    self.0.hear("Synchronize", "").await?;
                }
                let mut hold = self.0.hold.subscribe();
                let _ = hold.wait_for(|hold| !hold).await;
                Ok(SynchronizeResponse {
                    more: request.more,
                    ..Default::default()
                })
            }

            async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
                self.0.hear("Shutdown", "").await?;
                Ok(Empty::default())
            }

            async fn create_container(
                &self,
                _: &TtrpcContext,
                request: CreateContainerRequest,
            ) -> ttrpc::Result<CreateContainerResponse> {
                self.0.hear("CreateContainer", &request.container.id).await?;
                let answer = lock(&self.0.adjust);
                Ok(answer.as_ref().map(|answer| answer(&request)).unwrap_or_default())
            }

            async fn update_container(
                &self,
                _: &TtrpcContext,
                request: UpdateContainerRequest,
            ) -> ttrpc::Result<UpdateContainerResponse> {
                self.0.hear("UpdateContainer", &request.container.id).await?;
                let answer = lock(&self.0.update);
                Ok(answer.as_ref().map(|answer| answer(&request)).unwrap_or_default())
            }

            async fn stop_container(
                &self,
                _: &TtrpcContext,
                request: StopContainerRequest,
            ) -> ttrpc::Result<StopContainerResponse> {
                self.0.hear("StopContainer", &request.container.id).await?;
                let answer = lock(&self.0.stop);
                Ok(answer.as_ref().map(|answer| answer(&request)).unwrap_or_default())
            }

            async fn validate_container_adjustment(
                &self,
                _: &TtrpcContext,
                request: ValidateContainerAdjustmentRequest,
            ) -> ttrpc::Result<ValidateContainerAdjustmentResponse> {
                self.0
                    .hear("ValidateContainerAdjustment", &request.container.id)
                    .await?;
                let answer = lock(&self.0.validate);
                Ok(answer.as_ref().map(|answer| answer(&request)).unwrap_or_default())
            }
        }
    };
}

events! {
    run_pod_sandbox "RunPodSandbox" RunPodSandboxRequest RunPodSandboxResponse pod;
    update_pod_sandbox "UpdatePodSandbox" UpdatePodSandboxRequest UpdatePodSandboxResponse pod;
    post_update_pod_sandbox "PostUpdatePodSandbox" PostUpdatePodSandboxRequest PostUpdatePodSandboxResponse pod;
    stop_pod_sandbox "StopPodSandbox" StopPodSandboxRequest StopPodSandboxResponse pod;
    remove_pod_sandbox "RemovePodSandbox" RemovePodSandboxRequest RemovePodSandboxResponse pod;
    post_create_container "PostCreateContainer" PostCreateContainerRequest PostCreateContainerResponse container;
    start_container "StartContainer" StartContainerRequest StartContainerResponse container;
    post_start_container "PostStartContainer" PostStartContainerRequest PostStartContainerResponse container;
    post_update_container "PostUpdateContainer" PostUpdateContainerRequest PostUpdateContainerResponse container;
    remove_container "RemoveContainer" RemoveContainerRequest RemoveContainerResponse container;
}

/// A bit of a subscription.
pub fn event(event: api::Event) -> i32 {
    1 << (event as i32 - 1)
}
