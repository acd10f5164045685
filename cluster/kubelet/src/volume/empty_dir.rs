//! emptyDir: a directory of the pod's own, on the disk or in memory.

use std::{
    ffi::CString,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use berth_kinds::Quantity;
use k8s_openapi::api::core::v1::Volume;
use rustix::mount::{MountFlags, mount};

use super::mounted::is_mounted;
use crate::{qos::rounded, store};

/// Every user of the pod may write into it.
const MODE: u32 = 0o777;
/// With an fsGroup, what is made in it belongs to that group.
const SET_GROUP_ID: u32 = 0o2000;

/// As it was left, where it is there already (VO-01).
pub(super) fn ensure(volume: &Volume, path: &Path, group: Option<u32>) -> Result<(), String> {
    let source = volume.empty_dir.clone().unwrap_or_default();
    match source.medium.as_deref() {
        None | Some("") => {
            let is_new = !path.exists();
            store::make_dir(path).map_err(|error| error.to_string())?;
            if is_new {
                open(path, group)?;
            }
            Ok(())
        }
        Some("Memory") => {
            let limit = source
                .size_limit
                .as_ref()
                .and_then(|text| Quantity::parse(&text.0));
            let bytes = limit
                .map(|it| rounded(it.nano, 1_000_000_000))
                .filter(|bytes| *bytes > 0);
            ensure_memory(path, bytes, Some(group))
        }
        Some(other) => Err(format!(
            "emptyDir of medium {other:?} is not built: the disk and Memory are"
        )),
    }
}

/// A tmpfs. `open_to` nobody: it stays root's.
pub(super) fn ensure_memory(
    path: &Path,
    bytes: Option<i64>,
    open_to: Option<Option<u32>>,
) -> Result<(), String> {
    store::make_dir(path).map_err(|error| error.to_string())?;
    if is_mounted(path).map_err(|error| error.to_string())? {
        return Ok(());
    }
    let data = match bytes {
        Some(bytes) => format!("mode=0755,size={bytes}"),
        None => "mode=0755".to_owned(),
    };
    let data = CString::new(data).map_err(|error| error.to_string())?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", path, "tmpfs", flags, data.as_c_str())
        .map_err(|errno| format!("mount a tmpfs at {}: {errno}", path.display()))?;
    match open_to {
        Some(group) => open(path, group),
        None => Ok(()),
    }
}

fn open(path: &Path, group: Option<u32>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut mode = MODE;
    if let Some(group) = group {
        chown(path, None, Some(group)).map_err(failed)?;
        mode |= SET_GROUP_ID;
    }
    // after the umask, and after chown, which clears the set-group-id bit
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_empty_volume_is_the_pods_groups_and_keeps_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        ensure(&Volume::default(), &path, Some(1234)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o2777, 1234));
        fs::write(path.join("file"), "x").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        ensure(&Volume::default(), &path, Some(1234)).unwrap();
        assert_eq!(fs::read(path.join("file")).unwrap(), b"x");
        assert_eq!(
            fs::metadata(&path).unwrap().mode() & 0o777,
            0o700,
            "the pod's own change stays"
        );
    }
}
