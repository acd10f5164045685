//! Who is who in a StatefulSet: names, ordinals, claims, and the pods made of its template.

use k8s_openapi::api::{
    apps::v1::{StatefulSet, StatefulSetSpec},
    core::v1::{
        PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
    },
};

use crate::{revision, template};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// `web-3` of `web`: 3. None of what is not one of its names.
pub(super) fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: i32 = digits.parse().ok()?;
    // neither "+3" nor "03" is a name that is ever made
    (ordinal >= 0 && ordinal.to_string() == digits).then_some(ordinal)
}

fn name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

pub(super) fn ordinal_of(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    ordinal(name(set), pod.metadata.name.as_deref()?)
}

fn templates(spec: &StatefulSetSpec) -> &[PersistentVolumeClaim] {
    spec.volume_claim_templates.as_deref().unwrap_or_default()
}

fn claim_name(template: &PersistentVolumeClaim, set: &str, ordinal: i32) -> String {
    let template = template.metadata.name.as_deref().unwrap_or_default();
    format!("{template}-{set}-{ordinal}")
}

/// The claims of one pod, as they are made.
pub(super) fn claims(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    ordinal: i32,
) -> Vec<PersistentVolumeClaim> {
    let claim = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(claim_name(template, name(set), ordinal));
        claim.metadata.namespace = set.metadata.namespace.clone();
        let labels = claim.metadata.labels.get_or_insert_default();
        let selected = spec.selector.match_labels.iter().flatten();
        labels.extend(selected.map(|(key, value)| (key.clone(), value.clone())));
        claim.status = None;
        claim
    };
    templates(spec).iter().map(claim).collect()
}

/// The pod of a place, of the template of a revision.
pub(super) fn pod(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    template: &PodTemplateSpec,
    revision: &str,
    ordinal: i32,
) -> Pod {
    let mut pod = template::pod_of(template, set);
    pod.metadata.name = Some(format!("{}-{ordinal}", name(set)));
    identify(&mut pod, ordinal);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(revision::LABEL.into(), revision.to_owned());
    give_storage(set, spec, &mut pod, ordinal);
    let name = pod.metadata.name.clone();
    let spec_of_pod = pod.spec.get_or_insert_default();
    spec_of_pod.hostname = name;
    spec_of_pod.subdomain = spec.service_name.clone().filter(|name| !name.is_empty());
    pod
}

pub(super) fn identify(pod: &mut Pod, ordinal: i32) {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.into(), name);
    labels.insert(POD_INDEX.into(), ordinal.to_string());
}

pub(super) fn is_identified(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(POD_NAME)) == pod.metadata.name.as_ref()
}

/// Its claims stand for whatever volumes of their names the template has.
pub(super) fn give_storage(set: &StatefulSet, spec: &StatefulSetSpec, pod: &mut Pod, ordinal: i32) {
    let mut volumes: Vec<Volume> = Vec::new();
    for template in templates(spec) {
        volumes.push(Volume {
            name: template.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, name(set), ordinal),
                read_only: None,
            }),
            ..Volume::default()
        });
    }
    let spec = pod.spec.get_or_insert_default();
    let given = spec.volumes.take().into_iter().flatten();
    let others = given.filter(|volume| volumes.iter().all(|own| own.name != volume.name));
    let others: Vec<_> = others.collect();
    volumes.extend(others);
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
}

pub(super) fn has_storage(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    pod: &Pod,
    ordinal: i32,
) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
    templates(spec).iter().all(|template| {
        let wanted = claim_name(template, name(set), ordinal);
        volumes.into_iter().flatten().any(|volume| {
            Some(&volume.name) == template.metadata.name.as_ref()
                && volume
                    .persistent_volume_claim
                    .as_ref()
                    .is_some_and(|source| source.claim_name == wanted)
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_says_which_one_it_is() {
        for (pod, expected) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-x-1", None),
            ("web-01", None),
            ("web-+1", None),
            ("web--1", None),
            ("web-", None),
            ("web", None),
            ("other-1", None),
            ("web-99999999999", None),
        ] {
            assert_eq!(ordinal("web", pod), expected, "{pod}");
        }
        assert_eq!(ordinal("web-x", "web-x-1"), Some(1));
    }

    #[test]
    fn a_pod_has_its_name_and_its_claims() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "u"},
            "spec": {
                "serviceName": "nginx", "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [], "volumes": [{"name": "www", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]},
                },
                "volumeClaimTemplates": [{"metadata": {"name": "www", "labels": {"of": "me"}}, "spec": {}, "status": {}}],
            },
        }))
        .unwrap();
        let spec = set.spec.as_ref().unwrap();
        let mut one = pod(&set, spec, &spec.template, "web-abc", 2);
        let value = serde_json::to_value(&one).unwrap();
        assert_eq!(value["metadata"]["name"], "web-2");
        assert_eq!(
            value["metadata"]["labels"],
            json!({"app": "web", POD_NAME: "web-2", POD_INDEX: "2", "controller-revision-hash": "web-abc"})
        );
        assert_eq!(
            (&value["spec"]["hostname"], &value["spec"]["subdomain"]),
            (&json!("web-2"), &json!("nginx"))
        );
        assert_eq!(
            value["spec"]["volumes"],
            json!([{"name": "www", "persistentVolumeClaim": {"claimName": "www-web-2"}}, {"name": "tmp", "emptyDir": {}}])
        );
        assert!(
            is_identified(&one)
                && has_storage(&set, spec, &one, 2)
                && !has_storage(&set, spec, &one, 1)
        );
        let claims = claims(&set, spec, 2);
        assert_eq!(
            serde_json::to_value(&claims[0].metadata).unwrap(),
            json!({"name": "www-web-2", "namespace": "n", "labels": {"app": "web", "of": "me"}})
        );
        one.metadata.labels = None;
        assert!(!is_identified(&one));
        identify(&mut one, 2);
        assert!(is_identified(&one));
    }
}
