//! The pod's user namespace, as the sandbox's options ask for it.

use berth_engine::UserNamespace;
use berth_proto::shim::v1::pod::{IdMapping, SandboxOptions};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

/// None: the node's.
pub fn asked(options: &SandboxOptions) -> Option<UserNamespace> {
    if options.uids.is_empty() && options.gids.is_empty() {
        return None;
    }
    Some(UserNamespace {
        uids: list(&options.uids),
        gids: list(&options.gids),
    })
}

fn list(mappings: &[IdMapping]) -> Vec<LinuxIdMapping> {
    let of = |mapping: &IdMapping| {
        LinuxIdMappingBuilder::default()
            .host_id(mapping.host_id)
            .container_id(mapping.container_id)
            .size(mapping.length)
            .build()
    };
    // It fails where a field is missing: none is.
    mappings.iter().flat_map(of).collect()
}
