//! Results of ADD in every version, and from one version to another.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::version::Version;

/// Interfaces, addresses and routes of one result. A node's widest pods have some dozen.
const MAX_MEMBERS: usize = 1024;

/// What a result says of the pod's place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Addresses of the pod's interface; IPv4 first, as Kubernetes' runtimes have it.
    pub ips: Vec<IpAddr>,
    /// The host's end of the pod's link, where the result names one.
    pub host_link: Option<String>,
}

/// Reads what ADD answered. The value that is returned is in the version that was asked for, whichever the plugin took.
pub fn read(stdout: &[u8], asked: Version) -> Result<Value, String> {
    let value: Value = serde_json::from_slice(stdout).map_err(|e| match stdout.is_empty() {
        true => "it answered nothing".to_owned(),
        false => format!(
            "{e}, in {:?}",
            super::process::printable(stdout, MAX_SHOWN_BYTES)
        ),
    })?;
    let Value::Object(map) = &value else {
        return Err("it is no JSON object".into());
    };
    let version = version_of(map, asked)?;
    let parts = Parts::read(map, version)?;
    if version == asked {
        return Ok(value);
    }
    Ok(parts.write(asked))
}

/// Of rubbish, as much is shown.
const MAX_SHOWN_BYTES: usize = 200;

fn version_of(map: &Map<String, Value>, asked: Version) -> Result<Version, String> {
    match map.get("cniVersion") {
        // Plugins older than the key.
        None | Some(Value::Null) if map.contains_key("ip4") || map.contains_key("ip6") => {
            Ok(Version::V0_2_0)
        }
        None | Some(Value::Null) => Ok(asked),
        Some(Value::String(text)) if text.is_empty() => Ok(asked),
        Some(Value::String(text)) => Version::parse(text).ok_or_else(|| {
            let shown: String = text.chars().take(20).collect();
            format!("it is of version {shown:?}, which is not known here (asked was {asked})")
        }),
        Some(_) => Err("its cniVersion is no string".into()),
    }
}

/// What the pod gets of a result in version `version`.
pub fn outcome(result: &Value, version: Version, interface: &str) -> Result<Outcome, String> {
    let Value::Object(map) = result else {
        return Err("it is no JSON object".into());
    };
    let parts = Parts::read(map, version_of(map, version)?)?;
    let (mut ips, mut others): (Vec<IpAddr>, Vec<IpAddr>) = (Vec::new(), Vec::new());
    for ip in &parts.ips {
        let named = match ip.interface {
            None => true,
            Some(index) => {
                let to = parts.interfaces.get(index).ok_or_else(|| {
                    format!(
                        "{} is of interface {index}, and there are {}",
                        ip.address,
                        parts.interfaces.len()
                    )
                })?;
                text(to, "name") == interface
            }
        };
        let into = match named {
            true => &mut ips,
            false => &mut others,
        };
        if !into.contains(&ip.address.addr()) {
            into.push(ip.address.addr());
        }
    }
    // Some plugins name only the host's end of the link, and give the addresses to that.
    if ips.is_empty() {
        ips = others;
    }
    // Stable: within a family the plugin's order stays.
    ips.sort_by_key(IpAddr::is_ipv6);
    // The other end stands before the pod's; where the pod's is not told, it is the last. (Others of the host's are bridges and the like.)
    let of_host = |i: &&Map<String, Value>| text(i, "sandbox").is_empty();
    let own = parts
        .interfaces
        .iter()
        .position(|i| text(i, "name") == interface && !of_host(&i));
    let host_link = parts.interfaces[..own.unwrap_or(parts.interfaces.len())]
        .iter()
        .rfind(of_host)
        .map(|i| text(i, "name").to_owned())
        .filter(|name| !name.is_empty() && name.len() <= 15 && !name.contains('/'));
    Ok(Outcome { ips, host_link })
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// A result without its version's form.
#[derive(Debug)]
struct Parts {
    interfaces: Vec<Map<String, Value>>,
    ips: Vec<Ip>,
    routes: Vec<Value>,
    dns: Option<Value>,
}

#[derive(Debug)]
struct Ip {
    address: IpNet,
    gateway: Option<IpAddr>,
    interface: Option<usize>,
}

impl Parts {
    fn read(map: &Map<String, Value>, version: Version) -> Result<Self, String> {
        let mut parts = Self {
            interfaces: vec![],
            ips: vec![],
            routes: vec![],
            dns: map.get("dns").filter(|dns| dns.is_object()).cloned(),
        };
        if !version.has_lists() {
            for key in ["ip4", "ip6"] {
                let Some(one) = map.get(key).filter(|v| !v.is_null()) else {
                    continue;
                };
                parts.ips.push(Ip {
                    address: address(one.get("ip"), "ip")?,
                    gateway: gateway(one)?,
                    interface: None,
                });
                parts.routes.extend(list(one.get("routes"), "routes")?);
            }
            return Ok(parts);
        }
        for interface in list(map.get("interfaces"), "interfaces")? {
            match interface {
                Value::Object(interface) => parts.interfaces.push(interface),
                _ => return Err("a member of interfaces is no object".into()),
            }
        }
        for ip in list(map.get("ips"), "ips")? {
            let interface = match ip.get("interface") {
                None | Some(Value::Null) => None,
                // Some say -1 for none.
                Some(index) => match index.as_i64() {
                    Some(-1) => None,
                    Some(index) if index >= 0 => Some(index as usize),
                    _ => return Err("the interface of an address is no index".into()),
                },
            };
            parts.ips.push(Ip {
                address: address(ip.get("address"), "address")?,
                gateway: gateway(&ip)?,
                interface,
            });
        }
        parts.routes = list(map.get("routes"), "routes")?;
        Ok(parts)
    }

    fn write(&self, version: Version) -> Value {
        let mut map = Map::new();
        map.insert("cniVersion".into(), json!(version));
        if version.has_lists() {
            let ips: Vec<_> = self
                .ips
                .iter()
                .map(|ip| {
                    let mut one = Map::new();
                    if version < Version::V1_0_0 {
                        one.insert("version".into(), json!(family(&ip.address)));
                    }
                    one.insert("address".into(), json!(ip.address.to_string()));
                    if let Some(gateway) = ip.gateway {
                        one.insert("gateway".into(), json!(gateway));
                    }
                    if let Some(interface) = ip.interface {
                        one.insert("interface".into(), json!(interface));
                    }
                    Value::Object(one)
                })
                .collect();
            if !self.interfaces.is_empty() {
                map.insert("interfaces".into(), json!(self.interfaces));
            }
            map.insert("ips".into(), json!(ips));
            if !self.routes.is_empty() {
                map.insert("routes".into(), json!(self.routes));
            }
        } else {
            for (key, v6) in [("ip4", false), ("ip6", true)] {
                // There is room for one of each family.
                let of_family = |ip: &&Ip| ip.address.addr().is_ipv6() == v6;
                let Some(ip) = self.ips.iter().find(of_family) else {
                    continue;
                };
                let routes: Vec<_> = self
                    .routes
                    .iter()
                    .filter(|route| {
                        let to = route.get("dst").and_then(Value::as_str).unwrap_or_default();
                        to.contains(':') == v6
                    })
                    .collect();
                let mut one = Map::new();
                one.insert("ip".into(), json!(ip.address.to_string()));
                if let Some(gateway) = ip.gateway {
                    one.insert("gateway".into(), json!(gateway));
                }
                if !routes.is_empty() {
                    one.insert("routes".into(), json!(routes));
                }
                map.insert(key.into(), Value::Object(one));
            }
        }
        if let Some(dns) = &self.dns {
            map.insert("dns".into(), dns.clone());
        }
        Value::Object(map)
    }
}

fn family(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "4",
        IpNet::V6(_) => "6",
    }
}

fn list(value: Option<&Value>, key: &str) -> Result<Vec<Value>, String> {
    match value {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Array(all)) if all.len() <= MAX_MEMBERS => Ok(all.clone()),
        Some(Value::Array(all)) => Err(format!(
            "{key} has {} members, at most {MAX_MEMBERS} are taken",
            all.len()
        )),
        Some(_) => Err(format!("{key} is no list")),
    }
}

/// An address that a pod can have, with the length of its prefix.
fn address(value: Option<&Value>, key: &str) -> Result<IpNet, String> {
    let text = value
        .and_then(Value::as_str)
        .ok_or_else(|| format!("an address without its {key}"))?;
    let shown: String = text.chars().take(60).collect();
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("{shown:?} is no address with a prefix length"))?;
    let ip = net.addr();
    let odd = match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.octets()[0] == 0 || ip.octets()[0] >= 240,
        IpAddr::V6(_) => false,
    };
    if odd || ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() {
        return Err(format!("{shown:?} is no address that a pod can have"));
    }
    Ok(net)
}

fn gateway(value: &Value) -> Result<Option<IpAddr>, String> {
    match value.get("gateway") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => text
            .parse()
            .map(Some)
            .map_err(|_| "a gateway is no address".into()),
        Some(_) => Err("a gateway is no string".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(version: &str) -> Value {
        json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth1234", "mac": "55:44:33:22:11:11"},
                {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/x"},
                {"name": "eth1", "sandbox": "/run/netns/x"},
                {"name": "ifb0"},
            ],
            "ips": [
                {"version": "6", "address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
                {"version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
                {"version": "4", "address": "10.9.0.5/16", "interface": 3},
                {"version": "4", "address": "10.8.0.5/16", "interface": 0},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.1.0.1"]},
            "unknown": {"kept": true},
        })
    }

    #[test]
    fn the_pods_addresses_are_those_of_its_interface_ipv4_first() {
        let read = read(full("0.4.0").to_string().as_bytes(), Version::V0_4_0).unwrap();
        assert_eq!(read["unknown"]["kept"], true, "what is not known is kept");
        let outcome = outcome(&read, Version::V0_4_0, "eth0").unwrap();
        assert_eq!(
            outcome.ips,
            [
                "10.1.0.5".parse::<IpAddr>().unwrap(),
                "fd00::5".parse().unwrap()
            ]
        );
        assert_eq!(outcome.host_link.as_deref(), Some("veth1234"));
    }

    #[test]
    fn every_version_goes_into_every_other_with_the_pods_addresses() {
        for from in Version::ALL {
            let said = match from.has_lists() {
                true => full(from.as_str()),
                false => json!({
                    "cniVersion": from,
                    "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
                    "ip6": {"ip": "fd00::5/64", "routes": [{"dst": "::/0"}]},
                }),
            };
            for to in Version::ALL {
                let read = read(said.to_string().as_bytes(), to).unwrap();
                assert_eq!(read["cniVersion"], to.as_str(), "{from} to {to}");
                let outcome = outcome(&read, to, "eth0").unwrap();
                assert_eq!(outcome.ips[0].to_string(), "10.1.0.5", "{from} to {to}");
                assert!(outcome.ips.contains(&"fd00::5".parse().unwrap()) || !to.has_lists());
                if from.has_lists() && !to.has_lists() {
                    assert_eq!(read["ip6"]["ip"], "fd00::5/64");
                }
                if to.has_lists() && to < Version::V1_0_0 {
                    assert!(read["ips"][0].get("version").is_some(), "{from} to {to}");
                }
                if to >= Version::V1_0_0 && from < Version::V1_0_0 {
                    assert!(read["ips"][0].get("version").is_none(), "{from} to {to}");
                }
                assert_eq!(
                    read.get("routes").is_some(),
                    to.has_lists(),
                    "{from} to {to}"
                );
            }
        }
    }

    #[test]
    fn results_that_can_not_be_are_refused_sec_net_02() {
        let ips = |ips: Value| json!({"cniVersion": "1.0.0", "ips": ips}).to_string();
        for (said, says) in [
            (String::new(), "nothing"),
            ("hello".into(), "hello"),
            ("[]".into(), "no JSON object"),
            ("{\"cniVersion\":\"9.9.9\"}".into(), "9.9.9"),
            ("{\"cniVersion\":3}".into(), "no string"),
            (ips(json!({})), "no list"),
            (ips(json!([{}])), "without"),
            (ips(json!([{"address": "10.0.0.300/24"}])), "10.0.0.300"),
            (ips(json!([{"address": "10.0.0.3"}])), "prefix"),
            (ips(json!([{"address": "0.0.0.0/0"}])), "a pod can have"),
            (ips(json!([{"address": "127.0.0.1/8"}])), "a pod can have"),
            (ips(json!([{"address": "224.0.0.1/8"}])), "a pod can have"),
            (
                ips(json!([{"address": "255.255.255.255/8"}])),
                "a pod can have",
            ),
            (ips(json!([{"address": "::1/128"}])), "a pod can have"),
            (
                ips(json!([{"address": "10.0.0.3/24", "gateway": "x"}])),
                "gateway",
            ),
            (
                ips(json!([{"address": "10.0.0.3/24", "interface": "x"}])),
                "index",
            ),
            (
                ips(json!(vec![json!({"address": "10.0.0.3/24"}); 2000])),
                "members",
            ),
        ] {
            let error = read(said.as_bytes(), Version::V1_0_0).unwrap_err();
            assert!(error.contains(says), "{said:.80}: {error}");
        }
        let beyond = ips(json!([{"address": "10.0.0.3/24", "interface": 7}]));
        let value = read(beyond.as_bytes(), Version::V1_0_0).unwrap();
        assert!(outcome(&value, Version::V1_0_0, "eth0").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes, Version::V0_4_0);
        }

        #[test]
        fn any_addresses_survive_the_way_through_all_versions_with_lists(v4 in 0x0a00_0001u32..0x0aff_fffe, v6 in 1u64.., prefix in 8u8..=32) {
            let v4 = std::net::Ipv4Addr::from(v4);
            let v6 = std::net::Ipv6Addr::from((0xfd00u128 << 112) | u128::from(v6));
            let said = json!({"cniVersion": "0.3.1", "ips": [
                {"version": "4", "address": format!("{v4}/{prefix}")}, {"version": "6", "address": format!("{v6}/64")}]});
            let mut text = said.to_string();
            for version in [Version::V1_1_0, Version::V0_4_0, Version::V1_0_0, Version::V0_2_0, Version::V0_3_1] {
                let value = read(text.as_bytes(), version).unwrap();
                let outcome = outcome(&value, version, "eth0").unwrap();
                prop_assert_eq!(outcome.ips, vec![IpAddr::from(v4), IpAddr::from(v6)]);
                text = value.to_string();
            }
        }
    }
}
