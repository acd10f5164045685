//! What claims come to, mounted at upstream's paths (VM-03):
//!
//! ```text
//! local, a directory ──────────────────────────────────────────── bind ─▶ pods/<uid>/volumes/kubernetes.io~local-volume/<pv>
//! local, a device ─ mount ─▶ plugins/kubernetes.io/local-volume/mounts/<pv> ─ bind ─▶ the same
//! … volumeMode: Block ────────────────────────────────────────── a link ─▶ pods/<uid>/volumeDevices/kubernetes.io~local-volume/<pv>
//! hostPath ─ where it is
//! ```
//!
//! Who has which volume is what lies in pods' `claims.json`, written before anything is mounted and removed after it is unmounted: a kubelet that was
//! killed finds it there, and what nobody has is unmounted.
//!
//! Invariant: a volume's own files are written to by its containers, and by who gives them to a group; nothing here removes one.
//!
//! # Synchronization
//! [`Turn`]: a pod's volumes are made or taken away, one at a time. [`Shared`]: a volume is mounted or let go by one pod at a time.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use berth_proto::cri::Device;
use rustix::{
    fs::{Mode, OFlags, fstat, open},
    mount::{MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount},
};

use super::{
    Place,
    claim::{self, Bound, Source},
    device, host_path,
    mounted::{is_mounted, unmount_below},
    options::{self, Options},
    ownership,
};
use crate::{
    Error, Level,
    node::Inner,
    pod::{ContainerSpec, Desired},
    store,
};

pub(super) const PLUGIN: &str = "kubernetes.io~local-volume";
const DEVICES: &str = "plugins/kubernetes.io/local-volume/mounts";
const ONLY_IF_NEEDED: &str = "OnRootMismatch";

/// Of one pod: its volumes are made or taken away by one at a time, and once they were taken away they are not made any more, however late somebody
/// comes to it who was told to before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn(Arc<(AtomicBool, Mutex<()>)>);

impl Turn {
    /// Does `work`, unless there is nothing to be made any more.
    pub fn make(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let _held = hold(&self.0.1);
        match self.goes_on() {
            true => work(),
            false => Ok(()),
        }
    }

    pub fn goes_on(&self) -> bool {
        !self.0.0.load(Ordering::Acquire)
    }

    /// Has whoever makes them now end soon, waits for them, and does `work`.
    pub fn take_away(&self, work: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        self.0.0.store(true, Ordering::Release);
        let _held = hold(&self.0.1);
        work()
    }
}

/// Of all pods of a node.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Held by whoever writes down what a pod has, after a look at what others have.
    register: Mutex<()>,
    /// By the volume's name, as long as somebody has it or waits for it.
    turns: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl Shared {
    /// Does `work` while nobody else mounts or lets go this volume.
    fn alone<T>(&self, volume: &str, work: impl FnOnce() -> T) -> T {
        let turn = hold(&self.turns)
            .entry(volume.to_owned())
            .or_default()
            .clone();
        let held = hold(&turn);
        let done = work();
        drop(held);
        let mut turns = hold(&self.turns);
        // this one's, and the map's own
        if Arc::strong_count(&turn) <= 2 {
            turns.remove(volume);
        }
        done
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is kept for a volume of the pod.
pub(super) fn kept(node: &Inner, uid: &str, volume: &str) -> Option<Bound> {
    let all = store::kept_claims(node, uid)?;
    all.into_iter().find(|bound| bound.volume == volume)
}

pub(super) fn place(node: &Inner, uid: &str, bound: &Bound) -> Place {
    match &bound.source {
        Source::Local { .. } => Place::At(dir(node, uid, &bound.name)),
        Source::HostPath { path, .. } => Place::At(path.clone()),
    }
}

/// Where the pod's claims are mounted that have a file system of their own to tell of: the pod's name of the volume, the claim's, the directory.
/// What hostPath names is the node's, and told with it.
pub(crate) fn mounted_claims(node: &Inner, pod: &Desired) -> Vec<(String, String, PathBuf)> {
    let asks = claim::asks(pod);
    if asks.is_empty() {
        return Vec::new();
    }
    let kept = store::kept_claims(node, &pod.uid).unwrap_or_default();
    let found = kept.into_iter().filter_map(|bound| {
        let ask = asks.iter().find(|ask| ask.volume == bound.volume)?;
        let is_local = matches!(bound.source, Source::Local { .. }) && !bound.is_block;
        let dir = dir(node, &pod.uid, &bound.name);
        let is_there = is_local && is_mounted(&dir).unwrap_or(false);
        is_there.then(|| (bound.volume, ask.claim.clone(), dir))
    });
    found.collect()
}

fn dir(node: &Inner, uid: &str, name: &str) -> PathBuf {
    node.pod_dir(uid).join("volumes").join(PLUGIN).join(name)
}

fn link(node: &Inner, uid: &str, name: &str) -> PathBuf {
    let dir = node.pod_dir(uid).join("volumeDevices").join(PLUGIN);
    dir.join(name)
}

/// Where a device is mounted for all pods that have it.
fn device_mount(node: &Inner, name: &str) -> PathBuf {
    node.kubelet_dir().join(DEVICES).join(name)
}

/// Writes down what the pod has from now on.
///
/// # Errors
/// Another pod has what one alone may have (PV-02), or it can't be written.
pub(super) fn register(node: &Inner, pod: &Desired, all: &[Bound]) -> Result<(), Error> {
    let _held = hold(&node.volumes.register);
    if store::kept_claims(node, &pod.uid).is_some_and(|kept| kept == all) {
        return Ok(());
    }
    let others = store::all_claims(node);
    let is_taken = |bound: &&Bound| {
        let mut others = others.iter().filter(|(uid, _)| *uid != pod.uid);
        bound.once_pod && others.any(|(_, has)| has.iter().any(|it| it.name == bound.name))
    };
    if let Some(bound) = all.iter().find(is_taken) {
        return Err(Error::Volume {
            name: bound.volume.clone(),
            why: format!(
                "volume {} uses the ReadWriteOncePod access mode and is already in use by another pod",
                bound.name
            ),
        });
    }
    store::keep_claims(node, &pod.uid, all)
}

/// Mounts it, where it is not mounted. The error has the step that failed in it, in upstream's words.
pub(super) fn set_up(
    node: &Inner,
    pod: &Desired,
    bound: &Bound,
    turn: &Turn,
) -> Result<(), String> {
    let name = &bound.name;
    let step = |step: &str| {
        let step = format!("{step} for volume {name:?} : ");
        move |why: String| format!("{step}{why}")
    };
    let set_up = "MountVolume.SetUp failed";
    let (path, fs_type) = match &bound.source {
        Source::HostPath { path, kind } => {
            return host_path::ensure(kind, path)
                .map_err(|error| format!("hostPath type check failed: {}: {error}", path.display()))
                .map_err(step(set_up));
        }
        Source::Local { path, fs_type } => (path, fs_type),
    };
    let new = step(match bound.is_block {
        true => "MapVolume.NewBlockVolumeMapper initialization failed",
        false => "MountVolume.NewMounter initialization failed",
    });
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(new(format!("path {path:?} does not exist")));
        }
        Err(error) => return Err(new(format!("path {path:?}: {error}"))),
        Ok(found) => found.is_dir(),
    };
    let device = device::behind(path).map_err(|error| new(format!("path {path:?}: {error}")))?;
    match (found, device) {
        (_, Some(_)) if bound.is_block => {
            map(path, &link(node, &pod.uid, name)).map_err(step("MapVolume.MapPodDevice failed"))
        }
        (_, None) if bound.is_block => Err(new(format!("path {path:?} is no block device"))),
        (true, _) => node
            .volumes
            .alone(name, || bind(node, pod, bound, path, turn))
            .map_err(step(set_up)),
        (false, Some(device)) => node.volumes.alone(name, || {
            let root = mount_device(node, bound, &device, fs_type)
                .map_err(step("MountVolume.MountDevice failed"))?;
            bind(node, pod, bound, &root, turn).map_err(step(set_up))
        }),
        (false, None) => Err(new("only directory and block device are supported".into())),
    }
}

/// A link to the device, by the name that the volume has for it.
fn map(device: &Path, link: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("link {}: {error}", link.display());
    if fs::read_link(link).is_ok_and(|to| to == device) {
        return Ok(());
    }
    if let Some(dir) = link.parent() {
        store::make_dir(dir).map_err(|error| error.to_string())?;
    }
    match fs::remove_file(link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    std::os::unix::fs::symlink(device, link).map_err(failed)
}

fn mount_device(
    node: &Inner,
    bound: &Bound,
    device: &Path,
    fs_type: &str,
) -> Result<PathBuf, String> {
    let at = device_mount(node, &bound.name);
    if is_mounted(&at).map_err(|error| error.to_string())? {
        return Ok(at);
    }
    let fs_type = device::ensure_file_system(device, fs_type, bound.read_only)?;
    store::make_dir(&at).map_err(|error| error.to_string())?;
    let options = Options::of(&bound.options);
    mount(
        device,
        &at,
        fs_type.as_str(),
        options.flags,
        std::ffi::CString::new(options.data.as_str())
            .map_err(|error| error.to_string())?
            .as_c_str(),
    )
    .map_err(|errno| {
        format!(
            "mount {} as {fs_type} ({}): {errno}",
            device.display(),
            bound.options.join(",")
        )
    })?;
    Ok(at)
}

/// Binds the directory into the pod's. What is mounted is ready: the volume was given to the pod's group before.
fn bind(
    node: &Inner,
    pod: &Desired,
    bound: &Bound,
    root: &Path,
    turn: &Turn,
) -> Result<(), String> {
    let target = dir(node, &pod.uid, &bound.name);
    let options = Options::of(&bound.options).read_only(bound.read_only);
    let is_directory = matches!(&bound.source, Source::Local { path, .. } if path == root);
    if is_directory && !options.data.is_empty() {
        return Err(format!(
            "mount options {:?} are a file system's, and the volume is a directory of one that is mounted",
            options.data
        ));
    }
    let text = |error: Error| error.to_string();
    if !is_mounted(&target).map_err(text)? {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let source = open(root, flags, Mode::empty())
            .map_err(|errno| format!("open {}: {errno}", root.display()))?;
        give(node, pod, bound, &source, turn)?;
        if !turn.goes_on() {
            return Err("the pod ends".into());
        }
        store::make_dir(&target).map_err(text)?;
        let held = format!("/proc/self/fd/{}", source.as_raw_fd());
        mount_bind(held.as_str(), &target)
            .map_err(|errno| format!("bind {} to {}: {errno}", root.display(), target.display()))?;
        // What comes and goes below the volume's own directory is seen, and what is mounted or unmounted here happens there no more.
        let made = mount_change(&target, MountPropagationFlags::DOWNSTREAM)
            .and_then(|()| mount_change(&target, MountPropagationFlags::SHARED));
        if let Err(errno) = made {
            let _ = unmount(&target, UnmountFlags::DETACH);
            return Err(format!("separate {}: {errno}", target.display()));
        }
    }
    options::ensure(&target, options.flags).map_err(|error| {
        let _ = unmount(&target, UnmountFlags::DETACH);
        let options = bound.options.join(",");
        format!("remount {} with {options:?}: {error}", target.display())
    })
}

/// The pod's group has it, if it has one: but not where another pod has the volume, too, as upstream.
fn give(
    node: &Inner,
    pod: &Desired,
    bound: &Bound,
    root: &OwnedFd,
    turn: &Turn,
) -> Result<(), String> {
    let context = pod.spec.security_context.as_ref();
    let group = context.and_then(|it| it.fs_group);
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else {
        return Ok(());
    };
    if bound.read_only {
        return Ok(());
    }
    let others = store::all_claims(node);
    let is_shared = others.iter().any(|(uid, has)| {
        *uid != pod.uid
            && has.iter().any(|it| it.name == bound.name)
            && is_mounted(&dir(node, uid, &bound.name)).unwrap_or(true)
    });
    let failed = |error: std::io::Error| format!("look at whose it is: {error}");
    if is_shared {
        let has = fstat(root).map_err(|errno| failed(errno.into()))?.st_gid;
        if has != group {
            let message = format!(
                "The requested fsGroup is {group}, but the volume {} has GID {has}. The volume may not be shareable.",
                bound.name
            );
            node.tell(Level::Warning, pod, "", "AlreadyMountedVolume", message);
        }
        return Ok(());
    }
    let policy = context.and_then(|it| it.fs_group_change_policy.as_deref());
    if policy == Some(ONLY_IF_NEEDED) && ownership::is_given(root, group).map_err(failed)? {
        return Ok(());
    }
    ownership::give(root, group, &|| turn.goes_on())
}

/// Whether what a container is to write to is the volume, and no bare directory.
///
/// # Errors
/// It is not mounted.
pub(super) fn check(node: &Inner, uid: &str, bound: &Bound) -> Result<(), String> {
    if matches!(bound.source, Source::HostPath { .. }) {
        return Ok(());
    }
    let dir = dir(node, uid, &bound.name);
    match is_mounted(&dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{} is not mounted", dir.display())),
        Err(error) => Err(error.to_string()),
    }
}

/// The devices that a container is given for its claims.
///
/// # Errors
/// One is not there, or no device any more.
pub(crate) fn devices(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
) -> Result<Vec<Device>, Error> {
    let asked = spec.container.volume_devices.iter().flatten();
    asked
        .map(|asked| {
            let failed = |why: String| Error::Volume {
                name: asked.name.clone(),
                why,
            };
            let bound = kept(node, &pod.uid, &asked.name)
                .filter(|bound| bound.is_block)
                .ok_or_else(|| failed("it is no block device of a claim".into()))?;
            let link = link(node, &pod.uid, &bound.name);
            let device = device::behind(&link)
                .map_err(|error| failed(format!("{}: {error}", link.display())))?
                .ok_or_else(|| failed(format!("{} is no block device", link.display())))?;
            Ok(Device {
                container_path: asked.device_path.clone(),
                host_path: device.display().to_string(),
                permissions: if bound.read_only { "r" } else { "rwm" }.into(),
            })
        })
        .collect()
}

/// Lets go what the pod has of claims: unmounted, the places of the mounts removed, and struck off. They are removed as empty directories: one that
/// isn't is somebody's.
pub(super) fn let_go(node: &Inner, uid: &str) -> Result<(), Error> {
    let pod = node.pod_dir(uid);
    // parts of volumes are mounts of their own
    unmount_below(&pod.join("volume-subpaths"))?;
    let volumes = pod.join("volumes").join(PLUGIN);
    unmount_below(&volumes)?;
    for entry in entries(&volumes) {
        fs::remove_dir(&entry).map_err(Error::file("remove the place of a mount,", &entry))?;
    }
    store::forget_claims(node, uid)?;
    unmount_devices(node)
}

/// Unmounts the devices that no pod has.
///
/// # Errors
/// One can't be unmounted.
pub(crate) fn unmount_devices(node: &Inner) -> Result<(), Error> {
    let mut first = Ok(());
    for at in entries(&node.kubelet_dir().join(DEVICES)) {
        let name = at.file_name().unwrap_or_default().to_string_lossy();
        let done = node.volumes.alone(&name, || {
            let all = store::all_claims(node);
            let mut all = all.iter().flat_map(|(_, has)| has);
            if all.any(|it| *it.name == *name) {
                return Ok(());
            }
            unmount_below(&at)?;
            fs::remove_dir(&at).map_err(Error::file("remove the place of a mount,", &at))
        });
        first = first.and(done);
    }
    first
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests;
