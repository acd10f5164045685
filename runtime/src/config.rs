//! The configuration: a TOML file in which every key may be missing, and the flags that override it.
//!
//! [`DEFAULT_TEXT`] is the documentation of every key and is itself parsed by the tests: it can't differ from [`Config::default`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Read where `--config` names no other file; need not be there.
pub const DEFAULT_PATH: &str = "/etc/berth/config.toml";

/// What `berthd config default` prints.
pub const DEFAULT_TEXT: &str = include_str!("config.toml");

/// The most that is read: a configuration is a page or two.
const MAX_BYTES: u64 = 1 << 20;

/// `sun_path` holds 108 bytes, and the shims' sockets are `<state>/s/<16 digits>`.
const MAX_STATE_LEN: usize = 80;

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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Image {
    #[serde(deserialize_with = "absolute")]
    pub hosts_dir: PathBuf,
    #[serde(deserialize_with = "from_1_to_64")]
    pub max_parallel_layers: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    #[serde(deserialize_with = "absolute")]
    pub cni_conf_dir: PathBuf,
    #[serde(deserialize_with = "absolute_all")]
    pub cni_bin_dirs: Vec<PathBuf>,
    #[serde(deserialize_with = "from_1_to_64")]
    pub cni_max_conf_num: usize,
    #[serde(deserialize_with = "from_100_ms_to_1_h")]
    pub cni_timeout_ms: usize,
    /// Empty: none.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub cni_conf_template: PathBuf,
    /// The built-in network takes pods where there is no CNI configuration.
    pub builtin: bool,
    #[serde(deserialize_with = "link_name")]
    pub bridge: String,
    #[serde(deserialize_with = "subnet")]
    pub subnet: Ipv4Net,
    #[serde(with = "subnet_v6")]
    pub subnet_v6: Option<Ipv6Net>,
    pub masquerade: bool,
    #[serde(deserialize_with = "mtu")]
    pub mtu: u32,
    #[serde(deserialize_with = "from_0_to_64")]
    pub namespace_pool: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    #[serde(deserialize_with = "absolute")]
    pub parent: PathBuf,
    pub driver: CgroupDriver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    Cgroupfs,
}

impl<'de> Deserialize<'de> for CgroupDriver {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "cgroupfs" => Ok(Self::Cgroupfs),
            "systemd" => Err(de::Error::custom(
                "key `driver`: the systemd driver is not built yet, allowed is \"cgroupfs\"",
            )),
            other => Err(de::Error::custom(format!(
                "key `driver`: {other:?} is no cgroup driver, allowed is \"cgroupfs\""
            ))),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Runtime {
    /// Name of the handler that an empty `runtime_handler` means.
    pub default_handler: String,
    /// Where devices of the Container Device Interface are described; the later directory goes before.
    #[serde(deserialize_with = "absolute_all")]
    pub cdi_spec_dirs: Vec<PathBuf>,
    pub handlers: BTreeMap<String, Handler>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Handler {
    /// The shim's binary. Empty: `containerd-shim-berth-v2` beside berthd, then on PATH.
    pub shim: PathBuf,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// CRIU's program. Empty: `criu` on PATH.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub criu: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nri {
    pub disable: bool,
    /// Empty: none.
    #[serde(deserialize_with = "absolute_or_empty")]
    pub socket: PathBuf,
    #[serde(deserialize_with = "absolute")]
    pub plugin_dir: PathBuf,
    #[serde(deserialize_with = "absolute")]
    pub plugin_config_dir: PathBuf,
    #[serde(deserialize_with = "from_100_ms_to_1_h")]
    pub registration_timeout_ms: usize,
    #[serde(deserialize_with = "from_100_ms_to_1_h")]
    pub request_timeout_ms: usize,
    pub default_validator: berth_nri::Validator,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stream {
    pub listen: SocketAddr,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub idle_timeout_s: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// `None`, written as an empty string: not served.
    #[serde(with = "metrics_listen")]
    pub listen: Option<SocketAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// Empty: nothing is traced.
    #[serde(deserialize_with = "endpoint")]
    pub endpoint: String,
    #[serde(deserialize_with = "from_0_to_1_000_000")]
    pub sampling_rate_per_million: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub pods: usize,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub containers_per_pod: usize,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub exec_output_mib: usize,
    #[serde(deserialize_with = "from_1_to_100_000")]
    pub shutdown_grace_ms: usize,
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

impl Default for Image {
    fn default() -> Self {
        Self {
            hosts_dir: "/etc/berth/certs.d".into(),
            max_parallel_layers: 4,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cni_max_conf_num: 1,
            cni_timeout_ms: 60_000,
            cni_conf_template: PathBuf::new(),
            builtin: true,
            bridge: "berth0".into(),
            subnet: Ipv4Net::new_assert([10, 88, 0, 0].into(), 16),
            subnet_v6: None,
            masquerade: true,
            mtu: 0,
            namespace_pool: 0,
        }
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self {
            parent: "/berth-pods".into(),
            driver: CgroupDriver::Cgroupfs,
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            default_handler: "berth".into(),
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            handlers: BTreeMap::from([("berth".into(), Handler::default())]),
        }
    }
}

impl Default for Nri {
    fn default() -> Self {
        Self {
            disable: false,
            socket: "/var/run/nri/nri.sock".into(),
            plugin_dir: "/opt/nri/plugins".into(),
            plugin_config_dir: "/etc/nri/conf.d".into(),
            registration_timeout_ms: 5000,
            request_timeout_ms: 2000,
            default_validator: berth_nri::Validator::default(),
        }
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            idle_timeout_s: berth_stream::IDLE_LIMIT.as_secs() as usize,
        }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sampling_rate_per_million: 1_000_000,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pods: 10_000,
            containers_per_pod: 256,
            exec_output_mib: 16,
            shutdown_grace_ms: 2000,
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
            handler_names(name, &handler.shim).map_err(ConfigError::Contradiction)?;
        }
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

fn plain_absolute(path: &Path) -> Result<(), String> {
    use std::path::Component;
    if path.is_absolute()
        && path
            .components()
            .all(|c| matches!(c, Component::RootDir | Component::Normal(_)))
    {
        return Ok(());
    }
    Err(format!(
        "{} must be an absolute path without `..`",
        path.display()
    ))
}

/// A handler's name is a RuntimeClass's, and its shim a path or the name of a program on PATH: it is executed as root.
fn handler_names(name: &str, shim: &Path) -> Result<(), String> {
    if name.is_empty() || berth_spec::check_runtime_handler(name).is_err() {
        return Err(format!(
            "[runtime.handlers] has {}: the name of a handler is made of a-z, 0-9, `-` and `.`",
            berth_spec::quoted(name)
        ));
    }
    let shown = shim.display();
    let is_name = shim.to_str().is_some_and(|text| {
        !text.starts_with(['.', '-'])
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    });
    match is_name || plain_absolute(shim).is_ok() {
        true => Ok(()),
        false => Err(format!(
            "key `runtime.handlers.{name}.shim`: {shown} is neither an absolute path without `..` nor the name of a program"
        )),
    }
}

fn too_long(state: &Path) -> String {
    format!(
        "key `state`: {} is longer than {MAX_STATE_LEN} bytes, and the shims' sockets below it must fit into the 108 bytes of a unix address",
        state.display()
    )
}

fn socket_path(listen: &str) -> Result<Option<PathBuf>, String> {
    if listen.is_empty() {
        return Ok(None);
    }
    match listen.strip_prefix("unix://") {
        Some(path) if path.len() < 108 => {
            plain_absolute(Path::new(path)).map(|()| Some(path.into()))
        }
        _ => Err(format!(
            "{listen:?} must be unix:// and an absolute path of at most 107 bytes"
        )),
    }
}

fn absolute<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    plain_absolute(&path).map_err(de::Error::custom)?;
    Ok(path)
}

fn absolute_all<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<PathBuf>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(d)?;
    for path in &paths {
        plain_absolute(path).map_err(de::Error::custom)?;
    }
    Ok(paths)
}

fn absolute_or_empty<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    if !path.as_os_str().is_empty() {
        plain_absolute(&path).map_err(de::Error::custom)?;
    }
    Ok(path)
}

fn state_dir<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = absolute(d)?;
    if path.as_os_str().len() > MAX_STATE_LEN {
        return Err(de::Error::custom(too_long(&path)));
    }
    Ok(path)
}

fn listen<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let listen = String::deserialize(d)?;
    socket_path(&listen).map_err(de::Error::custom)?;
    Ok(listen)
}

fn link_name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let name = String::deserialize(d)?;
    let fits = (1..=15).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name != "."
        && name != "..";
    if !fits {
        return Err(de::Error::custom(format!(
            "key `bridge`: {name:?} must be 1 to 15 of a-z, A-Z, 0-9, `-`, `_`, `.`"
        )));
    }
    Ok(name)
}

fn subnet<'de, D: Deserializer<'de>>(d: D) -> Result<Ipv4Net, D::Error> {
    let text = String::deserialize(d)?;
    match text.parse::<Ipv4Net>() {
        Ok(net) if (8..=30).contains(&net.prefix_len()) => Ok(net.trunc()),
        _ => Err(de::Error::custom(format!(
            "key `subnet`: {text:?} must be an IPv4 range such as \"10.88.0.0/16\", from /8 to /30"
        ))),
    }
}

/// A range or, empty, none.
mod subnet_v6 {
    use super::*;

    pub fn serialize<S: Serializer>(net: &Option<Ipv6Net>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&net.map(|net| net.to_string()).unwrap_or_default())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Ipv6Net>, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() {
            return Ok(None);
        }
        match text.parse::<Ipv6Net>() {
            Ok(net) if (8..=126).contains(&net.prefix_len()) => Ok(Some(net.trunc())),
            _ => Err(de::Error::custom(format!(
                "key `subnet_v6`: {text:?} must be empty or an IPv6 range such as \"fd00:10:88::/64\", from /8 to /126"
            ))),
        }
    }
}

/// Where metrics are served: an address with a port, or a port alone (or `:port`), which is on loopback.
pub fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.trim_start_matches(':').parse() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    text.parse().map_err(|_| {
        format!(
            "{text:?} must be a port (on loopback then) or an address such as \"127.0.0.1:9478\""
        )
    })
}

mod metrics_listen {
    use super::*;

    pub fn serialize<S: Serializer>(at: &Option<SocketAddr>, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&at.map(|at| at.to_string()).unwrap_or_default())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(d)?;
        if text.is_empty() {
            return Ok(None);
        }
        let address = metrics_address(&text);
        address
            .map(Some)
            .map_err(|why| de::Error::custom(format!("key `listen`: {why}")))
    }
}

/// A collector's address as gRPC has it, with the scheme that it may leave out.
pub fn tracing_endpoint(text: &str) -> Result<String, String> {
    let at = text.strip_prefix("http://").unwrap_or(text);
    let (host, port) = at.rsplit_once(':').unwrap_or(("", at));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || !host.chars().all(plain) || port.parse::<u16>().is_err() {
        return Err(format!(
            "{text:?} must be an OTLP collector's host and gRPC port such as \"127.0.0.1:4317\" (TLS is not built)"
        ));
    }
    Ok(format!("http://{at}"))
}

fn endpoint<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(text);
    }
    tracing_endpoint(&text).map_err(|why| de::Error::custom(format!("key `endpoint`: {why}")))?;
    Ok(text)
}

fn from_0_to_1_000_000<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 0, 1_000_000)
}

fn mtu<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    match toml::Value::deserialize(d)?.as_integer() {
        Some(0) => Ok(0),
        Some(mtu @ 576..=65535) => Ok(mtu as u32),
        _ => Err(de::Error::custom(
            "key `mtu`: allowed is 0 (as the kernel has it) or an integer from 576 to 65535",
        )),
    }
}

fn bounded<'de, D: Deserializer<'de>>(d: D, min: i64, max: i64) -> Result<usize, D::Error> {
    match toml::Value::deserialize(d)?.as_integer() {
        Some(n) if n >= min && n <= max => Ok(n as usize),
        _ => Err(de::Error::custom(format!(
            "allowed is an integer from {min} to {max}"
        ))),
    }
}

fn from_0_to_64<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 0, 64)
}

fn from_1_to_64<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 1, 64)
}

fn from_1_to_100_000<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 1, 100_000)
}

fn from_100_ms_to_1_h<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 100, 3_600_000)
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
                "[cgroup]\ndriver = \"systemd\"",
                &["line 2", "driver", "cgroupfs"],
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
