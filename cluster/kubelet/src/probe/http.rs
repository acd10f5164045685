//! httpGet, for probes and hooks.

use std::sync::Arc;

use berth_auth::any_certificate;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls::pki_types::ServerName};

use super::{
    Outcome,
    check::{bare, joined},
};

const USER_AGENT: &str = concat!("kube-probe/1.36 berth/", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Clone)]
pub(crate) struct Get {
    pub host: String,
    pub port: u16,
    pub path: String,
    pub tls: bool,
    pub headers: Vec<(String, String)>,
}

/// 200 to 399 is good, as upstream. A redirect is good without being followed: where it leads is the client's affair.
pub(crate) async fn ask(get: &Get) -> Outcome {
    match get_once(get).await {
        Ok(status) if (200..400).contains(&status.as_u16()) => Outcome::Good,
        Ok(status) => Outcome::Bad(format!(
            "HTTP probe failed with statuscode: {}",
            status.as_u16()
        )),
        Err(why) => Outcome::Bad(why),
    }
}

/// # Errors
/// That there is no whole answer, and why.
pub(crate) async fn get(get: &Get) -> Result<(), String> {
    match ask(get).await {
        Outcome::Good => Ok(()),
        Outcome::Bad(why) | Outcome::Unknown(why) => Err(why),
    }
}

async fn get_once(get: &Get) -> Result<StatusCode, String> {
    let url = format!(
        "Get \"{}://{}{}\"",
        if get.tls { "https" } else { "http" },
        joined(&get.host, get.port),
        get.path
    );
    let stream = TcpStream::connect((bare(&get.host), get.port))
        .await
        .map_err(|error| format!("{url}: {error}"))?;
    if !get.tls {
        return over(stream, get)
            .await
            .map_err(|error| format!("{url}: {error}"));
    }
    let config = any_certificate()
        .map_err(|error| format!("{url}: {error}"))?
        .with_no_client_auth();
    let name = ServerName::try_from(bare(&get.host).to_owned())
        .map_err(|error| format!("{url}: {error}"))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| format!("{url}: {error}"))?;
    over(stream, get)
        .await
        .map_err(|error| format!("{url}: {error}"))
}

async fn over(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    get: &Get,
) -> Result<StatusCode, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let answered = send(&mut sender, get).await;
    // One question a connection; what is left of the answer is not waited for.
    connection.abort();
    answered
}

async fn send(
    sender: &mut http1::SendRequest<Empty<Bytes>>,
    get: &Get,
) -> Result<StatusCode, String> {
    let path = match get.path.as_str() {
        "" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let mut request = Request::get(path);
    let own = |name: &str| {
        get.headers
            .iter()
            .any(|(key, _)| key.eq_ignore_ascii_case(name))
    };
    if !own("host") {
        request = request.header(header::HOST, joined(&get.host, get.port));
    }
    if !own("user-agent") {
        request = request.header(header::USER_AGENT, USER_AGENT);
    }
    if !own("accept") {
        request = request.header(header::ACCEPT, "*/*");
    }
    request = request.header(header::CONNECTION, "close");
    for (name, value) in &get.headers {
        request = request.header(name, value);
    }
    let request = request
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    Ok(answer.status())
}

/// As upstream: a probe asks whether somebody answers, and most certificates of pods are their own.
#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers one connection with `answer`; what it was asked.
    async fn asked(
        answer: &'static str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (Outcome, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let get = Get {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            path: path.into(),
            tls: false,
            headers: headers
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..length]).into_owned()
        });
        (ask(&get).await, server.await.unwrap())
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_good() {
        for (answer, good) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            (
                "HTTP/1.1 302 Found\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n",
                true,
            ),
            ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.1 500 Oh\r\n\r\nno", false),
            ("rubbish\r\n\r\n", false),
            ("", false),
        ] {
            let (outcome, head) = asked(answer, "", &[]).await;
            assert_eq!(outcome == Outcome::Good, good, "{answer:?}: {outcome:?}");
            assert!(
                head.starts_with("GET / HTTP/1.1\r\nhost: 127.0.0.1:"),
                "{head}"
            );
        }
        let (outcome, _) = asked("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", "/", &[]).await;
        assert_eq!(
            outcome,
            Outcome::Bad("HTTP probe failed with statuscode: 503".into())
        );
    }

    #[tokio::test]
    async fn a_probes_own_headers_go_before_ours() {
        let (_, head) = asked(
            "HTTP/1.1 200 OK\r\n\r\n",
            "healthz?a=b",
            &[("Host", "h"), ("X-A", "1")],
        )
        .await;
        assert!(head.starts_with("GET /healthz?a=b HTTP/1.1\r\n"), "{head}");
        assert!(
            head.contains("host: h\r\n")
                && head.contains("x-a: 1\r\n")
                && !head.contains("host: 127"),
            "{head}"
        );
    }
}
