//! `berth status`: how the cluster on this machine is.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, Client, api::ListParams};
use serde::Serialize;
use tokio::time::timeout;

use super::up::{DATA, NODES, PROGRAM, cluster_of};
use crate::{
    error::Error,
    host::{failed, node, program::Program},
    output::{Format, Table, print, text_out},
};

/// An answer of the server.
const CALL: Duration = Duration::from_secs(5);

/// Show how the cluster is: the API server, its nodes, their pods
///
/// Exits with 1 if the server does not answer or a node is not ready.
#[derive(Debug, Args)]
pub struct Status {
    /// Of the cluster
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// The admin's kubeconfig; DIR/admin.kubeconfig by default
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cluster {
    /// Whether `berth up` runs on this machine.
    runs: bool,
    /// Where the API is; none: nobody here knows.
    server: Option<String>,
    /// Why the server's answer is missing; none: it has answered.
    trouble: Option<String>,
    nodes: Vec<OneNode>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OneNode {
    name: String,
    /// `Ready`, `NotReady`, `Unknown`: as its condition is. `Absent`: kept here, and the API knows none of the name.
    status: String,
    /// Whether `berth up` keeps it on this machine.
    here: bool,
    pods: usize,
    /// Of them, those that run.
    running: usize,
}

impl Status {
    pub async fn run(self, format: Format) -> Result<ExitCode, Error> {
        let kubeconfig = self.kubeconfig.clone();
        let kubeconfig = kubeconfig.unwrap_or_else(|| self.data.join("admin.kubeconfig"));
        let here: Vec<String> = node::known(&self.data.join(NODES))
            .into_iter()
            .map(|(_, record)| record.name)
            .collect();
        let asked = match self.knows(&kubeconfig, &here) {
            Ok(()) => match super::client(&kubeconfig).await {
                Ok(client) => nodes(client, &here).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        let server = cluster_of(&kubeconfig).ok();
        let server = server.and_then(|it| it["server"].as_str().map(str::to_owned));
        let (nodes, trouble) = match asked {
            Ok(nodes) => (nodes, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let cluster = Cluster {
            runs: Program::this(PROGRAM, &self.data).runs(),
            server,
            trouble,
            nodes,
        };
        match format {
            Format::Table => text_out(&cluster.in_words())?,
            format => print(format, &cluster, || Table::new(&[]))?,
        }
        let well = cluster.trouble.is_none() && cluster.nodes.iter().all(|it| it.status == "Ready");
        Ok(if well {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Status {
    /// Whether there is somebody to ask.
    fn knows(&self, kubeconfig: &Path, here: &[String]) -> Result<(), Error> {
        if kubeconfig.exists() {
            return Ok(());
        }
        let what = format!("there is no {}", kubeconfig.display());
        let why = match here {
            [] => "`berth up` makes a cluster; --data names the directory of one elsewhere".into(),
            here => format!(
                "this machine is {} of a cluster that is kept elsewhere; --kubeconfig names one by which it may be asked",
                here.join(", ")
            ),
        };
        Err(failed(what, why))
    }
}

impl Cluster {
    fn in_words(&self) -> String {
        let server = self.server.as_deref();
        let mut text = match (&self.trouble, server) {
            (None, server) => format!(
                "the API server answers{}\n",
                server.map(|it| format!(" at {it}")).unwrap_or_default()
            ),
            (Some(why), Some(server)) => {
                format!("the API server does not answer at {server}: {why}\n")
            }
            (Some(why), None) => format!("{why}\n"),
        };
        if !self.runs && server.is_some() {
            text +=
                "neither `berth up` nor `berth join` runs on this machine with this directory\n";
        }
        let mut table = Table::new(&["NODE", "STATUS", "HERE", "PODS", "RUNNING"]);
        for node in &self.nodes {
            table.row([
                node.name.clone(),
                node.status.clone(),
                if node.here { "yes" } else { "no" }.to_owned(),
                node.pods.to_string(),
                node.running.to_string(),
            ]);
        }
        if !self.nodes.is_empty() {
            text += &table.to_string();
        }
        text
    }
}

async fn nodes(client: Client, here: &[String]) -> Result<Vec<OneNode>, Error> {
    let all = ListParams::default();
    let (nodes, pods) = (Api::<Node>::all(client.clone()), Api::<Pod>::all(client));
    let asked = async { tokio::try_join!(nodes.list(&all), pods.list(&all)) };
    let (nodes, pods) = timeout(CALL, asked)
        .await
        .map_err(|_| {
            failed(
                "list nodes and pods",
                format!("no answer within {} s", CALL.as_secs()),
            )
        })?
        .map_err(|error| failed("list nodes and pods", super::reasons(&error)))?;
    let of = |name: &str| {
        let name = name.to_owned();
        pods.items.iter().filter(move |pod| {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            node == Some(name.as_str())
        })
    };
    let one = |node: Node| {
        let name = node.metadata.name.unwrap_or_default();
        let conditions = node.status.and_then(|status| status.conditions);
        let ready = conditions
            .into_iter()
            .flatten()
            .find(|condition| condition.type_ == "Ready");
        let status = match ready.map(|ready| ready.status).as_deref() {
            Some("True") => "Ready",
            Some("False") => "NotReady",
            _ => "Unknown",
        };
        let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
        OneNode {
            status: status.to_owned(),
            here: here.contains(&name),
            pods: of(&name).count(),
            running: of(&name)
                .filter(|pod| phase(pod).as_deref() == Some("Running"))
                .count(),
            name,
        }
    };
    let mut all: Vec<OneNode> = nodes.items.into_iter().map(one).collect();
    for name in here {
        if !all.iter().any(|node| node.name == *name) {
            all.push(OneNode {
                name: name.clone(),
                status: "Absent".into(),
                here: true,
                pods: 0,
                running: 0,
            });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_told_with_where_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let kubeconfig = dir.path().join("admin.kubeconfig");
        let status = Status {
            data: dir.path().to_owned(),
            kubeconfig: None,
        };
        let nowhere = status.knows(&kubeconfig, &[]).unwrap_err().to_string();
        assert!(nowhere.contains("`berth up` makes"), "{nowhere}");
        let joined = status.knows(&kubeconfig, &["n1".into()]).unwrap_err();
        let joined = joined.to_string();
        assert!(joined.contains("n1 of a cluster"), "{joined}");
        let cluster = |server: Option<&str>, trouble: Option<&str>| Cluster {
            runs: false,
            server: server.map(str::to_owned),
            trouble: trouble.map(str::to_owned),
            nodes: Vec::new(),
        };
        let away = cluster(Some("https://a:1"), Some("connection refused")).in_words();
        assert!(away.starts_with("the API server does not answer at https://a:1: connection"));
        assert_eq!(cluster(None, Some(&nowhere)).in_words(), nowhere + "\n");
    }
}
