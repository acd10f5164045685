//! `-info`: what this runtime is and can do, for containerd's introspection (`ctr plugins inspect-runtime`, the features of a CRI's runtime
//! handlers). It looks at nothing: no bundle, no image, no socket.

use berth_proto::shim::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::{MessageField, well_known_types::any::Any};

use crate::{cli::print_message, error::Error};

/// The name that containerd's configuration calls the runtime by.
const RUNTIME: &str = "io.containerd.berth.v2";
/// What containerd calls the OCI runtime spec's features.md, as JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints a `containerd.types.RuntimeInfo`.
pub fn print() -> Result<(), Error> {
    print_message(&info())
}

fn info() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME.into(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").into(),
            ..Default::default()
        }),
        features: MessageField::some(Any {
            type_url: FEATURES.into(),
            value: berth_engine::features().to_string().into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use protobuf::Message;

    use super::*;

    #[test]
    fn the_info_is_a_message_of_name_version_and_features() {
        let bytes = info().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, RUNTIME);
        assert_eq!(info.version.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(info.features.type_url, FEATURES);
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["linux"]["cgroup"]["v2"], true);
    }
}
