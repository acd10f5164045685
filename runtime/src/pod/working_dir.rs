//! A container's working directory, made where its image has none: images name directories that no layer brings.

use std::{io, path::Path};

use berth_beneath::ensure_directory;
use rustix::{
    fs::{Mode, OFlags, open},
    io::Errno,
};

/// Trees of the kernel's, mounted over whatever the image has there.
const KERNELS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Makes `cwd` in the mounted root `rootfs`, with mode 0755 and root's: here, because the container may have its root read-only.
/// What lies in a volume is the engine's to make, when the volume is there.
///
/// Links are followed within that root only. What is no directory, or a link to nowhere, is left for the engine to refuse: it is the
/// container's own fault.
pub fn ensure(rootfs: &Path, cwd: &Path) -> io::Result<()> {
    if KERNELS.iter().any(|tree| cwd.starts_with(tree)) {
        return Ok(());
    }
    let root = open(
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let own_fault = [
        Errno::NOTDIR,
        Errno::NOENT,
        Errno::LOOP,
        Errno::ACCESS,
        Errno::INVAL,
    ];
    match ensure_directory(&root, cwd) {
        Err(error) if own_fault.map(Errno::raw_os_error).map(Some).contains(&error.raw_os_error()) => {
            Ok(())
        }
        done => done.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_is_missing_is_made_and_what_can_not_be_is_left_to_the_engine() {
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("../../outside", root.join("upwards")).unwrap();
        for (cwd, made) in [
            ("/", None),
            ("/a/b/c", Some("a/b/c")),
            ("/upwards/x", None),
            ("/file/x", None),
            ("/a/../../x", None),
            ("/proc/self/fd/3", None),
        ] {
            ensure(&root, Path::new(cwd)).unwrap();
            if let Some(made) = made {
                assert!(root.join(made).is_dir(), "{cwd}");
            }
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!root.join("proc").exists() && !root.join("x").exists());
    }
}
