//! SEC-IMG-14: the archive of a checkpoint is no policy (CVE-2024-8676). What it holds comes back as far as the live request asks for
//! the same; what it asks for beyond that makes no container, and leads to no file of the node.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{self, ContainerConfig, NamespaceMode};
use berth_tests::{
    BUSYBOX, Node, Pod, Setup, container,
    cri::spec,
    request::{ContainerRequest, PodRequest, bind, unconfined},
    tarball::{Entry, tar},
};
use serde_json::json;
use tonic::Code;

async fn create(
    node: &Node,
    pod: &Pod,
    archive: &Path,
    change: impl FnOnce(ContainerConfig) -> ContainerConfig,
) -> Result<String, tonic::Status> {
    let config = container("restored", BUSYBOX, &["sleep", "1000"])
        .with(|config| config.image = Some(spec(&archive.display().to_string())));
    let config = change(config);
    if let Some(dir) = node.log_path(pod, &config).parent() {
        fs::create_dir_all(dir)?;
    }
    node.cri.create(&pod.id, &config, &pod.config).await
}

fn without_capabilities(config: ContainerConfig) -> ContainerConfig {
    config.security(|security| {
        let capabilities = security.capabilities.get_or_insert_default();
        capabilities.drop_capabilities = vec!["ALL".into()];
    })
}

async fn checkpoint(node: &Node, id: &str, location: &Path) -> Result<()> {
    let request = cri::CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: location.display().to_string(),
        timeout: 0,
    };
    node.cri
        .runtime()
        .checkpoint_container(request)
        .await
        .context("CheckpointContainer")?;
    Ok(())
}

/// No container, no image and no tag that was not there before, and nothing of a restore.
async fn nothing_made(node: &Node, images: &BTreeSet<String>) -> Result<()> {
    let restored = node.cri.containers(None).await?;
    let restored = restored
        .iter()
        .filter_map(|container| container.metadata.as_ref())
        .any(|metadata| metadata.name == "restored");
    ensure!(!restored, "a container was made");
    ensure!(&names(node).await? == images, "images have changed");
    let scratch = node.daemon.root.join("checkpoints");
    let left: Vec<_> = fs::read_dir(&scratch)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    ensure!(left.is_empty(), "{left:?} is left");
    node.canary.check()
}

async fn names(node: &Node) -> Result<BTreeSet<String>> {
    let mut client = node.cri.images();
    let answer = client
        .list_images(cri::ListImagesRequest::default())
        .await?;
    let images = answer.into_inner().images;
    let names = images.into_iter().flat_map(|image| {
        let mut names = image.repo_tags;
        names.extend(image.repo_digests);
        names.push(image.id);
        names
    });
    Ok(names.collect())
}

#[test]
fn a_live_request_wins_over_the_archive_sec_img_14() -> Result<()> {
    let works = Command::new("criu").arg("check").output();
    if !works.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED a_live_request_wins_over_the_archive_sec_img_14: `criu check` fails here"
        );
        return Ok(());
    }
    Node::test(async |node| {
        let pod = node.run(node.pod("wins")).await?;
        let volume = node.volume("v")?;
        let other = node.volume("w")?;
        fs::write(other.join("mine"), "mine")?;
        let asked = |config: ContainerConfig| config.mount(bind(&volume, "/volume"));
        let config = asked(container("c", BUSYBOX, &["sleep", "1000"]));
        let id = node.start_container(&pod, config).await?;
        let archive = node.dir.join("c.tar");
        checkpoint(node, &id, &archive).await?;
        let free = asked(container("free", BUSYBOX, &["sleep", "1000"]))
            .security(|security| security.seccomp = Some(unconfined()));
        let free = node.start_container(&pod, free).await?;
        let unfiltered = node.dir.join("free.tar");
        checkpoint(node, &free, &unfiltered).await?;
        let images = names(node).await?;

        type Change<'a> = Box<dyn FnOnce(ContainerConfig) -> ContainerConfig + 'a>;
        let asked = &asked;
        let cases: Vec<(&str, &Path, Change)> = vec![
            (
                // The default profile follows the capabilities.
                "seccomp",
                &archive,
                Box::new(|config| without_capabilities(asked(config))),
            ),
            (
                "capabilities",
                &unfiltered,
                Box::new(|config| {
                    without_capabilities(asked(config))
                        .security(|security| security.seccomp = Some(unconfined()))
                }),
            ),
            (
                "root's",
                &archive,
                Box::new(|config| {
                    asked(config).security(|security| {
                        security.run_as_user = Some(cri::Int64Value { value: 1000 });
                    })
                }),
            ),
            (
                "gain privileges",
                &archive,
                Box::new(|config| asked(config).security(|security| security.no_new_privs = true)),
            ),
            (
                "the mount / ",
                &archive,
                Box::new(|config| {
                    asked(config).security(|security| security.readonly_rootfs = true)
                }),
            ),
            // CRIU gives a mount the archive's flags back.
            (
                "the mount /volume ",
                &archive,
                Box::new(|config| {
                    config.mount(cri::Mount {
                        readonly: true,
                        ..bind(&volume, "/volume")
                    })
                }),
            ),
            // The archive has one that was not asked for, or lacks one that was.
            ("", &archive, Box::new(|config| config)),
            (
                "",
                &archive,
                Box::new(|config| asked(config).mount(bind(&other, "/other"))),
            ),
            ("seccomp", &unfiltered, Box::new(asked)),
        ];
        for (number, (word, archive, change)) in cases.into_iter().enumerate() {
            let made = create(node, &pod, archive, change).await;
            let status = made
                .err()
                .with_context(|| format!("case {number} ({word}) was made"))?;
            ensure!(status.message().contains(word), "case {number}: {status}");
            if !word.is_empty() {
                ensure!(
                    status.code() == Code::InvalidArgument,
                    "case {number}: {status}"
                );
            }
            nothing_made(node, &images)
                .await
                .with_context(|| format!("case {number}"))?;
        }
        // On the node's network nothing is restored: sockets would be the node's.
        let host = node.run(node.pod("host").on_the_host_network()).await?;
        let made = create(node, &host, &archive, |config| {
            asked(config).security(|security| {
                let namespaces = security.namespace_options.get_or_insert_default();
                namespaces.network = NamespaceMode::Node.into();
            })
        });
        let status = made.await.err().context("restored on the node's network")?;
        ensure!(status.message().contains("net namespace"), "{status}");
        nothing_made(node, &images).await?;

        // The same request is granted; where its volume is another directory, that is what it gets.
        let moved = create(node, &pod, &archive, |config| {
            config.mount(bind(&other, "/volume"))
        })
        .await?;
        node.cri.start(&moved).await?;
        let seen = node
            .cri
            .exec_within(&moved, &["cat", "/volume/mine"], 10)
            .await?;
        ensure!(seen.stdout.as_ref() == b"mine", "{seen:?}");
        node.cri.stop(&moved, 0).await?;
        Ok(())
    })
}

#[test]
fn what_an_archive_says_of_the_node_is_not_read_sec_img_14() -> Result<()> {
    let setup = Setup {
        config: "[checkpoint]\ncriu = \"/bin/true\"".into(),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("hostile")).await?;
        node.start_container(&pod, container("c", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let images = names(node).await?;
        let id = images
            .iter()
            .find(|name| name.starts_with("sha256:"))
            .context("no image")?;
        let canary = node.canary.dir.display().to_string();
        let config = |image: &str| {
            let text = json!({ "id": "x", "rootfsImageRef": image, "rootfsImageName": BUSYBOX })
                .to_string();
            Entry::file("config.dump", 0o600, text)
        };
        let hostile_spec = json!({
            "mounts": [{ "destination": "/host", "type": "bind", "source": canary, "options": ["rbind"] }],
            "linux": { "devices": [{ "path": "/dev/vda", "type": "b", "major": 254, "minor": 0 }] },
            "annotations": { "io.kubernetes.cri-o.LogPath": format!("{canary}/secret") },
        });
        let streams = Entry::file("checkpoint/descriptors.json", 0o600, r#"["","",""]"#);
        let diff = tar(&[
            Entry::symlink("out", &canary),
            Entry::file("out/secret", 0o644, "overwritten"),
            Entry::file("../../../../etc/shadow", 0o644, "overwritten"),
        ]);
        let table: Vec<(&str, Vec<Entry>)> = vec![
            ("a name for an id", vec![config(BUSYBOX), streams.clone()]),
            ("no id at all", vec![config(""), streams.clone()]),
            ("an id cut short", vec![config(&id[..20]), streams.clone()]),
            (
                "a link for its log",
                vec![
                    config(id),
                    streams.clone(),
                    Entry::symlink("container.log", &format!("{canary}/secret")),
                ],
            ),
            (
                "a link among the images",
                vec![
                    config(id),
                    Entry::symlink("checkpoint/descriptors.json", &format!("{canary}/secret")),
                ],
            ),
            (
                "a path that leads upwards",
                vec![
                    config(id),
                    streams.clone(),
                    Entry::file("checkpoint/../../../../canary/x", 0o600, "x"),
                ],
            ),
            (
                "a device",
                vec![
                    config(id),
                    streams.clone(),
                    Entry::char_device("checkpoint/null", 1, 3),
                ],
            ),
            (
                "files through links",
                vec![
                    config(id),
                    streams.clone(),
                    Entry::file("rootfs-diff.tar", 0o600, diff),
                ],
            ),
            // Taken whole, and nothing comes of it: there is no process in it.
            (
                "mounts and devices in its spec",
                vec![
                    config(id),
                    streams,
                    Entry::file("spec.dump", 0o600, hostile_spec.to_string()),
                ],
            ),
        ];
        for (name, entries) in table {
            let archive = node.dir.join("hostile.tar");
            fs::write(&archive, tar(&entries))?;
            let made = create(node, &pod, &archive, |config| config).await;
            let status = made
                .err()
                .with_context(|| format!("{name}: a container was made"))?;
            node.canary.unseen_in(name, status.message().as_bytes())?;
            nothing_made(node, &images)
                .await
                .with_context(|| name.to_owned())?;
            node.canary
                .unseen_below(Path::new(&pod.config.log_directory))?;
        }
        Ok(())
    })
}
