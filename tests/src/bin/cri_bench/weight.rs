//! What daemons and pods weigh.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use berth_proto::cri::NamespaceMode;
use berth_tests::process::{self, Process, pss_kib};

use crate::{Arguments, Server};

/// In the order of the report.
pub const FIGURES: [&str; 4] = [
    "daemon, MiB",
    "daemon with the pods, MiB",
    "a pod, MiB",
    "processes a pod",
];

impl Server {
    pub async fn weigh(&mut self, arguments: &Arguments) -> Result<()> {
        self.memory
            .insert("daemon, MiB", pss_kib(self.daemon) / 1024.0);
        // Helpers of earlier pods are not these pods' weight.
        let before: BTreeSet<i32> = process::all().iter().map(|process| process.pid).collect();
        let mut made = Vec::new();
        for _ in 0..arguments.pods {
            made.push(self.up(arguments, NamespaceMode::Node).await?);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ids: Vec<&String> = made.iter().map(|(_, container)| container).collect();
        let of_container = |process: &Process| {
            let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid))
                .unwrap_or_default();
            ids.iter().any(|id| cgroups.contains(id.as_str()))
        };
        let mine = std::process::id() as i32;
        let new: Vec<Process> = process::all()
            .into_iter()
            .filter(|process| {
                !before.contains(&process.pid) && process.pid != mine && !of_container(process)
            })
            .collect();
        let helpers: Vec<&Process> = new
            .iter()
            .filter(|process| process.exe().is_some())
            .collect();
        let total: f64 = helpers.iter().map(|process| pss_kib(process.pid)).sum();
        self.memory
            .insert("a pod, MiB", total / 1024.0 / arguments.pods as f64);
        self.memory.insert(
            "processes a pod",
            helpers.len() as f64 / arguments.pods as f64,
        );
        self.memory
            .insert("daemon with the pods, MiB", pss_kib(self.daemon) / 1024.0);
        for (pod, container) in &made {
            self.down(pod, container).await?;
        }
        Ok(())
    }
}
