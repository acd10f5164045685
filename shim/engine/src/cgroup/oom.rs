//! Word of a cgroup that runs out of memory, while its processes live.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    fs::inotify,
};

use super::{Cgroup, Error, hierarchy::Hierarchies};

/// Holds what one read brings: eight bytes of an eventfd, or events of inotify without a name.
pub const OOM_BUFFER_BYTES: usize = 64;

impl Cgroup {
    /// A descriptor that becomes readable when the cgroup may have run out of memory, and when it is removed: [`Cgroup::oom_kills`] tells. On
    /// v1 that is before the kernel has killed anybody. It does not block, and is read with a buffer of at least [`OOM_BUFFER_BYTES`]. None:
    /// this machine has no memory controller.
    pub fn watch_oom(&self) -> Result<Option<OwnedFd>, Error> {
        let machine = Hierarchies::of_this_machine()?;
        let Some(directory) = machine
            .controller("memory")
            .map(|h| h.directory(self.path()))
        else {
            return Ok(None);
        };
        let is_v2 = machine.v2().is_some();
        let file = directory.join(if is_v2 {
            "memory.events"
        } else {
            "memory.oom_control"
        });
        let watched = if is_v2 {
            inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).and_then(
                |fd| {
                    inotify::add_watch(&fd, &file, inotify::WatchFlags::MODIFY)?;
                    Ok(fd)
                },
            )
        } else {
            eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
        };
        let fd = watched
            .map_err(io::Error::from)
            .map_err(Error::io("watch", &file))?;
        if !is_v2 {
            // The kernel keeps what it needs of the file: it need not stay open (Documentation/admin-guide/cgroup-v1/memory.rst, 9 and 10).
            fs::File::open(&file)
                .and_then(|control| {
                    let line = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
                    fs::write(directory.join("cgroup.event_control"), line)
                })
                .map_err(Error::io("watch", &file))?;
        }
        Ok(Some(fd))
    }
}
