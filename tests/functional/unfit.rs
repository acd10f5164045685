//! What is right by itself, but not with this image, volume or node: FAILED_PRECONDITION with the part that does not fit, and nothing left.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{ContainerConfig, IdMapping, NamespaceMode, UserNamespace};
use berth_tests::{
    BUSYBOX, Node,
    cri::refused,
    request::{ContainerRequest, PodRequest, bind, container},
};
use tonic::Code;

/// Less than a process needs that has not begun yet.
const FAR_TOO_LITTLE: i64 = 64 << 10;

#[test]
fn what_does_not_fit_the_image_or_the_node_is_refused_by_its_name_and_leaves_nothing() -> Result<()>
{
    Node::test(async |node| {
        let (dir, file) = (node.volume("dir")?, node.volume("files")?.join("file"));
        fs::write(&file, "x")?;
        let pod = node.run(node.pod("unfit")).await?;
        let plain = || container("a", BUSYBOX, &["sleep", "1000"]);
        let on = |source: &Path, at: &str| plain().mount(bind(source, at));
        let long = format!("/{}", "x".repeat(300));
        let table: [(&str, ContainerConfig, &[&str]); 9] = [
            (
                "a directory on a file",
                on(&dir, "/etc/passwd"),
                &["mount /etc/passwd", "directory"],
            ),
            (
                "a file on a directory",
                on(&file, "/etc"),
                &["mount /etc", "directory"],
            ),
            (
                "below a file",
                on(&dir, "/etc/passwd/below"),
                &["/etc/passwd/below", "Not a directory"],
            ),
            (
                "where nothing can be made",
                on(&dir, "/sys/none"),
                &["/sys/none", "Read-only"],
            ),
            ("a long name", on(&dir, &long), &["File name too long"]),
            (
                "a working directory that is a file",
                plain().with(|config| config.working_dir = "/etc/passwd".into()),
                &["working directory /etc/passwd", "Not a directory"],
            ),
            (
                "a log that is a directory",
                plain().with(|config| config.log_path = "taken.log".into()),
                &["taken.log", "Is a directory"],
            ),
            (
                "hardly any memory",
                plain().resources(|resources| resources.memory_limit_in_bytes = FAR_TOO_LITTLE),
                &["memory"],
            ),
            (
                "a quota past what the kernel counts",
                plain().resources(|resources| resources.cpu_quota = 999_999_999_999_999),
                &["cpu", "999999999999999"],
            ),
        ];
        let logs = Path::new(&pod.config.log_directory);
        fs::create_dir_all(logs.join("taken.log"))?;
        node.cri.pull(BUSYBOX).await?;
        for (what, config, parts) in table {
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(answer, Code::FailedPrecondition, parts).context(what)?;
            ensure!(node.cri.containers(None).await?.is_empty(), "{what}");
            ensure!(node.audit()?.is_empty(), "{what}: {:?}", node.audit()?);
        }
        let id = node.start_container(&pod, plain()).await?;
        ensure!(node.cri.exec_raw(&id, &["true"]).await?.exit_code == 0);
        for place in [file.clone(), file.join("below")] {
            let config = node
                .pod("logless")
                .with(|config| config.log_directory = place.display().to_string());
            refused(
                node.cri.run_pod(&config).await,
                Code::FailedPrecondition,
                &["log directory", "files/file"],
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_volume_that_can_not_be_id_mapped_is_named_with_its_file_system_and_what_to_do() -> Result<()> {
    Node::test(async |node| {
        let map = vec![IdMapping {
            host_id: 300_000,
            container_id: 0,
            length: 65_536,
        }];
        let users = UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: map.clone(),
            gids: map.clone(),
        };
        let pod = node.pod("mapped").namespaces(|namespaces| {
            namespaces.userns_options = Some(users.clone());
        });
        let pod = node.run(pod).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"])
            .security(|security| {
                let options = security.namespace_options.get_or_insert_default();
                options.userns_options = Some(users.clone());
            })
            .mount(berth_proto::cri::Mount {
                uid_mappings: map.clone(),
                gid_mappings: map.clone(),
                ..bind(Path::new("/proc"), "/volume")
            });
        node.cri.pull(BUSYBOX).await?;
        refused(
            node.cri.create(&pod.id, &config, &pod.config).await,
            Code::FailedPrecondition,
            &["mount /volume", "lies on proc", "hostUsers: true"],
        )?;
        ensure!(node.cri.containers(None).await?.is_empty());
        Ok(())
    })
}
