//! User namespaces of pods, and maps of mounts: what the CRI asks of a runtime and what Kubernetes admits.
//!
//! One mapping of users and one of groups, of the pod and all of its containers alike; root is mapped, and not to the node's root. Who may
//! have which range of the node's ids is the caller's to say.

use berth_proto::cri;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use crate::error::Error;

const FIELD: &str = "namespace_options.userns_options";

/// The user namespace of a pod; none: it lives in the node's.
pub fn user_namespace(sandbox: &cri::PodSandboxConfig) -> Option<&cri::UserNamespace> {
    let security = sandbox.linux.as_ref()?.security_context.as_ref()?;
    let userns = security.namespace_options.as_ref()?.userns_options.as_ref();
    userns.filter(|userns| userns.mode == cri::NamespaceMode::Pod as i32)
}

pub(crate) fn check(options: &cri::NamespaceOption) -> Result<(), Error> {
    use cri::NamespaceMode::{Node, Pod};
    let Some(userns) = &options.userns_options else {
        return Ok(());
    };
    let lists = [("uids", &userns.uids), ("gids", &userns.gids)];
    if userns.mode == Node as i32 {
        return match lists.iter().find(|(_, list)| !list.is_empty()) {
            Some((list, _)) => Err(Error::invalid(
                format!("{FIELD}.{list}"),
                "the node's user namespace (NODE) takes no mapping",
            )),
            None => Ok(()),
        };
    }
    if userns.mode != Pod as i32 {
        let name = cri::NamespaceMode::try_from(userns.mode).map_or_else(
            |_| userns.mode.to_string(),
            |mode| mode.as_str_name().into(),
        );
        return Err(Error::invalid(
            format!("{FIELD}.mode"),
            format!("{name} is neither POD nor NODE"),
        ));
    }
    for (field, list) in lists {
        check_list(&format!("{FIELD}.{field}"), list)?;
    }
    // The processes and the shared memory of others would be out of the pod's reach, and its own caught in theirs.
    for (field, mode) in [("pid", options.pid), ("ipc", options.ipc)] {
        if mode == Node as i32 {
            return Err(Error::invalid(
                format!("namespace_options.{field}"),
                "NODE is not possible together with a user namespace of the pod",
            ));
        }
    }
    Ok(())
}

fn check_list(field: &str, list: &[cri::IdMapping]) -> Result<(), Error> {
    let wrong = |why: String| Err(Error::invalid(field, why));
    let [mapping] = list else {
        return wrong(format!("{} mappings; it must be one", list.len()));
    };
    if mapping.container_id != 0 {
        return wrong(format!(
            "it begins at id {} inside; root (0) must be mapped",
            mapping.container_id
        ));
    }
    if mapping.host_id == 0 {
        return wrong("it maps the pod's root to the node's (host_id 0)".into());
    }
    if mapping.length == 0 {
        return wrong("its length is 0".into());
    }
    // 2^32-1 is nobody (uid_valid of the kernel).
    if mapping.host_id.checked_add(mapping.length).is_none() {
        return wrong(format!(
            "{} ids from {} on go past the last id, 4294967294",
            mapping.length, mapping.host_id
        ));
    }
    Ok(())
}

/// A container that says nothing is where its pod is.
pub(crate) fn check_container(
    sandbox: &cri::PodSandboxConfig,
    container: &cri::NamespaceOption,
) -> Result<(), Error> {
    check(container)?;
    let asked = container
        .userns_options
        .as_ref()
        .filter(|userns| userns.mode == cri::NamespaceMode::Pod as i32);
    if container.userns_options.is_none() || asked == user_namespace(sandbox) {
        return Ok(());
    }
    Err(Error::invalid(
        FIELD,
        "it must be the same for a container as for its pod",
    ))
}

/// The maps of a mount are its pod's or none: other ones would give the files of another pod's users to this one's.
pub(crate) fn check_mount(
    sandbox: &cri::PodSandboxConfig,
    mount: &cri::Mount,
) -> Result<(), &'static str> {
    if mount.uid_mappings.is_empty() && mount.gid_mappings.is_empty() {
        return Ok(());
    }
    match user_namespace(sandbox) {
        None => Err("are given, but the pod has no user namespace"),
        Some(pod) if pod.uids == mount.uid_mappings && pod.gids == mount.gid_mappings => Ok(()),
        Some(_) => Err("must be those of the pod"),
    }
}

/// A list as the OCI specification has it.
pub(crate) fn to_oci(list: &[cri::IdMapping]) -> Result<Vec<LinuxIdMapping>, Error> {
    let of = |mapping: &cri::IdMapping| {
        Ok(LinuxIdMappingBuilder::default()
            .host_id(mapping.host_id)
            .container_id(mapping.container_id)
            .size(mapping.length)
            .build()?)
    };
    list.iter().map(of).collect()
}

/// Whether an id is mapped: only those can be a process's.
pub(crate) fn maps(list: &[cri::IdMapping], id: u32) -> bool {
    list.iter().any(|mapping| {
        id.checked_sub(mapping.container_id)
            .is_some_and(|offset| offset < mapping.length)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{error::Kind, tests::sandbox};

    pub(crate) fn mapping(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping {
            host_id,
            container_id,
            length,
        }
    }

    fn options(
        mode: i32,
        uids: &[cri::IdMapping],
        gids: &[cri::IdMapping],
    ) -> cri::NamespaceOption {
        cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace {
                mode,
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            }),
            ..Default::default()
        }
    }

    fn pod(options: &cri::NamespaceOption) -> cri::PodSandboxConfig {
        let mut pod = sandbox();
        pod.linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
            .namespace_options = Some(options.clone());
        pod
    }

    // SEC-ENG-13
    #[test]
    fn one_mapping_of_root_to_another_than_root_or_none() {
        let good = mapping(0, 65_536, 65_536);
        let twice = [mapping(0, 1000, 10), mapping(10, 2000, 10)];
        for (what, mode, uids, gids, taken) in [
            ("plain", 0, &[good][..], &[good][..], true),
            ("other groups", 0, &[good], &[mapping(0, 9000, 10)], true),
            (
                "the last ids",
                0,
                &[mapping(0, u32::MAX - 5, 5)],
                &[good],
                true,
            ),
            ("node", 2, &[], &[], true),
            ("node with a mapping", 2, &[good], &[], false),
            ("container", 1, &[], &[], false),
            ("target", 3, &[good], &[good], false),
            ("unknown", 77, &[good], &[good], false),
            ("none", 0, &[], &[], false),
            ("no groups", 0, &[good], &[], false),
            ("two", 0, &twice, &twice, false),
            ("overlapping", 0, &[good, good], &[good], false),
            (
                "root not mapped",
                0,
                &[mapping(1, 1000, 10)],
                &[good],
                false,
            ),
            ("the node's root", 0, &[good], &[mapping(0, 0, 10)], false),
            ("no length", 0, &[mapping(0, 1000, 0)], &[good], false),
            (
                "past the end",
                0,
                &[mapping(0, u32::MAX - 5, 6)],
                &[good],
                false,
            ),
            (
                "far past the end",
                0,
                &[mapping(0, 1000, u32::MAX)],
                &[good],
                false,
            ),
        ] {
            let checked = check(&options(mode, uids, gids));
            assert_eq!(checked.is_ok(), taken, "{what}: {checked:?}");
            if let Err(error) = checked {
                assert_eq!(error.kind(), Kind::Invalid, "{what}");
            }
        }
        for change in [(|o| o.pid = 2) as fn(&mut cri::NamespaceOption), |o| {
            o.ipc = 2
        }] {
            let mut options = options(0, &[good], &[good]);
            change(&mut options);
            assert!(check(&options).is_err());
        }
        let mut host_network = options(0, &[good], &[good]);
        host_network.network = 2;
        check(&host_network).unwrap();
    }

    #[test]
    fn containers_and_mounts_have_the_maps_of_their_pod() {
        let (one, other) = ([mapping(0, 1000, 10)], [mapping(0, 2000, 10)]);
        let mapped = pod(&options(0, &one, &one));
        let plain = pod(&options(2, &[], &[]));
        let silent = cri::NamespaceOption::default();
        for (pod, container, taken) in [
            (&mapped, options(0, &one, &one), true),
            (&mapped, silent.clone(), true),
            (&mapped, options(0, &one, &other), false),
            (&mapped, options(2, &[], &[]), false),
            (&plain, options(0, &one, &one), false),
            (&plain, options(2, &[], &[]), true),
            (&plain, silent.clone(), true),
            (&sandbox(), options(2, &[], &[]), true),
        ] {
            assert_eq!(
                check_container(pod, &container).is_ok(),
                taken,
                "{container:?}"
            );
        }
        let mount = |uids: &[cri::IdMapping], gids: &[cri::IdMapping]| cri::Mount {
            uid_mappings: uids.to_vec(),
            gid_mappings: gids.to_vec(),
            ..Default::default()
        };
        for (pod, mount, taken) in [
            (&mapped, mount(&one, &one), true),
            (&mapped, mount(&[], &[]), true),
            (&mapped, mount(&one, &[]), false),
            (&mapped, mount(&[], &one), false),
            (&mapped, mount(&one, &other), false),
            (&plain, mount(&one, &one), false),
        ] {
            assert_eq!(check_mount(pod, &mount).is_ok(), taken, "{mount:?}");
        }
    }

    #[test]
    fn an_id_is_mapped_or_not() {
        let list = [mapping(0, 1000, 10)];
        assert!(maps(&list, 0) && maps(&list, 9) && !maps(&list, 10) && !maps(&list, u32::MAX));
    }
}
