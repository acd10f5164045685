//! Static pods of a URL: one manifest, or a list of them, asked for now and then. What can't be had, or is not good as a whole, changes nothing: the
//! last good list stays, also over a restart of the kubelet.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    HeaderMap, Request, StatusCode,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    },
};
use url::{Host, Url};

use crate::{
    Desired, Error, Problem, USER_AGENT,
    manifest::{MAX_BYTES, Origin, read_pods},
    store,
};

/// Of pods that came this way.
const SOURCE: &str = "http";
/// Upstream's: one question, with its answer.
const ASK: Duration = Duration::from_secs(10);
/// A node has room for fewer pods.
const MAX_PODS: usize = 2000;

/// A header that is sent with each question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlHeader(HeaderName, HeaderValue);

impl std::str::FromStr for UrlHeader {
    type Err = String;

    /// `NAME:VALUE`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text
            .split_once(':')
            .ok_or_else(|| format!("{text:?} is no NAME:VALUE"))?;
        let name = name.trim().parse::<HeaderName>();
        let name = name.map_err(|error| format!("{text:?}: {error}"))?;
        let mut value = HeaderValue::from_str(value.trim())
            .map_err(|error| format!("the value of header {name}: {error}"))?;
        // most of them are passwords
        value.set_sensitive(true);
        Ok(Self(name, value))
    }
}

/// Where manifests are, and how they are asked for.
#[derive(Debug)]
pub struct UrlConfig {
    /// `http://` or `https://`.
    pub url: String,
    pub headers: Vec<UrlHeader>,
    /// Between two questions.
    pub every: Duration,
    /// By which CA the server is known (PEM); else those of the system.
    pub ca: Option<PathBuf>,
    /// The node's name, which is in the names of its static pods.
    pub node: String,
    /// Where the kubelet before this one has kept pods.
    pub kubelet_dir: PathBuf,
}

#[derive(Debug)]
pub struct UrlSource {
    url: Url,
    /// As it is told of: without a password.
    shown: String,
    headers: HeaderMap,
    every: Duration,
    tls: Option<Arc<ClientConfig>>,
    node: String,
    kubelet_dir: PathBuf,
    /// Of the last list that was good.
    etag: Option<HeaderValue>,
    text: Option<String>,
    /// What was told last of what is wrong.
    complaint: Option<String>,
}

enum Answer {
    Same,
    New {
        etag: Option<HeaderValue>,
        text: String,
    },
}

impl UrlSource {
    /// Asks nothing yet.
    ///
    /// # Errors
    /// What is no URL of http or https, or a CA that can't be read.
    pub fn new(config: UrlConfig) -> Result<Self, Error> {
        let url = Url::parse(&config.url).map_err(|error| Error::ManifestUrl {
            url: config.url.clone(),
            why: error.to_string(),
        })?;
        let mut shown = url.clone();
        if url.password().is_some() {
            let _ = shown.set_password(Some("..."));
        }
        let failed = |why: String| Error::ManifestUrl {
            url: shown.to_string(),
            why,
        };
        let tls = match url.scheme() {
            "http" => None,
            "https" => Some(tls(config.ca.as_deref()).map_err(failed)?),
            other => return Err(failed(format!("{other} is neither http nor https"))),
        };
        if url.host().is_none() {
            return Err(failed("it names no host".into()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(failed(
                "a name or password in it is not sent: use --manifest-url-header Authorization:..."
                    .into(),
            ));
        }
        let mut headers = HeaderMap::new();
        for UrlHeader(name, value) in config.headers {
            headers.append(name, value);
        }
        Ok(Self {
            shown: shown.to_string(),
            url,
            headers,
            every: config.every,
            tls,
            node: config.node,
            kubelet_dir: config.kubelet_dir,
            etag: None,
            text: None,
            complaint: None,
        })
    }

    /// Tells all pods at each change, for as long as somebody listens.
    pub async fn run(mut self, told: watch::Sender<Option<Vec<Arc<Desired>>>>) {
        while !told.is_closed() {
            match self.look().await {
                Ok(pods) => {
                    if self.complaint.take().is_some() {
                        tracing::info!(url = self.shown, "manifests can be had again");
                    }
                    if let Some(pods) = pods {
                        told.send_replace(Some(pods));
                    }
                }
                Err(why) => {
                    if told.borrow().is_none() {
                        told.send_replace(Some(self.remembered()));
                    }
                    // once, however often it is asked
                    if self.complaint.as_ref() != Some(&why) {
                        tracing::error!(
                            "manifests of {}: {why}; pods go on as they are",
                            self.shown
                        );
                        self.complaint = Some(why);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = told.closed() => return,
            }
        }
    }

    /// The pods, where they may be others than before.
    async fn look(&mut self) -> Result<Option<Vec<Arc<Desired>>>, String> {
        let answer = match tokio::time::timeout(ASK, self.ask()).await {
            Ok(answer) => answer?,
            Err(_) => return Err(format!("no answer within {} s", ASK.as_secs())),
        };
        let Answer::New { etag, text } = answer else {
            return Ok(None);
        };
        if self.text.as_ref() == Some(&text) {
            self.etag = etag;
            return Ok(None);
        }
        let pods = self.pods(&text).map_err(|problems| {
            let error = Error::Manifest {
                file: "the answer".into(),
                problems,
            };
            error.to_string()
        })?;
        // only of what is good: what is bad is to be told of until it is mended
        (self.etag, self.text) = (etag, Some(text));
        Ok(Some(pods))
    }

    fn pods(&self, text: &str) -> Result<Vec<Arc<Desired>>, Vec<Problem>> {
        let origin = Origin::Static {
            node: &self.node,
            file: &self.shown,
        };
        let read = read_pods(text, origin)?;
        if read.len() > MAX_PODS {
            let what = format!("{} pods: a node has room for fewer", read.len());
            return Err(vec![Problem::new("items", what)]);
        }
        let mut pods: Vec<Arc<Desired>> = Vec::new();
        for pod in read {
            let pod = Desired::new(pod, SOURCE).map_err(|problem| vec![problem])?;
            let is_again =
                |other: &Arc<Desired>| other.uid == pod.uid || other.full_name() == pod.full_name();
            if pods.iter().any(is_again) {
                let what = format!("{} is in the list more than once", pod.full_name());
                return Err(vec![Problem::new("metadata.name", what)]);
            }
            pods.push(Arc::new(pod));
        }
        Ok(pods)
    }

    /// Those that a kubelet before this one had from a URL.
    fn remembered(&self) -> Vec<Arc<Desired>> {
        let kept = store::kept_pods(&self.kubelet_dir).into_iter();
        kept.filter(|kept| kept.source == SOURCE)
            .filter_map(|kept| Desired::new(kept.pod, SOURCE).ok())
            .map(Arc::new)
            .collect()
    }

    async fn ask(&self) -> Result<Answer, String> {
        let port = self.url.port_or_known_default().unwrap_or(80);
        let (name, host) = match self.url.host() {
            Some(Host::Domain(name)) => (name.to_owned(), name.to_owned()),
            Some(Host::Ipv4(ip)) => (ip.to_string(), ip.to_string()),
            Some(Host::Ipv6(ip)) => (ip.to_string(), format!("[{ip}]")),
            None => return Err("it names no host".into()),
        };
        let stream = TcpStream::connect((name.as_str(), port))
            .await
            .map_err(|error| format!("cannot connect to {host}:{port}: {error}"))?;
        let host = match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        let Some(tls) = &self.tls else {
            return self.over(stream, &host).await;
        };
        let server = ServerName::try_from(name).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(tls.clone())
            .connect(server, stream)
            .await
            .map_err(|error| format!("TLS with {host}: {error}"))?;
        self.over(stream, &host).await
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        host: &str,
    ) -> Result<Answer, String> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // ends with this question, whatever comes of it
        let connection = async {
            let _ = connection.await;
            std::future::pending::<()>().await
        };
        tokio::select! {
            answer = self.send(&mut sender, host) => answer,
            () = connection => unreachable!("it never ends"),
        }
    }

    async fn send(
        &self,
        sender: &mut http1::SendRequest<Empty<Bytes>>,
        host: &str,
    ) -> Result<Answer, String> {
        let target = &self.url[url::Position::BeforePath..url::Position::AfterQuery];
        let mut request = Request::get(target)
            .header(header::HOST, host)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::ACCEPT, "application/yaml, application/json, */*")
            .header(header::CONNECTION, "close")
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        if let Some(etag) = &self.etag {
            let headers = request.headers_mut();
            headers.insert(header::IF_NONE_MATCH, etag.clone());
        }
        for name in self.headers.keys() {
            request.headers_mut().remove(name);
        }
        request.headers_mut().extend(self.headers.clone());
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED if self.etag.is_some() => return Ok(Answer::Same),
            status if status.is_redirection() => {
                let to = answer.headers().get(header::LOCATION);
                let to = to.and_then(|it| it.to_str().ok()).unwrap_or("nowhere");
                return Err(format!("{status}: it leads to {to:?}, name that one"));
            }
            status => return Err(format!("the server answered {status}")),
        }
        let etag = answer.headers().get(header::ETAG).cloned();
        let limit = usize::try_from(MAX_BYTES).unwrap_or(usize::MAX);
        let body = Limited::new(answer.into_body(), limit).collect().await;
        let bytes = body
            .map_err(
                |error| match error.is::<http_body_util::LengthLimitError>() {
                    true => format!("the answer has more than {MAX_BYTES} bytes"),
                    false => format!("the answer breaks off: {error}"),
                },
            )?
            .to_bytes();
        // nothing is what a server says that has lost its file
        if bytes.is_empty() {
            return Err("the answer is empty: a list of no pods is `kind: PodList`".into());
        }
        let text = String::from_utf8(bytes.into())
            .map_err(|_| "the answer is no text of UTF-8".to_owned())?;
        Ok(Answer::New { etag, text })
    }
}

/// By the CA of a file, or by those of the system.
fn tls(ca: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            let failed = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
            let pem = std::fs::read(path).map_err(|error| failed(&error))?;
            for one in CertificateDer::pem_slice_iter(&pem) {
                let one = one.map_err(|error| failed(&error))?;
                roots.add(one).map_err(|error| failed(&error))?;
            }
            if roots.is_empty() {
                return Err(failed(&"no certificate in it"));
            }
        }
        None => {
            // one that is damaged is no reason to do without the others
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                let what = "the system has no certificates of authorities (package ca-certificates); or name one by --manifest-url-ca-file";
                return Err(what.into());
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
