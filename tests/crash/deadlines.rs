//! REL-04: clients that give up after 100 ms while the daemon is slow, and ask again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup, container,
    failpoint::{Action, compiled_into, sites, spec},
    process,
};
use tonic_prost::prost::Message;

#[test]
fn a_request_that_timed_out_is_adopted_by_the_next_rel_04() -> Result<()> {
    compiled_into(&berth_tests::daemon::bin_dir()?.join("berthd"))?;
    let sites = sites()?;
    let slow: Vec<(&str, Action)> = sites
        .keys()
        .filter(|site| site.starts_with("pod.run.") || site.starts_with("container.create."))
        .map(|site| (site.as_str(), Action::Delay(150)))
        .collect();
    ensure!(
        slow.len() >= 4,
        "no failpoints on the way of run and create: {slow:?}"
    );
    let setup = Setup {
        failpoints: spec(slow),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        node.cri.pull(BUSYBOX).await?;
        let hasty = node.cri.within(Duration::from_millis(100));
        let config = node.pod("hasty");
        std::fs::create_dir_all(&config.log_directory)?;
        let limit = Instant::now() + Duration::from_secs(20);
        let (mut given_up, mut id) = (0, None);
        while id.is_none() {
            ensure!(
                Instant::now() < limit,
                "no pod after 20 s and {given_up} requests"
            );
            match hasty.run_pod(&config).await {
                Ok(made) => id = Some(made),
                Err(status) => {
                    ensure!(
                        matches!(
                            status.code(),
                            tonic::Code::DeadlineExceeded | tonic::Code::Cancelled
                        ),
                        "{status:?}"
                    );
                    given_up += 1;
                }
            }
        }
        let pod = id.context("a pod")?;
        ensure!(given_up > 0, "nothing was slow: the test proves nothing");
        ensure!(
            node.cri.pods(None).await?.len() == 1 && process::shims().len() == 1,
            "the retries made more than one pod"
        );

        let asked = container("a", BUSYBOX, &["sleep", "1000"]);
        std::fs::create_dir_all(std::path::Path::new(&config.log_directory).join("a"))?;
        let mut id = None;
        while id.is_none() {
            ensure!(Instant::now() < limit, "no container in time");
            id = hasty.create(&pod, &asked, &config).await.ok();
        }
        let id = id.context("a container")?;
        ensure!(
            node.cri.containers(None).await?.len() == 1,
            "the retries made more than one container"
        );
        node.cri.start(&id).await?;
        ensure!(node.cri.exec(&id, &["echo", "one"]).await? == "one");
        Ok(())
    })
}

/// tonic's own word for it would be CANCELLED; which of the two a client sees must not hang on whose clock is first.
#[test]
fn a_caller_whose_time_is_over_is_told_so_by_the_daemon_too() -> Result<()> {
    let sites = sites()?;
    let site = sites.keys().find(|site| site.starts_with("pod.run."));
    let setup = Setup {
        failpoints: spec([(site.context("no site")?.as_str(), Action::Delay(1000))]),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let config = node.pod("late");
        std::fs::create_dir_all(&config.log_directory)?;
        // Without tonic, which would keep the time at this end.
        let stream = tokio::net::UnixStream::connect(node.daemon.socket()).await?;
        let (mut sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(connection);
        let request =
            http::Request::post("http://localhost/runtime.v1.RuntimeService/RunPodSandbox")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .header("grpc-timeout", "200m")
                .body(())?;
        let message = berth_proto::cri::RunPodSandboxRequest {
            config: Some(config),
            ..Default::default()
        }
        .encode_to_vec();
        let length = (message.len() as u32).to_be_bytes();
        let (answer, mut stream) = sender.send_request(request, false)?;
        stream.send_data([&[0][..], &length, &message].concat().into(), true)?;
        let answer = answer.await?;
        let header = |name: &str| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        ensure!(header("grpc-status") == Some("4"), "{answer:?}");
        ensure!(
            header("grpc-message")
                .is_some_and(|text| text.starts_with("RunPodSandbox") && text.contains("200ms")),
            "{answer:?}"
        );
        node.remove_all().await?;
        Ok(())
    })
}

#[test]
fn what_is_never_asked_for_again_can_be_removed_rel_04() -> Result<()> {
    let sites = sites()?;
    let slow: Vec<(&str, Action)> = sites
        .keys()
        .filter(|site| site.starts_with("pod.run."))
        .map(|site| (site.as_str(), Action::Delay(150)))
        .collect();
    let setup = Setup {
        failpoints: spec(slow),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        for number in 0..3 {
            let config = node.pod(&format!("forgotten-{number}"));
            let _ = node
                .cri
                .within(Duration::from_millis(100))
                .run_pod(&config)
                .await;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Whether they came to be or not: what there is is listed, and goes.
        node.remove_all().await?;
        ensure!(node.cri.pods(None).await?.is_empty());
        Ok(())
    })
}

/// Which of the two a server does is its own affair; that it does one of them in time is not.
#[test]
fn a_changed_request_after_one_that_timed_out_is_taken_or_told_and_holds_no_name_rel_04()
-> Result<()> {
    let sites = sites()?;
    let slow: Vec<(&str, Action)> = sites
        .keys()
        .filter(|site| site.starts_with("pod.run."))
        .map(|site| (site.as_str(), Action::Delay(150)))
        .collect();
    let setup = Setup {
        failpoints: spec(slow),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        for number in 0..3 {
            let first = node.pod(&format!("changed-{number}"));
            std::fs::create_dir_all(&first.log_directory)?;
            let hasty = node.cri.within(Duration::from_millis(100));
            ensure!(hasty.run_pod(&first).await.is_err(), "nothing was slow");
            let mut changed = first.clone();
            changed.annotations.insert("changed".into(), "yes".into());
            let begin = Instant::now();
            let answer = node.cri.run_pod(&changed).await;
            ensure!(
                begin.elapsed() < Duration::from_secs(20),
                "{:?}",
                begin.elapsed()
            );
            let made = node.cri.pods(None).await?;
            ensure!(made.len() == 1, "{made:?}");
            match answer {
                Ok(id) => ensure!(made[0].id == id),
                Err(status) => {
                    ensure!(status.code() == tonic::Code::AlreadyExists, "{status:?}");
                    // Its name is free when what has it is gone.
                    node.remove_all().await?;
                    node.cri.run_pod(&changed).await?;
                }
            }
            node.remove_all().await?;
        }
        Ok(())
    })
}
