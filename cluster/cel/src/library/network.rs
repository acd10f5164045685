//! Kubernetes' URLs, addresses and ranges of addresses.

use std::{collections::BTreeMap, net::IpAddr, rc::Rc};

use url::Url;

use super::{Function, Made, global, method, wrong};
use crate::{Error, Shape, Val};

const URL: Shape = Shape::Other("kubernetes.URL");
const IP: Shape = Shape::Other("net.IP");
const CIDR: Shape = Shape::Other("net.CIDR");

pub(super) static FUNCTIONS: &[Function] = &[
    global("url", 1, URL, |_, all, _| {
        match &all[0] {
        Val::Text(text) => parse_url(text)
            .map(|url| Val::Url(Rc::new(((**text).to_owned(), url))))
            .ok_or_else(|| Error::run(format!("URL parse error during conversion from string: parse {:?}: invalid URI for request", &**text))),
        _ => wrong(),
    }
    }),
    global("isURL", 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Text(text) => Ok(Val::Bool(parse_url(text).is_some())),
        _ => wrong(),
    }),
    method("getScheme", 1, 1, Shape::Text, |_, all, _| {
        of_url(all, |url| match url.scheme() {
            PATH_ONLY => String::new(),
            scheme => scheme.to_owned(),
        })
    }),
    method("getHost", 1, 1, Shape::Text, |_, all, _| {
        of_url(all, |url| {
            match (url.scheme(), url.host_str(), url.port()) {
                (PATH_ONLY, ..) | (_, None, _) => String::new(),
                (_, Some(host), None) => host.to_owned(),
                (_, Some(host), Some(port)) => format!("{host}:{port}"),
            }
        })
    }),
    method("getHostname", 1, 1, Shape::Text, |_, all, _| {
        of_url(all, |url| match url.scheme() {
            PATH_ONLY => String::new(),
            _ => {
                let host = url.host_str().unwrap_or_default();
                host.trim_matches(['[', ']']).to_owned()
            }
        })
    }),
    method("getPort", 1, 1, Shape::Text, |_, all, _| {
        of_url(all, |url| {
            url.port().map(|port| port.to_string()).unwrap_or_default()
        })
    }),
    method("getEscapedPath", 1, 1, Shape::Text, |_, all, _| {
        of_url(all, |url| url.path().to_owned())
    }),
    method("getQuery", 1, 1, Shape::Any, |machine, all, _| {
        let Val::Url(url) = &all[0] else {
            return wrong();
        };
        machine.steps.of_text(url.0.len())?;
        let mut query: BTreeMap<String, Vec<Val<'_>>> = BTreeMap::new();
        for (name, value) in url.1.query_pairs() {
            query
                .entry(name.into_owned())
                .or_default()
                .push(Val::text(value.into_owned()));
        }
        let entries = query
            .into_iter()
            .map(|(name, values)| (Val::text(name), Val::list(values)))
            .collect();
        Ok(Val::Map(Rc::new(entries)))
    }),
    global("ip", 1, IP, |_, all, _| match &all[0] {
        Val::Text(text) => parse_ip(text).map(Val::Ip).ok_or_else(|| {
            Error::run(format!(
                "IP Address {:?} parse error during conversion from string",
                &**text
            ))
        }),
        _ => wrong(),
    }),
    global("isIP", 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Text(text) => Ok(Val::Bool(parse_ip(text).is_some())),
        _ => wrong(),
    }),
    global("ip.isCanonical", 1, Shape::Bool, |_, all, _| {
        match &all[0] {
            Val::Text(text) => match parse_ip(text) {
                Some(address) => Ok(Val::Bool(address.to_string() == **text)),
                None => Err(Error::run(format!(
                    "IP Address {:?} parse error during conversion from string",
                    &**text
                ))),
            },
            _ => wrong(),
        }
    }),
    method("family", 1, 1, Shape::Int, |_, all, _| match &all[0] {
        Val::Ip(IpAddr::V4(_)) => Ok(Val::Int(4)),
        Val::Ip(IpAddr::V6(_)) => Ok(Val::Int(6)),
        _ => wrong(),
    }),
    method("isUnspecified", 1, 1, Shape::Bool, |_, all, _| {
        of_ip(all, |address| address.is_unspecified())
    }),
    method("isLoopback", 1, 1, Shape::Bool, |_, all, _| {
        of_ip(all, |address| address.is_loopback())
    }),
    method("isLinkLocalMulticast", 1, 1, Shape::Bool, |_, all, _| {
        of_ip(all, link_local_multicast)
    }),
    method("isLinkLocalUnicast", 1, 1, Shape::Bool, |_, all, _| {
        of_ip(all, link_local_unicast)
    }),
    method("isGlobalUnicast", 1, 1, Shape::Bool, |_, all, _| {
        of_ip(all, |address| {
            let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
            !(broadcast
                || address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || link_local_unicast(address))
        })
    }),
    global("cidr", 1, CIDR, |_, all, _| match &all[0] {
        Val::Text(text) => parse_cidr(text).ok_or_else(|| {
            Error::run(format!(
                "network address parse error during conversion from string: {:?}",
                &**text
            ))
        }),
        _ => wrong(),
    }),
    global("isCIDR", 1, Shape::Bool, |_, all, _| match &all[0] {
        Val::Text(text) => Ok(Val::Bool(parse_cidr(text).is_some())),
        _ => wrong(),
    }),
    method("containsIP", 2, 2, Shape::Bool, |_, all, _| {
        let address = match &all[1] {
            Val::Ip(address) => Some(*address),
            Val::Text(text) => parse_ip(text),
            _ => return wrong(),
        };
        match (&all[0], address) {
            (Val::Cidr(network, prefix), Some(address)) => {
                Ok(Val::Bool(within(*network, *prefix, address)))
            }
            (Val::Cidr(..), None) => Err(Error::run(
                "IP Address parse error during conversion from string",
            )),
            _ => wrong(),
        }
    }),
    method("containsCIDR", 2, 2, Shape::Bool, |_, all, _| {
        let other = match &all[1] {
            Val::Text(text) => parse_cidr(text).ok_or_else(|| {
                Error::run("network address parse error during conversion from string")
            })?,
            other => other.clone(),
        };
        match (&all[0], other) {
            (Val::Cidr(network, prefix), Val::Cidr(other, longer)) => Ok(Val::Bool(
                *prefix <= longer && within(*network, *prefix, other),
            )),
            _ => wrong(),
        }
    }),
    method("ip", 1, 1, IP, |_, all, _| match &all[0] {
        Val::Cidr(address, _) => Ok(Val::Ip(*address)),
        _ => wrong(),
    }),
    method("masked", 1, 1, CIDR, |_, all, _| match &all[0] {
        Val::Cidr(address, prefix) => Ok(Val::Cidr(masked(*address, *prefix), *prefix)),
        _ => wrong(),
    }),
    method("prefixLength", 1, 1, Shape::Int, |_, all, _| {
        match &all[0] {
            Val::Cidr(_, prefix) => Ok(Val::Int(i64::from(*prefix))),
            _ => wrong(),
        }
    }),
];

/// What has no scheme is read as if it had this one.
const PATH_ONLY: &str = "path";

/// Whole, or an absolute path.
fn parse_url(text: &str) -> Option<Url> {
    if text.starts_with('/') {
        return Url::parse(&format!("{PATH_ONLY}:{text}")).ok();
    }
    Url::parse(text)
        .ok()
        .filter(|url| url.scheme() != PATH_ONLY)
}

fn of_url<'a>(all: &[Val<'a>], part: fn(&Url) -> String) -> Made<'a> {
    match &all[0] {
        Val::Url(url) => Ok(Val::text(part(&url.1))),
        _ => wrong(),
    }
}

fn of_ip<'a>(all: &[Val<'a>], test: fn(&IpAddr) -> bool) -> Made<'a> {
    match &all[0] {
        Val::Ip(address) => Ok(Val::Bool(test(address))),
        _ => wrong(),
    }
}

/// No zone, and no IPv4 address in IPv6's form, as upstream.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

fn parse_cidr(text: &str) -> Option<Val<'static>> {
    let (address, prefix) = text.split_once('/')?;
    let plain =
        prefix.chars().all(|c| c.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
    let (address, prefix) = (parse_ip(address)?, prefix.parse::<u8>().ok()?);
    let longest = if address.is_ipv4() { 32 } else { 128 };
    (plain && prefix <= longest).then_some(Val::Cidr(address, prefix))
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

fn within(network: IpAddr, prefix: u8, address: IpAddr) -> bool {
    network.is_ipv4() == address.is_ipv4() && masked(network, prefix) == masked(address, prefix)
}

fn link_local_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn link_local_multicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}
