//! SEC-ENG-01: descriptors that leak into a container (CVE-2024-21626, CVE-2016-9962).

use std::{fs, os::fd::OwnedFd, os::unix::net::UnixListener};

use anyhow::{Context, Result, ensure};
use berth_tests::{
    BUSYBOX, Node, Setup, container, debian, invariant, process, request::ContainerRequest,
};
use serde_json::json;

/// Twenty descriptors that a careless parent could have left open: directories, cgroups, a socket.
fn careless_parent() -> Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    for _ in 0..10 {
        descriptors.push(fs::File::open("/")?.into());
        descriptors.push(fs::File::open("/sys/fs/cgroup")?.into());
    }
    let socket = std::env::temp_dir().join(format!("bt-socket-{}", std::process::id()));
    let _ = fs::remove_file(&socket);
    descriptors.push(UnixListener::bind(&socket)?.into());
    fs::remove_file(&socket)?;
    Ok(descriptors)
}

fn of(pid: i32) -> Vec<String> {
    let mut list: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            format!(
                "{} {}",
                entry.file_name().display(),
                fs::read_link(entry.path()).unwrap_or_default().display()
            )
        })
        .collect();
    list.sort();
    list
}

#[test]
fn a_container_has_its_three_streams_and_nothing_else_sec_eng_01() -> Result<()> {
    let setup = Setup {
        inherited: careless_parent()?,
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("leak")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let init = process::init_of(&id).expect("it runs");
        ensure!(of(init.pid).len() == 3, "init has {:?}", of(init.pid));
        // `ls` itself opens the directory that it lists, and may have closed it when it looks where it leads.
        let of_exec = node.cri.exec(&id, &["ls", "-l", "/proc/self/fd"]).await?;
        ensure!(
            of_exec.lines().filter(|line| line.contains(" 64 ")).count() <= 4
                && of_exec.lines().filter(|line| line.contains("->")).count() <= 4,
            "exec has {of_exec}"
        );
        // Created, not started: nothing of ours may be reachable once the container's own root is in place.
        let created = node
            .create(&pod, &container("b", BUSYBOX, &["sleep", "1000"]))
            .await?;
        for process in process::in_cgroup(&created) {
            invariant::descriptors_are_its_own(&process)
                .with_context(|| format!("created, not started: {:?}", of(process.pid)))?;
        }
        Ok(())
    })
}

#[test]
fn a_working_directory_in_proc_self_fd_does_not_lead_out_sec_eng_01() -> Result<()> {
    let setup = Setup {
        inherited: careless_parent()?,
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("cwd")).await?;
        let token = node.dir.join("canary/secret");
        let peek = format!(
            "pwd; cat ./{0} ../../../../{0} 2>/dev/null; ls -d ./work 2>/dev/null",
            token.display()
        );
        for number in (3..32).step_by(2) {
            let place = format!("/proc/self/fd/{number}");
            let repository = format!("own/cwd-{number}");
            debian::busybox_image()?
                .but(json!({"WorkingDir": place}))
                .push(&node.registry, &repository, &["1"])?;
            let config = container(
                &format!("c{number}"),
                &format!("localhost:5000/{repository}:1"),
                &["sh", "-c", &peek],
            );
            let id = node.create(&pod, &config).await;
            let Ok(id) = id else { continue };
            if node.cri.start(&id).await.is_ok() {
                node.cri.wait_exit(&id).await?;
                let log = fs::read(node.log_path(&pod, &config)).unwrap_or_default();
                node.canary.unseen_in(&place, &log)?;
                ensure!(
                    !String::from_utf8_lossy(&log).contains("./work"),
                    "{place} led out of the container"
                );
            }
        }
        // The same by way of a request, and of a link in the image.
        let config = container("request", BUSYBOX, &["sh", "-c", &peek])
            .with(|config| config.working_dir = "/proc/self/fd/9".into());
        if let Ok(id) = node.create(&pod, &config).await
            && node.cri.start(&id).await.is_ok()
        {
            node.cri.wait_exit(&id).await?;
        }
        Ok(())
    })
}
