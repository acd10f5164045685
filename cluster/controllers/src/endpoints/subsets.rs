//! Endpoints' subsets in their one form: every address and port once, ports that have the same addresses together. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};

/// Ordered as numbers are: 10.0.0.9 is before 10.0.0.10.
type AddressKey = (Option<IpAddr>, String, String);
type PortKey = (String, String, i32, Option<String>);

fn address_key(address: &EndpointAddress) -> AddressKey {
    let target = address.target_ref.as_ref();
    let uid = target.and_then(|target| target.uid.clone());
    (
        address.ip.parse().ok(),
        address.ip.clone(),
        uid.unwrap_or_default(),
    )
}

fn port_key(port: &EndpointPort) -> PortKey {
    (
        port.name.clone().unwrap_or_default(),
        port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        port.port,
        port.app_protocol.clone(),
    )
}

/// The same endpoints in the one form. An address that is both ready and not ready for a port is not ready.
pub(crate) fn repacked(subsets: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let mut addresses: BTreeMap<AddressKey, &EndpointAddress> = BTreeMap::new();
    let mut ports: BTreeMap<PortKey, &EndpointPort> = BTreeMap::new();
    // None: addresses without any port.
    let mut ready: BTreeMap<Option<PortKey>, BTreeMap<AddressKey, bool>> = BTreeMap::new();
    for subset in subsets {
        let mut keys: Vec<Option<PortKey>> = Vec::new();
        for port in subset.ports.iter().flatten() {
            ports.entry(port_key(port)).or_insert(port);
            keys.push(Some(port_key(port)));
        }
        if keys.is_empty() {
            keys.push(None);
        }
        let all = [
            (true, subset.addresses.as_ref()),
            (false, subset.not_ready_addresses.as_ref()),
        ];
        for (is_ready, all) in all {
            for address in all.into_iter().flatten() {
                let key = address_key(address);
                addresses.entry(key.clone()).or_insert(address);
                for port in &keys {
                    let of_port = ready.entry(port.clone()).or_default();
                    let known = of_port.entry(key.clone()).or_insert(is_ready);
                    *known &= is_ready;
                }
            }
        }
    }
    let mut together: BTreeMap<BTreeMap<AddressKey, bool>, BTreeSet<PortKey>> = BTreeMap::new();
    for (port, addresses) in ready {
        together.entry(addresses).or_default().extend(port);
    }
    let subset = |(all, keys): (BTreeMap<AddressKey, bool>, BTreeSet<PortKey>)| {
        let these = |is_ready: bool| {
            let these: Vec<EndpointAddress> = all
                .iter()
                .filter(|(_, ready)| **ready == is_ready)
                .filter_map(|(key, _)| addresses.get(key).map(|address| (*address).clone()))
                .collect();
            (!these.is_empty()).then_some(these)
        };
        let ports: Vec<EndpointPort> = keys
            .iter()
            .filter_map(|key| ports.get(key).map(|port| (*port).clone()))
            .collect();
        EndpointSubset {
            addresses: these(true),
            not_ready_addresses: these(false),
            ports: (!ports.is_empty()).then_some(ports),
        }
    };
    together.into_iter().map(subset).collect()
}

fn count(addresses: Option<&Vec<EndpointAddress>>) -> usize {
    addresses.map_or(0, Vec::len)
}

pub(super) fn len(subsets: &[EndpointSubset]) -> usize {
    subsets
        .iter()
        .map(|subset| count(subset.addresses.as_ref()) + count(subset.not_ready_addresses.as_ref()))
        .sum()
}

/// Leaves `most` addresses, those that are ready first, of each subset its share. Whether there were more.
pub(super) fn truncate(subsets: &mut [EndpointSubset], most: usize) -> bool {
    if len(subsets) <= most {
        return false;
    }
    let ready: usize = subsets
        .iter()
        .map(|subset| count(subset.addresses.as_ref()))
        .sum();
    let all = len(subsets);
    let (room, of) = if ready > most {
        (most, ready)
    } else {
        (most - ready, all - ready)
    };
    let mut left = room;
    for subset in subsets {
        let cut = if ready > most {
            subset.not_ready_addresses = None;
            &mut subset.addresses
        } else {
            &mut subset.not_ready_addresses
        };
        let share = (count(cut.as_ref()) * room).div_ceil(of).min(left);
        if let Some(addresses) = cut {
            addresses.truncate(share);
            left -= addresses.len();
        }
        if count(cut.as_ref()) == 0 {
            *cut = None;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn subsets(value: &Value) -> Vec<EndpointSubset> {
        serde_json::from_value(value.clone()).expect("subsets")
    }

    #[test]
    fn ports_of_the_same_addresses_are_together() {
        let of = |ip: &str, port: u16, ready: bool| {
            let addresses = json!([{"ip": ip}]);
            let ports = json!([{"port": port, "protocol": "TCP"}]);
            if ready {
                json!({"addresses": addresses, "ports": ports})
            } else {
                json!({"notReadyAddresses": addresses, "ports": ports})
            }
        };
        let loose = json!([
            of("10.0.0.10", 80, true),
            of("10.0.0.10", 81, true),
            of("10.0.0.9", 80, true),
            of("10.0.0.9", 81, true),
            of("10.0.0.8", 80, false),
            of("10.0.0.8", 81, false),
            of("10.0.0.7", 82, true),
            of("10.0.0.7", 82, false),
        ]);
        let packed = repacked(&subsets(&loose));
        assert_eq!(
            json!(packed),
            json!([
                {"notReadyAddresses": [{"ip": "10.0.0.7"}], "ports": [{"port": 82, "protocol": "TCP"}]},
                {
                    "addresses": [{"ip": "10.0.0.9"}, {"ip": "10.0.0.10"}], "notReadyAddresses": [{"ip": "10.0.0.8"}],
                    "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}],
                },
            ])
        );
        assert_eq!(repacked(&packed), packed);
        let bare = subsets(&json!([{"addresses": [{"ip": "10.0.0.1"}]}]));
        assert_eq!(repacked(&bare), bare);
        assert!(repacked(&subsets(&json!([{"ports": [{"port": 80}]}]))).is_empty());
    }

    proptest! {
        #[test]
        fn whatever_the_order_there_is_one_form(
            endpoints in prop::collection::vec((0_u8..20, 0_u8..4, any::<bool>()), 0..60),
            swap in any::<prop::sample::Index>(),
        ) {
            let make = |all: &[(u8, u8, bool)]| -> Vec<EndpointSubset> {
                all.iter()
                    .map(|(ip, port, ready)| {
                        let addresses = json!([{"ip": format!("10.0.0.{ip}")}]);
                        let key = if *ready { "addresses" } else { "notReadyAddresses" };
                        serde_json::from_value(json!({key: addresses, "ports": [{"port": port, "protocol": "TCP"}]})).expect("a subset")
                    })
                    .collect()
            };
            let packed = repacked(&make(&endpoints));
            let mut other = endpoints.clone();
            if !other.is_empty() {
                let at = swap.index(other.len());
                other.rotate_left(at);
            }
            prop_assert_eq!(&repacked(&make(&other)), &packed);
            prop_assert_eq!(&repacked(&packed), &packed);
            let mut held = BTreeMap::new();
            for subset in &packed {
                for port in subset.ports.iter().flatten() {
                    for (ready, all) in [(true, &subset.addresses), (false, &subset.not_ready_addresses)] {
                        for address in all.iter().flatten() {
                            prop_assert!(held.insert((address.ip.clone(), port.port), ready).is_none(), "twice");
                        }
                    }
                }
            }
            let mut wanted = BTreeMap::new();
            for (ip, port, ready) in endpoints {
                *wanted.entry((format!("10.0.0.{ip}"), i32::from(port))).or_insert(true) &= ready;
            }
            prop_assert_eq!(held, wanted);
        }

        #[test]
        fn never_more_than_there_may_be_and_ready_ones_first(
            sizes in prop::collection::vec((0_usize..30, 0_usize..30), 0..8), most in 1_usize..60
        ) {
            let addresses = |count: usize| {
                (count > 0).then(|| (0..count).map(|at| EndpointAddress { ip: format!("10.0.0.{at}"), ..EndpointAddress::default() }).collect::<Vec<_>>())
            };
            let mut all: Vec<EndpointSubset> = sizes
                .iter()
                .map(|(ready, not)| EndpointSubset { addresses: addresses(*ready), not_ready_addresses: addresses(*not), ports: None })
                .collect();
            let before = len(&all);
            let ready: usize = sizes.iter().map(|(ready, _)| ready).sum();
            let cut = truncate(&mut all, most);
            prop_assert_eq!(cut, before > most);
            prop_assert_eq!(len(&all), before.min(most));
            let left: usize = all.iter().map(|subset| count(subset.addresses.as_ref())).sum();
            prop_assert_eq!(left, ready.min(most));
        }
    }
}
