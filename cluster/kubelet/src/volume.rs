//! A pod's volumes: made before its sandbox, brought up to date while it runs, taken away after it. Paths are upstream's (VM-03):
//! `<kubelet_dir>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`.

mod atomic;
pub(crate) mod claim;
mod device;
mod empty_dir;
mod host_path;
mod mounted;
mod mounts;
mod options;
mod ownership;
mod persistent;
mod projection;
mod sub_path;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Volume;

use crate::{Error, Level, node::Inner, pod::Desired, store, translate::Fields};

pub(crate) use claim::Bound;
pub(crate) use mounts::{Inside, asks_for_features, images, mounts};
pub(crate) use persistent::{Shared, Turn, devices, mounted_claims, unmount_devices};

/// A kubelet of one pod that is gone has seen it by then.
const LETS_GO: Duration = Duration::from_secs(10);

/// Where a volume lies on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a directory of the pod's, or where the pod says.
    At(PathBuf),
    /// The runtime mounts an image itself.
    Image {
        reference: String,
        pull_policy: String,
    },
    /// Nothing is kept of the pod's claim: it was let go, or was never had.
    Nowhere,
}

/// The directory of a plugin's volume.
fn dir(node: &Inner, uid: &str, plugin: &str, name: &str) -> PathBuf {
    node.pod_dir(uid)
        .join("volumes")
        .join(format!("kubernetes.io~{plugin}"))
        .join(name)
}

pub(crate) fn place(node: &Inner, pod: &Desired, volume: &Volume) -> Place {
    let in_pod = |plugin| Place::At(dir(node, &pod.uid, plugin, &volume.name));
    match volume {
        Volume {
            host_path: Some(host),
            ..
        } => Place::At(host.path.clone().into()),
        Volume {
            image: Some(image), ..
        } => Place::Image {
            reference: image.reference.clone().unwrap_or_default(),
            pull_policy: image.pull_policy.clone().unwrap_or_default(),
        },
        Volume {
            config_map: Some(_),
            ..
        } => in_pod("configmap"),
        Volume {
            secret: Some(_), ..
        } => in_pod("secret"),
        Volume {
            downward_api: Some(_),
            ..
        } => in_pod("downward-api"),
        Volume {
            projected: Some(_), ..
        } => in_pod("projected"),
        Volume {
            persistent_volume_claim: Some(_),
            ..
        }
        | Volume {
            ephemeral: Some(_), ..
        } => match persistent::kept(node, &pod.uid, &volume.name) {
            Some(bound) => persistent::place(node, &pod.uid, &bound),
            None => Place::Nowhere,
        },
        // what is nothing else is empty, as for the API server
        _ => in_pod("empty-dir"),
    }
}

/// Files in it are made of objects, and change with them; nobody but the kubelet writes them.
pub(crate) fn is_projected(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// It is a claim of the API, or comes by one.
pub(crate) fn is_claim(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

/// Makes what is not there, and brings up to date what is. Doing it twice changes nothing. `claims`: what the pod's come to.
///
/// # Errors
/// The first volume that can't be made, and why; the others are there.
pub(crate) fn set_up(
    node: &Inner,
    pod: &Desired,
    claims: &[Bound],
    turn: &Turn,
) -> Result<(), Error> {
    if !claims.is_empty()
        && let Err(error) = persistent::register(node, pod, claims)
    {
        node.tell(Level::Warning, pod, "", "FailedMount", error.to_string());
        return Err(error);
    }
    let mut first = Ok(());
    for volume in pod.spec.volumes.iter().flatten() {
        let bound = claims.iter().find(|bound| bound.volume == volume.name);
        let made = match bound {
            Some(bound) => {
                let made = persistent::set_up(node, pod, bound, turn);
                made.map_err(|why| (why.clone(), why))
            }
            None => one(node, pod, volume).map_err(|why| {
                let message = format!(
                    "MountVolume.SetUp failed for volume {:?}: {why}",
                    volume.name
                );
                (message, why)
            }),
        };
        if let Err((message, why)) = made {
            node.tell(Level::Warning, pod, "", "FailedMount", message);
            first = first.and(Err(Error::Volume {
                name: volume.name.clone(),
                why,
            }));
        }
    }
    first
}

fn one(node: &Inner, pod: &Desired, volume: &Volume) -> Result<(), String> {
    let path = match place(node, pod, volume) {
        Place::At(path) if !is_claim(volume) => path,
        Place::Image { .. } => return Ok(()),
        Place::At(_) | Place::Nowhere => return Err("its claim is not known".into()),
    };
    let context = pod.spec.security_context.as_ref();
    let group = context
        .and_then(|it| it.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    if let Some(host) = &volume.host_path {
        return host_path::ensure(host.type_.as_deref().unwrap_or_default(), &path)
            .map_err(|error| format!("hostPath {}: {error}", path.display()));
    }
    if is_projected(volume) {
        let fields = Fields {
            pod,
            ips: &[],
            node: &node.config.node,
        };
        let files = projection::files(volume, fields, &node.objects)?;
        if projection::is_secret(volume) {
            empty_dir::ensure_memory(&path, None, None)?;
        } else {
            store::make_dir(&path).map_err(|error| error.to_string())?;
        }
        return atomic::write(&path, &files, group)
            .map(drop)
            .map_err(|error| format!("{}: {error}", path.display()));
    }
    empty_dir::ensure(volume, &path, group)
}

/// Whether the pod has volumes that may have to be brought up to date, or mounted again.
pub(crate) fn may_change(pod: &Desired) -> bool {
    let mut volumes = pod.spec.volumes.iter().flatten();
    volumes.any(|volume| is_projected(volume) || is_claim(volume))
}

/// Unmounts all below the pod's directory, and removes it. Nothing is removed while anything is mounted there: it might be the node's.
pub(crate) fn tear_down(node: &Inner, uid: &str) -> Result<(), Error> {
    let dir = node.pod_dir(uid);
    mounted::unmount_below(&dir)?;
    persistent::let_go(node, uid)?;
    store::remove_pod_dir(&dir)
}

/// Of a pod of which nothing will run any more: its claims are others' from now on.
pub(crate) fn let_claims_go(node: &Inner, uid: &str) -> Result<(), Error> {
    match store::kept_claims(node, uid) {
        Some(_) => persistent::let_go(node, uid),
        None => Ok(()),
    }
}

/// Removes the directory of a kubelet with its pods' volumes, once that kubelet has let go of it; blocks until then. No link is followed, and
/// that it is not there is no error.
///
/// # Errors
/// The kubelet goes on, or something is still mounted there, and nothing is removed; or something does not go.
pub fn remove_kubelet_dir(dir: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let deadline = Instant::now() + LETS_GO;
    let _lock = loop {
        match store::Lock::take(dir) {
            Err(Error::Locked(_)) if Instant::now() < deadline => {
                std::thread::sleep(LETS_GO / 100);
            }
            taken => break taken?,
        }
    };
    mounted::unmount_below(dir)?;
    store::remove_tree(dir)
}

#[cfg(test)]
pub(crate) mod tests {
    use nix::sched::{CloneFlags, unshare};
    use rustix::mount::{MountPropagationFlags, mount_change};

    /// Runs `work` with mounts that nobody else sees, and that end with it.
    pub fn in_own_mounts(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let own = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS).expect("these tests need root");
                let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
                mount_change("/", all).unwrap();
                work();
            });
            own.join().unwrap();
        });
    }
}
