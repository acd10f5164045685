//! Devices by the Container Device Interface: which a container asks for, where they are described, and what they change.
//!
//! The files are read at each create that asks for such a device, and at no other: what a vendor's program writes while the daemon runs
//! is taken up. A file that is broken costs the devices of that file only.

mod edits;
mod file;
mod name;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_proto::cri;
use oci_spec::runtime::Spec;

use self::file::SpecFile;
use crate::error::{Error, quoted};

/// Devices of one container, and files of one directory: more is a mistake.
const DEVICES_LIMIT: usize = 256;
const FILES_LIMIT: usize = 4096;

/// Under which keys of a container's annotations a device plugin names devices, where it knows no field for it.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// The devices that a container asks for by their qualified names, each once: of the field, then of annotations in order of their keys.
/// Errors: a name that is none.
pub fn cdi_devices(container: &cri::ContainerConfig) -> Result<Vec<String>, Error> {
    let annotations: BTreeMap<_, _> = container.annotations.iter().collect();
    let annotated = annotations
        .into_iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX))
        .flat_map(|(key, value)| {
            let field = format!("annotations[{}]", quoted(key));
            value
                .split(',')
                .map(move |name| (field.clone(), name.trim()))
        });
    let of_field = container
        .cdi_devices
        .iter()
        .map(|device| ("cdi_devices".to_owned(), device.name.as_str()));
    let mut names: Vec<String> = Vec::new();
    for (field, device) in of_field.chain(annotated) {
        name::parse(device).map_err(|why| Error::invalid(field.clone(), why))?;
        if names.iter().any(|have| have == device) {
            continue;
        }
        if names.len() == DEVICES_LIMIT {
            return Err(Error::invalid(
                field,
                format!("more than {DEVICES_LIMIT} CDI devices"),
            ));
        }
        names.push(device.to_owned());
    }
    Ok(names)
}

/// Changes `spec` as the named devices want it. Of directories the later one goes before; a device that two files of one directory
/// describe can't be used. All are found first: where one is not, nothing is changed.
pub fn inject_cdi(spec: &mut Spec, names: &[String], dirs: &[PathBuf]) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let found = Found::scan(dirs);
    let mut edits = Vec::new();
    let mut seen = HashSet::new();
    for name in names {
        let (file, number) = found.device(name, dirs)?;
        // What is for all of a file's devices, once.
        if seen.insert(file.path.clone()) {
            edits.push((name, &file.spec.container_edits));
        }
        edits.push((name, &file.spec.devices[number].container_edits));
    }
    edits::apply(spec, &edits)
}

#[derive(Debug)]
struct Read {
    path: PathBuf,
    spec: SpecFile,
}

#[derive(Debug)]
enum Device {
    In(Arc<Read>, usize),
    Twice(PathBuf, PathBuf),
}

#[derive(Debug, Default)]
struct Found {
    devices: BTreeMap<String, Device>,
    /// Files that could not be read, and why.
    broken: Vec<(PathBuf, String)>,
}

impl Found {
    fn scan(dirs: &[PathBuf]) -> Self {
        let mut found = Self::default();
        for dir in dirs {
            let mut here: BTreeMap<String, Device> = BTreeMap::new();
            for path in found.files(dir) {
                match SpecFile::read(&path) {
                    Ok(spec) => enter(&mut here, Arc::new(Read { path, spec })),
                    Err(why) => found.broken.push((path, why)),
                }
            }
            found.devices.extend(here);
        }
        found
    }

    /// In order of their names. A directory that is not there has none.
    fn files(&mut self, dir: &Path) -> Vec<PathBuf> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(err) => {
                if err.kind() != std::io::ErrorKind::NotFound {
                    self.broken.push((dir.to_owned(), err.to_string()));
                }
                return Vec::new();
            }
        };
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                let extension = path.extension().and_then(|ext| ext.to_str());
                matches!(extension, Some("json" | "yaml" | "yml")) && path.is_file()
            })
            .take(FILES_LIMIT)
            .collect();
        files.sort();
        files
    }

    fn device(&self, name: &str, dirs: &[PathBuf]) -> Result<(&Arc<Read>, usize), Error> {
        let why = match self.devices.get(name) {
            Some(Device::In(file, number)) => return Ok((file, *number)),
            Some(Device::Twice(one, other)) => format!(
                "is described by both {} and {}",
                one.display(),
                other.display()
            ),
            None => {
                let looked: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
                let mut why = format!("no file in {} describes it", looked.join(" or "));
                if let Some((path, reason)) = self.broken.first() {
                    why += &format!(
                        " ({} could not be read: {} {reason:.300})",
                        self.broken.len(),
                        path.display()
                    );
                }
                why
            }
        };
        Err(Error::invalid(
            "cdi_devices",
            format!("{}: {why}", quoted(name)),
        ))
    }
}

fn enter(here: &mut BTreeMap<String, Device>, file: Arc<Read>) {
    for (number, device) in file.spec.devices.iter().enumerate() {
        let name = format!("{}={}", file.spec.kind, device.name);
        let entry = match here.remove(&name) {
            None => Device::In(file.clone(), number),
            Some(Device::In(other, _)) => Device::Twice(other.path.clone(), file.path.clone()),
            Some(twice) => twice,
        };
        here.insert(name, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{container_spec, error::Kind, tests::fixture};

    struct Dirs {
        top: tempfile::TempDir,
        dirs: Vec<PathBuf>,
    }

    fn two() -> Dirs {
        let top = tempfile::tempdir().unwrap();
        let dirs = vec![top.path().join("etc"), top.path().join("run")];
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        Dirs { top, dirs }
    }

    impl Dirs {
        /// A file with one device, whose only edit is `env`.
        fn write(&self, path: &str, device: &str, env: &str) {
            let text = format!(
                r#"{{"cdiVersion": "0.5.0", "kind": "v.com/c", "containerEdits": {{"env": ["ALL_{env}=1"]}},
                "devices": [{{"name": "{device}", "containerEdits": {{"env": ["{env}=1", "PATH=/{env}"]}}}}]}}"#
            );
            fs::write(self.top.path().join(path), text).unwrap();
        }

        fn env(&self, names: &[&str]) -> Result<Vec<String>, Error> {
            let mut spec = container_spec(&fixture().inputs()).unwrap().spec;
            let before = spec.process().as_ref().unwrap().env().clone().unwrap();
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            inject_cdi(&mut spec, &names, &self.dirs)?;
            let after = spec.process().as_ref().unwrap().env().clone().unwrap();
            Ok(after.into_iter().filter(|e| !before.contains(e)).collect())
        }
    }

    #[test]
    fn the_later_directory_goes_before_and_one_conflict_costs_one_device() {
        let dirs = two();
        dirs.write("etc/a.json", "both", "ETC");
        dirs.write("run/a.json", "both", "RUN");
        dirs.write("etc/b.json", "twice", "B");
        dirs.write("etc/c.yaml", "twice", "C");
        dirs.write("etc/d.json", "alone", "D");
        assert_eq!(
            dirs.env(&["v.com/c=both"]).unwrap(),
            ["PATH=/RUN", "ALL_RUN=1", "RUN=1"]
        );
        let twice = dirs.env(&["v.com/c=both", "v.com/c=twice"]).unwrap_err();
        assert_eq!(twice.kind(), Kind::Invalid);
        for part in ["v.com/c=twice", "b.json", "c.yaml"] {
            assert!(twice.to_string().contains(part), "{twice}");
        }
        // The later one settles it.
        dirs.write("run/e.json", "twice", "E");
        assert_eq!(
            dirs.env(&["v.com/c=twice", "v.com/c=alone"]).unwrap(),
            ["PATH=/D", "ALL_E=1", "E=1", "ALL_D=1", "D=1"]
        );
    }

    #[test]
    fn a_broken_file_costs_its_own_devices_and_is_named() {
        let dirs = two();
        dirs.write("etc/good.json", "good", "GOOD");
        fs::write(dirs.dirs[1].join("broken.yaml"), "cdiVersion: [").unwrap();
        fs::write(dirs.dirs[1].join("notes.txt"), "not read").unwrap();
        fs::create_dir(dirs.dirs[1].join("directory.json")).unwrap();
        assert!(dirs.env(&["v.com/c=good"]).is_ok());
        let unknown = dirs.env(&["v.com/c=bad"]).unwrap_err();
        assert_eq!(unknown.kind(), Kind::Invalid);
        let (etc, run) = (dirs.dirs[0].display(), dirs.dirs[1].display());
        for part in [
            "v.com/c=bad",
            &etc.to_string(),
            &run.to_string(),
            "broken.yaml",
        ] {
            assert!(unknown.to_string().contains(part), "{unknown}");
        }
        // Mended while the daemon runs.
        dirs.write("run/broken.yaml", "bad", "MENDED");
        assert!(dirs.env(&["v.com/c=bad"]).is_ok());
        fs::remove_dir_all(&dirs.dirs[1]).unwrap();
        assert!(dirs.env(&["v.com/c=good"]).is_ok());
    }

    #[test]
    fn names_come_from_the_field_and_from_annotations_each_once() {
        let mut container = cri::ContainerConfig {
            cdi_devices: ["v/c=1", "v/c=2", "v/c=1"]
                .map(|name| cri::CdiDevice { name: name.into() })
                .to_vec(),
            annotations: [
                ("cdi.k8s.io/plugin_b", "v/c=4"),
                ("cdi.k8s.io/plugin_a", "v/c=2, v/c=3"),
                ("other.io/cdi", "nonsense"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            ..Default::default()
        };
        assert_eq!(
            cdi_devices(&container).unwrap(),
            ["v/c=1", "v/c=2", "v/c=3", "v/c=4"]
        );
        for wrong in ["", "gpu", "v/c=1,", "v/c=../x"] {
            let key = "cdi.k8s.io/wrong".to_owned();
            container.annotations.insert(key, wrong.into());
            let error = cdi_devices(&container).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{wrong:?}");
            assert!(error.to_string().contains("cdi.k8s.io/wrong"), "{error}");
        }
        container.annotations.clear();
        container.cdi_devices = (0..300)
            .map(|number| cri::CdiDevice {
                name: format!("v/c={number}"),
            })
            .collect();
        assert_eq!(cdi_devices(&container).unwrap_err().kind(), Kind::Invalid);
    }
}
