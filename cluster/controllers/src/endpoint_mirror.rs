//! EndpointSlices for services without a selector, out of the Endpoints that somebody writes by hand.

use std::{net::IpAddr, sync::Arc};

use berth_recorder::Level;
use k8s_openapi::api::{
    core::v1::{EndpointAddress, EndpointSubset, Endpoints, Service},
    discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
};
use kube::ResourceExt;

use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
    endpoint_slices::{
        self,
        endpoint::Family,
        pack::{self, Dress, MANAGED_BY, Placed, SERVICE_NAME},
    },
    endpoints::subsets,
    owner,
    service_pods::TRIGGER_TIME,
};

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const COMPONENT: &str = "endpoint-slice-mirroring-controller";
/// Addresses of a subset that are mirrored; a slice holds as many.
const MOST: usize = 1000;

pub(crate) struct EndpointMirror {
    context: Arc<Context>,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let skips = endpoints
        .labels()
        .get("endpointslice.kubernetes.io/skip-mirror");
    skips.map(String::as_str) != Some("true")
        && !endpoints
            .annotations()
            .contains_key("control-plane.alpha.kubernetes.io/leader")
}

/// Endpoints with their ports, how many addresses are none, and how many were too many.
fn mirrored(subsets: &[EndpointSubset]) -> (Vec<Placed>, usize, usize) {
    let (mut all, mut invalid, mut skipped) = (Vec::new(), 0, 0);
    for subset in subsets {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|one| (one, true));
        let others = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|one| (one, false));
        let mut taken = 0;
        for (address, ready) in ready.chain(others) {
            if taken == MOST {
                skipped += 1;
                continue;
            }
            match address.ip.parse::<IpAddr>() {
                Ok(ip) => {
                    taken += 1;
                    all.push((Family::of(ip), ports.clone(), endpoint(address, ip, ready)));
                }
                Err(_) => invalid += 1,
            }
        }
    }
    (all, invalid, skipped)
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

impl Controller for EndpointMirror {
    const NAME: &'static str = "endpointslice-mirroring-controller";
    const ACCOUNT: &'static str = "endpointslicemirroring-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let services = context.cache::<Service>();
        let endpoints = context.cache::<Endpoints>();
        let slices = context.cache::<EndpointSlice>();
        let keys = queue.clone();
        services.on_change(move |old, new| {
            let selects = |service: &Arc<Service>| {
                service
                    .spec
                    .as_ref()
                    .is_some_and(|spec| spec.selector.is_some())
            };
            if old.map(selects) != new.map(selects)
                && let Some(service) = new.or(old)
            {
                keys.add(Key::of(&**service));
            }
        });
        queue.follow(&endpoints);
        slices.on_change(move |old, new| {
            for slice in [old, new].into_iter().flatten() {
                if let Some(key) = endpoint_slices::service_of(slice, MANAGER) {
                    queue.add(key);
                }
            }
        });
        Self {
            context,
            services,
            endpoints,
            slices,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let mut existing = self.slices.in_namespace(&key.namespace);
        existing.retain(|slice| endpoint_slices::service_of(slice, MANAGER).as_ref() == Some(key));
        let service = self.services.get(key);
        let has_no_selector = service.is_some_and(|service| {
            service
                .spec
                .as_ref()
                .is_some_and(|spec| spec.selector.is_none())
        });
        let endpoints = self.endpoints.get(key);
        let Some(endpoints) = endpoints.filter(|one| has_no_selector && is_mirrored(one)) else {
            for slice in existing {
                self.context.delete(&*slice, None).await?;
            }
            return Ok(Next::Settled);
        };
        let packed = subsets::repacked(endpoints.subsets.as_deref().unwrap_or_default());
        let (wanted, invalid, skipped) = mirrored(&packed);
        let warn = |reason: &str, message: String| {
            self.context
                .event(&*endpoints, COMPONENT, Level::Warning, reason, message);
        };
        if invalid > 0 {
            let message =
                format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
            warn("InvalidIPAddress", message);
        }
        if skipped > 0 {
            let message = format!(
                "A max of {MOST} addresses can be mirrored to EndpointSlices per Endpoints subset. {skipped} addresses were skipped"
            );
            warn("TooManyAddressesToMirror", message);
        }
        let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
        labels.insert(SERVICE_NAME.into(), key.name.clone());
        labels.insert(MANAGED_BY.into(), MANAGER.into());
        let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(TRIGGER_TIME);
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        let dress = Dress {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            owner: owner::reference(&*endpoints),
            labels,
            annotations: Some(annotations),
            most: MOST,
        };
        let mut plan = dress.plan(&pack::grouped(&[], wanted), &existing);
        if endpoints.metadata.deletion_timestamp.is_some() {
            plan.create.clear();
        }
        endpoint_slices::carry_out(&self.context, plan, None).await?;
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_families_and_nothing_that_is_no_address() {
        let subsets: Vec<EndpointSubset> = serde_json::from_value(json!([{
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00:0::1"}, {"ip": "ten"}],
            "notReadyAddresses": [{"ip": "10.0.0.2", "nodeName": "n"}],
            "ports": [{"port": 80}],
        }]))
        .expect("subsets");
        let (all, invalid, skipped) = mirrored(&subsets);
        let found: Vec<_> = all
            .iter()
            .map(|(family, _, one)| {
                (
                    family.name(),
                    one.addresses[0].as_str(),
                    one.conditions.as_ref().and_then(|all| all.ready),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("IPv4", "10.0.0.1", Some(true)),
                ("IPv6", "fd00::1", Some(true)),
                ("IPv4", "10.0.0.2", Some(false))
            ]
        );
        assert_eq!((invalid, skipped), (1, 0));
        assert_eq!(all[0].1[0].protocol.as_deref(), Some("TCP"));
    }

    #[test]
    fn a_thousand_of_a_subset() {
        let addresses: Vec<_> = (0..1100)
            .map(|at| json!({"ip": format!("10.0.{}.{}", at / 250, at % 250)}))
            .collect();
        let subsets: Vec<EndpointSubset> =
            serde_json::from_value(json!([{"addresses": addresses}])).expect("subsets");
        let (all, _, skipped) = mirrored(&subsets);
        assert_eq!((all.len(), skipped), (MOST, 100));
    }
}
