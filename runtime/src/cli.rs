//! The command line, and what is set up before anything runs.

use std::{
    io::{self, Write},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{
    Config, ConfigError, DEFAULT_TEXT, LogFormat, LogLevel, metrics_address, tracing_endpoint,
};

/// The CRI server of a Berth node: a kubelet's or crictl's runtime endpoint.
#[derive(Debug, Parser)]
#[command(name = "berthd", version)]
pub struct Cli {
    /// Configuration file [default: /etc/berth/config.toml, where it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What outlives a reboot: images and records [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What does not: sockets, bundles, the ledger [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where the CRI is served [default: unix://<state>/berth.sock]
    #[arg(long, value_name = "unix://PATH")]
    listen: Option<String>,
    #[arg(long, value_enum)]
    log_level: Option<LogLevel>,
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Serve the daemon's metrics for Prometheus there, at /metrics [default: not]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics_address)]
    metrics_listen: Option<SocketAddr>,
    /// Send spans of RPCs to this OTLP collector (gRPC) [default: not]
    #[arg(long, value_name = "HOST:PORT", value_parser = tracing_endpoint)]
    tracing_endpoint: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
    /// Print the manual page
    Man,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every key with its default and what it means
    Default,
    /// Read the configuration and say what is wrong with it
    Check,
}

/// What this invocation is to do.
#[derive(Debug)]
pub enum Action {
    Serve,
    Check,
    Print(Vec<u8>),
}

impl ValueEnum for LogLevel {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Error,
            Self::Warn,
            Self::Info,
            Self::Debug,
            Self::Trace,
        ]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.as_str()))
    }
}

impl ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Text, Self::Json]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self {
            Self::Text => "text",
            Self::Json => "json",
        }))
    }
}

impl LogLevel {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Cli {
    pub fn action(&self) -> Action {
        match &self.command {
            None => Action::Serve,
            Some(Command::Config {
                command: ConfigCommand::Default,
            }) => Action::Print(DEFAULT_TEXT.into()),
            Some(Command::Config {
                command: ConfigCommand::Check,
            }) => Action::Check,
            Some(Command::Completion { shell }) => {
                let mut script = Vec::new();
                clap_complete::generate(*shell, &mut Self::command(), "berthd", &mut script);
                Action::Print(script)
            }
            Some(Command::Man) => {
                let mut page = Vec::new();
                // Writing to memory can't fail.
                let _ = clap_mangen::Man::new(Self::command()).render(&mut page);
                Action::Print(page)
            }
        }
    }

    /// The file, then the flags.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.config.as_deref())?;
        if let Some(root) = &self.root {
            config.root = root.clone();
        }
        if let Some(state) = &self.state {
            config.state = state.clone();
        }
        if let Some(listen) = &self.listen {
            config.listen = listen.clone();
        }
        if let Some(level) = self.log_level {
            config.log_level = level;
        }
        if let Some(format) = self.log_format {
            config.log_format = format;
        }
        if let Some(address) = self.metrics_listen {
            config.metrics.listen = Some(address);
        }
        if let Some(endpoint) = &self.tracing_endpoint {
            config.tracing.endpoint = endpoint.clone();
        }
        config.checked()
    }
}

/// To stdout; a reader that has gone (`| head`) is no error.
pub fn print(text: &[u8]) -> io::Result<()> {
    match io::stdout().write_all(text) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

/// glibc keeps an arena a thread and memory that was freed. Both are set by the environment of a process that starts, so it starts
/// itself again once: same pid, nothing opened yet.
pub fn stay_small() {
    const ALLOCATOR: [(&str, &str); 3] = [
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_TRIM_THRESHOLD_", "131072"),
        ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ];
    if ALLOCATOR
        .iter()
        .any(|(key, _)| std::env::var_os(key).is_some())
    {
        return;
    }
    let Ok(exe) = std::env::current_exe() else {
        return;
    };
    let error = std::process::Command::new(exe)
        .args(std::env::args_os().skip(1))
        .envs(ALLOCATOR)
        .exec();
    // Before there is a log.
    eprintln!("berthd: start again with a smaller allocator: {error}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_override_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(
            &file,
            "root = \"/a\"\nstate = \"/b\"\nlog_level = \"debug\"",
        )
        .unwrap();
        let cli = Cli::parse_from(["berthd", "--config", file.to_str().unwrap(), "--root", "/c"]);
        let config = cli.config().unwrap();
        assert_eq!(config.root, PathBuf::from("/c"));
        assert_eq!(config.state, PathBuf::from("/b"));
        assert_eq!(config.log_level, LogLevel::Debug);
        let cli = Cli::parse_from([
            "berthd",
            "--log-format=json",
            "--metrics-listen=9478",
            "--tracing-endpoint=otel:4317",
        ]);
        let config = cli.config().unwrap();
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.metrics.listen, "127.0.0.1:9478".parse().ok());
        assert_eq!(config.tracing.endpoint, "http://otel:4317");
        let bad = Cli::parse_from(["berthd", "--config", file.to_str().unwrap(), "--state", "x"]);
        assert!(bad.config().unwrap_err().to_string().contains("absolute"));
    }
}
