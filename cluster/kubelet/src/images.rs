//! Images that nobody uses go when their disk fills up, the one that was not used for longest first.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::cri;
use tonic::Code;

use crate::{Error, Level, image, machine::Fs, node::Node, view::Shown};

const LOOK_EVERY: Duration = Duration::from_secs(300);
/// After the first look that failed: the runtime may have been about to come.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// When images that nobody uses go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImagePolicy {
    high_percent: u8,
    low_percent: u8,
    youngest: Duration,
}

impl Default for ImagePolicy {
    /// Upstream's.
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            youngest: Duration::from_secs(120),
        }
    }
}

impl ImagePolicy {
    /// From `high_percent` of their disk on (100: never) they go until `low_percent` are in use; one that was first seen so short a time ago as
    /// `youngest` stays, for its container may be about to begin.
    ///
    /// # Errors
    /// They make no sense together.
    pub fn new(high_percent: u8, low_percent: u8, youngest: Duration) -> Result<Self, String> {
        if high_percent > 100 || low_percent >= high_percent {
            return Err(format!(
                "images go from {high_percent} % of their disk on, until {low_percent} % are in use: the second must be less than the first, which is at most 100"
            ));
        }
        Ok(Self {
            high_percent,
            low_percent,
            youngest,
        })
    }

    /// `None`: there is room.
    fn lack(&self, fs: &Fs) -> Option<Lack> {
        let capacity = u128::from(fs.bytes);
        let available = u128::from(fs.available.min(fs.bytes));
        let percent = 100 - available * 100 / capacity.max(1);
        if self.high_percent == 100 || percent < u128::from(self.high_percent) {
            return None;
        }
        let room = capacity * u128::from(100 - self.low_percent) / 100;
        Some(Lack {
            percent,
            capacity: fs.bytes,
            // no more than the capacity, which is a u64
            bytes: u64::try_from(room.saturating_sub(available)).unwrap_or(fs.bytes),
        })
    }
}

/// Their disk is too full.
#[derive(Debug, PartialEq, Eq)]
struct Lack {
    /// Of its capacity that is used, and that capacity in bytes.
    percent: u128,
    capacity: u64,
    /// To go.
    bytes: u64,
}

/// When each image was first seen and last used, by its id.
pub(crate) type Uses = BTreeMap<String, Use>;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    came: Instant,
    last: Instant,
}

/// Looks after the images until it is dropped.
pub(crate) async fn keep(node: Node) {
    let mut course = Course::default();
    loop {
        let looked = make_room(&node).await;
        let next = course.after(looked.is_ok());
        match &looked {
            Err(error) if next.is_told => {
                node.tell_of_node(Level::Warning, "ImageGCFailed", error.to_string());
            }
            Err(error) => tracing::warn!(%error, "images are not looked after"),
            Ok(()) => {}
        }
        tokio::time::sleep(next.wait).await;
    }
}

/// What one look after the other comes to: as upstream, a failure is told of where it is the second in a row, or a later one.
#[derive(Debug, Default)]
struct Course {
    has_failed: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Next {
    is_told: bool,
    wait: Duration,
}

impl Course {
    fn after(&mut self, is_done: bool) -> Next {
        let has_failed = std::mem::replace(&mut self.has_failed, !is_done);
        let is_first = !is_done && !has_failed;
        Next {
            is_told: !is_done && has_failed,
            wait: if is_first { LOOK_AGAIN } else { LOOK_EVERY },
        }
    }
}

/// Removes all that nobody uses, and that have not just come: the node runs short of disk.
pub(crate) async fn remove_unused(node: &Node) -> Result<(), Error> {
    let mut uses = node.images.lock().await;
    let known = Known::of(node, &mut uses).await?;
    // upstream's word for all
    let all = i64::MAX.unsigned_abs();
    remove(node, &mut uses, &known, all).await.map(drop)
}

async fn make_room(node: &Node) -> Result<(), Error> {
    let mut uses = node.images.lock().await;
    let known = Known::of(node, &mut uses).await?;
    let Some(dir) = node.runtime.image_fs().await? else {
        return Err(Error::Answer {
            rpc: "ImageFsInfo",
            lacks: "a file system of images",
        });
    };
    let dir = Path::new(&dir);
    let fs = Fs::of(dir).ok_or_else(|| {
        Error::Images(format!(
            "cannot tell how full the images' file system is: statfs of {} fails",
            dir.display()
        ))
    })?;
    if fs.bytes == 0 {
        let message = "invalid capacity 0 on image filesystem";
        node.tell_of_node(Level::Warning, "InvalidDiskCapacity", message);
        return Err(Error::Images(message.into()));
    }
    let Some(lack) = node.config.images.lack(&fs) else {
        return Ok(());
    };
    let freed = remove(node, &mut uses, &known, lack.bytes).await?;
    if freed < lack.bytes {
        // all that are left are used or new, or something else fills the disk
        let message = format!(
            "Insufficient free disk space on the node's image filesystem ({}% of {} used). Failed to free sufficient space by deleting unused images (freed {freed} bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
            lack.percent,
            size(lack.capacity)
        );
        node.tell_of_node(Level::Warning, "FreeDiskSpaceFailed", &message);
        return Err(Error::Images(message));
    }
    Ok(())
}

/// What the runtime has.
struct Known {
    images: Vec<cri::Image>,
    /// By containers, by names and ids.
    used: BTreeSet<String>,
    now: Instant,
}

impl Known {
    async fn of(node: &Node, uses: &mut Uses) -> Result<Self, Error> {
        let images = node.runtime.all_images().await?;
        let mut used: BTreeSet<String> = node
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
        used.extend(named(&node.view.all()));
        let now = Instant::now();
        note(uses, &images, &used, now);
        Ok(Self { images, used, now })
    }
}

/// Removes what nobody uses until so many bytes are freed; how many were.
async fn remove(node: &Node, uses: &mut Uses, known: &Known, bytes: u64) -> Result<u64, Error> {
    let mut freed = 0_u64;
    let mut failed = Vec::new();
    let youngest = node.config.images.youngest;
    for image in unused(uses, &known.images, &known.used, known.now, youngest) {
        if freed >= bytes {
            break;
        }
        // a pod may have come meanwhile
        if is_used(image, &named(&node.view.all())) {
            continue;
        }
        match node.runtime.remove_image(&image.id).await {
            Ok(()) => {
                tracing::info!(
                    image = image.id,
                    bytes = image.size,
                    "removed: its disk fills up and nobody uses it"
                );
                uses.remove(&image.id);
                freed = freed.saturating_add(image.size);
            }
            // neither does it answer of the next one
            Err(error) if is_of_the_line(&error) => return Err(error),
            Err(error) => failed.push(error.to_string()),
        }
    }
    if failed.is_empty() {
        return Ok(freed);
    }
    let list = match &failed[..] {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    };
    Err(Error::Images(format!(
        "wanted to free {bytes} bytes, but freed {freed} bytes space with errors in image deletion: {list}"
    )))
}

/// Nobody is there, or nobody answers in time.
fn is_of_the_line(error: &Error) -> bool {
    match error {
        Error::Rpc { code, .. } => matches!(
            code,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        ),
        error => error.is_unanswered(),
    }
}

/// What pods of this node name that are not over, be their containers made or not: what was brought here by hand may not be had again.
fn named(pods: &[Shown]) -> BTreeSet<String> {
    let is_here = |shown: &&Shown| {
        let phase = shown.status.phase.as_deref();
        !matches!(phase, Some("Failed" | "Succeeded"))
    };
    let names = pods.iter().filter(is_here).flat_map(|shown| {
        let containers = shown.pod.containers.iter().map(|spec| spec.image());
        let volumes = shown.pod.spec.volumes.iter().flatten();
        let volumes = volumes.filter_map(|it| it.image.as_ref()?.reference.as_deref());
        containers.chain(volumes)
    });
    names
        .flat_map(|name| [name.to_owned(), image::as_listed(name)])
        .collect()
}

/// As upstream writes it: `64.0 MiB`.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let fitting = UNITS.iter().find(|(_, shift)| bytes >> shift > 0);
    fitting.map_or_else(
        || format!("{bytes} B"),
        |(unit, shift)| format!("{:.1} {unit}", bytes as f64 / (1_u64 << shift) as f64),
    )
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
    youngest: Duration,
) -> Vec<&'a cri::Image> {
    let mut all: Vec<_> = images
        .iter()
        .filter(|image| !is_used(image, used))
        .filter_map(|image| Some((uses.get(&image.id)?, image)))
        .filter(|(entry, _)| now.duration_since(entry.came) >= youngest)
        .collect();
    all.sort_by_key(|(entry, image)| (entry.last, image.id.as_str()));
    all.into_iter().map(|(_, image)| image).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::PodStatus;
    use tonic::Status;

    use super::*;
    use crate::pod::tests::pod;

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
        let youngest = ImagePolicy::default().youngest;
        let ids: Vec<_> = unused(&uses, &all, &used, at(200), youngest)
            .iter()
            .map(|image| image.id.as_str())
            .collect();
        assert_eq!(ids, ["older", "old"]);
        note(&mut uses, &images[1..], &used, at(300));
        assert!(!uses.contains_key("old") && !uses.contains_key("new"));
    }

    #[test]
    fn images_go_from_85_percent_on_until_80_or_as_the_node_is_told() {
        let fs = |available| Fs {
            bytes: 1000,
            free: available,
            available,
            inodes: 0,
            inodes_free: 0,
        };
        let bytes = |policy: ImagePolicy, available| policy.lack(&fs(available)).map(|it| it.bytes);
        for (available, expected) in [
            (500, None),
            (160, None),
            // 84.1 % count as 85, as upstream's do
            (159, Some(41)),
            (150, Some(50)),
            (0, Some(200)),
            // what is left for others than root may be more than there is in all
            (2000, None),
        ] {
            let found = bytes(ImagePolicy::default(), available);
            assert_eq!(found, expected, "{available}");
        }
        let policy = |high, low| ImagePolicy::new(high, low, Duration::ZERO);
        assert_eq!(bytes(policy(100, 80).unwrap(), 0), None);
        assert_eq!(bytes(policy(1, 0).unwrap(), 990), Some(10));
        let whole = Fs {
            bytes: u64::MAX,
            ..Fs::default()
        };
        let lack = policy(50, 0).unwrap().lack(&whole).unwrap();
        assert_eq!((lack.percent, lack.bytes), (100, u64::MAX));
        for (high, low) in [(80, 80), (80, 81), (101, 80), (0, 0)] {
            assert!(policy(high, low).is_err(), "{high} {low}");
        }
    }

    #[test]
    fn a_failure_is_told_of_from_the_second_in_a_row_on_and_never_every_few_seconds() {
        let mut course = Course::default();
        let next = |is_told, wait| Next { is_told, wait };
        for (is_done, expected) in [
            (true, next(false, LOOK_EVERY)),
            (false, next(false, LOOK_AGAIN)),
            (false, next(true, LOOK_EVERY)),
            (false, next(true, LOOK_EVERY)),
            (true, next(false, LOOK_EVERY)),
            (false, next(false, LOOK_AGAIN)),
            (true, next(false, LOOK_EVERY)),
        ] {
            assert_eq!(course.after(is_done), expected);
        }
    }

    #[test]
    fn what_pods_name_is_used_before_their_containers_are_there_and_until_they_are_over() {
        let shown = |phase: &str| Shown {
            pod: Arc::new(pod(
                "  initContainers: [{name: i, image: 'quay.io/team/i:1'}]\n  containers: [{name: a, image: busybox}]\n  \
                 volumes: [{name: v, image: {reference: 'localhost:5000/data'}}]",
            )),
            status: PodStatus {
                phase: Some(phase.into()),
                ..PodStatus::default()
            },
        };
        let image = |tag: &str| cri::Image {
            id: "sha256:aa".into(),
            repo_tags: vec![tag.into()],
            ..cri::Image::default()
        };
        for (tag, is_named) in [
            ("quay.io/team/i:1", true),
            ("docker.io/library/busybox:latest", true),
            ("localhost:5000/data:latest", true),
            ("docker.io/library/busybox:1", false),
            ("quay.io/team/i:latest", false),
        ] {
            let names = named(&[shown("Failed"), shown("Pending")]);
            assert_eq!(is_used(&image(tag), &names), is_named, "{tag}");
            assert!(
                !is_used(&image(tag), &named(&[shown("Succeeded")])),
                "{tag}"
            );
        }
    }

    #[test]
    fn who_does_not_answer_is_not_asked_for_the_next_image() {
        for (status, expected) in [
            (Status::deadline_exceeded("30 s"), true),
            (Status::unavailable("the daemon ends"), true),
            (Status::internal("its layers are busy"), false),
            (Status::not_found("no such image"), false),
        ] {
            let told = status.to_string();
            let error = Error::rpc("remove image x")(status);
            assert_eq!(is_of_the_line(&error), expected, "{told}");
        }
    }

    #[test]
    fn sizes_are_as_upstream_writes_them() {
        for (bytes, text) in [
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (67_108_864, "64.0 MiB"),
            (10_737_418_240, "10.0 GiB"),
            (1_649_267_441_664, "1.5 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
