//! What a container finds itself in: user, capabilities, namespaces, mounts, names.

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    ContainerConfig, DnsConfig, Int64Value, LinuxContainerSecurityContext, Mount, NamespaceMode,
    PodSandboxConfig, SupplementalGroupsPolicy,
};

use super::{Case, cases, scene::Scene, skip};
use crate::{
    Pod,
    request::{ContainerRequest, PodRequest, bind, unconfined},
    sh,
};

pub const CASES: &[Case] = cases![
    CreateContainer: [command_arguments_environment_and_directory_are_as_asked],
    CreateContainer: [the_user_is_the_asked_one],
    CreateContainer: [supplemental_groups_are_the_asked_ones_and_under_strict_no_others],
    CreateContainer: [capabilities_are_added_and_dropped],
    CreateContainer: [all_capabilities_are_added_or_dropped],
    CreateContainer: [a_read_only_root_is_read_only],
    CreateContainer: [no_new_privileges_are_gained_where_that_is_asked],
    CreateContainer: [seccomp_filters_unless_it_is_unconfined],
    CreateContainer: [masked_paths_are_empty_and_read_only_ones_are_not_written],
    CreateContainer: [a_privileged_container_has_the_devices_and_all_capabilities],
    CreateContainer: [volumes_are_mounted_and_read_only_where_asked],
    CreateContainer: [the_environment_may_be_any_bytes],
    RunPodSandbox: [the_hostname_is_the_asked_one],
    RunPodSandbox: [names_are_resolved_as_asked],
    RunPodSandbox: [sysctls_are_set_in_the_pod],
    RunPodSandbox: [containers_share_the_pods_ipc_and_network_and_not_their_processes],
    RunPodSandbox: [a_pods_processes_are_shared_where_that_is_asked],
    RunPodSandbox: [the_nodes_namespaces_are_shared_where_that_is_asked],
];

async fn command_arguments_environment_and_directory_are_as_asked(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s
        .container("a", &["sh"])
        .env("HARBOUR", b"north \"and\" south");
    let config = config.with(|config: &mut ContainerConfig| {
        config.args = ["-c", "echo $0-$1 $HARBOUR $PWD", "zero", "one two"]
            .map(str::to_owned)
            .into();
        config.working_dir = "/tmp".into();
    });
    let said = s.says(&pod, config).await?;
    ensure!(said == "zero-one two north \"and\" south /tmp", "{said}");
    Ok(())
}

async fn says_as(
    s: &Scene,
    pod: &Pod,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> Result<String> {
    s.says(pod, s.container(name, &sh(script)).security(change))
        .await
}

fn id(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

async fn the_user_is_the_asked_one(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let ids = "echo $(id -u) $(id -g)";
    let root = says_as(s, &pod, "root", ids, |_| {}).await?;
    ensure!(root == "0 0", "{root}");
    let user = says_as(s, &pod, "user", ids, |security| {
        security.run_as_user = id(4321)
    })
    .await?;
    ensure!(user == "4321 0", "{user}");
    let both = says_as(s, &pod, "both", ids, |security| {
        security.run_as_user = id(4321);
        security.run_as_group = id(1234);
    });
    let both = both.await?;
    ensure!(both == "4321 1234", "{both}");
    let name = says_as(s, &pod, "name", ids, |security| {
        security.run_as_username = "nobody".into()
    });
    let name = name.await?;
    ensure!(name != "0 0" && !name.starts_with("0 "), "{name}");
    Ok(())
}

async fn supplemental_groups_are_the_asked_ones_and_under_strict_no_others(
    s: &Scene,
) -> Result<()> {
    let pod = s.a_pod().await?;
    for (name, policy) in [
        ("merge", SupplementalGroupsPolicy::Merge),
        ("strict", SupplementalGroupsPolicy::Strict),
    ] {
        let groups = says_as(s, &pod, name, "id -G", |security| {
            security.run_as_user = id(4321);
            security.run_as_group = id(1234);
            security.supplemental_groups = vec![111, 222];
            security.supplemental_groups_policy = policy.into();
        });
        let groups = groups.await?;
        let mut groups: Vec<&str> = groups.split(' ').collect();
        groups.sort_unstable();
        ensure!(groups == ["111", "1234", "222"], "{name}: {groups:?}");
    }
    Ok(())
}

async fn effective(s: &Scene, pod: &Pod, name: &str, add: &[&str], drop: &[&str]) -> Result<u64> {
    let all = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let (add, drop) = (all(add), all(drop));
    let said = says_as(s, pod, name, "grep CapEff /proc/self/status", |security| {
        let capabilities = security.capabilities.get_or_insert_default();
        capabilities.add_capabilities = add;
        capabilities.drop_capabilities = drop;
    });
    let said = said.await?;
    let mask = said.split_whitespace().nth(1).context("no mask")?;
    Ok(u64::from_str_radix(mask, 16)?)
}

const CHOWN: u64 = 1;
const NET_RAW: u64 = 1 << 13;
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;

async fn capabilities_are_added_and_dropped(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let plain = effective(s, &pod, "plain", &[], &[]).await?;
    ensure!(
        plain & CHOWN != 0 && plain & (NET_ADMIN | SYS_PTRACE) == 0,
        "{plain:x}"
    );
    let added = effective(s, &pod, "added", &["NET_ADMIN"], &[]).await?;
    ensure!(added == plain | NET_ADMIN, "{added:x} of {plain:x}");
    let dropped = effective(s, &pod, "dropped", &[], &["CHOWN", "NET_RAW"]).await?;
    ensure!(
        dropped == plain & !(CHOWN | NET_RAW),
        "{dropped:x} of {plain:x}"
    );
    Ok(())
}

async fn all_capabilities_are_added_or_dropped(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let none = effective(s, &pod, "none", &[], &["ALL"]).await?;
    ensure!(none == 0, "{none:x}");
    let one = effective(s, &pod, "one", &["NET_RAW"], &["ALL"]).await?;
    ensure!(one == NET_RAW, "{one:x}");
    let all = effective(s, &pod, "all", &["ALL"], &[]).await?;
    ensure!(
        all & (CHOWN | NET_ADMIN | SYS_PTRACE) == CHOWN | NET_ADMIN | SYS_PTRACE,
        "{all:x}"
    );
    let but = effective(s, &pod, "but", &["ALL"], &["CHOWN"]).await?;
    ensure!(but == all & !CHOWN, "{but:x} of {all:x}");
    Ok(())
}

async fn a_read_only_root_is_read_only(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let script = "touch /new 2>/dev/null && echo root; touch /dev/shm/new && echo shm";
    let said = says_as(s, &pod, "a", script, |security| {
        security.readonly_rootfs = true
    })
    .await?;
    ensure!(said == "shm", "{said}");
    let said = says_as(s, &pod, "b", script, |_| {}).await?;
    ensure!(said == "root\nshm", "{said}");
    Ok(())
}

async fn no_new_privileges_are_gained_where_that_is_asked(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    for asked in [true, false] {
        let script = "grep NoNewPrivs /proc/self/status";
        let name = format!("a-{asked}");
        let said = says_as(s, &pod, &name, script, |security| {
            security.no_new_privs = asked
        })
        .await?;
        ensure!(
            said.ends_with(if asked { '1' } else { '0' }),
            "{asked}: {said}"
        );
    }
    Ok(())
}

async fn seccomp_filters_unless_it_is_unconfined(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let script = "grep '^Seccomp:' /proc/self/status";
    let filtered = says_as(s, &pod, "filtered", script, |_| {}).await?;
    ensure!(filtered.ends_with('2'), "{filtered}");
    let free = says_as(s, &pod, "free", script, |security| {
        security.seccomp = Some(unconfined())
    });
    let free = free.await?;
    ensure!(free.ends_with('0'), "{free}");
    Ok(())
}

async fn masked_paths_are_empty_and_read_only_ones_are_not_written(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let script =
        "wc -c < /etc/passwd; ls /home | wc -l; touch /var/new 2>/dev/null || echo read-only";
    let said = says_as(s, &pod, "a", script, |security| {
        security.masked_paths = vec!["/etc/passwd".into(), "/home".into()];
        security.readonly_paths = vec!["/var".into()];
    });
    let said = said.await?;
    ensure!(said == "0\n0\nread-only", "{said}");
    Ok(())
}

async fn a_privileged_container_has_the_devices_and_all_capabilities(s: &Scene) -> Result<()> {
    let config = s.pod("pod").linux(|linux| {
        linux.security_context.get_or_insert_default().privileged = true;
    });
    let pod = s.run(config).await?;
    let script = "test -e /dev/kmsg && echo kmsg; grep CapEff /proc/self/status | cut -f2";
    let said = says_as(s, &pod, "a", script, |security| security.privileged = true).await?;
    let (kmsg, mask) = said.split_once('\n').with_context(|| said.clone())?;
    let mask = u64::from_str_radix(mask, 16)?;
    ensure!(
        kmsg == "kmsg" && mask & (NET_ADMIN | SYS_PTRACE) == NET_ADMIN | SYS_PTRACE,
        "{said}"
    );
    Ok(())
}

async fn volumes_are_mounted_and_read_only_where_asked(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let volume = s.dir.join("volume");
    std::fs::create_dir_all(volume.join("dir"))?;
    std::fs::write(volume.join("file"), "content")?;
    let read_only = |mount: Mount| Mount {
        readonly: true,
        ..mount
    };
    let config = s
        .container("a", &sh("cat /file; touch /rw/new && touch /ro/new 2>/dev/null; touch /file 2>/dev/null; echo"))
        .mount(bind(&volume, "/rw"))
        .mount(read_only(bind(&volume, "/ro")))
        .mount(read_only(bind(&volume.join("file"), "/file")));
    let said = s.says(&pod, config).await?;
    ensure!(said == "content" && volume.join("new").exists(), "{said}");
    std::fs::remove_file(volume.join("new"))?;
    let config = s
        .container("b", &sh("touch /ro/new"))
        .mount(read_only(bind(&volume, "/ro")));
    let (code, _) = s.outcome(&pod, config).await?;
    ensure!(code != 0 && !volume.join("new").exists());
    Ok(())
}

/// `KeyValue.value` is bytes.
async fn the_environment_may_be_any_bytes(s: &Scene) -> Result<()> {
    let pod = s.a_pod().await?;
    let config = s.container("a", &sh("echo \"$UTF|$EMPTY|$EQUALS|$LINES_\""));
    let config = config
        .env("UTF", "häfen ⚓".as_bytes())
        .env("EMPTY", b"")
        .env("EQUALS", b"a=b=c")
        .env("LINES_", b"one\ntwo");
    let said = s.says(&pod, config).await?;
    ensure!(said == "häfen ⚓||a=b=c|one\ntwo", "{said}");
    Ok(())
}

async fn the_hostname_is_the_asked_one(s: &Scene) -> Result<()> {
    if s.host_network {
        return Err(skip("pods on the host's network have its name"));
    }
    let config = s
        .pod("pod")
        .with(|config: &mut PodSandboxConfig| config.hostname = "mole-3".into());
    let pod = s.run(config).await?;
    let said = s
        .says(&pod, s.container("a", &sh("hostname; cat /etc/hostname")))
        .await?;
    ensure!(said == "mole-3\nmole-3", "{said}");
    Ok(())
}

async fn names_are_resolved_as_asked(s: &Scene) -> Result<()> {
    let config = s.pod("pod").with(|config: &mut PodSandboxConfig| {
        config.dns_config = Some(DnsConfig {
            servers: vec!["192.0.2.1".into(), "192.0.2.2".into()],
            searches: vec!["one.test".into(), "two.test".into()],
            options: vec!["ndots:3".into(), "rotate".into()],
        });
    });
    let pod = s.run(config).await?;
    let said = s
        .says(&pod, s.container("a", &["cat", "/etc/resolv.conf"]))
        .await?;
    for line in [
        "nameserver 192.0.2.1",
        "nameserver 192.0.2.2",
        "search one.test two.test",
        "options ndots:3 rotate",
    ] {
        ensure!(
            said.lines().any(|other| other.trim() == line),
            "no {line:?} in {said}"
        );
    }
    Ok(())
}

async fn sysctls_are_set_in_the_pod(s: &Scene) -> Result<()> {
    let config = s.pod("pod").linux(|linux| {
        linux
            .sysctls
            .insert("kernel.shm_rmid_forced".into(), "1".into());
        if !s.host_network {
            linux
                .sysctls
                .insert("net.ipv4.ip_unprivileged_port_start".into(), "777".into());
        }
    });
    let pod = s.run(config).await?;
    let script =
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start";
    let said = s.says(&pod, s.container("a", &sh(script))).await?;
    ensure!(
        said.starts_with("1\n") && (s.host_network || said == "1\n777"),
        "{said}"
    );
    Ok(())
}

/// The namespaces of a container, by kind.
const NAMESPACES: &str = "for kind in ipc net pid uts mnt; do readlink /proc/self/ns/$kind; done";

async fn containers_share_the_pods_ipc_and_network_and_not_their_processes(
    s: &Scene,
) -> Result<()> {
    let pod = s.a_pod().await?;
    let a = s.says(&pod, s.container("a", &sh(NAMESPACES))).await?;
    let b = s.says(&pod, s.container("b", &sh(NAMESPACES))).await?;
    let other = s.run(s.pod("other")).await?;
    let c = s.says(&other, s.container("c", &sh(NAMESPACES))).await?;
    let of = |said: &str, kind: usize| said.lines().nth(kind).unwrap_or_default().to_owned();
    for (kind, name) in ["ipc", "net", "pid", "uts", "mnt"].iter().enumerate() {
        let shared = of(&a, kind) == of(&b, kind);
        // A pid namespace that has gone may leave its number to the next: this can tell of two alike only by chance.
        let expected = matches!(*name, "ipc" | "net" | "uts");
        ensure!(
            shared == expected || *name == "pid" || *name == "mnt",
            "{name} {shared}: {a} and {b}"
        );
    }
    ensure!(of(&a, 0) != of(&c, 0), "two pods share their IPC");
    ensure!(
        s.host_network || of(&a, 1) != of(&c, 1),
        "two pods share their network"
    );
    let script = "echo $$; ls -d /proc/[0-9]* | wc -l";
    s.start(&pod, &s.container("sleeper", &["sleep", "1000"]))
        .await?;
    let said = s.says(&pod, s.container("alone", &sh(script))).await?;
    let (pid, processes) = said.split_once('\n').with_context(|| said.clone())?;
    ensure!(pid == "1" && processes.parse::<u32>()? <= 3, "{said}");
    Ok(())
}

async fn a_pods_processes_are_shared_where_that_is_asked(s: &Scene) -> Result<()> {
    let config = s
        .pod("pod")
        .namespaces(|namespaces| namespaces.pid = NamespaceMode::Pod.into());
    let pod = s.run(config).await?;
    let shared = |security: &mut LinuxContainerSecurityContext| {
        security.namespace_options.get_or_insert_default().pid = NamespaceMode::Pod.into();
    };
    let sleeper = s.container("sleeper", &["sleep", "54321"]).security(shared);
    s.start(&pod, &sleeper).await?;
    let script = "echo $$; ps | grep -c '[s]leep 54321'";
    let said = says_as(s, &pod, "a", script, shared).await?;
    let (pid, others) = said.split_once('\n').with_context(|| said.clone())?;
    ensure!(pid != "1" && others == "1", "{said}");
    Ok(())
}

async fn the_nodes_namespaces_are_shared_where_that_is_asked(s: &Scene) -> Result<()> {
    let node = |namespaces: &mut berth_proto::cri::NamespaceOption| {
        namespaces.network = NamespaceMode::Node.into();
        namespaces.pid = NamespaceMode::Node.into();
        namespaces.ipc = NamespaceMode::Node.into();
    };
    let pod = s.run(s.pod("pod").namespaces(node)).await?;
    let config = s.container("a", &sh(NAMESPACES));
    let config =
        config.security(|security| node(security.namespace_options.get_or_insert_default()));
    let said = s.says(&pod, config).await?;
    // The runtime's own: of the process that this test shares a node with.
    let mut own = vec![];
    for kind in ["ipc", "net", "pid"] {
        own.push(
            std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))?
                .display()
                .to_string(),
        );
    }
    let told: Vec<&str> = said.lines().take(3).collect();
    if told[0] != own[0] && told[2] != own[2] {
        return Err(skip(
            "the runtime is in namespaces other than this program's",
        ));
    }
    ensure!(
        told[0] == own[0] && told[2] == own[2],
        "{told:?} and {own:?}"
    );
    Ok(())
}
