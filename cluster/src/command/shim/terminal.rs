//! The person's terminal, raw for as long as a container has it.

use std::io::{stdin, stdout};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Where no terminal says otherwise.
const DEFAULT_SIZE: (u32, u32) = (80, 24);

/// stdin in raw mode; as it was before when this is dropped, also by a panic.
#[derive(Debug)]
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// None: stdin is no terminal.
    pub fn enter() -> Option<Self> {
        if !isatty(stdin()) {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Not `Drain`: output that nobody takes any more must not hold it up.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// Columns and rows.
pub fn size() -> (u32, u32) {
    let size = [tcgetwinsize(stdin()), tcgetwinsize(stdout())]
        .into_iter()
        .flatten()
        .find(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or(DEFAULT_SIZE, |size| {
        (size.ws_col.into(), size.ws_row.into())
    })
}
