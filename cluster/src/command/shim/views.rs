//! Answers of the task service as they are printed.

use berth_proto::shim::{
    api::{StateResponse, Status},
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
};
use protobuf::{Message, well_known_types::any::Any, well_known_types::timestamp::Timestamp};
use serde::Serialize;

use crate::{
    error::Error,
    output::{self, Table},
};

const NANOSECONDS: i64 = 1_000_000_000;

/// RFC 3339; None for a time that has not come.
pub fn time(timestamp: Option<&Timestamp>) -> Option<String> {
    let timestamp = timestamp?;
    let seconds = timestamp.seconds.checked_mul(NANOSECONDS)?;
    // Go's zero time, the year 1, is what its shims send for "never".
    if seconds <= 0 {
        return None;
    }
    output::time(seconds + i64::from(timestamp.nanos))
}

pub fn status(status: Status) -> String {
    format!("{status:?}").to_lowercase()
}

/// `State`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    exec_id: String,
    status: String,
    pid: u32,
    exit_status: u32,
    exited_at: Option<String>,
    terminal: bool,
    stdin: String,
    stdout: String,
    stderr: String,
    bundle: String,
}

impl From<StateResponse> for State {
    fn from(state: StateResponse) -> Self {
        Self {
            status: status(state.status.enum_value_or_default()),
            exited_at: time(state.exited_at.as_ref()),
            id: state.id,
            exec_id: state.exec_id,
            pid: state.pid,
            exit_status: state.exit_status,
            terminal: state.terminal,
            stdin: state.stdin,
            stdout: state.stdout,
            stderr: state.stderr,
            bundle: state.bundle,
        }
    }
}

impl State {
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["ID", "EXEC", "STATUS", "PID", "EXIT", "EXITED AT"]);
        table.row([
            self.id.clone(),
            self.exec_id.clone(),
            self.status.clone(),
            self.pid.to_string(),
            self.exit_status.to_string(),
            self.exited_at.clone().unwrap_or_default(),
        ]);
        table
    }
}

/// How a process ended.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    pub id: String,
    pub exec_id: String,
    pub exit_status: u32,
    pub exited_at: Option<String>,
}

impl End {
    pub fn table(&self) -> Table {
        let mut table = Table::new(&["ID", "EXEC", "EXIT", "EXITED AT"]);
        table.row([
            self.id.clone(),
            self.exec_id.clone(),
            self.exit_status.to_string(),
            self.exited_at.clone().unwrap_or_default(),
        ]);
        table
    }
}

/// Figures of a container, from either version's message. None: it does not say.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// The message's name.
    r#type: String,
    cpu_usage_ns: Option<u64>,
    cpu_throttled_ns: Option<u64>,
    memory_usage_bytes: Option<u64>,
    memory_limit_bytes: Option<u64>,
    memory_rss_bytes: Option<u64>,
    pids: Option<u64>,
    pids_limit: Option<u64>,
    oom_kills: Option<u64>,
}

impl Stats {
    pub fn of(any: &Any) -> Result<Self, Error> {
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        let invalid = |why: String| Error::Invalid {
            what: format!("figures of type {name:?}"),
            why,
        };
        let garbage = |error: protobuf::Error| invalid(error.to_string());
        match name {
            "io.containerd.cgroups.v1.Metrics" => {
                let metrics = v1::Metrics::parse_from_bytes(&any.value).map_err(garbage)?;
                Ok(Self::of_v1(name, &metrics))
            }
            "io.containerd.cgroups.v2.Metrics" => {
                let metrics = v2::Metrics::parse_from_bytes(&any.value).map_err(garbage)?;
                Ok(Self::of_v2(name, &metrics))
            }
            _ => Err(invalid("they are not known here".into())),
        }
    }

    fn of_v1(name: &str, metrics: &v1::Metrics) -> Self {
        let cpu = metrics.cpu.as_ref();
        let memory = metrics.memory.as_ref();
        let usage = memory.and_then(|memory| memory.usage.as_ref());
        let pids = metrics.pids.as_ref();
        Self {
            r#type: name.into(),
            cpu_usage_ns: cpu.and_then(|cpu| Some(cpu.usage.as_ref()?.total)),
            cpu_throttled_ns: cpu.and_then(|cpu| Some(cpu.throttling.as_ref()?.throttled_time)),
            memory_usage_bytes: usage.map(|usage| usage.usage),
            memory_limit_bytes: usage.map(|usage| usage.limit),
            memory_rss_bytes: memory.map(|memory| memory.total_rss),
            pids: pids.map(|pids| pids.current),
            pids_limit: pids.map(|pids| pids.limit),
            oom_kills: metrics
                .memory_oom_control
                .as_ref()
                .map(|control| control.oom_kill),
        }
    }

    fn of_v2(name: &str, metrics: &v2::Metrics) -> Self {
        let cpu = metrics.cpu.as_ref();
        let memory = metrics.memory.as_ref();
        let pids = metrics.pids.as_ref();
        Self {
            r#type: name.into(),
            cpu_usage_ns: cpu.map(|cpu| cpu.usage_usec * 1000),
            cpu_throttled_ns: cpu.map(|cpu| cpu.throttled_usec * 1000),
            memory_usage_bytes: memory.map(|memory| memory.usage),
            memory_limit_bytes: memory.map(|memory| memory.usage_limit),
            memory_rss_bytes: memory.map(|memory| memory.anon),
            pids: pids.map(|pids| pids.current),
            pids_limit: pids.map(|pids| pids.limit),
            oom_kills: metrics.memory_events.as_ref().map(|events| events.oom_kill),
        }
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new(&["FIGURE", "VALUE"]);
        let number = |value: u64| value.to_string();
        let mut row = |name: &str, value: Option<u64>, show: &dyn Fn(u64) -> String| {
            table.row([name.into(), value.map_or("-".into(), show)]);
        };
        row("cpu usage, ns", self.cpu_usage_ns, &number);
        row("cpu throttled, ns", self.cpu_throttled_ns, &number);
        row("memory usage", self.memory_usage_bytes, &output::bytes);
        row("memory limit", self.memory_limit_bytes, &output::bytes);
        row("memory rss", self.memory_rss_bytes, &output::bytes);
        row("pids", self.pids, &number);
        row("pids limit", self.pids_limit, &number);
        row("oom kills", self.oom_kills, &number);
        table
    }
}

#[cfg(test)]
mod tests {
    use protobuf::MessageField;

    use super::*;

    #[test]
    fn a_time_that_has_not_come_is_none() {
        let of = |seconds, nanos| {
            time(Some(&Timestamp {
                seconds,
                nanos,
                ..Default::default()
            }))
        };
        assert_eq!(time(None), None);
        assert_eq!(of(0, 0), None);
        assert_eq!(of(-62_135_596_800, 0), None);
        assert_eq!(of(i64::MAX, 0), None);
        assert_eq!(
            of(1_700_000_000, 500_000_000).as_deref(),
            Some("2023-11-14T22:13:20.5Z")
        );
    }

    #[test]
    fn figures_of_either_version_are_read_and_others_refused_by_name() {
        let any = |name: &str, value| Any {
            type_url: name.into(),
            value,
            ..Default::default()
        };
        let first = v1::Metrics {
            pids: MessageField::some(v1::PidsStat {
                current: 7,
                ..Default::default()
            }),
            ..Default::default()
        };
        let second = v2::Metrics {
            cpu: MessageField::some(v2::CPUStat {
                usage_usec: 3,
                ..Default::default()
            }),
            ..Default::default()
        };
        let stats = Stats::of(&any(
            "io.containerd.cgroups.v1.Metrics",
            first.write_to_bytes().unwrap(),
        ));
        assert_eq!(stats.unwrap().pids, Some(7));
        let stats = Stats::of(&any(
            "x/io.containerd.cgroups.v2.Metrics",
            second.write_to_bytes().unwrap(),
        ));
        assert_eq!(stats.unwrap().cpu_usage_ns, Some(3000));
        for refused in [
            any("other.Metrics", Vec::new()),
            any("io.containerd.cgroups.v1.Metrics", vec![0xff]),
        ] {
            let error = Stats::of(&refused).unwrap_err().to_string();
            assert!(error.contains(&refused.type_url), "{error}");
        }
    }
}
