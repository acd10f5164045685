//! The pod's /etc/hosts.

use super::hostname_and_domain;
use crate::pod::Desired;

/// `node` is the node's own hosts file, which a pod in its network has.
pub(crate) fn hosts(
    pod: &Desired,
    ips: &[String],
    cluster_domain: &str,
    node: impl FnOnce() -> String,
) -> String {
    let mut text = match pod.host_network() {
        true => format!(
            "# Kubernetes-managed hosts file (host network).\n{}",
            node()
        ),
        false => {
            let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n".to_owned();
            let (name, domain) = hostname_and_domain(pod, cluster_domain);
            for ip in ips {
                text += &match domain.as_str() {
                    "" => format!("{ip}\t{name}\n"),
                    domain => format!("{ip}\t{name}.{domain}\t{name}\n"),
                };
            }
            text
        }
    };
    let mut aliases = pod.spec.host_aliases.iter().flatten().peekable();
    if aliases.peek().is_some() {
        text += "\n# Entries added by HostAliases.\n";
    }
    for alias in aliases {
        text += &format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.clone().unwrap_or_default().join("\t")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod;

    #[test]
    fn a_pod_knows_itself_and_its_aliases() {
        let of = |spec: &str| {
            let pod = pod(&format!("  containers: [{{name: a, image: x}}]\n{spec}"));
            hosts(&pod, &["10.0.0.2".into()], "c", || {
                "127.0.0.1 node\n".into()
            })
        };
        assert!(of("").ends_with("\n10.0.0.2\tweb\n"));
        assert!(of("  subdomain: s").ends_with("\n10.0.0.2\tweb.s.default.svc.c\tweb\n"));
        let aliased = of("  hostAliases: [{ip: 1.2.3.4, hostnames: [a.b, c]}]");
        assert!(
            aliased.ends_with("\n# Entries added by HostAliases.\n1.2.3.4\ta.b\tc\n"),
            "{aliased}"
        );
        assert!(of("  hostNetwork: true").ends_with("(host network).\n127.0.0.1 node\n"));
    }
}
