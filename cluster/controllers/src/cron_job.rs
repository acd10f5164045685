//! CronJobs: a job at each time of a schedule (CJ-01 … CJ-04).

mod plan;
#[cfg(test)]
mod tests;
mod times;

use std::{sync::Arc, time::Duration};

use berth_recorder::Level;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::PropagationPolicy;

use self::plan::{Situation, Step, Told, next, unexpected, wait};
use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
    crew::told,
    owner,
};

/// Steps at one go; then others have their turn.
const STEPS: usize = 16;

pub(crate) struct CronJobs {
    context: Arc<Context>,
    crons: Cache<CronJob>,
    jobs: Cache<Job>,
}

fn has_other_times(old: &CronJob, new: &CronJob) -> bool {
    old.spec.schedule != new.spec.schedule || old.spec.time_zone != new.spec.time_zone
}

impl Controller for CronJobs {
    const NAME: &'static str = "cronjob-controller";
    const ACCOUNT: &'static str = "cronjob-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let (crons, jobs) = (context.cache::<CronJob>(), context.cache::<Job>());
        let wants = queue.clone();
        crons.on_change(move |old, new| {
            let Some(cron) = new.or(old) else { return };
            let key = Key::of(&**cron);
            // One with a new schedule has missed nothing of it.
            let later = match (old, new) {
                (Some(old), Some(new)) if has_other_times(old, new) => {
                    let last = new
                        .status
                        .as_ref()
                        .and_then(|status| status.last_schedule_time.as_ref());
                    let since = last.or(new.metadata.creation_timestamp.as_ref());
                    let (now, times) = (Timestamp::now(), plan::times(new));
                    times
                        .ok()
                        .and_then(|times| wait(&times, since.map_or(now, |since| since.0), now))
                }
                _ => None,
            };
            match later {
                Some(wait) => wants.add_after(key, wait),
                None => wants.add(key),
            }
        });
        jobs.on_change(move |old, new| {
            for job in [old, new].into_iter().flatten() {
                let owner = owner::controller_of(&job.metadata);
                if let Some(owner) = owner.filter(|owner| owner.kind == "CronJob") {
                    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
                    queue.add(Key::new(namespace, &owner.name));
                }
            }
        });
        Self {
            context,
            crons,
            jobs,
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        for step in 0..STEPS {
            let Some(cron) = self.crons.get(key) else {
                return Ok(Next::Settled);
            };
            let jobs = self
                .jobs
                .controlled_by(cron.metadata.uid.as_deref().unwrap_or_default());
            if step == 0 {
                self.tell(&cron, unexpected(&cron, &jobs));
            }
            let step = next(&Situation {
                cron: &cron,
                jobs: &jobs,
                times: &plan::times(&cron),
                now: Timestamp::now(),
            });
            match step {
                Step::Rest(wait, told) => {
                    self.tell(&cron, told);
                    return Ok(wait.map_or(Next::Settled, Next::After));
                }
                Step::Status(status, told) => {
                    self.write(&cron, *status).await?;
                    self.tell(&cron, told);
                }
                Step::Forget(jobs) => self.delete(&cron, &jobs).await?,
                Step::Replace(jobs, status) => {
                    self.delete(&cron, &jobs).await?;
                    self.write(&cron, *status).await?;
                }
                Step::Start(job, told) => {
                    self.tell(&cron, told);
                    if !self.start(&cron, &job).await? {
                        let wait = self.until_next(&cron);
                        return Ok(wait.map_or(Next::Settled, Next::After));
                    }
                }
            }
        }
        Ok(Next::After(Duration::ZERO))
    }
}

impl CronJobs {
    fn tell(&self, cron: &CronJob, told: Vec<Told>) {
        for told in told {
            self.context
                .event(cron, Self::NAME, told.level, told.reason, told.message);
        }
    }

    fn say(&self, cron: &CronJob, level: Level, reason: &'static str, message: String) {
        self.tell(
            cron,
            vec![Told {
                level,
                reason,
                message,
            }],
        );
    }

    async fn write(
        &self,
        cron: &CronJob,
        status: k8s_openapi::api::batch::v1::CronJobStatus,
    ) -> Result<(), Error> {
        let mut new = cron.clone();
        new.status = Some(status);
        self.context.update_status(&new).await.map(drop)
    }

    async fn delete(&self, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<(), Error> {
        for job in jobs {
            let name = Key::of(&**job).name;
            match self
                .context
                .delete(&**job, Some(PropagationPolicy::Background))
                .await
            {
                Ok(()) => self.say(
                    cron,
                    Level::Normal,
                    "SuccessfulDelete",
                    format!("Deleted job {name}"),
                ),
                Err(error) => {
                    self.say(
                        cron,
                        Level::Warning,
                        "FailedDelete",
                        format!("Deleted job: {error}"),
                    );
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Whether it was made; not if somebody else's job has its name.
    async fn start(&self, cron: &CronJob, job: &Job) -> Result<bool, Error> {
        match self.context.create(job).await {
            Ok(job) => {
                let message = format!("Created job {}", Key::of(&*job).name);
                self.say(cron, Level::Normal, "SuccessfulCreate", message);
                Ok(true)
            }
            Err(Error::AlreadyExists(call)) => {
                let there = self.context.read::<Job>(&Key::of(job)).await?;
                let owner = owner::controller_of(&there.metadata).map(|owner| &owner.uid);
                if owner == cron.metadata.uid.as_ref() {
                    // the watch will tell of it
                    return Err(Error::AlreadyExists(call));
                }
                Ok(false)
            }
            Err(error) => {
                self.say(
                    cron,
                    Level::Warning,
                    "FailedCreate",
                    format!("Error creating job: {}", told(&error)),
                );
                Err(error)
            }
        }
    }

    fn until_next(&self, cron: &CronJob) -> Option<Duration> {
        let now = Timestamp::now();
        wait(&plan::times(cron).ok()?, now, now)
    }
}
