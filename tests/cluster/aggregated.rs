//! API servers beside this one: found by their APIService, known by their CA, told who asks, and missed where they are away.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Runtime,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};

use crate::kubelets::{ADDRESS, base64, in_own_network};

const HEAD_LIMIT: usize = 16 << 10;

/// Serves `tides.sea.example.com/v1`, to whoever shows a certificate of the front proxy's.
struct Beside {
    address: SocketAddr,
    /// PEM, in base64.
    bundle: String,
    /// Heads of requests.
    seen: Arc<Mutex<Vec<String>>>,
    runtime: Option<Runtime>,
}

impl Beside {
    fn start(server: &Server) -> Result<Self> {
        let path = |end: &str| server.dir().join(format!("beside.{end}"));
        let (key, certificate) = (path("key"), path("crt"));
        #[rustfmt::skip]
        let made = Command::new("openssl")
            .args(["req", "-x509", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
            .args(["-subj", "/CN=tides", "-addext", "subjectAltName=DNS:tides.default.svc"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .arg("-keyout").arg(&key).arg("-out").arg(&certificate)
            .output()?;
        ensure!(made.status.success(), "{made:?}");
        let pem = std::fs::read(&certificate)?;
        let map = server.json(&[
            "get",
            "configmap",
            "-n",
            "kube-system",
            "extension-apiserver-authentication",
        ])?;
        ensure!(
            map["data"]["requestheader-allowed-names"] == "[\"front-proxy-client\"]",
            "{map}"
        );
        let front = map["data"]["requestheader-client-ca-file"]
            .as_str()
            .context("no CA of the front proxy")?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(front.as_bytes())?)?;
        let provider = Arc::new(ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(&pem)?],
                PrivateKeyDer::from_pem_file(&key)?,
            )?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((ADDRESS, 0)))?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        runtime.spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, notes) = (acceptor.clone(), notes.clone());
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_LIMIT {
                        head.push(stream.read_u8().await?);
                    }
                    let head = String::from_utf8(head)?.to_lowercase();
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    let (status, body) = answer(&path);
                    notes.lock().unwrap_or_else(PoisonError::into_inner).push(head);
                    let body = body.to_string();
                    let head = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    stream.write_all(head.as_bytes()).await?;
                    stream.write_all(body.as_bytes()).await?;
                    stream.shutdown().await?;
                    anyhow::Ok(())
                });
            }
        });
        Ok(Self {
            address,
            bundle: base64(&pem),
            seen,
            runtime: Some(runtime),
        })
    }

    fn seen(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

fn answer(path: &str) -> (&'static str, Value) {
    let path = path.split('?').next().unwrap_or_default();
    match path {
        "/apis/sea.example.com/v1" => (
            "200 OK",
            json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "sea.example.com/v1", "resources": [
                {"name": "tides", "singularName": "tide", "namespaced": true, "kind": "Tide", "verbs": ["get", "list"], "shortNames": ["td"]},
                {"name": "tides/status", "singularName": "", "namespaced": true, "kind": "Tide", "verbs": ["get"]},
            ]}),
        ),
        "/apis/sea.example.com/v1/namespaces/default/tides" => (
            "200 OK",
            json!({"kind": "TideList", "apiVersion": "sea.example.com/v1", "metadata": {}, "items": [
                {"kind": "Tide", "apiVersion": "sea.example.com/v1", "metadata": {"name": "spring", "namespace": "default"}},
            ]}),
        ),
        "/openapi/v3" => (
            "200 OK",
            json!({"paths": {"apis/sea.example.com/v1": {"serverRelativeURL": "/openapi/v3/apis/sea.example.com/v1?hash=ABC"}}}),
        ),
        _ => (
            "404 Not Found",
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not here"}),
        ),
    }
}

fn create(server: &Server, object: &Value) -> Result<()> {
    server
        .kubectl_with(&["apply", "-f", "-"], &object.to_string())
        .map(drop)
}

fn service(server: &Server, address: SocketAddr) -> Result<()> {
    create(
        server,
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "tides"},
            "spec": {"ports": [{"port": 443, "targetPort": address.port()}]},
        }),
    )?;
    create(
        server,
        &json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "tides-1", "labels": {"kubernetes.io/service-name": "tides"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address.ip().to_string()], "conditions": {"ready": true}}],
            "ports": [{"name": "", "port": address.port(), "protocol": "TCP"}],
        }),
    )
}

fn api_service(bundle: &str) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1.sea.example.com"},
        "spec": {
            "group": "sea.example.com", "version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 10,
            "service": {"namespace": "default", "name": "tides"}, "caBundle": bundle,
        },
    })
}

fn until_available(server: &Server, wanted: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let said = server.ask(
            &["get", "apiservice", "v1.sea.example.com", "--no-headers"],
            "",
        )?;
        if said.ok && said.stdout.contains(wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < until, "it is never {wanted}: {said:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn an_api_server_beside_this_one_is_asked_on_behalf_of_who_asks_and_missed_where_it_is_away()
-> Result<()> {
    in_own_network(|| {
        let server = Server::start("memory")?;
        let mut beside = Beside::start(&server)?;
        create(&server, &api_service(&beside.bundle))?;
        until_available(&server, "False (ServiceNotFound)")?;
        let away = server.refused(&["get", "--raw", "/apis/sea.example.com/v1/tides"], "")?;
        ensure!(away.contains("unable to handle the request"), "{away}");
        service(&server, beside.address)?;
        until_available(&server, "True")?;
        let listed = server.kubectl(&["get", "td", "-o", "name"])?;
        ensure!(listed.trim() == "tide.sea.example.com/spring", "{listed}");
        let kinds = server.kubectl(&[
            "api-resources",
            "--api-group=sea.example.com",
            "--no-headers",
        ])?;
        ensure!(kinds.contains("tides") && kinds.contains("Tide"), "{kinds}");
        for path in ["/apis", "/apis/sea.example.com", "/openapi/v3"] {
            let document = server.kubectl(&["get", "--raw", path])?;
            ensure!(
                document.contains("sea.example.com/v1"),
                "{path}: {document}"
            );
        }
        // It is told who asks, by this server alone, and gets no credentials.
        server.kubectl(&[
            "create",
            "clusterrole",
            "tides",
            "--verb=list",
            "--resource=tides.sea.example.com",
        ])?;
        server.kubectl(&[
            "create",
            "clusterrolebinding",
            "tides",
            "--clusterrole=tides",
            "--user=jane",
        ])?;
        server.kubectl(&["get", "td", "--as=jane", "--as-group=sailors"])?;
        let last = beside
            .seen()
            .into_iter()
            .rfind(|head| head.contains("/tides"))
            .context("it was not asked")?;
        ensure!(
            last.contains("x-remote-user: jane\r\n")
                && last.contains("x-remote-group: sailors\r\n")
                && !last.contains("authorization:")
                && !last.contains("impersonate-"),
            "{last}"
        );
        let denied = server.refused(&["get", "td", "--as=joe"], "")?;
        ensure!(
            denied.contains("cannot list resource \"tides\" in API group \"sea.example.com\""),
            "{denied}"
        );
        // With another CA it isn't believed; away, it is missed, and the rest of the API is not.
        create(
            &server,
            &api_service(&base64(
                std::fs::read_to_string(server.data().join("pki/ca.crt"))?.as_bytes(),
            )),
        )?;
        until_available(&server, "False (FailedDiscoveryCheck)")?;
        create(&server, &api_service(&beside.bundle))?;
        until_available(&server, "True")?;
        beside.end();
        until_available(&server, "False (FailedDiscoveryCheck)")?;
        let away = server.refused(
            &[
                "get",
                "--raw",
                "/apis/sea.example.com/v1/namespaces/default/tides",
            ],
            "",
        )?;
        ensure!(away.contains("unable to handle the request"), "{away}");
        server.kubectl(&["get", "pods"])?;
        server.kubectl(&["delete", "apiservice", "v1.sea.example.com"])?;
        let until = Instant::now() + Duration::from_secs(20);
        while server
            .kubectl(&["get", "--raw", "/apis"])?
            .contains("sea.example.com")
        {
            ensure!(Instant::now() < until, "what is gone is still told of");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

#[test]
fn what_is_served_here_is_always_available_and_can_not_be_taken_away() -> Result<()> {
    let server = Server::start("memory")?;
    let until = Instant::now() + Duration::from_secs(20);
    let table = loop {
        let table = server.kubectl(&["get", "apiservices"])?;
        if table.contains("v1.storage.k8s.io") {
            break table;
        }
        ensure!(Instant::now() < until, "{table}");
        std::thread::sleep(Duration::from_millis(100));
    };
    let plain: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for words in [
        "NAME SERVICE AVAILABLE AGE",
        "v1. Local True",
        "v1.apps Local True",
        "v2.autoscaling Local True",
    ] {
        ensure!(
            plain.iter().any(|line| line.starts_with(words)),
            "{words}: {table}"
        );
    }
    let mut taken = api_service("YQ==");
    taken["metadata"]["name"] = "v1.apps".into();
    taken["spec"]["group"] = "apps".into();
    let said = server.refused(&["apply", "-f", "-"], &taken.to_string())?;
    ensure!(said.contains("served by the server itself"), "{said}");
    let mut blind = api_service("");
    blind["spec"]
        .as_object_mut()
        .context("spec")?
        .remove("caBundle");
    // it may come later, from who makes certificates
    create(&server, &blind)?;
    until_available(&server, "False (FailedDiscoveryCheck)")?;
    let blind = server.json(&["get", "apiservice", "v1.sea.example.com"])?;
    let why = &blind["status"]["conditions"][0]["message"];
    ensure!(
        why.as_str()
            .is_some_and(|why| why.contains("it has no caBundle")),
        "{blind:#}"
    );
    server.kubectl(&["delete", "apiservice", "v1.sea.example.com"])?;
    // of a definition, too, as long as it is there
    let definition = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"buoys.sea.example.com"},
        "spec":{"group":"sea.example.com","scope":"Cluster","names":{"plural":"buoys","kind":"Buoy"},
        "versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}"#;
    server.kubectl_with(&["create", "-f", "-"], definition)?;
    until_available(&server, "True").context("of a definition")?;
    server.kubectl(&["delete", "crd", "buoys.sea.example.com"])?;
    let until = Instant::now() + Duration::from_secs(20);
    while server
        .ask(&["get", "apiservice", "v1.sea.example.com"], "")?
        .ok
    {
        ensure!(
            Instant::now() < until,
            "an APIService outlives its definition"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
