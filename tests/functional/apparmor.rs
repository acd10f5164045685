//! AppArmor's profiles, as init and exec are under them. Where the kernel has no AppArmor these tests say that they were skipped;
//! `hack/test --vm` runs them.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    Capability, ContainerConfig, ContainerState, SecurityProfile, security_profile::ProfileType,
};
use berth_tests::{
    BUSYBOX, Node, container, process, refused,
    request::{ContainerRequest, PodRequest, sh, unconfined},
};
use tonic::Code;

const DEFAULT: &str = "berth-default (enforce)";

fn skipped() -> bool {
    let skipped = !Path::new("/sys/kernel/security/apparmor/profiles").exists();
    if skipped {
        eprintln!("skipped: this kernel has no AppArmor");
    }
    skipped
}

/// Gives a profile to the kernel's parser, or takes it away.
fn parser(how: &str, text: &str) -> Result<()> {
    let mut child = Command::new("/usr/sbin/apparmor_parser")
        .arg(how)
        .stdin(Stdio::piped())
        .spawn()
        .context("run apparmor_parser (package apparmor)")?;
    child
        .stdin
        .take()
        .context("no stdin")?
        .write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "apparmor_parser {how} failed");
    Ok(())
}

/// A profile of this test's, there until it is dropped.
struct Loaded(String);

impl Loaded {
    fn new(name: &str) -> Result<Self> {
        let text = format!(
            "profile {name} flags=(attach_disconnected) {{ file, network, capability, signal, ptrace, deny /tmp/forbidden* w, }}\n"
        );
        parser("--replace", &text)?;
        Ok(Self(text))
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let _ = parser("--remove", &self.0);
    }
}

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name.into(),
    })
}

fn sleeping(name: &str) -> ContainerConfig {
    container(name, BUSYBOX, &["sleep", "1000"])
}

/// What init is under, and what a command in the container is.
async fn labels(node: &Node, id: &str) -> Result<(String, String)> {
    let init = process::init_of(id).context("no process")?.pid;
    let of_init = fs::read_to_string(format!("/proc/{init}/attr/apparmor/current"))?;
    let of_exec = node
        .cri
        .exec(id, &["cat", "/proc/self/attr/apparmor/current"]);
    Ok((of_init.trim().to_owned(), of_exec.await?.trim().to_owned()))
}

#[test]
fn init_and_exec_are_under_the_profile_that_was_asked_for_sec_eng_09_sec_eng_10() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let own = format!("berth-test-{}", std::process::id());
    let _loaded = Loaded::new(&own)?;
    Node::test(async |node| {
        let pod = node.pod("profiles").linux(|linux| {
            linux.security_context.get_or_insert_default().privileged = true;
        });
        let pod = node.run(pod).await?;
        let of_own = format!("{own} (enforce)");
        type Case<'a> = (&'a str, ContainerConfig, &'a str);
        #[allow(deprecated)]
        let table: [Case; 8] = [
            ("unasked", sleeping("unasked"), DEFAULT),
            (
                "default",
                sleeping("default")
                    .security(|s| s.apparmor = profile(ProfileType::RuntimeDefault, "")),
                DEFAULT,
            ),
            (
                "old-default",
                sleeping("old-default").security(|s| s.apparmor_profile = "runtime/default".into()),
                DEFAULT,
            ),
            (
                "localhost",
                sleeping("localhost")
                    .security(|s| s.apparmor = profile(ProfileType::Localhost, &own)),
                &of_own,
            ),
            (
                "old-localhost",
                sleeping("old-localhost")
                    .security(|s| s.apparmor_profile = format!("localhost/{own}")),
                &of_own,
            ),
            (
                "no-new-privileges",
                sleeping("no-new-privileges").security(|s| s.no_new_privs = true),
                DEFAULT,
            ),
            (
                "unconfined",
                sleeping("unconfined")
                    .security(|s| s.apparmor = profile(ProfileType::Unconfined, "")),
                "unconfined",
            ),
            (
                "privileged",
                sleeping("privileged").security(|s| s.privileged = true),
                "unconfined",
            ),
        ];
        for (name, config, expected) in table {
            let id = node.start_container(&pod, config).await?;
            let labels = labels(node, &id).await?;
            ensure!(
                labels == (expected.to_owned(), expected.to_owned()),
                "{name}: {labels:?} and not {expected}"
            );
            node.cri.stop(&id, 0).await?;
        }
        Ok(())
    })
}

#[test]
fn the_default_profile_holds_where_every_other_wall_was_taken_down_sec_eng_10() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("walls")).await?;
        let open = |name: &str| {
            sleeping(name).security(|security| {
                security.capabilities = Some(Capability {
                    add_capabilities: vec!["ALL".into()],
                    ..Default::default()
                });
                security.seccomp = Some(unconfined());
                // Lists that hide nothing and protect nothing.
                security.masked_paths = vec!["/nowhere".into()];
                security.readonly_paths = vec!["/nowhere".into()];
            })
        };
        // Each is harmless where it succeeds, and says so.
        let script = "t() { if sh -c \"$2\" >/dev/null 2>&1; then echo $1; fi; }
            v=$(cat /proc/sys/kernel/printk_ratelimit)
            t mount 'mount -t tmpfs none /tmp'
            t remount 'mount -o remount,rw /sys'
            t umount 'umount /dev/shm'
            t sysctl \"echo $v > /proc/sys/kernel/printk_ratelimit\"
            t kcore 'head -c 1 /proc/kcore'
            t sysrq ': >> /proc/sysrq-trigger'
            t firmware 'ls /sys/firmware/*'
            t shm 'v=$(cat /proc/sys/kernel/shmmni); echo $v > /proc/sys/kernel/shmmni'
            t own 'echo 0 > /proc/self/oom_score_adj'
            t signal 'sleep 100 & kill $!'
            t file 'echo x > /file && cat /file'";
        let confined = node.start_container(&pod, open("confined")).await?;
        let done = node.cri.shell(&confined, script).await?;
        let done: Vec<&str> = done.split_whitespace().collect();
        // What is a pod's own stays its own.
        ensure!(done == ["shm", "own", "signal", "file"], "{done:?}");
        // The node ends it, gently, too.
        node.cri.stop(&confined, 1).await?;
        ensure!(node.cri.status(&confined).await?.state() == ContainerState::ContainerExited);

        // And it was the profile: without it all of that can be done.
        let free = open("free").security(|s| s.apparmor = profile(ProfileType::Unconfined, ""));
        let free = node.start_container(&pod, free).await?;
        let done = node.cri.shell(&free, script).await?;
        for could in ["mount", "sysctl", "kcore", "sysrq"] {
            ensure!(done.contains(could), "{could}: {done}");
        }
        Ok(())
    })
}

#[test]
fn a_profile_of_the_nodes_is_enforced_and_one_that_was_unloaded_comes_again_or_refuses_sec_eng_10()
-> Result<()> {
    if skipped() {
        return Ok(());
    }
    let own = format!("berth-test-denies-{}", std::process::id());
    let loaded = Loaded::new(&own)?;
    Node::test(async |node| {
        let pod = node.run(node.pod("own")).await?;
        let config = container(
            "a",
            BUSYBOX,
            &sh("touch /tmp/forbidden || echo refused; touch /tmp/free && echo free; sleep 1000"),
        )
        .security(|s| s.apparmor = profile(ProfileType::Localhost, &own));
        let id = node.start_container(&pod, config.clone()).await?;
        let said = || node.log_text(&pod, &config, "stdout").unwrap_or_default();
        process::eventually(std::time::Duration::from_secs(10), || {
            said().contains("free")
        });
        ensure!(said() == "refused\nfree\n", "{:?}", said());
        let of_exec = node
            .cri
            .exec_raw(&id, &sh("touch /tmp/forbidden-too"))
            .await?;
        ensure!(of_exec.exit_code != 0, "{of_exec:?}");
        node.cri.stop(&id, 0).await?;

        // The default, taken away by an administrator, is loaded again.
        let first = node.start_container(&pod, sleeping("first")).await?;
        node.cri.stop(&first, 0).await?;
        parser("--remove", "profile berth-default { }\n")?;
        let second = node.start_container(&pod, sleeping("second")).await?;
        ensure!(labels(node, &second).await?.0 == DEFAULT);

        // One of the node's is nobody's to load but its own: the pod and the container are refused by its name, and nothing is left.
        drop(loaded);
        let before = node.cri.containers(None).await?.len();
        let mut gone = config.clone();
        gone.metadata.get_or_insert_default().name = "gone".into();
        let answer = node.cri.create(&pod.id, &gone, &pod.config).await;
        refused(answer, Code::FailedPrecondition, &["AppArmor", &own])?;
        let pod = node.pod("gone").linux(|linux| {
            linux.security_context.get_or_insert_default().apparmor =
                profile(ProfileType::Localhost, &own);
        });
        let answer = node.cri.run_pod(&pod).await;
        refused(answer, Code::FailedPrecondition, &["AppArmor", &own])?;
        ensure!(node.cri.containers(None).await?.len() == before);
        ensure!(node.cri.pods(None).await?.len() == 1);
        Ok(())
    })
}
