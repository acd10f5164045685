//! A real registry, Debian's `docker-registry`, on the test's own loopback at the port that people use: 5000.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{image::digest, machine::patient};

pub const ADDRESS: &str = "127.0.0.1:5000";
/// How long the registry may take to answer its first request.
const START_LIMIT: Duration = Duration::from_secs(20);
/// User and password of a registry that asks for them, and their line in its password file.
pub const USER: &str = "sailor";
pub const PASSWORD: &str = "anchor";
const HTPASSWD: &str = "sailor:$2b$04$3MYVabifEa45KStdYQqlmuJdPtIX/N5zp5tncelkPBp5166TCtt/y\n";

#[derive(Debug)]
pub struct Registry {
    child: Child,
    pub address: String,
    pub storage: PathBuf,
    password: bool,
}

impl Registry {
    /// Serves `storage` at `address`; configuration and log go to `dir`.
    pub fn start(dir: &Path, storage: &Path, address: &str, password: bool) -> Result<Self> {
        fs::create_dir_all(dir)?;
        fs::create_dir_all(storage)?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{address}\"}}\n",
            storage.display()
        );
        if password {
            let file = dir.join("htpasswd");
            fs::write(&file, HTPASSWD)?;
            config.push_str(&format!(
                "auth: {{htpasswd: {{realm: harbour, path: {}}}}}\n",
                file.display()
            ));
        }
        let file = dir.join("registry.yml");
        fs::write(&file, config)?;
        let log = fs::File::create(dir.join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry (package docker-registry)")?;
        let registry = Self {
            child,
            address: address.to_owned(),
            storage: storage.to_owned(),
            password,
        };
        let deadline = Instant::now() + patient(START_LIMIT);
        while registry.request("GET", "/v2/", "", &[]).is_err() {
            ensure!(
                Instant::now() < deadline,
                "docker-registry does not answer at {address}: see {}",
                dir.join("registry.log").display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    /// One HTTP request: status and `Location`.
    fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n",
            self.address,
            body.len()
        );
        if !content_type.is_empty() {
            head.push_str(&format!("Content-Type: {content_type}\r\n"));
        }
        if self.password {
            // base64 of "sailor:anchor"
            head.push_str("Authorization: Basic c2FpbG9yOmFuY2hvcg==\r\n");
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .context("not an HTTP answer")?;
        let head = text.split("\r\n\r\n").next().unwrap_or_default();
        let location = head.lines().find_map(|line| {
            line.split_once(": ")
                .filter(|(key, _)| key.eq_ignore_ascii_case("location"))
        });
        Ok((
            status,
            location
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default(),
        ))
    }

    pub fn push_blob(&self, repository: &str, blob: &[u8]) -> Result<()> {
        let digest = digest(blob);
        if self
            .request("HEAD", &format!("/v2/{repository}/blobs/{digest}"), "", &[])?
            .0
            == 200
        {
            return Ok(());
        }
        let (status, location) =
            self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
        ensure!(
            status == 202,
            "begin the upload of a blob to {repository}: status {status}"
        );
        let path = location
            .find("/v2/")
            .map(|at| &location[at..])
            .context("an upload without a place")?;
        let joint = if path.contains('?') { '&' } else { '?' };
        let (status, _) = self.request(
            "PUT",
            &format!("{path}{joint}digest={digest}"),
            "application/octet-stream",
            blob,
        )?;
        ensure!(
            status == 201,
            "upload a blob to {repository}: status {status}"
        );
        Ok(())
    }

    pub fn push_manifest(
        &self,
        repository: &str,
        reference: &str,
        media_type: &str,
        manifest: &[u8],
    ) -> Result<()> {
        let (status, _) = self.request(
            "PUT",
            &format!("/v2/{repository}/manifests/{reference}"),
            media_type,
            manifest,
        )?;
        if status != 201 {
            bail!("push the manifest {repository}:{reference}: status {status}");
        }
        Ok(())
    }

    /// The file that holds a blob's bytes: to be spoiled by tests of damaged downloads.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.storage
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// hosts.toml files that send these registries' names to `address`.
pub fn write_mirrors(hosts_dir: &Path, hosts: &[&str], address: &str) -> Result<()> {
    for host in hosts {
        let dir = hosts_dir.join(host);
        fs::create_dir_all(&dir)?;
        fs::write(
            dir.join("hosts.toml"),
            format!(
                "server = \"http://{address}\"\n\n[host.\"http://{address}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            ),
        )?;
    }
    Ok(())
}
