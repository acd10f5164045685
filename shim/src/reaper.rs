//! The one place that waits for children: what the engine made, and what was orphaned below and adopted (the shim is a
//! subreaper). REL-10.
//!
//! # Synchronization
//! A child may end before the call that makes it has answered with its pid. While such a call is under way ([`Reaper::making`]),
//! the exits of pids that nobody waits for are kept; with none under way they are orphans' and forgotten, so that a pid which
//! the kernel gives out again can't be taken for a dead one. A pid can't be given out again before it was reaped here: until
//! then a signal by pid reaches the process that was meant.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use rustix::process::{WaitOptions, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{clock, error::Error};

/// Exits kept while processes are being made: far more than calls can be under way; the oldest goes first.
const MAX_KEPT: usize = 4096;

/// How and when a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 128 + signal for a death by signal
    pub code: i32,
    /// ns since the epoch
    pub at: i64,
}

#[derive(Debug, Default)]
pub struct Reaper {
    table: Mutex<Table>,
    /// Held while a child is made whose pid is to be opened.
    making: Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<Exit>>,
    kept: VecDeque<(i32, Exit)>,
    making: usize,
}

/// While it lives, exits of unknown pids are kept.
#[derive(Debug)]
pub struct Making(Arc<Reaper>);

impl Drop for Making {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.making -= 1;
        if table.making == 0 {
            table.kept = VecDeque::new();
        }
    }
}

impl Reaper {
    /// Call it before a process is made; keep what it answers until [`Making::register`].
    pub fn making(self: &Arc<Self>) -> Making {
        self.lock().making += 1;
        Making(self.clone())
    }

    /// Nothing is reaped while the answer lives: for the instant between a fork and the opening of the child's pid.
    pub fn hold_off(&self) -> MutexGuard<'_, ()> {
        self.making
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Reaps on every SIGCHLD, for the life of the shim.
    pub async fn run(self: Arc<Self>) -> Result<(), Error> {
        let mut child = signal(SignalKind::child()).map_err(Error::io("listen for SIGCHLD"))?;
        loop {
            // Signals are merged: one SIGCHLD may stand for many children, and some may have ended before the handler stood.
            self.reap();
            if child.recv().await.is_none() {
                return Err(Error::Lost("the SIGCHLD handler"));
            }
        }
    }

    /// Reaps all that have ended.
    fn reap(&self) {
        let _no_child_is_being_made = self.hold_off();
        // rustix and not nix: nix has no name for a real-time signal and would lose that exit.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            if let Some(code) = code {
                self.note(
                    pid.as_raw_nonzero().get(),
                    Exit {
                        code,
                        at: clock::now_ns(),
                    },
                );
            }
        }
    }

    /// Takes in an exit that this process did not reap, for whoever waits for it already.
    pub fn note_awaited(&self, pid: i32, exit: Exit) {
        let waiting = self.lock().waiting.remove(&pid);
        if let Some(waiting) = waiting {
            let _ = waiting.send(exit);
        }
    }

    /// Takes in an exit: reaped here, or told by who reaped it.
    pub fn note(&self, pid: i32, exit: Exit) {
        let mut table = self.lock();
        if let Some(waiting) = table.waiting.remove(&pid) {
            // Nobody waits any longer: its owner gave up.
            let _ = waiting.send(exit);
        } else if table.making > 0 {
            if table.kept.len() == MAX_KEPT {
                table.kept.pop_front();
            }
            table.kept.push_back((pid, exit));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Making {
    /// The exit of the process that was made, past or to come.
    pub fn register(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.0.lock();
        if let Some(at) = table.kept.iter().position(|(kept, _)| *kept == pid) {
            if let Some((_, exit)) = table.kept.remove(at) {
                let _ = sender.send(exit);
            }
        } else {
            table.waiting.insert(pid, sender);
        }
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { code: 3, at: 1 };

    #[test]
    fn an_exit_before_its_pid_is_known_is_not_lost() {
        let reaper = Arc::new(Reaper::default());
        let making = reaper.making();
        reaper.note(7, EXIT);
        assert_eq!(making.register(7).try_recv(), Ok(EXIT));
    }

    #[test]
    fn an_exit_after_its_pid_is_known_reaches_its_owner() {
        let reaper = Arc::new(Reaper::default());
        let mut exit = reaper.making().register(7);
        reaper.note(8, Exit { code: 1, at: 1 });
        assert!(exit.try_recv().is_err());
        reaper.note(7, EXIT);
        assert_eq!(exit.try_recv(), Ok(EXIT));
    }

    #[test]
    fn an_orphan_with_the_same_pid_is_not_taken_for_a_later_process_rel_11() {
        let reaper = Arc::new(Reaper::default());
        reaper.note(7, EXIT);
        let first = reaper.making();
        reaper.note(8, EXIT);
        drop(first);
        let making = reaper.making();
        assert!(making.register(7).try_recv().is_err());
        assert!(making.register(8).try_recv().is_err());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let reaper = Arc::new(Reaper::default());
        let _making = reaper.making();
        for pid in 1..=(MAX_KEPT as i32 + 10) {
            reaper.note(pid, EXIT);
        }
        assert_eq!(reaper.lock().kept.len(), MAX_KEPT);
    }
}
