//! Who may hand out what: no more than they have, unless they may `escalate` (roles) or `bind` (bindings).

use serde_json::Value;

use super::{Rbac, Rule, rule};
use crate::{Attributes, MASTERS, User};

const GROUP: &str = "rbac.authorization.k8s.io";

impl Rbac {
    /// Whether `user` may write `role` (a Role or ClusterRole, as it would be): who lacks `escalate` may hand out no more than they have. Not to be asked where an update leaves `rules` and `aggregationRule` as they were.
    /// The error is the sentence that a 403 says.
    pub fn may_write_role(&self, user: &User, role: &Value) -> Result<(), String> {
        let (resource, namespace) = match role["kind"].as_str() {
            Some("Role") => ("roles", text(&role["metadata"]["namespace"])),
            _ => ("clusterroles", ""),
        };
        if self.has(
            user,
            "escalate",
            resource,
            namespace,
            text(&role["metadata"]["name"]),
        ) {
            return Ok(());
        }
        // Whoever can label a ClusterRole would decide about its rules.
        if role["aggregationRule"].is_object()
            && !self.missing(user, "", &[everything()]).is_empty()
        {
            return Err("must have cluster-admin privileges to use an aggregationRule".to_owned());
        }
        self.covered(user, namespace, &rule::list(&role["rules"]))
    }

    /// Likewise for a RoleBinding or ClusterRoleBinding and the verb `bind`.
    pub fn may_write_binding(&self, user: &User, binding: &Value) -> Result<(), String> {
        let namespace = match binding["kind"].as_str() {
            Some("RoleBinding") => text(&binding["metadata"]["namespace"]),
            _ => "",
        };
        let name = text(&binding["roleRef"]["name"]);
        let (resource, of) = match binding["roleRef"]["kind"].as_str() {
            Some("Role") => ("roles", namespace),
            _ => ("clusterroles", ""),
        };
        if self.has(user, "bind", resource, namespace, name) {
            return Ok(());
        }
        let rules = {
            let index = self.read();
            let Some(role) = index.roles.get(&(of.to_owned(), name.to_owned())) else {
                return Err(format!("{resource}.{GROUP} {name:?} not found"));
            };
            let mut rules = Vec::new();
            index.visit(role, &mut [name.to_owned()].into(), &mut |rule| {
                rules.push(rule.clone());
                true
            });
            rules
        };
        self.covered(user, namespace, &rules)
    }

    fn has(&self, user: &User, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let asked = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        user.groups.iter().any(|group| group == MASTERS)
            || self.read().allowed(user, &asked).is_some()
    }

    fn covered(&self, user: &User, namespace: &str, rules: &[Rule]) -> Result<(), String> {
        let missing = self.missing(user, namespace, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let groups = user.groups.iter().map(|group| format!("{group:?}"));
        Err(format!(
            "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            user.username,
            groups.collect::<Vec<_>>().join(" "),
            missing.join("\n")
        ))
    }

    /// What of `rules` the user lacks in `namespace`, in words.
    fn missing(&self, user: &User, namespace: &str, rules: &[Rule]) -> Vec<String> {
        let mut own = Vec::new();
        self.read().visit_all(user, namespace, &mut |_, _, rule| {
            own.push(rule.clone());
            true
        });
        let lacks = |part: &rule::Part<'_>| !own.iter().any(|own| own.covers(part));
        let mut missing: Vec<String> = rules
            .iter()
            .flat_map(Rule::parts)
            .filter(lacks)
            .map(|part| match part {
                rule::Part::Resource {
                    verb,
                    group,
                    resource,
                    name,
                } => {
                    let named = name.map(|name| format!(", ResourceNames:[{name:?}]"));
                    format!(
                        "{{APIGroups:[{group:?}], Resources:[{resource:?}]{}, Verbs:[{verb:?}]}}",
                        named.unwrap_or_default()
                    )
                }
                rule::Part::Url { verb, url } => {
                    format!("{{NonResourceURLs:[{url:?}], Verbs:[{verb:?}]}}")
                }
            })
            .collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }
}

fn everything() -> Rule {
    let all = || vec!["*".to_owned()];
    Rule {
        verbs: all(),
        groups: all(),
        resources: all(),
        names: Vec::new(),
        urls: all(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
