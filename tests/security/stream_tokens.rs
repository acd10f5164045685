//! SEC-CRI-07: the URLs of the stream server are for one client, can't be guessed, and are told to nobody else.

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{BUSYBOX, Node, container, process, remote::Remote};

async fn url(node: &Node, id: &str) -> Result<String> {
    let request = cri::ExecRequest {
        container_id: id.to_owned(),
        cmd: vec!["echo".into(), "mine".into()],
        stdout: true,
        ..Default::default()
    };
    Ok(node.cri.runtime().exec(request).await?.into_inner().url)
}

fn token(url: &str) -> Result<&str> {
    Ok(url.rsplit_once('/').context("a URL without a path")?.1)
}

#[test]
fn a_url_is_for_one_client_and_stands_in_no_log_and_no_command_line_sec_cri_07() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("tokens")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let mut tokens = Vec::new();
        for round in 0..10 {
            let url = url(node, &id).await?;
            ensure!(url.starts_with("http://127.0.0.1:"), "{round}");
            let token = token(&url)?.to_owned();
            // 128 bits and more, in hexadecimal digits.
            ensure!(
                token.len() >= 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{} digits",
                token.len()
            );
            // Of those who race for it one gets it.
            let racers = (0..4).map(|_| Remote::open(&url));
            let mut winners = 0;
            let racers = futures_util::future::join_all(racers).await;
            for client in racers.into_iter().flatten() {
                winners += 1;
                ensure!(client.outcome().await?.stdout == b"mine\n");
            }
            ensure!(winners == 1, "{winners} clients had one token");
            ensure!(Remote::open(&url).await.is_err(), "it was good twice");
            // Another's path uses it up.
            let other = self::url(node, &id).await?;
            ensure!(
                Remote::open(&other.replace("/exec/", "/attach/"))
                    .await
                    .is_err()
                    && Remote::open(&other).await.is_err()
            );
            tokens.push(token);
            tokens.push(self::token(&other)?.to_owned());
        }
        let log = std::fs::read_to_string(&node.daemon.log)?;
        for token in &tokens {
            ensure!(!log.contains(token.as_str()), "a token stands in the log");
            ensure!(
                !process::all()
                    .iter()
                    .any(|process| process.cmdline().contains(token.as_str())),
                "a token stands in a command line"
            );
        }
        Ok(())
    })
}

#[test]
fn ten_thousand_unused_urls_cost_little_and_the_newest_still_works_sec_cri_07() -> Result<()> {
    const URLS: usize = 10_000;
    const GROWTH_KIB: u64 = 8 << 10;
    Node::test(async |node| {
        let pod = node.run(node.pod("unused")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let daemon = node.daemon.pid().context("no daemon")?;
        let resident = || -> Result<u64> {
            let status = process::Process::read(daemon)
                .context("it has ended")?
                .status()?;
            let line = status.get("VmRSS").context("no VmRSS")?;
            Ok(line.trim_end_matches(" kB").parse()?)
        };
        let first = url(node, &id).await?;
        let before = resident()?;
        let mut newest = String::new();
        for _ in 0..URLS {
            newest = url(node, &id).await?;
        }
        let after = resident()?;
        ensure!(
            after < before + GROWTH_KIB,
            "{before} KiB before, {after} KiB after"
        );
        ensure!(
            Remote::open(&first).await.is_err(),
            "the oldest was not let go of"
        );
        let outcome = Remote::open(&newest).await?.outcome().await?;
        ensure!(outcome.stdout == b"mine\n");
        Ok(())
    })
}
