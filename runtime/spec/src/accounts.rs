//! /etc/passwd and /etc/group of a container's root filesystem, which its image's author wrote: read beneath the root only
//! (openat2, Linux 5.6), regular files only, and bounded.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use berth_beneath::openat2;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat},
    io::Errno,
};

use crate::error::{Error, because};

/// Bytes of a file that are read: thousands of accounts fit; a gigabyte (CVE-2026-47262) does not.
const FILE_LIMIT: u64 = 4 << 20;

/// Bytes of a line: a group with some thousand members fits.
const LINE_LIMIT: usize = 256 << 10;

/// The greatest id taken: Kubernetes' own bound. What a larger one becomes after a conversion to 32 bits with a sign is how a
/// container once got uid 0 (CVE-2024-40635).
pub(crate) const ID_LIMIT: u32 = i32::MAX as u32;

pub(crate) const PASSWD: &str = "etc/passwd";
pub(crate) const GROUP: &str = "etc/group";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub name: Vec<u8>,
    pub uid: u32,
    pub gid: u32,
    pub home: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub name: Vec<u8>,
    pub gid: u32,
    pub members: Vec<Vec<u8>>,
}

/// Both files, parsed. A file that is not there is an empty one: images without any account are common.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    pub users: Vec<Account>,
    pub groups: Vec<Group>,
}

impl Accounts {
    pub fn read(rootfs: &Path) -> Result<Self, Error> {
        let root = open(
            rootfs,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| Error::Read {
            path: rootfs.to_path_buf(),
            source: errno.into(),
        })?;
        Ok(Self {
            users: lines(PASSWD, &read(&root, PASSWD)?)?
                .filter_map(parse_user)
                .collect(),
            groups: lines(GROUP, &read(&root, GROUP)?)?
                .filter_map(parse_group)
                .collect(),
        })
    }

    pub fn by_uid(&self, uid: u32) -> Option<&Account> {
        self.users.iter().find(|account| account.uid == uid)
    }

    pub fn by_name(&self, name: &str) -> Option<&Account> {
        self.users
            .iter()
            .find(|account| account.name == name.as_bytes())
    }

    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups
            .iter()
            .find(|group| group.name == name.as_bytes())
    }

    /// The groups that name the user as a member, in the file's order.
    pub fn groups_of(&self, user: &[u8]) -> impl Iterator<Item = u32> {
        self.groups
            .iter()
            .filter(move |group| group.members.iter().any(|member| member == user))
            .map(|group| group.gid)
    }
}

fn read(root: &OwnedFd, file: &'static str) -> Result<Vec<u8>, Error> {
    let wrong = |why: String| Error::Accounts { file, why };
    // O_PATH first: opening a FIFO or a device can block or act before anyone sees what it is.
    let found = openat2(
        root,
        file,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let found = match found {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        Err(errno) => return Err(wrong(because("open beneath the root", errno))),
    };
    let stat = fstat(&found).map_err(|errno| wrong(because("stat", errno)))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(wrong("is not a regular file".into()));
    }
    if stat.st_size as u64 > FILE_LIMIT {
        return Err(wrong(format!(
            "is {} bytes long; at most {FILE_LIMIT} are read",
            stat.st_size
        )));
    }
    // The same file once more, now readable. It is ours to open: the magic link is our own /proc's.
    let readable = openat(
        CWD,
        format!("/proc/self/fd/{}", found.as_raw_fd()),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| wrong(because("open", errno)))?;
    let mut bytes = Vec::with_capacity(stat.st_size as usize);
    File::from(readable)
        .take(FILE_LIMIT)
        .read_to_end(&mut bytes)
        .map_err(|err| wrong(because("read", err)))?;
    Ok(bytes)
}

fn lines<'a>(file: &'static str, bytes: &'a [u8]) -> Result<impl Iterator<Item = &'a [u8]>, Error> {
    if let Some(at) = bytes
        .split(|byte| *byte == b'\n')
        .position(|line| line.len() > LINE_LIMIT)
    {
        return Err(Error::Accounts {
            file,
            why: format!("line {} is longer than {LINE_LIMIT} bytes", at + 1),
        });
    }
    Ok(bytes.split(|byte| *byte == b'\n'))
}

/// A line that makes no sense is passed over, as libc does. Above all a number that does not parse is never 0.
fn parse_user(line: &[u8]) -> Option<Account> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (_password, uid, gid) = (fields.next()?, id(fields.next()?)?, id(fields.next()?)?);
    let (_gecos, home) = (fields.next(), fields.next().unwrap_or_default());
    Some(Account {
        name: name.to_vec(),
        uid,
        gid,
        home: home.to_vec(),
    })
}

fn parse_group(line: &[u8]) -> Option<Group> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let (_password, gid) = (fields.next()?, id(fields.next()?)?);
    let members = fields
        .next()
        .unwrap_or_default()
        .split(|byte| *byte == b',')
        .filter(|member| !member.is_empty());
    Some(Group {
        name: name.to_vec(),
        gid,
        members: members.map(<[u8]>::to_vec).collect(),
    })
}

/// Decimal digits and nothing else.
fn id(field: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(field)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok().filter(|id| *id <= ID_LIMIT)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{fs::symlink, net::UnixListener},
        time::{Duration, Instant},
    };

    use rustix::fs::{makedev, mknodat};

    use super::*;

    fn rootfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        root
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over_and_never_uid_0() {
        let root = rootfs();
        fs::write(
            root.path().join(PASSWD),
            "root:x:0:0:root:/root:/bin/sh\n\
             # comment\n\
             \n\
             :x:0:0:::\n\
             short:x:5\n\
             empty:x::0::/:\n\
             hex:x:0x0:0::/:\n\
             signed:x:+0:0::/:\n\
             minus:x:-1:0::/:\n\
             spaced:x: 0:0::/:\n\
             big:x:4294967296:0::/:\n\
             max:x:2147483648:0::/:\n\
             badgroup:x:7:0x0::/:\n\
             app:x:1000:1001:App:/home/app:/bin/sh\n\
             bare:x:1002:1002\n",
        )
        .unwrap();
        let accounts = Accounts::read(root.path()).unwrap();
        let names: Vec<_> = accounts
            .users
            .iter()
            .map(|user| String::from_utf8_lossy(&user.name).into_owned())
            .collect();
        assert_eq!(names, ["root", "app", "bare"]);
        assert_eq!(accounts.by_uid(1000).unwrap().gid, 1001);
        assert_eq!(accounts.by_name("app").unwrap().home, b"/home/app");
        assert!(accounts.groups.is_empty());
    }

    #[test]
    fn groups_are_those_that_name_the_user() {
        let root = rootfs();
        fs::write(
            root.path().join(GROUP),
            "a:x:1:x,app\nb:x:2:\nc:x:3:application\nd:x:4:app,\nbad:x:no:app\n",
        )
        .unwrap();
        let accounts = Accounts::read(root.path()).unwrap();
        assert_eq!(accounts.groups_of(b"app").collect::<Vec<_>>(), [1, 4]);
        assert_eq!(accounts.group("b").unwrap().gid, 2);
        assert!(accounts.group("bad").is_none());
    }

    #[test]
    fn a_root_without_the_files_has_no_accounts() {
        let empty = tempfile::tempdir().unwrap();
        assert!(Accounts::read(empty.path()).unwrap().users.is_empty());
        fs::write(empty.path().join("etc"), "not a directory").unwrap();
        assert!(Accounts::read(empty.path()).unwrap().users.is_empty());
    }

    // SEC-IMG-12
    #[test]
    fn hostile_files_are_refused_at_once() {
        type Make = fn(&Path);
        let corpus: [(&str, Make); 9] = [
            ("fifo", |at| {
                mknodat(CWD, at, FileType::Fifo, Mode::RWXU, 0).unwrap()
            }),
            ("socket", |at| drop(UnixListener::bind(at).unwrap())),
            ("directory", |at| fs::create_dir(at).unwrap()),
            ("zero device", |at| {
                mknodat(
                    CWD,
                    at,
                    FileType::CharacterDevice,
                    Mode::RWXU,
                    makedev(1, 5),
                )
                .unwrap();
            }),
            ("5 GB sparse", |at| {
                File::create(at).unwrap().set_len(5_000_000_000).unwrap()
            }),
            ("1 GB line", |at| {
                use std::os::unix::fs::FileExt;
                let file = File::create(at).unwrap();
                file.set_len(1 << 30).unwrap();
                file.write_at(b"root:x:0:0:", 0).unwrap();
            }),
            ("a line over the limit", |at| {
                fs::write(at, vec![b'a'; LINE_LIMIT + 1]).unwrap()
            }),
            ("loop", |at| symlink(at.file_name().unwrap(), at).unwrap()),
            ("magic link", |at| symlink("/proc/self/fd/0", at).unwrap()),
        ];
        for file in [PASSWD, GROUP] {
            for (name, make) in &corpus {
                let root = rootfs();
                make(&root.path().join(file));
                let started = Instant::now();
                let answer = Accounts::read(root.path());
                assert!(
                    started.elapsed() < Duration::from_secs(2),
                    "{name} of {file}"
                );
                match *name {
                    // no /proc beneath this root: it leads nowhere, and not to ours
                    "magic link" => assert!(answer.unwrap().users.is_empty()),
                    _ => assert!(
                        matches!(answer, Err(Error::Accounts { .. })),
                        "{name} of {file}"
                    ),
                }
            }
        }
    }

    // SEC-IMG-12
    #[test]
    fn links_never_lead_to_the_hosts_files() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("passwd");
        fs::write(&secret, "host:x:4242:4242::/:\n").unwrap();
        let up = format!(
            "{}{}",
            "../".repeat(30),
            secret.strip_prefix("/").unwrap().display()
        );
        for target in [secret.to_str().unwrap(), &up] {
            let root = rootfs();
            symlink(target, root.path().join(PASSWD)).unwrap();
            assert!(
                Accounts::read(root.path()).unwrap().users.is_empty(),
                "{target}"
            );
        }
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("etc")).unwrap();
        assert!(Accounts::read(root.path()).unwrap().users.is_empty());
    }

    #[test]
    fn links_within_the_root_are_followed() {
        let root = rootfs();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::write(root.path().join("usr/lib/passwd"), "app:x:7:7::/:\n").unwrap();
        symlink("/usr/lib/passwd", root.path().join(PASSWD)).unwrap();
        assert_eq!(Accounts::read(root.path()).unwrap().users[0].uid, 7);
    }
}
