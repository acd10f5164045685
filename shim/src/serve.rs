//! The serving shim: one process a pod, on the socket that `start` left on stdin.
//!
//! Order matters: the engine's launcher is forked first, while there is one thread and next to no memory to share; the
//! runtime and everything that allocates comes after.

use std::{
    collections::HashMap,
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener as StdListener,
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use berth_engine::{Config, Engine, Launched, Maker, Zygote};
use berth_proto::shim::{
    sandbox_async::create_sandbox,
    shim_async::{create_events, create_task},
    v1::pod_ttrpc::create_pod,
};
use rustix::{fs::Mode, io::fcntl_dupfd_cloexec, net::listen, stdio};
use tokio::{
    net::UnixListener,
    runtime, select,
    signal::unix::{SignalKind, signal},
    sync::Notify,
    time::sleep,
};
use ttrpc::r#async::{Server, Service, transport::Listener};

use crate::{
    activity, bootstrap,
    cli::Flags,
    error::Error,
    events::Events,
    front::{EventsService, Front},
    idle, journal,
    pod::Pod,
    pod_service::PodService,
    reaper::Reaper,
    sandbox::SandboxService,
    streams::Streams,
    task::TaskService,
};

/// Calls of the engine at a time. Each blocks a thread for milliseconds; more would only contend for the launcher.
const MAX_BLOCKING_THREADS: usize = 8;
/// An idle thread ends soon: it costs a stack.
const THREAD_KEPT: Duration = Duration::from_millis(50);
/// The engine's calls parse specs and wait; they do not recurse.
const STACK_BYTES: usize = 256 << 10;
/// Connections waiting to be accepted; the kernel caps it at somaxconn.
const BACKLOG: i32 = 128;
/// Descriptors looked at in one turn of the loop; more than are ready come in the next. tokio's own 1024 are 12 KiB in each shim.
const EVENTS_A_TURN: usize = 64;
/// For the last answer to leave.
const LAST_ANSWER: Duration = Duration::from_millis(5);
/// Files of a container must not be narrowed by the shim's own mask: its spec says what it wants.
const UMASK: u32 = 0o022;

/// Where the engine keeps its files for the pod of this bundle.
pub fn engine_config(bundle: &Path) -> Config {
    // Beside the sockets: one a node, for all its pods.
    let seccomp_cache_dir = std::env::var_os("BERTH_SHIM_SOCKET_DIR").and_then(|sockets| {
        Path::new(&sockets)
            .parent()
            .map(|state| state.join("seccomp"))
    });
    Config {
        state_dir: bundle.join("engine"),
        seccomp_cache_dir,
        maker: Maker::default(),
    }
}

/// Whether another shim makes this pod's containers.
fn fronts(flags: &Flags) -> bool {
    !flags.front.as_os_str().is_empty()
}

pub fn serve(flags: &Flags) -> Result<(), Error> {
    let listener = take_listener()?;
    // Refused where this process leads its group already: then it has a session of its own.
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(UMASK));
    let launched = match fronts(flags) {
        true => None,
        false => {
            let zygote = Arc::new(Zygote::spawn()?);
            Some(Launched::new(engine_config(&flags.bundle), zygote)?)
        }
    };
    if launched.is_none() {
        // What another shim leaves when it dies is adopted by this process, which has no launcher that would have asked for that.
        nix::sys::prctl::set_child_subreaper(true).map_err(Error::io("become a subreaper"))?;
    }
    runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_io_events_per_tick(EVENTS_A_TURN)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(THREAD_KEPT)
        .thread_stack_size(STACK_BYTES)
        .build()
        .map_err(Error::io("start the runtime"))?
        .block_on(run(flags, listener, launched))
}

/// Moves the socket away from stdin, which becomes /dev/null.
fn take_listener() -> Result<StdListener, Error> {
    let step = "take the socket from stdin (the shim is started by its action `start`)";
    let socket: OwnedFd = fcntl_dupfd_cloexec(stdio::stdin(), 3).map_err(Error::io(step))?;
    // Once more, by this process: the socket's peer credentials now name it and not the `start` that is gone.
    listen(socket.as_fd(), BACKLOG).map_err(Error::io(step))?;
    let null = File::open("/dev/null").map_err(Error::io("open /dev/null"))?;
    stdio::dup2_stdin(&null).map_err(Error::io("put /dev/null on stdin"))?;
    let listener = StdListener::from(socket);
    listener.set_nonblocking(true).map_err(Error::io(step))?;
    journal::bound();
    Ok(listener)
}

async fn run(
    flags: &Flags,
    listener: StdListener,
    launched: Option<Launched>,
) -> Result<(), Error> {
    let listener = UnixListener::from_std(listener).map_err(Error::io("listen"))?;
    let events = Events::new(&flags.namespace);
    tokio::spawn(events.clone().run());
    let streams = Streams::at(bootstrap::socket_path(flags)?);
    let names = (flags.namespace.clone(), flags.id.clone());
    let reaper = Arc::<Reaper>::default();
    let (engine, front): (Arc<dyn Engine>, Option<Arc<Front>>) = match launched {
        Some(launched) => (Arc::new(launched), None),
        None => {
            let socket = bootstrap::socket_path(flags)?;
            let front = Front::new(flags, socket, runtime::Handle::current(), reaper.clone())?;
            (front.clone(), Some(front))
        }
    };
    let pod = Arc::new(Pod::new(names, engine, reaper, events, streams.clone()));
    let mut reaping = tokio::spawn(pod.reaper.clone().run());
    let activity = Arc::<Notify>::default();
    tokio::spawn(idle::tidy(pod.generation(), activity.clone()));
    // A stray signal (a service manager that stops its whole control group) must not take the pod with it: it ends by ShutdownSandbox.
    // Handlers and not SIG_IGN, which the container would inherit.
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("listen for SIGINT"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::io("listen for SIGHUP"))?;
    let mut shutdown = pod.shutdown.subscribe();

    let mut server = Server::new()
        .add_listener(Listener::new(activity::accept(listener, activity)))
        .register_service(task_services(&pod))
        .register_service(streams.service())
        .register_service(create_sandbox(Arc::new(SandboxService {
            pod: pod.clone(),
        })))
        .register_service(create_pod(Arc::new(PodService { pod: pod.clone() })));
    if let Some(front) = &front {
        let events = EventsService(Arc::downgrade(front));
        server = server.register_service(create_events(Arc::new(events)));
    }
    server.start().await.map_err(Error::Serve)?;
    let outcome = loop {
        select! {
            _ = shutdown.wait_for(|shutdown| *shutdown) => break Ok(()),
            ended = &mut reaping => break ended.unwrap_or(Err(Error::Lost("the reaper"))),
            _ = terminate.recv() => journal!("SIGTERM is ignored; a pod ends by ShutdownSandbox"),
            _ = interrupt.recv() => journal!("SIGINT is ignored; a pod ends by ShutdownSandbox"),
            _ = hangup.recv() => {}
        }
    };
    // First, so that whoever asks for this pod again gets a new shim.
    if let Ok(path) = bootstrap::socket_path(flags) {
        let _ = std::fs::remove_file(path);
    }
    sleep(LAST_ANSWER).await;
    pod.events.settle().await;
    if let Err(error) = outcome {
        journal!("{error}");
        std::process::exit(1);
    }
    // Not by return: a thread that hangs in the kernel with a container's process would hold the runtime's end.
    std::process::exit(0)
}

/// The task service under both its names: the messages of v2, which containerd up to 1.7 speaks, are those of v3.
fn task_services(pod: &Arc<Pod>) -> HashMap<String, Service> {
    let mut services = create_task(Arc::new(TaskService { pod: pod.clone() }));
    let older = create_task(Arc::new(TaskService { pod: pod.clone() }))
        .into_iter()
        .map(|(name, service)| (name.replace(".v3.", ".v2."), service));
    services.extend(older);
    services
}
