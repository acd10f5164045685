//! `linux.memoryPolicy` (runtime spec 1.3): from which NUMA nodes a container's processes get their memory.

use berth_kernel::mempolicy::{self, Nodes};
use nix::libc;
use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};

use crate::Error;

// linux/mempolicy.h; libc has those before 5.15.
const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_WEIGHTED_INTERLEAVE: i32 = 6;

/// Of this process and those that it will fork. Which mode goes with which flags and nodes is the kernel's to say.
pub(crate) fn set(policy: Option<&LinuxMemoryPolicy>) -> Result<(), Error> {
    let Some(policy) = policy else {
        return Ok(());
    };
    let list = policy.nodes().as_deref().unwrap_or_default();
    let step = || {
        Error::io(format!(
            "set memory policy {} on nodes {list:?}",
            policy.mode()
        ))
    };
    let nodes = nodes(list).ok_or_else(|| {
        step()(std::io::Error::other(
            "that is no list of nodes like \"0-1,3\"",
        ))
    })?;
    mempolicy::set(mode(policy), &nodes).map_err(step())
}

fn mode(policy: &LinuxMemoryPolicy) -> i32 {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => libc::MPOL_DEFAULT,
        MemoryPolicyModeType::MpolPreferred => libc::MPOL_PREFERRED,
        MemoryPolicyModeType::MpolBind => libc::MPOL_BIND,
        MemoryPolicyModeType::MpolInterleave => libc::MPOL_INTERLEAVE,
        MemoryPolicyModeType::MpolLocal => libc::MPOL_LOCAL,
        MemoryPolicyModeType::MpolPreferredMany => MPOL_PREFERRED_MANY,
        MemoryPolicyModeType::MpolWeightedInterleave => MPOL_WEIGHTED_INTERLEAVE,
    };
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFStaticNodes => libc::MPOL_F_STATIC_NODES,
        MemoryPolicyFlagType::MpolFRelativeNodes => libc::MPOL_F_RELATIVE_NODES,
        MemoryPolicyFlagType::MpolFNumaBalancing => libc::MPOL_F_NUMA_BALANCING,
    });
    flags.fold(mode, |mode, flag| mode | flag)
}

/// `0-1,3`. Blank: none.
fn nodes(list: &str) -> Option<Nodes> {
    let mut nodes = Nodes::default();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let (first, last) = (number(first)?, number(last)?);
        // The highest first: a range is never longer than there can be nodes.
        if first > last || !nodes.add(last) {
            return None;
        }
        for node in first..last {
            let _ = nodes.add(node);
        }
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nodes_is_taken_or_refused_whole() {
        let of = |numbers: &[usize]| {
            let mut nodes = Nodes::default();
            numbers.iter().for_each(|n| assert!(nodes.add(*n)));
            Some(nodes)
        };
        for (list, expected) in [
            ("", of(&[])),
            ("0", of(&[0])),
            ("0-2, 5", of(&[0, 1, 2, 5])),
            ("1023", of(&[1023])),
            ("1024", None),
            ("0-18446744073709551615", None),
            ("2-1", None),
            ("0-", None),
            ("-1", None),
            ("x", None),
        ] {
            assert_eq!(nodes(list), expected, "{list:?}");
        }
    }
}
