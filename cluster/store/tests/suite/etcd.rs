//! An etcd of a test's own, which ends with it.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_store::{Etcd, Store};

pub struct Server {
    child: Child,
    endpoint: String,
    _directory: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Both at once, so that they differ.
        let ports: Vec<_> = (0..2)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .map(|listener| (listener.local_addr().unwrap().port(), listener))
            .collect();
        let url = |n: usize| format!("http://127.0.0.1:{}", ports[n].0);
        let (client, peer) = (url(0), url(1));
        drop(ports);
        let child = Command::new("etcd")
            .args(["--name", "test", "--log-level", "error", "--logger", "zap"])
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("test={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd-server is not installed: hack/deps --test");
        let server = Self {
            child,
            endpoint: client,
            _directory: directory,
        };
        let begun = Instant::now();
        while let Err(e) = server.store().status().await {
            assert!(begun.elapsed() < Duration::from_secs(60), "etcd: {e}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    pub fn store(&self) -> Arc<dyn Store> {
        let channel = tonic::transport::Endpoint::new(self.endpoint.clone())
            .unwrap()
            .connect_lazy();
        Arc::new(Etcd::new(channel))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
