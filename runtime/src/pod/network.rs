//! What a pod's configuration asks of its network.

use std::net::IpAddr;

use berth_network::{AttachRequest, Bandwidth, Dns, PortMapping, Protocol};
use berth_proto::cri;

use super::Pod;
use crate::error::Error;

/// Annotations of a pod for its bandwidth, as Kubernetes' traffic shaping has them.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// bits/s that Kubernetes takes for a bandwidth: 1k to 1P.
const BITS: std::ops::RangeInclusive<f64> = 1e3..=1e15;

/// What the pod asks for; an error names what of it can't be understood.
pub fn request(pod: &Pod) -> Result<AttachRequest, Error> {
    let config = &pod.config;
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    Ok(AttachRequest {
        pod_id: pod.id.clone(),
        aliases: vec![metadata.name.clone()],
        pod_name: metadata.name,
        pod_namespace: metadata.namespace,
        pod_uid: metadata.uid,
        port_mappings: port_mappings(config)?,
        bandwidth: bandwidth(config)?,
        dns: Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        },
        cgroup_path: Some(pod.cgroup_parent.clone()),
        annotations: config
            .annotations
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    })
}

fn port_mappings(config: &cri::PodSandboxConfig) -> Result<Vec<PortMapping>, Error> {
    let wrong = |why: String| Error::InvalidArgument(format!("port_mappings: {why}"));
    let port = |what: &str, port: i32| {
        u16::try_from(port)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong(format!("{what} {port} is not from 1 to 65535")))
    };
    let asked = config.port_mappings.iter().filter(|m| m.host_port != 0);
    asked
        .map(|mapping| {
            Ok(PortMapping {
                protocol: match mapping.protocol() {
                    cri::Protocol::Tcp => Protocol::Tcp,
                    cri::Protocol::Udp => Protocol::Udp,
                    cri::Protocol::Sctp => Protocol::Sctp,
                },
                container_port: port("container port", mapping.container_port)?,
                host_port: port("host port", mapping.host_port)?,
                host_ip: match mapping.host_ip.as_str() {
                    "" => None,
                    text => {
                        let ip: IpAddr = text.parse().map_err(|_| {
                            wrong(format!(
                                "host IP {} is no address",
                                berth_spec::quoted(text)
                            ))
                        })?;
                        Some(ip).filter(|ip| !ip.is_unspecified())
                    }
                },
            })
        })
        .collect()
}

fn bandwidth(config: &cri::PodSandboxConfig) -> Result<Option<Bandwidth>, Error> {
    let bits = |key: &str| {
        match config.annotations.get(key) {
        None => Ok(None),
        Some(text) => quantity(text)
            .filter(|bits| BITS.contains(bits))
            .map(|bits| Some(bits as u64))
            .ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "annotation {key}: {} is not a number of bits a second from 1k to 1P, such as \"10M\"",
                    berth_spec::quoted(text)
                ))
            }),
    }
    };
    let bandwidth = Bandwidth {
        ingress_bits: bits(INGRESS)?,
        egress_bits: bits(EGRESS)?,
    };
    Ok(Some(bandwidth).filter(|b| *b != Bandwidth::default()))
}

/// A quantity of Kubernetes: a decimal number with a suffix of ten or of two, or an exponent.
fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 13] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let (number, unit) = SUFFIXES
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1.0));
    // f64 also reads "inf", "nan" and the like.
    let plain = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-');
    if number.is_empty() || !number.bytes().all(plain) {
        return None;
    }
    number.parse::<f64>().ok().map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        for (text, bits) in [
            ("10M", Some(10e6)),
            ("1.5G", Some(1.5e9)),
            ("1Ki", Some(1024.0)),
            ("2000", Some(2000.0)),
            ("1e6", Some(1e6)),
            ("5000m", Some(5.0)),
            ("", None),
            ("M", None),
            ("inf", None),
            ("nanM", None),
            ("10 M", None),
            ("10Mbit", None),
        ] {
            assert_eq!(quantity(text), bits, "{text:?}");
        }
    }

    #[test]
    fn a_bandwidth_outside_kubernetes_range_is_refused_by_name() {
        let config = |text: &str| cri::PodSandboxConfig {
            annotations: [(EGRESS.to_owned(), text.to_owned())].into(),
            ..Default::default()
        };
        for text in ["1", "999", "2P", "-5M", "much"] {
            let error = bandwidth(&config(text)).unwrap_err().to_string();
            assert!(error.contains(EGRESS), "{error}");
        }
        assert_eq!(
            bandwidth(&config("8M")).unwrap(),
            Some(Bandwidth {
                ingress_bits: None,
                egress_bits: Some(8_000_000)
            })
        );
        assert_eq!(bandwidth(&Default::default()).unwrap(), None);
    }

    #[test]
    fn ports_without_a_host_port_ask_for_nothing_and_every_address_is_none() {
        let mapping = |host_port, host_ip: &str| cri::PortMapping {
            protocol: cri::Protocol::Udp.into(),
            container_port: 53,
            host_port,
            host_ip: host_ip.into(),
        };
        let config = cri::PodSandboxConfig {
            port_mappings: vec![
                mapping(0, ""),
                mapping(5353, "0.0.0.0"),
                mapping(5354, "::1"),
            ],
            ..Default::default()
        };
        let asked = port_mappings(&config).unwrap();
        assert_eq!(asked.len(), 2);
        assert_eq!(
            (asked[0].protocol, asked[0].host_port),
            (Protocol::Udp, 5353)
        );
        assert_eq!(asked[0].host_ip, None);
        assert_eq!(asked[1].host_ip, Some("::1".parse().unwrap()));
        for (port, ip) in [(70000, ""), (-1, ""), (1, "nowhere")] {
            let config = cri::PodSandboxConfig {
                port_mappings: vec![mapping(port, ip)],
                ..Default::default()
            };
            assert!(port_mappings(&config).is_err(), "{port} {ip}");
        }
    }
}
