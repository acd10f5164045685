//! What a shim holds when it has nothing to do: there is one for each pod of a node.

use std::{fs, time::Duration};

use berth_proto::shim::api::ConnectRequest;

use crate::harness::{Pod, Shim, ctx};

/// Longer than it takes until a shim that nobody calls has come to rest.
const REST: Duration = Duration::from_millis(1500);
/// Execs that a first measurement follows, so that what they need once is there.
const FIRST: usize = 300;
const MORE: usize = 1200;
/// By [`MORE`] execs. A heap that is cut otherwise, by some pages, is no growth; a block of 60 bytes kept of each exec would be.
const MAX_GROWTH_KIB: u64 = 64;

/// A line of /proc/PID/status, KiB.
fn kib(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line
        .unwrap()
        .trim_start_matches(':')
        .trim_end_matches(" kB");
    number.trim().parse().unwrap()
}

async fn execs(shim: &Shim, count: usize) {
    for _ in 0..count {
        let done = shim.exec("c", &["true"], 20_000).await.unwrap();
        assert_eq!(done.exit_code, 0);
    }
}

#[tokio::test]
async fn a_shim_at_rest_gives_back_its_code_and_does_not_grow_by_execs() {
    let pod = Pod::new();
    let shim = pod.up().await;
    pod.run_container(&shim, "c", &["sleep", "1000"]).await;
    let request = ConnectRequest::new();
    let pid = shim.task.connect(ctx(), &request).await.unwrap().shim_pid;

    execs(&shim, FIRST).await;
    let busy = kib(pid, "RssFile");
    tokio::time::sleep(REST).await;
    let (code, before) = (kib(pid, "RssFile"), kib(pid, "RssAnon"));
    assert!(
        code * 2 < busy,
        "{busy} KiB of code in use, {code} KiB at rest"
    );

    execs(&shim, MORE).await;
    tokio::time::sleep(REST).await;
    let after = kib(pid, "RssAnon");
    assert!(
        after <= before + MAX_GROWTH_KIB,
        "{before} KiB after {FIRST} execs, {after} KiB after {MORE} more"
    );
    shim.stop(&pod).await;
    shim.shutdown(&pod).await;
}
