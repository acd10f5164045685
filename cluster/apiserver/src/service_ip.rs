//! The addresses of Services: `spec.clusterIP` and `spec.clusterIPs`, each given out once, and node ports.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use berth_kinds::{Invalid, Reason};
use serde_json::Value;

use crate::{api::Api, catalog::Resource, failure::Failure, object};

/// Kubernetes' own: 30000-32767.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// Random tries before all are gone through.
const TRIES: usize = 64;

/// Those that are given out and not yet seen in the cache, beside those of the cache.
#[derive(Debug)]
pub struct ServiceIps {
    network: Ipv4Addr,
    prefix: u8,
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    addresses: BTreeSet<Ipv4Addr>,
    ports: BTreeSet<u16>,
}

/// Given back when it is dropped, unless it is kept.
#[derive(Debug, Default)]
#[must_use]
pub struct Reserved {
    addresses: Vec<Ipv4Addr>,
    ports: Vec<u16>,
    pending: Option<Arc<Mutex<Pending>>>,
}

impl Reserved {
    /// The object that has them is in the store: they stay given out until it is gone.
    pub fn keep(mut self) {
        self.pending = None;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            let mut pending = pending.lock().unwrap_or_else(PoisonError::into_inner);
            for address in &self.addresses {
                pending.addresses.remove(address);
            }
            for port in &self.ports {
                pending.ports.remove(port);
            }
        }
    }
}

impl ServiceIps {
    /// `network`/`prefix` is the range of Service addresses.
    pub fn new(network: Ipv4Addr, prefix: u8) -> Self {
        Self {
            network,
            prefix,
            pending: Arc::default(),
        }
    }

    /// The first address of the range: the Service `kubernetes`' own.
    pub fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    fn has(&self, address: Ipv4Addr) -> bool {
        let bits = 32 - u32::from(self.prefix);
        let offset = address.to_bits().wrapping_sub(self.network.to_bits());
        // neither the network's own nor the last
        offset > 0 && offset < (1_u32 << bits) - 1
    }

    /// Those of the services that are there, at the start.
    pub fn learn(&self, api: &Api) {
        let (entries, _) = api.cache.shard("services/specs").list("", "");
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let service = entry.value();
            pending.addresses.extend(addresses(&service));
            pending.ports.extend(ports(&service));
        }
    }

    /// Gives a Service what it lacks, and refuses what another has.
    ///
    /// # Errors
    /// 422 where an address or a port is taken or out of range; 500 where none is left.
    pub fn reserve(
        &self,
        _api: &Api,
        resource: &Resource,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<Reserved, Failure> {
        if !resource.is("", "services") {
            return Ok(Reserved::default());
        }
        let name = object::name(service).to_owned();
        let kind = object::text(service, "/spec/type").to_owned();
        let invalid = |field: &str, message: String| {
            Failure::invalid(
                resource,
                &name,
                vec![Invalid {
                    field: field.into(),
                    reason: Reason::Invalid,
                    message,
                }],
            )
        };
        let mut reserved = Reserved {
            addresses: Vec::new(),
            ports: Vec::new(),
            pending: Some(self.pending.clone()),
        };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if kind == "ExternalName" {
            let spec = object::part(service, "spec");
            spec.remove("clusterIP");
            spec.remove("clusterIPs");
            drop(pending);
            return Ok(reserved);
        }
        let had: BTreeSet<Ipv4Addr> = old.map(|old| addresses(old).collect()).unwrap_or_default();
        let asked = object::text(service, "/spec/clusterIP").to_owned();
        let address = match asked.as_str() {
            "None" => None,
            "" => Some(
                self.free(&pending)
                    .ok_or_else(|| Failure::internal("no Service address is free"))?,
            ),
            text => {
                let address: Ipv4Addr = text.parse().map_err(|_| {
                    invalid(
                        "spec.clusterIPs[0]",
                        format!("Invalid value: {text:?}: must be a valid IPv4 address: this server has no IPv6 range"),
                    )
                })?;
                if !self.has(address) {
                    return Err(invalid(
                        "spec.clusterIPs",
                        format!(
                            "Invalid value: [{text:?}]: failed to allocate IP {text}: the provided IP ({text}) is not in the valid range. The range of valid IPs is {}/{}",
                            self.network, self.prefix
                        ),
                    ));
                }
                if !had.contains(&address) && pending.addresses.contains(&address) {
                    return Err(invalid(
                        "spec.clusterIPs",
                        format!(
                            "Invalid value: [{text:?}]: failed to allocate IP {text}: provided IP is already allocated"
                        ),
                    ));
                }
                Some(address)
            }
        };
        let spec = object::part(service, "spec");
        if let Some(address) = address {
            if !had.contains(&address) && pending.addresses.insert(address) {
                reserved.addresses.push(address);
            }
            spec.insert("clusterIP".into(), address.to_string().into());
            spec.insert("clusterIPs".into(), vec![address.to_string()].into());
        } else {
            spec.insert("clusterIPs".into(), vec!["None"].into());
        }
        if spec.get("ipFamilies").is_none() {
            spec.insert("ipFamilies".into(), vec!["IPv4"].into());
        }
        if spec.get("ipFamilyPolicy").is_none() {
            spec.insert("ipFamilyPolicy".into(), "SingleStack".into());
        }
        let result = if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
            node_ports(service, old, &mut pending, &mut reserved)
        } else {
            Ok(())
        };
        drop(pending);
        result.map_err(|(field, message)| invalid(&field, message))?;
        Ok(reserved)
    }

    /// It is gone.
    pub fn release(&self, resource: &Resource, service: &Value) {
        if !resource.is("", "services") {
            return;
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses(service) {
            pending.addresses.remove(&address);
        }
        for port in ports(service) {
            pending.ports.remove(&port);
        }
    }

    fn free(&self, pending: &Pending) -> Option<Ipv4Addr> {
        let size = (1_u32 << (32 - u32::from(self.prefix))) - 2;
        let at = |offset: u32| Ipv4Addr::from_bits(self.network.to_bits() + 1 + offset);
        // The first ones are for those who ask for an address by name (kubernetes, DNS), as upstream has it.
        let low = (size / 16).clamp(16, 256).min(size / 2);
        for _ in 0..TRIES {
            let address = at(rand::random_range(low..size));
            if !pending.addresses.contains(&address) {
                return Some(address);
            }
        }
        (1..size)
            .rev()
            .map(at)
            .find(|address| !pending.addresses.contains(address))
    }
}

/// An update of a Service that says nothing of its addresses keeps what it had.
pub fn keep(resource: &Resource, service: &mut Value, old: &Value) {
    let external = |service: &Value| object::text(service, "/spec/type") == "ExternalName";
    if !resource.is("", "services") || external(service) || external(old) {
        return;
    }
    for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if let Some(before) = old.pointer(&format!("/spec/{name}")) {
            let spec = object::part(service, "spec");
            let said = spec
                .get(name)
                .is_some_and(|value| value.as_str() != Some("") && !value.is_null());
            if !said {
                spec.insert(name.into(), before.clone());
            }
        }
    }
}

fn addresses(service: &Value) -> impl Iterator<Item = Ipv4Addr> {
    object::text(service, "/spec/clusterIP")
        .parse()
        .ok()
        .into_iter()
}

fn ports(service: &Value) -> impl Iterator<Item = u16> {
    service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|port| u16::try_from(port.get("nodePort")?.as_u64()?).ok())
        .filter(|port| *port > 0)
}

fn node_ports(
    service: &mut Value,
    old: Option<&Value>,
    pending: &mut Pending,
    reserved: &mut Reserved,
) -> Result<(), (String, String)> {
    let had: BTreeSet<u16> = old.map(|old| ports(old).collect()).unwrap_or_default();
    let before: Vec<Value> = old
        .and_then(|old| old.pointer("/spec/ports")?.as_array().cloned())
        .unwrap_or_default();
    let Some(entries) = service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
    else {
        return Ok(());
    };
    for (at, entry) in entries.iter_mut().enumerate() {
        let field = format!("spec.ports[{at}].nodePort");
        let mut asked = entry.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
        if asked == 0 {
            // one that says nothing keeps what it had
            asked = before
                .iter()
                .find(|old| {
                    old.get("port") == entry.get("port")
                        && old.get("protocol") == entry.get("protocol")
                })
                .and_then(|old| old.get("nodePort")?.as_u64())
                .unwrap_or(0);
        }
        let port = if asked == 0 {
            let free = (0..TRIES)
                .map(|_| rand::random_range(NODE_PORTS))
                .chain(NODE_PORTS)
                .find(|port| !pending.ports.contains(port));
            free.ok_or_else(|| {
                (
                    field.clone(),
                    "Invalid value: 0: no port is free".to_owned(),
                )
            })?
        } else {
            let port = u16::try_from(asked).unwrap_or(0);
            if !NODE_PORTS.contains(&port) {
                return Err((
                    field,
                    format!(
                        "Invalid value: {asked}: provided port is not in the valid range. The range of valid ports is {}-{}",
                        NODE_PORTS.start(),
                        NODE_PORTS.end()
                    ),
                ));
            }
            let mine = had.contains(&port) || reserved.ports.contains(&port);
            if !mine && pending.ports.contains(&port) {
                return Err((
                    field,
                    format!("Invalid value: {port}: provided port is already allocated"),
                ));
            }
            port
        };
        if pending.ports.insert(port) && !had.contains(&port) {
            reserved.ports.push(port);
        }
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("nodePort".into(), port.into());
        }
    }
    Ok(())
}
