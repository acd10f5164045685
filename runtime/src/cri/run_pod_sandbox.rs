//! RunPodSandbox: bad input ends here, before anything is made.

use berth_proto::cri::{RunPodSandboxRequest, RunPodSandboxResponse};

use super::Service;
use crate::{error::Error, pod::userns};

pub async fn run_pod_sandbox(
    service: &Service,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Error> {
    let config = request
        .config
        .ok_or_else(|| Error::InvalidArgument("config is missing".into()))?;
    let node = &service.registry.node;
    berth_spec::check_sandbox(&config, node.cgroup.driver)
        .and_then(|()| berth_spec::check_sandbox_modules(&config, &node.host))
        .map_err(|source| Error::Spec {
            what: "pod sandbox".into(),
            source,
        })?;
    if let Some(why) = node.unfit() {
        return Err(Error::FailedPrecondition(why));
    }
    userns::check(node, &config)?;
    let handler = node.handler(&request.runtime_handler)?.to_owned();
    node.handler_config(&handler).check_pod(&handler, &config)?;
    let pod_sandbox_id = service.registry.run(config, &handler).await?;
    Ok(RunPodSandboxResponse { pod_sandbox_id })
}
