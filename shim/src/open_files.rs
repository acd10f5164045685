//! Open files of processes, as /proc shows them.

use std::{fs, io, path::Path};

use berth_proto::shim::v1::pod::FileStats;

/// Links of one container that are read to tell sockets from files: some 50 ms of work. What is open beyond is counted, and not looked at.
const MAX_LOOKED_AT: usize = 32 * 1024;

/// Of `pids`; the limit is that of `init`. Processes that end meanwhile are left out.
pub fn of(pids: &[i32], init: i32) -> FileStats {
    let mut left = MAX_LOOKED_AT;
    let mut stats = FileStats {
        max_open_files: soft_limit(init),
        ..Default::default()
    };
    for pid in pids {
        let dir = format!("/proc/{pid}/fd");
        let _ = count(Path::new(&dir), &mut left, &mut stats);
    }
    stats
}

fn count(dir: &Path, left: &mut usize, stats: &mut FileStats) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        stats.descriptors += 1;
        if *left == 0 {
            continue;
        }
        *left -= 1;
        let link = fs::read_link(entry?.path());
        let is_socket = |target: &Path| target.to_string_lossy().starts_with("socket:[");
        stats.sockets += u64::from(link.is_ok_and(|target| is_socket(&target)));
    }
    Ok(())
}

/// `None`: unlimited, or the process is gone.
fn soft_limit(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn files_and_sockets_of_a_process_are_counted() {
        let me = std::process::id() as i32;
        let before = of(&[me], me);
        let _file = File::open("/dev/null").unwrap();
        let _pair = UnixStream::pair().unwrap();
        let after = of(&[me], me);
        // Other tests of this process open and close files meanwhile.
        assert!(after.sockets >= 2 && after.descriptors >= 3, "{after:?}");
        assert!(after.descriptors >= after.sockets && before.descriptors > 0);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(after.max_open_files, limit.current);
    }

    #[test]
    fn a_process_that_is_gone_has_no_files() {
        let gone = of(&[i32::MAX], i32::MAX);
        assert_eq!((gone.descriptors, gone.max_open_files), (0, None));
    }
}
