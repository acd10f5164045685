//! Host paths of mounts that are not there: made as directories, as other runtimes have done since Docker. The CRI leaves a hostPath
//! volume without a type to the runtime, and manifests in use rely on it; the kubelet makes those whose type says so itself.

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Component, Path},
};

use berth_proto::cri;

use crate::error::Error;

/// What a person would have made.
const MODE: u32 = 0o755;

/// Makes the directories that are missing. Refused: a link to nowhere, and a `..` below what is missing.
pub fn ensure(config: &cri::ContainerConfig) -> Result<(), Error> {
    for mount in &config.mounts {
        if berth_spec::volume_image(mount).is_some() {
            continue;
        }
        let path = Path::new(&mount.host_path);
        make(path).map_err(|why| {
            Error::FailedPrecondition(format!(
                "mount of {} at {}: its host path is not there, and can't be made: {why}",
                path.display(),
                mount.container_path
            ))
        })?;
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // There, or wrong in a way that the mount itself tells.
        _ => return Ok(()),
    }
    // The nearest that is there: a link that leads nowhere is, too.
    let there = path
        .ancestors()
        .find(|above| above.symlink_metadata().is_ok())
        .unwrap_or(Path::new("/"));
    let real = std::fs::canonicalize(there)?;
    let missing = path.strip_prefix(there).unwrap_or(path);
    let plain = missing
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain {
        return Err(io::Error::other("it has a `..` in it"));
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(real.join(missing))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    // SEC-CRI-10
    #[test]
    fn only_what_is_missing_is_made_sec_cri_10() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::create_dir(at("real")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink("real", at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        for (path, made) in [
            ("real", Some("real")),
            ("new/below/./it", Some("new/below/it")),
            ("link/new", Some("real/new")),
            ("dangling", None),
            ("dangling/x", None),
            ("missing/../x", None),
            ("file/x", None),
        ] {
            let done = make(&at(path));
            match made {
                Some(made) => {
                    done.unwrap();
                    assert!(at(made).is_dir(), "{path}");
                }
                // What is wrong otherwise the mount tells.
                None => assert!(done.is_err() || fs::metadata(at(path)).is_err(), "{path}"),
            }
        }
        assert!(!at("nowhere").exists() && !at("missing").exists() && !at("x").exists());
        assert_eq!(fs::read(at("file")).unwrap(), b"");
    }
}
