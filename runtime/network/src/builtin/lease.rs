//! Addresses, one file each: the file's name is the address, its first line the pod that has it, each further one a host port that leads to it.
//!
//! ```text
//! 4f0d…
//! tcp 0.0.0.0:8080 80
//! ```

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    hash::{BuildHasher, RandomState},
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use berth_state::{Ledger, Object};
use ipnet::IpNet;
use nix::libc;

use super::host_port::Forward;
use crate::Error;

/// A pod id and, at some 30 bytes each, more host ports than there are ports.
const MAX_LEASE_BYTES: u64 = 4 << 20;

/// Files that nobody leased, put into the directory by hand while the daemon runs: more of them are not looked past.
const MAX_FOREIGN: u128 = 1024;

/// # Synchronization
/// One daemon a directory (its lock file), so the set in memory is what the directory holds; O_EXCL makes sure of it.
#[derive(Debug)]
pub struct Leases {
    dir: PathBuf,
    subnets: Vec<IpNet>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    leased: HashSet<IpAddr>,
    /// Where the search goes on, in each range: an address that was given back is not given out again at once, while peers and caches
    /// still know its old pod.
    next: Vec<u128>,
}

/// What a lease says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lease {
    /// Empty where its daemon died before writing it.
    pub pod_id: String,
    pub forwards: Vec<Forward>,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(subnet: IpNet, bits: u128) -> IpAddr {
    match subnet {
        IpNet::V4(_) => Ipv4Addr::from(bits as u32).into(),
        IpNet::V6(_) => Ipv6Addr::from(bits).into(),
    }
}

/// The address that the bridge has: the first.
pub fn gateway(subnet: IpNet) -> IpAddr {
    address(subnet, bits(subnet.network()) + 1)
}

/// First and number of the pods' addresses: all but the network's own, the gateway's, and the last (IPv4's broadcast).
fn range(subnet: IpNet) -> (u128, u128) {
    let (first, last) = (bits(subnet.network()), bits(subnet.broadcast()));
    (first + 2, last - first - 2)
}

impl Leases {
    pub fn open(dir: &Path, subnets: Vec<IpNet>) -> Result<Self, Error> {
        let at = |source| Error::Lease {
            what: "list",
            path: dir.to_owned(),
            source,
        };
        let mut leased = HashSet::new();
        for entry in fs::read_dir(dir).map_err(at)? {
            match entry.map_err(at)?.file_name().to_str().map(str::parse) {
                Some(Ok(address)) => drop(leased.insert(address)),
                _ => {
                    tracing::warn!(dir = %dir.display(), "a file among the leases is not named by an address")
                }
            }
        }
        // A random start: after a restart the same holds. 64 bits are enough to be random in.
        let next = subnets
            .iter()
            .map(|_| RandomState::new().hash_one(0u8).into())
            .collect();
        Ok(Self {
            dir: dir.to_owned(),
            subnets,
            state: Mutex::new(State { leased, next }),
        })
    }

    /// The addresses that are leased.
    pub fn leased(&self) -> Vec<IpAddr> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.leased.iter().copied().collect()
    }

    /// Gives `pod_id` an address of each range, with the host ports that lead to it, written down before.
    pub fn allocate(
        &self,
        ledger: &Ledger,
        pod_id: &str,
        forwards: &[Forward],
    ) -> Result<Vec<IpAddr>, Error> {
        (0..self.subnets.len())
            .map(|n| self.allocate_one(ledger, pod_id, n, forwards))
            .collect()
    }

    fn allocate_one(
        &self,
        ledger: &Ledger,
        pod_id: &str,
        n: usize,
        forwards: &[Forward],
    ) -> Result<IpAddr, Error> {
        let in_ledger = |source| Error::Ledger {
            owner: pod_id.to_owned(),
            source,
        };
        let subnet = self.subnets[n];
        let (first, count) = range(subnet);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let start = state.next[n] % count;
        // One of these many is free, if any is.
        let steps = count.min(state.leased.len() as u128 + MAX_FOREIGN);
        for step in 0..steps {
            let at = (start + step) % count;
            let address = address(subnet, first + at);
            if state.leased.contains(&address) {
                continue;
            }
            let object = Object::Lease(address);
            ledger.intend(pod_id, &object).map_err(in_ledger)?;
            if self.create(address, pod_id, forwards)? {
                state.leased.insert(address);
                state.next[n] = at + 1;
                return Ok(address);
            }
            // Somebody put a file there by hand.
            ledger.strike(pod_id, &object).map_err(in_ledger)?;
            state.leased.insert(address);
        }
        Err(Error::Exhausted {
            subnet,
            leased: usize::try_from(steps).unwrap_or(usize::MAX),
        })
    }

    /// `false` where the address has a file already.
    fn create(&self, address: IpAddr, pod_id: &str, forwards: &[Forward]) -> Result<bool, Error> {
        let path = &self.path(address);
        let at = |what| {
            move |source| Error::Lease {
                what,
                path: path.clone(),
                source,
            }
        };
        berth_failpoint::site!("network.lease.intended").map_err(at("make"))?;
        let mut file = match OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(at("make")(error)),
        };
        berth_failpoint::site!("network.lease.made").map_err(at("write"))?;
        let mut text = format!("{pod_id}\n");
        for forward in forwards {
            if forward.host.is_ipv4() == address.is_ipv4() {
                text.push_str(&format!("{forward}\n"));
            }
        }
        file.write_all(text.as_bytes()).map_err(at("write"))?;
        Ok(true)
    }

    /// Gives the address back where it is this pod's. Needs no space on the disk.
    pub fn free(&self, address: IpAddr, pod_id: &str) -> Result<(), Error> {
        let path = self.path(address);
        // An empty one is of a daemon that died before it wrote the pod down: the ledger knows whose it is.
        let ours = matches!(self.owner(address)?.as_deref(), Some(owner) if owner == pod_id || owner.is_empty());
        if ours {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Lease {
                        what: "remove",
                        path,
                        source,
                    });
                }
                _ => {}
            }
        }
        if ours || !path.exists() {
            self.state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .leased
                .remove(&address);
        }
        Ok(())
    }

    /// The pod that has the address; empty where its daemon died before writing it.
    pub fn owner(&self, address: IpAddr) -> Result<Option<String>, Error> {
        Ok(self.read(address)?.map(|lease| lease.pod_id))
    }

    /// What the address's lease says. Lines that are cut short or not ours are passed over.
    pub fn read(&self, address: IpAddr) -> Result<Option<Lease>, Error> {
        let path = self.path(address);
        let mut text = String::new();
        let read = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .and_then(|file| file.take(MAX_LEASE_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => {
                let mut lines = text.lines();
                Ok(Some(Lease {
                    pod_id: lines.next().unwrap_or_default().trim_end().to_owned(),
                    forwards: lines.filter_map(Forward::parse).collect(),
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Lease {
                what: "read",
                path,
                source,
            }),
        }
    }

    fn path(&self, address: IpAddr) -> PathBuf {
        self.dir.join(address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(subnet: &str) -> (tempfile::TempDir, Ledger, Leases) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("leases")).unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let leases =
            Leases::open(&dir.path().join("leases"), vec![subnet.parse().unwrap()]).unwrap();
        (dir, ledger, leases)
    }

    fn allocate(leases: &Leases, ledger: &Ledger, pod_id: &str) -> Result<IpAddr, Error> {
        Ok(leases.allocate(ledger, pod_id, &[])?[0])
    }

    #[test]
    fn addresses_are_unique_inside_the_range_and_survive_reopening_until_none_is_left_rel_05() {
        let (dir, ledger, leases) = setup("10.9.8.0/28");
        let mut given = HashSet::new();
        for n in 0..6 {
            assert!(given.insert(allocate(&leases, &ledger, &format!("pod{n}")).unwrap()));
        }
        let leases = Leases::open(
            &dir.path().join("leases"),
            vec!["10.9.8.0/28".parse().unwrap()],
        )
        .unwrap();
        for n in 6..13 {
            assert!(given.insert(allocate(&leases, &ledger, &format!("pod{n}")).unwrap()));
        }
        let hosts: HashSet<IpAddr> = (2..15).map(|n| Ipv4Addr::new(10, 9, 8, n).into()).collect();
        assert_eq!(given, hosts);
        let error = allocate(&leases, &ledger, "more").unwrap_err();
        assert!(error.to_string().contains("all 13 are leased"), "{error}");
        assert!(ledger.outstanding("more").unwrap().is_empty());
    }

    #[test]
    fn a_range_of_one_serves_one_pod_after_the_other() {
        let (dir, ledger, leases) = setup("10.9.8.0/30");
        for n in 0..50 {
            let pod = format!("pod{n}");
            let address = allocate(&leases, &ledger, &pod).unwrap();
            assert_eq!(address, IpAddr::from([10, 9, 8, 2]));
            assert!(matches!(
                allocate(&leases, &ledger, "other"),
                Err(Error::Exhausted { .. })
            ));
            assert_eq!(
                leases.owner(address).unwrap().as_deref(),
                Some(pod.as_str())
            );
            leases.free(address, "other").unwrap();
            assert!(
                leases.owner(address).unwrap().is_some(),
                "another pod's address stays"
            );
            leases.free(address, &pod).unwrap();
            leases.free(address, &pod).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path().join("leases")).unwrap().count(), 0);
    }

    #[test]
    fn an_address_that_was_given_back_is_not_the_next_one_given_out() {
        let (_dir, ledger, leases) = setup("10.9.8.0/24");
        let mut last = None;
        for _ in 0..100 {
            let address = allocate(&leases, &ledger, "pod").unwrap();
            assert_ne!(Some(address), last);
            leases.free(address, "pod").unwrap();
            last = Some(address);
        }
    }

    #[test]
    fn a_foreign_file_costs_its_address_and_a_lease_cut_short_is_given_back() {
        let (dir, ledger, leases) = setup("10.9.8.0/29");
        fs::write(dir.path().join("leases/10.9.8.3"), "by hand").unwrap();
        let given: Vec<_> = (0..4)
            .map(|n| allocate(&leases, &ledger, &format!("pod{n}")).unwrap())
            .collect();
        assert!(!given.contains(&IpAddr::from([10, 9, 8, 3])));
        assert!(matches!(
            allocate(&leases, &ledger, "more"),
            Err(Error::Exhausted { .. })
        ));
        fs::write(dir.path().join(format!("leases/{}", given[0])), "").unwrap();
        leases.free(given[0], "pod0").unwrap();
        assert_eq!(allocate(&leases, &ledger, "more").unwrap(), given[0]);
    }

    #[test]
    fn a_pod_gets_an_address_of_each_family_and_host_ports_stand_in_the_lease_of_theirs() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("leases")).unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger")).unwrap();
        let open = || {
            Leases::open(
                &dir.path().join("leases"),
                vec![
                    "10.9.8.0/24".parse().unwrap(),
                    "fd00:9::/64".parse().unwrap(),
                ],
            )
            .unwrap()
        };
        let leases = open();
        let forwards: Vec<Forward> = ["tcp 0.0.0.0:80 8080", "udp [::]:53 5353"]
            .iter()
            .map(|line| Forward::parse(line).unwrap())
            .collect();
        let mut given = HashSet::new();
        for pod in ["pod-a", "pod-b"] {
            let addresses = leases.allocate(&ledger, pod, &forwards).unwrap();
            assert!(
                addresses[0].is_ipv4() && addresses[1].is_ipv6(),
                "{addresses:?}"
            );
            for (n, address) in addresses.into_iter().enumerate() {
                assert!(given.insert(address));
                let lease = open().read(address).unwrap().unwrap();
                assert_eq!(
                    (lease.pod_id.as_str(), &lease.forwards[..]),
                    (pod, &forwards[n..=n])
                );
            }
        }
        let mut leased = open().leased();
        leased.sort();
        let mut given: Vec<_> = given.into_iter().collect();
        given.sort();
        assert_eq!(leased, given);
        for pod in ["pod-a", "pod-b"] {
            for address in &given {
                leases.free(*address, pod).unwrap();
            }
        }
        assert!(open().leased().is_empty());
    }

    #[test]
    fn a_small_range_of_ipv6_is_exhausted_as_one_of_ipv4_is() {
        let (_dir, ledger, leases) = setup("fd00:9::/126");
        let address = allocate(&leases, &ledger, "pod").unwrap();
        assert_eq!(address, "fd00:9::2".parse::<IpAddr>().unwrap());
        assert!(matches!(
            allocate(&leases, &ledger, "more"),
            Err(Error::Exhausted { .. })
        ));
    }
}
