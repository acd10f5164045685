//! systemd's watchdog (`WatchdogSec=`, sd_watchdog_enabled(3)): word that this daemon works, as long as it does.
//!
//! What is asked is what a kubelet asks: a call over the daemon's own socket, through its listener, its runtime and a lock of the pods. A daemon
//! that hangs there is silent, and systemd ends it and starts it anew; no pod is touched by that.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use berth_proto::cri::{ListPodSandboxRequest, runtime_service_client::RuntimeServiceClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;

use crate::notify;

/// No pod is called so: the answer is empty, however many there are.
const NOBODY: &str = "watchdog";

/// How often systemd wants to hear from us, where it does; twice as often as it would act.
pub fn interval() -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    of(
        number("WATCHDOG_USEC"),
        number("WATCHDOG_PID"),
        std::process::id().into(),
    )
}

/// The variables are for the process that they name: a child inherits them.
fn of(watchdog_us: Option<u64>, for_pid: Option<u64>, own_pid: u64) -> Option<Duration> {
    if for_pid.is_some_and(|pid| pid != own_pid) {
        return None;
    }
    watchdog_us
        .filter(|us| *us > 0)
        .map(|us| Duration::from_micros(us) / 2)
}

/// Never ends.
pub async fn keep(socket: PathBuf, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match tokio::time::timeout(interval, ask(&socket)).await {
            Ok(Ok(())) => notify::tell("WATCHDOG=1"),
            Ok(Err(error)) => tracing::error!("watchdog: our own socket answers: {error}"),
            Err(_) => tracing::error!("watchdog: our own socket does not answer in {interval:?}"),
        }
    }
}

async fn ask(socket: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name is not looked up: the connector knows where to.
    let channel = Endpoint::from_static("http://berthd")
        .connect_with_connector(connect)
        .await?;
    let mut request = ListPodSandboxRequest::default();
    request.filter.get_or_insert_default().id = NOBODY.into();
    RuntimeServiceClient::new(channel)
        .list_pod_sandbox(request)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_is_told_twice_as_often_as_it_acts_and_by_whom_it_asked() {
        let half = Some(Duration::from_secs(15));
        for (us, pid, expected) in [
            (Some(30_000_000), Some(7), half),
            (Some(30_000_000), None, half),
            (Some(30_000_000), Some(8), None),
            (Some(0), Some(7), None),
            (None, Some(7), None),
        ] {
            assert_eq!(of(us, pid, 7), expected, "{us:?} {pid:?}");
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_no_sign_of_life() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ask(&dir.path().join("none")).await.is_err());
    }
}
