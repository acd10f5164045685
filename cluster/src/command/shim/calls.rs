//! One call each.

use std::{io::Read, path::PathBuf, process::ExitCode, time::Duration};

use berth_proto::shim::api::{
    ConnectResponse, Empty, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResumeRequest,
    StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest,
};
use clap::Args;
use protobuf::{MessageField, well_known_types::any::Any};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    binary::Binary,
    life,
    place::{Place, Record},
    run::{Process, exit_code},
    task::Task,
    views,
};
use crate::{
    error::Error,
    output::{self, Format, Table},
};

/// What containerd calls an OCI set of limits in an Any.
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
/// Limits as JSON.
const MAX_RESOURCES_BYTES: u64 = 1 << 20;
/// Of each container in a list: one that hangs must not make the list wait for long.
const LIST_DEADLINE: Duration = Duration::from_secs(3);

const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const MAX_SIGNAL: u32 = 64;

/// A container, or one of its execs.
#[derive(Debug, Args)]
struct Target {
    /// The container
    id: String,
    /// One of its execs
    #[arg(long, default_value = "")]
    exec_id: String,
}

async fn find(place: &Place, id: &str) -> Result<(Record, Task), Error> {
    let record = place.record(id)?;
    let task = place.connect(&record).await?;
    Ok((record, task))
}

fn done(_: Empty) -> ExitCode {
    ExitCode::SUCCESS
}

/// Start a container that was created, and print its pid
#[derive(Debug, Args)]
pub struct Start {
    /// The container
    id: String,
}

impl Start {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.id).await?;
        let process = Process {
            task: &task,
            id: &record.id,
            exec_id: "",
        };
        output::text_out(&format!("{}\n", process.start().await?))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print what a container or an exec is doing
#[derive(Debug, Args)]
pub struct State {
    #[command(flatten)]
    target: Target,
}

async fn state(task: &Task, id: &str, exec_id: &str) -> Result<StateResponse, Error> {
    let request = StateRequest {
        id: id.into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    task.call("State", &request).await
}

impl State {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.target.id).await?;
        let state = state(&task, &record.id, &self.target.exec_id).await?;
        let state = views::State::from(state);
        output::print(format, &state, || state.table())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// List the containers of this state directory, their shims and what they are doing
#[derive(Debug, Args)]
pub struct Ps {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    namespace: String,
    id: String,
    group: String,
    shim: String,
    /// Of its task service.
    version: u32,
    shim_pid: Option<u32>,
    pid: Option<u32>,
    status: String,
}

impl Ps {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let mut list = Vec::new();
        for record in place.records()? {
            let asked = async {
                let task = place.connect(&record).await?;
                let shim = life::connected(&task, &record.id).await?;
                let state = state(&task, &record.id, "").await?;
                Ok((shim, state))
            };
            let answer: Result<(ConnectResponse, StateResponse), Option<Error>> =
                match timeout(LIST_DEADLINE, asked).await {
                    Ok(answer) => answer.map_err(Some),
                    Err(_) => Err(None),
                };
            let (shim_pid, pid, status) = match answer {
                Ok((shim, state)) => (
                    Some(shim.shim_pid),
                    Some(state.pid),
                    views::status(state.status.enum_value_or_default()),
                ),
                Err(Some(error)) if error.is_refusal() => {
                    (None, None, "unknown to its shim".into())
                }
                Err(Some(error)) if !error.is_odd() => (None, None, "shim is dead".into()),
                Err(_) => (None, None, "shim hangs".into()),
            };
            list.push(Listed {
                shim: record.binary().name(),
                namespace: record.namespace,
                id: record.id,
                group: record.group,
                version: record.version,
                shim_pid,
                pid,
                status,
            });
        }
        output::print(format, &list, || {
            let mut table = Table::new(&[
                "NAMESPACE",
                "ID",
                "GROUP",
                "SHIM",
                "API",
                "SHIM PID",
                "PID",
                "STATUS",
            ]);
            let number = |pid: Option<u32>| pid.map_or("-".into(), |pid| pid.to_string());
            for listed in &list {
                table.row([
                    listed.namespace.clone(),
                    listed.id.clone(),
                    listed.group.clone(),
                    listed.shim.clone(),
                    format!("v{}", listed.version),
                    number(listed.shim_pid),
                    number(listed.pid),
                    listed.status.clone(),
                ]);
            }
            table
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// List the processes of a container
#[derive(Debug, Args)]
pub struct Pids {
    /// The container
    id: String,
}

impl Pids {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.id).await?;
        let request = PidsRequest {
            id: record.id,
            ..Default::default()
        };
        let answer: PidsResponse = task.call("Pids", &request).await?;
        let pids: Vec<u32> = answer.processes.iter().map(|process| process.pid).collect();
        output::print(format, &pids, || {
            let mut table = Table::new(&["PID"]);
            for pid in &pids {
                table.row([pid.to_string()]);
            }
            table
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print a container's figures
#[derive(Debug, Args)]
pub struct Stats {
    /// The container
    id: String,
}

impl Stats {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.id).await?;
        let request = StatsRequest {
            id: record.id,
            ..Default::default()
        };
        let answer: StatsResponse = task.call("Stats", &request).await?;
        let stats = views::Stats::of(&answer.stats.unwrap_or_default())?;
        output::print(format, &stats, || stats.table())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Send a signal to a container's process or an exec
#[derive(Debug, Args)]
pub struct Kill {
    #[command(flatten)]
    target: Target,
    /// By name or number
    #[arg(default_value = "TERM", value_parser = parse_signal)]
    signal: u32,
    /// To every process of it
    #[arg(long, short)]
    all: bool,
}

fn parse_signal(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse::<u32>() {
        return if number <= MAX_SIGNAL {
            Ok(number)
        } else {
            Err(format!("signals are 0 to {MAX_SIGNAL}"))
        };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    SIGNALS
        .iter()
        .position(|signal| *signal == name)
        .map(|at| at as u32 + 1)
        .ok_or_else(|| "no such signal".into())
}

impl Kill {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.target.id).await?;
        let request = KillRequest {
            id: record.id,
            exec_id: self.target.exec_id,
            signal: self.signal,
            all: self.all,
            ..Default::default()
        };
        task.call("Kill", &request).await.map(done)
    }
}

/// Freeze a container
#[derive(Debug, Args)]
pub struct Pause {
    /// The container
    id: String,
}

impl Pause {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.id).await?;
        let request = PauseRequest {
            id: record.id,
            ..Default::default()
        };
        task.call("Pause", &request).await.map(done)
    }
}

/// Let a frozen container go on
#[derive(Debug, Args)]
pub struct Resume {
    /// The container
    id: String,
}

impl Resume {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.id).await?;
        let request = ResumeRequest {
            id: record.id,
            ..Default::default()
        };
        task.call("Resume", &request).await.map(done)
    }
}

/// Change a container's limits
#[derive(Debug, Args)]
pub struct Update {
    /// The container
    id: String,
    /// A file with OCI's LinuxResources as JSON; - is stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["memory", "cpu_quota", "cpu_period", "cpu_shares", "pids_limit"])]
    resources: Option<PathBuf>,
    /// Bytes of memory
    #[arg(long, value_name = "BYTES")]
    memory: Option<i64>,
    /// Microseconds of a CPU's time a period
    #[arg(long, value_name = "US")]
    cpu_quota: Option<i64>,
    /// Microseconds of a period
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// Its part of the CPU beside others
    #[arg(long)]
    cpu_shares: Option<u64>,
    /// Processes that it may have
    #[arg(long)]
    pids_limit: Option<i64>,
}

impl Update {
    fn read(&self) -> Result<Value, Error> {
        let Some(path) = &self.resources else {
            return Ok(resources(
                self.memory,
                self.cpu_quota,
                self.cpu_period,
                self.cpu_shares,
                self.pids_limit,
            ));
        };
        let failed = |source| Error::File {
            what: "read",
            path: path.clone(),
            source,
        };
        let from: Box<dyn Read> = if path.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(path).map_err(failed)?)
        };
        let mut bytes = Vec::new();
        from.take(MAX_RESOURCES_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Invalid {
            what: path.display().to_string(),
            why: error.to_string(),
        })
    }

    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let resources = self.read()?;
        if resources.as_object().is_none_or(serde_json::Map::is_empty) {
            return Err(Error::Invalid {
                what: "update".into(),
                why: "it says no limit".into(),
            });
        }
        let (record, task) = find(place, &self.id).await?;
        let request = UpdateTaskRequest {
            id: record.id,
            resources: MessageField::some(Any {
                type_url: RESOURCES.into(),
                value: resources.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        };
        task.call("Update", &request).await.map(done)
    }
}

/// OCI's LinuxResources with what was said and nothing else.
fn resources(
    memory: Option<i64>,
    cpu_quota: Option<i64>,
    cpu_period: Option<u64>,
    cpu_shares: Option<u64>,
    pids_limit: Option<i64>,
) -> Value {
    let mut resources = json!({});
    let mut set = |part: &str, name: &str, value: Option<Value>| {
        if let Some(value) = value {
            resources[part][name] = value;
        }
    };
    set("memory", "limit", memory.map(Value::from));
    set("cpu", "quota", cpu_quota.map(Value::from));
    set("cpu", "period", cpu_period.map(Value::from));
    set("cpu", "shares", cpu_shares.map(Value::from));
    set("pids", "limit", pids_limit.map(Value::from));
    resources
}

/// Wait for the end of a container or an exec, and exit with its exit code
#[derive(Debug, Args)]
pub struct Wait {
    #[command(flatten)]
    target: Target,
}

impl Wait {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.target.id).await?;
        let ended = life::ended(&task, &record.id, &self.target.exec_id).await?;
        let end = views::End {
            id: record.id,
            exec_id: self.target.exec_id,
            exit_status: ended.exit_status,
            exited_at: views::time(ended.exited_at.as_ref()),
        };
        output::print(format, &end, || end.table())?;
        Ok(exit_code(end.exit_status))
    }
}

/// Delete a container that has ended, or an exec, and print how it ended
///
/// The shim is told to end unless it has other containers.
#[derive(Debug, Args)]
pub struct Delete {
    #[command(flatten)]
    target: Target,
    /// Kill it first; with a shim that is dead or does not answer, remove what that one has left
    #[arg(long, short, conflicts_with = "exec_id")]
    force: bool,
}

impl Delete {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let Target { id, exec_id } = self.target;
        let record = place.record(&id)?;
        if self.force {
            let forced = match place.connect(&record).await {
                Ok(task) => life::end_by_force(place, &record, &task).await,
                Err(_) => life::give_up(place, &record).await,
            };
            return forced.map(|()| ExitCode::SUCCESS);
        }
        let task = place.connect(&record).await?;
        let deleted = if exec_id.is_empty() {
            life::end(place, &record, &task).await?
        } else {
            life::delete(&task, &id, &exec_id).await?
        };
        let end = views::End {
            id,
            exec_id,
            exit_status: deleted.exit_status,
            exited_at: views::time(deleted.exited_at.as_ref()),
        };
        output::print(format, &end, || end.table())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Tell the shim of a container to end; it does if it has no containers
#[derive(Debug, Args)]
pub struct Shutdown {
    /// The container
    id: String,
    /// At once, whatever it has
    #[arg(long)]
    now: bool,
}

impl Shutdown {
    pub async fn run(self, place: &Place) -> Result<ExitCode, Error> {
        let (record, task) = find(place, &self.id).await?;
        life::shutdown(&task, &record.id, self.now).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Print what a shim's program says of itself
#[derive(Debug, Args)]
pub struct Info {
    /// The shim: a path, a file name, or a runtime's name as containerd has it
    #[arg(long, short, default_value = "io.containerd.berth.v2")]
    shim: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct About {
    path: PathBuf,
    /// What `-v` prints.
    says: String,
    /// None: it knows no -info (containerd's own before 2.0).
    name: Option<String>,
    version: Option<String>,
    revision: Option<String>,
    annotations: std::collections::BTreeMap<String, String>,
    /// As JSON where they are: OCI's features.
    features: Option<Value>,
}

impl Info {
    pub async fn run(self, place: &Place, format: Format) -> Result<ExitCode, Error> {
        let binary = Binary::find(&self.shim)?;
        let says = binary.version(place.deadline).await?;
        let info = binary.info(&[], place.deadline).await?;
        let mut about = About {
            path: binary.path,
            says: says.trim().into(),
            name: None,
            version: None,
            revision: None,
            annotations: Default::default(),
            features: None,
        };
        if let Some(info) = info {
            let version = info.version.unwrap_or_default();
            about.name = Some(info.name);
            about.version = Some(version.version);
            about.revision = Some(version.revision).filter(|revision| !revision.is_empty());
            about.annotations = info.annotations.into_iter().collect();
            about.features = info
                .features
                .as_ref()
                .and_then(|any| serde_json::from_slice(&any.value).ok());
        }
        output::print(format, &about, || {
            let mut table = Table::new(&["FACT", "VALUE"]);
            let shown = |value: &Option<String>| value.clone().unwrap_or("-".into());
            table.row(["path".into(), about.path.display().to_string()]);
            for line in about.says.lines() {
                table.row(["-v".into(), line.trim().into()]);
            }
            table.row(["name".into(), shown(&about.name)]);
            table.row(["version".into(), shown(&about.version)]);
            table.row(["revision".into(), shown(&about.revision)]);
            for (name, value) in &about.annotations {
                table.row([name.clone(), value.clone()]);
            }
            let features = about.features.as_ref().and_then(Value::as_object);
            for (name, value) in features.into_iter().flatten() {
                table.row([format!("feature {name}"), value.to_string()]);
            }
            table
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("0", 0),
            ("64", 64),
            ("SYS", 31),
        ] {
            assert_eq!(parse_signal(text), Ok(number), "{text}");
        }
        for text in ["65", "", "NOVEL", "-1"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn limits_that_were_not_said_are_not_in_the_request() {
        assert_eq!(resources(None, None, None, None, None), json!({}));
        assert_eq!(
            resources(Some(1 << 20), None, Some(100_000), None, Some(-1)),
            json!({"memory": {"limit": 1 << 20}, "cpu": {"period": 100_000}, "pids": {"limit": -1}})
        );
    }
}
