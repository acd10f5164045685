//! What the kubelet weighs, and how much of a processor it takes.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use berth_tests::process;

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

/// How long all threads have run. A clock tick is too coarse for what takes a thousandth of a core.
fn busy(pid: i32) -> Result<Duration> {
    let tasks = format!("/proc/{pid}/task");
    let mut nanoseconds = 0;
    for task in fs::read_dir(&tasks).with_context(|| tasks.clone())? {
        let path = task?.path().join("schedstat");
        // one that has ended meanwhile is not worth the whole figure
        let text = fs::read_to_string(path).unwrap_or_default();
        let first = text.split_whitespace().next();
        nanoseconds += first.and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}
