//! Where a pod's PersistentVolumeClaims let it be.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use crate::selector::{Labels, NodeTerm};

/// What a pod's claims say of nodes.
#[derive(Debug, Default)]
pub struct Claims {
    /// Why no node will do.
    pub refused: Option<String>,
    /// Of each volume: one of the terms has to take the node.
    nodes: Vec<Vec<NodeTerm>>,
}

impl Claims {
    pub fn take(&self, name: &str, labels: &Labels) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.all(|terms| terms.iter().any(|term| term.takes(name, labels)))
    }
}

#[derive(Debug)]
struct Claim {
    /// The volume that it is bound to.
    volume: Option<String>,
    deleted: bool,
}

/// All volumes and claims.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<(String, String), Claim>,
    /// Where each can be reached; none: everywhere.
    volumes: HashMap<String, Option<Vec<NodeTerm>>>,
}

impl Volumes {
    pub fn set_claim(&mut self, claim: &PersistentVolumeClaim) {
        let spec = claim.spec.as_ref();
        let bound = claim
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Bound");
        let volume = spec.and_then(|spec| spec.volume_name.clone());
        let of = Claim {
            volume: volume.filter(|_| bound),
            deleted: claim.metadata.deletion_timestamp.is_some(),
        };
        self.claims.insert(key(&claim.metadata), of);
    }

    pub fn remove_claim(&mut self, claim: &PersistentVolumeClaim) {
        self.claims.remove(&key(&claim.metadata));
    }

    pub fn set_volume(&mut self, volume: &PersistentVolume) {
        let affinity = volume
            .spec
            .as_ref()
            .and_then(|spec| spec.node_affinity.as_ref());
        let terms = affinity
            .and_then(|affinity| affinity.required.as_ref())
            .map(|required| {
                required
                    .node_selector_terms
                    .iter()
                    .map(NodeTerm::of)
                    .collect()
            });
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.volumes.insert(name, terms);
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    /// What the claims of a pod say. Claims that are bound once a node was chosen are not built: such a pod waits, and is told so.
    pub fn of(&self, namespace: &str, claims: &[String]) -> Claims {
        let mut of = Claims::default();
        for name in claims {
            let refused = match self.claims.get(&(namespace.to_owned(), name.clone())) {
                None => format!("persistentvolumeclaim \"{name}\" not found"),
                Some(claim) if claim.deleted => {
                    format!("persistentvolumeclaim \"{name}\" is being deleted")
                }
                Some(Claim { volume: None, .. }) => {
                    "pod has unbound immediate PersistentVolumeClaims".to_owned()
                }
                Some(Claim {
                    volume: Some(volume),
                    ..
                }) => match self.volumes.get(volume) {
                    None => format!("persistentvolume \"{volume}\" not found"),
                    Some(None) => continue,
                    Some(Some(terms)) => {
                        of.nodes.push(terms.clone());
                        continue;
                    }
                },
            };
            of.refused = Some(refused);
            break;
        }
        of
    }
}

fn key(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> (String, String) {
    (
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone().unwrap_or_default(),
    )
}
