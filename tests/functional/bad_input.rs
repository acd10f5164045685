//! What can't be: each with the right code and a message that names it, and nothing left behind.

use std::fs;

use anyhow::{Result, ensure};
use berth_proto::cri::{ContainerState, PodSandboxConfig};
use berth_tests::{
    BUSYBOX, Node, container, debian,
    image::{Image, Layer, digest},
    refused,
    request::{ContainerRequest, PodRequest},
    sh,
    tarball::{Entry, tar},
};
use tonic::Code;

#[test]
fn unknown_ids_are_not_found_and_gone_ones_are_removed_already() -> Result<()> {
    Node::test(async |node| {
        let id = "0123456789abcdef".repeat(4);
        refused(node.cri.pod_status(&id).await, Code::NotFound, &[&id])?;
        refused(node.cri.status(&id).await, Code::NotFound, &[&id])?;
        refused(node.cri.start(&id).await, Code::NotFound, &[&id])?;
        refused(
            node.cri.exec_raw(&id, &["true"]).await,
            Code::NotFound,
            &[&id],
        )?;
        refused(
            node.cri
                .create(&id, &container("a", BUSYBOX, &[]), &node.pod("a"))
                .await,
            Code::NotFound,
            &[&id],
        )?;
        // Idempotent calls have done what was asked.
        node.cri.stop(&id, 0).await?;
        node.cri.remove(&id).await?;
        node.cri.stop_pod(&id).await?;
        node.cri.remove_pod(&id).await?;
        Ok(())
    })
}

#[test]
fn ids_that_are_paths_touch_no_file_sec_cri_09() -> Result<()> {
    Node::test(async |node| {
        for id in [
            "../../canary",
            "..",
            "/",
            "a/b",
            "a\nb",
            "%00",
            "",
            &"a".repeat(1 << 20),
        ] {
            for code in [
                node.cri.status(id).await.err(),
                node.cri.pod_status(id).await.err(),
                node.cri.start(id).await.err(),
                node.cri.exec_raw(id, &["true"]).await.err(),
            ] {
                let code = code.map(|status| status.code());
                ensure!(
                    matches!(code, Some(Code::NotFound | Code::InvalidArgument)),
                    "{:.20}: {code:?}",
                    id
                );
            }
        }
        Ok(())
    })
}

#[test]
fn images_that_are_not_there_are_not_found() -> Result<()> {
    Node::test(async |node| {
        refused(
            node.cri.pull("localhost:5000/no/such/image:1").await,
            Code::NotFound,
            &["no/such/image"],
        )?;
        refused(
            node.cri.pull("busybox:no-such-tag").await,
            Code::NotFound,
            &["no-such-tag"],
        )?;
        refused(
            node.cri
                .pull(&format!("busybox@sha256:{}", "0".repeat(64)))
                .await,
            Code::NotFound,
            &["busybox"],
        )?;
        for name in [
            "",
            "library/UPPER",
            "busybox:",
            "busybox@sha256:12",
            "a b",
            "-",
            "http://x/y",
            "busybox@md5:00",
        ] {
            refused(node.cri.pull(name).await, Code::InvalidArgument, &[])?;
        }
        ensure!(node.cri.image("busybox").await?.is_none());
        let pod = node.run(node.pod("a")).await?;
        refused(
            node.cri
                .create(&pod.id, &container("a", "no/such/image", &[]), &pod.config)
                .await,
            Code::NotFound,
            &["no/such/image"],
        )?;
        Ok(())
    })
}

#[test]
fn registries_that_do_not_answer_are_unavailable() -> Result<()> {
    Node::test(async |node| {
        refused(
            node.cri.pull("127.0.0.1:9/some/image:1").await,
            Code::Unavailable,
            &["127.0.0.1:9"],
        )
    })
}

#[test]
fn damaged_layers_are_never_visible_sec_img_04() -> Result<()> {
    Node::test(async |node| {
        let image = |text: &str| -> Result<Image> {
            debian::busybox_image()?.plus(&[Entry::file("payload", 0o644, text.repeat(100_000))])
        };
        let layer = |image: &Image| node.registry.blob_file(&digest(&image.layers[1].bytes));
        // Wrong bytes of the right length.
        let wrong = image("wrong")?;
        wrong.push(&node.registry, "own/wrong", &["1"])?;
        let mut bytes = fs::read(layer(&wrong))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(layer(&wrong), &bytes)?;
        // Cut in the middle.
        let cut = image("cut")?;
        cut.push(&node.registry, "own/cut", &["1"])?;
        let bytes = fs::read(layer(&cut))?;
        fs::write(layer(&cut), &bytes[..bytes.len() / 2])?;
        // Longer than the manifest says.
        let long = image("long")?;
        long.push(&node.registry, "own/long", &["1"])?;
        let mut bytes = fs::read(layer(&long))?;
        bytes.extend_from_slice(b"more");
        fs::write(layer(&long), &bytes)?;
        // A diff id that is not the layer's.
        let mut lie = image("lie")?;
        lie.layers[1].diff_id = format!("sha256:{}", "1".repeat(64));
        lie.push(&node.registry, "own/lie", &["1"])?;
        for name in ["wrong", "cut", "long", "lie"] {
            let full = format!("localhost:5000/own/{name}:1");
            let answer = node.cri.pull(&full).await;
            let code = answer
                .as_ref()
                .err()
                .map(tonic::Status::code)
                .unwrap_or(Code::Ok);
            ensure!(
                matches!(code, Code::DataLoss | Code::Unavailable),
                "{name}: {answer:?}"
            );
            refused(answer, code, &["sha256:"])?;
            ensure!(node.cri.image(&full).await?.is_none(), "{name} is listed");
        }
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        // What was lost is not in the way of the whole.
        image("whole")?.push(&node.registry, "own/whole", &["1"])?;
        node.cri.pull("localhost:5000/own/whole:1").await?;
        Ok(())
    })
}

#[test]
fn a_command_that_does_not_exist_is_the_containers_own_failure() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("command")).await?;
        for (name, command, codes) in [
            ("missing", "/no/such/command", 127..=128),
            ("directory", "/etc", 126..=128),
            ("not-executable", "/etc/passwd", 126..=128),
        ] {
            let id = node
                .create(&pod, &container(name, BUSYBOX, &[command]))
                .await?;
            if let Err(status) = node.cri.start(&id).await {
                ensure!(status.message().contains(command), "{status:?}");
            }
            let status = node.cri.wait_exit(&id).await?;
            ensure!(
                codes.contains(&status.exit_code) && status.message.contains(command),
                "{name}: {} {} {}",
                status.exit_code,
                status.reason,
                status.message
            );
            ensure!(
                status.reason == "StartError"
                    || status.reason == "ContainerCannotRun"
                    || status.reason == "Error",
                "{}",
                status.reason
            );
        }
        Ok(())
    })
}

#[test]
fn nonsense_in_a_pod_is_refused_before_anything_is_made() -> Result<()> {
    Node::test(async |node| {
        let parent = |config: &mut PodSandboxConfig, parent: &str| {
            config.linux.get_or_insert_default().cgroup_parent = parent.into()
        };
        let table: [(&str, &str, Box<dyn Fn(&mut PodSandboxConfig)>); 12] = [
            (
                "metadata",
                "no metadata",
                Box::new(|config| config.metadata = None),
            ),
            (
                "name",
                "no name",
                Box::new(|config| config.metadata.as_mut().expect("it has some").name.clear()),
            ),
            (
                "cgroup",
                "a cgroup parent with ..",
                Box::new(move |config| parent(config, "/../../etc")),
            ),
            (
                "cgroup",
                "a relative cgroup parent upwards",
                Box::new(move |config| parent(config, "../x")),
            ),
            (
                "cgroup",
                "a cgroup parent of 10,000 bytes",
                Box::new(move |config| parent(config, &format!("/{}", "x".repeat(10_000)))),
            ),
            (
                "cgroup",
                "a cgroup parent with a newline",
                Box::new(move |config| parent(config, "/a\nb")),
            ),
            (
                "log",
                "a log directory upwards",
                Box::new(|config| config.log_directory = "/var/log/../../etc".into()),
            ),
            (
                "log",
                "a relative log directory",
                Box::new(|config| config.log_directory = "logs".into()),
            ),
            (
                "hostname",
                "a hostname of 65 bytes",
                Box::new(|config| config.hostname = "h".repeat(65)),
            ),
            (
                "sysctl",
                "a sysctl with a path in it",
                Box::new(|config| {
                    config
                        .linux
                        .get_or_insert_default()
                        .sysctls
                        .insert("net/../kernel.hostname".into(), "x".into());
                }),
            ),
            (
                "sysctl",
                "a sysctl of the whole node",
                Box::new(|config| {
                    config
                        .linux
                        .get_or_insert_default()
                        .sysctls
                        .insert("kernel.core_pattern".into(), "|/x".into());
                }),
            ),
            (
                "label",
                "labels without bound",
                Box::new(|config| {
                    for number in 0..200 {
                        config
                            .labels
                            .insert(format!("label-{number}"), "x".repeat(10_000));
                    }
                }),
            ),
        ];
        for (word, what, change) in table {
            let mut config = node.pod("nonsense");
            change(&mut config);
            let answer = node.cri.run_pod(&config).await;
            ensure!(answer.is_err(), "{what} was taken");
            refused(answer, Code::InvalidArgument, &[word])?;
        }
        ensure!(node.cri.pods(None).await?.is_empty() && berth_tests::process::shims().is_empty());
        refused(
            node.cri
                .run_pod_with(&node.pod("handler"), "no-such-handler")
                .await,
            Code::InvalidArgument,
            &["no-such-handler"],
        )?;
        Ok(())
    })
}

#[test]
fn long_labels_come_back_whole_or_are_refused() -> Result<()> {
    Node::test(async |node| {
        let long = "x".repeat(10_000);
        let config = node.pod("labels").with(|config| {
            config.labels.insert("long".into(), long.clone());
            config.annotations.insert("also-long".into(), long.clone());
        });
        match node.run(config).await {
            Ok(pod) => {
                let status = node.cri.pod_status(&pod.id).await?;
                ensure!(
                    status.labels.get("long") == Some(&long)
                        && status.annotations.get("also-long") == Some(&long)
                );
            }
            Err(error) => ensure!(
                error
                    .downcast_ref::<tonic::Status>()
                    .is_some_and(|status| status.code() == Code::InvalidArgument),
                "{error:?}"
            ),
        }
        Ok(())
    })
}

#[test]
fn containers_of_a_stopped_pod_are_refused() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("stopped")).await?;
        let created = node
            .create(&pod, &container("before", BUSYBOX, &["sleep", "1000"]))
            .await?;
        node.cri.stop_pod(&pod.id).await?;
        refused(
            node.cri
                .create(&pod.id, &container("after", BUSYBOX, &[]), &pod.config)
                .await,
            Code::FailedPrecondition,
            &[&pod.id[..12]],
        )?;
        refused(
            node.cri.start(&created).await,
            Code::FailedPrecondition,
            &[],
        )?;
        Ok(())
    })
}

#[test]
fn starting_twice_is_refused() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("twice")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["true"]))
            .await?;
        node.cri.wait_exit(&id).await?;
        refused(
            node.cri.start(&id).await,
            Code::FailedPrecondition,
            &[&id[..12]],
        )
    })
}

#[test]
fn nonsense_in_a_container_is_refused_before_anything_is_made() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("nonsense")).await?;
        node.cri.pull(BUSYBOX).await?;
        let plain = || container("a", BUSYBOX, &sh("true"));
        let table = [
            ("metadata", plain().with(|config| config.metadata = None)),
            ("image", plain().with(|config| config.image = None)),
            (
                "log",
                plain().with(|config| config.log_path = "../../../../etc/cron.d/x".into()),
            ),
            ("env", plain().env("", b"no name")),
            (
                "mount",
                plain().with(|config| {
                    config.mounts.push(berth_tests::request::bind(
                        &node.volume("v").expect("a volume"),
                        "relative",
                    ))
                }),
            ),
            (
                "capab",
                plain().security(|security| {
                    security
                        .capabilities
                        .get_or_insert_default()
                        .add_capabilities
                        .push("NO_SUCH_CAP".into())
                }),
            ),
            (
                "user",
                plain().security(|security| {
                    security.run_as_user = Some(berth_proto::cri::Int64Value { value: -1 })
                }),
            ),
            (
                "user",
                plain().security(|security| {
                    security.run_as_user = Some(berth_proto::cri::Int64Value { value: 1 << 32 })
                }),
            ),
            (
                "group",
                plain().security(|security| {
                    security.run_as_group = Some(berth_proto::cri::Int64Value { value: 7 })
                }),
            ),
            (
                "user",
                plain().security(|security| security.run_as_username = "no-such-user".into()),
            ),
            (
                "cpuset_cpus",
                plain().resources(|resources| resources.cpuset_cpus = "999999".into()),
            ),
            (
                "cpuset_mems",
                plain().resources(|resources| resources.cpuset_mems = "0-999999".into()),
            ),
            (
                "cpuset_cpus",
                plain().resources(|resources| resources.cpuset_cpus = "1-0".into()),
            ),
        ];
        for (word, config) in table {
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            let text = format!("{answer:?}").to_lowercase();
            let code = answer.as_ref().err().map(tonic::Status::code);
            ensure!(
                matches!(code, Some(Code::InvalidArgument | Code::FailedPrecondition)),
                "{word}: {answer:?}"
            );
            ensure!(
                text.contains(word),
                "the refusal does not name {word:?}: {text}"
            );
        }
        // The machine's own list is what such a caller needs.
        let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
        let config = plain().resources(|resources| resources.cpuset_cpus = "0,999999".into());
        refused(
            node.cri.create(&pod.id, &config, &pod.config).await,
            Code::InvalidArgument,
            &["cpuset_cpus", "CPU 999999", online.trim()],
        )?;
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        ensure!(node.cri.containers(None).await?.is_empty());
        ensure!(
            node.cri.pods(None).await?[0].state()
                == berth_proto::cri::PodSandboxState::SandboxReady
        );
        Ok(())
    })
}

#[test]
fn a_refused_create_leaves_the_ledger_as_a_neighbour_in_the_same_pod_needs_it() -> Result<()> {
    /// The first containers of a pod write down its cgroups: each pod has one such moment.
    const PODS: usize = 15;
    Node::test(async |node| {
        node.cri.pull(BUSYBOX).await?;
        for number in 0..PODS {
            let pod = node.run(node.pod(&format!("pod-{number}"))).await?;
            let configs = ["good", "bad"].map(|name| container(name, BUSYBOX, &["sleep", "1000"]));
            for config in &configs {
                let log = node.log_path(&pod, config);
                fs::create_dir_all(log.parent().expect("a log lies in a directory"))?;
            }
            // A log that is a directory: the shim refuses it before anything is made.
            fs::create_dir(node.log_path(&pod, &configs[1]))?;
            let [good, bad] = &configs;
            let (good, bad) = tokio::join!(
                node.cri.create(&pod.id, good, &pod.config),
                node.cri.create(&pod.id, bad, &pod.config),
            );
            good?;
            ensure!(bad.is_err(), "a log that is a directory was taken");
            ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        }
        Ok(())
    })
}

#[test]
fn an_archive_that_is_none_is_refused() -> Result<()> {
    Node::test(async |node| {
        let archive = node.dir.join("archive.tar");
        let layer = Layer::of(&[Entry::file("x", 0o644, "y")])?;
        for bytes in [
            b"not a tar".to_vec(),
            Vec::new(),
            tar(&[Entry::file("some", 0o644, "file")]),
            layer.bytes,
        ] {
            fs::write(&archive, bytes)?;
            ensure!(node.import(&archive).is_err());
        }
        let image = debian::busybox_image()?;
        image.oci_archive(&archive, "registry.test/cut:1")?;
        let bytes = fs::read(&archive)?;
        fs::write(&archive, &bytes[..bytes.len() / 2])?;
        ensure!(node.import(&archive).is_err() && node.cri.list_images().await?.is_empty());
        Ok(())
    })
}

#[test]
fn a_container_that_never_started_tells_why_it_can_be_removed() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("created")).await?;
        let id = node
            .create(&pod, &container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        ensure!(node.cri.status(&id).await?.state() == ContainerState::ContainerCreated);
        node.cri.stop(&id, 0).await?;
        node.cri.remove(&id).await?;
        Ok(())
    })
}
