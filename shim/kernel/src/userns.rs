//! User namespaces (user_namespaces(7)): made with their maps, asked for by what they own.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use crate::{
    clone::{Child, Clone},
    descriptors::close_range,
    pidfd,
};

/// Which user namespace owns a namespace (Linux 4.9); linux/nsfs.h.
const NS_GET_USERNS: libc::c_ulong = 0xb701;

/// Ids from `inside` on are those from `outside` on, `count` of them.
#[derive(Debug, std::clone::Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// The maps of a user namespace, as its parent sees them.
#[derive(Debug, std::clone::Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    pub uids: Vec<Mapping>,
    pub gids: Vec<Mapping>,
}

impl IdMaps {
    /// Those that a process lives with, as the caller's namespace sees them.
    pub fn of_process(pid: i32) -> io::Result<IdMaps> {
        let read = |file: &str| parse(&fs::read_to_string(format!("/proc/{pid}/{file}"))?);
        Ok(IdMaps {
            uids: read("uid_map")?,
            gids: read("gid_map")?,
        })
    }

    /// The user outside that is `uid` inside.
    pub fn uid(&self, uid: u32) -> Option<u32> {
        outside(&self.uids, uid)
    }

    pub fn gid(&self, gid: u32) -> Option<u32> {
        outside(&self.gids, gid)
    }
}

fn outside(mappings: &[Mapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.inside)?;
        (offset < mapping.count).then(|| mapping.outside.checked_add(offset))?
    })
}

/// A map as the kernel shows it.
pub fn parse(text: &str) -> io::Result<Vec<Mapping>> {
    let nonsense = || {
        let text: String = text.chars().take(80).collect();
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{text:?} is no map of ids"),
        )
    };
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let mapping = Mapping {
            inside: next()?,
            outside: next()?,
            count: next()?,
        };
        numbers.next().is_none().then_some(mapping)
    };
    text.lines().map(|l| line(l).ok_or_else(nonsense)).collect()
}

/// A map as the kernel reads it.
fn text(mappings: &[Mapping]) -> String {
    let mut text = String::new();
    for Mapping {
        inside,
        outside,
        count,
    } in mappings
    {
        let _ = writeln!(text, "{inside} {outside} {count}");
    }
    text
}

/// A user namespace with its maps, and where it was asked for a network namespace of its own. They live as long as these are open,
/// or something else holds them.
#[derive(Debug)]
pub struct New {
    pub user: OwnedFd,
    pub network: Option<OwnedFd>,
}

/// Makes a user namespace, a child of the caller's. Both maps are whole when this returns, or nothing is left of it.
///
/// No process can leave a user namespace again, so it is a short-lived child that makes it, and the caller writes the maps (with
/// CAP_SETUID and CAP_SETGID: setgroups stays allowed inside, which is sound, since nobody inside has chosen the groups that are mapped;
/// CVE-2014-8989). EINVAL: the kernel does not take a map: more than 340 lines, a page of text or more (Linux 4.15), ranges that
/// overlap.
pub fn make(maps: &IdMaps, with_network: bool) -> io::Result<New> {
    let maker = rustix::process::getpid().as_raw_nonzero().get();
    let mut namespaces = libc::CLONE_NEWUSER;
    if with_network {
        namespaces |= libc::CLONE_NEWNET;
    }
    let clone = Clone {
        namespaces,
        ..Clone::default()
    };
    // SAFETY: `hold` only makes raw system calls and allocates nothing.
    let child = unsafe { clone.spawn_unchecked(|| hold(maker)) }?;
    let made = furnish(&child, maps, with_network);
    let _ = pidfd::send_signal(&child.pidfd, libc::SIGKILL);
    // Somebody who waits for every child may have done so already.
    let _ = pidfd::wait(&child.pidfd);
    made
}

/// The child's life: to be there until it is killed. It holds no descriptor of its maker's.
fn hold(maker: i32) -> i32 {
    // SAFETY: prctl and getppid touch no memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        // It may have ended before that.
        if libc::getppid() != maker {
            return 1;
        }
    }
    let _ = close_range(0, u32::MAX, 0);
    loop {
        // SAFETY: pause has no precondition.
        unsafe { libc::pause() };
    }
}

fn furnish(child: &Child, maps: &IdMaps, with_network: bool) -> io::Result<New> {
    let proc = format!("/proc/{}", child.pid);
    let write = |file: &str, mappings: &[Mapping]| {
        // No write at all would be no error.
        if mappings.is_empty() {
            return Err(said(
                &format!("write its {file}"),
                io::ErrorKind::InvalidInput.into(),
            ));
        }
        fs::write(format!("{proc}/{file}"), text(mappings))
            .map_err(|error| said(&format!("write its {file}"), error))
    };
    write("uid_map", &maps.uids)?;
    write("gid_map", &maps.gids)?;
    let open = |name: &str| File::open(format!("{proc}/ns/{name}")).map(OwnedFd::from);
    Ok(New {
        user: open("user")?,
        network: with_network.then(|| open("net")).transpose()?,
    })
}

/// With the step in words, and the errno kept as far as std lets it.
fn said(step: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{step}: {error}"))
}

/// The user namespace that owns a namespace: whose capabilities count in it. EPERM: it is not one of the caller's or below it.
pub fn owner_of(namespace: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is borrowed for the whole call, which takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), NS_GET_USERNS) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Enters a user namespace, for the calling process, which has one thread: it holds every capability there, and none outside. Raw, for a
/// child that may not allocate.
pub(crate) fn join(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a descriptor and a flag; no memory is touched.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWUSER) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Becomes root of the user namespace that the calling process is in, with no other groups. Raw, for a child that may not allocate.
/// EINVAL: 0 is not mapped there.
pub fn become_root() -> io::Result<()> {
    // The raw calls: glibc's wrappers would talk to other threads that a copy of a process does not have.
    // SAFETY: numbers, and null for an empty list.
    let answers = unsafe {
        [
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
            libc::syscall(libc::SYS_setresgid, 0, 0, 0),
            libc::syscall(libc::SYS_setresuid, 0, 0, 0),
        ]
    };
    if answers.contains(&-1) {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::linux::fs::MetadataExt;

    use super::*;

    fn maps(uids: &[(u32, u32, u32)]) -> IdMaps {
        let list = |list: &[(u32, u32, u32)]| {
            list.iter()
                .map(|&(inside, outside, count)| Mapping {
                    inside,
                    outside,
                    count,
                })
                .collect()
        };
        IdMaps {
            uids: list(uids),
            gids: list(uids),
        }
    }

    #[test]
    fn a_namespace_has_the_maps_it_was_made_with_and_owns_its_network() {
        let asked = maps(&[(0, 300_000, 1000), (5000, 400_000, 7)]);
        let made = make(&asked, true).unwrap();
        let inode = |fd: &OwnedFd| File::from(fd.try_clone().unwrap()).metadata().unwrap();
        let owner = owner_of(made.network.as_ref().unwrap()).unwrap();
        assert_eq!(inode(&owner).st_ino(), inode(&made.user).st_ino());
        let child = {
            let user = made.user.as_fd();
            let run = || match join(user) {
                Ok(()) => loop {
                    // SAFETY: pause has no precondition.
                    unsafe { libc::pause() };
                },
                Err(_) => 1,
            };
            // SAFETY: the closure only makes raw system calls.
            unsafe { Clone::default().spawn_unchecked(run) }.unwrap()
        };
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while IdMaps::of_process(child.pid).unwrap() != asked {
            assert!(std::time::Instant::now() < until);
        }
        pidfd::send_signal(&child.pidfd, libc::SIGKILL).unwrap();
        pidfd::wait(&child.pidfd).unwrap();
        let host = owner_of(File::open("/proc/self/ns/net").unwrap()).unwrap();
        assert_ne!(inode(&host).st_ino(), inode(&made.user).st_ino());
    }

    // SEC-ENG-13, SEC-ENG-21
    #[test]
    fn maps_that_the_kernel_does_not_take_are_errors_and_340_lines_are_whole() {
        let lines = |count: u32| {
            let list: Vec<_> = (0..count).map(|at| (at, 100_000 + at, 1)).collect();
            maps(&list)
        };
        assert!(
            make(&lines(340), false).is_err(),
            "more than a page of text"
        );
        let short: Vec<_> = (0..340).map(|at| (at, 1000 + at, 1)).collect();
        make(&maps(&short), false).unwrap();
        for (what, refused) in [
            ("341 lines", {
                let list: Vec<_> = (0..341).map(|at| (at, 1000 + at, 1)).collect();
                maps(&list)
            }),
            ("overlap", maps(&[(0, 1000, 10), (5, 3000, 10)])),
            ("no length", maps(&[(0, 1000, 0)])),
            ("none", maps(&[])),
            ("past the end", maps(&[(0, u32::MAX - 5, 100)])),
        ] {
            assert!(make(&refused, false).is_err(), "{what}");
        }
    }

    #[test]
    fn ids_are_found_in_their_range_and_nowhere_else() {
        let maps = maps(&[(0, 1000, 10), (20, 5000, 1)]);
        for (inside, outside) in [
            (0, Some(1000)),
            (9, Some(1009)),
            (10, None),
            (20, Some(5000)),
            (21, None),
            (u32::MAX, None),
        ] {
            assert_eq!(maps.uid(inside), outside, "{inside}");
        }
        assert_eq!(parse(&text(&maps.uids)).unwrap(), maps.uids);
        assert!(parse("0 x 1\n").is_err() && parse("0 1\n").is_err() && parse("0 1 2 3").is_err());
    }
}
