//! User namespaces of pods, as far as they are the daemon's: the namespace that owns a pod's network, the owners of what lies in a
//! container's root, and whether this machine has all that they need.
//!
//! The namespace itself is held by the pod's pause, and by the pin of its network namespace. For files only its maps count, and the kernel
//! copies those: any user namespace with the same ones does.

use std::{os::fd::OwnedFd, sync::OnceLock};

use berth_kernel::{
    mount::id_mapped,
    userns::{self, IdMaps, Mapping},
};
use berth_proto::{cri, shim::v1::pod::IdMapping};

use super::{Pod, mounts::Owners};
use crate::{error::Error, kernel_floor::ID_MAPPED_LAYERS, node::Node};

impl Pod {
    /// The maps of the pod's user namespace; none: it is the node's.
    pub fn id_maps(&self) -> Option<IdMaps> {
        berth_spec::user_namespace(&self.config).map(maps)
    }

    /// Whose the files of its containers' roots are; none: they are as the images have them.
    pub fn owners(&self) -> Option<Owners> {
        self.id_maps().map(|maps| Owners {
            maps,
            store: self.node.image_root(),
        })
    }

    /// User and group of the node that own what the daemon makes for the pod's containers.
    pub fn root(&self) -> (u32, u32) {
        let maps = self.id_maps();
        let root = maps.and_then(|maps| maps.uid(0).zip(maps.gid(0)));
        root.unwrap_or((0, 0))
    }
}

pub fn maps(userns: &cri::UserNamespace) -> IdMaps {
    let list = |list: &[cri::IdMapping]| {
        list.iter()
            .map(|mapping| Mapping {
                inside: mapping.container_id,
                outside: mapping.host_id,
                count: mapping.length,
            })
            .collect()
    };
    IdMaps {
        uids: list(&userns.uids),
        gids: list(&userns.gids),
    }
}

/// As the shim is told.
pub fn for_shim(mappings: &[cri::IdMapping]) -> Vec<IdMapping> {
    mappings
        .iter()
        .map(|mapping| IdMapping {
            host_id: mapping.host_id,
            container_id: mapping.container_id,
            length: mapping.length,
            ..Default::default()
        })
        .collect()
}

fn failed(what: &str, error: std::io::Error) -> Error {
    Error::FailedPrecondition(format!("{what}: {error}"))
}

/// A network namespace that a user namespace of the pod's owns, for a pod that has one. It takes a process, made and ended here.
pub async fn network_namespace(pod: &Pod) -> Result<Option<OwnedFd>, Error> {
    let Some(maps) = pod.id_maps() else {
        return Ok(None);
    };
    let made = tokio::task::spawn_blocking(move || userns::make(&maps, true));
    made.await
        .map_err(|_| Error::Panicked("make user namespace"))?
        .map(|made| made.network)
        .map_err(|error| failed("make the pod's user namespace", error))
}

/// Whether this machine can have pods with user namespaces; why not. Found out once.
#[derive(Debug, Default)]
pub struct Possible(OnceLock<Result<(), String>>);

impl Node {
    pub fn user_namespaces(&self) -> Result<(), &str> {
        let probe = || {
            let some = Mapping {
                inside: 0,
                outside: 65_536,
                count: 65_536,
            };
            let maps = IdMaps {
                uids: vec![some],
                gids: vec![some],
            };
            if let Some(why) = self.kernel.lacks(ID_MAPPED_LAYERS) {
                return Err(format!("this kernel has no {ID_MAPPED_LAYERS}: {why}"));
            }
            userns::make(&maps, false)
                .map_err(|error| format!("this kernel makes no user namespace: {error}"))?;
            let images = self.image_root();
            id_mapped(&images, &maps).map(drop).map_err(|error| {
                format!(
                    "the file system of {} can't be mounted id-mapped: {error}",
                    images.display()
                )
            })
        };
        let known = self.user_namespaces_possible.0.get_or_init(probe);
        known.as_ref().copied().map_err(String::as_str)
    }
}

/// Bad luck is told before anything is made.
pub fn check(node: &Node, config: &cri::PodSandboxConfig) -> Result<(), Error> {
    if berth_spec::user_namespace(config).is_none() {
        return Ok(());
    }
    node.user_namespaces().map_err(|why| {
        Error::FailedPrecondition(format!(
            "a user namespace of the pod is not possible: {why}"
        ))
    })
}
