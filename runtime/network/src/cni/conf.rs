//! Configurations of networks: files of a directory, taken up as they come, change and go.

use std::{
    collections::HashSet,
    ffi::OsString,
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::version::{Version, listed};

/// A configuration is a page; the largest known ones (Multus with many delegates) have some 10 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Files that are looked at. A directory with more of them is not one of configurations.
const MAX_FILES: usize = 1000;
/// Plugins of one list: each is a process per pod.
const MAX_PLUGINS: usize = 64;
/// The most that a name has (libcni knows no bound; names become files of IPAM plugins).
const MAX_NAME_BYTES: usize = 200;
/// A file that changed so lately may change again without its time stamp telling: the kernel's clock for them ticks every 1 to 10 ms.
const UNSETTLED: Duration = Duration::from_millis(100);

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
        let value: Value = serde_json::from_slice(text).map_err(|e| {
            // The message has the place only: with `Value` serde_json has no content to tell.
            format!("it is no JSON: {e}")
        })?;
        let Value::Object(mut top) = value else {
            return Err("it is no JSON object".into());
        };
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
        let plugins = match top.remove("plugins") {
            None => vec![top],
            Some(Value::Array(plugins)) => plugins
                .into_iter()
                .map(|plugin| match plugin {
                    Value::Object(plugin) => Ok(plugin),
                    _ => Err("a member of key plugins is no JSON object".to_owned()),
                })
                .collect::<Result<Vec<_>, _>>()?,
            Some(_) => return Err("key plugins is no list".into()),
        };
        if plugins.is_empty() {
            return Err("key plugins is an empty list".into());
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

/// What a directory had when it was read.
#[derive(Debug, Default)]
pub struct Loaded {
    /// In lexical order of the files, at most as many as are wanted.
    pub networks: Vec<Arc<Conf>>,
    /// Files that can't be used, and why.
    pub broken: Vec<(PathBuf, String)>,
}

impl Loaded {
    /// No file that could be meant as a configuration.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.broken.is_empty()
    }

    pub fn why_broken(&self) -> String {
        let each: Vec<_> = self
            .broken
            .iter()
            .map(|(path, why)| format!("{}: {why}", path.display()))
            .collect();
        each.join("; ")
    }
}

/// The directory as it is now. It is looked at on each use: a stat for each of a handful of files costs less than a watch that may
/// lose events, and there is no moment in which a change is not seen yet.
#[derive(Debug)]
pub struct Directory {
    dir: PathBuf,
    /// Networks that a pod joins.
    max: usize,
    last: Mutex<Option<(Fingerprint, Arc<Loaded>)>>,
}

/// What of each file tells that it changed. The change time can't be set by anybody.
type Fingerprint = Vec<(OsString, u64, u64, i64, i64)>;

impl Directory {
    pub fn new(dir: &Path, max: usize) -> Self {
        Self {
            dir: dir.to_owned(),
            max,
            last: Mutex::default(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn load(&self) -> Arc<Loaded> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let print = match fingerprint(&self.dir) {
            Ok(print) => print,
            Err(why) => {
                let loaded = Arc::new(Loaded {
                    broken: vec![(self.dir.clone(), why)],
                    ..Loaded::default()
                });
                tell(last.as_ref().map(|(_, l)| l.as_ref()), &loaded);
                *last = Some((Fingerprint::new(), loaded.clone()));
                return loaded;
            }
        };
        if let Some((before, loaded)) = last.as_ref()
            && *before == print
            && !unsettled(&print)
        {
            return loaded.clone();
        }
        let loaded = Arc::new(read_all(&self.dir, &print, self.max));
        tell(last.as_ref().map(|(_, l)| l.as_ref()), &loaded);
        *last = Some((print, loaded.clone()));
        loaded
    }
}

/// Logs what is new.
fn tell(before: Option<&Loaded>, now: &Loaded) {
    for (path, why) in &now.broken {
        if !before.is_some_and(|b| b.broken.iter().any(|(p, w)| (p, w) == (path, why))) {
            tracing::error!(path = %path.display(), why, "a CNI configuration can't be used");
        }
    }
    let names = |loaded: &Loaded| -> Vec<(PathBuf, String)> {
        let each = loaded.networks.iter();
        each.map(|c| (c.path.clone(), c.name.clone())).collect()
    };
    let (was, is) = (before.map(names).unwrap_or_default(), names(now));
    if was != is {
        let networks: Vec<_> = is.iter().map(|(_, name)| name.as_str()).collect();
        tracing::info!(?networks, "CNI networks for new pods");
    }
}

/// An error where the directory's own state forbids its use (SEC-NET-01).
fn fingerprint(dir: &Path) -> Result<Fingerprint, String> {
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Fingerprint::new()),
        Err(e) => return Err(e.to_string()),
    };
    if !meta.is_dir() {
        return Err("it is no directory".into());
    }
    only_ours(&meta)?;
    let mut print = Fingerprint::new();
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())? {
        let name = entry.map_err(|e| e.to_string())?.file_name();
        let path = Path::new(&name);
        let extension = path.extension().and_then(|e| e.to_str());
        if !matches!(extension, Some("conf" | "conflist" | "json"))
            || name.as_encoded_bytes().starts_with(b".")
        {
            continue;
        }
        // Followed: Kubernetes' own volumes of ConfigMaps are symlinks to files. A dangling one is told when it is read.
        let state = fs::metadata(dir.join(path))
            .map(|m| (m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
            .unwrap_or_default();
        print.push((name, state.0, state.1, state.2, state.3));
        if print.len() > MAX_FILES {
            return Err(format!("it has more than {MAX_FILES} files"));
        }
    }
    print.sort();
    Ok(print)
}

/// Who may write a configuration chooses what runs as root.
fn only_ours(meta: &fs::Metadata) -> Result<(), String> {
    if meta.mode() & 0o002 != 0 {
        return Err(format!(
            "everybody may write to it (mode {:o}), and what it says is run as root: close it with `chmod o-w`",
            meta.mode() & 0o7777
        ));
    }
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != own {
        return Err(format!(
            "it belongs to user {}, and what it says is run as root: give it to root",
            meta.uid()
        ));
    }
    Ok(())
}

fn unsettled(print: &Fingerprint) -> bool {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    print.iter().any(|(_, _, _, s, ns)| {
        let changed = Duration::new(*s as u64, *ns as u32);
        changed + UNSETTLED > now
    })
}

fn read_all(dir: &Path, print: &Fingerprint, max: usize) -> Loaded {
    let mut loaded = Loaded::default();
    let mut names = HashSet::new();
    for (name, ..) in print {
        let path = dir.join(name);
        let conf = read_one(&path).and_then(|text| Conf::parse(&path, &text));
        match conf {
            Ok(conf) if !names.insert(conf.name.clone()) => {
                let why = format!("another file before it is the network {}", conf.name);
                loaded.broken.push((path, why));
            }
            Ok(conf) if loaded.networks.len() < max => loaded.networks.push(Arc::new(conf)),
            Ok(_) => {}
            Err(why) => loaded.broken.push((path, why)),
        }
    }
    loaded
}

fn read_one(path: &Path) -> Result<Vec<u8>, String> {
    // O_NONBLOCK: a fifo in the directory must not hang the daemon.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no regular file".into());
    }
    only_ours(&meta)?;
    if meta.len() > MAX_FILE_BYTES {
        return Err(format!(
            "{} bytes, at most {MAX_FILE_BYTES} are read",
            meta.len()
        ));
    }
    let mut text = Vec::with_capacity(meta.len() as usize);
    file.take(MAX_FILE_BYTES)
        .read_to_end(&mut text)
        .map_err(|e| e.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

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

    fn single(name: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"bridge"}}"#)
    }

    fn names(loaded: &Loaded) -> Vec<&str> {
        loaded.networks.iter().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn files_are_taken_up_as_they_come_change_and_go_and_broken_ones_cost_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let directory = Directory::new(&dir.path().join("later"), 1);
        assert!(directory.load().is_empty(), "no directory is none");
        let directory = Directory::new(dir.path(), 1);
        assert!(directory.load().is_empty());
        put("50-b.conflist", &single("b"));
        assert_eq!(names(&directory.load()), ["b"]);
        put("10-a.json", &single("a"));
        put("00-readme.txt", "x");
        put(".hidden.conf", "x");
        assert_eq!(names(&directory.load()), ["a"]);
        put("00-broken.conf", "{");
        let loaded = directory.load();
        assert_eq!(names(&loaded), ["a"]);
        assert_eq!(loaded.broken.len(), 1);
        put("00-broken.conf", &single("c"));
        assert_eq!(names(&directory.load()), ["c"]);
        // The same length, within the same tick of the clock.
        put("00-broken.conf", &single("d"));
        assert_eq!(names(&directory.load()), ["d"]);
        fs::remove_file(dir.path().join("00-broken.conf")).unwrap();
        assert_eq!(names(&directory.load()), ["a"]);
        let both = Directory::new(dir.path(), 5);
        assert_eq!(names(&both.load()), ["a", "b"]);
        put("60-again.conf", &single("a"));
        let loaded = both.load();
        assert_eq!(names(&loaded), ["a", "b"]);
        assert!(loaded.broken[0].1.contains("another file"));
    }

    #[test]
    fn odd_files_are_passed_over_without_harm() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(
            &dir.path().join("a.conf"),
            nix::sys::stat::Mode::from_bits_truncate(0o600),
        )
        .unwrap();
        fs::create_dir(dir.path().join("b.conf")).unwrap();
        symlink("/nowhere", dir.path().join("c.conf")).unwrap();
        let big = fs::File::create(dir.path().join("d.conf")).unwrap();
        big.set_len(1 << 40).unwrap();
        fs::write(dir.path().join("target"), single("real")).unwrap();
        symlink("target", dir.path().join("e.conf")).unwrap();
        fs::write(dir.path().join("f.conf"), "[".repeat(100_000)).unwrap();
        let loaded = Directory::new(dir.path(), 9).load();
        assert_eq!(names(&loaded), ["real"]);
        assert_eq!(loaded.broken.len(), 5, "{}", loaded.why_broken());
    }

    #[test]
    fn what_others_may_write_is_refused_sec_net_01() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.conf");
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap()
        };
        fs::write(&file, single("a")).unwrap();
        let directory = Directory::new(dir.path(), 1);
        mode(&file, 0o666);
        let loaded = directory.load();
        assert!(loaded.networks.is_empty() && loaded.why_broken().contains("everybody"));
        mode(&file, 0o644);
        assert_eq!(names(&directory.load()), ["a"]);
        mode(dir.path(), 0o777);
        let loaded = directory.load();
        assert!(loaded.networks.is_empty() && loaded.why_broken().contains("everybody"));
        mode(dir.path(), 0o755);
        assert_eq!(names(&directory.load()), ["a"]);
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        assert!(directory.load().why_broken().contains("65534"));
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
