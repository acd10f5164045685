//! Devices of the node in a container, and what its cgroup lets it do with them.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use berth_proto::cri::{ContainerConfig, Device};
use berth_tests::{
    BUSYBOX, Node, container,
    cri::refused,
    request::{ContainerRequest, PodRequest},
    sh,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tonic::Code;

/// FUSE's: everybody may open it, and no container does so unasked.
const NUMBER: (u64, u64) = (10, 229);

fn with_device(name: &str, host_path: &Path, permissions: &str, script: &str) -> ContainerConfig {
    container(name, BUSYBOX, &sh(script)).with(|config| {
        config.devices = vec![Device {
            host_path: host_path.display().to_string(),
            container_path: "/dev/own".into(),
            permissions: permissions.into(),
        }];
    })
}

/// Whether the cgroup lets it be opened; whether there is a driver behind it is another matter.
const OPEN: &str = "t() { \"$@\" 2>&1 | grep -q 'not permitted' && echo no || echo yes; }; \
                    t sh -c ': < /dev/own'; t sh -c ': > /dev/own'";

#[test]
fn a_device_can_be_used_as_its_permissions_say() -> Result<()> {
    Node::test(async |node| {
        let device = node.volume("devices")?.join("one");
        let number = makedev(NUMBER.0, NUMBER.1);
        mknod(
            &device,
            SFlag::S_IFCHR,
            Mode::from_bits_truncate(0o640),
            number,
        )?;
        let pod = node.run(node.pod("devices")).await?;
        for (permissions, opened) in [
            ("r", "yes\nno\n"),
            ("w", "no\nyes\n"),
            ("rw", "yes\nyes\n"),
            ("rwm", "yes\nyes\n"),
        ] {
            let config = with_device(permissions, &device, permissions, OPEN);
            let outcome = node.outcome(&pod, config).await?;
            ensure!(outcome == (0, opened.into()), "{permissions}: {outcome:?}");
        }
        // As it is on the node.
        let config = with_device("stat", &device, "r", "stat -c '%t:%T %a' /dev/own");
        ensure!(node.outcome(&pod, config).await? == (0, "a:e5 640\n".into()));
        // Unasked, a node may be made, and not opened.
        let script = format!("mknod /dev/own c {} {}; {OPEN}", NUMBER.0, NUMBER.1);
        let config = container("unasked", BUSYBOX, &sh(&script));
        ensure!(node.outcome(&pod, config).await? == (0, "no\nno\n".into()));

        for (name, host_path, permissions, code) in [
            (
                "missing",
                "/dev/no-such-device",
                "r",
                Code::FailedPrecondition,
            ),
            ("file", "/etc/hostname", "r", Code::FailedPrecondition),
            ("letters", "/dev/null", "rx", Code::InvalidArgument),
            ("relative", "dev/null", "r", Code::InvalidArgument),
        ] {
            let config = with_device(name, Path::new(host_path), permissions, "true");
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            refused(answer, code, &[host_path])?;
        }
        Ok(())
    })
}

#[test]
fn a_directory_brings_its_devices_and_privilege_those_of_the_node() -> Result<()> {
    Node::test(async |node| {
        let devices = node.volume("devices")?;
        fs::create_dir(devices.join("below"))?;
        for (name, minor) in [("one", 3), ("below/two", 5)] {
            mknod(
                &devices.join(name),
                SFlag::S_IFCHR,
                Mode::from_bits_truncate(0o666),
                makedev(1, minor),
            )?;
        }
        let config = node.pod("privileged").linux(|linux| {
            linux.security_context.get_or_insert_default().privileged = true;
        });
        let pod = node.run(config).await?;
        let config = with_device(
            "directory",
            &devices,
            "rwm",
            "cd /dev/own && find . -type c | sort && stat -c %t:%T one below/two",
        );
        let outcome = node.outcome(&pod, config).await?;
        ensure!(
            outcome == (0, "./below/two\n./one\n1:3\n1:5\n".into()),
            "{outcome:?}"
        );

        let list = "cd /dev && find . -type c -o -type b | grep -v '^./\\(pts\\|console\\|ptmx\\|tty$\\)' | sort";
        let privileged =
            container("all", BUSYBOX, &sh(list)).security(|security| security.privileged = true);
        let seen = node.outcome(&pod, privileged).await?.1;
        for entry in fs::read_dir("/dev")?.flatten() {
            use std::os::unix::fs::FileTypeExt;
            let (kind, name) = (entry.file_type()?, entry.file_name());
            let name = name.to_string_lossy();
            let is_device = kind.is_char_device() || kind.is_block_device();
            let own = ["ptmx", "console", "tty"].contains(&name.as_ref());
            ensure!(
                !is_device || own || seen.lines().any(|line| line == format!("./{name}")),
                "{name} is missing: {seen}"
            );
        }
        Ok(())
    })
}
