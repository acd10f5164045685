//! What a request asks for, by its method, path and query (upstream's RequestInfo).

use http::Method;

use crate::failure::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// A request for resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub verb: Verb,
    /// Empty for core.
    pub group: String,
    pub version: String,
    /// Plural.
    pub resource: String,
    pub subresource: String,
    /// Empty: of all, or of none.
    pub namespace: String,
    pub name: String,
    /// Behind the subresource, as it was sent, from its slash on: what a proxy passes on.
    pub raw_rest: String,
    pub query: Query,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Resource(Box<Asked>),
    /// The path, without a slash at its end.
    Path(String),
}

/// The parameters, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Self {
        Self(
            url::form_urlencoded::parse(query.as_bytes())
                .map(|(key, value)| (key.into_owned(), value.into_owned()))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Upstream's reading of a boolean parameter: there, and not `false` or `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name)
            && !matches!(
                self.get(name),
                "false" | "0" | "False" | "FALSE" | "f" | "F"
            )
    }

    pub fn number(&self, name: &str) -> Result<Option<i64>, Failure> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }
}

/// Subresources of a namespace itself: what comes behind any other name is a resource within it.
const OF_NAMESPACES: [&str; 2] = ["status", "finalize"];

pub fn parse(method: &Method, path: &str, query: &str) -> Result<Target, Failure> {
    let (path, raw_rest) = split_proxy(path);
    let parts = segments(path)?;
    let texts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match texts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Target::Path(format!("/{}", texts.join("/")))),
    };
    let (rest, watches) = match rest {
        // the old form of a watch
        ["watch", rest @ ..] if !rest.is_empty() => (rest, true),
        rest => (rest, false),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, inner, ..] if !OF_NAMESPACES.contains(inner) => {
            (*namespace, &rest[2..])
        }
        ["namespaces", namespace, ..] => (*namespace, rest),
        rest => ("", rest),
    };
    let part = |at: usize| rest.get(at).copied().unwrap_or_default();
    if !raw_rest.is_empty() {
        passable(raw_rest)?;
    }
    let raw_rest = raw_rest.to_owned();
    let query = Query::parse(query);
    let name = part(1);
    let verb = match *method {
        Method::GET | Method::HEAD if watches || (query.flag("watch") && part(2).is_empty()) => {
            Verb::Watch
        }
        Method::GET | Method::HEAD if name.is_empty() => Verb::List,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST => Verb::Create,
        Method::PUT => Verb::Update,
        Method::PATCH => Verb::Patch,
        Method::DELETE if name.is_empty() => Verb::DeleteCollection,
        Method::DELETE => Verb::Delete,
        _ => return Err(Failure::method_not_allowed()),
    };
    Ok(Target::Resource(Box::new(Asked {
        verb,
        group: group.into(),
        version: version.into(),
        resource: part(0).into(),
        subresource: part(2).into(),
        namespace: namespace.into(),
        name: name.into(),
        raw_rest,
        query,
    })))
}

/// The path up to a proxy, and what it passes on: that is the other side's business.
fn split_proxy(path: &str) -> (&str, &str) {
    let at = |place: usize| path.split('/').nth(place).unwrap_or_default();
    // counted from the empty part before the first slash
    let place = match (at(1), at(3)) {
        ("api", "nodes") => 5,
        ("api", "namespaces") if matches!(at(5), "pods" | "services") => 7,
        _ => return (path, ""),
    };
    if at(place) != "proxy" {
        return (path, "");
    }
    path.match_indices('/')
        .nth(place)
        .map_or((path, ""), |(slash, _)| path.split_at(slash))
}

/// But for what would lead out of it again.
fn passable(rest: &str) -> Result<(), Failure> {
    let leads_out = |part: &str| {
        decode(part).is_none_or(|part| matches!(part.as_str(), "." | "..") || part.contains('\0'))
    };
    if rest.split('/').any(leads_out) {
        return Err(Failure::no_such_path());
    }
    Ok(())
}

/// The decoded parts of a path. One that could mean another path elsewhere (`..`, an empty part, a slash that was encoded) is no path.
fn segments(path: &str) -> Result<Vec<String>, Failure> {
    let inner = path.strip_prefix('/').ok_or_else(Failure::no_such_path)?;
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.is_empty() {
        return Ok(Vec::new());
    }
    inner
        .split('/')
        .map(|part| {
            let decoded = decode(part).ok_or_else(Failure::no_such_path)?;
            let strange = decoded.is_empty() || decoded == "." || decoded == "..";
            if decoded.contains(['/', '\0', '%']) || strange {
                return Err(Failure::no_such_path());
            }
            Ok(decoded)
        })
        .collect()
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(method: Method, path: &str, query: &str) -> String {
        match parse(&method, path, query) {
            Ok(Target::Resource(asked)) => format!(
                "{} {}/{} {}/{} {}/{}{}",
                asked.verb.as_str(),
                asked.group,
                asked.version,
                asked.namespace,
                asked.resource,
                asked.name,
                asked.subresource,
                if asked.raw_rest.is_empty() {
                    String::new()
                } else {
                    format!(" > {}", asked.raw_rest)
                }
            ),
            Ok(Target::Path(path)) => path,
            Err(failure) => failure.code.to_string(),
        }
    }

    #[test]
    fn a_request_asks_for_what_its_path_says() {
        for (method, path, query, means) in [
            (Method::GET, "/", "", "/"),
            (Method::GET, "/api", "", "/api"),
            (Method::GET, "/api/v1", "", "/api/v1"),
            (Method::GET, "/apis/apps/v1/", "", "/apis/apps/v1"),
            (Method::GET, "/api/v1/pods", "", "list /v1 /pods /"),
            (
                Method::GET,
                "/api/v1/pods",
                "watch=true",
                "watch /v1 /pods /",
            ),
            (
                Method::GET,
                "/api/v1/pods",
                "watch=false",
                "list /v1 /pods /",
            ),
            (Method::GET, "/api/v1/watch/pods", "", "watch /v1 /pods /"),
            (
                Method::GET,
                "/api/v1/namespaces",
                "",
                "list /v1 /namespaces /",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                "",
                "get /v1 a/namespaces a/",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "",
                "update /v1 a/namespaces a/finalize",
            ),
            (
                Method::POST,
                "/apis/apps/v1/namespaces/a/deployments",
                "",
                "create apps/v1 a/deployments /",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                "",
                "patch apps/v1 a/deployments b/scale",
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/pods",
                "",
                "deletecollection /v1 a/pods /",
            ),
            (
                Method::GET,
                "/api/v1/nodes/n/proxy/a/b",
                "",
                "get /v1 /nodes n/proxy > /a/b",
            ),
            (
                Method::GET,
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                "",
                "get rbac.authorization.k8s.io/v1 /clusterroles system:node/",
            ),
            (
                Method::POST,
                "/api/v1/namespaces/a/services/https:b:web/proxy/c//d%2Fe/",
                "f=%2e",
                "create /v1 a/services https:b:web/proxy > /c//d%2Fe/",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/b/proxy",
                "",
                "get /v1 a/pods b/proxy",
            ),
            // a ConfigMap's name, and no proxy
            (
                Method::GET,
                "/api/v1/namespaces/a/configmaps/proxy",
                "",
                "get /v1 a/configmaps proxy/",
            ),
            (Method::GET, "/api/v1/nodes/n/proxy/a/../b", "", "404"),
            (Method::GET, "/api/v1/nodes/n/proxy/a/%2e%2E/b", "", "404"),
            (Method::GET, "/api/v1/nodes/n/proxy/%00", "", "404"),
            // SEC-API-09
            (Method::GET, "/api/v1/namespaces/../nodes", "", "404"),
            (Method::GET, "/api/v1//pods", "", "404"),
            (Method::GET, "/api/v1/namespaces/a%2fb/pods", "", "404"),
            (Method::GET, "/api/v1/namespaces/%2e%2e/pods", "", "404"),
            (Method::GET, "/api/v1/pods/%zz", "", "404"),
            (Method::OPTIONS, "/api/v1/pods", "", "405"),
        ] {
            assert_eq!(asked(method, path, query), means, "{path}?{query}");
        }
    }
}
