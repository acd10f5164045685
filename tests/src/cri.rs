//! A CRI client with a call for each thing that tests do. It remembers what each container was asked to be, for the invariants.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use berth_proto::cri::{
    self, ContainerConfig, ContainerState, ContainerStatus, PodSandboxConfig, PodSandboxStatus,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::machine::patient;

/// Long enough for anything a test waits for, short enough to name the call that hangs.
const DEADLINE: Duration = Duration::from_secs(60);
/// Messages as large as those that other runtimes allow.
const MESSAGE_LIMIT: usize = 64 << 20;

type Answer<T> = Result<T, Status>;

#[derive(Debug, Clone)]
pub struct Cri {
    channel: Channel,
    images: Channel,
    /// Of each call.
    pub deadline: Duration,
    requests: Arc<Mutex<HashMap<String, ContainerConfig>>>,
}

async fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let channel = Endpoint::from_static("http://[::]:50051")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await?;
    Ok(channel)
}

impl Cri {
    pub async fn connect(socket: &Path) -> Result<Self> {
        let channel = channel(socket).await?;
        Ok(Self {
            images: channel.clone(),
            channel,
            deadline: patient(DEADLINE),
            requests: Arc::default(),
        })
    }

    /// This client with another server for images.
    pub async fn with_images_of(self, socket: &Path) -> Result<Self> {
        let images = channel(socket).await?;
        Ok(Self { images, ..self })
    }

    /// This client over another's connection, with what both remember.
    pub fn remembering(self, other: &Cri) -> Self {
        Self {
            requests: other.requests.clone(),
            ..self
        }
    }

    /// This client with another deadline a call.
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.images.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// What container `id` was asked to be, where this client made it.
    pub fn request_of(&self, id: &str) -> Option<ContainerConfig> {
        self.requests
            .lock()
            .expect("no test panics with the lock held")
            .get(id)
            .cloned()
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.deadline);
        request
    }

    pub async fn version(&self) -> Answer<cri::VersionResponse> {
        Ok(self
            .runtime()
            .version(self.ask(cri::VersionRequest {
                version: "v1".into(),
            }))
            .await?
            .into_inner())
    }

    pub async fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        self.run_pod_with(config, "").await
    }

    pub async fn run_pod_with(&self, config: &PodSandboxConfig, handler: &str) -> Answer<String> {
        let message = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        Ok(self
            .runtime()
            .run_pod_sandbox(self.ask(message))
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Answer<()> {
        self.runtime()
            .stop_pod_sandbox(self.ask(cri::StopPodSandboxRequest {
                pod_sandbox_id: id.into(),
            }))
            .await
            .map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Answer<()> {
        self.runtime()
            .remove_pod_sandbox(self.ask(cri::RemovePodSandboxRequest {
                pod_sandbox_id: id.into(),
            }))
            .await
            .map(drop)
    }

    pub async fn pod_status_verbose(
        &self,
        id: &str,
        verbose: bool,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let message = cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose,
        };
        Ok(self
            .runtime()
            .pod_sandbox_status(self.ask(message))
            .await?
            .into_inner())
    }

    pub async fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        self.pod_status_verbose(id, false)
            .await?
            .status
            .ok_or_else(|| Status::internal("PodSandboxStatus without a status"))
    }

    pub async fn pods(
        &self,
        filter: Option<cri::PodSandboxFilter>,
    ) -> Answer<Vec<cri::PodSandbox>> {
        Ok(self
            .runtime()
            .list_pod_sandbox(self.ask(cri::ListPodSandboxRequest { filter }))
            .await?
            .into_inner()
            .items)
    }

    pub async fn create(
        &self,
        pod_id: &str,
        config: &ContainerConfig,
        pod: &PodSandboxConfig,
    ) -> Answer<String> {
        let message = cri::CreateContainerRequest {
            pod_sandbox_id: pod_id.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        let id = self
            .runtime()
            .create_container(self.ask(message))
            .await?
            .into_inner()
            .container_id;
        self.requests
            .lock()
            .expect("no test panics with the lock held")
            .insert(id.clone(), config.clone());
        Ok(id)
    }

    pub async fn start(&self, id: &str) -> Answer<()> {
        self.runtime()
            .start_container(self.ask(cri::StartContainerRequest {
                container_id: id.into(),
            }))
            .await
            .map(drop)
    }

    /// Stops with a grace period of `timeout` seconds.
    pub async fn stop(&self, id: &str, timeout: i64) -> Answer<()> {
        self.runtime()
            .stop_container(self.ask(cri::StopContainerRequest {
                container_id: id.into(),
                timeout,
            }))
            .await
            .map(drop)
    }

    pub async fn remove(&self, id: &str) -> Answer<()> {
        self.runtime()
            .remove_container(self.ask(cri::RemoveContainerRequest {
                container_id: id.into(),
            }))
            .await
            .map(drop)
    }

    pub async fn status_verbose(
        &self,
        id: &str,
        verbose: bool,
    ) -> Answer<cri::ContainerStatusResponse> {
        let message = cri::ContainerStatusRequest {
            container_id: id.into(),
            verbose,
        };
        Ok(self
            .runtime()
            .container_status(self.ask(message))
            .await?
            .into_inner())
    }

    pub async fn status(&self, id: &str) -> Answer<ContainerStatus> {
        self.status_verbose(id, false)
            .await?
            .status
            .ok_or_else(|| Status::internal("ContainerStatus without a status"))
    }

    pub async fn containers(
        &self,
        filter: Option<cri::ContainerFilter>,
    ) -> Answer<Vec<cri::Container>> {
        Ok(self
            .runtime()
            .list_containers(self.ask(cri::ListContainersRequest { filter }))
            .await?
            .into_inner()
            .containers)
    }

    /// Waits until the container has exited.
    pub async fn wait_exit(&self, id: &str) -> Result<ContainerStatus> {
        self.exits_within(id, DEADLINE).await
    }

    /// As [`Cri::wait_exit`], in this time.
    pub async fn exits_within(&self, id: &str, patience: Duration) -> Result<ContainerStatus> {
        let deadline = Instant::now() + patient(patience);
        loop {
            let status = self.status(id).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(
                Instant::now() < deadline,
                "container {id} is still {:?} after {patience:?}",
                status.state()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a command; `timeout` in seconds, 0: none.
    pub async fn exec_within(
        &self,
        id: &str,
        cmd: &[&str],
        timeout: i64,
    ) -> Answer<cri::ExecSyncResponse> {
        let message = cri::ExecSyncRequest {
            container_id: id.into(),
            cmd: cmd.iter().map(ToString::to_string).collect(),
            timeout,
        };
        Ok(self
            .runtime()
            .exec_sync(self.ask(message))
            .await?
            .into_inner())
    }

    pub async fn exec_raw(&self, id: &str, cmd: &[&str]) -> Answer<cri::ExecSyncResponse> {
        self.exec_within(id, cmd, 30).await
    }

    /// The standard output of a command that must succeed, without white space at its ends.
    pub async fn exec(&self, id: &str, cmd: &[&str]) -> Result<String> {
        let answer = self.exec_raw(id, cmd).await?;
        let (out, err) = (
            String::from_utf8_lossy(&answer.stdout),
            String::from_utf8_lossy(&answer.stderr),
        );
        ensure!(
            answer.exit_code == 0,
            "{cmd:?} in {id} ended with {}: {out}{err}",
            answer.exit_code
        );
        Ok(out.trim().to_owned())
    }

    pub async fn shell(&self, id: &str, script: &str) -> Result<String> {
        self.exec(id, &["sh", "-c", script]).await
    }

    pub async fn reopen_log(&self, id: &str) -> Answer<()> {
        self.runtime()
            .reopen_container_log(self.ask(cri::ReopenContainerLogRequest {
                container_id: id.into(),
            }))
            .await
            .map(drop)
    }

    pub async fn stats(&self, id: &str) -> Answer<cri::ContainerStats> {
        let answer = self
            .runtime()
            .container_stats(self.ask(cri::ContainerStatsRequest {
                container_id: id.into(),
            }))
            .await?
            .into_inner();
        answer
            .stats
            .ok_or_else(|| Status::internal("ContainerStats without stats"))
    }

    pub async fn list_stats(
        &self,
        filter: Option<cri::ContainerStatsFilter>,
    ) -> Answer<Vec<cri::ContainerStats>> {
        Ok(self
            .runtime()
            .list_container_stats(self.ask(cri::ListContainerStatsRequest { filter }))
            .await?
            .into_inner()
            .stats)
    }

    pub async fn pod_stats(&self, id: &str) -> Answer<cri::LinuxPodSandboxStats> {
        let request = cri::PodSandboxStatsRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self.runtime().pod_sandbox_stats(request).await?;
        let stats = answer.into_inner().stats.unwrap_or_default();
        Ok(stats.linux.unwrap_or_default())
    }

    pub async fn pull(&self, image: &str) -> Answer<String> {
        self.pull_as(image, None).await
    }

    pub async fn pull_as(&self, image: &str, auth: Option<cri::AuthConfig>) -> Answer<String> {
        let message = cri::PullImageRequest {
            image: Some(spec(image)),
            auth,
            sandbox_config: None,
        };
        Ok(self
            .images()
            .pull_image(self.ask(message))
            .await?
            .into_inner()
            .image_ref)
    }

    pub async fn image(&self, image: &str) -> Answer<Option<cri::Image>> {
        let message = cri::ImageStatusRequest {
            image: Some(spec(image)),
            verbose: false,
        };
        Ok(self
            .images()
            .image_status(self.ask(message))
            .await?
            .into_inner()
            .image)
    }

    pub async fn list_images(&self) -> Answer<Vec<cri::Image>> {
        Ok(self
            .images()
            .list_images(self.ask(cri::ListImagesRequest { filter: None }))
            .await?
            .into_inner()
            .images)
    }

    pub async fn remove_image(&self, image: &str) -> Answer<()> {
        self.images()
            .remove_image(self.ask(cri::RemoveImageRequest {
                image: Some(spec(image)),
            }))
            .await
            .map(drop)
    }

    pub async fn fs_info(&self) -> Answer<cri::ImageFsInfoResponse> {
        Ok(self
            .images()
            .image_fs_info(self.ask(cri::ImageFsInfoRequest {}))
            .await?
            .into_inner())
    }
}

pub fn spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.into(),
        ..Default::default()
    }
}

/// The answer must be an error with this code, whose message has each of `words` in it.
pub fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code, words: &[&str]) -> Result<()> {
    let status = match answer {
        Ok(value) => bail!("must be refused with {code:?}, but was answered: {value:?}"),
        Err(status) => status,
    };
    ensure!(
        status.code() == code,
        "must be refused with {code:?}, but was: {status:?}"
    );
    for word in words {
        ensure!(
            status.message().contains(word),
            "the refusal does not name {word:?}: {:?}",
            status.message()
        );
    }
    ensure!(
        status.message().len() > 10,
        "a refusal must say what was tried: {:?}",
        status.message()
    );
    Ok(())
}
