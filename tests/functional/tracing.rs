//! Spans of RPCs and of their phases, as an OTLP collector gets them. The collector here speaks OpenTelemetry's own types, not Berth's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_proto::cri;
use berth_tests::{
    BUSYBOX, Node, Setup, container, machine::patient, request::ContainerRequest, sh,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value,
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use tonic::{Request, Response, Status};

const ENDPOINT: &str = "127.0.0.1:4317";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const SECRET: &str = "hunter2-is-no-good-password";

#[derive(Debug, Default, Clone)]
struct Collector(Arc<Mutex<Vec<(String, Span)>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for from in request.into_inner().resource_spans {
            let attributes = from.resource.unwrap_or_default().attributes;
            let service = attributes.iter().find(|a| a.key == "service.name");
            let service = match service.and_then(|a| a.value.clone()?.value) {
                Some(any_value::Value::StringValue(service)) => service,
                _ => String::new(),
            };
            let spans = from.scope_spans.into_iter().flat_map(|scope| scope.spans);
            let mut all = self.0.lock().unwrap();
            all.extend(spans.map(|span| (service.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> Result<Self> {
        let collector = Self::default();
        let address: SocketAddr = ENDPOINT.parse()?;
        let service = TraceServiceServer::new(collector.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve(address));
        Ok(collector)
    }

    /// Spans of the trace, once that named `last` is among them.
    async fn trace(&self, id: &str, last: &str) -> Result<Vec<Span>> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let spans: Vec<Span> = {
                let all = self.0.lock().unwrap();
                ensure!(all.iter().all(|(service, _)| service == "berthd"));
                let spans = all.iter().map(|(_, span)| span.clone());
                spans.filter(|span| hex(&span.trace_id) == id).collect()
            };
            if spans.iter().any(|span| span.name == last) {
                return Ok(spans);
            }
            ensure!(Instant::now() < deadline, "no {last}: {:?}", self.names());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn names(&self) -> BTreeSet<String> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .map(|(_, span)| span.name.clone())
            .collect()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|a| a.key == key)?;
    match attribute.value.clone()?.value? {
        any_value::Value::StringValue(text) => Some(text),
        other => Some(format!("{other:?}")),
    }
}

fn tracing() -> Setup {
    Setup {
        arguments: vec![
            format!("--tracing-endpoint={ENDPOINT}"),
            "--metrics-listen=9478".into(),
        ],
        config: "[tracing]\nsampling_rate_per_million = 0\n".into(),
        ..Setup::default()
    }
}

/// With the trace context that a kubelet sends.
fn within<T>(trace: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace}-{PARENT}-01").parse()?;
    request.metadata_mut().insert("traceparent", parent);
    Ok(request)
}

#[test]
fn a_pods_start_and_end_are_spans_below_the_kubelets() -> Result<()> {
    Node::test_with(tracing(), async |node| {
        let collector = Collector::start()?;
        node.cri.pull(BUSYBOX).await?;
        let mut runtime = node.cri.runtime();
        let config = node.pod("traced");
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        };
        let pod = runtime
            .run_pod_sandbox(within(TRACE, request)?)
            .await?
            .into_inner()
            .pod_sandbox_id;
        let run = collector
            .trace(TRACE, "runtime.v1.RuntimeService/RunPodSandbox")
            .await?;
        let names: BTreeMap<&str, &Span> =
            run.iter().map(|span| (span.name.as_str(), span)).collect();
        let rpc = names["runtime.v1.RuntimeService/RunPodSandbox"];
        ensure!(
            hex(&rpc.parent_span_id) == PARENT && rpc.kind() == SpanKind::Server,
            "{rpc:?}"
        );
        ensure!(text(rpc, "rpc.method").as_deref() == Some("RunPodSandbox"));
        ensure!(
            text(rpc, "k8s.pod.sandbox_id").as_ref() == Some(&pod),
            "{rpc:?}"
        );
        let child = |name: &str, parent: &str| -> Result<()> {
            let span = names
                .get(name)
                .with_context(|| format!("no {name} in {:?}", names.keys()))?;
            ensure!(
                span.parent_span_id == names[parent].span_id,
                "{name} is not below {parent}"
            );
            ensure!(names[parent].start_time_unix_nano <= span.start_time_unix_nano);
            ensure!(span.start_time_unix_nano <= span.end_time_unix_nano);
            ensure!(
                span.status.is_none()
                    || span
                        .status
                        .as_ref()
                        .is_some_and(|s| s.code() != StatusCode::Error)
            );
            Ok(())
        };
        child("run pod", "runtime.v1.RuntimeService/RunPodSandbox")?;
        for phase in [
            "network attach",
            "shim launch",
            "shim/CreateSandbox",
            "shim/StartSandbox",
        ] {
            child(phase, "run pod")?;
        }

        // A container, each RPC in a trace of its own.
        let app = container("app", BUSYBOX, &sh("sleep 1000")).env("PASSWORD", SECRET.as_bytes());
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(app),
            sandbox_config: Some(config),
        };
        let trace = |n: usize| format!("{n:032x}");
        let id = runtime
            .create_container(within(&trace(1), request)?)
            .await?
            .into_inner()
            .container_id;
        let request = cri::StartContainerRequest {
            container_id: id.clone(),
        };
        runtime.start_container(within(&trace(2), request)?).await?;
        let request = cri::StopContainerRequest {
            container_id: id.clone(),
            timeout: 1,
        };
        runtime.stop_container(within(&trace(3), request)?).await?;
        let request = cri::StopPodSandboxRequest {
            pod_sandbox_id: pod.clone(),
        };
        runtime
            .stop_pod_sandbox(within(&trace(4), request)?)
            .await?;
        let request = cri::RemovePodSandboxRequest {
            pod_sandbox_id: pod.clone(),
        };
        runtime
            .remove_pod_sandbox(within(&trace(5), request)?)
            .await?;
        let request = cri::StartContainerRequest {
            container_id: id.clone(),
        };
        ensure!(
            runtime
                .start_container(within(&trace(6), request)?)
                .await
                .is_err()
        );
        for (n, rpc, wanted) in [
            (
                1,
                "CreateContainer",
                &["create container", "image mount", "shim/Create"][..],
            ),
            (2, "StartContainer", &["start container", "shim/Start"]),
            (3, "StopContainer", &["signal container", "shim/Kill"]),
            (
                4,
                "StopPodSandbox",
                &[
                    "stop pod",
                    "end containers",
                    "teardown",
                    "shim end",
                    "network detach",
                ],
            ),
            (5, "RemovePodSandbox", &["remove pod"]),
            (6, "StartContainer", &[]),
        ] {
            let root = format!("runtime.v1.RuntimeService/{rpc}");
            let spans = collector.trace(&trace(n), &root).await?;
            let names: BTreeSet<&str> = spans.iter().map(|span| span.name.as_str()).collect();
            for name in wanted {
                ensure!(names.contains(name), "{rpc} has no {name}: {names:?}");
            }
            let ids: BTreeSet<&[u8]> = spans.iter().map(|span| span.span_id.as_slice()).collect();
            let orphan = spans.iter().find(|span| {
                hex(&span.parent_span_id) != PARENT && !ids.contains(span.parent_span_id.as_slice())
            });
            ensure!(
                orphan.is_none() && ids.len() == spans.len(),
                "{rpc}: {orphan:?}"
            );
            let work = spans
                .iter()
                .find(|span| Some(&span.name.as_str()) == wanted.first());
            if let Some(work) = work {
                ensure!(
                    text(work, "k8s.pod.sandbox_id").as_ref() == Some(&pod),
                    "{work:?}"
                );
            }
            let failed = spans.iter().any(|span| {
                span.status
                    .as_ref()
                    .is_some_and(|s| s.code() == StatusCode::Error)
            });
            ensure!(failed == (n == 6), "{rpc}: {spans:?}");
        }
        // Those that came without a decision were not sampled.
        ensure!(
            !collector
                .names()
                .iter()
                .any(|name| name.contains("PullImage")),
            "{:?}",
            collector.names()
        );
        ensure!(!format!("{:?}", collector.0.lock().unwrap()).contains("hunter2"));
        Ok(())
    })
}

#[test]
fn a_collector_that_is_down_or_hangs_delays_nobody() -> Result<()> {
    let setup = Setup {
        config: String::new(),
        ..tracing()
    };
    Node::test_with(setup, async |node| {
        let pod = node.run(node.pod("down")).await?;
        // It listens, and never says anything.
        let silent = TcpListener::bind(ENDPOINT)?;
        let began = Instant::now();
        for _ in 0..3000 {
            node.cri.version().await?;
        }
        let took = began.elapsed();
        node.start_container(&pod, container("app", BUSYBOX, &["sleep", "1000"]))
            .await?;
        ensure!(
            took < patient(Duration::from_secs(20)),
            "3000 calls took {took:?}"
        );
        let dropped = || -> Result<u64> {
            let answer = std::process::Command::new("busybox")
                .args(["wget", "-q", "-O", "-", "http://127.0.0.1:9478/metrics"])
                .output()?;
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            let line = text
                .lines()
                .find_map(|l| l.strip_prefix("berth_tracing_spans_dropped_total "));
            Ok(line.context("no such metric")?.parse()?)
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while dropped()? == 0 {
            ensure!(Instant::now() < deadline, "nothing was dropped");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Spans are lost as soon as the queue is full; why is said when the first request has been given up.
        let complaints = || -> Result<usize> {
            let log = std::fs::read_to_string(&node.daemon.log)?;
            Ok(log.matches("did not take").count())
        };
        while complaints()? == 0 {
            ensure!(Instant::now() < deadline, "nobody complained");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Once a minute, and a slow machine takes several.
        let minutes = usize::try_from(began.elapsed().as_secs() / 60)?;
        ensure!(
            complaints()? <= 1 + minutes,
            "{} complaints in {minutes} minutes",
            complaints()?
        );
        // And its end waits for no collector.
        let began = Instant::now();
        node.daemon.terminate()?;
        ensure!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
        drop(silent);
        node.restart().await?;
        Ok(())
    })
}
