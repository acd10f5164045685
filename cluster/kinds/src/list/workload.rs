//! apps, batch, autoscaling.

use super::*;
use crate::{autoscaler, columns, defaults, prepare, validate};

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
        columns: columns::CONTROLLER_REVISION,
        validate: validate::controller_revision,
        validate_update: validate::controller_revision_update,
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
        columns: columns::DAEMON_SET,
        default: defaults::daemon_set,
        prepare_create: prepare::create_daemon_set,
        prepare_update: prepare::update,
        validate: validate::daemon_set,
        validate_update: validate::selector_stays,
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
        columns: columns::DEPLOYMENT,
        default: defaults::deployment,
        prepare_create: prepare::create,
        prepare_update: prepare::update_deployment,
        validate: validate::deployment,
        validate_update: validate::selector_stays,
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
        columns: columns::REPLICA_SET,
        default: defaults::replica_set,
        prepare_create: prepare::create_replicas,
        prepare_update: prepare::update,
        validate: validate::replica_set,
        validate_update: validate::selector_stays,
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
        columns: columns::STATEFUL_SET,
        default: defaults::stateful_set,
        prepare_create: prepare::create_stateful_set,
        prepare_update: prepare::update,
        validate: validate::stateful_set,
        validate_create: validate::stateful_set_create,
        validate_update: validate::stateful_set_update,
        ..APPS
    },
    Kind {
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        storage: "cronjobs",
        columns: columns::CRON_JOB,
        default: defaults::cron_job,
        prepare_create: prepare::create,
        prepare_update: prepare::update,
        validate: validate::cron_job,
        ..BATCH
    },
    Kind {
        kind: "Job",
        plural: "jobs",
        singular: "job",
        storage: "jobs",
        selectable: &["status.successful"],
        columns: columns::JOB,
        default: defaults::job,
        prepare_create: prepare::create_job,
        prepare_update: prepare::update,
        validate: validate::job,
        validate_update: validate::job_update,
        ..BATCH
    },
    Kind {
        group: "autoscaling",
        version: "v1",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: IN_ALL,
        storage: "horizontalpodautoscalers",
        subresources: ONLY_STATUS,
        columns: columns::HORIZONTAL_POD_AUTOSCALER,
        default: autoscaler::default_v1,
        prepare_create: prepare::create_status,
        prepare_update: autoscaler::update_v1,
        validate: validate::horizontal_pod_autoscaler_v1,
        validate_create: validate::horizontal_pod_autoscaler_v1_create,
        validate_update: validate::horizontal_pod_autoscaler_v1_update,
        to_stored: autoscaler::to_v2,
        from_stored: autoscaler::to_v1,
        ..KIND
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
        columns: columns::HORIZONTAL_POD_AUTOSCALER,
        default: defaults::horizontal_pod_autoscaler,
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_status,
        validate: validate::horizontal_pod_autoscaler,
        validate_create: validate::horizontal_pod_autoscaler_create,
        validate_update: validate::horizontal_pod_autoscaler_update,
        ..KIND
    },
];
