//! One request, in a process of its own: a fork of the zygote that may do what it likes to itself.

use std::os::fd::{AsFd, OwnedFd};

use serde::de::DeserializeOwned;

use crate::{
    Error, Maker, Stdio, channel,
    hooks::{self, HooksRequest},
    keyring,
    request::{Answer, CheckpointRequest, CreateRequest, ExecRequest, Operation},
};

/// What may travel with a request: stdin, stdout, stderr, and the pidfd of a container's init.
pub(crate) type Descriptors = [Option<OwnedFd>; channel::MAX_DESCRIPTORS - 1];

/// What a request made.
#[derive(Debug)]
pub(crate) struct Made {
    pub pid: i32,
    pub maker: Maker,
    pub notes: Vec<String>,
    pub descriptors: Vec<OwnedFd>,
}

/// The worker's life; answers with its exit code.
pub(crate) fn run(operation: Operation, reply: &OwnedFd, descriptors: Descriptors) -> i32 {
    let made = match operation {
        Operation::Create => request(reply).and_then(|request: CreateRequest| {
            keyring::join(&request.id)?;
            crate::init::create(&request, stdio(descriptors).0, reply)
        }),
        Operation::Exec => request(reply).and_then(|request: ExecRequest| {
            keyring::join(&request.id)?;
            let (stdio, init) = stdio(descriptors);
            let init =
                init.ok_or_else(|| Error::Zygote("exec without the pidfd of init".into()))?;
            crate::exec::exec(&request, stdio, &init)
        }),
        Operation::Checkpoint => request(reply).and_then(|request: CheckpointRequest| {
            let (_, init) = stdio(descriptors);
            let init =
                init.ok_or_else(|| Error::Zygote("checkpoint without the pidfd of init".into()))?;
            crate::checkpoint::dump(&request, &init)?;
            Ok(Made {
                pid: request.pid,
                maker: Maker::Native,
                notes: Vec::new(),
                descriptors: Vec::new(),
            })
        }),
        Operation::Hooks => request(reply).and_then(|request: HooksRequest| {
            Ok(Made {
                pid: request.pid,
                maker: Maker::Native,
                notes: hooks::run(&request)?,
                descriptors: Vec::new(),
            })
        }),
        Operation::Pause => Err(Error::Zygote("pause is not a worker's".into())),
    };
    let sent = match &made {
        Ok(made) => {
            let passed: Vec<_> = made.descriptors.iter().map(AsFd::as_fd).collect();
            channel::send_value(
                reply,
                &Answer::Made {
                    pid: made.pid,
                    maker: made.maker,
                    notes: made.notes.clone(),
                },
                &passed,
            )
        }
        Err(_) => Ok(()),
    };
    match (made, sent) {
        (Ok(_), Ok(())) => 0,
        // Nobody is left to hear of it: what was made must not stay behind unknown.
        (Ok(made), Err(_)) => {
            if let Some(pidfd) = made.descriptors.first() {
                let _ = berth_kernel::pidfd::send_signal(
                    pidfd,
                    nix::sys::signal::Signal::SIGKILL as i32,
                );
            }
            1
        }
        (Err(error), _) => {
            let _ = channel::send_value(reply, &Answer::Failed(error.into()), &[]);
            0
        }
    }
}

fn request<T: DeserializeOwned>(reply: &OwnedFd) -> Result<T, Error> {
    let received = channel::receive_value(reply).map_err(Error::io("read a request"))?;
    received
        .map(|(request, _)| request)
        .ok_or_else(|| Error::Zygote("was asked for nothing".into()))
}

fn stdio(descriptors: Descriptors) -> (Stdio, Option<OwnedFd>) {
    let [stdin, stdout, stderr, init] = descriptors;
    (
        Stdio {
            stdin,
            stdout,
            stderr,
        },
        init,
    )
}
