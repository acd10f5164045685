//! The validator that a runtime brings along: what plugins may not touch, and who must have been asked.

use serde::{Deserialize, Serialize};

use crate::{
    Error,
    api::{self, Field, security_profile::ProfileType},
    owners::Owners,
};

/// A list of plugins that must have been asked for a container; of the pod, or with a suffix of all or one of its containers.
pub const REQUIRED_PLUGINS: &str = "required-plugins.noderesource.dev";

/// Its name where it rejects something.
const NAME: &str = "default-validator";
/// A longer annotation is no list of plugins.
const MAX_LIST_BYTES: usize = 4096;

/// As other runtimes name the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Validator {
    pub enable: bool,
    pub reject_oci_hook_adjustment: bool,
    pub reject_runtime_default_seccomp_adjustment: bool,
    pub reject_unconfined_seccomp_adjustment: bool,
    pub reject_custom_seccomp_adjustment: bool,
    pub reject_namespace_adjustment: bool,
    pub reject_sysctl_adjustment: bool,
    /// By name, with or without the index.
    pub required_plugins: Vec<String>,
    /// An annotation by which a pod or a container of it does without. Empty: none.
    pub tolerate_missing_plugins_annotation: String,
}

impl Validator {
    /// `container` is as it was before any plugin had its say; `asked` are the plugins that have answered for it.
    pub fn check(
        &self,
        pod: &api::PodSandbox,
        container: &api::Container,
        owners: &Owners,
        asked: &[api::PluginInstance],
    ) -> Result<(), Error> {
        if !self.enable {
            return Ok(());
        }
        let rejected = |why: String| Error::Rejected {
            validator: NAME.into(),
            why,
        };
        let of = |field| owners.of(&container.id, field);
        let names = |owners: &[(String, String)]| {
            let named = owners.iter().map(|(entry, plugin)| match entry.as_str() {
                "" => plugin.clone(),
                entry => format!("{plugin} ({entry})"),
            });
            named.collect::<Vec<_>>().join(", ")
        };
        let profile = container.linux.seccomp_profile.as_ref();
        let profile = profile.map_or(ProfileType::UNCONFINED, |profile| {
            profile.profile_type.enum_value_or_default()
        });
        let reject_seccomp = match profile {
            ProfileType::RUNTIME_DEFAULT => self.reject_runtime_default_seccomp_adjustment,
            ProfileType::UNCONFINED => self.reject_unconfined_seccomp_adjustment,
            ProfileType::LOCALHOST => self.reject_custom_seccomp_adjustment,
        };
        for (field, reject, what) in [
            (
                Field::OciHooks,
                self.reject_oci_hook_adjustment,
                "OCI hooks",
            ),
            (Field::SeccompPolicy, reject_seccomp, "the seccomp policy"),
            (
                Field::Namespace,
                self.reject_namespace_adjustment,
                "namespaces",
            ),
            (Field::Sysctl, self.reject_sysctl_adjustment, "sysctls"),
        ] {
            let by = of(field);
            if reject && !by.is_empty() {
                return Err(rejected(format!(
                    "{what} may not be changed, by {}",
                    names(&by)
                )));
            }
        }
        let missing = self
            .missing(pod, &container.name, asked)
            .map_err(rejected)?;
        match missing.as_slice() {
            [] => Ok(()),
            missing => Err(rejected(format!(
                "required plugins that did not answer for it: {}",
                missing.join(", ")
            ))),
        }
    }

    fn missing(
        &self,
        pod: &api::PodSandbox,
        container: &str,
        asked: &[api::PluginInstance],
    ) -> Result<Vec<String>, String> {
        let tolerate = &self.tolerate_missing_plugins_annotation;
        if !tolerate.is_empty()
            && let Some(value) = annotation(pod, tolerate, container)
        {
            match value {
                "1" | "t" | "T" | "true" | "True" | "TRUE" => return Ok(vec![]),
                "0" | "f" | "F" | "false" | "False" | "FALSE" => {}
                other => {
                    return Err(format!(
                        "annotation {tolerate}: {other:.80?} is neither true nor false"
                    ));
                }
            }
        }
        let mut required = self.required_plugins.clone();
        if let Some(value) = annotation(pod, REQUIRED_PLUGINS, container) {
            let list = list(value).ok_or_else(|| {
                format!("annotation {REQUIRED_PLUGINS}: {value:.200?} is no list of names")
            })?;
            required.extend(list);
        }
        required.retain(|name| {
            !asked.iter().any(|plugin| {
                *name == plugin.name || *name == format!("{}-{}", plugin.index, plugin.name)
            })
        });
        Ok(required)
    }
}

/// The container's own, else the pod's.
fn annotation<'a>(pod: &'a api::PodSandbox, key: &str, container: &str) -> Option<&'a str> {
    [
        format!("{key}/container.{container}"),
        format!("{key}/pod"),
        key.to_owned(),
    ]
    .iter()
    .find_map(|key| pod.annotations.get(key))
    .map(String::as_str)
}

/// A list as JSON has it, or as YAML has a list of plain names.
fn list(value: &str) -> Option<Vec<String>> {
    if value.len() > MAX_LIST_BYTES {
        return None;
    }
    if let Ok(list) = serde_json::from_str(value) {
        return Some(list);
    }
    let plain = |name: &str| {
        let name = name.trim().trim_matches(['"', '\'']);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        (!name.is_empty() && name.chars().all(is_plain)).then(|| name.to_owned())
    };
    let value = value.trim();
    if let Some(inner) = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')) {
        return inner.split(',').map(plain).collect();
    }
    let lines = value.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| line.trim().strip_prefix("- ").and_then(plain))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::owners::Owner;

    fn owners(fields: &[(Field, &str)]) -> Owners {
        let mut owners = Owners::default();
        let owner = Owner {
            number: 1,
            name: "05-meddler".into(),
        };
        for (field, entry) in fields {
            owners.claim("c", *field, entry, &owner).unwrap();
        }
        owners
    }

    fn container(profile: Option<ProfileType>) -> api::Container {
        let mut container = api::Container {
            id: "c".into(),
            name: "main".into(),
            ..Default::default()
        };
        container.linux.mut_or_insert_default().seccomp_profile = profile
            .map(|profile| api::SecurityProfile {
                profile_type: profile.into(),
                ..Default::default()
            })
            .into();
        container
    }

    #[test]
    fn what_may_not_be_touched_is_rejected_by_the_name_of_who_did() {
        type Set = fn(&mut Validator);
        let table: [(Set, Field, Option<ProfileType>, &str); 6] = [
            (
                |v| v.reject_oci_hook_adjustment = true,
                Field::OciHooks,
                None,
                "OCI hooks",
            ),
            (
                |v| v.reject_namespace_adjustment = true,
                Field::Namespace,
                None,
                "namespaces",
            ),
            (
                |v| v.reject_sysctl_adjustment = true,
                Field::Sysctl,
                None,
                "sysctls",
            ),
            (
                |v| v.reject_unconfined_seccomp_adjustment = true,
                Field::SeccompPolicy,
                None,
                "seccomp",
            ),
            (
                |v| v.reject_runtime_default_seccomp_adjustment = true,
                Field::SeccompPolicy,
                Some(ProfileType::RUNTIME_DEFAULT),
                "seccomp",
            ),
            (
                |v| v.reject_custom_seccomp_adjustment = true,
                Field::SeccompPolicy,
                Some(ProfileType::LOCALHOST),
                "seccomp",
            ),
        ];
        for (set, field, profile, says) in table {
            let mut validator = Validator::default();
            let pod = api::PodSandbox::default();
            let container = container(profile);
            let touched = owners(&[(field, "x")]);
            let other = owners(&[(Field::Env, "x")]);
            set(&mut validator);
            let check =
                |validator: &Validator, owners| validator.check(&pod, &container, owners, &[]);
            check(&validator, &touched).expect("it is not enabled");
            validator.enable = true;
            let error = check(&validator, &touched).unwrap_err().to_string();
            assert!(
                error.contains(says) && error.contains("05-meddler"),
                "{error}"
            );
            check(&validator, &other).expect("nothing forbidden");
            let allowed = Validator {
                enable: true,
                ..Default::default()
            };
            check(&allowed, &touched).expect("nothing is forbidden");
        }
        // A policy that is not of the kind that is guarded.
        let validator = Validator {
            enable: true,
            reject_custom_seccomp_adjustment: true,
            ..Default::default()
        };
        let touched = owners(&[(Field::SeccompPolicy, "")]);
        let pod = api::PodSandbox::default();
        validator
            .check(
                &pod,
                &container(Some(ProfileType::RUNTIME_DEFAULT)),
                &touched,
                &[],
            )
            .unwrap();
    }

    #[test]
    fn required_plugins_must_have_answered_unless_that_is_tolerated() {
        let validator = Validator {
            enable: true,
            required_plugins: vec!["always".into()],
            tolerate_missing_plugins_annotation: "tolerate.example".into(),
            ..Default::default()
        };
        let always = api::PluginInstance {
            name: "always".into(),
            index: "10".into(),
            ..Default::default()
        };
        let extra = api::PluginInstance {
            name: "extra".into(),
            index: "20".into(),
            ..Default::default()
        };
        let both = [always.clone(), extra];
        let required = REQUIRED_PLUGINS.to_owned();
        for (annotations, asked, missing) in [
            (vec![], &both[..], None),
            (vec![], &both[1..], Some("always")),
            (vec![(required.clone(), "[\"extra\"]")], &both[..], None),
            (
                vec![(required.clone(), "[extra]")],
                &both[..1],
                Some("extra"),
            ),
            (
                vec![(required.clone(), "- 20-extra\n- always")],
                &both[..],
                None,
            ),
            (vec![(required.clone(), "{}")], &both[..], Some("no list")),
            (
                vec![(format!("{required}/container.main"), "[\"extra\"]")],
                &both[..1],
                Some("extra"),
            ),
            (
                vec![(format!("{required}/container.other"), "[\"extra\"]")],
                &both[..1],
                None,
            ),
            (
                // The container's own word counts more than the pod's.
                vec![
                    (format!("{required}/container.main"), "[]"),
                    (format!("{required}/pod"), "[\"extra\"]"),
                ],
                &both[..1],
                None,
            ),
            (vec![("tolerate.example".into(), "true")], &[], None),
            (
                vec![("tolerate.example".into(), "false")],
                &[],
                Some("always"),
            ),
            (
                vec![("tolerate.example".into(), "perhaps")],
                &both,
                Some("neither"),
            ),
        ] {
            let pod = api::PodSandbox {
                annotations: annotations
                    .iter()
                    .map(|(key, value)| (key.clone(), value.to_string()))
                    .collect(),
                ..Default::default()
            };
            let checked = validator.check(&pod, &container(None), &Owners::default(), asked);
            match (checked, missing) {
                (Ok(()), None) => {}
                (Err(error), Some(missing)) => {
                    assert!(
                        error.to_string().contains(missing),
                        "{annotations:?}: {error}"
                    );
                }
                (checked, _) => panic!("{annotations:?}: {checked:?}"),
            }
        }
    }
}
