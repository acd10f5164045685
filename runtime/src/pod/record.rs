//! What the daemon writes down of a pod and of a container, so that its successor finds them.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use berth_network::Attachment;
use berth_proto::cri;
use serde::{Deserialize, Serialize};

/// How far a pod had come. Written before the first step and after the last of each transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodPhase {
    /// Half made: rolled back at the next start.
    Creating,
    Ready,
    /// Stopping has begun: its shim may still be there.
    Stopping,
    /// Stopped: nothing in the kernel but directories.
    Stopped,
    Removing,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodRecord {
    pub id: String,
    #[serde(with = "protobuf_in_base64")]
    pub config: cri::PodSandboxConfig,
    pub runtime_handler: String,
    /// ns since the epoch
    pub created_at: i64,
    pub phase: PodPhase,
    pub attachment: Option<Attachment>,
    /// Of the shim: `unix:///…`.
    pub address: String,
    pub timeline: Timeline,
    /// Why the pod is not ready, where nobody stopped it.
    pub why: String,
    /// Limits as they are now, where they are no longer those of `config`.
    #[serde(default)]
    pub limits: Option<PodLimits>,
    /// Its cgroup by the driver that it was made with. Empty in records of before there was more than one.
    #[serde(default)]
    pub cgroup_parent: PathBuf,
}

/// What a pod may use, and what it costs beyond its containers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PodLimits {
    #[serde(with = "protobuf_in_base64")]
    pub resources: cri::LinuxContainerResources,
    #[serde(with = "protobuf_in_base64")]
    pub overhead: cri::LinuxContainerResources,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// Half made: rolled back at the next start.
    Creating,
    /// Made. Whether it runs is the shim's to say.
    Made,
    Exited,
    Removing,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// ns since the epoch; 0: it never ran
    pub started_at: i64,
    pub finished_at: i64,
    pub code: i32,
    pub reason: String,
    pub message: String,
}

/// Exit code of a container whose end nobody saw.
pub const EXIT_UNKNOWN: i32 = 255;

impl Exit {
    /// Its shim died and left no exit record.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self {
            started_at: 0,
            finished_at: now_ns(),
            code: EXIT_UNKNOWN,
            reason: "Unknown".into(),
            message: message.into(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub pod_id: String,
    #[serde(with = "protobuf_in_base64")]
    pub config: cri::ContainerConfig,
    pub image_id: String,
    /// A name with a digest, where the image has one: what `image_ref` reports.
    pub image_ref: String,
    /// ns since the epoch
    pub created_at: i64,
    pub phase: ContainerPhase,
    pub exit: Option<Exit>,
    /// Absolute; empty: the output is discarded.
    pub log_path: PathBuf,
    /// From the image, where the configuration names none.
    pub stop_signal: i32,
    /// uid, gid, supplemental groups of its first process.
    pub user: (i64, i64, Vec<i64>),
    /// What could not be given as asked.
    pub notes: Vec<String>,
    pub timeline: Timeline,
    /// Limits as they are now: those of `config`, and what has been updated since.
    #[serde(default, with = "protobuf_in_base64")]
    pub resources: cri::LinuxContainerResources,
}

/// ms a phase of the start took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(BTreeMap<String, f64>);

impl Timeline {
    /// Writes down that `phase` took from `since` until now.
    pub fn took(&mut self, phase: &str, since: Instant) {
        self.set_ms(phase, since.elapsed().as_secs_f64() * 1e3);
    }

    pub fn set_ms(&mut self, phase: &str, ms: f64) {
        self.0.insert(phase.to_owned(), (ms * 1e3).round() / 1e3);
    }

    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

pub fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as i64)
}

/// CRI messages are kept as they came over the wire: no field is lost in translation.
mod protobuf_in_base64 {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use prost::Message;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<M: Message, S: Serializer>(message: &M, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&BASE64_STANDARD.encode(message.encode_to_vec()))
    }

    pub fn deserialize<'de, M: Message + Default, D: Deserializer<'de>>(
        d: D,
    ) -> Result<M, D::Error> {
        let text = String::deserialize(d)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(D::Error::custom)?;
        M::decode(bytes.as_slice()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let record = PodRecord {
            id: "a".into(),
            config: cri::PodSandboxConfig {
                hostname: "h".into(),
                labels: [("k".to_owned(), "v".to_owned())].into(),
                linux: Some(Default::default()),
                ..Default::default()
            },
            runtime_handler: "berth".into(),
            created_at: 7,
            phase: PodPhase::Ready,
            attachment: None,
            address: "unix:///x".into(),
            timeline: Timeline::default(),
            why: String::new(),
            limits: None,
            cgroup_parent: "/p".into(),
        };
        let text = serde_json::to_string(&record).unwrap();
        let back: PodRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(back.config, record.config);
        assert_eq!(
            (back.id, back.phase, back.created_at),
            (record.id, record.phase, 7)
        );
    }
}
