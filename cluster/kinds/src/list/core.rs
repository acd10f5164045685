use super::*;
use crate::{columns, defaults, prepare, validate};

const POD: &[Subresource] = &[
    Subresource {
        name: "attach",
        verbs: STREAM,
        kind: Some(("", "v1", "PodAttachOptions")),
    },
    Subresource {
        name: "binding",
        verbs: CREATE,
        kind: Some(("", "v1", "Binding")),
    },
    Subresource {
        name: "ephemeralcontainers",
        verbs: GET_PATCH_UPDATE,
        kind: None,
    },
    Subresource {
        name: "eviction",
        verbs: CREATE,
        kind: Some(("policy", "v1", "Eviction")),
    },
    Subresource {
        name: "exec",
        verbs: STREAM,
        kind: Some(("", "v1", "PodExecOptions")),
    },
    Subresource {
        name: "log",
        verbs: GET,
        kind: None,
    },
    Subresource {
        name: "portforward",
        verbs: STREAM,
        kind: Some(("", "v1", "PodPortForwardOptions")),
    },
    Subresource {
        name: "proxy",
        verbs: PROXY,
        kind: Some(("", "v1", "PodProxyOptions")),
    },
    Subresource {
        name: "resize",
        verbs: GET_PATCH_UPDATE,
        kind: None,
    },
    STATUS,
];

const SERVICE: &[Subresource] = &[
    Subresource {
        name: "proxy",
        verbs: PROXY,
        kind: Some(("", "v1", "ServiceProxyOptions")),
    },
    STATUS,
];

const NODE: &[Subresource] = &[
    Subresource {
        name: "proxy",
        verbs: PROXY,
        kind: Some(("", "v1", "NodeProxyOptions")),
    },
    STATUS,
];

const NAMESPACE: &[Subresource] = &[
    Subresource {
        name: "finalize",
        verbs: &["update"],
        kind: None,
    },
    STATUS,
];

const SERVICE_ACCOUNT: &[Subresource] = &[Subresource {
    name: "token",
    verbs: CREATE,
    kind: Some(("authentication.k8s.io", "v1", "TokenRequest")),
}];

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "Binding",
        plural: "bindings",
        singular: "binding",
        verbs: CREATE,
        ..KIND
    },
    Kind {
        kind: "ComponentStatus",
        plural: "componentstatuses",
        singular: "componentstatus",
        short_names: &["cs"],
        namespaced: false,
        verbs: GET_LIST,
        columns: columns::COMPONENT_STATUS,
        ..KIND
    },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        storage: "configmaps",
        columns: columns::CONFIG_MAP,
        validate: validate::config_map,
        validate_update: validate::config_map_update,
        ..KIND
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        storage: "services/endpoints",
        columns: columns::ENDPOINTS,
        default: defaults::endpoints,
        validate: validate::endpoints,
        ..KIND
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        storage: "events",
        selectable: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        columns: columns::EVENT,
        validate: validate::event,
        ..KIND
    },
    Kind {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        storage: "limitranges",
        columns: columns::CREATED_AT,
        default: defaults::limit_range,
        validate: validate::limit_range,
        ..KIND
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        storage: "namespaces",
        verbs: &[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ],
        subresources: NAMESPACE,
        selectable: &["status.phase"],
        columns: columns::NAMESPACE,
        default: defaults::namespace,
        prepare_create: prepare::create_namespace,
        prepare_update: prepare::update_namespace,
        validate: validate::namespace,
        ..KIND
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        storage: "minions",
        subresources: NODE,
        selectable: &["spec.unschedulable"],
        columns: columns::NODE,
        default: defaults::node,
        prepare_update: prepare::update_status,
        validate: validate::node,
        validate_update: validate::node_update,
        ..KIND
    },
    Kind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        storage: "persistentvolumeclaims",
        subresources: ONLY_STATUS,
        columns: columns::PERSISTENT_VOLUME_CLAIM,
        default: defaults::persistent_volume_claim,
        prepare_create: prepare::create_pending,
        prepare_update: prepare::update_status,
        validate: validate::persistent_volume_claim,
        validate_update: validate::persistent_volume_claim_update,
        ..KIND
    },
    Kind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        namespaced: false,
        storage: "persistentvolumes",
        subresources: ONLY_STATUS,
        columns: columns::PERSISTENT_VOLUME,
        default: defaults::persistent_volume,
        prepare_create: prepare::create_pending,
        prepare_update: prepare::update_status,
        validate: validate::persistent_volume,
        validate_update: validate::persistent_volume_update,
        ..KIND
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: IN_ALL,
        storage: "pods",
        subresources: POD,
        selectable: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        columns: columns::POD,
        default: defaults::pod,
        prepare_create: prepare::create_pod,
        prepare_update: prepare::update,
        validate: validate::pod,
        validate_update: validate::pod_update,
        ..KIND
    },
    Kind {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        storage: "podtemplates",
        columns: columns::POD_TEMPLATE,
        default: defaults::pod_template,
        validate: validate::pod_template,
        ..KIND
    },
    Kind {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: IN_ALL,
        storage: "controllers",
        subresources: SCALE_AND_STATUS,
        selectable: &["status.replicas"],
        columns: columns::REPLICATION_CONTROLLER,
        default: defaults::replication_controller,
        prepare_create: prepare::create_replicas,
        prepare_update: prepare::update,
        validate: validate::replication_controller,
        ..KIND
    },
    Kind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        storage: "resourcequotas",
        subresources: ONLY_STATUS,
        columns: columns::RESOURCE_QUOTA,
        default: defaults::resource_quota,
        prepare_create: prepare::create_status,
        prepare_update: prepare::update_status,
        validate: validate::resource_quota,
        validate_update: validate::resource_quota_update,
        ..KIND
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        storage: "secrets",
        selectable: &["type"],
        columns: columns::SECRET,
        default: defaults::secret,
        validate: validate::secret,
        validate_update: validate::secret_update,
        ..KIND
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        storage: "serviceaccounts",
        subresources: SERVICE_ACCOUNT,
        columns: columns::SERVICE_ACCOUNT,
        validate: validate::subdomain,
        ..KIND
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: IN_ALL,
        storage: "services/specs",
        subresources: SERVICE,
        selectable: &["spec.clusterIP", "spec.type"],
        columns: columns::SERVICE,
        default: defaults::service,
        prepare_create: prepare::create_service,
        prepare_update: prepare::update_service,
        validate: validate::service,
        validate_update: validate::service_update,
        ..KIND
    },
];
