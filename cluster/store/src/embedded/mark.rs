//! Up to which revision writes have been acknowledged as being on the disk: 16 bytes in the file `synced`, rewritten after each sync.
//!
//! A log of writes can end early for two reasons: a crash tore its last write, which nobody was told of, or a damaged byte hides all that follows. fjall
//! takes both for the first. The mark tells them apart. It isn't synced itself: after a power cut it may be older than the log, which
//! only makes it tell less, never newer.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::broken;
use crate::{Error, Revision};

const NAME: &str = "synced";
/// "BERT", as the file begins.
const MAGIC: [u8; 4] = *b"BERT";

#[derive(Debug)]
pub(super) struct Mark {
    file: File,
    pub revision: Revision,
}

impl Mark {
    /// `fresh`: there is no store yet, so no mark either.
    pub fn open(directory: &Path, fresh: bool) -> Result<Self, Error> {
        let path = directory.join(NAME);
        let failed =
            |e: std::io::Error| broken("open the mark", format!("{}: {e}", path.display()));
        let corrupt = |why: &str| Error::Corrupt {
            what: path.display().to_string(),
            why: why.to_owned(),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(fresh)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => corrupt("it is missing"),
                _ => failed(e),
            })?;
        let mut bytes = [0; 16];
        let len = file.metadata().map_err(failed)?.len();
        if fresh && len == 0 {
            let mut mark = Self { file, revision: 0 };
            mark.set(0)?;
            mark.file.sync_all().map_err(failed)?;
            File::open(directory)
                .and_then(|directory| directory.sync_all())
                .map_err(failed)?;
            return Ok(mark);
        }
        if len != 16 {
            return Err(corrupt(&format!("it has {len} bytes, not 16")));
        }
        file.read_exact_at(&mut bytes, 0).map_err(failed)?;
        if encode(revision(&bytes)) != bytes {
            return Err(corrupt("its checksum is another"));
        }
        Ok(Self {
            file,
            revision: revision(&bytes),
        })
    }

    pub fn set(&mut self, revision: Revision) -> Result<(), Error> {
        self.file
            .write_all_at(&encode(revision), 0)
            .map_err(|e| broken("write the mark", e))?;
        self.revision = revision;
        Ok(())
    }
}

fn encode(revision: Revision) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..12].copy_from_slice(&revision.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn revision(bytes: &[u8; 16]) -> Revision {
    Revision::from_le_bytes([
        bytes[4], bytes[5], bytes[6], bytes[7], bytes[8], bytes[9], bytes[10], bytes[11],
    ])
}
