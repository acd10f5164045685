//! An image in the place of a host path.

use std::path::{Component, Path};

use berth_proto::cri;
use oci_spec::runtime::Mount;

use super::check::{PATH_LIMIT, check_mount, check_place, propagation, wrong};
use crate::error::{Error, quoted};

/// The image that takes the place of a host path.
pub fn volume_image(mount: &cri::Mount) -> Option<&cri::ImageSpec> {
    mount.image.as_ref().filter(|image| !image.image.is_empty())
}

pub(super) fn check(mount: &cri::Mount) -> Result<(), Error> {
    if !mount.host_path.is_empty() {
        return Err(wrong(mount, "host_path", "is given beside an image"));
    }
    if !mount.readonly {
        return Err(wrong(mount, "readonly", "an image can only be mounted so"));
    }
    if propagation(mount)? == cri::MountPropagation::PropagationBidirectional {
        return Err(wrong(
            mount,
            "propagation",
            "no mount of a container goes into an image",
        ));
    }
    // Links are followed beneath the image's root, once it is mounted.
    let plain = Path::new(&mount.image_sub_path)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !plain || mount.image_sub_path.contains('\0') || mount.image_sub_path.len() >= PATH_LIMIT {
        return Err(wrong(
            mount,
            "image_sub_path",
            format!(
                "{} is not a path below the image's root",
                quoted(&mount.image_sub_path)
            ),
        ));
    }
    Ok(())
}

/// What berthd has mounted of an image, with the owners that the pod's user namespace has for it. Nothing is ever mounted below it: it needs no propagation.
pub(super) fn bind(
    sandbox: &cri::PodSandboxConfig,
    mount: &cri::Mount,
    source: Option<&Path>,
    privileged: bool,
) -> Result<(Mount, cri::MountPropagation), Error> {
    check_mount(sandbox, mount)?;
    let destination = super::destination(mount)?;
    let source = source.ok_or_else(|| wrong(mount, "image", "is not mounted"))?;
    check_place(mount, &destination, source, privileged)?;
    let options = ["bind", "rprivate", "nodev", "ro"];
    Ok((
        super::mount("bind", source, destination, &options)?,
        cri::MountPropagation::PropagationPrivate,
    ))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{error::Kind, mounts, tests::fixture};

    fn volume(change: impl FnOnce(&mut cri::Mount)) -> cri::Mount {
        let mut mount = cri::Mount {
            container_path: "/v".into(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "sha256:2".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        change(&mut mount);
        mount
    }

    fn checked(mount: cri::Mount) -> Result<(), Error> {
        let container = cri::ContainerConfig {
            mounts: vec![mount],
            ..Default::default()
        };
        mounts::check(&fixture().sandbox, &container)
    }

    // SEC-CRI-10
    #[test]
    fn what_makes_no_sense_of_an_image_is_refused_by_its_field_sec_cri_10() {
        type Change = fn(&mut cri::Mount);
        let table: [(Change, &str); 10] = [
            (|m| m.readonly = false, "readonly"),
            (|m| m.host_path = "/tmp".into(), "host_path"),
            (|m| m.propagation = 2, "propagation"),
            (|m| m.propagation = 7, "propagation"),
            (|m| m.image_sub_path = "..".into(), "image_sub_path"),
            (|m| m.image_sub_path = "a/../b".into(), "image_sub_path"),
            (|m| m.image_sub_path = "/etc".into(), "image_sub_path"),
            (|m| m.image_sub_path = "a\0b".into(), "image_sub_path"),
            (|m| m.image_sub_path = "a/".repeat(3000), "image_sub_path"),
            (|m| m.container_path = "v".into(), "container_path"),
        ];
        for (row, (change, field)) in table.into_iter().enumerate() {
            let error = checked(volume(change)).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "row {row}");
            assert!(error.to_string().contains(field), "row {row}: {error}");
            assert!(error.to_string().len() < 400, "row {row}: {error}");
        }
        for fine in [
            volume(|_| ()),
            volume(|m| m.image_sub_path = "a/b".into()),
            volume(|m| m.image_sub_path = "./a/".into()),
            volume(|m| m.propagation = 1),
            volume(|m| m.recursive_read_only = true),
        ] {
            checked(fine).unwrap();
        }
    }

    #[test]
    fn an_image_is_bound_read_only_and_can_be_executed() {
        let mut fixture = fixture();
        fixture.container.mounts = vec![volume(|_| ())];
        let unmounted = mounts::build(&fixture.inputs(), false, false).unwrap_err();
        assert!(unmounted.to_string().contains("is not mounted"));
        fixture.image_volumes = [(0, PathBuf::from("/state/volumes/2"))].into();
        let mounts = mounts::build(&fixture.inputs(), false, false).unwrap();
        let bound = mounts
            .list
            .iter()
            .find(|mount| mount.destination() == Path::new("/v"))
            .unwrap();
        assert_eq!(
            bound.source().as_deref(),
            Some(Path::new("/state/volumes/2"))
        );
        let options = bound.options().clone().unwrap();
        assert!(options.contains(&"ro".into()) && !options.contains(&"noexec".into()));
        assert_eq!(mounts.rootfs_propagation, "private");
    }
}
