//! Which webhooks and policies are asked.

use std::sync::Arc;

use serde_json::Value;

use super::Review;
use crate::{api::Api, catalog::Resource, object, selector::LabelSelector};

/// The version in which the webhook, or a policy's MatchResources, wants what happens; `None`: it is not asked.
pub(in crate::admission) fn matches(
    api: &Api,
    webhook: &Value,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Option<Arc<Resource>> {
    let act = review.act;
    let resource = wanted(api, webhook, review)?;
    let by_object = webhook.get("objectSelector");
    if ![new, review.old]
        .into_iter()
        .flatten()
        .any(|object| selects(by_object, Some(object)))
        && !selects(by_object, None)
    {
        return None;
    }
    let by_namespace = webhook.get("namespaceSelector");
    let in_namespace = if act.resource.is("", "namespaces") {
        selects(by_namespace, new.or(review.old))
    } else if act.namespace.is_empty() {
        true
    } else {
        let entry = api.cache.shard("namespaces").get(act.namespace);
        selects(by_namespace, entry.map(|entry| entry.value()).as_ref())
    };
    in_namespace.then_some(resource)
}

/// By its labels. An absent selector and an empty one select everything, of which nothing is known too.
fn selects(selector: Option<&Value>, object: Option<&Value>) -> bool {
    let empty = selector
        .and_then(Value::as_object)
        .is_none_or(serde_json::Map::is_empty);
    empty
        || object.is_some_and(|object| {
            LabelSelector::of_object(selector).is_some_and(|selector| {
                selector.matches(|key| object.pointer("/metadata/labels")?.get(key)?.as_str())
            })
        })
}

fn wanted(api: &Api, webhook: &Value, review: &Review<'_>) -> Option<Arc<Resource>> {
    let own = review.act.resource;
    let catalog = api.served.now();
    let list = |name: &str| -> Vec<&Value> {
        let rules = webhook.get(name).and_then(Value::as_array);
        rules.into_iter().flatten().collect()
    };
    let mut rules = list("rules");
    rules.extend(list("resourceRules"));
    let excluded = list("excludeResourceRules");
    // A webhook without rules is asked nothing; a binding without any leaves it to its policy's.
    let any = rules.is_empty() && webhook.get("clientConfig").is_none();
    let (sub, operation) = (review.act.subresource, review.operation);
    let served = |group: &str, version: &str| {
        let resource = catalog.resource(group, version, &own.plural)?;
        let by = |rule: &&Value| {
            matches_rule(rule, resource, sub, operation) && names(rule, &review.act.name)
        };
        (any || rules.iter().any(by)).then(|| resource.clone())
    };
    let exact = webhook["matchPolicy"] == "Exact" || own.storage.is_empty();
    let is_excluded = |resource: &Resource| {
        excluded.iter().any(|rule| {
            matches_rule(rule, resource, sub, operation) && names(rule, &review.act.name)
        })
    };
    let mut forms = catalog
        .groups
        .values()
        .flatten()
        .filter_map(|version| version.resources.get(&own.plural))
        .filter(|other| !exact && other.storage == own.storage);
    if !excluded.is_empty() && (is_excluded(own) || forms.any(|form| is_excluded(form))) {
        return None;
    }
    if let Some(own) = served(&own.group, &own.version) {
        return Some(own);
    }
    if exact {
        return None;
    }
    // The same objects by another group or version: a rule is not gone round by asking there.
    catalog.groups.iter().find_map(|(group, versions)| {
        versions.iter().find_map(|version| {
            served(group, &version.name).filter(|other| other.storage == own.storage)
        })
    })
}

/// Its resourceNames, which a policy's rule may have.
fn names(rule: &Value, name: &str) -> bool {
    let names = rule["resourceNames"].as_array();
    names.is_none_or(|names| names.is_empty() || names.iter().any(|one| one == name))
}

fn has(rule: &Value, list: &str, word: &str) -> bool {
    rule[list]
        .as_array()
        .into_iter()
        .flatten()
        .any(|one| one == "*" || one == word)
}

fn matches_rule(rule: &Value, resource: &Resource, sub: &str, operation: &str) -> bool {
    let plural = resource.plural.as_str();
    let by_resource = rule["resources"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(|one| match one.split_once('/') {
            None => sub.is_empty() && (one == "*" || one == plural),
            Some((of, wanted)) => {
                (of == "*" || of == plural) && (wanted == "*" || (!sub.is_empty() && wanted == sub))
            }
        });
    // A namespace is as much in a namespace as what is in it is not: it is the cluster's.
    let by_scope = match object::text(rule, "/scope") {
        "Cluster" => !resource.namespaced,
        "Namespaced" => resource.namespaced,
        _ => true,
    };
    by_resource
        && by_scope
        && has(rule, "operations", operation)
        && has(rule, "apiGroups", &resource.group)
        && has(rule, "apiVersions", &resource.version)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn a_rule_matches_as_upstream_has_it() {
        let catalog = Catalog::of(&[], 1);
        let rule = |resources: &[&str], scope: &str| {
            json!({
                "operations": ["CREATE", "UPDATE"],
                "apiGroups": ["", "apps"],
                "apiVersions": ["v1"],
                "resources": resources,
                "scope": scope,
            })
        };
        for (resources, scope, group, plural, sub, operation, matches) in [
            (["pods"], "*", "", "pods", "", "CREATE", true),
            (["pods"], "*", "", "pods", "status", "UPDATE", false),
            (["pods/status"], "*", "", "pods", "status", "UPDATE", true),
            (["pods/status"], "*", "", "pods", "", "UPDATE", false),
            (["pods/*"], "*", "", "pods", "", "CREATE", true),
            (["pods/*"], "*", "", "pods", "exec", "CREATE", true),
            (["*"], "*", "", "pods", "", "CREATE", true),
            (["*"], "*", "", "pods", "status", "UPDATE", false),
            (["*/*"], "*", "", "pods", "status", "UPDATE", true),
            (
                ["*/scale"],
                "*",
                "apps",
                "deployments",
                "scale",
                "UPDATE",
                true,
            ),
            (["*/scale"], "*", "apps", "deployments", "", "UPDATE", false),
            (["pods"], "*", "", "pods", "", "DELETE", false),
            (["pods"], "Cluster", "", "pods", "", "CREATE", false),
            (["nodes"], "Cluster", "", "nodes", "", "CREATE", true),
            (["nodes"], "Namespaced", "", "nodes", "", "CREATE", false),
            (["jobs"], "*", "batch", "jobs", "", "CREATE", false),
        ] {
            let resource = catalog.resource(group, "v1", plural).expect(plural);
            assert_eq!(
                matches_rule(&rule(&resources, scope), resource, sub, operation),
                matches,
                "{resources:?} {scope} {plural}/{sub} {operation}"
            );
        }
    }

    #[test]
    fn a_selector_takes_what_has_its_labels() {
        let object = json!({"metadata": {"labels": {"a": "b"}}});
        for (selector, selected) in [
            (json!({}), true),
            (json!({"matchLabels": {"a": "b"}}), true),
            (json!({"matchLabels": {"a": "c"}}), false),
            (
                json!({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}),
                true,
            ),
        ] {
            assert_eq!(
                selects(Some(&selector), Some(&object)),
                selected,
                "{selector}"
            );
        }
        assert!(selects(None, None));
        assert!(!selects(Some(&json!({"matchLabels": {"a": "b"}})), None));
    }
}
