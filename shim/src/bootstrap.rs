//! `start`: makes the listening socket, leaves a shim serving on it and prints where it is. It lies on the way of every pod that
//! comes up, so it does nothing else: the serving process is this executable again, with the socket as its stdin.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use berth_kernel::mount::{Change, set_attributes};
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock},
    io::Errno,
    mount::{MountAttrFlags, OpenTreeFlags, open_tree},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use serde_json::json;

use crate::{bootstrap_params, cli::Flags, error::Error, group};

/// Where sockets lie unless `BERTH_SHIM_SOCKET_DIR` says otherwise.
const DEFAULT_SOCKET_DIR: &str = "/run/containerd/s";
/// `sockaddr_un.sun_path` with its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// How much of a long id names the socket: 64 bits of a random id, in a path that must stay short.
const NAME_BYTES: usize = 16;
/// The newest bootstrap answer that there is: task API v3.
const MAX_VERSION: i32 = 3;
/// What containerd 1.7 and newer (and berthd) say of the newest answer that they take. Who says nothing takes a plain address.
const MAX_VERSION_ENV: &str = "MAX_SHIM_VERSION";
/// What the process is called in ps.
pub const NAME: &str = "containerd-shim-berth-v2";

/// glibc's allocator, told to stay small: one arena, and every larger buffer (an exec's output) a mapping of its own, so that
/// it goes back to the kernel when it is dropped. Setting a threshold also stops it from growing by itself. No blocks kept for each thread
/// (glibc 2.26): they count as in use and hold their pages, some of each size by the time that a thousand execs have run, 90 KiB.
const ALLOCATOR: [(&str, &str); 5] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
    ("MALLOC_TOP_PAD_", "4096"),
    ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0"),
];
/// What the serving shim keeps of its environment; the rest is the daemon's own.
const KEPT_ENV: [&str; 9] = [
    "PATH",
    "TTRPC_ADDRESS",
    "GRPC_ADDRESS",
    "NAMESPACE",
    "BERTH_SHIM_SOCKET_DIR",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "FAILPOINTS",
    "FAILPOINT_TRACE",
    "RUST_BACKTRACE",
];

/// Makes or finds the shim of the container's pod, or of the pod `flags.id`, and prints its address. Idempotent.
pub fn start(flags: &Flags) -> Result<(), Error> {
    let asked = std::env::var(MAX_VERSION_ENV).ok();
    let speaks_params = asked.is_some() && bootstrap_params::read(flags).is_some();
    let flags = &Flags {
        id: group::of(flags)?,
        ..flags.clone()
    };
    let path = socket_path(flags)?;
    // Before there is a shim that nobody would find.
    remember(flags, &path)?;
    let dir = ensure_private_dir(path.parent().unwrap_or(Path::new("/")))?;
    // Two starts for one id must not both find no shim.
    flock(&dir, FlockOperation::LockExclusive).map_err(Error::io("lock the socket directory"))?;
    if !is_served(&path)? {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove stale socket {}", path.display()))(error));
            }
            _ => {}
        }
        let listener = listen(&path)?;
        let spawned = berth_failpoint::site!("shim.start.bound")
            .map_err(Error::io("failpoint shim.start.bound"))
            .and_then(|()| spawn(flags, listener.into()));
        if let Err(error) = spawned {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
    }
    if speaks_params {
        return bootstrap_params::answer(&path);
    }
    print!("{}", answer(&path, asked.as_deref()));
    io::stdout().flush().map_err(Error::io("print the address"))
}

/// Leaves the address in a container's bundle: a containerd that starts anew finds its shims by it (up to 1.6 by nothing else).
/// berthd's bundle of a pod is none, and needs none.
fn remember(flags: &Flags, socket: &Path) -> Result<(), Error> {
    if !flags.bundle.join("config.json").exists() {
        return Ok(());
    }
    let (path, temporary) = (flags.bundle.join("address"), flags.bundle.join(".address"));
    std::fs::write(&temporary, format!("unix://{}", socket.display()))
        .and_then(|()| std::fs::rename(&temporary, &path))
        .map_err(Error::io(format!("write {}", path.display())))
}

/// What `start` prints.
fn answer(socket: &Path, max_version: Option<&str>) -> String {
    let address = format!("unix://{}", socket.display());
    match max_version.and_then(|text| text.parse::<i32>().ok()) {
        Some(max) if max >= 2 => {
            let version = max.min(MAX_VERSION);
            json!({ "version": version, "address": address, "protocol": "ttrpc" }).to_string()
        }
        _ => address,
    }
}

/// The socket of the shim of this id, its pod's.
pub fn socket_path(flags: &Flags) -> Result<PathBuf, Error> {
    let dir = std::env::var_os("BERTH_SHIM_SOCKET_DIR")
        .map_or_else(|| DEFAULT_SOCKET_DIR.into(), PathBuf::from);
    let id = &flags.id;
    let name = if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        id[..NAME_BYTES].to_owned()
    } else {
        // Other people's ids may share a beginning.
        let both = format!("{}/{id}", flags.namespace);
        format!(
            "{:08x}{:08x}",
            crc32c::crc32c(both.as_bytes()),
            crc32c::crc32c_append(0x5eed, both.as_bytes())
        )
    };
    let path = dir.join(name);
    if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return Err(Error::invalid(
            format!("socket path {}", path.display()),
            format!(
                "it is longer than {MAX_SOCKET_PATH_BYTES} bytes; choose a shorter state directory"
            ),
        ));
    }
    Ok(path)
}

/// The directory, root's own and closed to everybody else (SEC-ENG-14).
fn ensure_private_dir(dir: &Path) -> Result<OwnedFd, Error> {
    let step = || format!("make socket directory {}", dir.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(Error::io(step()))?;
    let opened = rustix::fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(Error::io(step()))?;
    let file = File::from(opened);
    let meta = file.metadata().map_err(Error::io(step()))?;
    if meta.uid() != 0 {
        return Err(Error::invalid(
            format!("socket directory {}", dir.display()),
            format!("it belongs to uid {}, not to root", meta.uid()),
        ));
    }
    if meta.mode() & 0o077 != 0 {
        file.set_permissions(PermissionsExt::from_mode(0o700))
            .map_err(Error::io(step()))?;
    }
    Ok(file.into())
}

/// Whether a process listens there. Never waits: a listener whose queue is full is a living one.
fn is_served(path: &Path) -> Result<bool, Error> {
    match dial(path) {
        Ok(_) | Err(Errno::AGAIN) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(Error::io(format!("look for a shim at {}", path.display()))(
            errno,
        )),
    }
}

/// Connects without waiting.
pub fn dial(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Binds with mode 0600 from the first instant: a chmod afterwards would leave a window.
fn listen(path: &Path) -> Result<UnixListener, Error> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener.map_err(Error::io(format!("listen on {}", path.display())))
}

/// This executable again, with the socket as its stdin and no other descriptor of the caller (SEC-ENG-01). The mount's own
/// descriptor closes with its execve, as those of the caller do.
fn spawn(flags: &Flags, listener: OwnedFd) -> Result<(), Error> {
    berth_kernel::descriptors::cloexec_from(3)
        .map_err(Error::io("close descriptors of the caller"))?;
    let log_path = flags.bundle.join("shim.log");
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(&log_path)
        .map_err(Error::io(format!("open {}", log_path.display())))?;
    let executable = read_only_executable()?;
    let mut command = Command::new(format!("/proc/self/fd/{}", executable.as_raw_fd()));
    command
        .arg0(NAME)
        .args(flags.serve_args())
        .current_dir(&flags.bundle)
        .env_clear()
        .envs(ALLOCATOR)
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log));
    for name in KEPT_ENV {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // Not waited for: this process ends now, and the shim becomes the subreaper's or init's child.
    command
        .spawn()
        .map(drop)
        .map_err(Error::io("start the serving shim"))
}

/// This executable on a read-only mount of its own, which is in no mount namespace (SEC-ENG-02, CVE-2019-5736).
///
/// Containers begin as forks of the serving shim, and a container's command can be `/proc/self/exe`: what such a link leads to
/// must not be writable, neither while it runs nor when all shims have ended. A write through the link is EROFS by the mount
/// that the executable was executed through. The kernel dissolves this one as soon as its last descriptor closes, which is
/// before `start` answers; from then on nobody can remount, copy or bind it, with whatever capability. The pages are those
/// of the file on disk: unlike a sealed memfd it costs no memory.
///
/// By the link in /proc and not by path: after an upgrade the path is another file, or none.
fn read_only_executable() -> Result<OwnedFd, Error> {
    let mount = open_tree(
        CWD,
        "/proc/self/exe",
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )
    .map_err(Error::io(
        "mount the shim's own executable read-only (open_tree: it has to lie on a mount of this mount namespace that is \
         not unbindable)",
    ))?;
    let read_only = Change {
        set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
        ..Change::default()
    };
    set_attributes(mount.as_fd(), false, read_only).map_err(Error::io(
        "mount the shim's own executable read-only (mount_setattr: Linux 5.12 is needed)",
    ))?;
    Ok(mount)
}

/// Gives the serving shim back the name that it would have had by its path.
pub fn take_name() {
    // Cut to 15 bytes by the kernel, as execve does it. It is for people to read: no failure of the shim.
    if let Ok(name) = std::ffi::CString::new(NAME) {
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_a_short_name_that_depends_on_id_and_namespace() {
        let path = |namespace: &str, id: &str| {
            socket_path(&Flags {
                namespace: namespace.into(),
                id: id.into(),
                ..Flags::default()
            })
            .unwrap()
        };
        let pod = "0123456789abcdef".repeat(4);
        assert_eq!(
            path("k8s.io", &pod).file_name().unwrap(),
            "0123456789abcdef"
        );
        assert_ne!(path("k8s.io", "a"), path("default", "a"));
        assert_ne!(path("k8s.io", "a"), path("k8s.io", "b"));
    }

    #[test]
    fn the_answer_is_one_that_the_caller_takes() {
        let json = |version: i32| {
            format!(r#"{{"address":"unix:///s","protocol":"ttrpc","version":{version}}}"#)
        };
        for (max, expected) in [
            (None, "unix:///s".to_owned()),
            (Some("1"), "unix:///s".to_owned()),
            (Some("rubbish"), "unix:///s".to_owned()),
            (Some("2"), json(2)),
            (Some("3"), json(3)),
            (Some("9"), json(3)),
        ] {
            assert_eq!(answer(Path::new("/s"), max), expected, "{max:?}");
        }
    }

    #[test]
    fn a_stale_socket_is_told_from_a_living_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(!is_served(&path).unwrap());
        let listener = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(is_served(&path).unwrap());
        drop(listener);
        assert!(!is_served(&path).unwrap());
    }
}
