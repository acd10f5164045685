//! A request's way: who asks, whether they may, what for, and the answer.
//!
//! ```text
//!   path ── authentication ── impersonation ── authorization ── body ── handler ── answer, audit
//! ```

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use berth_auth::{Attributes, Decision, User};
use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use crate::{
    api::{Actor, Api, Call},
    audit::Audit,
    authenticate::{self, Peer},
    body::{self, LARGEST_BODY},
    catalog::Catalog,
    collection,
    delete::{self, DeleteOptions},
    discovery::Discovery,
    failure::Failure,
    health, openapi,
    passage::{self, Through},
    patch, read,
    request::{self, Asked, Query, Target, Verb},
    respond::{self, Body, Wants},
    review, subresource, watch,
    write::{self, Part},
};

/// All but watches are answered within it; upstream's --request-timeout.
const WITHIN: Duration = Duration::from_secs(60);
/// A body must be there within it.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// Serves requests, from wherever they come: a connection, or this process (as a `tower::Service`).
#[derive(Debug, Clone)]
pub struct Router(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: Arc<Api>,
    discovery: Discovery,
    audit: Option<Audit>,
}

/// What clients are told of kinds that are on their way out: upstream's words.
const DEPRECATED: [(&str, &str); 2] = [
    (
        "componentstatuses",
        "v1 ComponentStatus is deprecated in v1.19+",
    ),
    (
        "endpoints",
        "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
    ),
];

impl Router {
    pub fn new(api: Arc<Api>, audit: Option<Audit>) -> Self {
        Self(Arc::new(Inner {
            api,
            discovery: Discovery::default(),
            audit,
        }))
    }

    pub async fn handle<B>(&self, request: Request<B>, peer: &Peer) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let mut trace = Trace::default();
        let received = crate::clock::micro_time();
        let answered = tokio::time::timeout(WITHIN, self.answer(&parts, body, peer, &mut trace));
        let mut response = match answered.await {
            Ok(Ok(response)) => response,
            Ok(Err(failure)) => respond::failure(&failure),
            Err(_) => respond::failure(&Failure::timeout(
                "Timeout: request did not complete within the allotted timeout",
            )),
        };
        if !trace.warnings.is_empty() {
            respond::warn(&mut response, &trace.warnings);
        }
        if parts.method == http::Method::HEAD {
            *response.body_mut() = respond::full(Bytes::new());
        }
        let code = response.status().as_u16();
        self.0.api.metrics.answered(trace.verb(), code);
        if let Some(audit) = &self.0.audit {
            audit.record(&parts, peer, &trace, code, &received);
        }
        response
    }

    async fn answer<B>(
        &self,
        parts: &Parts,
        body: B,
        peer: &Peer,
        trace: &mut Trace,
    ) -> Result<Response<Body>, Failure>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let api = &self.0.api;
        let query = parts.uri.query().unwrap_or_default();
        let target = request::parse(&parts.method, parts.uri.path(), query)?;
        let user = authenticate::authenticate(api, &parts.headers, peer).await?;
        let acting = authenticate::impersonate(api, &parts.headers, user.clone())?;
        trace.impersonated = (acting != user).then(|| acting.clone());
        trace.user = user;
        match target {
            Target::Path(path) => {
                let verb = parts.method.as_str().to_ascii_lowercase();
                trace.asked = Some(Attributes {
                    verb: verb.clone(),
                    path: path.clone(),
                    ..Attributes::default()
                });
                if let Some(asked) = &trace.asked
                    && !review::allows(&api.authorizer.authorize(&acting, asked))
                {
                    return Err(Failure::forbidden_path(&acting.username, &verb, &path));
                }
                self.path(parts, &path, &Query::parse(query), &acting).await
            }
            Target::Resource(asked) => {
                let attributes = attributes(&asked, asked.verb.as_str());
                trace.asked = Some(attributes.clone());
                match api.authorizer.authorize(&acting, &attributes) {
                    Decision::Allow { .. } => {}
                    Decision::Deny { reason } | Decision::NoOpinion { reason } => {
                        return Err(Failure::forbidden_of(
                            &asked.group,
                            &asked.resource,
                            &asked.name,
                            authenticate::denied(&acting, &attributes, &reason),
                        ));
                    }
                }
                if let Some(remote) = api.aggregation.now().get(&asked.group, &asked.version) {
                    let body = body.map_err(Into::into).boxed_unsync();
                    return passage::aggregated::handle(api, remote, parts, &acting, Some(body))
                        .await;
                }
                let catalog = api.served.now();
                let Some(resource) =
                    catalog.resource(&asked.group, &asked.version, &asked.resource)
                else {
                    return Ok(not_there());
                };
                let resource = resource.clone();
                // A namespace is where the resource has one, and nowhere else (SEC-API-09).
                let in_namespace = !asked.namespace.is_empty() && !resource.is("", "namespaces");
                if in_namespace && !resource.namespaced {
                    return Ok(not_there());
                }
                let needs_namespace = resource.namespaced
                    && asked.namespace.is_empty()
                    && !matches!(asked.verb, Verb::List | Verb::Watch);
                if needs_namespace {
                    return Err(Failure::method_not_allowed());
                }
                let mut asked = *asked;
                if resource.is("", "namespaces") {
                    asked.namespace.clear();
                }
                if passage::is_passed(&resource, &asked.subresource) {
                    let through = Through {
                        parts,
                        asked: &asked,
                        resource: &resource,
                        user: &acting,
                    };
                    let body = body.map_err(Into::into).boxed_unsync();
                    return passage::handle(api, &through, body).await;
                }
                let wants = Wants::of(&parts.headers, asked.query.get("includeObject"))?;
                let body = read_body(parts, body, asked.verb).await?;
                let agent = parts
                    .headers
                    .get(http::header::USER_AGENT)
                    .and_then(|agent| agent.to_str().ok())
                    .unwrap_or_default();
                let mut call = Call {
                    actor: Actor {
                        user: acting,
                        manager: berth_patch::manager_name(asked.query.get("fieldManager"), agent),
                        applies: false,
                        dry_run: Call::parse_dry_run(&asked)?,
                        ..Actor::default()
                    },
                    resource,
                    wants,
                    headers: parts.headers.clone(),
                    body,
                    asked,
                };
                call.actor.applies = call.asked.verb == Verb::Patch
                    && call.content_type() == "application/apply-patch+yaml";
                let result = self.resource(&call).await;
                trace.warnings = call
                    .actor
                    .warnings
                    .into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                trace.annotations = call
                    .actor
                    .annotations
                    .into_inner()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                result
            }
        }
    }

    async fn path(
        &self,
        parts: &Parts,
        path: &str,
        query: &Query,
        user: &User,
    ) -> Result<Response<Body>, Failure> {
        let api = &self.0.api;
        if !matches!(parts.method, http::Method::GET | http::Method::HEAD) {
            return Err(Failure::method_not_allowed());
        }
        let catalog = api.served.now();
        let address = api.address.to_string();
        if let Some(response) = health::check(api, path, query).await {
            return Ok(response);
        }
        let remotes = api.aggregation.now();
        if let Some(remote) = remotes.of_path(path) {
            return passage::aggregated::handle(api, remote, parts, user, None).await;
        }
        if let Some(response) =
            self.0
                .discovery
                .answer(&catalog, &remotes, path, &parts.headers, &address)?
        {
            return Ok(response);
        }
        let wants = || Wants::of(&parts.headers, "");
        match path {
            "/" => Ok(wants()?.value(200, &paths(&catalog))),
            "/version" => Ok(wants()?.value(200, &health::version())),
            "/metrics" => {
                let objects: Vec<(String, usize)> = api
                    .cache
                    .shards()
                    .iter()
                    .map(|shard| (shard.storage.clone(), shard.len()))
                    .collect();
                Ok(respond::text(200, api.metrics.text(&objects)))
            }
            "/openid/v1/jwks" => {
                let mut response = wants()?.value(200, &api.tokens.jwks());
                respond::content_type(&mut response, "application/jwk-set+json");
                Ok(response)
            }
            "/.well-known/openid-configuration" => {
                let jwks = format!("https://{address}/openid/v1/jwks");
                Ok(wants()?.value(200, &api.tokens.discovery(&jwks)))
            }
            _ => openapi::answer(&catalog, &remotes, path, &parts.headers, query)
                .map(|response| response.unwrap_or_else(not_there)),
        }
    }

    async fn resource(&self, call: &Call) -> Result<Response<Body>, Failure> {
        let api = &self.0.api;
        for (plural, deprecated) in DEPRECATED {
            if call.resource.is("", plural) {
                call.actor.warn(deprecated);
            }
        }
        let (resource, asked) = (&call.resource, &call.asked);
        if !asked.subresource.is_empty() {
            return subresource::handle(api, call).await;
        }
        if !resource.verbs.contains(&asked.verb.as_str()) {
            return Err(Failure::method_not_allowed());
        }
        if resource.storage.is_empty() {
            return match asked.verb {
                Verb::Create => review::create(api, call).await,
                _ => review::read(api, call).await,
            };
        }
        match asked.verb {
            Verb::Get => read::get(api, call).await,
            Verb::List => read::list(api, call).await,
            Verb::Watch => watch::watch(api, call).await,
            Verb::Create => {
                if !asked.name.is_empty() {
                    return Err(Failure::method_not_allowed());
                }
                let new = body::object(call, &body::kind_of(resource), false)?;
                let made = write::create(api, &call.actor, resource, &asked.namespace, new).await?;
                Ok(call.wants.object(201, resource, &made))
            }
            Verb::Update => {
                if asked.name.is_empty() {
                    return Err(Failure::method_not_allowed());
                }
                subresource::update(api, call, Part::Main).await
            }
            Verb::Patch => {
                if asked.name.is_empty() {
                    return Err(Failure::method_not_allowed());
                }
                patch::handle(api, call, Part::Main).await
            }
            Verb::Delete => {
                let options = delete_options(call)?;
                let deleted = delete::delete(
                    api,
                    &call.actor,
                    resource,
                    &asked.namespace,
                    &asked.name,
                    &options,
                )
                .await?;
                let value = delete::answer(resource, deleted);
                if value["kind"] == "Status" {
                    return Ok(call.wants.value(200, &value));
                }
                Ok(call.wants.object(200, resource, &value))
            }
            Verb::DeleteCollection => collection::delete(api, call, &delete_options(call)?).await,
        }
    }
}

fn delete_options(call: &Call) -> Result<DeleteOptions, Failure> {
    let kind = berth_schema::GroupVersionKind::new("v1", "DeleteOptions");
    let value = body::object(call, &kind, true)?;
    DeleteOptions::parse(&value, &call.asked.query)
}

/// What authorizers are asked.
pub fn attributes(asked: &Asked, verb: &str) -> Attributes {
    let mut name = asked.name.clone();
    let field_selector = asked.query.get("fieldSelector");
    // who lists one name asks for this one only
    if name.is_empty()
        && matches!(
            asked.verb,
            Verb::List | Verb::Watch | Verb::DeleteCollection
        )
        && let Ok(selector) = crate::selector::FieldSelector::parse(field_selector)
        && let Some(one) = selector.required("metadata.name")
    {
        name = one.to_owned();
    }
    Attributes {
        verb: verb.into(),
        group: asked.group.clone(),
        version: asked.version.clone(),
        resource: asked.resource.clone(),
        subresource: asked.subresource.clone(),
        namespace: asked.namespace.clone(),
        name,
        field_selector: field_selector.into(),
        ..Attributes::default()
    }
}

fn not_there() -> Response<Body> {
    respond::text(404, "404 page not found\n")
}

fn paths(catalog: &Catalog) -> Value {
    let mut paths = vec!["/api".to_owned(), "/apis".into()];
    for (group, versions) in &catalog.groups {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
        }
        for version in versions {
            paths.push(if group.is_empty() {
                format!("/api/{}", version.name)
            } else {
                format!("/apis/{group}/{}", version.name)
            });
        }
    }
    for path in [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.into());
    }
    paths.sort_unstable();
    serde_json::json!({"paths": paths})
}

async fn read_body<B>(parts: &Parts, body: B, verb: Verb) -> Result<Bytes, Failure>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if matches!(verb, Verb::Get | Verb::List | Verb::Watch) {
        return Ok(Bytes::new());
    }
    if parts.headers.contains_key(http::header::CONTENT_ENCODING) {
        return Err(Failure::bad_request(
            "a body with a Content-Encoding is not taken",
        ));
    }
    let limited = std::pin::pin!(Limited::new(body, LARGEST_BODY));
    match tokio::time::timeout(BODY_WITHIN, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Failure::too_large(LARGEST_BODY))
        }
        Ok(Err(error)) => Err(Failure::bad_request(format!("the body broke off: {error}"))),
        Err(_) => Err(Failure::timeout(
            "the body was not there within 30 s of its request",
        )),
    }
}

/// What is known of a request when it has been answered.
#[derive(Debug, Default)]
pub struct Trace {
    pub user: User,
    pub impersonated: Option<User>,
    pub asked: Option<Attributes>,
    pub warnings: Vec<String>,
    /// What admission has to say to the audit log.
    pub annotations: BTreeMap<String, String>,
}

impl Trace {
    /// For the counters: a few words, whatever a client sends.
    fn verb(&self) -> &'static str {
        const VERBS: [&str; 9] = [
            "get",
            "list",
            "watch",
            "create",
            "update",
            "patch",
            "delete",
            "deletecollection",
            "post",
        ];
        let verb = self.asked.as_ref().map_or("", |asked| asked.verb.as_str());
        VERBS
            .into_iter()
            .find(|known| *known == verb)
            .unwrap_or("other")
    }
}

/// In process: on whose behalf is up to the caller.
#[derive(Debug, Clone)]
pub struct InProcess {
    router: Router,
    peer: Peer,
}

impl InProcess {
    pub fn new(router: Router, user: User) -> Self {
        Self {
            router,
            peer: Peer {
                user: Some(user),
                ..Peer::default()
            },
        }
    }

    /// The same server, on behalf of another one.
    #[must_use]
    pub fn with_user(&self, user: User) -> Self {
        Self::new(self.router.clone(), user)
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = futures_util::future::BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { Ok(this.router.handle(request, &this.peer).await) })
    }
}
