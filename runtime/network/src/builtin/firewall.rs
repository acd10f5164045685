//! Other programs' rules for forwarded packets. One chain that drops what it does not know is enough to keep pods from the world, whatever ours say: an
//! `accept` of nf_tables ends a chain, not the packet's way. So it can only be said, with what to do. Docker sets iptables' policy of FORWARD to
//! DROP, and firewalld ends its chain with a `reject`.
//!
//! Rules of the old iptables (`iptables-legacy`) are not seen: the kernel shows them by another interface.

use std::{
    cell::RefCell,
    io,
    sync::{Mutex, PoisonError},
};

use ipnet::IpNet;
use nix::libc;

use super::{
    Inner,
    nfnetlink::{Message, Socket},
    nftables::{self as nft, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6},
};
use crate::Error;

/// NF_INET_FORWARD
const FORWARD: u32 = 2;
/// NF_DROP
const DROP: u32 = 0;
/// Chains of other programs that are looked into.
const MAX_CHAINS: usize = 64;

/// What was found by the last look.
#[derive(Debug, Default)]
pub struct Muted(Mutex<Option<String>>);

impl Muted {
    pub fn get(&self) -> Option<String> {
        let muted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        muted.clone()
    }
}

/// A base chain at the hook for forwarded packets.
#[derive(Debug)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    drops_by_policy: bool,
}

impl Inner {
    /// Looks whether other programs' rules drop what the pods send to the world. What has changed is said in the log.
    pub fn look_at_firewall(&self) -> Result<(), Error> {
        let failed = |source| Error::Nftables {
            what: "look at other programs'",
            table: "for forwarded packets".to_owned(),
            source,
        };
        let mut socket = Socket::open().map_err(failed)?;
        let found = self.dropping(&mut socket).map_err(failed)?;
        let said = found.map(|chain| self.advice(&chain));
        let mut muted = self.muted.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *muted != said {
            match &said {
                Some(said) => tracing::warn!("{said}"),
                None => tracing::info!("no other program's rules drop the pods' packets any more"),
            }
            *muted = said;
        }
        Ok(())
    }

    fn advice(&self, chain: &Chain) -> String {
        let bridge = &self.config.bridge;
        let family = match chain.family {
            NFPROTO_IPV4 => "ip",
            NFPROTO_IPV6 => "ip6",
            _ => "inet",
        };
        let at = format!("{family} {} {}", chain.table, chain.name);
        let how = match chain.drops_by_policy {
            true => "has the policy drop",
            false => "ends with a rule that drops what is left",
        };
        format!(
            "another program's rules (chain {at}, which {how}) keep pods from the world and the world from host ports: let the bridge through with `nft insert rule {at} iifname {bridge} accept; nft insert rule {at} oifname {bridge} accept`"
        )
    }

    /// The first chain that drops what it does not know, and that knows nothing of our bridge or its ranges.
    fn dropping(&self, socket: &mut Socket) -> io::Result<Option<Chain>> {
        for family in [NFPROTO_IPV4, NFPROTO_INET, NFPROTO_IPV6] {
            if family == NFPROTO_IPV6 && self.config.subnet_v6.is_none() {
                continue;
            }
            for chain in forward_chains(socket, family)? {
                if !chain.drops_by_policy && !drops_at_the_end(socket, &chain)? {
                    continue;
                }
                if !self.is_known_in(socket, &chain)? {
                    return Ok(Some(chain));
                }
            }
        }
        Ok(None)
    }

    /// Whether any rule of the chain's table is about our bridge or our pods: then somebody has thought of them.
    fn is_known_in(&self, socket: &mut Socket, chain: &Chain) -> io::Result<bool> {
        let known = RefCell::new(false);
        let rules = nft::list_rules(&chain.table).of_family(chain.family);
        dump(socket, &rules, &mut || {}, &mut |rule| {
            for (name, data) in nft::expressions(rule) {
                if name == "cmp" && self.is_ours_to_compare(nft::compared(&data)) {
                    known.replace(true);
                }
            }
        })?;
        Ok(known.into_inner())
    }

    /// The bridge's name, as iptables and nft compare it, or what the addresses of a range begin with.
    fn is_ours_to_compare(&self, value: &[u8]) -> bool {
        let name = self.config.bridge.as_bytes();
        if value.split(|b| *b == 0).next() == Some(name) {
            return true;
        }
        self.subnets.iter().any(|subnet| {
            let octets = match subnet {
                IpNet::V4(subnet) => subnet.network().octets().to_vec(),
                IpNet::V6(subnet) => subnet.network().octets().to_vec(),
            };
            let significant = usize::from(subnet.prefix_len()).div_ceil(8).max(1);
            value == octets || value == &octets[..significant]
        })
    }
}

/// A family that the kernel does not have has no rules.
fn dump(
    socket: &mut Socket,
    request: &Message,
    begin: &mut dyn FnMut(),
    each: &mut dyn FnMut(&[u8]),
) -> io::Result<()> {
    match socket.dump(request, begin, each) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                // The table went between two looks, too.
                Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn forward_chains(socket: &mut Socket, family: u8) -> io::Result<Vec<Chain>> {
    let found = RefCell::new(Vec::new());
    dump(
        socket,
        &nft::list_chains().of_family(family),
        &mut || found.borrow_mut().clear(),
        &mut |attributes| {
            let Some(chain) = nft::base_chain(attributes) else {
                return;
            };
            let mut found = found.borrow_mut();
            if chain.hook == FORWARD && found.len() < MAX_CHAINS {
                found.push(Chain {
                    family,
                    table: chain.table,
                    name: chain.name,
                    drops_by_policy: chain.policy == DROP,
                });
            }
        },
    )?;
    Ok(found.into_inner())
}

/// Whether the chain's last rule drops or rejects whatever comes to it.
fn drops_at_the_end(socket: &mut Socket, chain: &Chain) -> io::Result<bool> {
    let last = RefCell::new(false);
    let rules = nft::list_rules_of(&chain.table, &chain.name).of_family(chain.family);
    dump(
        socket,
        &rules,
        &mut || *last.borrow_mut() = false,
        &mut |rule| {
            // A kernel that knows no filter by chain lists the whole table.
            if !nft::is_rule_of_chain(&chain.table, &chain.name, rule) {
                return;
            }
            let mut drops = false;
            let mut any = true;
            for (name, data) in nft::expressions(rule) {
                match name {
                    "counter" | "log" => {}
                    "reject" => drops = true,
                    "immediate" => drops = nft::is_drop(&data),
                    _ => any = false,
                }
            }
            last.replace(any && drops);
        },
    )?;
    Ok(last.into_inner())
}
