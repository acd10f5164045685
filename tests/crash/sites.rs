//! REL-06: every failpoint of the sources, failing once, failing twice and dying. Afterwards everything that was asked for is asked
//! for again and done, everything can be removed, and nothing is left. A site that no call reaches fails the test: it is a step
//! without cover.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    self, ContainerState, LinuxContainerResources, Mount, PodSandboxConfig, PodSandboxState,
    PortMapping, Protocol, UpdatePodSandboxResourcesRequest,
};
use berth_tests::{
    BUSYBOX, Cri, Node, Setup, cni, container,
    cri::spec as spec_of,
    daemon, debian,
    failpoint::{Action, compiled_into, sites, spec},
    invariant,
    request::ContainerRequest,
};

/// The sites are divided among as many tests, for these to run side by side.
const SHARDS: usize = 3;

/// What a kubelet asks for from the first pull to the last removal; every call is made, whatever became of the one before.
/// `strict`: the first failure ends it.
async fn life(
    cri: &Cri,
    node: &Node,
    config: &PodSandboxConfig,
    archive: &std::path::Path,
    strict: bool,
) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    macro_rules! call {
        ($what:literal, $call:expr) => {
            match $call {
                Ok(value) => Some(value),
                Err(error) if strict => return Err(anyhow::Error::from(error).context($what)),
                Err(error) => {
                    failures.push(format!("{}: {error:#}", $what));
                    None
                }
            }
        };
    }
    call!("import", node.import(archive));
    call!("pull", cri.pull(BUSYBOX).await);
    let pod = call!("run", cri.run_pod(config).await).unwrap_or_else(|| "f".repeat(64));
    let asked = container("a", BUSYBOX, &["sleep", "1000"]).mount(Mount {
        container_path: "/image".into(),
        readonly: true,
        image: Some(spec_of(BUSYBOX)),
        ..Default::default()
    });
    let id =
        call!("create", cri.create(&pod, &asked, config).await).unwrap_or_else(|| "f".repeat(64));
    call!("start", start(cri, &id).await);
    call!("limit the pod", limit(cri, &pod).await);
    call!("exec", cri.exec_within(&id, &["true"], 5).await);
    call!("stats", cri.stats(&id).await);
    call!("reopen", cri.reopen_log(&id).await);
    let checkpoint = cri::CheckpointContainerRequest {
        container_id: id.clone(),
        location: node.dir.join("site.checkpoint").display().to_string(),
        timeout: 0,
    };
    let _ = std::fs::remove_file(&checkpoint.location);
    call!(
        "checkpoint",
        cri.runtime().checkpoint_container(checkpoint).await
    );
    let short = call!(
        "create",
        cri.create(
            &pod,
            &container("b", BUSYBOX, &["sh", "-c", "exit 5"]),
            config
        )
        .await
    );
    if let Some(short) = &short {
        call!("start", start(cri, short).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
        call!("remove", cri.remove(short).await);
    }
    call!("stop", cri.stop(&id, 0).await);
    call!("stop_pod", cri.stop_pod(&pod).await);
    call!("remove", cri.remove(&id).await);
    call!("remove_pod", cri.remove_pod(&pod).await);
    call!("remove_image", cri.remove_image(BUSYBOX).await);
    call!(
        "remove_image",
        cri.remove_image("registry.test/site:1").await
    );
    Ok(failures)
}

async fn limit(cri: &Cri, pod: &str) -> Result<(), tonic::Status> {
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        ..Default::default()
    };
    let request = UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.to_owned(),
        resources: Some(resources),
        ..Default::default()
    };
    let mut client = cri.runtime();
    client.update_pod_sandbox_resources(request).await.map(drop)
}

/// A start that succeeded without an answer is no failure of the next.
async fn start(cri: &Cri, id: &str) -> Result<(), tonic::Status> {
    match cri.start(id).await {
        Err(status)
            if status.code() == tonic::Code::FailedPrecondition
                && cri.status(id).await?.state() == ContainerState::ContainerRunning =>
        {
            Ok(())
        }
        answer => answer,
    }
}

/// Makes what was asked for, as the kubelet does: what is left of a failed attempt is stopped and removed, then the next is tried.
async fn again(node: &Node, config: &PodSandboxConfig, archive: &std::path::Path) -> Result<()> {
    for pod in node.cri.pods(None).await? {
        if pod.state() == PodSandboxState::SandboxNotready {
            node.cri
                .stop_pod(&pod.id)
                .await
                .context("stop what is left")?;
            node.cri
                .remove_pod(&pod.id)
                .await
                .context("remove what is left")?;
        }
    }
    // A container that failed to start is EXITED: the kubelet removes it and makes another.
    for item in node.cri.containers(None).await? {
        if item.state() == ContainerState::ContainerExited {
            node.cri
                .remove(&item.id)
                .await
                .context("remove a container that is left")?;
        }
    }
    life(&node.cri, node, config, archive, true).await.map(drop)
}

/// Runs a life with one site set to `action`, then everything again without it. Whether the site was reached.
async fn survive(
    node: &mut Node,
    site: &str,
    action: Action,
    archive: &std::path::Path,
) -> Result<bool> {
    let mut config = node.pod("site");
    // Those of host ports are passed where a pod has one.
    if site.starts_with("network.ports.") {
        config.port_mappings = vec![PortMapping {
            protocol: Protocol::Udp.into(),
            container_port: 80,
            host_port: 18081,
            host_ip: String::new(),
        }];
    }
    for name in ["a", "b"] {
        std::fs::create_dir_all(std::path::Path::new(&config.log_directory).join(name))?;
    }
    // Ended in order, it takes its bridge along: the next must make it again.
    let _ = node.daemon.terminate();
    node.daemon.failpoints = spec([(site, action)]);
    // Those of CNI are passed where there is a configuration for it.
    let of_cni = site.starts_with("network.cni.");
    if of_cni {
        cni::fake(&node.dir)?;
    }
    let trace = node.dir.join("trace");
    node.daemon.trace = Some(trace.clone());
    node.daemon.spawn()?;
    // It may die before it is ready: then its start has such a site.
    if let Ok(cri) = node.daemon.ready().await {
        let cri = cri.within(Duration::from_secs(10));
        life(&cri, node, &config, archive, false).await?;
        if action == Action::ErrorTwice {
            // For the second time, where the first life did not pass the site again: a kubelet tries again.
            life(&cri, node, &config, archive, false).await?;
        }
    }
    let _ = node.daemon.terminate();
    let passed = std::fs::read_to_string(&trace).unwrap_or_default();
    let reached = passed.lines().any(|line| line == site);
    let _ = std::fs::remove_file(&trace);
    node.daemon.trace = None;
    node.daemon.failpoints = String::new();
    node.restart().await.context("start again")?;
    again(node, &config, archive)
        .await
        .context("everything again")?;
    node.remove_all().await.context("remove everything")?;
    invariant::nothing_left(node)
        .await
        .context("after everything was removed")?;
    if of_cni {
        let leases = cni::Fake::of(node).leases();
        ensure!(leases == 0, "{leases} addresses are left");
    }
    Ok(reached)
}

fn every_site_survives(action: Action, shard: usize) -> Result<()> {
    for binary in ["berthd", "containerd-shim-berth-v2"] {
        compiled_into(&daemon::bin_dir()?.join(binary))?;
    }
    let mut mine: BTreeMap<String, PathBuf> = sites()?;
    ensure!(
        mine.len() >= 20,
        "only {} failpoints were found",
        mine.len()
    );
    let mut number = 0;
    mine.retain(|_, _| {
        number += 1;
        number % SHARDS == shard
    });
    // One site alone, for who works on it.
    if let Ok(only) = std::env::var("BERTH_TEST_SITE") {
        mine.retain(|site, _| *site == only);
    }
    Node::test_with(
        Setup {
            no_restart: true,
            network: "cni_bin_dirs = [\"$DIR/plugins\"]\n".into(),
            // The steps are ours, and are passed with an archive that holds no process, too.
            config: "[checkpoint]\ncriu = \"/bin/true\"".into(),
            ..Default::default()
        },
        async |node| {
            let archive = node.dir.join("site.tar");
            debian::busybox_image()?.oci_archive(&archive, "registry.test/site:1")?;
            let (mut unreached, mut failed) = (Vec::new(), Vec::new());
            for (site, file) in &mine {
                let survived = survive(node, site, action, &archive).await;
                let _ = std::fs::remove_file(node.dir.join(cni::CONF));
                match survived {
                    Ok(true) => {}
                    Ok(false) => unreached.push(format!("{site} ({})", file.display())),
                    Err(error) => {
                        eprintln!("{site} with {action:?}: {error:?}");
                        failed.push(format!("{site}: {error:#}"));
                        // The next site starts from nothing.
                        node.daemon.failpoints = String::new();
                        node.restart().await?;
                        let _ = node.remove_all().await;
                    }
                }
            }
            ensure!(
                failed.is_empty(),
                "{} of {} sites with {action:?}:\n{}",
                failed.len(),
                mine.len(),
                failed.join("\n")
            );
            ensure!(
                unreached.is_empty(),
                "no call reaches these sites:\n{}",
                unreached.join("\n")
            );
            Ok(())
        },
    )
}

#[test]
fn every_site_may_fail_rel_06_first_third() -> Result<()> {
    every_site_survives(Action::Error, 0)
}

#[test]
fn every_site_may_fail_rel_06_second_third() -> Result<()> {
    every_site_survives(Action::Error, 1)
}

#[test]
fn every_site_may_fail_rel_06_last_third() -> Result<()> {
    every_site_survives(Action::Error, 2)
}

#[test]
fn every_site_may_fail_twice_rel_06_first_third() -> Result<()> {
    every_site_survives(Action::ErrorTwice, 0)
}

#[test]
fn every_site_may_fail_twice_rel_06_second_third() -> Result<()> {
    every_site_survives(Action::ErrorTwice, 1)
}

#[test]
fn every_site_may_fail_twice_rel_06_last_third() -> Result<()> {
    every_site_survives(Action::ErrorTwice, 2)
}

#[test]
fn a_process_may_die_at_every_site_rel_06_first_third() -> Result<()> {
    every_site_survives(Action::Kill, 0)
}

#[test]
fn a_process_may_die_at_every_site_rel_06_second_third() -> Result<()> {
    every_site_survives(Action::Kill, 1)
}

#[test]
fn a_process_may_die_at_every_site_rel_06_last_third() -> Result<()> {
    every_site_survives(Action::Kill, 2)
}
