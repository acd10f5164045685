//! What containerd 2.3 and newer write to the stdin of `start`: `BootstrapParams`, answered by a `BootstrapResult`. Such a containerd says
//! MAX_SHIM_VERSION=2 all the same, for shims that don't read it, and takes version 3.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use berth_proto::shim::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use rustix::{fs::FileType, stdio};

use crate::{cli::Flags, error::Error};

/// A message of names, addresses and the runtime's options.
const MAX_BYTES: u64 = 4 << 20;
/// The task API that is answered with.
const VERSION: i32 = 3;

/// What the caller wrote. None: it speaks an older protocol (containerd up to 2.2 writes the runtime's options there, or nothing), or it is
/// a person.
pub fn read(flags: &Flags) -> Option<BootstrapParams> {
    let is_pipe = rustix::fs::fstat(stdio::stdin())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    if !is_pipe {
        return None;
    }
    let mut bytes = Vec::new();
    let stdin = stdio::stdin().try_clone_to_owned().map(File::from).ok()?;
    stdin.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
    parse(&bytes, flags)
}

fn parse(bytes: &[u8], flags: &Flags) -> Option<BootstrapParams> {
    let params = BootstrapParams::parse_from_bytes(bytes).ok()?;
    // Other messages may have the same form: this one names who is started.
    let is_meant = params.instance_id == flags.id && params.namespace == flags.namespace;
    (is_meant && !params.containerd_version.is_empty()).then_some(params)
}

/// Prints the answer.
pub fn answer(socket: &Path) -> Result<(), Error> {
    let result = BootstrapResult {
        version: VERSION,
        address: format!("unix://{}", socket.display()),
        protocol: "ttrpc".into(),
        ..Default::default()
    };
    let bytes = result
        .write_to_bytes()
        .map_err(|error| Error::io("encode the answer")(io::Error::other(error)))?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .map_err(Error::io("print the address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_that_names_who_is_started_counts() {
        let flags = Flags {
            namespace: "k8s.io".into(),
            id: "c1".into(),
            ..Flags::default()
        };
        let of = |id: &str, namespace: &str, version: &str| {
            let params = BootstrapParams {
                instance_id: id.into(),
                namespace: namespace.into(),
                containerd_version: version.into(),
                ..Default::default()
            };
            params.write_to_bytes().unwrap()
        };
        assert!(parse(&of("c1", "k8s.io", "2.3.4"), &flags).is_some());
        for bytes in [
            of("c2", "k8s.io", "2.3.4"),
            of("c1", "default", "2.3.4"),
            of("c1", "k8s.io", ""),
            Vec::new(),
            vec![0xff; 10],
        ] {
            assert!(parse(&bytes, &flags).is_none(), "{bytes:?}");
        }
    }
}
