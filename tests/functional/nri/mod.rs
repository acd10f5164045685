//! NRI plugins: what they hear, and what they change while containers run.

mod adjustments;
mod faults;

use std::{
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_nri::api;
use berth_proto::cri;
use berth_tests::{
    BUSYBOX, Node, Setup, cgroup, container,
    cri::refused,
    daemon::bin_dir,
    nri::{Plugin, Script, limits, lock, optional},
    process, sh,
};
use protobuf::MessageField;
use tonic::Code;

fn socket(node: &Node) -> PathBuf {
    node.dir.join("nri/nri.sock")
}

async fn joined(node: &Node, index: &str, name: &str) -> Result<Plugin> {
    Plugin::joined(&socket(node), index, name, Arc::new(Script::default())).await
}

#[test]
fn plugins_hear_of_each_step_once_and_in_order() -> Result<()> {
    Node::test(async |node| {
        let mode = std::fs::metadata(socket(node))?.permissions().mode();
        let dir = std::fs::metadata(node.dir.join("nri"))?
            .permissions()
            .mode();
        ensure!((mode & 0o777, dir & 0o777) == (0o600, 0o700));
        let plugin = joined(node, "10", "listener").await?;
        let configured = lock(&plugin.script.configured)
            .clone()
            .context("no Configure")?;
        ensure!(configured.runtime_name == "berth" && configured.request_timeout == 2000);
        let pod = node.run(node.pod("heard")).await?;
        let quick = node
            .start_container(&pod, container("quick", BUSYBOX, &sh("exit 3")))
            .await?;
        node.cri.wait_exit(&quick).await?;
        // By itself, before anybody removes it.
        plugin.script.wait_for("StopContainer", &quick).await?;
        node.cri.stop(&quick, 0).await?;
        node.cri.remove(&quick).await?;
        let long = node
            .start_container(&pod, container("long", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let never = node
            .create(&pod, &container("never", BUSYBOX, &["true"]))
            .await?;
        for _ in 0..2 {
            node.cri.stop_pod(&pod.id).await?;
        }
        node.cri.remove_pod(&pod.id).await?;
        let life = [
            "CreateContainer",
            "PostCreateContainer",
            "StartContainer",
            "PostStartContainer",
            "StopContainer",
            "RemoveContainer",
        ];
        let script = &plugin.script;
        ensure!(
            script.heard_of(&quick) == life,
            "{:?}",
            script.heard_of(&quick)
        );
        ensure!(
            script.heard_of(&long) == life,
            "{:?}",
            script.heard_of(&long)
        );
        let unborn = ["CreateContainer", "PostCreateContainer", "RemoveContainer"];
        ensure!(
            script.heard_of(&never) == unborn,
            "{:?}",
            script.heard_of(&never)
        );
        let of_pod = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"];
        ensure!(
            script.heard_of(&pod.id) == of_pod,
            "{:?}",
            script.heard_of(&pod.id)
        );
        let heard = script.heard();
        let at = |call: &str, id: &str| heard.iter().position(|h| *h == format!("{call} {id}"));
        ensure!(
            at("StopContainer", &long) < at("StopPodSandbox", &pod.id)
                && at("RemoveContainer", &long) < at("RemovePodSandbox", &pod.id)
        );
        Ok(())
    })
}

#[test]
fn each_container_is_seen_exactly_once_by_a_plugin_that_joins_meanwhile() -> Result<()> {
    Node::test(async |node| {
        let _first = joined(node, "00", "first").await?;
        let pod = node.run(node.pod("joins")).await?;
        let config = |name: &str| container(name, BUSYBOX, &["sleep", "1000"]);
        let before = node.start_container(&pod, config("before")).await?;
        let script = Arc::new(Script::default());
        script.hold.send_replace(true);
        let late = Plugin::connect(&socket(node), "10", "late", script.clone()).await?;
        script.wait_for("Synchronize", "").await?;
        let configs = ["d1", "d2", "d3"].map(config);
        let release = async {
            tokio::time::sleep(Duration::from_millis(2200)).await;
            script.hold.send_replace(false);
        };
        let made = futures_util::future::join_all(configs.iter().map(|c| node.create(&pod, c)));
        let (during, ()) = tokio::join!(made, release);
        let during = during.into_iter().collect::<Result<Vec<_>>>()?;
        let after = node.create(&pod, &config("after")).await?;
        ensure!(!late.is_let_go());
        let seen = |script: &Script, id: &str| {
            let synced = script.synced().iter().filter(|s| *s == id).count();
            let told = script.heard_of(id);
            synced + told.iter().filter(|h| *h == "CreateContainer").count()
        };
        ensure!(
            script.synced() == [pod.id.clone(), before.clone()],
            "{:?}",
            script.synced()
        );
        for id in during.iter().chain([&after]) {
            ensure!(seen(&script, id) == 1, "{id}: {script:?}");
        }
        // And with no hold at all: plugins that come while containers do.
        for round in 0..5 {
            let script = Arc::new(Script::default());
            let configs: Vec<_> = (0..6).map(|at| config(&format!("r{round}-{at}"))).collect();
            let path = socket(node);
            let made = futures_util::future::join_all(configs.iter().map(|c| node.create(&pod, c)));
            let join = async {
                tokio::time::sleep(Duration::from_millis(10 * round)).await;
                Plugin::joined(&path, "50", "churn", script.clone()).await
            };
            let (made, joined) = tokio::join!(made, join);
            let _joined = joined?;
            for id in made {
                let id = id?;
                ensure!(seen(&script, &id) == 1, "round {round}, {id}: {script:?}");
                node.cri.remove(&id).await?;
                ensure!(
                    script
                        .heard_of(&id)
                        .last()
                        .is_some_and(|l| l == "RemoveContainer")
                );
            }
        }
        Ok(())
    })
}

#[test]
fn limits_change_at_the_word_of_plugins() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "10", "limits").await?;
        let pod = node.run(node.pod("limits")).await?;
        let run = async |name: &str| {
            node.start_container(&pod, container(name, BUSYBOX, &["sleep", "1000"]))
                .await
        };
        let (a, b) = (run("a").await?, run("b").await?);
        let pids = |id: &str| -> Result<String> {
            let pid = process::init_of(id).context("no process")?.pid;
            Ok(cgroup::value(pid, "pids", "pids.max", "pids.max")?
                .trim()
                .to_owned())
        };
        let set_pids = |limit| {
            move |r: &mut api::LinuxResources| {
                r.pids = MessageField::some(api::LinuxPids {
                    limit,
                    ..Default::default()
                });
            }
        };
        // Of its own accord.
        let senseless = limits(&b, |r| {
            r.cpu.mut_or_insert_default().quota = optional(10);
        });
        let unknown = limits("nobody", set_pids(5));
        let failed = plugin
            .update(vec![limits(&a, set_pids(50)), senseless, unknown])
            .await?;
        ensure!(failed == [b.clone(), "nobody".into()], "{failed:?}");
        ensure!(pids(&a)? == "50");
        let mut evict = api::UpdateContainersRequest::default();
        evict.evict.push(api::ContainerEviction {
            container_id: a.clone(),
            ..Default::default()
        });
        let context = ttrpc::context::with_duration(Duration::from_secs(5));
        let answer = plugin.runtime.update_containers(context, &evict).await;
        ensure!(
            format!("{answer:?}").contains("ends no container"),
            "{answer:?}"
        );
        // When another one's limits change: the asked ones are overruled, and a neighbour's change along.
        let neighbour = a.clone();
        *lock(&plugin.script.update) = Some(Box::new(move |request| {
            let own = limits(&request.container.id, |r| {
                r.memory.mut_or_insert_default().limit = optional(96 << 20);
            });
            api::UpdateContainerResponse {
                update: vec![own, limits(&neighbour, set_pids(60))],
                ..Default::default()
            }
        }));
        let update = cri::UpdateContainerResourcesRequest {
            container_id: b.clone(),
            linux: Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: 64 << 20,
                cpu_shares: 300,
                ..Default::default()
            }),
            ..Default::default()
        };
        node.cri
            .runtime()
            .update_container_resources(update)
            .await?;
        let status = node.cri.status(&b).await?;
        let told = status
            .resources
            .and_then(|r| r.linux)
            .context("no resources")?;
        ensure!(
            (told.memory_limit_in_bytes, told.cpu_shares) == (96 << 20, 300),
            "{told:?}"
        );
        ensure!(pids(&a)? == "60");
        ensure!(
            plugin
                .script
                .heard_of(&b)
                .ends_with(&["UpdateContainer".into(), "PostUpdateContainer".into()])
        );
        // When another one stops.
        let neighbour = a.clone();
        *lock(&plugin.script.stop) = Some(Box::new(move |_| api::StopContainerResponse {
            update: vec![limits(&neighbour, set_pids(70))],
            ..Default::default()
        }));
        node.cri.stop(&b, 0).await?;
        ensure!(pids(&a)? == "70");
        *lock(&plugin.script.stop) = None;
        // When another one is made: and where that can't be had, neither can it.
        let neighbour = a.clone();
        *lock(&plugin.script.adjust) = Some(Box::new(move |_| api::CreateContainerResponse {
            update: vec![
                limits(&neighbour, set_pids(80)),
                limits("nobody", set_pids(1)),
            ],
            ..Default::default()
        }));
        let config = container("c", BUSYBOX, &["true"]);
        let made = node.cri.create(&pod.id, &config, &pod.config).await;
        refused(made, Code::NotFound, &["nobody"])?;
        ensure!(pids(&a)? == "80");
        Ok(())
    })
}

#[test]
fn installed_plugins_come_with_the_daemon_and_learn_what_runs_after_a_restart() -> Result<()> {
    let setup = Setup {
        before: Some(|dir| {
            let plugin = bin_dir()?.join("nri-plugin");
            ensure!(plugin.exists(), "{} is not built", plugin.display());
            for part in ["nri-plugins", "nri-conf.d"] {
                std::fs::create_dir_all(dir.join(part))?;
            }
            let script = format!("#!/bin/sh\nexec {} 0<&3 3<&-\n", plugin.display());
            for (name, text) in [
                ("07-first", script.as_str()),
                ("09-silent", "#!/bin/sh\nexit 1\n"),
            ] {
                let path = dir.join("nri-plugins").join(name);
                std::fs::write(&path, text)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            }
            let config = dir.join("heard").display().to_string();
            std::fs::write(dir.join("nri-conf.d/07-first.conf"), config)?;
            Ok(())
        }),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let heard = node.dir.join("heard");
        let wait_for = async |what: &str| -> Result<()> {
            let since = Instant::now();
            loop {
                let text = std::fs::read_to_string(&heard).unwrap_or_default();
                if text.contains(what) {
                    return Ok(());
                }
                ensure!(
                    since.elapsed() < Duration::from_secs(20),
                    "no {what} in {text}"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let pod = node.run(node.pod("installed")).await?;
        wait_for(&format!("RunPodSandbox {}", pod.id)).await?;
        let (_, out) = node
            .outcome(&pod, container("c", BUSYBOX, &sh("echo $INSTALLED")))
            .await?;
        ensure!(out == "07-first\n", "{out}");
        let long = node
            .start_container(&pod, container("long", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let by_socket = joined(node, "10", "by-socket").await?;
        node.restart().await?;
        by_socket.wait_let_go().await?;
        wait_for(&format!("synced {}", pod.id)).await?;
        let again = joined(node, "10", "by-socket").await?;
        let synced = again.script.synced();
        ensure!(
            synced.contains(&pod.id) && synced.contains(&long),
            "{synced:?}"
        );
        Ok(())
    })
}
