//! The end of what the other shim has made where it takes no part in that: it died, hangs, or has refused.

use berth_engine::{Error, cgroup::Cgroup};
use berth_shim_client::failure::line;
use rustix::process::Signal;

use super::{Container, Front, command::DELETE, leftovers::end_processes};
use crate::{container::lock, journal};

impl Front {
    /// What the shim could not or may not do any more: kills, lets its `delete` clean up, and removes the cgroup.
    pub(super) fn remove_by_force(&self, id: &str) -> Result<(), Error> {
        let Some(container) = lock(&self.state).containers.get(id).cloned() else {
            return Ok(());
        };
        if let Some(pidfd) = &container.pidfd {
            let _ = berth_kernel::pidfd::send_signal(pidfd, Signal::KILL.as_raw());
        }
        if let Some(cgroup) = &container.cgroup {
            cgroup.kill()?;
        }
        // Whether it succeeded shows in what is left.
        match self.calling.run(
            "delete",
            id,
            &container.bundle,
            (b"", DELETE),
            Some(self.reaping()),
        ) {
            Ok(ran) if ran.stderr.is_empty() => {}
            Ok(ran) => journal!(
                "{}: delete {id}: {}",
                self.name().0,
                line(&String::from_utf8_lossy(&ran.stderr))
            ),
            Err(error) => journal!("{error}"),
        }
        if let Some(cgroup) = &container.cgroup {
            cgroup.kill()?;
            cgroup.remove()?;
        }
        Ok(())
    }

    pub(super) fn forget(&self, id: &str) {
        let mut state = lock(&self.state);
        state.containers.remove(id);
        state.oom.remove(id);
    }

    /// The shim has ended by itself: without it nobody would learn how its containers end. They end now.
    pub(super) fn lose(&self) {
        let containers: Vec<(String, Container)> = {
            let mut state = lock(&self.state);
            if state.closing || state.lost.is_some() {
                return;
            }
            state.lost = Some(format!(
                "shim {} has died; its containers were killed",
                self.name().0
            ));
            state.client = None;
            state
                .containers
                .iter()
                .map(|(id, container)| (id.clone(), container.clone()))
                .collect()
        };
        journal!(
            "{} has died: its {} containers are killed",
            self.name().0,
            containers.len()
        );
        for (id, container) in containers {
            if let Some(pidfd) = &container.pidfd {
                let _ = berth_kernel::pidfd::send_signal(pidfd, Signal::KILL.as_raw());
            }
            if let Some(Err(error)) = container.cgroup.as_ref().map(Cgroup::kill) {
                journal!("kill container {id}: {error}");
            }
        }
    }

    /// A shim that does not answer what must be answered is ended; the rest follows from that.
    pub(super) fn give_up(&self, why: &Error) {
        journal!("{} is given up: {why}", self.name().0);
        if let Err(error) = end_processes(&self.calling.events) {
            journal!("{error}");
        }
        self.lose();
    }
}
