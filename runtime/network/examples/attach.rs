//! Attaches pods to a bridge of their own, or detaches them, as `berthd` does: `attach DIR BRIDGE SUBNET OPERATION… `, each operation
//! `attach:POD_ID`, `detach:POD_ID` or `close`; first of all may be `pool:SIZE`, which waits until the pool is full. The crash tests end it at its failpoints.

use std::{env, path::Path, process::ExitCode};

use berth_network::{AttachRequest, Builtin, Config, PortMapping, Protocol};
use berth_state::Ledger;

/// A pod with a host port.
fn request(pod_id: &str) -> AttachRequest {
    let mapping = PortMapping {
        protocol: Protocol::Udp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    };
    AttachRequest {
        pod_id: pod_id.to_owned(),
        port_mappings: vec![mapping],
        ..AttachRequest::default()
    }
}

fn main() -> ExitCode {
    berth_failpoint::setup();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [dir, bridge, subnet, operations @ ..] = &arguments[..] else {
        eprintln!("usage: attach DIR BRIDGE SUBNET (attach:POD_ID | detach:POD_ID | close)…");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    match runtime.block_on(run(Path::new(dir), bridge, subnet, operations)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(3)
        }
    }
}

async fn run(
    dir: &Path,
    bridge: &str,
    subnet: &str,
    operations: &[String],
) -> Result<(), Box<dyn std::error::Error>> {
    let (pool, operations) = match operations.split_first() {
        Some((first, rest)) if first.starts_with("pool:") => {
            (first["pool:".len()..].parse()?, rest)
        }
        _ => (0, operations),
    };
    let config = Config {
        bridge: bridge.to_owned(),
        subnet: subnet.parse()?,
        subnet_v6: None,
        masquerade: true,
        namespace_pool: pool,
        mtu: None,
        netns_dir: dir.join("netns"),
        lease_dir: dir.join("leases"),
    };
    let network = Builtin::open(config, Ledger::open(&dir.join("ledger"))?)?;
    if pool > 0 {
        network.fill_pool().await?;
        while network.pooled() < pool {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    for operation in operations {
        match operation.split_once(':') {
            Some(("attach", pod_id)) => println!("{:?}", network.attach(&request(pod_id)).await?),
            Some(("detach", pod_id)) => network.detach(pod_id).await?,
            None if operation == "close" => println!(
                "bridge removed: {}",
                network.remove_bridge_if_unused().await?
            ),
            _ => {
                return Err(format!("{operation:?}: attach:POD_ID, detach:POD_ID or close").into());
            }
        }
    }
    Ok(())
}
