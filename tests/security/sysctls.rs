//! SEC-CRI-03: sysctls that are more than they seem, or the host's (CVE-2022-0811, CVE-2022-0532).

use anyhow::{Result, ensure};
use berth_proto::cri::NamespaceMode;
use berth_tests::{Node, host::Snapshot, refused, request::PodRequest};
use tonic::Code;

#[test]
fn sysctls_that_reach_the_host_or_hide_others_are_refused_sec_cri_03() -> Result<()> {
    Node::test(async |node| {
        let host = Snapshot::take();
        for (name, value) in [
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/sh"),
            ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=x"),
            ("kernel.core_pattern", "|/bin/sh"),
            ("kernel.hostname", "x"),
            ("vm.overcommit_memory", "1"),
            ("fs.file-max", "1"),
            ("net/../kernel/core_pattern", "x"),
            ("net.ipv4/../../kernel.core_pattern", "x"),
            ("net/ipv4.ip_forward", "1"),
            ("../kernel/core_pattern", "x"),
            ("net.ipv4.ip_forward=0", "1"),
            ("", "1"),
            ("net.", "1"),
            // Well formed, and of a namespace of the pod's, but not there, a directory, read-only, and no such value.
            ("net.ipv4.no_such_sysctl", "1"),
            ("net.ipv4", "1"),
            ("net.ipv4.tcp_available_congestion_control", "reno"),
            ("net.ipv4.ip_local_port_range", "nonsense"),
        ] {
            let config = node.pod("sysctl").linux(|linux| {
                linux.sysctls.insert(name.into(), value.into());
            });
            // The mix of both separators is a name that some take: then it is set in the pod alone.
            let answer = node.cri.run_pod(&config).await;
            if name != "net/ipv4.ip_forward" || answer.is_err() {
                refused(answer, Code::InvalidArgument, &["sysctl"])?;
            }
        }
        let of_network = |config: &mut berth_proto::cri::LinuxPodSandboxConfig| {
            config
                .sysctls
                .insert("net.ipv4.ip_forward".into(), "0".into());
        };
        refused(
            node.cri
                .run_pod(&node.pod("host").on_the_host_network().linux(of_network))
                .await,
            Code::InvalidArgument,
            &["sysctl"],
        )?;
        let of_ipc = |config: &mut berth_proto::cri::LinuxPodSandboxConfig| {
            config
                .sysctls
                .insert("kernel.shm_rmid_forced".into(), "1".into());
        };
        let config = node
            .pod("host")
            .namespaces(|namespaces| namespaces.ipc = NamespaceMode::Node.into())
            .linux(of_ipc);
        refused(
            node.cri.run_pod(&config).await,
            Code::InvalidArgument,
            &["sysctl"],
        )?;
        Snapshot::take().sysctls_same(&host)?;
        ensure!(node.cri.pods(None).await?.len() <= 1);
        Ok(())
    })
}
