//! DNS policies.

use berth_proto::cri::DnsConfig;

use crate::{node::Config, pod::Desired};

/// `node` is the node's resolv.conf.
pub(crate) fn of(pod: &Desired, config: &Config, node: impl FnOnce() -> String) -> DnsConfig {
    let policy = match (pod.spec.dns_policy.as_deref(), pod.host_network()) {
        (Some("None"), _) => "None",
        (Some("ClusterFirstWithHostNet"), _) => "ClusterFirst",
        (Some("ClusterFirst") | None, false) => "ClusterFirst",
        _ => "Default",
    };
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        // Without a cluster's DNS there is only the node's.
        "ClusterFirst" if !config.cluster_dns.is_empty() => {
            let domain = &config.cluster_domain;
            let mut dns = parse(&node());
            dns.servers.clone_from(&config.cluster_dns);
            let mut searches = vec![
                format!("{}.svc.{domain}", pod.namespace),
                format!("svc.{domain}"),
                domain.clone(),
            ];
            searches.append(&mut dns.searches);
            dns.searches = searches;
            set(&mut dns.options, "ndots", Some("5"));
            dns
        }
        _ => parse(&node()),
    };
    if let Some(own) = &pod.spec.dns_config {
        let add = |to: &mut Vec<String>, more: &Option<Vec<String>>| {
            for one in more.iter().flatten() {
                if !to.contains(one) {
                    to.push(one.clone());
                }
            }
        };
        add(&mut dns.servers, &own.nameservers);
        add(&mut dns.searches, &own.searches);
        for option in own.options.iter().flatten() {
            set(
                &mut dns.options,
                option.name.as_deref().unwrap_or_default(),
                option.value.as_deref(),
            );
        }
    }
    dns
}

fn set(options: &mut Vec<String>, name: &str, value: Option<&str>) {
    options.retain(|other| other.split(':').next() != Some(name));
    options.push(match value {
        Some(value) => format!("{name}:{value}"),
        None => name.to_owned(),
    });
}

fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            // the last line of these two counts
            Some("search") => config.searches = words.collect(),
            Some("options") => config.options = words.collect(),
            _ => {}
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node::tests::node, pod::tests::pod};

    #[test]
    fn policies_choose_between_the_clusters_the_nodes_and_the_pods_own() {
        let resolv = || "# x\nnameserver 1.1.1.1\nsearch a b\noptions ndots:1 rotate\n".to_owned();
        let of = |cluster: &[&str], spec: &str| {
            let mut config = node("/k").config.clone();
            config.cluster_dns = cluster.iter().map(ToString::to_string).collect();
            let dns = of(
                &pod(&format!("  containers: [{{name: a, image: x}}]\n{spec}")),
                &config,
                resolv,
            );
            format!(
                "{} | {} | {}",
                dns.servers.join(" "),
                dns.searches.join(" "),
                dns.options.join(" ")
            )
        };
        let more = "  dnsConfig: {nameservers: [2.2.2.2], searches: [b, c], options: [{name: ndots, value: \"9\"}]}";
        for (cluster, spec, expected) in [
            (&[][..], "", "1.1.1.1 | a b | ndots:1 rotate"),
            (
                &["10.96.0.10"][..],
                "",
                "10.96.0.10 | default.svc.cluster.local svc.cluster.local cluster.local a b | rotate ndots:5",
            ),
            (
                &["10.96.0.10"],
                "  dnsPolicy: Default",
                "1.1.1.1 | a b | ndots:1 rotate",
            ),
            (
                &["10.96.0.10"],
                "  hostNetwork: true",
                "1.1.1.1 | a b | ndots:1 rotate",
            ),
            (
                &["10.96.0.10"],
                "  hostNetwork: true\n  dnsPolicy: ClusterFirstWithHostNet",
                "10.96.0.10 | default.svc.cluster.local svc.cluster.local cluster.local a b | rotate ndots:5",
            ),
            (&[], more, "1.1.1.1 2.2.2.2 | a b c | rotate ndots:9"),
            (
                &["10.96.0.10"],
                &format!("{more}\n  dnsPolicy: None"),
                "2.2.2.2 | b c | ndots:9",
            ),
        ] {
            assert_eq!(of(cluster, spec), expected, "{cluster:?} {spec}");
        }
    }
}
