//! Signals, as the shim's one loop hears them: by a pipe (`berth_kernel::signals::pipe`). tokio's own hold 23 KiB for all the signals that
//! there are.

use std::{io, sync::Arc};

use rustix::process::Signal;
use tokio::net::unix::pipe::Receiver;

use crate::{error::Error, journal, reaper::Reaper};

/// Reaps on SIGCHLD, for the life of the shim. A stray signal (a service manager that stops its whole control group) must not take the
/// pod with it: it ends by ShutdownSandbox. Handlers and not SIG_IGN, which the container would inherit.
pub async fn heed(reaper: Arc<Reaper>) -> Result<(), Error> {
    let heeded = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::HUP];
    let pipe = berth_kernel::signals::pipe(&heeded.map(Signal::as_raw))
        .and_then(Receiver::from_owned_fd)
        .map_err(Error::io("listen for signals"))?;
    // Some may have ended before there was a handler.
    reaper.reap();
    let mut numbers = [0; 64];
    loop {
        pipe.readable()
            .await
            .map_err(Error::io("wait for signals"))?;
        let read = match pipe.try_read(&mut numbers) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(Error::io("read which signals came")(error)),
        };
        let has = |signal: Signal| numbers[..read].contains(&(signal.as_raw() as u8));
        // One SIGCHLD may stand for many children.
        if has(Signal::CHILD) {
            reaper.reap();
        }
        for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
            if has(signal) {
                journal!("{name} is ignored; a pod ends by ShutdownSandbox");
            }
        }
    }
}
