//! Who did what, a line a request (audit.k8s.io/v1, level Metadata): never a body, so never a secret.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
};

use http::request::Parts;
use serde_json::json;

use crate::{authenticate::Peer, clock, object, router::Trace};

/// Lines that wait for the disk; more are dropped, and counted in the log.
const WAITING: usize = 4096;
/// Of lines that wait together: they are written together.
const TOGETHER: usize = 64 << 10;
/// Of one file; the one before is kept as `.1`.
const LARGEST: u64 = 64 << 20;
/// Of a request's URI or agent.
const LONGEST: usize = 2048;

#[derive(Debug)]
pub struct Audit {
    lines: SyncSender<Vec<u8>>,
}

impl Audit {
    /// Appends to `path` (0600).
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_up_to(path, LARGEST)
    }

    fn open_up_to(path: &Path, largest: u64) -> io::Result<Self> {
        let mut file = append(path)?;
        let (lines, waiting) = sync_channel::<Vec<u8>>(WAITING);
        let path = path.to_owned();
        thread::Builder::new().name("audit".into()).spawn(move || {
            let mut written = file.metadata().map_or(0, |meta| meta.len());
            while let Ok(mut lines) = waiting.recv() {
                if written > largest {
                    let _ = fs::rename(&path, rotated(&path));
                    if let Ok(next) = append(&path) {
                        file = next;
                        written = 0;
                    }
                }
                while lines.len() < TOGETHER
                    && written + lines.len() as u64 <= largest
                    && let Ok(next) = waiting.try_recv()
                {
                    lines.extend_from_slice(&next);
                }
                written += lines.len() as u64;
                if let Err(error) = file.write_all(&lines) {
                    tracing::error!(%error, "the audit log can't be written");
                }
            }
        })?;
        Ok(Self { lines })
    }

    pub fn record(&self, parts: &Parts, peer: &Peer, trace: &Trace, code: u16, received: &str) {
        let cut = |text: &str| text.chars().take(LONGEST).collect::<String>();
        let header = |name| {
            parts
                .headers
                .get(name)
                .and_then(|value: &http::HeaderValue| value.to_str().ok())
                .unwrap_or_default()
        };
        let asked = trace.asked.as_ref();
        let mut event = json!({
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": object::new_uid(),
            "stage": "ResponseComplete",
            "requestURI": cut(parts.uri.path_and_query().map_or("", |uri| uri.as_str())),
            "verb": asked.map_or("", |asked| asked.verb.as_str()),
            "user": {"username": trace.user.username, "groups": trace.user.groups},
            "userAgent": cut(header(http::header::USER_AGENT)),
            "responseStatus": {"metadata": {}, "code": code},
            "requestReceivedTimestamp": received,
            "stageTimestamp": clock::micro_time(),
        });
        if let Some(address) = peer.address {
            event["sourceIPs"] = json!([address.ip().to_string()]);
        }
        if let Some(user) = &trace.impersonated {
            event["impersonatedUser"] = json!({"username": user.username, "groups": user.groups});
        }
        if let Some(asked) = asked.filter(|asked| !asked.resource.is_empty()) {
            event["objectRef"] = json!({
                "resource": asked.resource,
                "namespace": asked.namespace,
                "name": asked.name,
                "apiGroup": asked.group,
                "apiVersion": asked.version,
                "subresource": asked.subresource,
            });
        }
        if !trace.annotations.is_empty() {
            event["annotations"] = json!(trace.annotations);
        }
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            tracing::warn!("an audit event is dropped: the disk is too slow");
        }
    }
}

fn append(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        time::{Duration, Instant},
    };

    use http::Request;

    use super::*;

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is an event"))
            .collect()
    }

    #[test]
    fn what_was_done_is_told_without_secrets_and_within_two_files() {
        /// Some three events.
        const LARGEST: u64 = 1500;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let audit = Audit::open_up_to(&path, LARGEST).expect("it opens");
        let (parts, ()) = Request::get("/api/v1/namespaces/a/secrets/s?limit=1")
            .header("authorization", "Bearer c2VjcmV0")
            .header("cookie", "c2VjcmV0")
            .header("user-agent", "x".repeat(1_000_000))
            .body(())
            .expect("a request")
            .into_parts();
        let trace = Trace::default();
        let record = |count: usize| {
            for _ in 0..count {
                audit.record(&parts, &Peer::default(), &trace, 200, "now");
            }
        };
        record(1);
        let until = Instant::now() + Duration::from_secs(10);
        while lines(&path).is_empty() {
            assert!(Instant::now() < until, "nothing is written");
            thread::sleep(Duration::from_millis(5));
        }
        let first = lines(&path).remove(0);
        assert_eq!(first["level"], "Metadata");
        assert_eq!(
            first["requestURI"],
            "/api/v1/namespaces/a/secrets/s?limit=1"
        );
        assert_eq!(first["userAgent"].as_str().map(str::len), Some(LONGEST));
        let mode = fs::metadata(&path)
            .expect("it is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        record(20);
        drop(audit);
        while !rotated(&path).exists() {
            assert!(Instant::now() < until, "it is never rotated");
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(100));
        for file in [path.clone(), rotated(&path)] {
            let text = fs::read_to_string(&file).unwrap_or_default();
            assert!(!text.contains("c2VjcmV0"), "{text}");
            // one event more than allowed, at most
            assert!(text.len() < 8000, "{}", text.len());
        }
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 2);
    }
}
