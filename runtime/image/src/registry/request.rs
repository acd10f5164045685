//! One request to one host: what it is sent, where it leads on, and the tokens that it asks for.

use reqwest::{
    Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::time::timeout;
use url::Url;

use super::Session;
use crate::{
    auth::{Challenge, Credentials, challenges, checked_realm, is_for},
    client::chain,
    error::Error,
    hosts::{authority, is_link_local},
};

const MAX_REDIRECTS: usize = 5;
/// A token is a few KiB; some carry a whole access list.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Session {
    /// One GET at a host: authorization where it asks for it, redirects without it.
    pub(super) async fn get(
        &self,
        at: usize,
        path: &str,
        stage: &str,
        accept: &str,
        from: Option<u64>,
    ) -> Result<Response, Error> {
        let host = &self.hosts[at];
        let mut url = host.api.clone();
        url.set_path(&format!(
            "{}/{}/{path}",
            host.api.path(),
            self.name.repository
        ));
        if !host.is_origin {
            // A mirror of several registries has to know which one is meant.
            url.query_pairs_mut().append_pair("ns", &self.name.registry);
        }
        let mut response = self.send(at, &url, stage, accept, from).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let values: Vec<String> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|v| v.to_str().ok())
                .map(str::to_owned)
                .collect();
            if let Some(header) = self
                .authorize(at, stage, &challenges(values.iter().map(String::as_str)))
                .await?
            {
                self.granted
                    .lock()
                    .unwrap_or_else(|e| e.into_inner())
                    .insert(at, header);
                response = self.send(at, &url, stage, accept, from).await?;
            }
        }
        for _ in 0..MAX_REDIRECTS {
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|v| v.to_str().ok())
                .and_then(|l| url.join(l).ok());
            let next = location
                .ok_or_else(|| self.network(at, stage, "it redirects to no address".into()))?;
            let target = authority(&next);
            if !matches!(next.scheme(), "http" | "https")
                || (url.scheme() == "https" && next.scheme() == "http")
            {
                return Err(self.network(
                    at,
                    stage,
                    format!("it redirects to {target} without TLS"),
                ));
            }
            if is_link_local_url(&next) {
                return Err(self.network(
                    at,
                    stage,
                    format!("it redirects to the link-local address {target}"),
                ));
            }
            url = next;
            response = self.send(at, &url, stage, accept, from).await?;
        }
        Err(self.network(
            at,
            stage,
            format!("it redirects more than {MAX_REDIRECTS} times"),
        ))
    }

    /// Sends one request. What is for the host alone (authorization, its headers, a client certificate) goes to its origin alone.
    async fn send(
        &self,
        at: usize,
        url: &Url,
        stage: &str,
        accept: &str,
        from: Option<u64>,
    ) -> Result<Response, Error> {
        let host = &self.hosts[at];
        let is_host = url.origin() == host.api.origin();
        let tls = if is_host {
            host.tls.clone()
        } else {
            Default::default()
        };
        let client = self
            .clients
            .get(url, &tls, !is_host)
            .map_err(|why| self.network(at, stage, why))?;
        let mut request = client.get(url.clone()).header(ACCEPT, accept);
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        if is_host {
            for (name, value) in &host.headers {
                request = request.header(name, value);
            }
            let granted = self
                .granted
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .get(&at)
                .cloned();
            if let Some(header) = granted {
                request = request.header(AUTHORIZATION, header);
            }
        }
        self.answer(at, stage, request).await
    }

    async fn answer(
        &self,
        at: usize,
        stage: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, Error> {
        let limit = self.clients.timeouts().response;
        match timeout(limit, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let step = if error.is_connect() { "connect: " } else { "" };
                Err(self.network(at, stage, format!("{step}{}", chain(&error.without_url()))))
            }
            Err(_) => Err(Error::Stalled {
                reference: self.reference.clone(),
                host: self.hosts[at].authority(),
                stage: format!("{stage}: head of the answer"),
                seconds: limit.as_secs(),
            }),
        }
    }

    /// The `Authorization` that answers a host's challenges; `None` where we have nothing to answer with.
    async fn authorize(
        &self,
        at: usize,
        stage: &str,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>, Error> {
        let host = &self.hosts[at];
        let credentials = match (&self.auth, &self.credentials) {
            (Some(auth), Some(credentials)) if is_for(auth, &self.name.registry, host) => {
                Some(credentials)
            }
            _ => None,
        };
        let header = |text: String| -> Result<Option<HeaderValue>, Error> {
            let mut value = HeaderValue::from_str(&text).map_err(|_| {
                self.unauthenticated(
                    at,
                    stage,
                    "the credentials can't be sent: they have line breaks or the like",
                )
            })?;
            value.set_sensitive(true);
            Ok(Some(value))
        };
        if let Some(Credentials::Registry(token)) = credentials {
            return header(format!("Bearer {token}"));
        }
        let bearer = challenges.iter().find_map(|c| match c {
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => Some((realm, service, scope)),
            Challenge::Basic => None,
        });
        if let Some((realm, service, scope)) = bearer {
            let token = self
                .token(
                    at,
                    stage,
                    realm,
                    service.as_deref(),
                    scope.as_deref(),
                    credentials,
                )
                .await?;
            return header(format!("Bearer {token}"));
        }
        match credentials {
            Some(Credentials::Basic { username, password })
                if challenges.contains(&Challenge::Basic) =>
            {
                header(Credentials::basic_header(username, password))
            }
            _ => Ok(None),
        }
    }

    async fn token(
        &self,
        at: usize,
        stage: &str,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        credentials: Option<&Credentials>,
    ) -> Result<String, Error> {
        let host = &self.hosts[at];
        let mut url =
            checked_realm(realm, host).map_err(|why| self.unauthenticated(at, stage, why))?;
        let is_host = url.origin() == host.api.origin();
        let mut tls = host.tls.clone();
        if !is_host {
            tls.client = None;
        }
        let stage = format!("{stage}: get a token from {}", authority(&url));
        let client = self
            .clients
            .get(&url, &tls, !is_host)
            .map_err(|why| self.network(at, &stage, why))?;
        let default_scope = format!("repository:{}:pull", self.name.repository);
        let scope = scope.unwrap_or(&default_scope);
        let request = if let Some(Credentials::Identity(token)) = credentials {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "berth")
                .append_pair("scope", scope)
                .append_pair("refresh_token", token);
            if let Some(service) = service {
                form.append_pair("service", service);
            }
            client
                .post(url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.finish())
        } else {
            url.query_pairs_mut().append_pair("scope", scope);
            if let Some(service) = service {
                url.query_pairs_mut().append_pair("service", service);
            }
            match credentials {
                Some(Credentials::Basic { username, password }) => {
                    let mut value =
                        HeaderValue::from_str(&Credentials::basic_header(username, password))
                            .map_err(|_| {
                                self.unauthenticated(at, &stage, "the credentials can't be sent")
                            })?;
                    value.set_sensitive(true);
                    client.get(url).header(AUTHORIZATION, value)
                }
                _ => client.get(url),
            }
        };
        // A token service that redirects is not followed: the credentials would go along.
        let response = self.answer(at, &stage, request).await?;
        let status = response.status().as_u16();
        if matches!(status, 400 | 401 | 403) {
            return Err(self.unauthenticated(
                at,
                &stage,
                format!("the credentials are refused (HTTP status {status})"),
            ));
        }
        let mut response = self.success(at, &stage, response)?;
        let body = self
            .body(at, &stage, &mut response, MAX_TOKEN_BYTES)
            .await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&body).ok();
        answer
            .and_then(|a| a.token.filter(|t| !t.is_empty()).or(a.access_token))
            .ok_or_else(|| self.unauthenticated(at, &stage, "its answer has no token"))
    }
}

fn is_link_local_url(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(ip)) => is_link_local(ip.into()),
        Some(url::Host::Ipv6(ip)) => is_link_local(ip.into()),
        _ => false,
    }
}
