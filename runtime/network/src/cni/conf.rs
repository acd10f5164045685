//! What a configuration of a network says.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::{Version, listed};

/// Plugins of one list: each is a process per pod.
const MAX_PLUGINS: usize = 64;
/// The most that a name has (libcni knows no bound; names become files of IPAM plugins).
const MAX_NAME_BYTES: usize = 200;

/// A network: its name and its plugins in the order of ADD. Also how it stands in a pod's record, so that DEL gets what ADD got.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Conf {
    pub path: PathBuf,
    pub name: String,
    /// What the configuration can be read as, newest first; never empty. In a record: the one that was chosen.
    pub versions: Vec<Version>,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Map<String, Value>>,
}

/// Without what the plugins are told: that may be secret.
impl fmt::Debug for Conf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types: Vec<_> = self.plugins.iter().map(plugin_type).collect();
        f.debug_struct("Conf")
            .field("path", &self.path)
            .field("name", &self.name)
            .field("versions", &self.versions)
            .field("plugins", &types)
            .finish_non_exhaustive()
    }
}

/// The plugin's binary by name. Only for what [`Conf::parse`] has let pass.
pub fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Whether the plugin says that it understands `runtimeConfig.<capability>`.
pub fn has_capability(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin
        .get("capabilities")
        .and_then(|all| all.get(capability))
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

impl Conf {
    /// Reads a single plugin's configuration or a list of them: what it is, its content tells.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, String> {
        Self::parse_with(path, text, |_| Ok(Vec::new()))
    }

    /// As [`Conf::parse`]; `beside` has the plugins of the directory of the network's name, which follow those of the list unless it says
    /// `loadOnlyInlinedPlugins`.
    pub fn parse_with(
        path: &Path,
        text: &[u8],
        beside: impl FnOnce(&str) -> Result<Vec<Map<String, Value>>, String>,
    ) -> Result<Self, String> {
        let mut top = object(text)?;
        let name = match top.get("name") {
            Some(Value::String(name)) => name.clone(),
            Some(_) => return Err("key name is no string".into()),
            None => return Err("key name is missing".into()),
        };
        plain_name("name", &name)?;
        let versions = versions(&top)?;
        let flag = |key: &str| match top.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            // Old files have "true" in quotes, and libcni takes it.
            Some(Value::String(text)) if text == "true" || text == "false" => Ok(text == "true"),
            Some(_) => Err(format!("key {key} is neither true nor false")),
        };
        let (disable_check, disable_gc) = (flag("disableCheck")?, flag("disableGC")?);
        let inlined_only = flag("loadOnlyInlinedPlugins")?;
        let is_list = top.contains_key("plugins") || !top.contains_key("type");
        let mut plugins = match top.remove("plugins") {
            None if !is_list => vec![top],
            None if inlined_only => {
                return Err("loadOnlyInlinedPlugins is true, and key plugins is missing".into());
            }
            None => Vec::new(),
            Some(Value::Array(plugins)) if plugins.is_empty() => {
                return Err("key plugins is an empty list".into());
            }
            Some(Value::Array(plugins)) => plugins
                .into_iter()
                .map(|plugin| match plugin {
                    Value::Object(plugin) => Ok(plugin),
                    _ => Err("a member of key plugins is no JSON object".to_owned()),
                })
                .collect::<Result<Vec<_>, _>>()?,
            Some(_) => return Err("key plugins is no list".into()),
        };
        if is_list && !inlined_only {
            plugins.extend(beside(&name)?);
        }
        if plugins.is_empty() {
            return Err(format!(
                "key type of a plugin is missing; there is no key plugins either, and no plugin's file {name}/*.conf beside it"
            ));
        }
        if plugins.len() > MAX_PLUGINS {
            return Err(format!(
                "{} plugins, at most {MAX_PLUGINS} are run",
                plugins.len()
            ));
        }
        for plugin in &plugins {
            check_plugin(plugin)?;
        }
        if plugins.len() > 1 && !versions[0].has_lists() {
            return Err(format!(
                "{} plugins in a row need cniVersion 0.3.0 or later, it says {}",
                plugins.len(),
                versions[0]
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            name,
            versions,
            disable_check,
            disable_gc,
            plugins,
        })
    }
}

/// The one object that a file has.
pub fn object(text: &[u8]) -> Result<Map<String, Value>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| {
        // The message has the place only: with `Value` serde_json has no content to tell.
        format!("it is no JSON: {e}")
    })?;
    match value {
        Value::Object(top) => Ok(top),
        _ => Err("it is no JSON object".into()),
    }
}

/// `cniVersion`, and since 1.1 `cniVersions`: what of them this runtime knows, newest first.
fn versions(top: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let mut said = Vec::new();
    match top.get("cniVersion") {
        None => {}
        Some(Value::String(text)) => said.push(text.as_str()),
        Some(_) => return Err("key cniVersion is no string".into()),
    }
    match top.get("cniVersions") {
        None => {}
        Some(Value::Array(all)) => {
            for version in all {
                said.push(version.as_str().ok_or("key cniVersions has no strings")?);
            }
        }
        Some(_) => return Err("key cniVersions is no list".into()),
    }
    if said.iter().all(|text| text.is_empty()) {
        // As the first specification has it, which knew no such key.
        return Ok(vec![Version::V0_1_0]);
    }
    let mut known: Vec<_> = said
        .iter()
        .filter_map(|text| Version::parse(text))
        .collect();
    known.sort();
    known.dedup();
    known.reverse();
    if known.is_empty() {
        let said: Vec<String> = said.iter().map(|s| s.chars().take(20).collect()).collect();
        return Err(format!(
            "key cniVersion says {}; known here are {}",
            said.join(", "),
            listed(&Version::ALL)
        ));
    }
    Ok(known)
}

/// SEC-NET-01: a type is a file's name within a directory of plugins, never a path to anywhere else.
fn check_plugin(plugin: &Map<String, Value>) -> Result<(), String> {
    match plugin.get("type") {
        Some(Value::String(name)) => plain_name("type", name)?,
        Some(_) => return Err("key type of a plugin is no string".into()),
        None => return Err("key type of a plugin is missing".into()),
    }
    match plugin.get("capabilities") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(all)) if all.values().all(Value::is_boolean) => Ok(()),
        Some(_) => Err("key capabilities of a plugin is no object of true and false".into()),
    }
}

/// A letter or digit, then letters, digits, `_`, `.`, `-`: as libcni has it for names.
fn plain_name(key: &str, name: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(plain)
    {
        return Ok(());
    }
    let shown: String = name.chars().take(40).collect();
    Err(format!(
        "key {key} is {shown:?}: it must begin with a letter or digit and have only these and `_`, `.`, `-`"
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Conf, String> {
        Conf::parse(Path::new("/x"), text.as_bytes())
    }

    #[test]
    fn a_single_plugin_and_a_list_are_told_apart_by_their_content() {
        let one =
            parse(r#"{"cniVersion":"0.4.0","name":"a","type":"bridge","bridge":"b0"}"#).unwrap();
        assert_eq!(one.versions, [Version::V0_4_0]);
        assert_eq!(one.plugins.len(), 1);
        assert_eq!(plugin_type(&one.plugins[0]), "bridge");
        let list = parse(
            r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.9.9"],"name":"a","disableCheck":true,"disableGC":"true",
                "plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true,"x":false}}]}"#,
        )
        .unwrap();
        assert_eq!(
            list.versions,
            [Version::V1_1_0, Version::V1_0_0, Version::V0_4_0]
        );
        assert!(list.disable_check && list.disable_gc);
        assert!(has_capability(&list.plugins[1], "portMappings"));
        assert!(!has_capability(&list.plugins[1], "x"));
        assert!(!has_capability(&list.plugins[0], "portMappings"));
        let old = parse(r#"{"name":"a","type":"bridge"}"#).unwrap();
        assert_eq!(old.versions, [Version::V0_1_0]);
    }

    #[test]
    fn types_that_lead_elsewhere_are_refused_sec_net_01() {
        for plugin in [
            "../../bin/x",
            "/bin/sh",
            "a/b",
            "",
            ".",
            "..",
            ".x",
            "a\\u0000",
            "a b",
            "-a",
        ] {
            let error = parse(&format!(
                r#"{{"cniVersion":"1.0.0","name":"a","type":"{plugin}"}}"#
            ))
            .unwrap_err();
            assert!(error.contains("type"), "{error}");
            parse(&format!(
                r#"{{"cniVersion":"1.0.0","name":"a","plugins":[{{"type":"ok"}},{{"type":"{plugin}"}}]}}"#
            ))
            .unwrap_err();
        }
    }

    #[test]
    fn what_is_wrong_is_told_and_nothing_of_the_content_with_it() {
        for (text, says) in [
            (r#"{"name":"a","token":"hunter2","type":"b""#, "no JSON"),
            (r#""hunter2""#, "no JSON object"),
            (r#"{"type":"b","token":"hunter2"}"#, "name is missing"),
            (r#"{"name":"a/b","type":"b","token":"hunter2"}"#, "name is"),
            (
                r#"{"name":"a","token":"hunter2"}"#,
                "type of a plugin is missing",
            ),
            (r#"{"name":"a","cniVersion":"7.0.0","type":"b"}"#, "1.1.0"),
            (r#"{"name":"a","cniVersion":7,"type":"b"}"#, "cniVersion"),
            (r#"{"name":"a","plugins":{"token":"hunter2"}}"#, "no list"),
            (r#"{"name":"a","plugins":[]}"#, "empty"),
            (r#"{"name":"a","plugins":["hunter2"]}"#, "no JSON object"),
            (
                r#"{"name":"a","cniVersion":"0.2.0","plugins":[{"type":"a"},{"type":"b"}]}"#,
                "0.3.0",
            ),
            (
                r#"{"name":"a","type":"b","capabilities":["hunter2"]}"#,
                "capabilities",
            ),
            (
                r#"{"name":"a","type":"b","disableGC":"hunter2"}"#,
                "disableGC",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let conf = parse(r#"{"name":"a","type":"b","token":"hunter2"}"#).unwrap();
        assert!(!format!("{conf:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), json in "[\\[\\]{}:,\"a-z0-9. ]{0,200}") {
            let _ = Conf::parse(Path::new("/x"), &bytes);
            let _ = Conf::parse(Path::new("/x"), json.as_bytes());
        }

        #[test]
        fn a_conf_comes_back_from_a_record_as_it_was(name in "[a-z][a-z0-9.-]{0,20}", kind in "[a-z]{1,9}", n in any::<i64>(), list in any::<bool>()) {
            let plugin = serde_json::json!({"type": kind, "mtu": n, "capabilities": {"portMappings": list}});
            let mut top = serde_json::json!({"cniVersion": "1.0.0", "name": name});
            if list {
                top["plugins"] = serde_json::json!([plugin]);
            } else {
                for (key, value) in plugin.as_object().unwrap() {
                    top[key] = value.clone();
                }
            }
            let conf = Conf::parse(Path::new("/x"), top.to_string().as_bytes()).unwrap();
            let back: Conf = serde_json::from_str(&serde_json::to_string(&conf).unwrap()).unwrap();
            prop_assert_eq!(conf, back);
        }
    }
}
