//! A real registry on loopback, images to put into it, and a proxy that breaks what comes out of it.
#![allow(dead_code)] // each test file uses its part

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use berth_image::{Config, Store, Timeouts};
use berth_state::Ledger;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// bcrypt of `U*U`, the test vector of crypt_blowfish.
pub const HTPASSWD: &str = "bob:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n";
pub const PASSWORD: &str = "U*U";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Debian's docker-registry, stopped with the value.
pub struct Registry {
    child: Child,
    pub port: u16,
    _dir: tempfile::TempDir,
    password: Option<&'static str>,
    client: reqwest::Client,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    pub async fn start_with(password: Option<&'static str>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let auth = match password {
            None => String::new(),
            Some(_) => {
                let path = dir.path().join("htpasswd");
                fs::write(&path, HTPASSWD).unwrap();
                format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                    path.display()
                )
            }
        };
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let config = dir.path().join("config.yml");
            fs::write(&config, format!("version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n{auth}", dir.path().join("data").display())).unwrap();
            let log = fs::File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect("docker-registry is installed");
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    let client = reqwest::Client::builder()
                        .no_proxy()
                        .tls_certs_only([])
                        .build()
                        .unwrap();
                    return Self {
                        child,
                        port,
                        _dir: dir,
                        password,
                        client,
                    };
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!(
            "docker-registry does not listen: {}",
            fs::read_to_string(dir.path().join("log")).unwrap()
        );
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn request(&self, method: reqwest::Method, url: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url);
        match self.password {
            Some(password) => request.basic_auth("bob", Some(password)),
            None => request,
        }
    }

    pub async fn push_blob(&self, repository: &str, bytes: &[u8]) -> String {
        let url = format!("http://{}/v2/{repository}/blobs/uploads/", self.host());
        let answer = self
            .request(reqwest::Method::POST, &url)
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with("http") {
            location
        } else {
            format!("http://{}{location}", self.host())
        };
        let digest = digest(bytes);
        let url = format!("{location}&digest={digest}");
        self.request(reqwest::Method::PUT, &url)
            .header("content-type", "application/octet-stream")
            .body(bytes.to_vec())
            .send()
            .await
            .unwrap()
            .error_for_status()
            .unwrap();
        digest
    }

    pub async fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> String {
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.host());
        let answer = self
            .request(reqwest::Method::PUT, &url)
            .header("content-type", media_type)
            .body(bytes.to_vec())
            .send()
            .await
            .unwrap();
        assert!(
            answer.status().is_success(),
            "push: {}",
            answer.text().await.unwrap()
        );
        digest(bytes)
    }

    /// Pushes blobs and manifest; returns the digest of the manifest.
    pub async fn push(&self, repository: &str, tag: &str, image: &TestImage) -> String {
        for layer in &image.layers {
            self.push_blob(repository, &layer.blob).await;
        }
        self.push_blob(repository, image.config.as_bytes()).await;
        self.push_manifest(
            repository,
            tag,
            image.media_type(),
            image.manifest().as_bytes(),
        )
        .await
    }
}

#[derive(Clone)]
pub struct TestLayer {
    pub blob: Vec<u8>,
    pub tar: Vec<u8>,
    pub media_type: &'static str,
}

impl TestLayer {
    pub fn gzip(tar: Vec<u8>) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).unwrap();
        Self {
            blob: encoder.finish().unwrap(),
            tar,
            media_type: GZIP,
        }
    }

    pub fn zstd(tar: Vec<u8>) -> Self {
        Self {
            blob: zstd::stream::encode_all(&tar[..], 3).unwrap(),
            tar,
            media_type: ZSTD,
        }
    }

    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": digest(&self.blob), "size": self.blob.len()})
    }
}

#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<TestLayer>,
    pub config: String,
    pub is_docker: bool,
}

impl TestImage {
    pub fn new(layers: Vec<TestLayer>, note: &str) -> Self {
        Self::for_architecture(
            layers,
            note,
            if cfg!(target_arch = "aarch64") {
                "arm64"
            } else {
                "amd64"
            },
        )
    }

    pub fn for_architecture(layers: Vec<TestLayer>, note: &str, architecture: &str) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|l| digest(&l.tar)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "author": note,
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self {
            layers,
            config: config.to_string(),
            is_docker: false,
        }
    }

    pub fn id(&self) -> String {
        digest(self.config.as_bytes())
    }

    pub fn media_type(&self) -> &'static str {
        if self.is_docker {
            DOCKER_MANIFEST
        } else {
            OCI_MANIFEST
        }
    }

    pub fn manifest(&self) -> String {
        let config_type = if self.is_docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            OCI_CONFIG
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| {
                let mut descriptor = layer.descriptor();
                if self.is_docker {
                    descriptor["mediaType"] =
                        json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
                }
                descriptor
            })
            .collect();
        json!({
            "schemaVersion": 2, "mediaType": self.media_type(),
            "config": {"mediaType": config_type, "digest": self.id(), "size": self.config.len()},
            "layers": layers,
        })
        .to_string()
    }
}

pub fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, data) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_mtime(1_700_000_000);
        if let Some(dir) = path.strip_suffix('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, dir, &[][..]).unwrap();
        } else {
            header.set_mode(0o644);
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, path, *data).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// Bytes that don't compress.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

/// A store in a directory of its own.
pub struct Home {
    pub dir: PathBuf,
    pub store: Store,
    pub ledger: Ledger,
    _temporary: Option<tempfile::TempDir>,
}

impl Home {
    pub async fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut home = Self::at(temporary.path()).await;
        home._temporary = Some(temporary);
        home
    }

    pub async fn at(dir: &Path) -> Self {
        let ledger = Ledger::open(&dir.join("ledger")).unwrap();
        let config = Config {
            root: dir.join("image"),
            hosts_dir: dir.join("certs.d"),
            max_parallel_layers: 3,
        };
        let timeouts = Timeouts {
            stall: Duration::from_secs(2),
            response: Duration::from_secs(5),
            ..Timeouts::default()
        };
        let store = Store::open_with_timeouts(config, ledger.clone(), timeouts)
            .await
            .unwrap();
        Self {
            dir: dir.to_owned(),
            store,
            ledger,
            _temporary: None,
        }
    }

    /// Writes a hosts.toml for `registry`.
    pub fn hosts(&self, registry: &str, text: &str) {
        let dir = self.dir.join("certs.d").join(registry);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    pub fn count(&self, dir: &str) -> usize {
        fs::read_dir(self.dir.join("image").join(dir))
            .unwrap()
            .count()
    }

    /// Asserts that nothing of a failed pull is left.
    pub fn assert_empty(&self) {
        for dir in ["l", "ingest", "records/images", "records/layers"] {
            assert_eq!(self.count(dir), 0, "{dir} is not empty");
        }
        assert_eq!(self.ledger.owners().unwrap(), Vec::<String>::new());
        assert!(self.store.list().is_empty());
    }
}

#[derive(Clone, Default)]
pub struct Fault {
    /// Requests whose path ends in this are broken.
    pub suffix: String,
    /// Close the connection after so many bytes of the body, so many times.
    pub cut: Option<(usize, usize)>,
    /// Flip the byte there.
    pub flip: Option<usize>,
    /// Send only so many bytes and say that this is all.
    pub truncate: Option<usize>,
    /// Send so many bytes, then nothing.
    pub stall: Option<usize>,
    /// Don't pass Range on.
    pub is_without_range: bool,
    /// Answer this instead of asking the registry.
    pub answer: Option<Vec<u8>>,
    /// Requests whose head has this pass.
    pub unless: Option<String>,
}

/// Stands between the store and the registry, one request a connection.
pub struct Proxy {
    pub port: u16,
    pub faults: Arc<Mutex<Vec<Fault>>>,
    /// Heads of all requests.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let faults = Arc::new(Mutex::new(Vec::new()));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (shared, heads) = (faults.clone(), requests.clone());
        let cuts = Arc::new(AtomicUsize::new(0));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (shared, heads, cuts) = (shared.clone(), heads.clone(), cuts.clone());
                thread::spawn(move || {
                    client
                        .ok()
                        .and_then(|client| serve(client, upstream, &shared, &heads, &cuts).ok())
                });
            }
        });
        Self {
            port,
            faults,
            requests,
        }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn set(&self, fault: Fault) {
        *self.faults.lock().unwrap() = vec![fault];
    }

    pub fn count(&self, part: &str) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|head| head.lines().next().unwrap().contains(part))
            .count()
    }
}

fn head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..length]);
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
    }
}

fn serve(
    mut client: TcpStream,
    upstream: u16,
    shared: &Mutex<Vec<Fault>>,
    heads: &Mutex<Vec<String>>,
    cuts: &AtomicUsize,
) -> std::io::Result<()> {
    let (request, _) = head(&mut client)?;
    heads.lock().unwrap().push(request.clone());
    let path = request
        .split(' ')
        .nth(1)
        .unwrap_or("")
        .split('?')
        .next()
        .unwrap()
        .to_owned();
    let applies = |f: &&Fault| {
        path.ends_with(&f.suffix)
            && !f
                .unless
                .as_ref()
                .is_some_and(|text| request.contains(text.as_str()))
    };
    let found = shared.lock().unwrap().iter().find(applies).cloned();
    let (is_broken, fault) = (found.is_some(), found.unwrap_or_default());
    if is_broken && let Some(answer) = fault.answer {
        return client.write_all(&answer);
    }
    let mut server = TcpStream::connect(("127.0.0.1", upstream))?;
    let lines = request.trim_end().split("\r\n").filter(|line| {
        !(is_broken && fault.is_without_range && line.to_ascii_lowercase().starts_with("range:"))
    });
    let request: Vec<&str> = lines.collect();
    server
        .write_all(format!("{}\r\nConnection: close\r\n\r\n", request.join("\r\n")).as_bytes())?;
    let (mut answer, mut body) = head(&mut server)?;
    server.read_to_end(&mut body)?;
    if is_broken {
        if let Some(at) = fault.flip
            && at < body.len()
        {
            body[at] ^= 0x55;
        }
        if let Some(length) = fault.truncate {
            let old = body.len();
            body.truncate(length);
            answer = answer.replace(
                &format!("Content-Length: {old}"),
                &format!("Content-Length: {}", body.len()),
            );
        }
        if let Some(length) = fault.stall {
            client.write_all(answer.as_bytes())?;
            client.write_all(&body[..length.min(body.len())])?;
            thread::sleep(Duration::from_secs(8));
            return Ok(());
        }
        if let Some((length, times)) = fault.cut
            && cuts.fetch_add(1, Ordering::SeqCst) < times
        {
            body.truncate(length);
        }
    }
    client.write_all(answer.as_bytes())?;
    client.write_all(&body)
}

pub fn busybox() -> Vec<u8> {
    let binary = fs::read("/bin/busybox").expect("busybox-static is installed");
    tar_of(&[
        ("bin/", b""),
        ("bin/busybox", &binary),
        ("etc/", b""),
        ("etc/motd", b"hello"),
    ])
}

pub fn small(note: &str) -> TestImage {
    TestImage::new(
        vec![TestLayer::gzip(tar_of(&[
            ("etc/", b""),
            ("etc/note", note.as_bytes()),
        ]))],
        note,
    )
}
