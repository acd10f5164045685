//! Plugins that hang, die and talk rubbish.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{
    BUSYBOX, Node, Setup, container,
    nri::{Plugin, Script},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{joined, socket};

/// Short, for those that hang.
fn short_timeouts() -> Setup {
    Setup {
        nri: "request_timeout_ms = 1000\nregistration_timeout_ms = 1500".into(),
        ..Default::default()
    }
}

#[test]
fn a_plugin_that_hangs_anywhere_is_let_go_of_and_delays_nobody_past_its_timeout() -> Result<()> {
    Node::test_with(short_timeouts(), async |node| {
        for phase in [
            "RunPodSandbox",
            "CreateContainer",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "UpdateContainer",
            "PostUpdateContainer",
            "StopContainer",
            "RemoveContainer",
            "StopPodSandbox",
            "RemovePodSandbox",
        ] {
            let plugin = joined(node, "10", "hangs").await?;
            plugin.script.hang_at(phase);
            let since = Instant::now();
            let pod = node.run(node.pod("hang")).await?;
            let config = container("c", BUSYBOX, &["sleep", "1000"]);
            let id = node.start_container(&pod, config).await?;
            let update = cri::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(cri::LinuxContainerResources {
                    cpu_shares: 200,
                    ..Default::default()
                }),
                ..Default::default()
            };
            node.cri
                .runtime()
                .update_container_resources(update)
                .await?;
            node.cri.stop(&id, 0).await?;
            node.cri.remove(&id).await?;
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
            let took = since.elapsed();
            ensure!(
                took > Duration::from_secs(1),
                "{phase}: it was not waited for"
            );
            ensure!(took < Duration::from_secs(10), "{phase}: {took:?}");
            plugin
                .wait_let_go()
                .await
                .with_context(|| phase.to_owned())?;
        }
        for phase in ["Configure", "Synchronize"] {
            let script = Arc::new(Script::default());
            script.hang_at(phase);
            let plugin = Plugin::connect(&socket(node), "10", "hangs", script).await?;
            plugin.script.wait_for(phase, "").await?;
            let since = Instant::now();
            let pod = node.run(node.pod("goes-on")).await?;
            ensure!(
                since.elapsed() < Duration::from_secs(6),
                "{phase}: {:?}",
                since.elapsed()
            );
            plugin
                .wait_let_go()
                .await
                .with_context(|| phase.to_owned())?;
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        let log = std::fs::read_to_string(&node.daemon.log)?;
        ensure!(
            log.contains("10-hangs") && log.contains("no answer within"),
            "not named in the log"
        );
        Ok(())
    })
}

#[test]
fn a_plugin_that_dies_in_the_middle_of_a_request_costs_nothing() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "10", "dies").await?;
        plugin.script.hang_at("CreateContainer");
        let pod = node.run(node.pod("dies")).await?;
        let script = plugin.script.clone();
        let died = async {
            while !script
                .heard()
                .iter()
                .any(|h| h.starts_with("CreateContainer"))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            drop(plugin);
            Instant::now()
        };
        let config = container("c", BUSYBOX, &["true"]);
        let (at, made) = tokio::join!(died, node.create(&pod, &config));
        made?;
        ensure!(at.elapsed() < Duration::from_secs(2), "it was waited for");
        Ok(())
    })
}

#[test]
fn rubbish_wrong_names_and_second_registrations_are_turned_away() -> Result<()> {
    Node::test_with(short_timeouts(), async |node| {
        let path = socket(node);
        for rubbish in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0, 4, 0, 0, 0, 1, 1, 0],
            &[0, 0, 0, 9, 0, 0, 0, 1, 7],
            b"",
        ] {
            let mut trunk = tokio::net::UnixStream::connect(&path).await?;
            trunk.write_all(rubbish).await?;
            // At once, or when it has not registered in time.
            let mut rest = vec![];
            let closed = trunk.read_to_end(&mut rest);
            let closed = tokio::time::timeout(Duration::from_secs(10), closed).await;
            closed
                .with_context(|| format!("{rubbish:?}: still connected"))?
                .ok();
        }
        for (index, name) in [
            ("1", "a"),
            ("100", "a"),
            ("ab", "a"),
            ("", "a"),
            ("10", ""),
            ("10", "a/b"),
        ] {
            let made = Plugin::connect(&path, index, name, Arc::default()).await;
            ensure!(made.is_err(), "{index}-{name} was taken");
        }
        let plugin = joined(node, "10", "twice").await?;
        ensure!(plugin.register("10", "twice").await.is_err());
        ensure!(plugin.register("20", "other").await.is_err());
        let script = Arc::new(Script::default());
        script
            .events
            .store(1 << 20, std::sync::atomic::Ordering::Relaxed);
        let wants = Plugin::connect(&path, "30", "wants", script).await?;
        wants.wait_let_go().await?;
        let pod = node.run(node.pod("unharmed")).await?;
        ensure!(plugin.script.heard_of(&pod.id) == ["RunPodSandbox"]);
        Ok(())
    })
}
