//! Volumes: bind mounts and their propagation.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Result, ensure};
use berth_proto::cri::{Mount, MountPropagation};
use berth_tests::{
    BUSYBOX, Node, container, refused,
    request::{ContainerRequest, PodRequest, bind},
    sh,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Code;

#[test]
fn files_and_directories_are_mounted_read_only_where_asked() -> Result<()> {
    Node::test(async |node| {
        let (volume, file) = (node.volume("data")?, node.volume("files")?.join("one"));
        fs::write(&file, "a file")?;
        let pod = node.run(node.pod("volumes")).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"])
            .mount(bind(&volume, "/deep/new/data"))
            .mount(Mount {
                readonly: true,
                ..bind(&volume, "/readonly")
            })
            .mount(bind(&file, "/etc/one"));
        let id = node.start_container(&pod, config).await?;
        node.cri
            .shell(&id, "echo written > /deep/new/data/file")
            .await?;
        ensure!(fs::read_to_string(volume.join("file"))? == "written\n");
        ensure!(
            node.cri
                .exec(&id, &["cat", "/readonly/file", "/etc/one"])
                .await?
                == "written\na file"
        );
        ensure!(
            node.cri
                .exec_raw(&id, &["touch", "/readonly/new"])
                .await?
                .exit_code
                != 0
        );
        let mounts = node.cri.status(&id).await?.mounts;
        ensure!(
            mounts
                .iter()
                .any(|mount| mount.container_path == "/readonly" && mount.readonly),
            "{mounts:?}"
        );
        Ok(())
    })
}

#[test]
fn mounts_travel_as_the_propagation_says() -> Result<()> {
    Node::test(async |node| {
        let volume = node.volume("shared")?;
        // A mount of its own, shared: what bidirectional propagation needs.
        mount(
            Some(&volume),
            &volume,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        mount(
            None::<&str>,
            &volume,
            None::<&str>,
            MsFlags::MS_SHARED,
            None::<&str>,
        )?;
        let (inner, outer) = (volume.join("from-container"), volume.join("from-host"));
        fs::create_dir_all(&inner)?;
        fs::create_dir_all(&outer)?;
        let pod = node
            .run(
                node.pod("propagation").linux(|linux| {
                    linux.security_context.get_or_insert_default().privileged = true
                }),
            )
            .await?;
        let with = |name: &str, propagation: MountPropagation| {
            container(name, BUSYBOX, &["sleep", "1000"])
                .security(|security| security.privileged = true)
                .mount(Mount {
                    propagation: propagation.into(),
                    ..bind(&volume, "/shared")
                })
        };
        let private = node
            .start_container(&pod, with("private", MountPropagation::PropagationPrivate))
            .await?;
        let slave = node
            .start_container(
                &pod,
                with("slave", MountPropagation::PropagationHostToContainer),
            )
            .await?;
        let shared = node
            .start_container(
                &pod,
                with("both", MountPropagation::PropagationBidirectional),
            )
            .await?;
        let is_mount = |path: &str| {
            format!("grep -q ' /shared/{path} ' /proc/self/mountinfo && echo yes || echo no")
        };

        mount(
            Some("none"),
            &outer,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        ensure!(node.cri.shell(&private, &is_mount("from-host")).await? == "no");
        ensure!(node.cri.shell(&slave, &is_mount("from-host")).await? == "yes");
        ensure!(node.cri.shell(&shared, &is_mount("from-host")).await? == "yes");

        let on_host = || {
            fs::read_to_string("/proc/thread-self/mountinfo")
                .is_ok_and(|text| text.contains("/shared/from-container "))
        };
        node.cri
            .shell(&slave, "mount -t tmpfs none /shared/from-container")
            .await?;
        ensure!(!on_host(), "a mount left a container that may only take");
        node.cri
            .shell(&shared, "mount -t tmpfs none /shared/from-container")
            .await?;
        ensure!(on_host(), "a mount did not leave a container that may give");
        node.cri
            .shell(&shared, "umount /shared/from-container")
            .await?;
        node.cri
            .shell(&slave, "umount /shared/from-container || true")
            .await?;
        umount2(&outer, MntFlags::empty())?;
        node.remove_all().await?;
        umount2(&volume, MntFlags::empty())?;
        Ok(())
    })
}

#[test]
fn propagation_is_refused_where_the_source_is_not_shared() -> Result<()> {
    Node::test(async |node| {
        let volume = node.volume("private")?;
        mount(
            Some(&volume),
            &volume,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
        mount(
            None::<&str>,
            &volume,
            None::<&str>,
            MsFlags::MS_PRIVATE,
            None::<&str>,
        )?;
        let pod = node
            .run(
                node.pod("propagation").linux(|linux| {
                    linux.security_context.get_or_insert_default().privileged = true
                }),
            )
            .await?;
        node.cri.pull(BUSYBOX).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"])
            .security(|security| security.privileged = true)
            .mount(Mount {
                propagation: MountPropagation::PropagationBidirectional.into(),
                ..bind(&volume, "/shared")
            });
        let created = node.cri.create(&pod.id, &config, &pod.config).await;
        let refusal = match created {
            Err(status) => Err::<(), _>(status),
            Ok(id) => node.cri.start(&id).await,
        };
        ensure!(
            refusal.is_err_and(|status| status.message().contains("shared")
                || status.message().contains("propagation"))
        );
        node.remove_all().await?;
        umount2(&volume, MntFlags::empty())?;
        Ok(())
    })
}

#[test]
fn a_missing_source_is_made_and_a_link_to_nowhere_is_refused_by_its_name_sec_cri_10() -> Result<()>
{
    Node::test(async |node| {
        let pod = node.run(node.pod("missing")).await?;
        let top = node.volume("sources")?;
        let missing = top.join("not/there");
        let config = container("a", BUSYBOX, &sh("echo written > /data/file"))
            .mount(bind(&missing, "/data"));
        ensure!(node.outcome(&pod, config).await?.0 == 0);
        ensure!(fs::read_to_string(missing.join("file"))? == "written\n");
        let mode = fs::metadata(&missing)?.permissions().mode();
        ensure!(mode & 0o7777 == 0o755, "{mode:o}");

        std::os::unix::fs::symlink("nowhere", top.join("dangling"))?;
        fs::write(top.join("file"), "")?;
        for (name, path) in [
            ("dangling", top.join("dangling")),
            ("below-dangling", top.join("dangling/x")),
            ("upwards", top.join("nothing/../../up")),
            ("below-a-file", top.join("file/x")),
        ] {
            let config = container(name, BUSYBOX, &sh("true")).mount(bind(&path, "/data"));
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            let path = path.display().to_string();
            refused(answer, Code::FailedPrecondition, &[&path])?;
        }
        let mut left: Vec<_> = fs::read_dir(&top)?
            .flatten()
            .map(|e| e.file_name())
            .collect();
        left.sort();
        ensure!(left == ["dangling", "file", "not"], "{left:?}");
        ensure!(node.cri.containers(None).await?.len() == 1);
        Ok(())
    })
}

#[test]
fn any_file_may_be_a_source_and_nothing_of_it_is_opened_sec_cri_10() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("kinds")).await?;
        let top = node.volume("kinds")?;
        let (fifo, socket) = (top.join("fifo"), top.join("socket"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
        let _listening = std::os::unix::net::UnixListener::bind(&socket)?;
        // Who opened the fifo would wait for a writer for good.
        let config = container("a", BUSYBOX, &sh("stat -c %F /fifo /socket /device"))
            .mount(bind(&fifo, "/fifo"))
            .mount(bind(&socket, "/socket"))
            .mount(bind(std::path::Path::new("/dev/null"), "/device"));
        let (code, out) = node.outcome(&pod, config).await?;
        ensure!(
            (code, out.as_str()) == (0, "fifo\nsocket\ncharacter special file\n"),
            "{code} {out}"
        );
        Ok(())
    })
}

#[test]
fn recursive_read_only_holds_for_what_is_mounted_below() -> Result<()> {
    Node::test(async |node| {
        let volume = node.volume("tree")?;
        let below = volume.join("below");
        fs::create_dir(&below)?;
        mount(
            Some("none"),
            &below,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )?;
        let pod = node.run(node.pod("rro")).await?;
        let with = |name: &str, recursive_read_only: bool| {
            container(
                name,
                BUSYBOX,
                &sh("touch /v/a 2>/dev/null && echo top; touch /v/below/b 2>/dev/null && echo below; true"),
            )
            .mount(Mount {
                readonly: true,
                recursive_read_only,
                ..bind(&volume, "/v")
            })
        };
        ensure!(node.outcome(&pod, with("plain", false)).await?.1 == "below\n");
        ensure!(
            node.outcome(&pod, with("recursive", true))
                .await?
                .1
                .is_empty()
        );
        // Nothing of the host's own mount has changed.
        fs::write(below.join("host"), "")?;
        for (name, readonly, propagation) in [
            ("writable", false, MountPropagation::PropagationPrivate),
            ("slave", true, MountPropagation::PropagationHostToContainer),
            ("shared", true, MountPropagation::PropagationBidirectional),
        ] {
            let config = container(name, BUSYBOX, &sh("true")).mount(Mount {
                readonly,
                propagation: propagation.into(),
                recursive_read_only: true,
                ..bind(&volume, "/v")
            });
            refused(
                node.cri.create(&pod.id, &config, &pod.config).await,
                Code::InvalidArgument,
                &["recursive_read_only"],
            )?;
        }
        node.remove_all().await?;
        umount2(&below, MntFlags::empty())?;
        Ok(())
    })
}
