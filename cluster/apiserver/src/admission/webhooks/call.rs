//! A webhook is asked, and its answer read.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::{Hook, Review, request};
use crate::{
    api::Api,
    failure::Failure,
    object,
    passage::{self, Backend},
};

/// Of an answer: a patch may bring as much as a request.
const LARGEST: usize = 3 << 20;
/// Seconds, where a webhook says nothing, and at most.
const PATIENCE: i64 = 10;
const PATIENCE_MOST: i64 = 30;
/// Calls at once, of all requests: each is a connection of its own. Who finds none free waits, within the webhook's timeout.
const CALLS: usize = 256;
/// Warnings of one answer that are passed on, and characters of one.
const WARNINGS: usize = 32;
const WARNING_CHARS: usize = 4096;

/// Places for calls.
#[derive(Debug)]
pub struct Calls(Semaphore);

impl Default for Calls {
    fn default() -> Self {
        Self(Semaphore::new(CALLS))
    }
}

/// Its answer; `None` where it can't be asked and need not be.
///
/// # Errors
/// What it refuses with; 500 where it can't be asked and must be.
pub(super) async fn ask(
    api: &Api,
    hook: &Hook,
    review: &Review<'_>,
    new: Option<&Value>,
) -> Result<Option<Value>, Failure> {
    let seconds = object::number(&hook.webhook, "/timeoutSeconds")
        .unwrap_or(PATIENCE)
        .clamp(1, PATIENCE_MOST);
    let uid = object::new_uid();
    let body = request(&uid, &hook.resource, review, new);
    let within = Duration::from_secs(seconds.unsigned_abs());
    let exchanged = async {
        let _place = api.webhooks.0.acquire().await;
        exchange(api, hook, &body, seconds).await
    };
    let answered = match tokio::time::timeout(within, exchanged).await {
        Ok(answered) => answered,
        Err(_) => Err("context deadline exceeded".to_owned()),
    };
    let answer = match answered.and_then(|answer| checked(answer, &uid)) {
        Ok(answer) => answer,
        Err(why) if hook.webhook["failurePolicy"] == "Ignore" => {
            tracing::warn!(
                webhook = hook.name(),
                why,
                "a webhook can't be asked, and need not be"
            );
            return Ok(None);
        }
        Err(why) => {
            return Err(Failure::internal(format!(
                "failed calling webhook {:?}: failed to call webhook: {why}",
                hook.name()
            )));
        }
    };
    let warnings = answer["warnings"].as_array().into_iter().flatten();
    for warning in warnings.filter_map(Value::as_str).take(WARNINGS) {
        let warning: String = warning.chars().take(WARNING_CHARS).collect();
        review.actor.warn(warning);
    }
    if answer["allowed"] == true {
        return Ok(Some(answer));
    }
    Err(denied(hook.name(), &answer))
}

fn denied(name: &str, answer: &Value) -> Failure {
    let message = match (
        object::text(answer, "/status/message"),
        object::text(answer, "/status/reason"),
    ) {
        ("", "") => format!("admission webhook {name:?} denied the request without explanation"),
        ("", why) | (why, _) => format!("admission webhook {name:?} denied the request: {why}"),
    };
    let code = object::number(answer, "/status/code")
        .and_then(|code| u16::try_from(code).ok())
        .filter(|code| (400..600).contains(code))
        .unwrap_or(403);
    Failure::denied(code, message)
}

async fn exchange(api: &Api, hook: &Hook, body: &Value, seconds: i64) -> Result<Value, String> {
    let client = &hook.webhook["clientConfig"];
    let bundle = BASE64_STANDARD
        .decode(object::text(client, "/caBundle"))
        .map_err(|error| format!("its caBundle: {error}"))?;
    let (backend, path) = if client["service"].is_null() {
        by_url(object::text(client, "/url"), &bundle).await?
    } else {
        by_service(api, &client["service"], &bundle).await?
    };
    let uri = format!("{path}?timeout={seconds}s");
    let url = format!("https://{}{uri}", backend.authority());
    let failed = |why: String| format!("Post {url:?}: {why}");
    let mut request = Request::post(&uri)
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| failed(error.to_string()))?;
    let headers = request.headers_mut();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json.clone());
    headers.insert(header::ACCEPT, json);
    let reached = passage::exchange(&backend, request)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let status = reached.response.status();
    if status != StatusCode::OK {
        return Err(failed(format!(
            "it answered with {status}, and no redirect is followed"
        )));
    }
    let bytes = reached.bytes(LARGEST).await.map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
}

async fn by_url(url: &str, bundle: &[u8]) -> Result<(Backend, String), String> {
    let parsed = url::Url::parse(url).map_err(|error| format!("{url:?}: {error}"))?;
    let host = parsed
        .host_str()
        .ok_or_else(|| format!("{url:?} has no host"))?;
    let host = host.trim_matches(['[', ']']);
    let port = parsed.port_or_known_default().unwrap_or(443);
    let trust = passage::named(host, bundle)?;
    let backend = Backend::of_admin(host, port, trust)
        .await
        .map_err(|failure| failure.message)?;
    Ok((backend, parsed.path().to_owned()))
}

/// A Service is reached by its endpoints: nothing need proxy for it here.
async fn by_service(
    api: &Api,
    service: &Value,
    bundle: &[u8],
) -> Result<(Backend, String), String> {
    let (namespace, name) = (
        object::text(service, "/namespace"),
        object::text(service, "/name"),
    );
    let port = service["port"].as_u64().unwrap_or(443);
    let trust = passage::named(&format!("{name}.{namespace}.svc"), bundle)?;
    let backend = passage::of_service_port(api, namespace, name, port, trust)
        .await
        .map_err(|failure| failure.message)?;
    let path = match object::text(service, "/path") {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    Ok((backend, path))
}

/// Its `response`, where it is one to this request.
fn checked(mut answer: Value, uid: &str) -> Result<Value, String> {
    if answer["kind"] != "AdmissionReview" || answer["apiVersion"] != "admission.k8s.io/v1" {
        return Err(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview".to_owned(),
        );
    }
    let response = answer["response"].take();
    if response["uid"] != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {}",
            response["uid"]
        ));
    }
    if !response["allowed"].is_boolean() {
        return Err("expected response.allowed to be a boolean".to_owned());
    }
    match (object::text(&response, "/patch"), &response["patchType"]) {
        ("", Value::Null) => {}
        ("", _) => return Err("webhook returned response.patchType but not response.patch".into()),
        (_, Value::Null) => {
            return Err("webhook returned response.patch but not response.patchType".into());
        }
        (patch, kind) if kind == "JSONPatch" => {
            BASE64_STANDARD
                .decode(patch)
                .map_err(|error| format!("response.patch is no base64: {error}"))?;
        }
        (_, other) => {
            return Err(format!(
                "webhook returned invalid response.patchType of {other}"
            ));
        }
    }
    Ok(response)
}

/// The JSON patch of an answer that has been checked.
pub(super) fn patch(answer: &Value) -> Option<Vec<u8>> {
    let text = object::text(answer, "/patch");
    let patch = BASE64_STANDARD.decode(text).ok()?;
    (!patch.is_empty()).then_some(patch)
}

/// What it answers can't be taken: whatever its failurePolicy, this is no failure to reach it.
pub(super) fn broken(hook: &Hook, why: &str) -> Failure {
    Failure::internal(format!("admission webhook {:?}: {why}", hook.name()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_one_to_the_request_or_none() {
        let answer = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let with = |patch: Value, kind: Value| {
            answer(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": kind}))
        };
        for (answer, good) in [
            (answer(json!({"uid": "u", "allowed": true})), true),
            (answer(json!({"uid": "other", "allowed": true})), false),
            (answer(json!({"uid": "u"})), false),
            (answer(json!({"uid": "u", "allowed": "true"})), false),
            (json!({"response": {"uid": "u", "allowed": true}}), false),
            (json!([]), false),
            (with(json!("W10="), json!("JSONPatch")), true),
            (with(json!("W10="), json!("MergePatch")), false),
            (with(json!("W10="), Value::Null), false),
            (with(json!("!"), json!("JSONPatch")), false),
            (with(Value::Null, json!("JSONPatch")), false),
        ] {
            assert_eq!(checked(answer.clone(), "u").is_ok(), good, "{answer}");
        }
        let whole = json!({"patch": "W10=", "patchType": "JSONPatch"});
        assert_eq!(patch(&whole), Some(b"[]".to_vec()));
        assert_eq!(patch(&json!({})), None);
    }

    #[test]
    fn a_refusal_has_the_code_that_it_says_where_that_is_one() {
        for (status, code, message) in [
            (json!({}), 403, "without explanation"),
            (json!({"message": "no"}), 403, "denied the request: no"),
            (
                json!({"reason": "why", "code": 422}),
                422,
                "denied the request: why",
            ),
            (json!({"code": 200}), 403, "without explanation"),
            (json!({"code": 70000}), 403, "without explanation"),
        ] {
            let failure = denied("h", &json!({"status": status}));
            assert_eq!(failure.code, code, "{status}");
            assert!(failure.message.contains(message), "{failure}");
        }
    }
}
