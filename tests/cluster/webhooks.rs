//! Admission webhooks: what they say is done, and what their failure means is done exactly.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use berth_tests::{cluster::Server, webhook::Webhook};
use serde_json::{Value, json};

const VALIDATING: &str = "ValidatingWebhookConfiguration";
const MUTATING: &str = "MutatingWebhookConfiguration";

fn configure(server: &Server, configurations: &[Value]) -> Result<()> {
    for kind in [VALIDATING, MUTATING] {
        server.kubectl(&["delete", kind, "--all"])?;
    }
    for configuration in configurations {
        server.kubectl_with(&["create", "-f", "-"], &configuration.to_string())?;
    }
    Ok(())
}

fn texts(review: &Value, is: &[(&str, &str)]) -> Result<()> {
    for (pointer, text) in is {
        ensure!(
            review.pointer(pointer).and_then(Value::as_str) == Some(text),
            "{pointer} is not {text}: {review}"
        );
    }
    Ok(())
}

#[test]
fn a_webhook_allows_and_denies() -> Result<()> {
    let server = Server::start("memory")?;
    let hook = Webhook::start(server.dir())?;
    configure(&server, &[hook.configuration(VALIDATING, "allow", "Fail")])?;
    let said = server.ask(&["create", "configmap", "a", "--from-literal=k=v"], "")?;
    ensure!(
        said.ok && said.stderr.contains("Warning: seen by the hook"),
        "{said:?}"
    );
    let review = hook.last();
    texts(
        &review,
        &[
            ("/kind", "AdmissionReview"),
            ("/apiVersion", "admission.k8s.io/v1"),
            ("/request/operation", "CREATE"),
            ("/request/kind/kind", "ConfigMap"),
            ("/request/resource/resource", "configmaps"),
            ("/request/requestResource/version", "v1"),
            ("/request/namespace", "default"),
            ("/request/name", "a"),
            ("/request/userInfo/username", "kubernetes-admin"),
            ("/request/object/data/k", "v"),
            ("/request/options/kind", "CreateOptions"),
        ],
    )?;
    ensure!(review["request"]["oldObject"].is_null(), "{review}");
    ensure!(review["request"]["dryRun"] == false, "{review}");
    configure(&server, &[hook.configuration(VALIDATING, "deny", "Ignore")])?;
    for arguments in [
        ["create", "configmap", "b"].as_slice(),
        &["create", "configmap", "b", "--dry-run=server"],
        &["label", "configmap", "a", "x=y"],
        &["delete", "configmap", "a"],
    ] {
        let said = server.refused(arguments, "")?;
        ensure!(
            said.contains("admission webhook \"hook.example.com\" denied the request: not today"),
            "{arguments:?}: {said}"
        );
    }
    texts(
        &hook.last(),
        &[
            ("/request/operation", "DELETE"),
            ("/request/oldObject/data/k", "v"),
            ("/request/options/kind", "DeleteOptions"),
        ],
    )?;
    let dry = hook
        .seen()
        .iter()
        .any(|review| review["request"]["dryRun"] == true);
    ensure!(dry, "no dry run was told");
    // others are none of its business
    server.kubectl(&["create", "secret", "generic", "s"])?;
    let mut elsewhere = hook.configuration(VALIDATING, "deny", "Fail");
    elsewhere["webhooks"][0]["namespaceSelector"] = json!({"matchLabels": {"hooked": "yes"}});
    configure(&server, &[elsewhere])?;
    server.kubectl(&["create", "configmap", "b"])?;
    server.kubectl(&["label", "namespace", "default", "hooked=yes"])?;
    server.refused(&["create", "configmap", "c"], "")?;
    let mut labelled = hook.configuration(VALIDATING, "deny", "Fail");
    labelled["webhooks"][0]["objectSelector"] = json!({"matchLabels": {"guarded": "yes"}});
    configure(&server, &[labelled])?;
    server.kubectl(&["create", "configmap", "c"])?;
    // neither the label's coming nor its going gets past it
    server.refused(&["label", "configmap", "c", "guarded=yes"], "")?;
    configure(&server, &[])?;
    server.kubectl(&["label", "configmap", "c", "guarded=yes"])?;
    Ok(())
}

#[test]
fn webhooks_change_what_is_written_and_are_asked_again() -> Result<()> {
    let server = Server::start("memory")?;
    let hook = Webhook::start(server.dir())?;
    // the second adds a label below those that the first has set; the first wants to see that, too
    let mut first = hook.configuration(MUTATING, "label", "Fail");
    first["metadata"]["name"] = "a".into();
    let mut again = first["webhooks"][0].clone();
    again["name"] = "later.example.com".into();
    again["clientConfig"]["url"] = format!("https://{}/later", hook.address).into();
    if let Some(webhooks) = first["webhooks"].as_array_mut() {
        webhooks[0]["reinvocationPolicy"] = "IfNeeded".into();
        webhooks.push(again);
    }
    configure(&server, &[first])?;
    let before = hook.seen().len();
    server.kubectl(&["create", "configmap", "c"])?;
    let changed = server.json(&["get", "configmap", "c", "--show-managed-fields"])?;
    ensure!(
        changed["metadata"]["labels"]["hooked"] == "yes",
        "{changed}"
    );
    ensure!(
        !changed["metadata"]["managedFields"]
            .to_string()
            .contains("hooked"),
        "{changed}"
    );
    ensure!(hook.seen().len() == before + 3, "{}", hook.seen().len());
    // what it makes of an object is looked at as what a client sends
    for (path, why) in [
        ("form", "cannot unmarshal"),
        ("rename", "it may not change the name"),
        ("rubbish", "admission webhook \"hook.example.com\""),
    ] {
        configure(&server, &[hook.configuration(MUTATING, path, "Ignore")])?;
        let said = server.refused(&["create", "configmap", path, "--from-literal=a=b"], "")?;
        ensure!(said.contains(why), "{path}: {said}");
    }
    // of a Scale, too
    let mut scale = hook.configuration(MUTATING, "replicas", "Fail");
    scale["webhooks"][0]["rules"] = json!([{
        "operations": ["UPDATE"],
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "resources": ["deployments/scale"],
    }]);
    configure(&server, &[scale])?;
    server.kubectl(&["create", "deployment", "d", "--image=i"])?;
    server.kubectl(&["scale", "deployment", "d", "--replicas=2"])?;
    let deployment = server.json(&["get", "deployment", "d"])?;
    ensure!(deployment["spec"]["replicas"] == 4, "{deployment}");
    texts(
        &hook.last(),
        &[
            ("/request/kind/kind", "Scale"),
            ("/request/subResource", "scale"),
            ("/request/object/kind", "Scale"),
        ],
    )?;
    Ok(())
}

/// SEC-API-02, SEC-API-10.
#[test]
fn a_webhook_that_fails_means_what_its_policy_says_sec_api_10() -> Result<()> {
    let server = Server::start("memory")?;
    let hook = Webhook::start(server.dir())?;
    for (path, why) in [
        ("hang", "context deadline exceeded"),
        ("elsewhere", "302"),
        ("huge", "length limit"),
        ("uid", "response.uid"),
        ("none", "response.uid"),
    ] {
        configure(&server, &[hook.configuration(VALIDATING, path, "Fail")])?;
        let begun = Instant::now();
        let said = server.refused(&["create", "configmap", path], "")?;
        ensure!(
            said.contains("failed calling webhook \"hook.example.com\"") && said.contains(why),
            "{path}: {said}"
        );
        ensure!(
            begun.elapsed() < Duration::from_secs(20),
            "{path}: {:?}",
            begun.elapsed()
        );
        configure(&server, &[hook.configuration(VALIDATING, path, "Ignore")])?;
        server.kubectl(&["create", "configmap", path])?;
    }
    let redirected = hook.seen().iter().any(|review| review["followed"] == true);
    ensure!(!redirected, "a redirect was followed");
    let with = |change: &dyn Fn(&mut Value)| {
        let mut configuration = hook.configuration(VALIDATING, "allow", "Fail");
        change(&mut configuration["webhooks"][0]);
        configuration
    };
    let foreign = server.bundle()?;
    for (name, change, why) in [
        (
            "foreign",
            &(|hook: &mut Value| hook["clientConfig"]["caBundle"] = foreign.as_str().into())
                as &dyn Fn(&mut Value),
            "certificate",
        ),
        (
            "bare",
            &|hook| {
                hook["clientConfig"]
                    .as_object_mut()
                    .map(|client| client.remove("caBundle"));
            },
            "no caBundle",
        ),
        (
            "gone",
            &|hook| hook["clientConfig"]["url"] = "https://127.0.0.1:1/".into(),
            "connection refused",
        ),
        (
            "metadata",
            &|hook| hook["clientConfig"]["url"] = "https://169.254.169.254/".into(),
            "address not allowed",
        ),
        (
            "nobody",
            &|hook| {
                hook["clientConfig"] = json!({"service": {"namespace": "default", "name": "nobody"}, "caBundle": foreign});
            },
            "services \"nobody\" not found",
        ),
    ] {
        configure(&server, &[with(change)])?;
        let said = server.refused(&["create", "configmap", name], "")?;
        ensure!(said.contains(why), "{name}: {said}");
    }
    // and it can be mended
    configure(&server, &[])?;
    server.kubectl(&["create", "configmap", "mended"])?;
    for (change, why) in [
        (
            &(|hook: &mut Value| {
                hook["matchConditions"] = json!([{"name": "a", "expression": "nope(object)"}]);
            }) as &dyn Fn(&mut Value),
            "undeclared reference to 'nope'",
        ),
        (
            &|hook| hook["sideEffects"] = "Some".into(),
            "supported values: \"None\", \"NoneOnDryRun\"",
        ),
        (
            &|hook| hook["clientConfig"]["url"] = "http://127.0.0.1/".into(),
            "'https' is the only allowed URL scheme",
        ),
        (
            &|hook| hook["timeoutSeconds"] = 31.into(),
            "between 1 and 30 seconds",
        ),
        (
            &|hook| hook["admissionReviewVersions"] = json!(["v1beta1"]),
            "must include at least one of v1",
        ),
    ] {
        let said = server.refused(&["create", "-f", "-"], &with(change).to_string())?;
        ensure!(said.contains(why), "{said}");
    }
    Ok(())
}

/// Every way to the same object leads past the webhook.
#[test]
fn no_path_leads_past_a_webhook_sec_api_10() -> Result<()> {
    let server = Server::start("memory")?;
    let hook = Webhook::start(server.dir())?;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    server.kubectl_with(&["create", "-f", "-"], &pod.to_string())?;
    let status = "{\"status\":{\"phase\":\"Running\"}}";
    let patch = ["--subresource=status", "--type=merge", "-p", status];
    server.kubectl(&[["patch", "pod", "p"].as_slice(), &patch].concat())?;
    server.kubectl(&["create", "deployment", "web", "--image=i"])?;
    server.kubectl(&["autoscale", "deployment", "web", "--max=7"])?;
    server.kubectl(&["create", "configmap", "owner"])?;
    let mut all = hook.configuration(VALIDATING, "deny", "Fail");
    all["webhooks"][0]["rules"] = json!([
        {
            "operations": ["*"],
            "apiGroups": [""],
            "apiVersions": ["v1"],
            "resources": ["pods", "pods/*", "serviceaccounts/token"],
        },
        // said of v1, asked by v2: the objects are the same
        {
            "operations": ["*"],
            "apiGroups": ["autoscaling"],
            "apiVersions": ["v1"],
            "resources": ["horizontalpodautoscalers"],
        },
    ]);
    configure(&server, &[all])?;
    for arguments in [
        ["label", "pod", "p", "a=b"].as_slice(),
        &[
            "patch",
            "pod",
            "p",
            "--subresource=status",
            "--type=merge",
            "-p",
            status,
        ],
        &[
            "patch",
            "pod",
            "p",
            "--type=json",
            "-p",
            "[{\"op\":\"add\",\"path\":\"/metadata/labels\",\"value\":{\"a\":\"b\"}}]",
        ],
        &["apply", "--server-side", "-f", "-"],
        &["debug", "p", "--image=i"],
        &["exec", "p", "--", "true"],
        &["attach", "p"],
        &["port-forward", "p", "1:1"],
        &["delete", "pod", "p", "--now"],
        &["create", "token", "default"],
        &["label", "horizontalpodautoscaler", "web", "a=b"],
        &[
            "create",
            "--raw",
            "/api/v1/namespaces/default/pods/p/eviction",
            "-f",
            "-",
        ],
        &[
            "create",
            "--raw",
            "/api/v1/namespaces/default/pods/p/binding",
            "-f",
            "-",
        ],
        &["get", "--raw", "/api/v1/namespaces/default/pods/p/proxy/"],
    ] {
        let stdin = match arguments {
            [.., path, _, _] if path.ends_with("eviction") => {
                json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}})
            }
            [.., path, _, _] if path.ends_with("binding") => {
                json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"name": "n"}})
            }
            _ => {
                let mut pod = pod.clone();
                pod["metadata"]["annotations"] = json!({"a": "b"});
                pod
            }
        };
        let said = server.refused(arguments, &stdin.to_string())?;
        ensure!(said.contains("not today"), "{arguments:?}: {said}");
    }
    texts(
        &hook.of("horizontalpodautoscalers"),
        &[
            ("/request/resource/version", "v1"),
            ("/request/requestResource/version", "v2"),
            ("/request/object/apiVersion", "autoscaling/v1"),
        ],
    )?;
    let exec = hook
        .seen()
        .into_iter()
        .find(|review| review["request"]["subResource"] == "exec");
    let exec = exec.unwrap_or_default();
    texts(
        &exec,
        &[
            ("/request/operation", "CONNECT"),
            ("/request/object/kind", "PodExecOptions"),
            ("/request/object/command/0", "true"),
        ],
    )?;
    // A namespace that goes takes what is in it by deletes that are asked about, too.
    server.kubectl(&["create", "namespace", "gone"])?;
    let mut kept = hook.configuration(VALIDATING, "deny", "Fail");
    kept["webhooks"][0]["rules"][0]["operations"] = json!(["DELETE"]);
    server.kubectl(&["create", "configmap", "kept", "-n", "gone"])?;
    configure(&server, &[kept])?;
    server.kubectl(&["delete", "namespace", "gone", "--wait=false"])?;
    let begun = Instant::now();
    while !hook
        .seen()
        .iter()
        .any(|review| review["request"]["name"] == "kept")
    {
        ensure!(begun.elapsed() < Duration::from_secs(20), "nobody asked");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.kubectl(&["get", "configmap", "kept", "-n", "gone"])?;
    configure(&server, &[])?;
    server.kubectl(&["wait", "--for=delete", "namespace/gone", "--timeout=60s"])?;
    Ok(())
}
