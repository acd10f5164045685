//! What a run has found, for a person and for a program.

use std::time::Duration;

use anyhow::Result;
use berth_proto::cri::VersionResponse;
use serde::Serialize;

use super::{Case, known};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed(String),
    /// The endpoint or the machine lacks what the case needs.
    Skipped(String),
    /// The endpoint says that it has not built the RPC.
    Unimplemented(String),
}

/// An outcome, held against what is known of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    Passed,
    Failed,
    /// Failed, and known to.
    Known,
    Skipped,
    Unimplemented,
}

#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub case: String,
    pub verdict: Word,
    pub ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Why this server is known to fail here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub known_fault: String,
}

#[derive(Debug, Serialize)]
pub struct Report {
    pub server: String,
    pub version: String,
    pub passed: usize,
    pub failed: usize,
    pub known: usize,
    pub skipped: usize,
    pub unimplemented: usize,
    pub cases: Vec<Verdict>,
    #[serde(skip)]
    faults: Vec<known::Fault>,
}

impl Report {
    pub fn new(version: &VersionResponse) -> Self {
        let (server, version) = (&version.runtime_name, &version.runtime_version);
        Self {
            server: server.clone(),
            version: version.clone(),
            passed: 0,
            failed: 0,
            known: 0,
            skipped: 0,
            unimplemented: 0,
            cases: vec![],
            faults: known::of(server, version),
        }
    }

    /// Counts one outcome.
    pub fn verdict(&mut self, case: &Case, outcome: Outcome, took: Duration) -> Verdict {
        let case = case.id();
        let fault = self.faults.iter().find(|fault| fault.case == case);
        let known_fault = fault.map(|fault| fault.why.clone()).unwrap_or_default();
        let (verdict, reason) = match outcome {
            Outcome::Passed => (Word::Passed, String::new()),
            Outcome::Failed(reason) if fault.is_some() => (Word::Known, reason),
            Outcome::Failed(reason) => (Word::Failed, reason),
            Outcome::Skipped(reason) => (Word::Skipped, reason),
            Outcome::Unimplemented(reason) => (Word::Unimplemented, reason),
        };
        match verdict {
            Word::Passed => self.passed += 1,
            Word::Failed => self.failed += 1,
            Word::Known => self.known += 1,
            Word::Skipped => self.skipped += 1,
            Word::Unimplemented => self.unimplemented += 1,
        }
        let ms = took.as_millis().try_into().unwrap_or(u64::MAX);
        let reason = reason.lines().collect::<Vec<_>>().join(" ");
        Verdict {
            case,
            verdict,
            ms,
            reason,
            known_fault,
        }
    }

    pub fn summary(&self) -> String {
        format!(
            "{} {}: {} passed, {} failed, {} known, {} skipped, {} unimplemented",
            self.server,
            self.version,
            self.passed,
            self.failed,
            self.known,
            self.skipped,
            self.unimplemented
        )
    }

    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    pub fn yaml(&self) -> Result<String> {
        Ok(serde_saphyr::to_string(self)?)
    }
}

impl Verdict {
    /// One line, or more where there is a reason.
    pub fn line(&self) -> String {
        let word = format!("{:?}", self.verdict).to_lowercase();
        let mut line = format!("{word:<13} {:>6} ms  {}", self.ms, self.case);
        if !self.reason.is_empty() {
            line.push_str(&format!("\n              {}", self.reason));
        }
        match (self.verdict, self.known_fault.is_empty()) {
            (Word::Known, false) => {
                line.push_str(&format!("\n              known: {}", self.known_fault))
            }
            (Word::Passed, false) => {
                line.push_str("\n              passes, though it is in the table of known faults")
            }
            _ => {}
        }
        line
    }
}
