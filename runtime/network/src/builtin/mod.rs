//! The built-in network: a bridge, a veth pair a pod, addresses from a range of our own.

mod attach;
mod bridge;
mod conntrack;
mod firewall;
mod forwarding;
mod host_port;
mod lease;
mod leaving;
mod nfnetlink;
mod nftables;
mod pool;
mod shaping;
mod spoofing;
mod table;

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use berth_state::{Ledger, Object};
use ipnet::IpNet;

use crate::{
    AttachRequest, Attachment, Error, InterfaceStatistics, LEDGER_OWNER, PortMapping, Timing,
    check_pod_id, statistics, worker,
};

/// IFNAMSIZ without its NUL.
pub(crate) const MAX_LINK_NAME_BYTES: usize = 15;
/// Smallest MTU of a link that carries IPv4 (RFC 791).
const MIN_MTU: u32 = 576;
/// Longest prefix that has room for a gateway and one pod.
const MAX_PREFIX_LEN: u8 = 30;
const MAX_PREFIX_LEN_V6: u8 = 126;
/// Nobody is given more of the world's addresses.
const MIN_PREFIX_LEN_V6: u8 = 8;

/// A namespace costs some 100 KiB of the kernel's memory, and more of them than pods begin at once save nothing.
pub const MAX_NAMESPACE_POOL: usize = 64;

#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the bridge (≤ 15 bytes).
    pub bridge: String,
    /// IPv4 range of the pods; the bridge takes its first address.
    pub subnet: ipnet::Ipv4Net,
    /// IPv6 range of the pods, who have an address of each family then.
    pub subnet_v6: Option<ipnet::Ipv6Net>,
    /// Pods reach the world under the host's address, and the host forwards for them.
    pub masquerade: bool,
    /// Namespaces that are made ahead of need (0 to [`MAX_NAMESPACE_POOL`]).
    pub namespace_pool: usize,
    /// MTU of the pods' links in bytes; `None`: that of the host's link with the default route.
    pub mtu: Option<u32>,
    /// Where namespaces are pinned: `/run/berth/netns`.
    pub netns_dir: PathBuf,
    /// Leases, one file an address (they survive a daemon restart).
    pub lease_dir: PathBuf,
}

/// The built-in network. Cheap to clone.
///
/// # Synchronization
/// Operations on one pod take turns, in the order of their calls; a call that is dropped once its worker runs goes on to its end, and a later
/// one waits for it. So a client that gives up on `attach` and calls `detach` leaves nothing behind.
#[derive(Debug, Clone)]
pub struct Builtin {
    shared: Arc<Shared>,
    workers: worker::Workers,
}

#[derive(Debug)]
struct Shared {
    /// As it was opened with.
    config: Config,
    /// With the ranges of now.
    inner: RwLock<Arc<Inner>>,
    /// Held for reading by each operation, for writing while the ranges are changed.
    at_work: RwLock<()>,
}

/// Pods that are on their way out have left: what opens the same ledger next makes links of the same names, and would lose them to us.
impl Drop for Shared {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        inner
            .unwrap_or_else(PoisonError::into_inner)
            .wait_until_left(None);
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    /// The bridge's address.
    pub(crate) gateway: Ipv4Addr,
    /// The pods' ranges, IPv4's first.
    pub(crate) subnets: Vec<IpNet>,
    pub(crate) ledger: Ledger,
    pub(crate) leases: lease::Leases,
    pub(crate) bridge: bridge::Known,
    table: table::Table,
    host_ports: host_port::HostPorts,
    /// The pods' ports of the bridge.
    ports: spoofing::Ports,
    leaving: leaving::Leaving,
    muted: firewall::Muted,
    pool: pool::Pool,
    /// Held while the rules are changed, so that what is added or removed is not undone by a table made anew at the same time.
    table_turn: Mutex<()>,
}

impl Builtin {
    /// Makes nothing in the kernel yet: the bridge comes with the first pod. Makes the directories (0700) and reads the leases.
    pub fn open(config: Config, ledger: Ledger) -> Result<Self, Error> {
        let inner = Inner::open(config.clone(), ledger)?;
        Ok(Self {
            shared: Arc::new(Shared {
                config,
                inner: RwLock::new(Arc::new(inner)),
                at_work: RwLock::default(),
            }),
            workers: worker::Workers::default(),
        })
    }

    fn inner(&self) -> Arc<Inner> {
        let inner = self.shared.inner.read();
        inner.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does `work` in a thread of its own, when it is the turn of `key`.
    async fn run<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        self.workers
            .run(key, move || {
                let at_work = this.shared.at_work.read();
                let _at_work = at_work.unwrap_or_else(PoisonError::into_inner);
                work(&this.inner())
            })
            .await
    }

    /// The pods' ranges from now on: the first of each family; one that is not among them stays as the configuration has it. Refused while
    /// pods have addresses of others.
    pub async fn set_ranges(&self, ranges: &[IpNet]) -> Result<(), Error> {
        let (this, config) = (self.clone(), self.with_ranges(ranges));
        self.workers
            .run(LEDGER_OWNER, move || this.change_ranges(config))
            .await
    }

    /// As [`Builtin::set_ranges`], for a daemon that starts: nothing is at work yet.
    pub fn begin_with_ranges(&self, ranges: &[IpNet]) -> Result<(), Error> {
        self.change_ranges(self.with_ranges(ranges))
    }

    fn with_ranges(&self, ranges: &[IpNet]) -> Config {
        let mut config = self.shared.config.clone();
        for range in ranges.iter().rev() {
            match range {
                IpNet::V4(range) => config.subnet = range.trunc(),
                IpNet::V6(range) => config.subnet_v6 = Some(range.trunc()),
            }
        }
        config
    }

    fn change_ranges(&self, config: Config) -> Result<(), Error> {
        let is_now = |inner: &Inner| {
            (inner.config.subnet, inner.config.subnet_v6) == (config.subnet, config.subnet_v6)
        };
        if is_now(&self.inner()) {
            return Ok(());
        }
        let at_work = self.shared.at_work.write();
        let _at_work = at_work.unwrap_or_else(PoisonError::into_inner);
        let old = self.inner();
        old.wait_until_left(None);
        let new = Inner::open(config.clone(), old.ledger.clone())?;
        if let Some(address) = new.leases.leased().first()
            && !new.has_made_the_bridge()?
        {
            let ranges: Vec<String> = new.subnets.iter().map(IpNet::to_string).collect();
            return Err(Error::RangesInUse {
                ranges: ranges.join(", "),
                address: *address,
            });
        }
        old.close_pool()?;
        for (pod_id, forwards) in old.host_ports.plugged() {
            new.host_ports.restore_plugged(&pod_id, forwards);
        }
        tracing::info!(ranges = ?new.subnets, "the pods' ranges changed");
        let mut inner = self
            .shared
            .inner
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *inner = Arc::new(new);
        Ok(())
    }

    /// A new pinned network namespace with lo up, a veth pair into the bridge, an address and a default route. Undoes its steps on failure.
    /// Ledgered under `pod_id`. A pod that is attached already gets what it has; one that is half attached (the daemon died) is done anew.
    pub async fn attach(&self, request: &AttachRequest) -> Result<(Attachment, Timing), Error> {
        self.attach_in(request, None).await
    }

    /// As [`Builtin::attach`], in a namespace that the caller has made for it.
    pub(crate) async fn attach_in(
        &self,
        request: &AttachRequest,
        given: Option<File>,
    ) -> Result<(Attachment, Timing), Error> {
        check_pod_id(&request.pod_id)?;
        let asked = request.clone();
        self.run(&request.pod_id, move |inner| inner.attach(&asked, given))
            .await
    }

    /// A pinned network namespace with lo up and nothing else, for a plugin to fill; the one that the pod has, where it has one. In the
    /// ledger under `pod_id`; [`Builtin::detach`] takes it away.
    pub(crate) async fn ensure_netns(
        &self,
        pod_id: &str,
        given: Option<File>,
    ) -> Result<PathBuf, Error> {
        check_pod_id(pod_id)?;
        let pod = pod_id.to_owned();
        self.run(pod_id, move |inner| inner.ensure_bare_netns(&pod, given))
            .await
    }

    /// Takes the host ports for a pod whose plugins will lead them: they are no other pod's of either network until [`Builtin::release_ports`].
    pub(crate) async fn claim_ports(&self, request: &AttachRequest) -> Result<(), Error> {
        let forwards = host_port::plugged_forwards(&request.port_mappings);
        if forwards.is_empty() {
            return Ok(());
        }
        let pod = request.pod_id.clone();
        self.run(&request.pod_id, move |inner| {
            // Plugins' rules come before who listens, as ours do. There it is said, not refused: what the plugin does is not ours to know.
            if let Err(error) = host_port::check_listeners(&forwards) {
                tracing::warn!(pod_id = pod, %error, "the plugin may take it from the one who listens");
            }
            inner.host_ports.reserve_plugged(&pod, &forwards)
        })
        .await
    }

    pub(crate) fn release_ports(&self, pod_id: &str) {
        self.inner().host_ports.release_plugged(pod_id);
    }

    /// For a daemon that starts: what plugins lead to the pods of the last run.
    pub(crate) fn restore_ports(&self, pod_id: &str, mappings: &[PortMapping]) {
        let forwards = host_port::plugged_forwards(mappings);
        if !forwards.is_empty() {
            self.inner().host_ports.restore_plugged(pod_id, forwards);
        }
    }

    /// Releases the address, removes link and namespace. Idempotent; works from the ledger alone.
    pub async fn detach(&self, pod_id: &str) -> Result<(), Error> {
        check_pod_id(pod_id)?;
        let pod = pod_id.to_owned();
        self.run(pod_id, move |inner| inner.detach(&pod)).await
    }

    /// What went through the interfaces of the pod, which must be attached.
    pub async fn statistics(&self, pod_id: &str) -> Result<Vec<InterfaceStatistics>, Error> {
        check_pod_id(pod_id)?;
        let path = self.netns_path(pod_id);
        // No turn is taken: counters are read while a pod is attached or let go of, too.
        self.workers
            .run(&format!("statistics of {pod_id}"), move || {
                statistics::of(&path)
            })
            .await
    }

    /// Puts the bridge and its rules in order where the bridge is there already: to be called when the daemon starts, and now and then, since
    /// firewalls flush what is not theirs (SEC-NET-07). Tells whether anything was amiss.
    pub async fn reconcile(&self) -> Result<bool, Error> {
        self.run(LEDGER_OWNER, |inner| inner.reconcile()).await
    }

    /// Looks whether other programs' rules keep the pods from the world: to be called when the daemon starts, and now and then.
    pub async fn look_at_firewall(&self) -> Result<(), Error> {
        self.run(LEDGER_OWNER, |inner| inner.look_at_firewall())
            .await
    }

    /// What [`Builtin::look_at_firewall`] found, and what to do about it.
    pub fn muted(&self) -> Option<String> {
        self.inner().muted.get()
    }

    /// Begins to fill the pool, where the configuration has one; attaches do so, too. After [`Builtin::remove_bridge_if_unused`] it stays empty.
    pub async fn fill_pool(&self) -> Result<(), Error> {
        self.run(LEDGER_OWNER, |inner| {
            inner.take_over()?;
            inner.fill_pool();
            Ok(())
        })
        .await
    }

    /// Waits until nothing is left of a pod that was detached: link and address go in their own time (some 50 ms).
    pub fn wait_until_left(&self, pod_id: &str) {
        self.inner().wait_until_left(Some(pod_id));
    }

    /// Namespaces that are ready for pods to come.
    pub fn pooled(&self) -> usize {
        self.inner().pool.ready()
    }

    /// Whether pods can be attached; the reason where not. Looks at the host's links and routes, changes nothing.
    pub fn ready(&self) -> Result<(), Error> {
        self.inner().check_bridge()
    }

    /// Removes the bridge where no pod is attached to it; tells whether it is gone. To be called when the daemon stops.
    pub async fn remove_bridge_if_unused(&self) -> Result<bool, Error> {
        self.run(LEDGER_OWNER, |inner| inner.remove_bridge_if_unused())
            .await
    }

    /// Where the pod's namespace is pinned while it is attached.
    pub fn netns_path(&self, pod_id: &str) -> PathBuf {
        self.shared.config.netns_dir.join(pod_id)
    }

    /// The pods' gateway: the bridge's address.
    pub fn gateway(&self) -> Ipv4Addr {
        self.inner().gateway
    }
}

impl Inner {
    fn open(config: Config, ledger: Ledger) -> Result<Self, Error> {
        let refuse = |key, why: String| Err(Error::Config { key, why });
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let name = &config.bridge;
        if name.is_empty()
            || name.len() > MAX_LINK_NAME_BYTES
            || name.starts_with('.')
            || !name.bytes().all(plain)
        {
            return refuse(
                "bridge",
                format!(
                    "{name:?}: a link's name has 1 to {MAX_LINK_NAME_BYTES} letters, digits and -_."
                ),
            );
        }
        let subnet = config.subnet;
        if subnet.prefix_len() > MAX_PREFIX_LEN {
            return refuse(
                "subnet",
                format!(
                    "{subnet} has no room for a gateway and a pod: /{MAX_PREFIX_LEN} is the smallest"
                ),
            );
        }
        let address = subnet.network();
        if address.is_loopback()
            || address.is_multicast()
            || address.is_link_local()
            || address.octets()[0] == 0
            || address.octets()[0] >= 240
        {
            return refuse(
                "subnet",
                format!(
                    "{subnet} is not a range for hosts: take a part of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
                ),
            );
        }
        if let Some(subnet) = config.subnet_v6 {
            let address = subnet.network();
            if subnet.prefix_len() > MAX_PREFIX_LEN_V6 {
                return refuse(
                    "subnet_v6",
                    format!(
                        "{subnet} has no room for a gateway and a pod: /{MAX_PREFIX_LEN_V6} is the smallest"
                    ),
                );
            }
            if subnet.prefix_len() < MIN_PREFIX_LEN_V6
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some()
            {
                return refuse(
                    "subnet_v6",
                    format!("{subnet} is not a range for hosts: take a /64 of fd00::/8"),
                );
            }
        }
        if let Some(mtu) = config.mtu
            && !(MIN_MTU..=65535).contains(&mtu)
        {
            return refuse("mtu", format!("{mtu}: {MIN_MTU} to 65535 bytes"));
        }
        if config.namespace_pool > MAX_NAMESPACE_POOL {
            return refuse(
                "namespace_pool",
                format!("{}: 0 to {MAX_NAMESPACE_POOL}", config.namespace_pool),
            );
        }
        for dir in [&config.netns_dir, &config.lease_dir] {
            berth_state::dir::ensure_private(dir).map_err(|source| Error::Dir {
                path: dir.clone(),
                source,
            })?;
        }
        let gateway = Ipv4Addr::from(u32::from(address) + 1);
        let subnets: Vec<IpNet> = std::iter::once(IpNet::V4(subnet))
            .chain(config.subnet_v6.map(IpNet::V6))
            .collect();
        let leases = lease::Leases::open(&config.lease_dir, subnets.clone())?;
        let inner = Self {
            table: table::Table::new(&config.bridge, subnets.clone(), config.masquerade),
            config,
            gateway,
            subnets,
            ledger,
            leases,
            bridge: bridge::Known::default(),
            host_ports: host_port::HostPorts::default(),
            ports: spoofing::Ports::default(),
            leaving: leaving::Leaving::default(),
            muted: firewall::Muted::default(),
            pool: pool::Pool::default(),
            table_turn: Mutex::default(),
        };
        inner.restore()?;
        Ok(inner)
    }

    fn table_turn(&self) -> MutexGuard<'_, ()> {
        self.table_turn
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What the rules say of the pods of the last run, by their leases.
    fn restore(&self) -> Result<(), Error> {
        let leaving = self.outstanding(LEDGER_OWNER)?;
        for address in self.leases.leased() {
            // A pod that was detached and whose address is not free yet.
            if leaving.contains(&Object::Lease(address)) {
                continue;
            }
            let Some(lease) = self.leases.read(address)? else {
                continue;
            };
            // One that nobody wrote to the end: its pod is made anew, or goes.
            if crate::check_pod_id(&lease.pod_id).is_err() {
                continue;
            }
            for object in self.outstanding(&lease.pod_id)? {
                if let Object::Link(link) = object {
                    self.ports.restore(&link, address);
                }
            }
            if !lease.forwards.is_empty() {
                self.host_ports
                    .restore(&lease.pod_id, address, lease.forwards);
            }
        }
        Ok(())
    }

    /// The bridge's addresses, one a range.
    fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.subnets.iter().copied().map(lease::gateway)
    }
}
