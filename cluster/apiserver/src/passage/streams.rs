//! log, exec, attach and portforward of a pod: its node's kubelet has them.

use berth_auth::Decision;
use berth_kinds::{Invalid, Reason};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Empty;
use serde_json::Value;
use url::form_urlencoded;

use super::{Through, headers, kubelet, pass};
use crate::{
    api::Api,
    authenticate,
    failure::Failure,
    object,
    request::Query,
    respond::{self, Body},
    router,
};

/// A path of the kubelet's. Names are those of objects that are there, so none needs to be escaped; what a client says stands in the query.
struct Asked {
    path: String,
    query: String,
}

impl Asked {
    fn new(what: &str, names: &[&str]) -> Self {
        Self {
            path: format!("/{what}/{}", names.join("/")),
            query: String::new(),
        }
    }

    fn with(&mut self, name: &str, value: &str) {
        if !self.query.is_empty() {
            self.query.push('&');
        }
        self.query.push_str(name);
        self.query.push('=');
        self.query
            .extend(form_urlencoded::byte_serialize(value.as_bytes()));
    }

    fn uri(self) -> String {
        if self.query.is_empty() {
            return self.path;
        }
        format!("{}?{}", self.path, self.query)
    }
}

async fn pod(api: &Api, through: &Through<'_>) -> Result<Value, Failure> {
    let asked = through.asked;
    let key = through.resource.key(&asked.namespace, &asked.name);
    api.storage
        .read(&key)
        .await?
        .map(|stored| stored.value)
        .ok_or_else(|| Failure::not_found(through.resource, &asked.name))
}

/// The names of a pod's containers of one kind.
fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod.pointer(&format!("/spec/{list}"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect()
}

/// The container that is meant: the one that is named, or the only one.
fn container(pod: &Value, asked: &str) -> Result<String, Failure> {
    let name = object::name(pod);
    let (plain, init) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    if !asked.is_empty() {
        let known = [&plain, &init, &ephemeral]
            .into_iter()
            .any(|names| names.contains(&asked));
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(Failure::bad_request(format!(
                "container {asked} is not valid for pod {name}"
            )))
        };
    }
    if let [one] = plain.as_slice() {
        return Ok((*one).to_owned());
    }
    let mut message = format!(
        "a container name must be specified for pod {name}, choose one of: [{}]",
        plain.join(" ")
    );
    for (names, what) in [(init, "init"), (ephemeral, "ephemeral")] {
        if !names.is_empty() {
            message = format!(
                "{message} or one of the {what} containers: [{}]",
                names.join(" ")
            );
        }
    }
    Err(Failure::bad_request(message))
}

pub async fn log(api: &Api, through: &Through<'_>) -> Result<Response<Body>, Failure> {
    let (asked, query) = (through.asked, &through.asked.query);
    let options = log_options(query, &asked.name)?;
    let pod = pod(api, through).await?;
    let container = container(&pod, query.get("container"))?;
    let node = object::text(&pod, "/spec/nodeName");
    if node.is_empty() {
        // It runs nowhere yet, and has said nothing.
        return Ok(respond::text(200, ""));
    }
    let backend = kubelet::of_node(api, node).await?;
    let mut onward = Asked::new(
        "containerLogs",
        &[&asked.namespace, &asked.name, &container],
    );
    for (name, value) in &options {
        onward.with(name, value);
    }
    let uri = onward.uri();
    let mut request = request("GET", &uri)?;
    request
        .headers_mut()
        .insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    let reached = pass::exchange(&backend, request).await.map_err(|error| {
        Failure::of_backend(format!(
            "Get \"https://{}{uri}\": {error}",
            backend.authority()
        ))
    })?;
    let status = reached.response.status().as_u16();
    if (200..=206).contains(&status) {
        let mut response = reached.stream();
        respond::content_type(&mut response, "text/plain");
        return Ok(response);
    }
    let said = reached.text().await;
    Err(match status {
        500 => Failure::internal(said),
        400 => Failure::bad_request(said),
        status => Failure::of_status(status, "", &asked.resource, &asked.name, &said),
    })
}

/// v1.PodLogOptions, checked, as the kubelet takes them.
fn log_options(query: &Query, name: &str) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut options = Vec::new();
    let mut invalid = Vec::new();
    let mut refuse = |field: &str, reason, message: String| {
        invalid.push(Invalid {
            field: field.into(),
            reason,
            message,
        });
    };
    if query.flag("insecureSkipTLSVerifyBackend") {
        return Err(Failure::bad_request(
            "insecureSkipTLSVerifyBackend: a kubelet whose certificate does not hold is not asked",
        ));
    }
    for flag in ["follow", "previous", "timestamps"] {
        if query.flag(flag) {
            options.push((flag, "true".to_owned()));
        }
    }
    for (number, least) in [("limitBytes", 1), ("sinceSeconds", 1), ("tailLines", 0)] {
        let Some(value) = query.number(number)? else {
            continue;
        };
        if value < least {
            let than = if least == 0 { "or equal to " } else { "" };
            refuse(
                number,
                Reason::Invalid,
                format!("Invalid value: {value}: must be greater than {than}0"),
            );
        }
        options.push((number, value.to_string()));
    }
    let since = query.get("sinceTime");
    if !since.is_empty() {
        if crate::clock::parse(since).is_none() {
            return Err(Failure::bad_request(format!(
                "parsing time {since:?} as RFC 3339"
            )));
        }
        if query.has("sinceSeconds") {
            refuse(
                "",
                Reason::Forbidden,
                "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
            );
        }
        options.push(("sinceTime", since.to_owned()));
    }
    match query.get("stream") {
        "" | "All" => {}
        stream @ ("Stdout" | "Stderr") => {
            if query.has("tailLines") {
                refuse(
                    "tailLines",
                    Reason::Forbidden,
                    "Forbidden: `tailLines` and specific `stream` are mutually exclusive for now"
                        .into(),
                );
            }
            options.push(("stream", stream.to_owned()));
        }
        other => refuse(
            "stream",
            Reason::NotSupported,
            format!(
                "Unsupported value: {other:?}: supported values: \"All\", \"Stderr\", \"Stdout\""
            ),
        ),
    }
    if invalid.is_empty() {
        Ok(options)
    } else {
        Err(Failure::invalid_of("", "PodLogOptions", name, invalid))
    }
}

/// exec, attach, portforward.
pub async fn upgrade(api: &Api, through: &Through<'_>) -> Result<Response<Body>, Failure> {
    let (asked, query) = (through.asked, &through.asked.query);
    // A WebSocket begins with a GET; who may only read makes no terminal of it (AuthorizePodWebsocketUpgradeCreatePermission, 1.35).
    if through.parts.method == http::Method::GET {
        let attributes = router::attributes(asked, "create");
        if let Decision::Deny { reason } | Decision::NoOpinion { reason } =
            api.authorizer.authorize(through.user, &attributes)
        {
            return Err(Failure::forbidden_of(
                &asked.group,
                &asked.resource,
                &asked.name,
                authenticate::denied(through.user, &attributes, &reason),
            ));
        }
    }
    let pod = pod(api, through).await?;
    let mut onward = match asked.subresource.as_str() {
        "portforward" => {
            let mut onward = Asked::new("portForward", &[&asked.namespace, &asked.name]);
            for port in query.all("ports") {
                onward.with("port", port);
            }
            onward
        }
        what => {
            let container = container(&pod, query.get("container"))?;
            Asked::new(what, &[&asked.namespace, &asked.name, &container])
        }
    };
    if asked.subresource == "exec" {
        if !query.has("command") {
            return Err(Failure::bad_request(
                "you must specify at least one command",
            ));
        }
        for word in query.all("command") {
            onward.with("command", word);
        }
    }
    if asked.subresource != "portforward" {
        let mut any = false;
        for (name, kubelets) in [
            ("stdin", "input"),
            ("stdout", "output"),
            ("stderr", "error"),
        ] {
            if query.flag(name) {
                any = true;
                onward.with(kubelets, "1");
            }
        }
        if !any {
            return Err(Failure::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        if query.flag("tty") {
            onward.with("tty", "1");
        }
    }
    let client = pass::on_upgrade(through.parts)?;
    let node = object::text(&pod, "/spec/nodeName");
    if node.is_empty() {
        return Err(Failure::bad_request(format!(
            "pod {} does not have a host assigned",
            asked.name
        )));
    }
    let backend = kubelet::of_node(api, node).await?;
    let mut request = request(through.parts.method.as_str(), &onward.uri())?;
    *request.headers_mut() = headers::of_upgrade(&through.parts.headers);
    pass::upgrade(api, &backend, request, client)
        .await
        .map_err(|error| Failure::of_backend(format!("error dialing backend: {error}")))
}

fn request(method: &str, uri: &str) -> Result<Request<Empty<Bytes>>, Failure> {
    Request::builder()
        .method(method)
        .uri(uri)
        .body(Empty::new())
        .map_err(|error| Failure::bad_request(format!("{uri}: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_container_that_is_meant_is_found_or_asked_for() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}],
        }});
        for (pod, asked, answer) in [
            (&one, "", Ok("a")),
            (&one, "a", Ok("a")),
            (&two, "i", Ok("i")),
            (&one, "x", Err("container x is not valid for pod p")),
            (
                &two,
                "",
                Err(
                    "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]",
                ),
            ),
        ] {
            let is = container(pod, asked);
            match answer {
                Ok(name) => assert_eq!(is.expect(name), name),
                Err(message) => assert_eq!(is.expect_err(message).message, message),
            }
        }
    }

    #[test]
    fn options_of_a_log_are_checked() {
        let options = |query: &str| log_options(&Query::parse(query), "p");
        assert_eq!(
            options("follow=true&tailLines=3&container=a&timestamps=false").expect("options"),
            [("follow", "true".to_owned()), ("tailLines", "3".to_owned())]
        );
        for (query, code) in [
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422),
            ("sinceTime=yesterday", 400),
            ("tailLines=x", 400),
            ("stream=Stdboth", 422),
            ("insecureSkipTLSVerifyBackend=true", 400),
        ] {
            assert_eq!(options(query).expect_err(query).code, code, "{query}");
        }
    }

    #[test]
    fn what_a_client_says_stays_within_the_query() {
        let mut asked = Asked::new("exec", &["ns", "p", "c"]);
        asked.with("command", "a b&c=/../d#e");
        assert_eq!(asked.uri(), "/exec/ns/p/c?command=a+b%26c%3D%2F..%2Fd%23e");
    }
}
