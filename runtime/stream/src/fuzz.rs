//! What a fuzzer feeds: a client's bytes after its upgrade, served as a session is, with nothing but memory behind. Each entry returns
//! once the session has ended, as it must for every input.

use std::{io::Cursor, net::TcpListener, time::Duration};

use async_trait::async_trait;
use tokio::{
    io::{copy, copy_bidirectional, duplex, join, sink},
    net::TcpStream,
    runtime::Runtime,
};

use crate::{
    AttachRequest, Duplex, ExecRequest, Failure, PortForwardRequest, Stdio, Streams,
    channels::{self, Dialect},
    connection::Connection,
    forward_channels, port_forward, remote_command,
    session::Command,
    spdy::{self, headers::Packer},
    tunnel::Tunnel,
    websocket,
};

/// A session whose client has closed its connection ends at once; what takes longer hangs.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// Gives back what it gets.
struct Echo;

#[async_trait]
impl Streams for Echo {
    async fn exec(&self, _: ExecRequest, mut stdio: Stdio) -> Result<i32, Failure> {
        if let (Some(mut from), Some(mut to)) = (stdio.stdin.take(), stdio.stdout.take()) {
            let _gone = copy(&mut from, &mut to).await;
        }
        while stdio.resize.recv().await.is_some() {}
        Ok(3)
    }

    async fn attach(&self, _: AttachRequest, _: Stdio) -> Result<(), Failure> {
        Err(Failure("not attached".into()))
    }

    async fn port_forward(
        &self,
        _: String,
        port: u16,
        mut stream: Box<dyn Duplex>,
    ) -> Result<(), Failure> {
        if port == 1 {
            return Err(Failure("nobody listens".into()));
        }
        let (mut near, far) = duplex(1 << 10);
        let echo = async {
            let (mut read, mut write) = tokio::io::split(far);
            let _gone = copy(&mut read, &mut write).await;
        };
        let _gone = tokio::join!(copy_bidirectional(&mut stream, &mut near), echo);
        Ok(())
    }
}

/// A runtime, and a connection to stand for the client's: nothing goes over it.
struct Bench {
    runtime: Runtime,
    connection: Connection,
    _client: std::net::TcpStream,
}

thread_local! {
    static BENCH: Bench = Bench::new().expect("a runtime and a loopback connection");
}

impl Bench {
    fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let client = std::net::TcpStream::connect(listener.local_addr()?)?;
        let stream = listener.accept()?.0;
        stream.set_nonblocking(true)?;
        let connection = Connection::new(runtime.block_on(async { TcpStream::from_std(stream) })?);
        Ok(Self {
            runtime,
            connection,
            _client: client,
        })
    }
}

fn run(serve: impl AsyncFnOnce(Connection) -> std::io::Result<()>) {
    BENCH.with(|bench| {
        let session = serve(bench.connection.clone());
        // How it ended is the client's affair; that it has ended is ours.
        let _ended = bench
            .runtime
            .block_on(async { tokio::time::timeout(ENDS_WITHIN, session).await })
            .expect("the session ends when its client is gone");
    });
}

fn command(tty: bool) -> Command {
    Command::Exec(ExecRequest {
        container_id: "c".into(),
        cmd: vec!["cat".into()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    })
}

/// The first byte says what is spoken over SPDY, the rest is what the client sends: as it is, or, with the first byte's highest bit,
/// frames whose header blocks are still to be packed, so that a mutation of them is more than damage to a checksum.
pub fn spdy(input: &[u8]) {
    let Some((how, input)) = input.split_first() else {
        return;
    };
    let bytes = match how & 0x80 {
        0 => input.to_vec(),
        _ => packed(input),
    };
    let io = join(Cursor::new(bytes), sink());
    run(async |connection| match how & 0x07 {
        0 => {
            let serve = async |opened| port_forward::serve(opened, "p", &Echo).await;
            spdy::serve(Tunnel::new(io).await, connection, serve).await
        }
        1 | 2 => {
            let serve = async |opened| port_forward::serve(opened, "p", &Echo).await;
            spdy::serve(io, connection, serve).await
        }
        version => {
            let protocol = remote_command::PROTOCOLS[usize::from(version) - 3];
            let command = command(how & 0x08 != 0);
            let serve =
                async |opened| remote_command::serve(opened, protocol, command, &Echo).await;
            spdy::serve(io, connection, serve).await
        }
    });
}

/// Takes the input for frames in which a SYN_STREAM's or HEADERS' block is plain.
fn packed(mut input: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Ok(mut packer) = Packer::new() else {
        return bytes;
    };
    while let Some((head, rest)) = input.split_first_chunk::<8>() {
        let length = usize::from(u16::from_be_bytes([head[6], head[7]])).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        input = rest;
        let plain = match (head[0] & 0x80, head[3]) {
            (0x80, 1) => 10.min(length),
            (0x80, 8) => 4.min(length),
            _ => length,
        };
        let mut payload = payload.to_vec();
        if plain < length
            && let Ok(block) = packer.pack_block(&payload.split_off(plain))
        {
            payload.extend_from_slice(&block);
        }
        bytes.extend_from_slice(&head[..5]);
        bytes.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&payload);
    }
    bytes
}

/// The first byte says in which dialect, the rest is what the client sends.
pub fn websocket(input: &[u8]) {
    let Some((how, input)) = input.split_first() else {
        return;
    };
    let io = join(Cursor::new(input.to_vec()), sink());
    let pick = |dialects: &[Dialect]| dialects[usize::from(how & 0x3f) % dialects.len()];
    run(async |connection| match how & 0x80 {
        0 => {
            let dialect = pick(&channels::OF_COMMANDS);
            let command = command(how & 0x40 != 0);
            websocket::serve(io, connection, dialect, command, &Echo).await
        }
        _ => {
            let request = PortForwardRequest {
                pod_sandbox_id: "p".into(),
                ports: vec![80, 1],
            };
            let dialect = pick(&channels::OF_PORTS);
            forward_channels::serve(io, connection, dialect, request, &Echo).await
        }
    });
}
