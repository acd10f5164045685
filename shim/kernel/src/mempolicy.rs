//! NUMA memory policy of a thread (set_mempolicy(2)): from which nodes the kernel takes its memory. Children and commands inherit it.

use std::io;

/// One more than the highest node that a kernel can have (`MAX_NUMNODES`, CONFIG_NODES_SHIFT at most 10).
pub const MAX_NODES: usize = 1024;

const BITS: usize = libc::c_ulong::BITS as usize;

/// A set of nodes, as the kernel takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes([libc::c_ulong; MAX_NODES / BITS]);

impl Default for Nodes {
    fn default() -> Self {
        Nodes([0; MAX_NODES / BITS])
    }
}

impl Nodes {
    /// `false`: there can be no such node.
    #[must_use]
    pub fn add(&mut self, node: usize) -> bool {
        match self.0.get_mut(node / BITS) {
            Some(word) => {
                *word |= 1 << (node % BITS);
                true
            }
            None => false,
        }
    }
}

/// Of the calling thread. `mode` has its flags in it (`MPOL_BIND | MPOL_F_STATIC_NODES`). EINVAL: they don't fit, or there is no such node, or this kernel
/// does not know the mode (`MPOL_PREFERRED_MANY`: 5.15, `MPOL_WEIGHTED_INTERLEAVE`: 6.9). ENOSYS: the kernel has no NUMA.
pub fn set(mode: i32, nodes: &Nodes) -> io::Result<()> {
    // SAFETY: the mask is read by the kernel during the call alone, and has as many bits as said: it reads one less than `maxnode`.
    let done = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            libc::c_long::from(mode),
            nodes.0.as_ptr(),
            (MAX_NODES + 1) as libc::c_ulong,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_bound_to_a_node_that_is_there_and_to_no_other() {
        let own = || {
            let maps = std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap();
            maps.split(' ').nth(1).unwrap().to_owned()
        };
        let bind = |node| {
            let mut nodes = Nodes::default();
            assert!(nodes.add(node));
            set(libc::MPOL_BIND, &nodes)
        };
        std::thread::spawn(move || {
            bind(0).unwrap();
            assert_eq!(own(), "bind:0");
            assert_eq!(
                bind(MAX_NODES - 1).unwrap_err().raw_os_error(),
                Some(libc::EINVAL)
            );
            set(libc::MPOL_DEFAULT, &Nodes::default()).unwrap();
            assert_eq!(own(), "default");
        })
        .join()
        .unwrap();
        assert!(!Nodes::default().add(MAX_NODES));
    }
}
