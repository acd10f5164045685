//! The launcher, as the shim sees it ([`Zygote`]) and as it lives ([`run`]).
//!
//! libcontainer changes its whole process (working directory, dumpable, oom_score_adj) and hangs where another thread holds a
//! lock, so it gets processes of its own: the zygote is forked before the shim has a second thread, holds nothing but one
//! socket and `/dev/null`, and forks a worker a request. Workers of different requests overlap.
//!
//! # Synchronization
//! A container's init is a worker's child, and becomes the shim's when the worker has exited: the shim is a subreaper, the
//! zygote is not. Only the zygote, which waits for the worker, can tell when that has happened, so [`Zygote::call`] returns
//! after its word. An init that ended before that is a zombie which passes to the shim like a living one.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Mutex,
};

use berth_kernel::{
    clone::{Clone, SingleThreaded},
    code, descriptors, heap, pidfd, stack,
};
use nix::sys::prctl;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use serde::Serialize;

use crate::{
    Error, Maker, channel,
    request::{Answer, Ended, Operation},
    worker::{self, Made},
};

/// The most requests in flight: each is a process. More wait for their turn in the control socket.
const MAX_WORKERS: usize = 32;

/// Without work for so long, the launcher gives back what it holds for the next: there is one a pod.
const REST: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// What new containers start from where their spec says nothing.
const UMASK: u32 = 0o022;

/// The launcher: a single-threaded child that makes containers for this process. It ends when this is dropped.
#[derive(Debug)]
pub struct Zygote {
    /// Whole datagrams are sent; the lock only lets [`Drop`] close it.
    control: Mutex<Option<OwnedFd>>,
    pid: i32,
    pidfd: OwnedFd,
}

impl Zygote {
    /// Makes this process a subreaper and forks the launcher. Call it from `main` before any thread exists (EDEADLK
    /// otherwise).
    pub fn spawn() -> Result<Zygote, Error> {
        let single_threaded = SingleThreaded::prove().map_err(Error::io(
            "fork the launcher (a process with one thread is needed)",
        ))?;
        prctl::set_child_subreaper(true).map_err(|e| Error::io("become a subreaper")(e.into()))?;
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(Error::errno("make the launcher's socket"))?;
        let shim = rustix::process::getpid();
        let child = Clone::default()
            .spawn(single_threaded, || run(&theirs, shim, single_threaded))
            .map_err(Error::io("fork the launcher"))?;
        Ok(Zygote {
            control: Mutex::new(Some(ours)),
            pid: child.pid,
            pidfd: child.pidfd,
        })
    }

    /// The launcher's own process, for those who reap or account for every child.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// One request, to the end of its worker: pid and notes, and the descriptors that came back.
    pub(crate) fn call(
        &self,
        operation: Operation,
        request: &impl Serialize,
        optional: [Option<BorrowedFd<'_>>; channel::MAX_DESCRIPTORS - 1],
    ) -> Result<Made, Error> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(Error::errno("make a request's socket"))?;
        let present = optional
            .iter()
            .enumerate()
            .fold(0u8, |bits, (at, fd)| bits | u8::from(fd.is_some()) << at);
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(optional.iter().flatten());
        {
            let control = self
                .control
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            let control = control
                .as_ref()
                .ok_or_else(|| Error::Zygote("has been shut down".into()))?;
            channel::send(control, &[operation as u8, present], &descriptors)
                .map_err(Error::io("ask the launcher"))?;
        }
        drop(theirs);
        let died = || Error::Zygote("ended without an answer".into());
        let sent = channel::send_value(&ours, request, &[]);
        if sent.is_err() {
            // The worker would wait for the rest.
            let _ = rustix::net::shutdown(&ours, rustix::net::Shutdown::Write);
        }
        let mut answer = None;
        // The worker's word, then the zygote's; a worker that dies leaves only the second.
        let ended = loop {
            let step = Error::io("read the launcher's answer");
            let received = channel::receive_value::<serde_json::Value>(&ours).map_err(step)?;
            let Some((value, descriptors)) = received else {
                return Err(died());
            };
            let nonsense = |e: serde_json::Error| Error::Zygote(format!("answered nonsense: {e}"));
            if value.get("exit_code").is_some() {
                break serde_json::from_value::<Ended>(value).map_err(nonsense)?;
            }
            answer = Some((
                serde_json::from_value::<Answer>(value).map_err(nonsense)?,
                descriptors,
            ));
        };
        // Refused before a byte went; any other failure to send has a better reason in the answer.
        if let Err(error) = sent
            && error.kind() == std::io::ErrorKind::InvalidInput
        {
            return Err(Error::io("send a request to the launcher")(error));
        }
        match answer {
            Some((Answer::Made { pid, maker, notes }, descriptors)) => Ok(Made {
                pid,
                maker,
                notes,
                descriptors,
            }),
            Some((Answer::Failed(failure), unreaped)) => {
                // A pause that was killed half made is our child.
                for child in unreaped {
                    let _ = pidfd::wait(child);
                }
                Err(failure.into())
            }
            None => Err(Error::Worker {
                exit_code: ended.exit_code,
            }),
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // It ends when its socket closes.
        self.control
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let _ = pidfd::wait(&self.pidfd);
    }
}

/// A worker at work.
struct Worker {
    pidfd: OwnedFd,
    reply: OwnedFd,
}

/// The zygote's life: answers with its exit code.
fn run(control: &OwnedFd, shim: rustix::process::Pid, single_threaded: SingleThreaded) -> i32 {
    if settle(control).is_err() {
        return 1;
    }
    let mut workers: Vec<Worker> = Vec::new();
    let mut rested = false;
    loop {
        let mut sources: Vec<PollFd<'_>> = workers
            .iter()
            .map(|w| PollFd::new(&w.pidfd, PollFlags::IN))
            .collect();
        if workers.len() < MAX_WORKERS {
            sources.push(PollFd::new(control, PollFlags::IN));
        }
        let patience = (!rested && workers.is_empty()).then_some(&REST);
        match poll(&mut sources, patience) {
            Ok(0) => {
                rested = true;
                drop(sources);
                heap::give_back();
                stack::give_back();
                code::give_back();
                continue;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return 1,
        }
        rested = false;
        let ready: Vec<bool> = sources
            .iter()
            .map(|source| !source.revents().is_empty())
            .collect();
        drop(sources);
        let asked = ready.get(workers.len()).copied().unwrap_or(false);
        for at in (0..workers.len()).rev() {
            if ready[at] {
                let Worker { pidfd, reply } = workers.swap_remove(at);
                let exit_code = pidfd::wait(pidfd).map_or(-1, pidfd::Exit::code);
                // The asker may be gone: its matter.
                let _ = channel::send_value(&reply, &Ended { exit_code }, &[]);
            }
        }
        if asked {
            let mut header = [0; 2];
            match channel::receive(control, &mut header) {
                // The shim is gone.
                Ok((0, _)) => return 0,
                Ok((2, descriptors)) => {
                    if let Some(worker) = accept(header, descriptors, shim, single_threaded) {
                        workers.push(worker);
                    }
                }
                Ok(_) => {}
                Err(_) => return 1,
            }
        }
    }
}

/// Takes off what a fork of the shim brings along (SEC-ENG-01): descriptors, groups, umask, ignored signals.
fn settle(control: &OwnedFd) -> std::io::Result<()> {
    descriptors::close_all_but(&[control.as_fd()])?;
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    berth_kernel::signals::restore_defaults()?;
    prctl::set_name(c"berth-zygote")?;
    prctl::set_dumpable(false)?;
    // Where a spec names no groups, libcontainer sets none: these would be the daemon's.
    rustix::thread::set_thread_groups(&[])?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(UMASK));
    // A working directory would keep its mount busy.
    rustix::process::chdir("/")?;
    Ok(())
}

/// Starts what was asked for.
fn accept(
    header: [u8; 2],
    mut descriptors: Vec<OwnedFd>,
    shim: rustix::process::Pid,
    single_threaded: SingleThreaded,
) -> Option<Worker> {
    let operation = Operation::decode(header[0])?;
    let expected = 1 + header[1].count_ones() as usize;
    if descriptors.len() != expected || header[1] >= 1 << (channel::MAX_DESCRIPTORS - 1) {
        return None;
    }
    let reply = descriptors.remove(0);
    let mut rest = descriptors.into_iter();
    let mut optional: worker::Descriptors = std::array::from_fn(|_| None);
    for (at, slot) in optional.iter_mut().enumerate() {
        if header[1] & (1 << at) != 0 {
            *slot = rest.next();
        }
    }
    if operation == Operation::Pause {
        // Not by a worker: the pause's death signal is bound to the life of the process that is its parent, and a sibling of the
        // zygote has the shim's main thread for a parent from its first instant.
        let [netns, ..] = &optional;
        let (made, children) = crate::pause::make(&reply, netns.as_ref(), shim);
        let answer = match made {
            Ok(pid) => Answer::Made {
                pid,
                maker: Maker::Native,
                notes: Vec::new(),
            },
            Err(error) => Answer::Failed(error.into()),
        };
        let passed: Vec<_> = children.iter().map(AsFd::as_fd).collect();
        let _ = channel::send_value(&reply, &answer, &passed);
        let _ = channel::send_value(&reply, &Ended { exit_code: 0 }, &[]);
        return None;
    }
    let spawned = Clone::default().spawn(single_threaded, || {
        let mut keep = vec![reply.as_fd()];
        keep.extend(optional.iter().flatten().map(AsFd::as_fd));
        if descriptors::close_all_but(&keep).is_err() {
            return 1;
        }
        worker::run(operation, &reply, std::mem::take(&mut optional))
    });
    match spawned {
        Ok(child) => Some(Worker {
            pidfd: child.pidfd,
            reply,
        }),
        Err(error) => {
            let failure = Error::io("fork a worker")(error).into();
            let _ = channel::send_value(&reply, &Answer::Failed(failure), &[]);
            let _ = channel::send_value(&reply, &Ended { exit_code: -1 }, &[]);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_can_not_have_a_launcher() {
        let error = Zygote::spawn().unwrap_err().to_string();
        assert!(error.contains("one thread"), "{error}");
    }
}
