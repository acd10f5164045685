//! Real mounts, in a namespace of the test's own.

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::{
    node::{Node, tests::node},
    pod::tests::named,
    volume::{let_claims_go, set_up as set_up_all, tear_down, tests::in_own_mounts},
};

const POD: &str = "  containers: [{name: a, image: x}]\n  volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]";

struct Scene {
    top: tempfile::TempDir,
    node: Node,
}

impl Scene {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let node = node(&top.path().join("kubelet").display().to_string());
        fs::create_dir_all(top.path().join("disk")).unwrap();
        Self { top, node }
    }

    fn disk(&self) -> PathBuf {
        self.top.path().join("disk")
    }

    fn local(&self) -> Bound {
        Bound {
            volume: "v".into(),
            name: "pv".into(),
            source: Source::Local {
                path: self.disk(),
                fs_type: String::new(),
            },
            is_block: false,
            read_only: false,
            once_pod: false,
            options: Vec::new(),
        }
    }

    /// A pod of this name, whose uid is its name.
    fn pod(&self, name: &str, spec: &str) -> Desired {
        let mut pod = named(name, spec);
        pod.uid = name.to_owned();
        store::keep_pod(&self.node, &pod).unwrap();
        pod
    }

    fn set_up(&self, pod: &Desired, bound: &Bound) -> Result<(), String> {
        let all = std::slice::from_ref(bound);
        set_up_all(&self.node, pod, all, &Turn::default()).map_err(|error| error.to_string())
    }

    fn at(&self, pod: &str) -> PathBuf {
        dir(&self.node, pod, "pv")
    }
}

/// PV-01, VM-03, VM-04.
#[test]
fn a_directory_is_bound_for_each_pod_and_outlives_them() {
    in_own_mounts(|| {
        let scene = Scene::new();
        let (one, two) = (scene.pod("one", POD), scene.pod("two", POD));
        for pod in [&one, &two] {
            scene.set_up(pod, &scene.local()).unwrap();
            // twice changes nothing
            scene.set_up(pod, &scene.local()).unwrap();
        }
        fs::write(scene.at("one").join("file"), "data").unwrap();
        assert_eq!(fs::read(scene.at("two").join("file")).unwrap(), b"data");
        assert_eq!(kept(&scene.node, "one", "v"), Some(scene.local()));
        // over, and let go: nothing of it stays but what it is
        let_claims_go(&scene.node, "one").unwrap();
        assert!(!scene.at("one").exists() && kept(&scene.node, "one", "v").is_none());
        assert!(check(&scene.node, "two", &scene.local()).is_ok());
        for pod in ["one", "two"] {
            tear_down(&scene.node, pod).unwrap();
            assert!(!scene.node.pod_dir(pod).exists());
        }
        assert_eq!(fs::read(scene.disk().join("file")).unwrap(), b"data");
    });
}

#[test]
fn what_is_found_where_a_volume_was_mounted_is_not_removed() {
    in_own_mounts(|| {
        let scene = Scene::new();
        let pod = scene.pod("one", POD);
        scene.set_up(&pod, &scene.local()).unwrap();
        unmount(scene.at("one"), UnmountFlags::empty()).unwrap();
        let said = check(&scene.node, "one", &scene.local()).unwrap_err();
        assert!(said.ends_with("is not mounted"), "{said}");
        fs::write(scene.at("one").join("stray"), "").unwrap();
        let said = tear_down(&scene.node, "one").unwrap_err().to_string();
        assert!(said.contains("remove the place of a mount"), "{said}");
        assert!(scene.at("one").join("stray").exists());
        fs::remove_file(scene.at("one").join("stray")).unwrap();
        tear_down(&scene.node, "one").unwrap();
    });
}

#[test]
fn what_is_no_volume_is_told_by_the_step_that_failed() {
    in_own_mounts(|| {
        let scene = Scene::new();
        let pod = scene.pod("one", POD);
        let with = |change: &dyn Fn(&mut Bound)| {
            let mut bound = scene.local();
            change(&mut bound);
            set_up(&scene.node, &pod, &bound, &Turn::default()).unwrap_err()
        };
        let path = |path: PathBuf| Source::Local {
            path,
            fs_type: String::new(),
        };
        let none = scene.top.path().join("none");
        assert_eq!(
            with(&|bound| bound.source = path(none.clone())),
            format!(
                "MountVolume.NewMounter initialization failed for volume \"pv\" : path {none:?} does not exist"
            )
        );
        let file = scene.top.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(
            with(&|bound| bound.source = path(file.clone())),
            "MountVolume.NewMounter initialization failed for volume \"pv\" : only directory and block device are supported"
        );
        let said = with(&|bound| bound.is_block = true);
        assert!(said.ends_with("is no block device"), "{said}");
        let said = with(&|bound| bound.options = vec!["commit=5".into()]);
        assert!(said.contains("\"commit=5\" are a file system's"), "{said}");
        let said = with(&|bound| {
            bound.source = Source::HostPath {
                path: file.clone(),
                kind: "Directory".into(),
            }
        });
        assert!(
            said.contains(
                "MountVolume.SetUp failed for volume \"pv\" : hostPath type check failed"
            ),
            "{said}"
        );
        assert!(!is_mounted(&scene.at("one")).unwrap());
        tear_down(&scene.node, "one").unwrap();
    });
}

#[test]
fn a_mount_is_as_its_options_say_and_the_volume_is_not() {
    in_own_mounts(|| {
        let scene = Scene::new();
        let pod = scene.pod("one", POD);
        let mut bound = scene.local();
        bound.read_only = true;
        bound.options = vec!["noexec,nosuid".into()];
        scene.set_up(&pod, &bound).unwrap();
        let flags = rustix::fs::statvfs(scene.at("one")).unwrap().f_flag;
        use rustix::fs::StatVfsMountFlags as Flag;
        assert!(flags.contains(Flag::RDONLY | Flag::NOEXEC | Flag::NOSUID));
        assert!(fs::write(scene.at("one").join("file"), "").is_err());
        fs::write(scene.disk().join("file"), "").unwrap();
        // a kubelet that was killed before it had said so
        rustix::mount::mount_remount(scene.at("one"), rustix::mount::MountFlags::BIND, c"")
            .unwrap();
        fs::write(scene.at("one").join("file"), "").unwrap();
        scene.set_up(&pod, &bound).unwrap();
        assert!(fs::write(scene.at("one").join("file"), "").is_err());
        tear_down(&scene.node, "one").unwrap();
    });
}

#[test]
fn the_pods_group_has_the_volume_unless_another_pod_has_it_too() {
    in_own_mounts(|| {
        let scene = Scene::new();
        let of = |name: &str, group: u32, policy: &str| {
            let spec = format!(
                "{POD}\n  securityContext: {{fsGroup: {group}, fsGroupChangePolicy: {policy}}}"
            );
            scene.pod(name, &spec)
        };
        let group = |name: &str| scene.disk().join(name).metadata().unwrap().gid();
        fs::write(scene.disk().join("file"), "").unwrap();
        scene
            .set_up(&of("one", 4321, "Always"), &scene.local())
            .unwrap();
        assert_eq!((group("file"), group(".")), (4321, 4321));
        scene
            .set_up(&of("two", 5432, "Always"), &scene.local())
            .unwrap();
        assert_eq!((group("file"), group(".")), (4321, 4321));
        for pod in ["one", "two"] {
            tear_down(&scene.node, pod).unwrap();
        }
        // as it should be at the top, so it is not looked at
        std::os::unix::fs::chown(scene.disk().join("file"), None, Some(7)).unwrap();
        scene
            .set_up(&of("three", 4321, "OnRootMismatch"), &scene.local())
            .unwrap();
        assert_eq!(group("file"), 7);
        tear_down(&scene.node, "three").unwrap();
        scene
            .set_up(&of("four", 5432, "OnRootMismatch"), &scene.local())
            .unwrap();
        assert_eq!((group("file"), group(".")), (5432, 5432));
        tear_down(&scene.node, "four").unwrap();
        let mut bound = scene.local();
        bound.read_only = true;
        scene.set_up(&of("five", 6, "Always"), &bound).unwrap();
        assert_eq!(group("."), 5432);
        tear_down(&scene.node, "five").unwrap();
    });
}

/// PV-02.
#[test]
fn what_one_pod_alone_may_have_the_next_has_after_it() {
    in_own_mounts(|| {
        let scene = Scene::new();
        let (one, two) = (scene.pod("one", POD), scene.pod("two", POD));
        let mut bound = scene.local();
        bound.once_pod = true;
        scene.set_up(&one, &bound).unwrap();
        let said = scene.set_up(&two, &bound).unwrap_err();
        assert!(
            said.contains("volume pv uses the ReadWriteOncePod access mode and is already in use by another pod"),
            "{said}"
        );
        assert!(kept(&scene.node, "two", "v").is_none());
        scene.set_up(&one, &bound).unwrap();
        let_claims_go(&scene.node, "one").unwrap();
        scene.set_up(&two, &bound).unwrap();
        for pod in ["one", "two"] {
            tear_down(&scene.node, pod).unwrap();
        }
    });
}

#[test]
fn nothing_is_made_after_it_was_taken_away() {
    let turn = Turn::default();
    let made = Mutex::new(0);
    let make = || {
        *hold(&made) += 1;
        Ok(())
    };
    turn.make(make).unwrap();
    turn.take_away(|| Ok(())).unwrap();
    turn.make(make).unwrap();
    assert_eq!(*hold(&made), 1);
    assert!(!turn.goes_on());
    let shared = Shared::default();
    shared.alone("pv", || assert_eq!(hold(&shared.turns).len(), 1));
    assert!(hold(&shared.turns).is_empty());
}
