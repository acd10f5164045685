//! Unpacks one layer into a directory, as overlayfs wants it.
//!
//! Every path is resolved by the kernel with the layer's directory as its root (`openat2`, `RESOLVE_IN_ROOT`, Linux 5.6), so `..`,
//! absolute links and links that were put in the way can't lead out of it, whatever the order of entries (SEC-IMG-01). The last component
//! is never followed.

use std::{
    fs::File,
    io::{BufRead, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid,
        XattrFlags,
    },
    io::Errno,
};

use crate::{
    error::Error,
    remove::remove_at,
    space::Space,
    tarstream::{Entry, Kind, TarError, TarReader, shown},
};

/// Entries of one layer. The largest public images have some hundred thousand files in all.
const MAX_ENTRIES: u64 = 2_000_000;
/// Directories of one layer: their times are kept in memory until the end, about 100 bytes each.
const MAX_DIRECTORIES: usize = 300_000;
/// Bytes of their paths, which could be 4 KiB each (SEC-IMG-07). Large images have some 5 MiB.
const MAX_DIRECTORY_PATH_BYTES: usize = 16 << 20;
/// PATH_MAX without its NUL.
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 255;
const MAX_DEPTH: usize = 512;
/// XATTR_SIZE_MAX of the kernel.
const MAX_XATTR_BYTES: usize = 64 << 10;
/// Directories that a layer uses without describing them; see [`Unpacked::implicit`].
const MAX_IMPLICIT: usize = 10_000;
/// Bytes of their paths: they stand in the layer's record.
const MAX_IMPLICIT_PATH_BYTES: usize = 1 << 20;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

/// What one layer takes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// Bytes on the disk, by its blocks.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories that the layer has entries in but no entry of: their owner and mode are the lower layers' business.
    pub(crate) implicit: Vec<String>,
}

/// Times and mode of a directory, set when nothing is written into it any more.
struct Pending {
    path: Box<[u8]>,
    mode: Mode,
    mtime: (i64, u32),
}

struct Untar<'a> {
    root: OwnedFd,
    layer: &'a str,
    shown: &'a Path,
    space: Space,
    /// The directory of the last entry: entries of one directory come together.
    parent: Option<(Vec<u8>, OwnedFd)>,
    pending: Vec<Pending>,
    pending_path_bytes: usize,
    unpacked: Unpacked,
    implicit_path_bytes: usize,
    block: u64,
}

/// Unpacks the tar stream `input` into the directory `root`, which is empty. On an error the caller removes the directory.
pub(crate) fn untar<R: BufRead>(input: R, root: &Path, layer: &str) -> Result<Unpacked, Error> {
    let at = |errno| Error::io(format!("layer {layer}: open"), root, errno);
    let fd =
        rustix::fs::openat(CWD, root, DIRECTORY | OFlags::NOFOLLOW, Mode::empty()).map_err(at)?;
    let space = Space::of(root)?;
    let block = rustix::fs::fstat(&fd).map_err(at)?.st_blksize as u64;
    let mut untar = Untar {
        root: fd,
        layer,
        shown: root,
        space,
        parent: None,
        pending: Vec::new(),
        pending_path_bytes: 0,
        unpacked: Unpacked::default(),
        implicit_path_bytes: 0,
        block: block.clamp(512, 1 << 16),
    };
    let mut reader = TarReader::new(input);
    let mut entries = 0;
    loop {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(untar.tar_error(error)),
        };
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(untar.refuse(&entry.path, "the layer has more than 2000000 entries"));
        }
        untar.entry(&entry, &mut reader)?;
    }
    reader.drain().map_err(|error| untar.tar_error(error))?;
    untar.finish()
}

impl Untar<'_> {
    fn refuse(&self, path: &[u8], why: impl Into<String>) -> Error {
        Error::Entry {
            layer: self.layer.to_owned(),
            entry: shown(path),
            why: why.into(),
        }
    }

    fn tar_error(&self, error: TarError) -> Error {
        match error {
            TarError::Refused { entry, why } => Error::Entry {
                layer: self.layer.to_owned(),
                entry,
                why,
            },
            TarError::Read(error) => crate::layer::read_error(self.layer, error),
        }
    }

    /// An errno for an entry: a full disk, a tree that makes no sense, or an I/O error.
    fn failed(&self, what: &str, path: &[u8], errno: Errno) -> Error {
        match errno {
            Errno::LOOP
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::ISDIR
            | Errno::NOENT => self.refuse(path, format!("{what}: {errno}")),
            errno => Error::io(
                format!("layer {}: {what} {:?} in", self.layer, shown(path)),
                self.shown,
                errno,
            ),
        }
    }

    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), Error> {
        let path = self.clean(&entry.path)?;
        let Some(split) = path
            .iter()
            .rposition(|b| *b == b'/')
            .map(|at| at + 1)
            .or((!path.is_empty()).then_some(0))
        else {
            return self.root_entry(entry);
        };
        let (dir, name) = (path[..split.saturating_sub(1)].to_vec(), &path[split..]);
        let mut parts = dir.split(|b| *b == b'/');
        if parts.clone().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if parts.any(|part| part.starts_with(WHITEOUT)) {
            return Err(self.refuse(&entry.path, "a whiteout is no directory"));
        }
        if name.starts_with(WHITEOUT) {
            return self.whiteout(&dir, name, &entry.path);
        }
        self.enter(&dir, &entry.path)?;
        match entry.kind {
            Kind::File => self.file(entry, name, reader),
            Kind::Directory => self.directory(entry, &path, name),
            Kind::Symlink => self.symlink(entry, name),
            Kind::HardLink => self.hard_link(entry, &dir, name),
            Kind::Char | Kind::Block | Kind::Fifo => self.node(entry, name),
        }
    }

    /// The path without `.`, empty parts and a leading slash; what the kernel couldn't hold is refused here with a clear word.
    fn clean(&self, path: &[u8]) -> Result<Vec<u8>, Error> {
        if path.is_empty() {
            return Err(self.refuse(path, "it has no name"));
        }
        if path.len() > MAX_PATH_BYTES {
            return Err(self.refuse(path, "its path is longer than 4095 bytes"));
        }
        if path.contains(&0) {
            return Err(self.refuse(path, "its path has a NUL"));
        }
        let mut clean = Vec::with_capacity(path.len());
        let mut depth = 0;
        for part in path.split(|b| *b == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(self.refuse(path, "its path has \"..\"")),
                part if part.len() > MAX_NAME_BYTES => {
                    return Err(self.refuse(path, "a part of its path is longer than 255 bytes"));
                }
                part => {
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(self.refuse(path, "its path is deeper than 512 directories"));
                    }
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(part);
                }
            }
        }
        Ok(clean)
    }

    fn parent(&self) -> &OwnedFd {
        self.parent.as_ref().map_or(&self.root, |(_, fd)| fd)
    }

    /// Makes `dir` the directory that the next calls work in, with the parents that are missing.
    fn enter(&mut self, dir: &[u8], entry: &[u8]) -> Result<(), Error> {
        if dir.is_empty() {
            self.parent = None;
            return Ok(());
        }
        if self.parent.as_ref().is_some_and(|(path, _)| path == dir) {
            return Ok(());
        }
        let fd = match berth_beneath::openat2(&self.root, dir, DIRECTORY, Mode::empty(), RESOLVE) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(dir, entry)?,
            Err(errno) => return Err(self.failed("open its directory for", entry, errno)),
        };
        self.parent = Some((dir.to_vec(), fd));
        Ok(())
    }

    fn make_parents(&mut self, dir: &[u8], entry: &[u8]) -> Result<OwnedFd, Error> {
        let mut above: Option<OwnedFd> = None;
        let mut start = 0;
        while start < dir.len() {
            let end = dir[start..]
                .iter()
                .position(|b| *b == b'/')
                .map_or(dir.len(), |at| start + at);
            let (prefix, name) = (&dir[..end], &dir[start..end]);
            start = end + 1;
            // One step where it is a directory; the whole way only for a link: from the root each time, a path of n parts would take
            // n² steps.
            let within = above.as_ref().unwrap_or(&self.root);
            let step =
                rustix::fs::openat(within, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty());
            let opened = match step {
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    berth_beneath::openat2(&self.root, prefix, DIRECTORY, Mode::empty(), RESOLVE)
                }
                opened => opened,
            };
            let fd = match opened {
                Ok(fd) => fd,
                Err(errno @ (Errno::NOENT | Errno::NOTDIR)) => {
                    let hidden = errno == Errno::NOTDIR && is_whiteout(within, name);
                    if hidden {
                        rustix::fs::unlinkat(within, name, AtFlags::empty()).map_err(|errno| {
                            self.failed("replace the whiteout before", entry, errno)
                        })?;
                        self.unpacked.inodes -= 1;
                    } else if errno == Errno::NOTDIR {
                        return Err(self.refuse(entry, "its parent is no directory"));
                    }
                    match rustix::fs::mkdirat(within, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => {}
                        Err(Errno::EXIST) => {
                            return Err(
                                self.refuse(entry, "its parent is a link that leads nowhere")
                            );
                        }
                        Err(errno) => {
                            return Err(self.failed("make the directory of", entry, errno));
                        }
                    }
                    let fd = rustix::fs::openat(
                        within,
                        name,
                        DIRECTORY | OFlags::NOFOLLOW,
                        Mode::empty(),
                    )
                    .map_err(|errno| self.failed("open the directory of", entry, errno))?;
                    // The umask must not decide what a container sees.
                    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(|errno| {
                        self.failed("set the mode of the directory of", entry, errno)
                    })?;
                    if hidden {
                        self.set_opaque(&fd, entry)?;
                    }
                    self.account_directory()?;
                    if self.unpacked.implicit.len() < MAX_IMPLICIT
                        && self.implicit_path_bytes + prefix.len() <= MAX_IMPLICIT_PATH_BYTES
                        && !hidden
                        && let Ok(path) = std::str::from_utf8(prefix)
                    {
                        self.implicit_path_bytes += path.len();
                        self.unpacked.implicit.push(path.to_owned());
                    }
                    fd
                }
                Err(errno) => return Err(self.failed("open its directory for", entry, errno)),
            };
            above = Some(fd);
        }
        Ok(above.expect("dir is not empty"))
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Error> {
        if entry.kind != Kind::Directory {
            return Err(self.refuse(&entry.path, "the root of the layer must be a directory"));
        }
        self.set_owner_and_xattrs(&self.root, entry)?;
        self.later(b"", entry)
    }

    fn later(&mut self, path: &[u8], entry: &Entry) -> Result<(), Error> {
        if self.pending.len() >= MAX_DIRECTORIES {
            return Err(self.refuse(&entry.path, "the layer has more than 300000 directories"));
        }
        self.pending_path_bytes += path.len();
        if self.pending_path_bytes > MAX_DIRECTORY_PATH_BYTES {
            return Err(self.refuse(
                &entry.path,
                "the paths of the layer's directories take more than 16 MiB",
            ));
        }
        self.pending.push(Pending {
            path: path.into(),
            mode: Mode::from_raw_mode(entry.mode),
            mtime: entry.mtime,
        });
        Ok(())
    }

    fn account_directory(&mut self) -> Result<(), Error> {
        self.unpacked.inodes += 1;
        self.unpacked.bytes += self.block;
        self.space.took(self.block, self.layer)
    }

    /// Takes away what an earlier entry put at `name`. True where it was a whiteout (and what comes now must hide the lower layers).
    fn clear(&mut self, name: &[u8], entry: &[u8]) -> Result<bool, Error> {
        let hidden = is_whiteout(self.parent(), name);
        let name =
            std::ffi::CString::new(name).map_err(|_| self.refuse(entry, "its path has a NUL"))?;
        remove_at(self.parent().as_fd(), &name, &self.shown.join(shown(entry)))?;
        Ok(hidden)
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        name: &[u8],
        reader: &mut TarReader<R>,
    ) -> Result<(), Error> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open =
            |parent: &OwnedFd| rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let fd = match open(self.parent()) {
            Err(Errno::EXIST) => {
                self.clear(name, &entry.path)?;
                open(self.parent())
            }
            result => result,
        }
        .map_err(|errno| self.failed("create", &entry.path, errno))?;
        let mut file = File::from(fd);
        loop {
            let length = match reader.data() {
                Ok([]) => break,
                Ok(piece) => {
                    file.write_all(piece).map_err(|error| {
                        Error::io(
                            format!("layer {}: write {:?} in", self.layer, shown(&entry.path)),
                            self.shown,
                            error,
                        )
                    })?;
                    piece.len()
                }
                Err(error) => return Err(crate::layer::read_error(self.layer, error)),
            };
            reader.consume(length);
            self.space.took(length as u64, self.layer)?;
        }
        let fd = OwnedFd::from(file);
        self.set_owner_and_xattrs(&fd, entry)?;
        // After chown, which clears the set-id bits.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(entry.mode))
            .and_then(|()| rustix::fs::futimens(&fd, &times(entry.mtime)))
            .map_err(|errno| self.failed("set mode and time of", &entry.path, errno))?;
        self.unpacked.inodes += 1;
        self.unpacked.bytes += entry.size.div_ceil(self.block) * self.block;
        self.space.took(0, self.layer)
    }

    fn directory(&mut self, entry: &Entry, path: &[u8], name: &[u8]) -> Result<(), Error> {
        let mkdir = |parent: &OwnedFd| rustix::fs::mkdirat(parent, name, Mode::RWXU);
        let mut hidden = false;
        let mut is_new = true;
        match mkdir(self.parent()) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(self.parent(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| self.failed("look at", &entry.path, errno))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    is_new = false;
                } else {
                    hidden = self.clear(name, &entry.path)?;
                    mkdir(self.parent())
                        .map_err(|errno| self.failed("make directory", &entry.path, errno))?;
                }
            }
            Err(errno) => return Err(self.failed("make directory", &entry.path, errno)),
        }
        let fd = rustix::fs::openat(
            self.parent(),
            name,
            DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )
        .map_err(|errno| self.failed("open directory", &entry.path, errno))?;
        if hidden {
            self.set_opaque(&fd, &entry.path)?;
        }
        self.set_owner_and_xattrs(&fd, entry)?;
        if is_new {
            self.account_directory()?;
        } else if let Ok(path) = std::str::from_utf8(path) {
            self.unpacked.implicit.retain(|implicit| implicit != path);
        }
        self.later(path, entry)
    }

    fn symlink(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        if entry.link.is_empty() || entry.link.len() > MAX_PATH_BYTES || entry.link.contains(&0) {
            return Err(self.refuse(
                &entry.path,
                "its target is empty, has a NUL or is longer than 4095 bytes",
            ));
        }
        let link = |parent: &OwnedFd| rustix::fs::symlinkat(&entry.link[..], parent, name);
        match link(self.parent()) {
            Err(Errno::EXIST) => {
                self.clear(name, &entry.path)?;
                link(self.parent())
            }
            result => result,
        }
        .and_then(|()| self.set_owner_at(entry, name))
        .and_then(|()| {
            rustix::fs::utimensat(
                self.parent(),
                name,
                &times(entry.mtime),
                AtFlags::SYMLINK_NOFOLLOW,
            )
        })
        .map_err(|errno| self.failed("make symbolic link", &entry.path, errno))?;
        self.unpacked.inodes += 1;
        self.space.took(0, self.layer)
    }

    /// A link to a file of this layer. One to a file of a lower layer can't be made on overlayfs, and OCI wants the file repeated then.
    fn hard_link(&mut self, entry: &Entry, dir: &[u8], name: &[u8]) -> Result<(), Error> {
        let target = self.clean(&entry.link)?;
        let split = target
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(0, |at| at + 1);
        let (target_dir, target_name) = (&target[..split.saturating_sub(1)], &target[split..]);
        if target_name.is_empty() {
            return Err(self.refuse(&entry.path, "it links to the root of the layer"));
        }
        if target_dir == dir && target_name == name {
            return Err(self.refuse(&entry.path, "it links to itself"));
        }
        let within = match target_dir {
            b"" => rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty()),
            dir => berth_beneath::openat2(&self.root, dir, DIRECTORY, Mode::empty(), RESOLVE),
        }
        .map_err(|errno| {
            self.refuse(
                &entry.path,
                format!(
                    "it links to {:?}, which this layer has not: {errno}",
                    shown(&entry.link)
                ),
            )
        })?;
        let stat = rustix::fs::statat(&within, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(
            |errno| {
                self.refuse(
                    &entry.path,
                    format!(
                        "it links to {:?}, which this layer has not: {errno}",
                        shown(&entry.link)
                    ),
                )
            },
        )?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(self.refuse(&entry.path, "it is a hard link to a directory"));
        }
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link links the link.
        let link = |parent: &OwnedFd| {
            rustix::fs::linkat(&within, target_name, parent, name, AtFlags::empty())
        };
        match link(self.parent()) {
            Err(Errno::EXIST) => {
                let here = rustix::fs::statat(self.parent(), name, AtFlags::SYMLINK_NOFOLLOW);
                if here.is_ok_and(|here| (here.st_dev, here.st_ino) == (stat.st_dev, stat.st_ino)) {
                    return Ok(());
                }
                self.clear(name, &entry.path)?;
                link(self.parent())
            }
            result => result,
        }
        .map_err(|errno| self.failed("make hard link", &entry.path, errno))
    }

    fn node(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        let (kind, device) = match entry.kind {
            Kind::Char => (FileType::CharacterDevice, entry.device),
            Kind::Block => (FileType::BlockDevice, entry.device),
            _ => (FileType::Fifo, (0, 0)),
        };
        if entry.kind == Kind::Char && device == (0, 0) {
            // It would hide a file of a lower layer without being the whiteout that other tools see (SEC-IMG-02).
            return Err(self.refuse(&entry.path, "a character device 0:0 is overlayfs' whiteout"));
        }
        // Majors have 12 bits and minors 20 in the kernel.
        if device.0 >= 1 << 12 || device.1 >= 1 << 20 {
            return Err(self.refuse(
                &entry.path,
                format!("the kernel has no device {}:{}", device.0, device.1),
            ));
        }
        let device = rustix::fs::makedev(device.0, device.1);
        let make = |parent: &OwnedFd| {
            rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode), device)
        };
        match make(self.parent()) {
            Err(Errno::EXIST) => {
                self.clear(name, &entry.path)?;
                make(self.parent())
            }
            result => result,
        }
        .and_then(|()| self.set_owner_at(entry, name))
        .and_then(|()| {
            rustix::fs::chmodat(
                self.parent(),
                name,
                Mode::from_raw_mode(entry.mode),
                AtFlags::empty(),
            )
        })
        .and_then(|()| {
            rustix::fs::utimensat(
                self.parent(),
                name,
                &times(entry.mtime),
                AtFlags::SYMLINK_NOFOLLOW,
            )
        })
        .map_err(|errno| self.failed("make device or fifo", &entry.path, errno))?;
        self.unpacked.inodes += 1;
        self.space.took(0, self.layer)
    }

    /// OCI's `.wh.name` becomes overlayfs' character device 0:0, `.wh..wh..opq` its xattr on the directory.
    fn whiteout(&mut self, dir: &[u8], name: &[u8], entry: &[u8]) -> Result<(), Error> {
        if name != OPAQUE && name.starts_with(WHITEOUT_META) {
            // aufs' own book-keeping; means nothing here.
            return Ok(());
        }
        self.enter(dir, entry)?;
        if name == OPAQUE {
            return self.set_opaque(self.parent(), entry);
        }
        let hides = &name[WHITEOUT.len()..];
        if matches!(hides, b"" | b"." | b"..") {
            return Err(self.refuse(entry, "it hides no name"));
        }
        match rustix::fs::mknodat(
            self.parent(),
            hides,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        ) {
            Ok(()) => {
                self.unpacked.inodes += 1;
                self.space.took(0, self.layer)
            }
            // Hidden is what the lower layers have; what this layer has stays.
            Err(Errno::EXIST) => match rustix::fs::openat(
                self.parent(),
                hides,
                DIRECTORY | OFlags::NOFOLLOW,
                Mode::empty(),
            ) {
                Ok(fd) => self.set_opaque(&fd, entry),
                Err(_) => Ok(()),
            },
            Err(errno) => Err(self.failed("make whiteout", entry, errno)),
        }
    }

    fn set_opaque(&self, dir: &OwnedFd, entry: &[u8]) -> Result<(), Error> {
        rustix::fs::fsetxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .map_err(|errno| self.failed("mark opaque", entry, errno))
    }

    fn set_owner_at(&self, entry: &Entry, name: &[u8]) -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(
            self.parent(),
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }

    fn set_owner_and_xattrs(&self, fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        rustix::fs::fchown(
            fd,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(|errno| self.failed("set the owner of", &entry.path, errno))?;
        for (name, value) in &entry.xattrs {
            if !is_kept_xattr(name) {
                continue;
            }
            if value.len() > MAX_XATTR_BYTES {
                return Err(self.refuse(
                    &entry.path,
                    format!("its xattr {:?} is larger than 64 KiB", shown(name)),
                ));
            }
            match rustix::fs::fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                // This file system holds no such xattrs; only capabilities change what a program may do.
                Err(Errno::NOTSUP) if name != b"security.capability" => {}
                // ENOSPC here says "more than an inode holds" as often as "the disk is full".
                Err(errno) => {
                    let name = shown(name);
                    return Err(self.refuse(
                        &entry.path,
                        format!(
                            "its xattr {name:?} of {} bytes can't be set: {errno}",
                            value.len()
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Sets what had to wait: writing into a directory changes its time, and a set-gid bit would be inherited.
    fn finish(mut self) -> Result<Unpacked, Error> {
        self.parent = None;
        for pending in &self.pending {
            let opened = match &*pending.path {
                b"" => rustix::fs::openat(&self.root, ".", DIRECTORY, Mode::empty()),
                path => berth_beneath::openat2(
                    &self.root,
                    path,
                    DIRECTORY | OFlags::NOFOLLOW,
                    Mode::empty(),
                    RESOLVE,
                ),
            };
            let fd = match opened {
                Ok(fd) => fd,
                // A later entry of the archive took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(self.failed("open directory", &pending.path, errno)),
            };
            rustix::fs::fchmod(&fd, pending.mode)
                .and_then(|()| rustix::fs::futimens(&fd, &times(pending.mtime)))
                .map_err(|errno| self.failed("set mode and time of", &pending.path, errno))?;
        }
        self.unpacked.inodes += 1;
        self.unpacked.bytes += self.block;
        Ok(self.unpacked)
    }
}

/// `user.*`, file capabilities and ACLs belong to the image. overlayfs' own would steer the mount, the rest of `trusted.*` and
/// `security.*` the host's (SEC-IMG-02).
fn is_kept_xattr(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        name => {
            name.starts_with(b"user.")
                && !name.starts_with(b"user.overlay.")
                && !name.contains(&0)
                && name.len() <= 255
        }
    }
}

fn is_whiteout(dir: &OwnedFd, name: &[u8]) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    })
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
