//! containerd's own API: containers and their tasks. No client's process, no image, no CRI is in the figures.

use std::path::Path;

use anyhow::{Context, Result};
use prost::Message;
use serde_json::Value;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The namespace of everything that is measured.
pub const NAMESPACE: &str = "bench";
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const RUNC_OPTIONS: &str = "containerd.runc.v1.Options";
const SIGKILL: u32 = 9;

#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Mount {
    #[prost(string, tag = "1")]
    kind: String,
    #[prost(string, tag = "2")]
    source: String,
    #[prost(string, repeated, tag = "4")]
    options: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Runtime {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    options: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Container {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, optional, tag = "4")]
    runtime: Option<Runtime>,
    #[prost(message, optional, tag = "5")]
    spec: Option<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct CreateTask {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(message, repeated, tag = "3")]
    rootfs: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
struct Kill {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(uint32, tag = "3")]
    signal: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(string, tag = "6")]
    binary_name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

/// A runtime as containerd's configuration would have it.
#[derive(Debug, Clone)]
pub struct Kind {
    pub name: String,
    pub runtime: String,
    /// runc's option BinaryName; empty: its default.
    pub binary: String,
}

#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
}

impl Containerd {
    pub async fn connect(socket: &Path) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .connect()
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self { channel })
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let mut client = Grpc::new(self.channel.clone());
        client.ready().await?;
        let mut request = Request::new(request);
        let namespace = NAMESPACE.parse()?;
        request
            .metadata_mut()
            .insert("containerd-namespace", namespace);
        let path = PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, A>::default();
        let answer = client.unary(request, path, codec).await;
        Ok(answer.with_context(|| method)?.into_inner())
    }

    pub async fn add(&self, id: &str, kind: &Kind, spec: &Value) -> Result<()> {
        let options = (!kind.binary.is_empty()).then(|| Any {
            type_url: RUNC_OPTIONS.into(),
            value: Options {
                binary_name: kind.binary.clone(),
            }
            .encode_to_vec(),
        });
        let container = Container {
            id: id.into(),
            runtime: Some(Runtime {
                name: kind.runtime.clone(),
                options,
            }),
            spec: Some(Any {
                type_url: SPEC.into(),
                value: spec.to_string().into_bytes(),
            }),
        };
        let request = CreateContainer {
            container: Some(container),
        };
        self.call::<_, CreateContainer>(
            "/containerd.services.containers.v1.Containers/Create",
            request,
        )
        .await?;
        Ok(())
    }

    pub async fn forget(&self, id: &str) -> Result<()> {
        let request = Id { id: id.into() };
        self.call::<_, Nothing>(
            "/containerd.services.containers.v1.Containers/Delete",
            request,
        )
        .await?;
        Ok(())
    }

    /// With `root` as its root file system, read-only for all that share it.
    pub async fn create(&self, id: &str, root: &Path) -> Result<()> {
        let request = CreateTask {
            id: id.into(),
            rootfs: vec![Mount {
                kind: "bind".into(),
                source: root.display().to_string(),
                options: vec!["rbind".into(), "ro".into()],
            }],
        };
        self.call::<_, Nothing>("/containerd.services.tasks.v1.Tasks/Create", request)
            .await?;
        Ok(())
    }

    pub async fn start(&self, id: &str) -> Result<()> {
        let request = Id { id: id.into() };
        self.call::<_, Nothing>("/containerd.services.tasks.v1.Tasks/Start", request)
            .await?;
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    pub async fn kill(&self, id: &str) -> Result<()> {
        let request = Kill {
            id: id.into(),
            signal: SIGKILL,
        };
        self.call::<_, Nothing>("/containerd.services.tasks.v1.Tasks/Kill", request)
            .await?;
        let request = Id { id: id.into() };
        self.call::<_, Nothing>("/containerd.services.tasks.v1.Tasks/Wait", request)
            .await?;
        Ok(())
    }

    pub async fn delete(&self, id: &str) -> Result<()> {
        let request = Id { id: id.into() };
        self.call::<_, Nothing>("/containerd.services.tasks.v1.Tasks/Delete", request)
            .await?;
        Ok(())
    }
}
