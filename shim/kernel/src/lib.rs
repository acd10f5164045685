//! The one home of `unsafe`: kernel calls that the container engine needs and that no safe crate wraps.
//!
//! Every function is one kernel act; its comment says why and since when. What nix and rustix already wrap safely
//! (mount, setns, prctl, capset, SCM_RIGHTS) is used from there.
//!
//! - [`bpf`]: device rules of cgroup v2
//! - [`clone`]: clone3 with a closure for the child
//! - [`code`], [`heap`], [`stack`]: pages of which nothing is needed now back to the kernel
//! - [`keyring`]: session keyrings
//! - [`mempolicy`]: NUMA nodes that memory comes from
//! - [`mount`]: the flags of a mount tree
//! - [`pidfd`]: signals and waiting by descriptor
//! - [`descriptors`] (close_range)
//! - [`signals`]: dispositions back to their defaults
//! - [`seccomp`]: a compiled filter into the kernel
//! - [`pause`]: the process that holds a pod's namespaces
//! - [`userns`]: user namespaces and their maps

pub mod bpf;
pub mod clone;
pub mod code;
pub mod descriptors;
pub mod heap;
pub mod keyring;
pub mod mempolicy;
pub mod mount;
pub mod pause;
pub mod pidfd;
pub mod seccomp;
pub mod signals;
pub mod stack;
pub mod userns;
