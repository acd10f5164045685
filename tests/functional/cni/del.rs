//! DEL is owed from before ADD until it has succeeded.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    Node, Setup,
    cni::{Fake, put},
    failpoint::{Action, spec},
    process,
};

use super::{PATIENCE, address, bridge, clean, leased, masked_in, owed, remove, tables, with_fake};

#[test]
fn a_del_that_fails_is_tried_until_it_succeeds_and_keeps_nobody_rel_05() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        let fail_three_times = r#"n=$(cat "$here/failed" 2>/dev/null || echo 0); if [ $n -lt 3 ]; then echo $((n+1)) > "$here/failed"; echo '{"code":11,"msg":"not now"}'; exit 1; fi"#;
        let pod = node.run(node.pod("sticky")).await?;
        fake.on("DEL", fail_three_times)?;
        let error = node.cri.stop_pod(&pod.id).await.unwrap_err();
        ensure!(
            error.message().contains("DEL") && error.message().contains("not now"),
            "{error:?}"
        );
        owed(node, &pod.id, "not now")?;
        // Others come and go meanwhile.
        let other = node.run(node.pod("other")).await?;
        ensure!(fake.leases() == 2);
        // Nobody asks again: the daemon does.
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() == 2 {
            ensure!(
                Instant::now() < deadline,
                "the DEL is not tried again: {:?}",
                fake.calls()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        ensure!(
            fake.count(&format!("DEL {}", pod.id)) == 4,
            "{:?}",
            fake.calls()
        );
        fake.well()?;
        remove(node, &pod).await?;
        ensure!(
            fake.count(&format!("DEL {}", pod.id)) == 4,
            "{:?}",
            fake.calls()
        );
        remove(node, &other).await?;

        // The plugin fails ADD and DEL: there is no pod, and its DEL is owed all the same.
        fs::remove_file(fake.0.join("failed"))?;
        fake.forget_calls();
        fs::write(fake.0.join("after-ADD"), "exit 1")?;
        fake.on("DEL", fail_three_times)?;
        node.cri.run_pod(&node.pod("unlucky")).await.unwrap_err();
        let pods = node.cri.pods(None).await?;
        ensure!(
            pods.is_empty() && fake.leases() == 1,
            "{pods:?}, {:?}",
            fake.calls()
        );
        owed(node, "", "not now")?;
        // The next daemon owes it, too.
        node.restart().await?;
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() > 0 {
            ensure!(Instant::now() < deadline, "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        ensure!(fake.count("DEL ") == 4, "{:?}", fake.calls());
        fake.well()?;
        clean(node)?;
        let next = node.run(node.pod("next")).await?;

        // One that never finds its way in the pod's namespace is told that it is gone.
        fake.on("DEL", "[ -z \"$CNI_NETNS\" ] || exit 1")?;
        for _ in 0..3 {
            node.cri.stop_pod(&next.id).await.unwrap_err();
        }
        remove(node, &next).await?;
        ensure!(fake.leases() == 0, "{:?}", fake.calls());
        fake.well()?;
        clean(node)
    })
}

#[test]
fn a_daemon_that_dies_between_add_and_its_record_leaves_no_address_rel_05() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        for site in [
            "network.cni.intended",
            "network.cni.recorded",
            "network.cni.added",
            "network.cni.attached",
        ] {
            fake.forget_calls();
            node.daemon.terminate()?;
            node.daemon.failpoints = spec([(site, Action::Kill)]);
            node.daemon.spawn()?;
            node.cri = node.daemon.ready().await?;
            let config = node.pod("cut");
            node.cri.run_pod(&config).await.unwrap_err();
            ensure!(
                node.daemon.was_killed(PATIENCE).await,
                "{site} was not reached"
            );
            let added = fake.leases();
            node.daemon.failpoints = String::new();
            node.restart().await?;
            ensure!(
                fake.leases() == 0,
                "{site}: {added} leases, then {:?}",
                fake.calls()
            );
            clean(node).context(site)?;
            // The kubelet asks again.
            let pod = node.run(config).await?;
            remove(node, &pod).await?;
            ensure!(fake.leases() == 0, "{site}: {:?}", fake.calls());
            clean(node).context(site)?;
        }
        for site in ["network.cni.deleted", "network.cni.forgotten"] {
            node.daemon.terminate()?;
            node.daemon.failpoints = spec([(site, Action::Kill)]);
            node.daemon.spawn()?;
            node.cri = node.daemon.ready().await?;
            let pod = node.run(node.pod("cut")).await?;
            node.cri.stop_pod(&pod.id).await.unwrap_err();
            ensure!(
                node.daemon.was_killed(PATIENCE).await,
                "{site} was not reached"
            );
            node.daemon.failpoints = String::new();
            node.restart().await?;
            remove(node, &pod).await?;
            ensure!(fake.leases() == 0, "{site}: {:?}", fake.calls());
            clean(node).context(site)?;
        }
        Ok(())
    })
}

#[test]
fn a_plugin_that_outlives_its_daemon_is_ended_before_its_pod_is_let_go_of() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        network: "cni_timeout_ms = 15000\ncni_bin_dirs = [\"$DIR/plugins\"]\n".into(),
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        // It makes its lease late: after the DEL, if it were left alone.
        fake.on("ADD", "touch \"$here/begun\"; sleep 2")?;
        let (cri, config) = (node.cri.clone(), node.pod("slow"));
        let asked = tokio::spawn(async move { cri.run_pod(&config).await });
        let deadline = Instant::now() + PATIENCE;
        while !fake.0.join("begun").exists() {
            ensure!(Instant::now() < deadline, "ADD was not called");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.restart().await?;
        let _ = asked.await;
        ensure!(fake.count("DEL ") == 1, "{:?}", fake.calls());
        tokio::time::sleep(Duration::from_secs(3)).await;
        ensure!(
            fake.leases() == 0,
            "ADD went on after DEL: {:?}",
            fake.calls()
        );
        clean(node)
    })
}

/// What a power cut and a start leave: `/run` is empty, nothing that ran runs.
async fn reboot(node: &mut Node) -> Result<()> {
    node.daemon.kill_9();
    for process in process::shims() {
        let ours = fs::read_link(format!("/proc/{}/cwd", process.pid))
            .is_ok_and(|cwd| cwd.starts_with(&node.daemon.state));
        if ours {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(process.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
    let state = node.daemon.state.display().to_string();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let below = mounts
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4));
    for at in below.filter(|at| at.starts_with(&format!("{state}/"))) {
        let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
    }
    fs::remove_dir_all(&state)?;
    Ok(())
}

#[test]
fn after_a_reboot_every_old_pod_is_let_go_of_rel_05() -> Result<()> {
    let setup = Setup {
        no_restart: true,
        ..with_fake()
    };
    Node::test_with(setup, async |node| {
        let fake = Fake::of(node);
        let pods = [
            node.run(node.pod("one")).await?,
            node.run(node.pod("two")).await?,
        ];
        reboot(node).await?;
        // Its agent is not there yet either: what DEL needs.
        fake.on("DEL", "sleep 1000")?;
        let since = Instant::now();
        node.restart().await?;
        ensure!(
            since.elapsed() < Duration::from_secs(15),
            "{:?}",
            since.elapsed()
        );
        fake.well()?;
        let deadline = Instant::now() + PATIENCE;
        while fake.leases() > 0 {
            ensure!(Instant::now() < deadline, "{:?}", fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for pod in &pods {
            ensure!(
                fake.count(&format!("DEL {} eth0 []", pod.id)) >= 1,
                "{:?}",
                fake.calls()
            );
            remove(node, pod).await?;
        }
        clean(node)
    })
}

#[test]
fn a_range_of_one_address_serves_fifty_pods_over_reboots_rel_05() -> Result<()> {
    fn prepare(dir: &Path) -> Result<()> {
        tables()?;
        // The gateway has the one, a pod the other.
        put(
            &dir.join("cni/10-net.conflist"),
            &bridge(dir, "net", "10.201.5.0/30", &[]),
        )
    }
    let mut setup = masked_in(prepare);
    setup.no_restart = true;
    Node::test_with(setup, async |node| {
        for round in 0..50 {
            let pod = node
                .run(node.pod("only"))
                .await
                .with_context(|| format!("round {round}"))?;
            ensure!(address(node, &pod).await? == "10.201.5.2");
            if round % 10 == 3 {
                let error = node.cri.run_pod(&node.pod("second")).await.unwrap_err();
                ensure!(
                    error.message().contains("no IP addresses available"),
                    "{error:?}"
                );
                reboot(node).await?;
                node.restart().await?;
                ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
            }
            remove(node, &pod).await?;
            ensure!(leased(&node.dir).is_empty(), "{:?}", leased(&node.dir));
        }
        clean(node)
    })
}

#[test]
fn a_damaged_record_costs_its_own_pod_the_result_and_nobody_an_address() -> Result<()> {
    Node::test_with(with_fake(), async |node| {
        let fake = Fake::of(node);
        let (hit, other) = (
            node.run(node.pod("hit")).await?,
            node.run(node.pod("other")).await?,
        );
        let netns = node.daemon.state.join("netns").join(&hit.id);
        node.daemon.terminate()?;
        let record = node
            .daemon
            .root
            .join("cni")
            .join(format!("{}.json", hit.id));
        let mut bytes = fs::read(&record)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&record, bytes)?;
        node.daemon.spawn()?;
        node.cri = node.daemon.ready().await?.remembering(&node.cri);
        let log = fs::read_to_string(&node.daemon.log)?;
        ensure!(
            log.lines()
                .any(|line| line.contains("damaged") && line.contains(&hit.id)),
            "nobody is told: {log}"
        );
        // Both run on; a pod that comes gets an address of its own.
        ensure!(address(node, &hit).await? == "10.203.0.2");
        let next = node.run(node.pod("next")).await?;
        ensure!(address(node, &next).await? == "10.203.0.4");
        remove(node, &hit).await?;
        let told = fake.told("DEL")?;
        ensure!(told.get("prevResult").is_none(), "{told}");
        ensure!(
            fake.count(&format!("DEL {} eth0 [{}]", hit.id, netns.display())) == 1,
            "{:?}",
            fake.calls()
        );
        ensure!(fake.leases() == 2, "{:?}", fake.calls());
        remove(node, &other).await?;
        ensure!(fake.told("DEL")?["prevResult"].is_object());
        remove(node, &next).await?;
        ensure!(fake.leases() == 0, "{:?}", fake.calls());
        clean(node)
    })
}
