//! What containerd 2.3 and newer write to the stdin of `start`: `BootstrapParams`, answered by a `BootstrapResult`. Such a containerd says
//! MAX_SHIM_VERSION=2 all the same, for shims that don't read it, and takes version 3.

use std::{
    fs::File,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use berth_proto::shim::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FileType,
    stdio,
};

use crate::{
    cli::{Flags, print_message},
    error::Error,
};

/// A message of names, addresses and the runtime's options.
const MAX_BYTES: usize = 4 << 20;
/// containerd writes it before it waits for the answer. Whoever leaves the pipe open and says nothing is no containerd.
const WITHIN: Duration = Duration::from_secs(5);
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
    let stdin = stdio::stdin().try_clone_to_owned().map(File::from).ok()?;
    parse(&read_within(stdin, WITHIN)?, flags)
}

/// All that is written until the end of the pipe. None: it does not come in this time.
fn read_within(mut from: File, limit: Duration) -> Option<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.checked_duration_since(Instant::now())?;
        let wait = Timespec::try_from(left).ok()?;
        if poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&wait)).ok()? == 0 {
            return None;
        }
        match from.read(&mut buffer).ok()? {
            0 => return Some(bytes),
            n if bytes.len() + n > MAX_BYTES => return None,
            n => bytes.extend_from_slice(&buffer[..n]),
        }
    }
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
    print_message(&result)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_pipe_is_read_to_its_end_and_not_for_ever() {
        let (theirs, mut ours) = std::io::pipe().unwrap();
        ours.write_all(b"all of it").unwrap();
        drop(ours);
        let file = File::from(std::os::fd::OwnedFd::from(theirs));
        assert_eq!(read_within(file, WITHIN).unwrap(), b"all of it");
        let (theirs, _open) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(theirs));
        assert!(read_within(file, Duration::from_millis(20)).is_none());
    }

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
