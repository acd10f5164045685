//! `containerd-shim-berth-v2`: containerd's shim v2, one process a pod.
//!
//! ```text
//!   start ──▶ socket, serving process, address on stdout, gone            (bootstrap, group)
//!   serve ──▶ launcher first, then the runtime and three ttrpc services   (serve)
//!               sandbox      the pause, which holds the pod's namespaces  (sandbox, pod, cri_sandbox)
//!               task         containers and execs                         (task, container, exec, rootfs, freeze)
//!               Pod          inspect, changes, exec sync, logs, figures   (pod_service, exec_sync, exec_output)
//!             reaper: every child, adopted ones too                       (reaper)
//!             streams: pipes and consoles into CRI logs and fifos         (stream, cri_log)
//!                      and what else containerd's clients may name        (stdio_uri, logging_program, streams)
//!   -front P: another shim, P, makes the containers; all else is as it is      (front, publish)
//!   delete ─▶ what a dead shim has left: killed, unmounted, removed       (cleanup)
//! ```
//!
//! Invariant: an exit is on record before anybody is told of it.
//! Invariant: no call of the engine runs on the event loop, and no process of a container is reaped anywhere but in the reaper.

mod activity;
mod bootstrap;
mod bootstrap_params;
mod bundle;
mod checkpoint;
mod cleanup;
mod cli;
mod clock;
mod container;
mod cri_log;
mod cri_sandbox;
mod error;
mod event_queue;
mod events;
mod exec;
mod exec_output;
mod exec_sync;
mod exit_record;
mod freeze;
mod front;
mod group;
mod idle;
mod info;
mod journal;
mod late_reader;
mod logging_program;
mod metrics;
mod oom;
mod oom_accounts;
mod open_files;
mod pod;
mod pod_service;
mod publish;
mod reaper;
mod rootfs;
mod runtime_options;
mod sandbox;
mod serve;
mod stats;
mod stdio_uri;
mod stream;
mod streams;
mod sysctl;
mod taps;
mod task;
mod user_namespace;

use std::process::ExitCode;

use crate::cli::{Action, Flags, USAGE};

/// As shells and most tools have it.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    berth_failpoint::setup();
    if std::env::args().len() <= 1 {
        eprint!("{USAGE}");
        return ExitCode::from(WRONG_USAGE);
    }
    let flags = match Flags::parse(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("{}: {error} (see --help)", bootstrap::NAME);
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let done = match flags.action {
        Action::Start => flags.check_bundle().and_then(|()| bootstrap::start(&flags)),
        Action::Delete => flags.check_bundle().and_then(|()| cleanup::delete(&flags)),
        Action::Serve => {
            bootstrap::take_name();
            serve::serve(&flags)
        }
        Action::Help => {
            print!("{USAGE}");
            Ok(())
        }
        Action::Version => {
            println!(
                "{}:\n  Version:  {}",
                bootstrap::NAME,
                env!("CARGO_PKG_VERSION")
            );
            Ok(())
        }
        Action::Info => info::print(),
        Action::Publish => publish::publish(&flags),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            journal::line(&error.to_string());
            ExitCode::FAILURE
        }
    }
}
