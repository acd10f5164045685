//! Pre-installed plugins: programs `NN-name` in a directory, started with the runtime, each with its end of a socket.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use command_fds::{CommandFdExt, FdMapping};
use tokio::{net::UnixStream, process::Command};

use crate::{
    Error,
    plugin::{Launched, parse_file_name},
};

/// The number of the socket in the plugin, as others have it.
const SOCKET: i32 = 3;
/// A plugin's configuration is a page or two, and goes in one message.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// A directory with more is not one of plugins.
const MAX_PLUGINS: usize = 64;

/// A plugin that is there to be started.
#[derive(Debug, PartialEq, Eq)]
pub struct Installed {
    pub index: String,
    pub base: String,
    pub path: PathBuf,
    pub config: String,
}

/// What is installed, in the order of the indices. What is there and can't be a plugin is named in the log, and left out.
pub fn discover(plugins: &Path, configs: &Path) -> Result<Vec<Installed>, Error> {
    let entries = match fs::read_dir(plugins) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io("list NRI plugins in", plugins)(e)),
    };
    let mut found = vec![];
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = fs::metadata(&path) else {
            continue;
        };
        let mode = meta.permissions().mode();
        if !meta.is_file() || mode & 0o111 == 0 {
            continue;
        }
        let name = entry.file_name();
        let refused = |why: &str| {
            tracing::error!(path = %path.display(), "NRI plugin is not started: {why}");
        };
        // It will run as root: whoever may write it is root.
        if meta.uid() != rustix::process::geteuid().as_raw() || mode & 0o022 != 0 {
            refused("somebody else may write it");
            continue;
        }
        let (index, base) = match parse_file_name(&name.to_string_lossy()) {
            Ok(named) => named,
            Err(why) => {
                refused(&why);
                continue;
            }
        };
        let config = match config(configs, &index, &base) {
            Ok(config) => config,
            Err(e) => {
                refused(&e.to_string());
                continue;
            }
        };
        found.push(Installed {
            index,
            base,
            path,
            config,
        });
    }
    found.sort_by(|a, b| (&a.index, &a.base).cmp(&(&b.index, &b.base)));
    if found.len() > MAX_PLUGINS {
        tracing::error!(
            "{} has {} NRI plugins: the first {MAX_PLUGINS} are started",
            plugins.display(),
            found.len()
        );
        found.truncate(MAX_PLUGINS);
    }
    Ok(found)
}

/// `NN-name.conf`, else `name.conf`, else nothing.
fn config(configs: &Path, index: &str, base: &str) -> Result<String, Error> {
    for name in [format!("{index}-{base}.conf"), format!("{base}.conf")] {
        let path = configs.join(name);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_CONFIG_BYTES => {
                let long = io::Error::other(format!("longer than {MAX_CONFIG_BYTES} bytes"));
                return Err(Error::io("read", path)(long));
            }
            Ok(_) => return fs::read_to_string(&path).map_err(Error::io("read", path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
    Ok(String::new())
}

/// Starts a plugin: our end of its socket, and its process, which ends with its owner.
pub(crate) fn start(installed: &Installed) -> Result<(UnixStream, Launched), Error> {
    let Installed {
        index,
        base,
        path,
        config,
    } = installed;
    let failed = || Error::io("start NRI plugin", path);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(failed())?;
    ours.set_nonblocking(true).map_err(failed())?;
    let mut command = std::process::Command::new(path);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", base)
        .env("NRI_PLUGIN_IDX", index)
        .env("NRI_PLUGIN_SOCKET", SOCKET.to_string())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Its complaints go where ours go.
        .stderr(Stdio::inherit())
        .fd_mappings(vec![FdMapping {
            parent_fd: OwnedFd::from(theirs),
            child_fd: SOCKET,
        }])
        .map_err(|e| failed()(io::Error::other(e)))?;
    let process = Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed())?;
    Ok((
        UnixStream::from_std(ours).map_err(failed())?,
        Launched {
            index: index.clone(),
            base: base.clone(),
            config: config.clone(),
            process,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_found_in_order_with_their_configuration_and_others_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (plugins, configs) = (dir.path().join("plugins"), dir.path().join("conf.d"));
        assert_eq!(discover(&plugins, &configs).unwrap(), []);
        for path in [&plugins, &configs] {
            fs::create_dir(path).unwrap();
        }
        for (name, mode) in [
            ("20-later", 0o755),
            ("10-first", 0o700),
            ("10-also", 0o555),
            ("README", 0o644),
            ("noindex", 0o755),
            ("1-short", 0o755),
            ("30-open", 0o777),
            ("40-group", 0o775),
            ("50-plain", 0o644),
            ("60-long", 0o755),
        ] {
            let path = plugins.join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(plugins.join("70-dir")).unwrap();
        for (name, text) in [
            ("10-first.conf", "own"),
            ("first.conf", "by name"),
            ("later.conf", "by name"),
        ] {
            fs::write(configs.join(name), text).unwrap();
        }
        let long = fs::File::create(configs.join("60-long.conf")).unwrap();
        long.set_len(MAX_CONFIG_BYTES + 1).unwrap();
        let found: Vec<_> = discover(&plugins, &configs)
            .unwrap()
            .into_iter()
            .map(|i| format!("{}-{}: {}", i.index, i.base, i.config))
            .collect();
        assert_eq!(found, ["10-also: ", "10-first: own", "20-later: by name"]);
    }
}
