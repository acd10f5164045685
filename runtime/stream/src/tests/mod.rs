//! Whole sessions over TCP: real commands behind the server, a WebSocket library and a small SPDY client in front of it.

mod fuzzed;
mod hostile;
mod spdy_client;
mod spdy_sessions;
mod websocket_sessions;

use std::{process::Stdio as Pipe, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncWriteExt, copy, copy_bidirectional},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep},
};

use super::*;

/// Runs commands of this machine in the place of a container's.
struct Local;

#[async_trait]
impl Streams for Local {
    async fn exec(&self, request: ExecRequest, mut stdio: Stdio) -> Result<i32, Failure> {
        if request.cmd[0] == "sizes" {
            let mut stdout = stdio.stdout.take().unwrap();
            for _ in 0..2 {
                let Some(Size { width, height }) = stdio.resize.recv().await else {
                    break;
                };
                stdout
                    .write_all(format!("{width}x{height}\n").as_bytes())
                    .await
                    .map_err(|err| Failure(err.to_string()))?;
            }
            return Ok(0);
        }
        let mut child = Command::new(&request.cmd[0])
            .args(&request.cmd[1..])
            .stdin(Pipe::piped())
            .stdout(Pipe::piped())
            .stderr(Pipe::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|err| Failure(format!("exec {}: {err}", request.cmd[0])))?;
        let (mut stdin, mut stdout, mut stderr) = (
            child.stdin.take().unwrap(),
            child.stdout.take().unwrap(),
            child.stderr.take().unwrap(),
        );
        let to_child = async {
            if let Some(mut from) = stdio.stdin {
                let _closed = copy(&mut from, &mut stdin).await;
            }
            drop(stdin);
            std::future::pending::<()>().await;
        };
        let output = async {
            tokio::join!(
                async {
                    if let Some(mut to) = stdio.stdout {
                        let _gone = copy(&mut stdout, &mut to).await;
                    }
                },
                async {
                    if let Some(mut to) = stdio.stderr {
                        let _gone = copy(&mut stderr, &mut to).await;
                    }
                }
            );
            child.wait().await
        };
        tokio::select! {
            status = output => Ok(status.unwrap().code().unwrap_or(137)),
            () = to_child => unreachable!(),
        }
    }

    /// What is typed is what is shown; `container_id` "talks" writes without end, "deaf" never reads.
    async fn attach(&self, request: AttachRequest, stdio: Stdio) -> Result<(), Failure> {
        if request.container_id == "deaf" {
            // the streams are held, and nothing is done with them
            std::future::pending::<()>().await;
        }
        let mut stdout = stdio.stdout.unwrap();
        if request.container_id == "talks" {
            loop {
                stdout
                    .write_all(&[b'x'; 4096])
                    .await
                    .map_err(|err| Failure(err.to_string()))?;
            }
        }
        copy(&mut stdio.stdin.unwrap(), &mut stdout)
            .await
            .map_err(|err| Failure(err.to_string()))?;
        Ok(())
    }

    async fn port_forward(
        &self,
        _: String,
        port: u16,
        mut stream: Box<dyn Duplex>,
    ) -> Result<(), Failure> {
        let failed = |err: io::Error| Failure(err.to_string());
        let mut connection = TcpStream::connect(("127.0.0.1", port))
            .await
            .map_err(failed)?;
        copy_bidirectional(&mut stream, &mut connection)
            .await
            .map_err(failed)?;
        Ok(())
    }
}

async fn server() -> Server {
    server_that_waits(IDLE_LIMIT).await
}

async fn server_that_waits(idle_limit: Duration) -> Server {
    let any = "127.0.0.1:0".parse().unwrap();
    Server::bind(any, idle_limit, Arc::new(Local))
        .await
        .unwrap()
}

fn exec(cmd: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: "c1".into(),
        cmd: cmd.iter().map(ToString::to_string).collect(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

fn attach(container_id: &str) -> Request {
    Request::Attach(AttachRequest {
        container_id: container_id.into(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: false,
    })
}

fn forward() -> Request {
    Request::PortForward(PortForwardRequest {
        pod_sandbox_id: "p1".into(),
        ports: vec![],
    })
}

/// Path and token of a URL.
fn path(url: &str) -> &str {
    let start = url.find("//").unwrap() + 2;
    &url[start + url[start..].find('/').unwrap()..]
}

/// Until no session is left.
async fn settled(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while server.sessions() > 0 {
        assert!(
            Instant::now() < deadline,
            "{} sessions are left",
            server.sessions()
        );
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn only_a_loopback_address_is_listened_on() {
    for address in ["0.0.0.0:0", "192.0.2.1:0", "[::]:0"] {
        let refused = Server::bind(address.parse().unwrap(), IDLE_LIMIT, Arc::new(Local)).await;
        assert!(matches!(refused, Err(Error::NotLoopback(_))), "{address}");
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_get_no_url() {
    let server = server().await;
    let nothing = ExecRequest {
        stdin: false,
        stdout: false,
        stderr: false,
        ..exec(&["true"])
    };
    let both = ExecRequest {
        tty: true,
        ..exec(&["true"])
    };
    for request in [exec(&[]), nothing, both] {
        assert!(matches!(
            server.register(Request::Exec(request)),
            Err(Error::Invalid(_))
        ));
    }
    assert!(
        server
            .register(attach("c"))
            .unwrap()
            .starts_with(&format!("http://{}/attach/", server.address()))
    );
}

#[tokio::test]
async fn a_shutdown_ends_every_session() {
    let server = server().await;
    let url = server.register(attach("deaf")).unwrap();
    let mut client = websocket_sessions::Client::connect(&url, "v5.channel.k8s.io")
        .await
        .unwrap();
    client.send(0, b"x").await;
    tokio::time::timeout(Duration::from_secs(5), server.shutdown())
        .await
        .unwrap();
    client.closed().await;
}
