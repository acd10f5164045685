//! Level baseline: no known way to more rights than the node gives to all.

use serde_json::Value;

use super::{Violation, containers, named, quoted, these};
use crate::object;

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];
const SELINUX_TYPES: [&str; 5] = [
    "",
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "container_engine_t",
];
const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

/// `stricter`: what `restricted` says better is left to it.
pub(super) fn check(pod: &Value, stricter: bool, found: &mut Vec<Violation>) {
    let spec = |name: &str| pod.pointer(&format!("/spec/{name}"));
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .iter()
        .filter(|name| spec(name) == Some(&Value::Bool(true)))
        .map(|name| format!("{name}=true"))
        .collect();
    if !shared.is_empty() {
        found.push(("host namespaces", shared.join(", ")));
    }
    if !stricter {
        host_paths(pod, found);
    }
    let privileged: Vec<&str> = named(pod, |container| {
        container.pointer("/securityContext/privileged") == Some(&Value::Bool(true))
    })
    .collect();
    if !privileged.is_empty() {
        let who = these("container", &privileged);
        found.push((
            "privileged",
            format!("{who} must not set securityContext.privileged=true"),
        ));
    }
    host_ports(pod, found);
    if !stricter {
        capabilities(pod, found);
    }
    let unmasked: Vec<&str> = named(pod, |container| {
        !matches!(
            object::text(container, "/securityContext/procMount"),
            "" | "Default"
        )
    })
    .collect();
    if !unmasked.is_empty() {
        let who = these("container", &unmasked);
        found.push((
            "procMount",
            format!("{who} must not set securityContext.procMount to \"Unmasked\""),
        ));
    }
    apparmor(pod, found);
    selinux(pod, found);
    if !stricter {
        seccomp(pod, found);
    }
    let sysctls: Vec<&str> = spec("securityContext/sysctls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|sysctl| object::text(sysctl, "/name"))
        .filter(|name| !SYSCTLS.contains(name))
        .collect();
    if !sysctls.is_empty() {
        found.push(("forbidden sysctls", sysctls.join(", ")));
    }
    let process = "/securityContext/windowsOptions/hostProcess";
    let mut on_host: Vec<String> = Vec::new();
    if pod.pointer(&format!("/spec{process}")) == Some(&Value::Bool(true)) {
        on_host.push("pod".into());
    }
    let named: Vec<&str> = named(pod, |container| {
        container.pointer(process) == Some(&Value::Bool(true))
    })
    .collect();
    if !named.is_empty() {
        on_host.push(these("container", &named));
    }
    if !on_host.is_empty() {
        found.push((
            "hostProcess",
            format!(
                "{} must not set securityContext.windowsOptions.hostProcess=true",
                on_host.join(" and ")
            ),
        ));
    }
    probes(pod, found);
}

fn host_paths(pod: &Value, found: &mut Vec<Violation>) {
    let volumes: Vec<&str> = pod
        .pointer("/spec/volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|volume| !volume["hostPath"].is_null())
        .map(|volume| object::text(volume, "/name"))
        .collect();
    if !volumes.is_empty() {
        found.push(("hostPath volumes", these("volume", &volumes)));
    }
}

fn host_ports(pod: &Value, found: &mut Vec<Violation>) {
    let ports = |container: &Value| -> Vec<i64> {
        container["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|port| port["hostPort"].as_i64())
            .filter(|&port| port != 0)
            .collect()
    };
    let names: Vec<&str> = named(pod, |container| !ports(container).is_empty()).collect();
    if names.is_empty() {
        return;
    }
    let mut used: Vec<i64> = containers(pod).flat_map(ports).collect();
    used.sort_unstable();
    used.dedup();
    let words: Vec<String> = used.iter().map(i64::to_string).collect();
    let (verb, many) = (
        if names.len() == 1 { "uses" } else { "use" },
        if used.len() == 1 { "" } else { "s" },
    );
    let who = these("container", &names);
    found.push((
        "hostPort",
        format!("{who} {verb} hostPort{many} {}", words.join(", ")),
    ));
}

pub(super) fn added<'a>(container: &'a Value, allowed: &[&str]) -> Vec<&'a str> {
    container
        .pointer("/securityContext/capabilities/add")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .filter(|name| !allowed.contains(name))
        .collect()
}

fn capabilities(pod: &Value, found: &mut Vec<Violation>) {
    let names: Vec<&str> =
        named(pod, |container| !added(container, &CAPABILITIES).is_empty()).collect();
    if names.is_empty() {
        return;
    }
    let mut all: Vec<&str> = containers(pod)
        .flat_map(|container| added(container, &CAPABILITIES))
        .collect();
    all.sort_unstable();
    all.dedup();
    found.push((
        "non-default capabilities",
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            these("container", &names),
            quoted(all)
        ),
    ));
}

/// Who has a profile at `at` that is neither the runtime's nor the node's, and which kinds those are.
fn profiles<'a>(pod: &'a Value, at: &str) -> (Vec<String>, Vec<&'a str>) {
    let bad = |kind: &str| !matches!(kind, "" | "RuntimeDefault" | "Localhost");
    let (mut who, mut kinds) = (Vec::new(), Vec::new());
    let of_pod = object::text(pod, &format!("/spec{at}"));
    if bad(of_pod) {
        who.push("pod".to_owned());
        kinds.push(of_pod);
    }
    let names: Vec<&str> = named(pod, |container| bad(object::text(container, at))).collect();
    if !names.is_empty() {
        who.push(these("container", &names));
        kinds.extend(
            containers(pod)
                .map(|container| object::text(container, at))
                .filter(|kind| bad(kind)),
        );
    }
    kinds.sort_unstable();
    kinds.dedup();
    (who, kinds)
}

fn apparmor(pod: &Value, found: &mut Vec<Violation>) {
    let (who, kinds) = profiles(pod, "/securityContext/appArmorProfile/type");
    let mut details = Vec::new();
    if !who.is_empty() {
        details.push(format!(
            "{} must not set AppArmor profile type to {}",
            who.join(" and "),
            quoted(kinds)
        ));
    }
    let annotations = pod
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    for (key, value) in annotations.into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        let allowed = matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
        if key.starts_with(APPARMOR) && !allowed {
            details.push(format!("annotation {key}={value:?}"));
        }
    }
    if !details.is_empty() {
        let what = match details.len() {
            1 => "forbidden AppArmor profile",
            _ => "forbidden AppArmor profiles",
        };
        found.push((what, details.join(", ")));
    }
}

fn selinux(pod: &Value, found: &mut Vec<Violation>) {
    let at = "/securityContext/seLinuxOptions";
    let own = |options: Option<&Value>| {
        let text = |name: &str| {
            let value = options.and_then(|options| options.get(name)?.as_str());
            value.unwrap_or_default().to_owned()
        };
        (text("type"), text("user"), text("role"))
    };
    let bad = |(kind, user, role): &(String, String, String)| {
        !SELINUX_TYPES.contains(&kind.as_str()) || !user.is_empty() || !role.is_empty()
    };
    let (mut who, mut options) = (Vec::new(), Vec::new());
    let of_pod = own(pod.pointer(&format!("/spec{at}")));
    if bad(&of_pod) {
        who.push("pod".to_owned());
        options.push(of_pod);
    }
    let names: Vec<&str> = named(pod, |container| bad(&own(container.pointer(at)))).collect();
    if !names.is_empty() {
        who.push(these("container", &names));
        options.extend(
            containers(pod)
                .map(|container| own(container.pointer(at)))
                .filter(bad),
        );
    }
    if who.is_empty() {
        return;
    }
    let mut details = Vec::new();
    let mut kinds: Vec<&str> = options
        .iter()
        .map(|(kind, _, _)| kind.as_str())
        .filter(|kind| !SELINUX_TYPES.contains(kind))
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    if !kinds.is_empty() {
        let many = if kinds.len() == 1 { "" } else { "s" };
        details.push(format!("type{many} {}", quoted(kinds)));
    }
    if options.iter().any(|(_, user, _)| !user.is_empty()) {
        details.push("user may not be set".into());
    }
    if options.iter().any(|(_, _, role)| !role.is_empty()) {
        details.push("role may not be set".into());
    }
    found.push((
        "seLinuxOptions",
        format!(
            "{} set forbidden securityContext.seLinuxOptions: {}",
            who.join(" and "),
            details.join("; ")
        ),
    ));
}

fn seccomp(pod: &Value, found: &mut Vec<Violation>) {
    let (who, kinds) = profiles(pod, "/securityContext/seccompProfile/type");
    if who.is_empty() {
        return;
    }
    found.push((
        "seccompProfile",
        format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            who.join(" and "),
            quoted(kinds)
        ),
    ));
}

/// A probe of another host is asked by the kubelet, from the node.
fn probes(pod: &Value, found: &mut Vec<Violation>) {
    let hosts = |container: &Value| -> Vec<String> {
        [
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle/postStart",
            "lifecycle/preStop",
        ]
        .iter()
        .flat_map(|at| {
            [
                format!("/{at}/httpGet/host"),
                format!("/{at}/tcpSocket/host"),
            ]
        })
        .map(|at| object::text(container, &at).to_owned())
        .filter(|host| !matches!(host.as_str(), "" | "127.0.0.1" | "::1"))
        .collect()
    };
    let names: Vec<&str> = named(pod, |container| !hosts(container).is_empty()).collect();
    if names.is_empty() {
        return;
    }
    let mut all: Vec<String> = containers(pod).flat_map(hosts).collect();
    all.sort_unstable();
    all.dedup();
    let (verb, many) = (
        if names.len() == 1 { "uses" } else { "use" },
        if all.len() == 1 { "" } else { "s" },
    );
    found.push((
        "probe or lifecycle host",
        format!(
            "{} {verb} probe or lifecycle host{many} {}",
            these("container", &names),
            quoted(all.iter().map(String::as_str))
        ),
    ));
}
