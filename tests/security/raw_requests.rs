//! SEC-CRI-09: bytes that are no request: not UTF-8, cut, not protobuf at all. And requests whose parts are too long.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use berth_tests::{
    BUSYBOX, Cri, Node,
    conformance::bad_input::ask_all,
    container, process,
    request::{ContainerRequest, PodRequest},
};
use bytes::{Buf, BufMut};
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Sends and takes bytes as they are.
#[derive(Debug, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, bytes: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let mut bytes = vec![0; from.remaining()];
        from.copy_to_slice(&mut bytes);
        Ok(Some(bytes))
    }
}

async fn send(cri: &Cri, path: &'static str, bytes: &[u8]) -> Result<Vec<u8>, Status> {
    let mut grpc = tonic::client::Grpc::new(cri.channel());
    grpc.ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = http::uri::PathAndQuery::from_static(path);
    let request = tonic::Request::new(bytes.to_vec());
    Ok(grpc.unary(request, path, Raw).await?.into_inner())
}

/// Those that take a message with strings or messages in it.
const RPCS: [&str; 12] = [
    "/runtime.v1.RuntimeService/RunPodSandbox",
    "/runtime.v1.RuntimeService/StopPodSandbox",
    "/runtime.v1.RuntimeService/RemovePodSandbox",
    "/runtime.v1.RuntimeService/PodSandboxStatus",
    "/runtime.v1.RuntimeService/ListPodSandbox",
    "/runtime.v1.RuntimeService/CreateContainer",
    "/runtime.v1.RuntimeService/StartContainer",
    "/runtime.v1.RuntimeService/ListContainers",
    "/runtime.v1.RuntimeService/ExecSync",
    "/runtime.v1.RuntimeService/UpdateContainerResources",
    "/runtime.v1.ImageService/PullImage",
    "/runtime.v1.ImageService/RemoveImage",
];

#[test]
fn bytes_that_are_no_request_are_refused_by_every_rpc_sec_cri_09() -> Result<()> {
    Node::test(async |node| {
        // Field 1, a string or a message in all of them.
        let nested = {
            // Messages within messages, deeper than any parser should follow.
            let mut bytes = vec![];
            for _ in 0..10_000 {
                let mut outer = vec![0x0a];
                let mut len = bytes.len();
                while len >= 0x80 {
                    outer.push(len as u8 | 0x80);
                    len >>= 7;
                }
                outer.push(len as u8);
                outer.extend(&bytes);
                bytes = outer;
                if bytes.len() > 60_000 {
                    break;
                }
            }
            bytes
        };
        for (what, bytes) in [
            ("a byte that is no UTF-8", vec![0x0a, 3, b'a', 0xff, b'b']),
            ("a surrogate", vec![0x0a, 3, 0xed, 0xa0, 0x80]),
            ("an overlong slash", vec![0x0a, 2, 0xc0, 0xaf]),
            (
                "more than is there",
                vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, b'a'],
            ),
            ("a number without an end", vec![0xff; 20]),
            ("a group that never ends", vec![0x0b; 100]),
            ("the wrong kind of field", vec![0x08, 0x01]),
        ] {
            for rpc in RPCS {
                let status = match send(&node.cri, rpc, &bytes).await {
                    Ok(answer) => anyhow::bail!("{rpc} answers {what}: {answer:?}"),
                    Err(status) => status,
                };
                ensure!(
                    matches!(status.code(), Code::Internal | Code::InvalidArgument),
                    "{rpc}, {what}: {status:?}"
                );
                ensure!(status.message().len() < 4096, "{rpc}, {what}: {status:?}");
            }
        }
        for rpc in RPCS {
            // A string of any bytes below 128 is a string: that one may have an answer.
            let _ = send(&node.cri, rpc, &nested).await;
        }
        let unknown = send(&node.cri, "/runtime.v1.RuntimeService/NoSuchRpc", &[]).await;
        ensure!(unknown.is_err_and(|status| status.code() == Code::Unimplemented));
        let older = send(&node.cri, "/runtime.v1alpha2.RuntimeService/Version", &[]).await;
        ensure!(older.is_err_and(|status| status.code() == Code::Unimplemented));
        ensure!(node.cri.pods(None).await?.is_empty() && process::shims().is_empty());
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        Ok(())
    })
}

#[test]
fn every_refusal_is_short_and_leaves_nothing_sec_cri_09() -> Result<()> {
    Node::test(async |node| {
        let pod = node.run(node.pod("there")).await?;
        let id = node
            .start_container(&pod, container("a", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let long = "a".repeat(1 << 20);
        let all: BTreeSet<&str> = ["", "..", "a/b", "a\0b", "é", "%00", &long].into();
        for asked in all {
            for (rpc, answer) in ask_all(&node.cri, asked).await {
                let Err(status) = answer else { continue };
                ensure!(
                    status.message().len() < 4096,
                    "{rpc} of {asked:.20?} refuses in {} bytes",
                    status.message().len()
                );
                ensure!(
                    !matches!(
                        status.code(),
                        Code::Unknown | Code::Internal | Code::Unavailable
                    ),
                    "{rpc} of {asked:.20?}: {status:?}"
                );
            }
        }
        // Within a request that is fine otherwise.
        node.cri.pull(BUSYBOX).await?;
        let plain = || container("b", BUSYBOX, &["true"]);
        for (what, config) in [
            (
                "a NUL in the command",
                container("b", BUSYBOX, &["echo", "a\0b"]),
            ),
            ("a NUL in the environment", plain().env("A", b"a\0b")),
            ("an equals sign in a name", plain().env("A=B", b"c")),
            (
                "a NUL in the directory",
                plain().with(|config: &mut berth_proto::cri::ContainerConfig| {
                    config.working_dir = "/a\0b".into()
                }),
            ),
            (
                "a NUL in the name",
                plain().with(|config: &mut berth_proto::cri::ContainerConfig| {
                    config.metadata.get_or_insert_default().name = "a\0b".into()
                }),
            ),
            (
                "a name of a megabyte",
                plain().with(|config: &mut berth_proto::cri::ContainerConfig| {
                    config.metadata.get_or_insert_default().name = long.clone()
                }),
            ),
            (
                "a log path of a megabyte",
                plain().with(|config: &mut berth_proto::cri::ContainerConfig| {
                    config.log_path = long.clone()
                }),
            ),
            ("an image of a megabyte", container("b", &long, &["true"])),
        ] {
            let answer = node.cri.create(&pod.id, &config, &pod.config).await;
            let Err(status) = answer else {
                anyhow::bail!("{what} is taken")
            };
            ensure!(
                matches!(status.code(), Code::InvalidArgument | Code::NotFound)
                    && status.message().len() < 4096,
                "{what}: {status:.200?}"
            );
        }
        let plain = || node.pod("p");
        for (what, config) in [
            (
                "a NUL in the name",
                plain().with(|config: &mut berth_proto::cri::PodSandboxConfig| {
                    config.metadata.get_or_insert_default().name = "a\0b".into()
                }),
            ),
            (
                "a name of a megabyte",
                plain().with(|config: &mut berth_proto::cri::PodSandboxConfig| {
                    config.metadata.get_or_insert_default().name = long.clone()
                }),
            ),
            (
                "a log directory of a megabyte",
                plain().with(|config: &mut berth_proto::cri::PodSandboxConfig| {
                    config.log_directory = format!("/{long}")
                }),
            ),
            (
                "a NUL in a sysctl",
                plain().linux(|linux| {
                    linux
                        .sysctls
                        .insert("net.core.somaxconn".into(), "1\0".into());
                }),
            ),
            (
                "a cgroup parent with a NUL",
                plain().linux(|linux| linux.cgroup_parent = "/a\0b".into()),
            ),
        ] {
            let answer = node.cri.run_pod(&config).await;
            let Err(status) = answer else {
                anyhow::bail!("{what} is taken")
            };
            ensure!(
                status.code() == Code::InvalidArgument && status.message().len() < 4096,
                "{what}: {status:.200?}"
            );
        }
        ensure!(
            node.cri.pods(None).await?.len() == 1 && node.cri.containers(None).await?.len() == 1
        );
        ensure!(node.audit()?.is_empty(), "{:?}", node.audit()?);
        ensure!(node.cri.exec(&id, &["echo", "on"]).await? == "on");
        Ok(())
    })
}
