//! What Debian's etcdctl shows of the embedded store: rows ET-06 and ET-07.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::Server;

struct Etcdctl<'a> {
    server: &'a Server,
    endpoint: String,
    client: &'static str,
}

impl Etcdctl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let pki = self.server.data().join("pki");
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg("--endpoints")
            .arg(&self.endpoint)
            .arg("--cacert")
            .arg(pki.join("ca.crt"))
            .arg("--cert")
            .arg(pki.join(format!("{}.crt", self.client)))
            .arg("--key")
            .arg(pki.join(format!("{}.key", self.client)))
            .arg("--command-timeout=10s")
            .args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)
            .output()
            .context("etcdctl (package etcd-client)")
    }

    fn says(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ask(arguments)?;
        ensure!(
            output.status.success(),
            "etcdctl {arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.server.log()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn with_etcdctl(work: impl FnOnce(&Server, &mut Etcdctl<'_>) -> Result<()>) -> Result<()> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let server = Server::start_with("fjall", &["--etcd-listen", &free.to_string()])?;
    let mut etcdctl = Etcdctl {
        server: &server,
        endpoint: format!("https://{free}"),
        client: "etcd-client",
    };
    work(&server, &mut etcdctl)
}

/// ET-06
#[test]
fn etcdctl_shows_the_keys_of_the_embedded_store_et_06() -> Result<()> {
    with_etcdctl(|server, etcdctl| {
        server.kubectl(&["create", "configmap", "shown", "--from-literal=a=b"])?;
        server.kubectl(&[
            "create",
            "secret",
            "generic",
            "s",
            "--from-literal=p=Y4nys7f11",
        ])?;
        let keys = etcdctl.says(&["get", "--keys-only", "--prefix", "/"])?;
        for key in [
            "/registry/configmaps/default/shown",
            "/registry/namespaces/kube-system",
            "/registry/secrets/default/s",
            "/registry/clusterroles/cluster-admin",
        ] {
            ensure!(keys.lines().any(|line| line == key), "{key}: {keys}");
        }
        let value = etcdctl.says(&[
            "get",
            "/registry/configmaps/default/shown",
            "--print-value-only",
        ])?;
        ensure!(value.contains("\"a\":\"b\""), "{value}");
        // SC-05: they are sealed here, too
        let secret = etcdctl.says(&["get", "/registry/secrets/default/s", "--print-value-only"])?;
        ensure!(
            !secret.contains("WTRueXM3ZjEx") && !secret.contains("Y4nys7f11"),
            "{secret}"
        );
        let page = etcdctl.says(&[
            "get",
            "--keys-only",
            "--prefix",
            "/registry/namespaces/",
            "--limit=2",
        ])?;
        let page: Vec<&str> = page.lines().filter(|line| !line.is_empty()).collect();
        ensure!(
            page == [
                "/registry/namespaces/default",
                "/registry/namespaces/kube-node-lease"
            ],
            "{page:?}"
        );
        let status = etcdctl.says(&["endpoint", "status", "--write-out=simple"])?;
        ensure!(
            status.contains(&etcdctl.endpoint) && status.contains("3.4.0"),
            "{status}"
        );
        Ok(())
    })
}

/// ET-07
#[test]
fn etcdctl_watches_the_embedded_store_et_07() -> Result<()> {
    with_etcdctl(|server, etcdctl| {
        let mut child = etcdctl
            .command(&[
                "watch",
                "--prefix",
                "/registry/configmaps/default/w",
                "--rev=1",
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let told = || -> Result<Vec<String>> {
            server.kubectl(&["create", "configmap", "w", "--from-literal=a=b"])?;
            server.kubectl(&["delete", "configmap", "w"])?;
            let mut told = Vec::new();
            for line in lines {
                told.push(line?);
                if told.len() == 5 {
                    break;
                }
            }
            Ok(told)
        };
        let told = told();
        child.kill()?;
        child.wait()?;
        let told = told?;
        ensure!(
            told[0] == "PUT" && told[1] == "/registry/configmaps/default/w",
            "{told:?}"
        );
        ensure!(told[3] == "DELETE" && told[4] == told[1], "{told:?}");
        Ok(())
    })
}

/// SEC-API-12: it is read by whom it is for, and written by nobody.
#[test]
fn etcdctl_writes_nothing_and_a_stranger_reads_nothing_sec_api_12() -> Result<()> {
    with_etcdctl(|server, etcdctl| {
        for (arguments, name) in [
            (vec!["put", "/registry/a", "b"], "etcdserverpb.KV/Put"),
            (vec!["del", "--prefix", "/"], "etcdserverpb.KV/DeleteRange"),
            (vec!["compact", "2"], "etcdserverpb.KV/Compact"),
            (
                vec!["lease", "grant", "10"],
                "etcdserverpb.Lease/LeaseGrant",
            ),
            (vec!["member", "list"], "etcdserverpb.Cluster/MemberList"),
            (vec!["user", "list"], "etcdserverpb.Auth/UserList"),
        ] {
            let output = etcdctl.ask(&arguments)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                !output.status.success() && said.contains(name),
                "{arguments:?}: {said}"
            );
            ensure!(
                said.contains("Unimplemented")
                    || said.contains("UNIMPLEMENTED")
                    || said.contains("read through etcd's API"),
                "{said}"
            );
        }
        // any other certificate of the same CA
        etcdctl.client = "server";
        let output = etcdctl.ask(&["get", "--prefix", "/"])?;
        ensure!(
            !output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        let plain = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([
                "--endpoints",
                &etcdctl.endpoint,
                "--command-timeout=3s",
                "--insecure-skip-tls-verify",
            ])
            .args(["get", "--prefix", "/"])
            .output()?;
        ensure!(
            !plain.status.success() && plain.stdout.is_empty(),
            "{plain:?}"
        );
        let refused = Command::new(berth_tests::daemon::bin_dir()?.join("berth"))
            .args([
                "up",
                "--server",
                "--listen",
                "127.0.0.1:0",
                "--store",
                "memory",
            ])
            .args(["--etcd-listen", "0.0.0.0:0", "--data"])
            .arg(server.dir().join("other"))
            .output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            !refused.status.success() && said.contains("loopback"),
            "{said}"
        );
        Ok(())
    })
}
