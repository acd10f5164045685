//! How a node comes to a certificate of its own.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, c_program::compile, daemon::bin_dir};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};
use serde_json::Value;

use crate::{
    faults::CLOCK,
    member::{Member, NODE, TOKEN, condition, make_token},
};

fn mode(path: &Path) -> Result<u32> {
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(metadata.permissions().mode() & 0o777)
}

#[test]
fn a_node_joins_by_a_token_and_renews_its_certificate_by_itself() -> Result<()> {
    Node::test(async |node| {
        let (kubeconfig, certs) = (node.dir.join("node.kubeconfig"), node.dir.join("certs"));
        let mut member = Member::start_by_token(node, &kubeconfig, &certs).await?;
        let file = certs.join("kubelet-client-current.pem");
        ensure!(mode(&file)? == 0o600 && mode(&kubeconfig)? == 0o600);
        let first = fs::read_to_string(&file)?;
        // what it was told is in use by whoever has the kubeconfig
        let text = fs::read_to_string(&kubeconfig)?;
        ensure!(
            !text.contains("token") && text.contains("kubelet-client-current.pem"),
            "{text}"
        );
        let messages = |all: &Value| -> Vec<String> {
            let all = all["items"].as_array().into_iter().flatten();
            all.map(|one| {
                let condition = &one["status"]["conditions"][0];
                format!(
                    "{} {}",
                    one["spec"]["username"].as_str().unwrap_or(""),
                    condition["message"].as_str().unwrap_or("")
                )
            })
            .collect()
        };
        let all = messages(&member.server.json(&["get", "csr"])?);
        ensure!(
            all == [
                "system:bootstrap:abcdef Auto approving kubelet client certificate after SubjectAccessReview."
            ],
            "{all:?}"
        );

        // eleven months later
        member.kubelet.kill_9();
        let (library, shift) = (node.dir.join("clock.so"), node.dir.join("shift"));
        compile(CLOCK, &library, &["-shared", "-fPIC"])?;
        fs::write(&shift, (335 * 24 * 3600).to_string())?;
        member.kubelet.set_environment(&[
            ("LD_PRELOAD", library.display().to_string()),
            ("CLOCK_SHIFT", shift.display().to_string()),
        ]);
        member.kubelet.spawn()?;
        member
            .until("the certificate is another", || {
                Ok(fs::read_to_string(&file)? != first)
            })
            .await?;
        ensure!(mode(&file)? == 0o600);
        let all = messages(&member.server.json(&["get", "csr"])?);
        let own = "system:node:n1 Auto approving self kubelet client certificate after SubjectAccessReview.";
        ensure!(all.iter().any(|one| one == own), "{all:?}");
        // it is who it was
        member.apply(
            "next",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]",
        )?;
        member.wait_ready("next").await?;

        member.server.kubectl(&["delete", "pod", "next"])?;
        let it = member.server.json(&["get", "node", NODE])?;
        ensure!(condition(&it, "Ready") == "True", "{it:#}");
        member.end()
    })
}

#[test]
fn a_node_whose_certificate_has_ended_joins_anew_or_says_what_it_lacks() -> Result<()> {
    Node::test(async |node| {
        let (kubeconfig, certs) = (node.dir.join("node.kubeconfig"), node.dir.join("certs"));
        let mut member = Member::start_by_token(node, &kubeconfig, &certs).await?;
        member.apply(
            "stays",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]",
        )?;
        let before = member.wait_ready("stays").await?;
        member.kubelet.kill_9();
        let file = certs.join("kubelet-client-current.pem");
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        params.distinguished_name = DistinguishedName::new();
        let name = &mut params.distinguished_name;
        name.push(DnType::OrganizationName, "system:nodes");
        name.push(DnType::CommonName, format!("system:node:{NODE}"));
        let key = KeyPair::generate()?;
        let ended = params.self_signed(&key)?.pem() + &key.serialize_pem();
        fs::write(&file, &ended)?;

        // the token was taken back meanwhile
        member
            .server
            .kubectl(&["-n", "kube-system", "delete", "secret", TOKEN])?;
        member.kubelet.spawn()?;
        member
            .until("it says what it lacks", || {
                let log = member.kubelet.log();
                Ok(log.contains("ended at 2021-01-01") && log.contains("berth token create"))
            })
            .await?;
        ensure!(fs::read_to_string(&file)? == ended);
        make_token(&member.server)?;
        member
            .until("it has a certificate again", || {
                Ok(fs::read_to_string(&file)? != ended)
            })
            .await?;
        ensure!(mode(&file)? == 0o600);
        member.apply(
            "next",
            "  containers: [{name: a, image: busybox, command: [sleep, '1000']}]",
        )?;
        member.wait_ready("next").await?;
        let after = member.server.json(&["get", "pod", "stays"])?;
        ensure!(
            after["status"]["containerStatuses"][0]["containerID"]
                == before["status"]["containerStatuses"][0]["containerID"],
            "{after:#}"
        );
        member.kubelet.kill_9();

        // one that has nothing to join by
        fs::write(&file, &ended)?;
        let log = node.dir.join("alone.log");
        let mut alone = Command::new(bin_dir()?.join("berth"))
            .args([
                "--endpoint",
                "unix:///nonexistent/runtime.sock",
                "kubelet",
                "--kubeconfig",
            ])
            .arg(&kubeconfig)
            .arg("--kubelet-dir")
            .arg(node.dir.join("alone"))
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        let said = member
            .until("it says what it lacks", || {
                let log = fs::read_to_string(&log)?;
                Ok(log.contains("ended at 2021-01-01") && log.contains("--bootstrap-kubeconfig"))
            })
            .await;
        alone.kill()?;
        alone.wait()?;
        said?;
        fs::remove_file(&file)?;
        member.kubelet.spawn()?;
        member.server.kubectl(&["delete", "pods", "--all"])?;
        member.end()
    })
}
