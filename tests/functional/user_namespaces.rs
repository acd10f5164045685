//! Pods with user namespaces of their own (`hostUsers: false`), and ambient capabilities.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    Capability, ContainerConfig, IdMapping, Int64Value, Mount, MountPropagation, NamespaceMode,
    PodSandboxConfig, UserNamespace,
};
use berth_tests::{
    Node,
    cri::refused,
    process,
    request::{BUSYBOX, ContainerRequest, PodRequest, bind, container, sh},
};
use tonic::Code;

const FIRST: u32 = 300_000;

fn mapping(container_id: u32, host_id: u32, length: u32) -> IdMapping {
    IdMapping {
        host_id,
        container_id,
        length,
    }
}

fn userns(first: u32) -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping(0, first, 65_536)],
        gids: vec![mapping(0, first, 65_536)],
    }
}

fn in_userns(pod: PodSandboxConfig) -> PodSandboxConfig {
    pod.namespaces(|namespaces| namespaces.userns_options = Some(userns(FIRST)))
}

fn joining(config: ContainerConfig) -> ContainerConfig {
    config.security(|security| {
        let options = security.namespace_options.get_or_insert_default();
        options.userns_options = Some(userns(FIRST));
        // As the kubelet sends them; none at all would be procMount: Unmasked.
        security.masked_paths = vec!["/proc/kcore".into(), "/sys/firmware".into()];
        security.readonly_paths = vec!["/proc/sys".into()];
    })
}

fn mapped(mount: Mount) -> Mount {
    Mount {
        uid_mappings: userns(FIRST).uids,
        gid_mappings: userns(FIRST).gids,
        ..mount
    }
}

/// uid and gid of what is at a path.
fn owner(path: &Path) -> Result<(u32, u32)> {
    let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    Ok((meta.uid(), meta.gid()))
}

#[test]
fn root_of_a_pod_with_a_user_namespace_is_nobody_on_the_node_and_its_volumes_are_owned_right_from_both_sides()
-> Result<()> {
    Node::test(async |node| {
        for host_network in [false, true] {
            let volume = node.volume(if host_network { "host" } else { "own" })?;
            fs::write(volume.join("of-root"), "r")?;
            fs::write(volume.join("of-user"), "u")?;
            std::os::unix::fs::chown(volume.join("of-user"), Some(1000), Some(1000))?;
            let plain = node.volume(if host_network { "plain-host" } else { "plain" })?;
            fs::write(plain.join("secret"), "s")?;
            fs::set_permissions(
                plain.join("secret"),
                std::os::unix::fs::PermissionsExt::from_mode(0o600),
            )?;
            let termination = plain.join("termination");
            fs::write(&termination, "")?;
            let pod = in_userns(node.pod("userns"));
            let pod = match host_network {
                true => pod.on_the_host_network(),
                false => pod.linux(|linux| {
                    linux
                        .sysctls
                        .insert("net.ipv4.ip_unprivileged_port_start".into(), "77".into());
                    linux
                        .sysctls
                        .insert("kernel.shm_rmid_forced".into(), "1".into());
                }),
            };
            let pod = node.run(pod).await?;
            let main = joining(container("main", BUSYBOX, &["sleep", "10000"]))
                .mount(mapped(bind(&volume, "/volume")))
                .mount(mapped(Mount {
                    readonly: true,
                    recursive_read_only: true,
                    ..bind(&volume, "/read-only")
                }))
                .mount(mapped(bind(&termination, "/dev/termination-log")))
                .mount(bind(&plain, "/plain"))
                .security(|security| {
                    security.capabilities = Some(Capability {
                        add_capabilities: vec!["NET_ADMIN".into(), "SYS_ADMIN".into()],
                        ..Default::default()
                    });
                    security.seccomp = Some(berth_tests::request::unconfined());
                });
            let id = node.start_container(&pod, main).await?;
            for (script, says) in [
                ("cat /proc/self/uid_map", "0 300000 65536"),
                ("cat /proc/self/gid_map", "0 300000 65536"),
                ("cat /proc/self/setgroups", "allow"),
                ("id -u; id -g", "0 0"),
                (
                    "stat -c %u:%g / /bin /etc /dev /dev/null /dev/shm /etc/hosts /etc/hostname /etc/resolv.conf",
                    &"0:0 ".repeat(9),
                ),
                (
                    "cat /etc/resolv.conf | head -n 1; echo 192.0.2.9 more >>/etc/hosts && grep -c more /etc/hosts",
                    "search svc.test 1",
                ),
                (
                    "touch /made /dev/shm/made; chown 5:6 /made; stat -c %u:%g /made /dev/shm/made",
                    "5:6 0:0",
                ),
                (
                    "stat -c %u:%g /volume/of-root /volume/of-user /read-only/of-user",
                    "0:0 1000:1000 1000:1000",
                ),
                (
                    "touch /volume/new; chown 7:8 /volume/new; echo ended >/dev/termination-log; echo ok",
                    "ok",
                ),
                ("stat -c %u /plain/secret", "65534"),
                (
                    "cat /plain/secret /volume/of-root 2>&1 || true",
                    "cat: can't open '/plain/secret': Permission denied r",
                ),
                (
                    "touch /read-only/x 2>&1 || true",
                    "touch: /read-only/x: Read-only file system",
                ),
                (
                    "mount -o remount,bind,rw /read-only 2>/dev/null || echo locked",
                    "locked",
                ),
                ("umount /sys/firmware 2>/dev/null || echo locked", "locked"),
                ("test -d /sys/class/net && echo sys", "sys"),
                ("touch /sys/x 2>/dev/null || echo read-only", "read-only"),
                (
                    "mknod /tmp/null c 1 3 2>/dev/null || echo no node",
                    "no node",
                ),
                ("echo 1 >/dev/null; head -c 4 /dev/zero | wc -c", "4"),
                (
                    "ls /proc/1/fd | wc -l >/dev/null && readlink /proc/1/exe >/dev/null && echo mine",
                    "mine",
                ),
            ] {
                let told = node.cri.shell(&id, script).await.context(script)?;
                let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
                ensure!(told == says.trim(), "{script}: {told:?}, not {says:?}");
            }
            let own_net = "ip addr add 192.0.2.77/32 dev lo && cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
            if host_network {
                let answer = node
                    .cri
                    .exec_raw(&id, &sh("ip addr add 192.0.2.77/32 dev lo"))
                    .await?;
                ensure!(
                    answer.exit_code != 0,
                    "the node's network is not the pod's to change"
                );
            } else {
                let told = node.cri.shell(&id, own_net).await?;
                ensure!(told.split_whitespace().eq(["77", "1"]), "{told}");
            }
            // On the node.
            ensure!(owner(&volume.join("of-root"))? == (0, 0));
            ensure!(owner(&volume.join("new"))? == (7, 8));
            ensure!(fs::read_to_string(&termination)? == "ended\n");
            let init = process::init_of(&id).context("init")?;
            let status = init.status()?;
            ensure!(
                status
                    .get("Uid")
                    .is_some_and(|uids| uids.starts_with("300000")),
                "{status:?}"
            );

            // It is in the records: another daemon tells it, and makes more containers of it.
            node.restart().await?;
            let answer = node.cri.pod_status_verbose(&pod.id, true).await?;
            let linux = answer.status.clone().and_then(|status| status.linux);
            let options = linux.and_then(|linux| linux.namespaces?.options?.userns_options);
            ensure!(options == Some(userns(FIRST)), "{options:?}");
            ensure!(
                answer.info["info"].contains(r#""hostID":300000"#),
                "{:?}",
                answer.info
            );
            let script = "readlink /proc/self/ns/user; cat /proc/self/uid_map; test -e /made || echo own root";
            let silent = container("silent", BUSYBOX, &sh(script));
            let (code, text) = node.outcome(&pod, silent).await?;
            let mut lines = text.lines();
            let namespace = fs::read_link(format!("/proc/{}/ns/user", init.pid))?;
            ensure!(code == 0 && lines.next() == namespace.to_str(), "{text}");
            ensure!(
                lines
                    .next()
                    .is_some_and(|map| map.split_whitespace().eq(["0", "300000", "65536"]))
            );
            ensure!(lines.next() == Some("own root"));
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        Ok(())
    })
}

#[test]
fn users_and_groups_of_a_pod_with_a_user_namespace_are_those_it_asks_for() -> Result<()> {
    Node::test(async |node| {
        let pod = node
            .run(in_userns(node.pod("users").namespaces(|namespaces| {
                namespaces.pid = NamespaceMode::Pod.into()
            })))
            .await?;
        let user = |name: &str, uid: i64, groups: &[i64]| {
            let config = joining(container(
                name,
                BUSYBOX,
                &sh("id -u; id -g; id -G; echo x >/dev/stdout; cat /proc/1/comm"),
            ));
            config.security(|security| {
                security.run_as_user = Some(Int64Value { value: uid });
                security.run_as_group = Some(Int64Value { value: 2000 });
                security.supplemental_groups = groups.to_vec();
                security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
            })
        };
        let (code, text) = node.outcome(&pod, user("user", 1000, &[3000])).await?;
        ensure!(code == 0, "{text}");
        ensure!(
            text.split_whitespace()
                .eq(["1000", "2000", "2000", "3000", "x", "pause"]),
            "{text}"
        );
        for (name, uid, groups) in [("far", 65_536, &[][..]), ("group", 1000, &[70_000][..])] {
            let answer = node
                .cri
                .create(&pod.id, &user(name, uid, groups), &pod.config)
                .await;
            refused(answer, Code::FailedPrecondition, &["is not mapped"])?;
        }
        // A terminal, the streams of an exec.
        let id = node
            .start_container(
                &pod,
                joining(container("main", BUSYBOX, &["sleep", "1000"])),
            )
            .await?;
        let answer = node
            .cri
            .exec_raw(&id, &sh("echo out; echo err >&2; exit 3"))
            .await?;
        ensure!(
            (&answer.stdout[..], &answer.stderr[..], answer.exit_code)
                == (&b"out\n"[..], &b"err\n"[..], 3)
        );
        Ok(())
    })
}

#[test]
fn maps_that_make_no_sense_are_refused_and_leave_nothing() -> Result<()> {
    Node::test(async |node| {
        type Change = fn(&mut UserNamespace);
        let table: [(&str, Change); 10] = [
            ("two", |u| u.uids.push(mapping(65_536, 900_000, 10))),
            ("none", |u| u.gids.clear()),
            ("no length", |u| u.uids[0].length = 0),
            ("root not mapped", |u| u.gids[0].container_id = 1),
            ("the node's root", |u| u.uids[0].host_id = 0),
            ("past the end", |u| u.uids[0].host_id = u32::MAX - 5),
            ("CONTAINER", |u| u.mode = NamespaceMode::Container.into()),
            ("TARGET", |u| u.mode = NamespaceMode::Target.into()),
            ("NODE with a mapping", |u| {
                u.mode = NamespaceMode::Node.into()
            }),
            ("unknown", |u| u.mode = 42),
        ];
        for (what, change) in table {
            let config = in_userns(node.pod("bad")).namespaces(|namespaces| {
                change(namespaces.userns_options.get_or_insert_default());
            });
            refused(
                node.cri.run_pod(&config).await,
                Code::InvalidArgument,
                &["userns_options"],
            )
            .context(what)?;
        }
        for change in [
            (|n| n.pid = NamespaceMode::Node.into()) as fn(&mut berth_proto::cri::NamespaceOption),
            |n| n.ipc = NamespaceMode::Node.into(),
        ] {
            let config = in_userns(node.pod("bad")).namespaces(change);
            refused(
                node.cri.run_pod(&config).await,
                Code::InvalidArgument,
                &["user namespace"],
            )?;
        }
        ensure!(node.cri.pods(None).await?.is_empty());

        let pod = node.run(in_userns(node.pod("good"))).await?;
        let volume = node.volume("volume")?;
        let plain = || joining(container("bad", BUSYBOX, &["true"]));
        for (what, config) in [
            (
                "other maps",
                plain().security(|security| {
                    let options = security.namespace_options.get_or_insert_default();
                    options.userns_options = Some(userns(FIRST + 1));
                }),
            ),
            (
                "the node's",
                plain().security(|security| {
                    let options = security.namespace_options.get_or_insert_default();
                    options.userns_options = Some(UserNamespace {
                        mode: NamespaceMode::Node.into(),
                        ..Default::default()
                    });
                }),
            ),
            (
                "a mount's other maps",
                plain().mount(Mount {
                    gid_mappings: userns(FIRST + 1).gids,
                    ..mapped(bind(&volume, "/volume"))
                }),
            ),
            (
                "half a mount's maps",
                plain().mount(Mount {
                    gid_mappings: vec![],
                    ..mapped(bind(&volume, "/volume"))
                }),
            ),
            (
                "a mount that is to reach the node",
                plain().mount(Mount {
                    propagation: MountPropagation::PropagationBidirectional.into(),
                    ..mapped(bind(&volume, "/volume"))
                }),
            ),
        ] {
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(answer, Code::InvalidArgument, &[]).context(what)?;
        }
        // Never a plain bind where the map can't be had (SEC-ENG-20).
        let unmappable = plain().mount(mapped(bind(Path::new("/sys/kernel"), "/kernel")));
        let answer = node.create(&pod, &unmappable).await;
        let told = format!("{:#}", answer.err().context("it was made")?);
        ensure!(told.contains("sysfs"), "{told}");
        ensure!(node.cri.containers(None).await?.is_empty());

        let host = node.run(node.pod("plain")).await?;
        let config = container("bad", BUSYBOX, &["true"]).mount(mapped(bind(&volume, "/volume")));
        let answer = node.cri.create(&host.id, &config, &host.config).await;
        refused(answer, Code::InvalidArgument, &["no user namespace"])
    })
}

#[test]
fn ambient_capabilities_reach_a_user_and_his_execs() -> Result<()> {
    Node::test(async |node| {
        for in_a_user_namespace in [false, true] {
            let pod = match in_a_user_namespace {
                true => in_userns(node.pod("ambient")),
                false => node.pod("ambient"),
            };
            let pod = node.run(pod).await?;
            let script = "httpd -p 80 -h /tmp && echo bound; exec sleep 1000";
            for (name, ambient, bound) in [
                ("without", vec![], false),
                ("with", vec!["NET_BIND_SERVICE".to_owned()], true),
            ] {
                let config = container(name, BUSYBOX, &sh(script)).security(|security| {
                    security.run_as_user = Some(Int64Value { value: 1000 });
                    security.capabilities = Some(Capability {
                        add_ambient_capabilities: ambient,
                        ..Default::default()
                    });
                });
                let id = node.start_container(&pod, config).await?;
                let sets = "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f 2; httpd -p 443 -h /tmp && echo bound";
                let answer = node.cri.exec_raw(&id, &sh(sets)).await?;
                let told = String::from_utf8_lossy(&answer.stdout).into_owned();
                let expected = match bound {
                    true => "0000000000000400 ".repeat(4) + "bound",
                    false => "0000000000000000 ".repeat(4),
                };
                ensure!(
                    told.split_whitespace().eq(expected.split_whitespace()),
                    "{name}: {told}"
                );
                let listens = node
                    .cri
                    .shell(
                        &id,
                        "grep -c ':0050 ' /proc/net/tcp /proc/net/tcp6 | cut -d: -f2",
                    )
                    .await;
                let listens = listens
                    .unwrap_or_default()
                    .split_whitespace()
                    .any(|n| n != "0");
                ensure!(listens == bound, "{name}: port 80");
                node.cri.stop(&id, 0).await?;
            }
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        Ok(())
    })
}
