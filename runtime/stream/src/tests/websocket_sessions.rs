//! exec and attach by WebSocket.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{
        Error as WsError, Message, client::IntoClientRequest, protocol::frame::coding::CloseCode,
    },
};

use super::*;
use crate::channels;

pub(super) struct Client(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

/// Everything that a session answered, by channel, until its close.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub status: serde_json::Value,
    pub close: Option<CloseCode>,
}

impl Client {
    /// Errors: the HTTP status that the upgrade was refused with.
    pub async fn connect(url: &str, protocol: &str) -> Result<Self, u16> {
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        if !protocol.is_empty() {
            request
                .headers_mut()
                .insert("sec-websocket-protocol", protocol.parse().unwrap());
        }
        match connect_async(request).await {
            Ok((socket, response)) => {
                let agreed = response
                    .headers()
                    .get("sec-websocket-protocol")
                    .map_or("", |agreed| agreed.to_str().unwrap());
                assert!(protocol.split(", ").any(|offered| offered == agreed));
                Ok(Self(socket))
            }
            Err(WsError::Http(response)) => Err(response.status().as_u16()),
            Err(err) => panic!("connect: {err}"),
        }
    }

    pub async fn send(&mut self, channel: u8, data: &[u8]) {
        self.0
            .send(Message::Binary([&[channel], data].concat().into()))
            .await
            .unwrap();
    }

    /// The next message that has data.
    pub async fn next(&mut self) -> (u8, Vec<u8>) {
        loop {
            match self.0.next().await.unwrap().unwrap() {
                Message::Binary(data) if data.len() > 1 => return (data[0], data[1..].to_vec()),
                Message::Binary(_) | Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn all(mut self) -> Answer {
        let mut answer = Answer::default();
        let mut status = Vec::new();
        while let Some(message) = self.0.next().await {
            match message {
                Ok(Message::Binary(data)) => match data[0] {
                    1 => answer.stdout.extend_from_slice(&data[1..]),
                    2 => answer.stderr.extend_from_slice(&data[1..]),
                    3 => status.extend_from_slice(&data[1..]),
                    other => panic!("channel {other}"),
                },
                Ok(Message::Close(frame)) => answer.close = frame.map(|frame| frame.code),
                Ok(_) => {}
                Err(err) => panic!("{err}"),
            }
        }
        answer.status = serde_json::from_slice(&status).unwrap();
        answer
    }

    /// Until the server has ended the connection, in whatever way.
    pub async fn closed(mut self) {
        let end = async { while self.0.next().await.is_some_and(|message| message.is_ok()) {} };
        tokio::time::timeout(Duration::from_secs(10), end)
            .await
            .expect("the server closes the connection");
    }
}

const BOTH: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

#[tokio::test]
async fn an_exec_answers_with_its_output_and_exit_code() {
    let server = server().await;
    for protocol in BOTH {
        for (script, code) in [
            ("echo out; echo err >&2", 0),
            ("echo out; echo err >&2; exit 7", 7),
        ] {
            let url = server
                .register(Request::Exec(exec(&["sh", "-c", script])))
                .unwrap();
            let answer = Client::connect(&url, protocol).await.unwrap().all().await;
            assert_eq!(
                (&*answer.stdout, &*answer.stderr, answer.close),
                (&b"out\n"[..], &b"err\n"[..], Some(CloseCode::Normal))
            );
            let expected = if code == 0 { "Success" } else { "Failure" };
            assert_eq!(answer.status["status"], expected, "{protocol}");
            if code != 0 {
                assert_eq!(
                    answer.status["details"]["causes"][0]["message"],
                    code.to_string()
                );
            }
        }
    }
    settled(&server).await;
}

#[tokio::test]
async fn a_command_that_can_not_run_is_a_status() {
    let server = server().await;
    let url = server
        .register(Request::Exec(exec(&["/no/such/command"])))
        .unwrap();
    let answer = Client::connect(&url, BOTH[0]).await.unwrap().all().await;
    assert_eq!(answer.status["reason"], "InternalError");
    assert!(
        answer.status["message"]
            .as_str()
            .unwrap()
            .contains("/no/such/command")
    );
}

#[tokio::test]
async fn stdin_is_closed_by_v5_alone() {
    let server = server().await;
    let url = server.register(Request::Exec(exec(&["cat"]))).unwrap();
    let mut client = Client::connect(&url, BOTH[0]).await.unwrap();
    client.send(0, b"one ").await;
    client.send(0, b"two").await;
    client.send(255, &[0]).await;
    assert_eq!(client.all().await.stdout, b"one two");

    let url = server.register(Request::Exec(exec(&["cat"]))).unwrap();
    let mut client = Client::connect(&url, BOTH[1]).await.unwrap();
    client.send(0, b"x").await;
    assert_eq!(client.next().await, (1, b"x".to_vec()));
    client.send(255, &[0]).await;
    client.closed().await;
    settled(&server).await;
}

#[tokio::test]
async fn a_megabyte_both_ways_arrives_whole() {
    let server = server().await;
    let url = server.register(Request::Exec(exec(&["cat"]))).unwrap();
    let client = Client::connect(&url, BOTH[0]).await.unwrap();
    let data: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut sink, mut messages) = client.0.split();
    let write = async {
        for piece in data.chunks(32 << 10) {
            sink.send(Message::Binary([&[0], piece].concat().into()))
                .await
                .unwrap();
        }
        sink.send(Message::Binary(vec![255, 0].into()))
            .await
            .unwrap();
    };
    let read = async {
        let mut got = Vec::new();
        while let Some(Ok(Message::Binary(message))) = messages.next().await {
            if message[0] == 1 {
                got.extend_from_slice(&message[1..]);
            }
        }
        got
    };
    assert!(tokio::join!(write, read).1 == data);
}

#[tokio::test]
async fn sizes_of_the_terminal_reach_the_runtime() {
    let server = server().await;
    let request = ExecRequest {
        tty: true,
        stderr: false,
        ..exec(&["sizes"])
    };
    for protocol in BOTH {
        let url = server.register(Request::Exec(request.clone())).unwrap();
        let mut client = Client::connect(&url, protocol).await.unwrap();
        client.send(4, br#"{"Width":80,"Hei"#).await;
        client.send(4, br#"ght":24}"#).await;
        client.send(4, br#"{"Width":100,"Height":30}"#).await;
        assert_eq!(client.all().await.stdout, b"80x24\n100x30\n");
    }
}

// SEC-CRI-07
#[tokio::test]
async fn a_url_is_good_for_one_client() {
    let server = server().await;
    let url = server.register(Request::Exec(exec(&["true"]))).unwrap();
    Client::connect(&url, BOTH[0]).await.unwrap().all().await;
    assert_eq!(Client::connect(&url, BOTH[0]).await.err(), Some(404));

    let url = server.register(Request::Exec(exec(&["true"]))).unwrap();
    assert_eq!(
        Client::connect(&url.replace("/exec/", "/attach/"), BOTH[0])
            .await
            .err(),
        Some(404)
    );
    assert_eq!(
        Client::connect(&url, BOTH[0]).await.err(),
        Some(404),
        "a wrong path uses the token up"
    );

    let guessed = format!("http://{}/exec/{}", server.address(), "0".repeat(48));
    assert_eq!(Client::connect(&guessed, BOTH[0]).await.err(), Some(404));
}

#[tokio::test]
async fn the_newest_protocol_of_those_offered_is_spoken() {
    let server = server().await;
    let url = server.register(Request::Exec(exec(&["true"]))).unwrap();
    let offered = "v4.channel.k8s.io, v5.channel.k8s.io, base64.channel.k8s.io";
    let mut client = Client::connect(&url, offered).await.unwrap();
    client.send(255, &[0]).await; // v4 would end here
    assert_eq!(client.all().await.status["status"], "Success");
    let forward_to = |ports: Vec<i32>| {
        Request::PortForward(PortForwardRequest {
            pod_sandbox_id: "p".into(),
            ports,
        })
    };
    for (request, protocol, status) in [
        (Request::Exec(exec(&["true"])), "v6.channel.k8s.io", 403),
        (
            Request::Exec(exec(&["true"])),
            "SPDY/3.1+portforward.k8s.io",
            403,
        ),
        (forward(), "v5.channel.k8s.io", 403),
        // The ports must be known from the beginning, and have channels.
        (forward(), "v4.channel.k8s.io", 400),
        (forward_to(vec![80; 33]), "v4.channel.k8s.io", 400),
        (forward_to(vec![80; 6]), "v4.base64.channel.k8s.io", 400),
    ] {
        let url = server.register(request).unwrap();
        assert_eq!(
            Client::connect(&url, protocol).await.err(),
            Some(status),
            "{protocol}"
        );
    }
}

/// A message in base64, and what one says.
fn text(channel: u8, data: &[u8]) -> Message {
    channels::OF_COMMANDS[4].message(channel, data)
}

#[tokio::test]
async fn clients_of_old_are_answered_as_they_speak() {
    let server = server().await;
    let script = exec(&["sh", "-c", "head -c 3; echo err >&2; exit 7"]);
    for (protocol, in_base64, with_status) in [
        ("v4.base64.channel.k8s.io", true, true),
        ("base64.channel.k8s.io", true, false),
        ("channel.k8s.io", false, false),
        ("", false, false),
    ] {
        let url = server.register(Request::Exec(script.clone())).unwrap();
        let mut client = Client::connect(&url, protocol).await.unwrap();
        if in_base64 {
            client.0.send(text(0, b"abc")).await.unwrap();
        } else {
            client.send(0, b"abc").await;
        }
        let mut channels = [const { Vec::new() }; 4];
        while let Some(message) = client.0.next().await {
            let message = message.unwrap();
            if message.is_close() {
                continue;
            }
            assert_eq!(message.is_text(), in_base64, "{protocol}");
            let dialect = channels::OF_COMMANDS[if in_base64 { 4 } else { 1 }];
            let (channel, data) = dialect.read(message).unwrap().unwrap();
            channels[usize::from(channel)].extend_from_slice(&data);
        }
        let [_, stdout, stderr, error] = channels;
        assert_eq!((&*stdout, &*stderr), (&b"abc"[..], &b"err\n"[..]));
        let error = String::from_utf8(error).unwrap();
        let told = "command terminated with non-zero exit code: exit status 7";
        match with_status {
            true => assert!(
                error.starts_with('{') && error.contains("ExitCode"),
                "{error}"
            ),
            false => assert_eq!(error, told, "{protocol}"),
        }
    }
    settled(&server).await;
}

#[tokio::test]
async fn ports_are_forwarded_over_plain_messages() {
    let server = server().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = {
        let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        unused.local_addr().unwrap().port()
    };
    let request = Request::PortForward(PortForwardRequest {
        pod_sandbox_id: "p".into(),
        ports: vec![port.into(), closed.into()],
    });
    let url = server.register(request).unwrap();
    let mut client = Client::connect(&url, "v4.channel.k8s.io").await.unwrap();
    let mut pod = listener.accept().await.unwrap().0;
    client.send(0, b"to the pod").await;
    let mut got = [0; 10];
    tokio::io::AsyncReadExt::read_exact(&mut pod, &mut got)
        .await
        .unwrap();
    assert_eq!(&got, b"to the pod");
    pod.write_all(b"from the pod").await.unwrap();
    drop(pod);
    // The end of the last connection is the end of the session.
    let mut channels = [const { Vec::new() }; 4];
    while let Some(Ok(Message::Binary(data))) = client.0.next().await {
        channels[usize::from(data[0])].extend_from_slice(&data[1..]);
    }
    let [data, error, closed_data, closed_error] = channels;
    let number = port.to_le_bytes();
    assert_eq!(data, [&number[..], b"from the pod"].concat());
    assert_eq!(error, number);
    assert_eq!(closed_data, closed.to_le_bytes());
    let why = String::from_utf8_lossy(&closed_error[2..]).into_owned();
    assert!(
        why.contains(&format!("error forwarding port {closed}")),
        "{why}"
    );
    drop(client);
    settled(&server).await;

    // A client that goes takes its connections along.
    let request = Request::PortForward(PortForwardRequest {
        pod_sandbox_id: "p".into(),
        ports: vec![port.into()],
    });
    let url = server.register(request).unwrap();
    let client = Client::connect(&url, "v4.channel.k8s.io").await.unwrap();
    let mut pod = listener.accept().await.unwrap().0;
    drop(client);
    let read = tokio::io::AsyncReadExt::read(&mut pod, &mut got).await;
    assert_eq!(read.unwrap_or(0), 0);
    settled(&server).await;
}

#[tokio::test]
async fn a_session_that_nobody_uses_ends_and_one_in_use_does_not() {
    const LIMIT: Duration = Duration::from_secs(2);
    let server = server_that_waits(LIMIT).await;
    let connect = async || {
        let url = server.register(attach("c")).unwrap();
        Client::connect(&url, BOTH[0]).await.unwrap()
    };
    // Before they connect: from there each session's own clock runs.
    let begin = Instant::now();
    let (idle, mut busy) = (connect().await, connect().await);
    let idle_ends = async {
        idle.closed().await;
        assert!(begin.elapsed() >= LIMIT, "{:?}", begin.elapsed());
    };
    let busy_goes_on = async {
        while begin.elapsed() < LIMIT * 2 {
            busy.send(0, b"x").await;
            assert_eq!(busy.next().await, (1, b"x".to_vec()));
            sleep(LIMIT / 10).await;
        }
    };
    tokio::join!(idle_ends, busy_goes_on);
    busy.closed().await;
    settled(&server).await;
}
