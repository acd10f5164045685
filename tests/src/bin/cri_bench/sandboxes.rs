//! RunPodSandbox alone: with a network of its own beside the host's, one after another and many at a time.

use std::time::Instant;

use anyhow::{Context, Result};
use berth_proto::cri::NamespaceMode;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{Arguments, Server, pod};

/// Calls at a time: of a busy node, and all that a node starts at once after a reboot.
const IN_FLIGHT: [(usize, &str, &str); 2] = [
    (10, "RunPodSandbox, 10 in flight", "a pod of 10 in flight"),
    (50, "RunPodSandbox, 50 in flight", "a pod of 50 in flight"),
];

/// Milliseconds.
fn since(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

impl Server {
    pub async fn sandboxes(&mut self, arguments: &Arguments) -> Result<()> {
        self.one_after_another(arguments).await?;
        for (in_flight, figure, each) in IN_FLIGHT {
            self.at_a_time(arguments, in_flight, figure, each).await?;
        }
        Ok(())
    }

    /// On the host's network and with one of its own, in turns: the difference of neighbours is what the network adds.
    async fn one_after_another(&mut self, arguments: &Arguments) -> Result<()> {
        let mut made = Vec::new();
        for _ in 0..arguments.rounds {
            let mut took = [0.0; 2];
            for (ms, network) in took
                .iter_mut()
                .zip([NamespaceMode::Node, NamespaceMode::Pod])
            {
                let config = pod(&arguments.logs, "sandbox", network);
                let begin = Instant::now();
                made.push(self.cri.run_pod_with(&config, &self.handler).await?);
                *ms = since(begin);
            }
            let [host, own] = took;
            self.figure("RunPodSandbox, host network").push(host);
            self.figure("RunPodSandbox, bridge").push(own);
            self.figure("what the network adds").push(own - host);
            if let Some(last) = made.last()
                && let Some(ms) = self.network_ms(last).await?
            {
                self.figure("attach, beside the shim's start").push(ms);
            }
        }
        self.remove_all(made).await
    }

    async fn at_a_time(
        &mut self,
        arguments: &Arguments,
        in_flight: usize,
        figure: &'static str,
        each: &'static str,
    ) -> Result<()> {
        let (mut made, mut running) = (Vec::new(), JoinSet::new());
        let begin = Instant::now();
        for _ in 0..arguments.rounds {
            if running.len() == in_flight {
                made.push(self.joined(figure, running.join_next().await)?);
            }
            let (cri, handler) = (self.cri.clone(), self.handler.clone());
            let config = pod(&arguments.logs, "sandbox", NamespaceMode::Pod);
            running.spawn(async move {
                let begin = Instant::now();
                let id = cri.run_pod_with(&config, &handler).await?;
                anyhow::Ok((id, since(begin)))
            });
        }
        while !running.is_empty() {
            made.push(self.joined(figure, running.join_next().await)?);
        }
        let mean = since(begin) / arguments.rounds as f64;
        self.figure(each).push(mean);
        self.remove_all(made).await
    }

    fn joined(
        &mut self,
        figure: &'static str,
        ended: Option<Result<Result<(String, f64)>, tokio::task::JoinError>>,
    ) -> Result<String> {
        let (id, ms) = ended.context("nothing was under way")???;
        self.figure(figure).push(ms);
        Ok(id)
    }

    async fn remove_all(&self, pods: Vec<String>) -> Result<()> {
        for pod in pods {
            self.cri.stop_pod(&pod).await?;
            self.cri.remove_pod(&pod).await?;
        }
        Ok(())
    }

    /// What the server itself says of its phases, where it does.
    async fn network_ms(&self, pod: &str) -> Result<Option<f64>> {
        let status = self.cri.pod_status_verbose(pod, true).await?;
        let Some(text) = status.info.get("timeline") else {
            return Ok(None);
        };
        let timeline: Value = serde_json::from_str(text)?;
        let ms = |phase: &str| timeline[phase].as_f64();
        Ok(ms("netns").zip(ms("network")).map(|(a, b)| a + b))
    }
}
