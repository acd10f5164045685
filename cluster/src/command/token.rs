//! `berth token`: what machines join by.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use kube::config::Kubeconfig;

use super::up::{DATA, cluster_of};
use crate::{
    error::Error,
    host::{failed, file, pin, token},
    output::text_out,
};

#[derive(Debug, Subcommand)]
pub enum Token {
    Create(Create),
}

/// Make a token, and print the command by which a machine joins with it
#[derive(Debug, Args)]
pub struct Create {
    /// The admin's kubeconfig
    #[arg(long, value_name = "FILE", default_value_os_t = PathBuf::from(DATA).join("admin.kubeconfig"))]
    kubeconfig: PathBuf,
    /// For how long it is good, as 24h or 30m
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = berth_kubelet::duration)]
    ttl: Duration,
}

impl Token {
    pub async fn run(self) -> Result<ExitCode, Error> {
        let Self::Create(create) = self;
        let client = super::client(&create.kubeconfig).await?;
        let cluster = cluster_of(&create.kubeconfig)?;
        let unusable =
            |why: &str| failed(format!("cannot use {}", create.kubeconfig.display()), why);
        let server = cluster["server"]
            .as_str()
            .ok_or_else(|| unusable("it names no server"))?;
        let read = Kubeconfig::read_from(&create.kubeconfig)
            .map_err(|error| unusable(&error.to_string()))?;
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
        text_out(&format!(
            "berth join {server} --token {token} --ca-cert-hash {hash}\n"
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn base64(text: &str) -> Result<Vec<u8>, String> {
    // a ByteString's JSON is base64
    let quoted = serde_json::Value::from(text.trim());
    serde_json::from_value::<k8s_openapi::ByteString>(quoted)
        .map(|bytes| bytes.0)
        .map_err(|error| error.to_string())
}
