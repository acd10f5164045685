//! The HTTP server: a request with a token, an upgrade, and the session that follows.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request as HttpRequest, Response, StatusCode,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
        SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use http_body_util::Full;
use hyper::{body::Incoming as Body, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    AttachRequest, Error, ExecRequest, PortForwardRequest, Request, Streams,
    channels::{self, Dialect},
    connection::Connection,
    forward_channels, port_forward,
    registry::Registry,
    remote_command,
    session::Command,
    spdy,
    tunnel::Tunnel,
    websocket,
};

const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
const SPDY: &str = "SPDY/3.1";

/// Connections at one time. Each has a few buffers; a node's clients are people and probes.
const CONNECTIONS_LIMIT: usize = 1024;

/// How long a client may take to send its request. It has its URL for no other purpose.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a request's head.
const HEAD_LIMIT: usize = 16 << 10;

/// After so long without a byte either way a session ends: what Kubernetes' own servers allow.
pub const IDLE_LIMIT: Duration = Duration::from_secs(4 * 3600);

/// The server, listening. Dropping it ends every session.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    sessions: TaskTracker,
}

struct Shared {
    registry: Registry,
    streams: Arc<dyn Streams>,
    idle_limit: Duration,
    stop: CancellationToken,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("sessions", &self.sessions.len())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on `listen`, port 0 for any, and serves from now on; a session without a byte either way ends after `idle_limit`
    /// ([`IDLE_LIMIT`] is the usual one). Errors: the address is not a loopback address, or taken.
    pub async fn bind(
        listen: SocketAddr,
        idle_limit: Duration,
        streams: Arc<dyn Streams>,
    ) -> Result<Self, Error> {
        if !listen.ip().is_loopback() {
            return Err(Error::NotLoopback(listen));
        }
        let failed = |source| Error::Listen {
            address: listen,
            source,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            registry: Registry::default(),
            streams,
            idle_limit,
            stop: CancellationToken::new(),
        });
        let sessions = TaskTracker::new();
        tokio::spawn(accept(listener, shared.clone(), sessions.clone()));
        Ok(Self {
            shared,
            address,
            sessions,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sessions and connections that are open.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// The URL at which a client has one minute to claim the request, once. Who knows it may do what it says: it must not be logged.
    pub fn register(&self, request: Request) -> Result<String, Error> {
        let path = match &request {
            Request::Exec(ExecRequest {
                cmd,
                tty,
                stdin,
                stdout,
                stderr,
                ..
            }) => {
                if cmd.is_empty() {
                    return Err(Error::Invalid("exec: the command is empty"));
                }
                check_streams(*tty, *stdin, *stdout, *stderr)?;
                "exec"
            }
            Request::Attach(AttachRequest {
                tty,
                stdin,
                stdout,
                stderr,
                ..
            }) => {
                check_streams(*tty, *stdin, *stdout, *stderr)?;
                "attach"
            }
            Request::PortForward(_) => "portforward",
        };
        let token = self.shared.registry.insert(request, Instant::now());
        Ok(format!("http://{}/{path}/{token}", self.address))
    }

    /// Ends all sessions and waits until they are gone.
    pub async fn shutdown(self) {
        self.shared.stop.cancel();
        self.sessions.close();
        self.sessions.wait().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn check_streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Error> {
    if !stdin && !stdout && !stderr {
        return Err(Error::Invalid(
            "one of stdin, stdout and stderr must be asked for",
        ));
    }
    if tty && stderr {
        return Err(Error::Invalid(
            "a terminal has no stderr of its own: tty and stderr exclude each other",
        ));
    }
    Ok(())
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, sessions: TaskTracker) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            // A connection beyond the limit is closed: its client has a token for a minute and can try again.
            Ok((stream, _)) => {
                if let Ok(permit) = room.clone().try_acquire_owned() {
                    let (shared, tracker) = (shared.clone(), sessions.clone());
                    sessions.spawn(serve_connection(stream, shared, tracker, permit));
                }
            }
            Err(err) => {
                // Most often no descriptor is left: that passes.
                tracing::warn!("stream server: accept: {err}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    shared: Arc<Shared>,
    sessions: TaskTracker,
    permit: OwnedSemaphorePermit,
) {
    // Keystrokes and their echo are what travels.
    let _not_possible = stream.set_nodelay(true);
    let connection = Connection::new(stream);
    let permit = Arc::new(permit);
    let service = service_fn(|request| {
        let answer = answer(request, &shared, &connection, &sessions, &permit);
        async move { Ok::<_, io::Error>(answer) }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_WITHIN)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(connection.clone()), service)
        .with_upgrades();
    tokio::select! {
        ended = http => if let Err(err) = ended {
            tracing::debug!("stream server: a connection: {err}");
        },
        () = shared.stop.cancelled() => {}
    }
}

/// What follows the answer 101.
enum Session {
    WebSocket {
        command: Command,
        dialect: Dialect,
    },
    Spdy {
        command: Command,
        protocol: &'static str,
    },
    PortForward {
        pod_sandbox_id: String,
        tunnelled: bool,
    },
    ForwardChannels {
        request: PortForwardRequest,
        dialect: Dialect,
    },
}

fn answer(
    mut request: HttpRequest<Body>,
    shared: &Arc<Shared>,
    connection: &Connection,
    sessions: &TaskTracker,
    permit: &Arc<OwnedSemaphorePermit>,
) -> Response<Full<Bytes>> {
    let (session, response) = match negotiate(&request, &shared.registry) {
        Ok(agreed) => agreed,
        Err(refusal) => return *refusal,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let (shared, connection, permit) = (shared.clone(), connection.clone(), permit.clone());
    sessions.spawn(async move {
        let _held_to_the_end = permit;
        let run = session.run(upgrade, connection.clone(), &*shared.streams);
        tokio::select! {
            ended = run => if let Err(err) = ended {
                tracing::debug!("stream server: a session: {err}");
            },
            () = connection.idle(shared.idle_limit) => tracing::info!(
                "stream server: a session ended that nobody had used for {:?}",
                shared.idle_limit
            ),
            () = shared.stop.cancelled() => {}
        }
    });
    response
}

impl Session {
    async fn run(
        self,
        upgrade: OnUpgrade,
        connection: Connection,
        streams: &dyn Streams,
    ) -> io::Result<()> {
        let io = TokioIo::new(upgrade.await.map_err(io::Error::other)?);
        match self {
            Self::WebSocket { command, dialect } => {
                websocket::serve(io, connection, dialect, command, streams).await
            }
            Self::ForwardChannels { request, dialect } => {
                forward_channels::serve(io, connection, dialect, request, streams).await
            }
            Self::Spdy { command, protocol } => {
                spdy::serve(io, connection, async |opened| {
                    remote_command::serve(opened, protocol, command, streams).await
                })
                .await
            }
            Self::PortForward {
                pod_sandbox_id,
                tunnelled: false,
            } => {
                spdy::serve(io, connection, async |opened| {
                    port_forward::serve(opened, &pod_sandbox_id, streams).await
                })
                .await
            }
            Self::PortForward {
                pod_sandbox_id,
                tunnelled: true,
            } => {
                let io = Tunnel::new(io).await;
                spdy::serve(io, connection, async |opened| {
                    port_forward::serve(opened, &pod_sandbox_id, streams).await
                })
                .await
            }
        }
    }
}

type Refusal = Box<Response<Full<Bytes>>>;

fn negotiate(
    request: &HttpRequest<Body>,
    registry: &Registry,
) -> Result<(Session, Response<Full<Bytes>>), Refusal> {
    if request.method() != Method::GET && request.method() != Method::POST {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"));
    }
    let mut parts = request.uri().path().splitn(3, '/').skip(1);
    let (Some(path), Some(token)) = (parts.next(), parts.next()) else {
        return Err(refuse(StatusCode::NOT_FOUND, "no such path"));
    };
    // Whatever comes next, the token is used up.
    let waiting = registry.take(token, Instant::now());
    let of_path = |request: &Request| match request {
        Request::Exec(_) => path == "exec",
        Request::Attach(_) => path == "attach",
        Request::PortForward(_) => path == "portforward",
    };
    let Some(waiting) = waiting.filter(of_path) else {
        return Err(refuse(
            StatusCode::NOT_FOUND,
            "the token is unknown, used or expired",
        ));
    };
    let headers = request.headers();
    if !has_token(headers, CONNECTION.as_str(), "upgrade") {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "not a request to upgrade: SPDY/3.1 and websocket are spoken here",
        ));
    }
    if has_token(headers, UPGRADE.as_str(), "websocket") {
        by_websocket(headers, waiting)
    } else if has_token(headers, UPGRADE.as_str(), SPDY) {
        by_spdy(headers, waiting)
    } else {
        Err(refuse(
            StatusCode::BAD_REQUEST,
            "an upgrade to something that is not spoken here: SPDY/3.1 and websocket are",
        ))
    }
}

fn by_websocket(
    headers: &HeaderMap,
    request: Request,
) -> Result<(Session, Response<Full<Bytes>>), Refusal> {
    let Some(key) = headers.get(SEC_WEBSOCKET_KEY) else {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Key is missing",
        ));
    };
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            "Sec-WebSocket-Version is not 13",
        ));
    }
    let offered: Vec<&str> = tokens(headers, SEC_WEBSOCKET_PROTOCOL.as_str()).collect();
    let session = match command(request) {
        Ok(command) => {
            let dialect = choose_dialect(&channels::OF_COMMANDS, &offered)?;
            Session::WebSocket { command, dialect }
        }
        Err(request) if offered.contains(&port_forward::TUNNELLED) => Session::PortForward {
            pod_sandbox_id: request.pod_sandbox_id,
            tunnelled: true,
        },
        Err(request) => {
            let dialect = choose_dialect(&channels::OF_PORTS, &offered)?;
            forward_channels::check(&request.ports, dialect)
                .map_err(|why| refuse(StatusCode::BAD_REQUEST, why))?;
            Session::ForwardChannels { request, dialect }
        }
    };
    let protocol = match &session {
        Session::WebSocket { dialect, .. } | Session::ForwardChannels { dialect, .. } => {
            dialect.name
        }
        Session::PortForward { .. } | Session::Spdy { .. } => port_forward::TUNNELLED,
    };
    let mut response = switching("websocket");
    let accept = derive_accept_key(key.as_bytes());
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    // A client that has offered none must not be told of one (RFC 6455, 4.2.2).
    if !protocol.is_empty() {
        response
            .headers_mut()
            .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok((session, response))
}

fn by_spdy(
    headers: &HeaderMap,
    request: Request,
) -> Result<(Session, Response<Full<Bytes>>), Refusal> {
    let offered: Vec<&str> = tokens(headers, STREAM_PROTOCOL).collect();
    let (protocol, session) = match command(request) {
        Ok(command) => {
            let protocol = choose(&remote_command::PROTOCOLS, &offered)?;
            (protocol, Session::Spdy { command, protocol })
        }
        Err(request) => (
            choose(&[port_forward::PROTOCOL], &offered)?,
            Session::PortForward {
                pod_sandbox_id: request.pod_sandbox_id,
                tunnelled: false,
            },
        ),
    };
    let mut response = switching(SPDY);
    response
        .headers_mut()
        .insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    Ok((session, response))
}

/// A command, or else a port-forward.
fn command(request: Request) -> Result<Command, PortForwardRequest> {
    match request {
        Request::Exec(request) => Ok(Command::Exec(request)),
        Request::Attach(request) => Ok(Command::Attach(request)),
        Request::PortForward(request) => Err(request),
    }
}

/// The first of ours that the client offers. One that offers nothing speaks the oldest.
fn choose_dialect(ours: &[Dialect], offered: &[&str]) -> Result<Dialect, Refusal> {
    if offered.is_empty() {
        return Ok(channels::UNNAMED);
    }
    let names: Vec<&'static str> = ours.iter().map(|dialect| dialect.name).collect();
    let chosen = choose(&names, offered)?;
    Ok(ours
        .iter()
        .copied()
        .find(|dialect| dialect.name == chosen)
        .unwrap_or(channels::UNNAMED))
}

/// The first of ours that the client offers.
fn choose(ours: &[&'static str], offered: &[&str]) -> Result<&'static str, Refusal> {
    ours.iter()
        .copied()
        .find(|protocol| offered.contains(protocol))
        .ok_or_else(|| {
            refuse(
                StatusCode::FORBIDDEN,
                &format!("no protocol in common: spoken here are {}", ours.join(", ")),
            )
        })
}

fn switching(to: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(UPGRADE, HeaderValue::from_static(to));
    response
}

fn refuse(status: StatusCode, why: &str) -> Refusal {
    let mut response = Response::new(Full::from(format!("{why}\n")));
    *response.status_mut() = status;
    // nobody has a second request
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
    Box::new(response)
}

/// The comma-separated words of a header, of all its lines.
fn tokens<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

fn has_token(headers: &HeaderMap, name: &str, word: &str) -> bool {
    tokens(headers, name).any(|have| have.eq_ignore_ascii_case(word))
}
