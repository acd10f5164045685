//! Level restricted: baseline, and what is known to harden a pod.

use serde_json::Value;

use super::{Violation, baseline::added, containers, is_windows, named, quoted, these};
use crate::object;

const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub(super) fn check(pod: &Value, found: &mut Vec<Violation>) {
    let windows = is_windows(pod);
    if !windows {
        let escalate: Vec<&str> = named(pod, |container| {
            container.pointer("/securityContext/allowPrivilegeEscalation")
                != Some(&Value::Bool(false))
        })
        .collect();
        if !escalate.is_empty() {
            let who = these("container", &escalate);
            found.push((
                "allowPrivilegeEscalation != false",
                format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
            ));
        }
        capabilities(pod, found);
    }
    volumes(pod, found);
    non_root(pod, found);
    root_user(pod, found);
    if !windows {
        seccomp(pod, found);
    }
}

fn capabilities(pod: &Value, found: &mut Vec<Violation>) {
    let keeps: Vec<&str> = named(pod, |container| {
        !container
            .pointer("/securityContext/capabilities/drop")
            .and_then(Value::as_array)
            .is_some_and(|drop| drop.iter().any(|name| name == "ALL"))
    })
    .collect();
    let allowed = ["NET_BIND_SERVICE"];
    let adds: Vec<&str> = named(pod, |container| !added(container, &allowed).is_empty()).collect();
    let mut details = Vec::new();
    if !keeps.is_empty() {
        details.push(format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            these("container", &keeps)
        ));
    }
    if !adds.is_empty() {
        let mut all: Vec<&str> = containers(pod)
            .flat_map(|container| added(container, &allowed))
            .collect();
        all.sort_unstable();
        all.dedup();
        details.push(format!(
            "{} must not include {} in securityContext.capabilities.add",
            these("container", &adds),
            quoted(all)
        ));
    }
    if !details.is_empty() {
        found.push(("unrestricted capabilities", details.join("; ")));
    }
}

fn volumes(pod: &Value, found: &mut Vec<Violation>) {
    let details: Vec<String> = pod
        .pointer("/spec/volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|volume| {
            let kind = volume
                .as_object()?
                .iter()
                .find(|(name, value)| *name != "name" && !value.is_null())
                .map_or("unknown", |(name, _)| name.as_str());
            let name = object::text(volume, "/name");
            (!VOLUMES.contains(&kind))
                .then(|| format!("volume {name:?} uses restricted volume type {kind:?}"))
        })
        .collect();
    if !details.is_empty() {
        found.push(("restricted volume types", details.join("; ")));
    }
}

fn non_root(pod: &Value, found: &mut Vec<Violation>) {
    let at = "/securityContext/runAsNonRoot";
    let of_pod = pod.pointer(&format!("/spec{at}")).and_then(Value::as_bool);
    let own = |container: &Value| container.pointer(at).and_then(Value::as_bool);
    let says_no: Vec<&str> = named(pod, move |container| own(container) == Some(false)).collect();
    let mut who = Vec::new();
    if of_pod == Some(false) {
        who.push("pod".to_owned());
    }
    if !says_no.is_empty() {
        who.push(these("container", &says_no));
    }
    const WHAT: &str = "runAsNonRoot != true";
    if !who.is_empty() {
        found.push((
            WHAT,
            format!(
                "{} must not set securityContext.runAsNonRoot=false",
                who.join(" and ")
            ),
        ));
        return;
    }
    let silent: Vec<&str> = named(pod, move |container| own(container).is_none()).collect();
    if of_pod != Some(true) && !silent.is_empty() {
        let who = these("container", &silent);
        found.push((
            WHAT,
            format!("pod or {who} must set securityContext.runAsNonRoot=true"),
        ));
    }
}

fn root_user(pod: &Value, found: &mut Vec<Violation>) {
    let at = "/securityContext/runAsUser";
    let mut who = Vec::new();
    if object::number(pod, &format!("/spec{at}")) == Some(0) {
        who.push("pod".to_owned());
    }
    let names: Vec<&str> =
        named(pod, |container| object::number(container, at) == Some(0)).collect();
    if !names.is_empty() {
        who.push(these("container", &names));
    }
    if !who.is_empty() {
        found.push((
            "runAsUser=0",
            format!("{} must not set runAsUser=0", who.join(" and ")),
        ));
    }
}

fn seccomp(pod: &Value, found: &mut Vec<Violation>) {
    let at = "/securityContext/seccompProfile/type";
    let good = |kind: &str| matches!(kind, "RuntimeDefault" | "Localhost");
    let of_pod = object::text(pod, &format!("/spec{at}"));
    let (mut who, mut kinds) = (Vec::new(), Vec::new());
    if !of_pod.is_empty() && !good(of_pod) {
        who.push("pod".to_owned());
        kinds.push(of_pod);
    }
    let bad = move |kind: &str| !kind.is_empty() && !good(kind);
    let names: Vec<&str> = named(pod, move |container| bad(object::text(container, at))).collect();
    if !names.is_empty() {
        who.push(these("container", &names));
        kinds.extend(
            containers(pod)
                .map(|container| object::text(container, at))
                .filter(|kind| bad(kind)),
        );
    }
    if !who.is_empty() {
        kinds.sort_unstable();
        kinds.dedup();
        found.push((
            "seccompProfile",
            format!(
                "{} must not set securityContext.seccompProfile.type to {}",
                who.join(" and "),
                quoted(kinds)
            ),
        ));
        return;
    }
    let silent: Vec<&str> =
        named(pod, |container| object::text(container, at).is_empty()).collect();
    if !good(of_pod) && !silent.is_empty() {
        let who = these("container", &silent);
        found.push((
            "seccompProfile",
            format!(
                "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
            ),
        ));
    }
}
