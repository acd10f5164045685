//! Images as volumes (`Mount.image`): the merged tree of an image's layers, without a writable one, bound into a container.
//!
//! An image is mounted once a container, below the container's own directory, and goes with its root. Its layers stay as long as the
//! container's snapshot does: who removes the image takes nothing away from those that have it mounted.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_image::{Image, Store};
use berth_proto::cri;
use berth_state::Object;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use super::{Pod, mounts, run::make_private_dir};
use crate::{error::Error, failpoint};

/// Digits of an image's id that name its mount: as many as name it for people, and no two images of one container share them.
const NAME_DIGITS: usize = 32;

/// An image that a container mounts.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Of the container's mounts, which one.
    pub mount: usize,
    pub image: Arc<Image>,
}

/// Finds the images that `config` mounts, and writes into each such mount which one it is (`image_ref`): ContainerStatus tells it.
pub fn resolve(images: &Store, config: &mut cri::ContainerConfig) -> Result<Vec<Volume>, Error> {
    let mut volumes = Vec::new();
    for (number, mount) in config.mounts.iter_mut().enumerate() {
        let Some(name) = berth_spec::volume_image(mount).map(|spec| spec.image.clone()) else {
            continue;
        };
        let image = images.resolve(&name)?.ok_or_else(|| Error::NotFound {
            what: "image of a volume",
            id: name.chars().take(256).collect(),
        })?;
        mount.image.get_or_insert_default().image_ref = image.id.clone();
        volumes.push(Volume {
            mount: number,
            image,
        });
    }
    Ok(volumes)
}

/// Below a container's directory.
fn dir(pod: &Pod, container_id: &str) -> PathBuf {
    pod.container_dir(container_id).join("volumes")
}

/// Mounts the images; answers what is to be bound for each mount by its number. The container's snapshot must be there.
pub fn mount(
    pod: &Pod,
    container_id: &str,
    config: &cri::ContainerConfig,
    volumes: &[Volume],
) -> Result<BTreeMap<usize, PathBuf>, Error> {
    let mut sources = BTreeMap::new();
    for Volume { mount, image } in volumes {
        let digits = image.id.rsplit(':').next().unwrap_or(&image.id);
        let digits = &digits[..NAME_DIGITS.min(digits.len())];
        let at = dir(pod, container_id).join(digits);
        if !at.exists() {
            make_private_dir(&at)?;
            let lowerdirs = pod.node.images.hold(container_id, image)?;
            failpoint::at(|| berth_failpoint::site!("container.create.volume_held"))?;
            mounts::read_only_overlay(
                &pod.node.ledger,
                container_id,
                &lowerdirs,
                pod.owners().as_ref(),
                &at,
            )?;
            failpoint::at(|| berth_failpoint::site!("container.create.volume_mounted"))?;
        }
        let Some(asked) = config.mounts.get(*mount) else {
            continue;
        };
        sources.insert(*mount, beneath(&at, asked, &image.id)?);
    }
    Ok(sources)
}

/// The path of `image_sub_path` without a link in it. Nobody can change the tree, so it stays true.
fn beneath(at: &Path, mount: &cri::Mount, image_id: &str) -> Result<PathBuf, Error> {
    let asked = Path::new(&mount.image_sub_path);
    if asked.components().next().is_none() {
        return Ok(at.to_owned());
    }
    let refuse = |why: String| {
        Error::FailedPrecondition(format!(
            "mount at {}: image_sub_path {} of image {image_id} {why}",
            mount.container_path,
            berth_spec::quoted(&mount.image_sub_path)
        ))
    };
    let root = File::open(at).map_err(Error::io("open", at))?;
    let found = berth_beneath::openat2(
        &root,
        asked,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV,
    )
    .map_err(|errno| {
        refuse(match errno {
            Errno::NOENT | Errno::NOTDIR => "is not there".into(),
            Errno::XDEV => {
                "leads out of the image: a link in it is absolute, or goes up too far".into()
            }
            Errno::LOOP => "has too many links in it".into(),
            errno => format!("can't be opened: {errno}"),
        })
    })?;
    let stat = rustix::fs::fstat(&found).map_err(|e| Error::io("stat", at)(e.into()))?;
    if !matches!(
        FileType::from_raw_mode(stat.st_mode),
        FileType::Directory | FileType::RegularFile
    ) {
        return Err(refuse("is neither a directory nor a file".into()));
    }
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let path = std::fs::read_link(&link).map_err(Error::io("read link", &link))?;
    match path.starts_with(at) {
        true => Ok(path),
        // Where `at` itself has a link in it.
        false => {
            let real = std::fs::canonicalize(at).map_err(Error::io("resolve", at))?;
            let below = path
                .strip_prefix(&real)
                .map_err(|_| refuse("leads out of the image".into()))?;
            Ok(at.join(below))
        }
    }
}

/// Unmounts what [`mount`] has mounted for the container. Idempotent.
pub fn gone(pod: &Pod, container_id: &str) -> Result<(), Error> {
    let dir = dir(pod, container_id);
    if !dir.exists() {
        return Ok(());
    }
    let ledger = &pod.node.ledger;
    let objects = ledger
        .outstanding(container_id)
        .map_err(Error::io("read ledger of", container_id))?;
    for object in objects.into_iter().rev() {
        match object {
            Object::Mount(at) if at.starts_with(&dir) => mounts::gone(ledger, container_id, &at)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    // SEC-CRI-10
    #[test]
    fn a_sub_path_stays_within_the_image_sec_cri_10() {
        let top = tempfile::tempdir().unwrap();
        let image = top.path().join("image");
        fs::create_dir_all(image.join("a/b")).unwrap();
        fs::create_dir_all(top.path().join("outside")).unwrap();
        fs::write(image.join("a/file"), "").unwrap();
        for (link, to) in [
            ("inner", "a/b"),
            ("a/up-and-in", "../a/b"),
            ("absolute", "/etc"),
            ("within", "/a/b"),
            ("upwards", "../outside"),
            ("a/upwards", "../../outside"),
            ("magic", "/proc/self/root"),
            ("loop", "loop"),
            ("dangling", "nowhere"),
        ] {
            symlink(to, image.join(link)).unwrap();
        }
        rustix::fs::mknodat(
            rustix::fs::CWD,
            image.join("fifo"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        for (sub_path, found) in [
            ("", Ok("")),
            (".", Ok("")),
            ("a/b", Ok("a/b")),
            ("./a//b/", Ok("a/b")),
            ("a/file", Ok("a/file")),
            ("inner", Ok("a/b")),
            ("a/up-and-in", Ok("a/b")),
            ("absolute", Err("leads out")),
            ("within", Err("leads out")),
            ("upwards", Err("leads out")),
            ("a/upwards", Err("leads out")),
            ("a/upwards/x", Err("leads out")),
            ("magic/etc", Err("leads out")),
            ("../outside", Err("leads out")),
            ("/etc", Err("leads out")),
            ("loop", Err("too many links")),
            ("dangling", Err("is not there")),
            ("nowhere", Err("is not there")),
            ("a/file/x", Err("is not there")),
            ("fifo", Err("neither a directory nor a file")),
        ] {
            let mount = cri::Mount {
                container_path: "/v".into(),
                image_sub_path: sub_path.into(),
                ..Default::default()
            };
            match (beneath(&image, &mount, "sha256:1"), found) {
                (Ok(path), Ok(want)) => assert_eq!(
                    path.components().collect::<PathBuf>(),
                    image.join(want).components().collect::<PathBuf>(),
                    "{sub_path:?}"
                ),
                (Err(error), Err(says)) => {
                    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
                    assert!(error.to_string().contains(says), "{sub_path:?}: {error}");
                }
                (got, want) => panic!("{sub_path:?}: {got:?}, not {want:?}"),
            }
        }
    }
}
