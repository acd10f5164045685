//! Other programs' rules for forwarded packets: what keeps pods from the world is told, with what to do about it.

mod wharf;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use berth_network::{Attachment, Builtin as Network};
use wharf::*;

fn look(network: &Network) -> Option<String> {
    run(network.look_at_firewall()).unwrap();
    network.muted()
}

fn script(lines: &str) {
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        nft(&line.split(' ').collect::<Vec<_>>());
    }
}

/// Whether the pod has an answer from the world.
fn reaches_the_world(pod: &Attachment, outside: &Outside, patience: std::time::Duration) -> bool {
    let to: SocketAddr = (OUTSIDE.parse::<IpAddr>().unwrap(), 7).into();
    let _echo = Echo::new(Some(&outside.netns), to, "world");
    let socket = inside(&pod.netns, || UdpSocket::bind("0.0.0.0:0").unwrap());
    ping(&socket, to, patience).is_some()
}

#[test]
fn a_chain_that_drops_what_it_does_not_know_is_told_until_it_knows_the_bridge() {
    let wharf = Wharf::dual_stack();
    let outside = Outside::new();
    let network = wharf.network();
    let a = pod_id();
    let (pod, _) = run(network.attach(&request(&a))).unwrap();
    assert_eq!(look(&network), None);
    assert!(reaches_the_world(&pod, &outside, PATIENCE));
    let cases = [
        (
            "as Docker has it",
            "ip filter FORWARD",
            "policy drop",
            "add table ip filter
             add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }
             add rule ip filter FORWARD iifname docker0 accept",
        ),
        (
            "as firewalld has it",
            "inet firewalld filter_FORWARD",
            "ends with a rule",
            "add table inet firewalld
             add chain inet firewalld filter_FORWARD { type filter hook forward priority 10 ; policy accept ; }
             add rule inet firewalld filter_FORWARD ct state established accept
             add rule inet firewalld filter_FORWARD counter reject with icmpx type admin-prohibited",
        ),
        (
            "a rule without a condition",
            "ip mine chain-of-mine",
            "ends with a rule",
            "add table ip mine
             add chain ip mine chain-of-mine { type filter hook forward priority 5 ; }
             add rule ip mine chain-of-mine drop",
        ),
    ];
    for (who, at, how, lines) in cases {
        script(lines);
        assert!(!reaches_the_world(&pod, &outside, MOMENT), "{who}");
        let told = look(&network).unwrap_or_else(|| panic!("{who}: {}", ruleset()));
        assert!(told.contains(at) && told.contains(how), "{who}: {told}");
        // What it says is what helps.
        let advice = told.split('`').nth(1).unwrap();
        for command in advice.split("; ") {
            nft(&command.split(' ').skip(1).collect::<Vec<_>>());
        }
        assert!(
            reaches_the_world(&pod, &outside, PATIENCE),
            "{who}: {}",
            ruleset()
        );
        assert_eq!(look(&network), None, "{who}: {}", ruleset());
        let table: Vec<&str> = at.split(' ').take(2).collect();
        nft(&["delete", "table", table[0], table[1]]);
    }
    // Of IPv6, which the pods have.
    script(
        "add table ip6 filter
            add chain ip6 filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
    );
    assert!(look(&network).unwrap().contains("ip6 filter FORWARD"));
    // Somebody let the pods' range through.
    script("add rule ip6 filter FORWARD ip6 saddr fd07:201::/64 accept");
    assert_eq!(look(&network), None);
    nft(&["delete", "table", "ip6", "filter"]);

    run(network.detach(&a)).unwrap();
    assert!(run(network.remove_bridge_if_unused()).unwrap());
}

#[test]
fn rules_that_keep_no_pod_from_the_world_are_not_told() {
    let wharf = Wharf::new(24);
    let network = wharf.network();
    for lines in [
        "add chain ip t c { type filter hook input priority 0 ; policy drop ; }",
        "add chain ip t c { type filter hook forward priority 0 ; policy accept ; }",
        "add chain ip t c { type filter hook forward priority 0 ; }
         add rule ip t c iifname eth7 drop",
        "add chain ip t c { type filter hook forward priority 0 ; }
         add rule ip t c drop
         add rule ip t c counter accept",
        "add chain ip t c
         add rule ip t c drop",
        "add chain ip t c { type filter hook forward priority 0 ; policy drop ; }
         add rule ip t c ip saddr 10.201.7.0/24 accept",
    ] {
        nft(&["add", "table", "ip", "t"]);
        script(lines);
        assert_eq!(look(&network), None, "{lines}");
        nft(&["delete", "table", "ip", "t"]);
    }
    // Pods have no IPv6 here.
    script(
        "add table ip6 t
            add chain ip6 t c { type filter hook forward priority 0 ; policy drop ; }",
    );
    assert_eq!(look(&network), None);
    nft(&["delete", "table", "ip6", "t"]);
}
