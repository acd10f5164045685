//! `/stats/summary` in upstream's words. What nobody knows is not there, and never 0.

use std::collections::{BTreeMap, HashMap};

use berth_proto::cri;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{
    machine::{Fs, Machine, Traffic},
    storage::{Measured, Usage},
};

use super::figures::{container_name, identity, swap_of_pod, value};

/// When what is up began: pods by their uid alone, containers with their name behind it.
pub(super) type Begins = BTreeMap<(String, String), Timestamp>;

/// What each pod has on the disk, by its uid.
pub(super) type OnDisk = HashMap<String, (Vec<Measured>, Usage)>;

/// The node, as it was looked at.
#[derive(Debug)]
pub(super) struct Looked<'a> {
    pub node: &'a str,
    pub started: Option<String>,
    /// Nanoseconds of all processors since the start.
    pub cpu: u64,
    /// … a second.
    pub rate: Option<u64>,
    pub machine: Machine,
    /// The default interface first.
    pub traffic: Vec<Traffic>,
    pub image_fs: Option<Fs>,
    pub disk: &'a OnDisk,
    pub begins: &'a Begins,
    pub now: Timestamp,
}

impl Looked<'_> {
    pub fn summary(&self, pods: &[cri::PodSandboxStats]) -> Value {
        let pods: Vec<_> = pods.iter().filter_map(|it| self.pod(it)).collect();
        json!({"node": self.node(), "pods": pods})
    }

    fn node(&self) -> Value {
        let (machine, now) = (&self.machine, self.now.to_string());
        let used = machine.memory.saturating_sub(machine.memory_available);
        let image_fs = self.image_fs.as_ref().map(|it| self.fs(it));
        known(json!({
            "nodeName": self.node,
            "startTime": self.started,
            "cpu": {"time": now, "usageNanoCores": self.rate, "usageCoreNanoSeconds": self.cpu},
            "memory": {
                "time": now,
                "availableBytes": machine.memory_available,
                "usageBytes": used,
                "workingSetBytes": used,
            },
            "network": self.network(),
            "fs": self.fs(&machine.fs),
            "runtime": {"imageFs": image_fs, "containerFs": image_fs},
            "rlimit": {"time": now, "maxpid": machine.pids, "curproc": machine.pids_used},
            "swap": {
                "time": now,
                "swapAvailableBytes": machine.swap_free,
                "swapUsageBytes": machine.swap.saturating_sub(machine.swap_free),
            },
        }))
    }

    fn network(&self) -> Option<Value> {
        let one = |it: &Traffic| {
            json!({
                "name": it.name,
                "rxBytes": it.rx_bytes,
                "rxErrors": it.rx_errors,
                "txBytes": it.tx_bytes,
                "txErrors": it.tx_errors,
            })
        };
        let mut network = one(self.traffic.first()?);
        network["time"] = self.now.to_string().into();
        network["interfaces"] = self.traffic.iter().map(one).collect();
        Some(network)
    }

    fn pod(&self, stats: &cri::PodSandboxStats) -> Option<Value> {
        let (namespace, name, uid) = identity(stats)?;
        let began = |container: String| {
            let began = self.begins.get(&(uid.clone(), container));
            began.map(ToString::to_string)
        };
        let linux = stats.linux.as_ref()?;
        let disk = self.disk.get(&uid);
        let containers = linux.containers.iter().map(|container| {
            let name = container_name(container);
            let layer = container.writable_layer.as_ref();
            let logs = disk.and_then(|(_, usage)| usage.logs.get(&name));
            json!({
                "name": name,
                "startTime": began(name.clone()),
                "cpu": container.cpu.as_ref().map(cpu),
                "memory": container.memory.as_ref().map(memory),
                "io": container.io.as_ref().map(io),
                "swap": container.swap.as_ref().map(|it| json!({
                    "time": time(it.timestamp),
                    "swapAvailableBytes": value(&it.swap_available_bytes),
                    "swapUsageBytes": value(&it.swap_usage_bytes),
                })),
                "rootfs": layer.map(|it| {
                    let mut fs = self.on(self.image_fs.as_ref(), value(&it.used_bytes), value(&it.inodes_used));
                    fs["time"] = time(it.timestamp).into();
                    fs
                }),
                "logs": logs.map(|bytes| self.on(Some(&self.machine.fs), Some(*bytes), None)),
            })
        });
        let containers: Vec<_> = containers.collect();
        let network = linux.network.as_ref().map(|it| {
            let one = |link: &cri::NetworkInterfaceUsage| {
                json!({
                    "name": link.name,
                    "rxBytes": value(&link.rx_bytes),
                    "rxErrors": value(&link.rx_errors),
                    "txBytes": value(&link.tx_bytes),
                    "txErrors": value(&link.tx_errors),
                })
            };
            let mut network = it.default_interface.as_ref().map_or_else(|| json!({}), one);
            network["time"] = time(it.timestamp).into();
            let all = it.default_interface.iter().chain(&it.interfaces);
            network["interfaces"] = all.map(one).collect();
            network
        });
        let processes = linux.process.as_ref();
        let processes = processes.and_then(|it| value(&it.process_count));
        let volumes = disk.map(|(volumes, _)| volumes.iter().map(|it| self.volume(it, &namespace)));
        Some(known(json!({
            "podRef": {"name": name, "namespace": namespace, "uid": uid},
            "startTime": began(String::new()),
            "containers": containers,
            "cpu": linux.cpu.as_ref().map(cpu),
            "memory": linux.memory.as_ref().map(memory),
            "io": linux.io.as_ref().map(io),
            "network": network,
            "volume": volumes.map(Iterator::collect::<Vec<_>>),
            "ephemeral-storage": disk.map(|(volumes, usage)| self.ephemeral(linux, volumes, usage)),
            "process_stats": processes.map(|count| json!({"process_count": count})),
            "swap": swap_of_pod(linux).map(|(bytes, at)| json!({"time": time(at), "swapUsageBytes": bytes})),
        })))
    }

    fn volume(&self, volume: &Measured, namespace: &str) -> Value {
        let mut all = self.on(Some(&volume.fs), Some(volume.bytes), Some(volume.inodes));
        all["name"] = volume.name.clone().into();
        if let Some(claim) = &volume.claim {
            all["pvcRef"] = json!({"name": claim, "namespace": namespace});
        }
        all
    }

    /// All that the pod has on the node's disk.
    fn ephemeral(
        &self,
        linux: &cri::LinuxPodSandboxStats,
        volumes: &[Measured],
        usage: &Usage,
    ) -> Value {
        let layers = linux.containers.iter();
        let layers = layers.filter_map(|it| it.writable_layer.as_ref());
        let (bytes, inodes) = layers.fold((0_u64, 0_u64), |(bytes, inodes), layer| {
            (
                bytes.saturating_add(value(&layer.used_bytes).unwrap_or(0)),
                inodes.saturating_add(value(&layer.inodes_used).unwrap_or(0)),
            )
        });
        let directories = volumes.iter().filter(|it| it.is_own()).count();
        let inodes = inodes
            .saturating_add(usage.files)
            .saturating_add(u64::try_from(directories).unwrap_or(0));
        let bytes = bytes.saturating_add(usage.bytes());
        self.on(Some(&self.machine.fs), Some(bytes), Some(inodes))
    }

    /// A part of a file system.
    fn on(&self, fs: Option<&Fs>, bytes: Option<u64>, inodes: Option<u64>) -> Value {
        let mut all = fs.map_or_else(|| json!({"time": self.now.to_string()}), |it| self.fs(it));
        all["usedBytes"] = bytes.into();
        all["inodesUsed"] = inodes.into();
        all
    }

    /// The whole of one.
    fn fs(&self, fs: &Fs) -> Value {
        json!({
            "time": self.now.to_string(),
            "availableBytes": fs.available,
            "capacityBytes": fs.bytes,
            "usedBytes": fs.bytes.saturating_sub(fs.free),
            "inodesFree": fs.inodes_free,
            "inodes": fs.inodes,
            "inodesUsed": fs.inodes.saturating_sub(fs.inodes_free),
        })
    }
}

fn cpu(usage: &cri::CpuUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "usageNanoCores": value(&usage.usage_nano_cores),
        "usageCoreNanoSeconds": value(&usage.usage_core_nano_seconds),
        "psi": usage.psi.as_ref().map(psi),
    })
}

fn memory(usage: &cri::MemoryUsage) -> Value {
    json!({
        "time": time(usage.timestamp),
        "availableBytes": value(&usage.available_bytes),
        "usageBytes": value(&usage.usage_bytes),
        "workingSetBytes": value(&usage.working_set_bytes),
        "rssBytes": value(&usage.rss_bytes),
        "pageFaults": value(&usage.page_faults),
        "majorPageFaults": value(&usage.major_page_faults),
        "psi": usage.psi.as_ref().map(psi),
    })
}

fn io(usage: &cri::IoUsage) -> Value {
    json!({"time": time(usage.timestamp), "psi": usage.psi.as_ref().map(psi)})
}

fn psi(stats: &cri::PsiStats) -> Value {
    let one = |it: &cri::PsiData| json!({"total": it.total, "avg10": it.avg10, "avg60": it.avg60, "avg300": it.avg300});
    json!({"full": stats.full.as_ref().map(one), "some": stats.some.as_ref().map(one)})
}

fn time(nanoseconds: i64) -> String {
    Timestamp::from_nanosecond(nanoseconds.into())
        .unwrap_or_default()
        .to_string()
}

/// Without what nobody knows, at whatever depth.
fn known(value: Value) -> Value {
    match value {
        Value::Object(all) => {
            let kept = all.into_iter().filter(|(_, one)| !one.is_null());
            Value::Object(
                kept.map(|(name, one)| (name, known(one)))
                    .collect::<Map<_, _>>(),
            )
        }
        Value::Array(all) => all.into_iter().map(known).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use berth_proto::cri::UInt64Value;

    use super::*;

    #[test]
    fn what_is_known_is_told_by_upstreams_names_and_nothing_else() {
        let bytes = |value| Some(UInt64Value { value });
        let stall = |total| cri::PsiData {
            total,
            ..cri::PsiData::default()
        };
        let container = cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                metadata: Some(cri::ContainerMetadata {
                    name: "a".into(),
                    attempt: 0,
                }),
                ..Default::default()
            }),
            swap: Some(cri::SwapUsage {
                timestamp: 1,
                swap_available_bytes: None,
                swap_usage_bytes: bytes(7),
            }),
            io: Some(cri::IoUsage {
                timestamp: 1,
                psi: Some(cri::PsiStats {
                    full: Some(stall(1)),
                    some: Some(stall(2)),
                }),
            }),
            writable_layer: Some(cri::FilesystemUsage {
                used_bytes: bytes(100),
                inodes_used: bytes(3),
                ..Default::default()
            }),
            ..Default::default()
        };
        let stats = cri::PodSandboxStats {
            attributes: Some(cri::PodSandboxAttributes {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "p".into(),
                    uid: "u".into(),
                    namespace: "n".into(),
                    attempt: 0,
                }),
                ..Default::default()
            }),
            linux: Some(cri::LinuxPodSandboxStats {
                containers: vec![container],
                process: Some(cri::ProcessUsage {
                    process_count: bytes(5),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            windows: None,
        };
        let fs = Fs {
            bytes: 1000,
            free: 450,
            available: 400,
            inodes: 50,
            inodes_free: 40,
        };
        let volume = Measured {
            name: "v".into(),
            bytes: 20,
            inodes: 2,
            fs,
            is_memory: false,
            claim: None,
        };
        let claimed = Measured {
            name: "c".into(),
            claim: Some("data".into()),
            ..volume.clone()
        };
        let usage = Usage {
            logs: [("a".to_owned(), 30)].into(),
            volumes: [("v".to_owned(), 20)].into(),
            own: 10,
            files: 4,
            is_cut: false,
        };
        let looked = Looked {
            node: "n1",
            started: None,
            cpu: 9,
            rate: None,
            machine: Machine {
                swap: 10,
                swap_free: 4,
                fs,
                ..Machine::default()
            },
            traffic: ["eth0", "eth1"]
                .map(|name| Traffic {
                    name: name.into(),
                    rx_bytes: 8,
                    ..Traffic::default()
                })
                .into(),
            image_fs: None,
            disk: &[("u".to_owned(), (vec![volume, claimed], usage))].into(),
            begins: &Begins::new(),
            now: Timestamp::UNIX_EPOCH,
        };
        let summary = looked.summary(&[stats]);
        let (node, pod) = (&summary["node"], &summary["pods"][0]);
        assert_eq!(node["swap"]["swapUsageBytes"], 6);
        assert_eq!(node["network"]["name"], "eth0");
        assert_eq!(node["network"]["interfaces"][1]["rxBytes"], 8);
        assert_eq!(pod["swap"]["swapUsageBytes"], 7);
        assert_eq!(pod["process_stats"]["process_count"], 5);
        let volume = &pod["volume"][0];
        assert_eq!(
            (&volume["name"], &volume["usedBytes"], &volume["inodesUsed"]),
            (&json!("v"), &json!(20), &json!(2))
        );
        assert_eq!(volume["capacityBytes"], 1000);
        assert!(volume["pvcRef"].is_null(), "{volume:#}");
        let claimed = &pod["volume"][1]["pvcRef"];
        assert_eq!(*claimed, json!({"name": "data", "namespace": "n"}));
        // the layer, the log, the volume, and what else is in its directory; their files, and the volume's own directory
        let whole = &pod["ephemeral-storage"];
        assert_eq!(
            (&whole["usedBytes"], &whole["inodesUsed"]),
            (&json!(160), &json!(8))
        );
        let container = &pod["containers"][0];
        assert_eq!(container["swap"]["swapUsageBytes"], 7);
        assert_eq!(container["io"]["psi"]["some"]["total"], 2);
        assert_eq!(container["logs"]["usedBytes"], 30);
        assert_eq!(container["rootfs"]["usedBytes"], 100);
        // of what is not known there is not even the name
        for absent in [
            &container["swap"]["swapAvailableBytes"],
            &container["cpu"],
            &pod["network"],
            &node["cpu"]["usageNanoCores"],
        ] {
            assert!(absent.is_null(), "{summary:#}");
        }
        assert!(!summary.to_string().contains("null"), "{summary:#}");
    }
}
