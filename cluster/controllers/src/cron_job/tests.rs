//! Random schedules and clocks: the controller is woken, killed between any two writes, or asleep for long; its jobs end when they like.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::batch::v1::{CronJob, CronJobStatus, Job},
    apimachinery::pkg::apis::meta::v1::Time,
};
use proptest::prelude::*;
use serde_json::{Value, from_value, json};

use super::{
    plan::{self, Situation, Step, next, unexpected},
    times::Times,
};
use crate::job::finished;

const BEGAN: i64 = 1_790_000_000;
const MOST_WRITES: usize = 10_000;

struct World {
    cron: CronJob,
    /// By name.
    jobs: BTreeMap<String, Job>,
    /// Milliseconds.
    now: i64,
    /// The minutes of all jobs that were ever made.
    started: Vec<i64>,
    told: Vec<&'static str>,
    writes: usize,
    /// When it wants to be woken.
    wake: Option<i64>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut cron = json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "cron", "creationTimestamp": Timestamp::from_second(BEGAN).expect("a time")},
            "spec": {
                "schedule": "* * * * *", "timeZone": "UTC",
                "jobTemplate": {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {}}},
            },
        });
        for (key, value) in spec.as_object().expect("an object") {
            cron["spec"][key] = value.clone();
        }
        Self {
            cron: from_value(cron).expect("a CronJob"),
            jobs: BTreeMap::new(),
            now: BEGAN * 1000,
            started: Vec::new(),
            told: Vec::new(),
            writes: 0,
            wake: None,
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now).expect("a time")
    }

    fn times(&self) -> Times {
        plan::times(&self.cron).expect("a schedule")
    }

    fn status(&self) -> CronJobStatus {
        self.cron.status.clone().unwrap_or_default()
    }

    /// Until it rests, or is killed after so many writes.
    fn reconcile(&mut self, mut budget: Option<usize>) -> bool {
        loop {
            let jobs: Vec<Arc<Job>> = self.jobs.values().cloned().map(Arc::new).collect();
            let step = next(&Situation {
                cron: &self.cron,
                jobs: &jobs,
                times: &plan::times(&self.cron),
                now: self.now(),
            });
            let mut may = || match &mut budget {
                Some(0) => false,
                Some(left) => {
                    *left -= 1;
                    true
                }
                None => true,
            };
            self.writes += 1;
            assert!(self.writes < MOST_WRITES, "it does not come to rest");
            match step {
                Step::Rest(wait, told) => {
                    self.told.extend(told.iter().map(|told| told.reason));
                    self.wake = wait
                        .map(|wait| self.now + i64::try_from(wait.as_millis()).expect("a number"));
                    return true;
                }
                Step::Status(status, told) => {
                    if !may() {
                        return false;
                    }
                    self.told.extend(told.iter().map(|told| told.reason));
                    self.cron.status = Some(*status);
                }
                Step::Forget(jobs) => {
                    for job in jobs {
                        if !may() {
                            return false;
                        }
                        self.remove(&job);
                    }
                }
                Step::Replace(jobs, status) => {
                    for job in jobs {
                        if !may() {
                            return false;
                        }
                        self.remove(&job);
                    }
                    if !may() {
                        return false;
                    }
                    self.cron.status = Some(*status);
                }
                Step::Start(job, told) => {
                    if !may() {
                        return false;
                    }
                    self.told.extend(told.iter().map(|told| told.reason));
                    self.make(*job);
                }
            }
        }
    }

    fn make(&mut self, mut job: Job) {
        let name = job.metadata.name.clone().expect("a name");
        let minute = name
            .rsplit('-')
            .next()
            .and_then(|minute| minute.parse().ok());
        self.started.push(minute.expect("minutes"));
        job.metadata.uid = Some(format!("uid-{name}-{}", self.started.len()));
        job.status.get_or_insert_default().start_time = Some(Time(self.now()));
        let before = self.jobs.insert(name, job);
        assert!(before.is_none(), "the server would have refused it");
    }

    fn remove(&mut self, job: &Job) {
        let gone = self
            .jobs
            .remove(job.metadata.name.as_deref().expect("a name"));
        assert!(gone.is_some(), "it is there");
    }

    fn active(&self) -> usize {
        self.jobs
            .values()
            .filter(|job| finished(job).is_none())
            .count()
    }

    fn end(&mut self, at: usize, type_: &str) {
        let now = Time(self.now());
        let mut running: Vec<&mut Job> = self
            .jobs
            .values_mut()
            .filter(|job| finished(job).is_none())
            .collect();
        let count = running.len().max(1);
        if let Some(job) = running.get_mut(at % count) {
            let status = job.status.get_or_insert_default();
            status.conditions = from_value(json!([{"type": type_, "status": "True"}])).ok();
            status.completion_time = (type_ == "Complete").then_some(now);
        }
    }

    /// All that the schedule names from then until now, in minutes.
    fn named(&self) -> Vec<i64> {
        let times = self.times();
        let first = Timestamp::from_second(BEGAN).expect("a time");
        std::iter::successors(times.next(first), |at| times.next(*at))
            .take_while(|at| *at <= self.now())
            .map(|at| at.as_second() / 60)
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// It is woken when it wants to be, and killed so often.
    Woken(Vec<usize>),
    /// Something else wakes it.
    Reconcile(Option<usize>),
    /// Milliseconds in which it sleeps.
    Asleep(i64),
    End(usize, &'static str),
}

fn op(asleep: bool) -> impl Strategy<Value = Op> {
    let most: i64 = if asleep { 20_000_000 } else { 1 };
    prop_oneof![
        6 => prop::collection::vec(0_usize..4, 0..3).prop_map(Op::Woken),
        2 => prop::option::of(0_usize..4).prop_map(Op::Reconcile),
        1 => (0..most).prop_map(Op::Asleep),
        3 => (any::<usize>(), prop::sample::select(vec!["Complete", "Failed"])).prop_map(|(at, type_)| Op::End(at, type_)),
    ]
}

fn act(world: &mut World, op: &Op) {
    match op {
        Op::Woken(kills) => {
            if let Some(wake) = world.wake {
                world.now = world.now.max(wake);
            }
            for kill in kills {
                world.reconcile(Some(*kill));
            }
            assert!(world.reconcile(None));
        }
        Op::Reconcile(budget) => {
            world.now += 1;
            world.reconcile(*budget);
        }
        Op::Asleep(milliseconds) => world.now += milliseconds,
        Op::End(at, type_) => world.end(*at, type_),
    }
}

fn schedule() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "* * * * *",
        "*/5 * * * *",
        "7 * * * *",
        "0,1,30 */2 * * *",
        "0 0 * * *",
        "*/20 9-17 * * 1-5",
        "@hourly",
    ])
}

fn history(asleep: bool) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(asleep), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whoever_is_awake_starts_each_once(schedule in schedule(), ops in history(false), limits in 0_i32..3) {
        let mut world = World::new(json!({
            "schedule": schedule, "concurrencyPolicy": "Allow", "startingDeadlineSeconds": 10,
            "successfulJobsHistoryLimit": limits, "failedJobsHistoryLimit": limits,
        }));
        prop_assert!(world.reconcile(None));
        for op in &ops {
            act(&mut world, op);
        }
        prop_assert!(world.reconcile(None));
        let named = world.named();
        prop_assert_eq!(&world.started, &named);
        prop_assert_eq!(world.status().last_schedule_time.map(|at| at.0.as_second() / 60), named.last().copied());
    }

    #[test]
    fn whoever_has_slept_starts_none_twice_and_none_that_is_not_named(
        schedule in schedule(), ops in history(true), deadline in prop::option::of(1_i64..4000),
        policy in prop::sample::select(vec!["Allow", "Forbid", "Replace"]), limits in 0_i32..3,
    ) {
        let mut spec = json!({
            "schedule": schedule, "concurrencyPolicy": policy, "successfulJobsHistoryLimit": limits, "failedJobsHistoryLimit": limits,
        });
        if let Some(deadline) = deadline {
            spec["startingDeadlineSeconds"] = deadline.into();
        }
        let mut world = World::new(spec);
        for op in &ops {
            let (before, was_active) = (world.started.len(), world.active());
            act(&mut world, op);
            if policy != "Allow" {
                prop_assert!(world.active() <= 1);
            }
            if policy == "Forbid" && was_active > 0 && !matches!(op, Op::End(..)) {
                prop_assert_eq!(world.started.len(), before);
            }
            if let Some(deadline) = deadline {
                // it can be late by this much and no more
                let late = world.started.iter().skip(before).map(|minute| world.now / 1000 - minute * 60);
                prop_assert!(late.into_iter().all(|late| late <= deadline));
            }
        }
        let slept = world.started.is_sorted_by(|a, b| a < b);
        prop_assert!(slept, "{:?}", world.started);
        let named = world.named();
        prop_assert!(world.started.iter().all(|minute| named.contains(minute)));
        // what is settled stays so
        prop_assert!(world.reconcile(None));
        let (writes, started) = (world.writes, world.started.len());
        prop_assert!(world.reconcile(None));
        prop_assert_eq!((world.writes, world.started.len()), (writes + 1, started));
        let over = |success| world.jobs.values().filter(|job| finished(job).is_some_and(|one| (one.type_ == "Complete") == success)).count();
        let limit = usize::try_from(limits).expect("a number");
        prop_assert!(over(true) <= limit && over(false) <= limit);
    }
}

fn at(world: &mut World, seconds: i64) {
    world.now = (BEGAN + seconds) * 1000;
    assert!(world.reconcile(None));
}

#[test]
fn a_job_is_named_after_its_minute_and_knows_its_time() {
    let mut world = World::new(json!({"schedule": "30 12 * * *", "timeZone": "America/New_York"}));
    let noon = world.times().next(world.now()).expect("a time");
    at(&mut world, noon.as_second() - BEGAN);
    let (name, job) = world.jobs.first_key_value().expect("a job");
    assert_eq!(*name, format!("c-{}", noon.as_second() / 60));
    let annotations = job.metadata.annotations.as_ref().expect("annotations");
    let scheduled = &annotations["batch.kubernetes.io/cronjob-scheduled-timestamp"];
    assert!(scheduled.contains("T12:30:00-0"), "{scheduled}");
    assert_eq!(job.metadata.labels.as_ref().expect("labels")["a"], "b");
    assert_eq!(
        job.metadata.owner_references.as_ref().expect("owners")[0].uid,
        "cron"
    );
    let status = world.status();
    assert_eq!(status.active.expect("one").len(), 1);
    assert_eq!(status.last_schedule_time, Some(Time(noon)));
}

#[test]
fn after_a_long_sleep_one_is_started_and_it_is_told() {
    let mut world = World::new(json!({"concurrencyPolicy": "Allow"}));
    at(&mut world, 86_400);
    assert_eq!(
        (world.started.len(), world.told.as_slice()),
        (1, &["TooManyMissedTimes"][..])
    );
    let mut world = World::new(
        json!({"schedule": "0 * * * *", "concurrencyPolicy": "Allow", "startingDeadlineSeconds": 10}),
    );
    at(&mut world, 86_400);
    assert!(world.started.is_empty(), "it is too late for all of them");
}

#[test]
fn policies_say_what_happens_to_a_job_that_is_still_at_it() {
    for (policy, started, active, told) in [
        ("Allow", 2, 2, &["SawCompletedJob"][..]),
        ("Forbid", 1, 1, &["JobAlreadyActive", "SawCompletedJob"]),
        ("Replace", 2, 1, &["SawCompletedJob"]),
    ] {
        let mut world = World::new(json!({"concurrencyPolicy": policy}));
        at(&mut world, 60);
        at(&mut world, 120);
        assert_eq!(
            (world.started.len(), world.active()),
            (started, active),
            "{policy}"
        );
        world.end(0, "Complete");
        at(&mut world, 121);
        assert_eq!(world.told, told, "{policy}");
        assert!(world.status().last_successful_time.is_some());
        // Forbid: what was missed is started now
        assert_eq!(world.started.len(), 2, "{policy}");
    }
}

#[test]
fn what_is_suspended_or_deleted_starts_nothing() {
    let mut world = World::new(json!({"suspend": true}));
    at(&mut world, 600);
    assert!(world.started.is_empty() && world.wake.is_none());
    let mut world = World::new(json!({}));
    world.cron.metadata.deletion_timestamp = Some(Time(world.now()));
    at(&mut world, 600);
    assert!(world.started.is_empty());
}

#[test]
fn what_can_have_no_times_is_told() {
    for (spec, told) in [
        (json!({"timeZone": "Mars/Olympus"}), "UnknownTimeZone"),
        (json!({"schedule": "often"}), "UnparseableSchedule"),
        (json!({"schedule": "0 0 31 2 *"}), "InvalidSchedule"),
    ] {
        let mut world = World::new(spec);
        at(&mut world, 600);
        assert_eq!(
            (world.started.len(), world.told.as_slice()),
            (0, &[told][..])
        );
    }
}

#[test]
fn a_job_that_a_person_has_made_is_told_of_and_kept_by_the_limits() {
    let mut world = World::new(json!({"suspend": true, "successfulJobsHistoryLimit": 0}));
    let mine: Job =
        from_value(json!({"metadata": {"name": "mine", "uid": "mine"}})).expect("a job");
    let told = unexpected(&world.cron, &[Arc::new(mine.clone())]);
    assert_eq!(
        told[0].message,
        "Saw a job that the controller did not create or forgot: mine"
    );
    world.jobs.insert("mine".into(), mine);
    at(&mut world, 10);
    assert_eq!((world.active(), world.status().active), (1, None));
    world.end(0, "Complete");
    at(&mut world, 20);
    assert!(world.jobs.is_empty());
}

#[test]
fn it_is_woken_a_little_after_its_time() {
    let mut world = World::new(json!({"schedule": "*/5 * * * *"}));
    at(&mut world, 1);
    let next = world.times().next(world.now()).expect("a time");
    let wake = Timestamp::from_millisecond(world.wake.expect("it wakes")).expect("a time");
    assert_eq!(wake.duration_since(next), SignedDuration::from_millis(100));
    assert!(
        plan::wait(&world.times(), next, next).is_some_and(|wait| wait > Duration::from_secs(299))
    );
}
