//! Manifests that the tests share.

use std::{fs, path::Path};

use berth_kinds::{Kind, by_kind};
use serde_json::Value;

pub fn kind_of(object: &Value) -> &'static Kind {
    let version = object["apiVersion"].as_str().unwrap();
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let kind = object["kind"].as_str().unwrap();
    by_kind(group, version, kind).unwrap_or_else(|| panic!("{group}/{version} {kind}"))
}

/// All documents of all files, as a server has them once names and namespaces are filled in.
pub fn manifests() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut all = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        for mut object in documents {
            let kind = kind_of(&object);
            let metadata = object["metadata"].as_object_mut().unwrap();
            metadata.insert("uid".into(), "7d0b8c1e-0000-4000-8000-000000000001".into());
            metadata.insert("creationTimestamp".into(), "2026-11-22T15:00:00Z".into());
            if kind.namespaced {
                metadata.entry("namespace").or_insert("default".into());
            }
            let name = format!(
                "{} {}/{}",
                file.file_name().unwrap().to_string_lossy(),
                kind.kind,
                metadata["name"].as_str().unwrap()
            );
            all.push((name, object));
        }
    }
    all
}
