//! What the kubelet keeps of a pod on disk, below `<kubelet_dir>/pods/<uid>`: the pod, so that it can be ended though its source no longer
//! has it, and its last status. Each is one file, replaced by a rename.

use std::{
    ffi::CStr,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::PodStatus;
use rustix::fs::{FlockOperation, flock};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Desired, Error, node::Inner, pod::Kept, removal, resize::Resized, volume::Bound};

const POD: &str = "pod.json";
const POD_LAST: &CStr = c"pod.json";
const CLAIMS: &str = "claims.json";
const CLAIMS_LAST: &CStr = c"claims.json";
const STATUS: &str = "status.json";
const RESOURCES: &str = "resources.json";

/// One kubelet a directory: the file stays locked until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "the lock is the file's")] File);

impl Lock {
    pub fn take(dir: &Path) -> Result<Self, Error> {
        make_dir(dir)?;
        let path = dir.join("berth-kubelet.lock");
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(dir.to_owned())),
            Err(errno) => Err(Error::file("lock", &path)(errno.into())),
        }
    }
}

/// Root's alone, with those above it.
pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make the directory", path))
}

pub(crate) fn keep_pod(node: &Inner, pod: &Desired) -> Result<(), Error> {
    let dir = node.pod_dir(&pod.uid);
    make_dir(&dir)?;
    write(
        &dir.join(POD),
        &Kept {
            source: pod.source.to_owned(),
            pod: pod.pod.clone(),
        },
    )
}

pub(crate) fn kept_pod(node: &Inner, uid: &str) -> Option<Kept> {
    read(&node.pod_dir(uid).join(POD))
}

/// Whether the pod has begun here.
pub(crate) fn is_kept(node: &Inner, uid: &str) -> bool {
    node.pod_dir(uid).join(POD).exists()
}

pub(crate) fn keep_status(node: &Inner, uid: &str, status: &PodStatus) -> Result<(), Error> {
    write(&node.pod_dir(uid).join(STATUS), status)
}

pub(crate) fn kept_status(node: &Inner, uid: &str) -> Option<PodStatus> {
    read(&node.pod_dir(uid).join(STATUS))
}

pub(crate) fn keep_resized(node: &Inner, uid: &str, resized: &Resized) -> Result<(), Error> {
    write(&node.pod_dir(uid).join(RESOURCES), resized)
}

pub(crate) fn kept_resized(node: &Inner, uid: &str) -> Option<Resized> {
    read(&node.pod_dir(uid).join(RESOURCES))
}

/// What its claims come to; none: it has none, or nothing is mounted for them.
pub(crate) fn kept_claims(node: &Inner, uid: &str) -> Option<Vec<Bound>> {
    read(&node.pod_dir(uid).join(CLAIMS))
}

pub(crate) fn keep_claims(node: &Inner, uid: &str, claims: &[Bound]) -> Result<(), Error> {
    write(&node.pod_dir(uid).join(CLAIMS), &claims)
}

pub(crate) fn forget_claims(node: &Inner, uid: &str) -> Result<(), Error> {
    let path = node.pod_dir(uid).join(CLAIMS);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", &path)(error))
        }
        _ => Ok(()),
    }
}

/// The claims of all pods that have any, by the pods' uids.
pub(crate) fn all_claims(node: &Inner) -> Vec<(String, Vec<Bound>)> {
    let entries = fs::read_dir(node.kubelet_dir().join("pods"))
        .into_iter()
        .flatten()
        .flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|uid| Some((uid.clone(), kept_claims(node, &uid)?)))
        .collect()
}

/// All pods that are kept below `kubelet_dir` and can be read.
pub(crate) fn kept_pods(kubelet_dir: &Path) -> Vec<Kept> {
    let entries = fs::read_dir(kubelet_dir.join("pods"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter(|entry| entry.path().join(POD).exists())
        .filter_map(|entry| read(&entry.path().join(POD)))
        .collect()
}

/// The uids of all pods that have a directory.
pub(crate) fn kept_uids(node: &Inner) -> Vec<String> {
    let entries = fs::read_dir(node.kubelet_dir().join("pods"))
        .into_iter()
        .flatten()
        .flatten();
    entries
        .filter(|entry| entry.path().join(POD).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Nothing where there is none, or where it can't be read: the runtime knows better anyway.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a file that was kept is damaged, and left out of account"))
        .ok()
}

pub(crate) fn write(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::file("write", path)(io::Error::other(error)))?;
    replace(path, &bytes).map_err(Error::file("write", path))
}

/// 0600: a pod's environment may have secrets in it.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = PathBuf::from(path);
    new.as_mut_os_string().push(".new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    fs::rename(&new, path)
}

/// Removes a directory with what is in it, following no link and through no mount. That it is not there is no error.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    removal::remove(path, &[]).map_err(Error::file("remove", path))
}

/// Removes what is kept of a pod, after all else in its directory: a kubelet that is killed before finds what there is still to do.
pub(crate) fn remove_pod_dir(path: &Path) -> Result<(), Error> {
    removal::remove(path, &[CLAIMS_LAST, POD_LAST]).map_err(Error::file("remove", path))
}
