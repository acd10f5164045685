//! Endpoints: the old form of EndpointSlices, one object a service, for those who still read it.

pub(crate) mod subsets;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use berth_recorder::Level;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
        ServiceSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt;

use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
    pod,
    service_pods::{self, HEADLESS, TRIGGER_TIME, Triggers},
};

const COMPONENT: &str = "endpoint-controller";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Addresses of one object, at most; what is left out is told by the annotation.
const MOST: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

pub(crate) struct EndpointsOfServices {
    context: Arc<Context>,
    services: Cache<Service>,
    pods: Cache<Pod>,
    endpoints: Cache<Endpoints>,
    triggers: Mutex<Triggers>,
}

fn is_ours(endpoints: &Endpoints) -> bool {
    endpoints.labels().get(MANAGED_BY).map(String::as_str) == Some(COMPONENT)
}

impl Controller for EndpointsOfServices {
    const NAME: &'static str = "endpoints-controller";
    const ACCOUNT: &'static str = "endpoint-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let services = context.cache::<Service>();
        let pods = context.cache::<Pod>();
        let endpoints = context.cache::<Endpoints>();
        queue.follow(&services);
        service_pods::wake(&pods, &services, &queue);
        queue.follow(&endpoints);
        Self {
            context,
            services,
            pods,
            endpoints,
            triggers: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let before = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            self.triggers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .forget(key);
            // What others have made for no service is theirs.
            if let Some(left) = before.filter(|left| is_ours(left)) {
                self.context.delete(&*left, None).await?;
            }
            return Ok(Next::Settled);
        };
        let Some((spec, selector)) = service_pods::kept(&service) else {
            return Ok(Next::Settled);
        };
        if service.metadata.deletion_timestamp.is_some() && before.is_none() {
            return Ok(Next::Settled);
        }
        let pods: Vec<Arc<Pod>> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|pod| service_pods::selects(selector, pod.labels()))
            .collect();
        let trigger = {
            let mut triggers = self.triggers.lock().unwrap_or_else(PoisonError::into_inner);
            triggers.next(&service, &pods)
        };
        let wanted = wanted(&service, spec, &pods, before.as_deref(), trigger);
        let Some(wanted) = wanted else {
            return Ok(Next::Settled);
        };
        let written = match &before {
            None => self.context.create(&wanted).await,
            Some(_) => self.context.update(&wanted).await,
        };
        match written {
            Ok(_) => Ok(Next::Settled),
            Err(error) if service_pods::namespace_is_going(&error) => Ok(Next::Settled),
            Err(error) => {
                if !error.is_conflict() && !error.is_already_exists() {
                    let (reason, what) = match before {
                        None => ("FailedToCreateEndpoint", "create endpoint for service"),
                        Some(_) => ("FailedToUpdateEndpoint", "update endpoint"),
                    };
                    let message = format!("Failed to {what} {key}: {error}");
                    self.context
                        .event(&wanted, COMPONENT, Level::Warning, reason, message);
                }
                Err(error)
            }
        }
    }
}

/// What is to be written; none: it is there.
fn wanted(
    service: &Service,
    spec: &ServiceSpec,
    pods: &[Arc<Pod>],
    before: Option<&Endpoints>,
    trigger: Option<Timestamp>,
) -> Option<Endpoints> {
    let published = spec.publish_not_ready_addresses == Some(true);
    let mut loose = Vec::new();
    for pod in pods {
        let ends = pod.metadata.deletion_timestamp.is_some();
        if !service_pods::is_reachable(pod) || ends && !published {
            continue;
        }
        let Some(address) = address(service, spec, pod) else {
            continue;
        };
        let ready = published || pod::is_ready(pod);
        let mut add = |port: Option<EndpointPort>| {
            let addresses = Some(vec![address.clone()]);
            loose.push(EndpointSubset {
                addresses: addresses.clone().filter(|_| ready),
                not_ready_addresses: addresses.filter(|_| !ready),
                ports: port.map(|port| vec![port]),
            });
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        if ports.is_empty() && service_pods::is_headless(spec) {
            add(None);
        }
        for port in ports {
            if let Some(number) = service_pods::find_port(pod, port) {
                add(Some(EndpointPort {
                    name: port.name.clone().filter(|name| !name.is_empty()),
                    port: number,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                    app_protocol: port.app_protocol.clone(),
                }));
            }
        }
    }
    let mut subsets = subsets::repacked(&loose);
    let is_cut = subsets::truncate(&mut subsets, MOST);
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if service_pods::is_headless(spec) {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(MANAGED_BY.into(), COMPONENT.into());
    if let Some(before) = before {
        let known = before.subsets.as_deref().unwrap_or_default();
        let is_told = before.annotations().contains_key(OVER_CAPACITY);
        if *before.labels() == labels
            && is_told == is_cut
            && (known == subsets || subsets::repacked(known) == subsets)
        {
            return None;
        }
    }
    let mut metadata = before.map_or_else(
        || ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        |before| before.metadata.clone(),
    );
    let annotations: &mut BTreeMap<String, String> = metadata.annotations.get_or_insert_default();
    let mut set = |name: &str, value: Option<String>| match value {
        Some(value) => annotations.insert(name.into(), value),
        None => annotations.remove(name),
    };
    set(TRIGGER_TIME, trigger.map(|time| time.to_string()));
    set(OVER_CAPACITY, is_cut.then(|| "truncated".into()));
    metadata.labels = Some(labels);
    Some(Endpoints {
        metadata,
        subsets: Some(subsets),
    })
}

/// The pod's, of the service's first family.
fn address(service: &Service, spec: &ServiceSpec, pod: &Pod) -> Option<EndpointAddress> {
    let cluster_ip: Option<IpAddr> = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok());
    let family = spec.ip_families.iter().flatten().next();
    let v6 = match (cluster_ip, family) {
        (Some(ip), _) => Some(ip.is_ipv6()),
        (None, Some(family)) => Some(family == "IPv6"),
        (None, None) => None,
    };
    let ip = service_pods::ips(pod).find(|ip| v6.is_none_or(|v6| ip.is_ipv6() == v6))?;
    Some(EndpointAddress {
        ip: ip.to_string(),
        hostname: service_pods::hostname(pod, service),
        node_name: pod::node_of(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "d", "labels": {"a": "b"}}, "spec": spec}))
            .expect("a service")
    }

    fn pod(at: usize, ready: bool, ends: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let pod = json!({
            "metadata": {"name": format!("p{at}"), "namespace": "d", "uid": at.to_string(), "deletionTimestamp": ends.then_some("2026-01-01T00:00:00Z")},
            "spec": {"containers": [], "nodeName": "n"},
            "status": {"podIPs": [{"ip": format!("10.0.{}.{}", at / 250, at % 250)}], "conditions": [{"type": "Ready", "status": status}]},
        });
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn keep(service: &Service, pods: &[Arc<Pod>], before: Option<&Endpoints>) -> Option<Endpoints> {
        wanted(
            service,
            service.spec.as_ref().expect("a spec"),
            pods,
            before,
            None,
        )
    }

    #[test]
    fn ready_ones_are_told_apart_and_those_that_end_are_left_out() {
        let plain = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        let pods = [
            pod(1, true, false),
            pod(2, false, false),
            pod(3, true, true),
        ];
        let found = keep(&plain, &pods, None).expect("they are new");
        let ips = |found: &Endpoints, ready: bool| -> Vec<String> {
            let subset = &found.subsets.as_ref().expect("subsets")[0];
            let all = if ready {
                &subset.addresses
            } else {
                &subset.not_ready_addresses
            };
            all.iter()
                .flatten()
                .map(|address| address.ip.clone())
                .collect()
        };
        assert_eq!(
            (ips(&found, true), ips(&found, false)),
            (vec!["10.0.0.1".into()], vec!["10.0.0.2".into()])
        );
        assert_eq!(
            found.labels().get(MANAGED_BY).map(String::as_str),
            Some(COMPONENT)
        );
        assert_eq!(
            keep(&plain, &pods, Some(&found)),
            None,
            "nothing has changed"
        );
        let published = service(
            json!({"clusterIP": "None", "publishNotReadyAddresses": true, "ports": [{"port": 80}]}),
        );
        let found = keep(&published, &pods, Some(&found)).expect("they are others");
        assert_eq!(ips(&found, true).len(), 3);
        assert_eq!(found.labels().get(HEADLESS).map(String::as_str), Some(""));
    }

    #[test]
    fn a_thousand_are_told_and_that_there_are_more() {
        let service = service(json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
        let pods: Vec<_> = (0..1200).map(|at| pod(at, at % 2 == 0, false)).collect();
        let found = keep(&service, &pods, None).expect("they are new");
        assert_eq!(
            subsets::len(found.subsets.as_deref().expect("subsets")),
            MOST
        );
        assert_eq!(
            found.annotations().get(OVER_CAPACITY).map(String::as_str),
            Some("truncated")
        );
        assert_eq!(keep(&service, &pods, Some(&found)), None);
        let fewer = keep(&service, &pods[..900], Some(&found)).expect("they are fewer");
        assert!(!fewer.annotations().contains_key(OVER_CAPACITY));
    }
}
