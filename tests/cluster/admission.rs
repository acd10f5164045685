//! What the server itself has to say about pods: limit ranges, quotas, the Pod Security Standards.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};

fn create(server: &Server, object: &Value) -> Result<()> {
    server
        .kubectl_with(&["create", "-f", "-"], &object.to_string())
        .map(drop)
}

fn refused(server: &Server, object: &Value) -> Result<String> {
    server.refused(&["create", "-f", "-"], &object.to_string())
}

fn pod(name: &str, resources: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]},
    })
}

#[test]
fn a_limit_range_fills_in_and_bounds() -> Result<()> {
    let server = Server::start("memory")?;
    create(
        &server,
        &json!({
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": {"name": "l"},
            "spec": {"limits": [
                {
                    "type": "Container",
                    "default": {"cpu": "500m"},
                    "defaultRequest": {"cpu": "250m"},
                    "max": {"cpu": "1"},
                },
                {"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}},
            ]},
        }),
    )?;
    create(&server, &pod("filled", &json!({})))?;
    let filled = server.json(&["get", "pod", "filled"])?;
    ensure!(
        filled.pointer("/spec/containers/0/resources")
            == Some(&json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "250m"}})),
        "{filled}"
    );
    let said = refused(&server, &pod("big", &json!({"limits": {"cpu": "2"}})))?;
    ensure!(
        said.contains(
            "pods \"big\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        ),
        "{said}"
    );
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "big"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    });
    let said = refused(&server, &claim)?;
    ensure!(
        said.contains("maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"),
        "{said}"
    );
    Ok(())
}

fn used(server: &Server, name: &str, of: &str) -> Result<String> {
    let quota = server.json(&["get", "resourcequota", name])?;
    let used = quota.pointer(&format!("/status/used/{}", of.replace('/', "~1")));
    Ok(used.and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn wait_used(server: &Server, name: &str, of: &str, is: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let now = used(server, name, of)?;
        if now == is {
            return Ok(());
        }
        ensure!(Instant::now() < until, "{of} is {now:?} and not {is:?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Those that come side by side are counted one by one, and what goes is given back.
#[test]
fn a_quota_is_never_exceeded_and_given_back() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl(&[
        "create",
        "quota",
        "q",
        "--hard=pods=3,requests.cpu=1,count/configmaps=20",
    ])?;
    let said = refused(&server, &pod("silent", &json!({})))?;
    ensure!(
        said.contains("failed quota: q: must specify requests.cpu for: c"),
        "{said}"
    );
    let small = json!({"requests": {"cpu": "100m"}});
    let made = thread::scope(|scope| {
        let threads: Vec<_> = (0..12)
            .map(|n| {
                let (server, pod) = (&server, pod(&format!("p{n}"), &small));
                scope.spawn(move || create(server, &pod))
            })
            .collect();
        let results: Vec<_> = threads.into_iter().filter_map(|t| t.join().ok()).collect();
        let refusals = results
            .iter()
            .filter_map(|result| result.as_ref().err())
            .all(|error| {
                let text = format!("{error:#}");
                text.contains("exceeded quota: q, requested: pods=1, used: pods=3, limited: pods=3")
            });
        refusals.then(|| results.iter().filter(|result| result.is_ok()).count())
    });
    ensure!(made == Some(3), "{made:?}: {}", server.log());
    ensure!(used(&server, "q", "requests.cpu")? == "300m");
    server.kubectl(&["delete", "pods", "--all", "--wait=false"])?;
    wait_used(&server, "q", "pods", "0")?;
    let said = refused(&server, &pod("big", &json!({"requests": {"cpu": "2"}})))?;
    ensure!(
        said.contains("exceeded quota: q, requested: requests.cpu=2, used: requests.cpu=0, limited: requests.cpu=1"),
        "{said}"
    );
    create(&server, &pod("again", &small))?;
    // one that has ended holds nothing
    server.kubectl(&[
        "patch",
        "pod",
        "again",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"phase":"Succeeded"}}"#,
    ])?;
    wait_used(&server, "q", "requests.cpu", "0")?;
    // the CA's is there already
    wait_used(&server, "q", "count/configmaps", "1")?;
    server.kubectl(&["create", "configmap", "dry", "--dry-run=server"])?;
    server.kubectl(&["create", "configmap", "m"])?;
    ensure!(used(&server, "q", "count/configmaps")? == "2");
    // a create that fails charges nothing
    server.refused(&["create", "configmap", "m"], "")?;
    ensure!(used(&server, "q", "count/configmaps")? == "2");
    Ok(())
}

/// SEC-API-10: the same verdict by whatever way a container comes.
#[test]
fn a_namespace_says_what_its_pods_may_sec_api_10() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl(&[
        "label",
        "namespace",
        "default",
        "pod-security.kubernetes.io/enforce=baseline",
        "pod-security.kubernetes.io/warn=restricted",
    ])?;
    let mut bad = pod("bad", &json!({}));
    bad["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let said = refused(&server, &bad)?;
    ensure!(
        said.contains("pods \"bad\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set securityContext.privileged=true)"),
        "{said}"
    );
    let said = server.ask(&["create", "-f", "-"], &pod("good", &json!({})).to_string())?;
    ensure!(said.ok, "{said:?}");
    ensure!(
        said.stderr
            .contains("Warning: would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false"),
        "{said:?}"
    );
    let debug = server.refused(
        &[
            "debug",
            "good",
            "--image=i",
            "--profile=sysadmin",
            "--attach=false",
            "-c",
            "d",
        ],
        "",
    )?;
    ensure!(debug.contains("violates PodSecurity"), "{debug}");
    server.kubectl(&["label", "pod", "good", "still=changed"])?;
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": bad["spec"]},
        },
    });
    let said = server.ask(&["create", "-f", "-"], &deployment.to_string())?;
    ensure!(
        said.ok && said.stderr.contains("Warning: would violate"),
        "{said:?}"
    );
    Ok(())
}
