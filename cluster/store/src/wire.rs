//! etcd's messages, and what of ours they are.

#![allow(clippy::all, missing_debug_implementations)]

pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
