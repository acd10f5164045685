//! What plugins want of containers that are about to be made: had, or refused by its name.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use berth_nri::api;
use berth_tests::{
    BUSYBOX, Node, Setup, cgroup, container,
    cri::refused,
    nri::{Plugin, Script, event, lock, optional},
    process,
    request::{ContainerRequest, PodRequest},
    sh,
};
use protobuf::MessageField;
use tonic::Code;

use super::{joined, socket};

fn linux(adjust: &mut api::ContainerAdjustment) -> &mut api::LinuxContainerAdjustment {
    adjust.linux.mut_or_insert_default()
}

fn resources(adjust: &mut api::ContainerAdjustment) -> &mut api::LinuxResources {
    linux(adjust).resources.mut_or_insert_default()
}

#[test]
fn what_plugins_want_of_a_container_it_has() -> Result<()> {
    let setup = Setup {
        config: "[runtime]\ncdi_spec_dirs = [\"$DIR/cdi\"]\n".into(),
        before: Some(|dir| {
            std::fs::create_dir(dir.join("cdi"))?;
            let device = "{\"name\": \"d\", \"containerEdits\": {\"env\": [\"BY_CDI=yes\"]}}";
            let file = format!(
                "{{\"cdiVersion\": \"0.6.0\", \"kind\": \"v.x/c\", \"devices\": [{device}]}}"
            );
            Ok(std::fs::write(dir.join("cdi/v.json"), file)?)
        }),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
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
            adjust.CDI_devices.push(api::CDIDevice {
                name: "v.x/c=d".into(),
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
        let script = "echo \"$ADDED,$CHANGED,${REMOVED-gone},$BY_CDI\"; cat /plugin/file; echo; ulimit -Sn; ulimit -Hn; \
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
                    "by plugin,by plugin,gone,yes\nfrom the plugin\n444\n555\n321\n3\nread-only\n"
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

/// Some block device of the machine, by its node and its number.
fn block_device() -> Result<(std::path::PathBuf, String)> {
    let mut found = std::fs::read_dir("/sys/block")?.filter_map(|entry| {
        let entry = entry.ok()?;
        let number = std::fs::read_to_string(entry.path().join("dev")).ok()?;
        let path = std::path::Path::new("/dev").join(entry.file_name());
        path.exists().then(|| (path, number.trim().to_owned()))
    });
    found.next().context("no block device")
}

#[test]
fn a_class_of_block_io_is_the_limits_that_the_configuration_says() -> Result<()> {
    let (path, number) = block_device()?;
    let setup = Setup {
        config: format!(
            "[blockio.classes.slow]\ndevices = [{{ paths = [{path:?}], read_bps = 1048576, write_iops = 77 }}]\n\
             [blockio.classes.free]\n[blockio.classes.gone]\ndevices = [{{ paths = [\"/dev/no-such\"], read_bps = 1 }}]\n"
        ),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let plugin = joined(node, "20", "adjuster").await?;
        let class = |name: &str| {
            MessageField::some(api::OptionalString {
                value: name.into(),
                ..Default::default()
            })
        };
        plugin
            .script
            .adjusts(move |adjust| resources(adjust).blockio_class = class("slow"));
        let pod = node.run(node.pod("classes")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let pid = process::init_of(&id).context("no init")?.pid;
        let limits = || -> Result<String> {
            let v1 = |file| cgroup::value(pid, "blkio", file, "io.max");
            Ok(match cgroup::unified() {
                true => v1("")?,
                false => format!(
                    "{} {}",
                    v1("blkio.throttle.read_bps_device")?,
                    v1("blkio.throttle.write_iops_device")?
                ),
            })
        };
        let told = limits()?;
        for word in [number.as_str(), "1048576", "77"] {
            ensure!(told.contains(word), "{told}");
        }
        // A running container goes to another class; into one that can't be had it does not, and stays as it is.
        let to = |name: &str| {
            let class = class(name);
            berth_tests::nri::limits(&id, move |r| r.blockio_class = class)
        };
        let kept = plugin.update(vec![to("gone")]).await;
        ensure!(!kept.is_ok_and(|failed| failed.is_empty()), "it was taken");
        ensure!(limits()? == told, "{}", limits()?);
        let failed = plugin.update(vec![to("free")]).await?;
        ensure!(failed.is_empty(), "{failed:?}");
        ensure!(!limits()?.contains(&number), "{}", limits()?);
        Ok(())
    })
}

#[test]
fn memory_comes_from_the_nodes_and_network_devices_go_where_plugins_want_them() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "20", "adjuster").await?;
        let ip = |args: &str| -> Result<()> {
            let status = std::process::Command::new("ip")
                .args(args.split(' '))
                .status()?;
            ensure!(status.success(), "ip {args}");
            Ok(())
        };
        ip("link add nri-a type veth peer name nri-b")?;
        ip("addr add 198.51.100.7/24 dev nri-a")?;
        plugin.script.adjusts(|adjust| {
            let linux = linux(adjust);
            linux.memory_policy = MessageField::some(api::LinuxMemoryPolicy {
                mode: api::MpolMode::MPOL_BIND.into(),
                nodes: "0".into(),
                flags: vec![api::MpolFlag::MPOL_F_STATIC_NODES.into()],
                ..Default::default()
            });
            let inside = api::LinuxNetDevice {
                name: "net1".into(),
                ..Default::default()
            };
            linux.net_devices.insert("nri-a".into(), inside);
        });
        let pod = node.run(node.pod("adjusted")).await?;
        let id = node
            .start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        // Of its first process, and of each exec.
        for pid in ["1", "self"] {
            let script = format!("head -n1 /proc/{pid}/numa_maps");
            let maps = node.cri.exec(&id, &sh(&script)).await?;
            ensure!(maps.contains(" bind=static:0 "), "{pid}: {maps}");
        }
        let link = node.cri.exec(&id, &["ip", "addr", "show", "net1"]).await?;
        ensure!(
            link.contains("198.51.100.7/24") && link.contains("UP"),
            "{link}"
        );
        ensure!(ip("link show nri-a").is_err(), "it is on the node, too");

        // A device or a memory node that is not there is the container's failure, by its name, and leaves nothing.
        type Set = fn(&mut api::ContainerAdjustment);
        let table: [(Set, &str); 2] = [
            (
                |a| {
                    drop(
                        linux(a)
                            .net_devices
                            .insert("nri-x".into(), Default::default()),
                    )
                },
                "nri-x",
            ),
            (
                |a| {
                    linux(a).memory_policy = MessageField::some(api::LinuxMemoryPolicy {
                        mode: api::MpolMode::MPOL_BIND.into(),
                        nodes: "1000".into(),
                        ..Default::default()
                    })
                },
                "\"1000\"",
            ),
        ];
        let config = container("wrong", BUSYBOX, &["true"]);
        for (set, says) in table {
            plugin.script.adjusts(set);
            let made = node.cri.create(&pod.id, &config, &pod.config).await;
            let status = made.err().with_context(|| format!("{says} was taken"))?;
            ensure!(status.message().contains(says), "{status:?}");
            ensure!(node.cri.containers(None).await?.len() == 1, "{says}");
        }
        // On the node's own network there is nowhere to move one.
        let on_node = node.run(node.pod("host").on_the_host_network()).await?;
        plugin
            .script
            .adjusts(|a| drop(linux(a).net_devices.insert("lo".into(), Default::default())));
        let made = node.cri.create(&on_node.id, &config, &on_node.config).await;
        refused(made, Code::InvalidArgument, &["20-adjuster", "\"lo\""])?;
        Ok(())
    })
}

#[test]
fn what_can_not_be_had_is_refused_by_its_name_and_leaves_nothing() -> Result<()> {
    Node::test(async |node| {
        let plugin = joined(node, "20", "adjuster").await?;
        let pod = node.run(node.pod("refused")).await?;
        type Set = fn(&mut api::ContainerAdjustment);
        let table: &[(Set, Code, &str)] = &[
            (
                |a| {
                    a.CDI_devices.push(api::CDIDevice {
                        name: "v.x/c=d".into(),
                        ..Default::default()
                    })
                },
                Code::InvalidArgument,
                "v.x/c=d",
            ),
            (
                |a| {
                    drop(
                        linux(a)
                            .net_devices
                            .insert("of/nobody".into(), Default::default()),
                    )
                },
                Code::InvalidArgument,
                "of/nobody",
            ),
            (
                |a| {
                    linux(a).memory_policy = MessageField::some(api::LinuxMemoryPolicy {
                        mode: protobuf::EnumOrUnknown::from_i32(77),
                        ..Default::default()
                    })
                },
                Code::InvalidArgument,
                "mode 77",
            ),
            (
                |a| {
                    linux(a).rdt.mut_or_insert_default().clos_id =
                        MessageField::some(Default::default())
                },
                Code::FailedPrecondition,
                "resctrl",
            ),
            (
                |a| {
                    resources(a).blockio_class = MessageField::some(api::OptionalString {
                        value: "fast".into(),
                        ..Default::default()
                    })
                },
                Code::FailedPrecondition,
                "BlockioClass",
            ),
            (
                |a| resources(a).memory.mut_or_insert_default().kernel = optional(1),
                Code::Unimplemented,
                "MemKernelLimit",
            ),
            (
                |a| {
                    linux(a).namespaces.push(api::LinuxNamespace {
                        type_: "user".into(),
                        ..Default::default()
                    })
                },
                Code::Unimplemented,
                "user",
            ),
            (
                |a| {
                    linux(a).namespaces.push(api::LinuxNamespace {
                        type_: "network".into(),
                        path: "/proc/1/ns/net".into(),
                        ..Default::default()
                    })
                },
                Code::Unimplemented,
                "network",
            ),
            (
                |a| drop(linux(a).sysctl.insert("vm.swappiness".into(), "1".into())),
                Code::InvalidArgument,
                "vm.swappiness",
            ),
            (
                |a| linux(a).cgroups_path = "/elsewhere".into(),
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
                    linux(a).devices.push(api::LinuxDevice {
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
                    linux(a).seccomp_policy = MessageField::some(api::LinuxSeccomp {
                        default_action: "SCMP_ACT_NONE".into(),
                        ..Default::default()
                    })
                },
                Code::InvalidArgument,
                "seccomp",
            ),
            (
                |a| resources(a).cpu.mut_or_insert_default().cpus = "4000".into(),
                Code::InvalidArgument,
                "cpuset_cpus",
            ),
        ];
        node.cri.pull(BUSYBOX).await?;
        let config = container("c", BUSYBOX, &["true"]);
        for (set, code, says) in table {
            plugin.script.adjusts(*set);
            let made = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(made, *code, &["20-adjuster", says]).with_context(|| says.to_string())?;
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
        node.cri.pull(BUSYBOX).await?;
        let config = container("c", BUSYBOX, &["true"]);
        let create = || node.cri.create(&pod.id, &config, &pod.config);
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
        let again = node.pod("again");
        std::fs::create_dir_all(&again.log_directory)?;
        refused(
            node.cri.run_pod(&again).await,
            Code::FailedPrecondition,
            &["20-two", "RunPodSandbox"],
        )?;
        ensure!(
            node.cri.pods(None).await?.len() == 1,
            "a pod that was refused is left"
        );
        two.script.agree();
        let again = node.run(again).await?;
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
        let config = container("c", BUSYBOX, &["true"]);
        let create = || node.cri.create(&pod.id, &config, &pod.config);
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
