//! get and list.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use berth_store::Revision;
use bytes::Bytes;
use http::Response;
use serde::{Deserialize, Serialize};

use crate::{
    api::{Api, Call},
    cache::Entry,
    catalog::{REGISTRY, Resource},
    failure::Failure,
    request::Query,
    respond::{Body, ListMeta},
    selector::{FieldSelector, LabelSelector},
};

pub async fn get(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let (resource, name) = (&call.resource, &call.asked.name);
    // An old one may do: the cache has it.
    if call.asked.query.get("resourceVersion") == "0"
        && resource.stored
        && let Some(entry) =
            api.cache
                .shard(&resource.storage)
                .get(&path(resource, &call.asked.namespace, name))
    {
        return Ok(call.wants.object_bytes(200, resource, entry.bytes.clone()));
    }
    let key = resource.key(&call.asked.namespace, name);
    let stored = api
        .storage
        .read(&key)
        .await?
        .ok_or_else(|| Failure::not_found(resource, name))?;
    let mut value = stored.value;
    resource.as_served(&mut value);
    Ok(call.wants.object(200, resource, &value))
}

/// Of an object within its shard.
pub fn path(resource: &Resource, namespace: &str, name: &str) -> String {
    let key = resource.key(namespace, name);
    key[REGISTRY.len() + resource.storage.len() + 1..].to_owned()
}

/// What a list, a watch or a collection selects.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// Only objects whose path within the shard begins so.
    pub prefix: String,
    /// In which version; where the objects are kept in another one, their fields are looked for in it.
    converted: Option<Arc<Resource>>,
}

impl Selection {
    pub fn of(resource: &Arc<Resource>, namespace: &str, query: &Query) -> Result<Self, Failure> {
        let labels = LabelSelector::parse(query.get("labelSelector"))
            .map_err(|error| Failure::bad_request(error.0))?;
        let fields = FieldSelector::parse(query.get("fieldSelector"))
            .map_err(|error| Failure::bad_request(error.0))?;
        for path in fields.paths() {
            let known = path == "metadata.name"
                || (path == "metadata.namespace" && resource.namespaced)
                || resource
                    .kind()
                    .is_some_and(|kind| kind.selectable.contains(&path))
                || resource
                    .custom()
                    .is_some_and(|custom| custom.selectable.iter().any(|known| known == path));
            if !known {
                return Err(Failure::bad_request(format!(
                    "field label not supported: {path}"
                )));
            }
        }
        let needs_value = (!resource.stored || resource.custom().is_some())
            && fields.paths().any(|path| !path.starts_with("metadata."));
        Ok(Self {
            labels,
            fields,
            prefix: path(resource, namespace, ""),
            converted: needs_value.then(|| resource.clone()),
        })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn selects(&self, entry: &Entry) -> bool {
        if !entry.path.starts_with(&self.prefix) {
            return false;
        }
        let Some(resource) = &self.converted else {
            return entry.matches(&self.labels, &self.fields);
        };
        if !self.labels.matches(|key| entry.label(key)) {
            return false;
        }
        let mut value = entry.value();
        resource.as_served(&mut value);
        match &resource.made_of {
            crate::catalog::MadeOf::BuiltIn(kind) => {
                let pairs = berth_kinds::selectable(kind, &value);
                self.fields.matches(|path| {
                    pairs
                        .iter()
                        .find(|(name, _)| *name == path)
                        .map_or("", |(_, value)| value)
                })
            }
            crate::catalog::MadeOf::Custom(_) => {
                // upstream's selectable fields are strings, integers and booleans
                let texts: Vec<(String, String)> = self
                    .fields
                    .paths()
                    .map(|path| {
                        let pointer = format!("/{}", path.replace('.', "/"));
                        let text = match value.pointer(&pointer) {
                            Some(serde_json::Value::String(text)) => text.clone(),
                            Some(value) if !value.is_null() => value.to_string(),
                            _ => String::new(),
                        };
                        (path.to_owned(), text)
                    })
                    .collect();
                self.fields.matches(|path| {
                    texts
                        .iter()
                        .find(|(name, _)| name == path)
                        .map_or("", |(_, value)| value)
                })
            }
        }
    }
}

/// Where the next part of a list begins.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    v: String,
    rv: Revision,
    /// The path of the last object that was told.
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";
/// Of a token that a client sends back.
const LONGEST_TOKEN: usize = 4096;

fn parse_token(text: &str, prefix: &str, newest: Revision) -> Result<Token, Failure> {
    let invalid = |why: &str| Failure::bad_request(format!("continue key is not valid: {why}"));
    if text.len() > LONGEST_TOKEN {
        return Err(invalid("it is too long"));
    }
    let bytes = BASE64_URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| invalid(&error.to_string()))?;
    let token: Token =
        serde_json::from_slice(&bytes).map_err(|error| invalid(&error.to_string()))?;
    if token.v != TOKEN_VERSION {
        return Err(invalid(&format!(
            "server does not recognize this encoded version {:?}",
            token.v
        )));
    }
    // A token is no secret, and says nothing that a list could not be asked for: but it may lead nowhere else.
    if token.rv == 0 || token.rv > newest {
        return Err(invalid("incorrect encoded start resourceVersion"));
    }
    if !token.start.starts_with(prefix) || token.start.contains('\0') {
        return Err(invalid("it is of another list"));
    }
    Ok(token)
}

/// resourceVersion and resourceVersionMatch of a list, checked.
fn wanted_revision(query: &Query) -> Result<(Option<Revision>, bool), Failure> {
    let (version, matching) = (
        query.get("resourceVersion"),
        query.get("resourceVersionMatch"),
    );
    let invalid = |message: String| {
        Failure::unprocessable(format!(
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: {message}"
        ))
    };
    if !matching.is_empty() {
        if version.is_empty() {
            return Err(invalid(
                "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
                    .into(),
            ));
        }
        if !query.get("continue").is_empty() {
            return Err(invalid(
                "Forbidden: resourceVersionMatch is forbidden when continue is provided".into(),
            ));
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            return Err(invalid(format!(
                "Unsupported value: {matching:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
            )));
        }
        if matching == "Exact" && version == "0" {
            return Err(invalid(
                "Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""
                    .into(),
            ));
        }
    }
    Ok((parse_revision(version)?, matching == "Exact"))
}

pub fn parse_revision(text: &str) -> Result<Option<Revision>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Failure::bad_request(format!(
            "invalid resource version {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// A page of what is selected.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<Bytes>,
    pub meta: ListMeta,
}

pub async fn list(api: &Api, call: &Call) -> Result<Response<Body>, Failure> {
    let resource = &call.resource;
    let selection = Selection::of(resource, &call.asked.namespace, &call.asked.query)?;
    let page = page(api, resource, &selection, &call.asked.query).await?;
    Ok(call.wants.list(resource, &page.meta, page.items))
}

pub async fn page(
    api: &Api,
    resource: &Arc<Resource>,
    selection: &Selection,
    query: &Query,
) -> Result<Page, Failure> {
    let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let (wanted, exact) = wanted_revision(query)?;
    let token = query.get("continue");
    let shard = api.cache.shard(&resource.storage);
    if !token.is_empty() {
        if wanted.is_some_and(|wanted| wanted != 0) {
            return Err(Failure::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let newest = api.cache.fresh().await?;
        let token = parse_token(token, &selection.prefix, newest)?;
        return page_as_of(api, resource, selection, token.rv, &token.start, limit).await;
    }
    match wanted {
        None => {
            api.cache.fresh().await?;
        }
        Some(revision) if exact => {
            api.cache.reach(revision).await?;
            return page_as_of(api, resource, selection, revision, "", limit).await;
        }
        Some(revision) => {
            api.cache.reach(revision).await?;
        }
    }
    let (entries, revision) = shard.list(&selection.prefix, "");
    Ok(of_entries(resource, selection, &entries, revision, limit))
}

/// From the cache where nothing has changed since `revision`, else from the store.
async fn page_as_of(
    api: &Api,
    resource: &Arc<Resource>,
    selection: &Selection,
    revision: Revision,
    after: &str,
    limit: usize,
) -> Result<Page, Failure> {
    let shard = api.cache.shard(&resource.storage);
    match shard.list_as_of(revision, &selection.prefix, after) {
        Some(entries) => Ok(of_entries(resource, selection, &entries, revision, limit)),
        None => old_page(api, resource, selection, revision, after, limit).await,
    }
}

fn of_entries(
    resource: &Resource,
    selection: &Selection,
    entries: &[Arc<Entry>],
    revision: Revision,
    limit: usize,
) -> Page {
    let everything = selection.is_everything();
    let selected = entries
        .iter()
        .filter(|entry| everything || selection.selects(entry));
    let mut items = Vec::with_capacity(if limit == 0 {
        entries.len()
    } else {
        limit.min(entries.len())
    });
    let mut last = "";
    let mut meta = ListMeta {
        resource_version: revision,
        ..ListMeta::default()
    };
    for entry in selected {
        if limit > 0 && items.len() == limit {
            meta.token = token(revision, last);
            if everything {
                meta.remaining = Some((entries.len() - items.len()) as u64);
            }
            break;
        }
        last = &entry.path;
        items.push(told(resource, entry));
    }
    Page { items, meta }
}

fn token(rv: Revision, start: &str) -> String {
    let token = Token {
        v: TOKEN_VERSION.into(),
        rv,
        start: start.into(),
    };
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// An entry in the version of `resource`.
pub fn told(resource: &Resource, entry: &Entry) -> Bytes {
    if resource.stored {
        return entry.bytes.clone();
    }
    convert(resource, &entry.bytes)
}

pub fn convert(resource: &Resource, bytes: &Bytes) -> Bytes {
    let mut value = serde_json::from_slice(bytes).unwrap_or_default();
    resource.as_served(&mut value);
    serde_json::to_vec(&value).unwrap_or_default().into()
}

/// As of a revision that the cache has gone beyond: the store knows it until it is compacted.
async fn old_page(
    api: &Api,
    resource: &Arc<Resource>,
    selection: &Selection,
    revision: Revision,
    after: &str,
    limit: usize,
) -> Result<Page, Failure> {
    /// Read at once; a selector may pass over most.
    const READ: usize = 1000;
    let base = format!("{REGISTRY}{}/", resource.storage);
    let prefix = format!("{base}{}", selection.prefix);
    let mut from = if after.is_empty() {
        prefix.clone()
    } else {
        format!("{base}{after}\0")
    };
    let everything = selection.is_everything();
    let mut items = Vec::new();
    let mut meta = ListMeta {
        resource_version: revision,
        ..ListMeta::default()
    };
    let mut last = String::new();
    loop {
        let read = if limit == 0 {
            READ
        } else {
            READ.min(limit + 1)
        };
        let (objects, count, more) = api
            .storage
            .range(&from, &prefix, revision, read)
            .await
            .map_err(|failure| {
                if failure.code == 410 {
                    Failure::continue_expired()
                } else {
                    failure
                }
            })?;
        let mut before = 0;
        for (key, mut stored) in objects {
            let path = key[base.len()..].to_owned();
            from = format!("{key}\0");
            let entry = Entry::new(Some(resource), &path, stored.revision, &mut stored.value);
            if !everything && !selection.selects(&entry) {
                continue;
            }
            if limit > 0 && items.len() == limit {
                meta.token = token(revision, &last);
                if everything {
                    meta.remaining = Some(count.saturating_sub(before));
                }
                return Ok(Page { items, meta });
            }
            before += 1;
            last = path;
            items.push(told(resource, &entry));
        }
        if !more {
            return Ok(Page { items, meta });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forged_token_leads_nowhere() {
        let good = token(5, "a/x");
        assert_eq!(parse_token(&good, "a/", 9).expect("a token").start, "a/x");
        for (text, prefix, newest) in [
            (good.as_str(), "b/", 9),
            (good.as_str(), "a/", 4),
            ("%%%", "a/", 9),
            (&BASE64_URL_SAFE_NO_PAD.encode("{}"), "a/", 9),
            (
                &BASE64_URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v2","rv":1,"start":"a/"}"#),
                "a/",
                9,
            ),
            (
                &BASE64_URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a/"}"#),
                "a/",
                9,
            ),
            (&"A".repeat(LONGEST_TOKEN + 4), "a/", 9),
        ] {
            let failure = parse_token(text, prefix, newest).expect_err(text);
            assert_eq!(failure.code, 400);
        }
    }

    #[test]
    fn list_options_are_checked() {
        for (query, code) in [
            ("", None),
            ("resourceVersion=5", None),
            ("resourceVersion=5&resourceVersionMatch=Exact", None),
            ("resourceVersion=0&resourceVersionMatch=Exact", Some(422)),
            ("resourceVersionMatch=Exact", Some(422)),
            ("resourceVersion=5&resourceVersionMatch=Other", Some(422)),
            ("resourceVersion=x", Some(400)),
        ] {
            let result = wanted_revision(&Query::parse(query));
            assert_eq!(result.err().map(|failure| failure.code), code, "{query}");
        }
    }
}
