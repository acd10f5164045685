//! PodSecurity: what a namespace's labels allow its pods (the Pod Security Standards, in their newest version).
//!
//! `enforce` refuses pods, `warn` warns of them and of what makes them. All containers are looked at, whatever list and subresource they come by (SEC-API-10).

mod baseline;
mod restricted;

use serde_json::Value;

use super::{Act, amounts};
use crate::{
    api::{Actor, Api},
    failure::Failure,
    object,
};

const LABEL: &str = "pod-security.kubernetes.io/";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// One that isn't known is taken for the strictest.
    fn parse(text: &str) -> Self {
        match text {
            "" | "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            _ => Self::Restricted,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// What is not allowed, and where: `host namespaces` and `hostNetwork=true`.
type Violation = (&'static str, String);

/// What makes pods, and where their template is.
const MAKERS: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

/// # Errors
/// 403, as upstream words it.
pub fn check(
    api: &Api,
    actor: &Actor,
    act: &Act<'_>,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Failure> {
    let is_pod = act.resource.is("", "pods");
    let at = MAKERS
        .iter()
        .find(|(group, plural, _)| act.resource.is(group, plural))
        .map(|(_, _, at)| *at);
    if !is_pod && (at.is_none() || !act.subresource.is_empty()) {
        return Ok(());
    }
    if !matches!(act.subresource, "" | "ephemeralcontainers" | "resize")
        || old.is_some_and(|old| old.get("spec") == new.get("spec"))
    {
        return Ok(());
    }
    let Some(entry) = api.cache.shard("namespaces").get(act.namespace) else {
        return Ok(());
    };
    let label = |name: &str| entry.label(&format!("{LABEL}{name}")).unwrap_or_default();
    let version = |mode: &str| match label(&format!("{mode}-version")) {
        "" => "latest".to_owned(),
        version => version.to_owned(),
    };
    let pod = match at {
        Some(at) => new.pointer(at),
        None => Some(new),
    };
    let Some(pod) = pod else {
        return Ok(());
    };
    let told = |level: Level, mode: &str| {
        let words: Vec<String> = violations(level, pod)
            .into_iter()
            .map(|(what, detail)| format!("{what} ({detail})"))
            .collect();
        (!words.is_empty()).then(|| {
            format!(
                "violate{} PodSecurity \"{}:{}\": {}",
                if mode == "enforce" { "s" } else { "" },
                level.as_str(),
                version(mode),
                words.join(", ")
            )
        })
    };
    if is_pod && let Some(why) = told(Level::parse(label("enforce")), "enforce") {
        return Err(Failure::forbidden(act.resource, &act.name, why));
    }
    if let Some(why) = told(Level::parse(label("warn")), "warn") {
        actor.warn(format!("would {why}"));
    }
    Ok(())
}

fn violations(level: Level, pod: &Value) -> Vec<Violation> {
    let mut found = Vec::new();
    if level >= Level::Baseline {
        baseline::check(pod, level == Level::Restricted, &mut found);
    }
    if level == Level::Restricted {
        restricted::check(pod, &mut found);
    }
    found
}

/// All that run, or will have run.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|list| amounts::containers(pod, list))
}

fn named<'a>(
    pod: &'a Value,
    is: impl Fn(&Value) -> bool + 'a,
) -> impl Iterator<Item = &'a str> + 'a {
    containers(pod)
        .filter(move |container| is(container))
        .map(|container| object::text(container, "/name"))
}

/// `container "a"`, `containers "a", "b"`.
fn these(what: &str, names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    let many = if names.len() == 1 { "" } else { "s" };
    format!("{what}{many} {}", quoted.join(", "))
}

fn quoted<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| format!("{text:?}")).collect();
    texts.join(", ")
}

fn is_windows(pod: &Value) -> bool {
    object::text(pod, "/spec/os/name") == "windows"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(level: Level, pod: &Value) -> String {
        let words: Vec<String> = violations(level, pod)
            .into_iter()
            .map(|(what, detail)| format!("{what} ({detail})"))
            .collect();
        words.join(", ")
    }

    #[test]
    fn a_plain_pod_lacks_what_upstream_says_it_lacks() {
        let pod = json!({"spec": {"containers": [{"name": "nginx"}]}});
        assert_eq!(told(Level::Privileged, &pod), "");
        assert_eq!(told(Level::Baseline, &pod), "");
        assert_eq!(
            told(Level::Restricted, &pod),
            "allowPrivilegeEscalation != false (container \"nginx\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"nginx\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"nginx\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"nginx\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let good = json!({"spec": {
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
            }}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        }});
        assert_eq!(told(Level::Restricted, &good), "");
    }

    #[test]
    fn each_way_out_is_seen_in_each_kind_of_container_sec_api_10() {
        let privileged = json!({"name": "a", "securityContext": {"privileged": true}});
        for list in ["containers", "initContainers", "ephemeralContainers"] {
            let pod = json!({"spec": {list: [privileged]}});
            assert_eq!(
                told(Level::Baseline, &pod),
                "privileged (container \"a\" must not set securityContext.privileged=true)",
                "{list}"
            );
        }
        let container = |context: Value| json!({"spec": {"containers": [{"name": "a", "securityContext": context}]}});
        for (pod, says) in [
            (
                json!({"spec": {"hostNetwork": true, "hostPID": true}}),
                "host namespaces (hostNetwork=true, hostPID=true)",
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
                "hostPath volumes (volume \"v\")",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "ports": [{"hostPort": 80}]}]}}),
                "hostPort (container \"a\" uses hostPort 80)",
            ),
            (
                container(json!({"capabilities": {"add": ["SYS_ADMIN"]}})),
                "non-default capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                container(json!({"procMount": "Unmasked"})),
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                container(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                container(json!({"appArmorProfile": {"type": "Unconfined"}})),
                "forbidden AppArmor profile (container \"a\" must not set AppArmor profile type to \"Unconfined\")",
            ),
            (
                container(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
                "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            ),
        ] {
            assert_eq!(told(Level::Baseline, &pod), says);
        }
    }

    #[test]
    fn restricted_says_the_stricter_of_two_rules_once() {
        let pod = json!({"spec": {
            "securityContext": {"runAsUser": 0, "runAsNonRoot": true, "seccompProfile": {"type": "Unconfined"}},
            "volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "nfs": {}}],
            "containers": [{"name": "a", "securityContext": {
                "allowPrivilegeEscalation": false,
                "runAsNonRoot": false,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]},
            }}],
        }});
        assert_eq!(
            told(Level::Restricted, &pod),
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add), restricted volume types (volume \"v\" uses restricted volume type \"hostPath\"; volume \"w\" uses restricted volume type \"nfs\"), runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0), seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")"
        );
    }

    #[test]
    fn a_pod_of_any_form_is_looked_at() {
        for pod in [
            json!(null),
            json!({"spec": 3}),
            json!({"spec": {"containers": [3, null, {"name": 4, "securityContext": []}], "volumes": {}}}),
        ] {
            for level in [Level::Privileged, Level::Baseline, Level::Restricted] {
                let _ = violations(level, &pod);
            }
        }
        assert_eq!(Level::parse("nonsense"), Level::Restricted);
    }
}
