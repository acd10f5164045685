//! What a shim did to a step of ours. Who asked adds the shim's name and the step.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use ttrpc::Code;

/// Of what a shim says, as much goes into an error: runc's carry the end of its log.
const MAX_SHOWN_BYTES: usize = 2048;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// A shim that lives has said no.
    #[error("{message} ({code:?})")]
    Refused { code: Code, message: String },
    #[error("no answer for {}: it hangs", shown(.0))]
    Hangs(Duration),
    #[error("it has died: {0}")]
    Died(String),
    /// What it says makes no sense.
    #[error("{0}")]
    Garbage(String),
    /// Its program could not be executed: nothing has run.
    #[error("cannot run {}: {error}", program.display())]
    NotRun {
        program: PathBuf,
        error: Arc<io::Error>,
    },
    #[error("{0}")]
    Failed(String),
    #[error("{0}; its log ends with: {1}")]
    Logged(Box<Failure>, String),
}

impl Failure {
    /// Without what was added to it.
    pub fn bare(&self) -> &Failure {
        match self {
            Failure::Logged(failure, _) => failure.bare(),
            failure => failure,
        }
    }
}

fn shown(time: &Duration) -> String {
    match time.subsec_millis() {
        0 => format!("{} s", time.as_secs()),
        _ => format!("{} ms", time.as_millis()),
    }
}

/// The end of what a program has said, without what a terminal would take for commands.
pub fn last_words(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(MAX_SHOWN_BYTES);
    String::from_utf8_lossy(&bytes[from..])
        .trim()
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect()
}

/// One short line of what a shim has said, for logs and answers.
pub fn line(text: &str) -> String {
    let mut shown: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if shown.len() > MAX_SHOWN_BYTES {
        let cut = (0..=MAX_SHOWN_BYTES)
            .rev()
            .find(|at| shown.is_char_boundary(*at));
        shown.truncate(cut.unwrap_or(0));
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shim_says_is_short_and_no_terminals_command() {
        assert_eq!(line(" a\nb\x1b[1m "), "a b [1m");
        let long = line(&"ä".repeat(MAX_SHOWN_BYTES));
        assert!(long.len() <= MAX_SHOWN_BYTES + '…'.len_utf8() && long.ends_with('…'));
        assert_eq!(last_words(b"a\nb\x1b[1m "), "a\nb [1m");
        assert!(last_words(&[b'x'; 10_000]).len() <= MAX_SHOWN_BYTES);
    }

    #[test]
    fn a_time_is_shown_as_it_was_given() {
        for (time, text) in [(2000, "2 s"), (300, "300 ms"), (1500, "1500 ms")] {
            let failure = Failure::Hangs(Duration::from_millis(time)).to_string();
            assert!(failure.contains(text), "{failure}");
        }
    }
}
