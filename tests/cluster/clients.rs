//! Clients that are not kubectl: helm, and Kubernetes' own client for Python.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use berth_tests::cluster::{client_packages, kubectl_path};

use crate::transcripts::Shell;

const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/clients");

/// A chart is installed, upgraded, rolled back and uninstalled.
#[test]
fn helm_keeps_a_release() -> Result<()> {
    let helm = kubectl_path()?.with_file_name("helm");
    ensure!(
        helm.exists(),
        "no helm at {}: hack/deps --test fetches it",
        helm.display()
    );
    let shell = Shell::start()?;
    let helm = helm.to_str().context("a path that is no text")?;
    let steps: [(&str, &[&str]); 11] = [
        (
            "HELM install shop FILES/chart",
            &["STATUS: deployed", "REVISION: 1"],
        ),
        (
            "kubectl get deployment,service,ingress,configmap,serviceaccount shop -o name",
            &[
                "deployment.apps/shop",
                "service/shop",
                "ingress.networking.k8s.io/shop",
                "configmap/shop",
                "serviceaccount/shop",
            ],
        ),
        (
            "HELM upgrade shop FILES/chart --set replicas=4 --set ingress=false",
            &["REVISION: 2"],
        ),
        (
            "kubectl get deployment shop -o jsonpath={.spec.replicas}",
            &["4"],
        ),
        (
            "kubectl get ingress",
            &["No resources found in default namespace."],
        ),
        (
            "HELM history shop",
            &["superseded", "deployed", "Upgrade complete"],
        ),
        (
            "HELM rollback shop 1",
            &["Rollback was a success! Happy Helming!"],
        ),
        (
            "kubectl get deployment,ingress shop -o jsonpath='{.items[*].spec.replicas} {.items[*].kind}'",
            &["2 Deployment Ingress"],
        ),
        ("HELM status shop", &["STATUS: deployed", "REVISION: 3"]),
        ("HELM uninstall shop", &["release \"shop\" uninstalled"]),
        (
            "kubectl get deployment,ingress,secret",
            &["No resources found in default namespace."],
        ),
    ];
    for (command, says) in steps {
        let command = command.replace("HELM", helm).replace("FILES", FILES);
        let (succeeded, said) = shell.run(&command)?;
        ensure!(succeeded, "{command}: {said}");
        for part in says {
            ensure!(said.contains(part), "{command}: {said}");
        }
    }
    Ok(())
}

/// What the script says with its asserts.
#[test]
fn the_python_client_makes_watches_patches_and_applies() -> Result<()> {
    let packages = client_packages()?;
    let shell = Shell::start()?;
    let script = Path::new(FILES).join("client.py");
    let (succeeded, said) = shell.run(&format!(
        "PYTHONPATH={} python3 {} {}",
        packages.display(),
        script.display(),
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../cluster/kinds/tests/manifests/09-job.yaml"
        ),
    ))?;
    ensure!(succeeded, "{said}\nserver: {}", shell.server.log());
    ensure!(said.ends_with("all is as it should be\n"), "{said}");
    Ok(())
}
