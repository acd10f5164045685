//! Pods that nobody ends.

use anyhow::Result;
use serde_json::json;

use super::{controllers, create, eventually, items, server};

#[test]
fn a_pod_that_had_no_node_when_it_was_deleted_is_ended() -> Result<()> {
    let server = server()?;
    let _controllers = controllers(&server)?;
    create(
        &server,
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "kept", "finalizers": ["example.com/keeps"]},
            "spec": {"containers": [{"name": "c", "image": "example/c:1"}]},
        }),
    )?;
    server.kubectl(&["delete", "pod", "kept", "--wait=false"])?;
    eventually(&server, "it has failed", || {
        Ok((server.json(&["get", "pod", "kept"])?["status"]["phase"] == "Failed").then_some(()))
    })?;
    server.kubectl(&[
        "patch",
        "pod",
        "kept",
        "--type=merge",
        "-p",
        r#"{"metadata": {"finalizers": null}}"#,
    ])?;
    eventually(&server, "it is gone", || {
        Ok(items(&server, &["get", "pods"])?.is_empty().then_some(()))
    })
}
