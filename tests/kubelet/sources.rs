//! Static pods of a URL.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use berth_tests::{Node, process::eventually, webhook::loopback_identity};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::scene::{Kubelet, container, pod};

const SLEEPER: &str = "  terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

/// A server of one text, which can be changed, or `None`: 500.
struct Texts {
    url: String,
    text: Arc<Mutex<Option<String>>>,
}

impl Texts {
    fn serve(text: String) -> Result<Self> {
        Self::serve_by(text, None)
    }

    /// … over TLS, where there is what to serve by.
    fn serve_by(text: String, tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/manifests", listener.local_addr()?);
        let text = Arc::new(Mutex::new(Some(text)));
        let given = text.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                // who does not know the certificate hangs up
                let _ = match tls.clone().map(ServerConnection::new) {
                    None => answer(stream, &given),
                    Some(Ok(connection)) => answer(StreamOwned::new(connection, stream), &given),
                    Some(Err(_)) => return,
                };
            }
        });
        Ok(Self { url, text })
    }

    fn give(&self, text: Option<String>) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

fn answer(stream: impl Read + Write, given: &Mutex<Option<String>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let text = given.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (status, text) = match text {
        Some(text) => ("200 OK", text),
        None => ("500 Internal Server Error", "no".into()),
    };
    let length = text.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{text}");
    stream.get_mut().write_all(answer.as_bytes())?;
    stream.get_mut().flush()
}

#[test]
fn pods_of_a_url_come_and_go_with_it_and_stay_while_it_is_away_kl_02() -> Result<()> {
    Node::test(async |node| {
        let texts = Texts::serve(pod("web", SLEEPER))?;
        let mut kubelet = Kubelet::start_with(
            node,
            &[
                "--manifest-url",
                &texts.url,
                "--http-check-frequency",
                "200ms",
            ],
        )?;
        // beside those of the directory
        kubelet.put("file.yaml", &pod("file", SLEEPER))?;
        let web = kubelet.wait_ready("web").await?;
        kubelet.wait_ready("file").await?;

        for bad in [None, Some("kind: [".to_owned())] {
            texts.give(bad);
            tokio::time::sleep(Duration::from_secs(1)).await;
            // … also for a kubelet that has never had an answer
            kubelet.kill_9();
            kubelet.spawn()?;
            kubelet.put("more.yaml", &pod("more", SLEEPER))?;
            kubelet.wait_ready("more").await?;
            let again = kubelet.status("web").context("no status")?;
            ensure!(
                container(&again, "a")["containerID"] == container(&web, "a")["containerID"],
                "{again:#}"
            );
            kubelet.take("more.yaml")?;
            kubelet.wait_gone(node, "more").await?;
        }
        let told = kubelet.log().matches("500 Internal Server Error").count();
        ensure!(
            (1..=2).contains(&told),
            "told {told} times: {}",
            kubelet.log()
        );

        let list = r#"{"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "db"}, "spec":
            {"terminationGracePeriodSeconds": 0, "containers": [{"name": "a", "image": "busybox", "command": ["sleep", "1000"]}]}}]}"#;
        texts.give(Some(list.into()));
        kubelet.wait_ready("db").await?;
        kubelet.wait_gone(node, "web").await?;
        texts.give(Some(
            r#"{"apiVersion": "v1", "kind": "PodList", "items": []}"#.into(),
        ));
        kubelet.wait_gone(node, "db").await?;
        kubelet.take("file.yaml")?;
        kubelet.wait_gone(node, "file").await
    })
}

#[test]
fn a_url_of_https_is_asked_only_by_a_ca_that_knows_its_server_kl_02() -> Result<()> {
    Node::test(async |node| {
        let (certificate, config) = loopback_identity(&node.dir)?;
        let texts = Texts::serve_by(pod("web", SLEEPER), Some(config))?;
        let of_system = [
            "--manifest-url",
            &texts.url,
            "--http-check-frequency",
            "200ms",
        ];
        let mut kubelet = Kubelet::start_with(node, &of_system)?;
        // who is not known says nothing that counts; those of the directory go on
        kubelet.put("file.yaml", &pod("file", SLEEPER))?;
        kubelet.wait_ready("file").await?;
        ensure!(
            eventually(Duration::from_secs(20), || {
                let log = kubelet.log();
                log.contains(&texts.url) && log.contains("TLS with 127.0.0.1")
            }),
            "nobody says why: {}",
            kubelet.log()
        );
        ensure!(kubelet.pod_dir("web").is_none(), "it was believed");
        kubelet.kill_9();
        kubelet.with_flag(&format!("--manifest-url-ca-file={}", certificate.display()));
        kubelet.spawn()?;
        kubelet.wait_ready("web").await?;
        texts.give(Some(
            r#"{"apiVersion": "v1", "kind": "PodList", "items": []}"#.into(),
        ));
        kubelet.wait_gone(node, "web").await?;
        kubelet.take("file.yaml")?;
        kubelet.wait_gone(node, "file").await
    })
}
