//! What is written down of a pod's attachment before the first plugin runs, and stays until the last DEL has succeeded. It outlives
//! a reboot: addresses that plugins hand out do, too.

use std::path::{Path, PathBuf};

use berth_state::record::{self, Durability, RecordError};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{conf::Conf, version::Version};
use crate::AttachRequest;

/// May hold secrets of a configuration: 0600, in a directory of 0700.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub request: AttachRequest,
    pub netns: PathBuf,
    /// The node's ranges when the pod was attached, for plugins with the capability `ipRanges`.
    pub ranges: Vec<IpNet>,
    /// In the order of ADD.
    pub networks: Vec<Joined>,
    /// DEL was tried and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owed: Option<Owed>,
}

/// Why DEL has not succeeded: what `berth audit` tells (it reads these names).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Owed {
    pub error: String,
}

/// One network that the pod joins, or has joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Joined {
    pub conf: Conf,
    pub version: Version,
    pub interface: String,
    /// Of the last plugin's ADD, in `version`; `None`: ADD has not come to its end.
    pub result: Option<Value>,
}

pub fn path(dir: &Path, pod_id: &str) -> PathBuf {
    dir.join(format!("{pod_id}.json"))
}

impl Record {
    pub fn write(&self, dir: &Path) -> Result<(), RecordError> {
        record::write(&path(dir, &self.request.pod_id), self, Durability::Disk)
    }

    pub fn read(dir: &Path, pod_id: &str) -> Result<Option<Self>, RecordError> {
        record::read(&path(dir, pod_id))
    }

    pub fn remove(dir: &Path, pod_id: &str) -> Result<(), RecordError> {
        record::remove(&path(dir, pod_id))
    }
}
