//! Walks through a whole cluster, as a person at a real kubectl takes them: `berth up` with nodes that run real containers.

mod cluster;
