//! The last steps before a container's command, the same for its init and for an exec: capabilities, seccomp, execve.
//!
//! Without no_new_privs the kernel takes a filter only from a holder of CAP_SYS_ADMIN. So the process comes here with that
//! capability added to its request, drops its bounding set to the request, installs the filter, and gives up what it does not
//! keep with one last capset, the only call but execve that such a profile has to allow. With no_new_privs the filter goes last.

use std::{ffi::CString, io};

use nix::sys::prctl;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::{Error, command, filter::Filter};

/// The request of a process, as kernel bits, cut to what this process may give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub bounding: CapabilitySet,
    pub effective: CapabilitySet,
    pub permitted: CapabilitySet,
    /// Ambient is asked for by name only; nothing else is ever inheritable (SEC-ENG-08, CVE-2022-24769).
    pub ambient: CapabilitySet,
}

impl Request {
    /// No capabilities named: none given.
    pub(crate) fn of(process: &Process) -> io::Result<Request> {
        let own = rustix::thread::capabilities(None)?.permitted;
        let none = LinuxCapabilities::default();
        let named = process.capabilities().as_ref();
        let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| match named {
            Some(_) => bits(of(named.unwrap_or(&none)).as_ref()) & own,
            None => CapabilitySet::empty(),
        };
        let permitted = set(LinuxCapabilities::permitted);
        Ok(Request {
            bounding: set(LinuxCapabilities::bounding),
            effective: set(LinuxCapabilities::effective) & permitted,
            permitted,
            ambient: set(LinuxCapabilities::ambient) & permitted,
        })
    }
}

/// What is needed for these last steps, and not to be had by a container.
pub(crate) fn needed() -> CapabilitySet {
    CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP
}

fn bits(capabilities: Option<&Capabilities>) -> CapabilitySet {
    capabilities
        .into_iter()
        .flatten()
        .fold(CapabilitySet::empty(), |bits, c| bits | bit(*c))
}

/// The set as the OCI spec names it.
pub(crate) fn names(set: CapabilitySet) -> Capabilities {
    ALL.iter()
        .filter(|c| set.contains(bit(**c)))
        .copied()
        .collect()
}

/// All that there are, as the OCI spec names them.
pub(crate) fn every_name() -> &'static [Capability] {
    ALL
}

/// Takes the last steps with `Request`'s capabilities and runs the command. Comes back only with an error; the process is
/// half confined then and must end.
pub(crate) fn run(
    request: &Request,
    filter: Option<&Filter>,
    no_new_privileges: bool,
    args: &[CString],
    env: &[CString],
) -> Result<std::convert::Infallible, Error> {
    let failed = |step: &str| Error::errno(format!("{step} of a container's process"));
    berth_kernel::signals::restore_defaults()
        .map_err(Error::io("reset the signals of a container's process"))?;
    for capability in ALL {
        let capability = bit(*capability);
        if !request.bounding.contains(capability)
            && rustix::thread::capability_is_in_bounding_set(capability).unwrap_or(false)
        {
            rustix::thread::remove_capability_from_bounding_set(capability)
                .map_err(failed("drop a bounding capability"))?;
        }
    }
    rustix::thread::clear_ambient_capability_set()
        .map_err(failed("clear the ambient capabilities"))?;
    let last = CapabilitySets {
        effective: request.effective,
        permitted: request.permitted,
        inheritable: request.ambient,
    };
    let give_up =
        || rustix::thread::set_capabilities(None, last).map_err(failed("set the capabilities"));
    let ambient = || -> Result<(), Error> {
        for capability in ALL {
            let capability = bit(*capability);
            if request.ambient.contains(capability) {
                rustix::thread::configure_capability_in_ambient_set(capability, true)
                    .map_err(failed("raise an ambient capability"))?;
            }
        }
        Ok(())
    };
    let install = || match filter {
        Some(filter) => filter.install().map_err(Error::io(
            "install the seccomp filter of a container's process",
        )),
        None => Ok(()),
    };
    if no_new_privileges {
        prctl::set_no_new_privs()
            .map_err(|e| Error::io("set no_new_privs of a container's process")(e.into()))?;
        give_up()?;
        ambient()?;
        let path = command::find(args, env)?;
        install()?;
        command::run(&path, args, env)
    } else {
        // Looked for with the process's own capabilities as far as files go.
        let keep = if filter.is_some() {
            rustix::thread::capabilities(None)
                .map_err(failed("read the capabilities"))?
                .permitted
                & CapabilitySet::SYS_ADMIN
        } else {
            CapabilitySet::empty()
        };
        let almost = CapabilitySets {
            effective: request.effective | keep,
            permitted: request.permitted | keep,
            inheritable: request.ambient,
        };
        rustix::thread::set_capabilities(None, almost).map_err(failed("set the capabilities"))?;
        ambient()?;
        let path = command::find(args, env)?;
        install()?;
        if filter.is_some() {
            give_up()?;
        }
        command::run(&path, args, env)
    }
}

/// Every capability that the OCI spec can name: all that Linux has had since 5.9.
const ALL: &[Capability] = &[
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// `ALL` is in the kernel's order, so a capability's place is its number.
fn bit(capability: Capability) -> CapabilitySet {
    let number = ALL.iter().position(|c| *c == capability).unwrap_or(63);
    CapabilitySet::from_bits_retain(1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_have_the_kernels_numbers() {
        for (capability, set) in [
            (Capability::Chown, CapabilitySet::CHOWN),
            (Capability::Setpcap, CapabilitySet::SETPCAP),
            (Capability::NetRaw, CapabilitySet::NET_RAW),
            (Capability::SysAdmin, CapabilitySet::SYS_ADMIN),
            (Capability::Mknod, CapabilitySet::MKNOD),
            (Capability::Setfcap, CapabilitySet::SETFCAP),
            (Capability::Syslog, CapabilitySet::SYSLOG),
            (
                Capability::CheckpointRestore,
                CapabilitySet::CHECKPOINT_RESTORE,
            ),
        ] {
            assert_eq!(bit(capability), set, "{capability:?}");
        }
        assert_eq!(ALL.len(), 41);
    }

    #[test]
    fn a_process_that_names_no_capabilities_gets_none_and_inheritable_ones_are_not_honoured() {
        let mut process = Process::default();
        process.set_capabilities(None);
        let request = Request::of(&process).unwrap();
        assert!(request.bounding.is_empty() && request.permitted.is_empty());
        process.set_capabilities(Some(serde_json::from_str(r#"{"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"]}"#).unwrap()));
        let request = Request::of(&process).unwrap();
        assert_eq!(
            (request.bounding, request.ambient),
            (CapabilitySet::KILL, CapabilitySet::empty())
        );
    }
}
