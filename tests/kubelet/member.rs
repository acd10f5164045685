//! A node of a cluster: `berth up --server` and `berth kubelet --kubeconfig` beside a test's daemon, and a real kubectl that looks at them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_tests::{Node, cluster::Server, machine::patient};
use serde_json::{Value, json};

use crate::scene::Kubelet;

/// The node's name and address; no address of loopback is dialled by an API server.
pub const NODE: &str = "n1";
pub const ADDRESS: &str = "10.211.0.1";
const LINK: &str = "berth-t0";
const PORT: u16 = 10250;
/// How long anything may take that is not told to take longer.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Member {
    pub server: Server,
    pub kubelet: Kubelet,
}

impl Member {
    /// A node that is ready, whose server's certificate was approved.
    pub async fn start(node: &Node) -> Result<Self> {
        for line in [
            format!("link add {LINK} type bridge"),
            format!("address add {ADDRESS}/24 dev {LINK}"),
            format!("link set {LINK} up"),
        ] {
            run("ip", &line.split(' ').collect::<Vec<_>>())?;
        }
        let server = Server::start("fjall")?;
        let kubeconfig = kubeconfig(&server)?;
        let listen = format!("{ADDRESS}:{PORT}");
        #[rustfmt::skip]
        let flags = [
            "--kubeconfig", &kubeconfig.display().to_string(), "--node-ip", ADDRESS, "--listen", &listen,
            "--rotate-server-certificates", "--node-labels", "disk=fast",
        ];
        let kubelet = Kubelet::start_with(node, &flags)?;
        let member = Self { server, kubelet };
        member.approve_serving().await?;
        member
            .wait("node", NODE, "ready", |it| condition(it, "Ready") == "True")
            .await?;
        Ok(member)
    }

    /// Ends all; the test's network is as it was.
    pub fn end(mut self) -> Result<()> {
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

/// The status of a condition of an object.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    crate::scene::condition(&object["status"], kind)
}

pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The node's own kubeconfig, with a certificate that is asked for and signed as a joining node's is.
fn kubeconfig(server: &Server) -> Result<PathBuf> {
    let at = |end: &str| server.dir().join(format!("node.{end}"));
    let (key, csr) = (at("key"), at("csr"));
    #[rustfmt::skip]
    run("openssl", &[
        "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", &key.to_string_lossy(), "-out", &csr.to_string_lossy(),
        "-subj", &format!("/O=system:nodes/CN=system:node:{NODE}"),
    ])?;
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": "node"},
        "spec": {
            "request": base64(&csr)?,
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["digital signature", "client auth"],
        },
    });
    server.kubectl_with(&["create", "-f", "-"], &request.to_string())?;
    server.kubectl(&["certificate", "approve", "node"])?;
    let until = Instant::now() + LIMIT;
    let certificate = loop {
        let signed = server.json(&["get", "csr", "node"])?;
        if let Some(certificate) = signed["status"]["certificate"].as_str() {
            break certificate.to_owned();
        }
        ensure!(Instant::now() < until, "it was not signed: {signed}");
        std::thread::sleep(Duration::from_millis(50));
    };
    // JSON is YAML
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {
            "server": format!("https://{}", server.address),
            "certificate-authority-data": server.bundle()?,
        }}],
        "users": [{"name": "u", "user": {
            "client-certificate-data": certificate,
            "client-key-data": base64(&key)?,
        }}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    });
    fs::write(at("kubeconfig"), config.to_string())?;
    Ok(at("kubeconfig"))
}

fn base64(path: &Path) -> Result<String> {
    let output = Command::new("base64").arg("-w0").arg(path).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
