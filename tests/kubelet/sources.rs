//! Static pods of a URL.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use berth_tests::Node;

use crate::scene::{Kubelet, container, pod};

const SLEEPER: &str = "  terminationGracePeriodSeconds: 0\n  containers: [{name: a, image: busybox, command: [sleep, '1000']}]";

/// A server of one text, which can be changed, or `None`: 500.
struct Texts {
    url: String,
    text: Arc<Mutex<Option<String>>>,
}

impl Texts {
    fn serve(text: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/manifests", listener.local_addr()?);
        let text = Arc::new(Mutex::new(Some(text)));
        let given = text.clone();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut head = BufReader::new(&stream);
                let mut line = String::new();
                while head.read_line(&mut line).is_ok_and(|read| read > 2) {
                    line.clear();
                }
                let text = given.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let (status, text) = match text {
                    Some(text) => ("200 OK", text),
                    None => ("500 Internal Server Error", "no".into()),
                };
                let length = text.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{text}"
                );
            }
        });
        Ok(Self { url, text })
    }

    fn give(&self, text: Option<String>) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
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
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
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
