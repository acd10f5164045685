//! What becomes of a volume.

use berth_recorder::Level;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use super::{BOUND_BY_CONTROLLER, COMPONENT, VolumeBinder, annotation, phase};
use crate::{Error, Key, controller::Next};

/// By a provisioner, which deletes it, too.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

impl VolumeBinder {
    pub(super) async fn volume(&self, key: &Key) -> Result<Next, Error> {
        let Some(volume) = self.volumes.get(key) else {
            return Ok(Next::Settled);
        };
        let spec = volume.spec.as_ref();
        let Some(of) = spec.and_then(|spec| spec.claim_ref.as_ref()) else {
            self.say_of_volume(&volume, "Available", None).await?;
            return Ok(Next::Settled);
        };
        // it is kept for a claim that isn't bound to it yet
        if of.uid.as_deref().is_none_or(str::is_empty) {
            self.say_of_volume(&volume, "Available", None).await?;
            return Ok(Next::Settled);
        }
        let Some(claim) = self.claim_of(of).await? else {
            self.release(&volume).await?;
            return Ok(Next::Settled);
        };
        let named = claim.spec.as_ref();
        let named = named.and_then(|spec| spec.volume_name.as_deref());
        match named.filter(|name| !name.is_empty()) {
            Some(name) if name == key.name => {
                self.say_of_volume(&volume, "Bound", None).await?;
            }
            // it is on its way
            None => self.queue.add(Key::of(&claim)),
            Some(_) => self.let_go(&volume).await?,
        }
        Ok(Next::Settled)
    }

    /// The very claim that is meant. That there is none is asked of the server itself: data may be lost by a mistake.
    async fn claim_of(&self, of: &ObjectReference) -> Result<Option<PersistentVolumeClaim>, Error> {
        let key = Key::new(
            of.namespace.as_deref().unwrap_or_default(),
            of.name.as_deref().unwrap_or_default(),
        );
        let is_meant = |claim: &PersistentVolumeClaim| claim.metadata.uid == of.uid;
        if let Some(claim) = self.claims.get(&key).filter(|claim| is_meant(claim)) {
            return Ok(Some(PersistentVolumeClaim::clone(&claim)));
        }
        match self.context.read::<PersistentVolumeClaim>(&key).await {
            Ok(claim) => Ok(Some(claim).filter(is_meant)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its claim has gone.
    async fn release(&self, volume: &PersistentVolume) -> Result<(), Error> {
        if matches!(phase(volume), "Released" | "Failed") {
            return Ok(());
        }
        let spec = volume.spec.as_ref();
        let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        let (phase, why) = match policy {
            Some("Delete") if annotation(volume, PROVISIONED_BY).is_none() => (
                "Failed",
                Some((
                    "VolumeFailedDelete",
                    "nobody can delete this volume: it was not made by a provisioner",
                )),
            ),
            Some("Recycle") => (
                "Failed",
                Some(("VolumeFailedRecycle", "volumes are not recycled here")),
            ),
            _ => ("Released", None),
        };
        self.say_of_volume(volume, phase, why.map(|(_, message)| message))
            .await?;
        if let Some((reason, message)) = why {
            let level = Level::Warning;
            self.context
                .event(volume, COMPONENT, level, reason, message.into());
        }
        Ok(())
    }

    /// Its claim has another volume. What a person or the scheduler has kept for the claim stays kept.
    async fn let_go(&self, volume: &PersistentVolume) -> Result<(), Error> {
        let by_controller = annotation(volume, BOUND_BY_CONTROLLER).is_some();
        let mut changed = volume.clone();
        changed.annotations_mut().remove(BOUND_BY_CONTROLLER);
        let spec = changed.spec.get_or_insert_default();
        match spec.claim_ref.as_mut().filter(|_| !by_controller) {
            None => spec.claim_ref = None,
            Some(kept) => (kept.uid, kept.resource_version) = (None, None),
        }
        self.context.update(&changed).await.map(drop)
    }

    pub(super) async fn say_of_volume(
        &self,
        volume: &PersistentVolume,
        now: &str,
        message: Option<&str>,
    ) -> Result<(), Error> {
        if phase(volume) == now {
            return Ok(());
        }
        let mut changed = volume.clone();
        let status = changed.status.get_or_insert_default();
        status.phase = Some(now.to_owned());
        status.message = message.map(str::to_owned);
        self.context.update_status(&changed).await.map(drop)
    }
}
