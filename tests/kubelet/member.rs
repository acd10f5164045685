//! A node of a cluster: `berth up --server` and `berth kubelet --kubeconfig` beside a test's daemon, and a real kubectl that looks at them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use berth_tests::{Node, cluster::Server, identity::run, machine::patient};
use serde_json::{Value, json};

use crate::scene::Kubelet;

/// The node's name and address; no address of loopback is dialled by an API server.
pub const NODE: &str = "n1";
pub const ADDRESS: &str = "10.211.0.1";
/// The Secret of the token by which nodes join.
pub const TOKEN: &str = "bootstrap-token-abcdef";
pub const LINK: &str = "berth-t0";
pub const PORT: u16 = 10250;
/// How full the machine's disk is, is no test's affair.
const ROOM: &str = "--eviction-hard=nodefs.available<0%,nodefs.inodesFree<0%,imagefs.available<0%,imagefs.inodesFree<0%";
/// How long anything may take that is not told to take longer.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Member {
    pub server: Server,
    pub kubelet: Kubelet,
}

impl Member {
    /// A node that is ready, whose server's certificate was approved.
    pub async fn start(node: &Node) -> Result<Self> {
        Self::start_as(node, &[], &[]).await
    }

    /// … with more flags, and variables.
    pub async fn start_as(
        node: &Node,
        more: &[&str],
        environment: &[(&'static str, String)],
    ) -> Result<Self> {
        Self::begin(node, &node.daemon.socket(), more, environment).await
    }

    /// … with the runtime at `socket`, and more flags.
    pub async fn start_on(node: &Node, socket: &Path, more: &[&str]) -> Result<Self> {
        Self::begin(node, socket, more, &[]).await
    }

    async fn begin(
        node: &Node,
        socket: &Path,
        more: &[&str],
        environment: &[(&'static str, String)],
    ) -> Result<Self> {
        let server = cluster()?;
        let kubeconfig = server.node_kubeconfig(NODE)?;
        let listen = format!("{ADDRESS}:{PORT}");
        #[rustfmt::skip]
        let flags = [
            "--kubeconfig", &kubeconfig.display().to_string(), "--node-ip", ADDRESS, "--listen", &listen,
            "--rotate-server-certificates", "--node-labels", "disk=fast", ROOM,
        ];
        let flags = [&flags, more].concat();
        let kubelet = Kubelet::start_in(node, socket, &flags, environment)?;
        let member = Self { server, kubelet };
        member.approve_serving().await?;
        member.wait_node().await?;
        Ok(member)
    }

    /// … that has nothing but a token at first; its kubeconfig will be at `kubeconfig`, its certificate in `certs`.
    pub async fn start_by_token(node: &Node, kubeconfig: &Path, certs: &Path) -> Result<Self> {
        let server = cluster()?;
        make_token(&server)?;
        let bootstrap = server.dir().join("bootstrap.kubeconfig");
        server.write_kubeconfig(&bootstrap, &json!({"token": "abcdef.0123456789abcdef"}))?;
        let text = |path: &Path| path.display().to_string();
        #[rustfmt::skip]
        let flags = [
            "--kubeconfig", &text(kubeconfig), "--bootstrap-kubeconfig", &text(&bootstrap), "--cert-dir", &text(certs),
            "--node-ip", ADDRESS, "--listen", &format!("{ADDRESS}:{PORT}"), ROOM,
        ];
        let kubelet = Kubelet::start_with(node, &flags)?;
        let member = Self { server, kubelet };
        member.wait_node().await?;
        Ok(member)
    }

    async fn wait_node(&self) -> Result<Value> {
        self.wait("node", NODE, "ready", |it| condition(it, "Ready") == "True")
            .await
    }

    /// Ends all; the test's network is as it was.
    pub fn end(mut self) -> Result<()> {
        let known = self.server.json(&["get", "pods", "--all-namespaces"]);
        if known.is_ok_and(|known| known["items"] == serde_json::json!([])) {
            self.kubelet.wait_empty()?;
        }
        self.kubelet.kill_9();
        drop(self);
        run("ip", &["link", "delete", LINK])
    }

    /// Approves what the kubelet asks for, and waits until it is signed.
    async fn approve_serving(&self) -> Result<()> {
        let mut approved = false;
        self.until("a certificate is signed", || {
            let all = self.server.json(&["get", "csr"])?;
            let asked = all["items"].as_array().into_iter().flatten();
            let mut asked =
                asked.filter(|one| one["spec"]["signerName"] == "kubernetes.io/kubelet-serving");
            let Some(one) = asked.next() else {
                return Ok(false);
            };
            let name = one["metadata"]["name"].as_str().context("no name")?;
            if !approved {
                self.server.kubectl(&["certificate", "approve", name])?;
                approved = true;
            }
            Ok(one["status"]["certificate"].is_string())
        })
        .await?;
        self.until("it is shown", || {
            Ok(self
                .kubelet
                .log()
                .contains("has signed a certificate for the kubelet's server"))
        })
        .await
    }

    pub async fn until(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + patient(LIMIT);
        while !is()? {
            if Instant::now() > deadline {
                bail!(
                    "in vain waited until {what}\n---- the kubelet's log\n{}\n---- the server's log\n{}",
                    self.kubelet.log(),
                    self.server.log()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Waits until the object is as `is` wants it.
    pub async fn wait(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        is: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = self
            .until(&format!("{kind} {name} is {what}"), || {
                let said = self.server.ask(&["get", kind, name, "-o", "json"], "")?;
                last = serde_json::from_str(&said.stdout).unwrap_or_default();
                Ok(said.ok && is(&last))
            })
            .await;
        found.with_context(|| format!("{last:#}"))?;
        Ok(last)
    }

    pub async fn wait_ready(&self, pod: &str) -> Result<Value> {
        self.wait("pod", pod, "ready", |it| condition(it, "Ready") == "True")
            .await
    }

    /// Makes a pod of these lines under `spec:`, bound to the node, with its default ServiceAccount's token.
    pub fn apply(&self, name: &str, spec: &str) -> Result<()> {
        self.server.kubectl_with(
            &["apply", "-f", "-"],
            &format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  nodeName: {NODE}\n  terminationGracePeriodSeconds: 1\n{spec}\n"
            ),
        )?;
        Ok(())
    }
}

/// How many pods of this name the runtime has.
pub async fn sandboxes(node: &Node, name: &str) -> Result<usize> {
    let pods = node.cri.pods(None).await?;
    let named = pods
        .iter()
        .filter(|pod| pod.metadata.as_ref().is_some_and(|it| it.name == name));
    Ok(named.count())
}

/// The token by which nodes join.
pub fn make_token(server: &Server) -> Result<()> {
    #[rustfmt::skip]
    server.kubectl(&[
        "-n", "kube-system", "create", "secret", "generic", TOKEN, "--type", "bootstrap.kubernetes.io/token",
        "--from-literal=token-id=abcdef", "--from-literal=token-secret=0123456789abcdef", "--from-literal=usage-bootstrap-authentication=true",
        "--from-literal=auth-extra-groups=system:bootstrappers:kubeadm:default-node-token",
    ])?;
    Ok(())
}

/// An API server, and a network in which it finds the node.
pub fn cluster() -> Result<Server> {
    for line in [
        format!("link add {LINK} type bridge"),
        format!("address add {ADDRESS}/24 dev {LINK}"),
        format!("link set {LINK} up"),
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>())?;
    }
    Server::start("fjall")
}

/// The status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    crate::scene::condition(&object["status"], kind)
}
