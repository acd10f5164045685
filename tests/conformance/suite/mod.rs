//! What a CRI client may expect of any runtime, case by case, over the socket alone. The program `cri-conformance` asks it of an
//! endpoint that somebody else started; the tests beside this directory ask it of a berthd of their own.
//!
//! A case holds what the CRI's comments say, or what a kubelet counts on. One that a widely used runtime fails is either wrong, or
//! stands in `known_faults.json` with the reason.

pub mod bad_input;
mod containers;
mod events;
mod exec;
mod images;
pub mod known;
mod linux;
mod lists;
mod logs;
mod pods;
pub mod report;
mod resources;
mod runtime;
pub mod scene;
mod stats;
mod stop;
mod streaming;

use std::{
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::Cri;
use report::{Outcome, Report, Verdict};
use scene::Scene;

/// Of one case. The longest waits for a grace period of a few seconds; the rest is room for a busy machine.
const CASE_LIMIT: Duration = Duration::from_secs(90);
/// Of taking away what a case has made.
const CLEANING_LIMIT: Duration = Duration::from_secs(60);

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// One thing that a runtime must do.
#[derive(Clone, Copy)]
pub struct Case {
    /// The RPC that it is about.
    pub rpc: &'static str,
    /// What must hold, as a sentence.
    pub name: &'static str,
    /// No other case may run at the same time: it is about the whole node.
    pub alone: bool,
    run: for<'a> fn(&'a Scene) -> Running<'a>,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id())
    }
}

impl Case {
    /// Names the case in filters, reports and the table of known faults.
    pub fn id(&self) -> String {
        format!("{}/{}", self.rpc, self.name)
    }
}

/// `cases![RPC: function, …]`: a table of cases. `alone` before a function: nothing else runs meanwhile.
macro_rules! cases {
    (@alone alone) => { true };
    (@alone) => { false };
    ($($rpc:ident: $($alone:ident)? [$function:ident]),* $(,)?) => {
        &[$($crate::conformance::Case {
            rpc: stringify!($rpc),
            name: stringify!($function),
            alone: cases!(@alone $($alone)?),
            run: |scene| Box::pin($function(scene)),
        }),*]
    };
}
use cases;

/// Every case, by the file that it stands in.
pub const GROUPS: &[(&str, &[Case])] = &[
    ("runtime", runtime::CASES),
    ("pods", pods::CASES),
    ("containers", containers::CASES),
    ("stop", stop::CASES),
    ("exec", exec::CASES),
    ("streaming", streaming::CASES),
    ("logs", logs::CASES),
    ("linux", linux::CASES),
    ("resources", resources::CASES),
    ("stats", stats::CASES),
    ("lists", lists::CASES),
    ("events", events::CASES),
    ("images", images::CASES),
    ("bad_input", bad_input::CASES),
];

/// What a case throws where the endpoint or the machine lacks what it needs.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// The error that skips a case.
pub fn skip(reason: impl Into<String>) -> anyhow::Error {
    Skip(reason.into()).into()
}

/// What is asked of which endpoint, and how.
#[derive(Debug, Clone)]
pub struct Request {
    pub cri: Cri,
    /// An image with a shell and the usual commands (busybox).
    pub image: String,
    /// Empty: the default.
    pub runtime_handler: String,
    /// Of this run; logs and volumes of the cases lie below, as the runtime too must reach them.
    pub dir: PathBuf,
    /// Pods are on the node's network: the endpoint has no CNI.
    pub host_network: bool,
    /// How many cases at a time.
    pub jobs: usize,
}

impl Request {
    /// Runs the cases: those that bear company side by side, then the others one by one. `told` hears of each as it ends.
    ///
    /// # Errors
    /// Where the endpoint can't even tell its version or get the image.
    pub async fn run(&self, cases: &[Case], told: &(dyn Fn(&Verdict) + Sync)) -> Result<Report> {
        let version = self.cri.version().await.context("Version")?;
        let image = &self.image;
        if self
            .cri
            .image(image)
            .await
            .context("ImageStatus")?
            .is_none()
        {
            let pulled = self.cri.pull(image).await;
            pulled.with_context(|| format!("PullImage {image}"))?;
        }
        let mut report = Report::new(&version);
        let slots = Arc::new(Semaphore::new(self.jobs.max(1)));
        let mut together = tokio::task::JoinSet::new();
        for (number, case) in cases.iter().enumerate().filter(|(_, case)| !case.alone) {
            let (request, case, slots) = (self.clone(), *case, slots.clone());
            together.spawn(async move {
                let _slot = slots.acquire().await;
                (number, request.judge(case).await)
            });
        }
        let mut verdicts = vec![];
        while let Some(done) = together.join_next().await {
            let (number, (outcome, took)) = done?;
            let verdict = report.verdict(&cases[number], outcome, took);
            told(&verdict);
            verdicts.push((number, verdict));
        }
        for (number, case) in cases.iter().enumerate().filter(|(_, case)| case.alone) {
            let (outcome, took) = self.judge(*case).await;
            let verdict = report.verdict(case, outcome, took);
            told(&verdict);
            verdicts.push((number, verdict));
        }
        verdicts.sort_by_key(|(number, _)| *number);
        report.cases = verdicts.into_iter().map(|(_, verdict)| verdict).collect();
        Ok(report)
    }

    /// Runs one case in a task of its own, so that a panic is its failure alone.
    async fn judge(&self, case: Case) -> (Outcome, Duration) {
        let begin = Instant::now();
        let scene = match Scene::new(self, &case) {
            Ok(scene) => Arc::new(scene),
            Err(error) => return (Outcome::Failed(format!("{error:#}")), begin.elapsed()),
        };
        let played = scene.clone();
        let mut playing = tokio::spawn(async move { (case.run)(&played).await });
        let result = match tokio::time::timeout(CASE_LIMIT, &mut playing).await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => Err(anyhow::anyhow!("the case panicked: {panic}")),
            Err(_) => {
                playing.abort();
                Err(anyhow::anyhow!("not done after {CASE_LIMIT:?}"))
            }
        };
        let cleaned = tokio::time::timeout(CLEANING_LIMIT, scene.clear()).await;
        let cleaned =
            cleaned.unwrap_or_else(|_| Err(anyhow::anyhow!("{CLEANING_LIMIT:?} are over")));
        let outcome = match (result, cleaned) {
            (Ok(()), Ok(())) => Outcome::Passed,
            (Ok(()), Err(error)) => Outcome::Failed(format!("afterwards: {error:#}")),
            (Err(error), _) => outcome_of(&error),
        };
        (outcome, begin.elapsed())
    }
}

fn outcome_of(error: &anyhow::Error) -> Outcome {
    let text = format!("{error:#}");
    if let Some(reason) = error.downcast_ref::<Skip>() {
        return Outcome::Skipped(reason.to_string());
    }
    match error.downcast_ref::<Status>() {
        Some(status) if status.code() == Code::Unimplemented => Outcome::Unimplemented(text),
        _ => Outcome::Failed(text),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rpc_of_the_cri_has_cases_and_no_two_cases_have_one_name() {
        let cases: Vec<&Case> = GROUPS.iter().flat_map(|(_, cases)| *cases).collect();
        let ids: BTreeSet<String> = cases.iter().map(|case| case.id()).collect();
        assert_eq!(ids.len(), cases.len());
        let mut asked: BTreeSet<&str> = cases.iter().map(|case| case.rpc).collect();
        asked.remove("Every");
        let proto = include_str!("../../../proto/cri/api.proto");
        let rpcs: BTreeSet<&str> = proto
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc "))
            .filter_map(|line| line.split('(').next())
            .collect();
        assert_eq!(rpcs.len(), 41);
        assert_eq!(
            asked, rpcs,
            "cases are named by the RPC that they are about"
        );
    }

    #[test]
    fn what_ends_a_case_is_told_apart() {
        let wrapped = |status: Status| anyhow::Error::from(status).context("while asking");
        assert!(
            matches!(outcome_of(&skip("no CNI")), Outcome::Skipped(reason) if reason == "no CNI")
        );
        let unbuilt = wrapped(Status::unimplemented("Exec"));
        assert!(matches!(outcome_of(&unbuilt), Outcome::Unimplemented(_)));
        let failed = wrapped(Status::internal("x"));
        assert!(
            matches!(outcome_of(&failed), Outcome::Failed(text) if text.contains("while asking"))
        );
    }
}
