//! The CRI, as the kubelet asks it: each call with the deadline that upstream gives it.

mod answered;
mod whole;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use berth_proto::cri::{
    self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use futures_util::future::BoxFuture;
use tokio::net::UnixStream;
use tonic::{
    Request, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    Error, keys,
    observed::{Observed, Sandbox, Seen},
    user_namespace::Ids,
};
use answered::{answered, until_done};

/// An ExecSync answer may hold 16 MiB of each stream; lists of a full node stay far below.
const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// A local socket answers at once or is not served.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Upstream's: two minutes a call, twice that for a sandbox, and beyond what a command or a stop was given.
const CALL: Duration = Duration::from_secs(120);
const RUN_SANDBOX: Duration = Duration::from_secs(240);
/// Upstream's kubelet waits for a pull for ever; one that takes longer than this is tried again, and what came so far is kept by the runtime.
const PULL: Duration = Duration::from_secs(3600);

/// Pulls the image of this name with this user name and password, in place of the CRI's PullImage, which tells nothing until it is done. The
/// image's id, or why there is none. Where there is a token, the CRI is asked.
pub type Puller = Arc<
    dyn Fn(String, Option<cri::AuthConfig>) -> BoxFuture<'static, Result<String, String>>
        + Send
        + Sync,
>;

/// What only a sandbox's status tells.
#[derive(Debug, Default)]
pub(crate) struct SandboxFacts {
    /// Empty in the node's network.
    pub ips: Vec<String>,
    pub ids: Option<Ids>,
}

/// A runtime that is there or comes back: the channel connects anew by itself.
#[derive(Clone)]
pub struct Runtime {
    endpoint: String,
    channel: Channel,
    puller: Option<Puller>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Runtime").field(&self.endpoint).finish()
    }
}

impl Runtime {
    /// `endpoint` is `unix:///run/berth/berth.sock`, or the path. Does not wait for it to be served.
    ///
    /// # Errors
    /// What is no path of a socket.
    pub fn new(endpoint: &str) -> Result<Self, Error> {
        let path = PathBuf::from(
            endpoint
                .strip_prefix("unix://")
                .or_else(|| endpoint.strip_prefix("unix:"))
                .unwrap_or(endpoint),
        );
        let endpoint = format!("unix://{}", path.display());
        let failed = |why: String| Error::Connect {
            endpoint: endpoint.clone(),
            why,
        };
        if !path.is_absolute() {
            return Err(failed("it is no absolute path".into()));
        }
        let channel = Endpoint::from_shared(endpoint.clone())
            .map_err(|error| failed(error.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect_lazy();
        Ok(Self {
            endpoint,
            channel,
            puller: None,
        })
    }

    /// Pulls by `puller` from now on.
    #[must_use]
    pub fn with_puller(self, puller: Puller) -> Self {
        Self {
            puller: Some(puller),
            ..self
        }
    }

    /// That somebody listens; tonic's own error buries the errno, which is what tells "not running" from "not allowed".
    pub async fn is_there(&self) -> Result<(), Error> {
        let path = self.endpoint.trim_start_matches("unix://");
        match UnixStream::connect(path).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Error::Connect {
                endpoint: self.endpoint.clone(),
                why: error.to_string(),
            }),
        }
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Its name, for the ids of containers: `berth`.
    pub(crate) async fn name(&self) -> Result<String, Error> {
        let ask = within(
            CALL,
            cri::VersionRequest {
                version: "v1".into(),
            },
        );
        let answer = self
            .runtime()
            .version(ask)
            .await
            .map_err(Error::rpc("tell its version"))?;
        Ok(answer.into_inner().runtime_name)
    }

    /// All that there is of the pod `uid`.
    pub(crate) async fn observe(&self, uid: &str) -> Result<Observed, Error> {
        let label = std::collections::HashMap::from([(keys::POD_UID.to_owned(), uid.to_owned())]);
        let filter = cri::PodSandboxFilter {
            label_selector: label.clone(),
            ..Default::default()
        };
        let mut observed = Observed {
            sandboxes: self
                .sandboxes(Some(filter))
                .await?
                .into_iter()
                .map(Sandbox::from)
                .collect(),
            containers: Vec::new(),
        };
        let filter = cri::ContainerFilter {
            label_selector: label,
            ..Default::default()
        };
        for container in self.containers(Some(filter)).await? {
            match self.container_status(&container.id).await {
                Ok(status) => observed
                    .containers
                    .push(Seen::of(status, container.pod_sandbox_id)),
                // removed since the list
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        observed.sort();
        if let Some(newest) = observed.sandboxes.first_mut() {
            match self.sandbox_facts(&newest.id).await {
                Ok(SandboxFacts { ips, ids }) => (newest.ips, newest.ids) = (ips, ids),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(observed)
    }

    pub(crate) async fn sandboxes(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Result<Vec<cri::PodSandbox>, Error> {
        let ask = within(CALL, cri::ListPodSandboxRequest { filter });
        let answer = self
            .runtime()
            .list_pod_sandbox(ask)
            .await
            .map_err(Error::rpc("list pods"))?;
        Ok(answer.into_inner().items)
    }

    pub(crate) async fn containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Result<Vec<cri::Container>, Error> {
        let ask = within(CALL, cri::ListContainersRequest { filter });
        let answer = self
            .runtime()
            .list_containers(ask)
            .await
            .map_err(Error::rpc("list containers"))?;
        Ok(answer.into_inner().containers)
    }

    async fn ask_status(&self, id: &str) -> Result<cri::ContainerStatusResponse, tonic::Status> {
        let ask = cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer = self.runtime().container_status(within(CALL, ask)).await?;
        Ok(answer.into_inner())
    }

    async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, Error> {
        let answer = self
            .ask_status(id)
            .await
            .map_err(Error::rpc(format!("tell the status of container {id}")))?;
        answer.status.ok_or(Error::Answer {
            rpc: "ContainerStatus",
            lacks: "a status",
        })
    }

    pub(crate) async fn sandbox_facts(&self, id: &str) -> Result<SandboxFacts, Error> {
        let ask = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer = self
            .runtime()
            .pod_sandbox_status(within(CALL, ask))
            .await
            .map_err(Error::rpc(format!("tell the status of pod {id}")))?;
        let status = answer.into_inner().status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let others = network.additional_ips.into_iter().map(|it| it.ip);
        let options = status
            .linux
            .and_then(|it| it.namespaces)
            .and_then(|it| it.options);
        Ok(SandboxFacts {
            ips: std::iter::once(network.ip)
                .chain(others)
                .filter(|ip| !ip.is_empty())
                .collect(),
            ids: Ids::of(options.and_then(|it| it.userns_options).as_ref()),
        })
    }

    /// What the runtime can do for pods of this handler; nothing where it does not say.
    pub(crate) async fn features(
        &self,
        handler: &str,
    ) -> Result<cri::RuntimeHandlerFeatures, Error> {
        let answer = self
            .runtime()
            .status(within(CALL, cri::StatusRequest::default()))
            .await
            .map_err(Error::rpc("tell what it can do"))?;
        let mut handlers = answer.into_inner().runtime_handlers.into_iter();
        let found = handlers.find(|it| it.name == handler);
        Ok(found.and_then(|it| it.features).unwrap_or_default())
    }

    pub(crate) async fn run_sandbox(
        &self,
        config: cri::PodSandboxConfig,
        runtime_handler: String,
    ) -> Result<String, Error> {
        let ask = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler,
        };
        let answer = answered(|| {
            let (mut runtime, ask) = (self.runtime(), within(RUN_SANDBOX, ask.clone()));
            async move { runtime.run_pod_sandbox(ask).await }
        })
        .await
        .map_err(Error::rpc("make the pod's sandbox"))?;
        Ok(answer.into_inner().pod_sandbox_id)
    }

    pub(crate) async fn stop_sandbox(&self, id: &str) -> Result<(), Error> {
        let ask = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self.runtime().stop_pod_sandbox(within(CALL, ask)).await;
        gone_is_fine(answer, || format!("stop pod {id}"))
    }

    pub(crate) async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let ask = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self.runtime().remove_pod_sandbox(within(CALL, ask)).await;
        gone_is_fine(answer, || format!("remove pod {id}"))
    }

    pub(crate) async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String, Error> {
        let ask = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer = answered(|| {
            let (mut runtime, ask) = (self.runtime(), within(CALL, ask.clone()));
            async move { runtime.create_container(ask).await }
        })
        .await
        .map_err(Error::rpc("create the container"))?;
        Ok(answer.into_inner().container_id)
    }

    pub(crate) async fn start_container(&self, id: &str) -> Result<(), Error> {
        let ask = cri::StartContainerRequest {
            container_id: id.to_owned(),
        };
        let starts = || {
            let (mut runtime, ask) = (self.runtime(), within(CALL, ask.clone()));
            async move { runtime.start_container(ask).await.map(drop) }
        };
        // what has been started is not started again
        let has_started = || async {
            let status = self.ask_status(id).await?.status;
            let created = cri::ContainerState::ContainerCreated;
            Ok(status.is_some_and(|it| it.state() != created))
        };
        until_done(starts, has_started)
            .await
            .map_err(Error::rpc("start the container"))
    }

    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let ask = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let answer = self
            .runtime()
            .stop_container(within(grace.saturating_add(CALL), ask))
            .await;
        gone_is_fine(answer, || format!("stop container {id}"))
    }

    pub(crate) async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let ask = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let answer = self.runtime().remove_container(within(CALL, ask)).await;
        gone_is_fine(answer, || format!("remove container {id}"))
    }

    async fn ask_exec(
        &self,
        ask: &cri::ExecSyncRequest,
        limit: Duration,
    ) -> Result<cri::ExecSyncResponse, tonic::Status> {
        let ask = within(limit.saturating_add(CALL), ask.clone());
        Ok(self.runtime().exec_sync(ask).await?.into_inner())
    }

    pub(crate) async fn exec_sync(
        &self,
        id: &str,
        cmd: Vec<String>,
        limit: Duration,
    ) -> Result<cri::ExecSyncResponse, Error> {
        let ask = exec_request(id, cmd, limit);
        let answer = self.ask_exec(&ask, limit).await;
        answer.map_err(Error::rpc("run a command in the container"))
    }

    /// At least once: a command whose answer was lost is run again.
    pub(crate) async fn exec_hook(
        &self,
        id: &str,
        cmd: Vec<String>,
        limit: Duration,
    ) -> Result<cri::ExecSyncResponse, Error> {
        let ask = exec_request(id, cmd, limit);
        let answer = answered(|| self.ask_exec(&ask, limit)).await;
        answer.map_err(Error::rpc("run a command in the container"))
    }

    pub(crate) async fn image(&self, image: cri::ImageSpec) -> Result<Option<cri::Image>, Error> {
        let what = format!("tell of image {}", image.image);
        let ask = cri::ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        let answer = answered(|| {
            let (mut runtime, ask) = (self.images(), within(CALL, ask.clone()));
            async move { runtime.image_status(ask).await }
        })
        .await
        .map_err(Error::rpc(what))?;
        Ok(answer.into_inner().image)
    }

    pub(crate) async fn pull(
        &self,
        image: cri::ImageSpec,
        auth: Option<cri::AuthConfig>,
        sandbox: cri::PodSandboxConfig,
    ) -> Result<String, Error> {
        if let Some(puller) = self.puller.as_ref().filter(|_| is_plain(auth.as_ref())) {
            return puller(image.image, auth).await.map_err(Error::Puller);
        }
        let what = format!("pull {}", image.image);
        let ask = cri::PullImageRequest {
            image: Some(image),
            auth,
            sandbox_config: Some(sandbox),
        };
        let answer = self
            .images()
            .pull_image(within(PULL, ask))
            .await
            .map_err(Error::rpc(what))?;
        Ok(answer.into_inner().image_ref)
    }

    /// UNIMPLEMENTED from a runtime that has no events.
    pub(crate) async fn events(&self) -> Result<Streaming<cri::ContainerEventResponse>, Error> {
        let answer = self
            .runtime()
            .get_container_events(cri::GetEventsRequest {})
            .await;
        Ok(answer.map_err(Error::rpc("tell of events"))?.into_inner())
    }
}

fn exec_request(id: &str, cmd: Vec<String>, limit: Duration) -> cri::ExecSyncRequest {
    cri::ExecSyncRequest {
        container_id: id.to_owned(),
        cmd,
        timeout: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
    }
}

/// A name and a password, or nothing.
fn is_plain(auth: Option<&cri::AuthConfig>) -> bool {
    auth.is_none_or(|it| {
        let has_token = !it.identity_token.is_empty() || !it.registry_token.is_empty();
        !has_token && (it.auth.is_empty() || !it.username.is_empty())
    })
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn gone_is_fine<T>(
    answer: Result<T, tonic::Status>,
    what: impl FnOnce() -> String,
) -> Result<(), Error> {
    match answer {
        Err(status) if status.code() != tonic::Code::NotFound => Err(Error::rpc(what())(status)),
        _ => Ok(()),
    }
}
