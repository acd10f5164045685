//! PersistentVolumeClaims get PersistentVolumes, and both say so.
//!
//! ```text
//! claim:   Pending ─▶ Bound ─▶ Lost            volume:   Available ─▶ Bound ─▶ Released (Retain) or Failed (what nobody here can delete or recycle)
//! ```
//!
//! Binding is four writes, in this order: the volume's `claimRef`, its phase, the claim's `volumeName`, its phase. Whoever comes after a kill finds which is next.
//! A claim of a class that waits for its first consumer gets only the volume that has it in its `claimRef` already: the scheduler has put it there.
//! Volumes are made by provisioners, which are told by an annotation; here none is.
//!
//! Invariant: a volume is given to one claim: its `claimRef` is written under its resourceVersion, by one worker.

mod volume;

use std::sync::Arc;

use berth_kinds::Room;
use berth_recorder::Level;
use k8s_openapi::api::{
    core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
};

const COMPONENT: &str = "persistentvolume-controller";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// Volumes of such a class are made by people.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

pub(crate) struct VolumeBinder {
    context: Arc<Context>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    queue: Queue,
}

fn annotation<'a, K: ResourceExt>(object: &'a K, name: &str) -> Option<&'a str> {
    object.annotations().get(name).map(String::as_str)
}

fn annotate<K: ResourceExt>(object: &mut K, name: &str, value: &str) {
    object
        .annotations_mut()
        .insert(name.to_owned(), value.to_owned());
}

/// The status with these of its fields so; none: it is as it should be.
fn with_status<S: Serialize + DeserializeOwned>(
    status: Option<&S>,
    fields: &Value,
) -> Result<Option<S>, Error> {
    let unread = |error: serde_json::Error| Error::Other(format!("a status: {error}"));
    let before = serde_json::to_value(status).map_err(unread)?;
    let mut after = before.clone();
    for (name, value) in fields.as_object().into_iter().flatten() {
        // absent and null are the same
        if after[name] != *value {
            after[name] = value.clone();
        }
    }
    if after == before {
        return Ok(None);
    }
    serde_json::from_value(after).map(Some).map_err(unread)
}

fn phase(volume: &PersistentVolume) -> &str {
    let status = volume.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

fn room_of_volume(volume: &PersistentVolume) -> Room {
    let beta = annotation(volume, CLASS_BETA);
    let spec = volume.spec.as_ref();
    let storage = spec.and_then(|spec| Some(spec.capacity.as_ref()?.get("storage")?.0.as_str()));
    Room::new(
        beta.or(spec.and_then(|spec| spec.storage_class_name.as_deref())),
        spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()),
        spec.and_then(|spec| spec.access_modes.as_deref()),
        spec.and_then(|spec| spec.volume_mode.as_deref()),
        storage,
    )
}

fn room_of_claim(claim: &PersistentVolumeClaim) -> Room {
    let beta = annotation(claim, CLASS_BETA);
    let spec = claim.spec.as_ref();
    let resources = spec.and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    Room::new(
        beta.or(spec.and_then(|spec| spec.storage_class_name.as_deref())),
        spec.and_then(|spec| spec.volume_attributes_class_name.as_deref()),
        spec.and_then(|spec| spec.access_modes.as_deref()),
        spec.and_then(|spec| spec.volume_mode.as_deref()),
        requests.and_then(|requests| Some(requests.get("storage")?.0.as_str())),
    )
}

/// Whose a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Nobodys,
    /// It is kept for this claim, by whoever made it or by the scheduler; or bound to it.
    Its,
    Anothers,
}

fn whose(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Whose {
    let spec = volume.spec.as_ref();
    let Some(of) = spec.and_then(|spec| spec.claim_ref.as_ref()) else {
        return Whose::Nobodys;
    };
    let uid = of.uid.as_deref().unwrap_or_default();
    let is_its = of.name == claim.metadata.name
        && of.namespace == claim.metadata.namespace
        && (uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref());
    if is_its { Whose::Its } else { Whose::Anothers }
}

/// The volume that a claim gets: one that is kept for it, else the smallest that is free and enough. `only_kept`: none that is free.
fn best<'a>(
    volumes: &'a [Arc<PersistentVolume>],
    claim: &PersistentVolumeClaim,
    only_kept: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let wanted = room_of_claim(claim);
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.clone());
    let selector = match selector.map(Selector::try_from) {
        None => Selector::default(),
        Some(Ok(selector)) => selector,
        Some(Err(_)) => return None,
    };
    let mut found: Option<(i128, &Arc<PersistentVolume>)> = None;
    for volume in volumes {
        let room = room_of_volume(volume);
        if volume.metadata.deletion_timestamp.is_some() || !room.serves(&wanted) {
            continue;
        }
        match whose(volume, claim) {
            Whose::Its => return Some(volume),
            Whose::Nobodys if !only_kept => {}
            _ => continue,
        }
        if phase(volume) != "Available" || !selector.matches(volume.labels()) {
            continue;
        }
        let is_better = found.is_none_or(|(bytes, known)| {
            (room.nano_bytes, volume.name_any()) < (bytes, known.name_any())
        });
        if is_better {
            found = Some((room.nano_bytes, volume));
        }
    }
    found.map(|(_, volume)| volume)
}

impl Controller for VolumeBinder {
    const NAME: &'static str = "persistentvolume-binder-controller";
    const ACCOUNT: &'static str = "persistent-volume-binder";
    /// Two claims never reach for one volume.
    const WORKERS: usize = 1;

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let claims = context.cache::<PersistentVolumeClaim>();
        let volumes = context.cache::<PersistentVolume>();
        let classes = context.cache::<StorageClass>();
        let keys = queue.clone();
        claims.on_change(move |old, new| {
            let Some(claim) = new.or(old) else {
                return;
            };
            keys.add(Key::of(&**claim));
            let spec = claim.spec.as_ref();
            match spec.and_then(|spec| spec.volume_name.as_deref()) {
                Some(volume) => keys.add(Key::new("", volume)),
                // one may be kept for it
                None if new.is_none() => keys.add(Key::new("", GONE)),
                None => {}
            }
        });
        let (keys, all) = (queue.clone(), claims.clone());
        volumes.on_change(move |old, new| {
            for volume in [old, new].into_iter().flatten() {
                keys.add(Key::of(&**volume));
                let spec = volume.spec.as_ref();
                match spec.and_then(|spec| spec.claim_ref.as_ref()) {
                    Some(of) => keys.add(Key::new(
                        of.namespace.as_deref().unwrap_or_default(),
                        of.name.as_deref().unwrap_or_default(),
                    )),
                    None => add_waiting(&all, &keys),
                }
            }
        });
        let (keys, all) = (queue.clone(), claims.clone());
        classes.on_change(move |_, _| add_waiting(&all, &keys));
        Self {
            context,
            claims,
            volumes,
            classes,
            queue,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        if !key.namespace.is_empty() {
            return self.claim(key).await;
        }
        if key.name == GONE {
            for volume in self.volumes.all() {
                self.queue.add(Key::of(&*volume));
            }
            return Ok(Next::Settled);
        }
        self.volume(key).await
    }
}

/// No volume's name: a claim that was not bound has gone, and all volumes are looked at.
const GONE: &str = "*";

/// Claims that have no volume.
fn add_waiting(claims: &Cache<PersistentVolumeClaim>, queue: &Queue) {
    for claim in claims.all() {
        if annotation(&*claim, BIND_COMPLETED).is_none() {
            queue.add(Key::of(&*claim));
        }
    }
}

impl VolumeBinder {
    async fn claim(&self, key: &Key) -> Result<Next, Error> {
        let Some(claim) = self.claims.get(key) else {
            return Ok(Next::Settled);
        };
        let spec = claim.spec.as_ref();
        let name = spec.and_then(|spec| spec.volume_name.as_deref());
        let name = name.filter(|name| !name.is_empty());
        let volume = name.and_then(|name| self.volumes.get(&Key::new("", name)));
        if annotation(&*claim, BIND_COMPLETED).is_some() {
            self.bound_claim(&claim, name, volume).await?;
            return Ok(Next::Settled);
        }
        if claim.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Settled);
        }
        match (name, volume) {
            (None, _) => self.free_claim(&claim).await?,
            (Some(_), None) => self.waits(&claim).await?,
            (Some(name), Some(volume)) => match whose(&volume, &claim) {
                Whose::Anothers => {
                    let message = format!("volume {name:?} already bound to a different claim.");
                    self.tell(&claim, Level::Warning, "FailedBinding", message);
                    self.waits(&claim).await?;
                }
                Whose::Nobodys if !room_of_volume(&volume).serves(&room_of_claim(&claim)) => {
                    let message = format!(
                        "Cannot bind to requested volume {name:?}: its class, size, access modes or volume mode are not what is asked for"
                    );
                    self.tell(&claim, Level::Warning, "VolumeMismatch", message);
                    self.waits(&claim).await?;
                }
                _ => self.bind(volume, claim).await?,
            },
        }
        Ok(Next::Settled)
    }

    /// One that nobody has said a volume for.
    async fn free_claim(&self, claim: &Arc<PersistentVolumeClaim>) -> Result<(), Error> {
        let class_name = room_of_claim(claim).class;
        let class = self.classes.get(&Key::new("", &class_name));
        let mode = class
            .as_ref()
            .and_then(|class| class.volume_binding_mode.as_deref());
        let delays = mode == Some("WaitForFirstConsumer");
        let all = self.volumes.all();
        if let Some(volume) = best(&all, claim, delays) {
            return self.bind(volume.clone(), claim.clone()).await;
        }
        let is_delayed = delays && annotation(&**claim, SELECTED_NODE).is_none();
        match class {
            None if class_name.is_empty() => self.tell(
                claim,
                Level::Normal,
                "FailedBinding",
                "no persistent volumes available for this claim and no storage class is set".into(),
            ),
            None => self.tell(
                claim,
                Level::Warning,
                "ProvisioningFailed",
                format!("storageclass.storage.k8s.io {class_name:?} not found"),
            ),
            Some(_) if is_delayed => self.tell(
                claim,
                Level::Normal,
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".into(),
            ),
            Some(class) if class.provisioner == NO_PROVISIONER => self.tell(
                claim,
                Level::Normal,
                "FailedBinding",
                format!(
                    "no persistent volumes available for this claim, and none are made for the storage class {class_name:?}"
                ),
            ),
            Some(class) => self.ask_provisioner(claim, &class.provisioner).await?,
        }
        self.waits(claim).await
    }

    /// Whoever makes volumes looks for this.
    async fn ask_provisioner(
        &self,
        claim: &PersistentVolumeClaim,
        provisioner: &str,
    ) -> Result<(), Error> {
        if annotation(claim, PROVISIONER) != Some(provisioner) {
            let mut changed = claim.clone();
            for name in [PROVISIONER, PROVISIONER_BETA] {
                annotate(&mut changed, name, provisioner);
            }
            self.context.update(&changed).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
        );
        self.tell(claim, Level::Normal, "ExternalProvisioning", message);
        Ok(())
    }

    /// One that was bound before.
    async fn bound_claim(
        &self,
        claim: &Arc<PersistentVolumeClaim>,
        name: Option<&str>,
        volume: Option<Arc<PersistentVolume>>,
    ) -> Result<(), Error> {
        let (reason, message) = match (name, volume) {
            (None, _) => (
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            (Some(_), None) => (
                "ClaimLost",
                "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
            ),
            (Some(_), Some(volume)) => match whose(&volume, claim) {
                Whose::Anothers => (
                    "ClaimMisbound",
                    "Two claims are bound to the same volume, this one is bound incorrectly",
                ),
                _ => return self.bind(volume, claim.clone()).await,
            },
        };
        if self.say_of_claim(claim, json!({"phase": "Lost"})).await? {
            self.tell(claim, Level::Warning, reason, message.into());
        }
        Ok(())
    }

    async fn waits(&self, claim: &PersistentVolumeClaim) -> Result<(), Error> {
        self.say_of_claim(claim, json!({"phase": "Pending"}))
            .await
            .map(drop)
    }

    /// Whether that is news. Only what is different is written.
    async fn say_of_claim(
        &self,
        claim: &PersistentVolumeClaim,
        status: Value,
    ) -> Result<bool, Error> {
        match with_status(claim.status.as_ref(), &status)? {
            None => Ok(false),
            Some(status) => {
                let mut changed = claim.clone();
                changed.status = Some(status);
                self.context.update_status(&changed).await?;
                Ok(true)
            }
        }
    }

    /// What of the four writes is missing.
    async fn bind(
        &self,
        volume: Arc<PersistentVolume>,
        claim: Arc<PersistentVolumeClaim>,
    ) -> Result<(), Error> {
        let volume = self.give(volume, &claim).await?;
        self.say_of_volume(&volume, "Bound", None).await?;
        let claim = self.take(&volume, claim).await?;
        let spec = volume.spec.as_ref();
        let status = json!({
            "phase": "Bound",
            "accessModes": spec.and_then(|spec| spec.access_modes.as_ref()),
            "capacity": spec.and_then(|spec| spec.capacity.as_ref()),
        });
        self.say_of_claim(&claim, status).await.map(drop)
    }

    /// The volume says whose it is.
    async fn give(
        &self,
        volume: Arc<PersistentVolume>,
        claim: &PersistentVolumeClaim,
    ) -> Result<Arc<PersistentVolume>, Error> {
        let spec = volume.spec.as_ref();
        let of = spec.and_then(|spec| spec.claim_ref.as_ref());
        if of.is_some_and(|of| of.uid.is_some() && of.uid == claim.metadata.uid) {
            return Ok(volume);
        }
        let reference = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolumeClaim".into()),
            name: claim.metadata.name.clone(),
            namespace: claim.metadata.namespace.clone(),
            uid: claim.metadata.uid.clone(),
            resource_version: claim.metadata.resource_version.clone(),
            field_path: None,
        };
        // what somebody else has kept for the claim stays kept when it is let go
        let is_nobodys = of.is_none();
        let mut changed = (*volume).clone();
        changed.spec.get_or_insert_default().claim_ref = Some(reference);
        if is_nobodys {
            annotate(&mut changed, BOUND_BY_CONTROLLER, "yes");
        }
        self.context.update(&changed).await
    }

    /// The claim says what it has.
    async fn take(
        &self,
        volume: &PersistentVolume,
        claim: Arc<PersistentVolumeClaim>,
    ) -> Result<Arc<PersistentVolumeClaim>, Error> {
        let spec = claim.spec.as_ref();
        let named = spec.and_then(|spec| spec.volume_name.as_deref());
        let named = named.filter(|name| !name.is_empty());
        if named.is_some() && annotation(&*claim, BIND_COMPLETED).is_some() {
            return Ok(claim);
        }
        let mut changed = (*claim).clone();
        annotate(&mut changed, BIND_COMPLETED, "yes");
        if named.is_none() {
            annotate(&mut changed, BOUND_BY_CONTROLLER, "yes");
        }
        changed.spec.get_or_insert_default().volume_name = volume.metadata.name.clone();
        self.context.update(&changed).await
    }

    fn tell(&self, claim: &PersistentVolumeClaim, level: Level, reason: &str, message: String) {
        self.context.event(claim, COMPONENT, level, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::from_value;

    use super::*;

    fn volume(name: &str, storage: &str, more: Value) -> Arc<PersistentVolume> {
        let mut volume = json!({
            "metadata": {"name": name, "uid": name, "labels": {"name": name}},
            "spec": {"capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"], "storageClassName": "local"},
            "status": {"phase": "Available"},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            volume["spec"][key] = value.clone();
        }
        Arc::new(from_value(volume).expect("a volume"))
    }

    fn claim(storage: &str, more: Value) -> PersistentVolumeClaim {
        let mut claim = json!({
            "metadata": {"name": "c", "namespace": "d", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local", "resources": {"requests": {"storage": storage}}},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            claim["spec"][key] = value.clone();
        }
        from_value(claim).expect("a claim")
    }

    #[test]
    fn a_claim_gets_what_is_kept_for_it_or_the_smallest_that_is_enough() {
        let mut all = vec![
            volume("large", "10Gi", json!({})),
            volume("b", "2Gi", json!({})),
            volume("a", "2Gi", json!({})),
            volume("small", "1Gi", json!({})),
            volume("other", "2Gi", json!({"storageClassName": "other"})),
            volume(
                "taken",
                "2Gi",
                json!({"claimRef": {"namespace": "d", "name": "e", "uid": "v"}}),
            ),
        ];
        let name = |all: &[Arc<PersistentVolume>], claim: &PersistentVolumeClaim, only_kept| {
            best(all, claim, only_kept).map(|volume| volume.name_any())
        };
        assert_eq!(
            name(&all, &claim("2Gi", json!({})), false).as_deref(),
            Some("a")
        );
        assert_eq!(
            name(&all, &claim("3Gi", json!({})), false).as_deref(),
            Some("large")
        );
        assert_eq!(name(&all, &claim("11Gi", json!({})), false), None);
        assert_eq!(name(&all, &claim("1Gi", json!({})), true), None);
        let selects = json!({"selector": {"matchExpressions": [{"key": "name", "operator": "NotIn", "values": ["a", "small"]}]}});
        assert_eq!(
            name(&all, &claim("1Gi", selects), false).as_deref(),
            Some("b")
        );
        let kept = json!({"claimRef": {"namespace": "d", "name": "c"}});
        all.push(volume("kept", "5Gi", kept));
        for only_kept in [false, true] {
            let found = name(&all, &claim("1Gi", json!({})), only_kept);
            assert_eq!(found.as_deref(), Some("kept"));
        }
        // an earlier claim of that name
        let before = json!({"claimRef": {"namespace": "d", "name": "c", "uid": "before"}});
        all.pop();
        all.push(volume("before", "5Gi", before));
        assert_eq!(name(&all, &claim("1Gi", json!({})), true), None);
    }
}
