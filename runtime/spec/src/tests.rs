//! The whole spec, and what the tests of the parts share.

use std::{collections::HashSet, fs};

use oci_spec::runtime::Capability;
use proptest::prelude::*;

use super::*;

/// A machine with cgroup v1 and no LSM, whose daemon has every capability.
pub(crate) fn host() -> Host {
    let capabilities = [
        "AUDIT_CONTROL",
        "AUDIT_READ",
        "AUDIT_WRITE",
        "BLOCK_SUSPEND",
        "BPF",
        "CHECKPOINT_RESTORE",
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "IPC_OWNER",
        "KILL",
        "LEASE",
        "LINUX_IMMUTABLE",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "MKNOD",
        "NET_ADMIN",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_RAW",
        "PERFMON",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYSLOG",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_CHROOT",
        "SYS_MODULE",
        "SYS_NICE",
        "SYS_PACCT",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "WAKE_ALARM",
    ];
    Host {
        capabilities: capabilities
            .iter()
            .map(|name| name.parse::<Capability>().unwrap())
            .collect::<HashSet<_>>(),
        cgroup_v2: false,
        cgroup_v1_mounts: vec![
            "/sys/fs/cgroup/cpu,cpuacct".into(),
            "/sys/fs/cgroup/memory".into(),
        ],
        cgroup_v2_files: HashSet::new(),
        cgroups_unusable: None,
        hugetlb: false,
        swap_accounting: false,
        apparmor: false,
        selinux: false,
        oom_score_adj: 0,
        can_lower_oom_score: true,
    }
}

pub(crate) fn image(entrypoint: &[&str], cmd: &[&str], env: &[&str]) -> ImageConfiguration {
    serde_json::from_value(serde_json::json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": entrypoint, "Cmd": cmd, "Env": env },
        "rootfs": { "type": "layers", "diff_ids": [] },
    }))
    .unwrap()
}

pub(crate) fn sandbox() -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".into(),
            namespace: "default".into(),
            uid: "u1".into(),
            attempt: 0,
        }),
        ..Default::default()
    }
}

/// Everything that a spec is made from.
pub(crate) struct Fixture {
    root: tempfile::TempDir,
    pub sandbox: cri::PodSandboxConfig,
    pub container: cri::ContainerConfig,
    pub image: ImageConfiguration,
    pub host: Host,
    pub image_volumes: BTreeMap<usize, PathBuf>,
    pod_file: PathBuf,
}

pub(crate) fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(
        root.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
    )
    .unwrap();
    let pod_file = root.path().join("pod-file");
    fs::write(&pod_file, "from-file\n").unwrap();
    Fixture {
        root,
        sandbox: sandbox(),
        container: cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            }),
            image: Some(cri::ImageSpec {
                image: "sha256:1".into(),
                ..Default::default()
            }),
            command: vec!["/bin/true".into()],
            ..Default::default()
        },
        image: image(&[], &[], &[]),
        host: host(),
        image_volumes: BTreeMap::new(),
        pod_file,
    }
}

impl Fixture {
    pub fn inputs(&self) -> Inputs<'_> {
        Inputs {
            pod_id: "p1",
            container_id: "c1",
            sandbox: &self.sandbox,
            container: &self.container,
            image: &self.image,
            rootfs: self.root.path(),
            resolv_conf: &self.pod_file,
            hosts: &self.pod_file,
            hostname: &self.pod_file,
            shm: self.root.path(),
            cgroup_path: Path::new("/kubepods/pod1/c1"),
            cdi_spec_dirs: &[],
            image_volumes: &self.image_volumes,
            apparmor_default: Ok(()),
            host: &self.host,
        }
    }

    fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        self.container
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
    }

    fn privileged(mut self) -> Self {
        self.security().privileged = true;
        let security = self
            .sandbox
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default();
        security.privileged = true;
        self
    }
}

#[test]
fn a_plain_container_gets_the_defaults() {
    let mut fixture = fixture();
    fixture.security().seccomp = Some(cri::SecurityProfile::default());
    let built = container_spec(&fixture.inputs()).unwrap();
    assert!(built.notes.is_empty(), "{:?}", built.notes);
    let process = built.spec.process().clone().unwrap();
    assert_eq!(
        process.args().as_deref(),
        Some(&["/bin/true".to_owned()][..])
    );
    assert!(
        process
            .env()
            .as_ref()
            .unwrap()
            .contains(&"HOSTNAME=from-file".to_owned())
    );
    assert_eq!(
        (
            process.rlimits(),
            process.no_new_privileges(),
            process.terminal()
        ),
        (&None, None, Some(false))
    );
    let linux = built.spec.linux().clone().unwrap();
    assert!(linux.seccomp().is_some());
    assert_eq!(
        linux.cgroups_path().as_deref(),
        Some(Path::new("/kubepods/pod1/c1"))
    );
    assert_eq!(linux.rootfs_propagation().as_deref(), Some("private"));
    assert!(linux.sysctl().is_none());
    let root = built.spec.root().clone().unwrap();
    assert_eq!(
        (root.path().as_path(), root.readonly()),
        (Path::new("rootfs"), Some(false))
    );
    assert_eq!(
        (
            built.user().uid,
            built.user().gid,
            built.user().supplemental_groups
        ),
        (0, 0, vec![0])
    );
    assert!(built.spec.hostname().is_none() && built.spec.hooks().is_none());
}

#[test]
fn no_namespace_carries_a_path_and_none_is_a_user_namespace() {
    for (cgroup_v2, count) in [(false, 5), (true, 6)] {
        let mut fixture = fixture();
        fixture.host.cgroup_v2 = cgroup_v2;
        let namespaces = container_spec(&fixture.inputs())
            .unwrap()
            .spec
            .linux()
            .clone()
            .unwrap()
            .namespaces()
            .clone()
            .unwrap();
        assert_eq!(namespaces.len(), count);
        assert!(
            namespaces.iter().all(|namespace| namespace.path().is_none()
                && namespace.typ() != LinuxNamespaceType::User)
        );
    }
}

#[test]
fn a_privileged_container_is_open() {
    let built = container_spec(&fixture().privileged().inputs()).unwrap();
    let linux = built.spec.linux().clone().unwrap();
    assert!(linux.seccomp().is_none());
    assert_eq!(
        (linux.masked_paths().clone(), linux.readonly_paths().clone()),
        (Some(vec![]), Some(vec![]))
    );
    assert!(linux.devices().as_ref().unwrap().len() >= 6);
    let bounding = built
        .spec
        .process()
        .clone()
        .unwrap()
        .capabilities()
        .clone()
        .unwrap()
        .bounding()
        .clone();
    assert_eq!(bounding, Some(host().capabilities));
}

#[test]
fn no_new_privileges_and_readonly_are_passed_on() {
    let mut fixture = fixture();
    fixture.security().no_new_privs = true;
    fixture.security().readonly_rootfs = true;
    let spec = container_spec(&fixture.inputs()).unwrap().spec;
    assert_eq!(
        spec.process().as_ref().unwrap().no_new_privileges(),
        Some(true)
    );
    assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
    let hosts = spec
        .mounts()
        .as_ref()
        .unwrap()
        .iter()
        .find(|mount| mount.destination() == Path::new("/etc/hosts"))
        .unwrap();
    assert!(hosts.options().as_ref().unwrap().contains(&"ro".to_owned()));
}

#[test]
fn the_spec_survives_json() {
    for fixture in [fixture(), fixture().privileged()] {
        let spec = container_spec(&fixture.inputs()).unwrap().spec;
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
    }
}

#[test]
fn nothing_is_made_on_the_host() {
    let mut fixture = fixture();
    let missing = fixture.root.path().join("missing");
    fixture.container.mounts = vec![cri::Mount {
        host_path: missing.to_str().unwrap().into(),
        container_path: "/v".into(),
        ..Default::default()
    }];
    assert_eq!(
        container_spec(&fixture.inputs()).unwrap_err().kind(),
        Kind::Precondition
    );
    assert!(!missing.exists());
}

/// Keys that some engine or tool takes for an order, beside random ones.
fn annotation_key() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9./_-]{1,40}",
        Just("org.systemd.property.ExecStart".to_owned()),
        Just("run.oci.handler".to_owned()),
        Just("run.oci.hooks.stderr".to_owned()),
        Just("io.kubernetes.cri.sandbox-id".to_owned()),
        Just("io.kubernetes.cri.container-type".to_owned()),
        Just("io.kubernetes.cri-o.Devices".to_owned()),
        Just("berth.dev/anything".to_owned()),
        Just("container.apparmor.security.beta.kubernetes.io/main".to_owned()),
        Just("cdi.k8s.io/x".to_owned()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    // SEC-CRI-05, SEC-IMG-11
    #[test]
    fn no_annotation_and_no_label_changes_the_spec(
        annotations in prop::collection::hash_map(annotation_key(), ".{0,60}", 1..6),
        labels in prop::collection::hash_map(annotation_key(), ".{0,60}", 0..4),
    ) {
        let plain = fixture();
        let want = container_spec(&plain.inputs()).unwrap().spec;
        let mut container = plain.container.clone();
        container.annotations = annotations.clone();
        // The one that is read, and only there: a pod's, a label's and an image's are like any other.
        container.annotations.remove("cdi.k8s.io/x");
        container.labels = labels.clone();
        let mut sandbox = plain.sandbox.clone();
        sandbox.annotations = annotations.clone();
        sandbox.labels = labels.clone();
        let mut image = serde_json::to_value(&plain.image).unwrap();
        image["config"]["Labels"] = serde_json::to_value(&annotations).unwrap();
        let image = serde_json::from_value(image).unwrap();
        let got = container_spec(&Inputs { container: &container, sandbox: &sandbox, image: &image, ..plain.inputs() }).unwrap().spec;
        prop_assert_eq!(got, want);
    }

    #[test]
    fn no_image_user_makes_a_panic(user in ".{0,20}") {
        let plain = fixture();
        let mut image = serde_json::to_value(&plain.image).unwrap();
        image["config"]["User"] = user.into();
        let image = serde_json::from_value(image).unwrap();
        let _ = container_spec(&Inputs { image: &image, ..plain.inputs() });
    }
}
