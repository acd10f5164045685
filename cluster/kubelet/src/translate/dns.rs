//! DNS policies.

use berth_proto::cri::DnsConfig;

use crate::{node::Config, pod::Desired};

/// Upstream's bounds, older libraries': what is more is left out.
const MOST_SERVERS: usize = 3;
const MOST_SEARCHES: usize = 32;
/// Of the search line's domains with a space between.
const MOST_SEARCH_BYTES: usize = 2048;

/// With the node's resolv.conf, as it is now.
pub(crate) fn now(pod: &Desired, config: &Config) -> (DnsConfig, Vec<String>) {
    let mut dns = of(pod, config, || {
        std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    });
    let omitted = limit(&mut dns);
    (dns, omitted)
}

/// What had to be left out, in upstream's words.
fn limit(dns: &mut DnsConfig) -> Vec<String> {
    let mut omitted = Vec::new();
    if dns.servers.len() > MOST_SERVERS {
        dns.servers.truncate(MOST_SERVERS);
        omitted.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            dns.servers.join(" ")
        ));
    }
    let mut bytes = 0;
    let fits = dns
        .searches
        .iter()
        .take(MOST_SEARCHES)
        .take_while(|domain| {
            bytes += domain.len() + usize::from(bytes > 0);
            bytes <= MOST_SEARCH_BYTES
        });
    let fitting = fits.count();
    if fitting < dns.searches.len() {
        dns.searches.truncate(fitting);
        omitted.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            dns.searches.join(" ")
        ));
    }
    omitted
}

/// `node` is the node's resolv.conf.
fn of(pod: &Desired, config: &Config, node: impl FnOnce() -> String) -> DnsConfig {
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

    #[test]
    fn what_is_more_than_resolvers_take_is_left_out_and_told() {
        let dns = |servers: usize, searches: &[String]| DnsConfig {
            servers: (0..servers).map(|at| format!("10.0.0.{at}")).collect(),
            searches: searches.to_vec(),
            options: Vec::new(),
        };
        let short: Vec<String> = (0..33).map(|at| format!("d{at}")).collect();
        let mut fits = dns(3, &short[..32]);
        assert!(limit(&mut fits).is_empty() && fits == dns(3, &short[..32]));

        let mut many = dns(4, &short);
        let told = limit(&mut many);
        assert_eq!(many, dns(3, &short[..32]));
        assert!(told[0].ends_with("the applied nameserver line is: 10.0.0.0 10.0.0.1 10.0.0.2"));
        assert!(told[1].ends_with(" d30 d31") && told.len() == 2);

        // two of 1023 and the space between are 2047; one more character is what fits
        let long = ["a".repeat(1023), "b".repeat(1024), "c".into()];
        let mut exact = dns(1, &long[..2]);
        assert!(limit(&mut exact).is_empty());
        let mut over = dns(1, &long);
        assert_eq!(limit(&mut over).len(), 1);
        assert_eq!(over.searches, long[..2]);
    }
}
