//! What of ours is really there.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs, io,
    net::IpAddr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use crate::ledger::Object;

use super::Books;

/// Deeper cgroups are a container's own business.
const MAX_CGROUP_DEPTH: usize = 12;
/// Digits of a pod's id in the name of its link, behind `berth`.
const LINK_DIGITS: usize = 10;
/// Digits of a pod's id in the name of its shim's socket.
const SOCKET_DIGITS: usize = 16;
/// Variable by which the daemon tells a shim where its socket goes.
const SOCKET_DIR: &str = "BERTH_SHIM_SOCKET_DIR";

/// 64 lower-case hex digits.
pub fn is_id(name: &str) -> bool {
    name.len() == 64 && is_hex(name)
}

/// Whose a cgroup is by its name: an id, or with systemd's driver a slice or a scope whose name ends with one (`berth-<id>.scope`).
fn id_of_cgroup(name: &str) -> Option<&str> {
    let unit = name
        .strip_suffix(".scope")
        .or_else(|| name.strip_suffix(".slice"));
    let id = match unit {
        Some(unit) => unit.rsplit('-').next()?,
        None => name,
    };
    is_id(id).then_some(id)
}

fn is_hex(name: &str) -> bool {
    name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The daemon's directories, without symlinks: as the kernel names them.
#[derive(Debug)]
pub struct Places {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Places {
    pub fn new(root: &Path, state: &Path) -> Self {
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Self {
            root: real(root),
            state: real(state),
        }
    }

    /// The object as the kernel names it: paths without symlinks above them, cgroups without the leading slash.
    pub fn real(&self, object: &Object) -> Object {
        let real = |path: &PathBuf| -> PathBuf {
            if path.starts_with(&self.root) || path.starts_with(&self.state) {
                return path.clone();
            }
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return path.clone();
            };
            fs::canonicalize(parent).map_or_else(|_| path.clone(), |parent| parent.join(name))
        };
        match object {
            Object::Shim(path) => Object::Shim(real(path)),
            Object::Netns(path) => Object::Netns(real(path)),
            Object::Mount(path) => Object::Mount(real(path)),
            Object::Snapshot(path) => Object::Snapshot(real(path)),
            Object::Fifo(path) => Object::Fifo(real(path)),
            Object::Dir(path) => Object::Dir(real(path)),
            Object::Ingest(path) => Object::Ingest(real(path)),
            Object::Cni(path) => Object::Cni(real(path)),
            Object::Cgroup(path) => Object::Cgroup(relative(path)),
            Object::Lease(_) | Object::Link(_) | Object::Sysctl(_) => object.clone(),
        }
    }

    /// A mount below one of the directories that a person did not put there to give the daemon a disk: those are at most one level down.
    fn is_inside(&self, path: &Path) -> bool {
        [&self.root, &self.state].into_iter().any(|dir| {
            path.strip_prefix(dir)
                .is_ok_and(|below| below.components().count() > 1)
        })
    }
}

fn relative(cgroup: &Path) -> PathBuf {
    cgroup.strip_prefix("/").unwrap_or(cgroup).to_owned()
}

#[derive(Debug, Default)]
pub struct Kernel {
    /// What must be in the ledger, and how to call it.
    pub found: HashMap<Object, String>,
    /// What is nobody's, whatever the ledger says: kind, path, why.
    pub strays: Vec<(&'static str, PathBuf, String)>,
    /// Addresses with the pods that their files name.
    pub leases: Vec<(IpAddr, String)>,
    mounts: HashSet<PathBuf>,
    namespaces: HashSet<PathBuf>,
    links: HashSet<String>,
    hierarchies: Vec<PathBuf>,
    /// Sockets of the shims that live.
    shims: HashSet<PathBuf>,
}

impl Kernel {
    pub fn look(places: &Places, books: &Books) -> io::Result<Self> {
        let mut kernel = Self::default();
        kernel.mounts(places)?;
        kernel.links(books)?;
        kernel.shims(places, books)?;
        kernel.cgroups(places, books)?;
        kernel.files(places)?;
        Ok(kernel)
    }

    /// Whether what the ledger names is there.
    pub fn has(&self, places: &Places, object: &Object) -> bool {
        match object {
            Object::Shim(socket) => self.shims.contains(socket),
            Object::Netns(path) => self.namespaces.contains(path),
            Object::Mount(path) => self.mounts.contains(path),
            Object::Cgroup(path) => self.hierarchies.iter().any(|root| root.join(path).is_dir()),
            Object::Link(name) => self.links.contains(name),
            Object::Lease(address) => places
                .state
                .join("leases")
                .join(address.to_string())
                .is_file(),
            Object::Snapshot(path)
            | Object::Fifo(path)
            | Object::Dir(path)
            | Object::Ingest(path)
            | Object::Cni(path) => fs::symlink_metadata(path).is_ok(),
            // One that somebody turned off meanwhile, or that went with its link, is owed no more, and harms nobody.
            Object::Sysctl(_) => true,
        }
    }

    fn mounts(&mut self, places: &Places) -> io::Result<()> {
        let table = read("/proc/thread-self/mountinfo")?;
        for line in table.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            // mountinfo: id parent device root MOUNTPOINT options [fields…] - TYPE source options (proc(5))
            let mut words = line.split(|b| *b == b' ');
            let at = words.nth(4).map(unescape).unwrap_or_default();
            let kind = words
                .skip_while(|word| *word != b"-")
                .nth(1)
                .unwrap_or_default();
            if kind == b"cgroup" || kind == b"cgroup2" {
                self.hierarchies.push(at);
                continue;
            }
            if places.is_inside(&at) {
                match kind {
                    b"nsfs" => self
                        .found
                        .insert(Object::Netns(at.clone()), "a pinned namespace".into()),
                    _ => self.found.insert(
                        Object::Mount(at.clone()),
                        format!("a mount ({})", String::from_utf8_lossy(kind)),
                    ),
                };
            }
            if kind == b"nsfs" {
                self.namespaces.insert(at.clone());
            }
            self.mounts.insert(at);
        }
        Ok(())
    }

    fn links(&mut self, books: &Books) -> io::Result<()> {
        // Not /sys/class/net: that is of the network namespace in which sysfs was mounted.
        let table = read("/proc/thread-self/net/dev")?;
        let bridges: HashSet<OsString> = books
            .entries
            .keys()
            .filter_map(|o| {
                if let Object::Link(name) = o {
                    Some(name.into())
                } else {
                    None
                }
            })
            .collect();
        let pods: HashSet<&str> = books
            .pods
            .iter()
            .chain(books.owners.keys())
            .filter_map(|id| id.get(..LINK_DIGITS))
            .collect();
        for line in String::from_utf8_lossy(&table).lines().skip(2) {
            let Some((name, _)) = line.split_once(':') else {
                continue;
            };
            let name = name.trim();
            if let Some(digits) = name.strip_prefix("berth")
                && digits.len() == LINK_DIGITS
                && is_hex(digits)
            {
                // Another daemon's links are named by the same rule.
                let bridge = fs::read_link(format!("/sys/class/net/{name}/master")).ok();
                let in_our_bridge = bridge
                    .and_then(|path| path.file_name().map(OsStr::to_owned))
                    .is_some_and(|bridge| bridges.contains(&bridge));
                if in_our_bridge || pods.contains(digits) {
                    self.found
                        .insert(Object::Link(name.to_owned()), "a pod's link".into());
                }
            }
            self.links.insert(name.to_owned());
        }
        Ok(())
    }

    fn shims(&mut self, places: &Places, books: &Books) -> io::Result<()> {
        let sockets = places.state.join("s");
        for entry in named("/proc", fs::read_dir("/proc"))? {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            if !name.as_bytes().iter().all(u8::is_ascii_digit) {
                continue;
            }
            // It may end while it is looked at; a zombie has no arguments.
            let Ok(arguments) = fs::read(entry.path().join("cmdline")) else {
                continue;
            };
            let mut arguments = arguments.split(|b| *b == 0);
            let program = arguments
                .next()
                .unwrap_or_default()
                .rsplit(|b| *b == b'/')
                .next()
                .unwrap_or_default();
            if !program.starts_with(b"containerd-shim-") {
                continue;
            }
            let Some(id) = arguments
                .skip_while(|a| *a != b"-id")
                .nth(1)
                .and_then(|id| std::str::from_utf8(id).ok())
            else {
                continue;
            };
            let Some(digits) = id.get(..SOCKET_DIGITS) else {
                continue;
            };
            let in_our_bundle = fs::read_link(entry.path().join("cwd"))
                .is_ok_and(|cwd| cwd.starts_with(places.state.join("pods")));
            if in_our_bundle
                || books.knows(id)
                || environment(&entry.path(), SOCKET_DIR).is_some_and(|dir| dir == sockets)
            {
                let socket = sockets.join(digits);
                self.found.insert(
                    Object::Shim(socket.clone()),
                    format!("the shim of {id} (process {})", name.to_string_lossy()),
                );
                self.shims.insert(socket);
            }
        }
        Ok(())
    }

    fn cgroups(&mut self, places: &Places, books: &Books) -> io::Result<()> {
        let file = places.state.join("cgroup-parents");
        let parents: HashSet<PathBuf> = match fs::read_to_string(&file) {
            Ok(text) => text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(|line| relative(Path::new(line)))
                .collect(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => HashSet::new(),
            Err(e) => {
                return Err(io::Error::new(
                    e.kind(),
                    format!("read {}: {e}", file.display()),
                ));
            }
        };
        for root in self.hierarchies.clone() {
            self.cgroups_below(&root, Path::new(""), books, &parents, MAX_CGROUP_DEPTH);
        }
        Ok(())
    }

    /// Cgroups come and go while they are walked: one that can't be listed is gone.
    fn cgroups_below(
        &mut self,
        root: &Path,
        at: &Path,
        books: &Books,
        parents: &HashSet<PathBuf>,
        depth: usize,
    ) {
        let Ok(entries) = fs::read_dir(root.join(at)) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name();
            let below = at.join(&name);
            if let Some(id) = name.to_str().and_then(id_of_cgroup) {
                let ours = books.knows(id) || parents.contains(at);
                if ours {
                    self.found.insert(
                        Object::Cgroup(below.clone()),
                        format!("a cgroup (in {})", root.display()),
                    );
                }
                // What is below a container's is the container's own; below a leaked one the finding is the one above.
                if !books.pods.contains(id) {
                    continue;
                }
            }
            if depth > 0 {
                self.cgroups_below(root, &below, books, parents, depth - 1);
            }
        }
    }

    fn files(&mut self, places: &Places) -> io::Result<()> {
        let state = &places.state;
        for path in entries(&state.join("netns"))? {
            self.found
                .entry(Object::Netns(path))
                .or_insert_with(|| "the file of a namespace".into());
        }
        for path in entries(&state.join("s"))? {
            self.found
                .entry(Object::Shim(path))
                .or_insert_with(|| "the socket of a shim".into());
        }
        for path in entries(&state.join("leases"))? {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            match name.parse::<IpAddr>() {
                Ok(address) => {
                    self.found.insert(Object::Lease(address), "a lease".into());
                    let pod = fs::read_to_string(&path).unwrap_or_default();
                    // The lines after the pod's are its host ports.
                    let pod = pod.lines().next().unwrap_or_default();
                    self.leases.push((address, pod.trim_end().to_owned()));
                }
                Err(_) => self.strays.push((
                    "lease",
                    path,
                    "its name is not an address: not a lease of ours".into(),
                )),
            }
        }
        for pod in entries(&state.join("pods"))? {
            for container in entries(&pod.join("containers"))? {
                self.found
                    .insert(Object::Dir(container), "the bundle of a container".into());
            }
            self.found
                .insert(Object::Dir(pod), "the bundle of a pod".into());
        }
        for below in [
            "pods",
            "containers",
            "cni",
            "image/records/images",
            "image/records/layers",
            "image/records/snapshots",
        ] {
            for path in entries(&places.root.join(below))? {
                let name = path.file_name().unwrap_or_default().as_bytes();
                if name.starts_with(b".") && name.ends_with(b".tmp") {
                    self.strays.push((
                        "record",
                        path,
                        "a record that was never finished; berthd removes it when it starts".into(),
                    ));
                }
            }
        }
        for path in entries(&places.root.join("cni"))? {
            let name = path.file_name().unwrap_or_default().as_bytes();
            if name.ends_with(b".json") && !name.starts_with(b".") {
                self.found
                    .insert(Object::Cni(path), "what CNI plugins made".into());
            }
        }
        for path in entries(&places.root.join("image/snapshots"))? {
            self.found
                .insert(Object::Snapshot(path), "a snapshot".into());
        }
        for path in entries(&places.root.join("image/ingest"))? {
            self.found.insert(
                Object::Ingest(path),
                "an unfinished download or unpack".into(),
            );
        }
        Ok(())
    }
}

/// A variable of a process, as a path.
fn environment(process: &Path, name: &str) -> Option<PathBuf> {
    let variables = fs::read(process.join("environ")).ok()?;
    let value = variables
        .split(|b| *b == 0)
        .find_map(|v| v.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    let path = PathBuf::from(OsStr::from_bytes(value));
    Some(fs::canonicalize(&path).unwrap_or(path))
}

/// Paths of what is in a directory; none where it isn't there (or no directory).
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => named(
            dir,
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect(),
        ),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(Vec::new())
        }
        Err(e) => named(dir, Err(e)),
    }
}

fn read(path: &str) -> io::Result<Vec<u8>> {
    named(path, fs::read(path))
}

fn named<T>(path: impl AsRef<Path>, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|e| io::Error::new(e.kind(), format!("read {}: {e}", path.as_ref().display())))
}

/// mountinfo writes space, tab, newline and backslash as `\` and three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let code = (*byte == b'\\')
            .then(|| rest.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                path.push(code);
                rest = &rest[3..];
            }
            None => path.push(*byte),
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_told_by_the_id_in_its_name() {
        let id = "0f".repeat(32);
        for name in [
            id.clone(),
            format!("berth-{id}.scope"),
            format!("berth-{id}.slice"),
            format!("a-b-{id}.slice"),
        ] {
            assert_eq!(id_of_cgroup(&name), Some(id.as_str()), "{name}");
        }
        for name in ["berth.slice", "kubepods-pod1_2.slice", "x.scope", "-.slice"] {
            assert_eq!(id_of_cgroup(name), None);
        }
    }

    #[test]
    fn paths_of_mountinfo_are_unescaped() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"/plain", b"/plain"),
            (b"/a\\040b", b"/a b"),
            (b"/a\\134040", b"/a\\040"),
            (b"/end\\0", b"/end\\0"),
            (b"/\\999", b"/\\999"),
        ];
        for (escaped, path) in cases {
            assert_eq!(unescape(escaped).as_os_str().as_bytes(), path);
        }
    }

    #[test]
    fn a_mount_that_gives_the_daemon_a_disk_is_not_its_own() {
        let places = Places {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
        };
        let cases = [
            ("/run/berth", false),
            ("/var/lib/berth/image", false),
            ("/run/berthold/x/y", false),
            ("/run/berth/netns/a", true),
            ("/var/lib/berth/image/snapshots/a", true),
        ];
        for (path, inside) in cases {
            assert_eq!(places.is_inside(Path::new(path)), inside, "{path}");
        }
    }
}
