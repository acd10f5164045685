//! Fields of a pod that mean something to a kubelet and are not built here: refused by name. What is for others (the scheduler, the API
//! server) is let be.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements, Volume};

use crate::problem::Problem;

/// What only a server has.
const OF_SERVER: &str = "this needs an API server as the pod's source";
const TOKEN: &str = "serviceAccountToken";
const CLAIM: &str = "persistentVolumeClaim";
const EPHEMERAL: &str = "ephemeral";
const DEVICES: &str = "volumeDevices";

/// What of `pod` can't be honoured.
pub(crate) fn fields(pod: &Pod) -> Vec<Problem> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    let mut not_built = |is_there: bool, path: String, what: &str| {
        if is_there {
            problems.push(Problem::new(path, format!("not built: {what}")));
        }
    };
    not_built(
        spec.resource_claims
            .as_ref()
            .is_some_and(|claims| !claims.is_empty()),
        "spec.resourceClaims".into(),
        "dynamic resource allocation",
    );
    if let Some(resources) = &spec.resources {
        let claims = resources.claims.as_ref();
        not_built(
            claims.is_some_and(|claims| !claims.is_empty()),
            "spec.resources.claims".into(),
            "dynamic resource allocation",
        );
        for (list, name) in named(resources) {
            not_built(
                !matches!(name, "cpu" | "memory"),
                format!("spec.resources.{list}.{name}"),
                "resources of the whole pod other than cpu and memory",
            );
        }
    }
    for (path, container) in all(spec) {
        not_built(
            container
                .restart_policy_rules
                .as_ref()
                .is_some_and(|rules| !rules.is_empty()),
            format!("{path}.restartPolicyRules"),
            "rules for restarts",
        );
        not_built(
            container
                .volume_devices
                .as_ref()
                .is_some_and(|devices| !devices.is_empty()),
            format!("{path}.{DEVICES}"),
            OF_SERVER,
        );
        let claims = container
            .resources
            .as_ref()
            .and_then(|it| it.claims.as_ref());
        not_built(
            claims.is_some_and(|claims| !claims.is_empty()),
            format!("{path}.resources.claims"),
            "dynamic resource allocation",
        );
        for (list, name) in of_plugins(container) {
            not_built(
                true,
                format!("{path}.resources.{list}.{name}"),
                "resources of device plugins",
            );
        }
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let from = variable.value_from.as_ref();
            not_built(
                from.is_some_and(|from| from.file_key_ref.is_some()),
                format!("{path}.env[{index}].valueFrom.fileKeyRef"),
                "variables from files",
            );
        }
        for (name, handler) in container.lifecycle.iter().flat_map(|lifecycle| {
            [
                ("postStart", &lifecycle.post_start),
                ("preStop", &lifecycle.pre_stop),
            ]
        }) {
            not_built(
                handler
                    .as_ref()
                    .is_some_and(|handler| handler.tcp_socket.is_some()),
                format!("{path}.lifecycle.{name}.tcpSocket"),
                "upstream doesn't act on it either",
            );
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if let Some(name) = unbuilt_source(volume) {
            not_built(
                true,
                format!("spec.volumes[{index}].{name}"),
                "this kind of volume",
            );
        }
        for (name, is_there) in [
            (CLAIM, volume.persistent_volume_claim.is_some()),
            (EPHEMERAL, volume.ephemeral.is_some()),
        ] {
            not_built(is_there, format!("spec.volumes[{index}].{name}"), OF_SERVER);
        }
        let medium = volume
            .empty_dir
            .as_ref()
            .and_then(|it| it.medium.as_deref());
        not_built(
            !matches!(medium, None | Some("" | "Memory")),
            format!("spec.volumes[{index}].emptyDir.medium"),
            "a medium other than the disk and Memory",
        );
        for (at, source) in volume
            .projected
            .iter()
            .flat_map(|it| it.sources.iter().flatten())
            .enumerate()
        {
            for (name, is_there) in [
                (TOKEN, source.service_account_token.is_some()),
                ("clusterTrustBundle", source.cluster_trust_bundle.is_some()),
                ("podCertificate", source.pod_certificate.is_some()),
            ] {
                let path = format!("spec.volumes[{index}].projected.sources[{at}].{name}");
                not_built(is_there, path, OF_SERVER);
            }
        }
    }
    problems
}

/// Of a pod of an API server, which gives tokens, and has claims.
pub(crate) fn of_server(pod: &Pod) -> Vec<Problem> {
    let mut problems = fields(pod);
    problems.retain(|problem| {
        let field = problem.path.rsplit('.').next().unwrap_or_default();
        !matches!(field, TOKEN | CLAIM | EPHEMERAL | DEVICES)
    });
    problems
}

fn all(spec: &PodSpec) -> impl Iterator<Item = (String, &Container)> {
    let inits = spec.init_containers.iter().flatten().enumerate();
    let mains = spec.containers.iter().enumerate();
    inits
        .map(|(index, it)| (format!("spec.initContainers[{index}]"), it))
        .chain(mains.map(|(index, it)| (format!("spec.containers[{index}]"), it)))
}

/// What is asked for beside what a node has by itself.
fn of_plugins(container: &Container) -> impl Iterator<Item = (&'static str, &str)> {
    let is_own = |name: &str| {
        matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
    };
    let all = container.resources.iter().flat_map(named);
    all.filter(move |(_, name)| !is_own(name))
}

/// The names of resources, each behind its list's.
fn named(resources: &ResourceRequirements) -> impl Iterator<Item = (&'static str, &str)> {
    let lists = [
        ("limits", &resources.limits),
        ("requests", &resources.requests),
    ];
    lists.into_iter().flat_map(|(list, amounts)| {
        let names = amounts.iter().flat_map(|amounts| amounts.keys());
        names.map(move |name| (list, name.as_str()))
    })
}

fn unbuilt_source(volume: &Volume) -> Option<&'static str> {
    let sources: [(&'static str, bool); 21] = [
        (
            "awsElasticBlockStore",
            volume.aws_elastic_block_store.is_some(),
        ),
        ("azureDisk", volume.azure_disk.is_some()),
        ("azureFile", volume.azure_file.is_some()),
        ("cephfs", volume.cephfs.is_some()),
        ("cinder", volume.cinder.is_some()),
        ("csi", volume.csi.is_some()),
        ("fc", volume.fc.is_some()),
        ("flexVolume", volume.flex_volume.is_some()),
        ("flocker", volume.flocker.is_some()),
        ("gcePersistentDisk", volume.gce_persistent_disk.is_some()),
        // SEC-KUB-05: never to be
        ("gitRepo", volume.git_repo.is_some()),
        ("glusterfs", volume.glusterfs.is_some()),
        ("iscsi", volume.iscsi.is_some()),
        ("nfs", volume.nfs.is_some()),
        (
            "photonPersistentDisk",
            volume.photon_persistent_disk.is_some(),
        ),
        ("portworxVolume", volume.portworx_volume.is_some()),
        ("quobyte", volume.quobyte.is_some()),
        ("rbd", volume.rbd.is_some()),
        ("scaleIO", volume.scale_io.is_some()),
        ("storageos", volume.storageos.is_some()),
        ("vsphereVolume", volume.vsphere_volume.is_some()),
    ];
    sources
        .into_iter()
        .find(|(_, is_there)| *is_there)
        .map(|(name, _)| name)
}

/// What a pod without an API server behind it can't have (CM-08): the objects that it names are not there.
pub(crate) fn references(pod: &Pod) -> Vec<Problem> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mut problems = Vec::new();
    let mut refuse = |is_there: bool, path: String| {
        if is_there {
            problems.push(Problem::new(
                path,
                "a static pod can't refer to objects of the API",
            ));
        }
    };
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    refuse(
        named(&spec.service_account_name),
        "spec.serviceAccountName".into(),
    );
    refuse(
        spec.image_pull_secrets
            .as_ref()
            .is_some_and(|secrets| !secrets.is_empty()),
        "spec.imagePullSecrets".into(),
    );
    refuse(
        spec.ephemeral_containers
            .as_ref()
            .is_some_and(|it| !it.is_empty()),
        "spec.ephemeralContainers".into(),
    );
    for (path, container) in all(spec) {
        for (index, from) in container.env_from.iter().flatten().enumerate() {
            refuse(
                from.config_map_ref.is_some(),
                format!("{path}.envFrom[{index}].configMapRef"),
            );
            refuse(
                from.secret_ref.is_some(),
                format!("{path}.envFrom[{index}].secretRef"),
            );
        }
        for (index, variable) in container.env.iter().flatten().enumerate() {
            let Some(from) = &variable.value_from else {
                continue;
            };
            let path = format!("{path}.env[{index}].valueFrom");
            refuse(
                from.config_map_key_ref.is_some(),
                format!("{path}.configMapKeyRef"),
            );
            refuse(
                from.secret_key_ref.is_some(),
                format!("{path}.secretKeyRef"),
            );
        }
    }
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{index}]");
        refuse(volume.config_map.is_some(), format!("{path}.configMap"));
        refuse(volume.secret.is_some(), format!("{path}.secret"));
        for (at, source) in volume
            .projected
            .iter()
            .flat_map(|it| it.sources.iter().flatten())
            .enumerate()
        {
            let path = format!("{path}.projected.sources[{at}]");
            refuse(source.config_map.is_some(), format!("{path}.configMap"));
            refuse(source.secret.is_some(), format!("{path}.secret"));
        }
    }
    problems
}
