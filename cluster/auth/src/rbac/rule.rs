//! One PolicyRule: what it allows, and what it covers of another.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::Attributes;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    /// Empty: all.
    pub names: Vec<String>,
    pub urls: Vec<String>,
}

const FIELDS: [&str; 5] = [
    "verbs",
    "apiGroups",
    "resources",
    "resourceNames",
    "nonResourceURLs",
];

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(|text| Some(text.as_str()?.to_owned()))
        .collect()
}

pub(super) fn list(rules: &Value) -> Vec<Rule> {
    rules
        .as_array()
        .into_iter()
        .flatten()
        .map(Rule::of)
        .collect()
}

pub(super) fn labels(labels: &Value) -> BTreeMap<String, String> {
    let labels = labels.as_object().into_iter().flatten();
    labels
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

impl Rule {
    pub fn of(rule: &Value) -> Self {
        let [verbs, groups, resources, names, urls] = FIELDS.map(|field| texts(&rule[field]));
        Self {
            verbs,
            groups,
            resources,
            names,
            urls,
        }
    }

    pub fn to_value(&self) -> Value {
        let lists = [
            &self.verbs,
            &self.groups,
            &self.resources,
            &self.names,
            &self.urls,
        ];
        let fields = FIELDS.iter().zip(lists);
        fields
            .filter(|(_, list)| !list.is_empty())
            .map(|(field, list)| ((*field).to_owned(), Value::from(list.clone())))
            .collect::<Map<_, _>>()
            .into()
    }

    pub fn allows(&self, asked: &Attributes) -> bool {
        if !any(&self.verbs, &asked.verb) {
            return false;
        }
        if asked.resource.is_empty() {
            return self.urls.iter().any(|url| url_fits(url, &asked.path));
        }
        any(&self.groups, &asked.group)
            && self
                .resources
                .iter()
                .any(|resource| resource_fits(resource, &asked.resource, &asked.subresource))
            && (self.names.is_empty() || self.names.contains(&asked.name))
    }

    /// What it says, one verb, group, resource and name (or one verb and URL) at a time.
    pub fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        let names: Vec<Option<&str>> = match self.names.is_empty() {
            true => vec![None],
            false => self.names.iter().map(|name| Some(name.as_str())).collect(),
        };
        self.verbs.iter().flat_map(move |verb| {
            let names = names.clone();
            let resources = self.groups.iter().flat_map(move |group| {
                let names = names.clone();
                self.resources.iter().flat_map(move |resource| {
                    let named = names.clone().into_iter();
                    named.map(move |name| Part::Resource {
                        verb,
                        group,
                        resource,
                        name,
                    })
                })
            });
            let urls = self.urls.iter().map(move |url| Part::Url { verb, url });
            resources.chain(urls)
        })
    }

    /// Whether who has this rule has `part`.
    pub fn covers(&self, part: &Part<'_>) -> bool {
        match *part {
            Part::Resource {
                verb,
                group,
                resource,
                name,
            } => {
                let (plain, sub) = resource.split_once('/').unwrap_or((resource, ""));
                any(&self.verbs, verb)
                    && any(&self.groups, group)
                    && self
                        .resources
                        .iter()
                        .any(|own| own == resource || resource_fits(own, plain, sub))
                    && match name {
                        None => self.names.is_empty(),
                        Some(name) => {
                            self.names.is_empty() || self.names.iter().any(|own| own == name)
                        }
                    }
            }
            Part::Url { verb, url } => {
                any(&self.verbs, verb)
                    && self.urls.iter().any(|own| own == url || url_fits(own, url))
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Resource {
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        name: Option<&'a str>,
    },
    Url {
        verb: &'a str,
        url: &'a str,
    },
}

fn any(list: &[String], asked: &str) -> bool {
    list.iter().any(|one| one == "*" || one == asked)
}

fn resource_fits(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((own, sub)) => {
            !subresource.is_empty() && sub == subresource && (own == "*" || own == resource)
        }
    }
}

/// A `*` at the end stands for any rest.
fn url_fits(rule: &str, path: &str) -> bool {
    rule == path
        || rule
            .strip_suffix('*')
            .is_some_and(|start| path.starts_with(start.trim_end_matches('*')))
}

/// A LabelSelector.
#[derive(Debug)]
pub(super) struct Selector {
    equal: BTreeMap<String, String>,
    /// Key, operator, values.
    expressions: Vec<(String, String, Vec<String>)>,
}

impl Selector {
    pub fn of(selector: &Value) -> Self {
        let expressions = selector["matchExpressions"].as_array();
        Self {
            equal: labels(&selector["matchLabels"]),
            expressions: expressions
                .into_iter()
                .flatten()
                .map(|expression| {
                    let text = |field: &str| {
                        let text = expression[field].as_str().unwrap_or_default();
                        text.to_owned()
                    };
                    (text("key"), text("operator"), texts(&expression["values"]))
                })
                .collect(),
        }
    }

    pub fn fits(&self, labels: &BTreeMap<String, String>) -> bool {
        self.equal
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|(key, operator, values)| {
                let value = labels.get(key);
                match operator.as_str() {
                    "In" => value.is_some_and(|value| values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !values.contains(value)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    // What isn't understood selects nothing.
                    _ => false,
                }
            })
    }
}
