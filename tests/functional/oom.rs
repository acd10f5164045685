//! REL-16: who is out of memory, and who is told so. `BERTH_TEST_OOMS` sets how many of each (6).

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerConfig, ContainerState};
use berth_tests::{BUSYBOX, Node, container, process, request::ContainerRequest, sh};

const EACH: usize = 6;
/// Busybox' `tail` keeps a whole line, and this one has no end.
const EAT: &str = "tail /dev/zero";

fn limited(name: &str, script: &str) -> ContainerConfig {
    container(name, BUSYBOX, &sh(script)).resources(|resources| {
        resources.memory_limit_in_bytes = 16 << 20;
        resources.memory_swap_limit_in_bytes = 16 << 20;
    })
}

#[test]
fn deaths_for_want_of_memory_are_told_of_whom_they_are_rel_16() -> Result<()> {
    Node::test(async |node| {
        let each = std::env::var("BERTH_TEST_OOMS");
        let each: usize = each.map_or(Ok(EACH), |each| each.parse())?;
        let pod = node.run(node.pod("memory")).await?;
        let neighbour = node
            .start_container(&pod, container("neighbour", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let (shim, daemon) = (
            process::shims().first().context("no shim")?.pid,
            node.daemon.pid(),
        );
        for number in 0..each {
            // The init itself.
            let config = limited(&format!("init-{number}"), &format!("exec {EAT}"));
            let id = node.start_container(&pod, config).await?;
            let status = node.cri.wait_exit(&id).await?;
            ensure!(
                (status.exit_code, status.reason.as_str()) == (137, "OOMKilled"),
                "init: {status:?}"
            );
            // A child, whose parent goes on and ends well.
            let config = limited(
                &format!("child-{number}"),
                &format!("{EAT}; echo $?; exit 0"),
            );
            let (code, said) = node.outcome(&pod, config).await?;
            ensure!(code == 0 && said.trim() == "137", "child: {code} {said}");
        }
        // A command in a container, which lives on: and which doesn't say of itself that it was killed when it is stopped later.
        let id = node
            .start_container(&pod, limited("exec", "sleep 1000"))
            .await?;
        let init = process::init_of(&id).context("no init")?;
        for _ in 0..each {
            let answer = node
                .cri
                .exec_within(&id, &sh(&format!("exec {EAT}")), 20)
                .await?;
            ensure!(answer.exit_code == 137, "{answer:?}");
            ensure!(node.cri.status(&id).await?.state() == ContainerState::ContainerRunning);
        }
        ensure!(
            process::init_of(&id).is_some_and(|now| now.is(&init)),
            "the container's init is another"
        );
        ensure!(node.cri.exec(&neighbour, &["echo", "on"]).await? == "on");
        ensure!(process::Process::read(shim).is_some() && node.daemon.pid() == daemon);
        Ok(())
    })
}
