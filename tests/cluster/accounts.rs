//! `berth controllers` as upstream's manager is run: one identity that looks, and an account for each controller that writes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use berth_tests::cluster::{Component, Server};

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
