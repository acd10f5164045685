//! apps, batch, autoscaling.

use super::*;

const APPS: Kind = Kind {
    group: "apps",
    ..KIND
};
const BATCH: Kind = Kind {
    group: "batch",
    categories: IN_ALL,
    subresources: ONLY_STATUS,
    ..KIND
};

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        storage: "controllerrevisions",
        ..APPS
    },
    Kind {
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: IN_ALL,
        storage: "daemonsets",
        subresources: ONLY_STATUS,
        ..APPS
    },
    Kind {
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: IN_ALL,
        storage: "deployments",
        subresources: SCALE_AND_STATUS,
        ..APPS
    },
    Kind {
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: IN_ALL,
        storage: "replicasets",
        subresources: SCALE_AND_STATUS,
        selectable: &["status.replicas"],
        ..APPS
    },
    Kind {
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: IN_ALL,
        storage: "statefulsets",
        subresources: SCALE_AND_STATUS,
        ..APPS
    },
    Kind {
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        storage: "cronjobs",
        ..BATCH
    },
    Kind {
        kind: "Job",
        plural: "jobs",
        singular: "job",
        storage: "jobs",
        selectable: &["status.successful"],
        ..BATCH
    },
    Kind {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: IN_ALL,
        storage: "horizontalpodautoscalers",
        subresources: ONLY_STATUS,
        ..KIND
    },
];
