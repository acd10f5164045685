//! The daemon's own metrics, as Prometheus reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use berth_proto::cri;
use berth_tests::{BUSYBOX, Node, Setup, container, process};

const LISTEN: &str = "127.0.0.1:9478";

fn serving() -> Setup {
    Setup {
        arguments: vec!["--metrics-listen=9478".into()],
        ..Setup::default()
    }
}

/// Sends the request as it is; status line with headers, and body.
fn ask(request: &[u8]) -> Result<(String, String)> {
    let address: SocketAddr = LISTEN.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // One that was refused in its middle is cut.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok((head.to_owned(), body.to_owned()))
}

fn scrape() -> Result<String> {
    let (head, body) = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
    ensure!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    Ok(body)
}

/// Samples by their name with labels, after the text was held against the format's rules.
fn parse(text: &str) -> Result<BTreeMap<String, f64>> {
    let plain = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    let (mut family, mut kind, mut helped) = (String::new(), String::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split(' ').next().unwrap_or("").to_owned();
            ensure!(help.len() > helped.len() + 1, "no help: {line}");
            continue;
        }
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, of) = typed.split_once(' ').context("no type")?;
            ensure!(
                name == helped && plain(name),
                "{line} after the help of {helped}"
            );
            ensure!(families.insert(name.to_owned()), "{name} begins twice");
            ensure!(["counter", "gauge", "histogram"].contains(&of), "{line}");
            ensure!((of == "counter") == name.ends_with("_total"), "{line}");
            (family, kind) = (name.to_owned(), of.to_owned());
            continue;
        }
        ensure!(!line.starts_with('#'), "{line}");
        let (series, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse().with_context(|| line.to_owned())?;
        ensure!(kind != "counter" || value >= 0.0, "{line}");
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let suffix = name
            .strip_prefix(&family)
            .with_context(|| format!("{line} in family {family}"))?;
        let allowed: &[&str] = match kind.as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        ensure!(allowed.contains(&suffix), "{line} in family {family}");
        for label in labels
            .trim_end_matches('}')
            .split("\",")
            .filter(|l| !l.is_empty())
        {
            let (key, value) = label.split_once("=\"").with_context(|| line.to_owned())?;
            ensure!(plain(key) && !value.contains('\n'), "{line}");
        }
        ensure!(
            samples.insert(series.to_owned(), value).is_none(),
            "{series} twice"
        );
    }
    for (series, count) in &samples {
        if let Some((name, labels)) = series.split_once("_count")
            && families.contains(name)
        {
            let labels = labels.trim_start_matches('{').trim_end_matches('}');
            let comma = if labels.is_empty() { "" } else { "," };
            let all = format!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}}");
            ensure!(samples.get(&all) == Some(count), "{all} is not {series}");
        }
    }
    Ok(samples)
}

/// Prometheus' own judgement, where it is installed.
fn promtool(text: &str) -> Result<()> {
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut tool) = tool else { return Ok(()) };
    tool.stdin
        .take()
        .context("no stdin")?
        .write_all(text.as_bytes())?;
    let judged = tool.wait_with_output()?;
    ensure!(
        judged.status.success(),
        "{}",
        String::from_utf8_lossy(&judged.stderr)
    );
    Ok(())
}

#[test]
fn the_daemon_tells_prometheus_what_it_did() -> Result<()> {
    Node::test_with(serving(), async |node| {
        let before = parse(&scrape()?)?;
        ensure!(before["berth_pods{state=\"ready\"}"] == 0.0);
        let pod = node.run(node.pod("counted")).await?;
        node.start_container(&pod, container("runs", BUSYBOX, &["sleep", "1000"]))
            .await?;
        let ended = node
            .start_container(&pod, container("ended", BUSYBOX, &["true"]))
            .await?;
        node.cri.wait_exit(&ended).await?;
        let missing = node.cri.pull("registry.k8s.io/not-there:1").await;
        ensure!(missing.is_err());
        let _ = node.cri.status(&"0".repeat(64)).await;
        let request = cri::GetEventsRequest {};
        let events = node.cri.runtime().get_container_events(request).await?;
        // A method that nobody serves is no label.
        let mut grpc = tonic::client::Grpc::new(node.cri.channel());
        grpc.ready().await?;
        let path = "/runtime.v1.RuntimeService/NoSuchThing".parse()?;
        let codec = tonic_codec();
        let unknown = grpc
            .unary(
                tonic::Request::new(cri::VersionRequest::default()),
                path,
                codec,
            )
            .await;
        ensure!(unknown.is_err());

        let text = scrape()?;
        promtool(&text)?;
        let after = parse(&text)?;
        let is = |series: &str, wanted: f64| -> Result<()> {
            let value = after
                .get(series)
                .with_context(|| format!("no {series} in {text}"))?;
            ensure!(*value == wanted, "{series} is {value}");
            Ok(())
        };
        is("berth_pods{state=\"ready\"}", 1.0)?;
        is("berth_containers{state=\"running\"}", 1.0)?;
        is("berth_containers{state=\"exited\"}", 1.0)?;
        is(
            "berth_rpc_duration_seconds_count{method=\"RunPodSandbox\",code=\"OK\"}",
            1.0,
        )?;
        is(
            "berth_rpc_duration_seconds_count{method=\"StartContainer\",code=\"OK\"}",
            2.0,
        )?;
        is(
            "berth_rpc_duration_seconds_count{method=\"ContainerStatus\",code=\"NOT_FOUND\"}",
            1.0,
        )?;
        is(
            "berth_rpc_duration_seconds_count{method=\"Unknown\",code=\"UNIMPLEMENTED\"}",
            1.0,
        )?;
        is(
            "berth_shim_start_duration_seconds_count{outcome=\"succeeded\"}",
            1.0,
        )?;
        is(
            "berth_network_attach_duration_seconds_count{outcome=\"succeeded\"}",
            1.0,
        )?;
        is(
            "berth_image_pull_duration_seconds_count{outcome=\"failed\"}",
            1.0,
        )?;
        is("berth_event_subscribers", 1.0)?;
        is("berth_ledger_objects{kind=\"shim\"}", 1.0)?;
        is("berth_ledger_objects{kind=\"netns\"}", 1.0)?;
        is("berth_network_owed_dels", 0.0)?;
        is("berth_stream_sessions", 0.0)?;
        is("berth_images", node.cri.list_images().await?.len() as f64)?;
        ensure!(after["berth_image_pull_bytes_total"] > 100_000.0);
        ensure!(
            !text.contains("NoSuchThing") && !text.contains(&pod.id),
            "a label is unbounded"
        );
        let pid = node.daemon.pid().context("no daemon")?;
        let open = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as f64;
        ensure!((after["process_open_fds"] - open).abs() < 10.0, "{open}");
        drop(events);

        // The audit runs beside the answer, so its outcome is in a later one.
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let now = parse(&scrape()?)?;
            if let Some(leaked) = now.get("berth_audit_findings{difference=\"leaked\"}") {
                ensure!(*leaked == 0.0);
                break;
            }
            ensure!(Instant::now() < deadline, "no audit");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        node.cri.stop_pod(&pod.id).await?;
        let stopped = parse(&scrape()?)?;
        ensure!(
            stopped["berth_network_detach_duration_seconds_count{outcome=\"succeeded\"}"] == 1.0
        );
        ensure!(stopped["berth_pods{state=\"stopped\"}"] == 1.0);
        Ok(())
    })
}

fn tonic_codec() -> tonic_prost::ProstCodec<cri::VersionRequest, cri::VersionResponse> {
    tonic_prost::ProstCodec::default()
}

#[test]
fn bad_clients_of_the_metrics_get_an_error_and_keep_nobody_else() -> Result<()> {
    Node::test_with(serving(), async |node| {
        for (request, status) in [
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "404"),
            (
                b"GET /metrics/../x HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
                "404",
            ),
            (
                b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".to_vec(),
                "405",
            ),
            (b"rubbish\r\n\r\n".to_vec(), "400"),
            (
                format!(
                    "GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n",
                    "x".repeat(100_000)
                )
                .into_bytes(),
                "431",
            ),
            (
                format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200)).into_bytes(),
                "431",
            ),
        ] {
            let (head, _) = ask(&request)?;
            // A client that is cut while it still sends may not get to see why.
            ensure!(
                head.is_empty() || head.starts_with(&format!("HTTP/1.1 {status}")),
                "{status}: {head:.200}"
            );
        }
        // More than there are places, and none of them says anything.
        let address: SocketAddr = LISTEN.parse()?;
        let silent: Vec<_> = (0..20)
            .map(|_| TcpStream::connect(address))
            .collect::<Result<_, _>>()?;
        let pid = node.daemon.pid().context("no daemon")?;
        let open = || std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        ensure!(open() < 60, "{} descriptors", open());
        let began = Instant::now();
        node.cri.version().await?;
        ensure!(
            began.elapsed() < Duration::from_secs(1),
            "the CRI waits for metrics"
        );
        let (head, body) = ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
        ensure!(
            head.starts_with("HTTP/1.1 200") && !body.is_empty(),
            "{head}"
        );
        drop(silent);
        ensure!(process::eventually(Duration::from_secs(10), || scrape().is_ok()));
        Ok(())
    })
}

#[test]
fn metrics_are_not_served_unless_they_are_asked_for() -> Result<()> {
    Node::test(async |_| {
        if ask(b"GET /metrics HTTP/1.1\r\n\r\n").is_ok() {
            bail!("somebody listens on {LISTEN}");
        }
        Ok(())
    })
}
