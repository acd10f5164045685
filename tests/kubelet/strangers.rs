//! Whom the kubelet's server answers, and what.

use std::process::Command;

use anyhow::{Result, ensure};
use berth_tests::Node;

use crate::member::{ADDRESS, Member};

const SLEEPER: &str = "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

/// One request of curl's to the kubelet; the HTTP status.
fn curl(arguments: &[&str], path: &str) -> Result<String> {
    let output = Command::new("curl")
        .args([
            "-sk",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--max-time",
            "20",
        ])
        .args(arguments)
        .arg(format!("https://{ADDRESS}:10250{path}"))
        .output()?;
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn nobody_is_answered_who_has_not_said_who_they_are_and_may_sec_kub_02_sec_kub_03() -> Result<()> {
    Node::test(async |node| {
        let member = Member::start(node).await?;
        let server = &member.server;
        member.apply("web", SLEEPER)?;
        member.wait_ready("web").await?;
        let token = |account: &str| -> Result<String> {
            server.kubectl(&["create", "serviceaccount", account])?;
            Ok(server
                .kubectl(&["create", "token", account])?
                .trim()
                .to_owned())
        };
        let (tenant, reader, operator) = (token("tenant")?, token("reader")?, token("operator")?);
        for (account, verbs) in [("reader", "get"), ("operator", "get,create")] {
            server.kubectl(&[
                "create",
                "clusterrole",
                account,
                &format!("--verb={verbs}"),
                "--resource=nodes/proxy,nodes/stats,nodes/metrics",
            ])?;
            server.kubectl(&[
                "create",
                "clusterrolebinding",
                account,
                &format!("--clusterrole={account}"),
                &format!("--serviceaccount=default:{account}"),
            ])?;
        }
        let paths = [
            "/pods",
            "/runningpods/",
            "/metrics",
            "/metrics/cadvisor",
            "/metrics/resource",
            "/stats/summary",
            "/containerLogs/default/web/a",
            "/exec/default/web/a?command=id&output=1",
            "/attach/default/web/a?output=1",
            "/portForward/default/web",
            "/run/default/web/a?cmd=id",
            "/checkpoint/default/web/a",
            "/logs/",
            "/debug/pprof/",
            "/debug/flags/v",
            "/configz",
            "/spec/",
            "/",
            "/healthz/ping",
        ];
        let bearer = |token: &str| format!("Authorization: Bearer {token}");
        for path in paths {
            let nobody = curl(&[], path)?;
            let wrong = curl(&["-H", &bearer("wrong")], path)?;
            let other = curl(&["-H", &bearer(&tenant)], path)?;
            ensure!(
                (nobody.as_str(), wrong.as_str(), other.as_str()) == ("401", "401", "403"),
                "{path}: {nobody} {wrong} {other}"
            );
        }
        // a certificate that no CA of ours has signed does not come as far as HTTP
        let at = |name: &str| server.dir().join(name).display().to_string();
        berth_tests::identity::run(
            "openssl",
            &[
                "req",
                "-x509",
                "-new",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
                "-keyout",
                &at("foreign.key"),
                "-out",
                &at("foreign.crt"),
                "-subj",
                "/O=system:masters/CN=admin",
            ],
        )?;
        ensure!(
            curl(
                &["--cert", &at("foreign.crt"), "--key", &at("foreign.key")],
                "/pods"
            )? == "000"
        );
        ensure!(curl(&[], "/healthz")? == "200");

        let upgrade = [
            "-H",
            "Connection: Upgrade",
            "-H",
            "Upgrade: websocket",
            "-H",
            "Sec-WebSocket-Version: 13",
            "-H",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "-H",
            "Sec-WebSocket-Protocol: v5.channel.k8s.io",
        ];
        let read = bearer(&reader);
        ensure!(curl(&["-H", &read], "/pods")? == "200");
        ensure!(curl(&["-H", &read], "/stats/summary")? == "200");
        ensure!(curl(&["-H", &read], "/containerLogs/default/web/a")? == "200");
        ensure!(curl(&["-H", &read], "/containerLogs/default/web/a?tailLines=x")? == "422");
        ensure!(
            curl(&["-H", &read], "/containerLogs/default/web/..")? == "400"
                || curl(&["-H", &read], "/containerLogs/default/web/..")? == "404"
        );
        for path in [
            "/exec/default/web/a?command=id&output=1",
            "/attach/default/web/a?output=1",
            "/portForward/default/web",
        ] {
            let with = |who: &str| -> Result<String> {
                let mut all = upgrade.to_vec();
                all.extend(["-H", who]);
                curl(&all, path)
            };
            ensure!(
                with(&read)? == "403",
                "{path}: who may only read opens a stream"
            );
            ensure!(curl(&["-X", "POST", "-H", &read], path)? == "403", "{path}");
            ensure!(
                curl(&["-X", "POST", "-H", &bearer(&operator)], path)? == "400",
                "{path}"
            );
        }
        let ports = Command::new("curl")
            .args([
                "-s",
                "--max-time",
                "5",
                &format!("http://{ADDRESS}:10255/pods"),
            ])
            .status()?;
        ensure!(!ports.success(), "the read-only port is open");
        server.kubectl(&["delete", "pod", "web"])?;
        member.end()
    })
}
