//! ADD: a pod joins the networks of the configuration, one after the other.

use std::{net::IpAddr, path::Path, sync::Arc};

use super::{
    CniError, Entry, Inner,
    conf::{self, has_capability},
    directory::Loaded,
    list,
    record::{Joined, Record},
    result,
};
use crate::{AttachRequest, Attachment, Error};

impl Inner {
    pub(super) async fn attach(
        self: &Arc<Self>,
        request: &AttachRequest,
        netns: &Path,
        loaded: &Loaded,
    ) -> Result<Attachment, Error> {
        let mut plans = Vec::with_capacity(loaded.networks.len());
        let mut networks = Vec::with_capacity(loaded.networks.len());
        for (n, conf) in loaded.networks.iter().enumerate() {
            let plan = self.runner.plan(conf).await?;
            networks.push(Joined {
                conf: conf.as_ref().clone(),
                version: plan.version,
                interface: format!("eth{n}"),
                result: None,
            });
            plans.push(plan);
        }
        let mut record = Record {
            request: request.clone(),
            netns: netns.to_owned(),
            ranges: self.ranges(),
            networks,
            owed: None,
        };
        list::arguments(&record)?;
        let takes_ports = |joined: &Joined| {
            let mut plugins = joined.conf.plugins.iter();
            plugins.any(|plugin| has_capability(plugin, "portMappings"))
        };
        if !request.port_mappings.is_empty() && !record.networks.iter().any(takes_ports) {
            tracing::warn!(
                pod_id = request.pod_id,
                "the pod asks for host ports, and no plugin of the configuration has the capability portMappings: they lead nowhere"
            );
        }
        self.lock()
            .insert(record.request.pod_id.clone(), Entry::of(&record));
        self.begin(&record).await?;
        for (n, plan) in plans.iter().enumerate() {
            let result = self.runner.add(&record, &record.networks[n], plan).await?;
            record.networks[n].result = Some(result);
            // Before it is looked at: DEL gets it, whatever is wrong with it or comes after it.
            self.complete(&record).await?;
        }
        self.attachment(&record, netns)
    }

    /// What the results come to for the pod.
    fn attachment(&self, record: &Record, netns: &Path) -> Result<Attachment, Error> {
        let pod_id = &record.request.pod_id;
        let refuse = |joined: &Joined, why: String| CniError::Result {
            network: joined.conf.name.clone(),
            plugin: joined
                .conf
                .plugins
                .last()
                .map(|p| conf::plugin_type(p).to_owned())
                .unwrap_or_default(),
            why,
        };
        let mut all: Vec<IpAddr> = Vec::new();
        let mut host_link = None;
        for (n, joined) in record.networks.iter().enumerate() {
            let result = joined.result.as_ref().unwrap_or(&serde_json::Value::Null);
            let outcome = result::outcome(result, joined.version, &joined.interface)
                .map_err(|why| refuse(joined, why))?;
            if n > 0 {
                continue;
            }
            if outcome.ips.is_empty() {
                let why = "it has no address for the pod".into();
                return Err(refuse(joined, why).into());
            }
            let table = self.lock();
            let twice = table.iter().find_map(|(other, entry)| {
                if other == pod_id || entry.network != joined.conf.name {
                    return None;
                }
                let ip = outcome.ips.iter().find(|ip| entry.ips.contains(ip))?;
                Some(format!("{ip} is the address of pod {other} already"))
            });
            drop(table);
            if let Some(why) = twice {
                return Err(refuse(joined, why).into());
            }
            all = outcome.ips;
            host_link = outcome.host_link;
        }
        if let Some(entry) = self.lock().get_mut(pod_id) {
            entry.ips.clone_from(&all);
            entry.attached = true;
        }
        Ok(Attachment {
            netns: netns.to_owned(),
            interface: record.networks[0].interface.clone(),
            ips: all,
            host_link: host_link.unwrap_or_default(),
        })
    }
}
