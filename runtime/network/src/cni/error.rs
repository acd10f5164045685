use std::{fmt, io, path::PathBuf, time::Duration};

use super::version::{Version, listed};

/// What went wrong between us and a CNI plugin or its configuration. Nothing of a configuration but names is ever in a message: it may
/// hold secrets.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error(
        "no CNI configuration in {dir} (a file named *.conf, *.conflist or *.json), and the built-in network is off: install a network plugin, or set [network] builtin = true"
    )]
    None { dir: PathBuf },
    #[error("no CNI configuration in {dir} can be used: {why}")]
    Broken { dir: PathBuf, why: String },
    #[error("CNI network {network}, plugin {plugin:?}: {failure}")]
    Missing {
        network: String,
        plugin: String,
        failure: String,
    },
    #[error(
        "CNI network {network} is configured for version {}, and plugin {plugin:?} speaks only {}",
        listed(.asked), listed(.has)
    )]
    Version {
        network: String,
        plugin: String,
        asked: Vec<Version>,
        has: Vec<Version>,
    },
    #[error("CNI network {network}, plugin {plugin:?}, {phase}: {failure}{}", said(.stderr))]
    Plugin {
        network: String,
        plugin: String,
        phase: Phase,
        failure: Box<Failure>,
        /// The beginning of what it wrote there.
        stderr: String,
    },
    #[error("CNI network {network}, plugin {plugin:?}, ADD: its result is refused: {why}")]
    Result {
        network: String,
        plugin: String,
        why: String,
    },
    #[error(
        "{what} of pod {pod_id} can't be told to CNI plugins: {:?} has a `;`, `=` or a control character in it",
        .value.chars().take(80).collect::<String>()
    )]
    Argument {
        pod_id: String,
        what: &'static str,
        value: String,
    },
    #[error("make a CNI configuration of the template {template}: {why}")]
    Template { template: PathBuf, why: String },
    #[error("CNI record of pod {pod_id}: {source}")]
    Record {
        pod_id: String,
        source: berth_state::record::RecordError,
    },
    #[error("CNI DEL of pod {pod_id} is left to the background: recovery has used up its {} s for plugins", .budget.as_secs())]
    Postponed { pod_id: String, budget: Duration },
}

/// What a plugin is asked to do: `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("can't be started: {0}")]
    Start(io::Error),
    #[error("did not end within {:.1} s and was killed", .0.as_secs_f64())]
    TimedOut(Duration),
    #[error("wrote more than {0} bytes to standard output and was killed")]
    TooMuch(usize),
    /// An error as the specification has it.
    #[error("error {code}: {msg}{}", detail(.details))]
    Refused {
        code: u64,
        msg: String,
        details: String,
    },
    #[error("ended with {status} and no error that can be read")]
    Died { status: std::process::ExitStatus },
    #[error("answered what is no CNI result: {0}")]
    Rubbish(String),
}

fn said(stderr: &str) -> String {
    match stderr.is_empty() {
        true => String::new(),
        false => format!("; on standard error: {stderr:?}"),
    }
}

fn detail(details: &str) -> String {
    match details.is_empty() {
        true => String::new(),
        false => format!(" ({details})"),
    }
}
