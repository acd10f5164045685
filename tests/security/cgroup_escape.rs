//! SEC-ENG-11: cgroups that are wrong or can be left (CVE-2022-0492, CVE-2023-25809, CVE-2023-6476).

use anyhow::{Context, Result, ensure};
use berth_tests::{BUSYBOX, Node, cgroup, container, process, request::PodRequest};
use tonic::Code;

#[test]
fn cgroups_are_read_only_inside_and_their_parents_out_of_reach_sec_eng_11() -> Result<()> {
    Node::test(async |node| {
        let parent = node.own_cgroup_parent("kubepods/podx");
        let pod = node
            .run(
                node.pod("cgroups")
                    .linux(|linux| linux.cgroup_parent = parent.clone()),
            )
            .await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let init = process::init_of(&id).context("no process")?;
        ensure!(
            cgroup::directory(init.pid, "memory")?
                .to_string_lossy()
                .contains(&parent),
            "the pod's cgroup is not below its parent"
        );
        for script in [
            "find /sys/fs/cgroup -name cgroup.procs -exec sh -c 'echo $$ > $0' {} \\; 2>&1 | grep -v -e Read-only -e denied -e nonexistent; find /sys/fs/cgroup -name release_agent | grep -q . && for f in $(find /sys/fs/cgroup -name release_agent); do echo /x > $f && exit 0; done; exit 1",
            "mkdir /tmp/cg && mount -t cgroup -o memory none /tmp/cg",
            "mkdir -p /tmp/cg2 && mount -t cgroup2 none /tmp/cg2",
            "mkdir -p /tmp/x && mount -o remount,rw /sys/fs/cgroup",
            "mkdir /sys/fs/cgroup/made",
            "touch /sys/fs/cgroup/made",
            "for at in /sys/fs/cgroup/*/; do mkdir $at/made && exit 0; done; exit 1",
            "umount /sys/fs/cgroup",
        ] {
            let answer = node.cri.exec_raw(&id, &["sh", "-c", script]).await?;
            ensure!(
                answer.exit_code != 0,
                "{script} works: {}",
                String::from_utf8_lossy(&answer.stdout)
            );
        }
        let spawned = node.cri.shell(&id, "(sleep 777 &) ; sleep 0.2; true").await;
        ensure!(
            spawned.is_ok()
                && process::in_cgroup(&id)
                    .iter()
                    .any(|process| process.cmdline().contains("777")),
            "a child is outside of its cgroup"
        );
        Ok(())
    })
}

#[test]
fn cgroup_parents_that_lead_elsewhere_are_refused_sec_eng_11() -> Result<()> {
    Node::test(async |node| {
        for parent in [
            "/..",
            "/a/../../b",
            "a/../../b",
            "/a/\0b",
            "/a\nb",
            "system.slice:x:y",
        ] {
            let answer = node
                .cri
                .run_pod(
                    &node
                        .pod("parent")
                        .linux(|linux| linux.cgroup_parent = parent.into()),
                )
                .await;
            ensure!(
                answer
                    .as_ref()
                    .is_err_and(|status| status.code() == Code::InvalidArgument),
                "{parent:?}: {answer:?}"
            );
        }
        Ok(())
    })
}
