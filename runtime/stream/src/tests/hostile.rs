//! Clients that go, that never read, and that send what no client should.

use std::net::Shutdown;

use tokio::io::AsyncReadExt;

use super::{spdy_client, websocket_sessions, *};

/// Bytes of this process that are resident.
pub(super) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        << 10
}

async fn raw(server: &Server, head: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    (
        stream,
        String::from_utf8_lossy(&answer[..length]).into_owned(),
    )
}

#[tokio::test]
async fn what_is_no_upgrade_is_refused_with_words() {
    let server = server().await;
    let url = |request| server.register(request).unwrap();
    let table = [
        (
            format!(
                "GET {} HTTP/1.1\r\nHost: x\r\n\r\n",
                path(&url(attach("c")))
            ),
            "400",
        ),
        (
            format!(
                "PUT {} HTTP/1.1\r\nHost: x\r\n\r\n",
                path(&url(attach("c")))
            ),
            "405",
        ),
        (
            format!(
                "GET {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
                path(&url(attach("c")))
            ),
            "400",
        ),
        (
            format!(
                "GET {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                path(&url(attach("c")))
            ),
            "400",
        ),
        (
            format!(
                "GET {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
                path(&url(attach("c")))
            ),
            "403",
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404"),
        (
            "GET /exec/../attach/x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "404",
        ),
    ];
    for (head, status) in table {
        let (_, answer) = raw(&server, &head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head:?}: {answer:?}"
        );
    }
}

// SEC-CRI-02
#[tokio::test]
async fn clients_that_go_leave_nothing_behind() {
    let server = server().await;
    for round in 0..200 {
        let container = ["c", "deaf", "talks"][round % 3];
        let url = server.register(attach(container)).unwrap();
        let mut client = websocket_sessions::Client::connect(&url, "v5.channel.k8s.io")
            .await
            .unwrap();
        if container != "talks" {
            client.send(0, &[b'x'; 1000]).await;
        }
        let tokio_tungstenite::MaybeTlsStream::Plain(stream) = client.0.into_inner() else {
            unreachable!()
        };
        match round % 2 {
            0 => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(), // close is a reset
            _ => stream
                .into_std()
                .unwrap()
                .shutdown(Shutdown::Write)
                .unwrap(),
        }
    }
    settled(&server).await;
}

// SEC-CRI-02
/// Whether the peer's kernel has taken everything, and so will see the end: the send queue as /proc/net/tcp has it.
async fn all_sent(stream: &tokio::net::TcpStream) -> bool {
    let port = format!(":{:04X}", stream.local_addr().unwrap().port());
    for _ in 0..50 {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let mine = table.lines().find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, queues) = (fields.get(1)?, fields.get(4)?);
            local
                .ends_with(&port)
                .then(|| queues.starts_with("00000000:"))
        });
        if mine == Some(true) {
            return true;
        }
        sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_client_that_goes_while_its_input_is_stuck_is_noticed() {
    /// Frames of 64 KiB: more than all buffers of a session hold, and less than the kernel's own behind them.
    const STUCK_FRAMES: [usize; 2] = [4, 2];
    let server = server().await;
    for (spdy, reset) in [(false, false), (false, true), (true, false), (true, true)] {
        let url = server.register(attach("deaf")).unwrap();
        let mut frame;
        let mut stream = if spdy {
            let (mut client, _) = spdy_client::Client::connect(&url, &["v4.channel.k8s.io"])
                .await
                .unwrap();
            let stdin = client.open(&[("streamtype", "stdin")]).await;
            client.open(&[("streamtype", "stdout")]).await;
            client.open(&[("streamtype", "error")]).await;
            frame = stdin.to_be_bytes().to_vec();
            frame.extend_from_slice(&0xffff_u32.to_be_bytes());
            client.io
        } else {
            let client = websocket_sessions::Client::connect(&url, "v5.channel.k8s.io")
                .await
                .unwrap();
            frame = vec![0x82, 0x80 | 126, 0xff, 0xff, 0, 0, 0, 0];
            let tokio_tungstenite::MaybeTlsStream::Plain(stream) = client.0.into_inner() else {
                unreachable!()
            };
            stream
        };
        frame.resize(8 + 0xffff, 0);
        // A closing connection says so only behind all that it has sent: where not even the kernel takes more, it takes a reset.
        let enough = if reset {
            usize::MAX
        } else {
            STUCK_FRAMES[usize::from(spdy)]
        };
        let flood = async {
            for _ in 0..enough {
                stream.write_all(&frame).await.unwrap();
            }
        };
        let flooded = tokio::time::timeout(Duration::from_millis(500), flood).await;
        assert_eq!(flooded.is_err(), reset);
        sleep(Duration::from_millis(100)).await;
        assert!(server.sessions() > 0);
        // How much a kernel takes for a reader that does not read is its own affair: where something is still to be sent, the end
        // could not be told behind it.
        if reset || !all_sent(&stream).await {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
        settled(&server).await;
    }
}

// SEC-CRI-02
#[tokio::test]
async fn a_client_that_never_reads_holds_up_nobody_else() {
    let server = server().await;
    let mut silent = Vec::new();
    let before = resident();
    for _ in 0..50 {
        let url = server.register(attach("talks")).unwrap();
        silent.push(
            websocket_sessions::Client::connect(&url, "v5.channel.k8s.io")
                .await
                .unwrap(),
        );
    }
    sleep(Duration::from_millis(200)).await;
    let url = server
        .register(Request::Exec(exec(&["echo", "here"])))
        .unwrap();
    let answer = websocket_sessions::Client::connect(&url, "v5.channel.k8s.io")
        .await
        .unwrap()
        .all()
        .await;
    assert_eq!(answer.stdout, b"here\n");
    assert!(
        resident().saturating_sub(before) < 48 << 20,
        "{} MiB for 50 sessions and their clients",
        (resident() - before) >> 20
    );
    drop(silent);
    settled(&server).await;
}

// SEC-CRI-08
#[tokio::test]
async fn websocket_frames_that_are_too_much_end_the_connection_alone() {
    let server = server().await;
    let bystander_url = server.register(attach("c")).unwrap();
    let mut bystander = websocket_sessions::Client::connect(&bystander_url, "v5.channel.k8s.io")
        .await
        .unwrap();
    let before = resident();
    let endless_fragments = [
        &[0x02, 0x80 | 127, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, 0][..],
        &vec![0; 512 << 10],
    ]
    .concat();
    let continuation = [
        &[0x00, 0x80 | 127, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0, 0][..],
        &vec![0; 512 << 10],
    ]
    .concat();
    let table: [(&str, Vec<Vec<u8>>); 6] = [
        (
            "a frame of 2^62 bytes",
            vec![vec![
                0x82,
                0x80 | 127,
                0x40,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]],
        ),
        (
            "a message without end",
            vec![
                endless_fragments,
                continuation.clone(),
                continuation.clone(),
                continuation,
            ],
        ),
        (
            "text on an unknown channel",
            vec![vec![0x81, 0x81, 0, 0, 0, 0, b'x']],
        ),
        ("an unknown channel", vec![vec![0x82, 0x81, 0, 0, 0, 0, 9]]),
        ("no channel", vec![vec![0x82, 0x80, 0, 0, 0, 0]]),
        (
            "a size without end",
            vec![
                [
                    &[0x82, 0x80 | 126, 0x20, 0x01, 0, 0, 0, 0, 4, b'{'][..],
                    &[b' '; 0x1fff],
                ]
                .concat(),
            ],
        ),
    ];
    for (what, frames) in table {
        let url = server.register(attach("c")).unwrap();
        let client = websocket_sessions::Client::connect(&url, "v5.channel.k8s.io")
            .await
            .unwrap();
        let tokio_tungstenite::MaybeTlsStream::Plain(mut stream) = client.0.into_inner() else {
            unreachable!()
        };
        for frame in frames {
            // the server may have had enough in the middle
            let _ = stream.write_all(&frame).await;
        }
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "{what}: the connection is still open");
    }
    assert!(resident().saturating_sub(before) < 16 << 20);
    bystander.send(0, b"alive").await;
    assert_eq!(bystander.next().await, (1, b"alive".to_vec()));
}

// SEC-CRI-08
#[tokio::test]
async fn spdy_frames_that_are_too_much_end_the_connection_alone() {
    let server = server().await;
    let before = resident();
    let control = |kind: u8, length: u32, payload: &[u8]| {
        [&[0x80, 3, 0, kind][..], &length.to_be_bytes(), payload].concat()
    };
    let table = [
        (
            "a control frame of 16 MiB",
            control(1, 0xff_ffff, &[0; 100]),
        ),
        (
            "a SYN_STREAM with garbage for headers",
            control(1, 14, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        ),
        ("a SYN_STREAM that is cut", control(1, 4, &[0, 0, 0, 1])),
        ("an RST_STREAM without a stream", control(3, 0, &[])),
        ("an unknown type", control(77, 0, &[])),
        (
            "another version",
            vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
        ),
        ("HTTP", b"\xffET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in table {
        let url = server.register(forward()).unwrap();
        let (mut client, _) = spdy_client::Client::connect(&url, &["portforward.k8s.io"])
            .await
            .unwrap();
        // SETTINGS that claim 2^32-1 entries say nothing that is believed
        client.control(4, 0, &[0xff, 0xff, 0xff, 0xff]).await;
        client.io.write_all(&bytes).await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(5), client.try_next()).await;
        assert_eq!(end.expect(what), None, "{what}");
    }
    assert!(resident().saturating_sub(before) < 16 << 20);
    settled(&server).await;
}

// SEC-CRI-08
#[tokio::test]
async fn a_hundred_thousand_streams_are_not_all_taken() {
    let server = server().await;
    let before = resident();
    let url = server.register(forward()).unwrap();
    let (client, _) = spdy_client::Client::connect(&url, &["portforward.k8s.io"])
        .await
        .unwrap();
    let (mut read, write) = client.io.into_split();
    let mut packer = crate::spdy::headers::Packer::new().unwrap();
    let answers = tokio::spawn(async move {
        let mut sink = vec![0; 1 << 16];
        while read.read(&mut sink).await.is_ok_and(|length| length > 0) {}
    });
    let mut write = tokio::io::BufWriter::new(write);
    for id in (1..200_000_u32).step_by(2) {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(
            &packer
                .pack(&[
                    ("streamtype", "data"),
                    ("port", "1"),
                    ("requestid", &id.to_string()),
                ])
                .unwrap(),
        );
        let frame = [
            &[0x80, 3, 0, 1][..],
            &(payload.len() as u32).to_be_bytes(),
            &payload,
        ]
        .concat();
        // refused in the middle is as good as refused one by one
        if write.write_all(&frame).await.is_err() {
            break;
        }
    }
    let _ = write.flush().await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{} MiB", grown >> 20);
    drop(write);
    answers.await.unwrap();
    settled(&server).await;
}
