//! An admission webhook that does what its path says.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

const HEAD_LIMIT: usize = 16 << 10;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Webhook {
    pub address: SocketAddr,
    /// PEM, in base64.
    pub bundle: String,
    seen: Arc<Mutex<Vec<Value>>>,
    _runtime: Runtime,
}

/// A certificate for loopback of its own making, `hook.crt` in `directory` (PEM), and what serves by it.
pub fn loopback_identity(directory: &Path) -> Result<(PathBuf, Arc<ServerConfig>)> {
    let (key, certificate) = (directory.join("hook.key"), directory.join("hook.crt"));
    #[rustfmt::skip]
        let made = Command::new("openssl")
            .args(["req", "-x509", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=hook", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout").arg(&key).arg("-out").arg(&certificate)
            .output()?;
    ensure!(made.status.success(), "{made:?}");
    let pem = std::fs::read(&certificate)?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&pem)?],
            PrivateKeyDer::from_pem_file(&key)?,
        )?;
    Ok((certificate, Arc::new(config)))
}

impl Webhook {
    /// On a port of loopback, with a certificate of its own making, in `directory`.
    pub fn start(directory: &Path) -> Result<Self> {
        let (certificate, config) = loopback_identity(directory)?;
        let encoded = Command::new("base64")
            .arg("-w0")
            .arg(&certificate)
            .output()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        runtime.spawn(async move {
            let acceptor = TlsAcceptor::from(config);
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, notes) = (acceptor.clone(), notes.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = serve(stream, &notes).await;
                    }
                });
            }
        });
        Ok(Self {
            address,
            bundle: String::from_utf8(encoded.stdout)?,
            seen,
            _runtime: runtime,
        })
    }

    /// What it was asked, so far.
    pub fn seen(&self) -> Vec<Value> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Null where it was asked nothing.
    pub fn last(&self) -> Value {
        self.seen().pop().unwrap_or_default()
    }

    /// The last that it was asked of this resource.
    pub fn of(&self, resource: &str) -> Value {
        let seen = self.seen().into_iter().rev();
        seen.into_iter()
            .find(|review| review["request"]["resource"]["resource"] == resource)
            .unwrap_or_default()
    }

    /// A configuration for ConfigMaps, of `kind` and with this failurePolicy.
    pub fn configuration(&self, kind: &str, path: &str, failure_policy: &str) -> Value {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": kind,
            "metadata": {"name": "hook"},
            "webhooks": [{
                "name": "hook.example.com",
                "clientConfig": {
                    "url": format!("https://{}/{path}", self.address),
                    "caBundle": self.bundle,
                },
                "rules": [{
                    "operations": ["CREATE", "UPDATE", "DELETE"],
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["configmaps"],
                }],
                "failurePolicy": failure_policy,
                "sideEffects": "None",
                "timeoutSeconds": 2,
                "admissionReviewVersions": ["v1"],
            }],
        })
    }
}

async fn serve<S>(mut stream: S, seen: &Mutex<Vec<Value>>) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_LIMIT {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?.to_lowercase();
    let length: usize = head
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
        .context("no length")?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let review: Value = serde_json::from_slice(&body)?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default();
    let mut note = review.clone();
    note["followed"] = (path == "/followed").into();
    seen.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(note);
    let uid = &review["request"]["uid"];
    let response = match path {
        "/allow" => json!({"uid": uid, "allowed": true, "warnings": ["seen by the hook"]}),
        "/deny" => {
            json!({"uid": uid, "allowed": false, "status": {"message": "not today", "code": 418}})
        }
        "/uid" => json!({"uid": "another", "allowed": true}),
        // [{"op":"add","path":"/metadata/labels","value":{"hooked":"yes"}}]
        "/label" => json!({"uid": uid, "allowed": true, "patchType": "JSONPatch",
            "patch": "W3sib3AiOiJhZGQiLCJwYXRoIjoiL21ldGFkYXRhL2xhYmVscyIsInZhbHVlIjp7Imhvb2tlZCI6InllcyJ9fV0="}),
        // [{"op":"add","path":"/metadata/labels/later","value":"yes"}]
        "/later" => json!({"uid": uid, "allowed": true, "patchType": "JSONPatch",
            "patch": "W3sib3AiOiJhZGQiLCJwYXRoIjoiL21ldGFkYXRhL2xhYmVscy9sYXRlciIsInZhbHVlIjoieWVzIn1d"}),
        // [{"op":"add","path":"/spec/replicas","value":4}]
        "/replicas" => json!({"uid": uid, "allowed": true, "patchType": "JSONPatch",
            "patch": "W3sib3AiOiJhZGQiLCJwYXRoIjoiL3NwZWMvcmVwbGljYXMiLCJ2YWx1ZSI6NH1d"}),
        // [{"op":"replace","path":"/metadata/name","value":"other"}]
        "/rename" => json!({"uid": uid, "allowed": true, "patchType": "JSONPatch",
            "patch": "W3sib3AiOiJyZXBsYWNlIiwicGF0aCI6Ii9tZXRhZGF0YS9uYW1lIiwidmFsdWUiOiJvdGhlciJ9XQ=="}),
        // [{"op":"replace","path":"/data","value":[3]}]
        "/form" => json!({"uid": uid, "allowed": true, "patchType": "JSONPatch",
            "patch": "W3sib3AiOiJyZXBsYWNlIiwicGF0aCI6Ii9kYXRhIiwidmFsdWUiOlszXX1d"}),
        "/rubbish" => {
            json!({"uid": uid, "allowed": true, "patchType": "JSONPatch", "patch": "W10tW10="})
        }
        "/hang" => {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Value::Null
        }
        "/elsewhere" => {
            let text = "HTTP/1.1 302 Found\r\nLocation: /followed\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(text.as_bytes()).await?;
            return Ok(stream.shutdown().await?);
        }
        "/huge" => {
            json!({"uid": uid, "allowed": true, "auditAnnotations": {"x": "y".repeat(4 << 20)}})
        }
        _ => Value::Null,
    };
    let answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
    let answer = answer.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        answer.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}
