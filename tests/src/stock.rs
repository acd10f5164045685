//! Kubernetes' own components, where a machine has them on PATH.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::cluster::Server;

/// What an API server has answered wrongly stands in such lines. Not among them: conflicts, and what isn't there yet, which are tried again.
const COMPLAINTS: [&str; 9] = [
    "failed to list",
    "failed to watch",
    "forbidden",
    "unable to decode",
    "could not find the requested resource",
    "no kind",
    "is invalid:",
    "internal error",
    "unknown (",
];

/// … but these: a kubelet asks for pods that are gone, and the Node authorizer (upstream's, too) knows of no such pod of its; one distribution's
/// controller manager has a controller that Kubernetes' has not, and no role for it.
const KNOWN: [&str; 2] = [
    "no relationship found between node",
    "service-ca-cert-publisher",
];

/// Whether all of them are on PATH; says which are not.
pub fn has(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| !is_there(program))
        .collect();
    if !missing.is_empty() {
        eprintln!("SKIP: not on PATH: {}", missing.join(", "));
    }
    missing.is_empty()
}

/// Whether a line of klog's is an error's or a warning's: `E1123 …`, with something before it where it was built so.
fn is_bad(line: &str) -> bool {
    line.split_whitespace().take(2).any(|word| {
        let day = word.strip_prefix(['E', 'W', 'F']);
        day.is_some_and(|day| day.len() == 4 && day.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// One of them; its log is PROGRAM.log. Ended when it is dropped.
#[derive(Debug)]
pub struct Stock {
    program: String,
    child: Child,
    log: PathBuf,
}

impl Stock {
    pub fn start(program: &str, arguments: &[String], dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{program}.log"));
        let file = fs::File::options().append(true).create(true).open(&log)?;
        let child = Command::new(program)
            .args(arguments)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {program}"))?;
        Ok(Self {
            program: program.to_owned(),
            child,
            log,
        })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its last lines.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "---- {}\n{}",
            self.program,
            lines[lines.len().saturating_sub(60)..].join("\n")
        )
    }

    /// That the API server has given it no reason to complain, but for lines with one of `known`.
    pub fn is_content_but(&self, known: &[&str]) -> Result<()> {
        let log = self.log();
        let complains = |line: &&str| {
            let low = line.to_lowercase();
            is_bad(line)
                && COMPLAINTS.iter().any(|complaint| low.contains(complaint))
                && !KNOWN.iter().chain(known).any(|known| line.contains(known))
        };
        let lines: Vec<&str> = log.lines().filter(complains).collect();
        ensure!(
            lines.is_empty(),
            "{} complains:\n{}",
            self.program,
            lines.join("\n")
        );
        Ok(())
    }

    pub fn kill_9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.kill_9();
    }
}

/// What decides in a cluster.
pub const CONTROL_PLANE: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// Both at `server`, as themselves, with all controllers; their ports are the usual ones, so the caller has a network of its own.
pub fn control_plane(server: &Server) -> Result<[Stock; 2]> {
    let pki = |name: &str| server.data().join("pki").join(name).display().to_string();
    let start = |program: &str, more: Vec<String>| -> Result<Stock> {
        let kubeconfig = server.component_kubeconfig(program)?;
        let flag = |flag: &str| format!("--{flag}={}", kubeconfig.display());
        let mut arguments = vec![
            flag("kubeconfig"),
            flag("authentication-kubeconfig"),
            flag("authorization-kubeconfig"),
            "--v=2".into(),
        ];
        arguments.extend(more);
        Stock::start(program, &arguments, server.dir())
    };
    let manager = vec![
        "--controllers=*,bootstrap-signer-controller,token-cleaner-controller".into(),
        "--use-service-account-credentials".into(),
        format!("--root-ca-file={}", pki("ca.crt")),
        format!("--cluster-signing-cert-file={}", pki("ca.crt")),
        format!("--cluster-signing-key-file={}", pki("ca.key")),
        format!("--service-account-private-key-file={}", pki("token.key")),
        // it makes the directory
        format!(
            "--flex-volume-plugin-dir={}",
            server.dir().join("plugins").display()
        ),
        "--allocate-node-cidrs".into(),
        "--cluster-cidr=10.244.0.0/16".into(),
        "--horizontal-pod-autoscaler-sync-period=2s".into(),
        // a hollow node's lease is renewed by nobody
        "--node-monitor-grace-period=1h".into(),
    ];
    let [controllers, scheduler] = CONTROL_PLANE;
    Ok([start(controllers, manager)?, start(scheduler, Vec::new())?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_warnings_are_told_from_what_else_is_said() {
        for (line, bad) in [
            ("E1123 12:07:33.283498   27938 reflector.go:205] x", true),
            (
                "??? W1123 12:07:33.283498   27938 reflector.go:205] x",
                true,
            ),
            (
                "I1123 12:07:33.283498   27938 reflector.go:205] E1123",
                false,
            ),
            ("\tEvery word", false),
            ("", false),
        ] {
            assert_eq!(is_bad(line), bad, "{line}");
        }
    }
}
