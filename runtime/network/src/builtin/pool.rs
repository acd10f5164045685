//! Namespaces made ahead of need, each with lo up and a veth pair into the bridge: what is left to do for a pod is a pin, addresses and
//! routes.
//!
//! The pair keeps its names, drawn by chance, for its pod's life: a link that is given another costs as much as one that is made (the kernel waits
//! for all processors to have seen it, dev_change_name).
//!
//! A namespace of the pool has no pin: a descriptor of the daemon's holds it, so the kernel takes it apart, and the pair with it, when
//! the daemon dies, however it does. The pair's end in the host's namespace stands in the ledger, under [`LEDGER_OWNER`].
//!
//! # Synchronization
//! One thread at a time fills the pool; it lets pods that are being attached go first, since the kernel makes links one after the other (RTNL).

use std::{
    collections::HashSet,
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use berth_state::Object;
use nix::libc;

use super::{
    Inner,
    attach::{LO, host_mac, pod_mac},
    bridge::Bridge,
};
use crate::{
    Error, INTERFACE, LEDGER_OWNER,
    link::{self, Link, Veth},
    netlink::Socket,
    netns::{self, Home, Made},
};

/// How long the filler lets pods go first before it looks again.
const COURTESY: Duration = Duration::from_millis(5);
/// A namespace that waits for its pod.
#[derive(Debug)]
pub struct Member {
    made: Made,
    /// Index of eth0 in it.
    eth0: u32,
    host_name: String,
    host_index: u32,
    bridge: u32,
}

#[derive(Debug, Default)]
pub struct Pool {
    state: Mutex<State>,
    /// The filler has ended.
    filled: Condvar,
    attaching: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Member>,
    /// Of those that are ready, or being made.
    names: HashSet<String>,
    filling: bool,
    /// The daemon stops: nothing is made any more.
    closed: bool,
}

/// A pod is being attached as long as this is there.
#[derive(Debug)]
pub struct Attaching<'a>(&'a AtomicUsize);

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn attaching(&self) -> Attaching<'_> {
        self.attaching.fetch_add(1, Ordering::Relaxed);
        Attaching(&self.attaching)
    }

    pub fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    fn take(&self) -> Option<Member> {
        self.lock().ready.pop()
    }

    /// Whether a link in the ledger of the network is one that waits here.
    pub fn has(&self, link: &str) -> bool {
        self.lock().names.contains(link)
    }

    fn forget(&self, link: &str) {
        self.lock().names.remove(link);
    }
}

impl Inner {
    /// Begins to fill the pool where it is not full, and nobody does already.
    pub fn fill_pool(self: &Arc<Self>) {
        let mut state = self.pool.lock();
        if state.filling || state.closed || state.ready.len() >= self.config.namespace_pool {
            return;
        }
        let inner = self.clone();
        let worker = thread::Builder::new()
            .name("berth-net-pool".into())
            .stack_size(crate::worker::STACK_BYTES)
            .spawn(move || inner.fill());
        match worker {
            Ok(_) => state.filling = true,
            Err(error) => tracing::warn!(%error, "start a thread for the pool of namespaces"),
        }
    }

    fn fill(&self) {
        let result = loop {
            while self.pool.attaching.load(Ordering::Relaxed) > 0 && !self.pool.lock().closed {
                thread::sleep(COURTESY);
            }
            let name = {
                let mut state = self.pool.lock();
                if state.closed || state.ready.len() >= self.config.namespace_pool {
                    break Ok(());
                }
                let chance = RandomState::new().hash_one(0u8);
                let name = format!("berth{:010x}", chance & 0xff_ffff_ffff);
                state.names.insert(name.clone());
                name
            };
            match self.make_member(&name) {
                Ok(member) => self.pool.lock().ready.push(member),
                Err(error) => {
                    self.pool.forget(&name);
                    break Err(error);
                }
            }
        };
        if let Err(error) = result {
            tracing::warn!(%error, "make a namespace ahead of need; pods make their own until it works");
        }
        self.pool.lock().filling = false;
        self.pool.filled.notify_all();
    }

    fn make_member(&self, name: &str) -> Result<Member, Error> {
        let mut host = Socket::open().map_err(self.netlink("open a netlink socket for"))?;
        let bridge = self.ensure_bridge(&mut host)?;
        let home = Home::remember()?;
        let mut made = netns::make_unpinned(&home, Path::new("of the pool"))?;
        let at = |what| {
            let link = name.to_owned();
            move |source| Error::Netlink { what, link, source }
        };
        let object = Object::Link(name.to_owned());
        self.intend(LEDGER_OWNER, &object)?;
        let made_links = (|| {
            let mac = pod_mac(&[]);
            let veth = Veth {
                host_name: name,
                // The pod's come with the pod.
                host_mac: mac,
                host_up: false,
                bridge: bridge.index,
                mtu: bridge.mtu,
                peer_name: INTERFACE,
                peer_mac: mac,
                peer_netns: made.file.as_raw_fd(),
            };
            veth.create(&mut host).map_err(at("make link"))?;
            netns::sysctl_ipv6(name, "accept_ra", "0")?;
            let gone = || io::Error::from_raw_os_error(libc::ENODEV);
            let host_link = Link::find(&mut host, name).map_err(at("look for"))?;
            let host_link = host_link.ok_or_else(gone).map_err(at("look for"))?;
            let eth0 = Link::find(&mut made.socket, INTERFACE).map_err(at("look for"))?;
            let eth0 = eth0.ok_or_else(gone).map_err(at("look for"))?;
            made.socket
                .change(vec![link::up(LO)])
                .map_err(at("bring up lo behind"))?;
            Ok((host_link.index, eth0.index))
        })();
        match made_links {
            Ok((host_index, eth0)) => Ok(Member {
                made,
                eth0,
                host_name: name.to_owned(),
                host_index,
                bridge: bridge.index,
            }),
            Err(error) => {
                if let Ok(Some(link)) = Link::find(&mut host, name)
                    && link.kind == "veth"
                    && let Err(error) = Link::delete(&mut host, link.index)
                {
                    tracing::warn!(link = name, %error, "removing a link of the pool");
                    return Err(at("remove link")(error));
                }
                self.strike(LEDGER_OWNER, &object)?;
                Err(error)
            }
        }
    }

    /// A member whose pair is in this bridge. One of a bridge that somebody removed is of no use.
    pub fn take_member(&self, bridge: &Bridge) -> Option<Member> {
        loop {
            let member = self.pool.take()?;
            if member.bridge == bridge.index {
                return Some(member);
            }
            self.discard_member(member);
        }
    }

    /// Makes the member the pod's, in whose ledger its link stands by now: it is up and marked as the pod's afterwards, the pod's end is down
    /// still. Returns the pod's namespace and its eth0.
    pub fn adopt(
        &self,
        host: &mut Socket,
        member: Member,
        pod_id: &str,
        addresses: &[IpAddr],
    ) -> Result<(Made, u32), Error> {
        let at = |source| Error::Netlink {
            what: "make the pod's, of the pool, link",
            link: member.host_name.clone(),
            source,
        };
        host.change(vec![
            (link::set_mac(member.host_index, host_mac(pod_id)), 0),
            link::up(member.host_index),
        ])
        .map_err(at)?;
        self.strike(LEDGER_OWNER, &Object::Link(member.host_name.clone()))?;
        self.pool.forget(&member.host_name);
        let Member { mut made, eth0, .. } = member;
        made.socket
            .change(vec![(link::set_mac(eth0, pod_mac(addresses)), 0)])
            .map_err(|source| Error::Netlink {
                what: "give its MAC to eth0 of",
                link: pod_id.to_owned(),
                source,
            })?;
        Ok((made, eth0))
    }

    /// Empties the pool for good, and waits for what fills it.
    pub fn close_pool(&self) -> Result<(), Error> {
        let members = {
            let mut state = self.pool.lock();
            state.closed = true;
            while state.filling {
                state = self
                    .pool
                    .filled
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::take(&mut state.ready)
        };
        let discarded = self.discard(members);
        // Those of members that broke while they were adopted are for whoever finishes what is in the ledger.
        self.pool.lock().names.clear();
        discarded
    }

    fn discard(&self, members: Vec<Member>) -> Result<(), Error> {
        let names: Vec<String> = members.iter().map(|m| m.host_name.clone()).collect();
        // The kernel takes all apart at once.
        drop(members);
        let mut host = None;
        self.wait_for_kernel(
            &mut host,
            &names.iter().map(String::as_str).collect::<Vec<_>>(),
        );
        for name in names {
            self.pool.forget(&name);
            self.finish(&mut host, "", &Object::Link(name))?;
        }
        Ok(())
    }

    /// A member that could not be adopted.
    fn discard_member(&self, member: Member) {
        if let Err(error) = self.discard(vec![member]) {
            tracing::warn!(%error, "removing a namespace of the pool");
        }
    }
}

impl Member {
    pub fn netns(&self) -> &File {
        &self.made.file
    }

    /// The pair's end in the host's namespace.
    pub fn link(&self) -> &str {
        &self.host_name
    }
}
