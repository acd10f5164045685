//! Berth's wire types. The ground of the house: it depends on nothing of ours.
//!
//! `bytes` fields are `Vec<u8>`, but for the two that carry bulk ([`cri::ExecSyncResponse`] and
//! [`admin::ImportRequest`]): those are `bytes::Bytes`.

/// CRI v1 as of cri-api 0.36: 41 RPCs in `RuntimeService` and `ImageService`.
#[cfg(feature = "grpc")]
pub mod cri {
    #![allow(clippy::all, missing_debug_implementations)]
    tonic::include_proto!("runtime.v1");
}

/// What `berth` asks of `berthd` beyond the CRI.
#[cfg(feature = "grpc")]
pub mod admin {
    #![allow(clippy::all, missing_debug_implementations)]
    tonic::include_proto!("berth.admin.v1");
}

/// OTLP's traces: what berthd sends to a collector.
#[cfg(feature = "grpc")]
pub mod otlp {
    #![allow(clippy::all, missing_debug_implementations)]
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

#[cfg(feature = "grpc")]
mod unbuilt;
#[cfg(feature = "grpc")]
pub use unbuilt::{CRI_RPCS, unbuilt};

/// An encoded `google.protobuf.FileDescriptorSet` of [`cri`] and [`admin`], without comments: for reflection, and for
/// tests that compare us with other implementations.
#[cfg(feature = "grpc")]
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// containerd's shim v2 services (task, sandbox, events) and Berth's own beside them.
///
/// The task service is `containerd.task.v3.Task`, which a shim announces by `"version":3` at `start`. The same messages go
/// under `containerd.task.v2.Task` for one that announces 2, or nothing.
#[cfg(feature = "ttrpc")]
pub mod shim {
    /// Options of runc's shims, in containerd's configuration.
    pub use containerd_shim_protos::shim::oci as runc_options;
    pub use containerd_shim_protos::{
        api, bootstrap_api, cgroups, cgroups_v2, events, sandbox_api, sandbox_async, shim_async,
        types::introspection,
    };

    /// `berth.shim.v1`
    #[allow(clippy::all, missing_debug_implementations)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/shim/mod.rs"));
    }
}

/// The Node Resource Interface, 0.12 (`nri.pkg.api.v1alpha1`).
#[cfg(feature = "ttrpc")]
pub mod nri {
    #![allow(clippy::all, missing_debug_implementations)]
    include!(concat!(env!("OUT_DIR"), "/nri/mod.rs"));
}
