//! Logs of containers are bounded: one that has grown is put aside and the runtime writes a new one; those that were put aside before are compressed, as
//! upstream does, and the oldest go.
//!
//! All is done beneath the directory of logs, through no link: a pod may have that directory mounted (SEC-KUB-04).

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, renameat, statat,
        unlinkat,
    },
    io::Errno,
};

use crate::node::Node;

/// Upstream's defaults: of one file, and of all of a container's.
const MOST_BYTES: u64 = 10 << 20;
const MOST_FILES: usize = 5;
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// What is longer stays as it is: it has grown while nobody looked, or was put there.
const MOST_COMPRESSED: u64 = 1 << 30;
const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".tmp";

/// Looks after the logs of all containers that run, until it is dropped.
pub(crate) async fn keep(node: Node) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for shown in node.view.all() {
            for spec in &shown.pod.containers {
                let (Some(id), Some(status)) =
                    (shown.running_id(spec.name()), shown.container(spec.name()))
                else {
                    continue;
                };
                let dir = node.log_dir(&shown.pod);
                let Some(pod) = dir.file_name() else {
                    continue;
                };
                let dir = Path::new(pod).join(spec.name());
                let root = node.config.logs_dir.clone();
                let name = format!("{}.log", status.restart_count);
                let turned =
                    tokio::task::spawn_blocking(move || turn(&root, &dir, &name, MOST_BYTES));
                match turned.await {
                    Ok(Ok(None)) => {}
                    Ok(Ok(Some(aside))) => {
                        if let Err(error) = node.runtime.reopen_log(id).await {
                            tracing::warn!(pod = %shown.pod.full_name(), container = spec.name(), %error, "its log goes on where it was");
                            let _ = tokio::task::spawn_blocking(move || aside.undo()).await;
                        }
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(pod = %shown.pod.full_name(), container = spec.name(), %error, "its log can't be put aside");
                    }
                    Err(error) => tracing::error!(%error, "a rotation broke"),
                }
            }
        }
    }
}

/// A log that was put aside, and may be put back.
#[derive(Debug)]
struct Aside {
    dir: OwnedFd,
    name: String,
    aside: String,
}

impl Aside {
    fn undo(self) {
        let _ = renameat(&self.dir, &self.aside, &self.dir, &self.name);
    }
}

/// Puts the log aside where it is too long, and removes the oldest of those that were.
fn turn(root: &Path, dir: &Path, name: &str, most_bytes: u64) -> io::Result<Option<Aside>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let dir = openat2(&root, dir, flags, Mode::empty(), within)?;
    let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
    if !is_file || u64::try_from(stat.st_size).unwrap_or(0) < most_bytes {
        return Ok(None);
    }
    let mut old = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let file = entry.file_name().to_string_lossy().into_owned();
        if file
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
        {
            match file.ends_with(UNFINISHED) {
                true => unlinkat(&dir, file.as_str(), AtFlags::empty())?,
                false => old.push(file),
            }
        }
    }
    // By their names they are in the order of their time. The one that is written and the one that is put aside now count, too.
    old.sort();
    let keep = MOST_FILES - 2;
    let (excess, kept) = old.split_at(old.len().saturating_sub(keep));
    for file in excess {
        unlinkat(&dir, file.as_str(), AtFlags::empty())?;
    }
    for file in kept.iter().filter(|it| !it.ends_with(COMPRESSED)) {
        // it is no less a log for not being smaller
        if let Err(error) = compress(&dir, file) {
            tracing::warn!(file, %error, "an old log is not compressed");
        }
    }
    let now = Timestamp::now().strftime("%Y%m%d-%H%M%S%.6f").to_string();
    let aside = format!("{name}.{now}");
    renameat(&dir, name, &dir, aside.as_str())?;
    Ok(Some(Aside {
        dir,
        name: name.to_owned(),
        aside,
    }))
}

/// Only a plain file with one name: what else has its name is somebody else's.
fn compress(dir: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = File::from(openat(dir, name, flags, Mode::empty())?);
    let metadata = from.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 || metadata.len() > MOST_COMPRESSED {
        return Ok(());
    }
    let unfinished = format!("{name}{UNFINISHED}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(metadata.mode() & 0o777);
    let to = File::from(openat(dir, unfinished.as_str(), flags, mode)?);
    let done = write_compressed(from, to).and_then(|()| {
        let finished = format!("{name}{COMPRESSED}");
        renameat(dir, unfinished.as_str(), dir, finished.as_str())?;
        Ok(unlinkat(dir, name, AtFlags::empty())?)
    });
    if done.is_err() {
        let _ = unlinkat(dir, unfinished.as_str(), AtFlags::empty());
    }
    done
}

fn write_compressed(from: File, to: File) -> io::Result<()> {
    let mut encoder = GzEncoder::new(BufWriter::new(to), Compression::default());
    io::copy(&mut from.take(MOST_COMPRESSED), &mut encoder)?;
    encoder.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_log_that_has_grown_is_put_aside_and_the_old_are_compressed_and_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pod/c");
        fs::create_dir_all(&dir).unwrap();
        let files = || {
            let mut all: Vec<_> = fs::read_dir(&dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            all.sort();
            all
        };
        let turn = || turn(root.path(), Path::new("pod/c"), "0.log", 10).unwrap();
        assert!(turn().is_none());
        fs::write(dir.join("0.log"), "short").unwrap();
        assert!(turn().is_none());
        for round in 0..8 {
            fs::write(dir.join("0.log"), format!("long enough {round}")).unwrap();
            assert!(turn().is_some());
            std::thread::sleep(Duration::from_millis(1));
        }
        // with the one that is written next they are five
        let left = files();
        assert_eq!(left.len(), MOST_FILES - 1, "{left:?}");
        let (last, old) = left.split_last().unwrap();
        assert_eq!(fs::read_to_string(dir.join(last)).unwrap(), "long enough 7");
        for (file, round) in old.iter().zip(4..) {
            assert!(file.ends_with(".gz"), "{left:?}");
            let mut text = String::new();
            let mut decoder = flate2::read::GzDecoder::new(fs::File::open(dir.join(file)).unwrap());
            decoder.read_to_string(&mut text).unwrap();
            assert_eq!(text, format!("long enough {round}"));
        }
        fs::write(dir.join("0.log"), "long enough 8").unwrap();
        turn().unwrap().undo();
        assert_eq!(
            fs::read_to_string(dir.join("0.log")).unwrap(),
            "long enough 8"
        );
    }

    #[test]
    fn nothing_is_put_aside_through_a_link_sec_kub_04() {
        let root = tempfile::tempdir().unwrap();
        let away = tempfile::tempdir().unwrap();
        fs::write(away.path().join("0.log"), "canary of ten bytes").unwrap();
        std::os::unix::fs::symlink(away.path(), root.path().join("pod")).unwrap();
        assert!(turn(root.path(), Path::new("pod"), "0.log", 10).is_err());
        fs::create_dir(root.path().join("c")).unwrap();
        std::os::unix::fs::symlink(away.path().join("0.log"), root.path().join("c/0.log")).unwrap();
        assert!(
            turn(root.path(), Path::new("c"), "0.log", 10)
                .unwrap()
                .is_none()
        );
        assert!(away.path().join("0.log").exists());
        let old = "1.log.20000101-000000.000000";
        std::os::unix::fs::symlink(away.path().join("0.log"), root.path().join("c").join(old))
            .unwrap();
        fs::write(root.path().join("c/1.log"), "long enough").unwrap();
        assert!(
            turn(root.path(), Path::new("c"), "1.log", 10)
                .unwrap()
                .is_some()
        );
        assert!(!root.path().join("c").join(format!("{old}.gz")).exists());
    }
}
