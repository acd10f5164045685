//! Autoscalers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};

use super::{
    LOOPBACK, condition, controllers, controllers_at, create, eventually, say, server, told,
};

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "example/c:1"}]},
        }},
    })
}

fn replicas(server: &Server, deployment: &str) -> Result<Value> {
    Ok(server.json(&["get", "deployment", deployment])?["spec"]["replicas"].clone())
}

/// The API server, but for metrics of pods, which are `list`.
struct Metered {
    kubeconfig: PathBuf,
    proxy: Child,
}

impl Drop for Metered {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}

impl Metered {
    fn start(server: &Server, list: &Value) -> Result<Self> {
        let mut proxy = server
            .command(&["proxy", "--port=0", "--disable-filter"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let stdout = proxy.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut said)?;
        let kubeconfig = server.dir().join("metered");
        let metered = Self { kubeconfig, proxy };
        let port = said.trim().rsplit(':').next().context("a port")?.parse()?;
        let listener = TcpListener::bind((LOOPBACK, 0))?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", listener.local_addr()?)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(&metered.kubeconfig, config.to_string())?;
        let list = list.to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let list = list.clone();
                std::thread::spawn(move || pass(stream, port, &list));
            }
        });
        Ok(metered)
    }
}

/// One request.
fn pass(mut client: TcpStream, port: u16, list: &str) -> Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head)?;
    let (line, rest) = head.split_once("\r\n").context("a line")?;
    if line.starts_with("GET /apis/metrics.k8s.io/v1beta1/namespaces/default/pods?") {
        write!(
            client,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{list}",
            list.len()
        )?;
    } else {
        let mut server = TcpStream::connect((LOOPBACK, port))?;
        write!(server, "{line}\r\nConnection: close\r\n{rest}")?;
        let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut server, &mut client)?;
    }
    client.shutdown(Shutdown::Both)?;
    Ok(())
}

#[test]
fn an_autoscaler_scales_by_what_pods_use() -> Result<()> {
    let server = server()?;
    create(&server, &deployment("web", 2))?;
    let mut metrics = Vec::new();
    for at in 0..2 {
        let pod = format!("web-{at}");
        create(
            &server,
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "example/c:1", "resources": {"requests": {"cpu": "100m"}}}]},
            }),
        )?;
        let long_ago = "2026-01-01T00:00:00Z";
        say(
            &server,
            "pod",
            &pod,
            json!({"phase": "Running", "startTime": long_ago, "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": long_ago}]}),
        )?;
        metrics.push(json!({
            "metadata": {"name": pod, "namespace": "default", "labels": {"app": "web"}},
            "timestamp": "2026-11-01T00:00:00Z", "window": "15s", "containers": [{"name": "c", "usage": {"cpu": "200m", "memory": "1Mi"}}],
        }));
    }
    let list = json!({"apiVersion": "metrics.k8s.io/v1beta1", "kind": "PodMetricsList", "metadata": {}, "items": metrics});
    let metered = Metered::start(&server, &list)?;
    let _controllers = controllers_at(&server, &metered.kubeconfig)?;
    server.kubectl(&[
        "autoscale",
        "deployment",
        "web",
        "--min=1",
        "--max=10",
        "--cpu=50%",
    ])?;
    // two hundred percent of what is asked for is four times the target; it doubles at most
    eventually(&server, "it is scaled", || {
        Ok((replicas(&server, "web")? == 4).then_some(()))
    })?;
    let scaled = eventually(&server, "it is written down", || {
        let hpa = server.json(&["get", "hpa", "web"])?;
        Ok((hpa["status"]["desiredReplicas"] == 4).then_some(hpa))
    })?;
    let current = &scaled["status"]["currentMetrics"][0]["resource"]["current"];
    ensure!(
        current["averageUtilization"] == 200 && current["averageValue"] == "200m",
        "{current}"
    );
    let is = |type_: &str, status: &str, reason: &str| {
        condition(&scaled, type_)
            .is_some_and(|one| one["status"] == status && one["reason"] == reason)
    };
    ensure!(
        is("AbleToScale", "True", "SucceededRescale"),
        "{}",
        scaled["status"]
    );
    ensure!(
        is("ScalingActive", "True", "ValidMetricFound"),
        "{}",
        scaled["status"]
    );
    ensure!(
        is("ScalingLimited", "True", "ScaleUpLimit"),
        "{}",
        scaled["status"]
    );
    let words = [
        "SuccessfulRescale",
        "New size: 4; reason: cpu resource utilization (percentage of request) above target",
    ];
    told(&server, "hpa", "web", &words)
}

#[test]
fn an_autoscaler_says_what_it_can_not_do() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(&server, &deployment("many", 5))?;
    server.kubectl(&[
        "autoscale",
        "deployment",
        "many",
        "--min=1",
        "--max=3",
        "--cpu=50%",
    ])?;
    eventually(&server, "there are no more than allowed", || {
        Ok((replicas(&server, "many")? == 3).then_some(()))
    })?;
    told(
        &server,
        "hpa",
        "many",
        &["New size: 3; reason: Current number of replicas above Spec.MaxReplicas"],
    )?;

    let reason = |name: &str, type_: &str, reason: &str| {
        eventually(&server, &format!("{name}: {type_} is {reason}"), || {
            let hpa = server.json(&["get", "hpa", name])?;
            Ok(condition(&hpa, type_)
                .is_some_and(|one| one["reason"] == reason && one["status"] == "False")
                .then_some(()))
        })
    };
    create(&server, &deployment("blind", 1))?;
    server.kubectl(&["autoscale", "deployment", "blind", "--max=3", "--cpu=50%"])?;
    reason("blind", "ScalingActive", "FailedGetResourceMetric")?;
    create(&server, &deployment("zero", 0))?;
    server.kubectl(&["autoscale", "deployment", "zero", "--max=3", "--cpu=50%"])?;
    reason("zero", "ScalingActive", "ScalingDisabled")?;
    let hpa = |name: &str, metric: Value| {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}, "metrics": [metric]},
        })
    };
    create(&server, &deployment("custom", 1))?;
    let metric = json!({"type": "Pods", "pods": {"metric": {"name": "requests"}, "target": {"type": "AverageValue", "averageValue": "10"}}});
    create(&server, &hpa("custom", metric.clone()))?;
    reason("custom", "ScalingActive", "FailedGetPodsMetric")?;
    create(&server, &hpa("nothing", metric))?;
    reason("nothing", "AbleToScale", "FailedGetScale")
}
