//! What the tests stand on: a real daemon with directories, a network and mounts of its own, a real registry with real images,
//! and the checks that every test ends with.
//!
//! A test is a function that gets a [`Node`]:
//!
//! ```ignore
//! #[test]
//! fn a_container_says_hello() -> Result<()> {
//!     Node::test(async |node| {
//!         let pod = node.run(node.pod("greeter")).await?;
//!         let hello = node.start_container(&pod, container("hello", BUSYBOX, &["echo", "hello"])).await?;
//!         ensure!(node.cri.wait_exit(&hello).await?.exit_code == 0);
//!         Ok(())
//!     })
//! }
//! ```
//!
//! When the function returns, [`invariant`] holds what is running against the kernel, kills the daemon with -9, starts it again,
//! checks once more, removes every pod and demands that nothing is left.

pub mod c_program;
pub mod canary;
pub mod cgroup;
pub mod cluster;
pub mod cni;
#[path = "../conformance/suite/mod.rs"]
pub mod conformance;
pub mod containerd;
pub mod cri;
pub mod daemon;
pub mod debian;
pub mod failpoint;
pub mod figures;
pub mod fuse;
pub mod host;
pub mod identity;
pub mod image;
pub mod invariant;
pub mod kubelet;
pub mod machine;
pub mod node;
pub mod nodes;
pub mod nri;
pub mod process;
pub mod registry;
pub mod remote;
pub mod request;
pub mod spdy;
pub mod stock;
pub mod swap;
pub mod systemd;
pub mod tarball;
pub mod trouble;
pub mod webhook;

pub use cri::{Cri, refused};
pub use node::{Node, Pod, Setup};
pub use request::{BUSYBOX, container, sh};
