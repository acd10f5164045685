//! Pods whose containers are made by a stock shim, Debian's containerd-shim-runc-v2 with runc, beside pods of our own. What every pod
//! must do is asked of them by the conformance suite (`tests/conformance/of_stock_shims.rs`).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerState, NamespaceMode, PodSandboxState};
use berth_tests::{
    BUSYBOX, Node, Pod, Setup, container,
    cri::refused,
    process,
    request::{ContainerRequest, PodRequest},
    sh,
};
use tonic::Code;

/// Handlers of both kinds; Berth's own is the default.
fn both() -> Setup {
    Setup {
        config: "[runtime.handlers.berth]\n\
            [runtime.handlers.runc]\nshim = \"io.containerd.runc.v2\"\noptions = { BinaryName = \"runc\" }\n\
            [runtime.handlers.no-runtime]\nshim = \"io.containerd.runc.v2\"\noptions = { BinaryName = \"/no/such/runtime\" }\n"
            .into(),
        ..Default::default()
    }
}

async fn run(node: &Node, config: cri::PodSandboxConfig) -> Result<Pod> {
    let id = node.cri.run_pod_with(&config, "runc").await?;
    Ok(Pod { id, config })
}

/// The stock shim of a pod.
fn stock_shim(pod: &Pod) -> Result<process::Process> {
    process::of_this_machine()
        .into_iter()
        .find(|process| {
            let line = process.cmdline();
            line.contains("containerd-shim-runc-v2 ")
                && line.contains(&format!("-id {}", pod.id))
                && !line.contains("-front")
        })
        .context("no stock shim")
}

/// A pod that something is going to happen to, its container, and the container of another pod.
async fn victim_and_neighbour(node: &Node) -> Result<(Pod, String, String)> {
    let victim = run(node, node.pod("victim")).await?;
    let other = run(node, node.pod("other")).await?;
    let config = container("c", BUSYBOX, &["sleep", "1000"]);
    let id = node.start_container(&victim, config.clone()).await?;
    let stays = node.start_container(&other, config).await?;
    Ok((victim, id, stays))
}

#[test]
fn pods_of_both_kinds_live_side_by_side_and_over_a_kill_of_the_daemon() -> Result<()> {
    Node::test_with(both(), async |node| {
        let stock = run(node, node.pod("stock")).await?;
        let own = node.run(node.pod("own")).await?;
        ensure!(node.cri.pod_status(&stock.id).await?.runtime_handler == "runc");
        let handlers = node
            .cri
            .runtime()
            .status(cri::StatusRequest::default())
            .await?;
        for handler in handlers.into_inner().runtime_handlers {
            let features = handler.features.unwrap_or_default();
            let ours = ["", "berth"].contains(&handler.name.as_str());
            // runc tells its mount options; a runtime that is not there tells nothing.
            ensure!(
                features.recursive_read_only_mounts == (handler.name != "no-runtime"),
                "{}",
                handler.name
            );
            ensure!(!features.user_namespaces || ours, "{}", handler.name);
        }
        let config = container("c", BUSYBOX, &sh("echo out; echo err >&2; exit 3"));
        let id = node.start_container(&stock, config.clone()).await?;
        let status = node.cri.wait_exit(&id).await?;
        ensure!(
            (status.exit_code, status.reason.as_str()) == (3, "Error"),
            "{status:?}"
        );
        ensure!(node.log_text(&stock, &config, "stdout")? == "out\n");
        ensure!(node.log_text(&stock, &config, "stderr")? == "err\n");

        let forever = sh("while :; do echo tick; sleep 0.1; done");
        let long = container("long", BUSYBOX, &forever);
        let id = node.start_container(&stock, long.clone()).await?;
        let beside = node.start_container(&own, long.clone()).await?;
        let init = process::init_of(&id).context("no init")?;
        ensure!(
            init.parent == stock_shim(&stock)?.pid,
            "its parent is not the stock shim: {init:?}"
        );
        ensure!(stock_shim(&own).is_err());
        node.daemon.kill_9();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = node.log_text(&stock, &long, "stdout")?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let after = node.log_text(&stock, &long, "stdout")?;
        ensure!(
            after.len() > before.len(),
            "nothing is logged while the daemon is down"
        );
        node.restart().await?;
        for id in [&id, &beside] {
            ensure!(node.cri.status(id).await?.state() == ContainerState::ContainerRunning);
            ensure!(node.cri.exec(id, &["echo", "on"]).await? == "on");
        }
        ensure!(process::init_of(&id).is_some_and(|now| now.is(&init)));
        node.cri.stop(&id, 0).await?;
        ensure!(node.cri.status(&id).await?.exit_code == 137);
        Ok(())
    })
}

#[test]
fn a_pid_namespace_that_is_the_pods_is_that_of_its_pause_which_reaps() -> Result<()> {
    Node::test_with(both(), async |node| {
        let config = node
            .pod("shared")
            .namespaces(|namespaces| namespaces.pid = NamespaceMode::Pod.into());
        let pod = run(node, config).await?;
        let shares = |name: &str| {
            container(name, BUSYBOX, &["sleep", "1000"]).security(|security| {
                security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
            })
        };
        let a = node.start_container(&pod, shares("a")).await?;
        let b = node.start_container(&pod, shares("b")).await?;
        ensure!(node.cri.shell(&a, "cat /proc/1/comm").await? == "pause");
        let namespace = ["readlink", "/proc/self/ns/pid"];
        ensure!(node.cri.exec(&a, &namespace).await? == node.cri.exec(&b, &namespace).await?);
        // An orphan is the pause's, and leaves no zombie.
        node.cri.shell(&a, "(sleep 0.2 &) ; sleep 0.6").await?;
        let zombies = node
            .cri
            .shell(&b, "grep -l 'State:.Z' /proc/[0-9]*/status; true")
            .await?;
        ensure!(zombies.is_empty(), "{zombies}");
        node.cri.stop(&a, 0).await?;
        ensure!(node.cri.status(&b).await?.state() == ContainerState::ContainerRunning);
        Ok(())
    })
}

#[test]
fn a_stock_shim_that_is_killed_ends_its_containers_and_no_others_rel_07() -> Result<()> {
    Node::test_with(both(), async |node| {
        let (victim, id, stays) = victim_and_neighbour(node).await?;
        process::kill_9(stock_shim(&victim)?.pid);
        let status = node.cri.exits_within(&id, Duration::from_secs(5)).await?;
        ensure!(status.exit_code == 137, "{status:?}");
        ensure!(
            status.message.contains("containerd-shim-runc-v2"),
            "{:?}",
            status.message
        );
        ensure!(process::in_cgroup(&id).is_empty());
        ensure!(process::eventually(Duration::from_secs(5), || stock_shim(
            &victim
        )
        .is_err()));
        ensure!(node.cri.pod_status(&victim.id).await?.state() == PodSandboxState::SandboxNotready);
        let again = node
            .create(&victim, &container("d", BUSYBOX, &["true"]))
            .await;
        ensure!(
            again.is_err(),
            "a container was made in a pod that has no shim"
        );
        ensure!(node.cri.exec(&stays, &["echo", "here"]).await? == "here");
        Ok(())
    })
}

#[test]
fn a_front_that_is_killed_takes_the_stock_shim_and_its_containers_along_rel_07() -> Result<()> {
    Node::test_with(both(), async |node| {
        for daemon_is_down in [false, true] {
            let (victim, id, stays) = victim_and_neighbour(node).await?;
            let front = process::Process::read(stock_shim(&victim)?.parent).context("no front")?;
            ensure!(front.cmdline().contains("-front"), "{}", front.cmdline());
            if daemon_is_down {
                node.daemon.kill_9();
            }
            process::kill_9(front.pid);
            if daemon_is_down {
                node.restart().await?;
            }
            node.cri.exits_within(&id, Duration::from_secs(5)).await?;
            ensure!(process::eventually(Duration::from_secs(5), || {
                process::in_cgroup(&id).is_empty()
            }));
            ensure!(process::eventually(Duration::from_secs(5), || stock_shim(
                &victim
            )
            .is_err()));
            ensure!(node.cri.status(&stays).await?.state() == ContainerState::ContainerRunning);
            node.remove_all().await?;
        }
        Ok(())
    })
}

/// REL-03: stopped (SIGSTOP) it answers no call, and does not end.
#[test]
fn a_pod_whose_stock_shim_hangs_can_be_stopped_and_removed_and_others_go_on_rel_03() -> Result<()> {
    Node::test_with(both(), async |node| {
        let (victim, id, stays) = victim_and_neighbour(node).await?;
        let shim = stock_shim(&victim)?;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(shim.pid),
            nix::sys::signal::Signal::SIGSTOP,
        )?;
        node.cri.stop(&id, 1).await?;
        let status = node.cri.status(&id).await?;
        ensure!(
            status.state() == ContainerState::ContainerExited,
            "{status:?}"
        );
        ensure!(node.cri.exec(&stays, &["echo", "here"]).await? == "here");
        node.cri.stop_pod(&victim.id).await?;
        node.cri.remove_pod(&victim.id).await?;
        ensure!(process::Process::read(shim.pid).is_none_or(|now| !now.is(&shim)));
        ensure!(node.cri.exec(&stays, &["echo", "here"]).await? == "here");
        Ok(())
    })
}

#[test]
fn what_a_stock_shim_can_not_do_is_refused_by_its_name_and_leaves_nothing() -> Result<()> {
    Node::test_with(both(), async |node| {
        let answer = node.cri.run_pod_with(&node.pod("none"), "no-runtime").await;
        refused(
            answer,
            Code::Internal,
            &["containerd-shim-runc-v2", "/no/such/runtime", "Create"],
        )?;
        ensure!(node.cri.pods(None).await?.is_empty());

        let pod = run(node, node.pod("stock")).await?;
        let missing = container("missing", BUSYBOX, &["/no/such/command"]);
        let made = async {
            let id = node.create(&pod, &missing).await?;
            node.cri.start(&id).await?;
            Ok::<_, anyhow::Error>(())
        };
        let error = format!("{:#}", made.await.expect_err("it runs"));
        ensure!(error.contains("/no/such/command"), "{error}");
        let mapped = node.pod("mapped").namespaces(|namespaces| {
            let map = cri::IdMapping {
                host_id: 100_000,
                container_id: 0,
                length: 65536,
            };
            namespaces.userns_options = Some(cri::UserNamespace {
                mode: NamespaceMode::Pod.into(),
                uids: vec![map],
                gids: vec![map],
            });
        });
        let answer = node.cri.run_pod_with(&mapped, "runc").await;
        refused(
            answer,
            Code::FailedPrecondition,
            &["user namespace", "runc"],
        )?;
        ensure!(node.cri.pods(None).await?.len() == 1);
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let request = cri::CheckpointContainerRequest {
            container_id: id,
            location: node.dir.join("archive.tar").display().to_string(),
            timeout: 0,
        };
        let answer = node.cri.runtime().checkpoint_container(request).await;
        refused(answer, Code::FailedPrecondition, &["checkpoint", "runc"])?;
        ensure!(!node.dir.join("archive.tar").exists());
        Ok(())
    })
}

/// A file system below the volume is read-only, too, where the runtime can make it so; elsewhere the mount is refused by its name.
#[test]
fn mounts_are_recursively_read_only_where_the_runtime_can_do_it_or_refused_by_name() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // A runtime that has everything but this, and says so.
    let limited = dir.path().join("limited");
    std::fs::write(
        &limited,
        "#!/bin/sh\n[ \"$1\" = features ] && echo '{\"mountOptions\": [\"ro\"]}' && exit\nexec runc \"$@\"\n",
    )?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&limited, mode)?;
    let mut setup = both();
    setup.config.push_str(&format!(
        "[runtime.handlers.limited]\nshim = \"io.containerd.runc.v2\"\noptions = {{ BinaryName = {limited:?} }}\n"
    ));
    Node::test_with(setup, async |node| {
        let volume = node.volume("v")?;
        let below = volume.join("below");
        std::fs::create_dir(&below)?;
        let tmpfs = nix::mount::mount(
            Some("tmpfs"),
            &below,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        );
        tmpfs.context("mount a tmpfs")?;
        let result = async {
            let asked = |recursive_read_only| {
                let mount = cri::Mount {
                    recursive_read_only,
                    readonly: true,
                    ..berth_tests::request::bind(&volume, "/v")
                };
                let name = if recursive_read_only { "all" } else { "top" };
                container(name, BUSYBOX, &["sleep", "1000"])
                    .with(|config| config.mounts.push(mount))
            };
            for handler in ["runc", "limited"] {
                let config = node.pod(handler);
                let id = node.cri.run_pod_with(&config, handler).await?;
                let pod = Pod { id, config };
                let top = node.start_container(&pod, asked(false)).await?;
                let touched = node.cri.exec_raw(&top, &["touch", "/v/below/x"]).await?;
                ensure!(touched.exit_code == 0, "{touched:?}");
                if handler == "limited" {
                    let answer = node.cri.create(&pod.id, &asked(true), &pod.config).await;
                    refused(
                        answer,
                        Code::FailedPrecondition,
                        &["recursive_read_only", "limited", "/v"],
                    )?;
                    continue;
                }
                let all = node.start_container(&pod, asked(true)).await?;
                for path in ["/v/x", "/v/below/y"] {
                    let touched = node.cri.exec_raw(&all, &["touch", path]).await?;
                    let said = String::from_utf8_lossy(&touched.stderr).into_owned();
                    ensure!(said.contains("Read-only file system"), "{path}: {said}");
                }
            }
            node.remove_all().await
        }
        .await;
        nix::mount::umount2(&below, nix::mount::MntFlags::MNT_DETACH)?;
        result
    })
}

/// 100 pods' worth of commands, and nothing of theirs is kept.
#[test]
fn commands_leave_nothing_in_the_stock_shim_or_its_front_rel_10() -> Result<()> {
    Node::test_with(both(), async |node| {
        let pod = run(node, node.pod("execs")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let shim = stock_shim(&pod)?;
        let open =
            |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        node.cri.exec(&id, &["true"]).await?;
        let settled = |pid: i32, most: usize| {
            process::eventually(Duration::from_secs(20), || open(pid) <= most)
        };
        let before = (open(shim.pid), open(shim.parent));
        for number in 0..30 {
            let code = node
                .cri
                .exec_raw(&id, &sh(&format!("echo {number}; exit {number}")))
                .await?;
            ensure!(code.exit_code == number, "{code:?}");
            ensure!(code.stdout == format!("{number}\n").as_bytes(), "{code:?}");
        }
        let late = node.cri.exec_within(&id, &["sleep", "100"], 1).await;
        ensure!(late.is_err(), "{late:?}");
        ensure!(
            settled(shim.pid, before.0 + 2),
            "the shim: {} → {}",
            before.0,
            open(shim.pid)
        );
        ensure!(
            settled(shim.parent, before.1 + 2),
            "the front: {} → {}",
            before.1,
            open(shim.parent)
        );
        Ok(())
    })
}
