//! Taking down what [`super::run`] and [`super::create`] make, in reverse. Every function here is idempotent and needs nothing
//! but the ledger and the directories, so that a restarted daemon can finish what its predecessor began.

use std::{
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_state::{Object, record};
use tonic::Code;

use super::{Pod, image_volumes, launch, mounts, shim::Shim};
use crate::{
    cgroup_driver::is_slice,
    error::Error,
    failpoint,
    node::Node,
    trace::{phase, step},
};

/// A container that was just killed is reaped in well under a millisecond, unless the machine is very busy or it hangs in the kernel.
const REAP_PATIENCE: Duration = Duration::from_secs(10);
const REAP_POLL: Duration = Duration::from_millis(5);
const SIGKILL: i32 = nix::libc::SIGKILL;

/// Ends the shim, frees the network, unmounts /dev/shm. What remains of the pod is its directories and records.
pub async fn surroundings(pod: &Pod, shim: Option<&Shim>) -> Result<(), Error> {
    phase(step!("shim end"), launch::end(pod, shim)).await?;
    failpoint::at(|| berth_failpoint::site!("pod.stop.shim_ended"))?;
    let shm = pod.dir().join("shm");
    if shm.exists() {
        mounts::gone(&pod.node.ledger, &pod.id, &shm)?;
    }
    failpoint::at(|| berth_failpoint::site!("pod.stop.unmounted"))?;
    let since = Instant::now();
    let detaching = pod.node.network.detach(&pod.id);
    let detached = phase(step!("network detach"), detaching).await;
    if !pod.host_network() {
        pod.node.metrics.network_detaches.ended(since, &detached);
    }
    detached.map_err(|source| Error::Network {
        pod_id: pod.id.clone(),
        source,
    })?;
    failpoint::at(|| berth_failpoint::site!("pod.stop.detached"))?;
    // A parent that the caller named may serve other pods, too.
    match pod.own_cgroup() {
        Some(own) => cgroups(&pod.node, &pod.id, Of::Pod(own)),
        None => cgroups(&pod.node, &pod.id, Of::Parents),
    }
}

/// Removes the bundle and, last of all, the record. Whatever fails, the record stays: somebody must know of what is left.
pub fn forget_pod(pod: &Pod) -> Result<(), Error> {
    let node = &pod.node;
    remove_dir(node, &pod.id, &pod.dir())?;
    failpoint::at(|| berth_failpoint::site!("pod.remove.bundle_gone"))?;
    sweep(node, &pod.id)?;
    // Its link and address go in their own time; a pod that is removed is gone.
    node.network.wait_until_left(&pod.id);
    record::remove(&node.pod_record(&pod.id))?;
    Ok(())
}

/// Ends the container's task, by force. Afterwards nothing of it runs.
pub async fn end_task(shim: &Shim, container_id: &str) -> Result<(), Error> {
    let since = std::time::Instant::now();
    loop {
        match shim.delete(container_id).await {
            Ok(()) => return Ok(()),
            Err(e) if e.code() == Code::FailedPrecondition => {
                if since.elapsed() > REAP_PATIENCE {
                    return Err(Error::Stuck {
                        what: format!("container {container_id}"),
                        stage: "killed, waiting for the kernel to reap it",
                        since: since.elapsed(),
                    });
                }
                shim.kill(container_id, SIGKILL, true).await?;
                tokio::time::sleep(REAP_POLL).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// What the daemon itself made for a container whose task has ended: mount, snapshot, bundle, record.
pub fn forget_container(pod: &Pod, container_id: &str) -> Result<(), Error> {
    let node = &pod.node;
    let dir = pod.container_dir(container_id);
    unroot(pod, container_id)?;
    failpoint::at(|| berth_failpoint::site!("container.remove.unmounted"))?;
    node.images.remove_snapshot(container_id)?;
    failpoint::at(|| berth_failpoint::site!("container.remove.snapshot_gone"))?;
    remove_dir(node, container_id, &dir)?;
    let exit = node.exits_dir(&pod.id).join(container_id);
    match std::fs::remove_file(&exit) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", exit)(e)),
        _ => {}
    }
    failpoint::at(|| berth_failpoint::site!("container.remove.bundle_gone"))?;
    sweep(node, container_id)?;
    strike_unmade_cgroups(pod)?;
    record::remove(&node.container_record(container_id))?;
    Ok(())
}

/// What an ended container still has in the kernel: its mounted root, the images beside it, and its cgroup.
pub fn unroot(pod: &Pod, container_id: &str) -> Result<(), Error> {
    image_volumes::gone(pod, container_id)?;
    let rootfs = pod.container_dir(container_id).join("rootfs");
    if rootfs.exists() {
        mounts::gone(&pod.node.ledger, container_id, &rootfs)?;
    }
    cgroups(&pod.node, container_id, Of::Container)
}

/// Held by whoever writes down the cgroups of a container to be made, and by [`strike_unmade_cgroups`]: one for all pods, for it is
/// held for a few short writes.
static CGROUP_INTENTS: Mutex<()> = Mutex::new(());

pub fn cgroup_intents() -> MutexGuard<'static, ()> {
    CGROUP_INTENTS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
}

/// Strikes off the cgroups above a pod's containers that nobody made: the first create wrote them down, and was refused before the
/// engine began. Another create of the pod that is under way may be about to make them: then they stay.
fn strike_unmade_cgroups(pod: &Pod) -> Result<(), Error> {
    let node = &pod.node;
    // Of a slice a directory tells nothing: systemd may have it for active without one. It is stopped with the pod.
    let is_unmade = |object: &Object| match object {
        Object::Cgroup(at) => !is_slice(at) && !node.cgroups.exists(at),
        _ => false,
    };
    let unmade = |owner: &str| -> Result<Vec<Object>, Error> {
        let mut objects = outstanding(node, owner)?;
        objects.retain(is_unmade);
        Ok(objects)
    };
    let _alone = cgroup_intents();
    let of_pod = unmade(&pod.id)?;
    if of_pod.is_empty() {
        return Ok(());
    }
    let dir = pod.dir().join("containers");
    let containers = match std::fs::read_dir(&dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.file_name()).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io("list", dir)(e)),
    };
    for id in containers {
        if !unmade(&id.to_string_lossy())?.is_empty() {
            return Ok(());
        }
    }
    // Looked at again after the containers': an engine makes the pod's before the container's, and may have made both since the first look.
    of_pod
        .iter()
        .filter(|object| is_unmade(object))
        .try_for_each(|object| strike(node, &pod.id, object))
}

/// Removes what the ledger still has of `owner`, newest first, whatever it is. After the ordinary teardown that is nothing, or
/// an entry whose object a reboot took.
pub fn sweep(node: &Node, owner: &str) -> Result<(), Error> {
    let left = outstanding(node, owner)?;
    for object in left.into_iter().rev() {
        match &object {
            Object::Mount(at) => mounts::gone(&node.ledger, owner, at)?,
            Object::Dir(dir) => remove_dir(node, owner, dir)?,
            Object::Cgroup(cgroup) => {
                remove_cgroup(node, owner, cgroup)?;
                continue;
            }
            Object::Fifo(path) => match std::fs::remove_file(path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path)(e));
                }
                _ => {}
            },
            // The network's and the image store's own: they strike them off.
            Object::Netns(_)
            | Object::Link(_)
            | Object::Lease(_)
            | Object::Cni(_)
            | Object::Sysctl(_) => continue,
            Object::Snapshot(_) => {
                node.images.remove_snapshot(owner)?;
                continue;
            }
            Object::Ingest(_) => continue,
            Object::Shim(_) => continue,
        }
        strike(node, owner, &object)?;
    }
    Ok(())
}

/// Which of an owner's cgroups are nobody else's, to be removed with what is in them.
#[derive(Debug, Clone, Copy)]
enum Of<'a> {
    Container,
    Pod(&'a Path),
    /// A pod whose cgroup the caller has named.
    Parents,
}

/// The cgroups that the ledger has of `owner`.
fn cgroups(node: &Node, owner: &str, of: Of<'_>) -> Result<(), Error> {
    for object in outstanding(node, owner)?.into_iter().rev() {
        if let Object::Cgroup(cgroup) = &object {
            let own = match of {
                Of::Container => true,
                Of::Pod(own) => own == cgroup,
                Of::Parents => false,
            };
            if own {
                node.cgroups
                    .remove(cgroup)
                    .map_err(Error::io("remove cgroup", cgroup))?;
                strike(node, owner, &object)?;
            } else {
                remove_cgroup(node, owner, cgroup)?;
            }
        }
    }
    Ok(())
}

/// A cgroup above the pod's own, which others may have come to use: then it is theirs.
fn remove_cgroup(node: &Node, owner: &str, cgroup: &Path) -> Result<(), Error> {
    node.cgroups
        .remove_if_empty(cgroup)
        .map_err(Error::io("remove cgroup", cgroup))?;
    strike(node, owner, &Object::Cgroup(cgroup.to_owned()))
}

fn outstanding(node: &Node, owner: &str) -> Result<Vec<Object>, Error> {
    node.ledger
        .outstanding(owner)
        .map_err(Error::io("read ledger of", owner))
}

fn strike(node: &Node, owner: &str, object: &Object) -> Result<(), Error> {
    node.ledger
        .strike(owner, object)
        .map_err(Error::io("write ledger for", owner))
}

/// Links in it are removed, not followed: `remove_dir_all` works by openat(2) with O_NOFOLLOW.
fn remove_dir(node: &Node, owner: &str, dir: &Path) -> Result<(), Error> {
    refuse_mounted(dir)?;
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", dir)(e)),
        _ => {}
    }
    strike(node, owner, &Object::Dir(dir.to_owned()))
}

/// Nothing is removed across a mount: a volume mounted below would be emptied.
fn refuse_mounted(dir: &Path) -> Result<(), Error> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(Error::io("read", "/proc/self/mountinfo"))?;
    let dir = dir.display().to_string();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .find(|at| {
            at.strip_prefix(&dir)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
    match below {
        None => Ok(()),
        Some(at) => Err(Error::Io {
            act: "remove what is around a mount, at",
            path: at.into(),
            source: io::ErrorKind::ResourceBusy.into(),
        }),
    }
}
