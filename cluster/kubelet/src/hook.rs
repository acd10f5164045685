//! postStart and preStop.

use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;

use crate::{
    Error,
    node::Inner,
    pod::ContainerSpec,
    probe::{Check, get},
};

/// Runs one to its end, for `limit` at most.
pub(crate) async fn run(
    node: &Inner,
    spec: &ContainerSpec,
    hook: &'static str,
    handler: &LifecycleHandler,
    container: &str,
    pod_ip: &str,
    limit: Duration,
) -> Result<(), Error> {
    let failed = |why: String| Error::Hook {
        hook,
        container: spec.name().to_owned(),
        why,
    };
    let act = async {
        if let Some(exec) = &handler.exec {
            let command = exec.command.clone().unwrap_or_default();
            let answer = node
                .runtime
                .exec_hook(container, command, limit)
                .await
                .map_err(|error| error.to_string())?;
            return match answer.exit_code {
                0 => Ok(()),
                code => Err(format!(
                    "the command ended with {code}: {}",
                    String::from_utf8_lossy(&answer.stderr).trim()
                )),
            };
        }
        if let Some(action) = &handler.http_get {
            let Check::Http(asked) = Check::http(action, &spec.container, pod_ip)? else {
                return Ok(());
            };
            return get(&asked).await;
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        }
        Ok(())
    };
    match tokio::time::timeout(limit, act).await {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(failed(format!(
            "it did not end within {}s",
            limit.as_secs()
        ))),
    }
}
