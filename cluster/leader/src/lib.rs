//! One of several processes leads, by a Lease (coordination.k8s.io/v1) as upstream's components keep it: a stock one and ours can stand by for each other.
//!
//! ```text
//! standing by ── nobody holds it, or its holder has not renewed it for so long as it says ──▶ leading ── not renewed in time, or another holds it ──▶ lost
//!                                                                                              └── asked to end: it is given back ──▶ done
//! ```
//!
//! Whether a holder is late is told by this process's own clock, from when a change was last seen: clocks of machines may differ.
//!
//! Invariant: who has not renewed in time stops before anybody else begins, since it waits less long than they do.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Upstream's defaults: for so long nobody else takes it,
const HELD_FOR: Duration = Duration::from_secs(15);
/// within this it must be renewed,
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// and so often it is tried.
const TRY_EVERY: Duration = Duration::from_secs(2);
/// Giving it back.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the lease {lease} could not be renewed within {} s, or another process holds it: this one does not lead any more",
        RENEW_WITHIN.as_secs()
    )]
    Lost { lease: String },
}

/// What is held, and by whom.
#[derive(Debug, Clone)]
pub struct Seat {
    pub namespace: String,
    pub name: String,
    /// Of this process alone.
    pub identity: String,
}

impl Seat {
    /// In kube-system, as a process of this machine.
    pub fn new(name: &str, machine: &str) -> Self {
        let began = Timestamp::now().as_nanosecond();
        Self {
            namespace: "kube-system".into(),
            name: name.to_owned(),
            identity: format!("{machine}_{}_{began:x}", std::process::id()),
        }
    }

    fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// How a try went.
#[derive(Debug, PartialEq, Eq)]
enum Tried {
    Held,
    /// By this one.
    HeldBy(String),
    /// The server did not answer, or others were faster.
    Failed(String),
}

struct Holder {
    leases: Api<Lease>,
    seat: Seat,
    /// The lease as it was last seen to change, and when.
    seen: Option<(LeaseSpec, Instant)>,
}

/// Waits until this process leads, then does `work`, which has to stop when its token is cancelled. Stands by, or leads, until `ends`.
///
/// # Errors
/// It led and does not any more; `work` has stopped.
pub async fn lead<F, W>(
    client: Client,
    seat: Seat,
    ends: CancellationToken,
    work: W,
) -> Result<Option<F::Output>, Error>
where
    W: FnOnce(CancellationToken) -> F,
    F: Future,
{
    let mut holder = Holder {
        leases: Api::namespaced(client, &seat.namespace),
        seat,
        seen: None,
    };
    let mut said: Arc<str> = "".into();
    loop {
        let why = match holder.attempt().await {
            Tried::Held => break,
            Tried::HeldBy(other) => format!("{other} leads"),
            Tried::Failed(why) => why,
        };
        if *said != *why {
            tracing::info!(lease = holder.seat.shown(), "standing by: {why}");
            said = why.into();
        }
        tokio::select! {
            () = sleep(TRY_EVERY) => {}
            () = ends.cancelled() => return Ok(None),
        }
    }
    tracing::info!(
        lease = holder.seat.shown(),
        identity = holder.seat.identity,
        "leading"
    );
    let stops = ends.child_token();
    let mut work = std::pin::pin!(work(stops.clone()));
    tokio::select! {
        done = work.as_mut() => {
            holder.give_back().await;
            Ok(Some(done))
        }
        () = holder.keep() => {
            stops.cancel();
            work.await;
            Err(Error::Lost {
                lease: holder.seat.shown(),
            })
        }
    }
}

impl Holder {
    /// Ends when it is lost.
    async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(TRY_EVERY).await;
            match self.attempt().await {
                Tried::Held => renewed = Instant::now(),
                Tried::HeldBy(other) => {
                    tracing::error!(lease = self.seat.shown(), other, "another one leads");
                    return;
                }
                Tried::Failed(why) => {
                    tracing::warn!(lease = self.seat.shown(), why, "the lease is not renewed")
                }
            }
            if renewed.elapsed() >= RENEW_WITHIN {
                return;
            }
        }
    }

    async fn attempt(&mut self) -> Tried {
        match timeout(RENEW_WITHIN / 2, self.try_once()).await {
            Ok(Ok(tried)) => tried,
            Ok(Err(error)) => Tried::Failed(error.to_string()),
            Err(_) => Tried::Failed(format!("no answer within {} s", RENEW_WITHIN.as_secs() / 2)),
        }
    }

    async fn try_once(&mut self) -> kube::Result<Tried> {
        let Some(mut lease) = self.leases.get_opt(&self.seat.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.seat.name.clone()),
                    namespace: Some(self.seat.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(&LeaseSpec::default())),
            };
            self.leases.create(&PostParams::default(), &lease).await?;
            return Ok(Tried::Held);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != spec) {
            self.seen = Some((spec.clone(), Instant::now()));
        }
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let is_late = self
            .seen
            .as_ref()
            .is_some_and(|(_, at)| at.elapsed() >= held_for(&spec));
        if !(holder.is_empty() || holder == self.seat.identity || is_late) {
            return Ok(Tried::HeldBy(holder));
        }
        let spec = self.spec(&spec);
        lease.spec = Some(spec.clone());
        // by its resourceVersion: who is faster has it
        self.leases
            .replace(&self.seat.name, &PostParams::default(), &lease)
            .await?;
        self.seen = Some((spec, Instant::now()));
        Ok(Tried::Held)
    }

    /// What it is to say, after what it said.
    fn spec(&self, before: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let was_ours = before.holder_identity.as_ref() == Some(&self.seat.identity);
        let transitions = before.lease_transitions.unwrap_or(0);
        let was_held = before.holder_identity.is_some();
        LeaseSpec {
            holder_identity: Some(self.seat.identity.clone()),
            lease_duration_seconds: i32::try_from(HELD_FOR.as_secs()).ok(),
            acquire_time: match was_ours {
                true => before.acquire_time.clone(),
                false => Some(now.clone()),
            },
            renew_time: Some(now),
            lease_transitions: Some(transitions + i32::from(was_held && !was_ours)),
            ..before.clone()
        }
    }

    /// So that the next one need not wait.
    async fn give_back(&mut self) {
        let given = timeout(GIVE_BACK_WITHIN, async {
            let Some(mut lease) = self.leases.get_opt(&self.seat.name).await? else {
                return Ok(());
            };
            let mut spec = lease.spec.take().unwrap_or_default();
            if spec.holder_identity.as_ref() != Some(&self.seat.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            lease.spec = Some(spec);
            self.leases
                .replace(&self.seat.name, &PostParams::default(), &lease)
                .await
                .map(drop)
        });
        if let Ok(Err(error)) = given.await {
            tracing::debug!(%error, "the lease is not given back");
        }
    }
}

fn held_for(spec: &LeaseSpec) -> Duration {
    let seconds = spec
        .lease_duration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map_or(HELD_FOR, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lease_says_who_holds_it_and_how_often_that_changed() {
        let config = kube::Config::new("http://127.0.0.1:9".parse().expect("a URL"));
        let client = Client::try_from(config).expect("a client");
        let holder = |identity: &str| Holder {
            leases: Api::namespaced(client.clone(), "kube-system"),
            seat: Seat {
                namespace: "kube-system".into(),
                name: "x".into(),
                identity: identity.into(),
            },
            seen: None,
        };
        let first = holder("a").spec(&LeaseSpec::default());
        assert_eq!(
            (first.holder_identity.as_deref(), first.lease_transitions),
            (Some("a"), Some(0))
        );
        let renewed = holder("a").spec(&first);
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_eq!(renewed.lease_transitions, Some(0));
        let taken = holder("b").spec(&renewed);
        assert_eq!(
            (taken.holder_identity.as_deref(), taken.lease_transitions),
            (Some("b"), Some(1))
        );
        assert_ne!(taken.acquire_time, first.acquire_time);
        assert_eq!(held_for(&taken), HELD_FOR);
    }

    /// Else two would lead at once for a while.
    #[test]
    fn who_leads_gives_up_before_another_may_begin() {
        assert!(RENEW_WITHIN + RENEW_WITHIN / 2 <= HELD_FOR && TRY_EVERY < RENEW_WITHIN);
    }
}
