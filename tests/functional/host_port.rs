//! Host ports of the built-in network, from a pod's configuration to its container: from the host, from pods, from another machine, and over a
//! kill -9 of the daemon.

use std::{fs, path::Path, process::Command, sync::mpsc, thread};

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{PodSandboxConfig, PortMapping, Protocol};
use berth_tests::{BUSYBOX, Node, Pod, Setup, container, sh};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use tonic::Code;

const HOST_PORT: i32 = 18080;
/// The host's address on a wire to the neighbour, and the neighbour's.
pub const HOST: &str = "192.0.2.1";
const NEIGHBOUR: &str = "192.0.2.2";
/// The built-in bridge's default address.
const GATEWAY: &str = "10.88.0.1";

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Another machine: a network namespace on a wire, which is the host's way to the world.
pub fn neighbour(dir: &Path) -> Result<()> {
    let (told, tid) = mpsc::channel();
    thread::spawn(move || {
        let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| gettid());
        let _ = told.send(made);
        // It lives as long as the test's process.
        loop {
            thread::park();
        }
    });
    let tid = tid.recv()??.to_string();
    let namespace = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
    fs::write(dir.join("neighbour"), &namespace)?;
    let inside = |arguments: &[&str]| {
        let net = format!("--net={namespace}");
        run("nsenter", &[&[net.as_str(), "ip"], arguments].concat())
    };
    run(
        "ip",
        &[
            "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", &tid,
        ],
    )?;
    run(
        "ip",
        &["address", "add", &format!("{HOST}/24"), "dev", "up0"],
    )?;
    // Its own address of IPv6 would come when it likes, after the host was looked at.
    fs::write("/proc/sys/net/ipv6/conf/up0/disable_ipv6", "1")?;
    run("ip", &["link", "set", "up0", "up"])?;
    inside(&["address", "add", &format!("{NEIGHBOUR}/24"), "dev", "out0"])?;
    inside(&["link", "set", "out0", "up"])?;
    run("ip", &["route", "add", "default", "via", NEIGHBOUR])?;
    Ok(())
}

fn setup() -> Setup {
    Setup {
        before: Some(neighbour),
        ..Setup::default()
    }
}

/// Tries for as long as a server takes to begin.
fn script(to: &str) -> String {
    format!(
        "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O - http://{to}/ && exit; sleep 0.2; done; exit 1"
    )
}

fn from_host(to: &str) -> Result<String> {
    run("busybox", &["sh", "-c", &script(to)])
}

/// Where the neighbour's network namespace is.
pub fn neighbours_namespace(node: &Node) -> Result<String> {
    Ok(fs::read_to_string(node.dir.join("neighbour"))?)
}

fn from_neighbour(node: &Node, to: &str) -> Result<String> {
    let net = format!("--net={}", neighbours_namespace(node)?);
    run("nsenter", &[&net, "busybox", "sh", "-c", &script(to)])
}

fn with_port(mut pod: PodSandboxConfig, host_port: i32, host_ip: &str) -> PodSandboxConfig {
    pod.port_mappings = vec![PortMapping {
        protocol: Protocol::Tcp.into(),
        container_port: 80,
        host_port,
        host_ip: host_ip.to_owned(),
    }];
    pod
}

/// A pod that serves its name; the container is returned, too.
async fn serve(node: &Node, config: PodSandboxConfig) -> Result<(Pod, String)> {
    let name = config.metadata.clone().unwrap_or_default().name;
    let pod = node.run(config).await?;
    let server = format!("echo {name} > /tmp/index.html; exec httpd -f -p 80 -h /tmp");
    let container = node
        .start_container(&pod, container("web", BUSYBOX, &sh(&server)))
        .await?;
    Ok((pod, container))
}

#[test]
fn a_host_port_leads_to_its_pod_from_everywhere_and_over_a_kill_of_the_daemon() -> Result<()> {
    Node::test_with(setup(), async |node| {
        let (serving, inside) = serve(node, with_port(node.pod("serving"), HOST_PORT, "")).await?;
        let asking = node.run(node.pod("asking")).await?;
        let asking = node
            .start_container(&asking, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        for round in ["at first", "after a kill -9"] {
            for address in ["127.0.0.1", HOST, GATEWAY] {
                let to = format!("{address}:{HOST_PORT}");
                ensure!(
                    from_host(&to)? == "serving",
                    "{round}, from the host to {to}"
                );
            }
            for address in [HOST, GATEWAY] {
                let get = script(&format!("{address}:{HOST_PORT}"));
                for (who, container) in [("another pod", &asking), ("the pod itself", &inside)] {
                    let got = node.cri.shell(container, &get).await;
                    ensure!(got? == "serving", "{round}, from {who} to {address}");
                }
            }
            let to = format!("{HOST}:{HOST_PORT}");
            ensure!(
                from_neighbour(node, &to)? == "serving",
                "{round}, from the neighbour"
            );
            node.restart().await?;
        }
        node.cri.stop_pod(&serving.id).await?;
        let closed = run(
            "busybox",
            &[
                "wget",
                "-q",
                "-O",
                "-",
                &format!("http://127.0.0.1:{HOST_PORT}/"),
            ],
        );
        ensure!(
            closed.is_err(),
            "the port is open after its pod was stopped: {closed:?}"
        );
        Ok(())
    })
}

#[test]
fn pods_reach_the_world_beyond_the_host_and_the_host_is_no_router_afterwards() -> Result<()> {
    Node::test_with(setup(), async |node| {
        let forwarding = || run("sysctl", &["-n", "net.ipv4.conf.up0.forwarding"]);
        ensure!(forwarding()? == "0");
        let pod = node.run(node.pod("asking")).await?;
        let asking = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        node.cri
            .exec(&asking, &["ping", "-c", "1", "-W", "5", NEIGHBOUR])
            .await
            .context("ping the neighbour, who knows no way to the pods")?;
        ensure!(forwarding()? == "1");
        node.remove_all().await?;
        ensure!(node.daemon.terminate()?.success());
        ensure!(forwarding()? == "0", "the daemon left the host a router");
        ensure!(!run("nft", &["list", "tables"])?.contains("berth"));
        node.daemon.spawn()?;
        node.cri = node.daemon.ready().await?;
        Ok(())
    })
}

#[test]
fn a_port_that_is_taken_is_refused_with_the_one_who_has_it_and_is_free_when_he_stops() -> Result<()>
{
    Node::test_with(setup(), async |node| {
        let (first, _) = serve(node, with_port(node.pod("first"), HOST_PORT, "")).await?;
        for host_ip in ["", "127.0.0.1"] {
            let second = with_port(node.pod("second"), HOST_PORT, host_ip);
            let error = node.cri.run_pod(&second).await.unwrap_err();
            ensure!(
                error.code() != Code::Unknown
                    && error.message().contains(&first.id)
                    && error.message().contains("18080"),
                "{error:?}"
            );
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let listening = listener.local_addr()?.port();
        let third = with_port(node.pod("third"), listening.into(), "");
        let error = node.cri.run_pod(&third).await.unwrap_err();
        ensure!(
            error.message().contains(&listening.to_string()),
            "{error:?}"
        );
        drop(listener);
        // At once after the stop, while the first one's address is on its way out.
        node.cri.stop_pod(&first.id).await?;
        serve(node, with_port(node.pod("second"), HOST_PORT, "")).await?;
        ensure!(from_host(&format!("127.0.0.1:{HOST_PORT}"))? == "second");
        Ok(())
    })
}
