//! What one case has: a client, pods of its own that go with it, and a directory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri::{
    ContainerConfig, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxFilter,
    PodSandboxMetadata,
};
use tonic::{Code, Status};

use super::{Case, Request};
use crate::{
    Cri, Pod,
    request::{PodRequest, container},
};

/// Carries the run and the case's number: the pods of one case, and nobody else's.
pub const LABEL: &str = "cri-conformance.test/scene";

#[derive(Debug)]
pub struct Scene {
    pub cri: Cri,
    pub image: String,
    pub runtime_handler: String,
    pub dir: PathBuf,
    pub host_network: bool,
    /// The value of [`LABEL`].
    pub mark: String,
}

impl Scene {
    pub fn new(request: &Request, case: &Case) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = request.dir.join(number.to_string());
        fs::create_dir_all(&dir).with_context(|| format!("make {} for {case:?}", dir.display()))?;
        Ok(Self {
            cri: request.cri.clone(),
            image: request.image.clone(),
            runtime_handler: request.runtime_handler.clone(),
            host_network: request.host_network,
            mark: format!("{}-{number}", std::process::id()),
            dir,
        })
    }

    /// A pod as a kubelet asks for it, with this scene's label.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let uid = format!("{:032x}", rand::random::<u128>());
        let log_directory = self.dir.join(format!("logs/cri_{name}_{uid}"));
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid,
                namespace: "cri-conformance".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: log_directory.display().to_string(),
            labels: [(LABEL.to_owned(), self.mark.clone())].into(),
            ..Default::default()
        };
        config.namespaces(|namespaces: &mut NamespaceOption| {
            namespaces.pid = NamespaceMode::Container.into();
            if self.host_network {
                namespaces.network = NamespaceMode::Node.into();
            }
        })
    }

    /// All that this scene has made.
    pub fn own(&self) -> PodSandboxFilter {
        PodSandboxFilter {
            label_selector: [(LABEL.to_owned(), self.mark.clone())].into(),
            ..Default::default()
        }
    }

    pub async fn run(&self, mut config: PodSandboxConfig) -> Result<Pod> {
        let of_host = |config: &PodSandboxConfig| -> Option<bool> {
            let security = config.linux.as_ref()?.security_context.as_ref()?;
            Some(security.namespace_options.as_ref()?.network() == NamespaceMode::Node)
        };
        if of_host(&config) == Some(true) {
            // Such a pod has the host's name: a kubelet sends none.
            config.hostname.clear();
        }
        fs::create_dir_all(&config.log_directory)?;
        let id = self.cri.run_pod_with(&config, &self.runtime_handler).await;
        let id = id.context("RunPodSandbox")?;
        Ok(Pod { id, config })
    }

    /// A cgroup of this scene's own, for pods that ask for one by name as a kubelet does.
    pub fn cgroup_parent(&self) -> String {
        format!("/berth-conformance-{}", self.mark)
    }

    /// A pod that runs, for what is not about pods.
    pub async fn a_pod(&self) -> Result<Pod> {
        self.run(self.pod("pod")).await
    }

    pub fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        container(name, &self.image, command).named_as(&self.image)
    }

    pub async fn create(&self, pod: &Pod, config: &ContainerConfig) -> Result<String> {
        if let Some(dir) = self.log_path(pod, config).parent() {
            fs::create_dir_all(dir)?;
        }
        let made = self.cri.create(&pod.id, config, &pod.config).await;
        made.context("CreateContainer")
    }

    pub async fn start(&self, pod: &Pod, config: &ContainerConfig) -> Result<String> {
        let id = self.create(pod, config).await?;
        self.cri.start(&id).await.context("StartContainer")?;
        Ok(id)
    }

    /// A pod with one container that sleeps.
    pub async fn a_sleeper(&self) -> Result<(Pod, String)> {
        let pod = self.a_pod().await?;
        let config = self.container("sleeper", &["sleep", "1000"]);
        let id = self.start(&pod, &config).await?;
        Ok((pod, id))
    }

    /// Runs `config` to its end in `pod`: the exit code and standard output.
    pub async fn outcome(&self, pod: &Pod, config: ContainerConfig) -> Result<(i32, String)> {
        let id = self.start(pod, &config).await?;
        let status = self.cri.wait_exit(&id).await?;
        let out = crate::node::parse_log(&self.whole_log(pod, &config).await?, "stdout")?;
        let text = String::from_utf8_lossy(&out).trim().to_owned();
        Ok((status.exit_code, text))
    }

    /// The log of a container that has exited. The CRI doesn't say that it is whole by then: it is waited for until it rests.
    pub async fn whole_log(&self, pod: &Pod, config: &ContainerConfig) -> Result<Vec<u8>> {
        const REST: Duration = Duration::from_millis(200);
        let mut log = self.log(pod, config)?;
        for _ in 0..50 {
            tokio::time::sleep(REST).await;
            let now = self.log(pod, config)?;
            if now == log {
                break;
            }
            log = now;
        }
        Ok(log)
    }

    /// What a command that must succeed prints in a container of its own.
    pub async fn says(&self, pod: &Pod, config: ContainerConfig) -> Result<String> {
        let (code, text) = self.outcome(pod, config).await?;
        ensure!(code == 0, "exit code {code}: {text}");
        Ok(text)
    }

    pub fn log_path(&self, pod: &Pod, config: &ContainerConfig) -> PathBuf {
        Path::new(&pod.config.log_directory).join(&config.log_path)
    }

    pub fn log(&self, pod: &Pod, config: &ContainerConfig) -> Result<Vec<u8>> {
        let path = self.log_path(pod, config);
        fs::read(&path).with_context(|| format!("read the log {}", path.display()))
    }

    /// Takes away this scene's pods, and looks whether they are gone.
    pub async fn clear(&self) -> Result<()> {
        for pod in self.cri.pods(Some(self.own())).await? {
            self.cri.stop_pod(&pod.id).await.context("StopPodSandbox")?;
            self.cri
                .remove_pod(&pod.id)
                .await
                .context("RemovePodSandbox")?;
        }
        let left = self.cri.pods(Some(self.own())).await?;
        ensure!(left.is_empty(), "pods are left: {left:?}");
        let _ = crate::cgroup::remove(&self.cgroup_parent());
        // What a container has written as another user is in its volume, which goes with the run.
        let _ = fs::remove_dir_all(&self.dir);
        Ok(())
    }
}

trait Named {
    fn named_as(self, image: &str) -> Self;
}

impl Named for ContainerConfig {
    /// A kubelet tells the name that its user wrote, too.
    fn named_as(mut self, image: &str) -> Self {
        if let Some(spec) = &mut self.image {
            spec.user_specified_image = image.to_owned();
        }
        self
    }
}

/// The answer must be an error with one of these codes (any, where none is named), and say something. UNIMPLEMENTED is passed on.
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, codes: &[Code]) -> Result<()> {
    let status = match answer {
        Ok(value) => bail!("must be refused, but was answered: {value:?}"),
        Err(status) => status,
    };
    if status.code() == Code::Unimplemented {
        return Err(status.into());
    }
    ensure!(
        codes.is_empty() || codes.contains(&status.code()),
        "must be refused with one of {codes:?}, but was with {:?}: {}",
        status.code(),
        status.message()
    );
    let told = status.message();
    ensure!(
        !told.trim().is_empty(),
        "a refusal must say why: {status:?}"
    );
    Ok(())
}

/// An id of the usual form that nobody has.
pub fn unknown_id() -> String {
    "0123456789abcdef".repeat(4)
}
