//! Who owns the claims: by `persistentVolumeClaimRetentionPolicy` they go with the set, with a pod that is scaled away, or stay.

use k8s_openapi::{
    api::{
        apps::v1::{StatefulSet, StatefulSetSpec},
        core::v1::{PersistentVolumeClaim, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

use crate::{Kind, owner};

/// Both are Retain where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Policy {
    pub delete_when_deleted: bool,
    pub delete_when_scaled: bool,
}

impl Policy {
    pub(super) fn of(spec: &StatefulSetSpec) -> Self {
        let policy = spec.persistent_volume_claim_retention_policy.as_ref();
        let deletes = |what: Option<&String>| what.is_some_and(|what| what == "Delete");
        Self {
            delete_when_deleted: deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
            delete_when_scaled: deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        }
    }
}

/// What is to be done about the owners of a claim.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Owners {
    Right,
    Wrong(Vec<OwnerReference>),
    /// Another controls it: nobody of ours owns it, and whoever wants the policy should know.
    Conflict(Option<Vec<OwnerReference>>),
}

/// Whether a reference is to what has this name now or had it before.
fn names<K: Kind>(reference: &OwnerReference, object: &K) -> bool {
    reference.api_version == K::api_version(&())
        && reference.kind == K::kind(&())
        && Some(&reference.name) == object.meta().name.as_ref()
}

fn is<K: Kind>(reference: &OwnerReference, object: &K) -> bool {
    Some(&reference.uid) == object.meta().uid.as_ref()
}

/// Whether the claim goes with an earlier pod of this name: then nothing is put on it any more. `pod` may not be made yet.
pub(super) fn goes_with_an_earlier(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let owners = claim.metadata.owner_references.iter().flatten();
    let mut earlier = owners.filter(|owner| names(owner, pod) && !is(owner, pod));
    earlier.next().is_some()
}

/// `kept`: the pod is one of those that the set is to have.
pub(super) fn owners(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    policy: Policy,
    kept: bool,
) -> Owners {
    let known = claim
        .metadata
        .owner_references
        .as_deref()
        .unwrap_or_default();
    let stale = known
        .iter()
        .any(|owner| names(owner, set) && !is(owner, set) || names(owner, pod) && !is(owner, pod));
    // it goes with what has gone already
    if stale {
        return Owners::Right;
    }
    let (of_set, of_pod) = match (policy.delete_when_scaled, policy.delete_when_deleted) {
        (false, deleted) => (deleted, false),
        (true, deleted) => (kept && deleted, !kept),
    };
    let ours = |owner: &OwnerReference| is(owner, set) || is(owner, pod);
    let others = || known.iter().filter(|owner| !ours(owner)).cloned();
    let is_controlled = others().any(|owner| owner.controller == Some(true));
    if is_controlled && policy != Policy::default() {
        let clean = known.iter().any(ours).then(|| others().collect());
        return Owners::Conflict(clean);
    }
    let has = |uid: Option<&String>| known.iter().any(|owner| Some(&owner.uid) == uid);
    let controls = known
        .iter()
        .filter(|owner| ours(owner))
        .all(|owner| owner.controller == Some(true));
    if has(set.metadata.uid.as_ref()) == of_set
        && has(pod.metadata.uid.as_ref()) == of_pod
        && controls
    {
        return Owners::Right;
    }
    let mut wanted: Vec<_> = others().collect();
    wanted.extend(of_set.then(|| owner::reference(set)));
    wanted.extend(of_pod.then(|| owner::reference(pod)));
    Owners::Wrong(wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({"metadata": {"name": "web", "uid": "set"}})).unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-1", "uid": "pod"}})).unwrap()
    }

    fn claim(owners: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "ownerReferences": owners}}))
            .unwrap()
    }

    fn uids(owners: &Owners) -> Option<Vec<&str>> {
        match owners {
            Owners::Wrong(owners) => Some(owners.iter().map(|owner| owner.uid.as_str()).collect()),
            _ => None,
        }
    }

    #[test]
    fn claims_go_with_whom_the_policy_says() {
        for (deleted, scaled, kept, expected) in [
            (false, false, true, &[][..]),
            (false, false, false, &[]),
            (true, false, true, &["set"]),
            (true, false, false, &["set"]),
            (false, true, true, &[]),
            (false, true, false, &["pod"]),
            (true, true, true, &["set"]),
            (true, true, false, &["pod"]),
        ] {
            let policy = Policy {
                delete_when_deleted: deleted,
                delete_when_scaled: scaled,
            };
            let check = |claim: &PersistentVolumeClaim| owners(claim, &set(), &pod(), policy, kept);
            let bare = check(&claim(json!([])));
            if expected.is_empty() {
                assert_eq!(bare, Owners::Right, "{policy:?} {kept}");
            } else {
                assert_eq!(uids(&bare), Some(expected.to_vec()), "{policy:?} {kept}");
            }
            // from whatever was before, and settled then
            let both = json!([owner::reference(&set()), owner::reference(&pod())]);
            let fixed = match check(&claim(both)) {
                Owners::Wrong(owners) => owners,
                other => panic!("{other:?}"),
            };
            assert_eq!(check(&claim(json!(fixed))), Owners::Right);
        }
    }

    #[test]
    fn what_is_not_ours_is_let_alone() {
        let policy = Policy {
            delete_when_deleted: true,
            delete_when_scaled: true,
        };
        let check = |value: Value| owners(&claim(value), &set(), &pod(), policy, true);
        let earlier = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "before", "controller": true});
        assert_eq!(check(json!([earlier])), Owners::Right);
        let earlier = json!({"apiVersion": "v1", "kind": "Pod", "name": "web-1", "uid": "before"});
        assert!(goes_with_an_earlier(&claim(json!([earlier])), &pod()));
        assert!(!goes_with_an_earlier(
            &claim(json!([owner::reference(&pod())])),
            &pod()
        ));
        let other = json!({"apiVersion": "example.com/v1", "kind": "Db", "name": "x", "uid": "x", "controller": true});
        assert_eq!(check(json!([other])), Owners::Conflict(None));
        let mixed = check(json!([other, owner::reference(&set())]));
        let Owners::Conflict(Some(left)) = mixed else {
            panic!("{mixed:?}");
        };
        assert_eq!(left.len(), 1);
        let plain = json!({"apiVersion": "example.com/v1", "kind": "Db", "name": "x", "uid": "x"});
        assert_eq!(uids(&check(json!([plain]))), Some(vec!["x", "set"]));
        // one that does not control is put right
        let weak =
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set"});
        assert_eq!(uids(&check(json!([weak]))), Some(vec!["set"]));
        let retain = owners(
            &claim(json!([other])),
            &set(),
            &pod(),
            Policy::default(),
            true,
        );
        assert_eq!(retain, Owners::Right);
    }
}
