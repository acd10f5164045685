use std::{collections::HashSet, net::IpAddr};

use serde_json::Value;

use super::{
    container::{Around, container, identity},
    meta::{annotations, labels, namespaced},
    resources,
    scheduling::placement,
    volume::volumes,
};
use crate::{
    field::{Errors, Path},
    kind::Invalid,
    name::{dns_label, dns_subdomain, qualified_name},
    read::{flag, items, map, number, some, text},
};

pub(crate) fn pod(pod: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(pod, dns_subdomain);
    pod_spec(pod, &Path::root("spec"), &mut errors);
    errors.into_vec()
}

pub(crate) fn pod_template(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    template(
        object.get("template").unwrap_or(&Value::Null),
        &Path::root("template"),
        &mut errors,
    );
    errors.into_vec()
}

/// A PodTemplateSpec.
pub(super) fn template(template: &Value, path: &Path, errors: &mut Errors) {
    let metadata = path.field("metadata");
    labels(
        map(template, "/metadata/labels"),
        &metadata.field("labels"),
        errors,
    );
    annotations(
        map(template, "/metadata/annotations"),
        &metadata.field("annotations"),
        errors,
    );
    pod_spec(template, &path.field("spec"), errors);
    if !items(template, "/spec/ephemeralContainers").is_empty() {
        errors.forbidden(
            &path.field("spec").field("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// `holder` has the spec: a pod, or a template.
fn pod_spec(holder: &Value, path: &Path, errors: &mut Errors) {
    let null = &Value::Null;
    let spec = holder.get("spec").unwrap_or(null);
    let names = volumes(items(spec, "/volumes"), &path.field("volumes"), errors);
    let host_network = flag(spec, "/hostNetwork");
    all_containers(spec, &names, host_network, path, errors);
    errors.one_of(
        &path.field("restartPolicy"),
        text(spec, "/restartPolicy"),
        &["Always", "Never", "OnFailure"],
    );
    errors.one_of(
        &path.field("dnsPolicy"),
        text(spec, "/dnsPolicy"),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    dns_config(spec, path, errors);
    errors.not_negative(
        &path.field("terminationGracePeriodSeconds"),
        spec.get("terminationGracePeriodSeconds"),
    );
    if let Some(deadline) = some(spec, "/activeDeadlineSeconds")
        && !deadline
            .as_i64()
            .is_some_and(|seconds| (1..=i64::from(i32::MAX)).contains(&seconds))
    {
        errors.invalid(
            &path.field("activeDeadlineSeconds"),
            deadline,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for (name, rule) in [
        (
            "serviceAccountName",
            dns_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", dns_subdomain),
        ("priorityClassName", dns_subdomain),
        ("runtimeClassName", dns_subdomain),
        ("schedulerName", qualified_name),
        ("hostname", dns_label),
        ("subdomain", dns_label),
    ] {
        match spec.get(name).and_then(Value::as_str) {
            None | Some("") => {}
            Some(value) => errors.text_is(&path.field(name), value, rule(value)),
        }
    }
    errors.maybe_one_of(
        &path.field("preemptionPolicy"),
        text(spec, "/preemptionPolicy"),
        &["Never", "PreemptLowerPriority"],
    );
    if let Some(os) = some(spec, "/os") {
        errors.one_of(
            &path.field("os").field("name"),
            text(os, "/name"),
            &["linux", "windows"],
        );
    }
    if flag(spec, "/shareProcessNamespace") && flag(spec, "/hostPID") {
        errors.invalid(
            &path.field("shareProcessNamespace"),
            &true.into(),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    if spec.get("hostUsers") == Some(&Value::Bool(false)) {
        for name in ["hostNetwork", "hostPID", "hostIPC"] {
            if spec.get(name) == Some(&Value::Bool(true)) {
                errors.forbidden(&path.field(name), "when `hostUsers` is false");
            }
        }
    }
    if let Some(context) = some(spec, "/securityContext") {
        pod_security(context, &path.field("securityContext"), errors);
    }
    let list = path.field("imagePullSecrets");
    for (at, secret) in items(spec, "/imagePullSecrets").iter().enumerate() {
        if text(secret, "/name").is_empty() {
            errors.required(&list.index(at).field("name"), "");
        }
    }
    let list = path.field("hostAliases");
    for (at, alias) in items(spec, "/hostAliases").iter().enumerate() {
        let path = list.index(at);
        ip(text(alias, "/ip"), &path.field("ip"), errors);
        let list = path.field("hostnames");
        for (at, name) in items(alias, "/hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            errors.text_is(&list.index(at), name, dns_subdomain(name));
        }
    }
    let list = path.field("readinessGates");
    for (at, gate) in items(spec, "/readinessGates").iter().enumerate() {
        let kind = text(gate, "/conditionType");
        errors.text_is(
            &list.index(at).field("conditionType"),
            kind,
            qualified_name(kind),
        );
    }
    resources::list(spec.get("overhead"), &path.field("overhead"), errors);
    if let Some(requirements) = some(spec, "/resources") {
        resources::requirements(requirements, &path.field("resources"), errors);
    }
    placement(spec, path, errors);
}

pub(super) fn ip(address: &str, path: &Path, errors: &mut Errors) {
    if address.parse::<IpAddr>().is_err() {
        errors.invalid_text(
            path,
            address,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
}

/// Names are one name space for all three lists; ports of the node can be had once.
fn all_containers(
    spec: &Value,
    volumes: &HashSet<&str>,
    host_network: bool,
    path: &Path,
    errors: &mut Errors,
) {
    let mut names = HashSet::new();
    let mut host_ports = HashSet::new();
    if items(spec, "/containers").is_empty() {
        errors.required(&path.field("containers"), "");
    }
    for (list, init) in [("initContainers", true), ("containers", false)] {
        let path = path.field(list);
        let around = Around {
            volumes,
            host_network,
            init,
        };
        let all = spec.get(list).and_then(Value::as_array);
        for (at, one) in all.into_iter().flatten().enumerate() {
            let path = path.index(at);
            container(one, &around, &path, errors);
            let name = text(one, "/name");
            if !name.is_empty() && !names.insert(name) {
                errors.duplicate(&path.field("name"), name);
            }
            // Init containers run one after the other, and before all others.
            if init {
                continue;
            }
            let ports = path.field("ports");
            for (at, port) in items(one, "/ports").iter().enumerate() {
                let host = number(port, "/hostPort");
                if host != 0
                    && !host_ports.insert((host, text(port, "/protocol"), text(port, "/hostIP")))
                {
                    errors.duplicate(
                        &ports.index(at).field("hostPort"),
                        &format!(
                            "{}/{}/{host}",
                            text(port, "/protocol"),
                            text(port, "/hostIP")
                        ),
                    );
                }
            }
        }
    }
    let list = path.field("ephemeralContainers");
    for (at, one) in items(spec, "/ephemeralContainers").iter().enumerate() {
        ephemeral(one, spec, volumes, &mut names, &list.index(at), errors);
    }
}

/// A container that was put into a running pod: it has no promises to keep.
fn ephemeral<'a>(
    one: &'a Value,
    spec: &Value,
    volumes: &HashSet<&str>,
    names: &mut HashSet<&'a str>,
    path: &Path,
    errors: &mut Errors,
) {
    let around = Around {
        volumes,
        host_network: false,
        init: false,
    };
    for name in [
        "ports",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "resizePolicy",
    ] {
        let set = one.get(name).is_some_and(|value| {
            !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())
        });
        if set {
            errors.forbidden(
                &path.field(name),
                "cannot be set for an Ephemeral Container",
            );
        }
    }
    for name in ["limits", "requests"] {
        if map(one, "/resources")
            .and_then(|r| r.get(name))
            .is_some_and(|list| !list.is_null())
        {
            errors.forbidden(
                &path.field("resources"),
                "cannot be set for an Ephemeral Container",
            );
        }
    }
    container(one, &around, path, errors);
    let name = text(one, "/name");
    if !name.is_empty() && !names.insert(name) {
        errors.duplicate(&path.field("name"), name);
    }
    let target = text(one, "/targetContainerName");
    let there = ["/containers", "/initContainers"]
        .iter()
        .flat_map(|list| items(spec, list))
        .any(|container| text(container, "/name") == target);
    if !target.is_empty() && !there {
        errors.not_found(&path.field("targetContainerName"), target);
    }
}

/// As the resolver's limits are.
const NAMESERVERS: usize = 3;
const SEARCHES: usize = 32;
const SEARCH_BYTES: usize = 2048;

fn dns_config(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.field("dnsConfig");
    let servers = items(spec, "/dnsConfig/nameservers");
    if text(spec, "/dnsPolicy") == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        if some(spec, "/dnsConfig").is_none() {
            errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
        } else {
            errors.required(&path.field("nameservers"), detail);
        }
    }
    if servers.len() > NAMESERVERS {
        errors.invalid(
            &path.field("nameservers"),
            &spec["dnsConfig"]["nameservers"],
            &format!("must not have more than {NAMESERVERS} nameservers"),
        );
    }
    let list = path.field("nameservers");
    for (at, server) in servers.iter().enumerate() {
        ip(server.as_str().unwrap_or_default(), &list.index(at), errors);
    }
    let searches = items(spec, "/dnsConfig/searches");
    let list = path.field("searches");
    if searches.len() > SEARCHES {
        errors.invalid(
            &list,
            &searches.len().into(),
            &format!("must not have more than {SEARCHES} search paths"),
        );
    }
    if searches
        .iter()
        .filter_map(Value::as_str)
        .map(|s| s.len() + 1)
        .sum::<usize>()
        > SEARCH_BYTES + 1
    {
        errors.invalid_text(
            &list,
            "",
            &format!("must not have more than {SEARCH_BYTES} characters (including spaces) in the search list"),
        );
    }
    for (at, search) in searches.iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        let name = search.strip_suffix('.').unwrap_or(search);
        if !name.is_empty() {
            // Underscores are not of host names, but of services' records.
            errors.text_is(
                &list.index(at),
                search,
                dns_subdomain(&name.replace('_', "a")),
            );
        }
    }
    let list = path.field("options");
    for (at, option) in items(spec, "/dnsConfig/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            errors.required(&list.index(at), "must not be empty");
        }
    }
}

fn pod_security(context: &Value, path: &Path, errors: &mut Errors) {
    identity(context, path, errors);
    errors.maybe_one_of(
        &path.field("fsGroupChangePolicy"),
        text(context, "/fsGroupChangePolicy"),
        &["Always", "OnRootMismatch"],
    );
    errors.maybe_one_of(
        &path.field("supplementalGroupsPolicy"),
        text(context, "/supplementalGroupsPolicy"),
        &["Merge", "Strict"],
    );
    let list = path.field("sysctls");
    let mut names = HashSet::new();
    for (at, sysctl) in items(context, "/sysctls").iter().enumerate() {
        let path = list.index(at);
        let name = text(sysctl, "/name");
        let part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_')
                })
        };
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(part) {
            errors.invalid_text(
                &path.field("name"),
                name,
                "must have at most 253 characters and match regex \
                 ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !names.insert(name) {
            errors.duplicate(&path.field("name"), name);
        }
    }
}
