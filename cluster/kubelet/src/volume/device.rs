//! Block devices of volumes: what is on them is found by blkid(8), and one with nothing on it is formatted by mkfs(8), as upstream does (VM-02).

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// What a volume has that names none.
const FS_TYPE: &str = "ext4";
/// A look at a device, and making a file system on a large and slow one.
const LOOK: Duration = Duration::from_secs(60);
const FORMAT: Duration = Duration::from_secs(30 * 60);
/// blkid(8): it has looked, and found nothing.
const NOTHING: i32 = 2;
/// Where file systems, partition tables and what else is known have their marks; a device that can't be read has none either.
const READ: usize = 128 << 10;

/// What is on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    FileSystem(String),
    /// Partitions, or what is no file system.
    Other(String),
}

/// The device behind `path`, whatever links lead to it; `None`: it is something else.
pub(super) fn behind(path: &Path) -> io::Result<Option<PathBuf>> {
    let path = path.canonicalize()?;
    let is_device = path.metadata()?.file_type().is_block_device();
    Ok(is_device.then_some(path))
}

/// Has a file system of `wanted` on a device, and makes it where there is nothing.
///
/// # Errors
/// There is something else on it, which is let be; or a program is missing or has failed.
pub(super) fn ensure_file_system(
    device: &Path,
    wanted: &str,
    read_only: bool,
) -> Result<String, String> {
    let wanted = match wanted {
        "" => FS_TYPE,
        wanted => wanted,
    };
    if !wanted
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    {
        return Err(format!("{wanted:?} is no type of a file system"));
    }
    match content(device)? {
        Content::FileSystem(found) if found == wanted => {}
        Content::FileSystem(found) | Content::Other(found) => {
            return Err(format!(
                "failed to mount the volume as {wanted:?}, it already contains {found}"
            ));
        }
        Content::Nothing if read_only => {
            return Err(
                "cannot mount unformatted disk as we are manipulating it in read-only mode".into(),
            );
        }
        Content::Nothing => format(device, wanted)?,
    }
    Ok(wanted.to_owned())
}

fn content(device: &Path) -> Result<Content, String> {
    let mut start = vec![0; READ];
    let read = File::open(device).and_then(|mut file| file.read(&mut start));
    read.map_err(|error| format!("read {}: {error}", device.display()))?;
    let mut command = Command::new("blkid");
    command.args(["-p", "-s", "TYPE", "-s", "PTTYPE", "-o", "export"]);
    let output = run(command.arg(device), LOOK)?;
    match output.status.code() {
        Some(0) => Ok(parse(&String::from_utf8_lossy(&output.stdout))),
        Some(NOTHING) => Ok(Content::Nothing),
        _ => Err(failed("look at", device, &output)),
    }
}

fn parse(told: &str) -> Content {
    let of = |key: &str| {
        let mut lines = told.lines();
        let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.filter(|value| !value.is_empty()).map(str::to_owned)
    };
    match (of("TYPE"), of("PTTYPE")) {
        (Some(kind), _) => Content::FileSystem(kind),
        (None, Some(table)) => Content::Other(format!("a partition table ({table})")),
        (None, None) => Content::Other("what blkid has no name for".into()),
    }
}

fn format(device: &Path, fs_type: &str) -> Result<(), String> {
    tracing::info!(device = %device.display(), fs_type, "nothing is on the device: a file system is made");
    let mut command = Command::new(format!("mkfs.{fs_type}"));
    // no room that only root may use, as upstream; and it asks nobody whether a whole disk is meant
    match fs_type {
        "ext3" | "ext4" => command.args(["-F", "-m0"]),
        "xfs" => command.arg("-f"),
        _ => &mut command,
    };
    let output = run(command.arg(device), FORMAT)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed("make a file system on", device, &output)),
    }
}

fn failed(what: &str, device: &Path, output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    format!(
        "{what} {}: {} ({})",
        device.display(),
        said.trim(),
        output.status
    )
}

/// Both say little, and a pipe holds it.
fn run(command: &mut Command, most: Duration) -> Result<Output, String> {
    const LOOK_AGAIN: Duration = Duration::from_millis(10);
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |error: io::Error| {
        format!("run {program}: {error}. It comes with util-linux, or with the file system's tools")
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let until = Instant::now() + most;
    while child.try_wait().map_err(failed)?.is_none() {
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "{program} has not ended within {} s",
                most.as_secs()
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    child.wait_with_output().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_a_device_is_taken_from_what_blkid_says() {
        for (told, expected) in [
            (
                "DEVNAME=/dev/x\nTYPE=ext4\n",
                Content::FileSystem("ext4".into()),
            ),
            (
                "DEVNAME=/dev/x\nPTTYPE=gpt\n",
                Content::Other("a partition table (gpt)".into()),
            ),
            (
                "DEVNAME=/dev/x\n",
                Content::Other("what blkid has no name for".into()),
            ),
        ] {
            assert_eq!(parse(told), expected);
        }
    }

    #[test]
    fn nothing_but_a_device_is_one_and_a_type_is_a_word() {
        let top = tempfile::tempdir().unwrap();
        assert_eq!(behind(top.path()).unwrap(), None);
        assert!(behind(&top.path().join("none")).is_err());
        for wanted in ["../x", "ext4 -F", "EXT4"] {
            let said = ensure_file_system(top.path(), wanted, false).unwrap_err();
            assert!(said.ends_with("is no type of a file system"), "{said}");
        }
    }

    // VM-02: on a file, as on a device
    #[test]
    fn what_is_blank_is_formatted_once_and_what_is_not_is_let_be() {
        let top = tempfile::tempdir().unwrap();
        let disk = top.path().join("disk");
        File::create(&disk).unwrap().set_len(8 << 20).unwrap();
        let said = ensure_file_system(&disk, "", true).unwrap_err();
        assert!(said.contains("read-only mode"), "{said}");
        assert_eq!(ensure_file_system(&disk, "", false).unwrap(), "ext4");
        let before = std::fs::read(&disk).unwrap();
        assert_eq!(ensure_file_system(&disk, "ext4", false).unwrap(), "ext4");
        let said = ensure_file_system(&disk, "xfs", false).unwrap_err();
        let expected = "failed to mount the volume as \"xfs\", it already contains ext4";
        assert_eq!(said, expected);
        assert!(
            before == std::fs::read(&disk).unwrap(),
            "it was formatted again"
        );
    }
}
