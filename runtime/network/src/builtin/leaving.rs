//! What of a pod may go in its own time.
//!
//! A pod is detached once nothing leads to it: its host ports are closed and its namespace has lost its pin. The kernel then takes the
//! namespace apart with the veth pair in it, for all that died meanwhile at once, and waits tens of milliseconds for all processors to have seen
//! it (RCU). That nobody needs to wait for. Until the link is gone and the address free they stand in the ledger, under [`LEDGER_OWNER`] instead
//! of the pod, so an address is never given out while its last link is there, and the next daemon finishes what this one could not.
//!
//! # Synchronization
//! One thread at a time sees pods off; it begins with the first and ends with the last. Those who need a name or an address that is leaving
//! wait for it ([`Inner::wait_until_left`]).

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use berth_state::Object;

use super::{Inner, MAX_LINK_NAME_BYTES, attach::host_mac, conntrack, host_port::Target};
use crate::{Error, LEDGER_OWNER, link::Link, netlink::Socket, netns};

/// The kernel takes namespaces apart one batch after the other; a link that is there after that long belongs to one that something still holds.
const KERNEL_PATIENCE: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(5);
/// For those who wait: many times what a hundred pods take.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// A pod of which nothing but these is left.
#[derive(Debug)]
struct Departure {
    pod_id: String,
    link: Option<String>,
    addresses: Vec<IpAddr>,
    targets: Vec<Target>,
}

#[derive(Debug, Default)]
pub struct Leaving {
    state: Mutex<State>,
    /// Held while what was handed over is finished: twice would take an address from the pod that has it since.
    finishing: Mutex<()>,
    /// What the daemon before this one left has been finished.
    taken_over: Mutex<bool>,
    /// A batch has left.
    left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: Vec<Departure>,
    /// Those of the queue and of the batch that is being seen off.
    pods: HashSet<String>,
    at_work: bool,
}

impl Leaving {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + LEAVE_PATIENCE;
        let mut state = self.lock();
        while !until(&state) {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else {
                tracing::warn!("pods that were detached are still leaving");
                return;
            };
            (state, _) = self
                .left
                .wait_timeout(state, rest)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Inner {
    /// Closes the pod's ports and takes its pin away; the rest leaves by itself. Idempotent; works from the ledger alone.
    pub fn detach(self: &Arc<Self>, pod_id: &str) -> Result<(), Error> {
        self.take_over()?;
        let targets = self.close_ports(pod_id)?;
        let (mut link, mut addresses) = (None, Vec::new());
        let mut first_error = None;
        for object in self.network_objects(pod_id)?.into_iter().rev() {
            let result = match &object {
                Object::Netns(path) => {
                    netns::unpin(path).and_then(|()| self.strike(pod_id, &object))
                }
                Object::Link(name) => self.hand_over_link(pod_id, name, &object).map(|ours| {
                    link = ours.then(|| name.clone());
                }),
                Object::Lease(address) => self.hand_over(pod_id, &object).map(|()| {
                    addresses.push(*address);
                }),
                _ => Ok(()),
            };
            // One that can't be removed does not keep the others; it stays in the ledger.
            if let Err(error) = result {
                tracing::warn!(pod_id, %error, "detaching");
                first_error.get_or_insert(error);
            }
        }
        self.host_ports.release(pod_id);
        if link.is_some() || !addresses.is_empty() || !targets.is_empty() {
            self.see_off(Departure {
                pod_id: pod_id.to_owned(),
                link,
                addresses,
                targets,
            });
        }
        first_error.map_or(Ok(()), Err)
    }

    /// `false` where there is no such link any more, or somebody else's: nothing is left to be done about it then.
    fn hand_over_link(&self, pod_id: &str, name: &str, object: &Object) -> Result<bool, Error> {
        let at = |what| {
            move |source| Error::Netlink {
                what,
                link: name.to_owned(),
                source,
            }
        };
        let mut host = Socket::open().map_err(at("open a netlink socket for"))?;
        match Link::find(&mut host, name).map_err(at("look for link"))? {
            Some(link) if link.mac == host_mac(pod_id) => {
                self.hand_over(pod_id, object)?;
                Ok(true)
            }
            // The daemon died between writing the name down and finding that somebody else had it.
            Some(_) => {
                tracing::warn!(link = name, pod_id, "leaving a link that is not this pod's");
                self.strike(pod_id, object)?;
                Ok(false)
            }
            None => {
                self.strike(pod_id, object)?;
                Ok(false)
            }
        }
    }

    /// In the ledger, the object is the network's from now on.
    fn hand_over(&self, pod_id: &str, object: &Object) -> Result<(), Error> {
        self.intend(LEDGER_OWNER, object)?;
        berth_failpoint::site!("network.leaving.handed_over").map_err(|source| Error::Ledger {
            owner: LEDGER_OWNER.to_owned(),
            source,
        })?;
        self.strike(pod_id, object)
    }

    fn see_off(self: &Arc<Self>, departure: Departure) {
        let mut state = self.leaving.lock();
        state.pods.insert(departure.pod_id.clone());
        state.queue.push(departure);
        if state.at_work {
            return;
        }
        let inner = self.clone();
        let worker = thread::Builder::new()
            .name("berth-net-leave".into())
            .stack_size(crate::worker::STACK_BYTES)
            .spawn(move || inner.see_all_off());
        match worker {
            Ok(_) => state.at_work = true,
            // The ledger has them, and the next one takes them along.
            Err(error) => tracing::error!(%error, "start a thread for pods that leave"),
        }
    }

    fn see_all_off(&self) {
        loop {
            let batch = {
                let mut state = self.leaving.lock();
                let batch = std::mem::take(&mut state.queue);
                if batch.is_empty() {
                    state.pods.clear();
                    state.at_work = false;
                    self.leaving.left.notify_all();
                    return;
                }
                batch
            };
            self.see_batch_off(&batch);
            let mut state = self.leaving.lock();
            for departure in &batch {
                state.pods.remove(&departure.pod_id);
            }
            self.leaving.left.notify_all();
        }
    }

    fn see_batch_off(&self, batch: &[Departure]) {
        let links: Vec<&str> = batch.iter().filter_map(|d| d.link.as_deref()).collect();
        let mut host = None;
        self.wait_for_kernel(&mut host, &links);
        if let Err(error) = self.forget_links(links.iter().copied()) {
            tracing::warn!(%error, "what pods that are gone were allowed to send; made anew with the next look");
        }
        let _finishing = self.finishing();
        for departure in batch {
            let mut gone = conntrack::forget(&departure.targets, &[]);
            let link = departure.link.iter().cloned().map(Object::Link);
            let leases = departure.addresses.iter().copied().map(Object::Lease);
            for object in link.chain(leases) {
                if gone.is_ok() {
                    gone = self.finish(&mut host, &departure.pod_id, &object);
                }
            }
            if let Err(error) = gone {
                tracing::error!(pod_id = departure.pod_id, %error, "what is left of the pod's network is in the ledger, and tried again when the daemon stops or starts");
            }
        }
    }

    /// Until the links are gone, or can be expected not to go by themselves.
    pub(super) fn wait_for_kernel(&self, host: &mut Option<Socket>, links: &[&str]) {
        let deadline = Instant::now() + KERNEL_PATIENCE;
        for link in links {
            loop {
                if host.is_none() {
                    *host = Socket::open().ok();
                }
                let there = host
                    .as_mut()
                    .is_some_and(|host| matches!(Link::find(host, link), Ok(Some(_))));
                if !there || Instant::now() > deadline {
                    break;
                }
                thread::sleep(POLL);
            }
        }
    }

    /// Removes the last of an object that was handed over, and strikes it off.
    pub(super) fn finish(
        &self,
        host: &mut Option<Socket>,
        pod_id: &str,
        object: &Object,
    ) -> Result<(), Error> {
        match object {
            Object::Link(name) => {
                // The bridge of another configuration is none that a pod left.
                self.remove_link(host, name, |link| link.kind == "veth")?;
                berth_failpoint::site!("network.link.removed").map_err(|source| {
                    Error::Netlink {
                        what: "remove link",
                        link: name.clone(),
                        source,
                    }
                })?;
            }
            Object::Lease(address) => {
                self.leases.free(*address, pod_id)?;
                berth_failpoint::site!("network.lease.freed").map_err(|source| Error::Lease {
                    what: "free",
                    path: self.config.lease_dir.join(address.to_string()),
                    source,
                })?;
            }
            _ => return Ok(()),
        }
        self.strike(LEDGER_OWNER, object)
    }

    /// Removes the link of this name where it is ours; one that is gone is no error. `host` is opened with the first.
    pub(super) fn remove_link(
        &self,
        host: &mut Option<Socket>,
        name: &str,
        is_ours: impl Fn(&Link) -> bool,
    ) -> Result<(), Error> {
        let at = |what| {
            move |source| Error::Netlink {
                what,
                link: name.to_owned(),
                source,
            }
        };
        let host = match host {
            Some(host) => host,
            None => host.insert(Socket::open().map_err(at("open a netlink socket for"))?),
        };
        match Link::find(host, name).map_err(at("look for link"))? {
            Some(link) if is_ours(&link) => {
                Link::delete(host, link.index).map_err(at("remove link"))
            }
            Some(_) => {
                tracing::warn!(link = name, "leaving a link that is not ours");
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Waits until the pod has left; `None`: until all have.
    pub fn wait_until_left(&self, pod_id: Option<&str>) {
        self.leaving.wait(|state| match pod_id {
            Some(pod_id) => !state.pods.contains(pod_id),
            None => !state.at_work,
        });
    }

    /// Whether pods are on their way out, whose addresses will be free.
    pub fn any_leaving(&self) -> bool {
        self.leaving.lock().at_work
    }

    fn finishing(&self) -> MutexGuard<'_, ()> {
        self.leaving
            .finishing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Once: what the daemon before this one handed over and did not finish. Before that, no name and no address may be taken.
    pub fn take_over(&self) -> Result<(), Error> {
        let mut done = self
            .leaving
            .taken_over
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !*done {
            self.finish_departures()?;
            *done = true;
        }
        Ok(())
    }

    /// What an earlier daemon, or a failure, left of pods that were detached.
    pub fn finish_departures(&self) -> Result<(), Error> {
        self.wait_until_left(None);
        let _finishing = self.finishing();
        let mut host = None;
        let bridge = Object::Link(self.config.bridge.clone());
        for object in self.outstanding(LEDGER_OWNER)? {
            let pod_id = match &object {
                // A bridge of another configuration is one as well.
                Object::Link(name) if object != bridge && is_pods(name) && !self.pool.has(name) => {
                    self.wait_for_kernel(&mut host, &[name]);
                    String::new()
                }
                Object::Lease(address) => self.leases.owner(*address)?.unwrap_or_default(),
                _ => continue,
            };
            self.finish(&mut host, &pod_id, &object)?;
        }
        Ok(())
    }
}

/// Whether a link in the ledger of the network is one that a pod left, or a pool of an earlier daemon: not a bridge of another configuration.
fn is_pods(name: &str) -> bool {
    name.len() == MAX_LINK_NAME_BYTES && name.starts_with("berth")
}
