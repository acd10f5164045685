//! What an engine keeps of a container on disk: enough to kill and delete it for a process that did not make it.
//!
//! ```text
//! <state_dir>/<id>/record.json   this
//!                  seccomp.bpf   the filter that init was started with
//!                  bundle/       the spec as libcontainer gets it
//!                  <id>/         libcontainer's own (state.json, notify.sock, …)
//! ```

use std::{
    fs, io,
    io::Read,
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxMemoryPolicy;
use serde::{Deserialize, Serialize};

use crate::{Error, cgroup::Cgroup};

/// Far longer than a record is.
const MAX_RECORD_BYTES: u64 = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub cgroup: String,
    /// The cgroup is a unit of systemd.
    #[serde(default)]
    pub systemd_cgroup: bool,
    pub bundle: PathBuf,
    pub no_new_privileges: bool,
    pub seccomp: bool,
    /// Where an exec gets its memory, too. Records before it have none.
    #[serde(default)]
    pub memory_policy: Option<LinuxMemoryPolicy>,
}

const NAME: &str = "record.json";

pub(crate) fn seccomp_path(directory: &Path) -> PathBuf {
    directory.join("seccomp.bpf")
}

impl Record {
    pub(crate) fn cgroup(&self) -> Result<Cgroup, Error> {
        Ok(Cgroup::by(self.systemd_cgroup, &self.cgroup)?)
    }

    /// Whole or not there: by rename.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), Error> {
        let path = directory.join(NAME);
        let temporary = directory.join("record.tmp");
        let bytes = serde_json::to_vec(self).map_err(|e| Error::Zygote(e.to_string()))?;
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    /// `None`: no such container.
    pub(crate) fn read(directory: &Path) -> Result<Option<Record>, Error> {
        let path = directory.join(NAME);
        let step = || Error::io(format!("read {}", path.display()));
        let mut bytes = Vec::new();
        match fs::File::open(&path) {
            Ok(file) => file
                .take(MAX_RECORD_BYTES)
                .read_to_end(&mut bytes)
                .map_err(step())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(step()(error)),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| step()(e.into()))
    }
}
