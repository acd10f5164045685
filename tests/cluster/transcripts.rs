//! kubectl's commands as a person types them, each with what it prints and whether it succeeds: the files in `transcripts/`, one server each.
//!
//! ```text
//! # why
//! $ a command that succeeds        (by bash; $FILES is this directory's `transcripts`)
//! what it prints, stderr too
//! ! a command that fails
//! error: what it says
//! ```
//!
//! Runs of blanks count as one. `…` stands for anything within a line, and alone on a line for any number of lines.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{Server, kubectl_path};

/// Of one command.
const LIMIT: Duration = Duration::from_secs(60);

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/transcripts")
}

struct Step<'a> {
    line: usize,
    command: &'a str,
    succeeds: bool,
    says: Vec<&'a str>,
}

fn steps(text: &str) -> Vec<Step<'_>> {
    let mut steps: Vec<Step<'_>> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let command = line
            .strip_prefix("$ ")
            .map(|command| (command, true))
            .or_else(|| line.strip_prefix("! ").map(|command| (command, false)));
        match command {
            Some((command, succeeds)) => steps.push(Step {
                line: n + 1,
                command,
                succeeds,
                says: Vec::new(),
            }),
            None if line.starts_with("# ") => {}
            None => {
                if let Some(step) = steps.last_mut() {
                    step.says.push(line);
                }
            }
        }
    }
    steps
}

fn one_blank(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a line is what was expected of it, where `…` is anything.
fn is(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn are(expected: &[String], lines: &[String]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((any, after)) if any == "…" => {
            (0..=lines.len()).any(|skipped| are(after, &lines[skipped..]))
        }
        Some((first, after)) => lines
            .split_first()
            .is_some_and(|(line, rest)| is(first, line) && are(after, rest)),
    }
}

fn lines<'a>(text: impl Iterator<Item = &'a str>) -> Vec<String> {
    let lines = text.map(one_blank);
    lines.filter(|line| !line.is_empty()).collect()
}

/// A server and a directory of programs with kubectl in it.
pub struct Shell {
    pub server: Server,
    path: std::ffi::OsString,
}

impl Shell {
    pub fn start() -> Result<Self> {
        let server = Server::start("memory")?;
        let programs = server.dir().join("programs");
        std::fs::create_dir(&programs)?;
        std::os::unix::fs::symlink(kubectl_path()?, programs.join("kubectl"))?;
        let mut path = programs.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").context("no PATH")?);
        Ok(Self { server, path })
    }

    /// Whether it succeeds, and all that it prints.
    pub fn run(&self, command: &str) -> Result<(bool, String)> {
        let begun = Instant::now();
        let output = Command::new("timeout")
            .arg(LIMIT.as_secs().to_string())
            .args(["bash", "-c"])
            .arg(format!("exec 2>&1 </dev/null; {command}"))
            .env("PATH", &self.path)
            .env("HOME", self.server.dir())
            .env("KUBECONFIG", self.server.kubeconfig())
            .env("FILES", directory())
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.server.dir())
            .output()?;
        ensure!(begun.elapsed() < LIMIT, "{command}: it hangs");
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        ))
    }
}

/// All of a transcript that differs, at once.
fn play(name: &str) -> Result<()> {
    let text = std::fs::read_to_string(directory().join(name))?;
    let steps = steps(&text);
    ensure!(!steps.is_empty(), "{name} is empty");
    let shell = Shell::start()?;
    let mut wrong = String::new();
    for step in &steps {
        let (succeeded, said) = shell.run(step.command)?;
        let (expected, lines) = (lines(step.says.iter().copied()), lines(said.lines()));
        if succeeded != step.succeeds || !are(&expected, &lines) {
            let mark = if succeeded { '$' } else { '!' };
            wrong += &format!("{name}:{}\n{mark} {}\n{said}\n", step.line, step.command);
        }
    }
    ensure!(wrong.is_empty(), "{wrong}server: {}", shell.server.log());
    Ok(())
}

#[test]
fn what_is_generated_and_how_it_is_shown() -> Result<()> {
    play("create-and-get.txt")
}

#[test]
fn what_is_changed_and_rolled_out() -> Result<()> {
    play("change.txt")
}

#[test]
fn nodes_access_and_certificates() -> Result<()> {
    play("nodes-and-access.txt")
}

#[test]
fn every_kind_by_every_command() -> Result<()> {
    play("every-kind.txt")
}

#[test]
fn what_is_expected_is_compared_line_by_line() {
    for (expected, line, same) in [
        ("a", "a", true),
        ("a", "b", false),
        ("a", "ab", false),
        ("a …", "a 12s", true),
        ("a … b", "a 1 b", true),
        ("a … b", "a 1 c", false),
        ("… a … b", "x a y a z b", true),
    ] {
        assert_eq!(is(expected, line), same, "{expected} {line}");
    }
    let lines = |text: &str| super::transcripts::lines(text.lines());
    assert!(are(&lines("a\n…\nd"), &lines("a\nb\nc\nd")));
    assert!(are(&lines("…"), &lines("")));
    assert!(!are(&lines("a\n…\nd"), &lines("a\nb\nc")));
    assert!(!are(&lines("a"), &lines("a\nb")));
}
