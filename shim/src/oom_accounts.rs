//! Who died for want of memory, where systemd removes a container's cgroup with its last process, often before anybody could look.
//!
//! The kernel counts what it kills in every cgroup above, too, and the pod's stays. What has been counted there and belongs neither to a
//! container that is still there nor to one that was seen off before is that of the one which is seen off now. Two that die within the same few
//! milliseconds can be taken for each other. Whose limit it was is told the same way: where none above has met its own, but counts that one
//! below has, it was that of the container, which is kept here.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use berth_engine::cgroup::{Cgroup, Error, Limited};

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
    live: BTreeMap<String, Live>,
}

#[derive(Debug)]
struct Live {
    cgroup: Cgroup,
    /// Its `memory.max` when it was last set; 0: none.
    limit_bytes: u64,
}

/// Deaths for want of memory in a container that has ended.
#[derive(Debug, Default)]
pub struct Deaths {
    pub kills: u64,
    /// None: the node had none left, or nobody was killed.
    pub limited: Option<Limited>,
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
        let live = Live {
            cgroup: cgroup.clone(),
            limit_bytes: 0,
        };
        pod.live.insert(cgroup.path().to_owned(), live);
    }

    /// A container's limits were set.
    pub fn limited(&self, cgroup: &Cgroup) {
        let Some(parent) = cgroup.is_by_systemd().then(|| cgroup.parent()).flatten() else {
            return;
        };
        let limit_bytes = cgroup.memory_limit().unwrap_or(0);
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = pods
            .get_mut(parent.path())
            .and_then(|pod| pod.live.get_mut(cgroup.path()));
        if let Some(live) = live {
            live.limit_bytes = limit_bytes;
        }
    }

    /// What became of a container that has ended; an error where that can't be known.
    pub fn close(&self, cgroup: &Cgroup) -> Result<Deaths, Error> {
        let own = cgroup.oom_kills();
        let Some(parent) = cgroup.is_by_systemd().then(|| cgroup.parent()).flatten() else {
            let kills = own?;
            let limited = match kills {
                0 => None,
                _ => cgroup.oom_limit()?,
            };
            return Ok(Deaths { kills, limited });
        };
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = pods.entry(parent.path().to_owned()).or_default();
        let live = pod.live.remove(cgroup.path());
        let kills = match own {
            Ok(kills) => kills,
            Err(_) => pod.unaccounted(&parent)?,
        };
        pod.accounted += kills;
        if kills == 0 {
            return Ok(Deaths::default());
        }
        let mut limited = cgroup.oom_limit()?;
        let limit_bytes = live.map_or(0, |live| live.limit_bytes);
        if limited.is_none() && limit_bytes > 0 && !cgroup.exists() && parent.limit_met_below()? {
            limited = Some(Limited {
                cgroup: cgroup.path().to_owned(),
                limit_bytes,
            });
        }
        Ok(Deaths { kills, limited })
    }
}

impl Pod {
    fn unaccounted(&self, parent: &Cgroup) -> Result<u64, Error> {
        let mut all = parent.oom_kills()?;
        for _ in 0..LOOKS {
            let live: u64 = self
                .live
                .values()
                .map(|live| live.cgroup.oom_kills().unwrap_or(0))
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
