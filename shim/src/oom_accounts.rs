//! Who died for want of memory, where systemd removes a container's cgroup with its last process, often before anybody could look.
//!
//! The kernel counts what it kills in every cgroup above, too, and the pod's stays. What has been counted there and belongs neither to a
//! container that is still there nor to one that was seen off before is that of the one which is seen off now. Two that die within the same few
//! milliseconds can be taken for each other.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use berth_engine::cgroup::Cgroup;

/// Looks at a pod in which more is killed while one looks. After so many nobody is blamed.
const LOOKS: usize = 3;

#[derive(Debug, Default)]
pub struct OomAccounts(Mutex<Pods>);

/// By the path of the cgroup that containers lie in. A pod has one.
type Pods = BTreeMap<String, Pod>;

#[derive(Debug, Default)]
struct Pod {
    /// Kills of containers that were seen off, and of those before us.
    accounted: u64,
    live: BTreeMap<String, Cgroup>,
}

impl OomAccounts {
    /// A container is about to be made.
    pub fn open(&self, cgroup: &Cgroup) {
        let Some(parent) = cgroup.is_by_systemd().then(|| cgroup.parent()).flatten() else {
            return;
        };
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = pods.entry(parent.path().to_owned()).or_insert_with(|| Pod {
            accounted: parent.oom_kills().unwrap_or(0),
            live: BTreeMap::new(),
        });
        pod.live.insert(cgroup.path().to_owned(), cgroup.clone());
    }

    /// How many processes of a container that has ended were killed; an error where that can't be known.
    pub fn close(&self, cgroup: &Cgroup) -> Result<u64, berth_engine::cgroup::Error> {
        let own = cgroup.oom_kills();
        let Some(parent) = cgroup.is_by_systemd().then(|| cgroup.parent()).flatten() else {
            return own;
        };
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = pods.entry(parent.path().to_owned()).or_default();
        pod.live.remove(cgroup.path());
        let kills = match own {
            Ok(kills) => kills,
            Err(_) => pod.unaccounted(&parent)?,
        };
        pod.accounted += kills;
        Ok(kills)
    }
}

impl Pod {
    fn unaccounted(&self, parent: &Cgroup) -> Result<u64, berth_engine::cgroup::Error> {
        let mut all = parent.oom_kills()?;
        for _ in 0..LOOKS {
            let live: u64 = self
                .live
                .values()
                .map(|cgroup| cgroup.oom_kills().unwrap_or(0))
                .sum();
            let still = parent.oom_kills()?;
            if still == all {
                return Ok(all.saturating_sub(live).saturating_sub(self.accounted));
            }
            all = still;
        }
        Ok(0)
    }
}
