//! exec, attach, port-forward: the runtime is asked for a URL, the client's own upgrade is sent there, and bytes are copied both ways. No redirect: who
//! may reach the kubelet need not reach the runtime.

use std::{net::IpAddr, sync::Arc, time::Duration};

use berth_proto::cri::{AttachRequest, ExecRequest};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http1, upgrade::OnUpgrade};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use url::form_urlencoded;

use super::{Body, text};
use crate::{node::Inner, view::Shown};

/// The runtime's stream server is on this machine.
const CONNECT: Duration = Duration::from_secs(5);
/// An answer must have begun within it.
const HEAD_WITHIN: Duration = Duration::from_secs(30);
/// The client has been told of the upgrade and must go along within it.
const UPGRADE_WITHIN: Duration = Duration::from_secs(10);
/// After one side has closed, what the other still sends is passed on for so long.
const LINGER: Duration = Duration::from_secs(10);
/// Of an answer that refuses an upgrade.
const REFUSAL_BYTES: usize = 64 << 10;

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Why there is no stream.
type Refused = (StatusCode, String);

pub(super) async fn answer(
    node: &Inner,
    tunnels: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Response<Body> {
    match tunnel(node, tunnels, request).await {
        Ok(response) => response,
        Err((status, why)) => text(status, &why),
    }
}

async fn tunnel(
    node: &Inner,
    tunnels: Arc<Semaphore>,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Refused> {
    let asks = request.headers().get(header::UPGRADE).cloned();
    let Some(asks) = asks else {
        return Err((StatusCode::BAD_REQUEST, "Upgrade request required".into()));
    };
    // Before the runtime is asked: it keeps each URL for a while.
    let Ok(place) = tunnels.try_acquire_owned() else {
        let why = "too many streams are open on this node";
        return Err((StatusCode::SERVICE_UNAVAILABLE, why.into()));
    };
    let url = url(node, request.uri()).await?;
    let broken = |why: String| {
        let why = format!("the runtime's stream: {why}");
        (StatusCode::INTERNAL_SERVER_ERROR, why)
    };
    let (authority, target) = place_of(&url).map_err(broken)?;
    let stream = match timeout(CONNECT, TcpStream::connect(&authority)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(broken(format!("cannot connect to {authority}: {error}"))),
        Err(_) => {
            return Err(broken(format!(
                "cannot connect to {authority} within {} s",
                CONNECT.as_secs()
            )));
        }
    };
    let _ = stream.set_nodelay(true);
    let mut onward = Request::new(Empty::<Bytes>::new());
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = target
        .parse()
        .map_err(|error| broken(format!("{target}: {error}")))?;
    *onward.headers_mut() = of_upgrade(request.headers());
    let host = HeaderValue::from_str(&authority).map_err(|error| broken(error.to_string()))?;
    onward.headers_mut().insert(header::HOST, host);
    let answered = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        }));
        Ok::<_, hyper::Error>((sender.send_request(onward).await?, connection))
    };
    let (mut answer, connection) = match timeout(HEAD_WITHIN, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(broken(error.to_string())),
        Err(_) => {
            return Err(broken(format!(
                "no answer within {} s",
                HEAD_WITHIN.as_secs()
            )));
        }
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = match answer.status() {
            status if status.is_client_error() || status.is_server_error() => status,
            _ => StatusCode::BAD_GATEWAY,
        };
        let body = Limited::new(answer.into_body(), REFUSAL_BYTES).collect();
        let said = match timeout(HEAD_WITHIN, body).await {
            Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            _ => "the runtime did not say why".to_owned(),
        };
        return Err((status, said));
    }
    let is = answer.headers().get(header::UPGRADE);
    if !is.is_some_and(|is| is.as_bytes().eq_ignore_ascii_case(asks.as_bytes())) {
        return Err(broken(format!(
            "switched to {is:?} where {asks:?} was asked for"
        )));
    }
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    *response.headers_mut() = of_upgraded(answer.headers());
    let client: OnUpgrade = hyper::upgrade::on(&mut request);
    let other = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let both = async { tokio::join!(client, other) };
        if let Ok((Ok(client), Ok(other))) = timeout(UPGRADE_WITHIN, both).await {
            splice(TokioIo::new(client), TokioIo::new(other)).await;
        }
        drop((connection, place));
    });
    Ok(response)
}

/// Asks the runtime for a URL that does what the client's path says.
async fn url(node: &Inner, uri: &Uri) -> Result<String, Refused> {
    let parts: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
    let query: Vec<(String, String)> =
        form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
    let flag = |name: &str| {
        let mut all = query.iter();
        all.any(|(key, value)| key == name && (value == "1" || value == "true"))
    };
    let (what, namespace, pod, container) = match parts.as_slice() {
        ["portForward", namespace, pod] => ("portForward", *namespace, *pod, ""),
        ["portForward", namespace, pod, uid] => {
            found(node, namespace, pod, Some(uid))?;
            ("portForward", *namespace, *pod, "")
        }
        [what @ ("exec" | "attach"), namespace, pod, container] => {
            (*what, *namespace, *pod, *container)
        }
        [what @ ("exec" | "attach"), namespace, pod, uid, container] => {
            found(node, namespace, pod, Some(uid))?;
            (*what, *namespace, *pod, *container)
        }
        _ => return Err((StatusCode::NOT_FOUND, "404 page not found".into())),
    };
    let shown = found(node, namespace, pod, None)?;
    let failed = |error: crate::Error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    if what == "portForward" {
        let observed = node.runtime.observe(&shown.pod.uid).await.map_err(failed)?;
        let Some(sandbox) = observed.ready_sandbox() else {
            let why = format!("pod {pod} is not running");
            return Err((StatusCode::NOT_FOUND, why));
        };
        let ports = query.iter().filter(|(key, _)| key == "port");
        let ports = ports.filter_map(|(_, port)| port.parse::<u16>().ok().map(i32::from));
        return node
            .runtime
            .port_forward_url(sandbox.id.clone(), ports.collect())
            .await
            .map_err(failed);
    }
    let Some(id) = shown.running_id(container).map(str::to_owned) else {
        let why = match shown.pod.container(container) {
            Some(_) => format!("container {container} of pod {pod} is not running"),
            None => format!("container not found (\"{container}\")"),
        };
        return Err((StatusCode::NOT_FOUND, why));
    };
    let (stdin, stdout, stderr, tty) = (flag("input"), flag("output"), flag("error"), flag("tty"));
    if !(stdin || stdout || stderr) {
        let why = "you must specify at least 1 of stdin, stdout, stderr";
        return Err((StatusCode::BAD_REQUEST, why.into()));
    }
    // one stream has both, as a terminal does
    let stderr = stderr && !tty;
    let url = if what == "exec" {
        let cmd = query.iter().filter(|(key, _)| key == "command");
        let ask = ExecRequest {
            container_id: id,
            cmd: cmd.map(|(_, word)| word.clone()).collect(),
            tty,
            stdin,
            stdout,
            stderr,
        };
        node.runtime.exec_url(ask).await
    } else {
        let ask = AttachRequest {
            container_id: id,
            tty,
            stdin,
            stdout,
            stderr,
        };
        node.runtime.attach_url(ask).await
    };
    url.map_err(failed)
}

fn found(node: &Inner, namespace: &str, pod: &str, uid: Option<&str>) -> Result<Shown, Refused> {
    node.view
        .find(namespace, pod)
        .filter(|shown| uid.is_none_or(|uid| shown.pod.uid == uid))
        .ok_or_else(|| (StatusCode::NOT_FOUND, "pod does not exist".to_owned()))
}

/// The address of a URL, and what is asked for there.
fn place_of(url: &str) -> Result<(String, String), String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?}: {error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!(
            "{url:?} is no http URL: that is the one kind that is built"
        ));
    }
    let (Some(authority), Some(target)) = (uri.authority(), uri.path_and_query()) else {
        return Err(format!("{url:?} has no address or no path"));
    };
    // Not encrypted: it may go to this machine alone.
    let host = authority.host().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !is_here {
        return Err(format!("{url:?} is not of this machine's loopback"));
    }
    let port = authority.port_u16().unwrap_or(80);
    let host = authority.host();
    Ok((format!("{host}:{port}"), target.to_string()))
}

/// What an upgrade needs, and nothing else of the client's.
fn of_upgrade(client: &HeaderMap) -> HeaderMap {
    kept(
        client,
        &[
            header::UPGRADE,
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_VERSION,
            header::SEC_WEBSOCKET_EXTENSIONS,
            header::SEC_WEBSOCKET_PROTOCOL,
            STREAM_PROTOCOL,
        ],
    )
}

/// What comes back of it.
fn of_upgraded(answer: &HeaderMap) -> HeaderMap {
    kept(
        answer,
        &[
            header::UPGRADE,
            header::SEC_WEBSOCKET_ACCEPT,
            header::SEC_WEBSOCKET_PROTOCOL,
            header::SEC_WEBSOCKET_EXTENSIONS,
            STREAM_PROTOCOL,
        ],
    )
}

fn kept(from: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    for name in names {
        for value in from.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

/// Copies both ways until either side has closed; then what the other one still has.
async fn splice<A, B>(client: A, other: B)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut client_read, mut client_write) = tokio::io::split(client);
    let (mut other_read, mut other_write) = tokio::io::split(other);
    let up = async {
        let _ = tokio::io::copy(&mut client_read, &mut other_write).await;
        let _ = other_write.shutdown().await;
    };
    let down = async {
        let _ = tokio::io::copy(&mut other_read, &mut client_write).await;
        let _ = client_write.shutdown().await;
    };
    let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
    tokio::select! {
        () = up.as_mut() => drop(timeout(LINGER, down).await),
        () = down.as_mut() => drop(timeout(LINGER, up).await),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_server_of_this_machine_is_gone_to() {
        for (url, place) in [
            (
                "http://127.0.0.1:4000/exec/x?y=1",
                Some(("127.0.0.1:4000", "/exec/x?y=1")),
            ),
            ("http://localhost/t", Some(("localhost:80", "/t"))),
            ("http://[::1]:99/t", Some(("[::1]:99", "/t"))),
            ("https://127.0.0.1:4000/exec/x", None),
            ("http://10.0.0.1:4000/exec/x", None),
            ("http://169.254.169.254/latest", None),
            ("/exec/x", None),
        ] {
            let is = place_of(url).ok();
            let is = is
                .as_ref()
                .map(|(address, path)| (address.as_str(), path.as_str()));
            assert_eq!(is, place, "{url}");
        }
    }

    #[test]
    fn credentials_of_a_client_do_not_go_on() {
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ] {
            client.append(name, HeaderValue::from_static(value));
        }
        let onward = of_upgrade(&client);
        assert!(!onward.contains_key("authorization") && !onward.contains_key("cookie"));
        assert_eq!(onward.get_all(STREAM_PROTOCOL).iter().count(), 2);
        assert_eq!(onward["connection"], "Upgrade");
    }
}
