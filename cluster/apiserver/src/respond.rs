//! What is answered, in the form that the client accepts.

use std::{
    io::{self, Write as _},
    sync::LazyLock,
};

use bytes::{Bytes, BytesMut};
use flate2::{Compression, write::GzEncoder};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

use crate::{
    catalog::Resource,
    clock,
    failure::Failure,
    parts::Parts,
    table::{self, IncludeObject},
};

/// One that is passed on may break off, and then ours does.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers below it are not worth compressing (upstream's own bound).
const COMPRESS_FROM: usize = 128 << 10;
/// Larger ones are not held together to compress them.
const COMPRESS_TO: usize = 16 << 20;
/// Of one frame of a long list.
const FRAME: usize = 64 << 10;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub fn streamed(bytes: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(bytes.map(|bytes| Ok(http_body::Frame::data(bytes)))).boxed_unsync()
}

/// How an object or a list is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    Json,
    Yaml,
    /// meta.k8s.io's Table in this version.
    Table(&'static str),
    /// meta.k8s.io's PartialObjectMetadata (or its list) in this version.
    Metadata(&'static str),
}

impl Form {
    /// By `Accept`; the first that we have.
    ///
    /// # Errors
    /// 406 where we have none of them.
    pub fn accepted(headers: &HeaderMap) -> Result<Self, Failure> {
        let mut none = true;
        for accept in headers.get_all(header::ACCEPT) {
            let accept = accept.to_str().map_err(|_| Failure::not_acceptable())?;
            for range in accept.split(',') {
                let mut words = range.split(';').map(str::trim);
                let media_type = words.next().unwrap_or_default();
                if media_type.is_empty() {
                    continue;
                }
                none = false;
                let parameter = |name: &str| {
                    words
                        .clone()
                        .filter_map(|word| word.split_once('='))
                        .find(|(key, _)| *key == name)
                        .map_or("", |(_, value)| value)
                };
                let version = match parameter("v") {
                    "v1" => "v1",
                    "v1beta1" => "v1beta1",
                    _ => "",
                };
                let ours = parameter("g") == "meta.k8s.io" && !version.is_empty();
                match (media_type, parameter("as")) {
                    ("application/json" | "application/*" | "*/*", "") => return Ok(Self::Json),
                    ("application/yaml", "") => return Ok(Self::Yaml),
                    ("application/json", "Table") if ours => return Ok(Self::Table(version)),
                    ("application/json", "PartialObjectMetadata" | "PartialObjectMetadataList")
                        if ours =>
                    {
                        return Ok(Self::Metadata(version));
                    }
                    _ => {}
                }
            }
        }
        if none {
            Ok(Self::Json)
        } else {
            Err(Failure::not_acceptable())
        }
    }

    /// Tells forms apart: a key of what is kept encoded.
    pub fn name(&self, include: IncludeObject) -> String {
        match self {
            Self::Json => String::new(),
            Self::Yaml => "yaml".into(),
            Self::Table(version) => format!("table {version} {include:?}"),
            Self::Metadata(version) => format!("metadata {version}"),
        }
    }

    fn media_type(&self) -> &'static str {
        match self {
            Self::Yaml => "application/yaml",
            _ => "application/json",
        }
    }
}

/// meta/v1 ListMeta.
#[derive(Debug, Clone, Default)]
pub struct ListMeta {
    pub resource_version: u64,
    pub token: String,
    pub remaining: Option<u64>,
}

impl ListMeta {
    pub fn to_value(&self) -> Value {
        let mut value = json!({"resourceVersion": self.resource_version.to_string()});
        if !self.token.is_empty() {
            value["continue"] = self.token.as_str().into();
        }
        if let Some(remaining) = self.remaining {
            value["remainingItemCount"] = remaining.into();
        }
        value
    }
}

/// What a request wants of its answer.
#[derive(Debug, Clone)]
pub struct Wants {
    pub form: Form,
    pub include: IncludeObject,
    pub gzip: bool,
}

impl Wants {
    pub fn of(headers: &HeaderMap, include: &str) -> Result<Self, Failure> {
        Ok(Self {
            form: Form::accepted(headers)?,
            include: IncludeObject::parse(include)?,
            gzip: headers
                .get(header::ACCEPT_ENCODING)
                .and_then(|value| value.to_str().ok())
                .is_some_and(|value| {
                    value
                        .split(',')
                        .any(|word| word.trim().split(';').next() == Some("gzip"))
                }),
        })
    }

    /// An object of `resource`'s kind.
    pub fn object(&self, code: u16, resource: &Resource, object: &Value) -> Response<Body> {
        let value = match &self.form {
            Form::Json | Form::Yaml => return self.value(code, object),
            Form::Table(version) => table::of_objects(
                resource,
                std::slice::from_ref(object),
                self.include,
                version,
                json!({"resourceVersion": crate::object::resource_version(object)}),
                clock::now(),
            ),
            Form::Metadata(version) => table::partial(object, version),
        };
        self.value(code, &value)
    }

    /// As [`Wants::object`], of one that is JSON already.
    pub fn object_bytes(&self, code: u16, resource: &Resource, bytes: Bytes) -> Response<Body> {
        if self.form == Form::Json {
            return self.bytes(code, bytes);
        }
        let object = serde_json::from_slice(&bytes).unwrap_or_default();
        self.object(code, resource, &object)
    }

    /// `items` are JSON, each an object of `resource`'s kind.
    pub fn list(&self, resource: &Resource, meta: &ListMeta, items: Vec<Bytes>) -> Response<Body> {
        let meta = meta.to_value();
        let parsed = || -> Vec<Value> {
            items
                .iter()
                .map(|item| serde_json::from_slice(item).unwrap_or_default())
                .collect()
        };
        match &self.form {
            Form::Table(version) => {
                let table = table::of_objects(
                    resource,
                    &parsed(),
                    self.include,
                    version,
                    meta,
                    clock::now(),
                );
                self.value(200, &table)
            }
            Form::Metadata(version) => {
                let items: Vec<Value> = items
                    .iter()
                    .map(|item| table::partial(&metadata_of(item), version))
                    .collect();
                let list = table::object_of([
                    ("kind", "PartialObjectMetadataList".into()),
                    ("apiVersion", format!("meta.k8s.io/{version}").into()),
                    ("metadata", meta),
                    ("items", items.into()),
                ]);
                self.value(200, &list)
            }
            Form::Yaml => self.value(
                200,
                &json!({
                    "kind": resource.list_kind,
                    "apiVersion": resource.api_version(),
                    "metadata": meta,
                    "items": parsed(),
                }),
            ),
            Form::Json => {
                let head = format!(
                    "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{meta},\"items\":[",
                    json!(resource.list_kind),
                    json!(resource.api_version()),
                );
                let length: usize = items.iter().map(|item| item.len() + 1).sum();
                if length < COMPRESS_TO {
                    let mut bytes = Vec::with_capacity(head.len() + length + 3);
                    bytes.extend_from_slice(head.as_bytes());
                    for (at, item) in items.iter().enumerate() {
                        if at > 0 {
                            bytes.push(b',');
                        }
                        bytes.extend_from_slice(item);
                    }
                    bytes.extend_from_slice(b"]}\n");
                    return self.bytes(200, bytes.into());
                }
                let mut response = Response::new(streamed(frames(head.into(), items)));
                content_type(&mut response, "application/json");
                response
            }
        }
    }

    /// Another object than the resource's own: a Status, a Scale, a review.
    pub fn value(&self, code: u16, value: &Value) -> Response<Body> {
        if self.form == Form::Yaml {
            let text = serde_saphyr::to_string(value).unwrap_or_default();
            let mut response = Response::new(full(text));
            content_type(&mut response, self.form.media_type());
            *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
            return response;
        }
        let mut bytes = serde_json::to_vec(value).unwrap_or_default();
        bytes.push(b'\n');
        self.bytes(code, bytes.into())
    }

    /// JSON.
    pub fn bytes(&self, code: u16, bytes: Bytes) -> Response<Body> {
        let compress = self.gzip && (COMPRESS_FROM..COMPRESS_TO).contains(&bytes.len());
        let compressed = compress.then(|| gzip(&bytes)).flatten();
        let gzipped = compressed.is_some();
        let mut response = Response::new(full(compressed.unwrap_or(bytes)));
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
        content_type(&mut response, "application/json");
        if gzipped {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        }
        response
    }
}

/// An object with its metadata alone.
fn metadata_of(bytes: &[u8]) -> Value {
    static METADATA: LazyLock<Parts> = LazyLock::new(|| Parts::of(["metadata"]));
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    METADATA.read(text).unwrap_or_default()
}

fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

fn frames(head: Bytes, items: Vec<Bytes>) -> impl Stream<Item = Bytes> + Send + 'static {
    let mut head = Some(if items.is_empty() {
        Bytes::from([&head[..], b"]}\n".as_slice()].concat())
    } else {
        head
    });
    let mut items = items.into_iter().enumerate();
    let mut done = items.len() == 0;
    stream::poll_fn(move |_| {
        if let Some(head) = head.take() {
            return std::task::Poll::Ready(Some(head));
        }
        if done {
            return std::task::Poll::Ready(None);
        }
        let mut frame = BytesMut::with_capacity(FRAME + (8 << 10));
        while frame.len() < FRAME {
            match items.next() {
                Some((at, item)) => {
                    if at > 0 {
                        frame.extend_from_slice(b",");
                    }
                    frame.extend_from_slice(&item);
                }
                None => {
                    frame.extend_from_slice(b"]}\n");
                    done = true;
                    break;
                }
            }
        }
        std::task::Poll::Ready(Some(frame.freeze()))
    })
}

pub fn content_type(response: &mut Response<Body>, media_type: &'static str) {
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
}

pub fn text(code: u16, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(full(text.into()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    content_type(&mut response, "text/plain; charset=utf-8");
    response
}

pub fn failure(failure: &Failure) -> Response<Body> {
    let mut bytes = serde_json::to_vec(&failure.to_value()).unwrap_or_default();
    bytes.push(b'\n');
    let mut response = Response::new(full(bytes));
    *response.status_mut() =
        StatusCode::from_u16(failure.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    content_type(&mut response, "application/json");
    if let Some(seconds) = failure.retry_after_seconds() {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// `Warning: 299 - "TEXT"`, as RFC 7234 has it: kubectl prints it.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    /// More are cut, as upstream does.
    const MOST: usize = 4096;
    let mut left = MOST;
    for warning in warnings {
        let quoted: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c => vec![c],
            })
            .collect();
        let Some(rest) = left.checked_sub(quoted.len()) else {
            break;
        };
        left = rest;
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_form_that_we_have_is_answered() {
        for (accept, form) in [
            ("", Some(Form::Json)),
            ("*/*", Some(Form::Json)),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Some(Form::Table("v1")),
            ),
            (
                "application/json;as=Table;v=v2;g=meta.k8s.io,application/json",
                Some(Form::Json),
            ),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some(Form::Json),
            ),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
            ("application/yaml", Some(Form::Yaml)),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                Some(Form::Metadata("v1")),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                header::ACCEPT,
                HeaderValue::from_str(accept).expect("a header"),
            );
            assert_eq!(Form::accepted(&headers).ok(), form, "{accept}");
        }
    }

    #[tokio::test]
    async fn a_list_that_is_streamed_is_what_a_whole_one_is() {
        for count in [0_usize, 1, 2, 40_000] {
            let items = vec![Bytes::from_static(b"{\"a\":1}"); count];
            let mut bytes = Vec::new();
            let mut frames = std::pin::pin!(frames(Bytes::from_static(b"{\"items\":["), items));
            while let Some(frame) = frames.next().await {
                bytes.extend_from_slice(&frame);
            }
            let value: Value = serde_json::from_slice(&bytes).expect("JSON");
            assert_eq!(value["items"].as_array().map(Vec::len), Some(count));
        }
    }
}
