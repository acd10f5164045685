//! kubectl's commands, one after the other, and what each prints.

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;
use serde_json::json;

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx:1.9
        ports: [{containerPort: 80}]
";

#[test]
fn it_says_what_it_is_and_what_it_serves() -> Result<()> {
    let server = Server::start("memory")?;
    let version = server.json(&["version"])?;
    ensure!(version["serverVersion"]["minor"] == "36", "{version}");
    let resources = server.kubectl(&["api-resources"])?;
    for line in [
        "pods                                po           v1                                true         Pod",
        "deployments                         deploy       apps/v1                           true         Deployment",
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        ensure!(
            resources
                .lines()
                .any(|line| line.split_whitespace().collect::<Vec<_>>() == words),
            "{line}\n{resources}"
        );
    }
    ensure!(server.kubectl(&["api-versions"])?.contains("batch/v1\n"));
    for path in ["/healthz", "/livez", "/readyz"] {
        ensure!(server.kubectl(&["get", "--raw", path])? == "ok");
    }
    let verbose = server.kubectl(&["get", "--raw", "/readyz?verbose"])?;
    ensure!(verbose.contains("[+]etcd ok\n"), "{verbose}");
    ensure!(verbose.ends_with("readyz check passed\n"), "{verbose}");
    let namespaces = server.kubectl(&["get", "namespaces", "-o", "name"])?;
    ensure!(
        namespaces
            == "namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system\n",
        "{namespaces}"
    );
    Ok(())
}

/// CM-01, CM-02, SC-01, SC-02: their bodies are protobuf.
#[test]
fn configmaps_and_secrets_are_created() -> Result<()> {
    let server = Server::start("memory")?;
    std::fs::write(server.dir().join("cni-conf.json"), "{\"a\": 1}\n")?;
    std::fs::write(server.dir().join("config.json"), "{\"auths\": {}}")?;
    for (arguments, said) in [
        (
            vec![
                "create",
                "configmap",
                "kube-flannel-cfg",
                "--from-file=cni-conf.json",
                "-n",
                "kube-system",
            ],
            "configmap/kube-flannel-cfg created\n",
        ),
        (
            vec![
                "create",
                "configmap",
                "special-config",
                "--from-literal=special.how=very",
                "--from-literal=special.type=charm",
            ],
            "configmap/special-config created\n",
        ),
        (
            vec![
                "create",
                "secret",
                "generic",
                "myregistrykey",
                "--from-file=.dockerconfigjson=config.json",
                "--type=kubernetes.io/dockerconfigjson",
            ],
            "secret/myregistrykey created\n",
        ),
        (
            vec![
                "create",
                "secret",
                "generic",
                "prod-db-secret",
                "--from-literal=username=produser",
                "--from-literal=password=Y4nys7f11",
            ],
            "secret/prod-db-secret created\n",
        ),
    ] {
        let is = server.kubectl(&arguments)?;
        ensure!(is == said, "{arguments:?}: {is}");
    }
    let map = server.json(&["get", "configmap", "special-config"])?;
    ensure!(map["data"]["special.how"] == "very", "{map}");
    // SC-03
    let secret = server.json(&["get", "secret", "prod-db-secret"])?;
    ensure!(secret["data"]["password"] == "WTRueXM3ZjEx", "{secret}");
    let again = server.refused(
        &[
            "create",
            "configmap",
            "special-config",
            "--from-literal=a=b",
        ],
        "",
    )?;
    ensure!(
        again
            == "error: failed to create configmap: configmaps \"special-config\" already exists\n",
        "{again}"
    );
    Ok(())
}

/// BO-11, MI-05, among others: what is applied again changes nothing.
#[test]
fn a_deployment_is_applied_looked_at_changed_and_deleted() -> Result<()> {
    let server = Server::start("memory")?;
    let apply = || server.kubectl_with(&["apply", "-f", "-"], DEPLOYMENT);
    ensure!(apply()? == "deployment.apps/web created\n");
    let before = server.json(&["get", "deployment", "web"])?;
    ensure!(apply()? == "deployment.apps/web unchanged\n");
    let after = server.json(&["get", "deployment", "web"])?;
    ensure!(before == after, "an apply that changes nothing has written");
    let table = server.kubectl(&["get", "deployments"])?;
    let mut lines = table.lines();
    ensure!(
        lines
            .next()
            .is_some_and(|line| line.split_whitespace().collect::<Vec<_>>()
                == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]),
        "{table}"
    );
    ensure!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("web    0/2 ")),
        "{table}"
    );
    for (arguments, said) in [
        (
            vec!["scale", "deployment", "web", "--replicas=5"],
            "deployment.apps/web scaled\n",
        ),
        // DP-04
        (
            vec![
                "set",
                "image",
                "deployment.v1.apps/web",
                "nginx=nginx:1.9.1",
            ],
            "deployment.apps/web image updated\n",
        ),
        (
            vec!["label", "deployment", "web", "tier=front"],
            "deployment.apps/web labeled\n",
        ),
        (
            vec!["annotate", "deployment", "web", "why=test"],
            "deployment.apps/web annotated\n",
        ),
        (
            vec![
                "patch",
                "deployment",
                "web",
                "-p",
                "{\"spec\":{\"paused\":true}}",
            ],
            "deployment.apps/web patched\n",
        ),
        (
            vec![
                "patch",
                "deployment",
                "web",
                "--type=json",
                "-p",
                "[{\"op\":\"remove\",\"path\":\"/spec/paused\"}]",
            ],
            "deployment.apps/web patched\n",
        ),
        (
            vec![
                "patch",
                "deployment",
                "web",
                "--type=merge",
                "-p",
                "{\"spec\":{\"minReadySeconds\":3}}",
            ],
            "deployment.apps/web patched\n",
        ),
        (
            vec!["expose", "deployment", "web", "--port=80"],
            "service/web exposed\n",
        ),
        (
            vec!["autoscale", "deployment", "web", "--max=7", "--cpu=80%"],
            "horizontalpodautoscaler.autoscaling/web autoscaled\n",
        ),
    ] {
        let is = server.kubectl(&arguments)?;
        ensure!(is == said, "{arguments:?}: {is}");
    }
    let now = server.json(&["get", "deployment", "web"])?;
    ensure!(now["spec"]["replicas"] == 5, "{now}");
    ensure!(now["spec"]["minReadySeconds"] == 3, "{now}");
    let container = &now["spec"]["template"]["spec"]["containers"][0];
    ensure!(container["image"] == "nginx:1.9.1", "{now}");
    // the patch merged by name: the ports are still there
    ensure!(container["ports"][0]["containerPort"] == 80, "{now}");
    let described = server.kubectl(&["describe", "deployment", "web"])?;
    ensure!(described.contains("nginx:1.9.1"), "{described}");
    let service = server.json(&["get", "service", "web"])?;
    ensure!(
        service["spec"]["clusterIP"]
            .as_str()
            .is_some_and(|ip| ip.starts_with("10.96.")),
        "{service}"
    );
    ensure!(
        server.kubectl(&["delete", "deployment", "web"])?
            == "deployment.apps \"web\" deleted from default namespace\n"
    );
    let gone = server.refused(&["get", "deployment", "web"], "")?;
    ensure!(
        gone == "Error from server (NotFound): deployments.apps \"web\" not found\n",
        "{gone}"
    );
    Ok(())
}

#[test]
fn a_typing_error_is_told_and_nothing_is_made() -> Result<()> {
    let server = Server::start("memory")?;
    let wrong = DEPLOYMENT.replace("replicas:", "replicass:");
    let said = server.refused(&["create", "-f", "-"], &wrong)?;
    ensure!(
        said.contains(
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replicass\""
        ),
        "{said}"
    );
    let warned = server.ask(
        &["create", "-f", "-", "--validate=warn", "--dry-run=server"],
        &wrong,
    )?;
    ensure!(warned.ok, "{warned:?}");
    ensure!(
        warned
            .stderr
            .contains("Warning: unknown field \"spec.replicass\""),
        "{warned:?}"
    );
    let none = server.kubectl(&["get", "deployments", "-o", "name"])?;
    ensure!(none.is_empty(), "{none}");
    Ok(())
}

#[test]
fn server_side_apply_owns_its_fields() -> Result<()> {
    let server = Server::start("memory")?;
    let map = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{k: {value}}}\n")
    };
    let apply = |manager: &str, value: &str, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut arguments = vec!["apply", "--server-side", "-f", "-", manager.as_str()];
        arguments.extend(more);
        server.ask(&arguments, &map(value))
    };
    ensure!(apply("one", "a", &[])?.stdout == "configmap/m serverside-applied\n");
    let before = server.json(&["get", "configmap", "m", "--show-managed-fields"])?;
    ensure!(apply("one", "a", &[])?.ok);
    let after = server.json(&["get", "configmap", "m", "--show-managed-fields"])?;
    ensure!(before == after, "an apply that changes nothing has written");
    let conflict = apply("two", "b", &[])?;
    ensure!(
        !conflict.ok && conflict.stderr.contains("conflict with \"one\": .data.k"),
        "{conflict:?}"
    );
    ensure!(apply("two", "b", &["--force-conflicts"])?.ok);
    let now = server.json(&["get", "configmap", "m"])?;
    ensure!(now["data"]["k"] == "b", "{now}");
    Ok(())
}

#[test]
fn questions_of_access_are_answered() -> Result<()> {
    let server = Server::start("memory")?;
    ensure!(server.kubectl(&["auth", "can-i", "create", "pods"])? == "yes\n");
    let me = server.kubectl(&["auth", "whoami"])?;
    ensure!(me.contains("kubernetes-admin"), "{me}");
    let said = server.refused(&["get", "pods", "--as=nobody"], "")?;
    ensure!(
        said == "Error from server (Forbidden): pods is forbidden: User \"nobody\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"\n",
        "{said}"
    );
    Ok(())
}

#[test]
fn diff_edit_explain_replace_and_wait_work() -> Result<()> {
    let server = Server::start("memory")?;
    server.kubectl_with(&["apply", "-f", "-"], DEPLOYMENT)?;
    let other = DEPLOYMENT.replace("replicas: 2", "replicas: 3");
    let diff = server.ask(&["diff", "-f", "-"], &other)?;
    ensure!(
        diff.stdout.contains("-  replicas: 2\n+  replicas: 3\n"),
        "{diff:?}"
    );
    let explained = server.kubectl(&["explain", "deployment.spec.replicas"])?;
    ensure!(
        explained.contains("FIELD: replicas <integer>"),
        "{explained}"
    );
    let mut edit = server.command(&["edit", "deployment", "web"])?;
    let edited = edit
        .env("KUBE_EDITOR", "sed -i s/replicas:.2/replicas:\\ 4/")
        .output()?;
    ensure!(
        edited.stdout == b"deployment.apps/web edited\n",
        "{edited:?}"
    );
    let object = server.kubectl(&["get", "deployment", "web", "-o", "yaml"])?;
    ensure!(
        server.kubectl_with(&["replace", "-f", "-"], &object)? == "deployment.apps/web replaced\n"
    );
    // the object has changed since
    server.kubectl(&["label", "deployment", "web", "a=b"])?;
    let stale = server.refused(
        &["replace", "-f", "-"],
        &object.replace("resourceVersion: \"", "resourceVersion: \"1"),
    )?;
    ensure!(
        stale.contains("the object has been modified; please apply your changes to the latest version and try again"),
        "{stale}"
    );
    server.kubectl(&[
        "wait",
        "deployment",
        "web",
        "--for=jsonpath={.spec.replicas}=4",
        "--timeout=10s",
    ])?;
    Ok(())
}

#[test]
fn a_scaler_is_the_same_in_both_versions() -> Result<()> {
    const V1: &str = "horizontalpodautoscalers.v1.autoscaling";
    let server = Server::start("memory")?;
    let manifest = json!({
        "apiVersion": "autoscaling/v1",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web"},
        "spec": {
            "maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "targetCPUUtilizationPercentage": 60,
        },
    });
    let manifest = manifest.to_string();
    server.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    let said = server.kubectl_with(&["apply", "-f", "-"], &manifest)?;
    ensure!(said.contains("unchanged"), "{said}");
    let v2 = server.json(&["get", "hpa", "web"])?;
    ensure!(v2["apiVersion"] == "autoscaling/v2", "{v2}");
    ensure!(
        v2.pointer("/spec/metrics/0/resource/target/averageUtilization") == Some(&json!(60)),
        "{v2}"
    );
    // what v1 has no field for survives a write in v1
    let memory = "[{\"op\":\"add\",\"path\":\"/spec/metrics/-\",\"value\":{\"type\":\"Resource\",\"resource\":{\"name\":\"memory\",\"target\":{\"type\":\"AverageValue\",\"averageValue\":\"1Gi\"}}}}]";
    server.kubectl(&["patch", "hpa", "web", "--type=json", "-p", memory])?;
    server.kubectl(&["label", V1, "web", "a=b"])?;
    let v2 = server.json(&["get", "hpa", "web"])?;
    let metrics = v2["spec"]["metrics"].as_array().map_or(0, Vec::len);
    ensure!(metrics == 2 && v2["metadata"]["labels"]["a"] == "b", "{v2}");
    for (kind, version) in [("hpa", "autoscaling/v2"), (V1, "autoscaling/v1")] {
        let list = server.json(&["get", kind])?;
        ensure!(list["items"][0]["apiVersion"] == version, "{list}");
        let table = server.kubectl(&["get", kind])?;
        ensure!(
            table.contains("cpu: <unknown>/60%") && table.contains("1Gi"),
            "{table}"
        );
    }
    let bad = manifest.replace("\"maxReplicas\":3", "\"maxReplicas\":0");
    let said = server.refused(&["create", "-f", "-"], &bad.replace("\"web\"", "\"bad\""))?;
    ensure!(
        said.contains("spec.maxReplicas: Required value: must be set and greater than 0"),
        "{said}"
    );
    Ok(())
}

/// Stock kube-controller-manager and kube-scheduler list these, or look for them, and tell each few seconds that they are not there.
#[test]
fn what_stock_controllers_look_for_is_there() -> Result<()> {
    let server = Server::start("memory")?;
    for (name, key, begins) in [
        (
            "extension-apiserver-authentication",
            "client-ca-file",
            "-----BEGIN CERTIFICATE-----",
        ),
        (
            "kube-apiserver-legacy-service-account-token-tracking",
            "since",
            "20",
        ),
    ] {
        let map = server.json(&["get", "configmap", "-n", "kube-system", name])?;
        let value = map["data"][key].as_str().unwrap_or_default();
        ensure!(value.starts_with(begins), "{map}");
    }
    for kind in [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ] {
        let list = server.json(&["get", kind])?;
        ensure!(list["items"] == json!([]), "{list}");
    }
    Ok(())
}
