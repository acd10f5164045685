use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn user(name: &str, groups: &[&str]) -> User {
    User {
        username: name.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..User::default()
    }
}

/// `VERB GROUP/RESOURCE[/SUBRESOURCE] [NAMESPACE [NAME]]`, or `VERB /PATH`.
fn asked(text: &str) -> Attributes {
    let words: Vec<_> = text.split(' ').collect();
    let word = |n: usize| words.get(n).copied().unwrap_or_default().to_owned();
    if word(1).starts_with('/') {
        return Attributes {
            verb: word(0),
            path: word(1),
            ..Attributes::default()
        };
    }
    let what = word(1);
    let mut what = what.split('/').map(str::to_owned);
    let group = what.next().unwrap();
    Attributes {
        verb: word(0),
        group: if group == "core" {
            String::new()
        } else {
            group
        },
        version: "v1".to_owned(),
        resource: what.next().unwrap(),
        subresource: what.next().unwrap_or_default(),
        namespace: word(2).replace('-', ""),
        name: word(3),
        ..Attributes::default()
    }
}

fn load(objects: impl IntoIterator<Item = Value>) -> Rbac {
    let rbac = Rbac::new();
    for object in objects {
        set(&rbac, &object, true);
    }
    rbac
}

fn set(rbac: &Rbac, object: &Value, there: bool) {
    let resource = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = object["metadata"]["name"].as_str().unwrap();
    rbac.set(&resource, namespace, name, there.then_some(object));
}

fn may(rbac: &Rbac, user: &User, text: &str) -> bool {
    matches!(rbac.authorize(user, &asked(text)), Decision::Allow { .. })
}

fn role(namespace: &str, name: &str, rules: Value) -> Value {
    let kind = if namespace.is_empty() {
        "ClusterRole"
    } else {
        "Role"
    };
    json!({ "kind": kind, "metadata": { "name": name, "namespace": namespace }, "rules": rules })
}

fn binding(namespace: &str, name: &str, role: (&str, &str), subjects: Value) -> Value {
    let kind = if namespace.is_empty() {
        "ClusterRoleBinding"
    } else {
        "RoleBinding"
    };
    json!({
        "kind": kind,
        "metadata": { "name": name, "namespace": namespace },
        "roleRef": { "kind": role.0, "name": role.1 },
        "subjects": subjects,
    })
}

#[test]
fn the_default_roles_are_read_whole_and_mean_what_they_say() {
    let objects = Rbac::defaults();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for object in &objects {
        *kinds.entry(object["kind"].as_str().unwrap()).or_default() += 1;
        if let Some(rules) = object["rules"].as_array() {
            assert!(
                !rules.is_empty() || object["aggregationRule"].is_object(),
                "{object}"
            );
            for rule in rules {
                assert!(!rule["verbs"].as_array().unwrap().is_empty());
            }
        } else {
            assert!(
                !object["subjects"].as_array().unwrap().is_empty(),
                "{object}"
            );
        }
    }
    assert_eq!(kinds["Role"], 7);
    assert_eq!(kinds["RoleBinding"], 7);
    assert!(kinds["ClusterRole"] > 60, "{kinds:?}");
    let rbac = load(objects);
    let bind = |role: &str, to: &str| {
        let subjects = json!([{ "kind": "User", "name": to }]);
        set(
            &rbac,
            &binding("ns", to, ("ClusterRole", role), subjects),
            true,
        );
    };
    bind("admin", "ann");
    bind("edit", "ed");
    bind("view", "vi");
    let table = [
        ("ann", "create rbac.authorization.k8s.io/roles ns", true),
        ("ed", "create rbac.authorization.k8s.io/roles ns", false),
        ("ed", "create apps/deployments ns", true),
        ("ed", "get core/secrets ns", true),
        ("ed", "create core/pods/exec ns", true),
        ("vi", "get core/secrets ns", false),
        ("vi", "get core/pods/log ns", true),
        ("vi", "create core/pods/exec ns", false),
        ("vi", "list core/pods ns", true),
        ("vi", "delete core/pods ns", false),
        ("ann", "list core/pods ns", true),
        ("ann", "list core/pods other", false),
        ("ann", "list core/pods", false),
        ("ann", "list core/nodes", false),
        ("ann", "get core/resourcequotas ns", true),
        ("ann", "update core/resourcequotas ns", false),
    ];
    for (who, what, allowed) in table {
        assert_eq!(may(&rbac, &user(who, &[]), what), allowed, "{who}: {what}");
    }
    let anonymous = User::anonymous();
    assert!(may(&rbac, &anonymous, "get /version"));
    assert!(may(&rbac, &anonymous, "get /healthz"));
    assert!(!may(&rbac, &anonymous, "get /apis"));
    assert!(!may(&rbac, &anonymous, "get core/pods ns"));
    let someone = user("x", &[crate::AUTHENTICATED]);
    assert!(may(&rbac, &someone, "get /apis/apps/v1"));
    assert!(may(
        &rbac,
        &someone,
        "create authorization.k8s.io/selfsubjectaccessreviews"
    ));
    assert!(!may(&rbac, &someone, "get /metrics"));
    let master = user("root", &[crate::MASTERS]);
    assert!(may(&rbac, &master, "delete core/nodes - n1"));
    assert!(may(&rbac, &master, "post /anything"));
    let gc = user(
        "system:serviceaccount:kube-system:generic-garbage-collector",
        &[],
    );
    assert!(may(&rbac, &gc, "delete apps/replicasets ns x"));
    assert!(!may(&rbac, &gc, "create apps/replicasets ns x"));
}

#[test]
fn a_reason_names_the_binding_the_role_and_the_subject() {
    let rbac = load([
        role(
            "",
            "reader",
            json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]),
        ),
        binding(
            "ns",
            "b",
            ("ClusterRole", "reader"),
            json!([{ "kind": "ServiceAccount", "name": "sa" }]),
        ),
        binding(
            "",
            "all",
            ("ClusterRole", "reader"),
            json!([{ "kind": "Group", "name": "g" }]),
        ),
    ]);
    let reason = |user: User| match rbac.authorize(&user, &asked("get core/pods ns p")) {
        Decision::Allow { reason } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        reason(user("system:serviceaccount:ns:sa", &[])),
        "RBAC: allowed by RoleBinding \"b/ns\" of ClusterRole \"reader\" to ServiceAccount \"sa/ns\""
    );
    assert_eq!(
        reason(user("x", &["g"])),
        "RBAC: allowed by ClusterRoleBinding \"all\" of ClusterRole \"reader\" to Group \"g\""
    );
}

#[test]
fn what_is_taken_away_holds_no_longer() {
    let reader = role(
        "ns",
        "reader",
        json!([{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }]),
    );
    let bound = binding(
        "ns",
        "b",
        ("Role", "reader"),
        json!([{ "kind": "User", "name": "u" }]),
    );
    let rbac = load([reader.clone(), bound.clone()]);
    let u = user("u", &[]);
    assert!(may(&rbac, &u, "get core/pods ns p"));
    set(&rbac, &reader, false);
    assert!(!may(&rbac, &u, "get core/pods ns p"));
    set(&rbac, &reader, true);
    assert!(may(&rbac, &u, "get core/pods ns p"));
    // Bound to someone else instead.
    let other = binding(
        "ns",
        "b",
        ("Role", "reader"),
        json!([{ "kind": "User", "name": "v" }]),
    );
    set(&rbac, &other, true);
    assert!(!may(&rbac, &u, "get core/pods ns p"));
    assert!(may(&rbac, &user("v", &[]), "get core/pods ns p"));
    set(&rbac, &other, false);
    assert!(!may(&rbac, &user("v", &[]), "get core/pods ns p"));
    assert!(rbac.read().subjects.is_empty());
}

#[test]
fn sec_api_09_nobody_hands_out_more_than_they_have() {
    let pods =
        json!([{ "verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"] }]);
    let rbac = load([
        role("", "pods", pods.clone()),
        role(
            "ns",
            "some",
            json!([{ "verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web", "db"] }]),
        ),
        role(
            "",
            "everything",
            json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
        ),
        role(
            "",
            "escalator",
            json!([{ "verbs": ["escalate"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "roles"] }]),
        ),
        role(
            "",
            "binder",
            json!([{ "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["everything"] }]),
        ),
        role(
            "",
            "urls",
            json!([{ "verbs": ["get"], "nonResourceURLs": ["/metrics/*"] }]),
        ),
        binding(
            "",
            "b1",
            ("ClusterRole", "pods"),
            json!([{ "kind": "User", "name": "u" }]),
        ),
        binding(
            "ns",
            "b2",
            ("Role", "some"),
            json!([{ "kind": "User", "name": "u" }]),
        ),
        binding(
            "",
            "b3",
            ("ClusterRole", "urls"),
            json!([{ "kind": "User", "name": "u" }]),
        ),
        binding(
            "ns",
            "b4",
            ("ClusterRole", "escalator"),
            json!([{ "kind": "User", "name": "e" }]),
        ),
        binding(
            "",
            "b5",
            ("ClusterRole", "binder"),
            json!([{ "kind": "User", "name": "b" }]),
        ),
    ]);
    let u = user("u", &["g"]);
    let rule = |verbs: &[&str], group: &str, resource: &str, names: &[&str]| json!([{ "verbs": verbs, "apiGroups": [group], "resources": [resource], "resourceNames": names }]);
    let table = [
        ("", pods, true),
        ("ns", rule(&["get"], "", "pods", &[]), true),
        ("", rule(&["get"], "", "pods", &["one"]), true),
        ("", rule(&["watch"], "", "pods", &[]), false),
        ("", rule(&["*"], "", "pods", &[]), false),
        ("", rule(&["get"], "", "*", &[]), false),
        ("", rule(&["get"], "*", "pods", &[]), false),
        ("", rule(&["get"], "", "pods/status", &[]), false),
        ("", rule(&["get"], "", "*/log", &[]), false),
        (
            "ns",
            rule(&["delete"], "apps", "deployments", &["web"]),
            true,
        ),
        (
            "ns",
            rule(&["*"], "apps", "deployments", &["db", "web"]),
            true,
        ),
        ("ns", rule(&["delete"], "apps", "deployments", &[]), false),
        (
            "ns",
            rule(&["delete"], "apps", "deployments", &["web", "other"]),
            false,
        ),
        (
            "other",
            rule(&["delete"], "apps", "deployments", &["web"]),
            false,
        ),
        (
            "",
            rule(&["delete"], "apps", "deployments", &["web"]),
            false,
        ),
        (
            "",
            json!([{ "verbs": ["get"], "nonResourceURLs": ["/metrics/a", "/metrics/*"] }]),
            true,
        ),
        (
            "",
            json!([{ "verbs": ["get"], "nonResourceURLs": ["/metrics"] }]),
            false,
        ),
        (
            "",
            json!([{ "verbs": ["get"], "nonResourceURLs": ["*"] }]),
            false,
        ),
        ("", json!([]), true),
    ];
    for (namespace, rules, allowed) in table {
        let new = role(namespace, "new", rules);
        let said = rbac.may_write_role(&u, &new);
        assert_eq!(said.is_ok(), allowed, "{new}: {said:?}");
        if let Err(said) = said {
            assert!(said.starts_with("user \"u\" (groups=[\"g\"]) is attempting to grant RBAC permissions not currently held:\n{"), "{said}");
        }
    }
    let everything = role(
        "",
        "new",
        json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
    );
    assert!(
        rbac.may_write_role(&user("root", &[crate::MASTERS]), &everything)
            .is_ok()
    );
    let mut within = everything.clone();
    within["kind"] = "Role".into();
    within["metadata"]["namespace"] = "ns".into();
    assert!(rbac.may_write_role(&user("e", &[]), &within).is_ok());
    assert!(
        rbac.may_write_role(&user("e", &[]), &everything).is_err(),
        "only in its namespace"
    );
    let mut aggregated = role("", "new", json!([]));
    aggregated["aggregationRule"] = json!({ "clusterRoleSelectors": [{}] });
    assert!(rbac.may_write_role(&u, &aggregated).is_err());
    // Bindings.
    let to = |role: &str| binding("ns", "new", ("ClusterRole", role), json!([]));
    assert!(rbac.may_write_binding(&u, &to("pods")).is_ok());
    assert!(rbac.may_write_binding(&u, &to("everything")).is_err());
    assert!(rbac.may_write_binding(&u, &to("none")).is_err());
    assert!(
        rbac.may_write_binding(&user("b", &[]), &to("everything"))
            .is_ok()
    );
    assert!(
        rbac.may_write_binding(&user("b", &[]), &to("pods"))
            .is_err()
    );
    let cluster = binding("", "new", ("ClusterRole", "everything"), json!([]));
    assert!(rbac.may_write_binding(&u, &cluster).is_err());
}

#[test]
fn aggregation_follows_labels_and_comes_to_an_end() {
    let labelled = |name: &str, label: &str, selects: &str, resource: &str| {
        let mut role = role(
            "",
            name,
            json!([{ "verbs": ["get"], "apiGroups": [""], "resources": [resource] }]),
        );
        role["metadata"]["labels"] = json!({ label: "true" });
        if !selects.is_empty() {
            role["aggregationRule"] =
                json!({ "clusterRoleSelectors": [{ "matchLabels": { selects: "true" } }] });
        }
        role
    };
    // Two that select each other, and one that both have.
    let rbac = load([
        labelled("a", "x", "y", "own-a"),
        labelled("b", "y", "x", "own-b"),
        labelled("c", "y", "", "pods"),
        binding(
            "",
            "b",
            ("ClusterRole", "b"),
            json!([{ "kind": "User", "name": "u" }]),
        ),
    ]);
    assert!(may(&rbac, &user("u", &[]), "get core/pods ns"));
    assert!(
        !may(&rbac, &user("u", &[]), "get core/own-b ns"),
        "its own rules are replaced"
    );
    let rules = rbac.aggregated("a").unwrap();
    assert_eq!(
        rules,
        [json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] })]
    );
    assert_eq!(rbac.aggregated("c"), None);
    assert_eq!(rbac.aggregated("none"), None);
}

// SEC-API-09: random roles, against one that looks at everything and knows no index.

fn pick(words: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(prop::sample::select(words), 0..3)
        .prop_map(|words| words.into_iter().map(str::to_owned).collect())
}

const VERBS: &[&str] = &["get", "list", "create", "*"];
const GROUPS: &[&str] = &["", "apps", "*"];
const RESOURCES: &[&str] = &["pods", "pods/log", "nodes", "*/log", "*", "secrets"];
const NAMES: &[&str] = &["a", "b"];
const URLS: &[&str] = &["/api", "/api/*", "/metrics", "*"];
const NAMESPACES: &[&str] = &["", "n1", "n2"];
const ROLES: &[&str] = &["r1", "r2", "r3"];

prop_compose! {
    fn any_rule()(verbs in pick(VERBS), groups in pick(GROUPS), resources in pick(RESOURCES), names in pick(NAMES), urls in pick(URLS), url in any::<bool>()) -> Value {
        match url {
            true => json!({ "verbs": verbs, "nonResourceURLs": urls }),
            false => json!({ "verbs": verbs, "apiGroups": groups, "resources": resources, "resourceNames": names }),
        }
    }
}

prop_compose! {
    fn any_role()(namespace in prop::sample::select(NAMESPACES), name in prop::sample::select(ROLES), rules in prop::collection::vec(any_rule(), 0..3), label in any::<bool>(), aggregates in 0..5) -> Value {
        let mut role = role(namespace, name, json!(rules));
        if namespace.is_empty() {
            role["metadata"]["labels"] = json!({ "yes": label.to_string() });
            if aggregates == 0 {
                role["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "yes": "true" } }] });
            }
        }
        role
    }
}

prop_compose! {
    fn any_binding()(namespace in prop::sample::select(NAMESPACES), name in prop::sample::select(NAMES), cluster in any::<bool>(), role in prop::sample::select(ROLES), who in prop::sample::select(&["u", "g", "s"][..]), within in prop::sample::select(NAMESPACES)) -> Value {
        let subject = match who {
            "u" => json!({ "kind": "User", "name": "u" }),
            "g" => json!({ "kind": "Group", "name": "g" }),
            _ => json!({ "kind": "ServiceAccount", "name": "s", "namespace": within }),
        };
        binding(namespace, name, (if cluster { "ClusterRole" } else { "Role" }, role), json!([subject]))
    }
}

prop_compose! {
    fn any_question()(verb in prop::sample::select(&["get", "list", "create"][..]), group in prop::sample::select(&["", "apps", "batch"][..]), resource in prop::sample::select(&["pods", "nodes", "secrets"][..]), subresource in prop::sample::select(&["", "log"][..]), namespace in prop::sample::select(NAMESPACES), name in prop::sample::select(&["", "a", "b"][..]), path in prop::sample::select(&["", "", "/api", "/api/v1", "/metrics"][..])) -> Attributes {
        let text = str::to_owned;
        match path {
            "" => Attributes { verb: text(verb), group: text(group), resource: text(resource), subresource: text(subresource), namespace: text(namespace), name: text(name), ..Attributes::default() },
            path => Attributes { verb: text(verb), path: text(path), ..Attributes::default() },
        }
    }
}

fn oracle(objects: &[Value], user: &User, asked: &Attributes) -> bool {
    // The last of a kind, namespace and name is the one that is there.
    let there = |kind: &str, namespace: &str, name: &str| {
        objects.iter().rev().find(|o| {
            o["kind"] == kind
                && o["metadata"]["namespace"] == namespace
                && o["metadata"]["name"] == name
        })
    };
    fn rules(objects: &[Value], role: &Value, depth: usize) -> Vec<Value> {
        if !role["aggregationRule"].is_object() {
            return role["rules"].as_array().cloned().unwrap_or_default();
        }
        if depth == 0 {
            return vec![];
        }
        let mut found = vec![];
        for name in ROLES {
            let other = objects
                .iter()
                .rev()
                .find(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == *name);
            if let Some(other) = other.filter(|o| o["metadata"]["labels"]["yes"] == "true") {
                found.extend(rules(objects, other, depth - 1));
            }
        }
        found
    }
    let has = |list: &Value, fits: &dyn Fn(&str) -> bool| {
        list.as_array()
            .is_some_and(|list| list.iter().any(|one| fits(one.as_str().unwrap())))
    };
    let full = match asked.subresource.is_empty() {
        true => asked.resource.clone(),
        false => format!("{}/{}", asked.resource, asked.subresource),
    };
    for binding in objects {
        let (kind, namespace) = (
            binding["kind"].as_str().unwrap(),
            binding["metadata"]["namespace"].as_str().unwrap(),
        );
        if !kind.ends_with("Binding")
            || there(
                kind,
                namespace,
                binding["metadata"]["name"].as_str().unwrap(),
            ) != Some(binding)
        {
            continue;
        }
        let subject = &binding["subjects"][0];
        let name = subject["name"].as_str().unwrap();
        let is = match subject["kind"].as_str().unwrap() {
            "User" => user.username == name,
            "Group" => user.groups.iter().any(|group| group == name),
            _ => {
                let within = match subject["namespace"].as_str().unwrap() {
                    "" => namespace,
                    within => within,
                };
                user.username == format!("system:serviceaccount:{within}:{name}")
            }
        };
        let reaches = kind == "ClusterRoleBinding" || namespace == asked.namespace;
        let role = match binding["roleRef"]["kind"].as_str().unwrap() {
            "Role" if kind == "RoleBinding" => there(
                "Role",
                namespace,
                binding["roleRef"]["name"].as_str().unwrap(),
            ),
            "Role" => None,
            _ => there(
                "ClusterRole",
                "",
                binding["roleRef"]["name"].as_str().unwrap(),
            ),
        };
        let Some(role) = role.filter(|_| is && reaches) else {
            continue;
        };
        for rule in rules(objects, role, 4) {
            let verb = has(&rule["verbs"], &|verb| verb == "*" || verb == asked.verb);
            let fits = if asked.resource.is_empty() {
                has(
                    &rule["nonResourceURLs"],
                    &|url| match url.strip_suffix('*') {
                        Some(start) => asked.path.starts_with(start),
                        None => url == asked.path,
                    },
                )
            } else {
                has(&rule["apiGroups"], &|group| {
                    group == "*" || group == asked.group
                }) && has(&rule["resources"], &|resource| {
                    resource == "*"
                        || resource == full
                        || (!asked.subresource.is_empty()
                            && resource == format!("*/{}", asked.subresource))
                }) && (rule["resourceNames"].as_array().is_none_or(Vec::is_empty)
                    || has(&rule["resourceNames"], &|name| name == asked.name))
            };
            if verb && fits {
                return true;
            }
        }
    }
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn sec_api_09_the_index_says_what_a_look_at_everything_says(
        objects in prop::collection::vec(prop_oneof![any_role(), any_binding()], 0..14),
        questions in prop::collection::vec(any_question(), 1..20),
    ) {
        let rbac = load(objects.clone());
        for asked in &questions {
            for who in [user("u", &[]), user("x", &["g"]), user("system:serviceaccount:n1:s", &["h", "g"])] {
                let said = matches!(rbac.authorize(&who, asked), Decision::Allow { .. });
                prop_assert_eq!(said, oracle(&objects, &who, asked), "{:?} {:?}", who, asked);
            }
        }
    }

    /// What one may hand out, others have then no more than one has oneself; but for who may `escalate`.
    #[test]
    fn sec_api_09_no_role_that_may_be_written_allows_more_than_its_writer_has(
        objects in prop::collection::vec(prop_oneof![any_role(), any_binding()], 0..14),
        rules in prop::collection::vec(any_rule(), 1..3),
        questions in prop::collection::vec(any_question(), 1..30),
    ) {
        let writer = user("u", &["g"]);
        let rbac = load(objects);
        let new = role("", "new", json!(rules));
        let escalate = Attributes {
            verb: "escalate".into(),
            group: "rbac.authorization.k8s.io".into(),
            version: "v1".into(),
            resource: "clusterroles".into(),
            name: "new".into(),
            ..Attributes::default()
        };
        let escalates = matches!(rbac.authorize(&writer, &escalate), Decision::Allow { .. });
        if !escalates && rbac.may_write_role(&writer, &new).is_ok() {
            let bound = binding("", "new", ("ClusterRole", "new"), json!([{ "kind": "User", "name": "other" }]));
            set(&rbac, &new, true);
            set(&rbac, &bound, true);
            for asked in &questions {
                let before = matches!(rbac.authorize(&writer, asked), Decision::Allow { .. });
                let other = matches!(rbac.authorize(&user("other", &[]), asked), Decision::Allow { .. });
                prop_assert!(before || !other, "{:?}", asked);
            }
        }
    }
}
