//! Pod networking: network namespaces, CNI, and a built-in bridge for nodes without a configuration for CNI.
//!
//! Each pod has a network namespace, pinned by a bind mount. With CNI ([`cni`]) plugins fill it. In the built-in network it has `eth0`, one end of a veth pair whose other end is a
//! port of the bridge. Addresses come from one IPv4 range and, where one is configured, one of IPv6; the bridge has the first of each and is the
//! pods' gateway. So pods reach each other (through the bridge) and the host (by any of its addresses); the world beyond the host by masquerading,
//! for which the host forwards on the links that lead there (and on no others: `net.ipv4.ip_forward` is never touched). Ports of the host that lead
//! to pods are elements of maps in a table of nf_tables that is the bridge's own.
//!
//! The built-in network has no helper process: links, addresses, routes and rules are made through netlink, in short-lived threads of their own
//! that may change their namespace.
//!
//! # Synchronization
//! Locks are taken in this order: a pod's turn, the ranges (`at_work`), the bridge, the table's turn, the socket of nf_tables.

mod builtin;
mod cni;
mod error;
mod link;
mod netlink;
mod netns;
mod request;
mod statistics;
mod worker;

use std::{
    collections::HashSet,
    fs::File,
    net::IpAddr,
    os::fd::OwnedFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use berth_state::Ledger;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

pub use builtin::{Builtin, Config};
use cni::{Cni, Detached};
pub use cni::{CniConfig, CniError, Failure, Phase, RECOVERY_BUDGET};
pub use error::Error;
pub use request::{AttachRequest, Bandwidth, Dns, PortMapping, Protocol};
pub use statistics::InterfaceStatistics;

/// Owner of what belongs to no single pod, in the ledger.
pub const LEDGER_OWNER: &str = "network";
/// Name of a pod's interface, inside its namespace.
pub const INTERFACE: &str = "eth0";
/// DELs that are tried again at the same time: few, for pods that are to run go first.
const MAX_REPLAYS: usize = 4;
/// Between two looks at the built-in network's rules: a firewall that flushes them leaves host ports closed, and loopback unguarded, for that long.
const RECONCILE_PERIOD: Duration = Duration::from_secs(10);

/// A pod's place in the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub netns: PathBuf,
    pub interface: String,
    pub ips: Vec<IpAddr>,
    /// The host's end of the pod's link; empty where a plugin made none or does not tell.
    pub host_link: String,
}

/// ms a phase took
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    /// The namespace: made and pinned.
    pub netns_ms: f64,
    /// Address, veth pair, routes.
    pub network_ms: f64,
}

/// The pods' network: CNI where the node has a configuration for it, else the built-in bridge. Cheap to clone.
///
/// A pod is let go of by what attached it, whatever is configured by then: the built-in network knows its own by the ledger, CNI by
/// its records.
#[derive(Debug, Clone)]
pub struct Network {
    builtin: Builtin,
    /// Whether the built-in network takes pods where there is no CNI configuration.
    builtin_on: bool,
    cni: Cni,
}

impl Network {
    pub fn open(
        config: Config,
        builtin_on: bool,
        cni: CniConfig,
        ledger: Ledger,
    ) -> Result<Self, Error> {
        let network = Self {
            cni: Cni::open(cni, ledger.clone(), &config.netns_dir)?,
            builtin: Builtin::open(config, ledger)?,
            builtin_on,
        };
        if let Err(error) = network.builtin.begin_with_ranges(&network.cni.ranges()) {
            tracing::warn!(%error, "the node's ranges are not the built-in network's");
        }
        for (pod_id, mappings) in network.cni.ports() {
            network.builtin.restore_ports(&pod_id, &mappings);
        }
        Ok(network)
    }

    /// Puts the pod into the network: in a new namespace, or in `given`, a new and empty one that belongs to a user namespace of the
    /// pod's (the owner of a network namespace is who made it). One that has a namespace already keeps that.
    ///
    /// On an error something may have been made, as far as the pod's plugins are concerned: [`Network::detach`] must follow.
    pub async fn attach(
        &self,
        request: &AttachRequest,
        given: Option<OwnedFd>,
    ) -> Result<(Attachment, Timing), Error> {
        check_pod_id(&request.pod_id)?;
        let given = given.map(File::from);
        if self.builtin_on && !self.cni.is_configured() {
            return self.builtin.attach_in(request, given).await;
        }
        let start = Instant::now();
        let netns = self.builtin.ensure_netns(&request.pod_id, given).await?;
        let made = Instant::now();
        self.builtin.claim_ports(request).await?;
        let attachment = self.cni.attach(request, &netns).await?;
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
        let timing = Timing {
            netns_ms: ms(start, made),
            network_ms: ms(made, Instant::now()),
        };
        Ok((attachment, timing))
    }

    /// Takes the pod out of it. Idempotent. Where a plugin fails, its part is tried again beside everything else ([`Network::tend`]), and the
    /// namespace of a pod that was attached stays for some more tries.
    pub async fn detach(&self, pod_id: &str) -> Result<(), Error> {
        check_pod_id(pod_id)?;
        match self.cni.detach(pod_id).await {
            Detached::Done => {
                self.builtin.release_ports(pod_id);
                self.builtin.detach(pod_id).await
            }
            Detached::Later => self.builtin.detach(pod_id).await,
            Detached::Not(error) => Err(error),
            Detached::NotWithNetns(error) => {
                self.builtin.detach(pod_id).await?;
                Err(error)
            }
        }
    }

    /// Whether pods can be attached; the reason where not.
    pub async fn ready(&self) -> Result<(), Error> {
        match self.builtin_on && !self.cni.is_configured() {
            true => self.builtin.ready(),
            false => self.cni.ready().await,
        }
    }

    /// What is wrong with the network beside it, though pods can be attached, and what to do about it.
    pub fn warning(&self) -> Option<String> {
        match self.backend() {
            "builtin" => self.builtin.muted(),
            _ => None,
        }
    }

    /// "cni" or "builtin": what takes the next pod.
    pub fn backend(&self) -> &'static str {
        match self.builtin_on && !self.cni.is_configured() {
            true => "builtin",
            false => "cni",
        }
    }

    /// Ranges of the node's pods, as the kubelet tells them; kept for the next daemon, for it is told once.
    pub async fn set_pod_ranges(&self, ranges: Vec<IpNet>) -> Result<(), Error> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            this.cni.keep_ranges(&ranges)?;
            this.cni.set_ranges(ranges)
        });
        done.await.map_err(|e| Error::Worker {
            pod_id: "(all)".into(),
            why: e.to_string(),
        })??;
        match self.builtin.set_ranges(&self.cni.ranges()).await {
            // Taken up by `keep_builtin` when they are free.
            Err(error @ Error::RangesInUse { .. }) => {
                tracing::warn!("{error}");
                Ok(())
            }
            result => result,
        }
    }

    /// Until [`Network::tend`] is called, plugins may take [`RECOVERY_BUDGET`] in all: one that hangs must not keep the daemon from serving.
    pub fn recovering(&self) {
        self.cni.recovering();
    }

    /// What goes on beside serving: DELs that failed, of pods that are gone and of the daemon before, until they succeed; once, GC, and
    /// CHECK of the pods that are attached. `known`: pods that have somebody who will let go of them. Ends never.
    pub async fn tend(self, known: HashSet<String>) {
        self.cni.recovered(&known);
        tokio::spawn(self.clone().keep_builtin());
        let mut work = JoinSet::new();
        let mut looked = false;
        loop {
            while work.len() < MAX_REPLAYS
                && let Some(pod_id) = self.cni.take_due()
            {
                let network = self.clone();
                // What fails is logged, and due again.
                work.spawn(async move {
                    let _ = network.detach(&pod_id).await;
                });
            }
            if !looked && work.is_empty() {
                looked = true;
                tokio::spawn(self.clone().look_over());
            }
            match work.is_empty() {
                true => self.cni.until_due().await,
                false if work.len() == MAX_REPLAYS => drop(work.join_next().await),
                false => tokio::select! {
                    _ = work.join_next() => {}
                    () = self.cni.until_due() => {}
                },
            }
        }
    }

    /// Puts back what of the built-in network's rules others took away (SEC-NET-07), and keeps its pool full while it is what takes pods.
    async fn keep_builtin(self) {
        loop {
            let kept = match self.builtin.set_ranges(&self.cni.ranges()).await {
                Ok(()) | Err(Error::RangesInUse { .. }) => self.builtin.reconcile().await,
                Err(error) => Err(error),
            };
            let kept = match kept {
                Ok(_) if self.backend() == "builtin" => self.builtin.fill_pool().await,
                kept => kept.map(drop),
            };
            let kept = match self.backend() {
                "builtin" => kept.and(self.builtin.look_at_firewall().await),
                _ => kept,
            };
            if let Err(error) = kept {
                tracing::warn!(%error, "putting the built-in network in order; tried again");
            }
            tokio::time::sleep(RECONCILE_PERIOD).await;
        }
    }

    async fn look_over(self) {
        self.cni.collect_garbage().await;
        for pod_id in self.cni.attached() {
            if let Err(error) = self.cni.check(&pod_id).await {
                tracing::error!(pod_id, %error, "the pod's network is not as it was made");
            }
        }
    }

    /// What went through the interfaces of the pod, which must be attached.
    pub async fn statistics(&self, pod_id: &str) -> Result<Vec<InterfaceStatistics>, Error> {
        self.builtin.statistics(pod_id).await
    }

    /// Waits until nothing is left of a pod that was detached (some 50 ms): before its record goes, not before its stop is answered.
    pub fn wait_until_left(&self, pod_id: &str) {
        self.builtin.wait_until_left(pod_id);
    }

    /// To be called when the daemon stops.
    pub async fn remove_bridge_if_unused(&self) -> Result<bool, Error> {
        self.builtin.remove_bridge_if_unused().await
    }
}

/// Ids become file and link names (SEC-CRI-09).
fn check_pod_id(pod_id: &str) -> Result<(), Error> {
    if pod_id.len() == 64
        && pod_id
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Ok(());
    }
    Err(Error::PodId {
        pod_id: pod_id.chars().take(80).collect(),
    })
}
