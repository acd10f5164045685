//! Jobs that are over are deleted, with what is theirs, when they have been for as long as they say.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use kube::api::PropagationPolicy;

use crate::{
    Cache, Context, Error, Key, Queue,
    controller::{Controller, Next},
    job::finished,
};

pub(crate) struct TtlAfterFinished {
    context: Arc<Context>,
    jobs: Cache<Job>,
}

/// When it is to go: nobody has said so of one that is not over, has no such time, or is going.
fn expires(job: &Job) -> Option<Timestamp> {
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let since = finished(job)?.last_transition_time.as_ref()?.0;
    let ttl = SignedDuration::from_secs(i64::from(seconds));
    since.checked_add(ttl).ok()
}

fn left(at: Timestamp, now: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(at.duration_since(now)).ok()?;
    (!left.is_zero()).then_some(left)
}

impl Controller for TtlAfterFinished {
    const NAME: &'static str = "ttl-after-finished-controller";
    const ACCOUNT: &'static str = "ttl-after-finished-controller";

    fn new(context: Arc<Context>, queue: Queue) -> Self {
        let jobs = context.cache::<Job>();
        jobs.on_change(move |_, new| {
            if let Some(job) = new.filter(|job| expires(job).is_some()) {
                queue.add(Key::of(&**job));
            }
        });
        Self { context, jobs }
    }

    async fn reconcile(&self, key: &Key) -> Result<Next, Error> {
        let Some(at) = self.jobs.get(key).and_then(|job| expires(&job)) else {
            return Ok(Next::Settled);
        };
        if let Some(left) = left(at, Timestamp::now()) {
            return Ok(Next::After(left));
        }
        // It may have been given more time just now.
        let job = match self.context.read::<Job>(key).await {
            Err(Error::NotFound(_)) => return Ok(Next::Settled),
            job => job?,
        };
        let Some(at) = expires(&job) else {
            return Ok(Next::Settled);
        };
        if let Some(left) = left(at, Timestamp::now()) {
            return Ok(Next::After(left));
        }
        let foreground = Some(PropagationPolicy::Foreground);
        self.context.delete(&job, foreground).await?;
        Ok(Next::Settled)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn only_a_job_that_is_over_expires() {
        let at = |job: Value| expires(&from_value(job).expect("a job")).map(|at| at.to_string());
        let condition = |type_: &str, status: &str| json!([{"type": type_, "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        let job = |seconds: Value, conditions: Value| json!({"metadata": {}, "spec": {"ttlSecondsAfterFinished": seconds, "template": {}}, "status": {"conditions": conditions}});
        let over = condition("Failed", "True");
        assert_eq!(
            at(job(60.into(), over.clone())).as_deref(),
            Some("2026-01-01T00:01:00Z")
        );
        assert_eq!(
            at(job(0.into(), condition("Complete", "True"))).as_deref(),
            Some("2026-01-01T00:00:00Z")
        );
        assert_eq!(at(job(Value::Null, over.clone())), None);
        assert_eq!(
            at(job(60.into(), condition("SuccessCriteriaMet", "True"))),
            None
        );
        assert_eq!(at(job(60.into(), condition("Complete", "False"))), None);
        let mut going = job(60.into(), over);
        going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:30Z".into();
        assert_eq!(at(going), None);
    }

    #[test]
    fn time_that_is_up_is_no_time_left() {
        let at = Timestamp::from_second(100).expect("a time");
        let left = |now| left(at, Timestamp::from_second(now).expect("a time"));
        assert_eq!(left(40), Some(Duration::from_secs(60)));
        assert_eq!((left(100), left(200)), (None, None));
    }
}
