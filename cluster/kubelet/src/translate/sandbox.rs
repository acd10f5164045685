//! The pod's part: what RunPodSandbox is asked for.

use std::collections::HashMap;

use berth_proto::cri::{
    LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

use super::{dns, resources, security};
use crate::{
    keys,
    node::Inner,
    pod::{Desired, Role, digest},
    problem::Problem,
    user_namespace::Ids,
};

/// Longest host name that the kernel takes is 64; Kubernetes stops at a DNS label.
const MAX_HOSTNAME: usize = 63;
const MAX_FQDN: usize = 64;

pub(crate) fn sandbox(
    pod: &Desired,
    node: &Inner,
    attempt: u32,
    ids: Option<Ids>,
) -> Result<PodSandboxConfig, Problem> {
    let config = &node.config;
    let mut labels: HashMap<String, String> = pod
        .pod
        .metadata
        .labels
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    labels.extend(identity(pod));
    let mut annotations: HashMap<String, String> = pod.annotations().into_iter().collect();
    let written = serde_json::to_vec(&pod.pod).unwrap_or_default();
    annotations.extend([
        (keys::CONFIG_SOURCE.into(), pod.source.into()),
        (
            keys::CONFIG_HASH.into(),
            digest(&[&written])[..32].to_owned(),
        ),
        (keys::CONFIG_SEEN.into(), jiff::Timestamp::now().to_string()),
        (
            keys::KUBELET_DIR.into(),
            node.kubelet_dir().display().to_string(),
        ),
    ]);
    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            uid: pod.uid.clone(),
            attempt,
        }),
        hostname: match pod.host_network() {
            true => String::new(),
            false => hostname(pod, &config.cluster_domain)?,
        },
        log_directory: node.log_dir(pod).display().to_string(),
        dns_config: Some(dns::now(pod, config).0),
        port_mappings: ports(pod),
        labels,
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: node
                .cgroups
                .as_ref()
                .map_or_else(String::new, |it| it.parent_of(pod)),
            security_context: Some(security::of_sandbox(pod, ids)?),
            sysctls: sysctls(pod),
            overhead: Some(resources::overhead(pod)),
            resources: Some(resources::of_pod(pod)),
        }),
        windows: None,
    })
}

/// The labels by which a pod's things are found again.
pub(super) fn identity(pod: &Desired) -> [(String, String); 3] {
    [
        (keys::POD_NAME.into(), pod.name.clone()),
        (keys::POD_NAMESPACE.into(), pod.namespace.clone()),
        (keys::POD_UID.into(), pod.uid.clone()),
    ]
}

/// The pod's own name within its network, and the domain that follows it where it has a subdomain.
pub(crate) fn hostname_and_domain(pod: &Desired, cluster_domain: &str) -> (String, String) {
    let name = pod
        .spec
        .hostname
        .as_ref()
        .filter(|it| !it.is_empty())
        .unwrap_or(&pod.name);
    let name = name[..name.len().min(MAX_HOSTNAME)]
        .trim_end_matches(['-', '.'])
        .to_owned();
    let domain = match pod.spec.subdomain.as_deref() {
        None | Some("") => String::new(),
        Some(subdomain) => format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace),
    };
    (name, domain)
}

fn hostname(pod: &Desired, cluster_domain: &str) -> Result<String, Problem> {
    if let Some(name) = pod
        .spec
        .hostname_override
        .clone()
        .filter(|it| !it.is_empty())
    {
        return Ok(name);
    }
    let (name, domain) = hostname_and_domain(pod, cluster_domain);
    if pod.spec.set_hostname_as_fqdn != Some(true) || domain.is_empty() {
        return Ok(name);
    }
    let whole = format!("{name}.{domain}");
    if whole.len() > MAX_FQDN {
        let what =
            format!("{whole:?} has more than the {MAX_FQDN} characters that the kernel takes");
        return Err(Problem::new("spec.setHostnameAsFQDN", what));
    }
    Ok(whole)
}

fn ports(pod: &Desired) -> Vec<PortMapping> {
    let with_ports = pod
        .containers
        .iter()
        .filter(|spec| matches!(spec.role, Role::Main | Role::Sidecar));
    let ports = with_ports.flat_map(|spec| spec.container.ports.iter().flatten());
    ports
        .map(|port| PortMapping {
            protocol: match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            }
            .into(),
            container_port: port.container_port,
            // in the node's network it is there already
            host_port: if pod.host_network() {
                0
            } else {
                port.host_port.unwrap_or(0)
            },
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn sysctls(pod: &Desired) -> HashMap<String, String> {
    let context = pod.spec.security_context.as_ref();
    let sysctls = context
        .and_then(|it| it.sysctls.as_ref())
        .into_iter()
        .flatten();
    sysctls
        .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        node::tests::node,
        pod::tests::{named, pod},
    };

    const ONE: &str = "  containers: [{name: a, image: x}]";

    #[test]
    fn a_pod_has_upstreams_labels_and_annotations_beside_its_own() {
        let mut forged = pod(ONE);
        let labels = forged.pod.metadata.labels.get_or_insert_default();
        labels.insert(keys::POD_NAME.into(), "another".into());
        let config = sandbox(&forged, &node("/k"), 3, None).unwrap();
        let metadata = config.metadata.unwrap();
        assert_eq!(
            (
                metadata.name.as_str(),
                metadata.uid.as_str(),
                metadata.attempt
            ),
            ("web", "uid-1", 3)
        );
        for (key, value) in [
            ("app", "x"),
            ("io.kubernetes.pod.name", "web"),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.uid", "uid-1"),
        ] {
            assert_eq!(config.labels[key], value);
        }
        assert_eq!(config.annotations["kubernetes.io/config.source"], "file");
        assert_eq!(config.annotations["berth/kubelet-dir"], "/k");
        assert_eq!(config.log_directory, "/logs/default_web_uid-1");
        let linux = config.linux.unwrap();
        assert_eq!(linux.cgroup_parent, "/kubepods/besteffort/poduid-1");
    }

    #[test]
    fn host_names_are_the_pods_own_unless_the_network_is_the_nodes() {
        let long = "a".repeat(62);
        for (name, spec, expected) in [
            ("web", "", "web"),
            ("web", "\n  hostname: h", "h"),
            ("web", "\n  hostNetwork: true", ""),
            (&format!("{long}.b"), "", &long),
            ("web", "\n  subdomain: s", "web"),
            (
                "web",
                "\n  subdomain: s\n  setHostnameAsFQDN: true",
                "web.s.default.svc.cluster.local",
            ),
        ] {
            let config =
                sandbox(&named(name, &format!("{ONE}{spec}")), &node("/k"), 0, None).unwrap();
            assert_eq!(config.hostname, expected, "{name} {spec}");
        }
        let long = named(
            &"a".repeat(60),
            &format!("{ONE}\n  subdomain: s\n  setHostnameAsFQDN: true"),
        );
        assert!(
            sandbox(&long, &node("/k"), 0, None)
                .unwrap_err()
                .to_string()
                .starts_with("spec.setHostnameAsFQDN: ")
        );
    }

    #[test]
    fn ports_sysctls_and_handler_are_carried_over() {
        let pod = pod(
            "  containers: [{name: a, image: x, ports: [{containerPort: 80}, {containerPort: 53, hostPort: 5353, hostIP: 127.0.0.1, protocol: UDP}]}]\n  \
             runtimeClassName: other\n  securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: \"1\"}]}",
        );
        let config = sandbox(&pod, &node("/k"), 0, None).unwrap();
        let ports: Vec<_> = config
            .port_mappings
            .iter()
            .map(|it| {
                (
                    it.protocol(),
                    it.container_port,
                    it.host_port,
                    &it.host_ip[..],
                )
            })
            .collect();
        assert_eq!(
            ports,
            [
                (Protocol::Tcp, 80, 0, ""),
                (Protocol::Udp, 53, 5353, "127.0.0.1")
            ]
        );
        assert_eq!(config.linux.unwrap().sysctls["net.ipv4.ip_forward"], "1");
        assert_eq!(pod.runtime_handler(), "other");
    }
}
