//! Why a container ended, in its own words: its termination message, or the end of its log.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

use crate::{
    node::Inner,
    observed::{Observed, State},
    pod::Desired,
};

/// Upstream's bounds.
const MAX_BYTES: u64 = 4096;
const MAX_LOG_BYTES: u64 = 2048;
const MAX_LOG_LINES: usize = 80;
/// Of the log file, in which each line has its time and stream in front.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// By the container's id: read once.
#[derive(Debug, Default)]
pub(super) struct Messages(HashMap<String, String>);

impl Messages {
    pub fn fill(&mut self, node: &Inner, pod: &Desired, observed: &mut Observed) {
        for seen in observed
            .containers
            .iter_mut()
            .filter(|seen| seen.state == State::Exited)
        {
            let message = self.0.entry(seen.id.clone()).or_insert_with(|| {
                let own = seen
                    .message_file
                    .as_deref()
                    .map(|path| read(Path::new(path), MAX_BYTES, false))
                    .unwrap_or_default();
                let policy = pod
                    .container(&seen.name)
                    .and_then(|spec| spec.container.termination_message_policy.clone());
                match (own.is_empty(), policy.as_deref(), seen.exit_code) {
                    (true, Some("FallbackToLogsOnError"), code) if code != 0 => {
                        let log = node
                            .log_dir(pod)
                            .join(&seen.name)
                            .join(format!("{}.log", seen.attempt));
                        last_lines(&read(&log, LOG_TAIL_BYTES, true))
                    }
                    (true, ..) => seen.message.clone(),
                    (false, ..) => own,
                }
            });
            seen.message.clone_from(message);
        }
        self.0
            .retain(|id, _| observed.containers.iter().any(|seen| seen.id == *id));
    }
}

/// At most so many bytes of a file, of its beginning or its end. No link is followed and nothing but a file read: what lies there may have been
/// put there by the pod (SEC-KUB-04).
fn read(path: &Path, most: u64, from_end: bool) -> String {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    let Ok(mut file) = opened else {
        return String::new();
    };
    let Ok(metadata) = file.metadata() else {
        return String::new();
    };
    if !metadata.is_file() {
        return String::new();
    }
    if from_end
        && file
            .seek(SeekFrom::Start(metadata.len().saturating_sub(most)))
            .is_err()
    {
        return String::new();
    }
    let mut bytes = Vec::new();
    match file.take(most).read_to_end(&mut bytes) {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

/// The text of the last lines of a log: `TIME STREAM TAG TEXT`.
fn last_lines(log: &str) -> String {
    let texts: Vec<&str> = log
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    let skip = texts.len().saturating_sub(MAX_LOG_LINES);
    let mut text = texts[skip..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    let mut cut = text
        .len()
        .saturating_sub(usize::try_from(MAX_LOG_BYTES).unwrap_or(usize::MAX));
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    text.drain(..cut);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_from_files_alone_and_only_its_part() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "0123456789").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), rustix::fs::Mode::RWXU).unwrap();
        assert_eq!(read(&at("file"), 4, false), "0123");
        assert_eq!(read(&at("file"), 4, true), "6789");
        for name in ["link", "fifo", "none", "."] {
            assert_eq!(read(&at(name), 4, false), "", "{name}");
        }
    }

    #[test]
    fn the_last_lines_of_a_log_are_cut_to_size() {
        let line = |text: &str| format!("2026-01-01T00:00:00Z stderr F {text}\n");
        assert_eq!(
            last_lines(&(line("one") + &line("two words"))),
            "one\ntwo words\n"
        );
        assert_eq!(last_lines(""), "");
        let many: String = (0..100).map(|n| line(&n.to_string())).collect();
        assert!(last_lines(&many).starts_with("20\n21\n"));
        let long = last_lines(&line(&"é".repeat(3000)));
        assert!(long.len() <= 2048 && long.ends_with("é\n"));
    }
}
