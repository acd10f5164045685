//! What is mounted into a container: its volumes, and what the kubelet gives to each.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_proto::cri::{ImageSpec, Mount, MountPropagation};
use k8s_openapi::api::core::v1::VolumeMount;

use super::{Place, is_projected, place, sub_path};
use crate::{
    Error,
    node::Inner,
    pod::{ContainerSpec, Desired, PullPolicy},
    problem::Problem,
    store,
    translate::{expand, hosts},
};

const ETC_HOSTS: &str = "/etc/hosts";

/// The images that volumes of this container are: by the volume's name, with what to do about pulling.
pub(crate) fn images(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
) -> Vec<(String, String, PullPolicy)> {
    let mounted = |name: &str| {
        spec.container
            .volume_mounts
            .iter()
            .flatten()
            .any(|mount| mount.name == name)
    };
    let volumes = pod
        .spec
        .volumes
        .iter()
        .flatten()
        .filter(|volume| mounted(&volume.name));
    volumes
        .filter_map(|volume| match place(node, pod, volume) {
            Place::Image {
                reference,
                pull_policy,
            } => {
                let policy = match pull_policy.as_str() {
                    "Always" => PullPolicy::Always,
                    "Never" => PullPolicy::Never,
                    _ => PullPolicy::IfNotPresent,
                };
                Some((volume.name.clone(), reference, policy))
            }
            Place::At(_) => None,
        })
        .collect()
}

/// Makes ready and lists the mounts of a container that is about to be made. `images` are the ids of image volumes by their names.
pub(crate) fn mounts(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
    attempt: u32,
    ips: &[String],
    values: &BTreeMap<String, String>,
    images: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for (index, mount) in spec.container.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{}.volumeMounts[{index}]", spec.path);
        mounts.push(volume(
            node, pod, spec, index, mount, &path, values, images,
        )?);
    }
    let has = |mounts: &[Mount], path: &str| {
        mounts
            .iter()
            .any(|mount| mount.container_path.trim_end_matches('/') == path)
    };
    if !has(&mounts, ETC_HOSTS) {
        mounts.push(own(ETC_HOSTS, &etc_hosts(node, pod, ips)?));
    }
    let message = spec
        .container
        .termination_message_path
        .as_deref()
        .unwrap_or_default();
    if !message.is_empty() && !has(&mounts, message) {
        mounts.push(own(message, &message_file(node, pod, spec, attempt)?));
    }
    Ok(mounts)
}

fn own(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Mount::default()
    }
}

/// Written once a sandbox, for all containers.
fn etc_hosts(node: &Inner, pod: &Desired, ips: &[String]) -> Result<PathBuf, Error> {
    let path = node.pod_dir(&pod.uid).join("etc-hosts");
    let text = hosts(pod, ips, &node.config.cluster_domain, || {
        fs::read_to_string(ETC_HOSTS).unwrap_or_default()
    });
    // in place: containers that run have this very file mounted
    if fs::read_to_string(&path).ok().as_deref() != Some(&text) {
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))
            .map_err(Error::file("write", &path))?;
    }
    Ok(path)
}

/// Where a container writes why it ended: one file each attempt, which all its users may write.
fn message_file(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
    attempt: u32,
) -> Result<PathBuf, Error> {
    let dir = node.pod_dir(&pod.uid).join("containers").join(spec.name());
    store::make_dir(&dir)?;
    // that of the attempt before the last is no longer read
    if let Some(old) = attempt.checked_sub(2) {
        let _ = fs::remove_file(dir.join(format!("{old:08x}")));
    }
    let path = dir.join(format!("{attempt:08x}"));
    fs::write(&path, "").map_err(Error::file("make", &path))?;
    fs::set_permissions(&path, Permissions::from_mode(0o666))
        .map_err(Error::file("make", &path))?;
    Ok(path)
}

#[expect(clippy::too_many_arguments, reason = "one call, from the loop above")]
fn volume(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
    index: usize,
    mount: &VolumeMount,
    path: &str,
    values: &BTreeMap<String, String>,
    images: &BTreeMap<String, String>,
) -> Result<Mount, Error> {
    let named = pod
        .spec
        .volumes
        .iter()
        .flatten()
        .find(|volume| volume.name == mount.name);
    let Some(volume) = named else {
        return Err(Problem::new(
            format!("{path}.name"),
            format!("there is no volume {:?}", mount.name),
        )
        .into());
    };
    let sub = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
        (_, Some(expression)) if !expression.is_empty() => {
            let expanded = expand(expression, values);
            if expanded.contains("$(") {
                let what = format!("{expression:?} names a variable that is not there");
                return Err(Problem::new(format!("{path}.subPathExpr"), what).into());
            }
            expanded
        }
        (sub, _) => sub.unwrap_or_default().to_owned(),
    };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    let mut made = Mount {
        // a relative path is one from the container's root
        container_path: format!("/{}", mount.mount_path.trim_start_matches('/')),
        readonly: mount.read_only == Some(true) || is_projected(volume),
        propagation: propagation.into(),
        recursive_read_only: mount.recursive_read_only.as_deref() == Some("Enabled"),
        ..Mount::default()
    };
    match place(node, pod, volume) {
        Place::Image { .. } => {
            made.readonly = true;
            made.image_sub_path = sub;
            made.image = Some(ImageSpec {
                image: images.get(&mount.name).cloned().unwrap_or_default(),
                ..ImageSpec::default()
            });
        }
        Place::At(root) if sub.is_empty() => made.host_path = root.display().to_string(),
        Place::At(root) => {
            let target = node
                .pod_dir(&pod.uid)
                .join("volume-subpaths")
                .join(&mount.name)
                .join(spec.name())
                .join(index.to_string());
            sub_path::bind(&root, &sub, &target).map_err(|why| Error::Volume {
                name: mount.name.clone(),
                why,
            })?;
            made.host_path = target.display().to_string();
        }
    }
    Ok(made)
}
