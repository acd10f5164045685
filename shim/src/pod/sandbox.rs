//! The sandbox: from its request to its end, with every container in it.

use std::{sync::Arc, time::Duration};

use berth_engine::Pause;
use berth_proto::shim::v1::pod::NamespaceMode;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout_at};

use super::{KILL_WAIT, Pod, Sandbox, Setup, Slot, blocking, still_alive};
use crate::{
    clock,
    container::{Phase, lock, signal_process},
    error::Error,
    journal, sysctl, user_namespace,
};

/// Between looks at containers that are being made while the sandbox stops.
const MAKING_POLL: Duration = Duration::from_millis(5);

impl Pod {
    /// Takes the request in; makes nothing yet. The same request again is no error.
    pub async fn create_sandbox(&self, setup: Setup) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let options = &setup.options;
        let own = sysctl::Own {
            net: setup.netns.is_some(),
            ipc: options.ipc.enum_value_or_default() == NamespaceMode::POD,
        };
        for (name, value) in &options.sysctls {
            sysctl::check(name, value, own)?;
        }
        if options.hostname.len() > 64 {
            return Err(Error::invalid(
                "hostname",
                "it is longer than the kernel's 64 bytes",
            ));
        }
        if let Some(netns) = &setup.netns
            && !netns.is_absolute()
        {
            return Err(Error::invalid(
                format!("network namespace {}", netns.display()),
                "it is not absolute",
            ));
        }
        match self.sandbox() {
            Sandbox::None => {
                self.sandbox.send_replace(Sandbox::Created {
                    setup: Arc::new(setup),
                });
                self.changed();
                Ok(())
            }
            Sandbox::Created { setup: known } | Sandbox::Running { setup: known, .. }
                if known.options == setup.options && known.netns == setup.netns =>
            {
                Ok(())
            }
            _ => Err(Error::Exists {
                what: "sandbox",
                id: self.id.clone(),
            }),
        }
    }

    /// Makes the pause. Answers its pid and when it was made; again for one that runs.
    pub async fn start_sandbox(self: &Arc<Self>) -> Result<(i32, i64), Error> {
        let _order = self.order.lock().await;
        let setup = match self.sandbox() {
            Sandbox::Created { setup } => setup,
            Sandbox::Running {
                pid, created_at, ..
            } => return Ok((pid, created_at)),
            Sandbox::None => return Err(self.sandbox_state("start", "not created")),
            Sandbox::Stopped { .. } => return Err(self.sandbox_state("start", "stopped")),
        };
        let options = &setup.options;
        let own = |mode: &protobuf::EnumOrUnknown<NamespaceMode>| {
            mode.enum_value_or_default() == NamespaceMode::POD
        };
        let pause = Pause {
            hostname: (!options.hostname.is_empty() && own(&options.uts))
                .then(|| options.hostname.clone()),
            netns: setup.netns.clone(),
            new_ipc: own(&options.ipc),
            new_uts: own(&options.uts),
            new_pid: own(&options.pid),
            sysctls: options
                .sysctls
                .iter()
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            oom_score_adj: Some(options.oom_score_adj),
            user: user_namespace::asked(options),
            cgroup_parent: options.cgroup_parent.clone(),
            systemd_cgroup: options.systemd_cgroup,
        };
        let making = self.reaper.making();
        let engine = self.engine.clone();
        let process = blocking("pause", move || Ok(engine.pause(&pause)?)).await?;
        let exited = making.register(process.pid);
        let (pid, created_at) = (process.pid, clock::now_ns());
        let pidfd = Arc::new(process.pidfd);
        if let Err(error) = berth_failpoint::site!("shim.sandbox.paused") {
            signal_process(&pidfd, Signal::KILL.as_raw(), || {
                format!("kill pause {pid}")
            })?;
            return Err(Error::io("failpoint shim.sandbox.paused")(error));
        }
        self.sandbox.send_replace(Sandbox::Running {
            setup: setup.clone(),
            pid,
            pidfd: pidfd.clone(),
            created_at,
        });
        self.changed();
        let pod = self.clone();
        tokio::spawn(async move {
            let Ok(exit) = exited.await else { return };
            journal!("pause {pid} has ended with {}", exit.code);
            let pidfd = Some(pidfd);
            pod.sandbox.send_replace(Sandbox::Stopped {
                setup,
                pid,
                pidfd,
                created_at,
                exit: Some(exit),
            });
            pod.changed();
        });
        Ok((pid, created_at))
    }

    /// Kills every container and the pause, and waits for their end. Idempotent.
    pub async fn stop_sandbox(self: &Arc<Self>) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let deadline = Instant::now() + KILL_WAIT;
        // First, so that a container which is being made meets a sandbox that is no longer there.
        match self.sandbox() {
            Sandbox::Created { setup } => {
                self.sandbox.send_replace(Sandbox::Stopped {
                    setup,
                    pid: 0,
                    pidfd: None,
                    created_at: 0,
                    exit: None,
                });
            }
            Sandbox::Running {
                setup,
                pid,
                pidfd,
                created_at,
            } => {
                let pidfd = Some(pidfd);
                self.sandbox.send_replace(Sandbox::Stopped {
                    setup,
                    pid,
                    pidfd,
                    created_at,
                    exit: None,
                });
            }
            Sandbox::None | Sandbox::Stopped { .. } => {}
        }
        let containers = self.containers();
        for container in &containers {
            if !matches!(container.phase(), Phase::Exited { .. }) {
                self.kill_container(container).await?;
            }
        }
        for container in &containers {
            let waited = timeout_at(deadline, container.ended()).await;
            waited.map_err(|_| still_alive(format!("container {}", container.id)))??;
        }
        while lock(&self.containers)
            .values()
            .any(|slot| matches!(slot, Slot::Making))
        {
            if Instant::now() > deadline {
                return Err(still_alive(format!(
                    "a container of sandbox {} that is being made",
                    self.id
                )));
            }
            sleep(MAKING_POLL).await;
        }
        if let Sandbox::Stopped {
            pid,
            pidfd: Some(pidfd),
            exit: None,
            ..
        } = self.sandbox()
        {
            signal_process(&pidfd, Signal::KILL.as_raw(), || {
                format!("kill pause {pid}")
            })?;
            let mut sandbox = self.follow_sandbox();
            let gone = sandbox
                .wait_for(|sandbox| matches!(sandbox, Sandbox::Stopped { exit: Some(_), .. }));
            timeout_at(deadline, gone)
                .await
                .map_err(|_| still_alive(format!("pause {pid}")))?
                .map_err(|_| Error::Lost("the sandbox's phase"))?;
        }
        self.changed();
        Ok(())
    }

    /// Stops the pod, forgets its containers and ends the shim, once the answer is out.
    pub async fn shutdown(self: &Arc<Self>) -> Result<(), Error> {
        self.stop_sandbox().await?;
        for container in self.containers() {
            if let Err(error) = self.delete(&container.id).await {
                journal!("delete container {} at shutdown: {error}", container.id);
            }
        }
        if let Sandbox::Stopped { setup, .. } = self.sandbox()
            && let Some(files) = &setup.files
            && let Err(error) = files.remove()
        {
            journal!("shutdown: {error}");
        }
        let engine = self.engine.clone();
        blocking("close", move || {
            engine.close();
            Ok(())
        })
        .await?;
        self.shutdown.send_replace(true);
        Ok(())
    }

    pub(super) fn sandbox_state(&self, action: &'static str, state: &str) -> Error {
        Error::State {
            action,
            id: format!("sandbox {}", self.id),
            state: state.into(),
        }
    }
}
