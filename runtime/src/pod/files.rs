//! The files that each container of a pod gets: hostname, hosts, resolv.conf.

use std::{fmt::Write, fs, net::IpAddr, os::unix::fs::OpenOptionsExt, path::Path};

use berth_proto::cri;

use super::Pod;
use crate::error::Error;

/// Read for pods without a DNS configuration of their own.
const NODE_RESOLV_CONF: &str = "/etc/resolv.conf";
/// systemd-resolved's stub listens on the node's loopback, where no pod reaches it: the real servers are here.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// The most that is taken over from the node.
const MAX_BYTES: usize = 1 << 20;

/// Writes all three into the pod's bundle.
pub fn write_all(pod: &Pod, ips: &[IpAddr]) -> Result<(), Error> {
    let dir = pod.dir();
    let write = |path: &Path, text: &str| write(path, text, pod.root());
    write(&dir.join("hostname"), &format!("{}\n", pod.hostname()))?;
    let hosts = match pod.host_network() {
        true => node_file("/etc/hosts")?,
        false => hosts(&pod.hostname(), ips),
    };
    write(&dir.join("hosts"), &hosts)?;
    let resolv_conf = match &pod.config.dns_config {
        Some(dns) => resolv_conf(dns),
        None => {
            let text = node_file(NODE_RESOLV_CONF)?;
            match pod.host_network() || !text.contains("127.0.0.53") {
                true => text,
                false => node_file(RESOLVED_CONF).unwrap_or(text),
            }
        }
    };
    write(&dir.join("resolv.conf"), &resolv_conf)
}

/// Containers of other users read them, so 0644 whatever the umask; they lie in a directory that only root enters. Root of the pod, whoever that
/// is on the node, may write them.
fn write(path: &Path, text: &str, (uid, gid): (u32, u32)) -> Result<(), Error> {
    use std::{io::Write, os::unix::fs::PermissionsExt};
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .map_err(Error::io("make", path))?;
    file.set_permissions(fs::Permissions::from_mode(0o644))
        .map_err(Error::io("chmod", path))?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(gid)).map_err(Error::io("chown", path))?;
    file.write_all(text.as_bytes())
        .map_err(Error::io("write", path))
}

fn node_file(path: &str) -> Result<String, Error> {
    match fs::read(path) {
        Ok(mut bytes) => {
            bytes.truncate(MAX_BYTES);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = writeln!(text, "{ip}\t{hostname}");
    }
    text
}

fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_configuration_becomes_resolv_conf_lines() {
        let dns = |s: &[&str], d: &[&str], o: &[&str]| cri::DnsConfig {
            servers: s.iter().map(|s| s.to_string()).collect(),
            searches: d.iter().map(|s| s.to_string()).collect(),
            options: o.iter().map(|s| s.to_string()).collect(),
        };
        for (config, text) in [
            (dns(&[], &[], &[]), ""),
            (
                dns(
                    &["10.10.10.10", "8.8.8.8"],
                    &["google.com", "b"],
                    &["timeout:8"],
                ),
                "search google.com b\nnameserver 10.10.10.10\nnameserver 8.8.8.8\noptions timeout:8\n",
            ),
        ] {
            assert_eq!(resolv_conf(&config), text);
        }
    }

    #[test]
    fn a_pod_knows_its_own_name() {
        let text = hosts("web-0", &[IpAddr::from([10, 88, 0, 2])]);
        assert!(text.contains("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.88.0.2\tweb-0\n"));
    }
}
