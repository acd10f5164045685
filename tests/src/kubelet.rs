//! A kubelet's HTTPS server, as much of it as an API server asks: logs, exec, attach, port-forward. Its streams are those of `berth-stream`, its containers
//! processes of this machine.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use async_trait::async_trait;
use berth_stream::{
    AttachRequest, Duplex, ExecRequest, Failure, PortForwardRequest, Request, Server,
    Stdio as Streamed, Streams,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

/// The longest head that is taken.
const HEAD_LIMIT: usize = 16 << 10;
/// Between the lines of a log that is followed.
pub const LINE_EVERY: Duration = Duration::from_millis(300);

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Kubelet {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    _runtime: Runtime,
}

struct Node {
    streams: Server,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Kubelet {
    /// On `listen`, with the certificate and key in `identity` (PEM, both in one file); clients must show a certificate of `ca`.
    pub fn start(listen: SocketAddr, identity: &Path, ca: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let config = tls(identity, ca)?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (listener, node) = runtime.block_on(async {
            let listener = TcpListener::bind(listen).await?;
            let streams = Server::bind(
                "127.0.0.1:0".parse()?,
                Duration::from_secs(60),
                Arc::new(Processes),
            )
            .await?;
            let seen = seen.clone();
            anyhow::Ok((listener, Arc::new(Node { streams, seen })))
        })?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            let acceptor = TlsAcceptor::from(config);
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, node) = (acceptor.clone(), node.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = node.serve(stream).await;
                    }
                });
            }
        });
        Ok(Self {
            address,
            seen,
            _runtime: runtime,
        })
    }

    /// The heads of all requests so far, and what came behind a refused upgrade.
    pub fn seen(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn tls(identity: &Path, ca: &str) -> Result<Arc<ServerConfig>> {
    let pem = std::fs::read(identity).with_context(|| identity.display().to_string())?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&pem)?;
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes())?)?;
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

impl Node {
    fn note(&self, what: &str) {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(what.to_owned());
    }

    async fn serve<S>(&self, mut stream: S) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_LIMIT {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head)?;
        self.note(&head);
        let uri = head.split(' ').nth(1).context("no URI")?;
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match parts.as_slice() {
            ["containerLogs", _, _, "waiting"] => {
                let why =
                    "container \"waiting\" in pod \"p\" is waiting to start: ContainerCreating\n";
                answer(&mut stream, "400 Bad Request", "", why).await
            }
            ["containerLogs", ..] if query.contains("follow=true") => {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
                    .await?;
                for line in 0.. {
                    let line = format!("line {line}\n");
                    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
                    stream.write_all(chunk.as_bytes()).await?;
                    stream.flush().await?;
                    tokio::time::sleep(LINE_EVERY).await;
                }
                Ok(())
            }
            ["containerLogs", ..] => answer(&mut stream, "200 OK", "", "a\nb\n").await,
            ["exec", _, _, container] => {
                let cmd = all(query, "command");
                let request = Request::Exec(ExecRequest {
                    container_id: (*container).to_owned(),
                    cmd,
                    tty: has(query, "tty"),
                    stdin: has(query, "input"),
                    stdout: has(query, "output"),
                    stderr: has(query, "error"),
                });
                self.splice(stream, &head, request).await
            }
            ["attach", _, _, container] => {
                let request = Request::Attach(AttachRequest {
                    container_id: (*container).to_owned(),
                    tty: has(query, "tty"),
                    stdin: has(query, "input"),
                    stdout: has(query, "output"),
                    stderr: has(query, "error"),
                });
                self.splice(stream, &head, request).await
            }
            ["portForward", _, pod] => {
                let request = Request::PortForward(PortForwardRequest {
                    pod_sandbox_id: (*pod).to_owned(),
                    ports: Vec::new(),
                });
                self.splice(stream, &head, request).await
            }
            ["healthz"] => answer(&mut stream, "200 OK", "", "ok").await,
            ["echo", ..] => answer(&mut stream, "200 OK", "Set-Cookie: a=b\r\n", &head).await,
            ["elsewhere"] => {
                answer(
                    &mut stream,
                    "302 Found",
                    "Location: https://10.211.0.9:1/x\r\n",
                    "",
                )
                .await
            }
            ["here"] => answer(&mut stream, "302 Found", "Location: /healthz\r\n", "").await,
            ["hang"] => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(())
            }
            // what comes behind it would be the pipe of CVE-2018-1002105
            ["refuse"] => {
                let no = "HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno";
                stream.write_all(no.as_bytes()).await?;
                stream.flush().await?;
                let mut more = vec![0; 4096];
                let read = stream.read(&mut more).await.unwrap_or(0);
                if read > 0 {
                    self.note(&format!("PIPE {}", String::from_utf8_lossy(&more[..read])));
                }
                Ok(())
            }
            _ => answer(&mut stream, "404 Not Found", "", "no such path").await,
        }
    }

    /// As a kubelet does: the runtime's URL is asked with the client's own upgrade, and bytes go both ways.
    async fn splice<S>(&self, mut stream: S, head: &str, request: Request) -> Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let url = self.streams.register(request)?;
        let rest = url.strip_prefix("http://").context("a URL")?;
        let (authority, path) = rest.split_once('/').context("a path")?;
        let mut runtime = TcpStream::connect(authority).await?;
        let method = head.split(' ').next().unwrap_or_default();
        let headers = head.split_once("\r\n").map_or("", |(_, headers)| headers);
        runtime
            .write_all(format!("{method} /{path} HTTP/1.1\r\n{headers}").as_bytes())
            .await?;
        tokio::io::copy_bidirectional(&mut stream, &mut runtime).await?;
        Ok(())
    }
}

async fn answer<S>(stream: &mut S, status: &str, headers: &str, body: &str) -> Result<()>
where
    S: AsyncWrite + Unpin,
{
    let text = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    Ok(())
}

fn has(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| pair == format!("{name}=1"))
}

fn all(query: &str, name: &str) -> Vec<String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| decoded(value))
        .collect()
}

fn decoded(text: &str) -> String {
    let text = text.replace('+', " ");
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let byte = tail
            .get(..2)
            .filter(|_| first == b'%')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        rest = if byte.is_some() { &tail[2..] } else { tail };
        bytes.push(byte.unwrap_or(first));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Containers are processes of this machine.
struct Processes;

#[async_trait]
impl Streams for Processes {
    async fn exec(&self, request: ExecRequest, stdio: Streamed) -> Result<i32, Failure> {
        let failed = |error: std::io::Error| Failure(error.to_string());
        let mut child = tokio::process::Command::new(&request.cmd[0])
            .args(&request.cmd[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (mut stdin, mut stdout, mut stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let Streamed {
            stdin: from,
            stdout: out,
            stderr: err,
            ..
        } = stdio;
        let feeds = tokio::spawn(async move {
            if let (Some(mut from), Some(stdin)) = (from, stdin.as_mut()) {
                let _ = tokio::io::copy(&mut from, stdin).await;
            }
            drop(stdin);
        });
        let out = async {
            if let (Some(mut out), Some(stdout)) = (out, stdout.as_mut()) {
                let _ = tokio::io::copy(stdout, &mut out).await;
            }
        };
        let err = async {
            if let (Some(mut err), Some(stderr)) = (err, stderr.as_mut()) {
                let _ = tokio::io::copy(stderr, &mut err).await;
            }
        };
        tokio::join!(out, err);
        let status = child.wait().await.map_err(failed)?;
        feeds.abort();
        Ok(status.code().unwrap_or(137))
    }

    async fn attach(&self, _: AttachRequest, stdio: Streamed) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure(error.to_string());
        if let Some(mut out) = stdio.stdout {
            out.write_all(b"attached\n").await.map_err(failed)?;
            if let Some(mut from) = stdio.stdin {
                tokio::io::copy(&mut from, &mut out).await.map_err(failed)?;
            }
        }
        Ok(())
    }

    async fn port_forward(
        &self,
        _: String,
        port: u16,
        mut stream: Box<dyn Duplex>,
    ) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure(error.to_string());
        let mut there = TcpStream::connect(("127.0.0.1", port))
            .await
            .map_err(failed)?;
        tokio::io::copy_bidirectional(&mut stream, &mut there)
            .await
            .map(drop)
            .map_err(failed)
    }
}
