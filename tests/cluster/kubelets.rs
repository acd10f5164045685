//! What a kubelet answers, through the API server: logs, exec, attach, port-forward, proxies. All of it in a network of the test's own, since no address of
//! this machine's loopback is ever dialled.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_tests::{cluster::Server, kubelet::Kubelet};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

/// The node's address, and one that belongs to nobody's certificate.
pub const ADDRESS: &str = "10.211.0.1";
const OTHER: &str = "10.211.0.2";

/// Runs `work` in a network namespace that is gone with it.
pub fn in_own_network(work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
            for line in [
                "link set lo up".to_owned(),
                "link add berth-t0 type bridge".to_owned(),
                format!("address add {ADDRESS}/24 dev berth-t0"),
                format!("address add {OTHER}/24 dev berth-t0"),
                "link set berth-t0 up".to_owned(),
            ] {
                let status = Command::new("ip").args(line.split(' ')).status()?;
                ensure!(status.success(), "ip {line}");
            }
            work()
        });
        thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn ca(server: &Server) -> Result<String> {
    Ok(fs::read_to_string(server.data().join("pki/ca.crt"))?)
}

/// A kubelet's certificate and key, asked for and signed as a kubelet's are (serverTLSBootstrap).
fn identity(server: &Server, node: &str, address: &str) -> Result<PathBuf> {
    let path = |end: &str| server.dir().join(format!("{node}-{address}.{end}"));
    let (key, csr) = (path("key"), path("csr"));
    let subject = format!("/O=system:nodes/CN=system:node:{node}");
    let names = format!("subjectAltName=IP:{address}");
    #[rustfmt::skip]
    run("openssl", &[
        "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-keyout", &key.to_string_lossy(), "-out", &csr.to_string_lossy(), "-subj", &subject, "-addext", &names,
    ])?;
    let name = format!("{node}-{address}");
    let request = json!({
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": base64(&fs::read(&csr)?),
            "signerName": "kubernetes.io/kubelet-serving",
            "usages": ["digital signature", "server auth"],
        },
    });
    let (user, group) = (
        format!("--as=system:node:{node}"),
        "--as-group=system:nodes",
    );
    server.kubectl_with(&["create", "-f", "-", &user, group], &request.to_string())?;
    server.kubectl(&["certificate", "approve", &name])?;
    let until = Instant::now() + Duration::from_secs(10);
    let certificate = loop {
        let signed = server.json(&["get", "csr", &name])?;
        if let Some(certificate) = signed["status"]["certificate"].as_str() {
            break unbase64(certificate)?;
        }
        ensure!(Instant::now() < until, "it was not signed: {signed}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let both = path("pem");
    fs::write(&both, [certificate, fs::read(&key)?].concat())?;
    Ok(both)
}

/// One that nobody has signed but itself.
fn foreign_identity(server: &Server) -> Result<PathBuf> {
    let path = |end: &str| server.dir().join(format!("foreign.{end}"));
    let (key, certificate) = (path("key"), path("crt"));
    #[rustfmt::skip]
    run("openssl", &[
        "req", "-x509", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
        "-keyout", &key.to_string_lossy(), "-out", &certificate.to_string_lossy(),
        "-subj", "/O=system:nodes/CN=system:node:n1", "-addext", &format!("subjectAltName=IP:{ADDRESS}"),
    ])?;
    let both = path("pem");
    fs::write(&both, [fs::read(&certificate)?, fs::read(&key)?].concat())?;
    Ok(both)
}

fn coreutils_base64(bytes: &[u8], arguments: &[&str]) -> Result<Vec<u8>> {
    let mut child = Command::new("base64")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(bytes)?;
    Ok(child.wait_with_output()?.stdout)
}

pub fn base64(bytes: &[u8]) -> String {
    let text = coreutils_base64(bytes, &["-w0"]).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

fn unbase64(text: &str) -> Result<Vec<u8>> {
    coreutils_base64(text.as_bytes(), &["-d"])
}

/// A node that says that its kubelet is there, and a pod on it.
fn node(server: &Server, name: &str, kubelet: SocketAddr) -> Result<()> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    server.kubectl_with(&["create", "-f", "-"], &node.to_string())?;
    moved(server, name, &kubelet.ip().to_string(), kubelet.port())?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": format!("on-{name}")},
        "spec": {
            "nodeName": name,
            "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 8080}]}],
        },
    });
    server.kubectl_with(&["create", "-f", "-"], &pod.to_string())?;
    let status = json!({"status": {"phase": "Running", "podIP": kubelet.ip().to_string()}});
    let pod = format!("on-{name}");
    server.kubectl(&[
        "patch",
        "pod",
        &pod,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ])?;
    Ok(())
}

fn moved(server: &Server, name: &str, address: &str, port: u16) -> Result<()> {
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    server.kubectl(&[
        "patch",
        "node",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ])?;
    Ok(())
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), 0)
}

fn with_kubelet(work: impl FnOnce(&Server, &Kubelet) -> Result<()> + Send) -> Result<()> {
    in_own_network(|| {
        let server = Server::start("memory")?;
        let identity = identity(&server, "n1", ADDRESS)?;
        let kubelet = Kubelet::start(at(ADDRESS), &identity, &ca(&server)?)?;
        node(&server, "n1", kubelet.address)?;
        work(&server, &kubelet).with_context(|| server.log())
    })
}

/// KUBECTL: over WebSocket as kubectl begins, and over SPDY as it falls back.
const BOTH: [&str; 2] = ["true", "false"];

fn said(
    server: &Server,
    websockets: &str,
    arguments: &[&str],
    stdin: &str,
) -> Result<(i32, String, String)> {
    let mut child = server
        .command(arguments)?
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut pipe = child.stdin.take().context("stdin")?;
    pipe.write_all(stdin.as_bytes())?;
    drop(pipe);
    let output = child.wait_with_output()?;
    Ok((
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}

#[test]
fn exec_attach_and_cp_reach_the_kubelet_over_both_protocols() -> Result<()> {
    with_kubelet(|server, kubelet| {
        for websockets in BOTH {
            let is = said(
                server,
                websockets,
                &[
                    "exec",
                    "on-n1",
                    "--",
                    "sh",
                    "-c",
                    "echo out; echo err >&2; exit 3",
                ],
                "",
            )?;
            ensure!(is.0 == 3 && is.1 == "out\n", "{websockets}: {is:?}");
            ensure!(is.2.starts_with("err\n"), "{websockets}: {is:?}");
            // more than any buffer holds, both ways
            let much = "0123456789abcdef\n".repeat(100_000);
            let is = said(
                server,
                websockets,
                &["exec", "-i", "on-n1", "--", "cat"],
                &much,
            )?;
            ensure!(
                is.0 == 0 && is.1 == much,
                "{websockets}: {} bytes, {}",
                is.1.len(),
                is.2
            );
            let is = said(
                server,
                websockets,
                &["exec", "-i", "on-n1", "--", "sh", "-c", "read a; echo $a"],
                "x & y=z\n",
            )?;
            ensure!(is.1 == "x & y=z\n", "{is:?}");
            let is = said(server, websockets, &["attach", "-i", "on-n1"], "typed\n")?;
            ensure!(
                is.1.contains("attached\n") && is.1.contains("typed\n"),
                "{websockets}: {is:?}"
            );
        }
        let (from, to) = (server.dir().join("from"), server.dir().join("to"));
        fs::write(&from, "copied")?;
        let there = format!("on-n1:{}", server.dir().join("there").display());
        server.kubectl(&["cp", &from.to_string_lossy(), &there])?;
        server.kubectl(&["cp", &there, &to.to_string_lossy()])?;
        ensure!(fs::read_to_string(&to)? == "copied");
        let heads = kubelet.seen().concat().to_lowercase();
        ensure!(
            heads.contains("upgrade: websocket") && heads.contains("upgrade: spdy/3.1"),
            "{heads}"
        );
        for secret in ["authorization:", "cookie:", "user-agent:"] {
            ensure!(!heads.contains(secret), "{heads}");
        }
        Ok(())
    })
}

#[test]
fn logs_come_as_they_are_written() -> Result<()> {
    with_kubelet(|server, _| {
        ensure!(server.kubectl(&["logs", "on-n1", "--tail=2"])? == "a\nb\n");
        let mut child = server
            .command(&["logs", "-f", "on-n1"])?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let first = lines.next().context("a line")??;
        let begun = Instant::now();
        let second = lines.next().context("a line")??;
        let apart = begun.elapsed();
        child.kill()?;
        child.wait()?;
        ensure!(first == "line 0" && second == "line 1", "{first} {second}");
        // neither gathered up nor late
        ensure!(apart < Duration::from_secs(5), "{apart:?}");
        let refused = server.refused(&["logs", "on-n1", "-c", "x"], "")?;
        ensure!(
            refused.contains("container x is not valid for pod on-n1"),
            "{refused}"
        );
        Ok(())
    })
}

#[test]
fn ports_are_forwarded_over_both_protocols() -> Result<()> {
    with_kubelet(|server, _| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut echo = stream;
                let mut word = [0; 4];
                let _ = echo.read_exact(&mut word);
                let _ = echo.write_all(&word);
            }
        });
        for websockets in BOTH {
            let mut child = server
                .command(&["port-forward", "pod/on-n1", &format!(":{port}")])?
                .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // kept: a kubectl whose stdout is closed ends with its next line
            let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
            let mut forwarded = || -> Result<()> {
                let mut line = String::new();
                stdout.read_line(&mut line)?;
                let local: u16 = line
                    .split("127.0.0.1:")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next()?.parse().ok())
                    .with_context(|| line.clone())?;
                for _ in 0..3 {
                    let mut stream = TcpStream::connect(("127.0.0.1", local))?;
                    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                    stream.write_all(b"ping")?;
                    let mut word = [0; 4];
                    stream.read_exact(&mut word)?;
                    ensure!(&word == b"ping");
                }
                Ok(())
            };
            let result = forwarded();
            let _ = child.kill();
            child.wait()?;
            result.with_context(|| format!("WebSockets: {websockets}"))?;
        }
        Ok(())
    })
}

/// SEC-API-01, SEC-API-02.
#[test]
fn a_proxy_passes_on_no_credentials_follows_no_redirect_and_leaves_no_pipe_sec_api_01() -> Result<()>
{
    with_kubelet(|server, kubelet| {
        let base = "/api/v1/nodes/n1/proxy";
        ensure!(server.kubectl(&["get", "--raw", &format!("{base}/healthz")])? == "ok");
        let proxy = server.proxy()?;
        let root = proxy.get(base)?;
        ensure!(
            root.code == 301 && root.head.contains(&format!("{base}/")),
            "{root:?}"
        );
        let echoed = proxy.get(&format!("{base}/echo/a/b/?x=1&y=2"))?;
        ensure!(
            echoed
                .body
                .starts_with("GET /echo/a/b/?x=1&y=2 HTTP/1.1\r\n"),
            "{echoed:?}"
        );
        let lower = echoed.body.to_lowercase();
        ensure!(
            !lower.contains("authorization") && !lower.contains("cookie"),
            "{lower}"
        );
        ensure!(
            lower.contains(&format!("host: {}", kubelet.address)),
            "{lower}"
        );
        ensure!(
            !echoed.head.to_lowercase().contains("set-cookie"),
            "{echoed:?}"
        );
        let elsewhere = proxy.get(&format!("{base}/elsewhere"))?;
        ensure!(
            elsewhere.code == 302 && elsewhere.head.contains("https://10.211.0.9:1/x"),
            "{elsewhere:?}"
        );
        let here = proxy.get(&format!("{base}/here"))?;
        ensure!(
            here.code == 302 && here.head.contains(&format!("{base}/healthz")),
            "{here:?}"
        );
        let none = proxy.get(&format!("{base}/none"))?;
        ensure!(none.code == 404 && none.body == "no such path", "{none:?}");
        refused_upgrade(server, kubelet, base)
    })
}

fn refused_upgrade(server: &Server, kubelet: &Kubelet, base: &str) -> Result<()> {
    let token = server.kubectl(&["create", "token", "default"])?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "proxies",
        "--clusterrole=cluster-admin",
        "--serviceaccount=default:default",
    ])?;
    let mut openssl = Command::new("openssl")
        .args(["s_client", "-quiet", "-connect", &server.address])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut pipe = openssl.stdin.take().context("stdin")?;
    write!(
        pipe,
        "GET {base}/refuse HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        token.trim()
    )?;
    std::thread::sleep(Duration::from_secs(2));
    // it may be closed already: all the better
    let _ = write!(pipe, "GET /pods HTTP/1.1\r\nHost: x\r\n\r\n");
    drop(pipe);
    let answered = openssl.wait_with_output()?;
    let text = String::from_utf8_lossy(&answered.stdout).into_owned();
    ensure!(text.starts_with("HTTP/1.1 400 "), "{text}");
    ensure!(text.ends_with("\r\n\r\nno"), "{text}");
    ensure!(text.to_lowercase().contains("connection: close"), "{text}");
    let seen = kubelet.seen();
    ensure!(seen.iter().any(|head| head.contains("/refuse")), "{seen:?}");
    ensure!(
        !seen
            .iter()
            .any(|head| head.contains("PIPE") || head.contains("/pods")),
        "{seen:?}"
    );
    Ok(())
}

/// SEC-API-03.
#[test]
fn a_node_that_is_not_what_it_says_is_told_from_one_that_is_away_sec_api_03() -> Result<()> {
    in_own_network(|| {
        let server = Server::start("memory")?;
        let authority = ca(&server)?;
        let foreign = Kubelet::start(at(ADDRESS), &foreign_identity(&server)?, &authority)?;
        let second = Kubelet::start(at(ADDRESS), &identity(&server, "n2", ADDRESS)?, &authority)?;
        let elsewhere = Kubelet::start(at(OTHER), &identity(&server, "n1", ADDRESS)?, &authority)?;
        node(&server, "n1", foreign.address)?;
        let mut dead = foreign.address;
        dead.set_port(1);
        for (what, address, port, why) in [
            ("away", ADDRESS, 1, "connection refused"),
            (
                "a foreign certificate",
                ADDRESS,
                foreign.address.port(),
                "certificate",
            ),
            (
                "another node's",
                ADDRESS,
                second.address.port(),
                "not that of system:node:n1",
            ),
            (
                "another address",
                OTHER,
                elsewhere.address.port(),
                "certificate",
            ),
            ("loopback", "127.0.0.1", 10250, "address not allowed"),
            ("metadata", "169.254.169.254", 80, "address not allowed"),
            ("mapped", "::ffff:127.0.0.1", 10250, "address not allowed"),
        ] {
            moved(&server, "n1", address, port)?;
            let begun = Instant::now();
            for arguments in [
                ["logs", "on-n1", "--tail=1"].as_slice(),
                &["exec", "on-n1", "--", "true"],
                &["get", "--raw", "/api/v1/nodes/n1/proxy/healthz"],
            ] {
                let said = server.refused(arguments, "")?;
                ensure!(said.contains(why), "{what}: {arguments:?}: {said}");
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "{what}: {:?}",
                begun.elapsed()
            );
        }
        for kubelet in [foreign, second, elsewhere] {
            ensure!(kubelet.seen().is_empty(), "{:?}", kubelet.seen());
        }
        Ok(())
    })
}

/// A kubelet that hangs costs its client half a minute, and nobody else anything.
#[test]
fn a_kubelet_that_hangs_is_given_up() -> Result<()> {
    with_kubelet(|server, _| {
        let begun = Instant::now();
        let said = server.refused(&["get", "--raw", "/api/v1/nodes/n1/proxy/hang"], "")?;
        ensure!(
            said.contains("did not begin to answer within 30 s"),
            "{said}"
        );
        ensure!(begun.elapsed() < Duration::from_secs(50));
        ensure!(server.kubectl(&["logs", "on-n1"])? == "a\nb\n");
        Ok(())
    })
}

/// Who may only read pods makes no terminal of it, by neither verb.
#[test]
fn exec_needs_create_and_logs_need_get() -> Result<()> {
    with_kubelet(|server, _| {
        server.kubectl(&[
            "create",
            "role",
            "reads",
            "--verb=get",
            "--resource=pods,pods/log,pods/exec",
        ])?;
        server.kubectl(&[
            "create",
            "rolebinding",
            "reads",
            "--role=reads",
            "--user=reader",
        ])?;
        ensure!(server.kubectl(&["logs", "on-n1", "--as=reader"])? == "a\nb\n");
        let refused = server.refused(&["exec", "on-n1", "--as=reader", "--", "true"], "")?;
        ensure!(
            refused.contains("cannot create resource \"pods/exec\""),
            "{refused}"
        );
        server.kubectl(&[
            "create",
            "role",
            "runs",
            "--verb=get,create",
            "--resource=pods,pods/exec",
        ])?;
        server.kubectl(&[
            "create",
            "rolebinding",
            "runs",
            "--role=runs",
            "--user=runner",
        ])?;
        server.kubectl(&["exec", "on-n1", "--as=runner", "--", "true"])?;
        let refused = server.refused(
            &[
                "get",
                "--raw",
                "/api/v1/nodes/n1/proxy/healthz",
                "--as=runner",
            ],
            "",
        )?;
        ensure!(refused.contains("nodes/proxy"), "{refused}");
        Ok(())
    })
}

/// A Service's ready endpoints are proxied to, by its port's name or number.
#[test]
fn services_and_pods_are_proxied_to_by_http() -> Result<()> {
    with_kubelet(|server, _| {
        let listener = TcpListener::bind((ADDRESS, 8080))?;
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).unwrap_or(0);
                let head = String::from_utf8_lossy(&buffer[..read]).into_owned();
                let line = head.lines().next().unwrap_or_default();
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}",
                    line.len()
                );
            }
        });
        for (path, line) in [
            ("pods/on-n1/proxy/a", "GET /a HTTP/1.1"),
            ("pods/on-n1:8080/proxy/", "GET / HTTP/1.1"),
        ] {
            let is = server.kubectl(&[
                "get",
                "--raw",
                &format!("/api/v1/namespaces/default/{path}"),
            ])?;
            ensure!(is == line, "{path}: {is}");
        }
        let service: Value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
        server.kubectl_with(&["create", "-f", "-"], &service.to_string())?;
        let base = "/api/v1/namespaces/default/services";
        let refused = server.refused(&["get", "--raw", &format!("{base}/web:80/proxy/")], "")?;
        ensure!(
            refused.contains("no endpoints available for service \"web\""),
            "{refused}"
        );
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": true}}],
            "ports": [{"name": "http", "port": 8080}]});
        server.kubectl_with(&["create", "-f", "-"], &slice.to_string())?;
        for name in ["web:80", "web:http", "http:web:http"] {
            let is = server.kubectl(&["get", "--raw", &format!("{base}/{name}/proxy/x?y=1")])?;
            ensure!(is == "GET /x?y=1 HTTP/1.1", "{name}: {is}");
        }
        let refused = server.refused(&["get", "--raw", &format!("{base}/web:81/proxy/")], "")?;
        ensure!(
            refused.contains("no service port 81 found for service \"web\""),
            "{refused}"
        );
        Ok(())
    })
}
