//! Pods and containers from their making to their removal.

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerFilter, ContainerState, ContainerStateValue, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue,
};
use berth_tests::{BUSYBOX, Node, container, process, request::PodRequest, sh};

#[test]
fn both_services_answer_on_one_socket_cri_01() -> Result<()> {
    Node::test(async |node| {
        let version = node.cri.version().await?;
        ensure!(
            version.runtime_api_version == "v1"
                && !version.runtime_name.is_empty()
                && !version.runtime_version.is_empty(),
            "{version:?}"
        );
        ensure!(node.cri.list_images().await?.is_empty());
        Ok(())
    })
}

#[test]
fn a_pod_of_two_containers_comes_up_in_the_order_of_cri_02_with_one_shim_cri_03_cri_04()
-> Result<()> {
    Node::test(async |node| {
        let foo = node.run(node.pod("foo")).await?;
        let after_pod = process::shims();
        ensure!(after_pod.len() == 1, "one pod has the shims {after_pod:?}");
        let a = node
            .start_container(&foo, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let b = node
            .start_container(&foo, container("b", BUSYBOX, &["sleep", "1000"]))
            .await?;
        ensure!(
            process::shims().len() == 1 && process::shims()[0].pid == after_pod[0].pid,
            "containers were given shims of their own: {:?}",
            process::shims()
        );
        for id in [&a, &b] {
            ensure!(node.cri.status(id).await?.state() == ContainerState::ContainerRunning);
        }
        let bar = node.run(node.pod("bar")).await?;
        ensure!(process::shims().len() == 2 && bar.id != foo.id);
        Ok(())
    })
}

#[test]
fn exit_codes_are_the_commands_own() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("codes")).await?;
        for (name, script, code, reason) in [
            ("zero", "exit 0", 0, "Completed"),
            ("one", "exit 1", 1, "Error"),
            ("most", "exit 255", 255, "Error"),
            ("killed", "kill -9 $$", 137, "Error"),
            ("term", "trap - TERM; kill -15 $$; sleep 1", 143, "Error"),
        ] {
            // A signal that pid 1 of a namespace sends itself does nothing: a child dies of it, and its shell says so.
            let script = if script.contains("kill") {
                format!("sh -c '{script}'; exit $?")
            } else {
                script.to_owned()
            };
            let id = node
                .start_container(&pod, container(name, BUSYBOX, &sh(&script)))
                .await?;
            let status = node.cri.wait_exit(&id).await?;
            ensure!(
                (status.exit_code, status.reason.as_str()) == (code, reason),
                "{name}: {} {}",
                status.exit_code,
                status.reason
            );
            ensure!(
                status.created_at > 0
                    && status.started_at >= status.created_at
                    && status.finished_at >= status.started_at,
                "{status:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn stop_asks_first_and_kills_when_the_grace_is_over() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("stop")).await?;
        let polite = container(
            "polite",
            BUSYBOX,
            &sh("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"),
        );
        let deaf = container(
            "deaf",
            BUSYBOX,
            &sh("trap '' TERM; while :; do sleep 0.05; done"),
        );
        let (polite_id, deaf_id) = (
            node.start_container(&pod, polite.clone()).await?,
            node.start_container(&pod, deaf).await?,
        );
        process::eventually(std::time::Duration::from_secs(5), || {
            node.log_text(&pod, &polite, "stdout")
                .is_ok_and(|text| text == "ready\n")
        });

        let begin = std::time::Instant::now();
        node.cri.stop(&polite_id, 20).await?;
        ensure!(
            begin.elapsed().as_secs() < 5,
            "a container that ends on TERM was waited for {:?}",
            begin.elapsed()
        );
        ensure!(node.cri.status(&polite_id).await?.exit_code == 7);

        let begin = std::time::Instant::now();
        node.cri.stop(&deaf_id, 1).await?;
        ensure!(
            (900..5_000).contains(&begin.elapsed().as_millis()),
            "the grace of 1 s took {:?}",
            begin.elapsed()
        );
        ensure!(node.cri.status(&deaf_id).await?.exit_code == 137);
        Ok(())
    })
}

#[test]
fn stop_right_after_start_does_not_wait_out_the_grace() -> Result<()> {
    Node::test(async |node| {
        let begin = std::time::Instant::now();
        for name in ["one", "two", "three"] {
            let pod = node.run(node.pod(name)).await?;
            node.cri.stop_pod(&pod.id).await?;
            ensure!(
                node.cri.pod_status(&pod.id).await?.state() == PodSandboxState::SandboxNotready
            );
            node.cri.remove_pod(&pod.id).await?;
        }
        ensure!(
            begin.elapsed().as_secs() < 10,
            "three empty pods took {:?} to stop",
            begin.elapsed()
        );
        Ok(())
    })
}

#[test]
fn stop_and_remove_may_be_repeated() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("twice")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        for _ in 0..2 {
            node.cri.stop(&id, 0).await?;
        }
        for _ in 0..2 {
            node.cri.remove(&id).await?;
        }
        for _ in 0..2 {
            node.cri.stop_pod(&pod.id).await?;
        }
        for _ in 0..2 {
            node.cri.remove_pod(&pod.id).await?;
        }
        Ok(())
    })
}

#[test]
fn removing_a_running_pod_takes_its_containers_along() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("whole")).await?;
        let created = node
            .create(&pod, &container("created", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let running = node
            .start_container(&pod, container("running", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let exited = node
            .start_container(&pod, container("exited", BUSYBOX, &["true"]))
            .await?;
        node.cri.wait_exit(&exited).await?;
        node.cri.stop_pod(&pod.id).await?;
        ensure!(node.cri.status(&running).await?.state() == ContainerState::ContainerExited);
        node.cri.remove_pod(&pod.id).await?;
        for id in [created, running, exited] {
            ensure!(
                node.cri
                    .status(&id)
                    .await
                    .is_err_and(|status| status.code() == tonic::Code::NotFound)
            );
        }
        Ok(())
    })
}

#[test]
fn a_retried_run_or_create_returns_the_first_result_cri_rival_1() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("again")).await?;
        ensure!(
            node.cri.run_pod(&pod.config).await? == pod.id,
            "the same request made a second pod"
        );
        let config = container("a", BUSYBOX, &["sleep", "1000"]);
        let id = node.create(&pod, &config).await?;
        ensure!(
            node.cri.create(&pod.id, &config, &pod.config).await? == id,
            "the same request made a second container"
        );
        node.restart().await?;
        ensure!(
            node.cri.run_pod(&pod.config).await? == pod.id,
            "after a restart the same request made a second pod"
        );
        ensure!(
            node.cri.create(&pod.id, &config, &pod.config).await? == id,
            "after a restart the same request made a second container"
        );
        let next = pod
            .config
            .clone()
            .with(|config| config.metadata.as_mut().expect("it has metadata").attempt = 1);
        let second = node.run(next).await?;
        ensure!(second.id != pod.id, "another attempt is another pod");
        Ok(())
    })
}

#[test]
fn lists_are_filtered_by_id_state_pod_and_labels() -> Result<()> {
    Node::test(async |node| {
        let label = |config: &mut berth_proto::cri::PodSandboxConfig, value: &str| {
            config.labels.insert("tier".into(), value.into());
        };
        let front = node
            .run(node.pod("front").with(|config| label(config, "front")))
            .await?;
        let back = node
            .run(node.pod("back").with(|config| label(config, "back")))
            .await?;
        let mut config = container("a", BUSYBOX, &["sleep", "1000"]);
        config.labels.insert("app".into(), "a".into());
        let a = node.start_container(&front, config).await?;
        let b = node
            .create(&front, &container("b", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let c = node
            .start_container(&back, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;

        let pods = async |filter: PodSandboxFilter| -> Result<Vec<String>> {
            let mut ids: Vec<String> = node
                .cri
                .pods(Some(filter))
                .await?
                .into_iter()
                .map(|pod| pod.id)
                .collect();
            ids.sort();
            Ok(ids)
        };
        let sorted = |ids: &[&String]| {
            let mut ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.sort();
            ids
        };
        let state = |state: PodSandboxState| {
            Some(PodSandboxStateValue {
                state: state.into(),
            })
        };
        // A filter may come present but empty.
        ensure!(pods(PodSandboxFilter::default()).await? == sorted(&[&front.id, &back.id]));
        ensure!(
            pods(PodSandboxFilter {
                id: front.id[..13].into(),
                ..Default::default()
            })
            .await?
                == [front.id.clone()]
        );
        let labels = [("tier".to_owned(), "back".to_owned())].into();
        ensure!(
            pods(PodSandboxFilter {
                label_selector: labels,
                ..Default::default()
            })
            .await?
                == [back.id.clone()]
        );
        node.cri.stop_pod(&back.id).await?;
        ensure!(
            pods(PodSandboxFilter {
                state: state(PodSandboxState::SandboxReady),
                ..Default::default()
            })
            .await?
                == [front.id.clone()]
        );
        ensure!(
            pods(PodSandboxFilter {
                state: state(PodSandboxState::SandboxNotready),
                ..Default::default()
            })
            .await?
                == [back.id.clone()]
        );

        let containers = async |filter: ContainerFilter| -> Result<Vec<String>> {
            let mut ids: Vec<String> = node
                .cri
                .containers(Some(filter))
                .await?
                .into_iter()
                .map(|container| container.id)
                .collect();
            ids.sort();
            Ok(ids)
        };
        let state = |state: ContainerState| {
            Some(ContainerStateValue {
                state: state.into(),
            })
        };
        ensure!(containers(ContainerFilter::default()).await? == sorted(&[&a, &b, &c]));
        ensure!(
            containers(ContainerFilter {
                pod_sandbox_id: front.id.clone(),
                ..Default::default()
            })
            .await?
                == sorted(&[&a, &b])
        );
        ensure!(
            containers(ContainerFilter {
                state: state(ContainerState::ContainerCreated),
                ..Default::default()
            })
            .await?
                == [b.clone()]
        );
        ensure!(
            containers(ContainerFilter {
                state: state(ContainerState::ContainerExited),
                ..Default::default()
            })
            .await?
                == [c.clone()]
        );
        let labels = [("app".to_owned(), "a".to_owned())].into();
        ensure!(
            containers(ContainerFilter {
                label_selector: labels,
                ..Default::default()
            })
            .await?
                == [a.clone()]
        );
        Ok(())
    })
}

#[test]
fn the_start_timeline_of_a_pod_is_in_its_verbose_status() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("timeline")).await?;
        let began = std::time::Instant::now();
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let took_ms = began.elapsed().as_secs_f64() * 1e3;
        let of_pod = node.cri.pod_status_verbose(&pod.id, true).await?.info;
        let of_container = node.cri.status_verbose(&id, true).await?.info;
        let pod_phases = &["netns", "network", "shim", "create", "start", "total"][..];
        let container_phases = &["snapshot", "spec", "create", "create_total", "start"];
        for (info, phases) in [(of_pod, pod_phases), (of_container, container_phases)] {
            let text = info.get("timeline").cloned().unwrap_or_default();
            let timeline: serde_json::Value = serde_json::from_str(&text)?;
            for phase in phases {
                let ms = timeline[phase].as_f64().unwrap_or(-1.0);
                ensure!(ms > 0.0, "{phase} took {ms} ms: {text}");
            }
            if let Some(total) = timeline["create_total"].as_f64() {
                let start = timeline["start"].as_f64().unwrap_or(0.0);
                ensure!(total + start < took_ms, "{text} within {took_ms} ms");
            }
        }
        ensure!(
            node.cri
                .pod_status_verbose(&pod.id, false)
                .await?
                .info
                .is_empty()
        );
        Ok(())
    })
}

#[test]
fn running_containers_keep_their_pids_over_a_restart_and_exits_meanwhile_are_known() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("outlive")).await?;
        let stays = node
            .start_container(&pod, container("stays", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let ends = node
            .start_container(&pod, container("ends", BUSYBOX, &sh("sleep 1; exit 42")))
            .await?;
        let created = node
            .create(&pod, &container("created", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let before = process::init_of(&stays).context("no init")?;
        node.daemon.kill_9();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        node.restart().await?;
        ensure!(
            process::init_of(&stays).is_some_and(|now| now.is(&before)),
            "the container was restarted"
        );
        ensure!(node.cri.status(&stays).await?.state() == ContainerState::ContainerRunning);
        let status = node.cri.status(&ends).await?;
        ensure!(
            status.state() == ContainerState::ContainerExited && status.exit_code == 42,
            "{status:?}"
        );
        ensure!(node.cri.status(&created).await?.state() == ContainerState::ContainerCreated);
        node.cri.start(&created).await?;
        ensure!(node.cri.exec(&created, &["echo", "hi"]).await? == "hi");
        Ok(())
    })
}
