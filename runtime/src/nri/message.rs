//! Pods and containers as plugins see them.

use std::collections::HashMap;

use berth_network::Attachment;
use berth_nri::api;
use berth_proto::cri;
use oci_spec::runtime::{LinuxDeviceType, Spec};
use protobuf::MessageField;

use super::limits;
use crate::pod::{
    Pod,
    record::{ContainerRecord, Exit},
    view::{ContainerView, PodView},
};

/// A pod that is being made, or one as it was published.
pub fn pod(pod: &Pod, attachment: Option<&Attachment>) -> api::PodSandbox {
    let ips = attachment.map_or(vec![], |a| a.ips.iter().map(|ip| ip.to_string()).collect());
    let netns = attachment.map(|a| a.netns.display().to_string());
    sandbox(pod, ips, netns.unwrap_or_default(), 0)
}

pub fn pod_view(view: &PodView) -> api::PodSandbox {
    let ips = view.ips.iter().map(|ip| ip.to_string()).collect();
    sandbox(&view.pod, ips, view.netns.clone(), view.sandbox_pid)
}

fn sandbox(pod: &Pod, ips: Vec<String>, netns: String, pid: u32) -> api::PodSandbox {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let empty = cri::LinuxPodSandboxConfig::default();
    let config = pod.config.linux.as_ref().unwrap_or(&empty);
    let parent = pod.cgroup_parent.display().to_string();
    let resources = |of: &Option<cri::LinuxContainerResources>| match of {
        Some(resources) => MessageField::some(limits::message(resources)),
        None => MessageField::none(),
    };
    let namespace = (!netns.is_empty()).then(|| api::LinuxNamespace {
        type_: "network".into(),
        path: netns,
        ..Default::default()
    });
    api::PodSandbox {
        id: pod.id.clone(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
        linux: MessageField::some(api::LinuxPodSandbox {
            pod_overhead: resources(&config.overhead),
            pod_resources: resources(&config.resources),
            cgroup_parent: parent.clone(),
            cgroups_path: parent,
            namespaces: namespace.into_iter().collect(),
            ..Default::default()
        }),
        pid,
        ips,
        ..Default::default()
    }
}

/// A container at some moment of its life.
#[derive(Debug)]
pub struct Moment<'a> {
    pub record: &'a ContainerRecord,
    pub state: api::ContainerState,
    pub started_at: i64,
    pub exit: Option<&'a Exit>,
    pub pid: u32,
}

impl<'a> Moment<'a> {
    pub fn of(view: &'a ContainerView) -> Self {
        use cri::ContainerState as Cri;
        Self {
            record: &view.record,
            state: match view.state {
                Cri::ContainerCreated => api::ContainerState::CONTAINER_CREATED,
                Cri::ContainerRunning => api::ContainerState::CONTAINER_RUNNING,
                Cri::ContainerExited => api::ContainerState::CONTAINER_STOPPED,
                Cri::ContainerUnknown => api::ContainerState::CONTAINER_UNKNOWN,
            },
            started_at: view.started_at,
            exit: view.exit.as_ref(),
            pid: view.pid,
        }
    }
}

/// `spec` is what it was made with; there is none any more where its pod was stopped long ago.
pub fn container(moment: &Moment<'_>, spec: Option<&Spec>) -> api::Container {
    let record = moment.record;
    let config = &record.config;
    let mut message = api::Container {
        id: record.id.clone(),
        pod_sandbox_id: record.pod_id.clone(),
        name: config.metadata.clone().unwrap_or_default().name,
        state: moment.state.into(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        pid: moment.pid,
        created_at: record.created_at,
        started_at: moment.started_at,
        CDI_devices: config
            .cdi_devices
            .iter()
            .map(|device| api::CDIDevice {
                name: device.name.clone(),
                ..Default::default()
            })
            .collect(),
        user: MessageField::some(api::User {
            uid: record.user.0 as u32,
            gid: record.user.1 as u32,
            additional_gids: record.user.2.iter().map(|gid| *gid as u32).collect(),
            ..Default::default()
        }),
        image: MessageField::some(image(record)),
        ..Default::default()
    };
    if let Some(exit) = moment.exit {
        message.finished_at = exit.finished_at;
        message.exit_code = exit.code;
        message.status_reason.clone_from(&exit.reason);
        message.status_message.clone_from(&exit.message);
    }
    let linux = message.linux.mut_or_insert_default();
    linux.seccomp_profile = seccomp_profile(config);
    linux.resources = MessageField::some(limits::message(&record.resources));
    if let Some(spec) = spec {
        of_spec(&mut message, spec);
    }
    message
}

fn image(record: &ContainerRecord) -> api::Image {
    let name = record.config.image.clone().unwrap_or_default();
    api::Image {
        name: match name.user_specified_image.as_str() {
            "" => name.image,
            name => name.to_owned(),
        },
        digest: match record.image_ref.rsplit_once('@') {
            Some((_, digest)) => digest.to_owned(),
            None => String::new(),
        },
        config_digest: record.image_id.clone(),
        ..Default::default()
    }
}

fn seccomp_profile(config: &cri::ContainerConfig) -> MessageField<api::SecurityProfile> {
    use api::security_profile::ProfileType as Nri;
    use cri::security_profile::ProfileType as Cri;
    let security = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref());
    let profile = security.and_then(|s| s.seccomp.as_ref());
    let message = profile.map(|profile| api::SecurityProfile {
        profile_type: match profile.profile_type() {
            Cri::RuntimeDefault => Nri::RUNTIME_DEFAULT,
            Cri::Unconfined => Nri::UNCONFINED,
            Cri::Localhost => Nri::LOCALHOST,
        }
        .into(),
        localhost_ref: profile.localhost_ref.clone(),
        ..Default::default()
    });
    message.into()
}

fn of_spec(message: &mut api::Container, spec: &Spec) {
    let ours = spec.annotations().clone().unwrap_or_default();
    for (key, value) in ours {
        message.annotations.entry(key).or_insert(value);
    }
    if let Some(process) = spec.process() {
        message.args = process.args().clone().unwrap_or_default();
        message.env = process.env().clone().unwrap_or_default();
        message.rlimits = process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| api::POSIXRlimit {
                type_: limit.typ().to_string(),
                hard: limit.hard(),
                soft: limit.soft(),
                ..Default::default()
            })
            .collect();
    }
    message.mounts = spec
        .mounts()
        .iter()
        .flatten()
        .map(|mount| api::Mount {
            destination: mount.destination().display().to_string(),
            type_: mount.typ().clone().unwrap_or_default(),
            source: mount
                .source()
                .as_ref()
                .map(|source| source.display().to_string())
                .unwrap_or_default(),
            options: mount.options().clone().unwrap_or_default(),
            ..Default::default()
        })
        .collect();
    let linux = message.linux.mut_or_insert_default();
    linux.oom_score_adj = spec
        .process()
        .as_ref()
        .and_then(|process| process.oom_score_adj())
        .map(|score| api::OptionalInt {
            value: score.into(),
            ..Default::default()
        })
        .into();
    let Some(given) = spec.linux() else { return };
    linux.cgroups_path = given
        .cgroups_path()
        .as_ref()
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    linux.sysctl = given
        .sysctl()
        .iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect::<HashMap<_, _>>();
    linux.namespaces = given
        .namespaces()
        .iter()
        .flatten()
        .map(|namespace| api::LinuxNamespace {
            type_: namespace.typ().to_string(),
            path: namespace
                .path()
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            ..Default::default()
        })
        .collect();
    linux.devices = given
        .devices()
        .iter()
        .flatten()
        .map(|device| api::LinuxDevice {
            path: device.path().display().to_string(),
            type_: match device.typ() {
                LinuxDeviceType::B => "b",
                LinuxDeviceType::P => "p",
                LinuxDeviceType::U => "u",
                LinuxDeviceType::C | LinuxDeviceType::A => "c",
            }
            .into(),
            major: device.major(),
            minor: device.minor(),
            file_mode: device
                .file_mode()
                .map(|value| api::OptionalFileMode {
                    value,
                    ..Default::default()
                })
                .into(),
            uid: optional(device.uid()),
            gid: optional(device.gid()),
            ..Default::default()
        })
        .collect();
    if let Some(resources) = given.resources() {
        limits::of_oci(linux.resources.mut_or_insert_default(), resources);
    }
}

fn optional(value: Option<u32>) -> MessageField<api::OptionalUInt32> {
    value
        .map(|value| api::OptionalUInt32 {
            value,
            ..Default::default()
        })
        .into()
}
