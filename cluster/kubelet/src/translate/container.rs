//! A container's part: what CreateContainer is asked for.

use std::collections::HashMap;

use berth_proto::cri::{
    ContainerConfig, ContainerMetadata, Device, ImageSpec, LinuxContainerConfig, Mount, Signal,
};

use super::{
    environment::{expand, variables},
    field::Fields,
    resources,
    sandbox::identity,
    security,
};
use crate::{
    image::ImageFacts,
    keys,
    objects::Objects,
    pod::{ContainerSpec, Desired, Role},
    problem::Problem,
    resize::asked,
    user_namespace::Ids,
};

/// What is known of a container once it is about to be made.
#[derive(Debug)]
pub(crate) struct Making<'a> {
    pub attempt: u32,
    pub image: &'a ImageFacts,
    pub fields: Fields<'a>,
    pub objects: &'a Objects,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Device>,
    /// Those of the pod's user namespace, where it has one.
    pub ids: Option<Ids>,
    /// Id of the container whose processes an ephemeral one wants to see.
    pub target: Option<&'a str>,
}

pub(crate) fn container(
    pod: &Desired,
    spec: &ContainerSpec,
    making: Making<'_>,
) -> Result<ContainerConfig, Problem> {
    let it = &spec.container;
    let name = &it.name;
    let (envs, values) = variables(spec, making.fields, making.objects)?;
    let expanded = |list: &Option<Vec<String>>| {
        list.iter()
            .flatten()
            .map(|word| expand(word, &values))
            .collect::<Vec<_>>()
    };
    let mut labels = HashMap::from(identity(pod));
    labels.insert(keys::CONTAINER_NAME.into(), name.clone());
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name.clone(),
            attempt: making.attempt,
        }),
        image: Some(ImageSpec {
            image: making.image.id.clone(),
            user_specified_image: spec.image().to_owned(),
            runtime_handler: pod.runtime_handler(),
            ..Default::default()
        }),
        command: expanded(&it.command),
        args: expanded(&it.args),
        working_dir: it.working_dir.clone().unwrap_or_default(),
        envs,
        mounts: making.mounts,
        devices: making.devices,
        labels,
        annotations: annotations(pod, spec, making.attempt),
        log_path: format!("{name}/{}.log", making.attempt),
        stdin: it.stdin == Some(true),
        stdin_once: it.stdin_once == Some(true),
        tty: it.tty == Some(true),
        linux: Some(LinuxContainerConfig {
            resources: Some(match spec.role {
                Role::Ephemeral => Default::default(),
                _ => resources::of_container(pod, spec, making.fields.node)?,
            }),
            security_context: Some(security::of_container(
                pod,
                spec,
                making.image,
                making.ids,
                making.target,
            )?),
        }),
        stop_signal: stop_signal(spec)?.into(),
        ..Default::default()
    })
}

/// As upstream's, with which its tools, and a kubelet that comes after this one, know a container again.
fn annotations(pod: &Desired, spec: &ContainerSpec, attempt: u32) -> HashMap<String, String> {
    let it = &spec.container;
    let mut annotations = HashMap::from([
        (keys::CONTAINER_HASH.to_owned(), spec.hash.clone()),
        (
            keys::CONTAINER_RESTART_COUNT.to_owned(),
            attempt.to_string(),
        ),
        (
            keys::TERMINATION_MESSAGE_PATH.to_owned(),
            it.termination_message_path.clone().unwrap_or_default(),
        ),
        (
            keys::TERMINATION_MESSAGE_POLICY.to_owned(),
            it.termination_message_policy.clone().unwrap_or_default(),
        ),
        (
            keys::GRACE_PERIOD.to_owned(),
            pod.grace().as_secs().to_string(),
        ),
    ]);
    if spec.role != Role::Ephemeral {
        let resources = serde_json::to_string(&asked(spec));
        annotations.insert(keys::RESOURCES.into(), resources.unwrap_or_default());
    }
    if let Some(seconds) = pod.pod.metadata.deletion_grace_period_seconds {
        annotations.insert(keys::DELETION_GRACE_PERIOD.into(), seconds.to_string());
    }
    let json = |value: serde_json::Result<String>| value.unwrap_or_default();
    if let Some(ports) = it.ports.as_ref().filter(|ports| !ports.is_empty()) {
        annotations.insert(keys::PORTS.into(), json(serde_json::to_string(ports)));
    }
    if let Some(hook) = it.lifecycle.as_ref().and_then(|it| it.pre_stop.as_ref()) {
        annotations.insert(keys::PRE_STOP.into(), json(serde_json::to_string(hook)));
    }
    annotations
}

fn stop_signal(spec: &ContainerSpec) -> Result<Signal, Problem> {
    let lifecycle = spec.container.lifecycle.as_ref();
    let Some(name) = lifecycle.and_then(|it| it.stop_signal.as_deref()) else {
        return Ok(Signal::RuntimeDefault);
    };
    // Kubernetes writes SIGRTMIN+1, the CRI SIGRTMINPLUS1
    Signal::from_str_name(&name.replace('+', "PLUS").replace('-', "MINUS"))
        .filter(|signal| *signal != Signal::RuntimeDefault)
        .ok_or_else(|| {
            Problem::new(
                format!("{}.lifecycle.stopSignal", spec.path),
                format!("{name:?} is not a signal"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{node::NodeFacts, pod::tests::pod};

    fn translate(lines: &str) -> ContainerConfig {
        let pod = pod(&format!(
            "  containers: [{{name: a, image: \"x:1\", {lines}}}]\n  os: {{name: linux}}"
        ));
        let image = ImageFacts {
            id: "sha256:aa".into(),
            ..ImageFacts::default()
        };
        let (node, objects) = (NodeFacts::default(), Objects::default());
        let fields = Fields {
            pod: &pod,
            ips: &[],
            node: &node,
        };
        let making = Making {
            attempt: 2,
            image: &image,
            fields,
            objects: &objects,
            mounts: Vec::new(),
            devices: Vec::new(),
            ids: None,
            target: None,
        };
        container(&pod, &pod.containers[0], making).unwrap()
    }

    #[test]
    fn a_container_is_made_of_its_image_its_words_and_its_attempt() {
        let config = translate(
            "env: [{name: A, value: b}], command: [run, \"$(A)\"], args: [\"$$(A)\", \"$(B)\"], workingDir: /w, stdin: true, tty: true",
        );
        let image = config.image.clone().unwrap();
        assert_eq!(
            (&image.image[..], &image.user_specified_image[..]),
            ("sha256:aa", "x:1")
        );
        assert_eq!(config.log_path, "a/2.log");
        assert_eq!(config.metadata.clone().unwrap().attempt, 2);
        assert_eq!(config.command, ["run", "b"]);
        assert_eq!(config.args, ["$(A)", "$(B)"]);
        assert_eq!(config.working_dir, "/w");
        assert!(config.stdin && config.tty && !config.stdin_once);
        assert_eq!(config.labels["io.kubernetes.container.name"], "a");
        assert_eq!(config.labels["io.kubernetes.pod.uid"], "uid-1");
        assert_eq!(
            config.annotations["io.kubernetes.container.restartCount"],
            "2"
        );
        assert_eq!(
            config.annotations["io.kubernetes.container.terminationMessagePath"],
            "/dev/termination-log"
        );
    }

    #[test]
    fn stop_signals_are_those_of_the_cri() {
        let of =
            |name: &str| translate(&format!("lifecycle: {{stopSignal: {name}}}")).stop_signal();
        assert_eq!(of("SIGUSR1"), Signal::Sigusr1);
        assert_eq!(of("SIGRTMIN+3"), Signal::Sigrtminplus3);
        assert_eq!(of("SIGRTMAX-1"), Signal::Sigrtmaxminus1);
        // what validation lets by, should it ever
        for name in ["SIGODD", "RUNTIME_DEFAULT"] {
            let mut spec = pod("  containers: [{name: a, image: x}]").containers[0].clone();
            let lifecycle = spec.container.lifecycle.get_or_insert_default();
            lifecycle.stop_signal = Some(name.into());
            let why = format!("spec.containers[0].lifecycle.stopSignal: {name:?} is not a signal");
            assert_eq!(stop_signal(&spec).unwrap_err().to_string(), why);
        }
    }
}
