//! Version, Status and the runtime's configuration.

use std::collections::HashMap;

use berth_proto::cri::*;
use serde_json::json;

use super::Service;
use crate::error::Error;

/// Of the CRI.
const API_VERSION: &str = "v1";
/// Of the kubelet's own half of Version, which is fixed.
const KUBELET_API_VERSION: &str = "0.1.0";

pub fn version(_: VersionRequest) -> VersionResponse {
    VersionResponse {
        version: KUBELET_API_VERSION.into(),
        runtime_name: "berth".into(),
        runtime_version: env!("CARGO_PKG_VERSION").into(),
        runtime_api_version: API_VERSION.into(),
    }
}

pub async fn status(service: &Service, request: StatusRequest) -> StatusResponse {
    let node = &service.registry.node;
    let network = match node.network.ready().await {
        // Ready all the same: a node that isn't would take no pods at all.
        Ok(()) => match node.network.warning() {
            Some(why) => condition("NetworkReady", true, "ForwardingBlocked".into(), why),
            None => condition("NetworkReady", true, String::new(), String::new()),
        },
        Err(e) => condition(
            "NetworkReady",
            false,
            "NetworkNotReady".into(),
            e.to_string(),
        ),
    };
    let runtime = match (node.kernel.too_low(), &node.host.cgroups_unusable) {
        (Some(why), _) => condition("RuntimeReady", false, "KernelTooOld".into(), why),
        (None, Some(why)) => {
            condition("RuntimeReady", false, "CgroupsUnusable".into(), why.clone())
        }
        (None, None) => condition("RuntimeReady", true, String::new(), String::new()),
    };
    let user_namespaces = node.user_namespaces().is_ok();
    // The default handler is there by its name and by none.
    let names = std::iter::once(String::new()).chain(node.config.runtime.handlers.keys().cloned());
    let mut runtime_handlers = Vec::new();
    for name in names {
        let handler = match name.as_str() {
            "" => &node.config.runtime.default_handler,
            name => name,
        };
        let features = RuntimeHandlerFeatures {
            recursive_read_only_mounts: node.mounts_recursively_read_only(handler).await,
            user_namespaces: node.handler_config(handler).is_own() && user_namespaces,
        };
        runtime_handlers.push(RuntimeHandler {
            name,
            features: Some(features),
        });
    }
    StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![runtime, network],
        }),
        info: match request.verbose {
            true => info(service),
            false => HashMap::new(),
        },
        runtime_handlers,
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: user_namespaces,
        }),
    }
}

fn condition(r#type: &str, status: bool, reason: String, message: String) -> RuntimeCondition {
    RuntimeCondition {
        r#type: r#type.into(),
        status,
        reason,
        message,
    }
}

fn info(service: &Service) -> HashMap<String, String> {
    let node = &service.registry.node;
    HashMap::from([
        ("config".to_owned(), json!(node.config).to_string()),
        ("kernel".to_owned(), json!(node.kernel).to_string()),
        (
            "node".to_owned(),
            json!({
                "cgroupV2": node.host.cgroup_v2,
                "cgroupDriver": format!("{:?}", node.cgroup.driver).to_lowercase(),
                "cgroupParent": node.cgroup.parent,
                "swapAccounting": node.host.swap_accounting,
                "hugetlb": node.host.hugetlb,
                "apparmor": node.host.apparmor,
                "selinux": node.host.selinux,
                "oomScoreAdj": node.host.oom_score_adj,
                "network": node.network.backend(),
                "userNamespaces": node.user_namespaces().map_or_else(str::to_owned, |()| "yes".into()),
                "pods": service.registry.views().len(),
            })
            .to_string(),
        ),
    ])
}

pub fn runtime_config(service: &Service) -> RuntimeConfigResponse {
    let driver = match service.registry.node.cgroup.driver {
        berth_spec::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        berth_spec::CgroupDriver::Systemd => CgroupDriver::Systemd,
    };
    RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: driver as i32,
        }),
    }
}

/// The kubelet tells the node's pod CIDR: a range, or one a family with a comma between.
pub async fn update_runtime_config(
    service: &Service,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, Error> {
    let cidr = request
        .runtime_config
        .and_then(|c| c.network_config)
        .map(|n| n.pod_cidr)
        .unwrap_or_default();
    if cidr.is_empty() {
        return Ok(UpdateRuntimeConfigResponse {});
    }
    let ranges = cidr
        .split(',')
        .map(|range| range.trim().parse::<ipnet::IpNet>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| {
            Error::InvalidArgument(format!(
                "pod_cidr {} must be a range such as 10.88.0.0/16, or two with a comma between",
                berth_spec::quoted(&cidr)
            ))
        })?;
    let network = &service.registry.node.network;
    network
        .set_pod_ranges(ranges)
        .await
        .map_err(|source| Error::Network {
            pod_id: "(all)".into(),
            source,
        })?;
    Ok(UpdateRuntimeConfigResponse {})
}
