use std::collections::HashSet;

use serde_json::Value;

use super::{
    claims::claim_spec,
    container::{field_ref, inner_path, no_way_up, resource_ref},
    resources::quantity,
};
use crate::{
    field::{Errors, Path},
    name::dns_label,
    read::{items, some, text},
};

const FILE_FIELDS: [&str; 5] = [
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// The volumes of a pod; answers with their names.
pub(super) fn volumes<'a>(list: &'a [Value], path: &Path, errors: &mut Errors) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (at, volume) in list.iter().enumerate() {
        let path = path.index(at);
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.required(&path.field("name"), "");
        } else {
            let wrong = dns_label(name);
            if wrong.is_empty() && !names.insert(name) {
                errors.duplicate(&path.field("name"), name);
            }
            errors.text_is(&path.field("name"), name, wrong);
        }
        let sources = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| key.as_str() != "name" && !value.is_null());
        let mut found = 0;
        for (kind, value) in sources {
            let path = path.field(kind);
            found += 1;
            if found > 1 {
                errors.forbidden(&path, "may not specify more than 1 volume type");
                continue;
            }
            source(kind, value, &path, errors);
        }
        if found == 0 {
            errors.required(&path, "must specify a volume type");
        }
    }
    names
}

fn source(kind: &str, value: &Value, path: &Path, errors: &mut Errors) {
    let required = |names: &[&str], errors: &mut Errors| {
        for name in names {
            if value
                .get(*name)
                .and_then(Value::as_str)
                .is_none_or(str::is_empty)
            {
                errors.required(&path.field(name), "");
            }
        }
    };
    match kind {
        "emptyDir" => {
            if let Some(limit) = some(value, "/sizeLimit") {
                quantity(limit, &path.field("sizeLimit"), errors);
            }
        }
        "hostPath" => {
            required(&["path"], errors);
            no_way_up(text(value, "/path"), &path.field("path"), errors);
            host_path_type(value, path, errors);
        }
        "secret" => {
            required(&["secretName"], errors);
            files(value, path, errors);
        }
        "configMap" => {
            required(&["name"], errors);
            files(value, path, errors);
        }
        "downwardAPI" => {
            mode(value.get("defaultMode"), &path.field("defaultMode"), errors);
            downward(value, path, errors);
        }
        "projected" => projected(value, path, errors),
        "persistentVolumeClaim" => required(&["claimName"], errors),
        "ephemeral" => match some(value, "/volumeClaimTemplate") {
            None => errors.required(&path.field("volumeClaimTemplate"), ""),
            Some(template) => claim_spec(
                template.get("spec").unwrap_or(&Value::Null),
                &path.field("volumeClaimTemplate").field("spec"),
                errors,
            ),
        },
        "nfs" => nfs(value, path, errors),
        "csi" => required(&["driver"], errors),
        "image" => {
            required(&["reference"], errors);
            errors.maybe_one_of(
                &path.field("pullPolicy"),
                text(value, "/pullPolicy"),
                &["Always", "IfNotPresent", "Never"],
            );
        }
        "iscsi" => required(&["targetPortal", "iqn", "iscsiInterface"], errors),
        "gcePersistentDisk" => required(&["pdName"], errors),
        "awsElasticBlockStore" | "cinder" => required(&["volumeID"], errors),
        "azureFile" => required(&["secretName", "shareName"], errors),
        "azureDisk" => required(&["diskName", "diskURI"], errors),
        "vsphereVolume" => required(&["volumePath"], errors),
        "flexVolume" => required(&["driver"], errors),
        "glusterfs" => required(&["endpoints", "path"], errors),
        "rbd" => required(&["image"], errors),
        "portworxVolume" => required(&["volumeID"], errors),
        "photonPersistentDisk" => required(&["pdID"], errors),
        "quobyte" => required(&["registry", "volume"], errors),
        "scaleIO" => required(&["gateway", "system", "volumeName"], errors),
        // cephfs, fc, flocker, gitRepo, storageos: their drivers say what they miss.
        _ => {}
    }
}

pub(super) fn host_path_type(value: &Value, path: &Path, errors: &mut Errors) {
    errors.maybe_one_of(
        &path.field("type"),
        text(value, "/type"),
        &[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ],
    );
}

pub(super) fn nfs(value: &Value, path: &Path, errors: &mut Errors) {
    if text(value, "/server").is_empty() {
        errors.required(&path.field("server"), "");
    }
    match text(value, "/path") {
        "" => errors.required(&path.field("path"), ""),
        share if !share.starts_with('/') => {
            errors.invalid_text(&path.field("path"), share, "must be an absolute path");
        }
        _ => {}
    }
}

fn mode(value: Option<&Value>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value
        && value
            .as_i64()
            .is_some_and(|mode| !(0..=0o777).contains(&mode))
    {
        errors.invalid(
            path,
            value,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

/// `items` of a ConfigMap or Secret: keys, and where they go.
fn files(value: &Value, path: &Path, errors: &mut Errors) {
    mode(value.get("defaultMode"), &path.field("defaultMode"), errors);
    let list = path.field("items");
    for (at, item) in items(value, "/items").iter().enumerate() {
        let path = list.index(at);
        if text(item, "/key").is_empty() {
            errors.required(&path.field("key"), "");
        }
        match text(item, "/path") {
            "" => errors.required(&path.field("path"), ""),
            target => target_path(target, &path.field("path"), errors),
        }
        mode(item.get("mode"), &path.field("mode"), errors);
    }
}

fn target_path(target: &str, path: &Path, errors: &mut Errors) {
    inner_path(target, path, errors);
    // Names that begin so are the volume's own.
    if target.starts_with("..") && !target.starts_with("../") && target != ".." {
        errors.invalid_text(path, target, "must not start with '..'");
    }
}

fn downward(value: &Value, path: &Path, errors: &mut Errors) {
    let list = path.field("items");
    for (at, item) in items(value, "/items").iter().enumerate() {
        let path = list.index(at);
        match text(item, "/path") {
            "" => errors.required(&path.field("path"), ""),
            target => target_path(target, &path.field("path"), errors),
        }
        mode(item.get("mode"), &path.field("mode"), errors);
        match (some(item, "/fieldRef"), some(item, "/resourceFieldRef")) {
            (Some(field), None) => {
                field_ref(field, &FILE_FIELDS, true, &path.field("fieldRef"), errors);
            }
            (None, Some(resource)) => {
                resource_ref(resource, true, &path.field("resourceFieldRef"), errors);
            }
            (Some(_), Some(_)) => errors.invalid(
                &path,
                item,
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ),
            (None, None) => {
                errors.required(&path, "one of fieldRef and resourceFieldRef is required")
            }
        }
    }
}

fn projected(value: &Value, path: &Path, errors: &mut Errors) {
    mode(value.get("defaultMode"), &path.field("defaultMode"), errors);
    let list = path.field("sources");
    for (at, source) in items(value, "/sources").iter().enumerate() {
        let path = list.index(at);
        let mut found = 0;
        for (kind, value) in source
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, v)| !v.is_null())
        {
            let path = path.field(kind);
            found += 1;
            if found > 1 {
                errors.forbidden(&path, "may not specify more than 1 volume type per source");
                continue;
            }
            match kind.as_str() {
                "secret" | "configMap" => {
                    if text(value, "/name").is_empty() {
                        errors.required(&path.field("name"), "");
                    }
                    files(value, &path, errors);
                }
                "downwardAPI" => downward(value, &path, errors),
                "serviceAccountToken" => {
                    token(value, &path, errors);
                }
                _ => {}
            }
        }
        if found == 0 {
            errors.required(
                &path,
                "must specify exactly one of: secret, configMap, downwardAPI, serviceAccountToken, clusterTrustBundle, podCertificate",
            );
        }
    }
}

fn token(value: &Value, path: &Path, errors: &mut Errors) {
    let seconds = &path.field("expirationSeconds");
    match some(value, "/expirationSeconds") {
        Some(value) if value.as_i64().is_some_and(|seconds| seconds < 600) => {
            errors.invalid(
                seconds,
                value,
                "may not specify a duration less than 10 minutes",
            );
        }
        Some(value) if value.as_i64().is_some_and(|seconds| seconds > 1 << 32) => {
            errors.invalid(
                seconds,
                value,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
        _ => {}
    }
    match text(value, "/path") {
        "" => errors.required(&path.field("path"), ""),
        target => inner_path(target, &path.field("path"), errors),
    }
}
