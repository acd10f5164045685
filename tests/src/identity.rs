//! A node's own kubeconfig, with a certificate that is asked for and signed as a joining node's is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{cluster::Server, machine::patient};

const LIMIT: Duration = Duration::from_secs(60);

impl Server {
    /// Of the node `name`, as `system:node:NAME`; the admin approves.
    pub fn node_kubeconfig(&self, name: &str) -> Result<PathBuf> {
        let subject = format!("/O=system:nodes/CN=system:node:{name}");
        self.signed_kubeconfig(
            name,
            &subject,
            "kubernetes.io/kube-apiserver-client-kubelet",
        )
    }

    /// Of the component `name`, as `system:NAME`.
    pub fn component_kubeconfig(&self, name: &str) -> Result<PathBuf> {
        let subject = format!("/CN=system:{name}");
        self.signed_kubeconfig(name, &subject, "kubernetes.io/kube-apiserver-client")
    }

    fn signed_kubeconfig(&self, name: &str, subject: &str, signer: &str) -> Result<PathBuf> {
        let at = |end: &str| self.dir().join(format!("{name}.{end}"));
        let (key, csr) = (at("key"), at("csr"));
        #[rustfmt::skip]
        run("openssl", &[
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
            "-keyout", &key.to_string_lossy(), "-out", &csr.to_string_lossy(),
            "-subj", subject,
        ])?;
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": name},
            "spec": {
                "request": base64(&csr)?,
                "signerName": signer,
                "usages": ["digital signature", "client auth"],
            },
        });
        self.kubectl_with(&["create", "-f", "-"], &request.to_string())?;
        self.kubectl(&["certificate", "approve", name])?;
        let until = Instant::now() + patient(LIMIT);
        let certificate = loop {
            let signed = self.json(&["get", "csr", name])?;
            if let Some(certificate) = signed["status"]["certificate"].as_str() {
                break certificate.to_owned();
            }
            ensure!(Instant::now() < until, "it was not signed: {signed}");
            std::thread::sleep(Duration::from_millis(50));
        };
        let user = json!({
            "client-certificate-data": certificate,
            "client-key-data": base64(&key)?,
        });
        self.write_kubeconfig(&at("kubeconfig"), &user)?;
        Ok(at("kubeconfig"))
    }

    /// A kubeconfig for this server at `path`, with `user` as its `user`.
    pub fn write_kubeconfig(&self, path: &Path, user: &serde_json::Value) -> Result<()> {
        // JSON is YAML
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}", self.address),
                "certificate-authority-data": self.bundle()?,
            }}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        Ok(fs::write(path, config.to_string())?)
    }
}

/// A program that does what it is told.
pub fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn base64(path: &Path) -> Result<String> {
    let output = Command::new("base64").arg("-w0").arg(path).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}
