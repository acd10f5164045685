//! Limits of a container that is there already (UpdateContainerResources): checked as those of a new one are, before anything changes.

use std::collections::BTreeMap;

use berth_nri::Pass;
use berth_proto::cri;
use oci_spec::runtime::LinuxResources;

use super::{Pod, record::ContainerRecord, shim::Shim, view::ContainerView};
use crate::{error::Error, nri};

/// Whose wish it is.
#[derive(Debug, Clone)]
pub enum By {
    /// UpdateContainerResources: NRI plugins have a say in it.
    Caller,
    /// An NRI plugin, with what the CRI has no word for. No other is asked.
    Plugin(Box<LinuxResources>),
}

/// What is to be done.
#[derive(Debug)]
pub struct Limits {
    /// For the kernel: only what changes.
    pub oci: LinuxResources,
    /// As the container will have them then.
    pub resources: Box<cri::LinuxContainerResources>,
}

/// The limits that a configuration asks for.
pub fn asked(config: &cri::ContainerConfig) -> cri::LinuxContainerResources {
    let linux = config.linux.as_ref();
    linux
        .and_then(|linux| linux.resources.clone())
        .unwrap_or_default()
}

pub(super) fn plan(
    pod: &Pod,
    record: &ContainerRecord,
    change: &cri::LinuxContainerResources,
    by: &By,
) -> Result<Limits, Error> {
    let wrong = |source| Error::Spec {
        what: format!("container {}", record.id),
        source,
    };
    let resources = merged(record.resources.clone(), change);
    // The whole is checked: a swap limit that was given before may be below the memory limit that is asked for now.
    let (_, notes) = berth_spec::container_limits(&resources, &pod.node.host).map_err(wrong)?;
    let mut config = record.config.clone();
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(change.clone());
    let cgroup = pod.container_cgroup(&record.id);
    berth_spec::check_cpuset(&config, &cgroup, &pod.node.host).map_err(wrong)?;
    let (mut oci, _) = berth_spec::container_limits(&together(change, &resources), &pod.node.host)
        .map_err(wrong)?;
    if let By::Plugin(beyond) = by {
        nri::overlay(&mut oci, beyond);
    }
    for note in notes {
        tracing::warn!(pod_id = %pod.id, container_id = %record.id, "{note}");
    }
    Ok(Limits {
        oci,
        resources: Box::new(resources),
    })
}

/// The change, and of what the container has already that without which a part of it says nothing: a quota is by its period (one file
/// on cgroup v2), and a limit of memory and swap is above one of memory.
fn together(
    change: &cri::LinuxContainerResources,
    after: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let mut whole = change.clone();
    if change.cpu_quota != 0 || change.cpu_period != 0 {
        (whole.cpu_quota, whole.cpu_period) = (after.cpu_quota, after.cpu_period);
    }
    if change.memory_limit_in_bytes != 0 || change.memory_swap_limit_in_bytes != 0 {
        whole.memory_limit_in_bytes = after.memory_limit_in_bytes;
        whole.memory_swap_limit_in_bytes = after.memory_swap_limit_in_bytes;
    }
    whole
}

/// Changes the limits, as NRI plugins would have it; answers with what the container has then.
pub(super) async fn carry_out(
    pod: &Pod,
    shim: &Shim,
    view: &ContainerView,
    limits: Limits,
    asked: cri::LinuxContainerResources,
    by: By,
) -> (Result<Box<cri::LinuxContainerResources>, Error>, Pass) {
    let id = &view.record.id;
    if matches!(by, By::Plugin(_)) {
        let done = shim.update(id, &limits.oci).await;
        return (done.map(|()| limits.resources), Pass::default());
    }
    let pass = pod.node.nri.pass().await;
    let done = async {
        let mut limits = limits;
        let mut change = nri::update(&pass, pod, view, &asked).await?;
        if let Some(change) = &mut change {
            let by = By::Plugin(Box::new(std::mem::take(&mut change.beyond)));
            limits = plan(pod, &view.record, &change.limits, &by)?;
        }
        shim.update(id, &limits.oci).await?;
        nri::updated(&pass, pod, view, &limits.resources, change).await?;
        Ok(limits.resources)
    };
    let done = done.await;
    (done, pass)
}

/// `change` over `before`: zero and empty mean "as it is".
pub fn merged(
    before: cri::LinuxContainerResources,
    change: &cri::LinuxContainerResources,
) -> cri::LinuxContainerResources {
    let number = |before: i64, change: i64| if change == 0 { before } else { change };
    let text = |before: String, change: &String| {
        if change.is_empty() {
            before
        } else {
            change.clone()
        }
    };
    let mut pages: BTreeMap<String, u64> = BTreeMap::new();
    for limit in before.hugepage_limits.iter().chain(&change.hugepage_limits) {
        pages.insert(limit.page_size.clone(), limit.limit);
    }
    let mut unified = before.unified;
    unified.extend(change.unified.clone());
    cri::LinuxContainerResources {
        cpu_period: number(before.cpu_period, change.cpu_period),
        cpu_quota: number(before.cpu_quota, change.cpu_quota),
        cpu_shares: number(before.cpu_shares, change.cpu_shares),
        memory_limit_in_bytes: number(before.memory_limit_in_bytes, change.memory_limit_in_bytes),
        // A process keeps what it was started with: nobody can change that of all of a container's.
        oom_score_adj: before.oom_score_adj,
        cpuset_cpus: text(before.cpuset_cpus, &change.cpuset_cpus),
        cpuset_mems: text(before.cpuset_mems, &change.cpuset_mems),
        hugepage_limits: pages
            .into_iter()
            .map(|(page_size, limit)| cri::HugepageLimit { page_size, limit })
            .collect(),
        unified,
        memory_swap_limit_in_bytes: number(
            before.memory_swap_limit_in_bytes,
            change.memory_swap_limit_in_bytes,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_belong_together_change_together() {
        let after = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            cpu_period: 200_000,
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 2 << 20,
            ..Default::default()
        };
        type Change = fn(&mut cri::LinuxContainerResources);
        let table: [(Change, (i64, i64, i64, i64)); 4] = [
            (|r| r.cpu_quota = 50_000, (50_000, 200_000, 0, 0)),
            (|r| r.cpu_period = 200_000, (50_000, 200_000, 0, 0)),
            (
                |r| r.memory_swap_limit_in_bytes = 2 << 20,
                (0, 0, 1 << 20, 2 << 20),
            ),
            (|r| r.cpu_shares = 512, (0, 0, 0, 0)),
        ];
        for (row, (change, wants)) in table.into_iter().enumerate() {
            let mut asked = cri::LinuxContainerResources::default();
            change(&mut asked);
            let whole = together(&asked, &after);
            let got = (
                whole.cpu_quota,
                whole.cpu_period,
                whole.memory_limit_in_bytes,
                whole.memory_swap_limit_in_bytes,
            );
            assert_eq!(got, wants, "row {row}");
            assert_eq!(whole.cpu_shares, asked.cpu_shares, "row {row}");
        }
    }

    #[test]
    fn what_a_change_does_not_name_stays() {
        let before = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 50_000,
            memory_limit_in_bytes: 1 << 20,
            oom_score_adj: 100,
            cpuset_cpus: "0".into(),
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(
            merged(before.clone(), &cri::LinuxContainerResources::default()),
            before
        );
        let change = cri::LinuxContainerResources {
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            unified: [("pids.max".to_owned(), "9".to_owned())].into(),
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            ..Default::default()
        };
        let after = merged(before, &change);
        assert_eq!((after.cpu_shares, after.cpu_quota), (512, -1));
        assert_eq!(after.cpuset_cpus, "0-1");
        assert_eq!(after.unified.len(), 2);
        assert_eq!(after.hugepage_limits.len(), 1);
        assert_eq!(after.oom_score_adj, 100);
    }
}
