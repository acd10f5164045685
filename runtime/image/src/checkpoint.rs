//! The archive of a checkpointed container, unpacked: as hostile as a layer, and less is taken of it (SEC-IMG-14).

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    error::Error,
    space::Space,
    tarstream::{Entry, Kind, TarError, TarReader, shown},
};

const WHAT: &str = "checkpoint archive";
const CONFIG: &[u8] = b"config.dump";
const DIFF: &[u8] = b"rootfs-diff.tar";
/// Directory of CRIU's images.
const IMAGES: &[u8] = b"checkpoint/";
/// A process has some tens of images; a container of ten thousand processes is none to be moved.
const MAX_ENTRIES: u64 = 200_000;
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_NAME_BYTES: usize = 255;

/// Where the parts of an archive go. The directory `images` is there.
#[derive(Debug, Clone)]
pub struct Places {
    pub images: PathBuf,
    /// What the container had changed of its image: a layer, to be unpacked by [`crate::Store::fill_snapshot`].
    pub diff: PathBuf,
}

/// Reads what an archive says of its container (`config.dump`). Nothing is written.
pub fn config(archive: impl BufRead) -> Result<Vec<u8>, Error> {
    let mut found = None;
    read(archive, |entry, reader| {
        if entry.path != CONFIG {
            return Ok(());
        }
        if found.is_some() || entry.size > MAX_CONFIG_BYTES {
            return Err(refuse(entry, "it is there twice, or larger than 1 MiB"));
        }
        let mut text = Vec::new();
        copy(entry, reader, &mut text, |_| Ok(()))?;
        found = Some(text);
        Ok(())
    })?;
    found.ok_or_else(|| Error::Layer {
        layer: WHAT.to_owned(),
        why: "it has no config.dump: this is no checkpoint".to_owned(),
    })
}

/// Unpacks CRIU's images and the container's changes. What else is in the archive is left there.
pub fn unpack(archive: impl BufRead, places: &Places) -> Result<(), Error> {
    let mut space = Space::of(&places.images)?;
    read(archive, |entry, reader| {
        let to = match entry.path.strip_prefix(IMAGES) {
            Some(b"") => return Ok(()),
            Some(name) => places.images.join(image(entry, name)?),
            None if entry.path == DIFF => places.diff.clone(),
            None => return Ok(()),
        };
        let mut file = make(&to)?;
        copy(entry, reader, &mut file, |bytes| space.took(bytes, WHAT))
    })
}

fn make(to: &Path) -> Result<File, Error> {
    // Also what is there twice is refused.
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(|e| Error::io(format!("{WHAT}: make"), to, e))
}

/// The name of an image: no path, no hidden file.
fn image<'a>(entry: &Entry, name: &'a [u8]) -> Result<&'a str, Error> {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match std::str::from_utf8(name) {
        Ok(text)
            if name.len() <= MAX_NAME_BYTES
                && !name.starts_with(b".")
                && name.iter().all(plain) =>
        {
            Ok(text)
        }
        _ => Err(refuse(entry, "it is no name of an image of CRIU's")),
    }
}

/// Calls `visit` for each entry that is a file. Whatever else there may be in an archive of this kind is a directory.
fn read<R: BufRead>(
    archive: R,
    mut visit: impl FnMut(&Entry, &mut TarReader<R>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut reader = TarReader::new(archive);
    let mut entries = 0;
    while let Some(mut entry) = reader.next().map_err(tar_error)? {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(refuse(&entry, "the archive has more than 200000 entries"));
        }
        if let Some(below) = entry.path.strip_prefix(b"./") {
            entry.path = below.to_vec();
        }
        match entry.kind {
            Kind::File => visit(&entry, &mut reader)?,
            Kind::Directory => {}
            _ => return Err(refuse(&entry, "it is neither a file nor a directory")),
        }
        // What was left is not bounded as data of no use is: a log, say.
        while let piece @ 1.. = reader
            .data()
            .map_err(|e| crate::layer::read_error(WHAT, e))?
            .len()
        {
            reader.consume(piece);
        }
    }
    Ok(())
}

fn copy<R: BufRead>(
    entry: &Entry,
    reader: &mut TarReader<R>,
    to: &mut impl Write,
    mut took: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        let piece = reader
            .data()
            .map_err(|e| crate::layer::read_error(WHAT, e))?;
        let length = piece.len();
        if length == 0 {
            return took(0);
        }
        to.write_all(piece)
            .map_err(|e| Error::io(format!("{WHAT}: write"), shown(&entry.path), e))?;
        reader.consume(length);
        took(length as u64)?;
    }
}

fn refuse(entry: &Entry, why: &str) -> Error {
    Error::Entry {
        layer: WHAT.to_owned(),
        entry: shown(&entry.path),
        why: why.to_owned(),
    }
}

fn tar_error(error: TarError) -> Error {
    match error {
        TarError::Refused { entry, why } => Error::Entry {
            layer: WHAT.to_owned(),
            entry,
            why,
        },
        TarError::Read(error) => crate::layer::read_error(WHAT, error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = tar::Header::new_gnu();
            // As it stands: the builder itself would refuse some.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o777);
            header.set_size(data.len() as u64);
            if !matches!(kind, tar::EntryType::Regular | tar::EntryType::Directory) {
                header.set_link_name("/etc").unwrap();
            }
            header.set_cksum();
            tar.append(&header, *data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    use tar::EntryType::{Directory, Link, Regular, Symlink};

    #[test]
    fn images_and_changes_are_taken_and_the_rest_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            images: dir.path().join("images"),
            diff: dir.path().join("diff.tar"),
        };
        fs::create_dir(&places.images).unwrap();
        let bytes = archive(&[
            ("config.dump", Regular, b"{}"),
            ("checkpoint/", Directory, b""),
            ("./checkpoint/core-1.img", Regular, b"core"),
            ("dump.log", Regular, b"log"),
            ("rootfs-diff.tar", Regular, b"tar"),
        ]);
        assert_eq!(config(bytes.as_slice()).unwrap(), b"{}");
        unpack(bytes.as_slice(), &places).unwrap();
        assert_eq!(fs::read(places.images.join("core-1.img")).unwrap(), b"core");
        assert_eq!(fs::read(&places.diff).unwrap(), b"tar");
        assert_eq!(fs::read_dir(&places.images).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn an_archive_that_would_lead_elsewhere_is_refused_sec_img_14() {
        for (name, kind) in [
            ("checkpoint/../../x", Regular),
            ("checkpoint/a/b", Regular),
            ("checkpoint/.hidden", Regular),
            ("checkpoint/link", Symlink),
            ("checkpoint/link", Link),
            ("rootfs-diff.tar", Symlink),
            ("anything", Symlink),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let places = Places {
                images: dir.path().join("images"),
                diff: dir.path().join("diff.tar"),
            };
            fs::create_dir(&places.images).unwrap();
            let bytes = archive(&[(name, kind, b"")]);
            assert!(unpack(bytes.as_slice(), &places).is_err(), "{name}");
            assert_eq!(fs::read_dir(&places.images).unwrap().count(), 0, "{name}");
            assert!(!places.diff.exists(), "{name}");
        }
        let twice = [("checkpoint/a", Regular, &b""[..]); 2];
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            images: dir.path().to_owned(),
            diff: dir.path().join("diff.tar"),
        };
        assert!(unpack(archive(&twice).as_slice(), &places).is_err());
        assert!(config(archive(&[("x", Regular, b"")]).as_slice()).is_err());
        assert!(config(&b"no tar at all"[..]).is_err());
    }
}
