//! Where containers of `berth shim` are kept, and what is on record of each: enough to find its shim again, and to remove what a dead one
//! has left.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_shim_client::{Action, Bootstrap};
use serde::{Deserialize, Serialize};

use super::{binary::Binary, bundle, task::Task};
use crate::error::Error;

/// `sockaddr_un.sun_path` without its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// containerd's own limit for an identifier.
const MAX_ID_BYTES: usize = 76;
/// Our file in a container's directory.
const RECORD: &str = "berth-shim.json";

/// The state directory, and what else all commands have in common.
#[derive(Debug)]
pub struct Place {
    pub state: PathBuf,
    pub namespace: String,
    pub deadline: Duration,
    pub verbose: bool,
}

/// What was started for a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub namespace: String,
    pub id: String,
    /// Containers of one group share a shim.
    pub group: String,
    /// The shim's program.
    pub shim: PathBuf,
    /// None until `start` has answered.
    pub socket: Option<PathBuf>,
    pub version: u32,
    /// The shim's process, and when it began (clock ticks since boot): the identity of a process.
    pub process: Option<(i32, u64)>,
    /// Where the shim tells its events.
    pub events: PathBuf,
    /// Where this lies: the bundle that the shim gets.
    #[serde(skip)]
    pub dir: PathBuf,
}

impl Place {
    /// Makes the state directory, or finds that it is nobody else's.
    pub fn ensure(&self) -> Result<(), Error> {
        let failed = |what| {
            move |source| Error::File {
                what,
                path: self.state.clone(),
                source,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.state)
            .map_err(failed("make"))?;
        let meta = fs::symlink_metadata(&self.state).map_err(failed("look at"))?;
        let own = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o022 != 0 {
            return Err(Error::Invalid {
                what: format!("state directory {}", self.state.display()),
                why: "it has to be a directory of your own that nobody else may write to".into(),
            });
        }
        for dir in ["s", "e", "tasks"] {
            make_private(&self.state.join(dir)).map_err(failed("make directories in"))?;
        }
        Ok(())
    }

    pub fn dir(&self, id: &str) -> Result<PathBuf, Error> {
        check_id("namespace", &self.namespace)?;
        check_id("id", id)?;
        Ok(self.state.join("tasks").join(&self.namespace).join(id))
    }

    /// The socket for events of a group's shim.
    pub fn events_socket(&self, group: &str) -> Result<PathBuf, Error> {
        let mut hasher = DefaultHasher::new();
        (&self.namespace, group).hash(&mut hasher);
        let path = self.state.join(format!("e/{:016x}", hasher.finish()));
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(Error::Invalid {
                what: format!("state directory {}", self.state.display()),
                why: "its path is too long for the sockets in it".into(),
            });
        }
        Ok(path)
    }

    /// The directory of a new container, made; with its record in it.
    pub fn add(&self, id: &str, binary: &Binary, group: &str) -> Result<Record, Error> {
        self.ensure()?;
        let record = Record {
            namespace: self.namespace.clone(),
            id: id.into(),
            group: group.into(),
            shim: binary.path.clone(),
            socket: None,
            version: 0,
            process: None,
            events: self.events_socket(group)?,
            dir: self.dir(id)?,
        };
        let parent = record.dir.parent().unwrap_or(&self.state);
        let made = make_private(parent)
            .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&record.dir));
        match made {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::TaskExists {
                    id: id.into(),
                    namespace: self.namespace.clone(),
                });
            }
            Err(source) => {
                return Err(Error::File {
                    what: "make",
                    path: record.dir,
                    source,
                });
            }
        }
        let written = record.write();
        if written.is_err() {
            let _ = fs::remove_dir_all(&record.dir);
        }
        written.map(|()| record)
    }

    pub fn record(&self, id: &str) -> Result<Record, Error> {
        let dir = self.dir(id)?;
        match fs::read(dir.join(RECORD)) {
            Ok(bytes) => Record::parse(&bytes, dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::NoTask {
                id: id.into(),
                namespace: self.namespace.clone(),
            }),
            Err(source) => Err(Error::File {
                what: "read",
                path: dir.join(RECORD),
                source,
            }),
        }
    }

    /// Every container that there is a record of, of every namespace.
    pub fn records(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for namespace in entries(&self.state.join("tasks"))? {
            for dir in entries(&namespace)? {
                match fs::read(dir.join(RECORD)) {
                    Ok(bytes) => records.push(Record::parse(&bytes, dir)?),
                    // Made or removed at this moment.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(source) => {
                        return Err(Error::File {
                            what: "read",
                            path: dir.join(RECORD),
                            source,
                        });
                    }
                }
            }
        }
        records.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
        Ok(records)
    }

    /// Whether other containers live in this one's shim.
    pub fn is_shared(&self, record: &Record) -> Result<bool, Error> {
        Ok(record.socket.is_some()
            && self.records()?.iter().any(|other| {
                other.socket == record.socket
                    && (&other.namespace, &other.id) != (&record.namespace, &record.id)
            }))
    }

    /// The shim of a container that is on record.
    pub async fn connect(&self, record: &Record) -> Result<Task, Error> {
        let name = record.binary().name();
        let Some(socket) = record.socket.clone() else {
            return Err(Error::Invalid {
                what: format!("container {}", record.id),
                why: format!(
                    "its shim {name} was never heard of; `berth shim delete --force {}` removes what is left",
                    record.id
                ),
            });
        };
        let bootstrap = Bootstrap {
            socket,
            version: record.version,
        };
        Task::connect(&name, &record.namespace, &bootstrap, self.deadline).await
    }
}

impl Record {
    fn parse(bytes: &[u8], dir: PathBuf) -> Result<Self, Error> {
        let record: Record = serde_json::from_slice(bytes).map_err(|error| Error::Invalid {
            what: dir.join(RECORD).display().to_string(),
            why: error.to_string(),
        })?;
        Ok(Self { dir, ..record })
    }

    /// Replaced by rename: a reader sees the old one or the new one.
    pub fn write(&self) -> Result<(), Error> {
        let path = self.dir.join(RECORD);
        let temporary = self.dir.join(format!(".{RECORD}"));
        let bytes = serde_json::to_vec(self).map_err(|error| Error::Format {
            format: "JSON",
            message: error.to_string(),
        })?;
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| Error::File {
                what: "write",
                path,
                source,
            })
    }

    pub fn binary(&self) -> Binary {
        Binary {
            path: self.shim.clone(),
        }
    }

    /// With what its shim's program is called.
    pub fn call(&self, place: &Place, max_version: u32) -> Action {
        Action {
            program: self.shim.clone(),
            namespace: self.namespace.clone(),
            id: self.id.clone(),
            bundle: self.dir.clone(),
            // What takes containerd's place for the shim.
            address: place.state.join("berth-shim.sock"),
            events: Some(self.events.clone()),
            publish_binary: String::new(),
            sockets: Some(place.state.join("s")),
            max_version,
            flags: place.verbose.then(|| "-debug".into()).into_iter().collect(),
        }
    }

    /// Removes the container's directory, and what is only there for it.
    pub fn remove(&self, place: &Place) -> Result<(), Error> {
        let shared = place.is_shared(self)?;
        bundle::remove(&self.dir)?;
        let namespace = self.dir.parent().unwrap_or(&self.dir);
        // Where others are still in it, it stays.
        let _ = fs::remove_dir(namespace);
        if let (false, Some(socket)) = (shared, &self.socket)
            && std::os::unix::net::UnixStream::connect(socket).is_err()
        {
            // What a shim that was killed could not remove.
            let _ = fs::remove_file(socket);
        }
        Ok(())
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    match fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::File {
            what: "list",
            path: dir.into(),
            source,
        }),
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// It becomes a file name: letters, digits, `_`, `-` and inner dots.
pub fn check_id(what: &str, id: &str) -> Result<(), Error> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    if (1..=MAX_ID_BYTES).contains(&id.len())
        && id.bytes().all(allowed)
        && !id.starts_with(['.', '-'])
    {
        return Ok(());
    }
    let shown: String = id.chars().take(MAX_ID_BYTES).collect();
    Err(Error::Invalid {
        what: format!("{what} {shown:?}"),
        why: format!(
            "1 to {MAX_ID_BYTES} letters, digits, '_', '-' and '.' are allowed, '.' and '-' not at its beginning"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(state: &Path) -> Place {
        Place {
            state: state.join("state"),
            namespace: "default".into(),
            deadline: Duration::from_secs(1),
            verbose: false,
        }
    }

    #[test]
    fn a_container_is_on_record_once_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        let binary = Binary {
            path: "/bin/true".into(),
        };
        assert!(matches!(place.record("c1"), Err(Error::NoTask { .. })));
        assert!(place.records().unwrap().is_empty());
        let mut record = place.add("c1", &binary, "g").unwrap();
        assert!(matches!(
            place.add("c1", &binary, "g"),
            Err(Error::TaskExists { .. })
        ));
        record.socket = Some("/nonexistent/s".into());
        record.write().unwrap();
        let mut other = place.add("c2", &binary, "g").unwrap();
        assert_eq!(record.events, other.events);
        assert!(!place.is_shared(&record).unwrap());
        other.socket.clone_from(&record.socket);
        other.write().unwrap();
        assert!(place.is_shared(&place.record("c1").unwrap()).unwrap());
        let mode = fs::metadata(&place.state).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
        record.remove(&place).unwrap();
        other.remove(&place).unwrap();
        assert!(entries(&place.state.join("tasks")).unwrap().is_empty());
    }

    #[test]
    fn ids_that_climb_are_refused() {
        let long = "a".repeat(MAX_ID_BYTES + 1);
        for id in ["", "..", "a/b", ".a", "-a", "ä", "a\0", &long] {
            assert!(check_id("id", id).is_err(), "{id:?}");
        }
        check_id("id", "web-1.x_y").unwrap();
    }

    #[test]
    fn a_state_directory_that_others_may_write_to_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let place = place(dir.path());
        fs::create_dir(&place.state).unwrap();
        fs::set_permissions(&place.state, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(place.ensure().is_err());
    }
}
