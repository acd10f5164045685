//! What the runtime is asked for the node as a whole, and for those who look into pods.

use berth_proto::cri;

use super::{CALL, Runtime, within};
use crate::{CgroupDriver, Error};

impl Runtime {
    /// Name and version, as `berth://0.1.0`.
    pub(crate) async fn version(&self) -> Result<String, Error> {
        let ask = cri::VersionRequest {
            version: "v1".into(),
        };
        let answer = self
            .runtime()
            .version(within(CALL, ask))
            .await
            .map_err(Error::rpc("tell its version"))?
            .into_inner();
        Ok(format!(
            "{}://{}",
            answer.runtime_name, answer.runtime_version
        ))
    }

    /// Who makes its cgroups; `None` from a runtime that does not tell.
    pub(crate) async fn cgroup_driver(&self) -> Result<Option<CgroupDriver>, Error> {
        let ask = cri::RuntimeConfigRequest {};
        let answer = self.runtime().runtime_config(within(CALL, ask)).await;
        match answer {
            Ok(answer) => Ok(answer
                .into_inner()
                .linux
                .map(|it| match it.cgroup_driver() {
                    cri::CgroupDriver::Systemd => CgroupDriver::Systemd,
                    cri::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
                })),
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(None),
            Err(status) => Err(Error::rpc("tell its configuration")(status)),
        }
    }

    pub(crate) async fn status(&self) -> Result<cri::StatusResponse, Error> {
        let ask = cri::StatusRequest { verbose: false };
        let answer = self.runtime().status(within(CALL, ask)).await;
        Ok(answer.map_err(Error::rpc("tell its status"))?.into_inner())
    }

    pub(crate) async fn all_images(&self) -> Result<Vec<cri::Image>, Error> {
        let ask = cri::ListImagesRequest { filter: None };
        let answer = self.images().list_images(within(CALL, ask)).await;
        Ok(answer
            .map_err(Error::rpc("list images"))?
            .into_inner()
            .images)
    }

    /// Where the command can be streamed from, once.
    pub(crate) async fn exec_url(&self, ask: cri::ExecRequest) -> Result<String, Error> {
        let answer = self.runtime().exec(within(CALL, ask)).await;
        Ok(answer
            .map_err(Error::rpc("run a command in the container"))?
            .into_inner()
            .url)
    }

    pub(crate) async fn attach_url(&self, ask: cri::AttachRequest) -> Result<String, Error> {
        let answer = self.runtime().attach(within(CALL, ask)).await;
        Ok(answer
            .map_err(Error::rpc("attach to the container"))?
            .into_inner()
            .url)
    }

    pub(crate) async fn port_forward_url(
        &self,
        sandbox: String,
        ports: Vec<i32>,
    ) -> Result<String, Error> {
        let ask = cri::PortForwardRequest {
            pod_sandbox_id: sandbox,
            port: ports,
        };
        let answer = self.runtime().port_forward(within(CALL, ask)).await;
        Ok(answer
            .map_err(Error::rpc("forward ports of the pod"))?
            .into_inner()
            .url)
    }

    /// What each pod uses; UNIMPLEMENTED from a runtime that does not count.
    pub(crate) async fn pod_stats(&self) -> Result<Vec<cri::PodSandboxStats>, Error> {
        let ask = cri::ListPodSandboxStatsRequest { filter: None };
        let answer = self
            .runtime()
            .list_pod_sandbox_stats(within(CALL, ask))
            .await;
        Ok(answer
            .map_err(Error::rpc("tell what pods use"))?
            .into_inner()
            .stats)
    }

    /// Bytes of memory that a container uses now, where the runtime counts them.
    pub(crate) async fn memory_usage(&self, id: &str) -> Result<Option<u64>, Error> {
        let ask = cri::ContainerStatsRequest {
            container_id: id.to_owned(),
        };
        let answer = self.runtime().container_stats(within(CALL, ask)).await;
        let stats = answer
            .map_err(Error::rpc(format!("tell what container {id} uses")))?
            .into_inner()
            .stats;
        let memory = stats.and_then(|it| it.memory);
        Ok(memory.and_then(|it| it.usage_bytes).map(|it| it.value))
    }

    /// Other limits for a container that runs; zero: as it is.
    pub(crate) async fn update_container(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> Result<(), Error> {
        let ask = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(resources),
            ..Default::default()
        };
        let answer = self
            .runtime()
            .update_container_resources(within(CALL, ask))
            .await;
        answer
            .map(drop)
            .map_err(Error::rpc(format!("change the limits of container {id}")))
    }

    /// Other limits for a pod that runs; zero: as it is. A runtime that has no word for it has none to keep either.
    pub(crate) async fn update_sandbox(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
        overhead: cri::LinuxContainerResources,
    ) -> Result<(), Error> {
        let ask = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            resources: Some(resources),
            overhead: Some(overhead),
        };
        let answer = self
            .runtime()
            .update_pod_sandbox_resources(within(CALL, ask))
            .await;
        match answer {
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
            answer => answer
                .map(drop)
                .map_err(Error::rpc(format!("change the limits of pod {id}"))),
        }
    }

    /// The directory that holds images.
    pub(crate) async fn image_fs(&self) -> Result<Option<String>, Error> {
        let answer = self
            .images()
            .image_fs_info(within(CALL, cri::ImageFsInfoRequest {}))
            .await
            .map_err(Error::rpc("tell where images are"))?
            .into_inner();
        let fs = answer.image_filesystems.into_iter().next();
        Ok(fs.and_then(|fs| fs.fs_id).map(|id| id.mountpoint))
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let ask = cri::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let answer = self.runtime().reopen_container_log(within(CALL, ask)).await;
        answer
            .map(drop)
            .map_err(Error::rpc(format!("begin a new log of container {id}")))
    }

    pub(crate) async fn remove_image(&self, id: &str) -> Result<(), Error> {
        let image = cri::ImageSpec {
            image: id.to_owned(),
            ..Default::default()
        };
        let ask = cri::RemoveImageRequest { image: Some(image) };
        let answer = self.images().remove_image(within(CALL, ask)).await;
        answer
            .map(drop)
            .map_err(Error::rpc(format!("remove image {id}")))
    }
}
