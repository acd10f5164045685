//! A container's way from its bundle to its end, each step able to undo what was done before it.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use berth_proto::shim::{
    api::{
        ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
        DeleteResponse, Empty, KillRequest, ShutdownRequest, WaitRequest, WaitResponse,
    },
    runc_options::Options,
};
use berth_shim_client::{Failure, bootstrap::NEWEST, failure::last_words};
use clap::Args;
use protobuf::{CodedOutputStream, Message, MessageField, well_known_types::any::Any};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::AsyncReadExt,
    net::{UnixStream, unix::pipe},
    time::{Instant, sleep, timeout},
};

use super::{
    binary::Binary,
    bundle::Config,
    place::{Place, Record},
    stdio::{Names, mkfifo},
    task::Task,
};
use crate::error::Error;

/// How long a shim that was told to end may take until its socket refuses.
const END: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
const SIGKILL: u32 = 9;
/// How long what was killed may take to end.
const KILLED: Duration = Duration::from_secs(5);
/// While a process is waited for, its shim is asked so often whether it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Of the shim's log, as much is kept for the error that may follow.
const KEPT_LOG_BYTES: usize = 4096;

/// What a container is made from, and by which shim.
#[derive(Debug, Args)]
pub struct Origin {
    /// What the container is called
    pub id: String,
    /// An OCI bundle: a directory with a config.json (`berth shim spec` writes one). It is only read
    #[arg(long, short, default_value = ".")]
    pub bundle: PathBuf,
    /// The shim: a path, a file name, or a runtime's name as containerd has it
    #[arg(long, short, default_value = "io.containerd.berth.v2")]
    pub shim: String,
    /// An option of runc's shim, NAME as in containerd's configuration: BinaryName, Root, SystemdCgroup …
    #[arg(long = "option", value_name = "NAME=VALUE")]
    options: Vec<String>,
    /// The configuration file of a shim that has one (runtimeoptions.v1.Options, such as Kata's)
    #[arg(long, value_name = "PATH", conflicts_with = "options")]
    config_path: Option<String>,
    /// The newest answer of `start` that the shim is told to be understood; 0: nothing is said, as by containerd 1.6
    #[arg(long, default_value_t = NEWEST, value_parser = clap::value_parser!(u32).range(0..=3))]
    max_version: u32,
}

impl Origin {
    /// The options as an encoded Any; empty: none.
    fn options(&self) -> Result<Option<Any>, Error> {
        let any = |name: &str, bytes: protobuf::Result<Vec<u8>>| {
            let value = bytes.map_err(|error| Error::Invalid {
                what: "options".into(),
                why: error.to_string(),
            })?;
            Ok(Some(Any {
                type_url: name.into(),
                value,
                ..Default::default()
            }))
        };
        if let Some(path) = &self.config_path {
            // Field 2 of a message that has no crate.
            let mut bytes = Vec::new();
            let mut out = CodedOutputStream::vec(&mut bytes);
            let encoded = out.write_string(2, path).and_then(|()| out.flush());
            drop(out);
            return any("runtimeoptions.v1.Options", encoded.map(|()| bytes));
        }
        if self.options.is_empty() {
            return Ok(None);
        }
        any(
            "containerd.runc.v1.Options",
            runc_options(&self.options)?.write_to_bytes(),
        )
    }
}

fn runc_options(words: &[String]) -> Result<Options, Error> {
    let mut options = Options::new();
    for word in words {
        let invalid = |why: &str| Error::Invalid {
            what: format!("option {word:?}"),
            why: why.into(),
        };
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| invalid("it has to be NAME=VALUE"))?;
        let flag = || {
            value
                .parse::<bool>()
                .map_err(|_| invalid("its value is true or false"))
        };
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| invalid("its value is a number"))
        };
        match name {
            "NoPivotRoot" => options.no_pivot_root = flag()?,
            "NoNewKeyring" => options.no_new_keyring = flag()?,
            "ShimCgroup" => options.shim_cgroup = value.into(),
            "IoUid" => options.io_uid = number()?,
            "IoGid" => options.io_gid = number()?,
            "BinaryName" => options.binary_name = value.into(),
            "Root" => options.root = value.into(),
            "SystemdCgroup" => options.systemd_cgroup = flag()?,
            "CriuImagePath" => options.criu_image_path = value.into(),
            "CriuWorkPath" => options.criu_work_path = value.into(),
            _ => {
                return Err(invalid(
                    "known are NoPivotRoot, NoNewKeyring, ShimCgroup, IoUid, IoGid, BinaryName, Root, SystemdCgroup, \
                     CriuImagePath, CriuWorkPath",
                ));
            }
        }
    }
    Ok(options)
}

/// What a shim writes into the fifo `log` of its bundle: emptied, so that it never waits; its end is kept for an error.
#[derive(Debug)]
pub struct Log {
    kept: Arc<Mutex<Vec<u8>>>,
    task: tokio::task::JoinHandle<()>,
    written: PathBuf,
}

impl Log {
    fn open(place: &Place, record: &Record) -> Result<Self, Error> {
        let path = record.dir.join("log");
        mkfifo(&path)?;
        // For writing, too, so that it is not at its end before the shim has come and when it goes.
        let opened = pipe::OpenOptions::new()
            .read_write(true)
            .open_receiver(&path);
        let mut from = opened.map_err(|source| Error::File {
            what: "open",
            path,
            source,
        })?;
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (tail, verbose) = (kept.clone(), place.verbose);
        let task = tokio::spawn(async move {
            let mut buffer = [0; KEPT_LOG_BYTES];
            while let Ok(n @ 1..) = from.read(&mut buffer).await {
                if verbose {
                    let _ = std::io::stderr().write_all(&buffer[..n]);
                }
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.extend_from_slice(&buffer[..n]);
                let over = tail.len().saturating_sub(KEPT_LOG_BYTES);
                tail.drain(..over);
            }
        });
        Ok(Self {
            kept,
            task,
            written: record.dir.join("shim.log"),
        })
    }

    /// What the shim has said last, on its fifo or in the log file of berth's own.
    pub fn last_words(&self) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut said = last_words(&kept);
        if said.is_empty() {
            said = last_words(&fs::read(&self.written).unwrap_or_default());
        }
        (!said.is_empty()).then_some(said)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A container that was created.
#[derive(Debug)]
pub struct Made {
    pub record: Record,
    pub task: Task,
    pub log: Log,
    pub pid: u32,
}

/// A container's directory, before there is a shim.
#[derive(Debug)]
pub struct Reserved {
    pub record: Record,
    pub config: Config,
    options: Option<Any>,
    max_version: u32,
}

impl Reserved {
    pub fn new(place: &Place, origin: &Origin, terminal: Option<bool>) -> Result<Self, Error> {
        let binary = Binary::find(&origin.shim)?;
        let options = origin.options()?;
        let mut config = Config::read(&origin.bundle)?;
        config.ensure_cgroup(&origin.id);
        if let Some(terminal) = terminal {
            config.set_terminal(terminal);
        }
        let record = place.add(&origin.id, &binary, &config.group(&origin.id))?;
        if let Err(error) = config.write(&record.dir) {
            let _ = record.remove(place);
            return Err(error);
        }
        Ok(Self {
            record,
            config,
            options,
            max_version: origin.max_version,
        })
    }

    /// Starts the shim, or finds that of the group, and creates the container in it. What fails leaves nothing.
    pub async fn make(self, place: &Place, names: Names) -> Result<Made, Error> {
        let mut record = self.record.clone();
        let log = match Log::open(place, &record) {
            Ok(log) => log,
            Err(error) => return Err(undone(error, record.remove(place))),
        };
        let encoded = match &self.options {
            Some(any) => any.write_to_bytes().unwrap_or_default(),
            None => Vec::new(),
        };
        let call = record.call(place, self.max_version);
        let started = record.binary().start(&call, &encoded, place.deadline).await;
        let bootstrap = match started {
            Ok(bootstrap) => bootstrap,
            // It may have left a process all the same.
            Err(error) if error.is_odd() => {
                return Err(undone(with_log(error, &log), give_up(place, &record).await));
            }
            Err(error) => return Err(undone(with_log(error, &log), record.remove(place))),
        };
        record.socket = Some(bootstrap.socket);
        record.version = bootstrap.version;
        let created = async {
            record.write()?;
            let task = place.connect(&record).await?;
            let shim = connected(&task, &record.id).await?;
            let pid = shim.shim_pid as i32;
            record.process = began(pid).map(|began| (pid, began));
            record.write()?;
            let request = CreateTaskRequest {
                id: record.id.clone(),
                bundle: record.dir.display().to_string(),
                terminal: self.config.terminal(),
                stdin: names.stdin,
                stdout: names.stdout,
                stderr: names.stderr,
                options: self
                    .options
                    .map_or(MessageField::none(), MessageField::some),
                ..Default::default()
            };
            let created: CreateTaskResponse = task.call("Create", &request).await?;
            Ok((task, created.pid))
        }
        .await;
        match created {
            Ok((task, pid)) => Ok(Made {
                record,
                task,
                log,
                pid,
            }),
            Err(error) => {
                let error = with_log(error, &log);
                let tidied = if error.is_refusal() {
                    dismiss(place, &record).await
                } else {
                    give_up(place, &record).await
                };
                Err(undone(error, tidied))
            }
        }
    }
}

/// Who the shim is: its answer says whether it lives.
pub async fn connected(task: &Task, id: &str) -> Result<ConnectResponse, Error> {
    let request = ConnectRequest {
        id: id.into(),
        ..Default::default()
    };
    task.call("Connect", &request).await
}

/// Waits for the end of a process (with an empty `exec_id` the container's first) for as long as its shim lives.
pub async fn ended(task: &Task, id: &str, exec_id: &str) -> Result<WaitResponse, Error> {
    let request = WaitRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    let heartbeat = async {
        loop {
            sleep(HEARTBEAT).await;
            match connected(task, id).await {
                Err(error) if !error.is_refusal() => return error,
                _ => {}
            }
        }
    };
    tokio::select! {
        answer = task.unbounded("Wait", &request) => answer,
        error = heartbeat => Err(error),
    }
}

pub async fn delete(task: &Task, id: &str, exec_id: &str) -> Result<DeleteResponse, Error> {
    let request = DeleteRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    task.call("Delete", &request).await
}

/// Deletes a container that has ended, and lets its shim go unless it has others.
pub async fn end(place: &Place, record: &Record, task: &Task) -> Result<DeleteResponse, Error> {
    let deleted = delete(task, &record.id, "").await?;
    dismiss(place, record).await?;
    Ok(deleted)
}

/// Kills a container, deletes it and lets its shim go; a shim that does not do so is given up.
pub async fn end_by_force(place: &Place, record: &Record, task: &Task) -> Result<(), Error> {
    let request = KillRequest {
        id: record.id.clone(),
        signal: SIGKILL,
        all: true,
        ..Default::default()
    };
    let ended = async {
        // One that has ended, or never was, is not there to be killed.
        match task.call::<Empty>("Kill", &request).await {
            Err(error) if !error.is_refusal() => return Err(error),
            _ => {}
        }
        // A container that never ran has no end to wait for.
        let _ = timeout(KILLED, ended(task, &record.id, "")).await;
        end(place, record, task).await
    };
    match ended.await {
        Ok(_) => Ok(()),
        Err(_) => give_up(place, record).await,
    }
}

/// Tells the shim that this container is gone, and forgets the container.
async fn dismiss(place: &Place, record: &Record) -> Result<(), Error> {
    let shared = place.is_shared(record)?;
    if let Ok(task) = place.connect(record).await {
        shutdown(&task, &record.id, false).await?;
    }
    if !shared && !gone(record).await {
        return give_up(place, record).await;
    }
    record.remove(place)
}

/// A shim that ends may be gone before its answer is here.
pub async fn shutdown(task: &Task, id: &str, now: bool) -> Result<(), Error> {
    let request = ShutdownRequest {
        id: id.into(),
        now,
        ..Default::default()
    };
    match task.call::<Empty>("Shutdown", &request).await {
        Err(error) if !error.has_died() => Err(error),
        _ => Ok(()),
    }
}

/// Whether the shim's socket refuses, soon.
async fn gone(record: &Record) -> bool {
    let Some(socket) = &record.socket else {
        return true;
    };
    let began = Instant::now();
    while began.elapsed() < END {
        if UnixStream::connect(socket).await.is_err() {
            return true;
        }
        sleep(POLL).await;
    }
    false
}

/// For a shim that is dead or deaf: kills it, has its program remove what it has left, and forgets the container.
pub async fn give_up(place: &Place, record: &Record) -> Result<(), Error> {
    // Others live in it: they keep it, dead or alive.
    if !place.is_shared(record)? {
        kill(record);
        gone(record).await;
    }
    let call = record.call(place, 0);
    let deleted = record.binary().delete(&call, place.deadline).await;
    let removed = record.remove(place);
    deleted.map(drop).and(removed)
}

/// SIGKILL to the shim, if it is still the process that it was.
fn kill(record: &Record) {
    let Some((pid, recorded)) = record.process else {
        return;
    };
    let Some(handle) = Pid::from_raw(pid) else {
        return;
    };
    // Checked after it is held: from then on the number can't become another's.
    if let Ok(process) = pidfd_open(handle, PidfdFlags::empty())
        && began(pid) == Some(recorded)
    {
        let _ = pidfd_send_signal(&process, Signal::KILL);
    }
}

/// When a process began, in clock ticks since boot (proc(5), field 22 of stat).
fn began(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &stat[stat.rfind(')')? + 1..];
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// What the shim has said last belongs to what went wrong.
pub fn with_log(error: Error, log: &Log) -> Error {
    match (error, log.last_words()) {
        (
            Error::Shim {
                shim,
                step,
                failure,
            },
            Some(said),
        ) => Error::Shim {
            shim,
            step,
            failure: Failure::Logged(Box::new(failure), said),
        },
        (error, _) => error,
    }
}

pub fn undone(error: Error, tidied: Result<(), Error>) -> Error {
    match tidied {
        Ok(()) => error,
        Err(failure) => Error::Untidy {
            error: Box::new(error),
            failures: vec![failure.to_string()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_the_names_of_containerds_configuration() {
        let words = |words: &[&str]| {
            runc_options(
                &words
                    .iter()
                    .map(|word| word.to_string())
                    .collect::<Vec<_>>(),
            )
        };
        let options = words(&["BinaryName=crun", "SystemdCgroup=true", "IoUid=7"]).unwrap();
        assert_eq!(
            (
                options.binary_name.as_str(),
                options.systemd_cgroup,
                options.io_uid
            ),
            ("crun", true, 7)
        );
        for (word, why) in [
            ("BinaryName", "NAME=VALUE"),
            ("SystemdCgroup=yes", "true or false"),
            ("IoUid=-1", "a number"),
            ("Novel=1", "known are"),
        ] {
            let error = words(&[word]).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_process_is_known_by_when_it_began() {
        let own = std::process::id() as i32;
        assert!(began(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(began(own), began(own));
        assert_eq!(began(i32::MAX), None);
    }
}
