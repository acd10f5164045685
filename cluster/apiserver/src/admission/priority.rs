//! Priority: the number behind a pod's class.

use serde_json::Value;

use super::Act;
use crate::{api::Api, failure::Failure, object};

/// The classes that are built in.
const SYSTEM: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub fn resolve(api: &Api, act: &Act<'_>, pod: &mut Value) -> Result<(), Failure> {
    let named = object::text(pod, "/spec/priorityClassName").to_owned();
    let classes = api.cache.shard("priorityclasses");
    let class = if named.is_empty() {
        let (entries, _) = classes.list("", "");
        entries
            .iter()
            .map(|entry| entry.value())
            .filter(|class| class["globalDefault"] == true)
            .max_by_key(|class| std::cmp::Reverse(class["value"].as_i64().unwrap_or(0)))
    } else {
        match classes.get(&named) {
            Some(entry) => Some(entry.value()),
            None => {
                let known = SYSTEM.iter().find(|(name, _)| *name == named);
                let (name, value) = known.ok_or_else(|| {
                    Failure::forbidden(
                        act.resource,
                        &act.name,
                        format!("no PriorityClass with name {named} was found"),
                    )
                })?;
                Some(serde_json::json!({"metadata": {"name": name}, "value": value}))
            }
        }
    };
    let value = class
        .as_ref()
        .and_then(|class| class["value"].as_i64())
        .unwrap_or(0);
    let asked = object::number(pod, "/spec/priority");
    if asked.is_some_and(|asked| asked != value) {
        return Err(Failure::forbidden(
            act.resource,
            &act.name,
            "the integer value of priority must not be provided in pod spec; priority admission controller computed the wrong priority",
        ));
    }
    let policy = class
        .as_ref()
        .and_then(|class| class["preemptionPolicy"].as_str())
        .unwrap_or("PreemptLowerPriority")
        .to_owned();
    let name = class.as_ref().map(|class| object::name(class).to_owned());
    let spec = object::part(pod, "spec");
    spec.insert("priority".into(), value.into());
    if let Some(name) = name {
        spec.insert("priorityClassName".into(), name.into());
    }
    spec.entry("preemptionPolicy")
        .or_insert_with(|| policy.into());
    Ok(())
}
