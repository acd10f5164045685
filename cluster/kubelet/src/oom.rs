//! The kernel's own words of whom it has killed for want of memory. Of pods their containers' ends tell; of all else the node does.

use std::{
    fs::File,
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use rustix::{fs::OFlags, io::Errno};

use crate::{Level, node::Node};

const LOG: &str = "/dev/kmsg";
/// The kernel's own bound of a record.
const RECORD_BYTES: usize = 8192;
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A process that the kernel has killed.
#[derive(Debug, PartialEq, Eq)]
struct Killed<'a> {
    cgroup: &'a str,
    name: &'a str,
    pid: u32,
}

/// Tells until it is dropped; not at all where the kernel's log may not be read.
pub(crate) async fn watch(node: Node) {
    if let Err(error) = follow(&node).await {
        tracing::info!(%error, "the kernel's log ({LOG}) is not followed: nobody is told of a SystemOOM");
    }
}

async fn follow(node: &Node) -> io::Result<()> {
    let flags = OFlags::NONBLOCK;
    let mut log = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(LOG)?;
    // what was before is not this kubelet's to tell
    log.seek(SeekFrom::End(0))?;
    let mut record = vec![0; RECORD_BYTES];
    loop {
        // one record a call
        let read = match log.read(&mut record) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) if has_next(&error) => continue,
            Err(error) => return Err(error),
        };
        let text = String::from_utf8_lossy(&record[..read]);
        if let Some(killed) = parse(&text)
            && !is_in_a_pod(node, &killed)
        {
            let Killed { name, pid, .. } = killed;
            let message = format!("System OOM encountered, victim process: {name}, pid: {pid}");
            node.tell_of_node(Level::Warning, "SystemOOM", message);
        }
    }
}

/// Older records were overwritten before they were read: the next read is of what is there.
fn has_next(error: &io::Error) -> bool {
    error.kind() == ErrorKind::Interrupted
        || error.raw_os_error() == Some(Errno::PIPE.raw_os_error())
}

fn is_in_a_pod(node: &Node, killed: &Killed<'_>) -> bool {
    let cgroups = node.cgroups.as_ref();
    cgroups.is_none_or(|cgroups| cgroups.holds(killed.cgroup))
}

/// `6,511925,50484639557,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/a,task=b,pid=1,uid=0`,
/// of Linux 5.0 and later. A name may have anything in it.
fn parse(record: &str) -> Option<Killed<'_>> {
    let (_, message) = record.split_once(';')?;
    let message = message.lines().next()?.strip_prefix("oom-kill:")?;
    let (_, rest) = message.split_once(",task_memcg=")?;
    let (cgroup, rest) = rest.split_once(",task=")?;
    let (name, rest) = rest.rsplit_once(",pid=")?;
    let pid = rest.split(',').next()?.parse().ok()?;
    Some(Killed { cgroup, name, pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tests::node;

    #[test]
    fn whom_the_kernel_has_killed_is_read_and_whether_it_was_a_pods() {
        let of = |cgroup: &str, name: &str| {
            format!(
                "6,5,50,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,mems_allowed=0,oom_memcg=/a,task_memcg={cgroup},task={name},pid=12,uid=0\n SUBSYSTEM=memory\n"
            )
        };
        let text = of("/system.slice/x.service", "a,pid=3,task=b");
        let killed = parse(&text).unwrap();
        assert_eq!(
            killed,
            Killed {
                cgroup: "/system.slice/x.service",
                name: "a,pid=3,task=b",
                pid: 12
            }
        );
        for other in [
            "",
            "6,1,2,-;eth0: link is up",
            "6,1,2,-;oom-kill:constraint=x",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
        let node = node("/k");
        for (cgroup, is_pods) in [
            ("/kubepods/burstable/pod1/a", true),
            ("/outer/kubepods/pod1", true),
            ("/kubepods", true),
            ("/kubepods-not/pod1", false),
            ("/", false),
        ] {
            let text = of(cgroup, "a");
            let killed = parse(&text).unwrap();
            assert_eq!(is_in_a_pod(&node, &killed), is_pods, "{cgroup}");
        }
    }
}
