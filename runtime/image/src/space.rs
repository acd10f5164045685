//! Keeps a reserve of the disk free: an image that unpacks to more than there is must fail before the pods feel it (SEC-IMG-07).

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The reserve is one fiftieth of the file system, at most this: logs and records of running pods go on fitting.
const MAX_RESERVE_BYTES: u64 = 256 << 20;
/// Looked at again after this many bytes …
const MAX_STEP_BYTES: u64 = 16 << 20;
/// … or this many files.
const STEP_ENTRIES: u64 = 1024;

#[derive(Debug)]
pub(crate) struct Space {
    path: PathBuf,
    bytes: u64,
    entries: u64,
    step: u64,
    /// Written in all, what was replaced since included.
    written_bytes: u64,
}

impl Space {
    pub(crate) fn of(path: &Path) -> Result<Self, Error> {
        let mut space = Self {
            path: path.to_owned(),
            bytes: 0,
            entries: 0,
            step: 0,
            written_bytes: 0,
        };
        space.look("unpack")?;
        Ok(space)
    }

    /// Counts an entry and the bytes written for it.
    pub(crate) fn took(&mut self, bytes: u64, what: &str) -> Result<(), Error> {
        self.bytes += bytes;
        self.written_bytes += bytes;
        self.entries += 1;
        if self.bytes < self.step && self.entries < STEP_ENTRIES {
            return Ok(());
        }
        self.look(what)
    }

    fn look(&mut self, what: &str) -> Result<(), Error> {
        let stat = rustix::fs::statvfs(&self.path)
            .map_err(|errno| Error::io("statvfs", &self.path, errno))?;
        let (size_bytes, free) = match stat.f_blocks * stat.f_frsize {
            0 => memory().unwrap_or_default(),
            size_bytes => (size_bytes, stat.f_bavail * stat.f_frsize),
        };
        let reserve = (size_bytes / 50).min(MAX_RESERVE_BYTES);
        let full = |why: String| Error::Full {
            what: what.to_owned(),
            path: self.path.clone(),
            why,
        };
        if free < reserve {
            return Err(full(format!(
                "{free} bytes are left, {reserve} stay reserved"
            )));
        }
        // A file that replaces itself a thousand times fills no disk, but would never end.
        if self.written_bytes > size_bytes {
            return Err(full(format!(
                "{} bytes were written to a file system of {size_bytes}",
                self.written_bytes
            )));
        }
        // btrfs and others have no fixed number of inodes and say 0.
        let reserve_inodes = (stat.f_files / 100).min(1024);
        if stat.f_files > 0 && stat.f_favail < reserve_inodes {
            return Err(full(format!(
                "{} inodes are left, {reserve_inodes} stay reserved",
                stat.f_favail
            )));
        }
        self.step = (reserve / 4).clamp(64 << 10, MAX_STEP_BYTES);
        (self.bytes, self.entries) = (0, 0);
        Ok(())
    }
}

/// Bytes in all, and available: what bounds a file system that says that it has no blocks. Such are ramfs and a tmpfs without a limit, which lie in it;
/// of others (FUSE, say) nothing better is known.
fn memory() -> Option<(u64, u64)> {
    of_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn of_meminfo(text: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some((bytes("MemTotal:")?, bytes("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_bounds_a_file_system_that_tells_no_size() {
        let text = "MemTotal:        2000 kB\nMemFree:          100 kB\nMemAvailable:     500 kB\n";
        assert_eq!(of_meminfo(text), Some((2_048_000, 512_000)));
        assert_eq!(of_meminfo("MemTotal: 2000 kB\n"), None);
        let (all, available) = memory().unwrap();
        assert!(all >= available && available > 0);
    }
}
