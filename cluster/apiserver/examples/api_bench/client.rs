//! One client: TLS with the admin's certificate, HTTP/2, a connection of its own.

use std::sync::Arc;

use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use super::{Result, server::Server};

/// As Go's client has them: a watch is never held up by its window.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;

/// Where the server is and who one is, of its kubeconfig.
pub struct Target {
    address: String,
    tls: Arc<ClientConfig>,
}

impl Target {
    pub fn of(server: &Server) -> Result<Self> {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(server.kubeconfig())?)?;
        let pem = |value: &Value| -> Result<Vec<u8>> {
            let text = value.as_str().ok_or("a kubeconfig without certificates")?;
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let user = &config["users"][0]["user"];
        let mut roots = RootCertStore::empty();
        let ca = pem(&config["clusters"][0]["cluster"]["certificate-authority-data"])?;
        for certificate in CertificateDer::pem_slice_iter(&ca) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"])?)
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?;
        let mut tls = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            address: server.address.clone(),
            tls: Arc::new(tls),
        })
    }
}

#[derive(Clone)]
pub struct Client {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

impl Client {
    pub async fn connect(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(&target.address).await?;
        stream.set_nodelay(true)?;
        let host = target.address.rsplit_once(':').ok_or("no port")?.0;
        let name = ServerName::try_from(host.to_owned())?;
        let stream = TlsConnector::from(target.tls.clone())
            .connect(name, stream)
            .await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            authority: target.address.clone(),
        })
    }

    pub async fn open(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>> {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .header("accept", accept)
            .header("content-type", content_type)
            .body(Full::new(body))?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            return Err(format!(
                "{method} {path}: {status} {}",
                String::from_utf8_lossy(&body)
            )
            .into());
        }
        Ok(response)
    }

    pub async fn send(&self, method: &str, path: &str, body: Bytes) -> Result<Bytes> {
        let response = self.open(method, path, "application/json", body).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    pub async fn get(&self, path: &str) -> Result<Bytes> {
        self.send("GET", path, Bytes::new()).await
    }

    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Bytes> {
        let response = self.open("GET", path, accept, Bytes::new()).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }
}
