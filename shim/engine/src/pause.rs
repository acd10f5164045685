//! The pod's pause, asked for by the shim and made by the zygote itself.

use std::{
    ffi::CString,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use berth_kernel::{
    pause, pidfd,
    userns::{self, IdMaps},
};
use oci_spec::runtime::LinuxIdMapping;
use rustix::{io::Errno, process::Pid};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Process, Zygote, channel, idmap,
    request::{Operation, PauseRequest},
};

/// The pod's pause to be made.
#[derive(Debug, Default, Clone)]
pub struct Pause {
    /// Set in the new UTS namespace; ignored without one.
    pub hostname: Option<String>,
    /// Network namespace to join; none: the node's.
    pub netns: Option<PathBuf>,
    /// Which namespaces are the pod's own; the others stay the node's.
    pub new_ipc: bool,
    pub new_uts: bool,
    pub new_pid: bool,
    /// `net.ipv4.ip_forward` → value, written inside the pod's namespaces. Which are allowed is the caller's to check.
    pub sysctls: Vec<(String, String)>,
    pub oom_score_adj: Option<i32>,
    /// The pod has a user namespace with these maps: the owner of `netns`, else a new one. What is new is its.
    pub user: Option<UserNamespace>,
    /// The pod's cgroup, for an engine whose pause is a container.
    pub cgroup_parent: String,
    /// `cgroup_parent` is a slice of systemd's, and the pause's cgroup is to be a scope in it.
    pub systemd_cgroup: bool,
}

/// Maps of a user namespace, as specs have them.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    pub uids: Vec<LinuxIdMapping>,
    pub gids: Vec<LinuxIdMapping>,
}

impl Zygote {
    /// Makes the pod's pause, a child of this process; it is ready for SIGTERM when this returns, and dies with this process.
    /// Its namespaces are at `/proc/<pid>/ns/{ipc,uts,net,pid}`.
    pub fn pause(&self, pause: &Pause) -> Result<Process, Error> {
        let netns = match &pause.netns {
            Some(path) => Some(File::open(path).map_err(Error::io(format!(
                "open network namespace {}",
                path.display()
            )))?),
            None => None,
        };
        let request = PauseRequest {
            hostname: pause.hostname.clone(),
            new_ipc: pause.new_ipc,
            new_uts: pause.new_uts,
            new_pid: pause.new_pid,
            sysctls: pause.sysctls.clone(),
            oom_score_adj: pause.oom_score_adj,
            user: pause.user.clone(),
        };
        let mut made = self.call(
            Operation::Pause,
            &request,
            [netns.as_ref().map(AsFd::as_fd), None, None, None],
        )?;
        // Who made it in its user namespace has ended, a child of ours.
        for helper in made.descriptors.drain(made.descriptors.len().min(1)..) {
            let _ = pidfd::wait(helper);
        }
        if made.descriptors.is_empty() {
            return Err(Error::Zygote("answered without a pidfd".into()));
        }
        Ok(Process {
            pid: made.pid,
            pidfd: made.descriptors.remove(0),
            console: None,
        })
    }
}

/// In the zygote: the pid or what failed, and pidfds: of the pause, also of one that failed half made, and of who made it.
pub(crate) fn make(
    reply: &OwnedFd,
    netns: Option<&OwnedFd>,
    shim: Pid,
) -> (Result<i32, Error>, Vec<OwnedFd>) {
    let prepared = receive(reply).and_then(|(request, sysctls)| {
        let user = user_namespace(&request, netns)?;
        Ok((request, sysctls, user))
    });
    let (request, sysctls, user) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return (Err(error), Vec::new()),
    };
    let spawned = pause::spawn(&pause::Pause {
        hostname: request.hostname.as_deref(),
        netns: netns.map(AsFd::as_fd),
        new_ipc: request.new_ipc,
        new_uts: request.new_uts,
        new_pid: request.new_pid,
        user: user.as_ref().map(|(namespace, maps)| pause::Joined {
            namespace: namespace.as_fd(),
            id: nobody(maps),
        }),
        sysctls: &sysctls,
        oom_score_adj: request.oom_score_adj,
        sibling: true,
    });
    match spawned {
        Ok(pause::Paused { pause, unreaped }) => {
            let kill = || {
                let _ = pidfd::send_signal(&pause.pidfd, nix::sys::signal::Signal::SIGKILL as i32);
            };
            // The shim may have died before the pause's death signal was armed.
            if rustix::process::getppid() != Some(shim) {
                kill();
            }
            let mapped = match &user {
                Some((_, maps)) => verify(pause.pid, maps),
                None => Ok(()),
            };
            let made = mapped.map(|()| pause.pid).inspect_err(|_| kill());
            let pidfds = std::iter::once(pause).chain(unreaped);
            (made, pidfds.map(|child| child.pidfd).collect())
        }
        Err(failed) => {
            let error = refused_sysctl(&failed, &request).unwrap_or_else(|| Error::Io {
                step: describe(failed.step, &request),
                source: failed.error,
            });
            let pidfds = failed.unreaped.into_iter().map(|child| child.pidfd);
            (Err(error), pidfds.collect())
        }
    }
}

/// The pod's user namespace, and the maps that it is to have.
fn user_namespace(
    request: &PauseRequest,
    netns: Option<&OwnedFd>,
) -> Result<Option<(OwnedFd, IdMaps)>, Error> {
    let Some(asked) = &request.user else {
        return Ok(None);
    };
    let maps = idmap::maps(Some(&asked.uids), Some(&asked.gids));
    let namespace = match netns {
        Some(netns) => userns::owner_of(netns).map_err(Error::io(
            "find the user namespace that owns the pod's network namespace",
        ))?,
        None => {
            let made = userns::make(&maps, false);
            made.map_err(Error::io("make the pod's user namespace"))?
                .user
        }
    };
    Ok(Some((namespace, maps)))
}

/// An id that no account has; the last that there is where that one is not mapped.
fn nobody(maps: &IdMaps) -> u32 {
    let last = |mappings: &[userns::Mapping]| {
        let last = mappings
            .iter()
            .map(|m| m.inside.saturating_add(m.count.saturating_sub(1)))
            .max();
        last.unwrap_or(0)
    };
    match (maps.uid(pause::PAUSE_UID), maps.gid(pause::PAUSE_UID)) {
        (Some(_), Some(_)) => pause::PAUSE_UID,
        _ => last(&maps.uids).min(last(&maps.gids)),
    }
}

/// No process of the pod comes to be with other maps than were asked for (SEC-ENG-13).
fn verify(pid: i32, asked: &IdMaps) -> Result<(), Error> {
    let step = || Error::io("enter the pod's user namespace");
    let maps = IdMaps::of_process(pid).map_err(step())?;
    if maps == *asked {
        return Ok(());
    }
    Err(step()(std::io::Error::other(
        "its maps are not the ones that the pod asks for: whoever made the pod's network namespace made another",
    )))
}

type Sysctls = Vec<(CString, Vec<u8>)>;

fn receive(reply: &OwnedFd) -> Result<(PauseRequest, Sysctls), Error> {
    let received =
        channel::receive_value::<PauseRequest>(reply).map_err(Error::io("read a request"))?;
    let (request, _) = received.ok_or_else(|| Error::Zygote("was asked for nothing".into()))?;
    let mut sysctls = Sysctls::new();
    for (name, value) in &request.sysctls {
        let path = sysctl_path(name).ok_or_else(|| Error::Spec {
            id: "pause".into(),
            reason: format!("sysctl {name:?} is not a name like net.ipv4.ip_forward"),
        })?;
        sysctls.push((path, value.clone().into_bytes()));
    }
    Ok((request, sysctls))
}

/// A sysctl that the kernel turned down is the asker's mistake; what fails for another reason is the machine's.
fn refused_sysctl(failed: &pause::Failed, request: &PauseRequest) -> Option<Error> {
    let pause::Step::Sysctl(at) = failed.step else {
        return None;
    };
    let (name, value) = request.sysctls.get(at)?;
    let reason = match Errno::from_io_error(&failed.error)? {
        // The last: it is a directory.
        Errno::NOENT | Errno::NOTDIR | Errno::ISDIR => {
            "this kernel has none of that name in the namespaces of a pod; of net.*, kernel.shm*, kernel.msg*, kernel.sem and \
             fs.mqueue.* those can be set that are there"
                .to_owned()
        }
        Errno::ACCESS | Errno::PERM => "it can't be set in the namespaces of a pod".to_owned(),
        Errno::INVAL | Errno::RANGE | Errno::OVERFLOW => {
            format!("the kernel does not take the value {value:?}: {}", failed.error)
        }
        _ => return None,
    };
    let name = name.clone();
    Some(Error::Sysctl { name, reason })
}

fn describe(step: pause::Step, request: &PauseRequest) -> String {
    match step {
        pause::Step::Clone => "make the pod's namespaces".into(),
        pause::Step::JoinUser => "enter the pod's user namespace".into(),
        pause::Step::JoinNetns => "join the pod's network namespace".into(),
        pause::Step::SetHostname => {
            format!(
                "set hostname {:?} in the pod",
                request.hostname.as_deref().unwrap_or_default()
            )
        }
        pause::Step::Sysctl(at) => match request.sysctls.get(at) {
            Some((name, value)) => format!("set sysctl {name} to {value:?} in the pod"),
            None => "set a sysctl in the pod".into(),
        },
        pause::Step::OomScoreAdj => "set oom_score_adj of the pod's pause".into(),
        pause::Step::EmptyRoot => "give the pod's pause an empty root".into(),
        pause::Step::Signals => "install the pause's signal handlers".into(),
        pause::Step::Privileges => "take the pause's privileges away".into(),
        pause::Step::Report => "hear from the pause".into(),
    }
}

/// `net.ipv4.ip_forward`, or `net/ipv4/conf/eth0.1/forwarding` where a name has dots of its own, as sysctl(8) takes them.
fn sysctl_path(name: &str) -> Option<std::ffi::CString> {
    let separator = name.find(['.', '/']).map(|at| name.as_bytes()[at])?;
    let swap = |c: char| match (separator, c) {
        (b'.', '.') => '/',
        (b'.', '/') => '.',
        (_, c) => c,
    };
    let path: String = name.chars().map(swap).collect();
    let sound = path
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    if !sound {
        return None;
    }
    std::ffi::CString::new(format!("/proc/sys/{path}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_names_a_file_below_proc_sys_or_nothing() {
        for (name, path) in [
            ("net.ipv4.ip_forward", Some("/proc/sys/net/ipv4/ip_forward")),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding"),
            ),
            ("kernel", None),
            ("net/../../etc/passwd", None),
            ("net..x", None),
            ("/kernel/x", None),
            ("kernel.a\0b", None),
        ] {
            let made = sysctl_path(name);
            assert_eq!(
                made.as_deref().map(|p| p.to_str().unwrap()),
                path,
                "{name:?}"
            );
        }
    }
}
