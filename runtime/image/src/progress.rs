//! How far a pull is, for whoever watches.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::LayerProgress;

/// Of all pulls of this process, for [`crate::downloaded_bytes`].
static DOWNLOADED: AtomicU64 = AtomicU64::new(0);

pub(crate) fn downloaded(bytes: usize) {
    DOWNLOADED.fetch_add(bytes as u64, Ordering::Relaxed);
}

pub(crate) fn downloaded_bytes() -> u64 {
    DOWNLOADED.load(Ordering::Relaxed)
}

/// Watchers are told at most this often.
const INTERVAL: Duration = Duration::from_millis(100);
/// Watchers of one pull; more are not told.
const MAX_WATCHERS: usize = 64;

#[derive(Debug, Default)]
pub(crate) struct Progress {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: Vec<LayerProgress>,
    watchers: Vec<watch::Sender<Vec<LayerProgress>>>,
    told: Option<Instant>,
}

impl Progress {
    pub(crate) fn watch(&self, watcher: watch::Sender<Vec<LayerProgress>>) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        watcher.send_replace(state.layers.clone());
        if state.watchers.len() < MAX_WATCHERS {
            state.watchers.push(watcher);
        }
    }

    /// Begins with all layers of an image.
    pub(crate) fn layers(
        self: &Arc<Self>,
        layers: impl Iterator<Item = (String, u64)>,
    ) -> Vec<LayerReport> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.layers = layers
            .map(|(digest, total_bytes)| LayerProgress {
                digest,
                stage: "waiting",
                done_bytes: 0,
                total_bytes,
                stall: String::new(),
            })
            .collect();
        (0..state.layers.len())
            .map(|at| LayerReport {
                progress: self.clone(),
                at,
            })
            .collect()
    }

    fn change(&self, at: usize, is_urgent: bool, change: impl FnOnce(&mut LayerProgress)) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        change(&mut state.layers[at]);
        if state.watchers.is_empty()
            || (!is_urgent && state.told.is_some_and(|told| told.elapsed() < INTERVAL))
        {
            return;
        }
        state.told = Some(Instant::now());
        let layers = state.layers.clone();
        state.watchers.retain(|watcher| !watcher.is_closed());
        for watcher in &state.watchers {
            watcher.send_replace(layers.clone());
        }
    }
}

/// One layer's line of it.
#[derive(Debug, Clone)]
pub(crate) struct LayerReport {
    progress: Arc<Progress>,
    at: usize,
}

impl LayerReport {
    pub(crate) fn stage(&self, stage: &'static str) {
        self.progress.change(self.at, true, |layer| {
            layer.stage = stage;
            layer.stall.clear();
            if matches!(stage, "done" | "present") {
                layer.done_bytes = layer.total_bytes;
            }
        });
    }

    pub(crate) fn came(&self, done_bytes: u64) {
        self.progress.change(self.at, false, |layer| {
            layer.done_bytes = done_bytes;
            layer.stall.clear();
        });
    }

    pub(crate) fn stalled(&self, why: &str) {
        self.progress
            .change(self.at, true, |layer| layer.stall = why.to_owned());
    }
}
