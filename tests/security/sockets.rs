//! SEC-ENG-14: sockets of ours that tenants can reach, or break (CVE-2020-15257).

use std::{io::Write, os::unix::net::UnixStream, time::Duration};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::NamespaceMode;
use berth_tests::{
    BUSYBOX, Node, container, process,
    request::{ContainerRequest, PodRequest},
};

#[test]
fn a_root_pod_on_the_host_network_sees_no_abstract_socket_of_ours_sec_eng_14() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("host").on_the_host_network()).await?;
        let config = container("a", BUSYBOX, &["sleep", "1000"]).security(|security| {
            security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into()
        });
        let id = node.start_container(&pod, config).await?;
        let sockets = node.cri.exec(&id, &["cat", "/proc/net/unix"]).await?;
        ensure!(!sockets.lines().any(|line| line.contains('@')), "{sockets}");
        Ok(())
    })
}

#[test]
fn garbage_to_a_shim_closes_that_connection_alone_sec_eng_14() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("garbage")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let shim = process::shims().pop().context("no shim")?;
        let before = process::resident_kib(shim.pid)?;
        let socket = std::fs::read_dir(node.daemon.state.join("s"))?
            .flatten()
            .next()
            .context("no shim socket")?
            .path();
        // A ttrpc frame: length (4 bytes), stream (4), type, flags, data.
        let huge = [&u32::MAX.to_be_bytes()[..], &1u32.to_be_bytes(), &[1, 0]].concat();
        let four_mib = [
            &(4u32 << 20).to_be_bytes()[..],
            &1u32.to_be_bytes(),
            &[1, 0],
        ]
        .concat();
        let nonsense = [
            &16u32.to_be_bytes()[..],
            &1u32.to_be_bytes(),
            &[1, 0],
            &[0xff; 16],
        ]
        .concat();
        for bytes in [huge, four_mib, nonsense, vec![0; 4096], vec![0xff; 4096]] {
            for _ in 0..10 {
                let mut stream = UnixStream::connect(&socket)?;
                stream.set_write_timeout(Some(Duration::from_secs(1)))?;
                // It may close before it has read all.
                let _ = stream.write_all(&bytes);
            }
        }
        ensure!(node.cri.exec(&id, &["echo", "alive"]).await? == "alive");
        let grown = process::resident_kib(shim.pid)?.saturating_sub(before);
        ensure!(grown < 8 << 10, "the shim grew by {grown} KiB");
        Ok(())
    })
}
