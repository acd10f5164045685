//! ConfigMaps, Secrets, ServiceAccounts, Events.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::meta::{changed, namespaced};
use crate::{
    field::{Errors, Path, same},
    kind::Invalid,
    name::{config_key, dns_subdomain},
    read::{flag, map, some, text},
};

/// Of all values together (rows CM-04, SC-04).
const DATA_BYTES: usize = 1 << 20;

fn decoded_len(value: &Value, path: &Path, errors: &mut Errors) -> usize {
    let Some(text) = value.as_str() else {
        if !value.is_null() {
            errors.wrong_type(path, value, "a string of base64");
        }
        return 0;
    };
    match STANDARD.decode(text) {
        Ok(bytes) => bytes.len(),
        Err(_) => {
            errors.wrong_type(path, value, "base64");
            0
        }
    }
}

pub(crate) fn config_map(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let mut bytes = 0;
    let (data, binary) = (Path::root("data"), Path::root("binaryData"));
    for (key, value) in map(object, "/data").into_iter().flatten() {
        let path = data.key(key);
        errors.text_is(&path, key, config_key(key));
        if map(object, "/binaryData").is_some_and(|binary| binary.contains_key(key)) {
            errors.invalid_text(&path, key, "duplicate of key present in binaryData");
        }
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Null => {}
            other => errors.wrong_type(&path, other, "a string"),
        }
    }
    for (key, value) in map(object, "/binaryData").into_iter().flatten() {
        let path = binary.key(key);
        errors.text_is(&path, key, config_key(key));
        bytes += decoded_len(value, &path, &mut errors);
    }
    if bytes > DATA_BYTES {
        // upstream's path of no name
        errors.too_long(&Path::root("[]"), DATA_BYTES);
    }
    errors.into_vec()
}

fn immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    if !flag(old, "/immutable") {
        return;
    }
    if !flag(new, "/immutable") {
        errors.forbidden(
            &Path::root("immutable"),
            "field is immutable when `immutable` is set",
        );
    }
    let null = &Value::Null;
    for name in fields {
        if !same(
            new.get(*name).unwrap_or(null),
            old.get(*name).unwrap_or(null),
        ) {
            errors.forbidden(
                &Path::root(name),
                "field is immutable when `immutable` is set",
            );
        }
    }
}

pub(crate) fn config_map_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    immutable(new, old, &["data", "binaryData"], &mut errors);
    errors.into_vec()
}

pub(crate) fn secret(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let path = Path::root("data");
    let mut bytes = 0;
    for (key, value) in map(object, "/data").into_iter().flatten() {
        let path = path.key(key);
        errors.text_is(&path, key, config_key(key));
        bytes += decoded_len(value, &path, &mut errors);
    }
    if bytes > DATA_BYTES {
        errors.too_long(&path, DATA_BYTES);
    }
    let has = |key: &str| map(object, "/data").is_some_and(|data| data.contains_key(key));
    let kind = text(object, "/type");
    let mut require = |keys: &[&str]| {
        for key in keys {
            if !has(key) {
                errors.required(&path.key(key), "");
            }
        }
    };
    match kind {
        "kubernetes.io/service-account-token" => {
            let account = object
                .pointer("/metadata/annotations/kubernetes.io~1service-account.name")
                .and_then(Value::as_str);
            if account.is_none_or(str::is_empty) {
                errors.required(
                    &Path::root("metadata")
                        .field("annotations")
                        .key("kubernetes.io/service-account.name"),
                    "",
                );
            }
        }
        "kubernetes.io/dockercfg" => {
            require(&[".dockercfg"]);
            docker_config(object, ".dockercfg", &mut errors);
        }
        "kubernetes.io/dockerconfigjson" => {
            require(&[".dockerconfigjson"]);
            docker_config(object, ".dockerconfigjson", &mut errors);
        }
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => require(&["ssh-privatekey"]),
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"]),
        _ => {}
    }
    errors.into_vec()
}

/// What is in it is a secret: the message has none of it.
fn docker_config(object: &Value, key: &str, errors: &mut Errors) {
    let Some(value) = map(object, "/data")
        .and_then(|data| data.get(key))
        .and_then(Value::as_str)
    else {
        return;
    };
    let json = STANDARD
        .decode(value)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).ok());
    if json.is_none() {
        errors.invalid_text(
            &Path::root("data").key(key),
            "<secret contents redacted>",
            "is no JSON object",
        );
    }
}

pub(crate) fn secret_update(new: &Value, old: &Value) -> Vec<Invalid> {
    let mut errors = changed(new, old);
    errors.immutable(&Path::root("type"), new.get("type"), old.get("type"));
    immutable(new, old, &["data"], &mut errors);
    errors.into_vec()
}

pub(crate) fn event(object: &Value) -> Vec<Invalid> {
    let mut errors = namespaced(object, dns_subdomain);
    let involved = text(object, "/involvedObject/namespace");
    let own = text(object, "/metadata/namespace");
    // Events of what has no namespace lie in `default`, or in the system's.
    let fits = match involved {
        "" => ["", "default", "kube-system"].contains(&own),
        namespace => namespace == own,
    };
    if !fits {
        errors.invalid_text(
            &Path::root("involvedObject").field("namespace"),
            involved,
            "does not match event.namespace",
        );
    }
    // What comes by the newer API says who reports.
    if some(object, "/eventTime").is_some() {
        let limits = [
            ("reportingComponent", 253),
            ("reportingInstance", 128),
            ("action", 128),
            ("reason", 128),
        ];
        for (name, most) in limits {
            match object.get(name).and_then(Value::as_str).unwrap_or_default() {
                "" => errors.required(&Path::root(name), ""),
                text if text.len() > most => errors.too_long(&Path::root(name), most),
                _ => {}
            }
        }
        if text(object, "/message").len() > 1024 {
            errors.too_long(&Path::root("message"), 1024);
        }
    }
    errors.into_vec()
}

/// Of events.k8s.io/v1: the same, by other names.
pub(crate) fn new_event(object: &Value) -> Vec<Invalid> {
    let mut core = object.clone();
    crate::prepare::event_to_core(&mut core);
    event(&core)
}
