//! hostPath: what the node has, looked at as its type says. The kernel follows links, and what they lead to is looked at (SEC-KUB-05).

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::Path,
};

/// What `DirectoryOrCreate` and `FileOrCreate` make, as upstream.
const DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

pub(super) fn ensure(kind: &str, path: &Path) -> io::Result<()> {
    let found = match (fs::metadata(path), kind) {
        (Err(error), "DirectoryOrCreate") if error.kind() == io::ErrorKind::NotFound => {
            return DirBuilder::new()
                .recursive(true)
                .mode(DIR_MODE)
                .create(path);
        }
        (Err(error), "FileOrCreate") if error.kind() == io::ErrorKind::NotFound => {
            return File::create_new(path)?.set_permissions(Permissions::from_mode(FILE_MODE));
        }
        // upstream doesn't look where nothing is said, and the runtime makes a directory there
        (Err(error), "") if error.kind() == io::ErrorKind::NotFound => {
            return DirBuilder::new()
                .recursive(true)
                .mode(DIR_MODE)
                .create(path);
        }
        (found, _) => found?.file_type(),
    };
    let fits = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        "BlockDevice" => found.is_block_device(),
        _ => false,
    };
    match fits {
        true => Ok(()),
        false => Err(io::Error::other(format!("is not of type {kind}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_made_where_asked_and_looked_at_by_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink("/dev/null", at("link")).unwrap();
        for (kind, name, refused) in [
            ("DirectoryOrCreate", "a/b", None),
            ("Directory", "a/b", None),
            ("FileOrCreate", "a/f", None),
            ("File", "a/f", None),
            ("", "a/f", None),
            ("Directory", "a/f", Some("is not of type Directory")),
            ("File", "a", Some("is not of type File")),
            ("CharDevice", "link", None),
            ("File", "link", Some("is not of type File")),
            ("Socket", "a", Some("is not of type Socket")),
            (
                "Directory",
                "none",
                Some("No such file or directory (os error 2)"),
            ),
        ] {
            let got = ensure(kind, &at(name)).err().map(|error| error.to_string());
            assert_eq!(got.as_deref(), refused, "{kind} {name}");
        }
    }
}
