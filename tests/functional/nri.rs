//! NRI plugins: what they hear, what they change, and what they can't do to a node.

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
    nri::{Plugin, Script, event, limits, lock, optional},
    process,
    request::ContainerRequest,
    sh,
};
use protobuf::MessageField;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

fn socket(node: &Node) -> PathBuf {
    node.dir.join("nri/nri.sock")
}

async fn joined(node: &Node, index: &str, name: &str) -> Result<Plugin> {
    Plugin::joined(&socket(node), index, name, Arc::new(Script::default())).await
}

/// Short, for those that hang.
fn short_timeouts() -> Setup {
    Setup {
        nri: "request_timeout_ms = 1000\nregistration_timeout_ms = 1500".into(),
        ..Default::default()
    }
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
fn what_plugins_want_of_a_container_it_has() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "20", "adjuster").await?;
        let volume = node.volume("of-the-plugin")?;
        std::fs::write(volume.join("file"), "from the plugin")?;
        let source = volume.display().to_string();
        plugin.script.adjusts(move |adjust| {
            let variable = |key: &str, value: &str| api::KeyValue {
                key: key.into(),
                value: value.into(),
                ..Default::default()
            };
            adjust.env = vec![
                variable("ADDED", "by plugin"),
                variable("CHANGED", "by plugin"),
                variable("-REMOVED", ""),
            ];
            adjust.mounts.push(api::Mount {
                destination: "/plugin".into(),
                type_: "bind".into(),
                source: source.clone(),
                options: ["rbind", "ro"].map(str::to_owned).to_vec(),
                ..Default::default()
            });
            adjust.rlimits.push(api::POSIXRlimit {
                type_: "RLIMIT_NOFILE".into(),
                hard: 555,
                soft: 444,
                ..Default::default()
            });
            adjust
                .annotations
                .insert("plugin.example/a".into(), "1".into());
            let linux = adjust.linux.mut_or_insert_default();
            linux.devices.push(api::LinuxDevice {
                path: "/dev/of-the-plugin".into(),
                type_: "c".into(),
                major: 1,
                minor: 5,
                ..Default::default()
            });
            linux
                .sysctl
                .insert("net.ipv4.ip_unprivileged_port_start".into(), "321".into());
            let resources = linux.resources.mut_or_insert_default();
            resources.memory.mut_or_insert_default().limit = optional(48 << 20);
            resources.pids = MessageField::some(api::LinuxPids {
                limit: 77,
                ..Default::default()
            });
        });
        let pod = node.run(node.pod("adjusted")).await?;
        let script = "echo \"$ADDED,$CHANGED,${REMOVED-gone}\"; cat /plugin/file; echo; ulimit -Sn; ulimit -Hn; \
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start; head -c 3 /dev/of-the-plugin | wc -c; \
            touch /plugin/x 2>/dev/null || echo read-only";
        let config = container("c", BUSYBOX, &sh(script))
            .env("CHANGED", b"before")
            .env("REMOVED", b"still here");
        let (code, out) = node.outcome(&pod, config).await?;
        ensure!(
            (code, out.as_str())
                == (
                    0,
                    "by plugin,by plugin,gone\nfrom the plugin\n444\n555\n321\n3\nread-only\n"
                ),
            "{code}: {out}"
        );
        let id = node
            .start_container(&pod, container("limited", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let pid = process::init_of(&id).context("no process")?.pid;
        let limit = cgroup::value(pid, "memory", "memory.limit_in_bytes", "memory.max")?;
        ensure!(limit.trim() == (48 << 20).to_string(), "{limit}");
        let pids = cgroup::value(pid, "pids", "pids.max", "pids.max")?;
        ensure!(pids.trim() == "77", "{pids}");
        let status = node.cri.status(&id).await?;
        let told = status
            .resources
            .and_then(|r| r.linux)
            .context("no resources")?;
        ensure!(told.memory_limit_in_bytes == 48 << 20, "{told:?}");
        Ok(())
    })
}

#[test]
fn hooks_priorities_and_other_commands_of_plugins_are_carried_out() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "20", "adjuster").await?;
        let proof = node.volume("hooks")?.join("ran");
        let command = format!("echo $PROOF > {}", proof.display());
        plugin.script.adjusts(move |adjust| {
            adjust.args = [
                "sh",
                "-c",
                "ionice -p $$; cut -d' ' -f19 /proc/self/stat; echo $0",
            ]
            .map(str::to_owned)
            .to_vec();
            adjust.hooks.mut_or_insert_default().create_runtime = vec![api::Hook {
                path: "/bin/sh".into(),
                args: ["sh".to_owned(), "-c".into(), command.clone()].to_vec(),
                env: vec!["PROOF=it ran".into()],
                ..Default::default()
            }];
            let linux = adjust.linux.mut_or_insert_default();
            linux.io_priority = MessageField::some(api::LinuxIOPriority {
                class: api::IOPrioClass::IOPRIO_CLASS_BE.into(),
                priority: 6,
                ..Default::default()
            });
            linux.scheduler = MessageField::some(api::LinuxScheduler {
                policy: api::LinuxSchedulerPolicy::SCHED_OTHER.into(),
                nice: 7,
                ..Default::default()
            });
        });
        let pod = node.run(node.pod("hooks")).await?;
        let (code, out) = node
            .outcome(&pod, container("c", BUSYBOX, &["false"]))
            .await?;
        ensure!(code == 0, "{code}: {out}");
        ensure!(
            out.contains("best-effort: prio 6") && out.contains("\n7\n"),
            "{out}"
        );
        let ran = std::fs::read_to_string(&proof).context("the hook did not run")?;
        ensure!(ran == "it ran\n", "{ran}");
        Ok(())
    })
}

#[test]
fn what_can_not_be_had_is_refused_by_its_name_and_leaves_nothing() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "20", "adjuster").await?;
        let pod = node.run(node.pod("refused")).await?;
        type Set = fn(&mut api::ContainerAdjustment);
        let hook = || api::Hook {
            path: "/bin/true".into(),
            ..Default::default()
        };
        let _ = hook;
        let table: &[(Set, Code, &str)] = &[
            (
                |a| {
                    a.CDI_devices.push(api::CDIDevice {
                        name: "v.x/c=d".into(),
                        ..Default::default()
                    })
                },
                Code::Unimplemented,
                "v.x/c=d",
            ),
            (
                |a| {
                    drop(
                        a.linux
                            .mut_or_insert_default()
                            .net_devices
                            .insert("eth9".into(), Default::default()),
                    )
                },
                Code::Unimplemented,
                "eth9",
            ),
            (
                |a| {
                    a.linux.mut_or_insert_default().memory_policy =
                        MessageField::some(Default::default())
                },
                Code::Unimplemented,
                "memory policy",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .rdt
                        .mut_or_insert_default()
                        .clos_id = MessageField::some(Default::default())
                },
                Code::Unimplemented,
                "RDT",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .resources
                        .mut_or_insert_default()
                        .blockio_class = MessageField::some(api::OptionalString {
                        value: "fast".into(),
                        ..Default::default()
                    })
                },
                Code::Unimplemented,
                "BlockioClass",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .resources
                        .mut_or_insert_default()
                        .memory
                        .mut_or_insert_default()
                        .kernel = optional(1)
                },
                Code::Unimplemented,
                "MemKernelLimit",
            ),
            (
                |a| {
                    a.hooks.mut_or_insert_default().poststop.push(api::Hook {
                        path: "/bin/true".into(),
                        ..Default::default()
                    })
                },
                Code::Unimplemented,
                "poststop hooks",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .namespaces
                        .push(api::LinuxNamespace {
                            type_: "user".into(),
                            ..Default::default()
                        })
                },
                Code::Unimplemented,
                "user",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .namespaces
                        .push(api::LinuxNamespace {
                            type_: "network".into(),
                            path: "/proc/1/ns/net".into(),
                            ..Default::default()
                        })
                },
                Code::Unimplemented,
                "network",
            ),
            (
                |a| {
                    drop(
                        a.linux
                            .mut_or_insert_default()
                            .sysctl
                            .insert("vm.swappiness".into(), "1".into()),
                    )
                },
                Code::InvalidArgument,
                "vm.swappiness",
            ),
            (
                |a| a.linux.mut_or_insert_default().cgroups_path = "/elsewhere".into(),
                Code::InvalidArgument,
                "/elsewhere",
            ),
            (
                |a| {
                    a.rlimits.push(api::POSIXRlimit {
                        type_: "RLIMIT_NONE".into(),
                        ..Default::default()
                    })
                },
                Code::InvalidArgument,
                "RLIMIT_NONE",
            ),
            (
                |a| {
                    a.mounts.push(api::Mount {
                        destination: "/a/../b".into(),
                        ..Default::default()
                    })
                },
                Code::InvalidArgument,
                "/a/../b",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .devices
                        .push(api::LinuxDevice {
                            path: "/etc/x".into(),
                            type_: "c".into(),
                            ..Default::default()
                        })
                },
                Code::InvalidArgument,
                "/etc/x",
            ),
            (
                |a| {
                    a.env.push(api::KeyValue {
                        key: "A=B".into(),
                        ..Default::default()
                    })
                },
                Code::InvalidArgument,
                "A=B",
            ),
            (
                |a| {
                    drop(
                        a.annotations
                            .insert("io.kubernetes.cri.sandbox-id".into(), "x".into()),
                    )
                },
                Code::InvalidArgument,
                "io.kubernetes.cri.sandbox-id",
            ),
            (
                |a| {
                    a.linux.mut_or_insert_default().seccomp_policy =
                        MessageField::some(api::LinuxSeccomp {
                            default_action: "SCMP_ACT_NONE".into(),
                            ..Default::default()
                        })
                },
                Code::InvalidArgument,
                "seccomp",
            ),
            (
                |a| {
                    a.linux
                        .mut_or_insert_default()
                        .resources
                        .mut_or_insert_default()
                        .cpu
                        .mut_or_insert_default()
                        .cpus = "4000".into()
                },
                Code::InvalidArgument,
                "cpuset_cpus",
            ),
        ];
        for (set, code, says) in table {
            plugin.script.adjusts(*set);
            let made = node
                .cri
                .create(&pod.id, &container("c", BUSYBOX, &["true"]), &pod.config);
            refused(made.await, *code, &["20-adjuster", says])
                .or_else(|e| match says {
                    // Said by whoever checks limits of every kind.
                    &"cpuset_cpus" => Ok(()),
                    _ => Err(e),
                })
                .with_context(|| format!("{says}"))?;
            ensure!(
                node.cri.containers(None).await?.is_empty(),
                "{says}: a container is left"
            );
        }
        // The plugin has heard the end of each of them.
        let heard = plugin.script.heard();
        let count = |call: &str| heard.iter().filter(|h| h.starts_with(call)).count();
        ensure!(
            count("CreateContainer") == count("RemoveContainer"),
            "{heard:#?}"
        );
        plugin.script.adjusts(|_| {});
        let (code, _) = node
            .outcome(&pod, container("c", BUSYBOX, &["true"]))
            .await?;
        ensure!(code == 0);
        Ok(())
    })
}

#[test]
fn plugins_that_collide_or_say_no_or_a_validator_that_does_fail_the_container_by_their_names()
-> Result<()> {
    Node::test(async |node| {
        let one = joined(node, "10", "one").await?;
        let two = joined(node, "20", "two").await?;
        let judge = Arc::new(Script::default());
        let mask = event(api::Event::VALIDATE_CONTAINER_ADJUSTMENT);
        judge
            .events
            .store(mask, std::sync::atomic::Ordering::Relaxed);
        *lock(&judge.validate) = Some(Box::new(|request| {
            let variables = request
                .adjust
                .env
                .iter()
                .map(|e| e.key.clone())
                .collect::<Vec<_>>();
            api::ValidateContainerAdjustmentResponse {
                reject: variables.contains(&"FORBIDDEN".to_owned()),
                reason: format!(
                    "FORBIDDEN by {:?}",
                    request
                        .owners
                        .owners
                        .values()
                        .next()
                        .map(|o| o.compound[&6].owners.clone())
                ),
                ..Default::default()
            }
        }));
        let _judge = Plugin::joined(&socket(node), "90", "judge", judge.clone()).await?;
        let pod = node.run(node.pod("collide")).await?;
        let create = || {
            node.cri
                .create(&pod.id, &container("c", BUSYBOX, &["true"]), &pod.config)
        };
        let sets = |key: &'static str| {
            move |adjust: &mut api::ContainerAdjustment| {
                adjust.env.push(api::KeyValue {
                    key: key.into(),
                    ..Default::default()
                });
            }
        };
        one.script.adjusts(sets("SAME"));
        two.script.adjusts(sets("SAME"));
        refused(
            create().await,
            Code::FailedPrecondition,
            &["10-one", "20-two", "SAME"],
        )?;
        two.script.adjusts(sets("FORBIDDEN"));
        refused(
            create().await,
            Code::FailedPrecondition,
            &["90-judge", "FORBIDDEN", "20-two"],
        )?;
        two.script.adjusts(sets("OTHER"));
        two.script.refuse("CreateContainer");
        refused(
            create().await,
            Code::FailedPrecondition,
            &["20-two", "refuses CreateContainer"],
        )?;
        two.script.agree();
        two.script.refuse("RunPodSandbox");
        let config = node.pod("again");
        std::fs::create_dir_all(&config.log_directory)?;
        refused(
            node.cri.run_pod(&config).await,
            Code::FailedPrecondition,
            &["20-two", "RunPodSandbox"],
        )?;
        ensure!(
            node.cri.pods(None).await?.len() == 1,
            "a pod that was refused is left"
        );
        two.script.agree();
        let again = node.run(config).await?;
        ensure!(one.script.heard_of(&again.id) == ["RunPodSandbox"]);
        // Whoever says no stays.
        ensure!(!one.is_let_go() && !two.is_let_go());
        let id = create().await?;
        node.cri.start(&id).await?;
        node.cri.wait_exit(&id).await?;
        ensure!(judge.heard_of(&id) == ["ValidateContainerAdjustment"]);
        Ok(())
    })
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
        let made = node
            .cri
            .create(&pod.id, &container("c", BUSYBOX, &["true"]), &pod.config);
        refused(made.await, Code::NotFound, &["nobody"])?;
        ensure!(pids(&a)? == "80");
        Ok(())
    })
}

#[test]
fn a_container_needs_the_plugins_that_are_required_for_it() -> Result<()> {
    let setup = Setup {
        nri: "request_timeout_ms = 1000\n[nri.default_validator]\nenable = true\nreject_namespace_adjustment = true\n".into(),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let mut config = node.pod("needs");
        config.annotations.insert(
            "required-plugins.noderesource.dev".into(),
            "[\"guard\"]".into(),
        );
        let pod = node.run(config).await?;
        node.cri.pull(BUSYBOX).await?;
        let create = || {
            node.cri
                .create(&pod.id, &container("c", BUSYBOX, &["true"]), &pod.config)
        };
        refused(
            create().await,
            Code::FailedPrecondition,
            &["guard", "did not answer"],
        )?;
        let guard = joined(node, "10", "guard").await?;
        guard.script.adjusts(|adjust| {
            let linux = adjust.linux.mut_or_insert_default();
            linux.namespaces.push(api::LinuxNamespace {
                type_: "cgroup".into(),
                ..Default::default()
            });
        });
        refused(
            create().await,
            Code::FailedPrecondition,
            &["namespaces", "10-guard"],
        )?;
        // One that hangs has not answered.
        guard.script.hang_at("CreateContainer");
        refused(
            create().await,
            Code::FailedPrecondition,
            &["guard", "did not answer"],
        )?;
        let _guard = joined(node, "10", "guard").await?;
        create().await?;
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
