//! What a container has changed of its image, as a layer: its overlay's upper directory, whiteouts as the image specification has them.
//!
//! Everything is opened from the directory above it and no link is followed: these are a container's files, and it may have processes
//! that nobody has stopped.

use std::{
    collections::HashMap,
    ffi::{CStr, OsStr},
    fs::File,
    io::{self, BufWriter, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat},
    io::Errno,
};

use super::{Deadline, archive::InTime};
use crate::error::Error;

const BUFFER_BYTES: usize = 1 << 18;
/// As deep as a layer may be: what is written here is to be unpacked again.
const MAX_DEPTH: usize = 512;
/// The kernel's XATTR_LIST_MAX and XATTR_SIZE_MAX.
const MAX_XATTR_BYTES: usize = 64 << 10;
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
const OVERLAY: &[u8] = b"trusted.overlay.";

type Tar = tar::Builder<BufWriter<InTime<File>>>;

/// Writes the layer of `upper` to the new file `to`.
pub fn write(upper: &Path, to: &Path, deadline: Deadline) -> Result<(), Error> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(Error::io("make", to))?;
    let inner = InTime {
        inner: file,
        deadline,
    };
    let out = BufWriter::with_capacity(BUFFER_BYTES, inner);
    let mut layer = Layer {
        tar: tar::Builder::new(out),
        links: HashMap::new(),
        deadline,
    };
    let done = rustix::fs::open(upper, DIRECTORY, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|root| layer.directory(&root, Path::new(""), 0))
        .and_then(|()| layer.tar.into_inner())
        .and_then(|out| out.into_inner().map_err(|e| e.into_error()));
    done.map(drop)
        .map_err(Error::io("write down the changed files of", upper))
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

struct Layer {
    tar: Tar,
    /// Files with several names, by device and inode: where the first was.
    links: HashMap<(u64, u64), PathBuf>,
    deadline: Deadline,
}

impl Layer {
    fn directory(&mut self, dir: &OwnedFd, path: &Path, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other(format!(
                "its directories are deeper than {MAX_DEPTH}"
            )));
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(dir)? {
            let name = entry?.file_name().to_owned();
            if name.as_c_str() != c"." && name.as_c_str() != c".." {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            self.deadline.check()?;
            let stat = match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat?,
            };
            let at = path.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(dir, &name, &at, &stat, depth)
                .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", at.display())))?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &CStr,
        at: &Path,
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = openat(dir, name, DIRECTORY, Mode::empty())?;
                let attributes = Attributes::of(below.as_fd())?;
                self.attributes(&attributes)?;
                let mut header = header(stat, tar::EntryType::Directory);
                self.tar.append_data(&mut header, at, io::empty())?;
                if attributes.opaque {
                    self.marker(&at.join(OPAQUE))?;
                }
                self.directory(&below, at, depth + 1)
            }
            FileType::RegularFile => {
                if self.linked(at, stat)? {
                    return Ok(());
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::empty())?;
                let attributes = Attributes::of(file.as_fd())?;
                self.attributes(&attributes)?;
                let mut header = header(stat, tar::EntryType::Regular);
                let size = stat.st_size as u64;
                header.set_size(size);
                // A file that shrank would shift all that follows.
                let whole = File::from(file).chain(io::repeat(0)).take(size);
                self.tar.append_data(&mut header, at, whole)
            }
            FileType::Symlink => {
                if self.linked(at, stat)? {
                    return Ok(());
                }
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                let mut header = header(stat, tar::EntryType::Symlink);
                self.tar
                    .append_link(&mut header, at, OsStr::from_bytes(target.to_bytes()))
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let hidden = [WHITEOUT.as_bytes(), name.to_bytes()].concat();
                self.marker(&at.with_file_name(OsStr::from_bytes(&hidden)))
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                let mut header = header(
                    stat,
                    match kind {
                        FileType::CharacterDevice => tar::EntryType::Char,
                        FileType::BlockDevice => tar::EntryType::Block,
                        _ => tar::EntryType::Fifo,
                    },
                );
                header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                self.tar.append_data(&mut header, at, io::empty())
            }
            // A socket is its owner's, which makes it anew; a tar has no word for it.
            _ => Ok(()),
        }
    }

    /// Whether the file is another name of one that is written already.
    fn linked(&mut self, at: &Path, stat: &Stat) -> io::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        match self.links.get(&(stat.st_dev, stat.st_ino)) {
            Some(first) => {
                let mut header = header(stat, tar::EntryType::Link);
                self.tar.append_link(&mut header, at, first)?;
                Ok(true)
            }
            None => {
                let key = (stat.st_dev, stat.st_ino);
                self.links.insert(key, at.to_owned());
                Ok(false)
            }
        }
    }

    /// An entry that says something of another.
    fn marker(&mut self, at: &Path) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        self.tar.append_data(&mut header, at, io::empty())
    }

    fn attributes(&mut self, attributes: &Attributes) -> io::Result<()> {
        if attributes.kept.is_empty() {
            return Ok(());
        }
        let pairs = attributes
            .kept
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(pairs)
    }
}

fn header(stat: &Stat, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(stat.st_mtime.max(0) as u64);
    header.set_size(0);
    header
}

/// The extended attributes of a file.
#[derive(Debug, Default)]
struct Attributes {
    /// As PAX records.
    kept: Vec<(String, Vec<u8>)>,
    /// Nothing of the lower layers is seen in this directory.
    opaque: bool,
}

impl Attributes {
    fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        let mut names = vec![0; MAX_XATTR_BYTES];
        let length = match rustix::fs::flistxattr(file, names.as_mut_slice()) {
            Err(Errno::NOTSUP) => return Ok(Self::default()),
            length => length?,
        };
        let mut attributes = Self::default();
        for name in names[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            let mut value = vec![0; MAX_XATTR_BYTES];
            let length = match rustix::fs::fgetxattr(file, name, value.as_mut_slice()) {
                Err(Errno::NODATA) => continue,
                length => length?,
            };
            value.truncate(length);
            match name.strip_prefix(OVERLAY) {
                Some(b"opaque") => attributes.opaque |= value == b"y",
                // Names of the overlay's own book-keeping, which the next one keeps for itself.
                Some(b"origin" | b"impure" | b"nlink" | b"uuid" | b"protattr") => {}
                Some(other) => {
                    return Err(io::Error::other(format!(
                        "the overlay keeps something of it elsewhere ({})",
                        String::from_utf8_lossy(other)
                    )));
                }
                None => {
                    // PAX keys are UTF-8.
                    if let Ok(name) = std::str::from_utf8(name) {
                        attributes
                            .kept
                            .push((format!("SCHILY.xattr.{name}"), value));
                    }
                }
            }
        }
        Ok(attributes)
    }
}
