//! The subresource proxy: a node's kubelet, a pod, a service, by HTTP.

use std::borrow::Cow;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Empty;
use serde_json::Value;

use super::{Backend, Passed, Through, Trust, headers, kubelet, pass};
use crate::{
    api::Api,
    catalog::REGISTRY,
    failure::Failure,
    object,
    respond::{self, Body},
};

/// `SCHEME:NAME:PORT`, as a proxy's name can be.
#[derive(Debug, PartialEq, Eq)]
struct Id<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

impl<'a> Id<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        (matches!(scheme, "" | "http" | "https") && !name.is_empty()).then_some(Self {
            scheme,
            name,
            port,
        })
    }

    fn trust(&self) -> Trust {
        match self.scheme {
            "https" => Trust::Encrypted,
            _ => Trust::Plain,
        }
    }

    fn number(&self) -> Result<Option<u16>, Failure> {
        match self.port {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Failure::bad_request(format!("invalid port {text:?}"))),
        }
    }
}

pub async fn handle(
    api: &Api,
    through: &Through<'_>,
    body: Passed,
) -> Result<Response<Body>, Failure> {
    let (asked, parts) = (through.asked, through.parts);
    let singular = &through.resource.singular;
    let id = Id::parse(&asked.name).ok_or_else(|| {
        Failure::bad_request(format!("invalid {singular} request {:?}", asked.name))
    })?;
    let backend = match through.resource.plural.as_str() {
        "nodes" => of_node(api, &id).await?,
        "pods" => of_pod(api, through, &id).await?,
        _ => of_service(api, &asked.namespace, &id).await?,
    };
    let own = own_path(parts.uri.path(), &asked.raw_rest);
    if asked.raw_rest.is_empty() && matches!(parts.method, Method::GET | Method::HEAD) {
        // Relative links of what is there would else lead beside it.
        return Ok(to_its_root(own, parts.uri.query()));
    }
    let path = match asked.raw_rest.as_str() {
        "" => "/",
        rest => rest,
    };
    let uri = match parts.uri.query() {
        Some(query) => Cow::from(format!("{path}?{query}")),
        None => Cow::from(path),
    };
    let mut onward = headers::of_proxy(&parts.headers);
    if let Ok(value) = HeaderValue::from_str(&format!("{own}{path}")) {
        onward.insert("x-forwarded-uri", value);
    }
    // HTTP/2 says it in the URI
    let host = match parts.uri.authority() {
        Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
        None => parts.headers.get(header::HOST).cloned(),
    };
    if let Some(host) = host {
        onward.insert("x-forwarded-host", host);
    }
    onward.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    let builder = Request::builder().method(&parts.method).uri(uri.as_ref());
    let unreached = |error: pass::PassError| {
        Failure::unreached(format!("error trying to reach service: {error}"))
    };
    let odd = |error: http::Error| Failure::bad_request(format!("{uri}: {error}"));
    if headers::asks_to_upgrade(&parts.headers) {
        let client = pass::on_upgrade(parts)?;
        let mut request = builder.body(Empty::new()).map_err(odd)?;
        *request.headers_mut() = onward;
        return pass::upgrade(api, &backend, request, client)
            .await
            .map_err(unreached);
    }
    let mut request = builder.body(body).map_err(odd)?;
    *request.headers_mut() = onward;
    let reached = pass::exchange(&backend, request).await.map_err(unreached)?;
    if reached.response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::unreached(
            "error trying to reach service: it switched protocols unasked",
        ));
    }
    let mut response = reached.stream();
    if let Some(location) = response.headers().get(header::LOCATION) {
        let rewritten = location
            .to_str()
            .ok()
            .and_then(|location| rewritten(location, &backend, own))
            .and_then(|location| HeaderValue::from_str(&location).ok());
        if let Some(location) = rewritten {
            response.headers_mut().insert(header::LOCATION, location);
        }
    }
    Ok(response)
}

/// The path of the request, up to and with `proxy`.
fn own_path<'a>(path: &'a str, rest: &str) -> &'a str {
    path.strip_suffix(rest).unwrap_or(path)
}

fn to_its_root(own: &str, query: Option<&str>) -> Response<Body> {
    let mut response = respond::text(301, "");
    let location = match query {
        Some(query) => format!("{own}/?{query}"),
        None => format!("{own}/"),
    };
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Where a redirect of the other side's leads, seen from the client. It is the client that follows it, or not (SEC-API-02).
fn rewritten(location: &str, backend: &Backend, own: &str) -> Option<String> {
    let root = format!("{}://{}", backend.scheme(), backend.authority());
    let path = match location.strip_prefix(&root) {
        Some("") => "/",
        Some(path) => path,
        None => location,
    };
    (path.starts_with('/') && !path.starts_with("//")).then(|| format!("{own}{path}"))
}

async fn of_node(api: &Api, id: &Id<'_>) -> Result<Backend, Failure> {
    let backend = kubelet::of_node(api, id.name).await?;
    match id.number()? {
        Some(port) if port != backend.port => Backend::at(&backend.host, port, id.trust()).await,
        _ => Ok(backend),
    }
}

async fn of_pod(api: &Api, through: &Through<'_>, id: &Id<'_>) -> Result<Backend, Failure> {
    let key = through.resource.key(&through.asked.namespace, id.name);
    let pod = api
        .storage
        .read(&key)
        .await?
        .map(|stored| stored.value)
        .ok_or_else(|| Failure::not_found(through.resource, id.name))?;
    let port = match id.number()? {
        Some(port) => port,
        None => first_port(&pod).unwrap_or(match id.scheme {
            "https" => 443,
            _ => 80,
        }),
    };
    let address = object::text(&pod, "/status/podIP");
    if address.parse::<std::net::IpAddr>().is_err() {
        return Err(Failure::bad_request("address not allowed"));
    }
    Backend::at(address, port, id.trust()).await
}

fn first_port(pod: &Value) -> Option<u16> {
    pod.pointer("/spec/containers")?
        .as_array()?
        .iter()
        .find_map(|container| container.pointer("/ports/0/containerPort")?.as_u64())
        .and_then(|port| u16::try_from(port).ok())
}

async fn of_service(api: &Api, namespace: &str, id: &Id<'_>) -> Result<Backend, Failure> {
    at_service(api, namespace, id, id.trust()).await
}

/// Whoever serves a port of a Service, for what this server asks by itself.
///
/// # Errors
/// 404 and 503, as a proxy's.
pub async fn of_service_port(
    api: &Api,
    namespace: &str,
    name: &str,
    port: u64,
    trust: Trust,
) -> Result<Backend, Failure> {
    let id = Id {
        scheme: "https",
        name,
        port: &port.to_string(),
    };
    at_service(api, namespace, &id, trust).await
}

async fn at_service(
    api: &Api,
    namespace: &str,
    id: &Id<'_>,
    trust: Trust,
) -> Result<Backend, Failure> {
    let key = format!("{REGISTRY}services/specs/{namespace}/{}", id.name);
    let service = api
        .storage
        .read(&key)
        .await?
        .ok_or_else(|| Failure::not_found_of("", "services", id.name))?
        .value;
    let port = port_name(&service, id)?;
    api.cache.fresh().await?;
    let ready = endpoints(api, namespace, id.name, &port);
    if ready.is_empty() {
        return Err(Failure::unreached(format!(
            "no endpoints available for service {:?}",
            id.name
        )));
    }
    let (address, port) = &ready[rand::random_range(0..ready.len())];
    Backend::at(address, *port, trust).await
}

/// The name of the port that is meant; a number is one of the Service's own.
fn port_name(service: &Value, id: &Id<'_>) -> Result<String, Failure> {
    let Ok(number) = id.port.parse::<u64>() else {
        return Ok(id.port.to_owned());
    };
    service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|port| port["port"].as_u64() == Some(number))
        .map(|port| port["name"].as_str().unwrap_or_default().to_owned())
        .ok_or_else(|| {
            Failure::unreached(format!(
                "no service port {number} found for service {:?}",
                id.name
            ))
        })
}

/// Addresses and ports that are ready, of its EndpointSlices, or of its Endpoints where it has none.
fn endpoints(api: &Api, namespace: &str, name: &str, port: &str) -> Vec<(String, u16)> {
    let (slices, _) = api
        .cache
        .shard("endpointslices")
        .list(&format!("{namespace}/"), "");
    let mut found: Vec<(String, u16)> = slices
        .iter()
        .filter(|entry| entry.label("kubernetes.io/service-name") == Some(name))
        .flat_map(|entry| of_slice(&entry.value(), port))
        .collect();
    if found.is_empty()
        && let Some(entry) = api
            .cache
            .shard("services/endpoints")
            .get(&format!("{namespace}/{name}"))
    {
        let value = entry.value();
        let subsets = value["subsets"].as_array();
        found = subsets
            .into_iter()
            .flatten()
            .flat_map(|subset| pairs(&subset["addresses"], "/ip", &subset["ports"], port))
            .collect();
    }
    found
}

fn of_slice(slice: &Value, port: &str) -> Vec<(String, u16)> {
    let ready: Vec<Value> = slice["endpoints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|endpoint| endpoint.pointer("/conditions/ready") != Some(&Value::Bool(false)))
        .cloned()
        .collect();
    pairs(&Value::Array(ready), "/addresses/0", &slice["ports"], port)
}

fn pairs(addresses: &Value, at: &str, ports: &Value, port: &str) -> Vec<(String, u16)> {
    let number = ports
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["name"].as_str().unwrap_or_default() == port)
        .and_then(|one| u16::try_from(one["port"].as_u64()?).ok());
    let Some(number) = number else {
        return Vec::new();
    };
    addresses
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|address| Some((address.pointer(at)?.as_str()?.to_owned(), number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_may_say_scheme_and_port() {
        let id = |scheme, name, port| Some(Id { scheme, name, port });
        for (text, is) in [
            ("a", id("", "a", "")),
            ("a:80", id("", "a", "80")),
            ("https:a:", id("https", "a", "")),
            ("http:a:web", id("http", "a", "web")),
            ("ftp:a:21", None),
            (":80", None),
            ("a:b:c:d", None),
        ] {
            assert_eq!(Id::parse(text), is, "{text}");
        }
    }

    #[test]
    fn ready_endpoints_with_the_port_are_taken() {
        let slice = json!({
            "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": true}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.3"]},
            ],
            "ports": [{"name": "web", "port": 8080}, {"name": "", "port": 9}],
        });
        assert_eq!(
            of_slice(&slice, "web"),
            [("10.0.0.1".to_owned(), 8080), ("10.0.0.3".to_owned(), 8080)]
        );
        assert_eq!(of_slice(&slice, "").len(), 2);
        assert!(of_slice(&slice, "other").is_empty());
        assert!(of_slice(&json!(null), "").is_empty());
    }

    #[tokio::test]
    async fn a_redirect_leads_the_client_back_through_the_proxy_sec_api_02() {
        let backend = Backend::at("10.0.0.1", 80, Trust::Plain)
            .await
            .expect("it may be");
        for (location, leads) in [
            ("/login", Some("/p/proxy/login")),
            ("http://10.0.0.1:80/a?b", Some("/p/proxy/a?b")),
            ("http://10.0.0.1:80", Some("/p/proxy/")),
            ("https://elsewhere/a", None),
            ("//elsewhere/a", None),
            ("relative", None),
        ] {
            assert_eq!(
                rewritten(location, &backend, "/p/proxy").as_deref(),
                leads,
                "{location}"
            );
        }
        assert_eq!(own_path("/a/proxy/b/", "/b/"), "/a/proxy");
    }
}
