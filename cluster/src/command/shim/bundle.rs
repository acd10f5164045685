//! The bundle that a shim gets: a copy of the person's own, so that nothing is written into that one; and its end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::mount::{UnmountFlags, unmount};
use serde_json::{Value, json};

use crate::error::Error;

/// A configuration is read whole.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Annotations that name the group of containers that share a shim: the CRI's, and that of runc's shim for everybody else.
pub const GROUPS: [&str; 2] = [
    "io.kubernetes.cri.sandbox-id",
    "io.containerd.runc.v2.group",
];
/// A shim that ends may still write a last file into the directory that is being removed.
const REMOVAL: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

/// An OCI bundle's configuration, as it is given to a shim.
#[derive(Debug)]
pub struct Config {
    pub spec: Value,
}

impl Config {
    /// Reads `config.json` of a bundle and makes what is relative to the bundle absolute.
    pub fn read(bundle: &Path) -> Result<Self, Error> {
        let path = bundle.join("config.json");
        let failed = |what| {
            let path = path.clone();
            move |source| Error::File { what, path, source }
        };
        let invalid = |why: String| Error::Invalid {
            what: path.display().to_string(),
            why,
        };
        let bundle = std::path::absolute(bundle).map_err(failed("find"))?;
        let length = fs::metadata(&path).map_err(failed("read"))?.len();
        if length > MAX_CONFIG_BYTES {
            return Err(invalid(format!(
                "it has more than {MAX_CONFIG_BYTES} bytes"
            )));
        }
        let text = fs::read(&path).map_err(failed("read"))?;
        let mut spec: Value =
            serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
        if !spec.is_object() {
            return Err(invalid("it is no object".into()));
        }
        let Some(root) = spec["root"]["path"].as_str() else {
            return Err(invalid("it has no root.path".into()));
        };
        let root = bundle.join(root);
        if !root.is_dir() {
            return Err(invalid(format!(
                "root.path leads to {}, which is no directory",
                root.display()
            )));
        }
        spec["root"]["path"] = json!(root);
        for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
            if let Some(source) = mount["source"].as_str()
                && is_bind(mount)
                && !source.starts_with('/')
            {
                mount["source"] = json!(bundle.join(source));
            }
        }
        Ok(Self { spec })
    }

    /// A container that says nothing of its cgroup gets one by its id: without one there would be no figures, no pause.
    pub fn ensure_cgroup(&mut self, id: &str) {
        let path = &mut self.spec["linux"]["cgroupsPath"];
        if path.as_str().is_none_or(str::is_empty) {
            *path = json!(format!("/berth-shim-{id}"));
        }
    }

    pub fn set_terminal(&mut self, terminal: bool) {
        self.spec["process"]["terminal"] = json!(terminal);
    }

    pub fn terminal(&self) -> bool {
        self.spec["process"]["terminal"].as_bool().unwrap_or(false)
    }

    /// The id of those that share a shim with it.
    pub fn group(&self, id: &str) -> String {
        GROUPS
            .iter()
            .find_map(|name| self.spec["annotations"][*name].as_str())
            .unwrap_or(id)
            .to_owned()
    }

    pub fn write(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join("config.json");
        fs::write(&path, self.spec.to_string()).map_err(|source| Error::File {
            what: "write",
            path,
            source,
        })
    }
}

/// The process of a container's spec, of which its execs are made.
pub fn process(dir: &Path) -> Result<Value, Error> {
    let path = dir.join("config.json");
    let text = fs::read(&path).map_err(|source| Error::File {
        what: "read",
        path: path.clone(),
        source,
    })?;
    let mut spec: Value = serde_json::from_slice(&text).map_err(|error| Error::Invalid {
        what: path.display().to_string(),
        why: error.to_string(),
    })?;
    Ok(spec["process"].take())
}

fn is_bind(mount: &Value) -> bool {
    let options = mount["options"].as_array();
    mount["type"] == "bind"
        || options
            .into_iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

/// Removes the directory, never what is mounted in it: a root file system of somebody may be.
pub fn remove(dir: &Path) -> Result<(), Error> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    };
    for mount in mounts_below(dir)? {
        unmount(&mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|errno| failed("unmount", &mount)(errno.into()))?;
    }
    if let Some(mount) = mounts_below(dir)?.first() {
        let busy = io::Error::from(io::ErrorKind::ResourceBusy);
        return Err(failed("unmount", mount)(busy));
    }
    let began = Instant::now();
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
            Err(source) if began.elapsed() > REMOVAL => return Err(failed("remove", dir)(source)),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Mount points below `dir`, the innermost first.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(|source| Error::File {
        what: "read",
        path: path.into(),
        source,
    })?;
    // Ids are our own and plain; the state directory may hold what mountinfo escapes.
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.into());
    Ok(text
        .lines()
        .rev()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|target| PathBuf::from(unescaped(target)))
        .filter(|target| target.starts_with(&dir))
        .collect())
}

/// `\040` and its like, as mountinfo writes blanks, tabs, newlines and backslashes.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4);
        match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => {
                out.push(byte.into());
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spec: Value) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let mut config = Config::read(dir.path())?;
        let text = config.spec.to_string();
        let text = text.replace(&dir.path().display().to_string(), "BUNDLE");
        config.spec = serde_json::from_str(&text).unwrap();
        Ok(config)
    }

    #[test]
    fn what_is_relative_to_the_bundle_becomes_absolute() {
        let read = config(json!({
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/a", "type": "bind", "source": "a"},
                {"destination": "/b", "source": "/b", "options": ["rbind"]},
            ],
        }))
        .unwrap();
        assert_eq!(read.spec["root"]["path"], "BUNDLE/rootfs");
        let sources: Vec<&Value> = (0..3).map(|i| &read.spec["mounts"][i]["source"]).collect();
        assert_eq!(sources, ["proc", "BUNDLE/a", "/b"]);
    }

    #[test]
    fn a_bundle_that_makes_no_sense_is_refused_by_name() {
        for (spec, word) in [
            (json!([]), "no object"),
            (json!({}), "no root.path"),
            (json!({"root": {"path": "nowhere"}}), "no directory"),
        ] {
            let error = config(spec).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("config.json"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_container_has_the_group_of_its_annotations_and_a_cgroup() {
        let mut read = config(json!({
            "root": {"path": "rootfs"},
            "annotations": {"io.kubernetes.cri.sandbox-id": "pod"},
        }))
        .unwrap();
        assert_eq!(read.group("c1"), "pod");
        read.ensure_cgroup("c1");
        assert_eq!(read.spec["linux"]["cgroupsPath"], "/berth-shim-c1");
        read.spec["linux"]["cgroupsPath"] = json!("/mine");
        read.ensure_cgroup("c1");
        assert_eq!(read.spec["linux"]["cgroupsPath"], "/mine");
        read.spec["annotations"] = Value::Null;
        assert_eq!(read.group("c1"), "c1");
    }

    #[test]
    fn mount_points_are_read_as_mountinfo_writes_them() {
        for (escaped, plain) in [
            ("/a", "/a"),
            (r"/a\040b", "/a b"),
            (r"/a\134", r"/a\"),
            (r"/a\9", r"/a\9"),
        ] {
            assert_eq!(unescaped(escaped), plain);
        }
    }
}
