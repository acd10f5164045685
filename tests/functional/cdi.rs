//! Devices by the Container Device Interface, from files that appear, change and are broken while the daemon runs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{CdiDevice, ContainerConfig};
use berth_tests::{
    BUSYBOX, Node, Pod, Setup, container, cri::refused, process, request::ContainerRequest, sh,
};
use serde_json::{Value, json};
use tonic::Code;

fn with_cdi() -> Setup {
    Setup {
        config: "[runtime]\ncdi_spec_dirs = [\"$DIR/cdi-etc\", \"$DIR/cdi-run\"]\n".into(),
        ..Default::default()
    }
}

fn write(node: &Node, file: &str, spec: &Value) -> Result<()> {
    let path = node.dir.join(file);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    Ok(fs::write(path, spec.to_string())?)
}

fn spec(device: &str, edits: Value) -> Value {
    json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.com/thing",
        "containerEdits": {"env": ["VENDOR=all"]},
        "devices": [{"name": device, "containerEdits": edits}],
    })
}

fn asking(name: &str, command: &[&str], devices: &[&str]) -> ContainerConfig {
    container(name, BUSYBOX, command).with(|config| {
        let device = |name: &&str| CdiDevice {
            name: name.to_string(),
        };
        config.cdi_devices = devices.iter().map(device).collect();
    })
}

/// A program that leaves a mark, for hooks.
fn marker(dir: &Path, name: &str) -> Result<(String, std::path::PathBuf)> {
    let (script, mark) = (dir.join(name), dir.join(format!("{name}.mark")));
    let text = format!(
        "#!/bin/sh\ncat > {}\necho \" $1 $MARK\" >> {}\n",
        mark.display(),
        mark.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok((script.display().to_string(), mark))
}

#[test]
fn a_device_brings_its_nodes_mounts_groups_environment_and_hooks() -> Result<()> {
    Node::test_with(with_cdi(), async |node| {
        let data = node.volume("vendor")?;
        fs::write(data.join("library"), "vendor's")?;
        let (program, mark) = marker(&data, "hook")?;
        let edits = json!({
            "env": ["THING=one"],
            "deviceNodes": [
                {"path": "/dev/thing", "hostPath": "/dev/null", "permissions": "rw"},
                {"path": "/dev/other", "hostPath": "/dev/urandom", "fileMode": 0o600, "uid": 12, "gid": 34},
            ],
            "mounts": [{"hostPath": data, "containerPath": "/opt/vendor", "options": ["ro", "nosuid"]}],
            "additionalGids": [4321],
            "hooks": [{"hookName": "createRuntime", "path": program, "args": ["hook", "argument"],
                "env": ["MARK=set", "PATH=/usr/bin:/bin"]}],
        });
        write(node, "cdi-etc/thing.json", &spec("0", edits))?;
        // In YAML, and asked for by an annotation, as a device plugin does.
        fs::create_dir_all(node.dir.join("cdi-run"))?;
        fs::write(
            node.dir.join("cdi-run/plain.yaml"),
            "cdiVersion: 1.0.0\nkind: vendor.com/plain\ndevices:\n- name: p\n  containerEdits:\n    \
             deviceNodes:\n    - path: /dev/plain\n      hostPath: /dev/zero\n",
        )?;
        let pod = node.run(node.pod("cdi")).await?;
        let config = asking("c", &["sleep", "1000"], &["vendor.com/thing=0"])
            .with(|config| {
                config
                    .annotations
                    .insert("cdi.k8s.io/plugin_0".into(), "vendor.com/plain=p".into());
            })
            .security(|security| {
                security.run_as_user = Some(berth_proto::cri::Int64Value { value: 0 });
            });
        let id = node.start_container(&pod, config).await?;
        let seen = node
            .cri
            .shell(
                &id,
                "stat -c '%F %t:%T %a %u:%g' /dev/thing /dev/other /dev/plain; cat /opt/vendor/library; echo; \
                 id -G; echo $THING $VENDOR; echo x > /dev/thing && head -c 1 /dev/other | wc -c; \
                 head -c 1 /dev/plain | wc -c",
            )
            .await?;
        let expected = "character special file 1:3 666 0:0\ncharacter special file 1:9 600 12:34\n\
                        character special file 1:5 666 0:0\nvendor's\n0 4321\none all\n1\n1";
        ensure!(seen == expected, "{seen}");
        ensure!(
            node.cri
                .exec_raw(&id, &["touch", "/opt/vendor/new"])
                .await?
                .exit_code
                != 0
        );
        let left = fs::read_to_string(&mark).context("the hook has not run")?;
        ensure!(
            left.contains(&id) && left.ends_with(" argument set\n"),
            "{left}"
        );
        Ok(())
    })
}

#[test]
fn a_user_without_rights_owns_what_it_is_given() -> Result<()> {
    Node::test_with(with_cdi(), async |node| {
        let edits = json!({"deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null", "fileMode": 0o600}]});
        write(node, "cdi-etc/thing.json", &spec("0", edits))?;
        let pod = node.run(node.pod("cdi-user")).await?;
        let config = asking(
            "c",
            &sh("echo x > /dev/thing && stat -c %u:%g /dev/thing"),
            &["vendor.com/thing=0"],
        )
        .security(|security| {
            security.run_as_user = Some(berth_proto::cri::Int64Value { value: 1000 });
            security.run_as_group = Some(berth_proto::cri::Int64Value { value: 2000 });
        });
        ensure!(node.outcome(&pod, config).await? == (0, "1000:2000\n".into()));
        Ok(())
    })
}

#[test]
fn files_that_change_are_taken_up_and_broken_ones_cost_their_own_devices() -> Result<()> {
    Node::test_with(with_cdi(), async |node| {
        let thing = |value: &str| spec("0", json!({"env": [format!("THING={value}")]}));
        let pod = node.run(node.pod("files")).await?;
        node.cri.pull(BUSYBOX).await?;
        let tell = async |name: &str| -> Result<String> {
            let config = asking(name, &sh("echo $THING"), &["vendor.com/thing=0"]);
            Ok(node.outcome(&pod, config).await?.1)
        };
        let ask = async |name: &str, device: &str| {
            let config = asking(name, &sh("true"), &[device]);
            node.cri.create(&pod.id, &config, &pod.config).await
        };
        let (etc, run) = (node.dir.join("cdi-etc"), node.dir.join("cdi-run"));
        let (etc, run) = (etc.display().to_string(), run.display().to_string());
        // Neither directory is there yet.
        refused(
            ask("none", "vendor.com/thing=0").await,
            Code::InvalidArgument,
            &["vendor.com/thing=0", &etc, &run],
        )?;
        write(node, "cdi-etc/thing.json", &thing("etc"))?;
        ensure!(tell("etc").await? == "etc\n");
        write(node, "cdi-run/thing.json", &thing("run"))?;
        ensure!(tell("run").await? == "run\n");
        write(node, "cdi-run/thing.json", &thing("changed"))?;
        fs::write(node.dir.join("cdi-run/broken.json"), "{")?;
        ensure!(tell("changed").await? == "changed\n");
        refused(
            ask("unknown", "vendor.com/thing=1").await,
            Code::InvalidArgument,
            &["vendor.com/thing=1", "broken.json"],
        )?;
        write(node, "cdi-run/thing-again.json", &thing("again"))?;
        refused(
            ask("twice", "vendor.com/thing=0").await,
            Code::InvalidArgument,
            &["thing.json", "thing-again.json"],
        )?;
        fs::remove_dir_all(&run)?;
        ensure!(tell("etc-again").await? == "etc\n");

        for (number, (edits, code, word)) in [
            (
                json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/not-there"}]}),
                Code::FailedPrecondition,
                "/dev/not-there",
            ),
            (
                json!({"mounts": [{"hostPath": "/not/there", "containerPath": "/x"}]}),
                Code::FailedPrecondition,
                "/not/there",
            ),
            (
                json!({"mounts": [{"hostPath": "/", "containerPath": "/proc/self"}]}),
                Code::InvalidArgument,
                "/proc",
            ),
            (
                json!({"intelRdt": {"closID": "x"}}),
                Code::Unimplemented,
                "intelRdt",
            ),
            (
                json!({"netDevices": [{"hostInterfaceName": "lo", "name": "x"}]}),
                Code::Unimplemented,
                "netDevices",
            ),
        ]
        .into_iter()
        .enumerate()
        {
            write(node, "cdi-etc/thing.json", &spec("0", edits))?;
            let name = format!("refused-{number}");
            refused(ask(&name, "vendor.com/thing=0").await, code, &[word])?;
        }
        for name in ["", "thing", "vendor.com/thing", "vendor.com/../thing=0"] {
            refused(
                ask("no-name", name).await,
                Code::InvalidArgument,
                &["cdi_devices"],
            )?;
        }
        Ok(())
    })
}

/// By our own engine, and by runc behind its stock shim.
#[test]
fn hooks_after_the_start_and_the_end_run_whoever_makes_the_container() -> Result<()> {
    let setup = Setup {
        config: format!(
            "{}default_handler = \"berth\"\n[runtime.handlers.berth]\n[runtime.handlers.runc]\nshim = \"io.containerd.runc.v2\"\n",
            with_cdi().config
        ),
        ..Default::default()
    };
    Node::test_with(setup, async |node| {
        let data = node.volume("vendor")?;
        let (started, at_start) = marker(&data, "started")?;
        let (stopped, at_stop) = marker(&data, "stopped")?;
        let env = ["MARK=set", "PATH=/usr/bin:/bin"];
        let edits = json!({"hooks": [
            {"hookName": "poststart", "path": started, "args": ["hook", "start"], "env": env},
            {"hookName": "poststop", "path": stopped, "args": ["hook", "stop"], "env": env},
        ]});
        write(node, "cdi-etc/thing.json", &spec("0", edits))?;
        let edits = json!({"hooks": [{"hookName": "poststart", "path": "/bin/false"}]});
        write(node, "cdi-etc/broken.json", &{
            let mut broken = spec("0", edits);
            broken["kind"] = "vendor.com/broken".into();
            broken
        })?;
        for handler in ["berth", "runc"] {
            let config = node.pod(&format!("late-{handler}"));
            let id = node.cri.run_pod_with(&config, handler).await?;
            let pod = Pod { id, config };
            let config = asking("c", &["sleep", "1000"], &["vendor.com/thing=0"]);
            let id = node.create(&pod, &config).await?;
            // An older runc runs it at the end of the create (github.com/opencontainers/runc/issues/4347).
            ensure!(
                handler == "runc" || !at_start.exists(),
                "it ran before the start"
            );
            node.cri.start(&id).await?;
            let state = fs::read_to_string(&at_start).context("no poststart hook has run")?;
            ensure!(
                state.contains(&id) && state.ends_with(" start set\n"),
                "{handler}: {state}"
            );
            node.cri.stop(&id, 0).await?;
            node.cri.remove(&id).await?;
            let state = fs::read_to_string(&at_stop).context("no poststop hook has run")?;
            ensure!(
                state.contains(&id) && state.contains("stopped") && state.ends_with(" stop set\n"),
                "{handler}: {state}"
            );
            let broken = asking("broken", &["sleep", "1000"], &["vendor.com/broken=0"]);
            let made = node.create(&pod, &broken).await;
            let error = match &made {
                Ok(id) => format!("{:?}", node.cri.start(id).await.expect_err("it failed")),
                Err(error) => format!("{error:#}"),
            };
            ensure!(
                error.contains("poststart hook /bin/false") || error.contains("hook #0"),
                "{handler}: {error}"
            );
            if let Ok(id) = made {
                ensure!(
                    process::eventually(Duration::from_secs(5), || {
                        process::in_cgroup(&id).is_empty()
                    }),
                    "{handler}: it goes on"
                );
                node.cri.remove(&id).await?;
            }
            fs::remove_file(&at_start)?;
            fs::remove_file(&at_stop)?;
        }
        Ok(())
    })
}

#[test]
fn a_hook_that_fails_fails_its_container_alone() -> Result<()> {
    Node::test_with(with_cdi(), async |node| {
        let edits = json!({"hooks": [{"hookName": "createRuntime", "path": "/bin/false"}]});
        write(node, "cdi-etc/thing.json", &spec("0", edits))?;
        let pod = node.run(node.pod("hook")).await?;
        node.cri.pull(BUSYBOX).await?;
        let config = asking("fails", &sh("true"), &["vendor.com/thing=0"]);
        let answer = node.cri.create(&pod.id, &config, &pod.config).await;
        ensure!(answer.is_err(), "{answer:?}");
        ensure!(node.cri.containers(None).await?.is_empty());
        let id = node
            .start_container(&pod, container("fine", BUSYBOX, &["sleep", "1000"]))
            .await?;
        ensure!(node.cri.exec(&id, &["echo", "alive"]).await? == "alive");
        Ok(())
    })
}
