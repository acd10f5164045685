//! From a pod's claim to what is mounted for it: pure functions of the claim, of its volume and of the node, with upstream's words for what is
//! missing.

use std::{collections::BTreeMap, path::PathBuf};

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Volume,
};
use serde::{Deserialize, Serialize};

use crate::{admission, pod::Desired, pod::is_path_component};

const ONCE_POD: &str = "ReadWriteOncePod";
/// The kinds of a PersistentVolume that are not built, as they are called in it.
const UNBUILT: &str = "not built: local and hostPath are";

/// A claim that a pod names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The pod's name of it.
    pub volume: String,
    pub claim: String,
    pub read_only: bool,
    /// It was made for this pod alone.
    pub is_ephemeral: bool,
}

/// What a claim comes to. Kept on the disk before anything is mounted for it: by that it is known who has which volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bound {
    /// The pod's name of it.
    pub volume: String,
    /// The PersistentVolume's.
    pub name: String,
    pub source: Source,
    /// A device instead of a file system on it.
    pub is_block: bool,
    pub read_only: bool,
    /// One pod may have it, and no second.
    pub once_pod: bool,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Source {
    /// A directory of the node, or a block device.
    Local { path: PathBuf, fs_type: String },
    /// What the node has there, as it is.
    HostPath { path: PathBuf, kind: String },
}

/// Why a claim can't be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lack {
    /// It is not what it should be, yet.
    Claim(String),
    /// In the words of the step that failed.
    Step(String),
}

/// The claims that a pod names, in its order.
pub(crate) fn asks(pod: &Desired) -> Vec<Ask> {
    let all = pod.spec.volumes.iter().flatten();
    all.filter_map(|volume| ask(pod, volume)).collect()
}

fn ask(pod: &Desired, volume: &Volume) -> Option<Ask> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(Ask {
            volume: volume.name.clone(),
            claim: source.claim_name.clone(),
            read_only: source.read_only == Some(true),
            is_ephemeral: false,
        });
    }
    volume.ephemeral.as_ref().map(|_| Ask {
        volume: volume.name.clone(),
        claim: format!("{}-{}", pod.name, volume.name),
        read_only: false,
        is_ephemeral: true,
    })
}

/// The name of the volume to which a claim is bound.
///
/// # Errors
/// It is bound to none, is going, or is another pod's.
pub(crate) fn volume_of<'a>(
    pod: &Desired,
    ask: &Ask,
    claim: &'a PersistentVolumeClaim,
) -> Result<&'a str, Lack> {
    if ask.is_ephemeral && !is_owned(claim, pod) {
        return Err(Lack::Claim(format!(
            "PVC {}/{} was not created for pod {} (pod is not owner)",
            pod.namespace,
            ask.claim,
            pod.full_name()
        )));
    }
    let spec = claim.spec.as_ref();
    let phase = claim.status.as_ref().and_then(|it| it.phase.as_deref());
    let name = spec.and_then(|it| it.volume_name.as_deref());
    let why = if claim.metadata.deletion_timestamp.is_some() {
        "PVC is being deleted"
    } else if phase == Some("Lost") {
        "PVC is lost: the volume that it was bound to is gone, or another's"
    } else if phase != Some("Bound") {
        "PVC is not bound"
    } else {
        match name.filter(|name| !name.is_empty()) {
            Some(name) => return Ok(name),
            None => "PVC has empty pvc.Spec.VolumeName",
        }
    };
    Err(Lack::Claim(format!(
        "error processing PVC {}/{}: {why}",
        pod.namespace, ask.claim
    )))
}

fn is_owned(claim: &PersistentVolumeClaim, pod: &Desired) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    controllers.any(|owner| owner.kind == "Pod" && owner.uid == pod.uid)
}

/// Whether a volume says on which nodes it is.
pub(crate) fn asks_for_node(volume: &PersistentVolume) -> bool {
    let spec = volume.spec.as_ref();
    spec.is_some_and(|spec| spec.node_affinity.is_some())
}

/// What to mount.
///
/// # Errors
/// The volume is not the claim's, is not here, or is of a kind that is not built.
pub(crate) fn bound(
    pod: &Desired,
    ask: &Ask,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    node: &str,
    labels: &BTreeMap<String, String>,
) -> Result<Bound, Lack> {
    let processing = |why: String| {
        Lack::Claim(format!(
            "error processing PVC {}/{}: {why}",
            pod.namespace, ask.claim
        ))
    };
    let name = volume.metadata.name.clone().unwrap_or_default();
    let none = PersistentVolumeSpec::default();
    let spec = volume.spec.as_ref().unwrap_or(&none);
    let uid = claim.metadata.uid.as_deref().unwrap_or_default();
    let Some(owner) = &spec.claim_ref else {
        return Err(processing(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to a claim"
        )));
    };
    let owner = owner.uid.as_deref().unwrap_or_default();
    if owner != uid || uid.is_empty() {
        return Err(processing(format!(
            "found PV object {name} but its pv.Spec.ClaimRef.UID {owner} does not point to claim.UID {uid}"
        )));
    }
    if !is_path_component(&name) {
        return Err(processing(format!("{name:?} is no name of a volume")));
    }
    let is_block = spec.volume_mode.as_deref() == Some("Block");
    is_used_as_it_is(pod, ask, is_block).map_err(Lack::Claim)?;
    let step = |step: &str, why: &str| {
        Lack::Step(format!("MountVolume.{step} for volume {name:?} : {why}"))
    };
    let source = source(spec).map_err(|kind| {
        let what = format!("{kind} is {UNBUILT}");
        step("NewMounter initialization failed", &what)
    })?;
    let required = spec
        .node_affinity
        .as_ref()
        .and_then(|it| it.required.as_ref());
    let is_here = required.is_none_or(|required| {
        let mut terms = required.node_selector_terms.iter();
        terms.any(|term| admission::fits(term, node, labels))
    });
    if !is_here {
        return Err(step(
            "NodeAffinity check failed",
            "no matching NodeSelectorTerms",
        ));
    }
    let options = spec.mount_options.clone().unwrap_or_default();
    if matches!(source, Source::HostPath { .. }) {
        if !options.is_empty() {
            let why = "Mount options are not supported for this volume type";
            return Err(step("MountOptionSupport check failed", why));
        }
        if is_block {
            let why = "a hostPath can't be used as a block device";
            return Err(step("NewMounter initialization failed", why));
        }
    }
    let modes = spec.access_modes.iter().flatten();
    Ok(Bound {
        volume: ask.volume.clone(),
        source,
        is_block,
        read_only: ask.read_only,
        once_pod: modes.into_iter().any(|mode| mode == ONCE_POD),
        options,
        name,
    })
}

/// Devices are no mounts, and mounts no devices.
fn is_used_as_it_is(pod: &Desired, ask: &Ask, is_block: bool) -> Result<(), String> {
    let name = &ask.volume;
    for spec in &pod.containers {
        let it = &spec.container;
        let mut mounts = it.volume_mounts.iter().flatten();
        if is_block && mounts.any(|mount| mount.name == *name) {
            return Err(format!(
                "volume {name} has volumeMode Block, but is specified in volumeMounts"
            ));
        }
        let mut devices = it.volume_devices.iter().flatten();
        if !is_block && devices.any(|device| device.name == *name) {
            return Err(format!(
                "volume {name} has volumeMode Filesystem, but is specified in volumeDevices"
            ));
        }
    }
    Ok(())
}

/// The error is the kind of what is not built.
fn source(spec: &PersistentVolumeSpec) -> Result<Source, String> {
    if let Some(local) = &spec.local {
        return Ok(Source::Local {
            path: local.path.clone().into(),
            fs_type: local.fs_type.clone().unwrap_or_default(),
        });
    }
    if let Some(host) = &spec.host_path {
        return Ok(Source::HostPath {
            path: host.path.clone().into(),
            kind: host.type_.clone().unwrap_or_default(),
        });
    }
    if let Some(csi) = &spec.csi {
        return Err(format!("csi (driver {:?})", csi.driver));
    }
    // by its name in the object, whichever it is
    let value = serde_json::to_value(spec).unwrap_or_default();
    let mut kinds = value.as_object().into_iter().flatten();
    let kind = kinds.find(|(key, value)| {
        value.is_object() && !matches!(key.as_str(), "capacity" | "claimRef" | "nodeAffinity")
    });
    Err(
        kind.map_or("a volume without a source".to_owned(), |(key, _)| {
            key.clone()
        }),
    )
}

/// What is told of a pod whose claims lack something.
pub(crate) fn message(lacks: &[(String, Lack)]) -> String {
    if let Some((_, Lack::Step(message))) = lacks.iter().find(|(_, it)| matches!(it, Lack::Step(_)))
    {
        return message.clone();
    }
    let names: Vec<_> = lacks.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(" ");
    let whys: Vec<_> = lacks
        .iter()
        .map(|(_, lack)| match lack {
            Lack::Claim(why) | Lack::Step(why) => why.as_str(),
        })
        .collect();
    format!(
        "Unable to attach or mount volumes: unmounted volumes=[{names}], unattached volumes=[], failed to process volumes=[{names}]: {}",
        whys.join("; ")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::tests::pod;

    const POD: &str = "  containers: [{name: a, image: x, volumeMounts: [{name: v, mountPath: /v}]}]\n  \
        volumes: [{name: v, persistentVolumeClaim: {claimName: data, readOnly: true}}, {name: e}, {name: own, ephemeral: {volumeClaimTemplate: {spec: \
        {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}}}]";

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "data", "namespace": "default", "uid": "c1"},
            "spec": {"volumeName": "pv"},
            "status": {"phase": "Bound"},
        });
        for (path, value) in more.as_object().unwrap() {
            *claim.pointer_mut(path).unwrap() = value.clone();
        }
        serde_json::from_value(claim).unwrap()
    }

    fn why(lack: Lack) -> String {
        match lack {
            Lack::Claim(why) => why,
            Lack::Step(why) => format!("step: {why}"),
        }
    }

    #[test]
    fn a_pod_names_claims_and_those_of_its_own() {
        let pod = pod(POD);
        let found: Vec<_> = asks(&pod)
            .into_iter()
            .map(|it| (it.volume, it.claim, it.read_only, it.is_ephemeral))
            .collect();
        let own = |volume: &str, claim: &str, read_only, is_ephemeral| {
            (volume.to_owned(), claim.to_owned(), read_only, is_ephemeral)
        };
        assert_eq!(
            found,
            [
                own("v", "data", true, false),
                own("own", "web-own", false, true)
            ]
        );
    }

    /// PV-01, SCL-01.
    #[test]
    fn a_claim_is_waited_for_until_it_is_bound_and_by_its_own_pod() {
        let pod = pod(POD);
        let asks = asks(&pod);
        let processing = |why: &str| format!("error processing PVC default/data: {why}");
        for (more, expected) in [
            (json!({}), Ok("pv")),
            (
                json!({"/status": {"phase": "Pending"}}),
                Err(processing("PVC is not bound")),
            ),
            (
                json!({"/status": null}),
                Err(processing("PVC is not bound")),
            ),
            (
                json!({"/status": {"phase": "Lost"}}),
                Err(processing(
                    "PVC is lost: the volume that it was bound to is gone, or another's",
                )),
            ),
            (
                json!({"/spec": {}}),
                Err(processing("PVC has empty pvc.Spec.VolumeName")),
            ),
            (
                json!({"/metadata": {"name": "data", "deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                Err(processing("PVC is being deleted")),
            ),
        ] {
            let claim = claim(more);
            let got = volume_of(&pod, &asks[0], &claim).map_err(why);
            assert_eq!(got, expected, "{claim:?}");
        }
        let owner = |uid: &str| json!({"/metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": uid, "controller": true}]}});
        assert_eq!(volume_of(&pod, &asks[1], &claim(owner("uid-1"))), Ok("pv"));
        for claim in [claim(owner("another")), claim(json!({}))] {
            assert_eq!(
                volume_of(&pod, &asks[1], &claim).map_err(why),
                Err(
                    "PVC default/web-own was not created for pod default/web (pod is not owner)"
                        .into()
                )
            );
        }
    }

    /// PV-02, SCL-02.
    #[test]
    fn a_volume_is_the_claims_reaches_the_node_and_is_of_a_kind_that_is_built() {
        let pod = pod(POD);
        let ask = &asks(&pod)[0];
        let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), "n1".to_owned())]);
        let of = |more: Value| {
            let mut spec = json!({"claimRef": {"uid": "c1"}, "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
            for (key, value) in more.as_object().unwrap() {
                spec[key] = value.clone();
            }
            let volume = json!({"metadata": {"name": "pv"}, "spec": spec});
            let volume = serde_json::from_value(volume).unwrap();
            bound(&pod, ask, &claim(json!({})), &volume, "n1", &labels).map_err(why)
        };
        let on = |host: &str| {
            json!({"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]},
            ]}})
        };
        let local = json!({"path": "/d"});
        let good = of(
            json!({"local": local, "nodeAffinity": on("n1"), "mountOptions": ["noexec"], "accessModes": [ONCE_POD]}),
        );
        let expected = Bound {
            volume: "v".into(),
            name: "pv".into(),
            source: Source::Local {
                path: "/d".into(),
                fs_type: String::new(),
            },
            is_block: false,
            read_only: true,
            once_pod: true,
            options: vec!["noexec".into()],
        };
        assert_eq!(good, Ok(expected));
        let host = of(json!({"hostPath": {"path": "/h", "type": "Directory"}})).unwrap();
        assert!(matches!(host.source, Source::HostPath { .. }) && !host.once_pod);
        for (more, expected) in [
            (
                json!({"local": local, "claimRef": null}),
                "error processing PVC default/data: found PV object pv but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to a claim",
            ),
            (
                json!({"local": local, "claimRef": {"uid": "c2"}}),
                "error processing PVC default/data: found PV object pv but its pv.Spec.ClaimRef.UID c2 does not point to claim.UID c1",
            ),
            (
                json!({"local": local, "nodeAffinity": on("n2")}),
                "step: MountVolume.NodeAffinity check failed for volume \"pv\" : no matching NodeSelectorTerms",
            ),
            (
                json!({"local": local, "volumeMode": "Block"}),
                "volume v has volumeMode Block, but is specified in volumeMounts",
            ),
            (
                json!({"hostPath": {"path": "/h"}, "mountOptions": ["ro"]}),
                "step: MountVolume.MountOptionSupport check failed for volume \"pv\" : Mount options are not supported for this volume type",
            ),
            (
                json!({"nfs": {"server": "s", "path": "/"}}),
                "step: MountVolume.NewMounter initialization failed for volume \"pv\" : nfs is not built: local and hostPath are",
            ),
            (
                json!({"csi": {"driver": "d.example", "volumeHandle": "h"}}),
                "step: MountVolume.NewMounter initialization failed for volume \"pv\" : csi (driver \"d.example\") is not built: local and hostPath are",
            ),
        ] {
            assert_eq!(of(more), Err(expected.to_owned()));
        }
    }

    #[test]
    fn what_is_told_names_the_volumes_that_are_lacking() {
        let claim = |volume: &str, why: &str| (volume.to_owned(), Lack::Claim(why.into()));
        let step = ("c".to_owned(), Lack::Step("it failed".into()));
        assert_eq!(
            message(&[claim("a", "one"), claim("b", "two")]),
            "Unable to attach or mount volumes: unmounted volumes=[a b], unattached volumes=[], failed to process volumes=[a b]: one; two"
        );
        assert_eq!(message(&[claim("a", "one"), step]), "it failed");
    }
}
