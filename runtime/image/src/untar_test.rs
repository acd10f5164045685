//! What comes out of archives: hostile ones stay inside, benign ones equal what GNU tar makes of them.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use proptest::prelude::*;

use crate::{
    digest::Digest,
    error::Error,
    layer::{Chunks, Expected, unpack},
    untar::{Unpacked, untar},
};

/// Header fields by hand, so that nothing is checked on the way in.
struct Raw(Vec<u8>);

impl Raw {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn header(&mut self, kind: u8, path: &[u8], link: &[u8], size: &[u8], device: (u32, u32)) {
        let mut block = [0u8; 512];
        block[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
        block[100..107].copy_from_slice(b"0000755");
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..124 + size.len()].copy_from_slice(size);
        block[136..147].copy_from_slice(b"14524640400");
        block[156] = kind;
        block[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[329..336].copy_from_slice(format!("{:07o}", device.0).as_bytes());
        block[337..344].copy_from_slice(format!("{:07o}", device.1).as_bytes());
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
    }

    fn data(&mut self, data: &[u8]) {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn entry(mut self, kind: u8, path: &str, link: &str) -> Self {
        self.header(
            kind,
            path.as_bytes(),
            link.as_bytes(),
            b"00000000000",
            (0, 0),
        );
        self
    }

    fn file(mut self, path: &str, data: &str) -> Self {
        self.header(
            b'0',
            path.as_bytes(),
            b"",
            format!("{:011o}", data.len()).as_bytes(),
            (0, 0),
        );
        self.data(data.as_bytes());
        self
    }

    fn node(mut self, kind: u8, path: &str, device: (u32, u32)) -> Self {
        self.header(kind, path.as_bytes(), b"", b"00000000000", device);
        self
    }

    fn long(mut self, kind: u8, text: &[u8]) -> Self {
        self.header(
            kind,
            b"././@LongLink",
            b"",
            format!("{:011o}", text.len() + 1).as_bytes(),
            (0, 0),
        );
        let text = [text, b"\0"].concat();
        self.data(&text);
        self
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.pax_of(b'x', records)
    }

    fn pax_of(mut self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.header(
            kind,
            b"PaxHeaders/x",
            b"",
            format!("{:011o}", body.len()).as_bytes(),
            (0, 0),
        );
        self.data(&body);
        self
    }

    fn sized(mut self, kind: u8, path: &str, size: &[u8], data: &[u8]) -> Self {
        self.header(kind, path.as_bytes(), b"", size, (0, 0));
        self.data(data);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Path → everything that is to see of it.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let content = if kind.is_file() {
                format!(
                    "file {} links {} {}",
                    Digest::of(&fs::read(&path).unwrap()),
                    meta.nlink(),
                    meta.len()
                )
            } else if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                "dir".to_owned()
            } else {
                format!("node {:?} {}", kind.is_fifo(), meta.rdev())
            };
            let mode = if kind.is_symlink() {
                0
            } else {
                meta.mode() & 0o7777
            };
            found.insert(
                path.strip_prefix(root).unwrap().to_owned(),
                format!(
                    "{content} {mode:o} {}:{} {}.{}",
                    meta.uid(),
                    meta.gid(),
                    meta.mtime(),
                    meta.mtime_nsec()
                ),
            );
            if kind.is_dir() {
                walk(root, &path, found);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut found);
    found
}

struct Scene {
    dir: tempfile::TempDir,
    canary: BTreeMap<PathBuf, String>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        fs::create_dir_all(canary.join("sub")).unwrap();
        fs::write(canary.join("token"), "alive").unwrap();
        fs::write(canary.join("sub/secret"), "alive too").unwrap();
        symlink("token", canary.join("link")).unwrap();
        fs::create_dir(dir.path().join("layer")).unwrap();
        let canary = listing(&canary);
        Self { dir, canary }
    }

    fn layer(&self) -> PathBuf {
        self.dir.path().join("layer")
    }

    fn untar(&self, archive: &[u8]) -> Result<Unpacked, Error> {
        untar(archive, &self.layer(), "sha256:test")
    }

    fn assert_alive(&self, what: &str) {
        assert_eq!(
            listing(&self.dir.path().join("canary")),
            self.canary,
            "{what}: the canary changed"
        );
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["canary", "layer"],
            "{what}: something came to lie beside the layer"
        );
    }
}

enum Outcome {
    /// Refused with a message that has this.
    Refused(&'static str),
    /// Unpacked; this path of the layer is there.
    Contained(&'static str),
}
use Outcome::{Contained, Refused};

#[test]
fn hostile_archives_are_refused_or_stay_inside() {
    // SEC-IMG-01, SEC-IMG-02, SEC-IMG-03
    let scene = Scene::new();
    let canary = scene.dir.path().join("canary").display().to_string();
    let absolute = format!("{canary}/token");
    // The absolute path of the canary, as it lies inside the layer if it is taken as relative.
    let inside: &'static str =
        Box::leak(absolute.trim_start_matches('/').to_owned().into_boxed_str());
    let deep = vec!["d"; 10_000].join("/");
    let deep_pax = vec!["d"; 600].join("/");
    let long_name = "n".repeat(300);
    let big = vec![b'v'; 70_000];
    let r = Raw::new;
    let cases: Vec<(&str, Raw, Outcome)> = vec![
        (
            "a name with ..",
            r().file("../canary/token", "dead"),
            Refused("\"..\""),
        ),
        (
            "a name that goes down and up",
            r().entry(b'5', "a/", "")
                .file("a/../../canary/token", "dead"),
            Refused("\"..\""),
        ),
        (
            "a name that ends in ..",
            r().entry(b'5', "a/..", ""),
            Refused("\"..\""),
        ),
        (
            "a directory named ..",
            r().entry(b'5', "..", ""),
            Refused("\"..\""),
        ),
        (
            "a long GNU name with ..",
            r().long(b'L', b"../canary/token").file("harmless", "dead"),
            Refused("\"..\""),
        ),
        (
            "a PAX path with ..",
            r().pax(&[("path", b"../canary/token")])
                .file("harmless", "dead"),
            Refused("\"..\""),
        ),
        (
            "an absolute name",
            r().file(&absolute, "dead"),
            Contained(inside),
        ),
        (
            "a link outward and a file through it",
            r().entry(b'2', "l", "../canary").file("l/token", "dead"),
            Refused("leads nowhere"),
        ),
        (
            "an absolute link and a file through it",
            r().entry(b'2', "l", &canary).file("l/token", "dead"),
            Refused("leads nowhere"),
        ),
        (
            "a link to / and a file through it",
            r().entry(b'2', "l", "/")
                .file("l/etc/berth-test-escape", "dead"),
            Contained("etc/berth-test-escape"),
        ),
        (
            "a link far up and a file through it",
            r().entry(b'2', "l", "../../../../../../../..")
                .file("l/tmp/berth-test-escape", "dead"),
            Contained("tmp/berth-test-escape"),
        ),
        (
            "a chain of links outward",
            r().entry(b'2', "a", "b")
                .entry(b'2', "b", "../canary")
                .file("a/token", "dead"),
            Refused("leads nowhere"),
        ),
        (
            "a link to itself and a file through it",
            r().entry(b'2', "l", "l").file("l/x", "dead"),
            Refused(""),
        ),
        (
            "a link and a file of its name",
            r().entry(b'2', "l", &absolute).file("l", "new"),
            Contained("l"),
        ),
        (
            "a link and a directory of its name and a file in it",
            r().entry(b'2', "l", &canary)
                .entry(b'5', "l", "")
                .file("l/token", "new"),
            Contained("l/token"),
        ),
        (
            "a link, its chmod as a directory",
            r().entry(b'2', "l", &canary)
                .sized(b'5', "l/", b"00000000000", b""),
            Contained("l"),
        ),
        (
            "a directory, a link in its place, a file in it",
            r().entry(b'5', "d", "")
                .entry(b'2', "d", "../canary")
                .file("d/token", "dead"),
            Refused("leads nowhere"),
        ),
        (
            "a directory that is replaced before its times are set",
            r().entry(b'5', "d", "").entry(b'2', "d", &canary),
            Contained("d"),
        ),
        (
            "a hard link to an absolute path",
            r().entry(b'1', "h", &absolute),
            Refused("which this layer has not"),
        ),
        (
            "a hard link with ..",
            r().entry(b'1', "h", "../canary/token"),
            Refused("\"..\""),
        ),
        (
            "a hard link through a link",
            r().entry(b'2', "l", "../canary")
                .entry(b'1', "h", "l/token"),
            Refused("which this layer has not"),
        ),
        (
            "a hard link to a link outward, then written",
            r().entry(b'2', "l", &absolute)
                .entry(b'1', "h", "l")
                .file("h", "new"),
            Contained("h"),
        ),
        (
            "a hard link to a link outward, then its mode",
            r().entry(b'2', "l", &absolute).entry(b'1', "h", "l"),
            Contained("h"),
        ),
        (
            "a hard link to a directory",
            r().entry(b'5', "d", "").entry(b'1', "h", "d"),
            Refused("hard link to a directory"),
        ),
        (
            "a hard link to itself",
            r().file("f", "x").entry(b'1', "f", "f"),
            Refused("links to itself"),
        ),
        (
            "a hard link to nothing",
            r().entry(b'1', "h", "missing"),
            Refused("which this layer has not"),
        ),
        (
            "a hard link to the root",
            r().entry(b'1', "h", "/"),
            Refused("root of the layer"),
        ),
        (
            "a hard link with data",
            r().file("f", "x")
                .sized(b'1', "h", b"00000000005", b"hello"),
            Refused("has data"),
        ),
        (
            "a file as parent",
            r().file("f", "x").file("f/child", "y"),
            Refused("parent is no directory"),
        ),
        (
            "a fifo as parent",
            r().entry(b'6', "p", "").file("p/child", "y"),
            Refused("parent is no directory"),
        ),
        (
            "a fifo and a file of its name",
            r().entry(b'6', "p", "").file("p", "y"),
            Contained("p"),
        ),
        (
            "a device and a file of its name",
            r().node(b'4', "sda", (7, 200)).file("sda", "y"),
            Contained("sda"),
        ),
        (
            "a character device 0:0",
            r().node(b'3', "x", (0, 0)),
            Refused("0:0"),
        ),
        (
            "a device that no kernel has",
            r().node(b'4', "x", (70_000, 1)),
            Refused("no device"),
        ),
        (
            "a whiteout with ..",
            r().file("a/.wh...", ""),
            Refused("hides no name"),
        ),
        (
            "a whiteout of .",
            r().file(".wh..", ""),
            Refused("hides no name"),
        ),
        (
            "a whiteout of nothing",
            r().file(".wh.", ""),
            Refused("hides no name"),
        ),
        (
            "a whiteout through a link outward",
            r().entry(b'2', "l", "../canary").file("l/.wh.token", ""),
            Refused("leads nowhere"),
        ),
        (
            "an opaque marker through a link outward",
            r().entry(b'2', "l", "../canary").file("l/.wh..wh..opq", ""),
            Refused("leads nowhere"),
        ),
        (
            "a whiteout as parent",
            r().file(".wh.d/x", "y"),
            Refused("whiteout is no directory"),
        ),
        (
            "aufs' own files",
            r().file(".wh..wh.plnk/1.2", "y")
                .file(".wh..wh.aufs", "")
                .file("ok", "y"),
            Contained("ok"),
        ),
        (
            "an opaque root",
            r().file(".wh..wh..opq", "").file("ok", "y"),
            Contained("ok"),
        ),
        (
            "10,000 levels in a GNU name",
            r().long(b'L', deep.as_bytes()).file("x", "y"),
            Refused("longer than 4095"),
        ),
        (
            "600 levels in a PAX name",
            r().pax(&[("path", deep_pax.as_bytes())]).file("x", "y"),
            Refused("deeper than 512"),
        ),
        (
            "a part of 300 bytes",
            r().long(b'L', long_name.as_bytes()).file("x", "y"),
            Refused("longer than 255"),
        ),
        (
            "a NUL in a PAX path",
            r().pax(&[("path", b"a\0b")]).file("x", "y"),
            Refused("NUL"),
        ),
        (
            "an empty PAX path",
            r().pax(&[("path", b"")]).file("x", "y"),
            Refused("empty"),
        ),
        ("an empty name", r().file("", "y"), Refused("no name")),
        (
            "a PAX size that is not the header's",
            r().pax(&[("size", b"1024")])
                .sized(b'0', "x", b"00000000000", &[b'a'; 1024])
                .file("after", "y"),
            Contained("after"),
        ),
        (
            "a PAX size that hides an entry",
            r().pax(&[("size", b"4096")])
                .file("x", "y")
                .file("hidden", "z"),
            Refused("cut off"),
        ),
        (
            "a PAX size on a directory",
            r().pax(&[("size", b"512")]).entry(b'5', "d", ""),
            Refused("has data"),
        ),
        (
            "a negative size",
            r().sized(
                b'0',
                "x",
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
                b"",
            ),
            Refused("negative"),
        ),
        (
            "a size beyond all files",
            r().sized(
                b'0',
                "x",
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                b"",
            ),
            Refused("size"),
        ),
        (
            "a size with other characters",
            r().sized(b'0', "x", b"00000000x00", b""),
            Refused("no number"),
        ),
        (
            "two PAX headers for one entry",
            r().pax(&[("path", b"a")])
                .pax(&[("path", b"b")])
                .file("x", "y"),
            Refused("two PAX"),
        ),
        (
            "two long names for one entry",
            r().long(b'L', b"a").long(b'L', b"b").file("x", "y"),
            Refused("two long names"),
        ),
        (
            "a PAX and a GNU name that differ",
            r().pax(&[("path", b"a")]).long(b'L', b"b").file("x", "y"),
            Refused("differ"),
        ),
        (
            "a global PAX path",
            r().pax_of(b'g', &[("path", b"a")]).file("x", "y"),
            Refused("global"),
        ),
        (
            "a global PAX comment",
            r().pax_of(b'g', &[("comment", b"c0ffee")]).file("x", "y"),
            Contained("x"),
        ),
        (
            "a PAX record with a wrong length",
            r().sized(b'x', "p", b"00000000012", b"99 path=a\n")
                .file("x", "y"),
            Refused("length"),
        ),
        (
            "a PAX header of 2 MiB",
            r().sized(b'x', "p", b"00010000000", &vec![b'a'; 2 << 20])
                .file("x", "y"),
            Refused("1 MiB"),
        ),
        (
            "a sparse file of a terabyte",
            r().pax(&[("GNU.sparse.realsize", b"1099511627776")])
                .file("x", "y"),
            Refused("sparse"),
        ),
        (
            "an old sparse file",
            r().sized(b'S', "x", b"00000000000", b""),
            Refused("sparse"),
        ),
        (
            "a multi-volume archive",
            r().sized(b'M', "x", b"00000000000", b""),
            Refused("entry type"),
        ),
        (
            "a user beyond all users",
            r().pax(&[("uid", b"4294967295")]).file("x", "y"),
            Refused("uid"),
        ),
        (
            "a huge user",
            r().pax(&[("gid", b"99999999999")]).file("x", "y"),
            Refused("gid"),
        ),
        (
            "an xattr of 70 kB",
            r().pax(&[("SCHILY.xattr.user.big", &big)]).file("x", "y"),
            Refused("64 KiB"),
        ),
        (
            "overlayfs' own xattrs",
            r().pax(&[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("SCHILY.xattr.trusted.other", b"y"),
            ])
            .file("x", "y"),
            Contained("x"),
        ),
        ("a root that is a file", r().file("./", "y"), Refused("")),
        (
            "an extended header and no entry",
            r().pax(&[("path", b"a")]),
            Refused("where the entry"),
        ),
    ];
    assert!(cases.len() >= 60, "{}", cases.len());
    for (what, archive, outcome) in cases {
        fs::remove_dir_all(scene.layer()).unwrap();
        fs::create_dir(scene.layer()).unwrap();
        let result = scene.untar(&archive.end());
        scene.assert_alive(what);
        match outcome {
            Refused(why) => {
                let error = result.expect_err(what);
                assert!(error.to_string().contains(why), "{what}: {error}");
                assert_eq!(
                    error.kind(),
                    crate::ErrorKind::InvalidArgument,
                    "{what}: {error}"
                );
            }
            Contained(path) => {
                result.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(
                    fs::symlink_metadata(scene.layer().join(path)).is_ok(),
                    "{what}: {path} is missing"
                );
            }
        }
    }
    for escaped in ["/etc/berth-test-escape", "/tmp/berth-test-escape"] {
        assert!(!Path::new(escaped).exists());
    }
}

#[test]
fn overlay_xattrs_are_dropped_and_those_of_the_image_kept() {
    // SEC-IMG-02
    let scene = Scene::new();
    // cap_net_raw+ep, version 2.
    let capability: &[u8] = &[
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let archive = Raw::new()
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.note", b"kept"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.whiteout", b"y"),
        ])
        .file("x", "y")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y")])
        .entry(b'5', "d/", "")
        .end();
    scene.untar(&archive).unwrap();
    let get = |path: &str, name: &str| {
        let mut value = [0; 64];
        rustix::fs::getxattr(scene.layer().join(path), name, &mut value[..])
            .map(|length| value[..length].to_vec())
            .ok()
    };
    assert_eq!(get("x", "security.capability").as_deref(), Some(capability));
    assert_eq!(get("x", "user.note").as_deref(), Some(&b"kept"[..]));
    for (path, name) in [
        ("x", "trusted.overlay.opaque"),
        ("x", "user.overlay.whiteout"),
        ("d", "trusted.overlay.opaque"),
    ] {
        assert_eq!(get(path, name), None, "{path} {name}");
    }
}

#[test]
fn whiteouts_become_what_overlayfs_wants() {
    let opaque = |path: PathBuf| {
        let mut value = [0; 1];
        rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..]).is_ok()
            && value == *b"y"
    };
    let r = Raw::new;
    type Case = (
        &'static str,
        Raw,
        &'static [&'static str],
        &'static [&'static str],
        &'static [&'static str],
    );
    let cases: Vec<Case> = vec![
        // archive, whiteouts, opaque directories, what is there
        (
            "a whiteout",
            r().entry(b'5', "d/", "").file("d/.wh.x", ""),
            &["d/x"],
            &[],
            &["d"],
        ),
        (
            "a whiteout in a directory that is not described",
            r().file("a/b/.wh.x", ""),
            &["a/b/x"],
            &[],
            &["a/b"],
        ),
        (
            "an opaque directory",
            r().entry(b'5', "d/", "")
                .file("d/.wh..wh..opq", "")
                .file("d/new", "x"),
            &[],
            &["d"],
            &["d/new"],
        ),
        (
            "a whiteout after the file that replaces it",
            r().file("x", "new").file(".wh.x", ""),
            &[],
            &[],
            &["x"],
        ),
        (
            "a whiteout before the file that replaces it",
            r().file(".wh.x", "").file("x", "new"),
            &[],
            &[],
            &["x"],
        ),
        (
            "a whiteout before the directory that replaces it",
            r().file(".wh.d", "")
                .entry(b'5', "d/", "")
                .file("d/new", "x"),
            &[],
            &["d"],
            &["d/new"],
        ),
        (
            "a whiteout after the directory that replaces it",
            r().entry(b'5', "d/", "")
                .file("d/new", "x")
                .file(".wh.d", ""),
            &[],
            &["d"],
            &["d/new"],
        ),
        (
            "a whiteout before a file below it",
            r().file(".wh.d", "").file("d/new", "x"),
            &[],
            &["d"],
            &["d/new"],
        ),
        (
            "the same whiteout twice",
            r().file(".wh.x", "").file(".wh.x", ""),
            &["x"],
            &[],
            &[],
        ),
    ];
    for (what, archive, whiteouts, opaques, present) in cases {
        let scene = Scene::new();
        scene
            .untar(&archive.end())
            .unwrap_or_else(|e| panic!("{what}: {e}"));
        let layer = scene.layer();
        for path in whiteouts {
            let meta = fs::symlink_metadata(layer.join(path)).unwrap();
            assert!(
                meta.file_type().is_char_device() && meta.rdev() == 0,
                "{what}: {path}"
            );
        }
        for path in opaques {
            assert!(opaque(layer.join(path)), "{what}: {path}");
        }
        for path in present {
            let meta = fs::symlink_metadata(layer.join(path)).unwrap();
            assert!(!meta.file_type().is_char_device(), "{what}: {path}");
            assert_eq!(
                opaque(layer.join(path)),
                opaques.contains(path),
                "{what}: {path}"
            );
        }
    }
}

#[test]
fn modes_owners_times_and_nodes_are_kept_whatever_the_umask() {
    let scene = Scene::new();
    let mut builder = tar::Builder::new(Vec::new());
    for (path, kind, mode, uid) in [
        ("set", tar::EntryType::Regular, 0o6755, 1000),
        ("tmp", tar::EntryType::Directory, 0o1777, 0),
        ("sgid", tar::EntryType::Directory, 0o2775, 33),
        ("sgid/f", tar::EntryType::Regular, 0o666, 5),
        ("null", tar::EntryType::Char, 0o666, 0),
        ("p", tar::EntryType::Fifo, 0o622, 9),
    ] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(uid + 1);
        header.set_mtime(1_600_000_000);
        header.set_size(0);
        if kind == tar::EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        builder.append_data(&mut header, path, &[][..]).unwrap();
    }
    let unpacked = scene.untar(&builder.into_inner().unwrap()).unwrap();
    assert_eq!((unpacked.inodes, unpacked.implicit.len()), (7, 0));
    for (path, mode, uid) in [
        ("set", 0o6755, 1000),
        ("tmp", 0o1777, 0),
        ("sgid", 0o2775, 33),
        ("sgid/f", 0o666, 5),
        ("null", 0o666, 0),
        ("p", 0o622, 9),
    ] {
        let meta = fs::metadata(scene.layer().join(path)).unwrap();
        assert_eq!(
            (
                meta.permissions().mode() & 0o7777,
                meta.uid(),
                meta.gid(),
                meta.mtime()
            ),
            (mode, uid as u32, uid as u32 + 1, 1_600_000_000),
            "{path}"
        );
    }
    assert_eq!(
        fs::metadata(scene.layer().join("null")).unwrap().rdev(),
        rustix::fs::makedev(1, 3)
    );
}

/// Extracts with GNU tar and with ours, and compares all that is to see.
fn assert_like_gnu_tar(archive: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let (reference, ours) = (dir.path().join("gnu"), dir.path().join("ours"));
    fs::create_dir(&reference).unwrap();
    fs::create_dir(&ours).unwrap();
    let path = dir.path().join("a.tar");
    fs::write(&path, archive).unwrap();
    let output = Command::new("tar")
        .args([
            "-x",
            "-p",
            "--delay-directory-restore",
            "--same-owner",
            // Or else links are made last, whatever came after them.
            "-P",
            "--numeric-owner",
            "-f",
        ])
        .arg(&path)
        .arg("-C")
        .arg(&reference)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    untar(archive, &ours, "sha256:test").unwrap();
    assert_eq!(listing(&ours), listing(&reference));
}

#[test]
fn archives_of_every_format_of_gnu_tar_come_out_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let long = tree.join("l".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("ünïcode"), vec![7; 100_001]).unwrap();
    fs::hard_link(long.join("ünïcode"), tree.join("hard")).unwrap();
    symlink("x".repeat(150), tree.join("symbolic")).unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    std::os::unix::fs::chown(tree.join("empty"), Some(3_000_000), Some(4_000_000)).unwrap();
    for format in ["gnu", "oldgnu", "pax"] {
        let output = Command::new("tar")
            .args(["-c", "--numeric-owner", &format!("--format={format}"), "-C"])
            .arg(&tree)
            .arg(".")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{format}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_like_gnu_tar(&output.stdout);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Dir(usize, u32),
    File(usize, usize, Vec<u8>, u32),
    Symlink(usize, usize, String),
    Link(usize, usize, usize),
    Fifo(usize, usize),
}

const DIRS: [&str; 4] = ["", "d0/", "d0/d1/", "d2/"];

fn op() -> impl Strategy<Value = Op> {
    let (dir, name) = (0usize..4, 0usize..5);
    prop_oneof![
        (1usize..4, 0u32..0o7777).prop_map(|(d, mode)| Op::Dir(d, mode | 0o700)),
        (
            dir.clone(),
            name.clone(),
            proptest::collection::vec(any::<u8>(), 0..2000),
            0u32..0o7777
        )
            .prop_map(|(d, n, data, mode)| Op::File(d, n, data, mode)),
        (dir.clone(), name.clone(), "[a-z/]{1,20}")
            .prop_map(|(d, n, target)| Op::Symlink(d, n, target)),
        (dir.clone(), name.clone(), any::<usize>()).prop_map(|(d, n, of)| Op::Link(d, n, of)),
        (dir, name).prop_map(|(d, n)| Op::Fifo(d, n)),
    ]
}

fn archive_of(ops: &[Op]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut there: Vec<String> = Vec::new();
    let append = |builder: &mut tar::Builder<Vec<u8>>,
                  kind,
                  path: &str,
                  mode: u32,
                  data: &[u8],
                  link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(u64::from(mode % 3));
        header.set_gid(u64::from(mode % 5));
        header.set_mtime(1_500_000_000 + u64::from(mode));
        header.set_size(data.len() as u64);
        match link {
            Some(link) => builder.append_link(&mut header, path, link).unwrap(),
            None => builder.append_data(&mut header, path, data).unwrap(),
        }
    };
    for dir in &DIRS[1..] {
        append(
            &mut builder,
            tar::EntryType::Directory,
            dir,
            0o755,
            b"",
            None,
        );
    }
    for op in ops {
        let path = |d: &usize, n: &usize| {
            format!(
                "{}f{n}{}",
                DIRS[*d],
                if *n == 4 {
                    "x".repeat(130)
                } else {
                    String::new()
                }
            )
        };
        match op {
            Op::Dir(d, mode) => append(
                &mut builder,
                tar::EntryType::Directory,
                DIRS[*d],
                *mode,
                b"",
                None,
            ),
            Op::File(d, n, data, mode) => {
                append(
                    &mut builder,
                    tar::EntryType::Regular,
                    &path(d, n),
                    *mode,
                    data,
                    None,
                );
                there.push(path(d, n));
            }
            Op::Symlink(d, n, target) => {
                append(
                    &mut builder,
                    tar::EntryType::Symlink,
                    &path(d, n),
                    0o777,
                    b"",
                    Some(target),
                );
                there.push(path(d, n));
            }
            Op::Link(d, n, of) => {
                if let Some(of) = there
                    .get(of % there.len().max(1))
                    .cloned()
                    .filter(|of| *of != path(d, n))
                {
                    append(
                        &mut builder,
                        tar::EntryType::Link,
                        &path(d, n),
                        0o644,
                        b"",
                        Some(&of),
                    );
                    there.push(path(d, n));
                }
            }
            Op::Fifo(d, n) => {
                append(
                    &mut builder,
                    tar::EntryType::Fifo,
                    &path(d, n),
                    0o640,
                    b"",
                    None,
                );
                there.push(path(d, n));
            }
        }
    }
    builder.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_archives_come_out_as_gnu_tar_has_them(ops in proptest::collection::vec(op(), 1..25)) {
        assert_like_gnu_tar(&archive_of(&ops));
    }

    #[test]
    fn an_archive_cut_anywhere_is_refused_or_whole_entries(ops in proptest::collection::vec(op(), 1..8), at in any::<prop::sample::Index>()) {
        let archive = archive_of(&ops);
        let cut = &archive[..at.index(archive.len())];
        let scene = Scene::new();
        let result = scene.untar(cut);
        scene.assert_alive("a cut archive");
        prop_assert!(cut.len().is_multiple_of(512) || result.is_err());
    }
}

struct Whole(Vec<Bytes>);

impl Chunks for Whole {
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        Ok(if self.0.is_empty() {
            None
        } else {
            Some(self.0.remove(0))
        })
    }
}

fn unpack_blob(scene: &Scene, blob: &[u8], tar: &[u8]) -> Result<Unpacked, Error> {
    let expected = Expected {
        compressed: Some((Digest::of(blob), blob.len() as u64)),
        diff_id: Digest::of(tar),
    };
    // Three bytes first: the kind must be told from pieces too.
    let cut = blob.len().min(3);
    let mut pieces = Whole(
        std::iter::once(&blob[..cut])
            .chain(blob[cut..].chunks(7000))
            .map(Bytes::copy_from_slice)
            .collect(),
    );
    unpack(&mut pieces, &expected, &scene.layer())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn gzip_members_and_zstd_frames_are_all_read() {
    // SEC-IMG-03
    let tar = Raw::new().file("a", &"x".repeat(5000)).file("b", "y").end();
    let (first, second) = tar.split_at(3000);
    let zstd = |bytes: &[u8]| zstd::stream::encode_all(bytes, 1).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    for (what, blob) in [
        ("plain", tar.clone()),
        ("gzip", gzip(&tar)),
        ("two gzip members", [gzip(first), gzip(second)].concat()),
        ("zstd", zstd(&tar)),
        ("two zstd frames", [zstd(first), zstd(second)].concat()),
        ("a skippable frame first", [skippable, zstd(&tar)].concat()),
    ] {
        let scene = Scene::new();
        unpack_blob(&scene, &blob, &tar).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(fs::read(scene.layer().join("b")).unwrap(), b"y", "{what}");
    }
    let cut = &gzip(&tar)[..60];
    let garbage = [gzip(&tar), b"garbage".to_vec()].concat();
    for (what, blob) in [
        ("a cut gzip stream", cut.to_vec()),
        ("garbage after gzip", garbage),
        ("something else", b"BZh91AY".to_vec()),
    ] {
        assert!(unpack_blob(&Scene::new(), &blob, &tar).is_err(), "{what}");
    }
}

#[test]
fn a_zstd_window_beyond_the_bound_is_refused() {
    // SEC-IMG-07
    let tar = Raw::new().file("a", "x").end();
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&tar).unwrap();
    let blob = encoder.finish().unwrap();
    let error = unpack_blob(&Scene::new(), &blob, &tar).unwrap_err();
    assert!(matches!(error, Error::Layer { .. }), "{error}");
}

/// Archives that would take memory or time out of proportion to their bytes, and what refuses them.
#[test]
fn what_grows_without_filling_the_disk_has_a_bound_sec_img_07() {
    /// One entry or more, again and again, without an end.
    struct Endless {
        piece: Vec<u8>,
        at: usize,
        bytes: u64,
    }
    /// Past this the bound has not held: the test would run for ever.
    const GIVEN_UP: u64 = 4 << 30;
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            use std::io::BufRead;
            let piece = self.fill_buf()?;
            let length = piece.len().min(buffer.len());
            buffer[..length].copy_from_slice(&piece[..length]);
            self.consume(length);
            Ok(length)
        }
    }
    impl std::io::BufRead for Endless {
        fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
            assert!(self.bytes < GIVEN_UP, "no bound");
            Ok(&self.piece[self.at..])
        }
        fn consume(&mut self, length: usize) {
            self.at = (self.at + length) % self.piece.len();
            self.bytes += length as u64;
        }
    }
    let long = vec!["d".repeat(250); 16].join("/");
    let big = vec![b'x'; 1 << 20];
    let half = big[..(1 << 20) - 100].to_vec();
    for (what, piece, says) in [
        (
            "paths of directories",
            Raw::new()
                .pax(&[("path", long.as_bytes())])
                .entry(b'5', "d", ""),
            "paths of the layer's directories",
        ),
        (
            "global headers",
            Raw::new().pax_of(b'g', &[("comment", &half)]),
            "extended headers",
        ),
        (
            "headers of entries",
            Raw::new().pax(&[("comment", &half)]).entry(b'0', "f", ""),
            "extended headers",
        ),
        (
            "data of whiteouts",
            Raw::new().sized(b'0', ".wh.x", b"00004000000", &big),
            "no files",
        ),
        (
            "data of what is not unpacked",
            Raw::new().sized(b'0', ".wh..wh.plnk/1", b"00004000000", &big),
            "no files",
        ),
    ] {
        let scene = Scene::new();
        let endless = Endless {
            piece: piece.0,
            at: 0,
            bytes: 0,
        };
        let error = untar(endless, &scene.layer(), "l").unwrap_err().to_string();
        assert!(error.contains(says), "{what}: {error}");
    }
}
