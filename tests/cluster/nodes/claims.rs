//! Claims that are used.

use anyhow::{Result, ensure};
use berth_tests::cluster::Server;
use serde_json::{Value, json};

use super::{Hollow, QUICK, controllers, eventually};

#[test]
fn a_claim_that_is_used_outlives_its_deletion() -> Result<()> {
    let server = Server::start("memory")?;
    let hollow = Hollow::start(&server)?;
    hollow.join("n1", "a")?;
    let _controllers = controllers(&server, QUICK)?;
    let spec =
        json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": spec});
    server.kubectl_with(&["apply", "-f", "-"], &claim.to_string())?;
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "own", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": spec}}},
    ]);
    hollow.pod(
        "uses",
        "n1",
        "10.0.0.1",
        &json!({"volumes": volumes, "terminationGracePeriodSeconds": 0}),
    )?;
    let own = eventually("its own claim is made", || {
        let said = server.ask(&["get", "pvc", "uses-own", "-o", "json"], "")?;
        Ok(said.ok.then(|| serde_json::from_str::<Value>(&said.stdout)))
    })??;
    ensure!(
        own["metadata"]["ownerReferences"][0]["name"] == "uses"
            && own["metadata"]["labels"]["a"] == "b",
        "{own}"
    );
    server.kubectl(&["delete", "pvc", "data", "--wait=false"])?;
    // One that nobody uses goes at once; the other one is there still then.
    let mut other = claim;
    other["metadata"]["name"] = "unused".into();
    server.kubectl_with(&["apply", "-f", "-"], &other.to_string())?;
    server.kubectl(&["delete", "pvc", "unused", "--timeout=60s"])?;
    ensure!(server.ask(&["get", "pvc", "data"], "")?.ok);
    server.kubectl(&["delete", "pod", "uses", "--grace-period=0", "--force"])?;
    for claim in ["data", "uses-own"] {
        eventually(&format!("{claim} is gone"), || {
            Ok((!server.ask(&["get", "pvc", claim], "")?.ok).then_some(()))
        })?;
    }
    Ok(())
}
