//! Images as volumes: read-only trees beside a container's own root.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ImageSpec, Mount, MountPropagation};
use berth_tests::{
    BUSYBOX, Node, container,
    cri::{refused, spec},
    debian,
    image::{Image, Layer},
    request::ContainerRequest,
    sh,
    tarball::Entry,
};
use tonic::Code;

/// Where the registry of the tests has it.
const DATA: &str = "localhost:5000/own/data:1";

/// An image without a program: two layers, of which the upper one hides something, and links that lead astray.
fn push_data(node: &Node) -> Result<()> {
    let below = Layer::of(&[
        Entry::dir("model", 0o755),
        Entry::file("model/weights", 0o644, "old"),
        Entry::file("model/gone", 0o644, "gone"),
        Entry::file("run", 0o755, "#!/bin/sh\necho ran\n"),
    ])?;
    let above = Layer::of(&[
        Entry::file("model/weights", 0o644, "new"),
        Entry::file("model/.wh.gone", 0o644, ""),
        Entry::symlink("latest", "model"),
        Entry::symlink("etc", "/etc"),
        Entry::symlink("upwards", "../../../../../etc"),
        Entry::symlink("model/upwards", "../../etc"),
        Entry::symlink("self", "/proc/self/root"),
        Entry::fifo("fifo"),
    ])?;
    Image::new(vec![below, above]).push(&node.registry, "own/data", &["1"])?;
    Ok(())
}

fn volume(image: &str, at: &str) -> Mount {
    Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(spec(image)),
        ..Default::default()
    }
}

fn below(image: &str, sub_path: &str, at: &str) -> Mount {
    Mount {
        image_sub_path: sub_path.into(),
        ..volume(image, at)
    }
}

#[test]
fn an_image_is_mounted_read_only_and_stays_over_its_removal_and_a_restart() -> Result<()> {
    Node::test(async |node| {
        push_data(node)?;
        let id = node.cri.pull(DATA).await?;
        let pod = node.run(node.pod("image-volumes")).await?;
        let config = container("c", BUSYBOX, &["sleep", "1000"])
            .mount(volume(&id, "/by-id"))
            .mount(volume(DATA, "/deep/new/by-name"))
            .mount(below(DATA, "model", "/model"))
            .mount(below(DATA, "./latest/", "/latest"))
            .mount(below(DATA, "model/weights", "/etc/weights"))
            // Of one layer only, and the container's own.
            .mount(volume(BUSYBOX, "/busybox"));
        let container_id = node.start_container(&pod, config).await?;
        let all = "cat /by-id/model/weights /deep/new/by-name/model/weights /model/weights \
                   /latest/weights /etc/weights; ls /model";
        let seen = "newnewnewnewnewupwards\nweights";
        ensure!(node.cri.shell(&container_id, all).await? == seen);
        ensure!(node.cri.exec(&container_id, &["/by-id/run"]).await? == "ran");
        ensure!(
            node.cri
                .exec(&container_id, &["/busybox/bin/busybox", "echo", "yes"])
                .await?
                == "yes"
        );
        for write in [
            "touch /by-id/new",
            "echo x > /model/weights",
            "echo x > /etc/weights",
            "rm /busybox/bin/sh",
            "mount -o remount,rw /by-id",
        ] {
            let done = node.cri.exec_raw(&container_id, &sh(write)).await?;
            ensure!(done.exit_code != 0, "{write}: {done:?}");
        }
        // In place of a name or an id stands the image that was mounted.
        let mounts = node.cri.status(&container_id).await?.mounts;
        for at in ["/by-id", "/deep/new/by-name", "/model", "/etc/weights"] {
            let mount = mounts.iter().find(|mount| mount.container_path == at);
            let told = mount.and_then(|mount| mount.image.clone());
            ensure!(told.context("no image")?.image_ref == id, "{mounts:?}");
        }

        // The image goes, its tree stays with who uses it.
        node.cri.remove_image(&id).await?;
        ensure!(node.cri.image(DATA).await?.is_none());
        ensure!(node.cri.shell(&container_id, all).await? == seen);
        node.restart().await?;
        ensure!(node.cri.shell(&container_id, all).await? == seen);
        let again = node.cri.status(&container_id).await?.mounts;
        ensure!(again == mounts, "{again:?}");

        // And its layers go with the last of these.
        let layers =
            || -> Result<usize> { Ok(std::fs::read_dir(node.dir.join("lib/image/l"))?.count()) };
        let before = layers()?;
        node.cri.remove(&container_id).await?;
        ensure!(layers()? < before, "{before} layers and none less");
        Ok(())
    })
}

#[test]
fn a_sub_path_leads_nowhere_outside_and_what_makes_no_sense_leaves_nothing_sec_cri_10() -> Result<()>
{
    Node::test(async |node| {
        push_data(node)?;
        node.cri.pull(DATA).await?;
        node.cri.pull(BUSYBOX).await?;
        let pod = node.run(node.pod("refused")).await?;
        let host = node.volume("host")?;
        let cases: Vec<(Mount, Code, &[&str])> = vec![
            (
                below(DATA, "..", "/v"),
                Code::InvalidArgument,
                &["image_sub_path"],
            ),
            (
                below(DATA, "model/../../..", "/v"),
                Code::InvalidArgument,
                &["image_sub_path"],
            ),
            (
                below(DATA, "/etc", "/v"),
                Code::InvalidArgument,
                &["image_sub_path"],
            ),
            (
                below(DATA, "not-existing", "/v"),
                Code::FailedPrecondition,
                &["not-existing", "is not there", "/v"],
            ),
            (
                below(DATA, "model/gone", "/v"),
                Code::FailedPrecondition,
                &["is not there"],
            ),
            (
                below(DATA, "etc/passwd", "/v"),
                Code::FailedPrecondition,
                &["leads out"],
            ),
            (
                below(DATA, "upwards", "/v"),
                Code::FailedPrecondition,
                &["leads out"],
            ),
            (
                below(DATA, "model/upwards", "/v"),
                Code::FailedPrecondition,
                &["leads out"],
            ),
            (
                below(DATA, "self/etc", "/v"),
                Code::FailedPrecondition,
                &["leads out"],
            ),
            (
                below(DATA, "fifo", "/v"),
                Code::FailedPrecondition,
                &["neither a directory nor a file"],
            ),
            (
                volume("localhost:5000/own/nowhere:1", "/v"),
                Code::NotFound,
                &["own/nowhere"],
            ),
            (
                Mount {
                    readonly: false,
                    ..volume(DATA, "/v")
                },
                Code::InvalidArgument,
                &["readonly"],
            ),
            (
                Mount {
                    host_path: host.display().to_string(),
                    ..volume(DATA, "/v")
                },
                Code::InvalidArgument,
                &["host_path"],
            ),
            (
                Mount {
                    propagation: MountPropagation::PropagationBidirectional.into(),
                    ..volume(DATA, "/v")
                },
                Code::InvalidArgument,
                &["propagation"],
            ),
            (
                Mount {
                    image: Some(ImageSpec::default()),
                    ..below(DATA, "model", "/v")
                },
                Code::InvalidArgument,
                &["image_sub_path"],
            ),
        ];
        let mountinfo = || std::fs::read_to_string("/proc/self/mountinfo");
        let ours = |text: String| {
            let dir = node.dir.display().to_string();
            text.lines().filter(|line| line.contains(&dir)).count()
        };
        let before = ours(mountinfo()?);
        for (number, (mount, code, words)) in cases.into_iter().enumerate() {
            // Beside one that is fine.
            let config = container(&format!("c{number}"), BUSYBOX, &sh("true"))
                .mount(volume(DATA, "/fine"))
                .mount(mount.clone());
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(answer, code, words).with_context(|| format!("{mount:?}"))?;
        }
        ensure!(node.cri.containers(None).await?.is_empty());
        ensure!(ours(mountinfo()?) == before, "{}", mountinfo()?);
        let left = Path::new(&node.dir).join("lib/image/snapshots");
        ensure!(std::fs::read_dir(left)?.count() == 0);
        Ok(())
    })
}

#[test]
fn many_containers_of_a_pod_share_an_image_and_each_lets_go_of_it_alone() -> Result<()> {
    Node::test(async |node| {
        debian::busybox_image()?
            .plus(&[Entry::file("shared", 0o644, "one")])?
            .push(&node.registry, "own/shared", &["1"])?;
        let image = "localhost:5000/own/shared:1";
        let pod = node.run(node.pod("shared")).await?;
        let mut ids = vec![];
        for number in 0..4 {
            let config = container(&format!("c{number}"), image, &["sleep", "1000"])
                .mount(volume(image, "/v"));
            ids.push(node.start_container(&pod, config).await?);
        }
        node.cri.remove_image(image).await?;
        while let Some(id) = ids.pop() {
            node.cri.remove(&id).await?;
            for other in &ids {
                ensure!(node.cri.exec(other, &["cat", "/v/shared"]).await? == "one");
            }
        }
        Ok(())
    })
}
