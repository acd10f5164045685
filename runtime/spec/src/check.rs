//! Whether a configuration makes sense at all. Pure: bad input ends here, before anything is made.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Component, Path},
};

use berth_proto::cri;

use crate::{
    CgroupDriver, capabilities, cdi_devices, devices,
    error::{Error, quoted},
    mounts, process, resources, seccomp, security, sysctl, user, userns,
};

/// Bytes of a name: a DNS subdomain, the longest that Kubernetes has.
const NAME_LIMIT: usize = 253;

/// Bytes of one label, key and value together: containerd's bound; Kubernetes' own values have 63.
const LABEL_LIMIT: usize = 4096;

/// Bytes of all labels, or all annotations: Kubernetes' 256 KiB for a pod's own annotations, and what a kubelet adds.
const LABELS_LIMIT: usize = (256 << 10) + (16 << 10);

/// Bytes of a host name: `__NEW_UTS_LEN` of the kernel.
const HOSTNAME_LIMIT: usize = 64;

/// PATH_MAX, with its NUL.
pub(crate) const PATH_LIMIT: usize = 4096;

/// Kubernetes' bounds on name servers (3) and search domains (32), with room for other clients.
const DNS_LIMIT: usize = 64;

const PORTS_LIMIT: usize = 4096;

const PORTS: std::ops::RangeInclusive<i32> = 1..=65_535;

/// Checks a pod's configuration (names, labels, sysctls, cgroup parent, log directory, ports, namespaces): bad input ends here,
/// before anything is made.
pub fn check_sandbox(config: &cri::PodSandboxConfig, driver: CgroupDriver) -> Result<(), Error> {
    let Some(metadata) = &config.metadata else {
        return Err(Error::invalid("metadata", "is missing"));
    };
    for (field, name) in [
        ("metadata.name", &metadata.name),
        ("metadata.namespace", &metadata.namespace),
        ("metadata.uid", &metadata.uid),
    ] {
        check_name(field, name)?;
    }
    check_labels("labels", &config.labels)?;
    check_annotations(&config.annotations)?;
    check_hostname(&config.hostname)?;
    if !config.log_directory.is_empty()
        && (!config.log_directory.starts_with('/') || !is_plain(&config.log_directory))
    {
        return Err(Error::invalid(
            "log_directory",
            format!(
                "{} is not a plain absolute path",
                quoted(&config.log_directory)
            ),
        ));
    }
    if let Some(dns) = &config.dns_config {
        check_dns(dns)?;
    }
    check_ports(&config.port_mappings)?;
    let Some(linux) = &config.linux else {
        return Ok(());
    };
    driver.check_parent(&linux.cgroup_parent)?;
    for resources in [&linux.resources, &linux.overhead].into_iter().flatten() {
        resources::check(resources)?;
    }
    if let Some(security) = &linux.security_context {
        user::check_sandbox(security)?;
        if let Some(options) = &security.namespace_options {
            check_namespaces(options, false)?;
            userns::check(options)?;
        }
        if let Some(profile) = &security.seccomp {
            seccomp::check_profile(profile)?;
        }
    }
    sysctl::sandbox_sysctls(config).map(drop)
}

/// Likewise for a container.
pub fn check_container(
    sandbox: &cri::PodSandboxConfig,
    config: &cri::ContainerConfig,
) -> Result<(), Error> {
    let Some(metadata) = &config.metadata else {
        return Err(Error::invalid("metadata", "is missing"));
    };
    check_name("metadata.name", &metadata.name)?;
    if config
        .image
        .as_ref()
        .is_none_or(|image| image.image.is_empty())
    {
        return Err(Error::invalid("image", "is missing"));
    }
    check_labels("labels", &config.labels)?;
    check_annotations(&config.annotations)?;
    if config.log_path.starts_with('/') || !is_plain(&config.log_path) {
        return Err(Error::invalid(
            "log_path",
            format!(
                "{} is not a plain path below log_directory",
                quoted(&config.log_path)
            ),
        ));
    }
    if cri::Signal::try_from(config.stop_signal).is_err() {
        return Err(Error::invalid(
            "stop_signal",
            format!("{} is no signal of the CRI", config.stop_signal),
        ));
    }
    process::check(config)?;
    mounts::check(sandbox, config)?;
    devices::check(config)?;
    cdi_devices(config)?;
    let Some(linux) = &config.linux else {
        return Ok(());
    };
    if let Some(resources) = &linux.resources {
        resources::check(resources)?;
    }
    let Some(security) = &linux.security_context else {
        return Ok(());
    };
    if security.privileged && !sandbox_security(sandbox).is_some_and(|sandbox| sandbox.privileged) {
        return Err(Error::invalid(
            "security_context.privileged",
            "its pod was not created for privileged containers",
        ));
    }
    if let Some(options) = &security.namespace_options {
        check_namespaces(options, true)?;
        userns::check_container(sandbox, options)?;
    }
    capabilities::check(security)?;
    user::check(security)?;
    seccomp::check(security)?;
    security::check(security)
}

/// A runtime handler is the name of a table in the configuration: a DNS label.
pub fn check_runtime_handler(handler: &str) -> Result<(), Error> {
    let plain = handler.bytes().all(|byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.'
    });
    if plain && handler.len() <= NAME_LIMIT && !handler.contains("..") {
        return Ok(());
    }
    Err(Error::invalid(
        "runtime_handler",
        format!("{} is not the name of a runtime handler", quoted(handler)),
    ))
}

fn sandbox_security(sandbox: &cri::PodSandboxConfig) -> Option<&cri::LinuxSandboxSecurityContext> {
    sandbox.linux.as_ref()?.security_context.as_ref()
}

/// Names become parts of paths and lines of output.
fn check_name(field: &str, name: &str) -> Result<(), Error> {
    let why = if name.is_empty() {
        "is missing".to_owned()
    } else if name.len() > NAME_LIMIT {
        format!("{} is longer than {NAME_LIMIT} bytes", quoted(name))
    } else if name.contains('/')
        || name == "."
        || name == ".."
        || name.chars().any(|c| c.is_control() || c.is_whitespace())
    {
        format!("{} is not a name", quoted(name))
    } else {
        return Ok(());
    };
    Err(Error::invalid(field, why))
}

fn check_labels(field: &str, labels: &HashMap<String, String>) -> Result<(), Error> {
    for (key, value) in labels {
        if key.is_empty() {
            return Err(Error::invalid(field, "a key is empty"));
        }
        if key.len() + value.len() > LABEL_LIMIT {
            let bytes = key.len() + value.len();
            return Err(Error::invalid(
                format!("{field}[{}]", quoted(key)),
                format!("{bytes} bytes; a label has at most {LABEL_LIMIT}"),
            ));
        }
    }
    check_total(field, labels)
}

fn check_annotations(annotations: &HashMap<String, String>) -> Result<(), Error> {
    if annotations.keys().any(String::is_empty) {
        return Err(Error::invalid("annotations", "a key is empty"));
    }
    check_total("annotations", annotations)
}

fn check_total(field: &str, map: &HashMap<String, String>) -> Result<(), Error> {
    let total: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if total > LABELS_LIMIT {
        return Err(Error::invalid(
            field,
            format!("{total} bytes together; at most {LABELS_LIMIT} are taken"),
        ));
    }
    Ok(())
}

fn check_hostname(hostname: &str) -> Result<(), Error> {
    let plain = hostname
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if hostname.len() > HOSTNAME_LIMIT || !plain || hostname.starts_with(['-', '.']) {
        let why = format!(
            "{} is not a host name of at most {HOSTNAME_LIMIT} bytes",
            quoted(hostname)
        );
        return Err(Error::invalid("hostname", why));
    }
    Ok(())
}

/// Each becomes a line of resolv.conf.
fn check_dns(dns: &cri::DnsConfig) -> Result<(), Error> {
    for (field, entries) in [
        ("servers", &dns.servers),
        ("searches", &dns.searches),
        ("options", &dns.options),
    ] {
        let field = format!("dns_config.{field}");
        if entries.len() > DNS_LIMIT {
            return Err(Error::invalid(
                field,
                format!("{} entries; at most {DNS_LIMIT} are taken", entries.len()),
            ));
        }
        for entry in entries {
            if entry.is_empty()
                || entry.len() > 1024
                || entry
                    .chars()
                    .any(|c| c.is_whitespace() || c.is_control() || c == '#' || c == ';')
            {
                return Err(Error::invalid(
                    field,
                    format!("{} can't stand in resolv.conf", quoted(entry)),
                ));
            }
        }
    }
    for server in &dns.servers {
        let address = server
            .split_once('%')
            .map_or(server.as_str(), |(address, _zone)| address);
        if address.parse::<IpAddr>().is_err() {
            return Err(Error::invalid(
                "dns_config.servers",
                format!("{} is not an IP address", quoted(server)),
            ));
        }
    }
    Ok(())
}

fn check_ports(mappings: &[cri::PortMapping]) -> Result<(), Error> {
    if mappings.len() > PORTS_LIMIT {
        return Err(Error::invalid(
            "port_mappings",
            format!(
                "{} of them; at most {PORTS_LIMIT} are taken",
                mappings.len()
            ),
        ));
    }
    let mut host_ports = HashSet::new();
    for mapping in mappings {
        let wrong = |why: String| Err(Error::invalid("port_mappings", why));
        if cri::Protocol::try_from(mapping.protocol).is_err() {
            return wrong(format!(
                "protocol {} is none of TCP (0), UDP (1), SCTP (2)",
                mapping.protocol
            ));
        }
        if !PORTS.contains(&mapping.container_port) {
            return wrong(format!(
                "container port {} is not between 1 and 65535",
                mapping.container_port
            ));
        }
        if mapping.host_port != 0 && !PORTS.contains(&mapping.host_port) {
            return wrong(format!(
                "host port {} is neither 0 (none) nor between 1 and 65535",
                mapping.host_port
            ));
        }
        if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
            return wrong(format!(
                "host IP {} is not an IP address",
                quoted(&mapping.host_ip)
            ));
        }
        if mapping.host_port != 0
            && !host_ports.insert((mapping.protocol, mapping.host_port, &mapping.host_ip))
        {
            return wrong(format!("host port {} is given twice", mapping.host_port));
        }
    }
    Ok(())
}

fn check_namespaces(options: &cri::NamespaceOption, of_container: bool) -> Result<(), Error> {
    use cri::NamespaceMode::{Container, Node, Pod, Target};
    for (field, mode, allowed) in [
        ("network", options.network, &[Pod, Node][..]),
        ("ipc", options.ipc, &[Pod, Node][..]),
        (
            "pid",
            options.pid,
            if of_container {
                &[Pod, Container, Node, Target][..]
            } else {
                &[Pod, Container, Node][..]
            },
        ),
    ] {
        if !allowed.iter().any(|have| *have as i32 == mode) {
            let name = cri::NamespaceMode::try_from(mode)
                .map_or_else(|_| mode.to_string(), |mode| mode.as_str_name().into());
            return Err(Error::invalid(
                format!("namespace_options.{field}"),
                format!("{name} is not possible there"),
            ));
        }
    }
    let targets = options.pid == Target as i32;
    let is_id = (1..=64).contains(&options.target_id.len())
        && options
            .target_id
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit());
    if targets && !is_id {
        return Err(Error::invalid(
            "namespace_options.target_id",
            format!(
                "{} is not the id of a container",
                quoted(&options.target_id)
            ),
        ));
    }
    Ok(())
}

/// No `..`, no control characters, not too long. An empty path is plain.
fn is_plain(path: &str) -> bool {
    path.len() < PATH_LIMIT
        && !path.chars().any(char::is_control)
        && Path::new(path).components().all(|part| {
            matches!(
                part,
                Component::RootDir | Component::Normal(_) | Component::CurDir
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::Kind,
        tests::{fixture, sandbox},
    };

    fn linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
        config.linux.get_or_insert_default()
    }

    fn options(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
        linux(config)
            .security_context
            .get_or_insert_default()
            .namespace_options
            .get_or_insert_default()
    }

    fn port(container_port: i32, host_port: i32, host_ip: &str) -> cri::PortMapping {
        cri::PortMapping {
            protocol: 0,
            container_port,
            host_port,
            host_ip: host_ip.into(),
        }
    }

    // SEC-ENG-11, SEC-CRI-04, SEC-CRI-09
    #[test]
    fn a_pod_that_makes_no_sense_is_refused() {
        type Change = fn(&mut cri::PodSandboxConfig);
        let table: [(&str, Change); 47] = [
            ("no metadata", |c| c.metadata = None),
            ("no name", |c| c.metadata.as_mut().unwrap().name.clear()),
            ("no namespace", |c| {
                c.metadata.as_mut().unwrap().namespace.clear()
            }),
            ("no uid", |c| c.metadata.as_mut().unwrap().uid.clear()),
            ("name with a slash", |c| {
                c.metadata.as_mut().unwrap().name = "a/b".into()
            }),
            ("name ..", |c| {
                c.metadata.as_mut().unwrap().name = "..".into()
            }),
            ("name with a NUL", |c| {
                c.metadata.as_mut().unwrap().uid = "a\0".into()
            }),
            ("name with a newline", |c| {
                c.metadata.as_mut().unwrap().namespace = "a\nb".into()
            }),
            ("name of 1 MB", |c| {
                c.metadata.as_mut().unwrap().name = "a".repeat(1 << 20)
            }),
            ("label of 10,000 bytes", |c| {
                drop(c.labels.insert("k".into(), "v".repeat(10_000)))
            }),
            ("label key of 10,000 bytes", |c| {
                drop(c.labels.insert("k".repeat(10_000), "v".into()))
            }),
            ("label without a key", |c| {
                drop(c.labels.insert(String::new(), "v".into()))
            }),
            ("too many labels", |c| {
                c.labels = (0..100)
                    .map(|n| (n.to_string(), "v".repeat(4000)))
                    .collect()
            }),
            ("annotations of 1 MB", |c| {
                drop(c.annotations.insert("k".into(), "v".repeat(1 << 20)))
            }),
            ("annotation without a key", |c| {
                drop(c.annotations.insert(String::new(), "v".into()))
            }),
            ("hostname of 65 bytes", |c| c.hostname = "h".repeat(65)),
            ("hostname with a newline", |c| {
                c.hostname = "h\n127.0.0.1 x".into()
            }),
            ("hostname with a slash", |c| c.hostname = "../x".into()),
            ("log directory relative", |c| {
                c.log_directory = "logs".into()
            }),
            ("log directory with ..", |c| {
                c.log_directory = "/var/log/../../etc".into()
            }),
            ("log directory with a NUL", |c| {
                c.log_directory = "/var/log\0".into()
            }),
            ("cgroup relative", |c| {
                linux(c).cgroup_parent = "kubepods".into()
            }),
            ("cgroup root", |c| linux(c).cgroup_parent = "/".into()),
            ("cgroup with ..", |c| {
                linux(c).cgroup_parent = "/kubepods/../..".into()
            }),
            ("cgroup with .", |c| {
                linux(c).cgroup_parent = "/kubepods/./a".into()
            }),
            ("cgroup with //", |c| {
                linux(c).cgroup_parent = "/kubepods//a".into()
            }),
            ("cgroup with a NUL", |c| {
                linux(c).cgroup_parent = "/kubepods\0".into()
            }),
            ("cgroup of systemd", |c| {
                linux(c).cgroup_parent = "/kubepods.slice/kubepods-pod1.slice".into()
            }),
            ("cgroup of the node", |c| {
                linux(c).cgroup_parent = "/system.slice".into()
            }),
            ("cgroup too deep", |c| {
                linux(c).cgroup_parent = "/a".repeat(33)
            }),
            ("sysctl of the node", |c| {
                drop(
                    linux(c)
                        .sysctls
                        .insert("kernel.core_pattern".into(), "x".into()),
                )
            }),
            ("network of a container", |c| {
                options(c).network = cri::NamespaceMode::Container as i32
            }),
            ("ipc of a target", |c| {
                options(c).ipc = cri::NamespaceMode::Target as i32
            }),
            ("pid of a target", |c| {
                options(c).pid = cri::NamespaceMode::Target as i32
            }),
            ("pid of nothing known", |c| options(c).pid = 17),
            ("user that is none", |c| {
                linux(c)
                    .security_context
                    .get_or_insert_default()
                    .run_as_user = Some(cri::Int64Value { value: -7 });
            }),
            ("seccomp without a path", |c| {
                linux(c).security_context.get_or_insert_default().seccomp =
                    Some(cri::SecurityProfile {
                        profile_type: 2,
                        ..Default::default()
                    });
            }),
            ("resources", |c| {
                linux(c).resources.get_or_insert_default().cpu_shares = -1
            }),
            ("DNS server by name", |c| {
                c.dns_config
                    .get_or_insert_default()
                    .servers
                    .push("dns.example".into())
            }),
            ("DNS search with a newline", |c| {
                c.dns_config
                    .get_or_insert_default()
                    .searches
                    .push("a\nnameserver 6.6.6.6".into())
            }),
            ("DNS option of nothing", |c| {
                c.dns_config
                    .get_or_insert_default()
                    .options
                    .push(String::new())
            }),
            ("port 0", |c| c.port_mappings = vec![port(0, 80, "")]),
            ("port 65536", |c| {
                c.port_mappings = vec![port(65_536, 80, "")]
            }),
            ("host port negative", |c| {
                c.port_mappings = vec![port(80, -1, "")]
            }),
            ("host IP", |c| {
                c.port_mappings = vec![port(80, 80, "localhost")]
            }),
            ("host port twice", |c| {
                c.port_mappings = vec![port(80, 80, ""), port(81, 80, "")]
            }),
            ("protocol", |c| {
                c.port_mappings = vec![cri::PortMapping {
                    protocol: 9,
                    ..port(80, 80, "")
                }]
            }),
        ];
        for (name, change) in table {
            let mut config = sandbox();
            change(&mut config);
            let err = check_sandbox(&config, CgroupDriver::Cgroupfs).expect_err(name);
            assert_eq!(err.kind(), Kind::Invalid, "{name}: {err}");
            assert!(
                err.to_string().len() < 600,
                "{name}: the message is {} bytes long",
                err.to_string().len()
            );
        }
    }

    #[test]
    fn a_pod_as_a_kubelet_sends_it_is_taken() {
        let mut config = sandbox();
        config.hostname = "web-0".into();
        config.log_directory = "/var/log/pods/default_web_1".into();
        config.labels.insert("app".into(), "v".repeat(63));
        config.annotations.insert(
            "kubectl.kubernetes.io/last-applied-configuration".into(),
            "x".repeat(200 << 10),
        );
        config.port_mappings = vec![
            port(80, 0, ""),
            port(81, 0, ""),
            port(80, 8080, "127.0.0.1"),
            port(80, 8080, "::1"),
        ];
        config.dns_config = Some(cri::DnsConfig {
            servers: vec!["10.96.0.10".into(), "fe80::1%eth0".into()],
            searches: vec!["default.svc.cluster.local".into(), ".".into()],
            options: vec!["ndots:5".into()],
        });
        linux(&mut config).cgroup_parent = "/kubepods/burstable/pod1234".into();
        let userns = cri::UserNamespace {
            mode: cri::NamespaceMode::Node as i32,
            ..Default::default()
        };
        options(&mut config).userns_options = Some(userns);
        options(&mut config).pid = cri::NamespaceMode::Container as i32;
        check_sandbox(&config, CgroupDriver::Cgroupfs).unwrap();

        let userns = options(&mut config).userns_options.as_mut().unwrap();
        userns.mode = cri::NamespaceMode::Pod as i32;
        assert_eq!(
            check_sandbox(&config, CgroupDriver::Cgroupfs)
                .unwrap_err()
                .kind(),
            Kind::Invalid
        );
        let userns = options(&mut config).userns_options.as_mut().unwrap();
        userns.uids = vec![cri::IdMapping {
            host_id: 65_536,
            container_id: 0,
            length: 65_536,
        }];
        userns.gids = userns.uids.clone();
        check_sandbox(&config, CgroupDriver::Cgroupfs).unwrap();
    }

    // SEC-CRI-04
    #[test]
    fn a_container_that_makes_no_sense_is_refused() {
        type Change = fn(&mut cri::ContainerConfig);
        fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
            config
                .linux
                .get_or_insert_default()
                .security_context
                .get_or_insert_default()
        }
        let table: [(&str, Change); 14] = [
            ("no metadata", |c| c.metadata = None),
            ("no name", |c| c.metadata.as_mut().unwrap().name.clear()),
            ("no image", |c| c.image = None),
            ("label of 10,000 bytes", |c| {
                drop(c.labels.insert("k".into(), "v".repeat(10_000)))
            }),
            ("log path absolute", |c| c.log_path = "/etc/passwd".into()),
            ("log path with ..", |c| c.log_path = "a/../../b.log".into()),
            ("log path with a newline", |c| c.log_path = "a\n.log".into()),
            ("signal", |c| c.stop_signal = 66),
            ("working directory", |c| c.working_dir = "relative".into()),
            ("privileged in a plain pod", |c| {
                security(c).privileged = true
            }),
            ("capability", |c| {
                security(c)
                    .capabilities
                    .get_or_insert_default()
                    .add_capabilities
                    .push("FLY".into())
            }),
            ("target without an id", |c| {
                security(c).namespace_options.get_or_insert_default().pid = 3
            }),
            ("target with a path", |c| {
                let options = security(c).namespace_options.get_or_insert_default();
                (options.pid, options.target_id) = (3, "../x".into());
            }),
            ("user", |c| {
                security(c).run_as_group = Some(cri::Int64Value { value: 5 })
            }),
        ];
        for (name, change) in table {
            let mut config = fixture().container;
            change(&mut config);
            assert_eq!(
                check_container(&sandbox(), &config).expect_err(name).kind(),
                Kind::Invalid,
                "{name}"
            );
        }
        check_container(&sandbox(), &fixture().container).unwrap();
        let mut target = fixture().container;
        let options = security(&mut target)
            .namespace_options
            .get_or_insert_default();
        (options.pid, options.target_id) = (3, "a".repeat(64));
        check_container(&sandbox(), &target).unwrap();
    }

    #[test]
    fn a_runtime_handler_is_a_plain_name() {
        for good in ["", "berth", "kata-qemu", "gvisor.v2"] {
            check_runtime_handler(good).unwrap();
        }
        for bad in ["../x", "a/b", "Berth", "a b", "a\0", "a..b"] {
            assert!(check_runtime_handler(bad).is_err(), "{bad:?}");
        }
        assert!(check_runtime_handler(&"a".repeat(1 << 20)).is_err());
    }
}
