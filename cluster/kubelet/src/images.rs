//! Images that nobody uses go when their disk fills up, the one that was not used for longest first.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::cri;

use crate::{Level, machine::Fs, node::Node};

/// Upstream's defaults: above the one they go, until the other is reached.
const HIGH_PERCENT: u64 = 85;
const LOW_PERCENT: u64 = 80;
/// One that has just come is let be: its container may be about to begin.
const YOUNGEST: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_secs(300);

/// When each image was first seen and last used, by its id.
pub(crate) type Uses = BTreeMap<String, Use>;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    came: Instant,
    last: Instant,
}

/// Looks after the images until it is dropped.
pub(crate) async fn keep(node: Node) {
    let mut has_failed = false;
    loop {
        let looked = look(&node, Wanted::Room).await;
        match &looked {
            Err(error) if has_failed => {
                node.tell_of_node(Level::Warning, "ImageGCFailed", error.to_string());
            }
            // a runtime may be about to come
            Err(error) => tracing::warn!(%error, "images are not looked after"),
            Ok(()) => {}
        }
        has_failed = looked.is_err();
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Removes all that nobody uses, and that have not just come: the node runs short of disk.
pub(crate) async fn remove_unused(node: &Node) -> Result<(), crate::Error> {
    look(node, Wanted::All).await
}

/// How many are to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// As many as there has to be room.
    Room,
    All,
}

async fn look(node: &Node, wanted: Wanted) -> Result<(), crate::Error> {
    let mut uses = node.images.lock().await;
    let uses = &mut *uses;
    let images = node.runtime.all_images().await?;
    let used: BTreeSet<String> = node
        .runtime
        .containers(None)
        .await?
        .into_iter()
        .flat_map(|container| {
            let name = container.image.map(|image| image.image);
            [container.image_ref, container.image_id]
                .into_iter()
                .chain(name)
        })
        .collect();
    let now = Instant::now();
    note(uses, &images, &used, now);
    let Some(dir) = node.runtime.image_fs().await? else {
        return Ok(());
    };
    let fs = Fs::of(Path::new(&dir));
    if fs.is_none_or(|fs| fs.bytes == 0) {
        let message = "invalid capacity 0 on image filesystem";
        node.tell_of_node(Level::Warning, "InvalidDiskCapacity", message);
    }
    let first = match wanted {
        Wanted::Room => fs.map_or(0, |fs| excess(&fs)),
        Wanted::All => u64::MAX,
    };
    let mut excess = first;
    for image in unused(uses, &images, &used, now) {
        if excess == 0 {
            break;
        }
        tracing::info!(
            image = image.id,
            bytes = image.size,
            "removed: its disk fills up and nobody uses it"
        );
        node.runtime.remove_image(&image.id).await?;
        uses.remove(&image.id);
        excess = excess.saturating_sub(image.size);
    }
    if excess > 0 && wanted == Wanted::Room {
        // all that are left are used or new
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {first} bytes, but only found {} bytes eligible to free.",
            first - excess
        );
        node.tell_of_node(Level::Warning, "FreeDiskSpaceFailed", message);
    }
    Ok(())
}

/// How many bytes have to go; 0 below the upper bound.
fn excess(fs: &Fs) -> u64 {
    let used = fs.bytes.saturating_sub(fs.available);
    match used * 100 > fs.bytes * HIGH_PERCENT {
        true => used.saturating_sub(fs.bytes / 100 * LOW_PERCENT),
        false => 0,
    }
}

fn is_used(image: &cri::Image, used: &BTreeSet<String>) -> bool {
    let mut names = image.repo_tags.iter().chain(&image.repo_digests);
    image.pinned || used.contains(&image.id) || names.any(|name| used.contains(name))
}

fn note(uses: &mut Uses, images: &[cri::Image], used: &BTreeSet<String>, now: Instant) {
    uses.retain(|id, _| images.iter().any(|image| image.id == *id));
    for image in images {
        let entry = uses.entry(image.id.clone()).or_insert(Use {
            came: now,
            last: now,
        });
        if is_used(image, used) {
            entry.last = now;
        }
    }
}

/// Those that may go, the one that was not used for longest first.
fn unused<'a>(
    uses: &Uses,
    images: &'a [cri::Image],
    used: &BTreeSet<String>,
    now: Instant,
) -> Vec<&'a cri::Image> {
    let mut all: Vec<_> = images
        .iter()
        .filter(|image| !is_used(image, used))
        .filter_map(|image| Some((uses.get(&image.id)?, image)))
        .filter(|(entry, _)| now.duration_since(entry.came) >= YOUNGEST)
        .collect();
    all.sort_by_key(|(entry, image)| (entry.last, image.id.as_str()));
    all.into_iter().map(|(_, image)| image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_pinned_or_new_stays_and_the_longest_unused_goes_first() {
        let image = |id: &str, pinned| cri::Image {
            id: id.into(),
            repo_tags: vec![format!("{id}:latest")],
            pinned,
            ..cri::Image::default()
        };
        let images = [
            image("old", false),
            image("older", false),
            image("byname", false),
            image("pinned", true),
            image("byid", false),
        ];
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<BTreeSet<_>>()
        };
        let mut uses = Uses::new();
        note(&mut uses, &images, &set(&["old", "older"]), at(0));
        note(&mut uses, &images, &set(&["old"]), at(100));
        let used = set(&["byname:latest", "byid"]);
        let all: Vec<_> = images
            .iter()
            .cloned()
            .chain([image("new", false)])
            .collect();
        note(&mut uses, &all, &used, at(200));
        let ids: Vec<_> = unused(&uses, &all, &used, at(200))
            .iter()
            .map(|image| image.id.as_str())
            .collect();
        assert_eq!(ids, ["older", "old"]);
        note(&mut uses, &images[1..], &used, at(300));
        assert!(!uses.contains_key("old") && !uses.contains_key("new"));
    }

    #[test]
    fn images_go_above_85_percent_until_80() {
        let fs = |available| Fs {
            bytes: 1000,
            free: available,
            available,
            inodes: 0,
            inodes_free: 0,
        };
        for (available, expected) in [(500, 0), (150, 0), (149, 51), (0, 200)] {
            assert_eq!(excess(&fs(available)), expected, "{available}");
        }
    }
}
