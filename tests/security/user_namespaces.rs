//! SEC-ENG-13: many pods with user namespaces, over a restart of the daemon.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{IdMapping, NamespaceMode, UserNamespace};
use berth_tests::{
    Node, process,
    request::{BUSYBOX, PodRequest, container},
};

/// As many as the machine takes without getting slow; the class of failure shows with two.
const PODS: u32 = 24;
const LENGTH: u32 = 1000;

fn range(at: u32) -> UserNamespace {
    let mapping = IdMapping {
        host_id: 1_000_000 + at * LENGTH,
        container_id: 0,
        length: LENGTH,
    };
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![mapping],
        gids: vec![mapping],
    }
}

#[test]
fn ranges_of_many_pods_are_whole_and_apart_over_a_restart_sec_eng_13() -> Result<()> {
    Node::test(async |node| {
        let mut seen: BTreeMap<u32, String> = BTreeMap::new();
        let mut pods = Vec::new();
        for at in 0..PODS {
            if at == PODS / 2 {
                node.restart().await?;
            }
            let config = node
                .pod(&format!("p{at}"))
                .namespaces(|namespaces| namespaces.userns_options = Some(range(at)));
            let pod = match at % 4 {
                3 => node.run(config.on_the_host_network()).await?,
                _ => node.run(config).await?,
            };
            let id = node
                .start_container(&pod, container("c", BUSYBOX, &["sleep", "10000"]))
                .await?;
            pods.push((at, pod, id));
        }
        for round in 0..2 {
            for (at, pod, id) in &pods {
                let init = process::init_of(id).context("init")?;
                for file in ["uid_map", "gid_map"] {
                    let map = fs::read_to_string(format!("/proc/{}/{file}", init.pid))?;
                    let first = 1_000_000 + at * LENGTH;
                    let expected = ["0", &first.to_string(), &LENGTH.to_string()];
                    ensure!(map.split_whitespace().eq(expected), "pod {at}: {map}");
                    seen.insert(first, id.clone());
                }
                let status = node.cri.pod_status(&pod.id).await?;
                let options = status.linux.and_then(|linux| linux.namespaces?.options);
                let told = options.and_then(|options| options.userns_options);
                ensure!(told == Some(range(*at)), "pod {at}: {told:?}");
            }
            ensure!(seen.len() == PODS as usize);
            if round == 0 {
                node.restart().await?;
            }
        }
        Ok(())
    })
}
