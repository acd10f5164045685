//! What single keys may say, and the messages for what they may not.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serializer, de};

/// `sun_path` holds 108 bytes, and the shims' sockets are `<state>/s/<16 digits>`.
pub(super) const MAX_STATE_LEN: usize = 80;

pub(super) fn plain_absolute(path: &Path) -> Result<(), String> {
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
pub(super) fn handler_names(name: &str, shim: &Path) -> Result<(), String> {
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

pub(super) fn too_long(state: &Path) -> String {
    format!(
        "key `state`: {} is longer than {MAX_STATE_LEN} bytes, and the shims' sockets below it must fit into the 108 bytes of a unix address",
        state.display()
    )
}

pub(super) fn socket_path(listen: &str) -> Result<Option<PathBuf>, String> {
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

pub(super) fn absolute<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    plain_absolute(&path).map_err(de::Error::custom)?;
    Ok(path)
}

pub(super) fn absolute_all<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<PathBuf>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(d)?;
    for path in &paths {
        plain_absolute(path).map_err(de::Error::custom)?;
    }
    Ok(paths)
}

pub(super) fn absolute_or_empty<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    if !path.as_os_str().is_empty() {
        plain_absolute(&path).map_err(de::Error::custom)?;
    }
    Ok(path)
}

/// A path, a slice of systemd by its name or its path, or empty.
pub(super) fn cgroup_parent<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    let text = path.to_str().unwrap_or_default();
    if text.ends_with(".slice") {
        berth_systemd::name::slice_of_caller(text)
            .map_err(|why| de::Error::custom(format!("{text:?} {why}")))?;
    } else if !text.is_empty() {
        plain_absolute(&path).map_err(de::Error::custom)?;
    }
    Ok(path)
}

pub(super) fn state_dir<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = absolute(d)?;
    if path.as_os_str().len() > MAX_STATE_LEN {
        return Err(de::Error::custom(too_long(&path)));
    }
    Ok(path)
}

pub(super) fn listen<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let listen = String::deserialize(d)?;
    socket_path(&listen).map_err(de::Error::custom)?;
    Ok(listen)
}

pub(super) fn link_name<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
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

pub(super) fn subnet<'de, D: Deserializer<'de>>(d: D) -> Result<Ipv4Net, D::Error> {
    let text = String::deserialize(d)?;
    match text.parse::<Ipv4Net>() {
        Ok(net) if (8..=30).contains(&net.prefix_len()) => Ok(net.trunc()),
        _ => Err(de::Error::custom(format!(
            "key `subnet`: {text:?} must be an IPv4 range such as \"10.88.0.0/16\", from /8 to /30"
        ))),
    }
}

/// A range or, empty, none.
pub(super) mod subnet_v6 {
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

pub(super) mod metrics_listen {
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

pub(super) fn endpoint<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(text);
    }
    tracing_endpoint(&text).map_err(|why| de::Error::custom(format!("key `endpoint`: {why}")))?;
    Ok(text)
}

pub(super) fn from_0_to_1_000_000<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 0, 1_000_000)
}

pub(super) fn mtu<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
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

pub(super) fn from_0_to_64<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 0, 64)
}

pub(super) fn from_1_to_64<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 1, 64)
}

pub(super) fn from_1_to_100_000<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 1, 100_000)
}

pub(super) fn from_100_ms_to_1_h<'de, D: Deserializer<'de>>(d: D) -> Result<usize, D::Error> {
    bounded(d, 100, 3_600_000)
}
