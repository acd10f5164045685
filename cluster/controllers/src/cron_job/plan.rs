//! From a CronJob and its jobs to the one step that comes next.
//!
//! A job is named after its minute, so that whoever is killed between making it and writing that down can't make it again, and finds it again: what is there is
//! written down first.

use std::{sync::Arc, time::Duration};

use berth_recorder::Level;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::times::Times;
use crate::{job::finished, owner};

/// When a job was to begin, as its zone writes it.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// So much later than the schedule says it is looked at: clocks differ (as upstream).
const LATER: Duration = Duration::from_millis(100);

pub(super) struct Situation<'a> {
    pub cron: &'a CronJob,
    /// Those that it controls.
    pub jobs: &'a [Arc<Job>],
    pub times: &'a Result<Times, Told>,
    pub now: Timestamp,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub level: Level,
    pub reason: &'static str,
    pub message: String,
}

impl Told {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        let (level, message) = (Level::Normal, message.into());
        Self {
            level,
            reason,
            message,
        }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        let (level, message) = (Level::Warning, message.into());
        Self {
            level,
            reason,
            message,
        }
    }
}

#[derive(Debug)]
pub(super) enum Step {
    Status(Box<CronJobStatus>, Vec<Told>),
    /// They are over and more than are kept.
    Forget(Vec<Arc<Job>>),
    /// They are still at it when the next one is to begin.
    Replace(Vec<Arc<Job>>, Box<CronJobStatus>),
    Start(Box<Job>, Vec<Told>),
    Rest(Option<Duration>, Vec<Told>),
}

/// The schedule and its clock; what is wrong with them.
pub(super) fn times(cron: &CronJob) -> Result<Times, Told> {
    let spec = &cron.spec;
    let zone = match spec.time_zone.as_deref() {
        Some(name) => TimeZone::get(name).map_err(|error| {
            Told::warning(
                "UnknownTimeZone",
                format!("invalid timeZone: {name:?}: {error}"),
            )
        })?,
        None => TimeZone::system(),
    };
    let schedule = spec.schedule.parse().map_err(|error| {
        let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
        Told::warning("UnparseableSchedule", message)
    })?;
    Ok(Times { schedule, zone })
}

fn uid(job: &Job) -> &str {
    job.metadata.uid.as_deref().unwrap_or_default()
}

fn name(job: &Job) -> &str {
    job.metadata.name.as_deref().unwrap_or_default()
}

fn succeeded(job: &Job) -> bool {
    finished(job).is_some_and(|condition| condition.type_ == "Complete")
}

fn has(active: &[ObjectReference], job: &Job) -> bool {
    active
        .iter()
        .any(|one| one.uid.as_deref() == Some(uid(job)))
}

/// Minutes since 1970 make the name.
fn job_name(cron: &CronJob, at: Timestamp) -> String {
    let name = cron.metadata.name.as_deref().unwrap_or_default();
    format!("{name}-{}", at.as_second().div_euclid(60))
}

/// For which minute this controller has made it. Others' jobs have none.
fn scheduled(cron: &CronJob, job: &Job) -> Option<Timestamp> {
    let at = job.metadata.annotations.as_ref()?.get(SCHEDULED)?;
    let at: Timestamp = at.parse().ok()?;
    (job_name(cron, at) == name(job)).then_some(at)
}

pub(super) fn next(of: &Situation) -> Step {
    let spec = &of.cron.spec;
    if let Some(step) = note(of) {
        return step;
    }
    let forgotten = beyond_limits(spec, of.jobs);
    if !forgotten.is_empty() {
        return Step::Forget(forgotten);
    }
    if of.cron.metadata.deletion_timestamp.is_some() {
        return Step::Rest(None, Vec::new());
    }
    let times = match of.times {
        Ok(times) => times,
        Err(told) => return Step::Rest(None, vec![told.clone()]),
    };
    if spec.suspend.unwrap_or(false) {
        return Step::Rest(None, Vec::new());
    }
    start(of, spec, times)
}

/// Jobs that nobody here has made and that are under way: people want to know.
pub(super) fn unexpected(cron: &CronJob, jobs: &[Arc<Job>]) -> Vec<Told> {
    let active = cron
        .status
        .as_ref()
        .and_then(|status| status.active.as_deref());
    let strange = jobs.iter().filter(|job| {
        finished(job).is_none()
            && job.metadata.deletion_timestamp.is_none()
            && !has(active.unwrap_or_default(), job)
            && scheduled(cron, job).is_none()
    });
    strange
        .map(|job| {
            let message = format!(
                "Saw a job that the controller did not create or forgot: {}",
                name(job)
            );
            Told::warning("UnexpectedJob", message)
        })
        .collect()
}

/// What of the jobs is not in the status yet.
fn note(of: &Situation) -> Option<Step> {
    let before = of.cron.status.clone().unwrap_or_default();
    let mut status = before.clone();
    let mut active = status.active.take().unwrap_or_default();
    let mut told = Vec::new();
    for job in of.jobs {
        let over = finished(job);
        match over {
            Some(condition) if has(&active, job) => {
                active.retain(|one| one.uid.as_deref() != Some(uid(job)));
                let message = format!(
                    "Saw completed job: {}, condition: {}",
                    name(job),
                    condition.type_
                );
                told.push(Told::normal("SawCompletedJob", message));
            }
            _ => {}
        }
        if succeeded(job) {
            let at = job
                .status
                .as_ref()
                .and_then(|status| status.completion_time.clone());
            if at.as_ref().map(|at| at.0) > status.last_successful_time.as_ref().map(|at| at.0) {
                status.last_successful_time = at;
            }
        }
        let Some(at) = scheduled(of.cron, job) else {
            continue;
        };
        if over.is_none() && job.metadata.deletion_timestamp.is_none() && !has(&active, job) {
            active.push(reference(job));
        }
        if status
            .last_schedule_time
            .as_ref()
            .is_none_or(|last| last.0 < at)
        {
            status.last_schedule_time = Some(Time(at));
        }
    }
    active.retain(|one| {
        let is_there = of
            .jobs
            .iter()
            .any(|job| one.uid.as_deref() == Some(uid(job)));
        if !is_there {
            let name = one.name.as_deref().unwrap_or_default();
            told.push(Told::normal(
                "MissingJob",
                format!("Active job went missing: {name}"),
            ));
        }
        is_there
    });
    status.active = Some(active).filter(|active| !active.is_empty());
    let was_active = before.active.clone().filter(|active| !active.is_empty());
    let before = CronJobStatus {
        active: was_active,
        ..before
    };
    (status != before).then(|| Step::Status(Box::new(status), told))
}

fn reference(job: &Job) -> ObjectReference {
    berth_recorder::about(job)
}

fn beyond_limits(spec: &CronJobSpec, jobs: &[Arc<Job>]) -> Vec<Arc<Job>> {
    let mut forgotten = Vec::new();
    for (limit, success) in [
        (spec.successful_jobs_history_limit, true),
        (spec.failed_jobs_history_limit, false),
    ] {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else {
            continue;
        };
        let over = |job: &&Arc<Job>| {
            finished(job).is_some()
                && succeeded(job) == success
                && job.metadata.deletion_timestamp.is_none()
        };
        let mut jobs: Vec<_> = jobs.iter().filter(over).cloned().collect();
        jobs.sort_by_cached_key(|job| {
            let start = job
                .status
                .as_ref()
                .and_then(|status| status.start_time.as_ref());
            let start = start.map(|start| start.0);
            (start.is_none(), start, name(job).to_owned())
        });
        jobs.truncate(jobs.len().saturating_sub(limit));
        forgotten.extend(jobs);
    }
    forgotten
}

fn start(of: &Situation, spec: &CronJobSpec, times: &Times) -> Step {
    let empty = CronJobStatus::default();
    let status = of.cron.status.as_ref().unwrap_or(&empty);
    let last = status.last_schedule_time.as_ref().map(|last| last.0);
    let created = of.cron.metadata.creation_timestamp.as_ref().map(|at| at.0);
    let since = last.or(created).unwrap_or(of.now);
    let deadline = spec
        .starting_deadline_seconds
        .map(SignedDuration::from_secs);
    let earliest = deadline
        .and_then(|deadline| of.now.checked_sub(deadline).ok())
        .map_or(since, |earliest| earliest.max(since));
    let mut told = Vec::new();
    let wait = wait(times, since, of.now);
    let due = match times.due(earliest, of.now) {
        Ok(Some(due)) => due,
        Ok(None) => return Step::Rest(wait, told),
        Err(why) => {
            let message = format!("invalid schedule: {} : {why}", spec.schedule);
            return Step::Rest(wait, vec![Told::warning("InvalidSchedule", message)]);
        }
    };
    if due.many {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        told.push(Told::warning("TooManyMissedTimes", message));
    }
    let new = job(of.cron, spec, times, due.at);
    // somebody else's job may have the name
    if last == Some(due.at) || of.jobs.iter().any(|job| name(job) == name(&new)) {
        return Step::Rest(wait, told);
    }
    let active = status.active.as_deref().unwrap_or_default();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            told.push(Told::normal("JobAlreadyActive", message));
            Step::Rest(wait, told)
        }
        Some("Replace") if !active.is_empty() => {
            let old = of.jobs.iter().filter(|job| has(active, job)).cloned();
            let without = CronJobStatus {
                active: None,
                ..status.clone()
            };
            Step::Replace(old.collect(), Box::new(without))
        }
        _ => Step::Start(Box::new(new), told),
    }
}

/// Until the schedule's next time after what is due.
pub(super) fn wait(times: &Times, since: Timestamp, now: Timestamp) -> Option<Duration> {
    let from = match times.due(since, now) {
        Ok(Some(due)) => due.at,
        Ok(None) => since,
        Err(_) => now,
    };
    let next = times.next(from)?;
    let wait = Duration::try_from(next.duration_since(now)).unwrap_or_default();
    Some(wait + LATER)
}

fn job(cron: &CronJob, spec: &CronJobSpec, times: &Times, at: Timestamp) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(SCHEDULED.to_owned(), written(times, at));
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, at)),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owner::reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// RFC 3339, by the schedule's clock.
fn written(times: &Times, at: Timestamp) -> String {
    let offset = times.zone.to_offset(at);
    if offset.is_zero() {
        at.to_string()
    } else {
        at.display_with_offset(offset).to_string()
    }
}
