//! The audit on the real kernel: every kind of object, made and not written down, written down and not made.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    os::unix::{net::UnixListener, process::CommandExt},
    process::{Child, Command},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;
use crate::{
    Ledger,
    record::{Durability, write},
};

fn id() -> String {
    (0..4)
        .map(|_| format!("{:016x}", RandomState::new().hash_one(0u8)))
        .collect()
}

/// Directories as a daemon has them, and everything made in them taken away at the end.
struct Node {
    dir: tempfile::TempDir,
    ledger: Ledger,
    mounts: Vec<PathBuf>,
    cgroups: Vec<PathBuf>,
    children: Vec<Child>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for below in [
            "root/pods",
            "root/containers",
            "root/image/snapshots",
            "root/image/ingest",
            "state/netns",
            "state/leases",
            "state/s",
            "state/pods",
        ] {
            fs::create_dir_all(dir.path().join(below)).unwrap();
        }
        let ledger = Ledger::open(&dir.path().join("state/ledger")).unwrap();
        Self {
            dir,
            ledger,
            mounts: Vec::new(),
            cgroups: Vec::new(),
            children: Vec::new(),
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn audit(&self) -> Vec<Finding> {
        audit(&self.root(), &self.state()).unwrap()
    }

    /// Differences, kinds and names.
    fn differences(&self) -> Vec<(&'static str, String, String)> {
        self.audit()
            .into_iter()
            .map(|f| (f.difference, f.kind, f.name))
            .collect()
    }

    fn pod(&self) -> String {
        let id = id();
        write(
            &self.root().join(format!("pods/{id}.json")),
            &"pod",
            Durability::PageCache,
        )
        .unwrap();
        id
    }

    /// Makes what the object names, as the daemon does.
    fn make(&mut self, pod: &str, object: &Object) {
        match object {
            Object::Shim(socket) => {
                drop(UnixListener::bind(socket).unwrap());
                let child = Command::new("sh")
                    .arg0("containerd-shim-berth-v2")
                    .args(["-c", "sleep 1000; :", "-namespace", "k8s.io", "-id", pod])
                    .spawn()
                    .unwrap();
                self.children.push(child);
            }
            Object::Netns(path) | Object::Mount(path) => {
                if matches!(object, Object::Netns(_)) {
                    fs::write(path, "").unwrap();
                } else {
                    fs::create_dir_all(path).unwrap();
                }
                let (source, kind, flags) = match object {
                    Object::Netns(_) => (Some("/proc/self/ns/net"), None, MsFlags::MS_BIND),
                    _ => (Some("berth-test"), Some("tmpfs"), MsFlags::empty()),
                };
                mount(source, path, kind, flags, None::<&str>).unwrap();
                self.mounts.push(path.clone());
            }
            Object::Cgroup(path) => {
                let at = Path::new("/sys/fs/cgroup/pids").join(relative(path));
                fs::create_dir_all(&at).unwrap();
                self.cgroups.push(at);
            }
            Object::Lease(address) => fs::write(
                self.state().join("leases").join(address.to_string()),
                format!("{pod}\n"),
            )
            .unwrap(),
            Object::Link(name) => ip(&["link", "add", name, "type", "bridge"]),
            Object::Fifo(path) => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            Object::Cni(path) => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                write(path, &"attachment", Durability::PageCache).unwrap();
            }
            Object::Sysctl(_) => {}
            Object::Snapshot(path) | Object::Dir(path) | Object::Ingest(path) => {
                fs::create_dir_all(path).unwrap()
            }
        }
    }

    fn unmake(&mut self, object: &Object) {
        match object {
            Object::Shim(socket) => {
                fs::remove_file(socket).unwrap();
                self.end_children();
            }
            Object::Netns(path) | Object::Mount(path) => {
                umount2(path, MntFlags::MNT_DETACH).unwrap();
                fs::remove_file(path)
                    .or_else(|_| fs::remove_dir(path))
                    .unwrap();
            }
            Object::Cgroup(_) => self.remove_cgroups(),
            Object::Lease(address) => {
                fs::remove_file(self.state().join("leases").join(address.to_string())).unwrap()
            }
            Object::Link(name) => ip(&["link", "delete", name]),
            Object::Sysctl(_) => {}
            Object::Fifo(path) | Object::Cni(path) => fs::remove_file(path).unwrap(),
            Object::Snapshot(path) | Object::Dir(path) | Object::Ingest(path) => {
                fs::remove_dir_all(path).unwrap()
            }
        }
    }

    fn end_children(&mut self) {
        for mut child in self.children.drain(..) {
            // The shell alone would leave its sleep.
            let _ = Command::new("sh")
                .args([
                    "-c",
                    &format!("kill -9 $(cat /proc/{0}/task/{0}/children) {0}", child.id()),
                ])
                .status();
            let _ = child.wait();
        }
    }

    fn remove_cgroups(&mut self) {
        for cgroup in self.cgroups.drain(..) {
            let _ = fs::remove_dir(&cgroup);
        }
    }

    fn objects(&self, pod: &str) -> Vec<Object> {
        let state = self.state();
        vec![
            Object::Dir(state.join("pods").join(pod)),
            Object::Shim(state.join("s").join(&pod[..16])),
            Object::Netns(state.join("netns").join(pod)),
            Object::Mount(state.join("pods").join(pod).join("shm with space")),
            Object::Cgroup(format!("/berth-audit-{}/{pod}", &pod[..8]).into()),
            Object::Snapshot(self.root().join("image/snapshots").join(pod)),
            Object::Lease("10.254.3.7".parse().unwrap()),
            Object::Link(format!("berth{}", &pod[..10])),
            Object::Ingest(self.root().join("image/ingest/1")),
            Object::Cni(self.root().join("cni/0.json")),
        ]
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end_children();
        self.remove_cgroups();
        for path in &self.mounts {
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

fn relative(cgroup: &Path) -> &Path {
    cgroup.strip_prefix("/").unwrap()
}

fn ip(arguments: &[&str]) {
    assert!(
        Command::new("ip")
            .args(arguments)
            .status()
            .unwrap()
            .success(),
        "{arguments:?}"
    );
}

fn listed(object: &Object) -> String {
    match object {
        Object::Cgroup(path) => relative(path).display().to_string(),
        _ => object.name().into_string().unwrap(),
    }
}

#[test]
fn it_finds_each_kind_leaked_and_missing_and_nothing_when_books_and_kernel_agree() {
    let mut node = Node::new();
    let pod = node.pod();
    assert_eq!(node.audit(), []);
    let objects = node.objects(&pod);
    for object in &objects {
        node.ledger.intend(&pod, object).unwrap();
        node.make(&pod, object);
    }
    assert_eq!(node.audit(), [], "made and written down");

    for object in &objects {
        node.ledger.strike(&pod, object).unwrap();
    }
    let mut expected: Vec<_> = objects
        .iter()
        .map(|o| (LEAKED, o.kind().to_owned(), listed(o)))
        .collect();
    expected.sort();
    assert_eq!(node.differences(), expected, "made and struck off");

    for object in objects.iter().rev() {
        node.unmake(object);
    }
    assert_eq!(node.audit(), [], "gone");
    for object in &objects {
        node.ledger.intend(&pod, object).unwrap();
    }
    let mut expected: Vec<_> = objects
        .iter()
        .map(|o| (MISSING, o.kind().to_owned(), listed(o)))
        .collect();
    expected.sort();
    assert_eq!(node.differences(), expected, "written down and not made");
    let _ = fs::remove_dir(format!("/sys/fs/cgroup/pids/berth-audit-{}", &pod[..8]));
}

#[test]
fn it_tells_owners_without_a_record_damaged_ledgers_strays_and_leases_of_another_pod() {
    let node = Node::new();
    let (pod, gone) = (node.pod(), id());
    let bundle = Object::Dir(node.state().join("pods").join(&gone));
    fs::create_dir(node.state().join("pods").join(&gone)).unwrap();
    node.ledger.intend(&gone, &bundle).unwrap();
    node.ledger
        .intend(&pod, &Object::Lease("10.1.2.3".parse().unwrap()))
        .unwrap();
    fs::write(node.state().join("leases/10.1.2.3"), format!("{gone}\n")).unwrap();
    fs::write(node.state().join("leases/mine"), "").unwrap();
    fs::write(node.state().join("ledger/foreign"), "not a ledger").unwrap();
    fs::write(node.root().join("pods/.x.json.1.2.tmp"), "").unwrap();
    // Nobody needs a record for these.
    node.ledger
        .intend(
            "pull-1",
            &Object::Ingest(node.root().join("image/ingest/2")),
        )
        .unwrap();
    fs::create_dir(node.root().join("image/ingest/2")).unwrap();

    let mut expected = [
        (LEAKED, "lease".to_owned(), "10.1.2.3".to_owned()),
        (
            LEAKED,
            "lease".to_owned(),
            node.state().join("leases/mine").display().to_string(),
        ),
        (
            LEAKED,
            "record".to_owned(),
            node.root()
                .join("pods/.x.json.1.2.tmp")
                .display()
                .to_string(),
        ),
        (
            MISSING,
            "ledger".to_owned(),
            node.state().join("ledger/foreign").display().to_string(),
        ),
        (MISSING, "record".to_owned(), gone),
    ];
    expected.sort();
    assert_eq!(node.differences(), expected);
}

#[test]
fn a_cni_del_that_has_not_succeeded_is_told_as_owed() {
    let node = Node::new();
    let (pod, failing, gone, damaged) = (node.pod(), node.pod(), id(), node.pod());
    let dir = node.root().join("cni");
    fs::create_dir(&dir).unwrap();
    let attach = |id: &String, owed: serde_json::Value| {
        let path = dir.join(format!("{id}.json"));
        let record = serde_json::json!({"request": {}, "owed": owed});
        write(&path, &record, Durability::PageCache).unwrap();
        node.ledger.intend(id, &Object::Cni(path)).unwrap();
    };
    attach(&pod, serde_json::Value::Null);
    attach(&failing, serde_json::json!({"error": "the agent is away"}));
    attach(&gone, serde_json::Value::Null);
    attach(&damaged, serde_json::Value::Null);
    fs::write(dir.join(format!("{damaged}.json")), "rubbish").unwrap();
    let mut found: Vec<_> = node
        .audit()
        .into_iter()
        .map(|f| (f.name, f.detail))
        .collect();
    let mut expected = [
        (&failing, "the agent is away"),
        (&gone, "its pod is gone"),
        (&damaged, "damaged"),
    ];
    expected.sort();
    found.sort();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((name, detail), (id, why)) in found.iter().zip(expected) {
        assert!(name.contains(id) && detail.contains(id), "{name}: {detail}");
        assert!(detail.contains(why) && detail.contains("DEL"), "{detail}");
    }
    assert!(node.audit().iter().all(|f| f.difference == OWED));
}

#[test]
fn a_snapshot_outlives_the_ledger_with_its_container_s_record() {
    let node = Node::new();
    let (kept, lost) = (id(), id());
    write(
        &node.root().join(format!("containers/{kept}.json")),
        &"container",
        Durability::PageCache,
    )
    .unwrap();
    for id in [&kept, &lost] {
        fs::create_dir(node.root().join("image/snapshots").join(id)).unwrap();
    }
    let findings = node.differences();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].2.ends_with(&lost));
}

#[test]
fn a_cgroup_of_nobody_is_found_below_a_parent_that_is_ours_alone() {
    let mut node = Node::new();
    let (parent, nobody) = (format!("berth-audit-{}", &id()[..8]), id());
    let cgroup = Object::Cgroup(format!("/{parent}/{nobody}").into());
    node.make(&nobody, &cgroup);
    assert_eq!(node.audit(), [], "it may be another daemon's");
    fs::write(node.state().join("cgroup-parents"), format!("/{parent}\n")).unwrap();
    assert_eq!(
        node.differences(),
        [(LEAKED, "cgroup".to_owned(), format!("{parent}/{nobody}"))]
    );
    node.remove_cgroups();
    fs::remove_dir(format!("/sys/fs/cgroup/pids/{parent}")).unwrap();
}

#[test]
fn symlinks_above_the_directories_make_no_difference() {
    let mut node = Node::new();
    let pod = node.pod();
    let link = node.dir.path().join("link");
    std::os::unix::fs::symlink(node.state(), &link).unwrap();
    let (written, made) = (
        link.join("netns").join(&pod),
        node.state().join("netns").join(&pod),
    );
    node.ledger.intend(&pod, &Object::Netns(written)).unwrap();
    node.make(&pod, &Object::Netns(made));
    assert_eq!(audit(&node.root(), &link).unwrap(), []);
    assert_eq!(node.audit(), []);
}

#[test]
fn directories_of_no_daemon_are_an_error_that_names_them() {
    let error = audit(Path::new("/no/such/root"), Path::new("/no/such/state"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/no/such/root") && error.contains("/no/such/state"),
        "{error}"
    );
}

#[test]
fn it_is_calm_beside_a_daemon_at_work() {
    let node = Node::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let pod = node.pod();
                    let dir = node.state().join("pods").join(&pod);
                    let object = Object::Dir(dir.clone());
                    node.ledger.intend(&pod, &object).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                    fs::create_dir(&dir).unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                    fs::remove_dir(&dir).unwrap();
                    node.ledger.strike(&pod, &object).unwrap();
                    crate::record::remove(&node.root().join(format!("pods/{pod}.json"))).unwrap();
                }
            });
        }
        for _ in 0..10 {
            assert_eq!(node.audit(), []);
        }
        stop.store(true, Ordering::Relaxed);
    });
}
