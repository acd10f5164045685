//! `/openapi/v3`: what kubectl's explain, apply, edit and diff read. Made for each request; nothing is kept.

use berth_schema::openapi::{self, GroupVersion};
use http::{HeaderMap, HeaderValue, Response, header};
use serde_json::json;

use crate::{
    catalog::{Catalog, Version},
    failure::Failure,
    passage::Remotes,
    request::Query,
    respond::{self, Body, Wants},
};

/// What the schema's documents are made of.
struct Described<'a> {
    group: &'a str,
    version: &'a Version,
    subresources: Vec<Vec<openapi::Subresource<'a>>>,
}

impl<'a> Described<'a> {
    fn new(group: &'a str, version: &'a Version) -> Self {
        let subresources = version
            .resources
            .values()
            .map(|resource| {
                resource
                    .subresources
                    .iter()
                    .map(|sub| openapi::Subresource {
                        name: sub.name,
                        verbs: &sub.verbs,
                        kind: sub.kind,
                    })
                    .collect()
            })
            .collect();
        Self {
            group,
            version,
            subresources,
        }
    }

    fn resources(&self) -> Vec<openapi::Resource<'_>> {
        self.version
            .resources
            .values()
            .zip(&self.subresources)
            .map(|(resource, subresources)| openapi::Resource {
                kind: &resource.kind,
                plural: &resource.plural,
                namespaced: resource.namespaced,
                verbs: &resource.verbs,
                subresources,
                custom: resource.custom().map(|custom| &custom.schema),
            })
            .collect()
    }

    fn with<T>(&self, f: impl FnOnce(GroupVersion<'_>) -> T) -> T {
        let resources = self.resources();
        f(GroupVersion {
            group: self.group,
            version: &self.version.name,
            resources: &resources,
        })
    }
}

/// The older form, without a definition: kubectl 1.36 wants it before it sends a `v1` List, only to look up what to check on its own. What it does not
/// find there it leaves to the server, which checks every object anyway.
fn version_2(headers: &HeaderMap) -> Response<Body> {
    /// gnostic's `openapi.v2.Document` with `swagger` (1) and `info` (2), which has a `title` (1) and a `version` (2).
    const PROTOBUF: &[u8] = b"\x0a\x032.0\x12\x10\x0a\x0aKubernetes\x12\x02v1";
    const JSON: &str = r#"{"swagger":"2.0","info":{"title":"Kubernetes","version":"v1"},"paths":{},"definitions":{}}"#;
    let accept = headers.get(header::ACCEPT);
    let protobuf = accept
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("com.github.proto-openapi.spec.v2"));
    let (body, media_type) = if protobuf {
        let media_type = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        (respond::full(PROTOBUF), media_type)
    } else {
        (respond::full(JSON), "application/json")
    };
    let mut response = Response::new(body);
    respond::content_type(&mut response, media_type);
    response
}

/// `None`: there is no such document.
pub fn answer(
    catalog: &Catalog,
    remotes: &Remotes,
    path: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Option<Response<Body>>, Failure> {
    if path == "/openapi/v2" {
        return Ok(Some(version_2(headers)));
    }
    let Some(rest) = path.strip_prefix("/openapi/v3") else {
        return Ok(None);
    };
    let wants = Wants::of(headers, "")?;
    if rest.is_empty() {
        let described: Vec<Described<'_>> = catalog
            .groups
            .iter()
            .flat_map(|(group, versions)| {
                versions
                    .iter()
                    .map(move |version| Described::new(group, version))
            })
            .collect();
        let resources: Vec<Vec<openapi::Resource<'_>>> =
            described.iter().map(Described::resources).collect();
        let versions: Vec<GroupVersion<'_>> = described
            .iter()
            .zip(&resources)
            .map(|(described, resources)| GroupVersion {
                group: described.group,
                version: &described.version.name,
                resources,
            })
            .collect();
        let mut index = openapi::index(&versions);
        for remote in &remotes.all {
            // Theirs are passed on; one that has none has no entry either.
            let name = format!("apis/{}", remote.api_version());
            let paths = index["paths"].as_object_mut();
            let Some(paths) = paths else { continue };
            paths.remove(&name);
            if !remote.hash.is_empty() {
                let url = format!("/openapi/v3/{name}?hash={}", remote.hash);
                paths.insert(name, json!({"serverRelativeURL": url}));
            }
        }
        return Ok(Some(wants.value(200, &index)));
    }
    let parts: Vec<&str> = rest.split('/').skip(1).collect();
    let (group, version) = match parts.as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Ok(None),
    };
    let Some(version) = catalog.version(group, version) else {
        return Ok(None);
    };
    let described = Described::new(group, version);
    let hash = described.with(|version| version.hash());
    let mut response = wants.value(200, &described.with(|version| version.document()));
    // A document that is asked for by its hash never changes.
    let kept = if query.get("hash") == hash {
        HeaderValue::from_static("public, immutable")
    } else {
        HeaderValue::from_static("no-cache, private")
    };
    response.headers_mut().insert(header::CACHE_CONTROL, kept);
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(Some(response))
}
