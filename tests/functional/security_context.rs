//! Every field of a container's security context, as its process has it and as ContainerStatus tells it. (Capabilities, seccomp,
//! no_new_privs, masked paths and privilege by what they permit: isolation.rs; users of images: identity.rs.)

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    Capability, Int64Value, LinuxContainerSecurityContext, SeLinuxOption, SecurityProfile,
    SupplementalGroupsPolicy, security_profile::ProfileType,
};
use berth_tests::{
    BUSYBOX, Node, container, process, refused,
    request::{ContainerRequest, PodRequest, sh},
};
use tonic::Code;

fn value(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

#[test]
fn users_and_groups_are_the_processs_and_status_tells_them_sec_eng_15() -> Result<()> {
    Node::test(async |node| {
        type Change = fn(&mut LinuxContainerSecurityContext);
        // The image's `sailor` is 1000, and in group 2000.
        let table: [(&str, Change, (i64, i64, &[i64])); 7] = [
            ("root", |_| {}, (0, 0, &[0])),
            (
                "user",
                |s| s.run_as_user = value(1000),
                (1000, 1000, &[1000, 2000]),
            ),
            (
                "name",
                |s| s.run_as_username = "sailor".into(),
                (1000, 1000, &[1000, 2000]),
            ),
            (
                "group",
                |s| (s.run_as_user, s.run_as_group) = (value(1000), value(7)),
                (1000, 7, &[7, 2000]),
            ),
            (
                "merge",
                |s| {
                    s.run_as_user = value(1000);
                    s.supplemental_groups = vec![9, 8, 9];
                },
                (1000, 1000, &[8, 9, 1000, 2000]),
            ),
            (
                "strict",
                |s| {
                    s.run_as_username = "sailor".into();
                    s.run_as_group = value(7);
                    s.supplemental_groups = vec![9, 8];
                    s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
                },
                (1000, 7, &[7, 8, 9]),
            ),
            (
                "unnamed",
                |s| {
                    s.run_as_user = value(54_321);
                    s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
                },
                (54_321, 0, &[0]),
            ),
        ];
        let pod = node.run(node.pod("users")).await?;
        for (name, change, (uid, gid, groups)) in table {
            let config = container(name, BUSYBOX, &["sleep", "1000"]).security(change);
            let id = node.start_container(&pod, config).await?;
            let told = node.cri.status(&id).await?.user.and_then(|user| user.linux);
            let told = told.with_context(|| format!("{name}: status tells no user"))?;
            let mut told_groups = told.supplemental_groups.clone();
            told_groups.sort_unstable();
            ensure!(
                (told.uid, told.gid, &*told_groups) == (uid, gid, groups),
                "{name}: status tells {told:?}"
            );
            let status = process::init_of(&id).context("no process")?.status()?;
            let numbers = |field: &str| -> Vec<i64> {
                let text = status.get(field).map(String::as_str).unwrap_or_default();
                let mut all: Vec<i64> = text.split_whitespace().flat_map(str::parse).collect();
                all.sort_unstable();
                all
            };
            ensure!(
                numbers("Uid") == [uid; 4] && numbers("Gid") == [gid; 4],
                "{name}: {:?} {:?}",
                status.get("Uid"),
                status.get("Gid")
            );
            ensure!(
                numbers("Groups") == groups,
                "{name}: {:?}",
                status.get("Groups")
            );
        }
        Ok(())
    })
}

#[test]
fn capabilities_are_taken_in_any_case_with_and_without_their_prefix() -> Result<()> {
    Node::test(async |node| {
        const NET_ADMIN: u64 = 1 << 12;
        const CHOWN: u64 = 1;
        let pod = node.run(node.pod("names")).await?;
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        for (name, add, drop, has, has_not) in [
            (
                "plain",
                &["NET_ADMIN"][..],
                &["CHOWN"][..],
                NET_ADMIN,
                CHOWN,
            ),
            (
                "prefix",
                &["CAP_NET_ADMIN"],
                &["CAP_CHOWN"],
                NET_ADMIN,
                CHOWN,
            ),
            ("lower", &["net_admin"], &["cap_chown"], NET_ADMIN, CHOWN),
            ("all-but", &["all"], &["Net_Admin"], CHOWN, NET_ADMIN),
            ("none-but", &["Cap_Chown"], &["All"], CHOWN, !CHOWN),
            ("none", &[], &["ALL"], 0, u64::MAX),
        ] {
            let config = container(name, BUSYBOX, &["sleep", "1000"]).security(|security| {
                security.capabilities = Some(Capability {
                    add_capabilities: list(add),
                    drop_capabilities: list(drop),
                    add_ambient_capabilities: vec![],
                });
            });
            let id = node.start_container(&pod, config).await?;
            let init = process::init_of(&id).context("no process")?;
            for set in ["CapBnd", "CapEff", "CapPrm"] {
                let mask = init.mask(set)?;
                ensure!(
                    mask & has == has && mask & has_not == 0,
                    "{name}: {set} {mask:016x}"
                );
            }
            ensure!(init.mask("CapInh")? == 0 && init.mask("CapAmb")? == 0);
        }
        for (add, drop) in [
            (&["NET_ADMIM"][..], &[][..]),
            (&[], &["CAP_"]),
            (&[""], &[]),
        ] {
            let config = container("wrong", BUSYBOX, &["sleep", "1000"]).security(|security| {
                security.capabilities = Some(Capability {
                    add_capabilities: list(add),
                    drop_capabilities: list(drop),
                    add_ambient_capabilities: vec![],
                });
            });
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(answer, Code::InvalidArgument, &["capabilit"])?;
        }
        Ok(())
    })
}

#[test]
fn a_module_that_the_kernel_has_not_is_refused_by_its_name_sec_eng_10() -> Result<()> {
    let has = |file: &str| std::path::Path::new(file).exists();
    let (apparmor, selinux) = (
        has("/sys/kernel/security/apparmor/profiles"),
        has("/sys/fs/selinux/enforce"),
    );
    Node::test(async |node| {
        let pod = node.run(node.pod("modules")).await?;
        node.cri.pull(BUSYBOX).await?;
        let plain = || container("c", BUSYBOX, &["sleep", "1000"]);
        let profile = |kind: ProfileType, name: &str| {
            Some(SecurityProfile {
                profile_type: kind.into(),
                localhost_ref: name.into(),
            })
        };
        let label = SeLinuxOption {
            r#type: "container_t".into(),
            level: "s0:c1,c2".into(),
            ..Default::default()
        };
        #[allow(deprecated)]
        let asks_apparmor = [
            plain().security(|s| s.apparmor = profile(ProfileType::Localhost, "not-loaded")),
            plain().security(|s| s.apparmor_profile = "localhost/not-loaded".into()),
        ];
        for config in asks_apparmor {
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(
                answer,
                Code::FailedPrecondition,
                &["AppArmor", "not-loaded"],
            )?;
        }
        if !selinux {
            let config = plain().security(|s| s.selinux_options = Some(label.clone()));
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(
                answer,
                Code::FailedPrecondition,
                &["SELinux", "container_t"],
            )?;
            let asks = node.pod("labelled").linux(|linux| {
                linux
                    .security_context
                    .get_or_insert_default()
                    .selinux_options = Some(label.clone());
            });
            refused(
                node.cri.run_pod(&asks).await,
                Code::FailedPrecondition,
                &["SELinux"],
            )?;
        }
        let asks = node.pod("profiled").linux(|linux| {
            linux.security_context.get_or_insert_default().apparmor =
                profile(ProfileType::Localhost, "not-loaded");
        });
        refused(
            node.cri.run_pod(&asks).await,
            Code::FailedPrecondition,
            &["AppArmor"],
        )?;
        // Where there is none, its default is what there is; and no confinement is none.
        #[allow(deprecated)]
        let taken = [
            plain().security(|s| s.apparmor = profile(ProfileType::Unconfined, "")),
            plain().security(|s| s.apparmor_profile = "unconfined".into()),
            plain().security(|s| s.selinux_options = Some(SeLinuxOption::default())),
        ];
        for (at, mut config) in taken.into_iter().enumerate() {
            config.metadata.get_or_insert_default().name = format!("taken{at}");
            node.start_container(&pod, config).await?;
        }
        if !apparmor {
            let mut config =
                plain().security(|s| s.apparmor = profile(ProfileType::RuntimeDefault, ""));
            config.metadata.get_or_insert_default().name = "default".into();
            node.start_container(&pod, config).await?;
        }
        Ok(())
    })
}

#[test]
fn the_deprecated_seccomp_field_is_heeded_where_the_new_one_is_missing() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("seccomp")).await?;
        let profile = node.dir.join("no-mkdir.json");
        std::fs::write(
            &profile,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}"#,
        )?;
        let by_profile = format!("localhost/{}", profile.display());
        // The old field → Seccomp of /proc/PID/status, and whether a directory can be made.
        for (name, old, mode, may) in [
            ("default", "runtime/default", "2", true),
            ("docker", "docker/default", "2", true),
            ("none", "", "0", true),
            ("unconfined", "unconfined", "0", true),
            ("own", &*by_profile, "2", false),
        ] {
            let config = container(name, BUSYBOX, &["sleep", "1000"]);
            #[allow(deprecated)]
            let config = config.security(|security| {
                (security.seccomp, security.seccomp_profile_path) = (None, old.into());
            });
            let id = node.start_container(&pod, config).await?;
            let status = process::init_of(&id).context("no process")?.status()?;
            let seccomp = status.get("Seccomp").map(|mode| mode.trim().to_owned());
            ensure!(seccomp.as_deref() == Some(mode), "{name}: {seccomp:?}");
            let made = node.cri.exec_raw(&id, &sh("mkdir /new 2>&1")).await?;
            ensure!((made.exit_code == 0) == may, "{name}: {made:?}");
        }
        let config = container("wrong", BUSYBOX, &["sleep", "1000"]);
        #[allow(deprecated)]
        let config = config.security(|security| {
            (security.seccomp, security.seccomp_profile_path) = (None, "localhost/../x".into());
        });
        let answer = node.cri.create(&pod.id, &config, &pod.config).await;
        refused(answer, Code::InvalidArgument, &["seccomp"])?;
        Ok(())
    })
}
