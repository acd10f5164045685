//! What probes have found so far, by the container's id. A container that is not in it has no probes that count: it has started and is ready
//! as soon as it runs.

use std::collections::HashMap;

use super::Kind;

#[derive(Debug, Clone, Default)]
pub(crate) struct Health(HashMap<String, Entry>);

#[derive(Debug, Clone)]
struct Entry {
    started: bool,
    ready: bool,
    condemned: Option<(String, Option<i64>)>,
}

impl Health {
    pub fn has_started(&self, id: &str) -> bool {
        self.0.get(id).is_none_or(|entry| entry.started)
    }

    pub fn is_ready(&self, id: &str) -> bool {
        self.0
            .get(id)
            .is_none_or(|entry| entry.started && entry.ready)
    }

    /// Why the container is to be killed, and the grace period of the probe that says so.
    pub fn to_be_killed(&self, id: &str) -> Option<(String, Option<i64>)> {
        self.0.get(id)?.condemned.clone()
    }

    pub fn condemn(&mut self, id: &str, why: &str, grace_seconds: Option<i64>) {
        self.entry(id).condemned = Some((why.to_owned(), grace_seconds));
    }

    /// `started` and `ready` are what is taken to be so until a probe has answered.
    pub fn begin(&mut self, id: &str, started: bool, ready: bool) {
        let entry = self.entry(id);
        (entry.started, entry.ready) = (started, ready);
    }

    pub fn knows(&self, id: &str) -> bool {
        self.0.contains_key(id)
    }

    pub fn found(&mut self, id: &str, kind: Kind, good: bool) {
        let entry = self.entry(id);
        match kind {
            Kind::Startup => entry.started |= good,
            Kind::Readiness => entry.ready = good,
            Kind::Liveness => {}
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|id, _| keep(id));
    }

    fn entry(&mut self, id: &str) -> &mut Entry {
        self.0.entry(id.to_owned()).or_insert(Entry {
            started: true,
            ready: true,
            condemned: None,
        })
    }
}
