//! The registry API (distribution-spec): manifests, configurations, layers; over several hosts, with tokens and redirects.

mod request;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    Auth,
    auth::Credentials,
    client::{Clients, chain},
    digest::Digest,
    error::Error,
    hosts::Host,
    manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST},
    progress::LayerReport,
    reference::{Name, Version},
};

/// Cuts of one layer without a byte in between, and in all.
const MAX_CUTS_IN_A_ROW: u32 = 5;
const MAX_CUTS: u32 = 50;
/// Wait before the first resume; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How often a waiting layer tells for how long nothing came.
const TICK: Duration = Duration::from_secs(1);

/// One pull's talk with the hosts of its registry.
#[derive(Debug)]
pub(crate) struct Session {
    name: Name,
    reference: String,
    hosts: Vec<Host>,
    auth: Option<Auth>,
    credentials: Option<Credentials>,
    clients: Arc<Clients>,
    /// `Authorization` for each host, once it asked for one.
    granted: Mutex<HashMap<usize, HeaderValue>>,
    /// The host that served last.
    preferred: Mutex<Option<usize>>,
}

pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

impl Session {
    pub(crate) fn new(
        name: Name,
        hosts: Vec<Host>,
        auth: Option<Auth>,
        clients: Arc<Clients>,
    ) -> Result<Self, Error> {
        let reference = name.to_string();
        let credentials = match &auth {
            None => None,
            Some(auth) => Credentials::of(auth).map_err(|why| Error::Unauthenticated {
                reference: reference.clone(),
                host: name.registry.clone(),
                stage: "read the credentials".into(),
                why: why.into(),
            })?,
        };
        Ok(Self {
            name,
            reference,
            hosts,
            auth,
            credentials,
            clients,
            granted: Mutex::default(),
            preferred: Mutex::default(),
        })
    }

    /// The manifest or index that the reference names.
    pub(crate) async fn resolve(&self, max_bytes: u64) -> Result<Fetched, Error> {
        match &self.name.version {
            Version::Digest(digest) => self.manifest(digest, None, max_bytes).await,
            Version::Tag(tag) => {
                self.any_document(
                    self.hosts_that(|h| h.resolve),
                    &format!("manifests/{tag}"),
                    "resolve the tag",
                    None,
                    None,
                    max_bytes,
                )
                .await
            }
        }
    }

    pub(crate) async fn manifest(
        &self,
        digest: &Digest,
        size: Option<u64>,
        max_bytes: u64,
    ) -> Result<Fetched, Error> {
        let stage = format!("fetch manifest {digest}");
        self.any_document(
            self.hosts_that(|h| h.pull),
            &format!("manifests/{digest}"),
            &stage,
            Some(digest),
            size,
            max_bytes,
        )
        .await
    }

    /// A small blob: the configuration.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        size: u64,
        max_bytes: u64,
    ) -> Result<Bytes, Error> {
        let stage = format!("fetch configuration {digest}");
        let fetched = self
            .any_document(
                self.hosts_that(|h| h.pull),
                &format!("blobs/{digest}"),
                &stage,
                Some(digest),
                Some(size),
                max_bytes,
            )
            .await?;
        Ok(fetched.bytes)
    }

    /// Sends a layer's bytes into `sink`, which ends when all are there. A cut connection is resumed where it was cut.
    pub(crate) async fn layer(
        &self,
        digest: &Digest,
        size: u64,
        sink: &mpsc::Sender<Result<Bytes, Error>>,
        report: &LayerReport,
    ) -> Result<(), Error> {
        let stage = format!("fetch layer {digest}");
        let (mut offset, mut cuts, mut cuts_in_a_row) = (0u64, 0, 0);
        loop {
            let start = offset;
            let cut = match self
                .layer_part(digest, size, &mut offset, &stage, sink, report)
                .await
            {
                Ok(()) => return Ok(()),
                // Only what time may heal is tried again, and only where something came before.
                Err(error) if offset > 0 && is_passing(&error) => error,
                Err(error) => return Err(error),
            };
            if offset > start {
                cuts_in_a_row = 0;
            }
            (cuts, cuts_in_a_row) = (cuts + 1, cuts_in_a_row + 1);
            if cuts > MAX_CUTS || cuts_in_a_row > MAX_CUTS_IN_A_ROW {
                return Err(cut);
            }
            tracing::info!(layer = %digest, offset, size, error = %cut, "the connection was cut, resuming");
            report.stalled(&format!("cut at {offset} bytes, resuming"));
            sleep(FIRST_PAUSE * 2u32.pow(cuts_in_a_row - 1)).await;
        }
    }

    async fn layer_part(
        &self,
        digest: &Digest,
        size: u64,
        offset: &mut u64,
        stage: &str,
        sink: &mpsc::Sender<Result<Bytes, Error>>,
        report: &LayerReport,
    ) -> Result<(), Error> {
        let what = || format!("layer {digest}");
        let start = *offset;
        let (at, mut response) = self.open_layer(digest, size, start, stage).await?;
        // Where Range is ignored all comes again: what was taken already is passed over. The digest vouches for the seam.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|v| v.to_str().ok())
                .unwrap_or("");
            if !range.starts_with(&format!("bytes {start}-")) {
                return Err(self.network(
                    at,
                    stage,
                    format!(
                        "asked for bytes from {start} on, it sent {:?}",
                        range.chars().take(60).collect::<String>()
                    ),
                ));
            }
            0
        } else {
            if let Some(length) = response.content_length()
                && length != size
            {
                return Err(Error::Size {
                    what: what(),
                    expected: size,
                    actual: length,
                });
            }
            start
        };
        loop {
            let chunk = self.chunk(at, stage, &mut response, Some(report)).await?;
            let Some(mut chunk) = chunk else { break };
            if skip > 0 {
                let passed = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
                skip -= passed as u64;
                let _ = chunk.split_to(passed);
            }
            if chunk.is_empty() {
                continue;
            }
            if *offset + chunk.len() as u64 > size {
                return Err(Error::Size {
                    what: what(),
                    expected: size,
                    actual: *offset + chunk.len() as u64,
                });
            }
            *offset += chunk.len() as u64;
            crate::progress::downloaded(chunk.len());
            report.came(*offset);
            if sink.send(Ok(chunk)).await.is_err() {
                // The unpacking side gave up and says why.
                return Ok(());
            }
        }
        if *offset < size {
            return Err(self.network(
                at,
                stage,
                format!("the connection ended after {offset} of {size} bytes"),
            ));
        }
        Ok(())
    }

    /// The next piece of a body, with the stall timeout.
    async fn chunk(
        &self,
        at: usize,
        stage: &str,
        response: &mut Response,
        report: Option<&LayerReport>,
    ) -> Result<Option<Bytes>, Error> {
        let stall = self.clients.timeouts().stall;
        let since = Instant::now();
        loop {
            let tick = TICK.min(stall.saturating_sub(since.elapsed()));
            match timeout(tick, response.chunk()).await {
                Ok(Ok(chunk)) => return Ok(chunk),
                Ok(Err(error)) => return Err(self.network(at, stage, chain(&error.without_url()))),
                Err(_) if since.elapsed() >= stall => {
                    return Err(Error::Stalled {
                        reference: self.reference.clone(),
                        host: self.hosts[at].authority(),
                        stage: stage.to_owned(),
                        seconds: stall.as_secs(),
                    });
                }
                Err(_) => {
                    if let Some(report) = report {
                        report
                            .stalled(&format!("nothing came for {} s", since.elapsed().as_secs()));
                    }
                }
            }
        }
    }

    /// The hosts that may, the one that served last first.
    fn hosts_that(&self, may: impl Fn(&Host) -> bool) -> Vec<usize> {
        let preferred = *self.preferred.lock().unwrap_or_else(|e| e.into_inner());
        let mut order: Vec<usize> = (0..self.hosts.len())
            .filter(|at| may(&self.hosts[*at]))
            .collect();
        order.sort_by_key(|at| Some(*at) != preferred);
        order
    }

    fn prefer(&self, at: usize) {
        *self.preferred.lock().unwrap_or_else(|e| e.into_inner()) = Some(at);
    }

    /// What to tell when no host could serve.
    fn given_up(&self, stage: &str, mut failures: Vec<Error>) -> Error {
        match failures.len() {
            0 => Error::Network {
                reference: self.reference.clone(),
                host: self.name.registry.clone(),
                stage: stage.to_owned(),
                why: "no host in its hosts.toml has the capability".into(),
            },
            1 => failures.remove(0),
            _ => Error::AllHosts { failures },
        }
    }

    async fn any_document(
        &self,
        hosts: Vec<usize>,
        path: &str,
        stage: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
        max_bytes: u64,
    ) -> Result<Fetched, Error> {
        let mut failures = Vec::new();
        for at in hosts {
            match self
                .document(at, path, stage, digest, size, max_bytes)
                .await
            {
                Ok(fetched) => {
                    self.prefer(at);
                    return Ok(fetched);
                }
                Err(error) => failures.push(error),
            }
        }
        Err(self.given_up(stage, failures))
    }

    /// Opens a layer at `start` at the first host that has it.
    async fn open_layer(
        &self,
        digest: &Digest,
        size: u64,
        start: u64,
        stage: &str,
    ) -> Result<(usize, Response), Error> {
        let mut failures = Vec::new();
        for at in self.hosts_that(|h| h.pull) {
            let opened = match self
                .get(
                    at,
                    &format!("blobs/{digest}"),
                    stage,
                    "*/*",
                    (start > 0).then_some(start),
                )
                .await
            {
                Ok(response) if response.status() == StatusCode::RANGE_NOT_SATISFIABLE => {
                    Err(Error::Size {
                        what: format!("layer {digest} at {}", self.hosts[at].authority()),
                        expected: size,
                        actual: start,
                    })
                }
                Ok(response) => self.success(at, stage, response),
                Err(error) => Err(error),
            };
            match opened {
                Ok(response) => {
                    self.prefer(at);
                    return Ok((at, response));
                }
                Err(error) => failures.push(error),
            }
        }
        Err(self.given_up(stage, failures))
    }

    async fn document(
        &self,
        at: usize,
        path: &str,
        stage: &str,
        digest: Option<&Digest>,
        size: Option<u64>,
        max_bytes: u64,
    ) -> Result<Fetched, Error> {
        let accept = match path.starts_with("manifests/") {
            true => [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].join(", "),
            false => "*/*".to_owned(),
        };
        let response = self.get(at, path, stage, &accept, None).await?;
        let mut response = self.success(at, stage, response)?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned);
        let said = response
            .headers()
            .get("docker-content-digest")
            .and_then(|v| v.to_str().ok())
            .and_then(|v| v.parse::<Digest>().ok());
        let bytes = self
            .body(
                at,
                stage,
                &mut response,
                size.unwrap_or(max_bytes).min(max_bytes),
            )
            .await?;
        let what = || {
            format!(
                "image {}: {stage} at {}",
                self.reference,
                self.hosts[at].authority()
            )
        };
        if let Some(size) = size
            && bytes.len() as u64 != size
        {
            return Err(Error::Size {
                what: what(),
                expected: size,
                actual: bytes.len() as u64,
            });
        }
        let expected = digest.or(said.as_ref());
        let actual = expected.map_or_else(|| Digest::of(&bytes), |digest| digest.same_of(&bytes));
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(Error::Digest {
                what: what(),
                expected: expected.to_string(),
                actual: actual.to_string(),
            });
        }
        Ok(Fetched {
            bytes,
            media_type,
            digest: actual,
        })
    }

    async fn body(
        &self,
        at: usize,
        stage: &str,
        response: &mut Response,
        max_bytes: u64,
    ) -> Result<Bytes, Error> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk(at, stage, response, None).await? {
            if body.len() as u64 + chunk.len() as u64 > max_bytes {
                return Err(Error::Document {
                    what: format!(
                        "image {}: {stage} at {}",
                        self.reference,
                        self.hosts[at].authority()
                    ),
                    why: format!("it is larger than {max_bytes} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn network(&self, at: usize, stage: &str, why: String) -> Error {
        Error::Network {
            reference: self.reference.clone(),
            host: self.hosts[at].authority(),
            stage: stage.to_owned(),
            why,
        }
    }

    fn unauthenticated(&self, at: usize, stage: &str, why: impl Into<String>) -> Error {
        Error::Unauthenticated {
            reference: self.reference.clone(),
            host: self.hosts[at].authority(),
            stage: stage.to_owned(),
            why: why.into(),
        }
    }

    /// 2xx, or the error that the status stands for.
    fn success(&self, at: usize, stage: &str, response: Response) -> Result<Response, Error> {
        let status = response.status();
        let (reference, host, stage) = (
            self.reference.clone(),
            self.hosts[at].authority(),
            stage.to_owned(),
        );
        match status.as_u16() {
            200 | 206 => Ok(response),
            404 => Err(Error::NotFound {
                reference,
                host,
                stage,
            }),
            401 => Err(self.unauthenticated(
                at,
                &stage,
                if self.credentials.is_some() {
                    "the credentials are refused (HTTP status 401)"
                } else {
                    "it wants credentials (HTTP status 401)"
                },
            )),
            403 => Err(self.unauthenticated(at, &stage, "access is denied (HTTP status 403)")),
            429 => Err(Error::Status {
                reference,
                host,
                stage,
                status: 429,
                why: ": too many requests, try later or with credentials".into(),
            }),
            status => Err(Error::Status {
                reference,
                host,
                stage,
                status,
                why: String::new(),
            }),
        }
    }
}

/// Whether the same request may work in a moment.
fn is_passing(error: &Error) -> bool {
    match error {
        Error::Network { .. } | Error::Status { status: 500.., .. } => true,
        Error::AllHosts { failures } => failures.iter().any(is_passing),
        _ => false,
    }
}
