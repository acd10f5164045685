//! `berth controllers` as upstream's manager is run: one identity that looks, and an account for each controller that writes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use berth_tests::cluster::{Component, Kubectl, Server};

const WITHIN: Duration = Duration::from_secs(60);
const CONTROLLERS: &str = "deployment-controller,replicaset-controller";
const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: web}]}
"#;

fn eventually(server: &Server, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + WITHIN;
    while !holds()? {
        if Instant::now() > until {
            bail!("{what}: not within {WITHIN:?}\n{}", log(server));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn log(server: &Server) -> String {
    fs::read_to_string(server.dir().join("controllers.log")).unwrap_or_default()
}

#[test]
fn each_controller_writes_by_a_token_of_its_own_and_the_manager_may_not() -> Result<()> {
    let server = Server::start("memory")?;
    let manager = server.component_kubeconfig("kube-controller-manager")?;
    let start = |more: &[&str]| {
        let arguments = [&["--controllers", CONTROLLERS][..], more].concat();
        Component::start_at(&server, &manager, "controllers", &arguments)
    };
    let pods = |count: usize| {
        let pods = server.json(&["get", "pods", "-l", "app=web"])?;
        Ok(pods["items"].as_array().map(Vec::len) == Some(count))
    };
    let mut controllers = start(&["--use-service-account-credentials"])?;
    server.kubectl_with(&["apply", "-f", "-"], WEB)?;
    eventually(&server, "two pods are made", || pods(2))?;
    let account = "system:serviceaccount:kube-system:replicaset-controller";
    let audit = fs::read_to_string(server.data().join("audit.log"))?;
    let created = audit.lines().any(|line| {
        line.contains(account)
            && line.contains("/api/v1/namespaces/default/pods")
            && line.contains("\"create\"")
    });
    ensure!(created, "{audit}");
    ensure!(
        !log(&server).contains("forbidden: User"),
        "they may all that they do: {}",
        log(&server)
    );
    controllers.stop()?;

    // without accounts it has but its own rights: to look
    let mut alone = start(&[])?;
    server.kubectl(&["scale", "deployment", "web", "--replicas=3"])?;
    eventually(&server, "it is refused", || {
        let refused = [
            "forbidden: User",
            "system:kube-controller-manager",
            "replicasets",
        ];
        Ok(log(&server)
            .lines()
            .any(|line| refused.iter().all(|word| line.contains(word))))
    })?;
    ensure!(pods(2)?);
    alone.stop()?;
    let _again = start(&["--use-service-account-credentials"])?;
    eventually(&server, "the third is made", || pods(3))
}

fn token_secret(name: &str, account: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Secret
metadata: {{name: {name}, annotations: {{kubernetes.io/service-account.name: {account}}}}}
type: kubernetes.io/service-account-token
"#
    )
}

/// What it has under `key`, decoded; empty: nothing.
fn kept(server: &Server, secret: &str, key: &str) -> Result<String> {
    let key = key.replace('.', "\\.");
    let template = format!("jsonpath={{.data.{key}}}");
    let said = server.ask(&["get", "secret", secret, "-o", &template], "")?;
    let decoded = std::process::Command::new("sh")
        .args(["-c", "printf %s \"$1\" | base64 -d", "sh", &said.stdout])
        .output()?;
    Ok(String::from_utf8(decoded.stdout)?)
}

fn token(server: &Server, secret: &str) -> Result<String> {
    let mut token = String::new();
    eventually(server, "it has a token", || {
        token = kept(server, secret, "token")?;
        Ok(!token.is_empty())
    })?;
    Ok(token)
}

/// Who the server says that one is who shows `token`; none: it does not know them.
fn who(server: &Server, token: &str) -> Result<Option<String>> {
    let path = server.dir().join("shown.kubeconfig");
    server.write_kubeconfig(&path, &serde_json::json!({"token": token}))?;
    let client = Kubectl {
        kubeconfig: path,
        ..server.client()
    };
    let template = "jsonpath={.status.userInfo.username}";
    let said = client.ask(&["auth", "whoami", "-o", template], "")?;
    if said.ok {
        return Ok(Some(said.stdout));
    }
    ensure!(
        said.stderr.contains("Unauthorized") || said.stderr.contains("You must be logged in"),
        "{said:?}"
    );
    Ok(None)
}

/// As upstream runs the tokens controller: by the manager itself, which has an account for all others.
#[test]
fn a_secret_gets_the_token_of_the_account_that_it_names_and_goes_with_it() -> Result<()> {
    let server = Server::start("memory")?;
    let manager = server.component_kubeconfig("kube-controller-manager")?;
    let pki = server.data().join("pki");
    let file = |name: &str| pki.join(name).display().to_string();
    let start = || {
        #[rustfmt::skip]
        let arguments = [
            "--controllers=serviceaccount-token-controller", "--use-service-account-credentials",
            "--service-account-private-key-file", &file("token.key"), "--root-ca-file", &file("ca.crt"),
        ];
        Component::start_at(&server, &manager, "controllers", &arguments)
    };
    let gone = |name: &str| {
        let get = ["get", "secret", name, "--ignore-not-found", "-o", "name"];
        eventually(&server, &format!("{name} goes"), || {
            Ok(server.kubectl(&get)?.is_empty())
        })
    };
    let robot = Some("system:serviceaccount:default:robot".to_owned());
    let mut controllers = start()?;
    server.kubectl(&["create", "serviceaccount", "robot"])?;
    server.kubectl_with(&["apply", "-f", "-"], &token_secret("robot-token", "robot"))?;
    let first = token(&server, "robot-token")?;
    ensure!(who(&server, &first)? == robot);
    ensure!(kept(&server, "robot-token", "namespace")? == "default");
    let ca = fs::read_to_string(pki.join("ca.crt"))?;
    ensure!(kept(&server, "robot-token", "ca.crt")? == ca);
    let account = server.json(&["get", "serviceaccount", "robot"])?;
    let secret = server.json(&["get", "secret", "robot-token"])?;
    ensure!(
        secret["metadata"]["annotations"]["kubernetes.io/service-account.uid"]
            == account["metadata"]["uid"],
        "{secret:#}"
    );
    let described = server.kubectl(&["describe", "secret", "robot-token"])?;
    ensure!(
        described.contains(&first) && described.contains(" robot\n"),
        "{described}"
    );

    // what is taken out of it is put in again, and what was taken out holds no more
    let patch = r#"{"data": {"token": null, "ca.crt": "b3RoZXI="}}"#;
    server.kubectl(&["patch", "secret", "robot-token", "-p", patch])?;
    eventually(&server, "the CA is put right", || {
        Ok(kept(&server, "robot-token", "ca.crt")? == ca)
    })?;
    let second = token(&server, "robot-token")?;
    ensure!(who(&server, &second)? == robot && who(&server, &first)?.is_none());
    // what somebody has put in stays
    let patch = r#"{"data": {"namespace": "ZWxzZXdoZXJl"}}"#;
    server.kubectl(&["patch", "secret", "robot-token", "-p", patch])?;
    server.kubectl_with(
        &["apply", "-f", "-"],
        &token_secret("robot-token-2", "robot"),
    )?;
    let other = token(&server, "robot-token-2")?;
    ensure!(who(&server, &other)? == robot && other != second);
    ensure!(kept(&server, "robot-token", "namespace")? == "elsewhere");

    // one that goes takes its token along, and is mentioned no more
    let patch = r#"{"secrets": [{"name": "robot-token"}, {"name": "robot-token-2"}]}"#;
    server.kubectl(&["patch", "serviceaccount", "robot", "-p", patch])?;
    server.kubectl(&["delete", "secret", "robot-token-2"])?;
    eventually(&server, "its token ends", || {
        Ok(who(&server, &other)?.is_none())
    })?;
    eventually(&server, "it is mentioned no more", || {
        let account = server.json(&["get", "serviceaccount", "robot"])?;
        Ok(account["secrets"] == serde_json::json!([{"name": "robot-token"}]))
    })?;

    // one without an account goes; one of the type that is none of its is left alone
    server.kubectl_with(&["apply", "-f", "-"], &token_secret("nobodys", "nobody"))?;
    gone("nobodys")?;
    let refused = server.refused(&["apply", "-f", "-"], &token_secret("unnamed", "\"\""))?;
    ensure!(
        refused.contains("metadata.annotations[kubernetes.io/service-account.name]: Required"),
        "{refused}"
    );
    server.kubectl(&[
        "create",
        "secret",
        "generic",
        "opaque",
        "--from-literal=a=b",
    ])?;

    // while nobody looks, the account is made anew: what was its is not the new one's
    controllers.kill_9()?;
    server.kubectl(&["delete", "serviceaccount", "robot"])?;
    server.kubectl(&["create", "serviceaccount", "robot"])?;
    server.kubectl_with(
        &["apply", "-f", "-"],
        &token_secret("robot-token-3", "robot"),
    )?;
    let _again = start()?;
    gone("robot-token")?;
    ensure!(who(&server, &second)?.is_none());
    let third = token(&server, "robot-token-3")?;
    ensure!(who(&server, &third)? == robot);
    server.kubectl(&["delete", "serviceaccount", "robot"])?;
    gone("robot-token-3")?;
    ensure!(who(&server, &third)?.is_none());
    ensure!(!server.kubectl(&["get", "secret", "opaque"])?.is_empty());
    ensure!(
        !log(&server).contains("forbidden: User"),
        "{}",
        log(&server)
    );
    Ok(())
}
