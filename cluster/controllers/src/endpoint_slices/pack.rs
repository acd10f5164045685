//! How endpoints are laid into slices, with as few writes as can be. Pure.
//!
//! Endpoints with the same ports and family share slices. An endpoint stays in the slice that has it; new ones fill slices that have to be written anyway, then
//! one that has room for all of them, then new ones. A slice that would go takes the place of one that would be made.
//!
//! Invariant: what the slices hold afterwards is what was wanted, each endpoint once; where that is so already, nothing is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

use super::endpoint::Family;

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// What all slices of one service have.
#[derive(Debug, Clone)]
pub(crate) struct Dress {
    pub namespace: String,
    pub name: String,
    pub owner: OwnerReference,
    pub labels: BTreeMap<String, String>,
    /// None: they are let alone.
    pub annotations: Option<BTreeMap<String, String>>,
    /// Endpoints of a slice, at most.
    pub most: usize,
}

/// Endpoints of a family that have the same ports.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    pub family: Family,
    pub ports: Vec<EndpointPort>,
    /// None at all: an empty slice says so.
    pub endpoints: Vec<Endpoint>,
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

type Port = (String, String, Option<i32>, Option<String>);
/// What slices are told apart by.
type Sort = (String, Vec<Port>);

pub(crate) fn sort(family: &str, ports: &[EndpointPort]) -> Sort {
    let mut ports: Vec<Port> = ports
        .iter()
        .map(|port| {
            (
                port.name.clone().unwrap_or_default(),
                port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                port.port,
                port.app_protocol.clone(),
            )
        })
        .collect();
    ports.sort();
    (family.to_owned(), ports)
}

/// Which endpoint it is, whatever it does.
type Who = (Vec<String>, Option<String>, [Option<String>; 3]);

fn who(endpoint: &Endpoint) -> Who {
    let target = endpoint.target_ref.clone().unwrap_or_default();
    (
        endpoint.addresses.clone(),
        endpoint.hostname.clone(),
        [target.namespace, target.name, target.uid],
    )
}

fn is_same(a: &Endpoint, b: &Endpoint) -> bool {
    let plain = |endpoint: &Endpoint| {
        let mut endpoint = endpoint.clone();
        if let Some(target) = &mut endpoint.target_ref {
            target.resource_version = None;
        }
        endpoint
    };
    plain(a) == plain(b)
}

fn len(slice: &EndpointSlice) -> usize {
    slice.endpoints.as_ref().map_or(0, Vec::len)
}

impl Dress {
    fn is_own(&self, slice: &EndpointSlice) -> bool {
        let owners = slice.metadata.owner_references.as_ref();
        owners.into_iter().flatten().any(|owner| {
            owner.uid == self.owner.uid
                && owner.kind == self.owner.kind
                && owner.api_version == self.owner.api_version
        })
    }

    fn is_worn(&self, slice: &EndpointSlice) -> bool {
        let labels = slice.metadata.labels.clone().unwrap_or_default();
        let annotations = slice.metadata.annotations.clone().unwrap_or_default();
        labels == self.labels
            && self
                .annotations
                .as_ref()
                .is_none_or(|all| *all == annotations)
    }

    fn put_on(&self, meta: &mut ObjectMeta) {
        meta.labels = Some(self.labels.clone());
        if let Some(annotations) = &self.annotations {
            meta.annotations = Some(annotations.clone());
        }
    }

    fn new_slice(&self, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
        // A name of 253 has no room for a dash.
        let dash = if self.name.len() < 253 { "-" } else { "" };
        let mut metadata = ObjectMeta {
            namespace: Some(self.namespace.clone()),
            generate_name: Some(format!("{}{dash}", self.name)),
            owner_references: Some(vec![self.owner.clone()]),
            ..ObjectMeta::default()
        };
        self.put_on(&mut metadata);
        EndpointSlice {
            metadata,
            address_type: group.family.name().into(),
            endpoints: Some(endpoints),
            ports: Some(group.ports.clone()),
        }
    }

    /// What has to be written so that `existing` become `groups`. There is at most one group of a family and ports.
    pub(crate) fn plan(&self, groups: &[Group], existing: &[Arc<EndpointSlice>]) -> Plan {
        let mut plan = Plan::default();
        let mut known: BTreeMap<Sort, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
        for slice in existing {
            if self.is_own(slice) {
                let ports = slice.ports.as_deref().unwrap_or_default();
                let sort = sort(&slice.address_type, ports);
                known.entry(sort).or_default().push(slice.clone());
            } else {
                plan.delete.push(slice.clone());
            }
        }
        for group in groups {
            let sort = sort(group.family.name(), &group.ports);
            let slices = known.remove(&sort).unwrap_or_default();
            if group.endpoints.is_empty() {
                self.placeholder(group, slices, &mut plan);
            } else {
                self.group(group, slices, &mut plan);
            }
        }
        plan.delete.extend(known.into_values().flatten());
        self.reuse(&mut plan);
        plan
    }

    /// One slice that says that there is nothing.
    fn placeholder(&self, group: &Group, slices: Vec<Arc<EndpointSlice>>, plan: &mut Plan) {
        let mut kept = false;
        for slice in slices {
            if !kept && len(&slice) == 0 && self.is_worn(&slice) {
                kept = true;
            } else {
                plan.delete.push(slice);
            }
        }
        if !kept {
            plan.create.push(self.new_slice(group, Vec::new()));
        }
    }

    fn group(&self, group: &Group, slices: Vec<Arc<EndpointSlice>>, plan: &mut Plan) {
        let mut wanted: BTreeMap<Who, &Endpoint> =
            group.endpoints.iter().map(|one| (who(one), one)).collect();
        let mut written: Vec<EndpointSlice> = Vec::new();
        let mut untouched: Vec<Arc<EndpointSlice>> = Vec::new();
        for slice in slices {
            let before = slice.endpoints.as_deref().unwrap_or_default();
            let kept: Vec<(&Endpoint, &Endpoint)> = before
                .iter()
                .take(self.most)
                .filter_map(|old| Some((old, wanted.remove(&who(old))?)))
                .collect();
            let same =
                kept.len() == before.len() && kept.iter().all(|(old, new)| is_same(old, new));
            if same && self.is_worn(&slice) {
                untouched.push(slice);
            } else if kept.is_empty() && !before.is_empty() {
                plan.delete.push(slice);
            } else {
                let kept = kept.into_iter().map(|(_, new)| new.clone()).collect();
                written.push(self.rewritten(&slice, kept));
            }
        }
        let mut rest = wanted.into_values().cloned();
        // The fullest first.
        written.sort_by_key(|slice| (usize::MAX - len(slice), slice.metadata.name.clone()));
        let fill = |slice: &mut EndpointSlice, rest: &mut dyn Iterator<Item = Endpoint>| {
            let endpoints = slice.endpoints.get_or_insert_default();
            let room = self.most.saturating_sub(endpoints.len());
            endpoints.extend(rest.take(room));
        };
        for slice in &mut written {
            fill(slice, &mut rest);
        }
        plan.update.append(&mut written);
        let mut rest: Vec<Endpoint> = rest.collect();
        while !rest.is_empty() {
            // The one that is fullest then.
            let room = untouched
                .iter()
                .enumerate()
                .filter(|(_, slice)| len(slice) + rest.len() <= self.most)
                .max_by_key(|(at, slice)| (len(slice), usize::MAX - at));
            match room.map(|(at, _)| at) {
                Some(at) => {
                    let slice = untouched.swap_remove(at);
                    let mut kept = slice.endpoints.clone().unwrap_or_default();
                    kept.append(&mut rest);
                    plan.update.push(self.rewritten(&slice, kept));
                }
                None => {
                    let later = rest.split_off(rest.len().min(self.most));
                    plan.create.push(self.new_slice(group, rest));
                    rest = later;
                }
            }
        }
    }

    fn rewritten(&self, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> EndpointSlice {
        let mut slice = slice.clone();
        self.put_on(&mut slice.metadata);
        slice.endpoints = Some(endpoints);
        slice
    }

    fn reuse(&self, plan: &mut Plan) {
        let mut gone: Vec<Arc<EndpointSlice>> = Vec::new();
        for old in std::mem::take(&mut plan.delete) {
            let place = plan
                .create
                .iter()
                .rposition(|new| new.address_type == old.address_type && self.is_own(&old));
            match place {
                Some(at) => {
                    let new = plan.create.remove(at);
                    let mut metadata = old.metadata.clone();
                    self.put_on(&mut metadata);
                    plan.update.push(EndpointSlice { metadata, ..new });
                }
                None => gone.push(old),
            }
        }
        plan.delete = gone;
    }
}

/// An endpoint, with the family and the ports by which it is reached.
pub(crate) type Placed = (Family, Vec<EndpointPort>, Endpoint);

/// Endpoints by the ports that they have; those of a family that has none are told of by an empty group.
pub(crate) fn grouped(families: &[Family], endpoints: Vec<Placed>) -> Vec<Group> {
    let mut groups: BTreeMap<Sort, Group> = BTreeMap::new();
    for (family, ports, endpoint) in endpoints {
        groups
            .entry(sort(family.name(), &ports))
            .or_insert_with(|| Group {
                family,
                ports,
                endpoints: Vec::new(),
            })
            .endpoints
            .push(endpoint);
    }
    let found: BTreeSet<Family> = groups.values().map(|group| group.family).collect();
    let mut groups: Vec<Group> = groups.into_values().collect();
    for family in families.iter().filter(|family| !found.contains(family)) {
        groups.push(Group {
            family: *family,
            ports: Vec::new(),
            endpoints: Vec::new(),
        });
    }
    groups
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1::ObjectReference, discovery::v1::EndpointConditions};
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 5;

    impl Plan {
        fn is_empty(&self) -> bool {
            self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
        }
    }

    fn dress(label: u8) -> Dress {
        Dress {
            namespace: "d".into(),
            name: "s".into(),
            owner: OwnerReference {
                api_version: "v1".into(),
                kind: "Service".into(),
                name: "s".into(),
                uid: "service".into(),
                ..OwnerReference::default()
            },
            labels: BTreeMap::from([("label".into(), label.to_string())]),
            annotations: None,
            most: MOST,
        }
    }

    fn endpoint(at: u8, ready: bool) -> Endpoint {
        Endpoint {
            addresses: vec![format!("10.0.0.{at}")],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                ..EndpointConditions::default()
            }),
            target_ref: Some(ObjectReference {
                name: Some(format!("p{at}")),
                uid: Some(at.to_string()),
                ..ObjectReference::default()
            }),
            ..Endpoint::default()
        }
    }

    fn port(number: i32) -> Vec<EndpointPort> {
        vec![EndpointPort {
            name: Some(String::new()),
            port: Some(number),
            protocol: Some("TCP".into()),
            app_protocol: None,
        }]
    }

    /// As the API server would take it.
    fn carry_out(plan: Plan, existing: &mut Vec<Arc<EndpointSlice>>, made: &mut usize) -> usize {
        let writes = plan.create.len() + plan.update.len() + plan.delete.len();
        for slice in &plan.delete {
            let before = existing.len();
            existing.retain(|old| old.metadata.name != slice.metadata.name);
            assert_eq!(existing.len() + 1, before, "deleted once");
        }
        for slice in plan.update {
            let at = existing
                .iter()
                .position(|old| old.metadata.name == slice.metadata.name)
                .expect("it is there");
            assert_eq!(
                existing[at].address_type, slice.address_type,
                "it can't change"
            );
            existing[at] = Arc::new(slice);
        }
        for mut slice in plan.create {
            *made += 1;
            slice.metadata.name = Some(format!("s-{made}"));
            existing.push(Arc::new(slice));
        }
        writes
    }

    fn wanted(pods: &[(u8, bool, bool, bool)]) -> Vec<Group> {
        let endpoints = pods
            .iter()
            .map(|(at, ready, other, v6)| {
                let family = if *v6 { Family::V6 } else { Family::V4 };
                (
                    family,
                    port(if *other { 81 } else { 80 }),
                    endpoint(*at, *ready),
                )
            })
            .collect();
        grouped(&[Family::V4, Family::V6], endpoints)
    }

    fn held(slices: &[Arc<EndpointSlice>]) -> Vec<(Sort, Who, Option<bool>)> {
        let mut all: Vec<_> = slices
            .iter()
            .flat_map(|slice| {
                let sort = sort(
                    &slice.address_type,
                    slice.ports.as_deref().unwrap_or_default(),
                );
                slice.endpoints.iter().flatten().map(move |one| {
                    (
                        sort.clone(),
                        who(one),
                        one.conditions.as_ref().and_then(|all| all.ready),
                    )
                })
            })
            .collect();
        all.sort();
        all
    }

    fn of_groups(groups: &[Group]) -> Vec<(Sort, Who, Option<bool>)> {
        let mut all: Vec<_> = groups
            .iter()
            .flat_map(|group| {
                group.endpoints.iter().map(|one| {
                    (
                        sort(group.family.name(), &group.ports),
                        who(one),
                        one.conditions.as_ref().and_then(|all| all.ready),
                    )
                })
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn nothing_is_told_by_one_empty_slice() {
        let dress = dress(0);
        let (mut slices, mut made) = (Vec::new(), 0);
        let none = grouped(&[Family::V4], Vec::new());
        assert_eq!(
            carry_out(dress.plan(&none, &slices), &mut slices, &mut made),
            1
        );
        assert!(dress.plan(&none, &slices).is_empty());
        let one = grouped(
            &[Family::V4],
            vec![(Family::V4, port(80), endpoint(1, true))],
        );
        let plan = dress.plan(&one, &slices);
        assert_eq!(
            (plan.create.len(), plan.update.len(), plan.delete.len()),
            (0, 1, 0),
            "it is used"
        );
        carry_out(plan, &mut slices, &mut made);
        let plan = dress.plan(&none, &slices);
        assert_eq!(
            (plan.create.len(), plan.update.len(), plan.delete.len()),
            (0, 1, 0),
            "and empty again"
        );
    }

    #[test]
    fn what_an_earlier_service_of_the_name_has_left_goes() {
        let mut before = dress(0);
        before.owner.uid = "earlier".into();
        let one = grouped(
            &[Family::V4],
            vec![(Family::V4, port(80), endpoint(1, true))],
        );
        let (mut slices, mut made) = (Vec::new(), 0);
        carry_out(before.plan(&one, &slices), &mut slices, &mut made);
        let plan = dress(0).plan(&one, &slices);
        assert_eq!(
            (plan.create.len(), plan.update.len(), plan.delete.len()),
            (1, 0, 1)
        );
    }

    #[test]
    fn one_change_is_one_write() {
        let dress = dress(0);
        let pods: Vec<_> = (0..12).map(|at| (at, true, false, false)).collect();
        let (mut slices, mut made) = (Vec::new(), 0);
        carry_out(dress.plan(&wanted(&pods), &slices), &mut slices, &mut made);
        let sizes: Vec<usize> = slices.iter().map(|slice| len(slice)).collect();
        assert_eq!(sizes, [5, 5, 2, 0], "and one says that there is no IPv6");
        let mut less = pods.clone();
        less.remove(3);
        assert_eq!(
            carry_out(dress.plan(&wanted(&less), &slices), &mut slices, &mut made),
            1
        );
        let mut turned = less.clone();
        turned[7].1 = false;
        assert_eq!(
            carry_out(
                dress.plan(&wanted(&turned), &slices),
                &mut slices,
                &mut made
            ),
            1
        );
        let mut more = turned.clone();
        more.push((90, true, false, false));
        assert_eq!(
            carry_out(dress.plan(&wanted(&more), &slices), &mut slices, &mut made),
            1
        );
        assert!(slices.iter().all(|slice| len(slice) <= MOST));
    }

    proptest! {
        #[test]
        fn slices_hold_exactly_what_is_wanted(
            rounds in prop::collection::vec((prop::collection::btree_map(0_u8..40, (any::<bool>(), any::<bool>(), any::<bool>()), 0..40), 0_u8..2), 1..12),
            doubles in any::<bool>(),
        ) {
            let (mut slices, mut made) = (Vec::<Arc<EndpointSlice>>::new(), 0);
            for (pods, label) in rounds {
                let dress = dress(label);
                let pods: Vec<_> = pods.into_iter().map(|(at, (ready, other, v6))| (at, ready, other, v6)).collect();
                let groups = wanted(&pods);
                if doubles && let Some(first) = slices.first().cloned() {
                    // Somebody has written a slice twice.
                    made += 1;
                    let mut double: EndpointSlice = EndpointSlice::clone(&first);
                    double.metadata.name = Some(format!("s-{made}"));
                    slices.push(Arc::new(double));
                }
                let count = slices.len();
                let writes = carry_out(dress.plan(&groups, &slices), &mut slices, &mut made);
                prop_assert_eq!(held(&slices), of_groups(&groups));
                prop_assert!(slices.iter().all(|slice| len(slice) <= MOST && dress.is_worn(slice)));
                let most = groups.iter().map(|group| group.endpoints.len().div_ceil(MOST).max(1)).sum::<usize>() + count;
                prop_assert!(writes <= most, "{} writes", writes);
                let again = dress.plan(&groups, &slices);
                prop_assert!(again.is_empty(), "{:?}", again);
            }
        }
    }
}
