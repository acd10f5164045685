//! Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use anyhow::{Context, Result, ensure};
use berth_proto::cri::{
    self, CgroupDriver, NetworkConfig, RuntimeConfig, RuntimeConfigRequest, StatusRequest,
    UpdateRuntimeConfigRequest,
};

use super::{Case, cases, scene::Scene};

pub const CASES: &[Case] = cases![
    Version: [the_version_is_that_of_the_cri_v1_and_names_the_runtime],
    Version: [the_version_is_the_same_whatever_version_the_client_names],
    Status: [both_conditions_are_told_once_and_hold],
    Status: [details_are_told_to_who_asks_for_them_alone],
    Status: [runtime_handlers_have_distinct_names_and_one_is_the_default],
    RuntimeConfig: [the_cgroup_driver_is_told],
    UpdateRuntimeConfig: [nothing_to_update_is_taken],
];

async fn the_version_is_that_of_the_cri_v1_and_names_the_runtime(s: &Scene) -> Result<()> {
    let version = s.cri.version().await?;
    ensure!(version.runtime_api_version == "v1", "{version:?}");
    ensure!(!version.version.is_empty(), "{version:?}");
    ensure!(!version.runtime_name.is_empty(), "{version:?}");
    ensure!(!version.runtime_version.is_empty(), "{version:?}");
    Ok(())
}

async fn the_version_is_the_same_whatever_version_the_client_names(s: &Scene) -> Result<()> {
    let of = async |version: &str| -> Result<cri::VersionResponse> {
        let version = version.to_owned();
        let answer = s
            .cri
            .runtime()
            .version(cri::VersionRequest { version })
            .await;
        Ok(answer?.into_inner())
    };
    let plain = of("").await?;
    for version in ["0.1.0", "v1", "v9"] {
        let told = of(version).await?;
        ensure!(told == plain, "{told:?} and {plain:?}");
    }
    Ok(())
}

async fn status(s: &Scene, verbose: bool) -> Result<cri::StatusResponse> {
    let answer = s.cri.runtime().status(StatusRequest { verbose }).await?;
    Ok(answer.into_inner())
}

async fn both_conditions_are_told_once_and_hold(s: &Scene) -> Result<()> {
    let conditions = status(s, false)
        .await?
        .status
        .unwrap_or_default()
        .conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let of_kind: Vec<_> = conditions.iter().filter(|c| c.r#type == kind).collect();
        ensure!(of_kind.len() == 1, "{kind}: {conditions:?}");
        if kind == "NetworkReady" && s.host_network {
            continue;
        }
        ensure!(of_kind[0].status, "{conditions:?}");
    }
    for condition in conditions.iter().filter(|condition| !condition.status) {
        ensure!(
            !condition.reason.is_empty(),
            "without a reason: {condition:?}"
        );
    }
    Ok(())
}

async fn details_are_told_to_who_asks_for_them_alone(s: &Scene) -> Result<()> {
    ensure!(status(s, false).await?.info.is_empty());
    let info = status(s, true).await?.info;
    ensure!(!info.is_empty());
    Ok(())
}

async fn runtime_handlers_have_distinct_names_and_one_is_the_default(s: &Scene) -> Result<()> {
    let handlers = status(s, false).await?.runtime_handlers;
    let names: Vec<&str> = handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(distinct.len() == names.len(), "{names:?}");
    // The empty name stands for the default.
    ensure!(names.contains(&""), "{names:?}");
    ensure!(names.contains(&s.runtime_handler.as_str()), "{names:?}");
    Ok(())
}

async fn the_cgroup_driver_is_told(s: &Scene) -> Result<()> {
    let answer = s
        .cri
        .runtime()
        .runtime_config(RuntimeConfigRequest {})
        .await?;
    let linux = answer
        .into_inner()
        .linux
        .context("no Linux configuration")?;
    CgroupDriver::try_from(linux.cgroup_driver).context("the driver")?;
    Ok(())
}

async fn nothing_to_update_is_taken(s: &Scene) -> Result<()> {
    let empty = RuntimeConfig {
        network_config: Some(NetworkConfig::default()),
    };
    for runtime_config in [None, Some(RuntimeConfig::default()), Some(empty)] {
        let request = UpdateRuntimeConfigRequest { runtime_config };
        s.cri.runtime().update_runtime_config(request).await?;
    }
    Ok(())
}
