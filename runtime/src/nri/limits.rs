//! Limits between the three who speak of them: plugins, the CRI and OCI.
//!
//! What the CRI has a word for goes the way of every limit: checked, merged with what there is, reported by ContainerStatus. For the rest
//! there is OCI ([`Wanted::beyond`]). What no cgroup here can be told is refused by its name.

use berth_nri::api;
use berth_proto::cri;
use oci_spec::runtime::{LinuxMemory, LinuxPidsBuilder, LinuxResources};
use protobuf::MessageField;
use tonic::Code;

use crate::block_io::BlockIo;

/// What a plugin wants.
#[derive(Debug, Default, PartialEq)]
pub struct Wanted {
    pub limits: cri::LinuxContainerResources,
    /// Memory reservation, swappiness and the OOM killer, pids, block I/O.
    pub beyond: LinuxResources,
}

/// The limit that can't be had, why, and what that is.
pub type Refusal = (api::Field, String, Code);

macro_rules! value {
    ($of:ident, $value:expr) => {
        MessageField::some(api::$of {
            value: $value,
            ..Default::default()
        })
    };
}

/// Zero and empty are no limits.
pub fn message(of: &cri::LinuxContainerResources) -> api::LinuxResources {
    let mut message = api::LinuxResources::default();
    let cpu = message.cpu.mut_or_insert_default();
    if of.cpu_shares > 0 {
        cpu.shares = value!(OptionalUInt64, of.cpu_shares as u64);
    }
    if of.cpu_quota != 0 {
        cpu.quota = value!(OptionalInt64, of.cpu_quota);
    }
    if of.cpu_period > 0 {
        cpu.period = value!(OptionalUInt64, of.cpu_period as u64);
    }
    cpu.cpus.clone_from(&of.cpuset_cpus);
    cpu.mems.clone_from(&of.cpuset_mems);
    let memory = message.memory.mut_or_insert_default();
    if of.memory_limit_in_bytes != 0 {
        memory.limit = value!(OptionalInt64, of.memory_limit_in_bytes);
    }
    if of.memory_swap_limit_in_bytes != 0 {
        memory.swap = value!(OptionalInt64, of.memory_swap_limit_in_bytes);
    }
    message.hugepage_limits = of
        .hugepage_limits
        .iter()
        .map(|limit| api::HugepageLimit {
            page_size: limit.page_size.clone(),
            limit: limit.limit,
            ..Default::default()
        })
        .collect();
    message.unified = of.unified.clone();
    message
}

/// What a spec has beyond the CRI's limits.
pub fn of_oci(message: &mut api::LinuxResources, of: &LinuxResources) {
    if let Some(pids) = of.pids() {
        message.pids = MessageField::some(api::LinuxPids {
            limit: pids.limit(),
            ..Default::default()
        });
    }
    let Some(given) = of.memory() else { return };
    let memory = message.memory.mut_or_insert_default();
    if let Some(bytes) = given.reservation() {
        memory.reservation = value!(OptionalInt64, bytes);
    }
    if let Some(percent) = given.swappiness() {
        memory.swappiness = value!(OptionalUInt64, percent);
    }
    if let Some(off) = given.disable_oom_killer() {
        memory.disable_oom_killer = value!(OptionalBool, off);
    }
}

/// Takes apart what a plugin wants. `v2`: of cgroups.
pub fn wanted(asked: &api::LinuxResources, v2: bool, classes: &BlockIo) -> Result<Wanted, Refusal> {
    use api::Field;
    let refuse = |field, why: &str| Err((field, why.to_owned(), Code::Unimplemented));
    let mut wanted = Wanted::default();
    let limits = &mut wanted.limits;
    let unsigned = |field, value: u64| {
        i64::try_from(value).map_err(|_| {
            let why = format!("{value} is too large");
            (field, why, Code::InvalidArgument)
        })
    };
    if let Some(cpu) = asked.cpu.as_ref() {
        if let Some(shares) = cpu.shares.as_ref() {
            limits.cpu_shares = unsigned(Field::CPUShares, shares.value)?;
        }
        if let Some(quota) = cpu.quota.as_ref() {
            limits.cpu_quota = quota.value;
        }
        if let Some(period) = cpu.period.as_ref() {
            limits.cpu_period = unsigned(Field::CPUPeriod, period.value)?;
        }
        if cpu.realtime_runtime.is_some() {
            return refuse(Field::CPURealtimeRuntime, "realtime limits are not built");
        }
        if cpu.realtime_period.is_some() {
            return refuse(Field::CPURealtimePeriod, "realtime limits are not built");
        }
        limits.cpuset_cpus.clone_from(&cpu.cpus);
        limits.cpuset_mems.clone_from(&cpu.mems);
    }
    if let Some(memory) = asked.memory.as_ref() {
        if let Some(bytes) = memory.limit.as_ref() {
            limits.memory_limit_in_bytes = bytes.value;
        }
        if let Some(bytes) = memory.swap.as_ref() {
            limits.memory_swap_limit_in_bytes = bytes.value;
        }
        if memory.kernel.is_some() {
            return refuse(
                Field::MemKernelLimit,
                "the kernel has no limit of its own memory any more",
            );
        }
        if memory.kernel_tcp.is_some() {
            return refuse(Field::MemTCPLimit, "a limit of TCP's buffers is not built");
        }
        if memory.use_hierarchy.as_ref().is_some_and(|on| !on.value) {
            return refuse(
                Field::MemUseHierarchy,
                "the kernel always counts memory by the hierarchy",
            );
        }
        let mut beyond = LinuxMemory::default();
        if let Some(bytes) = memory.reservation.as_ref() {
            beyond.set_reservation(Some(bytes.value));
        }
        if let Some(percent) = memory.swappiness.as_ref() {
            if v2 {
                return refuse(Field::MemSwappiness, "cgroup v2 has none");
            }
            if percent.value > 100 {
                return refuse(Field::MemSwappiness, "must be at most 100");
            }
            beyond.set_swappiness(Some(percent.value));
        }
        if memory
            .disable_oom_killer
            .as_ref()
            .is_some_and(|off| off.value)
        {
            if v2 {
                return refuse(Field::MemDisableOomKiller, "cgroup v2 can't");
            }
            beyond.set_disable_oom_killer(Some(true));
        }
        if beyond != LinuxMemory::default() {
            wanted.beyond.set_memory(Some(beyond));
        }
    }
    limits.hugepage_limits = asked
        .hugepage_limits
        .iter()
        .map(|limit| cri::HugepageLimit {
            page_size: limit.page_size.clone(),
            limit: limit.limit,
        })
        .collect();
    limits.unified = asked.unified.clone();
    if let Some(pids) = asked.pids.as_ref() {
        let pids = LinuxPidsBuilder::default().limit(pids.limit).build();
        match pids {
            Ok(pids) => drop(wanted.beyond.set_pids(Some(pids))),
            Err(e) => return Err((Field::PidsLimit, e.to_string(), Code::InvalidArgument)),
        }
    }
    // An empty class is none.
    if let Some(class) = named(&asked.rdt_class) {
        let why = format!("class {class:.80?}: classes of RDT are not built");
        return Err((Field::RdtClass, why, Code::Unimplemented));
    }
    if let Some(class) = named(&asked.blockio_class) {
        let limits = classes.limits_of(class);
        let limits = limits.map_err(|why| (Field::BlockioClass, why, Code::FailedPrecondition))?;
        wanted.beyond.set_block_io(Some(limits));
    }
    Ok(wanted)
}

fn named(class: &MessageField<api::OptionalString>) -> Option<&str> {
    let class = class.as_ref()?;
    (!class.value.is_empty()).then_some(&class.value)
}

/// A plugin that sets the memory limit alone means the swap limit, too, where there is one.
pub fn follow_with_swap(
    before: &cri::LinuxContainerResources,
    change: &mut cri::LinuxContainerResources,
) {
    if change.memory_limit_in_bytes > 0
        && change.memory_swap_limit_in_bytes == 0
        && before.memory_swap_limit_in_bytes > 0
    {
        change.memory_swap_limit_in_bytes = change.memory_limit_in_bytes;
    }
}

/// Puts what the CRI has no word for over `resources`.
pub fn overlay(resources: &mut LinuxResources, beyond: &LinuxResources) {
    if let Some(pids) = beyond.pids() {
        resources.set_pids(Some(*pids));
    }
    if let Some(limits) = beyond.block_io() {
        resources.set_block_io(Some(limits.clone()));
    }
    let Some(wanted) = beyond.memory() else {
        return;
    };
    let mut memory = resources.memory().unwrap_or_default();
    if wanted.reservation().is_some() {
        memory.set_reservation(wanted.reservation());
    }
    if wanted.swappiness().is_some() {
        memory.set_swappiness(wanted.swappiness());
    }
    if wanted.disable_oom_killer().is_some() {
        memory.set_disable_oom_killer(wanted.disable_oom_killer());
    }
    resources.set_memory(Some(memory));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_go_there_and_back() {
        let limits = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: -1,
            cpu_period: 100_000,
            cpuset_cpus: "0".into(),
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 1 << 21,
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            ..Default::default()
        };
        let back = wanted(&message(&limits), false, &BlockIo::default()).unwrap();
        assert_eq!(back.limits, limits);
        assert_eq!(back.beyond, LinuxResources::default());
    }

    #[test]
    fn what_no_cgroup_can_be_told_is_refused_by_its_name() {
        type Set = fn(&mut api::LinuxResources);
        let table: [(api::Field, bool, Set); 10] = [
            (api::Field::MemKernelLimit, false, |r| {
                r.memory.mut_or_insert_default().kernel = value!(OptionalInt64, 1)
            }),
            (api::Field::MemTCPLimit, false, |r| {
                r.memory.mut_or_insert_default().kernel_tcp = value!(OptionalInt64, 1)
            }),
            (api::Field::MemUseHierarchy, false, |r| {
                r.memory.mut_or_insert_default().use_hierarchy = value!(OptionalBool, false)
            }),
            (api::Field::MemSwappiness, true, |r| {
                r.memory.mut_or_insert_default().swappiness = value!(OptionalUInt64, 1)
            }),
            (api::Field::MemSwappiness, false, |r| {
                r.memory.mut_or_insert_default().swappiness = value!(OptionalUInt64, 101)
            }),
            (api::Field::MemDisableOomKiller, true, |r| {
                r.memory.mut_or_insert_default().disable_oom_killer = value!(OptionalBool, true)
            }),
            (api::Field::CPURealtimeRuntime, false, |r| {
                r.cpu.mut_or_insert_default().realtime_runtime = value!(OptionalInt64, 1)
            }),
            (api::Field::CPUShares, false, |r| {
                r.cpu.mut_or_insert_default().shares = value!(OptionalUInt64, u64::MAX)
            }),
            (api::Field::BlockioClass, false, |r| {
                r.blockio_class = value!(OptionalString, "fast".into())
            }),
            (api::Field::RdtClass, false, |r| {
                r.rdt_class = value!(OptionalString, "gold".into())
            }),
        ];
        for (field, v2, set) in table {
            let mut asked = api::LinuxResources::default();
            set(&mut asked);
            let (refused, why, _) =
                wanted(&asked, v2, &BlockIo::default()).expect_err(&format!("{field:?}"));
            assert_eq!(refused, field, "{why}");
        }
        let nothing = api::LinuxResources {
            blockio_class: value!(OptionalString, String::new()),
            ..Default::default()
        };
        assert_eq!(
            wanted(&nothing, true, &BlockIo::default()).unwrap(),
            Wanted::default()
        );
    }

    #[test]
    fn what_the_cri_has_no_word_for_is_kept() {
        let mut asked = api::LinuxResources::default();
        asked.memory.mut_or_insert_default().reservation = value!(OptionalInt64, 7);
        asked.pids = MessageField::some(api::LinuxPids {
            limit: 9,
            ..Default::default()
        });
        let wanted = wanted(&asked, true, &BlockIo::default()).unwrap();
        let mut resources = LinuxResources::default();
        resources.set_memory(Some({
            let mut memory = LinuxMemory::default();
            memory.set_limit(Some(100));
            memory
        }));
        overlay(&mut resources, &wanted.beyond);
        let memory = resources.memory().unwrap();
        assert_eq!((memory.limit(), memory.reservation()), (Some(100), Some(7)));
        assert_eq!(resources.pids().unwrap().limit(), 9);
        let mut back = api::LinuxResources::default();
        of_oci(&mut back, &resources);
        assert_eq!(back.memory.reservation.value, 7);
        assert_eq!(back.pids.limit, 9);
    }

    #[test]
    fn swap_follows_memory_where_it_is_limited() {
        for (before, limit, swap, after) in [
            (0, 10, 0, 0),
            (5, 10, 0, 10),
            (-1, 10, 0, 0),
            (5, 10, 20, 20),
            (5, 0, 0, 0),
        ] {
            let before = cri::LinuxContainerResources {
                memory_swap_limit_in_bytes: before,
                ..Default::default()
            };
            let mut change = cri::LinuxContainerResources {
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: swap,
                ..Default::default()
            };
            follow_with_swap(&before, &mut change);
            assert_eq!(change.memory_swap_limit_in_bytes, after);
        }
    }
}
