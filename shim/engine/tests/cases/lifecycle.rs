//! Create, start, exec, kill, delete.

use std::{fs, io::Read, path::Path};

use berth_engine::{Create, Engine, Error, Launched, Pause, Stdio};
use berth_kernel::pidfd::{self, Exit};
use serde_json::json;

use crate::world::{World, captured, namespace, read_all, status, until, wait, wait_fd};

pub fn a_container_runs_and_its_exit_code_and_output_are_its_own(world: &mut World) {
    for (script, code) in [
        ("echo out; echo err >&2; exit 0", 0),
        ("echo out; echo err >&2; exit 7", 7),
    ] {
        let (exit, output) = world.run(&["sh", "-c", script], |_| {});
        assert_eq!((exit, output.as_str()), (Exit::Code(code), "out\nerr\n"));
    }
}

pub fn an_init_that_ends_at_once_still_gives_its_status(world: &mut World) {
    for _ in 0..20 {
        let bundle = world.bundle(&["true"], |_| {});
        let process = world.up(&bundle);
        until("zombie", || status(process.pid, "State").starts_with('Z'));
        assert_eq!(
            pidfd::wait(&process.pidfd).expect("our child"),
            Exit::Code(0)
        );
        world.down(&bundle);
    }
}

pub fn a_hook_need_not_read_the_state(world: &mut World) {
    let (exit, _) = world.run(&["true"], |spec| {
        // More than a pipe holds: who writes it is still at it when the hook ends.
        spec["annotations"]["long"] = "x".repeat(256 << 10).into();
        spec["hooks"]["createRuntime"] = json!([{ "path": "/bin/true" }]);
    });
    assert_eq!(exit, Exit::Code(0));
}

pub fn a_killed_container_ends_with_137(world: &mut World) {
    let bundle = world.bundle(&["sleep", "1000"], |_| {});
    let process = world.up(&bundle);
    world.engine.kill(&bundle.id, 9, false).expect("kill");
    let exit = wait(&process);
    assert_eq!((exit, exit.code()), (Exit::Signal(9), 137));
    world
        .engine
        .kill(&bundle.id, 15, false)
        .expect("a signal to what is gone is no error");
    world.down(&bundle);
}

pub fn a_created_container_does_not_run_and_can_be_deleted(world: &mut World) {
    let bundle = world.bundle(&["touch", "/ran"], |_| {});
    let process = world.create(&bundle, Stdio::default()).expect("create");
    let again = world.create(&bundle, Stdio::default()).expect_err("twice");
    assert!(matches!(again, Error::ContainerExists(_)), "{again}");
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!bundle.path.join("rootfs/ran").exists());
    world.engine.delete(&bundle.id).expect("delete");
    assert_eq!(wait(&process), Exit::Signal(9));
    let started = world.engine.start(&bundle.id).expect_err("deleted");
    assert!(matches!(started, Error::UnknownContainer(_)), "{started}");
    world.down(&bundle);
}

pub fn a_missing_command_is_127_and_one_not_executable_126(world: &mut World) {
    let table = [
        (
            "foo",
            127,
            "exec: \"foo\": executable file not found in $PATH",
        ),
        ("/no/such", 127, "no such file or directory"),
        ("/bin/not-executable", 126, "permission denied"),
        ("/bin", 126, "is a directory"),
        ("/bin/nonsense", 126, "exec format error"),
    ];
    for seccomp in [true, false] {
        for (command, code, says) in table {
            let bundle = world.bundle(&[command], |spec| {
                if !seccomp {
                    spec["linux"]["seccomp"].take();
                    spec["process"]["noNewPrivileges"] = json!(false);
                }
            });
            let process = world.create(&bundle, Stdio::default()).expect("create");
            match world.engine.start(&bundle.id).expect_err(command) {
                Error::Command { exit_code, message } => {
                    assert_eq!(exit_code, code, "{command}: {message}");
                    assert!(message.contains(says), "{command}: {message}");
                }
                other => panic!("{command}: {other}"),
            }
            // It has ended when its start has failed: nobody waits for it.
            let ended = pidfd::try_wait(&process.pidfd).expect("our child");
            assert_eq!(ended, Some(Exit::Code(code)), "{command}");
            world.down(&bundle);
        }
    }
    let bundle = world.bundle(&["sleep", "1000"], |_| {});
    let process = world.up(&bundle);
    for (command, code, says) in table {
        match world.exec(&bundle, &[command], |_| {}).expect_err(command) {
            Error::Command { exit_code, message } => {
                assert_eq!(exit_code, code, "{command}: {message}");
                assert!(message.contains(says), "{command}: {message}");
            }
            other => panic!("{command}: {other}"),
        }
    }
    world.finish(&bundle, &process);
}

pub fn kill_all_reaches_every_process(world: &mut World) {
    let bundle = world.bundle(
        &[
            "sh",
            "-c",
            "sleep 1000 & sleep 1000 & trap '' USR1; wait; wait",
        ],
        |_| {},
    );
    let process = world.up(&bundle);
    let exec = world
        .exec_start(&bundle, &["sleep", "1000"], Stdio::default(), |_| {})
        .expect("exec");
    let cgroup = world.cgroup(&bundle);
    until("four processes", || {
        cgroup.procs().expect("procs").len() == 4
    });
    world.engine.kill(&bundle.id, 9, true).expect("kill");
    assert_eq!(
        (wait(&exec), wait(&process)),
        (Exit::Signal(9), Exit::Signal(9))
    );
    until("no process", || cgroup.procs().expect("procs").is_empty());
    world.down(&bundle);
}

pub fn delete_is_idempotent_and_kills_what_is_left(world: &mut World) {
    world.engine.delete("never-seen").expect("unknown");
    for id in ["", "..", "a/b", ".hidden", "x\0"] {
        assert!(
            matches!(world.engine.delete(id), Err(Error::Spec { .. })),
            "{id:?}"
        );
    }
    let bundle = world.bundle(&["sh", "-c", "sleep 1000 & sleep 1000"], |_| {});
    let process = world.up(&bundle);
    world.engine.delete(&bundle.id).expect("delete");
    assert_eq!(wait(&process), Exit::Signal(9));
    world.engine.delete(&bundle.id).expect("again");
    world.down(&bundle);
}

pub fn another_process_can_clean_up(world: &mut World) {
    let bundle = world.bundle(&["sleep", "1000"], |_| {});
    let process = world.up(&bundle);
    let cleanup = Launched::for_cleanup(world.config.clone());
    assert_eq!(
        cleanup.known().expect("known"),
        std::slice::from_ref(&bundle.id)
    );
    cleanup.kill(&bundle.id, 9, true).expect("kill");
    cleanup.delete(&bundle.id).expect("delete");
    assert_eq!(wait(&process), Exit::Signal(9));
    assert!(!world.cgroup(&bundle).exists());
    world.down(&bundle);
}

pub fn two_overlapping_creates_do_not_disturb_each_other(world: &mut World) {
    let bundles: Vec<_> = (0..6)
        .map(|at| world.bundle(&["sh", "-c", &format!("exit {at}")], |_| {}))
        .collect();
    let world = &*world;
    std::thread::scope(|scope| {
        let runs: Vec<_> = bundles
            .iter()
            .map(|bundle| {
                scope.spawn(move || {
                    let process = world.up(bundle);
                    wait(&process)
                })
            })
            .collect();
        for (at, run) in runs.into_iter().enumerate() {
            assert_eq!(run.join().expect("thread"), Exit::Code(at as i32));
        }
    });
    for bundle in &bundles {
        world.down(bundle);
    }
}

pub fn a_hundred_execs_leave_nothing_behind(world: &mut World) {
    let bundle = world.bundle(&["sleep", "1000"], |_| {});
    let process = world.up(&bundle);
    // libcontainer has a directory of its own below.
    let tree = |path: &Path| -> usize { fs::read_dir(path).map_or(0, Iterator::count) };
    let before = (
        fs::read_dir("/proc/self/fd").expect("fd").count(),
        tree(&world.config.state_dir.join(&bundle.id)),
        tree(&world.config.state_dir.join(&bundle.id).join(&bundle.id)),
    );
    for at in 0..100 {
        let code = at % 5;
        let (exit, output) = world
            .exec(
                &bundle,
                &["sh", "-c", &format!("echo {at}; exit {code}")],
                |_| {},
            )
            .expect("exec");
        assert_eq!((exit, output), (Exit::Code(code), format!("{at}\n")));
    }
    let after = (
        fs::read_dir("/proc/self/fd").expect("fd").count(),
        tree(&world.config.state_dir.join(&bundle.id)),
        tree(&world.config.state_dir.join(&bundle.id).join(&bundle.id)),
    );
    assert_eq!(before, after, "descriptors, files, libcontainer's files");
    assert_eq!(world.cgroup(&bundle).procs().expect("procs"), [process.pid]);
    world.engine.kill(&bundle.id, 9, false).expect("kill");
    wait(&process);
    world.engine.delete(&bundle.id).expect("delete");
    let gone = world.exec(&bundle, &["true"], |_| {}).expect_err("deleted");
    assert!(matches!(gone, Error::UnknownContainer(_)), "{gone}");
    world.down(&bundle);
}

pub fn a_create_that_fails_leaves_nothing_behind(world: &mut World) {
    type Change = fn(&mut serde_json::Value);
    let table: [(&str, Change, &str); 6] = [
        (
            "a mount source that is missing",
            |s| {
                let mount = json!({"destination": "/volume", "type": "bind", "source": "/no/such/source", "options": ["rbind"]});
                s["mounts"].as_array_mut().unwrap().push(mount);
            },
            "/no/such/source",
        ),
        (
            "a cgroup path that is nonsense",
            |s| s["linux"]["cgroupsPath"] = json!("/a/../../b"),
            "..",
        ),
        (
            "no cgroup path",
            |s| {
                s["linux"]["cgroupsPath"].take();
            },
            "cgroupsPath",
        ),
        (
            "a cpuset that is not there",
            |s| s["linux"]["resources"]["cpu"] = json!({"cpus": "4000"}),
            "cpuset.cpus",
        ),
        (
            "an action that is not built",
            |s| s["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOTIFY"),
            "SCMP_ACT_NOTIFY",
        ),
        (
            "a working directory that is a file",
            |s| s["process"]["cwd"] = json!("/etc/passwd"),
            "",
        ),
    ];
    for (what, change, says) in table {
        let bundle = world.bundle(&["true"], change);
        let error = world
            .create(&bundle, Stdio::default())
            .expect_err(what)
            .to_string();
        assert!(error.contains(says), "{what}: {error}");
        assert!(!world.config.state_dir.join(&bundle.id).exists(), "{what}");
        assert!(!world.cgroup(&bundle).exists(), "{what}");
        fs::remove_dir_all(&bundle.path).expect("bundle");
        world.assert_nothing_left();
    }
}

pub fn a_terminal_is_the_containers_own(world: &mut World) {
    let bundle = world.bundle(
        &[
            "sh",
            "-c",
            "tty; ls -l /dev/console >/dev/null && exec sleep 1000",
        ],
        |s| {
            s["process"]["terminal"] = json!(true);
        },
    );
    let create = Create {
        restore: None,
        systemd_cgroup: false,
        id: bundle.id.clone(),
        bundle: bundle.path.clone(),
        stdio: Stdio::default(),
        tty: true,
    };
    let process = world.engine.create(create).expect("create");
    world.engine.start(&bundle.id).expect("start");
    let mut master = fs::File::from(
        process
            .console
            .as_ref()
            .expect("console")
            .try_clone()
            .expect("dup"),
    );
    let mut line = [0; 64];
    let n = master.read(&mut line).expect("terminal");
    let shown = String::from_utf8_lossy(&line[..n]).into_owned();
    assert!(
        shown.starts_with("/dev/pts/") || shown.starts_with("/dev/console"),
        "{shown}"
    );

    let mut spec: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(bundle.path.join("config.json")).expect("spec"))
            .expect("spec");
    let mut exec = spec["process"].take();
    exec["args"] = json!(["sh", "-c", "tty; exit 3"]);
    exec["consoleSize"] = json!({"height": 33, "width": 77});
    let exec = world
        .engine
        .exec(berth_engine::Exec {
            container_id: bundle.id.clone(),
            process: serde_json::from_value(exec).expect("process"),
            stdio: Stdio::default(),
            tty: true,
        })
        .expect("exec");
    let console = exec.console.as_ref().expect("console");
    let size = rustix::termios::tcgetwinsize(console).expect("size");
    assert_eq!((size.ws_row, size.ws_col), (33, 77));
    let mut master = fs::File::from(console.try_clone().expect("dup"));
    let n = master.read(&mut line).expect("terminal");
    assert!(
        line[..n].starts_with(b"/dev/pts/"),
        "{:?}",
        String::from_utf8_lossy(&line[..n])
    );
    assert_eq!(wait(&exec), Exit::Code(3));
    world.finish(&bundle, &process);
}

pub fn the_pods_pause_holds_namespaces_and_ends_on_sigterm(world: &mut World) {
    // PO-02, PO-03
    let pause = world
        .zygote
        .pause(&Pause {
            hostname: Some("berth-pod".into()),
            new_ipc: true,
            new_uts: true,
            new_pid: true,
            sysctls: vec![("kernel.shm_rmid_forced".into(), "1".into())],
            oom_score_adj: Some(600),
            ..Pause::default()
        })
        .expect("pause");
    assert_eq!(status(pause.pid, "PPid"), std::process::id().to_string());
    assert_eq!(status(pause.pid, "Name"), "pause");
    let path = |name: &str| format!("/proc/{}/ns/{name}", pause.pid);
    let namespaces = json!([
        {"type": "pid", "path": path("pid")}, {"type": "ipc", "path": path("ipc")}, {"type": "uts", "path": path("uts")},
        {"type": "network", "path": path("net")}, {"type": "mount"}, {"type": "cgroup"},
    ]);
    let script = "hostname; cat /proc/sys/kernel/shm_rmid_forced; cat /proc/1/comm; ls /proc/1/root/ 2>&1 | head -c 20; exec sleep 1000";
    let bundle = world.bundle(&["sh", "-c", script], |s| {
        s["linux"]["namespaces"] = namespaces;
        s["process"]["args"][2] = json!(script.replace(" | head -c 20", ""));
        // Even a container that may trace sees nothing of the node through pid 1.
        for set in ["bounding", "effective", "permitted"] {
            s["process"]["capabilities"][set]
                .as_array_mut()
                .unwrap()
                .push(json!("CAP_SYS_PTRACE"));
        }
    });
    let (output, stdio) = captured();
    let process = world.create(&bundle, stdio).expect("create");
    world.engine.start(&bundle.id).expect("start");
    for name in ["pid", "ipc", "uts", "net"] {
        assert_eq!(
            namespace(&process.pid.to_string(), name),
            namespace(&pause.pid.to_string(), name),
            "{name}"
        );
    }
    // The end of the pause, pid 1 of the pod, is the end of all in it.
    until("the script's output", || {
        fs::read_to_string(format!("/proc/{}/comm", process.pid))
            .is_ok_and(|comm| comm.trim() == "sleep")
    });
    pidfd::send_signal(&pause.pidfd, 15).expect("signal");
    // In this order: pid 1 of a namespace can't be reaped before all that live in it are, by whoever is their parent.
    assert_eq!(wait(&process), Exit::Signal(9));
    assert_eq!(wait_fd(&pause.pidfd), Exit::Code(0));
    assert_eq!(read_all(output), "berth-pod\n1\npause\n");
    world.down(&bundle);

    let failed = world.zygote.pause(&Pause {
        sysctls: vec![("kernel.nonsense".into(), "1".into())],
        ..Pause::default()
    });
    let failed = failed.expect_err("no such sysctl").to_string();
    assert!(failed.contains("kernel.nonsense"), "{failed}");
}
