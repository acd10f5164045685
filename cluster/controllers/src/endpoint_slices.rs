//! EndpointSlices: where the pods of each service are reached (PO-10).
//!
//! One slice has up to a hundred endpoints, so that a change of one of them is a small write however many there are.

pub(crate) mod endpoint;
pub(crate) mod pack;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_recorder::Level;
use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt;

use self::pack::{Dress, MANAGED_BY, Plan, SERVICE_NAME};
use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
    owner, pod,
    pods_on_nodes::PodsOnNodes,
    service_pods::{self, HEADLESS, TRIGGER_TIME, Triggers},
};

const MANAGER: &str = "endpointslice-controller.k8s.io";
const COMPONENT: &str = "endpoint-slice-controller";
/// Upstream's `--max-endpoints-per-slice`.
const MOST: usize = 100;
/// A pod whose node isn't there yet is looked at again.
const NO_NODE: Duration = Duration::from_secs(5);

pub(crate) struct EndpointSlices {
    context: Arc<Context>,
    services: Cache<Service>,
    pods: Cache<Pod>,
    nodes: Cache<Node>,
    slices: Cache<EndpointSlice>,
    triggers: Mutex<Triggers>,
}

/// The service whose slices these are, if `manager` keeps them.
pub(crate) fn service_of(slice: &EndpointSlice, manager: &str) -> Option<Key> {
    let labels = slice.metadata.labels.as_ref()?;
    let is_ours = labels.get(MANAGED_BY).map(String::as_str) == Some(manager);
    let name = labels
        .get(SERVICE_NAME)
        .filter(|name| is_ours && !name.is_empty())?;
    Some(Key::new(&slice.namespace()?, name))
}

/// Writes what is to be written; where a slice is made, changed or removed by others meanwhile, the next look has it.
pub(crate) async fn carry_out(
    context: &Context,
    plan: Plan,
    trigger: Option<Timestamp>,
) -> Result<(), Error> {
    let stamp = |slice: &mut EndpointSlice| {
        let annotations = slice.metadata.annotations.get_or_insert_default();
        match trigger {
            Some(time) => annotations.insert(TRIGGER_TIME.into(), time.to_string()),
            None => annotations.remove(TRIGGER_TIME),
        };
    };
    for mut slice in plan.create {
        stamp(&mut slice);
        match context.create(&slice).await {
            Err(error) if service_pods::namespace_is_going(&error) => return Ok(()),
            made => made?,
        };
    }
    for mut slice in plan.update {
        stamp(&mut slice);
        context.update(&slice).await?;
    }
    for slice in plan.delete {
        context.delete(&*slice, None).await?;
    }
    Ok(())
}

fn node_zone(node: &Node) -> Option<&String> {
    node.labels().get("topology.kubernetes.io/zone")
}

impl Controller for EndpointSlices {
    const NAME: &'static str = "endpointslice-controller";
    const ACCOUNT: &'static str = "endpointslice-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let services = context.cache::<Service>();
        let pods = context.cache::<Pod>();
        let nodes = context.cache::<Node>();
        let slices = context.cache::<EndpointSlice>();
        queue.follow(&services);
        service_pods::wake(&pods, &services, &queue);
        let on_nodes = PodsOnNodes::of(&pods);
        let (keys, of, all) = (queue.clone(), services.clone(), pods.clone());
        nodes.on_change(move |old, new| {
            // Its zone is told with each endpoint. Who comes is looked for by those that miss it.
            let (Some(old), Some(new)) = (old, new) else {
                return;
            };
            if node_zone(old) != node_zone(new) {
                for key in on_nodes.on(&new.name_any()) {
                    service_pods::enqueue(&of, &keys, None, all.get(&key).as_deref());
                }
            }
        });
        slices.on_change(move |old, new| {
            for slice in [old, new].into_iter().flatten() {
                if let Some(key) = service_of(slice, MANAGER) {
                    queue.add(key);
                }
            }
        });
        Self {
            context,
            services,
            pods,
            nodes,
            slices,
            triggers: Mutex::default(),
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(service) = self.services.get(key) else {
            self.triggers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .forget(key);
            return Ok(Next::Settled);
        };
        let Some((spec, selector)) = service_pods::kept(&service) else {
            return Ok(Next::Settled);
        };
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
        let published = spec.publish_not_ready_addresses == Some(true);
        let families = endpoint::families(spec);
        let mut endpoints = Vec::new();
        let mut next = Next::Settled;
        for pod in pods.iter().filter(|pod| service_pods::is_reachable(pod)) {
            let node = pod::node_of(pod).and_then(|name| self.nodes.get(&Key::new("", name)));
            if node.is_none() && !published {
                next = Next::After(NO_NODE);
                continue;
            }
            let ports = endpoint::ports(spec, pod);
            for family in &families {
                if let Some(one) = endpoint::endpoint(pod, node.as_deref(), &service, *family) {
                    endpoints.push((*family, ports.clone(), one));
                }
            }
        }
        let mut existing = self.slices.in_namespace(&key.namespace);
        existing.retain(|slice| {
            slice.metadata.deletion_timestamp.is_none()
                && service_of(slice, MANAGER).as_ref() == Some(key)
        });
        let dress = Dress {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            owner: owner::reference(&*service),
            labels: labels(&service, service_pods::is_headless(spec)),
            annotations: None,
            most: MOST,
        };
        let mut plan = dress.plan(&pack::grouped(&families, endpoints), &existing);
        if service.metadata.deletion_timestamp.is_some() {
            plan.create.clear();
        }
        if let Err(error) = carry_out(&self.context, plan, trigger).await {
            if !error.is_conflict() {
                let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
                let reason = "FailedToUpdateEndpointSlices";
                self.context
                    .event(&*service, COMPONENT, Level::Warning, reason, message);
            }
            return Err(error);
        }
        Ok(next)
    }
}

/// Those of the service, and whose they are.
fn labels(service: &Service, headless: bool) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    if headless {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}
