//! Who a container is: users, groups, environment, directory.

use anyhow::{Result, ensure};
use berth_proto::cri::{ContainerConfig, Int64Value, Mount, SupplementalGroupsPolicy};
use berth_tests::{
    BUSYBOX, Node, container, debian,
    request::{ContainerRequest, bind},
    tarball::Entry,
};
use serde_json::json;

const ID: &str = "echo $(id -u):$(id -g):$(id -G | tr ' ' ,)";

#[test]
fn users_come_from_the_request_then_the_image_sec_eng_15() -> Result<()> {
    Node::test(async |node| {
        let value = |value: i64| Some(Int64Value { value });
        // User of the image, run_as_user, run_as_username, run_as_group, extra groups, strict → what `id` says.
        let table: [(&str, Option<i64>, &str, Option<i64>, &[i64], bool, &str); 9] = [
            ("", None, "", None, &[], false, "0:0:0"),
            ("1000", None, "", None, &[], false, "1000:1000:1000,2000"),
            ("sailor", None, "", None, &[], false, "1000:1000:1000,2000"),
            ("1000:33", None, "", None, &[], false, "1000:33:33,2000"),
            ("sailor", Some(33), "", None, &[], false, "33:33:33"),
            (
                "",
                Some(1000),
                "",
                Some(7),
                &[8, 9],
                false,
                "1000:7:7,8,9,2000",
            ),
            ("", Some(1000), "", Some(7), &[8, 9], true, "1000:7:7,8,9"),
            ("", None, "sailor", None, &[], false, "1000:1000:1000,2000"),
            ("", Some(4321), "", None, &[], false, "4321:0:0"),
        ];
        let pod = node.run(node.pod("users")).await?;
        for (at, (of_image, user, name, group, groups, strict, expected)) in
            table.into_iter().enumerate()
        {
            let repository = format!("own/user-{at}");
            debian::busybox_image()?
                .but(json!({"User": of_image}))
                .push(&node.registry, &repository, &["1"])?;
            let config = container(
                &format!("c{at}"),
                &format!("localhost:5000/{repository}:1"),
                &["sh", "-c", ID],
            )
            .security(|security| {
                security.run_as_user = user.and_then(value);
                security.run_as_username = name.into();
                security.run_as_group = group.and_then(value);
                security.supplemental_groups = groups.to_vec();
                if strict {
                    security.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
                }
            });
            let (code, out) = node.outcome(&pod, config).await?;
            let sorted = |line: &str| {
                let mut groups: Vec<String> = line
                    .trim()
                    .splitn(3, ':')
                    .nth(2)
                    .unwrap_or("")
                    .split(',')
                    .map(str::to_owned)
                    .collect();
                groups.sort();
                (
                    line.trim()
                        .splitn(3, ':')
                        .take(2)
                        .collect::<Vec<_>>()
                        .join(":"),
                    groups,
                )
            };
            ensure!(
                code == 0 && sorted(&out) == sorted(expected),
                "{of_image:?} {user:?} {name:?} {group:?}: {out} instead of {expected}"
            );
        }
        Ok(())
    })
}

#[test]
fn command_arguments_environment_and_directory_follow_the_image_and_the_request() -> Result<()> {
    Node::test(async |node| {
        let image = debian::busybox_image()?.but(json!({
            "Entrypoint": ["sh", "-c", "echo $0 $* $(pwd) $A $B"], "Cmd": ["image"], "WorkingDir": "/home/sailor",
            "Env": ["PATH=/bin", "A=of-image", "B=of-image"]
        }));
        image.push(&node.registry, "own/entry", &["1"])?;
        let name = "localhost:5000/own/entry:1";
        let pod = node.run(node.pod("entry")).await?;
        let (_, out) = node.outcome(&pod, container("plain", name, &[])).await?;
        ensure!(out == "image /home/sailor of-image of-image\n", "{out}");
        let config = container("args", name, &[])
            .with(|config| config.args = vec!["request".into(), "more".into()])
            .env("A", b"of-request");
        let (_, out) = node.outcome(&pod, config).await?;
        ensure!(
            out == "request more /home/sailor of-request of-image\n",
            "{out}"
        );
        // A command of the request puts aside both of the image.
        let config = container("command", name, &["sh", "-c", "echo $# $(pwd)"])
            .with(|config| config.working_dir = "/tmp/new/dir".into());
        let (code, out) = node.outcome(&pod, config).await?;
        ensure!(
            (code, out.as_str()) == (0, "0 /tmp/new/dir\n"),
            "{code} {out}"
        );
        Ok(())
    })
}

#[test]
fn a_working_directory_is_made_where_it_is_missing_also_in_a_volume() -> Result<()> {
    Node::test(async |node| {
        let image = debian::busybox_image()?
            .plus(&[Entry::symlink("link", "/data")])?
            .but(json!({"WorkingDir": "/data/of/image"}));
        image.push(&node.registry, "own/working-dir", &["1"])?;
        let name = "localhost:5000/own/working-dir:1";
        let (volume, sealed) = (node.volume("data")?, node.volume("sealed")?);
        let pod = node.run(node.pod("directory")).await?;
        let with = |number: &str, directory: &str| {
            container(number, name, &["sh", "-c", "pwd; stat -c %u:%g:%a ."])
                .with(|config| config.working_dir = directory.into())
                .mount(bind(&volume, "/data"))
                .mount(Mount {
                    readonly: true,
                    ..bind(&sealed, "/sealed")
                })
        };
        let user = |config: ContainerConfig| {
            config.security(|security| security.run_as_user = Some(Int64Value { value: 1000 }))
        };
        let readonly =
            |config: ContainerConfig| config.security(|security| security.readonly_rootfs = true);
        // Root's, whoever the container is, as with other runtimes.
        for (config, at, on_host) in [
            (with("a", ""), "/data/of/image", Some("of/image")),
            (
                user(with("b", "/data/user's")),
                "/data/user's",
                Some("user's"),
            ),
            (with("c", "/link/linked"), "/data/linked", Some("linked")),
            (
                readonly(with("d", "/new/directory")),
                "/new/directory",
                None,
            ),
            (
                readonly(with("e", "/data/readonly")),
                "/data/readonly",
                Some("readonly"),
            ),
            (user(with("f", "/new/directory")), "/new/directory", None),
        ] {
            let (code, out) = node.outcome(&pod, config).await?;
            let expected = format!("{at}\n0:0:755\n");
            ensure!(code == 0 && out == expected, "{at}: {code} {out}");
            ensure!(
                on_host.is_none_or(|path| volume.join(path).is_dir()),
                "{at}"
            );
        }
        // What can't be made is not passed over.
        for (number, directory) in [("g", "/sealed/x"), ("h", "/etc/passwd"), ("i", "/proc/x")] {
            let refused = node.create(&pod, &with(number, directory)).await;
            let Err(error) = refused else {
                anyhow::bail!("{directory} was taken")
            };
            ensure!(format!("{error:#}").contains(directory), "{error:#}");
        }
        Ok(())
    })
}

#[test]
fn fifty_containers_each_see_their_own_environment_sec_eng_16() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("secrets")).await?;
        node.cri.pull(BUSYBOX).await?;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..50 {
            let config = container(
                &format!("c{number}"),
                BUSYBOX,
                &["sh", "-c", "env | grep -c ^SECRET=; echo $SECRET"],
            )
            .env("SECRET", format!("number-{number}").as_bytes());
            std::fs::create_dir_all(
                node.log_path(&pod, &config)
                    .parent()
                    .expect("a log lies in a directory"),
            )?;
            let (cri, pod, path) = (node.cri.clone(), pod.clone(), node.log_path(&pod, &config));
            tasks.spawn(async move {
                let id = cri.create(&pod.id, &config, &pod.config).await?;
                cri.start(&id).await?;
                ensure!(cri.wait_exit(&id).await?.exit_code == 0);
                let log = berth_tests::node::parse_log(&std::fs::read(path)?, "stdout")?;
                ensure!(
                    log == format!("1\nnumber-{number}\n").into_bytes(),
                    "{}",
                    String::from_utf8_lossy(&log)
                );
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        Ok(())
    })
}
