//! What goes into a container's processes and comes out of them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use berth_tests::process;

use super::terminal::Seat;
use super::yard::{SOON, Yard, refs, topics};

#[test]
fn a_run_has_its_output_its_exit_code_and_its_events_in_order() -> Result<()> {
    Yard::each(|yard| {
        for (name, script, code) in [
            ("seven", "echo out; echo err >&2; exit 7", 7),
            ("fine", "echo out; echo err >&2", 0),
            ("killed", "echo out; echo err >&2; kill -KILL $$", 137),
        ] {
            let id = yard.id(name);
            // As the first process of a pid namespace a shell can't be killed from within it.
            let script = if code == 137 {
                "sh -c 'echo out; echo err >&2; kill -KILL $$'; exit $?"
            } else {
                script
            };
            let bundle = yard.bundle(name, &[], &["sh", "-c", script])?;
            let before = fs::read(Path::new(&bundle).join("config.json"))?;
            let words = yard.words("run", &id, &bundle, &["--events", "-o", "json"]);
            let output = yard.berth(&refs(&words))?;
            let said = String::from_utf8(output.stderr.clone())?;
            ensure!(output.status.code() == Some(code), "{output:?}");
            ensure!(output.stdout == b"out\n", "{output:?}");
            ensure!(said.lines().any(|line| line == "err"), "{said}");
            let told = topics(&said, &yard.namespace);
            let expected = ["create", "start", "exit", "delete"];
            let expected: Vec<String> = expected
                .iter()
                .map(|topic| format!("/tasks/{topic} {name}"))
                .collect();
            ensure!(told == expected, "{told:?}");
            // The person's bundle is only read.
            ensure!(fs::read(Path::new(&bundle).join("config.json"))? == before);
            ensure!(fs::read_dir(&bundle)?.count() == 1);
        }
        Ok(())
    })
}

#[test]
fn stdin_reaches_the_process_whole_and_ends() -> Result<()> {
    Yard::each(|yard| {
        let id = yard.id("input");
        let bundle = yard.bundle("input", &[], &["sh", "-c", "md5sum; echo ended"])?;
        let words = yard.words("run", &id, &bundle, &["--interactive"]);
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
        let mut child = yard
            .command(&refs(&words))?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        stdin.write_all(&bytes)?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let sum = Command::new("md5sum")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let expected = fed(sum, &bytes)?;
        let printed = String::from_utf8(output.stdout)?;
        ensure!(output.status.success(), "{:?}", output.status);
        ensure!(printed == format!("{expected}ended\n"), "{printed}");

        // Without --interactive there is nothing to read.
        let id = yard.id("none");
        let words = yard.words("run", &id, &bundle, &[]);
        let printed = yard.ok(&refs(&words))?;
        ensure!(
            printed.starts_with("d41d8cd98f00b204e9800998ecf8427e"),
            "{printed}"
        );
        Ok(())
    })
}

fn fed(mut child: Child, bytes: &[u8]) -> Result<String> {
    child.stdin.take().context("no stdin")?.write_all(bytes)?;
    Ok(String::from_utf8(child.wait_with_output()?.stdout)?)
}

#[test]
fn an_exec_has_its_streams_its_user_and_its_exit_code() -> Result<()> {
    Yard::each(|yard| {
        let (id, _) = yard.detached("host", &[], "sleep 1000")?;
        let answer = yard.berth(&[
            "exec",
            &id,
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 9",
        ])?;
        ensure!(answer.status.code() == Some(9), "{answer:?}");
        ensure!(
            answer.stdout == b"out\n" && answer.stderr == b"err\n",
            "{answer:?}"
        );
        let script = "id -u; id -g; pwd; echo $COLOUR";
        let printed = yard.ok(&[
            "exec",
            "--user",
            "7:8",
            "--cwd",
            "/tmp",
            "--env",
            "COLOUR=blue",
            &id,
            "--",
            "sh",
            "-c",
            script,
        ])?;
        ensure!(printed == "7\n8\n/tmp\nblue\n", "{printed}");
        let child = yard
            .command(&["exec", "-i", &id, "--", "wc", "-c"])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        ensure!(fed(child, &[b'x'; 300_000])?.trim() == "300000");

        let mut seat = Seat::take(yard, &["exec", "-ti", &id, "--", "sh"], (70, 20))?;
        ensure!(process::eventually(SOON, || seat.is_raw().unwrap_or(false)));
        seat.master.write_all(b"stty size; exit 4\n")?;
        seat.expect("20 70")?;
        ensure!(seat.code()? == Some(4));
        ensure!(!seat.is_raw()?);

        yard.ok(&[
            "exec",
            "--detach",
            "--exec-id",
            "one",
            &id,
            "--",
            "sh",
            "-c",
            "sleep 0.2; exit 6",
        ])?;
        let state = yard.json(&["state", &id, "--exec-id", "one"])?;
        // runc's shim says the exec's name where the container's belongs.
        ensure!(state["execId"] == "one" || state["id"] == "one", "{state}");
        let waited = yard.berth(&["wait", &id, "--exec-id", "one"])?;
        ensure!(waited.status.code() == Some(6), "{waited:?}");
        yard.ok(&["delete", &id, "--exec-id", "one"])?;
        yard.fails(
            &["state", &id, "--exec-id", "one"],
            &["State", yard.kind.program],
        )?;

        yard.fails(
            &["exec", &id, "--", "/nowhere/to/be/found"],
            &["Start", yard.kind.program],
        )?;
        yard.fails(
            &["exec", "--user", "root", &id, "--", "true"],
            &["in numbers"],
        )?;
        yard.fails(
            &["exec", "--exec-id", "../x", &id, "--", "true"],
            &["exec id"],
        )?;
        // Nothing of all those is left in its directory.
        let fifos = fs::read_dir(yard.state().join("tasks").join(&yard.namespace).join(&id))?
            .flatten()
            .filter(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                name != "log" && entry.file_type().is_ok_and(|kind| kind.is_fifo())
            })
            .count();
        ensure!(fifos == 0, "{fifos} fifos");
        yard.ok(&["delete", "--force", &id])?;
        Ok(())
    })
}
