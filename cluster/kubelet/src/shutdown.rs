//! The machine shuts down: logind is held up while pods end, the least important first, each group within its time.
//!
//! ```text
//! logind ── PrepareForShutdown ─▶ the node is not ready, no pod is begun ─▶ group by group: end, wait ─▶ the lock is let go
//! ```
//!
//! Without a logind nothing tells a kubelet's end from the machine's: no pod ends then.

use std::{os::fd::OwnedFd, str::FromStr, sync::Arc, thread, time::Duration};

use berth_systemd::Login;
use k8s_openapi::api::core::v1::PodStatus;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use crate::{Desired, Statuses, node::Node, plan::Over, view::Shown, worker::Order};

/// Upstream's: from this priority on a pod is critical.
const CRITICAL: i32 = 2_000_000_000;
/// Between two tries at a logind that is not there.
const AGAIN: Duration = Duration::from_secs(10);
/// Between two looks whether a group has ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What was told of pods may take so long to be written, behind their own time.
const WRITE: Duration = Duration::from_secs(2);

/// How long pods have, by their priority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShutdownPolicy {
    /// From which priority on, and how long; the lowest first.
    groups: Vec<(i32, Duration)>,
}

impl ShutdownPolicy {
    /// `whole` for all pods, the last part of it for critical ones.
    ///
    /// # Errors
    /// The part is more than the whole.
    pub fn of(whole: Duration, critical: Duration) -> Result<Self, String> {
        let others = whole.checked_sub(critical).ok_or_else(|| {
            format!(
                "{} s for critical pods are more than {} s for all",
                critical.as_secs(),
                whole.as_secs()
            )
        })?;
        Ok(Self {
            groups: vec![(i32::MIN, others), (CRITICAL, critical)],
        })
    }

    /// What logind is to be held up for; zero: nothing.
    pub fn whole(&self) -> Duration {
        self.groups.iter().map(|group| group.1).sum()
    }

    /// The group of a pod; one that is less important than all is in the first.
    fn group(&self, priority: i32) -> usize {
        let all = self.groups.iter().enumerate();
        all.take_while(|(_, group)| group.0 <= priority)
            .last()
            .map_or(0, |(index, _)| index)
    }
}

impl FromStr for ShutdownPolicy {
    type Err = String;

    /// `PRIORITY=SECONDS,...`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut groups = Vec::new();
        for part in text.split(',') {
            let parsed = part.split_once('=').and_then(|(priority, seconds)| {
                let seconds = seconds.strip_suffix('s').unwrap_or(seconds);
                Some((
                    priority.parse().ok()?,
                    Duration::from_secs(seconds.parse().ok()?),
                ))
            });
            let group: (i32, Duration) =
                parsed.ok_or_else(|| format!("{part:?} is no PRIORITY=SECONDS, as 100000=10s"))?;
            if groups
                .iter()
                .any(|other: &(i32, Duration)| other.0 == group.0)
            {
                return Err(format!("priority {} is there twice", group.0));
            }
            groups.push(group);
        }
        groups.sort();
        Ok(Self { groups })
    }
}

/// What logind says.
#[derive(Debug)]
pub enum ShutdownNews {
    /// It waits until the lock is dropped.
    Begins(OwnedFd),
    /// It does not take place.
    Cancelled,
}

/// Listens to logind for as long as somebody wants to hear, in a thread of its own: what it waits for may never come.
pub fn listen_to_logind(wanted: Duration) -> mpsc::Receiver<ShutdownNews> {
    let (told, news) = mpsc::channel(4);
    let listens = thread::Builder::new().name("logind".into());
    let spawned = listens.spawn(move || {
        let mut complaint = String::new();
        while !told.is_closed() {
            if let Err(error) = follow(wanted, &told) {
                let why = error.to_string();
                if why != complaint {
                    tracing::warn!(
                        why,
                        "logind can't be heard: pods do not end with the machine"
                    );
                    complaint = why;
                }
            }
            thread::sleep(AGAIN);
        }
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread to listen to logind: pods do not end with the machine");
    }
    news
}

fn follow(wanted: Duration, told: &mpsc::Sender<ShutdownNews>) -> Result<(), berth_systemd::Error> {
    let mut login = Login::connect()?;
    let longest = login.longest_delay()?;
    if longest < wanted {
        let (longest, wanted) = (longest.as_secs(), wanted.as_secs());
        tracing::warn!(
            "logind waits {longest} s at most, pods have {wanted} s: put InhibitDelayMaxSec={wanted} below [Login] into a file of /etc/systemd/logind.conf.d"
        );
    }
    loop {
        let lock = login.delay_shutdown("berth kubelet", "pods are to end in order")?;
        tracing::info!("a shutdown of the machine waits for pods to end");
        // a kubelet that was started in the midst of one
        let begins = login.is_shutting_down()? || login.wait()?;
        if !begins {
            continue;
        }
        if told.blocking_send(ShutdownNews::Begins(lock)).is_err() {
            return Ok(());
        }
        while login.wait()? {}
        if told.blocking_send(ShutdownNews::Cancelled).is_err() {
            return Ok(());
        }
    }
}

/// One pod's worker.
pub(crate) type Worker = (Arc<Desired>, watch::Sender<Order>);

/// Ends all pods, then lets the lock go. A pod that does not end in its group's time is left to the machine.
pub(crate) async fn end_pods(
    node: Node,
    policy: ShutdownPolicy,
    workers: Vec<Worker>,
    statuses: Option<Arc<Statuses>>,
    lock: OwnedFd,
) {
    let mut groups: Vec<(Duration, Vec<Worker>)> = Vec::new();
    for (_, time) in &policy.groups {
        groups.push((*time, Vec::new()));
    }
    for worker in workers {
        let group = policy.group(worker.0.spec.priority.unwrap_or(0));
        if let Some((_, members)) = groups.get_mut(group) {
            members.push(worker);
        }
    }
    for (time, members) in groups {
        let until = Instant::now() + time;
        for (pod, orders) in &members {
            let grace = pod.grace().min(time);
            let order = Order::Fail {
                pod: pod.clone(),
                over: Over::Shutdown,
                most: Some(grace),
            };
            let _ = orders.send(order);
        }
        let runs = |members: &[Worker]| {
            let all = node.view.all();
            members
                .iter()
                .filter(|(pod, _)| all.iter().any(|it| it.pod.uid == pod.uid && is_up(it)))
                .count()
        };
        loop {
            let left = runs(&members);
            if left == 0 {
                break;
            }
            if Instant::now() >= until {
                tracing::warn!(pods = left, "not all pods have ended in their time");
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    if let Some(statuses) = statuses {
        statuses.written(WRITE).await;
    }
    tracing::info!("the pods have ended: the shutdown may go on");
    drop(lock);
}

/// Whether something of the pod may run.
fn is_up(shown: &Shown) -> bool {
    let PodStatus {
        phase,
        container_statuses,
        init_container_statuses,
        ..
    } = &shown.status;
    let is_over = matches!(phase.as_deref(), Some("Failed" | "Succeeded"));
    let all = [container_statuses, init_container_statuses];
    let mut all = all.into_iter().flat_map(|list| list.iter().flatten());
    !is_over || all.any(|one| one.state.as_ref().is_some_and(|it| it.running.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_ends_with_its_group() {
        let seconds = Duration::from_secs;
        let policy = ShutdownPolicy::of(seconds(30), seconds(10)).unwrap();
        assert_eq!(policy.whole(), seconds(30));
        for (priority, time) in [(-5, 20), (0, 20), (1_999_999_999, 20), (2_000_001_000, 10)] {
            let group = policy.group(priority);
            assert_eq!(policy.groups[group].1, seconds(time), "{priority}");
        }
        assert!(ShutdownPolicy::of(seconds(1), seconds(2)).is_err());
        let policy: ShutdownPolicy = "1000=5s,0=20,100000=10s".parse().unwrap();
        assert_eq!(policy.whole(), seconds(35));
        for (priority, time) in [(-1, 20), (0, 20), (999, 20), (1000, 5), (200_000, 10)] {
            let group = policy.group(priority);
            assert_eq!(policy.groups[group].1, seconds(time), "{priority}");
        }
        for bad in ["", "1", "a=1s", "1=x", "1=1s,1=2s"] {
            assert!(bad.parse::<ShutdownPolicy>().is_err(), "{bad}");
        }
    }
}
