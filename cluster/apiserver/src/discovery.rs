//! What there is: `/api`, `/apis` and below, plain and aggregated.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{
    catalog::{Catalog, Resource, Version, api_version, priority},
    failure::Failure,
    passage::{Remote, Remotes},
    respond::{self, Body, Wants, full},
};

/// Aggregated documents, made once a catalog.
#[derive(Debug, Default)]
pub struct Discovery(Mutex<Vec<Known>>);

#[derive(Debug)]
struct Known {
    /// Of the catalog, and of what others serve.
    generation: (u64, u64),
    core: bool,
    version: &'static str,
    etag: HeaderValue,
    document: Bytes,
}

impl Discovery {
    /// `path` is `/api` or `/apis`, or below; `None`: there is no such document.
    pub fn answer(
        &self,
        catalog: &Arc<Catalog>,
        remotes: &Remotes,
        path: &str,
        headers: &HeaderMap,
        address: &str,
    ) -> Result<Option<Response<Body>>, Failure> {
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        if let (["api"] | ["apis"], Some(version)) = (parts.as_slice(), aggregated(headers)) {
            return Ok(Some(self.aggregate(
                catalog,
                remotes,
                parts == ["api"],
                version,
                headers,
            )));
        }
        if !matches!(parts.first(), Some(&"api" | &"apis")) {
            return Ok(None);
        }
        let wants = Wants::of(headers, "")?;
        let all = merged(catalog, remotes);
        let value = match parts.as_slice() {
            ["api"] => json!({
                "kind": "APIVersions",
                "versions": catalog.groups.get("").map_or_else(Vec::new, |versions| names(versions)),
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            }),
            ["apis"] => json!({
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": all
                    .iter()
                    .filter(|(name, _)| !name.is_empty())
                    .map(|(name, versions)| group(name, versions))
                    .collect::<Vec<_>>(),
            }),
            ["apis", name] => match all.get(*name) {
                Some(versions) if !name.is_empty() => {
                    let mut group = group(name, versions);
                    group["kind"] = "APIGroup".into();
                    group["apiVersion"] = "v1".into();
                    group
                }
                _ => return Ok(None),
            },
            ["api", version] => match catalog.version("", version) {
                Some(version) => resources("", version),
                None => return Ok(None),
            },
            ["apis", name, version] if !name.is_empty() => match catalog.version(name, version) {
                Some(version) => resources(name, version),
                None => return Ok(None),
            },
            _ => return Ok(None),
        };
        Ok(Some(wants.value(200, &value)))
    }

    fn aggregate(
        &self,
        catalog: &Arc<Catalog>,
        remotes: &Remotes,
        core: bool,
        version: &'static str,
        headers: &HeaderMap,
    ) -> Response<Body> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = (catalog.generation, remotes.generation);
        known.retain(|known| known.generation == generation);
        let at = known
            .iter()
            .position(|known| known.core == core && known.version == version);
        let at = at.unwrap_or_else(|| {
            let document =
                serde_json::to_vec(&aggregate(catalog, remotes, core, version)).unwrap_or_default();
            let mut etag = String::from("\"");
            for byte in Sha256::digest(&document) {
                let _ = write!(etag, "{byte:02X}");
            }
            etag.push('"');
            known.push(Known {
                generation,
                core,
                version,
                etag: HeaderValue::from_str(&etag).unwrap_or_else(|_| HeaderValue::from_static("")),
                document: document.into(),
            });
            known.len() - 1
        });
        let found = &known[at];
        let mut response = if headers.get(header::IF_NONE_MATCH) == Some(&found.etag) {
            let mut response = Response::new(full(Bytes::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            Response::new(full(found.document.clone()))
        };
        response
            .headers_mut()
            .insert(header::ETAG, found.etag.clone());
        response
            .headers_mut()
            .insert(header::VARY, HeaderValue::from_static("Accept"));
        respond::content_type(
            &mut response,
            match version {
                "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            },
        );
        response
    }
}

/// Which version of the aggregated form comes before the plain one in `Accept`.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    for accept in headers.get_all(header::ACCEPT) {
        for range in accept.to_str().ok()?.split(',') {
            let words: Vec<&str> = range.split(';').map(str::trim).collect();
            if words.first() != Some(&"application/json") {
                continue;
            }
            if !words.contains(&"as=APIGroupDiscoveryList") {
                return None;
            }
            for (word, version) in [("v=v2", "v2"), ("v=v2beta1", "v2beta1")] {
                if words.contains(&word) && words.contains(&"g=apidiscovery.k8s.io") {
                    return Some(version);
                }
            }
        }
    }
    None
}

fn names(versions: &[Version]) -> Vec<Value> {
    versions
        .iter()
        .map(|version| version.name.as_str().into())
        .collect()
}

/// A version of a group, here or on an API server beside this one.
#[derive(Debug, Clone, Copy)]
enum Served<'a> {
    Here(&'a Version),
    There(&'a Remote),
}

impl Served<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Here(version) => &version.name,
            Self::There(remote) => &remote.version,
        }
    }
}

/// By group, the preferred version first. What another serves is its own.
fn merged<'a>(catalog: &'a Catalog, remotes: &'a Remotes) -> BTreeMap<&'a str, Vec<Served<'a>>> {
    let mut all: BTreeMap<&str, Vec<Served<'_>>> = BTreeMap::new();
    for (group, versions) in &catalog.groups {
        let here = versions
            .iter()
            .filter(|version| remotes.get(group, &version.name).is_none());
        all.entry(group).or_default().extend(here.map(Served::Here));
    }
    for remote in &remotes.all {
        let versions = all.entry(&remote.group).or_default();
        versions.push(Served::There(remote));
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version.name())));
    }
    all.retain(|_, versions| !versions.is_empty());
    all
}

fn group(name: &str, versions: &[Served<'_>]) -> Value {
    let version = |version: &Served<'_>| json!({"groupVersion": api_version(name, version.name()), "version": version.name()});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// Of the storage version: two versions of a kind that share it have the same.
fn storage_hash(resource: &Resource) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let digest = Sha256::digest(format!("{}/{}", resource.group, resource.storage));
    BASE64_STANDARD.encode(&digest[..8])
}

fn resources(group: &str, version: &Version) -> Value {
    let mut resources = Vec::new();
    for resource in version.resources.values() {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = resource.short_names.clone().into();
        }
        if !resource.categories.is_empty() {
            entry["categories"] = resource.categories.clone().into();
        }
        if !resource.storage.is_empty() {
            entry["storageVersionHash"] = storage_hash(resource).into();
        }
        resources.push(entry);
        for sub in &resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": sub.kind.map_or(resource.kind.as_str(), |(.., kind)| kind),
                "verbs": sub.verbs,
            });
            if let Some((group, version, _)) = sub.kind {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            resources.push(entry);
        }
    }
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version(group, &version.name),
        "resources": resources,
    })
}

fn aggregate(catalog: &Catalog, remotes: &Remotes, core: bool, document_version: &str) -> Value {
    let items: Vec<Value> = merged(catalog, remotes)
        .into_iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let version = |version: &Served<'_>| match version {
                Served::Here(version) => aggregate_version(version),
                Served::There(remote) => aggregate_remote(remote),
            };
            let versions: Vec<Value> = versions.iter().map(version).collect();
            json!({
                "metadata": {"name": name, "creationTimestamp": null},
                "versions": versions,
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{document_version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregate_version(version: &Version) -> Value {
    let resources: Vec<Value> = version
        .resources
        .values()
        .map(|resource| {
            let mut entry = json!({
                "resource": resource.plural,
                "responseKind": kind(&resource.group, &resource.version, &resource.kind),
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": resource.verbs,
            });
            if !resource.short_names.is_empty() {
                entry["shortNames"] = resource.short_names.clone().into();
            }
            if !resource.categories.is_empty() {
                entry["categories"] = resource.categories.clone().into();
            }
            let subresources: Vec<Value> = resource
                .subresources
                .iter()
                .map(|sub| {
                    let response = sub.kind.map_or_else(
                        || kind(&resource.group, &resource.version, &resource.kind),
                        |(group, version, name)| kind(group, version, name),
                    );
                    json!({
                        "subresource": sub.name,
                        "responseKind": response,
                        "verbs": sub.verbs,
                    })
                })
                .collect();
            if !subresources.is_empty() {
                entry["subresources"] = subresources.into();
            }
            entry
        })
        .collect();
    json!({
        "version": version.name,
        "resources": resources,
        "freshness": "Current",
    })
}

/// Of an APIResourceList, in the aggregated form.
fn aggregate_remote(remote: &Remote) -> Value {
    let listed = remote.resources["resources"].as_array();
    let listed: Vec<&Value> = listed.into_iter().flatten().collect();
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let response = |value: &Value| {
        let or = |text: String, own: &str| match text.as_str() {
            "" => own.to_owned(),
            _ => text,
        };
        let group = or(text(value, "group"), &remote.group);
        let version = or(text(value, "version"), &remote.version);
        kind(&group, &version, &text(value, "kind"))
    };
    let mut resources: Vec<Value> = Vec::new();
    for resource in &listed {
        let name = text(resource, "name");
        if name.contains('/') {
            continue;
        }
        let below = format!("{name}/");
        let subresources: Vec<Value> = listed
            .iter()
            .filter_map(|sub| {
                let sub_name = text(sub, "name");
                let of = sub_name.strip_prefix(&below)?;
                Some(json!({
                    "subresource": of,
                    "responseKind": response(sub),
                    "verbs": sub["verbs"],
                }))
            })
            .collect();
        let mut entry = json!({
            "resource": name,
            "responseKind": response(resource),
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": resource["singularName"],
            "verbs": resource["verbs"],
        });
        for list in ["shortNames", "categories"] {
            if resource[list].is_array() {
                entry[list] = resource[list].clone();
            }
        }
        if !subresources.is_empty() {
            entry["subresources"] = subresources.into();
        }
        resources.push(entry);
    }
    json!({
        "version": remote.version,
        "resources": resources,
        "freshness": if remote.available { "Current" } else { "Stale" },
    })
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}
