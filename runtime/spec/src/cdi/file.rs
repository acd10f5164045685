//! One file of the Container Device Interface: which devices a vendor has, and what a container needs for each.

use std::{collections::HashSet, fs::File, io::Read, path::Path};

use serde::{Deserialize, Deserializer};

use super::name;
use crate::error::quoted;

/// Versions of the specification whose files are read. Fields that a version brought are taken in an older file, too.
const VERSIONS: [&str; 8] = [
    "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

/// Bytes of a file: a node with hundreds of devices needs some hundred KiB.
const FILE_LIMIT: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SpecFile {
    cdi_version: String,
    pub kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: serde::de::IgnoredAny,
    pub devices: Vec<Device>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default, rename = "annotations")]
    _annotations: serde::de::IgnoredAny,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub container_edits: Edits,
}

/// What is changed in a container's configuration. A field that is not known here is an error: left out, a device would half work.
#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Edits {
    #[serde(default, deserialize_with = "absent_or_null")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub net_devices: Vec<serde_json::Value>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub hooks: Vec<Hook>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<serde_json::Value>,
    #[serde(
        default,
        rename = "additionalGids",
        alias = "additionalGIDs",
        deserialize_with = "absent_or_null"
    )]
    pub additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeviceNode {
    pub path: String,
    /// Where the node's own is; absent: at `path`.
    pub host_path: Option<String>,
    pub r#type: Option<String>,
    pub major: Option<i64>,
    pub minor: Option<i64>,
    pub file_mode: Option<u32>,
    pub permissions: Option<String>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: String,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub env: Vec<String>,
    /// s
    pub timeout: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub r#type: Option<String>,
    #[serde(default, deserialize_with = "absent_or_null")]
    pub options: Vec<String>,
}

/// What Go writes for an empty list is `null`.
fn absent_or_null<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl SpecFile {
    /// Reads a `.json`, `.yaml` or `.yml` file. The error says what is wrong with it, without its path.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_LIMIT + 1).read_to_string(&mut text))
            .map_err(|err| err.to_string())?;
        if text.len() as u64 > FILE_LIMIT {
            return Err(format!("is longer than {FILE_LIMIT} bytes"));
        }
        let spec = match path.extension().is_some_and(|ext| ext == "json") {
            true => Self::parse_json(&text)?,
            false => serde_saphyr::from_str(&text).map_err(|err| err.to_string())?,
        };
        spec.check()?;
        Ok(spec)
    }

    fn parse_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|err| err.to_string())
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.trim_start_matches('v');
        if !VERSIONS.contains(&version) {
            return Err(format!(
                "cdiVersion {} is none of {}",
                quoted(&self.cdi_version),
                VERSIONS.join(", ")
            ));
        }
        name::check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("has no devices".into());
        }
        self.container_edits.check()?;
        let mut names = HashSet::new();
        for device in &self.devices {
            let about = |why: String| format!("device {}: {why}", quoted(&device.name));
            name::check_device(&device.name).map_err(about)?;
            if !names.insert(&device.name) {
                return Err(about("is there twice".into()));
            }
            if device.container_edits == Edits::default() {
                return Err(about("edits nothing".into()));
            }
            device.container_edits.check().map_err(about)?;
        }
        Ok(())
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        let plain =
            |path: &str| path.starts_with('/') && !path.contains('\0') && !path.contains("/../");
        for entry in &self.env {
            if entry.contains('\0') || entry.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                return Err(format!("env {} is not NAME=value", quoted(entry)));
            }
        }
        for node in &self.device_nodes {
            if !plain(&node.path) || !node.host_path.as_deref().is_none_or(plain) {
                return Err(format!(
                    "device node {} is no absolute path",
                    quoted(&node.path)
                ));
            }
            let kind = node.r#type.as_deref().unwrap_or_default();
            if !["", "b", "c", "u", "p"].contains(&kind) {
                return Err(format!("device node {}: type {}", node.path, quoted(kind)));
            }
            let access = node.permissions.as_deref().unwrap_or_default();
            if !access.chars().all(|letter| "rwm".contains(letter)) {
                return Err(format!(
                    "device node {}: permissions {} are not made of r, w and m",
                    node.path,
                    quoted(access)
                ));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("{} is no hook", quoted(&hook.hook_name)));
            }
            if !plain(&hook.path) {
                return Err(format!("hook {} is no absolute path", quoted(&hook.path)));
            }
        }
        for mount in &self.mounts {
            if !plain(&mount.container_path) || mount.host_path.is_empty() {
                return Err(format!(
                    "mount at {} needs an absolute path on both sides",
                    quoted(&mount.container_path)
                ));
            }
        }
        Ok(())
    }
}

const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn whole() -> Value {
        json!({
            "cdiVersion": "1.1.0",
            "kind": "vendor.com/net",
            "annotations": {"a": "b"},
            "containerEdits": {"env": ["ALL=1"], "mounts": null},
            "devices": [{
                "name": "1:0",
                "annotations": {},
                "containerEdits": {
                    "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1,
                        "minor": 3, "fileMode": 384, "permissions": "rw", "uid": 1, "gid": 2}],
                    "hooks": [{"hookName": "createContainer", "path": "/bin/x", "args": ["x"], "env": ["A=b"], "timeout": 2}],
                    "mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "none", "options": ["ro"]}],
                    "netDevices": [{"hostInterfaceName": "eth7", "name": "net0"}],
                    "intelRdt": {"closID": "x", "enableMonitoring": true},
                    "additionalGids": [7]
                }
            }]
        })
    }

    fn read(spec: &Value) -> Result<SpecFile, String> {
        let spec = SpecFile::parse_json(&spec.to_string())?;
        spec.check().map(|()| spec)
    }

    #[test]
    fn every_field_and_every_version_is_read() {
        let mut spec = whole();
        for version in VERSIONS {
            spec["cdiVersion"] = json!(version);
            read(&spec).unwrap();
        }
        let edits = &read(&spec).unwrap().devices[0].container_edits;
        assert_eq!(edits.device_nodes[0].file_mode, Some(0o600));
        assert_eq!(edits.additional_gids, [7]);
        assert_eq!(edits.hooks[0].timeout, Some(2));
        assert!(edits.intel_rdt.is_some() && edits.net_devices.len() == 1);
    }

    #[test]
    fn json_and_yaml_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (json, yaml) = (dir.path().join("a.json"), dir.path().join("a.yaml"));
        std::fs::write(&json, whole().to_string()).unwrap();
        std::fs::write(
            &yaml,
            r#"
cdiVersion: "1.1.0"
kind: vendor.com/net
annotations: {a: b}
containerEdits: {env: [ALL=1], mounts: null}
devices:
- name: "1:0"
  containerEdits:
    deviceNodes:
    - {path: /dev/x, hostPath: /dev/null, type: c, major: 1, minor: 3, fileMode: 0o600, permissions: rw, uid: 1, gid: 2}
    hooks:
    - hookName: createContainer
      path: /bin/x
      args: [x]
      env: [A=b]
      timeout: 2
    mounts:
    - {hostPath: /a, containerPath: /b, type: none, options: [ro]}
    netDevices: [{hostInterfaceName: eth7, name: net0}]
    intelRdt: {closID: x, enableMonitoring: true}
    additionalGids: [7]
"#,
        )
        .unwrap();
        let (json, yaml) = (
            SpecFile::read(&json).unwrap(),
            SpecFile::read(&yaml).unwrap(),
        );
        assert_eq!(json.devices[0].name, yaml.devices[0].name);
        assert_eq!(
            json.devices[0].container_edits,
            yaml.devices[0].container_edits
        );
        assert_eq!(json.container_edits, yaml.container_edits);
    }

    #[test]
    fn a_file_that_is_wrong_says_where() {
        type Change = fn(&mut Value);
        let table: [(Change, &str); 18] = [
            (|s| s["cdiVersion"] = json!("9.0.0"), "9.0.0"),
            (|s| s["cdiVersion"] = json!("0.2.0"), "0.2.0"),
            (|s| s["kind"] = json!("vendor"), "vendor"),
            (|s| s["kind"] = json!("v/c/d"), "v/c/d"),
            (|s| s["devices"] = json!([]), "no devices"),
            (|s| s["devices"][0]["name"] = json!(""), "name"),
            (|s| s["devices"][0]["name"] = json!("a b"), "a b"),
            (
                |s| s["devices"][0]["containerEdits"] = json!({}),
                "edits nothing",
            ),
            (
                |s| {
                    let first = s["devices"][0].clone();
                    s["devices"].as_array_mut().unwrap().push(first);
                },
                "twice",
            ),
            (|s| s["unknown"] = json!(1), "unknown"),
            (|s| s["containerEdits"]["unknown"] = json!(1), "unknown"),
            (
                |s| s["containerEdits"]["env"] = json!(["NOTHING"]),
                "NOTHING",
            ),
            (|s| s["containerEdits"]["env"] = json!(["=x"]), "=x"),
            (
                |s| s["containerEdits"]["hooks"] = json!([{"hookName": "later", "path": "/x"}]),
                "later",
            ),
            (
                |s| s["containerEdits"]["hooks"] = json!([{"hookName": "prestart", "path": "x"}]),
                "absolute",
            ),
            (
                |s| s["containerEdits"]["deviceNodes"] = json!([{"path": "/dev/x", "type": "z"}]),
                "\"z\"",
            ),
            (
                |s| {
                    s["containerEdits"]["deviceNodes"] =
                        json!([{"path": "/dev/x", "permissions": "rx"}])
                },
                "rx",
            ),
            (
                |s| {
                    s["containerEdits"]["mounts"] =
                        json!([{"hostPath": "/a", "containerPath": "b"}])
                },
                "absolute",
            ),
        ];
        for (row, (change, says)) in table.into_iter().enumerate() {
            let mut spec = whole();
            change(&mut spec);
            let why = read(&spec).expect_err(&format!("row {row}"));
            assert!(why.contains(says), "row {row}: {why}");
            assert!(why.len() < 500, "row {row}: {why}");
        }
    }
}
