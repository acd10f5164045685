//! What no well-behaved client sends: each gets a clear answer, and the server is as it was.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::{cluster::Server, process};

/// SEC-API-04, SEC-API-05: bombs of JSON, YAML, patches and protobuf.
#[test]
fn malformed_bodies_are_refused_quickly_and_by_name_sec_api_04() -> Result<()> {
    let server = Server::start("memory")?;
    let proxy = server.proxy()?;
    let path = "/api/v1/namespaces/default/configmaps";
    let nested = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"x\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let aliases = (1..30).fold(String::from("a0: &a0 [x]\n"), |text, n| {
        format!("{text}a{n}: &a{n} [*a{0},*a{0},*a{0},*a{0},*a{0}]\n", n - 1)
    });
    let duplicate = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","name":"y"}}"#;
    let deep_protobuf = {
        let mut message = Vec::new();
        for _ in 0..100_000 {
            message.extend_from_slice(&[0x0b]);
        }
        [b"k8s\0".as_slice(), &message].concat()
    };
    let long_length = [
        b"k8s\0".as_slice(),
        &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ]
    .concat();
    let json = "application/json";
    let large = vec![b' '; (3 << 20) + 1];
    for (name, content_type, body, code) in [
        ("nothing", json, Vec::new(), 400),
        ("no JSON", json, b"{".to_vec(), 400),
        ("no object", json, b"[]".to_vec(), 400),
        ("nested", json, nested.into_bytes(), 400),
        ("a YAML bomb", "application/yaml", aliases.into_bytes(), 400),
        ("3 MiB and 1", json, large, 413),
        ("another type", "text/plain", b"x".to_vec(), 415),
        (
            "nested protobuf",
            "application/vnd.kubernetes.protobuf",
            deep_protobuf,
            400,
        ),
        (
            "a length of 2^63",
            "application/vnd.kubernetes.protobuf",
            long_length,
            400,
        ),
        (
            "another version",
            json,
            br#"{"apiVersion":"v2","kind":"ConfigMap","metadata":{"name":"x"}}"#.to_vec(),
            400,
        ),
        (
            "another kind",
            json,
            br#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}"#.to_vec(),
            400,
        ),
        (
            "a wrong type",
            json,
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":["x"]}}"#.to_vec(),
            400,
        ),
        (
            "another namespace",
            json,
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"y"}}"#
                .to_vec(),
            400,
        ),
        (
            "no name",
            json,
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}"#.to_vec(),
            422,
        ),
    ] {
        // of a build without optimization, on a busy machine
        let begun = Instant::now();
        let answer = proxy.request("POST", path, content_type, &body)?;
        ensure!(answer.code == code, "{name}: {answer:?}");
        ensure!(answer.json()?["kind"] == "Status", "{name}: {answer:?}");
        ensure!(
            begun.elapsed() < Duration::from_secs(15),
            "{name} took {:?}",
            begun.elapsed()
        );
    }
    let strict = proxy.request(
        "POST",
        &format!("{path}?fieldValidation=Strict"),
        json,
        duplicate.as_bytes(),
    )?;
    ensure!(
        strict.code == 400
            && strict
                .body
                .contains("duplicate field \\\"metadata.name\\\""),
        "{strict:?}"
    );
    server.kubectl(&["create", "configmap", "m"])?;
    let copies: Vec<String> = std::iter::once(
        r#"{"op":"add","path":"/data","value":{"a":"xxxxxxxxxxxxxxxx"}}"#.to_owned(),
    )
    .chain((0..10_001).map(|n| format!(r#"{{"op":"copy","from":"/data/a","path":"/data/b{n}"}}"#)))
    .collect();
    let patched = proxy.request(
        "PATCH",
        &format!("{path}/m"),
        "application/json-patch+json",
        format!("[{}]", copies.join(",")).as_bytes(),
    )?;
    ensure!((400..500).contains(&patched.code), "{}", patched.code);
    let resident = process::resident_kib(server.pid().unwrap_or_default())?;
    ensure!(resident < 256 << 10, "{resident} KiB");
    ensure!(server.kubectl(&["get", "--raw", "/readyz"])? == "ok");
    Ok(())
}

#[test]
fn paths_and_parameters_that_are_forged_lead_nowhere() -> Result<()> {
    let server = Server::start("memory")?;
    let proxy = server.proxy()?;
    for (method, path, code) in [
        ("GET", "/api/v1/namespaces/default/nodes", 404),
        ("GET", "/api/v1/namespaces/default/pods/a%2Fb", 404),
        ("GET", "/api/v2/pods", 404),
        ("GET", "/apis/nothing.example.com/v1/things", 404),
        ("GET", "/nothing", 404),
        ("GET", "/api/v1/pods?continue=AAAA", 400),
        ("GET", "/api/v1/pods?limit=x", 400),
        ("GET", "/api/v1/pods?resourceVersion=x", 400),
        (
            "GET",
            "/api/v1/pods?resourceVersion=99999999&resourceVersionMatch=NotOlderThan",
            504,
        ),
        ("GET", "/api/v1/pods?labelSelector=a%20b%20c", 400),
        ("GET", "/api/v1/pods?fieldSelector=spec.nothing%3Dx", 400),
        ("GET", "/api/v1/pods?watch=true&sendInitialEvents=true", 422),
        ("POST", "/api/v1/pods", 405),
        ("DELETE", "/api/v1/namespaces/default", 403),
        (
            "PUT",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            405,
        ),
        ("GET", "/api/v1/namespaces/default/pods/x/exec", 404),
    ] {
        let answer = proxy.request(method, path, "application/json", b"")?;
        ensure!(answer.code == code, "{method} {path}: {answer:?}");
    }
    Ok(())
}

#[test]
fn a_stranger_may_see_the_version_and_no_more() -> Result<()> {
    let server = Server::start("memory")?;
    let config = server.kubeconfig();
    let text = std::fs::read_to_string(&config)?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&config)?.permissions());
    ensure!(mode & 0o777 == 0o600, "{mode:o}");
    // the same server, without the certificate
    let at = text.find("  user:\n").map_or(text.len(), |at| at);
    let stranger = format!("{}  user: {{}}\n", &text[..at]);
    std::fs::write(server.dir().join("stranger"), &stranger)?;
    // A kubectl without credentials asks for a password: the admin speaks for the stranger.
    let ask = |path: &str| {
        server.ask(
            &[
                "get",
                "--raw",
                path,
                "--as=system:anonymous",
                "--as-group=system:unauthenticated",
            ],
            "",
        )
    };
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        ensure!(ask(path)?.ok, "{path}");
    }
    for path in ["/api/v1/namespaces", "/metrics", "/apis"] {
        let said = ask(path)?;
        ensure!(
            !said.ok && said.stderr.contains("orbidden"),
            "{path}: {said:?}"
        );
    }
    let forged = server.ask(
        &[
            "--kubeconfig",
            "stranger",
            "--token",
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6ZGVmYXVsdDpkZWZhdWx0In0.",
            "get",
            "--raw",
            "/version",
        ],
        "",
    )?;
    ensure!(
        !forged.ok && forged.stderr.contains("nauthorized"),
        "{forged:?}"
    );
    Ok(())
}
