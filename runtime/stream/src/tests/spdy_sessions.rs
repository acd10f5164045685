//! exec, attach and port-forward by SPDY, bare and inside a WebSocket.

use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{
    spdy_client::{Client, Frame},
    websocket_sessions, *,
};

const ALL: [&str; 5] = [
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v3.channel.k8s.io",
    "v2.channel.k8s.io",
    "channel.k8s.io",
];

#[tokio::test]
async fn an_exec_answers_on_its_streams() {
    let server = server().await;
    for (offered, agreed) in [
        (&ALL[..], ALL[0]),
        (&ALL[1..], ALL[1]),
        (&ALL[2..], ALL[2]),
        (&ALL[3..], ALL[3]),
        (&ALL[4..], ALL[4]),
    ] {
        let url = server
            .register(Request::Exec(exec(&[
                "sh",
                "-c",
                "cat; echo err >&2; exit 3",
            ])))
            .unwrap();
        let (mut client, protocol) = Client::connect(&url, offered).await.unwrap();
        assert_eq!(protocol, agreed);
        let error = client.open(&[("streamtype", "error")]).await;
        let stdin = client.open(&[("streamtype", "stdin")]).await;
        let stdout = client.open(&[("streamtype", "stdout")]).await;
        let stderr = client.open(&[("streamtype", "stderr")]).await;
        client.data(error, b"", true).await;
        client.data(stdin, b"typed ", false).await;
        client.data(stdin, b"text", true).await;
        let all = client.drain(&[stdout, stderr, error]).await;
        assert_eq!((&*all[0], &*all[1]), (&b"typed text"[..], &b"err\n"[..]));
        let status = String::from_utf8(all[2].clone()).unwrap();
        if ALL[..2].contains(&agreed) {
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            assert_eq!(
                status["details"]["causes"][0],
                serde_json::json!({ "reason": "ExitCode", "message": "3" })
            );
        } else {
            assert_eq!(
                status,
                "command terminated with non-zero exit code: exit status 3"
            );
        }
        assert_eq!(client.next().await, Frame::GoAway);
        assert_eq!(client.try_next().await, None);
    }
    settled(&server).await;
}

#[tokio::test]
async fn sizes_of_the_terminal_reach_the_runtime() {
    let server = server().await;
    let request = ExecRequest {
        tty: true,
        stderr: false,
        stdin: false,
        ..exec(&["sizes"])
    };
    let url = server.register(Request::Exec(request)).unwrap();
    let (mut client, _) = Client::connect(&url, &ALL).await.unwrap();
    let resize = client.open(&[("streamtype", "resize")]).await;
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    let error = client.open(&[("streamtype", "error")]).await;
    client
        .data(resize, b"{\"Width\":80,\"Height\":24}\n{\"Width\":1", false)
        .await;
    client.data(resize, b"00,\"Height\":30}\n", false).await;
    assert_eq!(client.drain(&[stdout, error]).await[0], b"80x24\n100x30\n");
}

#[tokio::test]
async fn pings_are_answered_and_more_streams_are_not() {
    let server = server().await;
    let request = AttachRequest {
        container_id: "c".into(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let url = server.register(Request::Attach(request)).unwrap();
    let (mut client, _) = Client::connect(&url, &ALL).await.unwrap();
    let stdin = client.open(&[("streamtype", "stdin")]).await;
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    client.open(&[("streamtype", "error")]).await;
    client.control(6, 0, &7_u32.to_be_bytes()).await;
    assert_eq!(client.next().await, Frame::Ping(7));
    let more = client.start(&[("streamtype", "stdout")]).await;
    assert_eq!(client.next().await, Frame::Reset(more));
    client.data(stdin, b"hello", false).await;
    assert_eq!(
        client.next().await,
        Frame::Data(stdout, b"hello".to_vec(), false)
    );
}

/// Answers each connection with what it got, in capitals.
async fn shouter() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                connection.read_to_end(&mut all).await.unwrap();
                connection
                    .write_all(&all.to_ascii_uppercase())
                    .await
                    .unwrap();
            });
        }
    });
    port
}

async fn check_forward<S: AsyncRead + AsyncWrite + Unpin>(client: &mut Client<S>) {
    let port = shouter().await.to_string();
    let mut pairs = Vec::new();
    for id in ["0", "1", "2"] {
        let error = client
            .open(&[("streamtype", "error"), ("port", &port), ("requestid", id)])
            .await;
        client.data(error, b"", true).await;
        let data = client
            .open(&[("streamtype", "data"), ("port", &port), ("requestid", id)])
            .await;
        pairs.push((error, data));
    }
    for (_, data) in &pairs {
        client
            .data(*data, format!("from {data}").as_bytes(), true)
            .await;
    }
    let ids: Vec<u32> = pairs
        .iter()
        .flat_map(|(error, data)| [*error, *data])
        .collect();
    let all = client.drain(&ids).await;
    for (at, (_, data)) in pairs.iter().enumerate() {
        assert_eq!(all[2 * at], b"", "no error");
        assert_eq!(all[2 * at + 1], format!("FROM {data}").as_bytes());
    }

    // a port on which nobody listens; the connection goes on
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    for (id, port) in [("3", closed.as_str()), ("4", "0"), ("5", "65536")] {
        let error = client
            .open(&[("streamtype", "error"), ("port", port), ("requestid", id)])
            .await;
        let _data = client
            .open(&[("streamtype", "data"), ("port", port), ("requestid", id)])
            .await;
        let text = String::from_utf8(client.drain(&[error]).await.remove(0)).unwrap();
        assert!(text.contains("port"), "{text:?}");
    }
}

#[tokio::test]
async fn connections_are_forwarded_side_by_side() {
    let server = server().await;
    let url = server.register(forward()).unwrap();
    let (mut client, protocol) = Client::connect(&url, &["portforward.k8s.io"])
        .await
        .unwrap();
    assert_eq!(protocol, "portforward.k8s.io");
    check_forward(&mut client).await;
    drop(client);
    settled(&server).await;
}

#[tokio::test]
async fn connections_are_forwarded_through_a_websocket() {
    let server = server().await;
    let url = server.register(forward()).unwrap();
    let socket = websocket_sessions::Client::connect(&url, "SPDY/3.1+portforward.k8s.io")
        .await
        .unwrap();
    // the client's end of the tunnel, as bytes
    let (near, far) = tokio::io::duplex(1 << 16);
    let pump = tokio::spawn(async move {
        use futures_util::{SinkExt, StreamExt};
        use tokio_tungstenite::tungstenite::Message;
        let (mut sink, mut messages) = socket.0.split();
        let (mut read, mut write) = tokio::io::split(far);
        let up = async {
            let mut buffer = vec![0; 4096];
            while let Ok(length @ 1..) = read.read(&mut buffer).await {
                sink.send(Message::Binary(buffer[..length].to_vec().into()))
                    .await
                    .unwrap();
            }
            sink.close().await.unwrap();
        };
        let down = async {
            while let Some(Ok(Message::Binary(data))) = messages.next().await {
                if write.write_all(&data).await.is_err() {
                    break;
                }
            }
        };
        tokio::join!(up, down);
    });
    let mut client = Client::over(near);
    check_forward(&mut client).await;
    drop(client);
    pump.await.unwrap();
    settled(&server).await;
}

#[tokio::test]
async fn a_reset_ends_its_connection_only() {
    let server = server().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let url = server.register(forward()).unwrap();
    let (mut client, _) = Client::connect(&url, &["portforward.k8s.io"])
        .await
        .unwrap();
    let mut opened = Vec::new();
    for id in ["0", "1"] {
        let _error = client
            .open(&[("streamtype", "error"), ("port", &port), ("requestid", id)])
            .await;
        let data = client
            .open(&[("streamtype", "data"), ("port", &port), ("requestid", id)])
            .await;
        opened.push((data, listener.accept().await.unwrap().0));
    }
    let (second, mut second_end) = opened.pop().unwrap();
    let (first, mut first_end) = opened.pop().unwrap();
    client
        .control(3, 0, &[first.to_be_bytes(), 5_u32.to_be_bytes()].concat())
        .await;
    assert_eq!(
        first_end.read(&mut [0; 8]).await.unwrap_or(0),
        0,
        "the pod sees the end"
    );
    client.data(second, b"still", false).await;
    let mut got = [0; 5];
    second_end.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still");
}
