use super::*;
use crate::pod::tests::pod;

fn translate(
    of_pod: &str,
    own: &str,
    image: ImageFacts,
) -> Result<LinuxContainerSecurityContext, String> {
    let pod = pod(&format!(
        "  securityContext: {of_pod}\n  containers: [{{name: a, image: x, securityContext: {own}}}]"
    ));
    of_container(&pod, &pod.containers[0], &image, None, None)
        .map_err(|problem| problem.to_string())
}

fn image(user: Option<i64>, username: &str) -> ImageFacts {
    ImageFacts {
        user,
        username: username.into(),
        ..ImageFacts::default()
    }
}

#[test]
fn the_containers_own_context_goes_before_the_pods() {
    for (of_pod, own, user, group) in [
        ("{}", "{}", None, None),
        ("{runAsUser: 5}", "{}", Some(5), None),
        (
            "{runAsUser: 5, runAsGroup: 6}",
            "{runAsUser: 7}",
            Some(7),
            Some(6),
        ),
        ("{}", "{runAsUser: 0, runAsGroup: 0}", Some(0), Some(0)),
    ] {
        let it = translate(of_pod, own, image(None, "")).unwrap();
        let got = (
            it.run_as_user.map(|it| it.value),
            it.run_as_group.map(|it| it.value),
        );
        assert_eq!(got, (user, group), "{of_pod} {own}");
    }
    let it = translate(
        "{fsGroup: 9, supplementalGroups: [8]}",
        "{readOnlyRootFilesystem: true}",
        image(None, ""),
    )
    .unwrap();
    assert_eq!(
        (it.supplemental_groups, it.readonly_rootfs),
        (vec![8, 9], true)
    );
}

#[test]
fn a_group_without_a_user_comes_with_the_images_user() {
    let user = |image| {
        let it = translate("{runAsGroup: 9}", "{}", image).unwrap();
        (it.run_as_user.map(|it| it.value), it.run_as_username)
    };
    assert_eq!(user(image(Some(33), "")), (Some(33), String::new()));
    assert_eq!(user(image(None, "www")), (None, "www".into()));
    assert_eq!(user(image(None, "")), (Some(0), String::new()));
}

#[test]
fn who_must_not_be_root_is_not() {
    const PATH: &str = "spec.containers[0].securityContext.runAsNonRoot: but";
    let of =
        |user, image| translate(&format!("{{runAsNonRoot: true{user}}}"), "{}", image).map(drop);
    for (user, image, refused) in [
        (", runAsUser: 5", image(Some(0), ""), None),
        ("", image(Some(33), ""), None),
        (
            ", runAsUser: 0",
            image(Some(33), ""),
            Some("runAsUser is 0"),
        ),
        (
            "",
            image(Some(0), ""),
            Some("the image runs as root: set runAsUser"),
        ),
        (
            "",
            image(None, ""),
            Some("the image runs as root: set runAsUser"),
        ),
        (
            "",
            image(None, "www"),
            Some("the image's user \"www\" is a name, which may be root's: set runAsUser"),
        ),
    ] {
        assert_eq!(
            of(user, image).err(),
            refused.map(|why| format!("{PATH} {why}"))
        );
    }
}

#[test]
fn profiles_and_masks_are_inherited_and_fall_for_the_privileged() {
    let seccomp = |of_pod: &str, own: &str| {
        let it = translate(of_pod, own, image(None, "")).unwrap();
        let profile = it.seccomp.unwrap();
        (
            profile.profile_type(),
            profile.localhost_ref,
            it.masked_paths.is_empty(),
        )
    };
    let none = String::new;
    assert_eq!(
        seccomp("{}", "{}"),
        (ProfileType::Unconfined, none(), false)
    );
    assert_eq!(
        seccomp("{seccompProfile: {type: RuntimeDefault}}", "{}"),
        (ProfileType::RuntimeDefault, none(), false)
    );
    assert_eq!(
        seccomp(
            "{seccompProfile: {type: RuntimeDefault}}",
            "{seccompProfile: {type: Localhost, localhostProfile: a/b.json}}"
        ),
        (
            ProfileType::Localhost,
            "/var/lib/kubelet/seccomp/a/b.json".into(),
            false
        )
    );
    assert_eq!(
        seccomp(
            "{seccompProfile: {type: RuntimeDefault}}",
            "{privileged: true}"
        ),
        (ProfileType::Unconfined, none(), true)
    );
}

#[test]
fn groups_of_the_pod_and_its_volumes_are_every_containers() {
    let it = translate(
        "{supplementalGroups: [1, 2], fsGroup: 3, supplementalGroupsPolicy: Strict}",
        "{}",
        image(None, ""),
    )
    .unwrap();
    assert_eq!(it.supplemental_groups, [1, 2, 3]);
    assert_eq!(
        it.supplemental_groups_policy(),
        SupplementalGroupsPolicy::Strict
    );
    let it = translate(
        "{supplementalGroups: [3], fsGroup: 3}",
        "{}",
        image(None, ""),
    )
    .unwrap();
    assert_eq!(it.supplemental_groups, [3]);
}

#[test]
fn escalation_capabilities_and_labels_are_carried_over() {
    let own = "{allowPrivilegeEscalation: false, capabilities: {add: [NET_ADMIN], drop: [ALL]}, seLinuxOptions: {level: \"s0:c1\"}}";
    let it = translate("{}", own, image(None, "")).unwrap();
    assert!(it.no_new_privs);
    assert_eq!(it.selinux_options.unwrap().level, "s0:c1");
    let capabilities = it.capabilities.unwrap();
    assert_eq!(
        (
            capabilities.add_capabilities,
            capabilities.drop_capabilities
        ),
        (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()])
    );
    for own in ["{allowPrivilegeEscalation: true}", "{}"] {
        assert!(!translate("{}", own, image(None, "")).unwrap().no_new_privs);
    }
}

#[test]
fn namespaces_are_the_nodes_the_pods_or_the_containers() {
    use NamespaceMode::{Container, Node, Pod};
    for (spec, network, pid, ipc) in [
        ("", Pod, Container, Pod),
        (
            "  hostNetwork: true\n  hostIPC: true\n  hostPID: true",
            Node,
            Node,
            Node,
        ),
        ("  shareProcessNamespace: true", Pod, Pod, Pod),
    ] {
        let pod = pod(&format!("  containers: [{{name: a, image: x}}]\n{spec}"));
        let it = namespaces(&pod, None);
        assert_eq!(
            (it.network(), it.pid(), it.ipc()),
            (network, pid, ipc),
            "{spec}"
        );
        assert_eq!(it.userns_options, None);
    }
}

#[test]
fn a_pod_and_its_containers_have_the_same_user_namespace() {
    let pod = pod("  hostUsers: false\n  containers: [{name: a, image: x}]");
    let ids = Some(Ids { first: 1 << 20 });
    let of_pod = of_sandbox(&pod, ids).unwrap().namespace_options.unwrap();
    let of_container = of_container(&pod, &pod.containers[0], &image(None, ""), ids, None)
        .unwrap()
        .namespace_options
        .unwrap();
    let options = of_pod.userns_options.expect("a user namespace");
    assert_eq!(options.mode(), NamespaceMode::Pod);
    assert_eq!(
        (options.uids[0].host_id, options.uids[0].length),
        (1 << 20, 65_536)
    );
    assert_eq!(options.uids, options.gids);
    assert_eq!(of_container.userns_options, Some(options));
}
