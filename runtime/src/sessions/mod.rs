//! What the stream server's sessions do: an exec over the shim's fifos, a connection into a pod's network namespace.

use std::{
    fs::File,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_state::Object;
use berth_stream::{AttachRequest, Duplex, ExecRequest, Failure, Stdio, Streams, Writer};
use nix::{
    sched::{CloneFlags, setns},
    sys::stat::Mode,
    unistd::mkfifo,
};
use oci_spec::runtime::{Process, Spec};
use tokio::{
    io::{AsyncWriteExt, copy},
    net::unix::pipe,
};

use crate::{
    cri::containers::running,
    error::Error,
    id,
    pod::{
        Pod,
        registry::Registry,
        shim::{Exec, Shim},
    },
};

/// A port of the pod's own loopback answers at once or not at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// After the command has ended, how long its output may take to be read. A grandchild that keeps the terminal open does not hold the client.
const DRAIN: Duration = Duration::from_secs(5);

/// The sessions of this node.
#[derive(Debug)]
pub struct Sessions {
    pub registry: Arc<Registry>,
}

#[async_trait::async_trait]
impl Streams for Sessions {
    async fn exec(&self, request: ExecRequest, stdio: Stdio) -> Result<i32, Failure> {
        self.run(request, stdio).await.map_err(told)
    }

    async fn attach(&self, request: AttachRequest, _: Stdio) -> Result<(), Failure> {
        Err(Failure(format!(
            "attach to container {}: not built yet",
            request.container_id
        )))
    }

    async fn port_forward(
        &self,
        pod_sandbox_id: String,
        port: u16,
        mut stream: Box<dyn Duplex>,
    ) -> Result<(), Failure> {
        let view = self.registry.pod(&pod_sandbox_id).map_err(told)?.view();
        if !view.ready {
            return Err(Failure(format!(
                "forward port {port} of pod {pod_sandbox_id}: it is not ready"
            )));
        }
        let netns = Some(PathBuf::from(&view.netns)).filter(|_| !view.pod.host_network());
        let mut connection = connect(netns, port)
            .await
            .map_err(|e| Failure(format!("forward port {port} of pod {pod_sandbox_id}: {e}")))?;
        // An end that breaks off is how connections end.
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut connection).await;
        Ok(())
    }
}

fn told(error: Error) -> Failure {
    Failure(error.to_string())
}

impl Sessions {
    async fn run(&self, request: ExecRequest, stdio: Stdio) -> Result<i32, Error> {
        let (view, container) = self.registry.container_view(&request.container_id)?;
        let shim = running(&view, &container, "exec in")?.clone();
        let container_id = container.record.id.clone();
        let process = process(&view.pod.container_dir(&container_id), &request)?;
        // Dropped with this future: nothing of the session outlives its client.
        let session = Session::open(view.pod.clone(), shim, container_id)?;
        let ends = session.ends(&request)?;
        session
            .shim
            .exec(&Exec {
                container_id: &session.container_id,
                exec_id: &session.exec_id,
                fifos: session.fifos(&request),
                process: &process,
            })
            .await?;
        session.carry(ends, stdio).await
    }
}

/// The container's own process, with another command.
fn process(bundle: &Path, request: &ExecRequest) -> Result<Process, Error> {
    let config = bundle.join("config.json");
    let spec = Spec::load(&config)
        .map_err(|e| Error::io("read", &config)(std::io::Error::other(e.to_string())))?;
    let mut process = spec.process().clone().unwrap_or_default();
    process
        .set_args(Some(request.cmd.clone()))
        .set_terminal(Some(request.tty));
    Ok(process)
}

/// The daemon's ends of the fifos.
struct Ends {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
}

/// An exec's fifos and what stands for it in the shim.
struct Session {
    pod: Arc<Pod>,
    shim: Shim,
    container_id: String,
    exec_id: String,
    fifos: [PathBuf; 3],
}

impl Session {
    fn open(pod: Arc<Pod>, shim: Shim, container_id: String) -> Result<Self, Error> {
        let exec_id = id::generate()[..16].to_owned();
        let dir = pod.container_dir(&container_id);
        let fifos = ["in", "out", "err"].map(|end| dir.join(format!("exec-{exec_id}-{end}")));
        let session = Self {
            pod,
            shim,
            container_id,
            exec_id,
            fifos,
        };
        for path in &session.fifos {
            let ledger = &session.pod.node.ledger;
            ledger
                .intend(&session.container_id, &Object::Fifo(path.clone()))
                .map_err(Error::io("write ledger for", path))?;
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
                .map_err(|e| Error::io("make fifo", path)(e.into()))?;
        }
        Ok(session)
    }

    /// stdin, stdout and stderr as the shim is to know them. A terminal has no stderr of its own.
    fn fifos(&self, request: &ExecRequest) -> [String; 3] {
        let wanted = [
            request.stdin,
            request.stdout,
            request.stderr && !request.tty,
        ];
        let mut fifos = self
            .fifos
            .iter()
            .zip(wanted)
            .map(|(path, wanted)| match wanted {
                true => path.display().to_string(),
                false => String::new(),
            });
        std::array::from_fn(|_| fifos.next().unwrap_or_default())
    }

    /// Opened before the shim opens its own: reading ends of a fifo need no writer, and stdin's is opened both ways for want of a reader.
    fn ends(&self, request: &ExecRequest) -> Result<Ends, Error> {
        let [stdin, stdout, stderr] = &self.fifos;
        let reader = |path: &PathBuf, wanted: bool| match wanted {
            true => pipe::OpenOptions::new()
                .open_receiver(path)
                .map(Some)
                .map_err(Error::io("open fifo", path)),
            false => Ok(None),
        };
        Ok(Ends {
            stdin: match request.stdin {
                true => Some(
                    pipe::OpenOptions::new()
                        .read_write(true)
                        .open_sender(stdin)
                        .map_err(Error::io("open fifo", stdin))?,
                ),
                false => None,
            },
            stdout: reader(stdout, request.stdout)?,
            stderr: reader(stderr, request.stderr && !request.tty)?,
        })
    }

    /// Carries bytes until the command has ended and its output is through.
    async fn carry(&self, ends: Ends, mut stdio: Stdio) -> Result<i32, Error> {
        let (shim, container, exec) = (&self.shim, &self.container_id, &self.exec_id);
        let input = async {
            if let (Some(mut from), Some(mut to)) = (stdio.stdin.take(), ends.stdin) {
                let _ = copy(&mut from, &mut to).await;
                let _ = shim.close_exec_stdin(container, exec).await;
            }
            std::future::pending::<()>().await
        };
        let output = async {
            tokio::join!(
                pour(ends.stdout, stdio.stdout.take()),
                pour(ends.stderr, stdio.stderr.take()),
            )
        };
        let sizes = async {
            while let Some(size) = stdio.resize.recv().await {
                // The command may have ended already.
                let _ = shim
                    .resize_exec(container, exec, (size.width, size.height))
                    .await;
            }
            std::future::pending::<()>().await
        };
        let ended = async {
            let (mut output, mut wait) = (
                std::pin::pin!(output),
                std::pin::pin!(shim.wait_exec(container, exec)),
            );
            tokio::select! {
                code = &mut wait => {
                    let code = code?;
                    let _ = tokio::time::timeout(DRAIN, output).await;
                    Ok(code)
                }
                _ = &mut output => wait.await,
            }
        };
        tokio::select! {
            code = ended => code,
            () = input => unreachable!("it waits for ever"),
            () = sizes => unreachable!("it waits for ever"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let ledger = &self.pod.node.ledger;
        for path in &self.fifos {
            let gone = match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
                _ => ledger.strike(&self.container_id, &Object::Fifo(path.clone())),
            };
            if let Err(e) = gone {
                tracing::warn!(fifo = %path.display(), "an exec's fifo stays until its container goes: {e}");
            }
        }
        let (shim, container, exec) = (
            self.shim.clone(),
            self.container_id.clone(),
            self.exec_id.clone(),
        );
        tokio::spawn(async move {
            if let Err(e) = shim.end_exec(&container, &exec).await {
                tracing::debug!("end exec {exec}: {e}");
            }
        });
    }
}

async fn pour(from: Option<pipe::Receiver>, to: Option<Writer>) {
    if let (Some(mut from), Some(mut to)) = (from, to) {
        let _ = copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }
}

/// Connects to the port on the loopback of the namespace; `None`: the node's. A thread of its own, since it changes its namespace for good.
async fn connect(netns: Option<PathBuf>, port: u16) -> std::io::Result<tokio::net::TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("port-forward".into())
        .spawn(move || {
            let connected = (|| {
                if let Some(netns) = netns {
                    setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
                }
                let dial =
                    |address| std::net::TcpStream::connect_timeout(&address, CONNECT_DEADLINE);
                dial(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
                    .or_else(|e| dial(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|_| e))
            })();
            let _ = sender.send(connected);
        })?;
    let stream = receiver
        .await
        .map_err(|_| std::io::Error::other("the connecting thread ended"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}
