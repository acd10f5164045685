//! PortForward, over SPDY as kubectl and crictl speak it, and over the messages of clients that have no SPDY.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{
    BUSYBOX, Node, Pod, container,
    cri::refused,
    request::PodRequest,
    sh,
    spdy::{self, Frame},
};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};
use tonic::Code;

const PROTOCOL: &str = "portforward.k8s.io";

/// Where the pods' own servers listen.
const PORT: &str = "7070";

async fn url(node: &Node, pod: &Pod, port: Vec<i32>) -> Result<String> {
    let request = cri::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port,
    };
    let answer = node.cri.runtime().port_forward(request).await?;
    Ok(answer.into_inner().url)
}

/// A pod in which each connection to PORT gets back what it sends.
async fn echo(node: &Node, name: &str) -> Result<(Pod, String)> {
    let pod = node.run(node.pod(name)).await?;
    let script = format!("exec nc -ll -p {PORT} -e cat");
    let id = node
        .start_container(&pod, container("echo", BUSYBOX, &sh(&script)))
        .await?;
    let listens = format!("until netstat -ltn | grep -q :{PORT}; do sleep 0.05; done");
    node.cri.shell(&id, &listens).await?;
    Ok((pod, id))
}

#[test]
fn connections_are_forwarded_side_by_side_and_a_refused_one_ends_alone_sec_cri_13() -> Result<()> {
    Node::test(async |node| {
        let (pod, _) = echo(node, "forward").await?;
        // The node's own loopback is not the pod's.
        let of_the_node = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let node_port = of_the_node.local_addr()?.port().to_string();
        let (mut sender, mut receiver) =
            spdy::open(&url(node, &pod, vec![7070]).await?, PROTOCOL).await?;
        let [_, first] = sender.forward(PORT).await?;
        sender.data(first, b"before, ", false).await?;
        for (port, word) in [
            ("7071", "refused"),
            (&*node_port, "refused"),
            ("0", "not a port"),
            ("65536", "not a port"),
            ("-1", "not a port"),
            ("", "not a port"),
        ] {
            let [error, _] = sender.forward(port).await?;
            let mut told = Vec::new();
            while let Some(frame) = receiver.next().await? {
                if let Frame::Data { id, bytes, last } = frame
                    && id == error
                {
                    told.extend(bytes);
                    if last {
                        break;
                    }
                }
            }
            let told = String::from_utf8(told)?;
            ensure!(told.contains(word), "port {port:?}: {told:?}");
        }
        ensure!(
            tokio::time::timeout(Duration::from_millis(100), of_the_node.accept())
                .await
                .is_err(),
            "a port of the node was reached"
        );
        // More than all buffers on the way hold, of two connections at a time.
        let [_, second] = sender.forward(PORT).await?;
        let piece = vec![b's'; 32 << 10];
        let send = async {
            for _ in 0..64 {
                sender.data(second, &piece, false).await?;
            }
            sender.data(first, b"and after", true).await?;
            sender.data(second, b"", true).await
        };
        let receive = async {
            let (mut one, mut two, mut open) = (Vec::new(), 0, 2);
            while open > 0 {
                if let Frame::Data { id, bytes, last } =
                    receiver.next().await?.context("it ended")?
                {
                    if id == first {
                        one.extend(bytes);
                    } else if id == second {
                        two += bytes.len();
                    } else {
                        continue;
                    }
                    open -= i32::from(last);
                }
            }
            anyhow::Ok((one, two))
        };
        let (sent, received) = tokio::join!(send, receive);
        sent?;
        let (one, two) = received?;
        // (the first one's beginning went by above)
        ensure!(
            one.ends_with(b"and after"),
            "{:?}",
            String::from_utf8_lossy(&one)
        );
        ensure!(two == 64 * piece.len(), "{two} bytes came back");
        Ok(())
    })
}

#[test]
fn a_pod_that_goes_takes_its_forwarded_connections_along_sec_cri_13() -> Result<()> {
    Node::test(async |node| {
        let (pod, _) = echo(node, "goes").await?;
        let (mut sender, mut receiver) =
            spdy::open(&url(node, &pod, vec![]).await?, PROTOCOL).await?;
        let [_, data] = sender.forward(PORT).await?;
        sender.data(data, b"there?", false).await?;
        let mut got = Vec::new();
        while got != b"there?" {
            if let Some(Frame::Data { id, bytes, .. }) = receiver.next().await?
                && id == data
            {
                got.extend(bytes);
            }
        }
        node.cri.stop_pod(&pod.id).await?;
        tokio::time::timeout(Duration::from_secs(5), receiver.whole(data))
            .await
            .context("the connection goes on without its pod")??;
        // What is asked for later on the same connection reaches nobody else.
        let [error, _] = sender.forward(PORT).await?;
        let told = String::from_utf8(receiver.whole(error).await?)?;
        ensure!(told.contains("not ready"), "{told:?}");
        let answer = url(node, &pod, vec![7070]).await;
        ensure!(
            format!("{:#}", answer.err().context("forwarded")?).contains("not ready"),
            "a stopped pod is forwarded to"
        );
        let mut runtime = node.cri.runtime();
        for (pod_sandbox_id, port, code) in [
            ("nobody".to_owned(), 80, Code::NotFound),
            (pod.id.clone(), 80, Code::FailedPrecondition),
        ] {
            let request = cri::PortForwardRequest {
                pod_sandbox_id,
                port: vec![port],
            };
            refused(runtime.port_forward(request).await, code, &[])?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_on_the_host_network_has_the_nodes_ports_and_nonsense_is_refused_sec_cri_13() -> Result<()>
{
    Node::test(async |node| {
        let pod = node.run(node.pod("on-host").on_the_host_network()).await?;
        let of_the_node = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let port = of_the_node.local_addr()?.port().to_string();
        let (mut sender, mut receiver) =
            spdy::open(&url(node, &pod, vec![]).await?, PROTOCOL).await?;
        let [_, data] = sender.forward(&port).await?;
        let (mut connection, _) = of_the_node.accept().await?;
        connection.write_all(b"of the node").await?;
        drop(connection);
        sender.data(data, b"", true).await?;
        ensure!(receiver.whole(data).await? == b"of the node");
        let mut runtime = node.cri.runtime();
        for port in [0, -1, 65_536, i32::MAX] {
            let request = cri::PortForwardRequest {
                pod_sandbox_id: pod.id.clone(),
                port: vec![port],
            };
            refused(
                runtime.port_forward(request).await,
                Code::InvalidArgument,
                &["no port"],
            )?;
        }
        Ok(())
    })
}

#[test]
fn clients_without_spdy_forward_the_ports_of_the_request() -> Result<()> {
    Node::test(async |node| {
        let (pod, _) = echo(node, "messages").await?;
        let url = url(node, &pod, vec![7070, 7071]).await?;
        let authority = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split('/').next())
            .context("no URL")?;
        let stream = tokio::net::TcpStream::connect(authority).await?;
        let mut request = url.replacen("http", "ws", 1).into_client_request()?;
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse()?);
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        socket.send(Message::binary(b"\x00hello".to_vec())).await?;
        let mut channels = [const { Vec::new() }; 4];
        while channels[0].len() < 7 || channels[3].len() < 3 {
            let message = socket.next().await.context("the session ended")??;
            if let Message::Binary(bytes) = message {
                channels[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
            }
        }
        ensure!(channels[0] == [&7070_u16.to_le_bytes()[..], b"hello"].concat());
        let told = String::from_utf8_lossy(&channels[3][2..]).into_owned();
        ensure!(told.contains("7071"), "{told}");
        // A client that goes without a word, in the middle.
        let mut rest = socket.into_inner();
        rest.write_all(&[0x82, 0x85, 0, 0]).await?;
        rest.shutdown().await?;
        let _ = rest.read(&mut [0; 64]).await;
        Ok(())
    })
}
