//! `/version`, `/healthz`, `/livez` and `/readyz`.

use std::time::Duration;

use http::Response;
use serde_json::{Value, json};

use crate::{
    api::Api,
    request::Query,
    respond::{Body, text},
};

/// What clients may rely on: the API of this version of Kubernetes.
pub const GIT_VERSION: &str = "v1.36.2+berth";

/// The store has this long to answer.
const STORE_WITHIN: Duration = Duration::from_secs(2);

pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": "36",
        "emulationMajor": "1",
        "emulationMinor": "36",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("BERTH_COMMIT").unwrap_or(""),
        "gitTreeState": "clean",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}

/// `path` is `/readyz`, `/livez`, `/healthz`, or one check of theirs; `None`: there is no such one.
pub async fn check(api: &Api, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.split('/').skip(1);
    let (which, one) = (parts.next()?, parts.next());
    if parts.next().is_some() || !matches!(which, "readyz" | "livez" | "healthz") {
        return None;
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let ready = which == "readyz";
    let mut checks: Vec<(&str, Result<(), String>)> = vec![("ping", Ok(()))];
    let store = match tokio::time::timeout(STORE_WITHIN, api.storage.store.revision()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the store does not answer".to_owned()),
    };
    checks.push(("etcd", store));
    let loaded = api.cache.is_loaded();
    if ready || which == "healthz" {
        checks.push((
            "informer-sync",
            loaded
                .then_some(())
                .ok_or_else(|| "the objects are not loaded".to_owned()),
        ));
        let made = api.cache.shard("namespaces").get("default").is_some();
        checks.push((
            "poststarthook/start-system-namespaces-controller",
            made.then_some(())
                .ok_or_else(|| "the first objects are not made".to_owned()),
        ));
    }
    if ready {
        let ends = api.ends.is_cancelled();
        checks.push((
            "shutdown",
            (!ends)
                .then_some(())
                .ok_or_else(|| "process is shutting down".to_owned()),
        ));
    }
    if let Some(one) = one {
        let (_, result) = checks.into_iter().find(|(name, _)| *name == one)?;
        return Some(match result {
            Ok(()) => text(200, "ok"),
            Err(why) => text(500, format!("internal server error: {why}\n")),
        });
    }
    checks.retain(|(name, _)| !excluded.contains(name));
    let failed = checks.iter().any(|(_, result)| result.is_err());
    if !failed && !query.has("verbose") {
        return Some(text(200, "ok"));
    }
    let mut lines = String::new();
    for (name, result) in &checks {
        match result {
            Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
            // upstream keeps why to its log
            Err(_) => lines.push_str(&format!("[-]{name} failed: reason withheld\n")),
        }
    }
    Some(if failed {
        lines.push_str(&format!("{which} check failed\n"));
        text(500, lines)
    } else {
        lines.push_str(&format!("{which} check passed\n"));
        text(200, lines)
    })
}
