//! Plugins that outlived the daemon that started them.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};

/// A process that forks while it is looked for is found in the next round.
const ROUNDS: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// Ends what still runs of an ADD of this pod: it would make what DEL just removed. They are told by their environment, where the pod's
/// id (256 random bits) stands in CNI_CONTAINERID.
pub fn kill(pod_id: &str) {
    for _ in 0..ROUNDS {
        let found = find(pod_id);
        if found.is_empty() {
            return;
        }
        for pid in found {
            tracing::warn!(
                pod_id,
                pid = pid.as_raw(),
                "killing a CNI plugin of a daemon that died"
            );
            let _ = send(pid, Signal::SIGKILL);
        }
        std::thread::sleep(PAUSE);
    }
}

fn find(pod_id: &str) -> Vec<Pid> {
    let variable = format!("CNI_CONTAINERID={pod_id}");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            environment
                .split(|b| *b == 0)
                .any(|v| v == variable.as_bytes())
                .then(|| Pid::from_raw(pid))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_processes_with_the_pods_id_are_ended() {
        let start = |id: &str| {
            let mut sleep = Command::new("sleep");
            sleep.arg("1000").env("CNI_CONTAINERID", id);
            sleep.spawn().unwrap()
        };
        let id = format!("straggler-{}", std::process::id());
        let (mut mine, mut other) = (start(&id), start(&format!("{id}0")));
        kill(&id);
        let ended = mine.try_wait().unwrap().is_some();
        let lives = other.try_wait().unwrap().is_none();
        let _ = (mine.kill(), other.kill(), mine.wait(), other.wait());
        assert!(ended && lives, "ended: {ended}, the other lives: {lives}");
    }
}
