//! The directory of configurations: files that are taken up as they come, change and go.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::libc;
use serde_json::{Map, Value};

use super::conf::{Conf, object};

/// A configuration is a page; the largest known ones (Multus with many delegates) have some 10 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Files that are looked at. A directory with more of them is not one of configurations.
const MAX_FILES: usize = 1000;
/// A file that changed so lately may change again without its time stamp telling: the kernel's clock for them ticks every 1 to 10 ms.
const UNSETTLED: Duration = Duration::from_millis(100);

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
    for name in names(dir).map_err(|e| e.to_string())? {
        let path = dir.join(&name);
        // Followed: Kubernetes' own volumes of ConfigMaps are symlinks to files. A dangling one is told when it is read.
        let meta = fs::metadata(&path);
        if is_configuration(&name) {
            print.push(state(name, meta.ok()));
        } else if meta.is_ok_and(|meta| meta.is_dir()) {
            // Of a network by this name, if there is one; what is wrong with it is told when it is read.
            for file in names(&path).unwrap_or_default() {
                if is_plugin(&file) {
                    let meta = fs::metadata(path.join(&file)).ok();
                    let below = Path::new(&name).join(file);
                    print.push(state(below.into_os_string(), meta));
                }
            }
        }
        if print.len() > MAX_FILES {
            return Err(format!("it has more than {MAX_FILES} files"));
        }
    }
    print.sort();
    Ok(print)
}

/// What a directory has, but for what is hidden.
fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn is_configuration(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    matches!(extension, Some("conf" | "conflist" | "json"))
}

fn is_plugin(name: &OsStr) -> bool {
    Path::new(name).extension() == Some(OsStr::new("conf"))
}

fn state(name: OsString, meta: Option<fs::Metadata>) -> (OsString, u64, u64, i64, i64) {
    let of = |m: fs::Metadata| (m.ino(), m.size(), m.ctime(), m.ctime_nsec());
    let (inode, bytes, s, ns) = meta.map(of).unwrap_or_default();
    (name, inode, bytes, s, ns)
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
    // A plugin's own file is part of its network's.
    let files = print.iter().map(|(name, ..)| Path::new(name));
    for name in files.filter(|name| name.components().count() == 1) {
        let path = dir.join(name);
        let beside = |network: &str| plugins_of(&dir.join(network));
        let conf = read_one(&path).and_then(|text| Conf::parse_with(&path, &text, beside));
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

/// The plugins that have files of their own, in the lexical order of these (CNI 1.1, `loadOnlyInlinedPlugins`).
fn plugins_of(dir: &Path) -> Result<Vec<Map<String, Value>>, String> {
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() => only_ours(&meta),
        Ok(_) => return Ok(Vec::new()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => Err(e.to_string()),
    }
    .map_err(|why| format!("{}: {why}", dir.display()))?;
    let files = names(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    files
        .iter()
        .filter(|name| is_plugin(name))
        .map(|name| {
            let path = dir.join(name);
            read_one(&path)
                .and_then(|text| object(&text))
                .map_err(|why| format!("{}: {why}", path.display()))
        })
        .collect()
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

    use super::*;

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

    #[test]
    fn plugins_with_files_of_their_own_follow_those_of_the_list_unless_it_wants_none() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let directory = Directory::new(dir.path(), 9);
        let types = || -> Vec<String> {
            let loaded = directory.load();
            let plugins = loaded.networks.iter().flat_map(|conf| &conf.plugins);
            plugins
                .map(|p| crate::cni::conf::plugin_type(p).to_owned())
                .collect()
        };
        let list = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"net"{more}}}"#);
        put("10-net.conflist", &list(r#","plugins":[{"type":"a"}]"#));
        assert_eq!(types(), ["a"]);
        fs::create_dir(dir.path().join("net")).unwrap();
        assert_eq!(types(), ["a"]);
        put("net/20-c.conf", r#"{"type":"c"}"#);
        put("net/10-b.conf", r#"{"type":"b"}"#);
        put("net/readme", "x");
        put("net/.30-x.conf", "x");
        assert_eq!(types(), ["a", "b", "c"]);
        put("net/20-c.conf", r#"{"type":"d"}"#);
        assert_eq!(
            types(),
            ["a", "b", "d"],
            "a change in the same tick of the clock"
        );
        // A list may have none of its own.
        put("10-net.conflist", &list(""));
        assert_eq!(types(), ["b", "d"]);
        for (text, expected) in [
            (
                r#","plugins":[{"type":"a"}],"loadOnlyInlinedPlugins":true"#,
                "a",
            ),
            (
                r#","plugins":[{"type":"a"}],"loadOnlyInlinedPlugins":"true""#,
                "a",
            ),
            // The configuration of one plugin is no list.
            (r#","type":"a""#, "a"),
        ] {
            put("10-net.conflist", &list(text));
            assert_eq!(types(), [expected], "{text}");
        }
        let broken = |text: &str, says: &[&str]| {
            put("10-net.conflist", &list(text));
            let why = directory.load().why_broken();
            for word in says {
                assert!(why.contains(word), "{text}: {why}");
            }
        };
        broken(
            r#","loadOnlyInlinedPlugins":true"#,
            &["key plugins is missing"],
        );
        broken(r#","plugins":[]"#, &["empty list"]);
        broken(
            r#","loadOnlyInlinedPlugins":7,"plugins":[{"type":"a"}]"#,
            &["loadOnlyInlinedPlugins"],
        );
        for (text, says) in [
            ("{", "no JSON"),
            ("[]", "no JSON object"),
            (r#"{"type":"../evil"}"#, "type"),
            (r#"{"name":"c"}"#, "type"),
        ] {
            put("net/20-c.conf", text);
            broken("", &[says]);
        }
        put("net/20-c.conf", r#"{"type":"c"}"#);
        fs::set_permissions(dir.path().join("net"), fs::Permissions::from_mode(0o777)).unwrap();
        broken("", &["net", "everybody"]);
        fs::set_permissions(dir.path().join("net"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(
            dir.path().join("net/10-b.conf"),
            fs::Permissions::from_mode(0o666),
        )
        .unwrap();
        broken("", &["10-b.conf", "everybody"]);
        fs::remove_dir_all(dir.path().join("net")).unwrap();
        broken("", &["type of a plugin is missing", "net/*.conf"]);
    }
}
