//! One file a command.

pub mod audit;
pub mod checkpoint;
pub mod controllers;
pub mod down;
pub mod exec;
pub mod image;
pub mod join;
pub mod kubelet;
pub mod logs;
pub mod pod;
pub mod progress;
pub mod run;
pub mod scheduler;
pub mod shell;
pub mod shim;
pub mod status;
pub mod token;
pub mod up;
pub mod version;

use std::{io::IsTerminal, path::Path, time::Duration};

use http::{HeaderValue, header};
use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{error::Error, rest};

/// An API server must take a connection within it.
const CONNECT: Duration = Duration::from_secs(5);
const USER_AGENT: &str = concat!("berth/", env!("CARGO_PKG_VERSION"));

/// By a kubeconfig's current context. Asks the server nothing yet.
async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    client_of(kubeconfig, |_| ()).await
}

/// The same without anything that says who asks.
async fn nobody(kubeconfig: &Path) -> Result<Client, Error> {
    client_of(kubeconfig, |config| config.auth_info = AuthInfo::default()).await
}

async fn client_of(kubeconfig: &Path, change: impl FnOnce(&mut Config)) -> Result<Client, Error> {
    let what = format!("cannot use the kubeconfig {}", kubeconfig.display());
    let read = Kubeconfig::read_from(kubeconfig).map_err(|error| Error::Invalid {
        what: what.clone(),
        why: reasons(&error),
    })?;
    client_by(read, what, change).await
}

async fn client_by(
    read: Kubeconfig,
    what: String,
    change: impl FnOnce(&mut Config),
) -> Result<Client, Error> {
    let failed = |why: String| Error::Invalid {
        what: what.clone(),
        why,
    };
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .map_err(|error| failed(error.to_string()))?;
    config.connect_timeout = Some(CONNECT);
    let agent = HeaderValue::from_static(USER_AGENT);
    config.headers.push((header::USER_AGENT, agent));
    change(&mut config);
    Client::try_from(config).map_err(|error| failed(error.to_string()))
}

/// What an error says, with what its causes say that it does not: "client error (Connect)" alone is no reason.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Cancelled by SIGTERM or SIGINT.
fn ended() -> Result<CancellationToken, Error> {
    let ends = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal = signal(kind).map_err(|source| Error::Invalid {
            what: "cannot wait for signals".into(),
            why: source.to_string(),
        })?;
        let ends = ends.clone();
        tokio::spawn(async move {
            signal.recv().await;
            ends.cancel();
        });
    }
    Ok(ends)
}

/// Of a command that goes on: what it does is logged to stderr, as BERTH_LOG says (info by default), and at rest it holds little.
fn serve() {
    log_from("info");
    tokio::spawn(rest::tidy());
}

/// To stderr, as BERTH_LOG says, or else from `level` on.
fn log_from(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("BERTH_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("{level},kube_client=off")));
    // a second one in a process is not wanted, and not an error
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("client error (Connect)")]
    struct Connect(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("ServiceError: {0}")]
    struct Service(#[source] Connect);

    #[test]
    fn an_error_is_told_with_its_causes_and_nothing_twice() {
        let refused = io::Error::other("connection refused");
        assert_eq!(
            reasons(&Service(Connect(refused))),
            "ServiceError: client error (Connect): connection refused"
        );
    }
}
