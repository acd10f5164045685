//! User namespaces of pods (`hostUsers: false`): which ids of the node a pod's are.
//!
//! Nothing is written down: who has which is asked of the runtime, and a pod's own are those of its sandbox.
//!
//! # Synchronization
//! Ids that were chosen are reserved until the sandbox that has them is there, or has come to nothing; and what is reserved is looked at before
//! the runtime's list and after it. So two pods of this kubelet never choose the same. Another kubelet beside begins its search elsewhere.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use berth_proto::cri::{IdMapping, NamespaceMode, UserNamespace};

use crate::{
    Error,
    pod::{Desired, digest},
    problem::Problem,
    runtime::Runtime,
};

/// Ids of a pod: as many as programs count on.
const LENGTH: u32 = 1 << 16;
/// Whole lengths from the second on, since the first are the node's own; the kernel's ids end at twice that.
const BLOCKS: std::ops::Range<u32> = 1..(1 << 15);

static RESERVED: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// The pod's ids 0 to 65535 are the node's from this one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ids {
    pub first: u32,
}

impl Ids {
    /// Those that a sandbox has.
    pub fn of(options: Option<&UserNamespace>) -> Option<Self> {
        let options = options.filter(|it| it.mode() == NamespaceMode::Pod)?;
        let root = options.uids.iter().find(|it| it.container_id == 0)?;
        Some(Self {
            first: root.host_id,
        })
    }

    pub fn mapping(self) -> Vec<IdMapping> {
        vec![IdMapping {
            host_id: self.first,
            container_id: 0,
            length: LENGTH,
        }]
    }

    pub fn options(self) -> UserNamespace {
        UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: self.mapping(),
            gids: self.mapping(),
        }
    }
}

/// Whether the pod is to have one.
pub(crate) fn is_wanted(pod: &Desired) -> bool {
    pod.spec.host_users == Some(false)
}

/// Nobody else's until it is dropped.
#[derive(Debug)]
pub(crate) struct Reserved(pub Ids);

impl Drop for Reserved {
    fn drop(&mut self) {
        RESERVED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.0.first);
    }
}

/// Ids for a sandbox that is about to be made; none where the pod's users are the node's.
pub(crate) async fn reserve(runtime: &Runtime, pod: &Desired) -> Result<Option<Reserved>, Error> {
    if !is_wanted(pod) {
        return Ok(None);
    }
    let mut taken = RESERVED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for sandbox in runtime.sandboxes(None).await? {
        match runtime.sandbox_facts(&sandbox.id).await {
            Ok(facts) => taken.extend(facts.ids.map(|ids| ids.first)),
            // removed since the list
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    taken.extend(reserved.iter());
    let ids = choose(&pod.uid, &taken).ok_or_else(|| {
        Problem::new(
            "spec.hostUsers",
            "the node has no more ids for user namespaces",
        )
    })?;
    reserved.insert(ids.first);
    Ok(Some(Reserved(ids)))
}

/// The first that are free, from a place on that hangs on the pod. Ids may begin anywhere: those of another kubelet need not be whole lengths.
fn choose(uid: &str, taken: &BTreeSet<u32>) -> Option<Ids> {
    let count = BLOCKS.end - BLOCKS.start;
    let hash = u32::from_str_radix(&digest(&[uid.as_bytes()])[..8], 16).unwrap_or(0);
    let is_free = |first: u32| {
        let (before, after) = (first.saturating_sub(LENGTH - 1), first + (LENGTH - 1));
        taken.range(before..=after).next().is_none()
    };
    (0..count)
        .map(|step| (BLOCKS.start + (hash % count + step) % count) * LENGTH)
        .find(|first| is_free(*first))
        .map(|first| Ids { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_nobody_elses_and_never_the_nodes_own() {
        let mut taken = BTreeSet::new();
        let first = choose("a", &taken).unwrap().first;
        assert_eq!(first % LENGTH, 0);
        assert!(first >= LENGTH);
        assert_eq!(choose("a", &taken).unwrap().first, first);
        assert_ne!(choose("b", &taken).unwrap().first, first);
        // one that lies across two blocks takes both
        taken.insert(first + 7);
        let next = choose("a", &taken).unwrap().first;
        assert!(next != first && next != first + LENGTH, "{first} {next}");
        taken.extend(BLOCKS.map(|block| block * LENGTH));
        assert_eq!(choose("a", &taken), None);
        taken.remove(&((BLOCKS.end - 1) * LENGTH));
        assert_eq!(
            choose("a", &taken).map(|ids| ids.first),
            Some((BLOCKS.end - 1) * LENGTH),
            "the last of all is one"
        );
    }

    #[test]
    fn a_sandbox_tells_its_ids() {
        let ids = Ids { first: 1 << 20 };
        assert_eq!(Ids::of(Some(&ids.options())), Some(ids));
        let of_node = UserNamespace {
            mode: NamespaceMode::Node.into(),
            ..UserNamespace::default()
        };
        assert_eq!(Ids::of(Some(&of_node)), None);
        assert_eq!(Ids::of(None), None);
    }
}
