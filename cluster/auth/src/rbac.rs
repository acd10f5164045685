//! Roles and their bindings (rbac.authorization.k8s.io/v1).
//!
//! An index of what each user and group is bound to, fed with every object as it changes. A question looks at the bindings of its user and groups only.

mod defaults;
mod escalation;
mod rule;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde_json::Value;

use crate::{Attributes, Authorizer, Decision, User};
use rule::{Rule, Selector};

/// The users of ServiceAccounts: then comes `NAMESPACE:NAME`.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

#[derive(Debug, Default)]
pub struct Rbac(RwLock<Index>);

/// Namespace (empty: of the cluster) and name.
type Name = (String, String);

#[derive(Debug, Default)]
struct Index {
    roles: BTreeMap<Name, Role>,
    bindings: BTreeMap<Name, Binding>,
    /// The bindings of each subject.
    subjects: HashMap<Subject, BTreeSet<Name>>,
}

#[derive(Debug, Default)]
struct Role {
    rules: Vec<Rule>,
    labels: BTreeMap<String, String>,
    /// Of the ClusterRoles whose rules it has: its own count for nothing then.
    aggregates: Option<Vec<Selector>>,
}

#[derive(Debug)]
struct Binding {
    role: Name,
    subjects: Vec<Subject>,
}

/// ServiceAccounts are users.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

impl Rbac {
    pub fn new() -> Self {
        Self::default()
    }

    /// An object as it is now, or that it is gone. Others than `roles`, `clusterroles`, `rolebindings` and `clusterrolebindings` are left alone.
    pub fn set(&self, resource: &str, namespace: &str, name: &str, object: Option<&Value>) {
        let id = match resource {
            "roles" | "rolebindings" => (namespace.to_owned(), name.to_owned()),
            "clusterroles" | "clusterrolebindings" => (String::new(), name.to_owned()),
            _ => return,
        };
        let mut index = self.write();
        match resource {
            "roles" | "clusterroles" => match object {
                Some(object) => {
                    index.roles.insert(id, Role::of(object));
                }
                None => {
                    index.roles.remove(&id);
                }
            },
            _ => index.bind(id, object),
        }
    }

    /// The roles and bindings that a cluster starts with, to be created where missing.
    pub fn defaults() -> Vec<Value> {
        defaults::all()
    }

    /// What a ClusterRole with an `aggregationRule` should have as its rules, by the labels of the others; `None` where it has none.
    pub fn aggregated(&self, name: &str) -> Option<Vec<Value>> {
        let index = self.read();
        let role = index.roles.get(&(String::new(), name.to_owned()))?;
        role.aggregates.as_ref()?;
        let mut rules = Vec::new();
        index.visit(role, &mut BTreeSet::from([name.to_owned()]), &mut |rule| {
            let rule = rule.to_value();
            if !rules.contains(&rule) {
                rules.push(rule);
            }
            true
        });
        Some(rules)
    }

    /// All rules that hold for `user` in `namespace`: what a SelfSubjectRulesReview says, as PolicyRules.
    pub fn rules(&self, user: &User, namespace: &str) -> Vec<Value> {
        let mut rules = Vec::new();
        self.read().visit_all(user, namespace, &mut |_, _, rule| {
            rules.push(rule.to_value());
            true
        });
        rules
    }

    /// What a step does is whole in itself: a panic elsewhere leaves the index as it was.
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn bind(&mut self, id: Name, object: Option<&Value>) {
        if let Some(was) = self.bindings.remove(&id) {
            for subject in was.subjects {
                if let Some(bindings) = self.subjects.get_mut(&subject) {
                    bindings.remove(&id);
                    if bindings.is_empty() {
                        self.subjects.remove(&subject);
                    }
                }
            }
        }
        let Some(binding) = object.and_then(|object| Binding::of(object, &id.0)) else {
            return;
        };
        for subject in &binding.subjects {
            self.subjects
                .entry(subject.clone())
                .or_default()
                .insert(id.clone());
        }
        self.bindings.insert(id, binding);
    }

    /// The rules of `role`, or of those that it aggregates, until `see` says false. `seen`: the names of those that are being visited.
    fn visit(
        &self,
        role: &Role,
        seen: &mut BTreeSet<String>,
        see: &mut dyn FnMut(&Rule) -> bool,
    ) -> bool {
        let Some(selectors) = &role.aggregates else {
            return role.rules.iter().all(see);
        };
        let cluster = self
            .roles
            .range((String::new(), String::new())..)
            .take_while(|((namespace, _), _)| namespace.is_empty());
        for ((_, name), other) in cluster {
            if selectors
                .iter()
                .any(|selector| selector.fits(&other.labels))
                && seen.insert(name.clone())
                && !self.visit(other, seen, see)
            {
                return false;
            }
        }
        true
    }

    /// Every rule that `user` is bound to in `namespace` (empty: in the whole cluster only), until `see` says false.
    fn visit_all(
        &self,
        user: &User,
        namespace: &str,
        see: &mut dyn FnMut(&Name, &Subject, &Rule) -> bool,
    ) {
        let subjects = std::iter::once(Subject::User(user.username.clone()))
            .chain(user.groups.iter().cloned().map(Subject::Group));
        for subject in subjects {
            let Some(bindings) = self.subjects.get(&subject) else {
                continue;
            };
            for id in bindings {
                if !id.0.is_empty() && id.0 != namespace {
                    continue;
                }
                let Some(role) = self
                    .bindings
                    .get(id)
                    .and_then(|binding| self.roles.get(&binding.role).map(|role| (binding, role)))
                else {
                    continue;
                };
                let (binding, role) = role;
                let mut seen = BTreeSet::from([binding.role.1.clone()]);
                if !self.visit(role, &mut seen, &mut |rule| see(id, &subject, rule)) {
                    return;
                }
            }
        }
    }

    /// Why `asked` is allowed, where it is.
    fn allowed(&self, user: &User, asked: &Attributes) -> Option<String> {
        let mut reason = None;
        self.visit_all(user, &asked.namespace, &mut |binding, subject, rule| {
            if !rule.allows(asked) {
                return true;
            }
            reason = Some(self.reason(binding, subject));
            false
        });
        reason
    }

    fn reason(&self, binding: &Name, subject: &Subject) -> String {
        let role = self.bindings.get(binding).map(|binding| &binding.role);
        let (kind, role) = match role {
            Some((namespace, name)) if namespace.is_empty() => ("ClusterRole", name.as_str()),
            Some((_, name)) => ("Role", name.as_str()),
            None => ("Role", ""),
        };
        let subject = match subject {
            Subject::Group(name) => format!("Group {name:?}"),
            Subject::User(name) => match name
                .strip_prefix(SERVICE_ACCOUNT_PREFIX)
                .and_then(|rest| rest.split_once(':'))
            {
                Some((namespace, name)) => format!("ServiceAccount \"{name}/{namespace}\""),
                None => format!("User {name:?}"),
            },
        };
        match binding {
            (namespace, name) if namespace.is_empty() => format!(
                "RBAC: allowed by ClusterRoleBinding {name:?} of {kind} {role:?} to {subject}"
            ),
            (namespace, name) => format!(
                "RBAC: allowed by RoleBinding \"{name}/{namespace}\" of {kind} {role:?} to {subject}"
            ),
        }
    }
}

impl Role {
    fn of(object: &Value) -> Self {
        let selectors = object["aggregationRule"]["clusterRoleSelectors"].as_array();
        Self {
            rules: rule::list(&object["rules"]),
            labels: rule::labels(&object["metadata"]["labels"]),
            aggregates: object["aggregationRule"]
                .is_object()
                .then(|| selectors.into_iter().flatten().map(Selector::of).collect()),
        }
    }
}

impl Binding {
    /// `None`: it binds to nothing that could be in its place.
    fn of(object: &Value, namespace: &str) -> Option<Self> {
        let role = &object["roleRef"];
        let name = role["name"].as_str()?.to_owned();
        let role = match role["kind"].as_str()? {
            "ClusterRole" => (String::new(), name),
            "Role" if !namespace.is_empty() => (namespace.to_owned(), name),
            _ => return None,
        };
        let subjects = object["subjects"].as_array();
        Some(Self {
            role,
            subjects: subjects
                .into_iter()
                .flatten()
                .filter_map(|subject| {
                    let name = subject["name"].as_str().filter(|name| !name.is_empty())?;
                    Some(match subject["kind"].as_str()? {
                        "User" => Subject::User(name.to_owned()),
                        "Group" => Subject::Group(name.to_owned()),
                        "ServiceAccount" => {
                            let namespace = subject["namespace"]
                                .as_str()
                                .filter(|namespace| !namespace.is_empty())
                                .unwrap_or(namespace);
                            if namespace.is_empty() {
                                return None;
                            }
                            Subject::User(format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"))
                        }
                        _ => return None,
                    })
                })
                .collect(),
        })
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, user: &User, asked: &Attributes) -> Decision {
        match self.read().allowed(user, asked) {
            Some(reason) => Decision::Allow { reason },
            None => Decision::NoOpinion {
                reason: String::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
