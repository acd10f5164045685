use std::collections::HashSet;

use serde_json::Value;

use super::resources;
use crate::{
    field::{Errors, Path},
    name::{config_key, dns_label, port_name, qualified_name, variable_name},
    read::{flag, items, number, some, text},
};

/// What a list of containers is for, and with what it shares its pod.
pub(super) struct Around<'a> {
    pub(super) volumes: &'a HashSet<&'a str>,
    pub(super) host_network: bool,
    pub(super) init: bool,
}

pub(super) fn container(container: &Value, around: &Around, path: &Path, errors: &mut Errors) {
    match text(container, "/name") {
        "" => errors.required(&path.field("name"), ""),
        name => errors.text_is(&path.field("name"), name, dns_label(name)),
    }
    match text(container, "/image") {
        "" => errors.required(&path.field("image"), ""),
        image if image.trim() != image => errors.invalid_text(
            &path.field("image"),
            image,
            "must not have leading or trailing whitespace",
        ),
        _ => {}
    }
    errors.one_of(
        &path.field("imagePullPolicy"),
        text(container, "/imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
    );
    errors.one_of(
        &path.field("terminationMessagePolicy"),
        text(container, "/terminationMessagePolicy"),
        &["FallbackToLogsOnError", "File"],
    );
    errors.maybe_one_of(
        &path.field("restartPolicy"),
        text(container, "/restartPolicy"),
        &["Always", "Never", "OnFailure"],
    );
    ports(container, around.host_network, path, errors);
    environment(container, path, errors);
    mounts(container, around, path, errors);
    devices(container, around, path, errors);
    if let Some(requirements) = some(container, "/resources") {
        resources::requirements(requirements, &path.field("resources"), errors);
    }
    let sidecar = text(container, "/restartPolicy") == "Always";
    for name in [
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ] {
        let Some(value) = container.get(name).filter(|value| !value.is_null()) else {
            continue;
        };
        let path = path.field(name);
        if around.init && !sidecar {
            errors.forbidden(
                &path,
                "may not be set for init containers without restartPolicy=Always",
            );
        } else if name == "lifecycle" {
            for name in ["postStart", "preStop"] {
                if let Some(action) = value.get(name).filter(|action| !action.is_null()) {
                    handler(
                        action,
                        &["exec", "httpGet", "tcpSocket", "sleep"],
                        &path.field(name),
                        errors,
                    );
                }
            }
        } else {
            probe(value, name == "readinessProbe", &path, errors);
        }
    }
    if let Some(context) = some(container, "/securityContext") {
        security_context(context, &path.field("securityContext"), errors);
    }
}

pub(super) fn port_number(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value
        && !value
            .as_i64()
            .is_some_and(|port| (1..=65_535).contains(&port))
    {
        errors.invalid(path, value, "must be between 1 and 65535, inclusive");
    }
}

/// A port by its number or its name.
pub(super) fn port(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    match value {
        Some(Value::String(name)) => errors.text_is(path, name, port_name(name)),
        Some(value) => port_number(Some(value), path, errors),
        None => errors.invalid(path, &0.into(), "must be between 1 and 65535, inclusive"),
    }
}

fn ports(container: &Value, host_network: bool, path: &Path, errors: &mut Errors) {
    let list = path.field("ports");
    let mut names = HashSet::new();
    for (at, port) in items(container, "/ports").iter().enumerate() {
        let path = list.index(at);
        let name = text(port, "/name");
        if !name.is_empty() {
            let wrong = port_name(name);
            if wrong.is_empty() && !names.insert(name) {
                errors.duplicate(&path.field("name"), name);
            }
            errors.text_is(&path.field("name"), name, wrong);
        }
        match number(port, "/containerPort") {
            0 => errors.required(&path.field("containerPort"), ""),
            _ => port_number(
                port.get("containerPort"),
                &path.field("containerPort"),
                errors,
            ),
        }
        let host = number(port, "/hostPort");
        if host != 0 {
            port_number(port.get("hostPort"), &path.field("hostPort"), errors);
            if host_network && host != number(port, "/containerPort") {
                errors.invalid(
                    &path.field("hostPort"),
                    &host.into(),
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
        }
        errors.one_of(
            &path.field("protocol"),
            text(port, "/protocol"),
            &["SCTP", "TCP", "UDP"],
        );
    }
}

const ENVIRONMENT_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

fn environment(container: &Value, path: &Path, errors: &mut Errors) {
    let list = path.field("env");
    for (at, variable) in items(container, "/env").iter().enumerate() {
        let path = list.index(at);
        match text(variable, "/name") {
            "" => errors.required(&path.field("name"), ""),
            name => errors.text_is(&path.field("name"), name, variable_name(name)),
        }
        if let Some(from) = some(variable, "/valueFrom") {
            let path = path.field("valueFrom");
            if !text(variable, "/value").is_empty() {
                errors.invalid_text(&path, "", "may not be specified when `value` is not empty");
            }
            value_from(from, &path, errors);
        }
    }
    let list = path.field("envFrom");
    for (at, source) in items(container, "/envFrom").iter().enumerate() {
        let path = list.index(at);
        match text(source, "/prefix") {
            "" => {}
            prefix => errors.text_is(&path.field("prefix"), prefix, variable_name(prefix)),
        }
        let named: Vec<_> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter_map(|name| Some((name, source.get(name).filter(|value| !value.is_null())?)))
            .collect();
        match named.as_slice() {
            [] => errors.invalid_text(
                &path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            [(name, reference)] => {
                if text(reference, "/name").is_empty() {
                    errors.required(&path.field(name).field("name"), "");
                }
            }
            _ => errors.invalid_text(
                &path,
                "",
                "may not have more than one field specified at a time",
            ),
        }
    }
}

fn value_from(from: &Value, path: &Path, errors: &mut Errors) {
    let mut sources = 0;
    if let Some(field) = some(from, "/fieldRef") {
        sources += 1;
        field_ref(
            field,
            &ENVIRONMENT_FIELDS,
            true,
            &path.field("fieldRef"),
            errors,
        );
    }
    if let Some(resource) = some(from, "/resourceFieldRef") {
        sources += 1;
        resource_ref(resource, false, &path.field("resourceFieldRef"), errors);
    }
    for name in ["configMapKeyRef", "secretKeyRef"] {
        if let Some(key) = from.get(name).filter(|value| !value.is_null()) {
            sources += 1;
            key_ref(key, &path.field(name), errors);
        }
    }
    if let Some(file) = some(from, "/fileKeyRef") {
        sources += 1;
        for name in ["volumeName", "path", "key"] {
            if file
                .get(name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                errors.required(&path.field("fileKeyRef").field(name), "");
            }
        }
    }
    match sources {
        0 => errors.invalid_text(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ),
        1 => {}
        _ => errors.invalid_text(path, "", "may not have more than one field specified at a time"),
    }
}

fn key_ref(key: &Value, path: &Path, errors: &mut Errors) {
    if text(key, "/name").is_empty() {
        errors.required(&path.field("name"), "");
    }
    match text(key, "/key") {
        "" => errors.required(&path.field("key"), ""),
        key => errors.text_is(&path.field("key"), key, config_key(key)),
    }
}

pub(super) fn field_ref(
    field: &Value,
    known: &[&str],
    subscripts: bool,
    path: &Path,
    errors: &mut Errors,
) {
    if text(field, "/apiVersion").is_empty() {
        errors.required(&path.field("apiVersion"), "");
        return;
    }
    let at = &path.field("fieldPath");
    let name = text(field, "/fieldPath");
    if name.is_empty() {
        errors.required(at, "");
        return;
    }
    let subscript = ["metadata.labels", "metadata.annotations"]
        .iter()
        .find_map(|of| {
            name.strip_prefix(of)?
                .strip_prefix("['")?
                .strip_suffix("']")
        });
    match subscript {
        Some(key) if subscripts || known.contains(&"metadata.labels") => {
            errors.text_is(at, key, qualified_name(&key.to_lowercase()));
        }
        _ if known.contains(&name) => {}
        _ => errors.not_supported(at, name, known),
    }
}

pub(super) fn resource_ref(resource: &Value, volume: bool, path: &Path, errors: &mut Errors) {
    if volume && text(resource, "/containerName").is_empty() {
        errors.required(&path.field("containerName"), "");
    }
    match text(resource, "/resource") {
        "" => errors.required(&path.field("resource"), ""),
        name if RESOURCE_FIELDS.contains(&name)
            || name.starts_with("limits.hugepages-")
            || name.starts_with("requests.hugepages-") => {}
        name => errors.not_supported(&path.field("resource"), name, &RESOURCE_FIELDS),
    }
}

/// Below a volume: not absolute, and not out of it.
pub(super) fn inner_path(value: &str, path: &Path, errors: &mut Errors) {
    if value.starts_with('/') {
        errors.invalid_text(path, value, "must be a relative path");
    }
    no_way_up(value, path, errors);
}

pub(super) fn no_way_up(value: &str, path: &Path, errors: &mut Errors) {
    if value.split('/').any(|part| part == "..") {
        errors.invalid_text(path, value, "must not contain '..'");
    }
}

fn mounts(container: &Value, around: &Around, path: &Path, errors: &mut Errors) {
    let list = path.field("volumeMounts");
    let mut paths = HashSet::new();
    for (at, mount) in items(container, "/volumeMounts").iter().enumerate() {
        let path = list.index(at);
        match text(mount, "/name") {
            "" => errors.required(&path.field("name"), ""),
            name if !around.volumes.contains(name) => errors.not_found(&path.field("name"), name),
            _ => {}
        }
        match text(mount, "/mountPath") {
            "" => errors.required(&path.field("mountPath"), ""),
            mount if !paths.insert(mount) => {
                errors.invalid_text(&path.field("mountPath"), mount, "must be unique");
            }
            _ => {}
        }
        let (sub, expression) = (text(mount, "/subPath"), text(mount, "/subPathExpr"));
        inner_path(sub, &path.field("subPath"), errors);
        inner_path(expression, &path.field("subPathExpr"), errors);
        if !sub.is_empty() && !expression.is_empty() {
            errors.invalid_text(
                &path.field("subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        let propagation = text(mount, "/mountPropagation");
        errors.maybe_one_of(
            &path.field("mountPropagation"),
            propagation,
            &["Bidirectional", "HostToContainer", "None"],
        );
        if propagation == "Bidirectional" && !flag(container, "/securityContext/privileged") {
            errors.forbidden(
                &path.field("mountPropagation"),
                "Bidirectional mount propagation is available only to privileged containers",
            );
        }
        let recursive = text(mount, "/recursiveReadOnly");
        errors.maybe_one_of(
            &path.field("recursiveReadOnly"),
            recursive,
            &["Disabled", "Enabled", "IfPossible"],
        );
        if ["Enabled", "IfPossible"].contains(&recursive) && !flag(mount, "/readOnly") {
            errors.forbidden(
                &path.field("recursiveReadOnly"),
                "may only be specified when readOnly is true",
            );
        }
    }
}

fn devices(container: &Value, around: &Around, path: &Path, errors: &mut Errors) {
    let list = path.field("volumeDevices");
    for (at, device) in items(container, "/volumeDevices").iter().enumerate() {
        let path = list.index(at);
        match text(device, "/name") {
            "" => errors.required(&path.field("name"), ""),
            name if !around.volumes.contains(name) => errors.not_found(&path.field("name"), name),
            _ => {}
        }
        match text(device, "/devicePath") {
            "" => errors.required(&path.field("devicePath"), ""),
            device => no_way_up(device, &path.field("devicePath"), errors),
        }
    }
}

fn probe(probe: &Value, readiness: bool, path: &Path, errors: &mut Errors) {
    handler(
        probe,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        path,
        errors,
    );
    for name in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.not_negative(&path.field(name), probe.get(name));
    }
    errors.positive(
        &path.field("terminationGracePeriodSeconds"),
        probe.get("terminationGracePeriodSeconds"),
    );
    if readiness {
        if some(probe, "/terminationGracePeriodSeconds").is_some() {
            errors.invalid(
                &path.field("terminationGracePeriodSeconds"),
                &probe["terminationGracePeriodSeconds"],
                "must not be set for readinessProbes",
            );
        }
    } else if let Some(threshold) = some(probe, "/successThreshold")
        && threshold.as_i64() != Some(1)
    {
        errors.invalid(&path.field("successThreshold"), threshold, "must be 1");
    }
}

fn handler(action: &Value, kinds: &[&str], path: &Path, errors: &mut Errors) {
    let mut found = 0;
    for kind in kinds {
        let Some(value) = action.get(*kind).filter(|value| !value.is_null()) else {
            continue;
        };
        let path = path.field(kind);
        found += 1;
        if found > 1 {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" => {
                if items(value, "/command").is_empty() {
                    errors.required(&path.field("command"), "");
                }
            }
            "httpGet" => {
                if text(value, "/path").is_empty() {
                    errors.required(&path.field("path"), "");
                }
                port(value.get("port"), &path.field("port"), errors);
                errors.maybe_one_of(
                    &path.field("scheme"),
                    text(value, "/scheme"),
                    &["HTTP", "HTTPS"],
                );
            }
            "tcpSocket" => port(value.get("port"), &path.field("port"), errors),
            "grpc" => port_number(
                Some(value.get("port").unwrap_or(&Value::Null)),
                &path.field("port"),
                errors,
            ),
            _ => errors.not_negative(&path.field("seconds"), value.get("seconds")),
        }
    }
    if found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

/// Of containers; pods' have these too, among others.
pub(super) fn identity(context: &Value, path: &Path, errors: &mut Errors) {
    for name in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = context.get(name).filter(|id| !id.is_null()) {
            id_of(id, &path.field(name), errors);
        }
    }
    let list = path.field("supplementalGroups");
    for (at, id) in items(context, "/supplementalGroups").iter().enumerate() {
        id_of(id, &list.index(at), errors);
    }
    for (field, kinds) in [
        (
            "seccompProfile",
            ["Localhost", "RuntimeDefault", "Unconfined"],
        ),
        (
            "appArmorProfile",
            ["Localhost", "RuntimeDefault", "Unconfined"],
        ),
    ] {
        let Some(profile) = context.get(field).filter(|profile| !profile.is_null()) else {
            continue;
        };
        let path = path.field(field);
        let kind = text(profile, "/type");
        errors.one_of(&path.field("type"), kind, &kinds);
        let local = text(profile, "/localhostProfile");
        if kind == "Localhost" && local.is_empty() {
            errors.required(
                &path.field("localhostProfile"),
                "must be set when profile type is Localhost",
            );
        } else if kind != "Localhost" && !local.is_empty() {
            errors.invalid_text(
                &path.field("localhostProfile"),
                local,
                "may only be set when profile type is Localhost",
            );
        } else if field == "seccompProfile" {
            inner_path(local, &path.field("localhostProfile"), errors);
        }
    }
}

fn id_of(id: &Value, path: &Path, errors: &mut Errors) {
    if !id
        .as_i64()
        .is_some_and(|id| (0..=i64::from(i32::MAX)).contains(&id))
    {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn security_context(context: &Value, path: &Path, errors: &mut Errors) {
    identity(context, path, errors);
    errors.maybe_one_of(
        &path.field("procMount"),
        text(context, "/procMount"),
        &["Default", "Unmasked"],
    );
    if context.get("allowPrivilegeEscalation") == Some(&Value::Bool(false)) {
        if flag(context, "/privileged") {
            errors.invalid(
                path,
                context,
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if items(context, "/capabilities/add")
            .iter()
            .any(|capability| capability.as_str() == Some("CAP_SYS_ADMIN"))
        {
            errors.invalid(
                path,
                context,
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            );
        }
    }
}
