//! The roles and bindings that a cluster starts with: Kubernetes 1.36's, from the table in `defaults.txt`.
//!
//! ```text
//! cluster NAME [+admin|+edit|+view] [=admin|=edit|=view]    a ClusterRole: which roles have it among theirs, which it is made of
//! role NAMESPACE NAME
//!     VERBS GROUPS RESOURCES [NAMES]                        with commas; `core` is the group without a name, `r` get,list,watch,
//!     VERBS PATHS                                           `w` create,delete,deletecollection,patch,update, `EVENTS` the right to tell events
//! bind ROLE TO…                                             a ClusterRoleBinding of the same name; u/USER g/GROUP s/NAMESPACE/NAME
//! bind NAMESPACE NAME ROLE TO…                              a RoleBinding of a Role
//! controller NAME                                           a ClusterRole system:controller:NAME, bound to kube-system's ServiceAccount NAME
//! ```

use serde_json::{Value, json};

const TABLE: &str = include_str!("defaults.txt");
const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn all() -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    // A controller's binding follows its role, whose rules follow its name.
    let mut bindings = Vec::new();
    for line in TABLE.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some(rules) = objects
                .last_mut()
                .and_then(|role| role["rules"].as_array_mut())
            {
                rules.push(rule(&words));
            }
            continue;
        }
        match words[..] {
            ["cluster", name, ref marks @ ..] => objects.push(cluster_role(name, marks)),
            ["controller", name] => {
                let role = format!("system:controller:{name}");
                objects.push(cluster_role(&role, &[]));
                bindings.push(cluster_binding(&role, &[&format!("s/kube-system/{name}")]));
            }
            ["role", namespace, name] => {
                let mut role = object("Role", name);
                role["metadata"]["namespace"] = namespace.into();
                role["rules"] = json!([]);
                objects.push(role);
            }
            ["bind", name, ref to @ ..] if to[0].contains('/') => {
                bindings.push(cluster_binding(name, to));
            }
            ["bind", namespace, name, role, ref to @ ..] => {
                let mut binding = object("RoleBinding", name);
                binding["metadata"]["namespace"] = namespace.into();
                binding["roleRef"] = json!({ "apiGroup": GROUP, "kind": "Role", "name": role });
                binding["subjects"] = to.iter().map(|to| subject(to)).collect();
                bindings.push(binding);
            }
            _ => {}
        }
    }
    objects.extend(bindings);
    objects
}

fn object(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"),
        "kind": kind,
        "metadata": {
            "name": name,
            "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
            "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
        },
    })
}

fn cluster_role(name: &str, marks: &[&str]) -> Value {
    let mut role = object("ClusterRole", name);
    role["rules"] = json!([]);
    for mark in marks {
        let label = format!("{GROUP}/aggregate-to-{}", &mark[1..]);
        if mark.starts_with('+') {
            role["metadata"]["labels"][label] = "true".into();
        } else {
            role["aggregationRule"] =
                json!({ "clusterRoleSelectors": [{ "matchLabels": { label: "true" } }] });
        }
    }
    role
}

fn cluster_binding(name: &str, to: &[&str]) -> Value {
    let mut binding = object("ClusterRoleBinding", name);
    binding["roleRef"] = json!({ "apiGroup": GROUP, "kind": "ClusterRole", "name": name });
    binding["subjects"] = to.iter().map(|to| subject(to)).collect();
    binding
}

fn subject(to: &str) -> Value {
    match to.split_once('/') {
        Some(("u", name)) => json!({ "apiGroup": GROUP, "kind": "User", "name": name }),
        Some(("s", account)) => {
            let (namespace, name) = account.split_once('/').unwrap_or(("", account));
            json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name })
        }
        _ => {
            json!({ "apiGroup": GROUP, "kind": "Group", "name": to.strip_prefix("g/").unwrap_or(to) })
        }
    }
}

fn rule(words: &[&str]) -> Value {
    let list = |text: &str| -> Vec<String> {
        text.split(',')
            .flat_map(|word| {
                match word {
                    "r" => &["get", "list", "watch"][..],
                    "w" => &["create", "delete", "deletecollection", "patch", "update"],
                    "core" => &[""],
                    _ => &[],
                }
                .iter()
                .map(|word| (*word).to_owned())
                .chain((!matches!(word, "r" | "w" | "core")).then(|| word.to_owned()))
            })
            .collect()
    };
    match words {
        ["EVENTS"] => json!({
            "verbs": ["create", "patch", "update"],
            "apiGroups": ["", "events.k8s.io"],
            "resources": ["events"],
        }),
        [verbs, paths] => json!({ "verbs": list(verbs), "nonResourceURLs": list(paths) }),
        [verbs, groups, resources] => json!({
            "verbs": list(verbs),
            "apiGroups": list(groups),
            "resources": list(resources),
        }),
        [verbs, groups, resources, names] => json!({
            "verbs": list(verbs),
            "apiGroups": list(groups),
            "resources": list(resources),
            "resourceNames": list(names),
        }),
        _ => unreachable!("a test reads the whole table: {words:?}"),
    }
}
