//! API servers beside this one (APIService): what is asked of their groups goes on to them, with who asks.
//!
//! They know this server by a certificate of the front proxy's CA, and believe what it says of the user (`X-Remote-User`, `-Group`, `-Uid`, `-Extra-…`); what a
//! client says of that kind never goes on. What they are is kept here as the last look at them found it; `controllers/api_services.rs` looks.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use berth_auth::{User, pki::Identity};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header, request::Parts,
};
use http_body_util::{BodyExt, Empty, Full};
use serde_json::Value;

use super::{Backend, Passed, Trust, dial, headers, of_service_port, pass};
use crate::{
    api::Api,
    catalog::{api_version, split_api_version},
    failure::Failure,
    object,
    respond::{self, Body},
};

/// Of the certificate that they are shown, and after how long the next one is issued.
const CLIENT_VALID: Duration = Duration::from_secs(7 * 24 * 3600);
const CLIENT_RENEWED: Duration = Duration::from_secs(24 * 3600);
/// Of a document that they describe themselves with.
const LARGEST: usize = 8 << 20;
const FAILED: &str = "FailedDiscoveryCheck";
/// Upstream's, of a look.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// A group and version that another server has.
#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    pub group: String,
    pub version: String,
    namespace: String,
    service: String,
    port: u64,
    /// PEM; none: its certificate is not looked at.
    bundle: Option<Vec<u8>>,
    pub available: bool,
    /// APIResourceList, as it was told last; null: never.
    pub resources: Value,
    /// Of its OpenAPI document; empty: it has none.
    pub hash: String,
}

impl Remote {
    /// `None`: it is served here.
    pub fn of(service: &Value) -> Option<Self> {
        let spec = &service["spec"];
        let to = spec.get("service").filter(|to| !to.is_null())?;
        let insecure = spec["insecureSkipTLSVerify"] == true;
        let bundle = BASE64_STANDARD.decode(object::text(spec, "/caBundle"));
        Some(Self {
            group: object::text(spec, "/group").into(),
            version: object::text(spec, "/version").into(),
            namespace: object::text(to, "/namespace").into(),
            service: object::text(to, "/name").into(),
            port: to["port"].as_u64().unwrap_or(443),
            bundle: (!insecure).then(|| bundle.unwrap_or_default()),
            available: false,
            resources: Value::Null,
            hash: String::new(),
        })
    }

    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }

    /// By what it is known, and we are.
    fn trust(&self, api: &Api) -> Result<Trust, Failure> {
        let identity = api.aggregation.identity(api)?;
        let name = format!("{}.{}.svc", self.service, self.namespace);
        dial::shown(&name, self.bundle.as_deref(), &identity).map_err(Failure::unreached)
    }

    async fn backend(&self, api: &Api) -> Result<Backend, Failure> {
        let trust = self.trust(api)?;
        of_service_port(api, &self.namespace, &self.service, self.port, trust).await
    }

    /// Asks it what it serves, and keeps that; what was known before stays where it does not answer.
    ///
    /// # Errors
    /// Upstream's reason for its being away, and what happened.
    pub async fn refresh(&mut self, api: &Api) -> Result<(), (&'static str, String)> {
        self.available = false;
        let path = format!("/apis/{}", self.api_version());
        let resources = match tokio::time::timeout(LOOK_WITHIN, self.look(api, &path)).await {
            Ok(looked) => looked?,
            Err(_) => {
                let why = format!(
                    "failing or missing response: it did not answer within {} s",
                    LOOK_WITHIN.as_secs()
                );
                return Err((FAILED, why));
            }
        };
        self.resources = resources;
        self.available = true;
        let index = tokio::time::timeout(LOOK_WITHIN, self.look(api, "/openapi/v3")).await;
        let pointer = format!(
            "/paths/apis~1{}~1{}/serverRelativeURL",
            self.group, self.version
        );
        self.hash = match &index {
            Ok(Ok(index)) => object::text(index, &pointer)
                .split_once("hash=")
                .map_or("", |(_, hash)| hash)
                .to_owned(),
            _ => String::new(),
        };
        Ok(())
    }

    /// What it says at `path`, asked by this server itself.
    async fn look(&self, api: &Api, path: &str) -> Result<Value, (&'static str, String)> {
        self.trust(api)
            .map_err(|failure| (FAILED, failure.message))?;
        let backend = self.backend(api).await.map_err(|failure| {
            let (namespace, name) = (&self.namespace, &self.service);
            match failure.code {
                404 => (
                    "ServiceNotFound",
                    format!("service/{name} in {namespace:?} is not present"),
                ),
                _ => ("MissingEndpoints", failure.message),
            }
        })?;
        let url = format!("https://{}{path}", backend.authority());
        let failed = |why: String| {
            (
                FAILED,
                format!("failing or missing response from {url}: {why}"),
            )
        };
        let mut request = Request::get(path)
            .body(Full::new(Bytes::new()))
            .map_err(|error| failed(error.to_string()))?;
        let user = User {
            username: "system:kube-aggregator".into(),
            groups: vec![berth_auth::MASTERS.into()],
            ..User::default()
        };
        *request.headers_mut() = on_behalf(HeaderMap::new(), &user);
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::ACCEPT, json);
        let reached = pass::exchange(&backend, request)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let status = reached.response.status();
        if !status.is_success() {
            let why = format!("bad status from {url}: {}", status.as_u16());
            return Err((FAILED, why));
        }
        let bytes = reached.bytes(LARGEST).await.map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
    }
}

/// All of them, as they were found last: a snapshot.
#[derive(Debug, Default)]
pub struct Remotes {
    /// Counts the snapshots.
    pub generation: u64,
    pub all: Vec<Remote>,
}

impl Remotes {
    pub fn get(&self, group: &str, version: &str) -> Option<&Remote> {
        self.all
            .iter()
            .find(|remote| remote.group == group && remote.version == version)
    }

    /// Whose document `path` is: `/apis/GROUP/VERSION` and its OpenAPI.
    pub fn of_path(&self, path: &str) -> Option<&Remote> {
        let of = path
            .strip_prefix("/apis/")
            .or_else(|| path.strip_prefix("/openapi/v3/apis/"))?;
        let (group, version) = split_api_version(of);
        self.get(group, version)
    }
}

#[derive(Debug, Default)]
pub struct Aggregation {
    now: RwLock<Arc<Remotes>>,
    identity: Mutex<Option<(Instant, Arc<Identity>)>>,
}

impl Aggregation {
    pub fn now(&self) -> Arc<Remotes> {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn set(&self, all: Vec<Remote>) {
        let mut now = self.now.write().unwrap_or_else(PoisonError::into_inner);
        if now.all != all {
            let generation = now.generation + 1;
            *now = Arc::new(Remotes { generation, all });
        }
    }

    fn identity(&self, api: &Api) -> Result<Arc<Identity>, Failure> {
        let mut kept = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((issued, identity)) = kept.as_ref()
            && issued.elapsed() < CLIENT_RENEWED
        {
            return Ok(identity.clone());
        }
        let identity = api
            .pki
            .front_proxy_client(CLIENT_VALID)
            .map_err(Failure::internal)?;
        let identity = Arc::new(identity);
        *kept = Some((Instant::now(), identity.clone()));
        Ok(identity)
    }
}

/// Passes a request on that has been authenticated and authorized here.
///
/// # Errors
/// It can't be passed on as it is; a server that is not there is a 503.
pub async fn handle(
    api: &Api,
    remote: &Remote,
    parts: &Parts,
    user: &User,
    body: Option<Passed>,
) -> Result<Response<Body>, Failure> {
    match pass_on(api, remote, parts, user, body).await {
        // as upstream: no Status, since clients then say that the server can't handle it
        Err(away) if away.code == 503 => Ok(respond::text(503, away.message)),
        answered => answered,
    }
}

async fn pass_on(
    api: &Api,
    remote: &Remote,
    parts: &Parts,
    user: &User,
    body: Option<Passed>,
) -> Result<Response<Body>, Failure> {
    if !remote.available {
        return Err(Failure::unavailable("service unavailable"));
    }
    let unreached =
        |why: String| Failure::unavailable(format!("error trying to reach service: {why}"));
    let backend = remote
        .backend(api)
        .await
        .map_err(|failure| unreached(failure.message))?;
    let uri = parts
        .uri
        .path_and_query()
        .map_or("/", |path_and_query| path_and_query.as_str());
    let onward = on_behalf(headers::of_proxy(&parts.headers), user);
    let builder = Request::builder().method(&parts.method).uri(uri);
    let odd = |error: http::Error| Failure::bad_request(format!("{uri}: {error}"));
    if headers::asks_to_upgrade(&parts.headers) {
        let client = pass::on_upgrade(parts)?;
        let mut request = builder.body(Empty::new()).map_err(odd)?;
        *request.headers_mut() = onward;
        return pass::upgrade(api, &backend, request, client)
            .await
            .map_err(|error| unreached(error.to_string()));
    }
    let body = body.unwrap_or_else(|| Empty::new().map_err(|none| match none {}).boxed_unsync());
    let mut request = builder.body(body).map_err(odd)?;
    *request.headers_mut() = onward;
    let reached = pass::exchange(&backend, request)
        .await
        .map_err(|error| unreached(error.to_string()))?;
    if reached.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(unreached("it switched protocols unasked".into()));
    }
    Ok(reached.stream())
}

/// Who asks, as the other side is told. A name that is no header's value is told escaped, as Go does it.
fn on_behalf(mut headers: HeaderMap, user: &User) -> HeaderMap {
    let mut add = |name: &str, value: &str| {
        let value = HeaderValue::from_bytes(value.as_bytes());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), value) {
            headers.append(name, value);
        }
    };
    add("x-remote-user", &user.username);
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        add("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escaped(key));
        for value in values {
            add(&name, value);
        }
    }
    headers
}

/// What may not stand in a header's name is percent-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::new();
    for byte in key.to_ascii_lowercase().bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_client_says_of_users_does_not_go_on_sec_api_11() {
        let mut client = HeaderMap::new();
        for (name, value) in [
            ("x-remote-user", "admin"),
            ("x-remote-group", "system:masters"),
            ("x-remote-extra-a", "b"),
            ("authorization", "Bearer x"),
            ("accept", "application/json"),
        ] {
            client.insert(name, HeaderValue::from_static(value));
        }
        let user = User {
            username: "jane".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [("example.com/Scope".to_owned(), vec!["x".to_owned()])].into(),
            ..User::default()
        };
        let onward = on_behalf(headers::of_proxy(&client), &user);
        let all = |name: &str| -> Vec<&str> {
            let values = onward.get_all(name).iter();
            values.filter_map(|value| value.to_str().ok()).collect()
        };
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.com%2fscope"), ["x"]);
        assert_eq!(all("x-remote-extra-a"), [""; 0]);
        assert_eq!(all("authorization"), [""; 0]);
        assert_eq!(all("accept"), ["application/json"]);
    }

    #[test]
    fn only_what_has_a_service_is_elsewhere() {
        let local = json!({"spec": {"group": "apps", "version": "v1", "service": null}});
        assert_eq!(Remote::of(&local), None);
        let remote = json!({"spec": {"group": "g.io", "version": "v1", "caBundle": "YQ==", "service": {"namespace": "n", "name": "s"}}});
        let remote = Remote::of(&remote).expect("it has one");
        assert_eq!(remote.port, 443);
        assert_eq!(remote.bundle.as_deref(), Some(b"a".as_slice()));
        let remotes = Remotes {
            generation: 1,
            all: vec![remote],
        };
        assert!(remotes.of_path("/apis/g.io/v1").is_some());
        assert!(remotes.of_path("/openapi/v3/apis/g.io/v1").is_some());
        for path in ["/apis/g.io", "/apis/g.io/v2", "/api/v1", "/apis"] {
            assert!(remotes.of_path(path).is_none(), "{path}");
        }
    }
}
