//! The files of configMap, secret, downwardAPI and projected volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume};

use super::atomic::{Content, Files};
use crate::{
    objects::Objects,
    translate::{Fields, resource},
};

const DEFAULT_MODE: u32 = 0o644;

/// Its files are in memory, as upstream's.
pub(super) fn is_secret(volume: &Volume) -> bool {
    volume.secret.is_some() || volume.projected.is_some() || volume.downward_api.is_some()
}

/// # Errors
/// What is not there and not optional, in upstream's words; it is looked for again later (CM-06).
pub(super) fn files(
    volume: &Volume,
    fields: Fields<'_>,
    objects: &Objects,
) -> Result<Files, String> {
    let mut files = Files::new();
    let sources = Sources { fields, objects };
    if let Some(it) = &volume.config_map {
        sources.config_map(
            &it.name,
            &it.items,
            it.optional,
            mode(it.default_mode),
            &mut files,
        )?;
    } else if let Some(it) = &volume.secret {
        let name = it.secret_name.clone().unwrap_or_default();
        sources.secret(
            &name,
            &it.items,
            it.optional,
            mode(it.default_mode),
            &mut files,
        )?;
    } else if let Some(it) = &volume.downward_api {
        sources.downward(&it.items, mode(it.default_mode), &mut files)?;
    } else if let Some(it) = &volume.projected {
        let mode = mode(it.default_mode);
        for source in it.sources.iter().flatten() {
            if let Some(it) = &source.config_map {
                sources.config_map(&it.name, &it.items, it.optional, mode, &mut files)?;
            } else if let Some(it) = &source.secret {
                sources.secret(&it.name, &it.items, it.optional, mode, &mut files)?;
            } else if let Some(it) = &source.downward_api {
                sources.downward(&it.items, mode, &mut files)?;
            } else if let Some(it) = &source.service_account_token {
                // Without a server there is none to be had, and nobody to show it to: it comes later.
                if let Some(token) = objects.token(fields.pod, it)? {
                    let bytes = token.into_bytes();
                    files.insert(it.path.clone(), Content { bytes, mode });
                }
            } else {
                return Err("a projected source is not built".into());
            }
        }
    }
    Ok(files)
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok())
        .unwrap_or(DEFAULT_MODE)
}

struct Sources<'a> {
    fields: Fields<'a>,
    objects: &'a Objects,
}

impl Sources<'_> {
    fn config_map(
        &self,
        name: &str,
        items: &Option<Vec<KeyToPath>>,
        optional: Option<bool>,
        mode: u32,
        files: &mut Files,
    ) -> Result<(), String> {
        match self.objects.config_map(&self.fields.pod.namespace, name) {
            Some(data) => keys(&data, items, optional, mode, files)
                .map_err(|key| format!("configmap references non-existent config key: {key}")),
            None if optional == Some(true) => Ok(()),
            None => Err(format!("configmap {name:?} not found")),
        }
    }

    fn secret(
        &self,
        name: &str,
        items: &Option<Vec<KeyToPath>>,
        optional: Option<bool>,
        mode: u32,
        files: &mut Files,
    ) -> Result<(), String> {
        match self.objects.secret(&self.fields.pod.namespace, name) {
            Some(secret) => keys(&secret.data, items, optional, mode, files)
                .map_err(|key| format!("references non-existent secret key: {key}")),
            None if optional == Some(true) => Ok(()),
            None => Err(format!("secret {name:?} not found")),
        }
    }

    fn downward(
        &self,
        items: &Option<Vec<DownwardAPIVolumeFile>>,
        default: u32,
        files: &mut Files,
    ) -> Result<(), String> {
        for item in items.iter().flatten() {
            let text = if let Some(it) = &item.field_ref {
                self.fields.for_file(&it.field_path)?
            } else if let Some(it) = &item.resource_field_ref {
                let name = it.container_name.as_deref().unwrap_or_default();
                let spec = self
                    .fields
                    .pod
                    .container(name)
                    .ok_or_else(|| format!("there is no container {name:?}"))?;
                resource(spec, it, self.fields.node)?
            } else {
                return Err(format!(
                    "{:?} has neither fieldRef nor resourceFieldRef",
                    item.path
                ));
            };
            files.insert(
                item.path.clone(),
                Content {
                    bytes: text.into_bytes(),
                    mode: item
                        .mode
                        .and_then(|mode| u32::try_from(mode).ok())
                        .unwrap_or(default),
                },
            );
        }
        Ok(())
    }
}

/// All keys, or those of `items` under their paths. The error is a key that is missing.
fn keys(
    data: &BTreeMap<String, Vec<u8>>,
    items: &Option<Vec<KeyToPath>>,
    optional: Option<bool>,
    mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    match items.as_deref().filter(|items| !items.is_empty()) {
        None => {
            let all = data.iter().map(|(key, bytes)| {
                let bytes = bytes.clone();
                (key.clone(), Content { bytes, mode })
            });
            files.extend(all);
        }
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(bytes) => {
                        let mode = item
                            .mode
                            .and_then(|mode| u32::try_from(mode).ok())
                            .unwrap_or(mode);
                        files.insert(
                            item.path.clone(),
                            Content {
                                bytes: bytes.clone(),
                                mode,
                            },
                        );
                    }
                    None if optional == Some(true) => {}
                    None => return Err(item.key.clone()),
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{node::NodeFacts, pod::tests::pod};

    fn of(volume: &str) -> Result<String, String> {
        let objects = Objects::default();
        let object = |name: &str, data| json!({"metadata": {"namespace": "default", "name": name}, "data": data});
        objects.put_config_map(
            serde_json::from_value(object("c", json!({"k": "v", "l": "w"}))).unwrap(),
        );
        objects.put_secret(serde_json::from_value(object("s", json!({"p": "cQ=="}))).unwrap());
        let pod = pod(&format!(
            "  containers: [{{name: a, image: x, resources: {{limits: {{memory: 3Mi}}}}}}]\n  volumes: [{{name: v, {volume}}}]"
        ));
        let node = NodeFacts::default();
        let fields = Fields {
            pod: &pod,
            ips: &[],
            node: &node,
        };
        let found = files(&pod.spec.volumes.as_ref().unwrap()[0], fields, &objects)?;
        let words: Vec<_> = found
            .iter()
            .map(|(path, content)| {
                format!(
                    "{path}={}:{:o}",
                    String::from_utf8_lossy(&content.bytes),
                    content.mode
                )
            })
            .collect();
        Ok(words.join(" "))
    }

    #[test]
    fn files_come_from_config_maps_secrets_and_the_pod_itself() {
        for (volume, expected) in [
            ("configMap: {name: c}", "k=v:644 l=w:644"),
            (
                "configMap: {name: c, defaultMode: 256, items: [{key: k, path: d/x, mode: 384}, {key: l, path: z}]}",
                "d/x=v:600 z=w:400",
            ),
            ("configMap: {name: none, optional: true}", ""),
            (
                "configMap: {name: c, optional: true, items: [{key: none, path: x}]}",
                "",
            ),
            ("secret: {secretName: s}", "p=q:644"),
            (
                "downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: m, resourceFieldRef: {containerName: a, resource: limits.memory, divisor: 1Mi}}]}",
                "labels=app=\"x\":644 m=3:644",
            ),
            (
                "projected: {sources: [{configMap: {name: c, items: [{key: k, path: x}]}}, {secret: {name: s}}, {downwardAPI: {items: [{path: o, fieldRef: {fieldPath: metadata.name}}]}}]}",
                "o=web:644 p=q:644 x=v:644",
            ),
        ] {
            assert_eq!(of(volume).unwrap(), expected, "{volume}");
        }
        for (volume, expected) in [
            ("configMap: {name: none}", "configmap \"none\" not found"),
            ("secret: {secretName: none}", "secret \"none\" not found"),
            (
                "configMap: {name: c, items: [{key: none, path: x}]}",
                "configmap references non-existent config key: none",
            ),
        ] {
            assert_eq!(of(volume).unwrap_err(), expected);
        }
    }
}
