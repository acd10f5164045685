//! A Kubernetes Pod manifest, and what the CRI must be asked for it.
//!
//! ```text
//! YAML ── read ──▶ Manifest ── sandbox_config ──▶ RunPodSandbox
//!          │            ├───── volumes ─────────▶ directories on the node
//!   fields that don't   └───── container_config ▶ CreateContainer
//!   exist or mean
//!   nothing here
//! ```
//!
//! Invariant: no field of a manifest is dropped silently. Each is translated, or warned of ([`fields::IGNORED`]), or an
//! error that names its path.

mod container;
mod environment;
mod fields;
pub mod labels;
mod quantity;
mod resources;
mod sandbox;
mod security;
mod volumes;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::Value;

pub use berth_kubelet::Problem;
pub use container::{ImageFacts, PullPolicy, container_config};
pub use resources::NodeFacts;
pub use sandbox::sandbox_config;
pub use volumes::Volumes;

use crate::error::Error;

/// Where the empty volumes of pods are made: one directory a pod, named by its uid.
pub const VOLUMES_DIR: &str = "/var/lib/berth-run";

/// Where the kubelet keeps logs, and log collectors look for them.
const LOGS_DIR: &str = "/var/log/pods";

/// A manifest of more than this is not one.
pub const MAX_BYTES: u64 = 3 << 20;

/// A pod that has a name, a namespace and a uid, and only fields that are understood.
#[derive(Debug, Clone)]
pub struct Manifest {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pod: Pod,
    spec: PodSpec,
}

/// A container and where it stands in the manifest.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    pub container: &'a Container,
    pub path: String,
}

impl Manifest {
    /// Reads one manifest. `new_uid` is taken where it has no uid of its own. Also returns what was ignored.
    pub fn read(
        text: &str,
        new_uid: impl FnOnce() -> String,
    ) -> Result<(Self, Vec<Problem>), Vec<Problem>> {
        let whole = |what: String| vec![Problem::new("", what)];
        let mut documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|error| whole(format!("not YAML: {error}")))?;
        documents.retain(|document| !document.is_null());
        let count = documents.len();
        let mut value = match (documents.pop(), count) {
            (Some(value), 1) => value,
            (None, _) => return Err(whole("no document in it".into())),
            _ => {
                return Err(whole(format!(
                    "{count} documents in it: `berth run` takes one Pod at a time"
                )));
            }
        };
        fields::strip_nulls(&mut value);
        kind_is_pod(&value).map_err(whole)?;
        let pod: Pod = serde_path_to_error::deserialize(&value).map_err(|error| {
            vec![Problem::new(
                fields::path_in_words(&error.path().to_string()),
                error.into_inner().to_string(),
            )]
        })?;
        let (mut problems, warnings) = fields::check(&value, &pod);
        let metadata = &pod.metadata;
        let spec = pod.spec.clone().unwrap_or_default();
        let manifest = Manifest {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata
                .namespace
                .clone()
                .unwrap_or_else(|| "default".into()),
            uid: metadata.uid.clone().unwrap_or_else(new_uid),
            pod,
            spec,
        };
        manifest.check_names(&mut problems);
        if problems.is_empty() {
            // Everything that can be found wrong is found before anything is made.
            let volumes = Volumes::plan(&manifest, Path::new(VOLUMES_DIR))
                .map_err(|problem| vec![problem])?;
            for place in manifest.init_containers().chain(manifest.containers()) {
                if let Err(problem) = container_config(
                    &manifest,
                    &place,
                    None,
                    &[],
                    &NodeFacts::default(),
                    &volumes,
                ) {
                    problems.push(problem);
                }
            }
        }
        if problems.is_empty() {
            sandbox_config(&manifest).map_err(|problem| vec![problem])?;
            Ok((manifest, warnings))
        } else {
            Err(problems)
        }
    }

    pub fn init_containers(&self) -> impl Iterator<Item = Place<'_>> {
        places(
            "spec.initContainers",
            self.spec.init_containers.as_deref().unwrap_or_default(),
        )
    }

    pub fn containers(&self) -> impl Iterator<Item = Place<'_>> {
        places("spec.containers", &self.spec.containers)
    }

    pub fn log_directory(&self) -> PathBuf {
        log_directory(&self.namespace, &self.name, &self.uid)
    }

    /// Handler of the runtime: that of the RuntimeClass, which without a cluster can only be its name.
    pub fn runtime_handler(&self) -> String {
        self.spec.runtime_class_name.clone().unwrap_or_default()
    }

    /// Names become directories and host names, so they must be what Kubernetes allows.
    fn check_names(&self, problems: &mut Vec<Problem>) {
        let mut check = |path: String, name: &str, valid: fn(&str) -> bool, what: &str| {
            if name.is_empty() {
                problems.push(Problem::new(path, "must be set"));
            } else if !valid(name) {
                problems.push(Problem::new(path, format!("{name:?} is not {what}")));
            }
        };
        const LABEL: &str = "a DNS label (a-z, 0-9, '-'; at most 63)";
        check(
            "metadata.name".into(),
            &self.name,
            is_dns_subdomain,
            "a DNS name (a-z, 0-9, '-', '.'; at most 253)",
        );
        check(
            "metadata.namespace".into(),
            &self.namespace,
            is_dns_label,
            LABEL,
        );
        check(
            "metadata.uid".into(),
            &self.uid,
            is_path_component,
            "a uid (letters, digits, '-', '_', '.')",
        );
        let mut seen = std::collections::BTreeSet::new();
        let mut twice = Vec::new();
        for place in self.init_containers().chain(self.containers()) {
            let path = format!("{}.name", place.path);
            check(path.clone(), &place.container.name, is_dns_label, LABEL);
            if !seen.insert(place.container.name.clone()) {
                twice.push(Problem::new(
                    path,
                    format!("{:?} is the name of two containers", place.container.name),
                ));
            }
        }
        problems.extend(twice);
        if self.spec.containers.is_empty() {
            problems.push(Problem::new("spec.containers", "must have a container"));
        }
    }
}

fn places<'a>(path: &'static str, containers: &'a [Container]) -> impl Iterator<Item = Place<'a>> {
    containers
        .iter()
        .enumerate()
        .map(move |(index, container)| Place {
            container,
            path: format!("{path}[{index}]"),
        })
}

fn kind_is_pod(value: &Value) -> Result<(), String> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    match (text("apiVersion"), text("kind")) {
        (Some("v1"), Some("Pod")) => Ok(()),
        (None, _) | (_, None) => {
            Err("no Kubernetes manifest: it needs `apiVersion: v1` and `kind: Pod`".into())
        }
        (Some(version), Some(kind)) => Err(format!(
            "a {kind} of {version}: `berth run` takes a Pod of v1, everything else needs a cluster"
        )),
    }
}

pub fn log_directory(namespace: &str, name: &str, uid: &str) -> PathBuf {
    Path::new(LOGS_DIR).join(format!("{namespace}_{name}_{uid}"))
}

/// Removes a directory with what is in it, following no link. That it is not there is no error.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::File {
            what: "remove",
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

/// Safe as the name of one directory.
pub fn is_path_component(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_dns_label)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A manifest with these lines, indented as they are, under `spec:` beside one container.
    pub fn pod_with(spec: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n{spec}\n  containers:\n  - name: a\n    image: x:1\n"
        )
    }

    /// A manifest whose one container has these lines.
    pub fn container_with(lines: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: a\n    image: x:1\n{lines}\n"
        )
    }

    pub fn read(text: &str) -> Result<Manifest, String> {
        Manifest::read(text, || "uid-1".into())
            .map(|(manifest, _)| manifest)
            .map_err(|problems| {
                problems
                    .iter()
                    .map(|problem| problem.to_string())
                    .collect::<Vec<_>>()
                    .join("\n")
            })
    }

    #[test]
    fn a_small_pod_gets_a_namespace_and_a_uid() {
        let manifest = read(&pod_with("")).unwrap();
        assert_eq!(
            (
                &manifest.name[..],
                &manifest.namespace[..],
                &manifest.uid[..]
            ),
            ("web", "default", "uid-1")
        );
        assert_eq!(
            manifest.log_directory(),
            Path::new("/var/log/pods/default_web_uid-1")
        );
    }

    #[test]
    fn comments_and_empty_documents_around_the_pod_are_nothing() {
        read(&format!("# a pod\n---\n{}---\n", pod_with(""))).unwrap();
    }

    #[test]
    fn bad_manifests_are_refused_with_the_path_of_each_problem() {
        let two = format!("{}---\n{}", pod_with(""), pod_with(""));
        for (text, expected) in [
            ("", "no document in it"),
            (
                &two,
                "2 documents in it: `berth run` takes one Pod at a time",
            ),
            (
                "a: 1",
                "no Kubernetes manifest: it needs `apiVersion: v1` and `kind: Pod`",
            ),
            (
                "apiVersion: apps/v1\nkind: Deployment",
                "a Deployment of apps/v1: `berth run` takes a Pod of v1, everything else needs a cluster",
            ),
            (
                &pod_with("  hostNetwrk: true"),
                "spec.hostNetwrk: no such field in a Pod of v1",
            ),
            (
                &container_with(
                    "    livenesProbe: {}\n    ports:\n    - containrPort: 1\n      containerPort: 1",
                ),
                "spec.containers[0].livenesProbe: no such field in a Pod of v1\n\
                 spec.containers[0].ports[0].containrPort: no such field in a Pod of v1",
            ),
            (
                &container_with("    ports:\n    - containerPort: http"),
                "spec.containers[0].ports[0].containerPort: invalid type: string \"http\", expected i32",
            ),
            (
                &container_with("    envFrom:\n    - configMapRef:\n        name: c"),
                "spec.containers[0].envFrom: not supported by `berth run`",
            ),
            (
                &pod_with("  volumes:\n  - name: v\n    projected:\n      sources: []"),
                "spec.volumes[0].projected: not supported by `berth run`",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: ../x\nspec:\n  containers: []",
                concat!(
                    "metadata.name: \"../x\" is not a DNS name (a-z, 0-9, '-', '.'; at most 253)\n",
                    "spec.containers: must have a container"
                ),
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: w\n  uid: ../../etc\nspec:\n  containers:\n  - name: A\n    image: x\n  - name: A\n    image: x",
                "metadata.uid: \"../../etc\" is not a uid (letters, digits, '-', '_', '.')\n\
                 spec.containers[0].name: \"A\" is not a DNS label (a-z, 0-9, '-'; at most 63)\n\
                 spec.containers[1].name: \"A\" is not a DNS label (a-z, 0-9, '-'; at most 63)\n\
                 spec.containers[1].name: \"A\" is the name of two containers",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: w}\nspec:\n  containers:\n  - name: a",
                "spec.containers[0].image: must be set",
            ),
        ] {
            assert_eq!(read(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_yaml_is_told_with_its_line() {
        let error = read("apiVersion: v1\nkind: [Pod").unwrap_err();
        assert!(
            error.starts_with("not YAML: ") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn fields_without_a_meaning_here_are_warned_of() {
        let text = container_with("    livenessProbe:\n      exec:\n        command: [a]")
            + "  restartPolicy: Never\n  tolerations: [{operator: Exists}]\nstatus: {}\n";
        let (_, warnings) = Manifest::read(&text, || "u".into()).unwrap();
        let warnings: Vec<_> = warnings.iter().map(|warning| warning.to_string()).collect();
        assert_eq!(
            warnings,
            [
                "spec.containers[0].livenessProbe: ignored: probes are not run",
                "spec.tolerations: ignored: it is for the scheduler"
            ]
        );
    }

    #[test]
    fn trees_are_removed_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir_all(kept.join("inside")).unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.join("inside").exists());
    }
}
