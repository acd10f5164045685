//! What is mounted into a container: its volumes, and what the kubelet gives to each.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use berth_proto::cri::{ImageSpec, Mount, MountPropagation, RuntimeHandlerFeatures};
use k8s_openapi::api::core::v1::VolumeMount;

use super::{Place, is_claim, is_projected, persistent, place, sub_path};
use crate::{
    Error,
    node::Inner,
    pod::{ContainerSpec, Desired, PullPolicy},
    problem::Problem,
    store,
    translate::{expand, hosts},
    user_namespace::Ids,
};

const ETC_HOSTS: &str = "/etc/hosts";
/// Of `recursiveReadOnly`.
const IF_POSSIBLE: &str = "IfPossible";

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
            Place::At(_) | Place::Nowhere => None,
        })
        .collect()
}

/// What is known of a container that is about to be made.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    pub attempt: u32,
    /// The pod's.
    pub ips: &'a [String],
    /// Those of the pod's user namespace, where it has one.
    pub ids: Option<Ids>,
    /// Its variables, for expressions.
    pub values: &'a BTreeMap<String, String>,
    /// The ids of image volumes, by the volumes' names.
    pub images: &'a BTreeMap<String, String>,
    pub features: &'a RuntimeHandlerFeatures,
}

/// Whether a mount hangs on what the runtime can do.
pub(crate) fn asks_for_features(spec: &ContainerSpec) -> bool {
    let mut mounts = spec.container.volume_mounts.iter().flatten();
    mounts.any(|mount| mount.recursive_read_only.as_deref() == Some(IF_POSSIBLE))
}

/// Makes ready and lists the mounts of a container that is about to be made.
pub(crate) fn mounts(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
    inside: &Inside<'_>,
) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for (index, mount) in spec.container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume(node, pod, spec, index, mount, inside)?);
    }
    let has = |mounts: &[Mount], path: &str| {
        mounts
            .iter()
            .any(|mount| mount.container_path.trim_end_matches('/') == path)
    };
    if !has(&mounts, ETC_HOSTS) {
        mounts.push(own(ETC_HOSTS, &etc_hosts(node, pod, inside.ips)?));
    }
    let message = spec
        .container
        .termination_message_path
        .as_deref()
        .unwrap_or_default();
    if !message.is_empty() && !has(&mounts, message) {
        let file = message_file(node, pod, spec, inside.attempt)?;
        mounts.push(own(message, &file));
    }
    if let Some(ids) = inside.ids {
        // What belongs to root on the node belongs to the pod's root within. An image's files are mapped by the runtime.
        for mount in mounts.iter_mut().filter(|mount| mount.image.is_none()) {
            (mount.uid_mappings, mount.gid_mappings) = (ids.mapping(), ids.mapping());
        }
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

fn volume(
    node: &Inner,
    pod: &Desired,
    spec: &ContainerSpec,
    index: usize,
    mount: &VolumeMount,
    inside: &Inside<'_>,
) -> Result<Mount, Error> {
    let path = format!("{}.volumeMounts[{index}]", spec.path);
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
            let expanded = expand(expression, inside.values);
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
        recursive_read_only: match mount.recursive_read_only.as_deref() {
            Some("Enabled") => true,
            Some(IF_POSSIBLE) => inside.features.recursive_read_only_mounts,
            _ => false,
        },
        ..Mount::default()
    };
    let failed = |why: String| Error::Volume {
        name: mount.name.clone(),
        why,
    };
    if is_claim(volume) {
        let bound = persistent::kept(node, &pod.uid, &volume.name)
            .ok_or_else(|| failed("its claim is not mounted".into()))?;
        persistent::check(node, &pod.uid, &bound).map_err(failed)?;
        made.readonly |= bound.read_only;
    }
    match place(node, pod, volume) {
        Place::Nowhere => return Err(failed("its claim is not mounted".into())),
        Place::Image { .. } => {
            made.readonly = true;
            made.image_sub_path = sub;
            made.image = Some(ImageSpec {
                image: inside.images.get(&mount.name).cloned().unwrap_or_default(),
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
            sub_path::bind(&root, &sub, &target).map_err(failed)?;
            made.host_path = target.display().to_string();
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node::tests::node, pod::tests::pod};

    fn all(volumes: &str, list: &str, ids: Option<Ids>, can: bool) -> Result<Vec<Mount>, String> {
        let dir = tempfile::tempdir().unwrap();
        let node = node(&dir.path().display().to_string());
        let pod = pod(&format!(
            "  containers: [{{name: a, image: x, volumeMounts: {list}}}]\n  volumes: {volumes}"
        ));
        store::make_dir(&node.pod_dir(&pod.uid)).unwrap();
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: can,
            ..RuntimeHandlerFeatures::default()
        };
        let inside = Inside {
            attempt: 0,
            ips: &[],
            ids,
            values: &BTreeMap::new(),
            images: &BTreeMap::from([("i".to_owned(), "sha256:aa".to_owned())]),
            features: &features,
        };
        mounts(&node, &pod, &pod.containers[0], &inside).map_err(|error| error.to_string())
    }

    #[test]
    fn volumes_become_mounts_beside_what_each_container_is_given() {
        let mounts = all(
            "[{name: e, emptyDir: {}}, {name: v}, {name: h, hostPath: {path: /srv}}, {name: i, image: {reference: z}}, {name: c, configMap: {name: c}}]",
            "[{name: e, mountPath: /e}, {name: v, mountPath: v, readOnly: true}, {name: h, mountPath: /h, mountPropagation: HostToContainer}, \
              {name: h, mountPath: /r, readOnly: true, recursiveReadOnly: Enabled}, {name: i, mountPath: /i, subPath: s}, {name: c, mountPath: /c}]",
            None,
            false,
        )
        .unwrap();
        let seen: Vec<_> = mounts
            .iter()
            .map(|it| {
                let tail = it.host_path.rsplit('/').next().unwrap();
                let image = it.image.as_ref().map_or("", |image| &image.image);
                format!(
                    "{tail}{image} {} ro={} rro={} {}",
                    it.container_path,
                    it.readonly,
                    it.recursive_read_only,
                    it.propagation().as_str_name()
                )
            })
            .collect();
        const PRIVATE: &str = "PROPAGATION_PRIVATE";
        assert_eq!(
            seen,
            [
                format!("e /e ro=false rro=false {PRIVATE}"),
                format!("v /v ro=true rro=false {PRIVATE}"),
                "srv /h ro=false rro=false PROPAGATION_HOST_TO_CONTAINER".into(),
                format!("srv /r ro=true rro=true {PRIVATE}"),
                format!("sha256:aa /i ro=true rro=false {PRIVATE}"),
                // only the kubelet writes it
                format!("c /c ro=true rro=false {PRIVATE}"),
                format!("etc-hosts /etc/hosts ro=false rro=false {PRIVATE}"),
                format!("00000000 /dev/termination-log ro=false rro=false {PRIVATE}"),
            ]
        );
        assert_eq!(mounts[4].image_sub_path, "s");
    }

    #[test]
    fn read_only_is_recursive_if_possible_where_the_runtime_can_do_it() {
        let list = "[{name: h, mountPath: /h, readOnly: true, recursiveReadOnly: IfPossible}]";
        for can in [false, true] {
            let mounts = all("[{name: h, hostPath: {path: /srv}}]", list, None, can).unwrap();
            assert_eq!(mounts[0].recursive_read_only, can);
        }
    }

    #[test]
    fn in_a_user_namespace_everything_but_images_is_mapped() {
        let ids = Some(Ids { first: 1 << 20 });
        let mounts = all(
            "[{name: e}, {name: i, image: {reference: z}}]",
            "[{name: e, mountPath: /e}, {name: i, mountPath: /i}]",
            ids,
            false,
        )
        .unwrap();
        let mapped: Vec<_> = mounts
            .iter()
            .map(|it| {
                let first = it.uid_mappings.first().map(|it| it.host_id);
                assert_eq!(it.uid_mappings, it.gid_mappings);
                (it.container_path.as_str(), first)
            })
            .collect();
        let first = Some(1 << 20);
        assert_eq!(
            mapped,
            [
                ("/e", first),
                ("/i", None),
                ("/etc/hosts", first),
                ("/dev/termination-log", first)
            ]
        );
    }
}
