//! `berth token`: what machines join by.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use berth_kubelet::NodeFacts;
use clap::{Args, Subcommand};
use http::Uri;
use kube::config::Kubeconfig;
use tokio::{net::TcpStream, time::timeout};

use super::up::{DATA, cluster_of};
use crate::{
    error::Error,
    host::{failed, file, pin, token},
    output::text_out,
};

/// Within it this machine answers itself.
const CONNECT: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub enum Token {
    Create(Create),
}

/// Make a token, and print the command by which a machine joins with it
#[derive(Debug, Args)]
pub struct Create {
    /// Of the cluster
    #[arg(long, value_name = "DIR", default_value = DATA)]
    data: PathBuf,
    /// The admin's kubeconfig; DIR/admin.kubeconfig by default
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where machines reach the server, https://HOST:PORT; by default where the kubeconfig does, or this machine's address where that is its loopback
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// For how long it is good, as 24h or 30m
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = berth_kubelet::duration)]
    ttl: Duration,
}

impl Token {
    pub async fn run(self) -> Result<ExitCode, Error> {
        let Self::Create(create) = self;
        let kubeconfig = create.kubeconfig.clone();
        let kubeconfig = kubeconfig.unwrap_or_else(|| create.data.join("admin.kubeconfig"));
        let client = super::client(&kubeconfig).await?;
        let cluster = cluster_of(&kubeconfig)?;
        let unusable = |why: &str| failed(format!("cannot use {}", kubeconfig.display()), why);
        let server = cluster["server"]
            .as_str()
            .ok_or_else(|| unusable("it names no server"))?;
        let read =
            Kubeconfig::read_from(&kubeconfig).map_err(|error| unusable(&error.to_string()))?;
        let named = read.clusters.into_iter().next().and_then(|it| it.cluster);
        let named = named.ok_or_else(|| unusable("it has no cluster"))?;
        let pem = match (
            named.certificate_authority_data,
            named.certificate_authority,
        ) {
            (Some(data), _) => base64(&data).map_err(|why| unusable(&why))?,
            (None, Some(path)) => fs::read(&path).map_err(file("read", path.as_ref()))?,
            (None, None) => return Err(unusable("it has no CA")),
        };
        let hash = pin::hash_of_pem(&pem)?;
        let token = token::create(client, create.ttl, "by `berth token create`").await?;
        let server = match create.server {
            Some(server) => server,
            None => for_others(server).await,
        };
        text_out(&format!(
            "berth join {server} --token {token} --ca-cert-hash {hash}\n"
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What other machines are told of `server`.
async fn for_others(server: &str) -> String {
    let Some(port) = port_of_loopback(server) else {
        return server.to_owned();
    };
    for ip in NodeFacts::of_this_machine().ips {
        let Ok(ip) = ip.parse::<IpAddr>() else {
            continue;
        };
        let address = SocketAddr::new(ip, port);
        if matches!(
            timeout(CONNECT, TcpStream::connect(address)).await,
            Ok(Ok(_))
        ) {
            return format!("https://{address}");
        }
    }
    eprintln!(
        "berth: {server} is this machine's own, which no other reaches: start `berth up` with --listen 0.0.0.0:{port}, or say by --server where others reach it"
    );
    server.to_owned()
}

/// None: it isn't the loopback's.
fn port_of_loopback(server: &str) -> Option<u16> {
    let uri = server.parse::<Uri>().ok()?;
    let host = uri.host()?.trim_matches(['[', ']']);
    let is_loopback = match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => host == "localhost",
    };
    is_loopback.then(|| uri.port_u16().unwrap_or(443))
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    // a ByteString's JSON is base64
    let quoted = serde_json::Value::from(text.trim());
    serde_json::from_value::<k8s_openapi::ByteString>(quoted)
        .map(|bytes| bytes.0)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_is_told_from_what_others_reach() {
        for (server, port) in [
            ("https://127.0.0.1:6443", Some(6443)),
            ("https://[::1]:7000", Some(7000)),
            ("https://localhost", Some(443)),
            ("https://10.0.0.1:6443", None),
            ("https://cluster.example:6443", None),
        ] {
            assert_eq!(port_of_loopback(server), port, "{server}");
        }
    }
}
