//! Maps of ids as specs and requests have them, and as the kernel does.

use berth_kernel::userns::{IdMaps, Mapping};
use oci_spec::runtime::LinuxIdMapping;

use crate::Error;

fn list(mappings: &[LinuxIdMapping]) -> Vec<Mapping> {
    mappings
        .iter()
        .map(|mapping| Mapping {
            inside: mapping.container_id(),
            outside: mapping.host_id(),
            count: mapping.size(),
        })
        .collect()
}

pub(crate) fn maps(
    uids: Option<&Vec<LinuxIdMapping>>,
    gids: Option<&Vec<LinuxIdMapping>>,
) -> IdMaps {
    let of = |mappings: Option<&Vec<LinuxIdMapping>>| {
        mappings.map(|mappings| list(mappings)).unwrap_or_default()
    };
    IdMaps {
        uids: of(uids),
        gids: of(gids),
    }
}

/// The user and group that a container's are on the node.
pub(crate) fn on_the_node(
    id: &str,
    maps: Option<&IdMaps>,
    uid: u32,
    gid: u32,
) -> Result<(u32, u32), Error> {
    let Some(maps) = maps else {
        return Ok((uid, gid));
    };
    maps.uid(uid).zip(maps.gid(gid)).ok_or_else(|| Error::Spec {
        id: id.to_owned(),
        reason: format!("user {uid}:{gid} is not mapped in the container's user namespace"),
    })
}
