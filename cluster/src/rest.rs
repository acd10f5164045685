//! What a long-lived command does once it has come to rest: it gives back what it needed to do its work. A node's parts rest most of their lives.

use std::time::Duration;

use berth_kernel::{code, heap};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// Between two looks at the clock of the processor that it has used.
const LOOK: Duration = Duration::from_secs(2);
/// At rest: less than this, of a processor's time, between two looks.
const LITTLE: Duration = Duration::from_millis(10);
/// And it has done more than this since it was last tidied: what it gives back comes again as it is touched, which is work as well.
const MUCH: Duration = Duration::from_millis(50);

/// For the life of the process: the free pages of the heap and, since the page cache has them, those of the code, back to the kernel.
pub async fn tidy() {
    let (mut before, mut tidied) = (Duration::ZERO, Duration::ZERO);
    loop {
        sleep(LOOK).await;
        let used = used();
        if used - before < LITTLE && used - tidied > MUCH {
            heap::give_back();
            code::give_back();
            tidied = self::used();
        }
        before = used;
    }
}

/// Of all threads, those that have ended among them.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.split_whitespace().next())
            .and_then(|kib| kib.parse().ok())
            .unwrap()
    }

    /// Its own clock is not waited for: tokio's is.
    #[tokio::test(start_paused = true)]
    async fn what_was_freed_goes_back_once_the_process_rests() {
        // many small ones, of which the last keeps the heap's end where it is
        let mut all: Vec<Box<[u8; 1000]>> = (0..64_000).map(|_| Box::new([7; 1000])).collect();
        let last = all.pop();
        let full = resident_kib();
        drop(all);
        let begun = used();
        while used() - begun < MUCH * 2 {
            std::hint::black_box(
                last.as_ref()
                    .map(|last| last.iter().map(|byte| u64::from(*byte)).sum::<u64>()),
            );
        }
        let _ = tokio::time::timeout(LOOK * 3, tidy()).await;
        let now = resident_kib();
        assert!(now + 50_000 < full, "{full} KiB, then {now}");
        drop(last);
    }
}
