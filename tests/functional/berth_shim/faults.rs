//! Shims that die, hang or are none; what is refused; and whose the files are.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use berth_tests::{machine, process};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::yard::{KINDS, SOON, Yard, refs};

#[test]
fn a_shim_that_is_killed_is_named_and_nothing_of_it_is_left() -> Result<()> {
    Yard::each(|yard| {
        // In the foreground.
        let id = yard.id("front");
        let bundle = yard.bundle("front", &[], &["sh", "-c", "echo ready; sleep 1000"])?;
        let words = yard.words("run", &id, &bundle, &[]);
        let mut child = yard
            .command(&refs(&words))?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdout
            .as_mut()
            .context("no stdout")?
            .read_exact(&mut [0; 6])?;
        process::kill_9(yard.shim_pid(&id)?);
        let output = child.wait_with_output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{said}");
        for part in [yard.kind.program, "Wait", "has died"] {
            ensure!(said.contains(part), "{said}");
        }
        yard.nothing_is_left()?;

        // Left alone.
        let (id, pid) = yard.detached("back", &[], "sleep 1000")?;
        process::kill_9(yard.shim_pid(&id)?);
        ensure!(process::eventually(SOON, || yard
            .json(&["ps"])
            .is_ok_and(|list| list[0]["status"] == "shim is dead")));
        yard.fails(&["state", &id], &[yard.kind.program, "has died"])?;
        yard.ok(&["delete", "--force", &id])?;
        ensure!(process::eventually(SOON, || process::Process::read(pid)
            .is_none_or(|process| process.state == 'Z')));
        Ok(())
    })
}

#[test]
fn a_shim_that_stops_answering_is_named_and_given_up() -> Result<()> {
    Yard::each(|yard| {
        let (id, _) = yard.detached("deaf", &[], "sleep 1000")?;
        let shim = yard.shim_pid(&id)?;
        kill(Pid::from_raw(shim), Signal::SIGSTOP)?;
        let began = Instant::now();
        yard.fails(
            &["--timeout", "1", "state", &id],
            &[yard.kind.program, "State", "no answer for 1 s", "hangs"],
        )?;
        ensure!(began.elapsed() < Duration::from_secs(5));
        ensure!(yard.json(&["ps"])?[0]["status"] == "shim hangs");
        yard.ok(&["delete", "--force", "--timeout", "5", &id])?;

        // While it is waited for.
        let id = yard.id("front");
        let bundle = yard.bundle("front", &[], &["sh", "-c", "echo ready; sleep 1000"])?;
        let words = yard.words("run", &id, &bundle, &["--timeout", "5"]);
        let mut child = yard
            .command(&refs(&words))?
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdout
            .as_mut()
            .context("no stdout")?
            .read_exact(&mut [0; 6])?;
        let shim = yard.shim_pid(&id)?;
        kill(Pid::from_raw(shim), Signal::SIGSTOP)?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(
            said.contains("no answer for 5 s") && said.contains(yard.kind.program),
            "{said}"
        );
        Ok(())
    })
}

/// Programs that are no shims, and what is said of each.
#[test]
fn a_program_that_is_no_shim_is_named_with_the_step_and_what_it_did() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    let rubbish = yard.dir.join("rubbish.sock");
    let listener = std::os::unix::net::UnixListener::bind(&rubbish)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.write_all(&[0x5a; 4096]);
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    let silent = yard.dir.join("silent.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&silent)?;
    let says_rubbish = format!("echo unix://{}", rubbish.display());
    let says_silent = format!("echo unix://{}", silent.display());
    let bundle = yard.bundle("none", &[], &["true"])?;
    let cases: [(&str, &str, &[&str]); 13] = [
        (
            "garbage",
            "echo hello",
            &["start", "\"hello\"", "no address"],
        ),
        ("nothing", "true", &["start", "printed no address"]),
        (
            "fails",
            "echo no such luck >&2; exit 3",
            &["start", "exited with 3", "no such luck"],
        ),
        (
            "silent-failure",
            "exit 1",
            &["start", "exited with 1", "said nothing"],
        ),
        ("killed", "kill -9 $$", &["start", "killed by signal 9"]),
        (
            "hangs",
            "sleep 1000",
            &["start", "no answer for 1 s", "hangs"],
        ),
        (
            "holds-on",
            "sleep 1000 & echo unix:///x",
            &["start", "hangs"],
        ),
        ("endless", "yes", &["start", "more than 65536 bytes"]),
        ("escapes", "printf '\\033[2J\\000x'", &["start", "\\u{1b}"]),
        (
            "future",
            r#"echo '{"version":4,"address":"unix:///x","protocol":"ttrpc"}'"#,
            &["start", "version 4 is not known"],
        ),
        (
            "grpc",
            r#"echo '{"version":3,"address":"unix:///x","protocol":"grpc"}'"#,
            &["start", "only ttrpc"],
        ),
        (
            "nobody",
            "echo unix:///nonexistent/s",
            &["connect", "has died", "/nonexistent/s"],
        ),
        ("rubbish", &says_rubbish, &["Connect", "no ttrpc"]),
    ];
    for (name, script, parts) in cases.into_iter().chain([(
        "deaf",
        says_silent.as_str(),
        ["Connect", "hangs"].as_slice(),
    )]) {
        let program = yard.dir.join(format!("shim-{name}"));
        // `delete` succeeds, so that what is said is said of the step alone.
        fs::write(
            &program,
            format!("#!/bin/sh\ncase \"$*\" in *delete) exit 0;; esac\n{script}\n"),
        )?;
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        let id = yard.id(name);
        let shim = program.display().to_string();
        let began = Instant::now();
        let said = yard.fails(
            &[
                "--timeout",
                "1",
                "run",
                &id,
                "--bundle",
                &bundle,
                "--shim",
                &shim,
            ],
            parts,
        )?;
        ensure!(said.contains(&format!("shim-{name}")), "{said}");
        ensure!(said.len() < 1000, "{} bytes", said.len());
        ensure!(!said.contains('\x1b'), "{said:?}");
        ensure!(
            began.elapsed() < Duration::from_secs(15),
            "{name}: {:?}",
            began.elapsed()
        );
        let left: Vec<_> = process::all()
            .into_iter()
            .filter(|process| process.cmdline().contains(&shim) && process.state != 'Z')
            .collect();
        ensure!(left.is_empty(), "{left:?}");
        ensure!(yard.json(&["ps"])? == Value::Array(Vec::new()), "{name}");
    }
    for (shim, part) in [
        ("io.containerd.nonesuch.v2", "containerd-shim-nonesuch-v2"),
        ("nonesuch", "as a runtime"),
        ("/nowhere/shim", "/nowhere/shim"),
    ] {
        let id = yard.id("absent");
        yard.fails(&["run", &id, "--bundle", &bundle, "--shim", shim], &[part])?;
    }
    yard.nothing_is_left()
}

#[test]
fn what_the_shim_or_the_bundle_refuses_leaves_nothing() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("refused");
        let bundle = yard.bundle("refused", &[], &["/nowhere/command"])?;
        let words = yard.words("run", &id, &bundle, &[]);
        let said = yard.fails(&refs(&words), &[yard.kind.program])?;
        ensure!(said.contains("Create") || said.contains("Start"), "{said}");
        yard.nothing_is_left()?;
        let empty = yard.dir.join("empty");
        fs::create_dir_all(&empty)?;
        let empty = empty.display().to_string();
        for (id, bundle, part) in [
            (id.as_str(), empty.as_str(), "config.json"),
            ("../x", &bundle, "id"),
            ("", &bundle, "id"),
        ] {
            let words = yard.words("run", id, bundle, &[]);
            yard.fails(&refs(&words), &[part])?;
        }
        if !yard.kind.runc {
            let words = yard.words("run", &id, &bundle, &["--option", "BinaryName=crun"]);
            yard.fails(&refs(&words), &["Create", "BinaryName"])?;
        }
        let said = yard.ok(&["info", "--shim", yard.kind.runtime])?;
        ensure!(said.contains(yard.kind.program), "{said}");
        let about = yard.json(&["info", "--shim", yard.kind.runtime])?;
        ensure!(
            about["path"]
                .as_str()
                .is_some_and(|path| path.ends_with(yard.kind.program))
        );
        if !yard.kind.runc {
            ensure!(about["name"] == yard.kind.runtime, "{about}");
        }
        Ok(())
    })
}

#[test]
fn the_state_directory_and_its_sockets_are_roots_own() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    let group = yard.id("private");
    let mut listener = yard
        .command(&["events", &group])?
        .stdout(Stdio::null())
        .spawn()?;
    let sockets = || -> Vec<PathBuf> {
        let entries = fs::read_dir(yard.state().join("e")).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    };
    ensure!(process::eventually(SOON, || !sockets().is_empty()));
    for (path, mode) in sockets()
        .into_iter()
        .map(|path| (path, 0o600))
        .chain([(yard.state(), 0o700)])
    {
        let meta = fs::metadata(&path)?;
        ensure!(
            meta.permissions().mode() & 0o777 == mode,
            "{}",
            path.display()
        );
    }
    kill(Pid::from_raw(listener.id() as i32), Signal::SIGINT)?;
    ensure!(listener.wait()?.success());
    yard.nothing_is_left()
}

/// A shim's working directory is its bundle: what it is told must lead there from everywhere.
#[test]
fn a_state_directory_may_be_named_from_where_one_is() -> Result<()> {
    machine::isolate()?;
    let mut yard = Yard::make(KINDS[0])?;
    let id = yard.id("relative");
    let bundle = yard.bundle("relative", &[], &["echo", "here"])?;
    let output = yard
        .command(&["--state", "state", "run", &id, "--bundle", &bundle])?
        .current_dir(&yard.dir)
        .output()?;
    ensure!(output.stdout == b"here\n", "{output:?}");
    yard.nothing_is_left()
}
