//! User namespaces and maps of mounts. libcontainer 0.7 refuses id-mapped mounts, and makes device nodes where a user namespace does not
//! allow it: of it is only asked that it says so.

use std::{
    fs,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use berth_engine::{Create, Maker, Pause, Stdio, UserNamespace};
use berth_kernel::{
    mount::set_id_map,
    pidfd::{self, Exit},
    userns::{self, IdMaps, Mapping},
};
use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree,
        unmount,
    },
};
use serde_json::{Value, json};

use crate::world::{
    Bundle, CAPABILITY_BITS, World, captured, namespace, read_all, status, until, wait,
};

const FIRST: u32 = 200_000;
const COUNT: u32 = 65_536;

fn mapping(first: u32) -> Value {
    json!([{"containerID": 0, "hostID": first, "size": COUNT}])
}

fn maps(first: u32) -> IdMaps {
    let list = vec![Mapping {
        inside: 0,
        outside: first,
        count: COUNT,
    }];
    IdMaps {
        uids: list.clone(),
        gids: list,
    }
}

/// Asks for a user namespace of its own, with every capability in it.
fn in_user_namespace(spec: &mut Value) {
    let linux = &mut spec["linux"];
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    linux["uidMappings"] = mapping(FIRST);
    linux["gidMappings"] = mapping(FIRST);
    linux["seccomp"].take();
    let all = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "KILL",
        "MKNOD",
        "SETGID",
        "SETUID",
        "SYS_ADMIN",
        "SYS_CHROOT",
    ]
    .map(|name| format!("CAP_{name}"));
    for set in ["bounding", "effective", "permitted"] {
        spec["process"]["capabilities"][set] = json!(all);
    }
}

/// A bundle whose root is id-mapped as the daemon mounts it.
struct Mapped(Bundle);

impl Mapped {
    fn new(world: &mut World, args: &[&str], change: impl FnOnce(&mut Value)) -> Mapped {
        let bundle = world.bundle(args, |spec| {
            in_user_namespace(spec);
            change(spec);
        });
        let root = bundle.path.join("rootfs");
        map_in_place(&root);
        Mapped(bundle)
    }

    fn down(self, world: &World) {
        world.engine.delete(&self.0.id).expect("delete");
        unmount(self.0.path.join("rootfs"), UnmountFlags::DETACH).expect("unmount");
        fs::remove_dir_all(&self.0.path).expect("bundle");
    }
}

fn map_in_place(path: &Path) {
    let made = userns::make(&maps(FIRST), false).expect("user namespace");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).expect("tree");
    set_id_map(tree.as_fd(), false, made.user.as_fd()).expect("id map");
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&tree, "", CWD, path, flags).expect("mount");
}

/// What libcontainer says, where it is asked; true: the rest of the case is not its.
fn refused_by_libcontainer(world: &mut World, what: &str) -> bool {
    if world.config.maker == Maker::Native {
        return false;
    }
    let bundle = world.bundle(&["true"], |spec| {
        if what == "a user namespace" {
            return in_user_namespace(spec);
        }
        let mount = json!({"destination": "/volume", "type": "bind", "source": "/tmp", "options": ["bind"],
            "uidMappings": mapping(FIRST), "gidMappings": mapping(FIRST)});
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    let refused = world.create(&bundle, Stdio::default()).unwrap_err();
    assert!(refused.to_string().contains(what), "{refused}");
    world.down(&bundle);
    true
}

pub fn a_container_is_root_inside_and_nobody_outside(world: &mut World) {
    // SEC-ENG-13
    if refused_by_libcontainer(world, "a user namespace") {
        return;
    }
    let secret = world.directory.path().join("secret");
    fs::write(&secret, "host").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups; stat -c %u:%a / /dev /dev/null /dev/pts /dev/pts/ptmx /proc/1; \
        touch /work/made; stat -c %u /work/made; echo x >/dev/null && echo null; cat /volume/secret; echo w >/volume/secret; \
        mknod /work/node c 1 3; mount -o remount,rw /sys && echo sys-is-writable; umount /sys/firmware && echo unmasked; \
        mount -o remount,bind,rw /volume/read-only && echo volume-is-writable; echo v >/proc/sys/vm/swappiness && echo swappiness; \
        cat /proc/1/comm; hostname; exec sleep 1000";
    let volume = secret.clone();
    let mapped = Mapped::new(world, &["sh", "-c", script], |spec| {
        spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/sys/firmware"]);
        let mounts = spec["mounts"].as_array_mut().unwrap();
        for (to, options) in [
            ("secret", json!(["bind"])),
            ("read-only", json!(["bind", "ro"])),
        ] {
            mounts.push(json!({"destination": format!("/volume/{to}"), "type": "bind", "source": volume, "options": options}));
        }
        mounts.push(
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": []}),
        );
    });
    let bundle = &mapped.0;
    let (output, stdio) = captured();
    let init = world.create(bundle, stdio).expect("create");
    let pid = init.pid;
    // Already, and not only from its command on.
    assert_eq!(IdMaps::of_process(pid).unwrap(), maps(FIRST));
    assert!(status(pid, "Uid").starts_with("200000\t200000"));
    world.engine.start(&bundle.id).expect("start");
    until("the script's end", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
    });
    for name in ["user", "pid", "ipc", "uts", "mnt", "net"] {
        assert_ne!(
            namespace(&pid.to_string(), name),
            namespace("self", name),
            "{name}"
        );
        if name != "user" {
            let opened = fs::File::open(format!("/proc/{pid}/ns/{name}")).unwrap();
            let owner = fs::File::from(userns::owner_of(opened).unwrap());
            let user = fs::metadata(format!("/proc/{pid}/ns/user")).unwrap();
            assert_eq!(owner.metadata().unwrap().ino(), user.ino(), "{name}");
        }
    }
    let made = fs::metadata(bundle.path.join("rootfs/work/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (FIRST, FIRST));
    let (exit, text) = world
        .exec(
            bundle,
            &["sh", "-c", "id -u; cat /proc/self/gid_map; touch /work/exec; stat -c %u /work/exec; cat /volume/secret"],
            |_| {},
        )
        .expect("exec");
    assert_eq!(
        (exit, words(&text)),
        (
            Exit::Code(1),
            "0 0 200000 65536 0 cat: can't open '/volume/secret': Permission denied".into()
        )
    );
    let exec = world
        .exec_start(bundle, &["sleep", "1000"], Stdio::default(), |p| {
            p["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [7]});
        })
        .expect("exec");
    for (key, value) in [
        ("Uid", "201000\t201000\t201000\t201000"),
        ("Gid", "201000\t201000\t201000\t201000"),
        ("Groups", "200007"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
    ] {
        assert_eq!(status(exec.pid, key).trim(), value, "{key}");
    }
    assert_eq!(
        namespace(&exec.pid.to_string(), "user"),
        namespace(&pid.to_string(), "user")
    );
    world.engine.kill(&bundle.id, 9, true).expect("kill");
    wait(&exec);
    wait(&init);
    let text = read_all(output);
    let expected = "0 0 0 200000 65536 allow 0:755 0:755 0:666 0:755 0:666 0:555 0 null ";
    assert!(words(&text).starts_with(expected), "{text}");
    for refused in [
        "can't open '/volume/secret': Permission denied",
        "can't create /volume/secret: Permission denied",
        "mknod: /work/node: Operation not permitted",
        "can't create /proc/sys/vm/swappiness",
    ] {
        assert!(text.contains(refused), "{refused}: {text}");
    }
    for granted in ["volume-is-writable", "swappiness\n"] {
        assert!(!text.contains(granted), "{granted}: {text}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "host");
    fs::remove_file(&secret).unwrap();
    mapped.down(world);
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub fn containers_join_the_user_namespace_of_their_pod(world: &mut World) {
    if refused_by_libcontainer(world, "a user namespace") {
        return;
    }
    for own_netns in [true, false] {
        let made = userns::make(&maps(FIRST), true).expect("network namespace");
        let netns = made.network.as_ref().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", netns.as_raw_fd()));
        let user = UserNamespace {
            uids: serde_json::from_value(mapping(FIRST)).unwrap(),
            gids: serde_json::from_value(mapping(FIRST)).unwrap(),
        };
        let asked = Pause {
            hostname: Some("berth-pod".into()),
            netns: own_netns.then_some(path.clone()),
            new_ipc: true,
            new_uts: true,
            new_pid: own_netns,
            user: Some(user.clone()),
            ..Pause::default()
        };
        let pause = world.zygote.pause(&asked).expect("pause");
        assert_eq!(status(pause.pid, "PPid"), std::process::id().to_string());
        let at = |name: &str| format!("/proc/{}/ns/{name}", pause.pid);
        let mut namespaces = vec![
            json!({"type": "user", "path": at("user")}),
            json!({"type": "ipc", "path": at("ipc")}),
            json!({"type": "uts", "path": at("uts")}),
            json!({"type": "mount"}),
        ];
        // On cgroup v1 the daemon gives none.
        if own_netns {
            namespaces.push(json!({"type": "cgroup"}));
        }
        namespaces.push(match own_netns {
            true => json!({"type": "pid", "path": at("pid")}),
            false => json!({"type": "pid"}),
        });
        if own_netns {
            namespaces.push(json!({"type": "network", "path": at("net")}));
        }
        let script = "umount /sys/firmware && echo unmasked; mount -o remount,bind,rw /sys && echo writable; umount /dev/mqueue && echo gone; \
            hostname; id -u; ls /sys/class/net; stat -c %u /dev/mqueue; hostname other && hostname; exec sleep 1000";
        let mapped = Mapped::new(world, &["sh", "-c", script], |spec| {
            spec["linux"]["namespaces"] = json!(namespaces);
            spec["mounts"].as_array_mut().unwrap().push(
                json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": []}),
            );
        });
        let (output, stdio) = captured();
        let init = world.create(&mapped.0, stdio).expect("create");
        world.engine.start(&mapped.0.id).expect("start");
        until("the script's end", || {
            fs::read_to_string(format!("/proc/{}/comm", init.pid))
                .is_ok_and(|comm| comm.trim() == "sleep")
        });
        for name in ["user", "ipc", "uts", "net"] {
            assert_eq!(
                namespace(&init.pid.to_string(), name),
                namespace(&pause.pid.to_string(), name),
                "{name}"
            );
        }
        assert_eq!(
            namespace(&init.pid.to_string(), "net") == namespace("self", "net"),
            !own_netns
        );
        let (exit, text) = world.exec(&mapped.0, &["id", "-u"], |_| {}).expect("exec");
        assert_eq!((exit, text.trim()), (Exit::Code(0), "0"));
        world.engine.kill(&mapped.0.id, 9, true).expect("kill");
        wait(&init);
        // What is mounted is locked, even for who may mount.
        let text = words(&read_all(output));
        let text = text
            .strip_prefix(
                "umount: can't unmount /sys/firmware: Invalid argument mount: permission denied (are you root?) \
                 umount: can't unmount /dev/mqueue: Invalid argument ",
            )
            .unwrap_or_else(|| panic!("{text}"));
        assert!(text.starts_with("berth-pod 0 "), "{text}");
        assert!(text.ends_with(" 0 other"), "{text}");
        mapped.down(world);
        pidfd::send_signal(&pause.pidfd, 15).expect("signal");
        assert_eq!(wait(&pause), Exit::Code(0));

        // Other maps than those of the network namespace's owner: nobody of the pod comes to be.
        let other = Pause {
            netns: Some(path),
            user: Some(UserNamespace {
                uids: serde_json::from_value(mapping(FIRST + 1)).unwrap(),
                ..user
            }),
            ..asked
        };
        let refused = world.zygote.pause(&other).unwrap_err().to_string();
        assert!(refused.contains("maps"), "{refused}");
    }
}

pub fn maps_that_are_not_taken_make_no_container(world: &mut World) {
    // SEC-ENG-13, SEC-ENG-21
    if refused_by_libcontainer(world, "a user namespace") {
        return;
    }
    let lines = |count: u32| {
        let list = (0..count).map(|at| json!({"containerID": at, "hostID": 1000 + at, "size": 1}));
        Value::from(list.collect::<Vec<_>>())
    };
    for (what, change) in [
        (
            "overlap",
            Box::new(|spec: &mut Value| {
                let twice = [mapping(1000)[0].clone(), mapping(5000)[0].clone()];
                spec["linux"]["uidMappings"] = json!(twice);
            }) as Box<dyn Fn(&mut Value)>,
        ),
        (
            "no root",
            Box::new(|spec| spec["linux"]["gidMappings"][0]["containerID"] = json!(1)),
        ),
        (
            "no map",
            Box::new(|spec| drop(spec["linux"]["uidMappings"].take())),
        ),
        (
            "341 lines",
            Box::new(|spec| spec["linux"]["uidMappings"] = lines(341)),
        ),
        (
            "10,000 lines",
            Box::new(|spec| spec["linux"]["gidMappings"] = lines(10_000)),
        ),
        (
            "a user without a map",
            Box::new(|spec| spec["process"]["user"]["uid"] = json!(COUNT)),
        ),
        (
            "a group without a map",
            Box::new(|spec| spec["process"]["user"]["additionalGids"] = json!([COUNT])),
        ),
        (
            "the node's own namespace",
            Box::new(|spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.last_mut().unwrap()["path"] = json!("/proc/self/ns/user");
            }),
        ),
    ] {
        let mapped = Mapped::new(world, &["true"], |spec| change(spec));
        let refused = world.create(&mapped.0, Stdio::default());
        assert!(refused.is_err(), "{what}");
        mapped.down(world);
        world.assert_nothing_left();
    }
    // Each line is there.
    let mapped = Mapped::new(
        world,
        &["sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map"],
        |spec| {
            spec["linux"]["uidMappings"] = lines(340);
            spec["linux"]["gidMappings"] = lines(340);
            // What the root's own map does not know here.
            spec["root"]["readonly"] = json!(false);
        },
    );
    let root = mapped.0.path.join("rootfs");
    unmount(&root, UnmountFlags::DETACH).unwrap();
    let (output, stdio) = captured();
    for name in ["dev", "proc", "sys"] {
        std::os::unix::fs::chown(root.join(name), Some(1000), Some(1000)).unwrap();
    }
    let init = world.create(&mapped.0, stdio).expect("create");
    world.engine.start(&mapped.0.id).expect("start");
    let text = read_all(output);
    assert_eq!(wait(&init), Exit::Code(0));
    assert_eq!(text.lines().count(), 680, "{text}");
    world.down(&mapped.0);
}

pub fn mounts_show_their_owners_through_their_map_or_are_not_made(world: &mut World) {
    // SEC-ENG-20
    if refused_by_libcontainer(world, "the id-mapped mount") {
        return;
    }
    let volume = world.directory.path().join("mapped-volume");
    let below = volume.join("below");
    fs::create_dir_all(&below).unwrap();
    mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();
    for (file, uid) in [
        (volume.join("root"), 0),
        (volume.join("user"), 1000),
        (below.join("deep"), 5),
        (volume.join("stranger"), 70_000),
    ] {
        fs::write(&file, "x").unwrap();
        std::os::unix::fs::chown(&file, Some(uid), Some(uid)).unwrap();
    }
    let link = world.directory.path().join("link-to-volume");
    symlink(&volume, &link).unwrap();
    let script = "cd /volume && stat -c %u:%g root user below/deep stranger 2>/dev/null; touch new below/new; stat -c %u new below/new 2>/dev/null";
    for (userns, source, options, seen) in [
        (
            true,
            &volume,
            json!(["rbind", "ridmap"]),
            "0:0 1000:1000 5:5 65534:65534 0 0",
        ),
        (
            true,
            &link,
            json!(["rbind", "ridmap"]),
            "0:0 1000:1000 5:5 65534:65534 0 0",
        ),
        // Only the top: what lies below is the node's, and a stranger to the container.
        (
            true,
            &volume,
            json!(["rbind", "idmap"]),
            "0:0 1000:1000 65534:65534 65534:65534 0 0",
        ),
        (
            true,
            &volume,
            json!(["rbind", "ridmap", "ro", "rro"]),
            "0:0 1000:1000 5:5 65534:65534",
        ),
        // Without a map nothing of the node's root is the container's.
        (
            true,
            &volume,
            json!(["rbind"]),
            "65534:65534 65534:65534 65534:65534 65534:65534 0",
        ),
        // Without a user namespace the map shifts all the same; nobody has root's number.
        (
            false,
            &volume,
            json!(["rbind", "ridmap"]),
            "200000:200000 201000:201000 200005:200005 65534:65534",
        ),
    ] {
        let what = format!("{userns} {} {options}", source.display());
        let add = |spec: &mut Value| {
            let mut mount = json!({"destination": "/volume", "type": "bind", "source": source, "options": options});
            if options.to_string().contains("idmap") {
                mount["uidMappings"] = mapping(FIRST);
                mount["gidMappings"] = mapping(FIRST);
            }
            spec["mounts"].as_array_mut().unwrap().push(mount);
        };
        let (output, stdio) = captured();
        let (bundle, mapped) = if userns {
            let mapped = Mapped::new(world, &["sh", "-c", script], add);
            (None, Some(mapped))
        } else {
            (Some(world.bundle(&["sh", "-c", script], add)), None)
        };
        let of = bundle.as_ref().or(mapped.as_ref().map(|m| &m.0)).unwrap();
        let init = world.create(of, stdio).expect(&what);
        world.engine.start(&of.id).expect(&what);
        let text = read_all(output);
        wait(&init);
        let told: Vec<_> = text
            .lines()
            .filter(|line| !line.contains("touch"))
            .collect();
        assert_eq!(told.join(" "), seen, "{what}: {text}");
        // On the node its owners are who they were.
        for (file, uid) in [("root", 0), ("user", 1000), ("below/deep", 5)] {
            assert_eq!(
                fs::metadata(volume.join(file)).unwrap().uid(),
                uid,
                "{what}"
            );
        }
        for file in ["new", "below/new"] {
            if let Ok(new) = fs::metadata(volume.join(file)) {
                // Everybody may write below.
                let plain = file == "below/new" && !options.to_string().contains("ridmap");
                assert_eq!(new.uid(), if plain { FIRST } else { 0 }, "{what}");
                fs::remove_file(volume.join(file)).unwrap();
            }
        }
        match (bundle, mapped) {
            (Some(bundle), _) => world.down(&bundle),
            (_, Some(mapped)) => mapped.down(world),
            _ => {}
        }
    }
    // What can't be mapped is named, and nothing is mounted instead.
    let proc_below = volume.join("proc");
    fs::create_dir(&proc_below).unwrap();
    mount("proc", &proc_below, "proc", MountFlags::empty(), None).unwrap();
    for source in [Path::new("/proc"), &volume] {
        let mapped = Mapped::new(world, &["true"], |spec| {
            spec["mounts"].as_array_mut().unwrap().push(
                json!({"destination": "/volume", "type": "bind", "source": source, "options": ["rbind", "ridmap"],
                    "uidMappings": mapping(FIRST), "gidMappings": mapping(FIRST)}),
            );
        });
        let refused = world.create(&mapped.0, Stdio::default()).unwrap_err();
        let text = refused.to_string();
        assert!(
            matches!(refused, berth_engine::Error::Unfit { .. }),
            "{refused:?}"
        );
        for part in [
            "mount /volume",
            "proc: this kernel can't mount",
            "hostUsers: true",
        ] {
            assert!(text.contains(part), "{text}");
        }
        mapped.down(world);
    }
    for path in [&proc_below, &below] {
        unmount(path, UnmountFlags::DETACH).unwrap();
    }
    fs::remove_dir_all(&volume).unwrap();
    fs::remove_file(&link).unwrap();
}

pub fn a_terminal_in_a_user_namespace_is_its_users(world: &mut World) {
    if refused_by_libcontainer(world, "a user namespace") {
        return;
    }
    let script = "tty; stat -c %u:%g /dev/console; echo; exec sleep 1000";
    let mapped = Mapped::new(world, &["sh", "-c", script], |spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let process = world
        .engine
        .create(Create {
            id: mapped.0.id.clone(),
            bundle: mapped.0.path.clone(),
            stdio: Stdio::default(),
            tty: true,
            systemd_cgroup: false,
            restore: None,
        })
        .expect("create");
    world.engine.start(&mapped.0.id).expect("start");
    let read = |console: &std::os::fd::OwnedFd| {
        let mut master = fs::File::from(console.try_clone().expect("dup"));
        let mut text = String::new();
        let mut bytes = [0; 256];
        while !text.contains("\r\n\r\n") {
            match master.read(&mut bytes) {
                Ok(n) if n > 0 => text.push_str(&String::from_utf8_lossy(&bytes[..n])),
                _ => break,
            }
        }
        words(&text)
    };
    let text = read(process.console.as_ref().unwrap());
    assert!(text.ends_with(" 1000:1000"), "{text}");
    let spec = fs::read_to_string(mapped.0.path.join("config.json")).expect("spec");
    let mut spec: Value = serde_json::from_str(&spec).expect("spec");
    let mut exec = spec["process"].take();
    exec["args"] = json!([
        "sh",
        "-c",
        "stat -c %u:%g $(tty); echo hi >$(tty); echo; exit 3"
    ]);
    let exec = world
        .engine
        .exec(berth_engine::Exec {
            container_id: mapped.0.id.clone(),
            process: serde_json::from_value(exec).expect("process"),
            stdio: Stdio::default(),
            tty: true,
        })
        .expect("exec");
    assert_eq!(read(exec.console.as_ref().unwrap()), "1000:1000 hi");
    assert_eq!(wait(&exec), Exit::Code(3));
    world.engine.kill(&mapped.0.id, 9, true).expect("kill");
    wait(&process);
    mapped.down(world);
}

pub fn ambient_capabilities_reach_a_user_in_init_and_exec(world: &mut World) {
    // SEC-ENG-08: and nothing but those that are named.
    const BIND: u64 = 1 << 10;
    for no_new_privileges in [true, false] {
        let bundle = world.bundle(&["sleep", "1000"], |spec| {
            let process = &mut spec["process"];
            process["user"] = json!({"uid": 1000, "gid": 1000});
            process["noNewPrivileges"] = json!(no_new_privileges);
            for set in ["inheritable", "ambient"] {
                process["capabilities"][set] = json!(["CAP_NET_BIND_SERVICE"]);
            }
        });
        let init = world.up(&bundle);
        let exec = world
            .exec_start(&bundle, &["sleep", "1000"], Stdio::default(), |_| {})
            .expect("exec");
        for pid in [init.pid, exec.pid] {
            until("the command", || {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "sleep")
            });
            let sets = ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"]
                .map(|set| u64::from_str_radix(&status(pid, set), 16).expect("hex"));
            assert_eq!(sets, [CAPABILITY_BITS, BIND, BIND, BIND, BIND]);
        }
        world.engine.kill(&bundle.id, 9, true).expect("kill");
        wait(&exec);
        world.finish(&bundle, &init);
    }
}
