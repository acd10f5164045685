//! The audit: the difference between the ledger and the kernel.
//!
//! Looked at are only Berth's own places and names: what is mounted below the two directories, the files of the state directory, shims by
//! their arguments and working directory, cgroups and links named by a pod or a container, snapshots and unfinished downloads. Each
//! must be in the ledger, each entry of the ledger must be there, and whoever owns entries must have a record. A CNI attachment whose DEL has failed, or
//! whose pod is gone, is told as owed.
//!
//! A daemon at work is always between "written down" and "made" somewhere. So a difference counts only if it is still there when one looks
//! again, several times over [`PAUSES_MS`]. Nothing is changed.
//!
//! # Cgroup parents
//! Cgroups named by a pod or a container that the records or the ledger know are found wherever they are. One that nobody knows any more can be
//! told to be ours only by its place: `<state>/cgroup-parents`, one parent a line, names those below which every cgroup named by an id
//! is this daemon's (the daemon writes the parent of its configuration there, where no other daemon shares it).

mod kernel;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use kernel::{Kernel, Places};

use crate::{ledger, ledger::Object, record};

/// Pauses between the looks. Together they are longer than an object is on its way on a machine under load; only an audit that has something to
/// tell takes them.
const PAUSES_MS: [u64; 5] = [50, 150, 400, 800, 1600];
/// The kernel has it, the ledger does not.
const LEAKED: &str = "leaked";
/// The ledger has it, the kernel does not.
const MISSING: &str = "missing";
/// Both may have it, and it is to go: what others have to do for that has failed so far.
const OWED: &str = "owed";

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Finding {
    /// "leaked" (the kernel has it, the ledger does not), "missing" (the reverse) or "owed" (a CNI DEL that has not succeeded).
    pub difference: &'static str,
    pub kind: String,
    pub name: String,
    /// The owner, where known, and what to do.
    pub detail: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}: {}",
            self.difference, self.kind, self.name, self.detail
        )
    }
}

/// Holds the ledger of the daemon with these directories against the kernel. Works beside a running daemon and without one. Has to run in the
/// daemon's mount and network namespaces (the host's). Takes [`PAUSES_MS`] where there is something to tell.
///
/// An error says what could not be read: then nothing is known.
pub fn audit(root: &Path, state: &Path) -> io::Result<Vec<Finding>> {
    if !root.exists() && !state.exists() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "neither {} nor {} is there: no daemon has run with these directories",
                root.display(),
                state.display()
            ),
        ));
    }
    let places = Places::new(root, state);
    let mut findings = look(&places)?;
    for pause_ms in PAUSES_MS {
        if findings.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(pause_ms));
        let again = look(&places)?;
        findings.retain(|finding| again.contains(finding));
    }
    Ok(findings.into_iter().collect())
}

/// What the ledger and the records say.
#[derive(Debug)]
struct Books {
    /// Each object (its path made real) with its owner.
    entries: HashMap<Object, String>,
    owners: BTreeMap<String, Vec<Object>>,
    pods: HashSet<String>,
    containers: HashSet<String>,
    damaged: Vec<(PathBuf, String)>,
}

impl Books {
    fn read(places: &Places) -> io::Result<Self> {
        let naming = |path: &Path| {
            let path = path.display().to_string();
            move |e: io::Error| io::Error::new(e.kind(), format!("read {path}: {e}"))
        };
        let dir = places.state.join("ledger");
        let snapshot = ledger::read_all(&dir).map_err(naming(&dir))?;
        let mut entries = HashMap::new();
        for (owner, objects) in &snapshot.entries {
            for object in objects {
                entries.insert(places.real(object), owner.clone());
            }
        }
        let names = |below: &str| -> io::Result<HashSet<String>> {
            let dir = places.root.join(below);
            Ok(record::names(&dir)
                .map_err(naming(&dir))?
                .into_iter()
                .collect())
        };
        Ok(Self {
            entries,
            owners: snapshot.entries.into_iter().collect(),
            pods: names("pods")?,
            containers: names("containers")?,
            damaged: snapshot.damaged,
        })
    }

    fn has_record(&self, owner: &str) -> bool {
        self.pods.contains(owner) || self.containers.contains(owner)
    }

    /// A pod or a container that anything of ours speaks of.
    fn knows(&self, id: &str) -> bool {
        self.has_record(id) || self.owners.contains_key(id)
    }
}

fn look(places: &Places) -> io::Result<BTreeSet<Finding>> {
    let books = Books::read(places)?;
    let kernel = Kernel::look(places, &books)?;
    let mut findings = BTreeSet::new();

    for (object, seen) in &kernel.found {
        if !books.entries.contains_key(object) && !outlived(&books, object) {
            findings.insert(leaked(object, seen));
        }
    }
    for (object, owner) in &books.entries {
        if !kernel.has(places, object) && !ends_by_itself(object) {
            let detail = format!(
                "of {owner}: it is in the ledger; berthd strikes it off when it removes {}",
                named(owner)
            );
            findings.insert(Finding {
                difference: MISSING,
                kind: object.kind().into(),
                name: shown(object),
                detail,
            });
        }
    }
    for (object, owner) in &books.entries {
        if let Object::Cni(path) = object
            && let Some(why) = owed_del(path, books.pods.contains(owner))
        {
            findings.insert(Finding {
                difference: OWED,
                kind: object.kind().into(),
                name: shown(object),
                detail: format!(
                    "DEL of {owner}: {why}; berthd runs it until it succeeds, and the pod's address stays taken until then"
                ),
            });
        }
    }
    for (address, pod) in &kernel.leases {
        let lease = Object::Lease(*address);
        match books.entries.get(&lease) {
            // The network has those of pods that were just detached.
            Some(owner) if !pod.is_empty() && owner != pod && kernel::is_id(owner) => {
                let detail = format!("the lease says {pod}, the ledger {owner}");
                findings.insert(Finding {
                    difference: LEAKED,
                    kind: "lease".into(),
                    name: address.to_string(),
                    detail,
                });
            }
            _ => {}
        }
    }
    for (owner, objects) in &books.owners {
        // The network and pulls have no record; an unfinished download has none yet; what waits for its DEL has one of its own.
        let needs_one = kernel::is_id(owner)
            && objects
                .iter()
                .any(|object| !matches!(object, Object::Ingest(_) | Object::Cni(_)));
        if needs_one && !books.has_record(owner) {
            let detail = format!(
                "the ledger has {} objects of it, and there is no pod and no container of this id; berthd removes them when it starts",
                objects.len()
            );
            findings.insert(Finding {
                difference: MISSING,
                kind: "record".into(),
                name: owner.clone(),
                detail,
            });
        }
    }
    for (path, why) in &books.damaged {
        findings.insert(Finding {
            difference: MISSING,
            kind: "ledger".into(),
            name: path.display().to_string(),
            detail: format!("{why}; berthd sets it aside when it starts"),
        });
    }
    for (kind, path, detail) in &kernel.strays {
        findings.insert(Finding {
            difference: LEAKED,
            kind: (*kind).into(),
            name: path.display().to_string(),
            detail: detail.clone(),
        });
    }
    Ok(findings)
}

/// The ledger lives no longer than the kernel's objects do; a container's snapshot outlives a reboot with its record, and so does what
/// a pod's CNI plugins keep on the disk.
fn outlived(books: &Books, object: &Object) -> bool {
    match object {
        Object::Snapshot(path) => path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| books.containers.contains(name)),
        Object::Cni(path) => path
            .file_stem()
            .and_then(|name| name.to_str())
            .is_some_and(|name| books.pods.contains(name)),
        _ => false,
    }
}

/// systemd takes the directory of a unit away as it likes: a scope's with its last process. berthd strikes them off with the container and the pod.
fn ends_by_itself(object: &Object) -> bool {
    match object {
        Object::Cgroup(path) => path
            .extension()
            .is_some_and(|kind| kind == "scope" || kind == "slice"),
        _ => false,
    }
}

/// Why the attachment of this record is still to be let go of; `None` where it is not to be, or where there is no record (any more).
fn owed_del(record: &Path, has_pod: bool) -> Option<String> {
    let read = match record::read::<serde_json::Value>(record) {
        Ok(None) => return None,
        Err(error) => return Some(error.to_string()),
        Ok(Some(read)) => read,
    };
    match read.pointer("/owed/error").and_then(|why| why.as_str()) {
        Some(why) => Some(why.to_owned()),
        None if !has_pod => Some("it has not been run, and its pod is gone".to_owned()),
        None => None,
    }
}

fn leaked(object: &Object, seen: &str) -> Finding {
    let name = shown(object);
    let remedy = match object {
        Object::Shim(_) => "end it with `containerd-shim-berth-v2 -id ID delete` in its bundle, or kill the process".to_owned(),
        Object::Netns(_) => format!("remove it with `umount -l {name}; rm {name}`"),
        Object::Mount(_) => format!("remove it with `umount -l {name}`"),
        Object::Cgroup(_) => "remove it with `rmdir` in each hierarchy once no process is in it".to_owned(),
        Object::Link(_) => format!("remove it with `ip link delete {name}`"),
        Object::Lease(_) => "remove its file below leases/ once no pod has the address".to_owned(),
        Object::Cni(_) => "berthd runs their DEL until it succeeds: its log says why it does not".to_owned(),
        Object::Sysctl(_) => format!("turn it off with `echo 0 > {name}`"),
        Object::Snapshot(_) | Object::Ingest(_) | Object::Dir(_) | Object::Fifo(_) => format!("remove it with `rm -r --one-file-system {name}`"),
    };
    Finding {
        difference: LEAKED,
        kind: object.kind().into(),
        name,
        detail: format!("{seen} is there and not in the ledger; {remedy}"),
    }
}

fn shown(object: &Object) -> String {
    object.name().to_string_lossy().into_owned()
}

fn named(owner: &str) -> &str {
    match owner.char_indices().nth(12) {
        Some((end, _)) => &owner[..end],
        None => owner,
    }
}

#[cfg(test)]
mod tests;
