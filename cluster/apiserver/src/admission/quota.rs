//! ResourceQuota: what a namespace may have altogether.
//!
//! # Synchronization
//! What is used is written by the transaction that makes the object, or not at all: nothing leaks where a create fails. Whoever counts holds the lock of the
//! namespace from its look to its write, so that those who create side by side wait for each other instead of failing; another server's write is told by the
//! compare.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    Act,
    amounts::{self, Amounts},
    usage,
};
use crate::{
    api::{Actor, Api},
    catalog::{REGISTRY, Resource},
    failure::Failure,
    object,
    storage::Beside,
    write::{self, Part},
};

pub const STORAGE: &str = "resourcequotas";
/// Namespaces share locks by their hash: these are many enough.
const LOCKS: usize = 64;

#[derive(Debug)]
pub struct Quotas(Vec<Arc<Mutex<()>>>);

impl Default for Quotas {
    fn default() -> Self {
        Self((0..LOCKS).map(|_| Arc::default()).collect())
    }
}

impl Quotas {
    async fn lock(&self, namespace: &str) -> OwnedMutexGuard<()> {
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % LOCKS as u64).unwrap_or(0);
        self.0[at].clone().lock_owned().await
    }
}

/// To be held until the object is written.
#[derive(Debug)]
pub struct Charged(#[allow(dead_code, reason = "it is held")] Option<OwnedMutexGuard<()>>);

impl Charged {
    pub fn nothing() -> Self {
        Self(None)
    }
}

/// Charges the namespace's quotas with what `new` uses more than `old`: what they are then goes into `beside`.
///
/// # Errors
/// 403 where one would be exceeded, or where the pod says too little to be counted.
pub async fn charge(
    api: &Api,
    act: &Act<'_>,
    old: Option<&Value>,
    new: &Value,
    beside: &mut Beside,
) -> Result<Charged, Failure> {
    let quotas = api.cache.shard(STORAGE);
    let prefix = format!("{}/", act.namespace);
    let counts = act.resource.namespaced
        && !act.namespace.is_empty()
        && matches!(act.subresource, "" | "resize")
        && !matches!(act.resource.storage.as_str(), "events" | "leases" | "");
    if !counts || quotas.is_empty(&prefix) {
        return Ok(Charged(None));
    }
    let lock = api.quotas.lock(act.namespace).await;
    for entry in quotas.list(&prefix, "").0 {
        let key = format!("{REGISTRY}{STORAGE}/{}", entry.path);
        let Some(stored) = api.storage.read(&key).await? else {
            continue;
        };
        let mut quota = stored.value;
        if !usage::is_in_scope(&quota, act.resource, new) {
            continue;
        }
        // Not counted yet, or its spec has changed since.
        if quota.pointer("/status/hard") != quota.pointer("/spec/hard") {
            api.cache.fresh().await?;
            set_status(&mut quota, |quota| count(api, act.namespace, quota));
        }
        let hard = amounts::of(quota.pointer("/spec/hard"));
        let used = amounts::of(quota.pointer("/status/used"));
        let more = more(act.resource, &hard, old, new);
        if old.is_none()
            && act.resource.is("", "pods")
            && let Some(unsaid) = usage::unsaid(&hard, new)
        {
            let name = object::name(&quota);
            return Err(Failure::forbidden(
                act.resource,
                &act.name,
                format!("failed quota: {name}: must specify {unsaid}"),
            ));
        }
        if more.is_empty() {
            continue;
        }
        let sum = |name: &String| {
            let zero = berth_kinds::Quantity::whole(0);
            used.get(name).copied().unwrap_or(zero).plus(more[name])
        };
        let exceeded: Vec<&String> = more
            .keys()
            .filter(|name| sum(name).nano > hard[*name].nano)
            .collect();
        if !exceeded.is_empty() {
            let told = |amounts: &Amounts| -> String {
                let words: Vec<String> = exceeded
                    .iter()
                    .map(|name| {
                        let amount = amounts.get(*name).map_or("0".into(), |a| a.canonical());
                        format!("{name}={amount}")
                    })
                    .collect();
                words.join(",")
            };
            return Err(Failure::forbidden(
                act.resource,
                &act.name,
                format!(
                    "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                    object::name(&quota),
                    told(&more),
                    told(&used),
                    told(&hard)
                ),
            ));
        }
        for name in more.keys() {
            quota["status"]["used"][name.as_str()] = sum(name).canonical().into();
        }
        beside.puts.push((key, quota, stored.revision));
    }
    Ok(Charged(Some(lock)))
}

/// What of a quota `new` uses more than `old`.
fn more(resource: &Resource, hard: &Amounts, old: Option<&Value>, new: &Value) -> Amounts {
    let of = |value| usage::of(&resource.group, &resource.plural, value);
    let before = old.map(of).unwrap_or_default();
    let mut more = of(new);
    more.retain(|name, amount| {
        if let Some(before) = before.get(name) {
            amount.nano -= before.nano;
        }
        amount.nano > 0 && hard.contains_key(name)
    });
    more
}

fn set_status(quota: &mut Value, count: impl FnOnce(&Value) -> Amounts) {
    let hard = quota.pointer("/spec/hard").cloned().unwrap_or(json!({}));
    let counted = count(quota);
    let used: Map<String, Value> = hard
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| {
            let amount = counted.get(name).map_or("0".into(), |a| a.canonical());
            (name.clone(), amount.into())
        })
        .collect();
    quota["status"] = json!({"hard": hard, "used": used});
}

/// Everything in the cache that a quota is about.
fn count(api: &Api, namespace: &str, quota: &Value) -> Amounts {
    let hard = amounts::of(quota.pointer("/spec/hard"));
    let catalog = api.served.now();
    let mut kinds: Vec<(&str, &str)> = hard.keys().map(|name| usage::source(name)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut used = Amounts::new();
    for (group, plural) in kinds {
        let resource = catalog.groups.get(group).and_then(|versions| {
            versions
                .iter()
                .find_map(|version| version.resources.get(plural))
        });
        let Some(resource) = resource.filter(|resource| !resource.storage.is_empty()) else {
            continue;
        };
        let shard = api.cache.shard(&resource.storage);
        for entry in shard.list(&format!("{namespace}/"), "").0 {
            add(&mut used, quota, resource, &entry.value());
        }
    }
    used
}

/// What an object uses, where the quota is about it.
fn add(used: &mut Amounts, quota: &Value, resource: &Resource, value: &Value) {
    if usage::is_in_scope(quota, resource, value) {
        amounts::add(used, &usage::of(&resource.group, &resource.plural, value));
    }
}

/// Counts anew what the quotas of a namespace say to be used.
pub async fn recount(api: &Api, namespace: &str) -> Result<(), Failure> {
    let catalog = api.served.now();
    let Some(resource) = catalog.by_storage(STORAGE) else {
        return Ok(());
    };
    let _lock = api.quotas.lock(namespace).await;
    api.cache.fresh().await?;
    let actor = Actor::internal("resourcequota-controller");
    for entry in api
        .cache
        .shard(STORAGE)
        .list(&format!("{namespace}/"), "")
        .0
    {
        write::modify(
            api,
            &actor,
            resource,
            namespace,
            entry.name(),
            Part::Whole,
            |quota| {
                let mut new = quota.clone();
                set_status(&mut new, |quota| count(api, namespace, quota));
                Ok(new)
            },
        )
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::Catalog;

    /// All that quotas bound of what [`object`] makes.
    fn hard() -> Value {
        let names = [
            "configmaps",
            "count/deployments.apps",
            "count/pods",
            "cpu",
            "fast.storageclass.storage.k8s.io/persistentvolumeclaims",
            "fast.storageclass.storage.k8s.io/requests.storage",
            "limits.memory",
            "persistentvolumeclaims",
            "pods",
            "requests.cpu",
            "requests.example.com/gpu",
            "requests.storage",
            "services",
            "services.loadbalancers",
            "services.nodeports",
        ];
        names.iter().map(|name| (*name, json!("1000"))).collect()
    }

    fn pod() -> impl Strategy<Value = Value> {
        let container = (0..3_u8, 0..2_000_u16, 0..3_u8).prop_map(|(gpus, milli, gibi)| {
            let requests = json!({"cpu": format!("{milli}m"), "example.com/gpu": gpus.to_string()});
            match gibi {
                0 => json!({"resources": {"requests": requests}}),
                some => json!({"resources": {"requests": requests, "limits": {"memory": format!("{some}Gi")}}}),
            }
        });
        let containers =
            |most| prop::collection::vec(prop_oneof![container.clone(), Just(json!({}))], 0..most);
        let is_over =
            prop::sample::select(vec!["Pending", "Running", "Running", "Succeeded", "Failed"]);
        let deadline = prop::option::of(1..9_u8);
        let class = prop::sample::select(vec!["", "high", "low"]);
        (containers(3), containers(3), is_over, deadline, class).prop_map(
            |(containers, inits, phase, deadline, class)| {
                json!({
                    "spec": {
                        "containers": containers,
                        "initContainers": inits,
                        "activeDeadlineSeconds": deadline,
                        "priorityClassName": class,
                    },
                    "status": {"phase": phase},
                })
            },
        )
    }

    /// Group, plural and object.
    fn object() -> impl Strategy<Value = (&'static str, &'static str, Value)> {
        let types = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
        let service = (types, 1..4_usize).prop_map(
            |(kind, ports)| json!({"spec": {"type": kind, "ports": vec![json!({}); ports]}}),
        );
        let class = prop::sample::select(vec!["fast", "slow"]);
        let claim = (class, 1..9_u8).prop_map(|(class, gibi)| {
            let requests = json!({"storage": format!("{gibi}Gi")});
            json!({"spec": {"storageClassName": class, "resources": {"requests": requests}}})
        });
        prop_oneof![
            3 => pod().prop_map(|it| ("", "pods", it)),
            1 => service.prop_map(|it| ("", "services", it)),
            1 => claim.prop_map(|it| ("", "persistentvolumeclaims", it)),
            1 => Just(("", "configmaps", json!({}))),
            1 => Just(("apps", "deployments", json!({}))),
        ]
    }

    fn scopes() -> impl Strategy<Value = Value> {
        prop::sample::select(vec![
            json!({}),
            json!({"scopes": ["BestEffort"]}),
            json!({"scopes": ["NotBestEffort", "Terminating"]}),
            json!({"scopes": ["NotTerminating"]}),
            json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}),
        ])
    }

    /// What [`charge`] writes for it.
    fn charged(
        used: &mut Amounts,
        quota: &Value,
        resource: &Resource,
        old: Option<&Value>,
        new: &Value,
    ) {
        let hard = amounts::of(quota.pointer("/spec/hard"));
        if usage::is_in_scope(quota, resource, new) {
            amounts::add(used, &more(resource, &hard, old, new));
        }
    }

    /// What [`count`] finds.
    fn counted<'a>(
        quota: &Value,
        all: impl IntoIterator<Item = &'a (Arc<Resource>, Value)>,
    ) -> BTreeMap<String, i128> {
        let hard = amounts::of(quota.pointer("/spec/hard"));
        let mut used = Amounts::new();
        for (resource, value) in all {
            add(&mut used, quota, resource, value);
        }
        used.retain(|name, _| hard.contains_key(name));
        nanos(used)
    }

    /// Those that are something.
    fn nanos(amounts: Amounts) -> BTreeMap<String, i128> {
        let all = amounts
            .into_iter()
            .map(|(name, amount)| (name, amount.nano));
        all.filter(|(_, nano)| *nano > 0).collect()
    }

    proptest! {
        #[test]
        fn what_creates_are_charged_is_what_is_counted_then(
            objects in prop::collection::vec(object(), 0..12), spec in scopes()
        ) {
            let catalog = Catalog::of(&[], 1);
            let mut quota = json!({"spec": spec});
            quota["spec"]["hard"] = hard();
            let (mut used, mut all) = (Amounts::new(), Vec::new());
            for (group, plural, value) in objects {
                let resource = catalog.resource(group, "v1", plural).expect(plural).clone();
                // nothing is charged that is not looked for among these objects when it is counted
                for name in usage::of(group, plural, &value).keys() {
                    prop_assert_eq!(usage::source(name), (group, plural), "{}", name);
                }
                charged(&mut used, &quota, &resource, None, &value);
                all.push((resource, value));
                prop_assert_eq!(nanos(used.clone()), counted(&quota, &all));
            }
        }

        #[test]
        fn an_update_is_charged_what_it_adds_and_given_back_nothing_until_it_is_counted(
            pods in prop::collection::vec(pod(), 1..8)
        ) {
            let catalog = Catalog::of(&[], 1);
            let resource = catalog.resource("", "v1", "pods").expect("pods");
            let quota = json!({"spec": {"hard": hard()}});
            let count = |pod: &Option<Value>| {
                counted(&quota, &pod.clone().map(|pod| (resource.clone(), pod)))
            };
            let (mut used, mut less) = (Amounts::new(), BTreeMap::<String, i128>::new());
            let mut old = None;
            for pod in pods {
                charged(&mut used, &quota, resource, old.as_ref(), &pod);
                let before = count(&old);
                old = Some(pod);
                let now = count(&old);
                for (name, amount) in before {
                    let kept = now.get(&name).copied().unwrap_or_default();
                    *less.entry(name).or_default() += (amount - kept).max(0);
                }
                for (name, amount) in nanos(used.clone()) {
                    let now = now.get(&name).copied().unwrap_or_default();
                    let less = less.get(&name).copied().unwrap_or_default();
                    prop_assert_eq!(amount, now + less, "{}", name);
                }
            }
        }
    }
}
