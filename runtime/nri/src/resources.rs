//! Limits that plugins ask for, brought together field by field.

use crate::{
    Error,
    api::{Field, LinuxCPU, LinuxMemory, LinuxResources},
    owners::{Owner, Owners},
};

/// Takes what `asked` sets into `into` and, where it is there, into `also`. All of it, or nothing where another plugin set some of it.
pub(crate) fn merge(
    container_id: &str,
    owner: &Owner,
    owners: &mut Owners,
    asked: &LinuxResources,
    into: &mut [&mut LinuxResources],
) -> Result<(), Error> {
    let mut claimed = owners.clone();
    for (field, entry) in fields(asked) {
        claimed.claim(container_id, field, entry, owner)?;
    }
    *owners = claimed;
    for resources in into {
        overlay(resources, asked);
    }
    Ok(())
}

/// What is set in these resources.
pub fn fields(asked: &LinuxResources) -> Vec<(Field, &str)> {
    let mut set = vec![];
    let LinuxResources {
        memory,
        cpu,
        hugepage_limits,
        blockio_class,
        rdt_class,
        unified,
        pids,
        // NRI 0.1: they belong to the devices.
        devices: _,
        ..
    } = asked;
    if let Some(LinuxMemory {
        limit,
        reservation,
        swap,
        kernel,
        kernel_tcp,
        swappiness,
        disable_oom_killer,
        use_hierarchy,
        ..
    }) = memory.as_ref()
    {
        set.extend(
            [
                (Field::MemLimit, limit.is_some()),
                (Field::MemReservation, reservation.is_some()),
                (Field::MemSwapLimit, swap.is_some()),
                (Field::MemKernelLimit, kernel.is_some()),
                (Field::MemTCPLimit, kernel_tcp.is_some()),
                (Field::MemSwappiness, swappiness.is_some()),
                (Field::MemDisableOomKiller, disable_oom_killer.is_some()),
                (Field::MemUseHierarchy, use_hierarchy.is_some()),
            ]
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(field, _)| (field, "")),
        );
    }
    if let Some(LinuxCPU {
        shares,
        quota,
        period,
        realtime_runtime,
        realtime_period,
        cpus,
        mems,
        ..
    }) = cpu.as_ref()
    {
        set.extend(
            [
                (Field::CPUShares, shares.is_some()),
                (Field::CPUQuota, quota.is_some()),
                (Field::CPUPeriod, period.is_some()),
                (Field::CPURealtimeRuntime, realtime_runtime.is_some()),
                (Field::CPURealtimePeriod, realtime_period.is_some()),
                (Field::CPUSetCPUs, !cpus.is_empty()),
                (Field::CPUSetMems, !mems.is_empty()),
            ]
            .into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(field, _)| (field, "")),
        );
    }
    set.extend(
        hugepage_limits
            .iter()
            .map(|limit| (Field::HugepageLimits, limit.page_size.as_str())),
    );
    set.extend(
        unified
            .keys()
            .map(|file| (Field::CgroupsUnified, file.as_str())),
    );
    for (field, is_set) in [
        (Field::BlockioClass, blockio_class.is_some()),
        (Field::RdtClass, rdt_class.is_some()),
        (Field::PidsLimit, pids.is_some()),
    ] {
        if is_set {
            set.push((field, ""));
        }
    }
    set
}

/// What `change` sets, over `base`.
pub fn overlay(base: &mut LinuxResources, change: &LinuxResources) {
    if let Some(change) = change.memory.as_ref() {
        let base = base.memory.mut_or_insert_default();
        macro_rules! take {
            ($($field:ident),*) => {$(
                if change.$field.is_some() {
                    base.$field = change.$field.clone();
                }
            )*};
        }
        take!(
            limit,
            reservation,
            swap,
            kernel,
            kernel_tcp,
            swappiness,
            disable_oom_killer,
            use_hierarchy
        );
    }
    if let Some(change) = change.cpu.as_ref() {
        let base = base.cpu.mut_or_insert_default();
        macro_rules! take {
            ($($field:ident),*) => {$(
                if change.$field.is_some() {
                    base.$field = change.$field.clone();
                }
            )*};
        }
        take!(shares, quota, period, realtime_runtime, realtime_period);
        for (base, change) in [
            (&mut base.cpus, &change.cpus),
            (&mut base.mems, &change.mems),
        ] {
            if !change.is_empty() {
                base.clone_from(change);
            }
        }
    }
    for limit in &change.hugepage_limits {
        base.hugepage_limits
            .retain(|other| other.page_size != limit.page_size);
        base.hugepage_limits.push(limit.clone());
    }
    base.unified.extend(change.unified.clone());
    base.devices.extend(change.devices.iter().cloned());
    if change.blockio_class.is_some() {
        base.blockio_class = change.blockio_class.clone();
    }
    if change.rdt_class.is_some() {
        base.rdt_class = change.rdt_class.clone();
    }
    if change.pids.is_some() {
        base.pids = change.pids.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{HugepageLimit, LinuxPids, OptionalInt64, OptionalUInt64};

    fn int(value: i64) -> protobuf::MessageField<OptionalInt64> {
        protobuf::MessageField::some(OptionalInt64 {
            value,
            ..Default::default()
        })
    }

    fn memory(limit: i64) -> LinuxResources {
        LinuxResources {
            memory: protobuf::MessageField::some(LinuxMemory {
                limit: int(limit),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn two_plugins_may_set_different_limits_and_not_the_same() {
        let owner = |number, name: &str| Owner {
            number,
            name: name.into(),
        };
        let (a, b) = (owner(1, "00-a"), owner(2, "01-b"));
        let mut owners = Owners::default();
        let mut merged = LinuxResources::default();
        merge("c", &a, &mut owners, &memory(1 << 20), &mut [&mut merged]).unwrap();
        let shares = LinuxResources {
            cpu: protobuf::MessageField::some(LinuxCPU {
                shares: protobuf::MessageField::some(OptionalUInt64 {
                    value: 512,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        merge("c", &b, &mut owners, &shares, &mut [&mut merged]).unwrap();
        let before = merged.clone();
        let mut both = memory(5);
        both.pids = protobuf::MessageField::some(LinuxPids {
            limit: 7,
            ..Default::default()
        });
        merge("c", &b, &mut owners, &both, &mut [&mut merged]).unwrap_err();
        assert_eq!(merged, before, "a conflict changes nothing");
        // … and claims nothing.
        merge(
            "c",
            &a,
            &mut owners,
            &LinuxResources {
                pids: both.pids.clone(),
                ..Default::default()
            },
            &mut [&mut merged],
        )
        .unwrap();
        assert_eq!(merged.memory.limit.value, 1 << 20);
        assert_eq!(merged.cpu.shares.value, 512);
        assert_eq!(merged.pids.limit, 7);
    }

    #[test]
    fn entries_are_owned_one_by_one() {
        let page = |size: &str, limit| HugepageLimit {
            page_size: size.into(),
            limit,
            ..Default::default()
        };
        let mut base = LinuxResources {
            hugepage_limits: vec![page("2MB", 1), page("1GB", 2)],
            ..Default::default()
        };
        let change = LinuxResources {
            hugepage_limits: vec![page("2MB", 9)],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert_eq!(
            fields(&change),
            [
                (Field::HugepageLimits, "2MB"),
                (Field::CgroupsUnified, "memory.high")
            ]
        );
        overlay(&mut base, &change);
        assert_eq!(base.hugepage_limits, [page("1GB", 2), page("2MB", 9)]);
    }
}
