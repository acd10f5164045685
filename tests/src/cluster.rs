//! A real `berth up --server`, and a real kubectl that talks to it.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::daemon::bin_dir;

/// From its start until it says where it serves.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// A kubectl that takes longer hangs.
const KUBECTL_LIMIT: Duration = Duration::from_secs(60);

/// What `hack/deps` fetches.
fn cache() -> Result<PathBuf> {
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("no HOME")?).join(".cache"),
    };
    Ok(cache.join("berth"))
}

/// The kubectl that `hack/deps --test` has fetched; `BERTH_KUBECTL` names another one.
pub fn kubectl_path() -> Result<PathBuf> {
    let path = match std::env::var_os("BERTH_KUBECTL") {
        Some(path) => PathBuf::from(path),
        None => cache()?.join("kubectl/kubectl"),
    };
    ensure!(
        path.exists(),
        "no kubectl at {}: hack/deps --test fetches it",
        path.display()
    );
    Ok(path)
}

/// Where `hack/deps --test` has put Kubernetes' client for Python; `BERTH_PYTHON_CLIENT` names another directory.
pub fn client_packages() -> Result<PathBuf> {
    let path = match std::env::var_os("BERTH_PYTHON_CLIENT") {
        Some(path) => PathBuf::from(path),
        None => cache()?.join("python"),
    };
    ensure!(
        path.join("kubernetes").exists(),
        "no package kubernetes in {}: hack/deps --test fetches it",
        path.display()
    );
    Ok(path)
}

#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    dir: TempDir,
    store: String,
    arguments: Vec<String>,
    pub address: String,
    /// From the start of the process until it said where it serves.
    pub started_in: Duration,
}

/// What a kubectl has said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Server {
    /// One with a store of its own: `memory`, `fjall` or `etcd=…`.
    pub fn start(store: &str) -> Result<Self> {
        Self::start_with(store, &[])
    }

    /// With further arguments of `berth up`.
    pub fn start_with(store: &str, arguments: &[&str]) -> Result<Self> {
        let mut server = Self::new(store, arguments)?;
        server.start_again()?;
        Ok(server)
    }

    /// … that listens at `listen`: its client asks it at the loopback.
    pub fn start_listening(store: &str, listen: &str) -> Result<Self> {
        let mut server = Self::new(store, &[])?;
        server.start_at(listen)?;
        Ok(server)
    }

    fn new(store: &str, arguments: &[&str]) -> Result<Self> {
        Ok(Self {
            child: None,
            dir: tempfile::tempdir()?,
            store: store.to_owned(),
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            address: String::new(),
            started_in: Duration::ZERO,
        })
    }

    pub fn start_again(&mut self) -> Result<()> {
        self.start_at("127.0.0.1:0")
    }

    /// … at the address that it had.
    pub fn start_again_there(&mut self) -> Result<()> {
        let address = self.address.clone();
        self.start_at(&address)
    }

    fn start_at(&mut self, listen: &str) -> Result<()> {
        let begun = Instant::now();
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.path().join("log"))?;
        let mut child = Command::new(bin_dir()?.join("berth"))
            .args(["up", "--server", "--api-only", "--listen", listen])
            .args(["--store", &self.store])
            .args(&self.arguments)
            .arg("--data")
            .arg(self.data())
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        self.child = Some(child);
        let (sender, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = said.recv_timeout(READY_LIMIT).unwrap_or_default();
        let Some(address) = line.trim().strip_prefix("https://") else {
            bail!("the server did not start: {}", self.log());
        };
        self.address = address.to_owned();
        self.started_in = begun.elapsed();
        Ok(())
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// The certificate of its own CA: PEM, in base64.
    pub fn bundle(&self) -> Result<String> {
        let output = Command::new("base64")
            .arg("-w0")
            .arg(self.data().join("pki/ca.crt"))
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.id() as i32)
    }

    pub fn kill_9(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; how long it took to end.
    pub fn stop(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let mut child = self.child.take().context("it does not run")?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        ensure!(status.success(), "it ended with {status}: {}", self.log());
        Ok(begun.elapsed())
    }

    /// Its home is in the server's directory.
    pub fn client(&self) -> Kubectl {
        Kubectl {
            kubeconfig: self.kubeconfig(),
            home: self.dir.path().to_owned(),
            log: self.dir.path().join("log"),
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        self.client().command(arguments)
    }

    pub fn ask(&self, arguments: &[&str], stdin: &str) -> Result<Said> {
        self.client().ask(arguments, stdin)
    }

    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.client().kubectl(arguments)
    }

    pub fn kubectl_with(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        self.client().kubectl_with(arguments, stdin)
    }

    pub fn refused(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        self.client().refused(arguments, stdin)
    }

    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        self.client().json(arguments)
    }
}

/// A real kubectl, and who it is.
#[derive(Debug, Clone)]
pub struct Kubectl {
    pub kubeconfig: PathBuf,
    /// Where it keeps what it has learnt.
    pub home: PathBuf,
    /// The server's, told when something fails.
    pub log: PathBuf,
}

impl Kubectl {
    /// Not started.
    pub fn command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(kubectl_path()?);
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(arguments)
            .env("HOME", &self.home)
            .current_dir(&self.home);
        Ok(command)
    }

    /// What it says, with `stdin` for it to read.
    pub fn ask(&self, arguments: &[&str], stdin: &str) -> Result<Said> {
        let mut child = self
            .command(arguments)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut pipe = child.stdin.take().context("no stdin")?;
        pipe.write_all(stdin.as_bytes())?;
        drop(pipe);
        let pid = rustix::process::Pid::from_child(&child);
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let guard = std::thread::spawn(move || {
            if waits.recv_timeout(KUBECTL_LIMIT) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        });
        let output = child.wait_with_output()?;
        let _ = done.send(());
        let _ = guard.join();
        Ok(Said {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// What a kubectl prints that does what it is told.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, "")
    }

    pub fn kubectl_with(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        let said = self.ask(arguments, stdin)?;
        ensure!(
            said.ok,
            "kubectl {arguments:?}: {}\n{}\nserver: {}",
            said.stderr,
            said.stdout,
            fs::read_to_string(&self.log).unwrap_or_default()
        );
        Ok(said.stdout)
    }

    /// What a kubectl complains of that is refused.
    pub fn refused(&self, arguments: &[&str], stdin: &str) -> Result<String> {
        let said = self.ask(arguments, stdin)?;
        ensure!(
            !said.ok,
            "kubectl {arguments:?} was not refused: {}",
            said.stdout
        );
        Ok(said.stderr)
    }

    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill_9();
    }
}

/// `berth scheduler` or `berth controllers` at a server: its log is NAME.log in the server's directory. Ended when it is dropped.
#[derive(Debug)]
pub struct Component(Child);

impl Component {
    pub fn start(server: &Server, name: &str, arguments: &[&str]) -> Result<Self> {
        Self::start_at(server, &server.kubeconfig(), name, arguments)
    }

    /// By another way to the server.
    pub fn start_at(
        server: &Server,
        kubeconfig: &Path,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self> {
        Self::start_in(server.dir(), kubeconfig, name, arguments)
    }

    /// With its log in `dir`.
    pub fn start_in(dir: &Path, kubeconfig: &Path, name: &str, arguments: &[&str]) -> Result<Self> {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(dir.join(format!("{name}.log")))?;
        let child = Command::new(bin_dir()?.join("berth"))
            .args([name, "--kubeconfig"])
            .arg(kubeconfig)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self(child))
    }

    pub fn kill_9(&mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// SIGTERM; it ends well.
    pub fn stop(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        let _ = self.kill_9();
    }
}

/// `kubectl proxy`: the admin's plain HTTP, for what no kubectl would send.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    port: u16,
}

/// What is answered to one request.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| self.body.clone())
    }
}

impl Server {
    pub fn proxy(&self) -> Result<Proxy> {
        self.client().proxy()
    }
}

impl Kubectl {
    /// Asks as whom this kubeconfig has.
    pub fn proxy(&self) -> Result<Proxy> {
        let mut child = self
            .command(&["proxy", "--port=0", "--disable-filter"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        let mut proxy = Proxy { child, port: 0 };
        proxy.port = port.with_context(|| format!("kubectl proxy says {line:?}"))?;
        Ok(proxy)
    }
}

impl Proxy {
    /// Of 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The whole answer of one request, or what there is of it within `limit`.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Answer> {
        self.request_within(method, path, content_type, body, Duration::from_secs(20))
    }

    pub fn request_within(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
        limit: Duration,
    ) -> Result<Answer> {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        let until = Instant::now() + limit;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        // It may answer before it has read all, and close.
        let _ = stream.write_all(body);
        let mut bytes = Vec::new();
        let mut buffer = [0; 64 << 10];
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text.as_str(), ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
            unchunked(body)
        } else {
            body.to_owned()
        };
        Ok(Answer {
            code: code.with_context(|| format!("no answer: {head:?}"))?,
            head: head.to_owned(),
            body,
        })
    }

    pub fn get(&self, path: &str) -> Result<Answer> {
        self.request("GET", path, "", b"")
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut whole = String::new();
    while let Some((length, after)) = rest.split_once("\r\n") {
        let Ok(length) = usize::from_str_radix(length.trim(), 16) else {
            break;
        };
        let length = length.min(after.len());
        if length == 0 {
            break;
        }
        whole.push_str(&after[..length]);
        rest = after[length..].strip_prefix("\r\n").unwrap_or("");
    }
    whole
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
