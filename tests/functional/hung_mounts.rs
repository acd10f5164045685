//! REL-01, REL-04: volumes whose file system has stopped answering. Who waits for it can't be killed; nobody else waits.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::ContainerState;
use berth_tests::{
    BUSYBOX, Node, container,
    fuse::Silent,
    process,
    request::{ContainerRequest, bind},
};
use tonic::Code;

/// Of an RPC that has nothing to do with the volume, on a busy machine.
const UNDISTURBED: Duration = Duration::from_secs(3);
/// A stop without grace: what the driver gives SIGKILL, and some.
const STOPPED: Duration = Duration::from_secs(25);

fn mount(at: &Path) -> Result<Option<Silent>> {
    let silent = Silent::mount(at)?;
    if silent.is_none() {
        println!("SKIP: this machine has no /dev/fuse");
    }
    Ok(silent)
}

/// Another pod lives its life, and lists are told.
async fn others_go_on(node: &Node, name: &str) -> Result<()> {
    let asked = Instant::now();
    node.cri.pods(None).await?;
    node.cri.containers(None).await?;
    ensure!(
        asked.elapsed() < UNDISTURBED,
        "lists: {:?}",
        asked.elapsed()
    );
    let pod = node.run(node.pod(name)).await?;
    let id = node
        .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
        .await?;
    ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
    node.cri.stop(&id, 0).await?;
    node.cri.stop_pod(&pod.id).await?;
    node.cri.remove_pod(&pod.id).await?;
    ensure!(
        asked.elapsed() < 4 * UNDISTURBED,
        "a pod's life took {:?}",
        asked.elapsed()
    );
    Ok(())
}

/// SIGKILL waits for the answer: that a stop hangs is told in time, and the pod goes when it can.
#[test]
fn a_container_that_can_not_be_killed_holds_up_its_own_stop_alone_rel_01() -> Result<()> {
    Node::test(async |node| {
        let volume = node.volume("silent")?;
        let Some(mut silent) = mount(&volume)? else {
            return Ok(());
        };
        let pod = node.run(node.pod("hung")).await?;
        let config =
            container("a", BUSYBOX, &["cat", "/volume/file"]).mount(bind(&volume, "/volume"));
        let id = node.start_container(&pod, config).await?;
        let limit = Instant::now() + Duration::from_secs(10);
        // Until it is to be killed it waits interruptibly, and thereafter not.
        while silent.unanswered() == 0 {
            ensure!(Instant::now() < limit, "it does not wait for its volume");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let begin = Instant::now();
        let stops: Vec<_> = (0..5)
            .map(|_| {
                let (cri, id) = (node.cri.clone(), id.clone());
                tokio::spawn(async move { cri.stop(&id, 0).await })
            })
            .collect();
        others_go_on(node, "neighbour").await?;
        for stop in stops {
            let status = stop.await?.expect_err("it has ended though it can't");
            ensure!(status.code() == Code::DeadlineExceeded, "{status:?}");
            ensure!(status.message().contains(&id[..12]), "{status:?}");
        }
        ensure!(begin.elapsed() < STOPPED, "{:?}", begin.elapsed());
        let lives = process::init_of(&id).is_some_and(|init| init.state == 'D');
        let state = node.cri.status(&id).await?.state();
        ensure!(
            lives && state == ContainerState::ContainerRunning,
            "{state:?}, alive: {lives}"
        );
        silent.abort()?;
        let ended = node.cri.exits_within(&id, Duration::from_secs(15)).await?;
        ensure!(ended.exit_code == 137);
        node.cri.stop_pod(&pod.id).await?;
        node.cri.remove_pod(&pod.id).await?;
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        Ok(())
    })
}

/// More creates than the daemon has threads, from several pods; their clients give up, or are told of the volume.
#[test]
fn a_volume_that_hangs_is_named_in_time_and_holds_up_nobody_rel_04() -> Result<()> {
    const PODS: usize = 4;
    const CREATES: usize = 10;
    Node::test(async |node| {
        let volume = node.volume("silent")?;
        let Some(mut silent) = mount(&volume)? else {
            return Ok(());
        };
        node.cri.pull(BUSYBOX).await?;
        silent.be_silent();
        let mut creates = vec![];
        let mut pods = vec![];
        for number in 0..PODS {
            let pod = node.run(node.pod(&format!("hung-{number}"))).await?;
            for number in 0..CREATES {
                let config = container(&format!("c{number}"), BUSYBOX, &["sleep", "1000"])
                    .mount(bind(&volume, "/volume"));
                let log = node.log_path(&pod, &config);
                std::fs::create_dir_all(log.parent().context("a log without a directory")?)?;
                let patience = match number % 2 {
                    0 => Duration::from_millis(500),
                    _ => Duration::from_secs(30),
                };
                let (cri, id, pod) = (
                    node.cri.within(patience),
                    pod.id.clone(),
                    pod.config.clone(),
                );
                creates.push(tokio::spawn(async move {
                    (number, cri.create(&id, &config, &pod).await)
                }));
            }
            pods.push(pod);
        }
        let begin = Instant::now();
        others_go_on(node, "neighbour").await?;
        ensure!(silent.unanswered() > 0, "nobody waits: this proves nothing");
        for create in creates {
            let (number, answer) = create.await?;
            let status = answer.expect_err("it has its volume");
            let told = status.code() == Code::DeadlineExceeded
                && status.message().contains("volumes/silent");
            ensure!(told || number % 2 == 0, "{status:?}");
        }
        ensure!(begin.elapsed() < STOPPED, "{:?}", begin.elapsed());
        // Again: told at once, and nobody new waits.
        let waiting = silent.unanswered();
        let config =
            container("again", BUSYBOX, &["sleep", "1000"]).mount(bind(&volume, "/volume"));
        let asked = Instant::now();
        let answer = node.cri.create(&pods[0].id, &config, &pods[0].config).await;
        berth_tests::refused(answer, Code::DeadlineExceeded, &["volumes/silent"])?;
        ensure!(asked.elapsed() < UNDISTURBED && silent.unanswered() == waiting);
        // The pods go though their volume hangs, and the names are free.
        let plain = container("c0", BUSYBOX, &["sleep", "1000"]);
        let id = node.start_container(&pods[0], plain).await?;
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        for pod in &pods {
            node.cri.stop_pod(&pod.id).await?;
            node.cri.remove_pod(&pod.id).await?;
        }
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        silent.abort()?;
        Ok(())
    })
}
