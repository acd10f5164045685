//! What the kubelet weighs, and how much of a processor it takes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use berth_tests::process;
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use crate::{cluster::Cluster, report::Figures};

/// Its memory at the end of `window`, and its part of one processor in it.
pub async fn over(
    cluster: &Cluster,
    window: Duration,
    when: &str,
    figures: &mut Figures,
) -> Result<()> {
    let (begin, before) = (Instant::now(), busy(cluster.kubelet_pid())?);
    tokio::time::sleep(window).await;
    let busy = busy(cluster.kubelet_pid())?.saturating_sub(before);
    let percent = busy.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    figures.tell(&format!("{when}, % of a core"), percent);
    figures.tell(&format!("{when}, MiB"), pss_mib(cluster));
    Ok(())
}

pub fn pss_mib(cluster: &Cluster) -> f64 {
    process::pss_kib(cluster.kubelet_pid()) / 1024.0
}

/// How long all threads have run, those that have ended among them. A clock tick is too coarse for what takes a thousandth of a core.
fn busy(pid: i32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid)).context("the kubelet has ended")?;
    Ok(clock_gettime(clock)?.into())
}
