//! Where pods come from.

mod directory;
mod url;

use std::sync::Arc;

use tokio::sync::watch;

use crate::{Desired, Known};

pub use directory::Directory;
pub use url::{UrlConfig, UrlHeader, UrlSource};

type Pods = Option<Vec<Arc<Desired>>>;

/// Static pods of a directory and of a URL, as one list, once both are known; told until one of them ends.
pub async fn both(
    mut one: watch::Receiver<Pods>,
    mut other: watch::Receiver<Pods>,
    told: watch::Sender<Pods>,
) {
    loop {
        let (first, second) = (
            one.borrow_and_update().clone(),
            other.borrow_and_update().clone(),
        );
        if let (Some(first), Some(second)) = (first, second) {
            told.send_replace(Some(first.into_iter().chain(second).collect()));
        }
        let changed = tokio::select! {
            changed = one.changed() => changed,
            changed = other.changed() => changed,
            () = told.closed() => return,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Static pods and those of an API server, as one list, once both are known; told until one of them ends.
pub async fn join(
    mut files: watch::Receiver<Option<Vec<Arc<Desired>>>>,
    mut api: watch::Receiver<Option<Known>>,
    told: watch::Sender<Option<Vec<Arc<Desired>>>>,
) {
    loop {
        let of_files = files.borrow_and_update().clone();
        let of_api = api.borrow_and_update().clone();
        if let (Some(of_files), Some(known)) = (of_files, of_api) {
            told.send_replace(Some(of_files.into_iter().chain(known.pods).collect()));
        }
        let changed = tokio::select! {
            changed = files.changed() => changed,
            changed = api.changed() => changed,
            () = told.closed() => return,
        };
        if changed.is_err() {
            return;
        }
    }
}
