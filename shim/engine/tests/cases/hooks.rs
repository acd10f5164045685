//! Hooks beside a container: poststart and poststop.

use std::{fs, path::PathBuf};

use berth_engine::{Engine, Error, Launched, Stdio};
use berth_kernel::pidfd::Exit;
use serde_json::{Value, json};

use crate::world::{Bundle, World, wait};

/// A file on the node that hooks write into.
fn marks(world: &World, bundle_of: &str) -> PathBuf {
    world.directory.path().join(format!("marks-{bundle_of}"))
}

fn hook(script: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
}

/// Each hook writes its stage, whether the container's cgroup is there, and the state.
fn marked(world: &mut World, name: &str, args: &[&str]) -> (Bundle, PathBuf) {
    let marks = marks(world, name);
    let cgroups = if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/pids"
    };
    let bundle = world.bundle(args, |spec| {
        let cgroup = spec["linux"]["cgroupsPath"].as_str().expect("a path");
        let there = format!("test -d {cgroups}{cgroup} && echo there || echo gone");
        for stage in ["poststart", "poststop"] {
            let script = format!("(echo {stage}; {there}; cat; echo) >>{}", marks.display());
            spec["hooks"][stage] = hook(&script);
        }
        spec["annotations"]["word"] = "said".into();
    });
    (bundle, marks)
}

fn lines(marks: &PathBuf) -> Vec<String> {
    let text = fs::read_to_string(marks).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

pub fn late_hooks_run_on_the_node_with_the_state_and_in_their_order(world: &mut World) {
    let (bundle, marks) = marked(world, "order", &["sleep", "1000"]);
    let process = world.create(&bundle, Stdio::default()).expect("create");
    assert!(!marks.exists(), "a hook ran before the start");
    world.engine.start(&bundle.id).expect("start");
    let said = lines(&marks);
    assert_eq!((said[0].as_str(), said[1].as_str()), ("poststart", "there"));
    let state: Value = serde_json::from_str(&said[2]).expect("a state");
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["status"], "running");
    assert_eq!(state["pid"], process.pid);
    assert_eq!(state["bundle"], bundle.path.display().to_string());
    assert_eq!(state["annotations"]["word"], "said");
    world.engine.kill(&bundle.id, 9, false).expect("kill");
    wait(&process);
    world.down(&bundle);
    let said = lines(&marks);
    assert_eq!((said[3].as_str(), said[4].as_str()), ("poststop", "gone"));
    let state: Value = serde_json::from_str(&said[5]).expect("a state");
    assert_eq!(state["status"], "stopped");
    assert!(state.get("pid").is_none(), "{state}");
    assert_eq!(said.len(), 6, "{said:?}");
    assert!(world.engine.warnings().is_empty());
    fs::remove_file(marks).expect("marks");
}

pub fn a_poststart_hook_that_fails_ends_the_container(world: &mut World) {
    let marks = marks(world, "failing");
    let bundle = world.bundle(&["sleep", "1000"], |spec| {
        spec["hooks"]["poststart"] = hook("echo no such ship >&2; exit 3");
        spec["hooks"]["poststop"] = hook(&format!("echo stopped >>{}; exit 4", marks.display()));
    });
    let process = world.create(&bundle, Stdio::default()).expect("create");
    let error = world.engine.start(&bundle.id).expect_err("it failed");
    assert!(matches!(error, Error::Hook { .. }), "{error}");
    let error = error.to_string();
    for word in ["poststart hook /bin/sh", "exit status: 3", "no such ship"] {
        assert!(error.contains(word), "{error}");
    }
    assert_eq!(wait(&process), Exit::Signal(9));
    world.down(&bundle);
    assert_eq!(lines(&marks), ["stopped"]);
    let warnings = world.engine.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("poststop hook /bin/sh"),
        "{warnings:?}"
    );
    fs::remove_file(marks).expect("marks");
}

pub fn a_create_that_fails_runs_the_poststop_hooks(world: &mut World) {
    let marks = marks(world, "unmade");
    let bundle = world.bundle(&["true"], |spec| {
        spec["hooks"]["createRuntime"] = json!([{"path": "/bin/false"}]);
        spec["hooks"]["poststart"] = hook(&format!("echo started >>{}", marks.display()));
        spec["hooks"]["poststop"] = hook(&format!("echo stopped >>{}", marks.display()));
    });
    let made = world.create(&bundle, Stdio::default());
    assert!(made.is_err(), "a hook's failure is none of the create's");
    assert_eq!(lines(&marks), ["stopped"]);
    world.down(&bundle);
    assert_eq!(lines(&marks), ["stopped"], "they ran again");
    fs::remove_file(marks).expect("marks");
}

pub fn a_cleanup_by_another_process_runs_the_poststop_hooks_once(world: &mut World) {
    let (bundle, marks) = marked(world, "cleanup", &["sleep", "1000"]);
    let process = world.up(&bundle);
    let cleanup = Launched::for_cleanup(world.config.clone());
    cleanup.delete(&bundle.id).expect("delete");
    assert_eq!(wait(&process), Exit::Signal(9));
    cleanup.delete(&bundle.id).expect("again");
    world.down(&bundle);
    let stages: Vec<String> = lines(&marks)
        .into_iter()
        .filter(|line| line.starts_with("post"))
        .collect();
    assert_eq!(stages, ["poststart", "poststop"]);
    fs::remove_file(marks).expect("marks");
}
