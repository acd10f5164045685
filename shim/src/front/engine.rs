//! What the pod asks of its engine, asked of the other shim.

use std::{io::ErrorKind, time::Duration};

use berth_engine::{Checkpoint, Create, Engine, Error, Exec, Pause, Process, cgroup::Cgroup};
use berth_proto::shim::api::{
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, ResizePtyRequest,
    ShutdownRequest, StartRequest, StartResponse, UpdateTaskRequest,
};
use oci_spec::runtime::LinuxResources;
use protobuf::{MessageField, well_known_types::any::Any};
use rustix::process::Signal;

use super::{Container, Front, MAKE, leftovers, pause, process, streams::Streams};
use crate::{container::lock, error::Error as ShimError, journal};

/// Signals are sent, not waited for.
const KILL: Duration = Duration::from_secs(5);
const RESIZE: Duration = Duration::from_secs(5);
/// The container's last output, and the removal of its cgroup.
const TASK_DELETE: Duration = Duration::from_secs(15);
/// How long a shim that was told to end may take.
const SHUTDOWN: Duration = Duration::from_secs(2);

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl Engine for Front {
    fn pause(&self, pause: &Pause) -> Result<Process, Error> {
        if pause.user.is_some() {
            return Err(self.name().error(
                "make the pod's user namespace",
                ErrorKind::Unsupported,
                "pods with a user namespace are for Berth's own shim",
            ));
        }
        // What `delete` of stock shims finds: a directory of the container's name.
        let bundle = self.dir.join(&self.pod_id);
        let failed = |error: ShimError| self.failed("make the pod's pause", error);
        leftovers::ensure_dir(&self.dir).map_err(failed)?;
        pause::write(&bundle, &self.pod_id, pause).map_err(failed)?;
        let cgroup = pause::cgroup(pause, &self.pod_id);
        let cgroup = Cgroup::by(pause.systemd_cgroup, &cgroup)?;
        let container = Container {
            bundle: bundle.clone(),
            cgroup: Some(cgroup),
            pidfd: None,
        };
        lock(&self.state)
            .containers
            .insert(self.pod_id.clone(), container);
        let made = self.launch(&bundle).and_then(|()| {
            let streams = Streams::lay(self.name(), Default::default())?;
            let process = self.make(&self.pod_id, &bundle, false, streams)?;
            self.start(&self.pod_id)?;
            Ok(process)
        });
        if let Err(error) = &made {
            self.give_up(error);
            if let Err(error) = self.remove_by_force(&self.pod_id) {
                journal!("{error}");
            }
            self.forget(&self.pod_id);
        }
        made
    }

    fn create(&self, create: Create) -> Result<Process, Error> {
        let Create {
            id,
            bundle,
            stdio,
            tty,
            systemd_cgroup,
            restore,
        } = create;
        if restore.is_some() {
            return Err(self.unbuilt("restore a container"));
        }
        let step = || format!("create container {id}");
        let cgroup = pause::introduce(&bundle, &self.pod_id, tty)
            .map_err(|error| self.failed(step(), error))?
            .as_deref()
            .map(|path| Cgroup::by(systemd_cgroup, path))
            .transpose()?;
        let streams = Streams::lay(self.name(), stdio)?;
        let container = Container {
            bundle: bundle.clone(),
            cgroup,
            pidfd: None,
        };
        lock(&self.state).containers.insert(id.clone(), container);
        self.make(&id, &bundle, tty, streams)
            .map_err(process::command_error)
    }

    fn start(&self, id: &str) -> Result<(), Error> {
        let request = StartRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let started: Result<StartResponse, Error> =
            self.call("Start", &format!("container {id}"), &request, MAKE);
        started.map(drop).map_err(process::command_error)
    }

    fn exec(&self, exec: Exec) -> Result<Process, Error> {
        let Exec {
            container_id: id,
            mut process,
            stdio,
            tty,
        } = exec;
        process.set_terminal(Some(tty));
        let exec_id = process::exec_id();
        let what = format!("a command in container {id}");
        let streams = Streams::lay(self.name(), stdio)?;
        let [stdin, stdout, stderr] = streams.paths(tty);
        let spec =
            serde_json::to_vec(&process).map_err(|error| self.failed(what.clone(), error))?;
        let request = ExecProcessRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            terminal: tty,
            stdin,
            stdout,
            stderr,
            spec: any(PROCESS_TYPE, spec),
            ..Default::default()
        };
        let _: Empty = self.call("Exec", &what, &request, MAKE)?;
        let request = StartRequest {
            id: id.clone(),
            exec_id: exec_id.clone(),
            ..Default::default()
        };
        let started: Result<StartResponse, Error> = self.call("Start", &what, &request, MAKE);
        let started = match started {
            Ok(started) => started,
            Err(error) => {
                let request = DeleteRequest {
                    id,
                    exec_id,
                    ..Default::default()
                };
                let deleted: Result<DeleteResponse, Error> =
                    self.call("Delete", &what, &request, TASK_DELETE);
                if let Err(error) = deleted {
                    journal!("undo exec: {error}");
                }
                return Err(process::command_error(error));
            }
        };
        // A short command may have ended already.
        let pidfd = match self.hold(started.pid) {
            Some(pidfd) => pidfd,
            None => self.dead(&what)?,
        };
        let process = Process {
            pid: started.pid as i32,
            pidfd,
            console: None,
        };
        self.follow(&process, &id, &exec_id)?;
        self.flow(streams, &id, &exec_id, tty)?;
        Ok(process)
    }

    fn kill(&self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        let container = lock(&self.state).containers.get(id).cloned();
        // What must work with any shim goes without it.
        if signal == Signal::KILL.as_raw()
            && let Some(Container {
                cgroup: Some(cgroup),
                ..
            }) = &container
            && all
        {
            return Ok(cgroup.kill()?);
        }
        let request = KillRequest {
            id: id.to_owned(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        let killed: Result<Empty, Error> =
            self.call("Kill", &format!("container {id}"), &request, KILL);
        match killed {
            Err(Error::Shim {
                kind: ErrorKind::NotFound,
                ..
            }) => Ok(()),
            killed => killed.map(drop),
        }
    }

    /// Pausing is done by the cgroup's freezer, and undone by it.
    fn resume(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    fn checkpoint(&self, _: Checkpoint) -> Result<(), Error> {
        Err(self.unbuilt("checkpoint a container"))
    }

    fn delete(&self, id: &str) -> Result<(), Error> {
        let request = DeleteRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let deleted: Result<DeleteResponse, Error> =
            self.call("Delete", &format!("container {id}"), &request, TASK_DELETE);
        match deleted {
            Ok(_) => {}
            Err(Error::Shim {
                kind: ErrorKind::NotFound | ErrorKind::NotConnected,
                ..
            }) => {
                self.remove_by_force(id)?;
            }
            Err(
                error @ Error::Shim {
                    kind: ErrorKind::TimedOut | ErrorKind::BrokenPipe | ErrorKind::InvalidData,
                    ..
                },
            ) => {
                self.give_up(&error);
                self.remove_by_force(id)?;
            }
            Err(error) => {
                journal!("{error}");
                self.remove_by_force(id)?;
            }
        }
        self.forget(id);
        Ok(())
    }

    fn carries_streams(&self) -> bool {
        true
    }

    fn resize(&self, pid: i32, width: u32, height: u32) -> Result<(), Error> {
        let Some((id, exec_id)) = lock(&self.state).names.get(&pid).cloned() else {
            return Ok(());
        };
        let what = format!("the terminal of container {id}");
        let request = ResizePtyRequest {
            id,
            exec_id,
            width,
            height,
            ..Default::default()
        };
        let resized: Result<Empty, Error> = self.call("ResizePty", &what, &request, RESIZE);
        match resized {
            Err(Error::Shim {
                kind: ErrorKind::NotFound,
                ..
            }) => Ok(()),
            resized => resized.map(drop),
        }
    }

    fn updated(&self, id: &str, resources: &LinuxResources) {
        let told = serde_json::to_vec(resources)
            .map_err(|error| self.failed(format!("Update container {id}"), error))
            .and_then(|value| {
                let request = UpdateTaskRequest {
                    id: id.to_owned(),
                    resources: any(RESOURCES_TYPE, value),
                    ..Default::default()
                };
                self.call::<Empty>("Update", &format!("container {id}"), &request, MAKE)
            });
        // The limits are in force all the same.
        if let Err(error) = told {
            journal!("{error}");
        }
    }

    fn oom_killed(&self, id: &str) -> bool {
        lock(&self.state).oom.contains(id)
    }

    fn lost(&self) -> Option<String> {
        lock(&self.state).lost.clone()
    }

    fn close(&self) {
        let has_pause = lock(&self.state).containers.contains_key(&self.pod_id);
        if has_pause && let Err(error) = self.delete(&self.pod_id) {
            journal!("{error}");
        }
        let socket = {
            let mut state = lock(&self.state);
            state.closing = true;
            state.socket.clone()
        };
        let request = ShutdownRequest {
            id: self.pod_id.clone(),
            now: true,
            ..Default::default()
        };
        // It may be gone before its answer is here.
        let told: Result<Empty, Error> = self.call("Shutdown", "the pod", &request, SHUTDOWN);
        if told.is_ok() {
            process::wait_for_none(&self.calling.events, SHUTDOWN);
        }
        if let Err(error) = leftovers::end_processes(&self.calling.events) {
            journal!("{error}");
        }
        if !socket.is_empty() {
            leftovers::remove_socket(&socket);
        }
    }
}

impl Front {
    fn unbuilt(&self, what: &str) -> Error {
        self.name()
            .error(what, ErrorKind::Unsupported, "that is for Berth's own shim")
    }
}

fn any(name: &str, value: Vec<u8>) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: name.into(),
        value,
        ..Default::default()
    })
}
