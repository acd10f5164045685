//! `TaskOOM`: containerd hears of a container that runs out of memory when it does, also where its init lives on. Watched only where
//! somebody listens; berthd reads the counts.

use std::{
    io::ErrorKind,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use berth_engine::cgroup::{Cgroup, OOM_BUFFER_BYTES};
use tokio::{net::unix::pipe::Receiver, select, time::sleep};

use crate::{
    container::Container,
    error::Error,
    journal,
    pod::{Pod, blocking},
};

/// v1 tells before it kills: how often, and how far apart, the count is read until somebody was killed. Nobody may have to be, where memory
/// was found after all.
const LOOKS: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(20);

impl Pod {
    /// Watches a container until its end.
    pub fn watch_oom(self: &Arc<Self>, container: &Arc<Container>) {
        let Some(cgroup) = container.cgroup.clone().filter(|_| self.events.are_heard()) else {
            return;
        };
        let watched = cgroup.watch_oom().map_err(Error::from).and_then(|fd| {
            // No pipe, but read like one.
            fd.map(Receiver::from_owned_fd_unchecked)
                .transpose()
                .map_err(Error::io("watch a cgroup's memory"))
        });
        match watched {
            Ok(Some(watch)) => {
                tokio::spawn(follow(self.clone(), container.clone(), cgroup, watch));
            }
            Ok(None) => {}
            // What it has missed is told at the container's end.
            Err(error) => journal!("container {}: {error}", container.id),
        }
    }

    /// Tells of processes that were killed for want of memory since it last did. Answers whether any was at all.
    pub fn tell_oom(&self, container: &Container, kills: u64) -> bool {
        if container.oom_kills.fetch_max(kills, Relaxed) < kills {
            self.events.oom(&container.id);
        }
        kills > 0
    }
}

async fn follow(pod: Arc<Pod>, container: Arc<Container>, cgroup: Cgroup, watch: Receiver) {
    loop {
        let ready = select! {
            ready = watch.readable() => ready,
            // see_off has the last word.
            _ = container.ended() => return,
        };
        if ready.is_err() {
            return;
        }
        match watch.try_read(&mut [0; OOM_BUFFER_BYTES]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => return,
        }
        for _ in 0..LOOKS {
            let known = container.oom_kills.load(Relaxed);
            let cgroup = cgroup.clone();
            // Its end may have taken the cgroup away.
            let Ok(kills) = blocking("look at a cgroup", move || Ok(cgroup.oom_kills()?)).await
            else {
                return;
            };
            if container.has_ended() {
                return;
            }
            if kills > known {
                pod.tell_oom(&container, kills);
                break;
            }
            sleep(BETWEEN).await;
        }
    }
}
