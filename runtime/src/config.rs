//! The configuration: a TOML file in which every key may be missing, and the flags that override it.
//!
//! [`DEFAULT_TEXT`] is the documentation of every key and is itself parsed by the tests: it can't differ from [`Config::default`].

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

mod keys;
mod tables;

use crate::block_io::BlockIo;
use keys::{
    MAX_STATE_LEN, absolute, handler_names, listen, plain_absolute, socket_path, state_dir,
    too_long,
};
pub use keys::{metrics_address, tracing_endpoint};
pub use tables::*;

/// Read where `--config` names no other file; need not be there.
pub const DEFAULT_PATH: &str = "/etc/berth/config.toml";

/// What `berthd config default` prints.
pub const DEFAULT_TEXT: &str = include_str!("config.toml");

/// The most that is read: a configuration is a page or two.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    #[serde(deserialize_with = "absolute")]
    pub root: PathBuf,
    #[serde(deserialize_with = "state_dir")]
    pub state: PathBuf,
    /// `unix:///…`; empty: `<state>/berth.sock`.
    #[serde(deserialize_with = "listen")]
    pub listen: String,
    pub log_level: LogLevel,
    pub log_format: LogFormat,
    pub image: Image,
    pub network: Network,
    pub cgroup: Cgroup,
    pub blockio: BlockIo,
    pub runtime: Runtime,
    pub checkpoint: Checkpoint,
    pub nri: Nri,
    pub stream: Stream,
    pub metrics: Metrics,
    pub tracing: Tracing,
    pub limits: Limits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            listen: String::new(),
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            image: Image::default(),
            network: Network::default(),
            cgroup: Cgroup::default(),
            blockio: BlockIo::default(),
            runtime: Runtime::default(),
            checkpoint: Checkpoint::default(),
            nri: Nri::default(),
            stream: Stream::default(),
            metrics: Metrics::default(),
            tracing: Tracing::default(),
            limits: Limits::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("configuration {} is {bytes} bytes, at most {MAX_BYTES} are read", path.display())]
    TooLong { path: PathBuf, bytes: u64 },
    /// The message of `toml` shows the line, the key and what is allowed.
    #[error("configuration {}: {source}", path.display())]
    Parse {
        path: PathBuf,
        source: Box<toml::de::Error>,
    },
    #[error("configuration: {0}")]
    Contradiction(String),
}

impl Config {
    /// Reads `path`, or [`DEFAULT_PATH`] where it is there, or takes the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let at = path.unwrap_or(Path::new(DEFAULT_PATH));
        let read = |source| ConfigError::Read {
            path: at.to_owned(),
            source,
        };
        match std::fs::metadata(at) {
            Ok(meta) if meta.len() > MAX_BYTES => Err(ConfigError::TooLong {
                path: at.to_owned(),
                bytes: meta.len(),
            }),
            Ok(_) => Self::parse(&std::fs::read_to_string(at).map_err(read)?, at),
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(e) => Err(read(e)),
        }
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str::<Self>(text)
            .map_err(|source| ConfigError::Parse {
                path: path.to_owned(),
                source: Box::new(source),
            })?
            .checked()
    }

    /// What no single key can tell. Called again after the flags have had their say.
    pub fn checked(self) -> Result<Self, ConfigError> {
        if !self
            .runtime
            .handlers
            .contains_key(&self.runtime.default_handler)
        {
            return Err(ConfigError::Contradiction(format!(
                "key `runtime.default_handler`: {:?} is none of the handlers in [runtime.handlers]: {:?}",
                self.runtime.default_handler,
                self.runtime.handlers.keys().collect::<Vec<_>>()
            )));
        }
        for (name, handler) in &self.runtime.handlers {
            handler_names(name, &handler.shim)
                .and_then(|()| handler.check(name))
                .map_err(ConfigError::Contradiction)?;
        }
        self.blockio.check().map_err(ConfigError::Contradiction)?;
        let by_slice = self
            .cgroup
            .parent
            .extension()
            .is_some_and(|kind| kind == "slice");
        let named = !self.cgroup.parent.as_os_str().is_empty();
        match self.cgroup.driver {
            CgroupDriver::Cgroupfs if by_slice => {
                Some("is a slice, which the driver \"cgroupfs\" has not")
            }
            CgroupDriver::Systemd if named && !by_slice => {
                Some("is no slice, which the driver \"systemd\" wants")
            }
            _ => None,
        }
        .map_or(Ok(()), |why| {
            let parent = self.cgroup.parent.display();
            Err(ConfigError::Contradiction(format!(
                "key `cgroup.parent`: {parent} {why} (key `cgroup.driver`)"
            )))
        })?;
        for (flag, dir) in [("root", &self.root), ("state", &self.state)] {
            plain_absolute(dir)
                .map_err(|why| ConfigError::Contradiction(format!("key `{flag}`: {why}")))?;
        }
        if self.state.as_os_str().len() > MAX_STATE_LEN {
            return Err(ConfigError::Contradiction(too_long(&self.state)));
        }
        if self.root == self.state {
            return Err(ConfigError::Contradiction(
                "keys `root` and `state` name the same directory: what outlives a reboot and what does not must be apart".into(),
            ));
        }
        socket_path(&self.listen)
            .map_err(|why| ConfigError::Contradiction(format!("key `listen`: {why}")))?;
        Ok(self)
    }

    /// The socket that the CRI is served on.
    pub fn socket(&self) -> PathBuf {
        match socket_path(&self.listen) {
            Ok(Some(path)) => path,
            _ => self.state.join("berth.sock"),
        }
    }

    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_millis(self.limits.shutdown_grace_ms as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_default_is_the_default() {
        let parsed = Config::parse(DEFAULT_TEXT, Path::new("default")).unwrap();
        assert_eq!(parsed, Config::default());
    }

    #[test]
    fn every_key_is_in_the_documented_default() {
        fn keys(prefix: &str, value: &toml::Table, into: &mut Vec<String>) {
            for (key, value) in value {
                let path = format!("{prefix}{key}");
                match value {
                    toml::Value::Table(table) => keys(&format!("{path}."), table, into),
                    _ => into.push(path),
                }
            }
        }
        let (mut all, mut documented) = (vec![], vec![]);
        keys(
            "",
            &toml::Table::try_from(Config::default()).unwrap(),
            &mut all,
        );
        keys("", &DEFAULT_TEXT.parse().unwrap(), &mut documented);
        all.sort();
        documented.sort();
        assert_eq!(all, documented);
    }

    #[test]
    fn an_error_names_the_key_the_line_and_what_is_allowed() {
        for (text, says) in [
            (
                "\n\nrot = \"/x\"",
                &["line 3", "rot", "expected one of", "root"][..],
            ),
            ("root = \"x\"", &["line 1", "root", "absolute"]),
            ("state = \"/a/../b\"", &["state", "`..`"]),
            (
                "[cgroup]\nparent = \"/x/a.slice\"",
                &["line 2", "parent", "where systemd has"],
            ),
            (
                "[cgroup]\ndriver = \"systemd\"\nparent = \"/pods\"",
                &["cgroup.parent", "/pods", "systemd"],
            ),
            (
                "[cgroup]\ndriver = \"cgroupfs\"\nparent = \"a.slice\"",
                &["cgroup.parent", "a.slice", "cgroupfs"],
            ),
            (
                "[cgroup]\ndriver = \"x\"",
                &["line 2", "driver", "cgroupfs"],
            ),
            (
                "[network]\nbridge = \"waytoolongname0\"\nmtu = 5",
                &["line 3", "mtu", "576"],
            ),
            ("[network]\nbridge = \"a/b\"", &["line 2", "bridge", "15"]),
            (
                "[network]\nsubnet = \"10.0.0.0/31\"",
                &["line 2", "subnet", "/30"],
            ),
            (
                "[network]\nsubnet_v6 = \"10.0.0.0/16\"",
                &["line 2", "subnet_v6", "/126"],
            ),
            (
                "[network]\ncni_bin_dirs = [\"bin\"]",
                &["line 2", "cni_bin_dirs", "absolute"],
            ),
            (
                "[network]\ncni_timeout_ms = 5",
                &["line 2", "cni_timeout_ms", "100"],
            ),
            (
                "[image]\nmax_parallel_layers = 0",
                &["line 2", "max_parallel_layers", "1 to 64"],
            ),
            ("[limits]\npods = \"many\"", &["line 2", "pods", "integer"]),
            ("log_level = \"loud\"", &["line 1", "log_level", "trace"]),
            (
                "listen = \"tcp://0.0.0.0:1\"",
                &["line 1", "listen", "unix://"],
            ),
            (
                "[stream]\nlisten = \"here\"",
                &["line 2", "listen", "address"],
            ),
            (
                "[metrics]\nlisten = \"there\"",
                &["line 2", "listen", "127.0.0.1:9478"],
            ),
            (
                "[tracing]\nendpoint = \"https://x:4317\"",
                &["line 2", "endpoint", "4317", "TLS"],
            ),
            (
                "[tracing]\nsampling_rate_per_million = 1000001",
                &["line 2", "sampling_rate_per_million", "0 to 1000000"],
            ),
            ("log_format = \"xml\"", &["line 1", "log_format", "json"]),
            (
                "[runtime]\ndefault_handler = \"runc\"",
                &["default_handler", "berth"],
            ),
            (
                "[runtime.handlers.x]\nshimm = \"/x\"",
                &["line 2", "shimm", "shim"],
            ),
        ] {
            let error = Config::parse(text, Path::new("t"))
                .expect_err(text)
                .to_string();
            for part in says {
                assert!(error.contains(part), "{text:?} must say {part:?}: {error}");
            }
        }
    }

    // SEC-CRI-09
    #[test]
    fn a_handler_and_its_shim_have_names_that_can_be_executed_sec_cri_09() {
        let parse = |name: &str, shim: &str| {
            let text =
                format!("[runtime.handlers.berth]\n[runtime.handlers.{name:?}]\nshim = {shim:?}\n");
            Config::parse(&text, Path::new("t"))
        };
        for (name, shim) in [
            ("second", ""),
            ("kata.qemu-1", "/opt/kata/bin/containerd-shim-kata-v2"),
            ("runc", "containerd-shim-runc-v2"),
        ] {
            parse(name, shim).unwrap();
        }
        for (name, shim, says) in [
            ("", "", "handlers"),
            ("../up", "", "../up"),
            ("Upper", "", "Upper"),
            ("a/b", "", "a/b"),
            ("x", "../shim", "runtime.handlers.x.shim"),
            ("x", "./shim", "runtime.handlers.x.shim"),
            ("x", "/opt/../shim", "runtime.handlers.x.shim"),
            ("x", "a b", "runtime.handlers.x.shim"),
            ("x", "-v", "runtime.handlers.x.shim"),
            ("x", "dir/shim", "runtime.handlers.x.shim"),
        ] {
            let error = parse(name, shim).expect_err(shim).to_string();
            assert!(error.contains(says), "{name:?} {shim:?}: {error}");
        }
    }

    #[test]
    fn a_port_alone_is_on_loopback_and_a_collector_may_leave_out_its_scheme() {
        for (text, address) in [
            ("9478", Some("127.0.0.1:9478")),
            (":0", Some("127.0.0.1:0")),
            ("0.0.0.0:1", Some("0.0.0.0:1")),
            ("[::1]:80", Some("[::1]:80")),
            ("70000", None),
            ("localhost", None),
        ] {
            let parsed = metrics_address(text).ok().map(|a| a.to_string());
            assert_eq!(parsed.as_deref(), address, "{text}");
        }
        for (text, endpoint) in [
            ("127.0.0.1:4317", Some("http://127.0.0.1:4317")),
            ("http://otel:4317", Some("http://otel:4317")),
            ("[::1]:4317", Some("http://[::1]:4317")),
            ("otel", None),
            ("otel:x", None),
            ("unix:///x:1", None),
            ("a b:1", None),
        ] {
            assert_eq!(tracing_endpoint(text).ok().as_deref(), endpoint, "{text}");
        }
    }

    #[test]
    fn one_key_leaves_the_others_as_they_are() {
        let config = Config::parse("[network]\nmtu = 1400", Path::new("t")).unwrap();
        assert_eq!(config.network.mtu, 1400);
        assert_eq!(config.network.bridge, "berth0");
        assert_eq!(config.socket(), Path::new("/run/berth/berth.sock"));
    }
}
